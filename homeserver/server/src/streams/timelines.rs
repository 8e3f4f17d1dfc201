//! The newest events of rooms, as far as this replica has them in memory.
//!
//! A first sync asks for the newest events of each room, and the members of a room ask for the same ones.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use keystead_core::room::RoomEvent;
use keystead_store::rooms::Bounds;
use lru::LruCache;
use ruma::{OwnedRoomId, RoomId, events::TimelineEventType};

/// How many events of a room are kept: one more than clients ask for in a first sync.
const EVENTS: usize = 51;
/// What all of them may take, in bytes of their contents and a guess at what each costs besides.
const MAX_BYTES: usize = 64 << 20;
/// What an event costs besides its content: ids, pointers, the allocator's rounding.
const EVENT_OVERHEAD: usize = 700;

/// The newest events by room. The tail feeds them.
#[derive(Debug)]
pub struct Timelines {
    kept: Mutex<Kept>,
}

#[derive(Debug)]
struct Kept {
    rooms: LruCache<OwnedRoomId, Timeline>,
    bytes: usize,
}

/// All events of a room after a position, oldest first.
#[derive(Debug)]
struct Timeline {
    after: i64,
    events: VecDeque<Arc<RoomEvent>>,
    bytes: usize,
}

impl Default for Timelines {
    fn default() -> Self {
        Self { kept: Mutex::new(Kept { rooms: LruCache::unbounded(), bytes: 0 }) }
    }
}

impl Timelines {
    /// At most `limit` events of a room within `bounds`, newest first; `None` if they are not all here.
    pub fn newest(&self, room_id: &RoomId, bounds: Bounds, limit: usize) -> Option<Vec<Arc<RoomEvent>>> {
        let mut kept = self.lock();
        let timeline = kept.rooms.get(room_id)?;
        let is_within =
            |event: &&Arc<RoomEvent>| event.position > bounds.after && event.position <= bounds.upto;
        let newest: Vec<_> = timeline.events.iter().rev().filter(is_within).take(limit).cloned().collect();
        (newest.len() == limit || timeline.after <= bounds.after).then_some(newest)
    }

    /// Takes in what was read from the database: the newest events of a room within `bounds`, newest first, `limit` of them
    /// or all.
    ///
    /// `missed` gives the events of the room that the tail passed on between the reading and now, if it has them all.
    pub fn insert(
        &self,
        room_id: &RoomId,
        bounds: Bounds,
        limit: usize,
        newest: &[Arc<RoomEvent>],
        missed: impl FnOnce() -> Option<Vec<Arc<RoomEvent>>>,
    ) {
        let mut kept = self.lock();
        let after = match newest.last() {
            Some(oldest) if newest.len() >= limit => oldest.position - 1,
            _ => bounds.after,
        };
        if kept.rooms.peek(room_id).is_some_and(|here| here.after <= after) {
            return;
        }
        // What was redacted meanwhile may have been read as it was before.
        let is_redaction = |event: &Arc<RoomEvent>| event.pdu.event_type == TimelineEventType::RoomRedaction;
        let Some(missed) = missed().filter(|missed| !missed.iter().any(is_redaction)) else { return };
        let mut timeline = Timeline { after, events: VecDeque::new(), bytes: 0 };
        newest.iter().rev().chain(&missed).for_each(|event| timeline.push(event));
        kept.bytes += timeline.bytes;
        if let Some(before) = kept.rooms.put(room_id.to_owned(), timeline) {
            kept.bytes -= before.bytes;
        }
        kept.shrink();
    }

    /// Adds an event of the stream to its room, if that is here.
    pub fn apply(&self, event: &Arc<RoomEvent>) {
        self.lock().change(&event.pdu.room_id, |timeline| timeline.push(event));
    }

    /// Puts the redacted form of an event in the place of the event.
    pub fn replace_redacted(&self, redacted: &Arc<RoomEvent>) {
        self.lock().change(&redacted.pdu.room_id, |timeline| {
            let mut events = timeline.events.iter_mut();
            if let Some(event) = events.find(|event| event.position == redacted.position) {
                timeline.bytes = timeline.bytes - size(event) + size(redacted);
                *event = redacted.clone();
            }
        });
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn change(&mut self, room_id: &RoomId, change: impl FnOnce(&mut Timeline)) {
        let Some(timeline) = self.rooms.peek_mut(room_id) else { return };
        self.bytes -= timeline.bytes;
        change(timeline);
        self.bytes += timeline.bytes;
        self.shrink();
    }

    fn shrink(&mut self) {
        while self.bytes > MAX_BYTES
            && let Some((_, oldest)) = self.rooms.pop_lru()
        {
            self.bytes -= oldest.bytes;
        }
    }
}

impl Timeline {
    fn push(&mut self, event: &Arc<RoomEvent>) {
        if self.events.back().is_some_and(|newest| newest.position >= event.position) {
            return;
        }
        self.bytes += size(event);
        self.events.push_back(event.clone());
        while self.events.len() > EVENTS
            && let Some(oldest) = self.events.pop_front()
        {
            self.after = oldest.position;
            self.bytes -= size(&oldest);
        }
    }
}

fn size(event: &RoomEvent) -> usize {
    event.pdu.content.get().len() + EVENT_OVERHEAD
}

#[cfg(test)]
mod tests {
    use keystead_core::pdu::Pdu;
    use ruma::{OwnedEventId, owned_room_id, room_id};
    use serde_json::json;

    use super::*;

    fn event_of_type(position: i64, event_type: &str) -> Arc<RoomEvent> {
        let json = json!({
            "type": event_type, "sender": "@a:x", "content": {"body": "x"}, "origin_server_ts": 1,
            "prev_events": [], "auth_events": [], "depth": 1,
        });
        let event_id = OwnedEventId::try_from(format!("$e{position}")).unwrap();
        let pdu = Pdu::from_json(event_id, owned_room_id!("!r:x"), &json.to_string()).unwrap();
        Arc::new(RoomEvent { position, pdu: Arc::new(pdu) })
    }

    fn event(position: i64) -> Arc<RoomEvent> {
        event_of_type(position, "m.room.message")
    }

    fn events(positions: impl IntoIterator<Item = i64>) -> Vec<Arc<RoomEvent>> {
        positions.into_iter().map(event).collect()
    }

    fn room() -> &'static RoomId {
        room_id!("!r:x")
    }

    fn newest(timelines: &Timelines, (after, upto): (i64, i64), limit: usize) -> Option<Vec<i64>> {
        let newest = timelines.newest(room(), Bounds { after, upto }, limit)?;
        Some(newest.iter().map(|event| event.position).collect())
    }

    /// Positions 3, 5 and 7 were read, the three newest up to 8; 9 came while they were.
    fn read() -> Timelines {
        let timelines = Timelines::default();
        timelines.insert(room(), Bounds { after: 0, upto: 8 }, 3, &events([7, 5, 3]), || Some(events([9])));
        timelines
    }

    #[test]
    fn it_answers_what_it_has_all_of() {
        let timelines = read();
        assert_eq!(newest(&timelines, (0, 9), 3), Some(vec![9, 7, 5]));
        assert_eq!(newest(&timelines, (0, 8), 3), Some(vec![7, 5, 3]), "as of an earlier position");
        assert_eq!(newest(&timelines, (2, 9), 10), Some(vec![9, 7, 5, 3]));
        assert_eq!(newest(&timelines, (0, 9), 5), None, "there may be older ones");
        assert_eq!(newest(&timelines, (1, 9), 5), None);
        timelines.apply(&event(12));
        timelines.apply(&event(9));
        assert_eq!(newest(&timelines, (5, 12), 5), Some(vec![12, 9, 7]));
    }

    #[test]
    fn a_room_that_was_read_whole_is_known_to_have_no_more() {
        let timelines = Timelines::default();
        timelines.insert(room(), Bounds { after: 0, upto: 8 }, 10, &events([7, 5]), || Some(Vec::new()));
        assert_eq!(newest(&timelines, (0, 8), 10), Some(vec![7, 5]));
    }

    #[test]
    fn what_the_tail_has_lost_sight_of_is_not_kept() {
        let timelines = Timelines::default();
        let bounds = Bounds { after: 0, upto: 8 };
        timelines.insert(room(), bounds, 3, &events([7, 5, 3]), || None);
        assert_eq!(newest(&timelines, (0, 8), 1), None);
        let redaction = event_of_type(9, "m.room.redaction");
        timelines.insert(room(), bounds, 3, &events([7, 5, 3]), || Some(vec![redaction]));
        assert_eq!(newest(&timelines, (0, 8), 1), None, "what it redacts may have been read before");
    }

    #[test]
    fn the_oldest_go_and_are_not_taken_for_absent() {
        let timelines = read();
        let last = i64::try_from(EVENTS).unwrap() + 20;
        (10..=last).for_each(|position| timelines.apply(&event(position)));
        assert_eq!(newest(&timelines, (2, last), EVENTS + 1), None);
        assert_eq!(newest(&timelines, (2, last), EVENTS).unwrap().len(), EVENTS);
    }

    #[test]
    fn a_redacted_event_is_given_redacted() {
        let timelines = read();
        let mut redacted = RoomEvent::clone(&event(5));
        Arc::make_mut(&mut redacted.pdu).redacted_by = Some(ruma::owned_event_id!("$r"));
        timelines.replace_redacted(&Arc::new(redacted));
        let found = timelines.newest(room(), Bounds { after: 4, upto: 5 }, 1).unwrap();
        assert!(found[0].pdu.redacted_by.is_some());
    }

    #[test]
    fn bytes_are_counted_exactly() {
        let timelines = read();
        (10..=200).for_each(|position| timelines.apply(&event(position)));
        let kept = timelines.lock();
        let counted: usize =
            kept.rooms.iter().flat_map(|(_, timeline)| &timeline.events).map(|event| size(event)).sum();
        assert_eq!(kept.bytes, counted);
    }
}
