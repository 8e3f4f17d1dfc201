//! Typing, receipts and account data in the form that clients read.

use std::{
    collections::{BTreeMap, HashMap},
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

/// Receipts as one `m.receipt` event; of two of one reader for one event and thread the newer counts.
pub(super) fn receipt_event<T>(receipts: &[Arc<Receipt>]) -> Result<Option<Raw<T>>, ApiError> {
    if receipts.is_empty() {
        return Ok(None);
    }
    let mut content: BTreeMap<&str, BTreeMap<&str, BTreeMap<&UserId, ReceiptData<'_>>>> = BTreeMap::new();
    for receipt in receipts {
        let of_type =
            content.entry(receipt.event_id.as_str()).or_default().entry(&receipt.receipt_type).or_default();
        of_type.insert(&receipt.user_id, ReceiptData { ts: receipt.ts, thread_id: &receipt.thread_id });
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
