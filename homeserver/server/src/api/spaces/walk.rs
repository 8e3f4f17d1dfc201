//! The walk through the tree of rooms below a space.
//!
//! > Paginates over the space tree in a depth-first manner to locate child rooms of a given space.

use std::collections::{HashMap, HashSet};

use keystead_core::{client_format, room::RoomEvent};
use keystead_store::{
    Error, ReadTx,
    room_summaries::{self, RoomFacts},
};
use ruma::{
    MilliSecondsSinceUnixEpoch, OwnedRoomId, RoomId, events::space::child::HierarchySpaceChildEvent,
    serde::Raw,
};
use serde_json::Value;

use super::{
    summary::{is_accessible, is_space},
    token::Token,
};
use crate::{api::room_directory::value, http::error::ApiError, streams::RoomsOfUser};

/// How many rooms a walk looks at: what comes after them in a tree is not shown.
const MAX_ROOMS: usize = 5_000;
/// > The string must not exceed 50 characters.
const MAX_ORDER: usize = 50;

/// What a walk found.
pub(super) struct Found {
    /// The rooms of the page.
    pub(super) rooms: Vec<FoundRoom>,
    /// Whether there are more of them.
    pub(super) has_more: bool,
}

/// A room of the tree.
pub(super) struct FoundRoom {
    pub(super) room_id: OwnedRoomId,
    pub(super) facts: RoomFacts,
    /// Whether the walk takes only children that are suggested.
    suggested_only: bool,
}

impl FoundRoom {
    /// The children, in their order.
    ///
    /// # Errors
    /// An event that cannot be written, which valid parts never cause.
    pub(super) fn children(&self) -> Result<Vec<Raw<HierarchySpaceChildEvent>>, ApiError> {
        children(&self.facts, self.suggested_only)
            .into_iter()
            .map(|(event, _)| {
                let event = client_format::stripped_with_time(&event.pdu).map_err(ApiError::internal)?;
                Ok(Raw::from_json(event))
            })
            .collect()
    }
}

/// Walks from a room on: at most `limit` rooms after those that were shown. `None` if the first room is not to be seen.
///
/// # Errors
/// The database's own.
pub(super) async fn walk(
    tx: &ReadTx,
    root: &RoomId,
    rooms: &RoomsOfUser,
    place: Token,
    limit: usize,
) -> Result<Option<Found>, Error> {
    let mut known: HashMap<OwnedRoomId, RoomFacts> = room_summaries::read(tx, &[root]).await?;
    if !known.get(root).is_some_and(|facts| is_accessible(root, facts, Some(rooms))) {
        return Ok(None);
    }
    let (mut seen, mut found) = (HashSet::new(), Vec::new());
    let (mut ahead, mut to_pass) = (vec![(root.to_owned(), 0)], place.shown);
    while let Some((room_id, depth)) = ahead.pop() {
        if seen.len() >= MAX_ROOMS {
            break;
        }
        if !seen.insert(room_id.clone()) {
            continue;
        }
        let Some(facts) = known.remove(&room_id) else { continue };
        if !is_accessible(&room_id, &facts, Some(rooms)) {
            continue;
        }
        if found.len() == limit {
            return Ok(Some(Found { rooms: found, has_more: true }));
        }
        if depth < place.max_depth {
            let below: Vec<_> =
                children(&facts, place.suggested_only).into_iter().map(|(_, room_id)| room_id).collect();
            let is_new = |child: &&OwnedRoomId| !seen.contains(*child) && !known.contains_key(*child);
            let unknown: Vec<&RoomId> = below.iter().filter(is_new).map(|child| &**child).collect();
            if !unknown.is_empty() {
                let read = room_summaries::read(tx, &unknown).await?;
                known.extend(read);
            }
            // The first child is looked at next.
            ahead.extend(below.into_iter().rev().map(|child| (child, depth + 1)));
        }
        match to_pass.checked_sub(1) {
            Some(rest) => to_pass = rest,
            None => found.push(FoundRoom { room_id, facts, suggested_only: place.suggested_only }),
        }
    }
    Ok(Some(Found { rooms: found, has_more: false }))
}

/// The children of a space in their order; none of a room that is no space.
fn children(facts: &RoomFacts, suggested_only: bool) -> Vec<(&RoomEvent, OwnedRoomId)> {
    if !is_space(facts) {
        return Vec::new();
    }
    let child = |event| -> Option<(&RoomEvent, OwnedRoomId)> {
        let event: &RoomEvent = event;
        // > Rooms with […] no `via` […] are not considered part of the space.
        value::<Vec<Value>>(event, "via").filter(|via| !via.is_empty())?;
        if suggested_only && value(event, "suggested") != Some(true) {
            return None;
        }
        Some((event, OwnedRoomId::try_from(event.pdu.state_key.as_deref()?).ok()?))
    };
    let mut children: Vec<_> = facts.children.iter().filter_map(child).collect();
    children.sort_by_cached_key(|(event, room_id)| sort_key(event, room_id));
    children
}

/// > Rooms are sorted […] by `order` […], with those without one after those with one; then by `origin_server_ts` of the child
/// > event, then by room id.
fn sort_key(event: &RoomEvent, room_id: &RoomId) -> (bool, String, MilliSecondsSinceUnixEpoch, OwnedRoomId) {
    let is_valid =
        |order: &String| order.len() <= MAX_ORDER && order.bytes().all(|byte| (0x20..=0x7e).contains(&byte));
    let order: Option<String> = value(event, "order").filter(is_valid);
    (order.is_none(), order.unwrap_or_default(), event.pdu.origin_server_ts, room_id.to_owned())
}

#[cfg(test)]
mod tests {
    use keystead_core::pdu::Pdu;
    use ruma::{owned_event_id, owned_room_id};
    use serde_json::json;

    use super::*;

    fn event(event_type: &str, state_key: &str, ts: u32, content: Value) -> RoomEvent {
        let json = json!({
            "type": event_type, "state_key": state_key, "sender": "@a:x", "content": content, "origin_server_ts": ts,
            "depth": 1, "prev_events": [], "auth_events": [],
        });
        let pdu = Pdu::from_json(owned_event_id!("$e"), owned_room_id!("!s:x"), &json.to_string());
        RoomEvent { position: 1, pdu: pdu.unwrap().into() }
    }

    #[test]
    fn children_have_a_via_and_stand_in_their_order() {
        let child = |id: &str, ts, content| event("m.space.child", id, ts, content);
        let space = event("m.room.create", "", 1, json!({ "type": "m.space" }));
        let mut facts = RoomFacts {
            joined: 1,
            state: vec![space],
            children: vec![
                child("!late:x", 9, json!({ "via": ["x"] })),
                child("!early:x", 2, json!({ "via": ["x"], "order": "a\nb" })),
                child("!second:x", 5, json!({ "via": ["x"], "order": "b", "suggested": true })),
                child("!first:x", 7, json!({ "via": ["x"], "order": "a" })),
                child("!gone:x", 1, json!({})),
                child("!nowhere:x", 1, json!({ "via": [] })),
                child("no room", 1, json!({ "via": ["x"] })),
            ],
        };
        let ids = |facts: &RoomFacts, suggested| -> Vec<String> {
            children(facts, suggested).iter().map(|(_, room_id)| room_id.to_string()).collect()
        };
        assert_eq!(ids(&facts, false), ["!first:x", "!second:x", "!early:x", "!late:x"]);
        assert_eq!(ids(&facts, true), ["!second:x"]);
        facts.state.clear();
        assert_eq!(ids(&facts, false), [""; 0]);
    }
}
