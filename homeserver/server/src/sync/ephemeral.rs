//! Typing, receipts and account data in the form that clients read.

use std::{
    collections::{BTreeMap, HashMap, btree_map::Entry},
    sync::Arc,
};

use keystead_core::{
    filter::{self, Facts},
    token::TypingSeen,
};
use keystead_store::streams::{AccountData, Receipt};
use ruma::{
    OwnedRoomId, OwnedUserId, RoomId, UserId,
    api::client::filter::{Filter, RoomEventFilter},
    events::room::member::MembershipState,
    serde::Raw,
};
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};

use super::Sync;
use crate::http::error::ApiError;

/// How many rooms' typing a token remembers; in the others typing may be told once too often.
const TYPING_REMEMBERED: usize = 32;

/// An event without sender, time and id.
#[derive(Serialize)]
struct BareEvent<'a, C> {
    #[serde(rename = "type")]
    event_type: &'a str,
    content: C,
}

#[derive(Serialize)]
struct TypingContent<'a> {
    user_ids: &'a [OwnedUserId],
}

#[derive(Serialize)]
struct ReceiptData<'a> {
    ts: ruma::MilliSecondsSinceUnixEpoch,
    #[serde(skip_serializing_if = "str::is_empty")]
    thread_id: &'a str,
}

/// An event without sender, time and id, written down.
///
/// # Errors
/// 500 if the content cannot be written, which valid JSON never causes.
pub(super) fn bare_event<T>(event_type: &str, content: impl Serialize) -> Result<Raw<T>, ApiError> {
    let json = to_raw_value(&BareEvent { event_type, content }).map_err(ApiError::internal)?;
    Ok(Raw::from_json(json))
}

/// An entry of account data as an event.
pub(super) fn account_data_event<T>(data: &AccountData) -> Result<Raw<T>, ApiError> {
    let content: &RawValue = serde_json::from_str(&data.content).map_err(ApiError::internal)?;
    bare_event(&data.data_type, content)
}

/// Whether a filter lets an entry of account data through.
pub(super) fn wants(filter: &Filter, data: &AccountData) -> bool {
    let Ok(content) = serde_json::from_str::<&RawValue>(&data.content) else { return false };
    filter::matches(filter, Facts { event_type: &data.data_type, sender: None, content })
}

/// Whether a filter lets an entry of a room's account data through.
pub(super) fn wants_in_room(filter: &RoomEventFilter, room_id: &RoomId, data: &AccountData) -> bool {
    let Ok(content) = serde_json::from_str::<&RawValue>(&data.content) else { return false };
    filter::matches_in_room(filter, room_id, Facts { event_type: &data.data_type, sender: None, content })
}

/// Receipts as one `m.receipt` event, which has one of each reader for an event: the newest, but rather one without a thread,
/// since that says more.
pub(super) fn receipt_event<T>(receipts: &[Arc<Receipt>]) -> Result<Option<Raw<T>>, ApiError> {
    if receipts.is_empty() {
        return Ok(None);
    }
    let mut content: BTreeMap<&str, BTreeMap<&str, BTreeMap<&UserId, ReceiptData<'_>>>> = BTreeMap::new();
    for receipt in receipts {
        let of_type =
            content.entry(receipt.event_id.as_str()).or_default().entry(&receipt.receipt_type).or_default();
        let data = ReceiptData { ts: receipt.ts, thread_id: &receipt.thread_id };
        match of_type.entry(&receipt.user_id) {
            Entry::Occupied(kept) if kept.get().thread_id.is_empty() && !data.thread_id.is_empty() => {}
            Entry::Occupied(mut kept) => {
                kept.insert(data);
            }
            Entry::Vacant(place) => {
                place.insert(data);
            }
        }
    }
    bare_event("m.receipt", content).map(Some)
}

/// Who types in a room as an `m.typing` event.
pub(super) fn typing_event<T>(user_ids: &[OwnedUserId]) -> Result<Raw<T>, ApiError> {
    bare_event("m.typing", TypingContent { user_ids })
}

impl Sync<'_> {
    /// The rooms where the client knows something else of the typing than is so now, with who types there; and what
    /// it knows after this answer.
    pub(super) fn typing(&self) -> (HashMap<OwnedRoomId, Vec<OwnedUserId>>, Vec<TypingSeen>) {
        let known = self.request.since.as_ref().map(|since| since.typing.as_slice()).unwrap_or_default();
        let mut typing = self.app.tail.typing().in_rooms(&self.rooms, self.now);
        let has_ended = |seen: &&TypingSeen| !typing.iter().any(|(room_id, _)| seen.is_about(room_id));
        let ended: Vec<_> = known.iter().filter(has_ended).collect();
        if !ended.is_empty() {
            let joined = self.rooms.iter().filter(|(_, room)| room.membership == MembershipState::Join);
            let rooms = joined.filter(|(room_id, _)| ended.iter().any(|seen| seen.is_about(room_id)));
            typing.extend(rooms.map(|(room_id, _)| (room_id.clone(), Vec::new())));
        }
        let mut news = HashMap::new();
        let mut seen = Vec::new();
        for (room_id, users) in typing {
            if !filter::includes_room(&self.filter().room, &room_id) {
                continue;
            }
            let before = known.iter().find(|seen| seen.is_about(&room_id));
            let after = TypingSeen::new(&room_id, users.iter().map(AsRef::as_ref));
            if !users.is_empty() && seen.len() < TYPING_REMEMBERED {
                seen.push(after);
            }
            if before.map_or(!users.is_empty(), |before| *before != after) {
                news.insert(room_id, users);
            }
        }
        seen.sort_unstable_by_key(|seen| seen.room);
        (news, seen)
    }
}

#[cfg(test)]
mod tests {
    use ruma::{
        MilliSecondsSinceUnixEpoch, events::AnySyncEphemeralRoomEvent, owned_event_id, owned_room_id,
        owned_user_id,
    };
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_receipt_without_a_thread_goes_before_one_of_a_thread() {
        let receipt = |ts: u32, thread_id: &str| {
            Arc::new(Receipt {
                room_id: owned_room_id!("!r:x"),
                user_id: owned_user_id!("@a:x"),
                receipt_type: "m.read".to_owned(),
                thread_id: thread_id.to_owned(),
                event_id: owned_event_id!("$e"),
                ts: MilliSecondsSinceUnixEpoch(ts.into()),
            })
        };
        let (threaded, plain) = (receipt(1, "main"), receipt(2, ""));
        for receipts in [[threaded.clone(), plain.clone()], [plain, threaded]] {
            let event: Raw<AnySyncEphemeralRoomEvent> = receipt_event(&receipts).unwrap().unwrap();
            let event: Value = serde_json::from_str(event.json().get()).unwrap();
            assert_eq!(event["content"]["$e"]["m.read"]["@a:x"], json!({ "ts": 2 }));
        }
    }
}
