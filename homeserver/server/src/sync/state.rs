//! The state that a client needs to make sense of a timeline.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use keystead_core::{
    filter::{self, Facts},
    room::{RoomEvent, RoomState},
};
use keystead_store::rooms;
use ruma::{
    OwnedUserId, RoomId,
    api::client::{
        filter::LazyLoadOptions,
        sync::sync_events::v3::{State, StateEvents},
    },
    events::TimelineEventType,
};

use super::Sync;
use crate::{http::error::ApiError, rooms::MembershipHistory};

/// What of the state an answer shows.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Wanted {
    /// All of it.
    Whole,
    /// What changed after this position.
    Since(i64),
}

/// Where the timeline that the state goes with begins and ends, and what is not shown of it.
pub(super) struct Span {
    /// The position of the first event that was looked at, shown or not.
    pub(super) looked_from: i64,
    /// The position of the first event that is shown; if there is none, one more than how far the sync reaches.
    start: i64,
    /// How far the sync reaches in the room.
    end: i64,
    /// The state events after `start` that are not shown: the filter or the room's history visibility took them out.
    hidden: Vec<Arc<RoomEvent>>,
}

impl Span {
    /// The span of a timeline, out of all events that were looked at and those that are shown.
    pub(super) fn new(looked_at: &[Arc<RoomEvent>], shown: &[Arc<RoomEvent>], end: i64) -> Self {
        let start = shown.first().map_or(end + 1, |event| event.position);
        let positions: HashSet<i64> = shown.iter().map(|event| event.position).collect();
        let is_hidden = |event: &&Arc<RoomEvent>| {
            event.pdu.state_key.is_some() && event.position > start && !positions.contains(&event.position)
        };
        Self {
            looked_from: looked_at.first().map_or(end + 1, |event| event.position),
            start,
            end,
            hidden: looked_at.iter().filter(is_hidden).cloned().collect(),
        }
    }

    /// The position of the first event that is shown.
    pub(super) fn start(&self) -> i64 {
        self.start
    }

    /// How far the sync reaches in the room.
    pub(super) fn end(&self) -> i64 {
        self.end
    }

    /// Adds to a state what the timeline does not show of its later changes, so that state and timeline together lead to
    /// the state at the end. What the timeline itself sets again later is left to it.
    pub(super) fn add_hidden(&self, events: &mut Vec<Arc<RoomEvent>>, timeline: &[Arc<RoomEvent>]) {
        for hidden in &self.hidden {
            let is_set_later = timeline
                .iter()
                .any(|event| event.position > hidden.position && state_key_of(event) == state_key_of(hidden));
            if !is_set_later {
                events.retain(|event| state_key_of(event) != state_key_of(hidden));
                events.push(hidden.clone());
            }
        }
    }
}

/// What these events, oldest first, have made the state just before a position.
fn newest_state(events: &[Arc<RoomEvent>], before: i64) -> Vec<Arc<RoomEvent>> {
    let mut seen = HashSet::new();
    let earlier = events.iter().rev().filter(|event| event.position < before);
    let state = earlier.filter(|event| event.pdu.state_key.is_some() && seen.insert(state_key_of(event)));
    let mut newest: Vec<_> = state.cloned().collect();
    newest.reverse();
    newest
}

/// What a state event sets.
fn state_key_of(event: &RoomEvent) -> (String, Option<String>) {
    (event.pdu.event_type.to_string(), event.pdu.state_key.clone())
}

/// The position up to which a timeline shows state that an event which is not shown has replaced, if it does.
fn outdated_upto(looked_at: &[Arc<RoomEvent>], shown: &[Arc<RoomEvent>]) -> Option<i64> {
    let state = |event: &&Arc<RoomEvent>| event.pdu.state_key.is_some();
    let newest: HashMap<_, i64> =
        looked_at.iter().filter(state).map(|event| (state_key_of(event), event.position)).collect();
    let newest_shown: HashMap<_, i64> =
        shown.iter().filter(state).map(|event| (state_key_of(event), event.position)).collect();
    let outdated =
        newest_shown.into_iter().filter(|(key, shown)| newest.get(key).is_some_and(|at| at > shown));
    outdated.map(|(_, position)| position).max()
}

impl Sync<'_> {
    /// Lets a timeline begin later if a client that lays it over the state before it would end with state that is no longer in
    /// force: where it shows an event, but not the one that replaced it. Returns whether something had to go.
    pub(super) fn drop_outdated(
        &self,
        looked_at: &mut Vec<Arc<RoomEvent>>,
        timeline: &mut Vec<Arc<RoomEvent>>,
    ) -> bool {
        if self.request.state_after || looked_at.len() == timeline.len() {
            return false;
        }
        let Some(outdated) = outdated_upto(looked_at, timeline) else { return false };
        looked_at.retain(|event| event.position > outdated);
        timeline.retain(|event| event.position > outdated);
        true
    }

    /// The state section of a room: as of the start of the timeline, or of its end if the client asked for that.
    /// `all_new` are all events after the position that the state is wanted since, if they are at hand; `heroes` are the members that
    /// stand for the room's name.
    pub(super) async fn state_section(
        &self,
        room: &RoomState,
        (wanted, all_new): (Wanted, Option<&[Arc<RoomEvent>]>),
        span: &Span,
        timeline: &[Arc<RoomEvent>],
        heroes: &[OwnedUserId],
        memberships: &MembershipHistory,
    ) -> Result<State, ApiError> {
        let until = if self.request.state_after { span.end + 1 } else { span.start };
        let speakers = self.speakers(wanted, timeline, heroes);
        let mut events = match wanted {
            Wanted::Whole => self.state_before(room, until, speakers.as_ref()).await?,
            Wanted::Since(since) if since + 1 >= until => Vec::new(),
            Wanted::Since(since) => match all_new {
                Some(events) => newest_state(events, until),
                None => self.state_between(&room.room_id, since, until).await?,
            },
        };
        if !self.request.state_after {
            span.add_hidden(&mut events, timeline);
        }
        let missing = lazy_load((speakers, wanted), timeline, &mut events);
        events.extend(missing.iter().filter_map(|user_id| room.get("m.room.member", user_id).cloned()));
        self.write_section(events, memberships).await
    }

    /// The state section of these events, without those that the filter does not want.
    pub(super) async fn write_section(
        &self,
        mut events: Vec<Arc<RoomEvent>>,
        memberships: &MembershipHistory,
    ) -> Result<State, ApiError> {
        events.retain(|event| self.wants_state(event));
        let events = StateEvents::with_events(self.write_state(&events, memberships).await?);
        Ok(if self.request.state_after { State::After(events) } else { State::Before(events) })
    }

    /// The state that was in force just before a position; of the members perhaps only these, if some are named.
    pub(super) async fn state_before(
        &self,
        room: &RoomState,
        before: i64,
        members: Option<&HashSet<String>>,
    ) -> Result<Vec<Arc<RoomEvent>>, ApiError> {
        let now: Vec<_> = match members {
            None => room.iter().cloned().collect(),
            Some(members) => {
                let members = members.iter().filter_map(|user_id| room.get("m.room.member", user_id));
                room.without_members().chain(members).cloned().collect()
            }
        };
        let (mut events, newer): (Vec<_>, Vec<_>) =
            now.into_iter().partition(|event| event.position < before);
        if !newer.is_empty() {
            let room_id = &room.room_id;
            let older = self
                .app
                .store
                .read(
                    "sync_state_before",
                    |tx| async move { rooms::state_before(&tx, room_id, before).await },
                )
                .await?;
            events.extend(older.into_iter().map(Arc::new));
        }
        // The order in which it came to be, so that equal states look equal.
        events.sort_unstable_by_key(|event| event.position);
        Ok(events)
    }

    /// The state events after one position that were still in force just before another.
    async fn state_between(
        &self,
        room_id: &RoomId,
        after: i64,
        before: i64,
    ) -> Result<Vec<Arc<RoomEvent>>, ApiError> {
        let events = self
            .app
            .store
            .read("sync_state_between", |tx| async move {
                rooms::state_between(&tx, room_id, after, before).await
            })
            .await?;
        Ok(events.into_iter().map(Arc::new).collect())
    }

    /// With lazy loading, the members that a state names beside what changed: those who speak in the timeline or stand for the room's
    /// name, and the user. `None` if all are wanted.
    ///
    /// <https://spec.matrix.org/v1.19/client-server-api/#lazy-loading-room-members>
    pub(super) fn speakers(
        &self,
        wanted: Wanted,
        timeline: &[Arc<RoomEvent>],
        heroes: &[OwnedUserId],
    ) -> Option<HashSet<String>> {
        if matches!(self.filter().room.state.lazy_load_options, LazyLoadOptions::Disabled) {
            return None;
        }
        let senders = timeline.iter().map(|event| event.pdu.sender.to_string());
        let mut speakers: HashSet<_> = senders.chain(heroes.iter().map(ToString::to_string)).collect();
        if wanted == Wanted::Whole {
            speakers.insert(self.user_id().to_string());
        }
        Some(speakers)
    }

    fn wants_state(&self, event: &RoomEvent) -> bool {
        let event_type = event.pdu.event_type.to_string();
        let facts =
            Facts { event_type: &event_type, sender: Some(&event.pdu.sender), content: &event.pdu.content };
        filter::matches_in_room(&self.filter().room.state, &event.pdu.room_id, facts)
    }
}

/// Leaves of the members in a whole state only those who are wanted, if not all are. What changed in a gap stays. Returns who of them
/// is missing because nothing about them has changed: the client may not have been told of them.
///
/// > This member list […] is then maintained by the `state` in subsequent incremental `/sync` responses.
pub(super) fn lazy_load(
    (speakers, wanted): (Option<HashSet<String>>, Wanted),
    timeline: &[Arc<RoomEvent>],
    events: &mut Vec<Arc<RoomEvent>>,
) -> Vec<String> {
    let Some(mut missing) = speakers else { return Vec::new() };
    if wanted == Wanted::Whole {
        events.retain(|event| {
            event.pdu.event_type != TimelineEventType::RoomMember
                || event.pdu.state_key.as_deref().is_some_and(|user_id| missing.contains(user_id))
        });
    }
    for event in events.iter().chain(timeline) {
        if event.pdu.event_type == TimelineEventType::RoomMember
            && let Some(user_id) = &event.pdu.state_key
        {
            missing.remove(user_id);
        }
    }
    missing.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use keystead_core::pdu::Pdu;
    use ruma::{OwnedEventId, owned_room_id};
    use serde_json::json;

    use super::*;

    fn event(position: i64, event_type: &str, state_key: Option<&str>) -> Arc<RoomEvent> {
        let mut json = json!({
            "type": event_type, "sender": "@a:x", "content": {}, "origin_server_ts": 1, "prev_events": [],
            "auth_events": [], "depth": 1,
        });
        if let Some(state_key) = state_key {
            json["state_key"] = json!(state_key);
        }
        let event_id = OwnedEventId::try_from(format!("$e{position}")).unwrap();
        let pdu = Pdu::from_json(event_id, owned_room_id!("!r:x"), &json.to_string()).unwrap();
        Arc::new(RoomEvent { position, pdu: Arc::new(pdu) })
    }

    fn history() -> Vec<Arc<RoomEvent>> {
        vec![
            event(1, "m.room.topic", Some("")),
            event(3, "m.room.member", Some("@a:x")),
            event(4, "m.room.topic", Some("")),
            event(5, "m.room.message", None),
            event(7, "m.room.member", Some("@b:x")),
            event(9, "m.room.topic", Some("")),
        ]
    }

    #[test]
    fn of_what_was_set_twice_the_newest_is_the_state() {
        let positions = |before| -> Vec<_> {
            newest_state(&history(), before).iter().map(|event| event.position).collect()
        };
        assert_eq!(positions(1), [0_i64; 0]);
        assert_eq!(positions(4), [1, 3]);
        assert_eq!(positions(9), [3, 4, 7]);
        assert_eq!(positions(10), [3, 7, 9]);
    }

    #[test]
    fn what_a_hidden_event_has_replaced_is_outdated() {
        let all = history();
        let shown = |hidden: &[i64]| -> Vec<_> {
            all.iter().filter(|event| !hidden.contains(&event.position)).cloned().collect()
        };
        let table = [
            (vec![], None),
            (vec![1, 4, 9], None),
            (vec![1, 3, 5], None),
            (vec![9], Some(4)),
            (vec![4, 9], Some(1)),
        ];
        for (hidden, expected) in table {
            assert_eq!(outdated_upto(&all, &shown(&hidden)), expected, "{hidden:?}");
        }
    }
}
