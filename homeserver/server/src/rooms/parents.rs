//! Which events may have children: so that the newest events, which hardly ever have any, are shown without asking the database.

use std::{
    borrow::Borrow,
    collections::{HashMap, HashSet},
    sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use keystead_core::{
    relations::relation_of,
    room::RoomEvent,
    shard::{Shard, Shards},
};
use ruma::{EventId, OwnedEventId, RoomId};

use crate::streams::Item;

/// How many parents are remembered, and how many events that have no children: some 10 MB each.
const CAPACITY: usize = 65_536;

/// What this replica has heard of relationships between events.
///
/// A child stands after its parent in the stream. Of an event that stands after the place from which on the replica has
/// heard everything, it therefore knows all children; of others the database has to be asked, and what it answers is remembered.
#[derive(Debug)]
pub struct Parents {
    shards: Shards,
    heard: RwLock<Heard>,
}

#[derive(Debug, Default)]
struct Heard {
    /// After which position of each shard all parents are among `parents`; none before the replica has begun to hear.
    since: HashMap<Shard, i64>,
    /// The newest position of each shard at which an event was heard.
    reached: HashMap<Shard, i64>,
    parents: HashSet<OwnedEventId>,
    /// Older events that had no children when the database was asked. Of those that they have got since it was heard.
    childless: HashSet<OwnedEventId>,
    /// How often all was forgotten.
    forgotten: u64,
}

/// Events of which the database has to be asked whether they have children.
#[derive(Debug)]
pub struct Question<'a> {
    /// The events, with their rooms.
    pub events: Vec<(&'a RoomId, &'a EventId)>,
    forgotten: u64,
}

impl Parents {
    /// Knows nothing yet: any event may have children.
    pub fn new(shards: Shards) -> Self {
        Self { shards, heard: RwLock::default() }
    }

    /// Takes note that nothing is missed that stands after these positions of the shards.
    pub fn hears_all_after(&self, position: impl Fn(Shard) -> i64) {
        let mut heard = self.write();
        heard.since = self.shards.room_shards().map(|shard| (shard, position(shard))).collect();
    }

    /// Takes in a row of the stream.
    pub fn hear(&self, item: &Item, position: i64) {
        let Item::Event(event) = item else { return };
        let Some(relation) = relation_of(&event.pdu) else { return };
        let shard = self.shards.of_room(&event.pdu.room_id);
        let mut heard = self.write();
        let reached = heard.reached.entry(shard).or_insert(position);
        *reached = position.max(*reached);
        heard.parents.insert(relation.parent);
        if heard.parents.len() > CAPACITY {
            heard.forget();
        }
    }

    /// Whether one of the events may have children.
    pub fn may_be_among<E: Borrow<RoomEvent>>(&self, events: &[E]) -> bool {
        let heard = self.read();
        events
            .iter()
            .map(Borrow::borrow)
            .any(|event| heard.parents.contains(&event.pdu.event_id) || heard.is_unknown(event, self.shards))
    }

    /// What to ask the database to know more about these events, in a transaction that begins after this; `None` if nothing.
    pub fn question<'a, E: Borrow<RoomEvent> + 'a>(
        &self,
        events: impl IntoIterator<Item = &'a E>,
    ) -> Option<Question<'a>> {
        let heard = self.read();
        let events: Vec<_> = events
            .into_iter()
            .map(Borrow::borrow)
            .filter(|event| heard.is_unknown(event, self.shards))
            .map(|event| (&*event.pdu.room_id, &*event.pdu.event_id))
            .collect();
        (!events.is_empty()).then_some(Question { events, forgotten: heard.forgotten })
    }

    /// Takes in which of the events may have children.
    pub fn answer(&self, question: &Question<'_>, parents: HashSet<OwnedEventId>) {
        let mut heard = self.write();
        // What was heard meanwhile and is forgotten may not be in the answer.
        if heard.forgotten != question.forgotten {
            return;
        }
        if heard.childless.len() + question.events.len() > CAPACITY {
            heard.childless.clear();
        }
        for (_, event_id) in &question.events {
            if !parents.contains(*event_id) {
                heard.childless.insert((*event_id).to_owned());
            }
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, Heard> {
        self.heard.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Heard> {
        self.heard.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Heard {
    /// Whether nothing is known of the children of an event.
    fn is_unknown(&self, event: &RoomEvent, shards: Shards) -> bool {
        let since = self.since.get(&shards.of_room(&event.pdu.room_id));
        since.is_none_or(|since| event.position <= *since)
            && !self.parents.contains(&event.pdu.event_id)
            && !self.childless.contains(&event.pdu.event_id)
    }

    /// Begins anew with what comes from now on.
    fn forget(&mut self) {
        self.forgotten += 1;
        self.parents.clear();
        self.childless.clear();
        let reached = std::mem::take(&mut self.reached);
        for (shard, since) in &mut self.since {
            *since = reached.get(shard).copied().unwrap_or_default().max(*since);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use keystead_core::pdu::Pdu;
    use ruma::{owned_event_id, owned_room_id};
    use serde_json::{Value, json};

    use super::*;

    fn event(id: OwnedEventId, position: i64, content: &Value) -> Arc<RoomEvent> {
        let json = json!({
            "type": "m.room.message", "sender": "@a:x", "content": content, "origin_server_ts": 1, "depth": 1,
            "prev_events": [], "auth_events": [],
        });
        let pdu = Pdu::from_json(id, owned_room_id!("!r"), &json.to_string()).unwrap();
        Arc::new(RoomEvent { position, pdu: pdu.into() })
    }

    fn child(number: usize, position: i64) -> Item {
        let parent = format!("$parent{number}");
        let relates_to = json!({ "rel_type": "m.reference", "event_id": parent });
        Item::Event(event(owned_event_id!("$child"), position, &json!({ "m.relates_to": relates_to })))
    }

    #[test]
    fn only_what_was_not_heard_and_what_has_children_is_asked_for() {
        let parents = Parents::new(Shards { rooms: 1 });
        let plain = |position| event(owned_event_id!("$plain"), position, &json!({}));
        let parent = event(owned_event_id!("$parent1"), 11, &json!({}));
        assert!(parents.may_be_among(&[plain(11)]), "nothing is known yet");
        parents.hears_all_after(|_| 10);
        assert!(parents.may_be_among(&[plain(10)]));
        assert!(!parents.may_be_among(&[plain(11), Arc::clone(&parent)]));
        parents.hear(&child(1, 12), 12);
        assert!(parents.may_be_among(&[plain(11), parent]));
        assert!(!parents.may_be_among(&[plain(11)]));
    }

    #[test]
    fn what_the_database_says_is_remembered_until_something_is_heard() {
        let parents = Parents::new(Shards { rooms: 1 });
        parents.hears_all_after(|_| 10);
        let events = [
            event(owned_event_id!("$parent1"), 1, &json!({})),
            event(owned_event_id!("$parent2"), 2, &json!({})),
            event(owned_event_id!("$newer"), 11, &json!({})),
        ];
        let question = parents.question(&events).unwrap();
        assert_eq!(question.events.len(), 2);
        parents.answer(&question, HashSet::from([owned_event_id!("$parent2")]));
        let may_be = |index: usize| parents.may_be_among(&events[index..=index]);
        assert_eq!([may_be(0), may_be(1), may_be(2)], [false, true, false]);
        assert_eq!(parents.question(&events).unwrap().events.len(), 1);
        parents.hear(&child(1, 12), 12);
        assert!(may_be(0));
        assert!(parents.question(&events[..1]).is_none());
    }

    #[test]
    fn what_was_heard_while_the_database_was_asked_is_not_lost() {
        let parents = Parents::new(Shards { rooms: 1 });
        parents.hears_all_after(|_| 10);
        let events = [event(owned_event_id!("$parent1"), 1, &json!({}))];
        let question = parents.question(&events).unwrap();
        parents.hear(&child(1, 12), 12);
        for number in 2..CAPACITY + 2 {
            parents.hear(&child(number, 20), 20);
        }
        parents.answer(&question, HashSet::new());
        assert!(parents.may_be_among(&events));
    }

    #[test]
    fn what_was_forgotten_is_asked_for() {
        let parents = Parents::new(Shards { rooms: 1 });
        parents.hears_all_after(|_| 0);
        for number in 0..=CAPACITY {
            parents.hear(&child(number, 20), 20);
        }
        let parent = event(owned_event_id!("$parent1"), 11, &json!({}));
        assert!(parents.may_be_among(&[parent]));
        let newer = event(owned_event_id!("$newer"), 21, &json!({}));
        assert!(!parents.may_be_among(&[newer]));
    }
}
