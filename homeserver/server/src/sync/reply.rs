//! The answer of `/sync` as JSON.

use std::collections::BTreeMap;

use ruma::{
    OwnedRoomId, RoomId,
    api::client::sync::sync_events::{DeviceLists, v3 as sync_events},
};
use serde::Serialize;
use sync_events::{JoinedRoom, LeftRoom, Response, Rooms, State, Timeline};

use crate::http::{
    body,
    error::ApiError,
    reply::{RawJson, Reply},
};

/// The answer of `/sync`. Each joined or left room has a `timeline` and a `state`, if empty ones: the specification lets a
/// server leave them out, but clients (matrix-nio) refuse rooms without them.
#[derive(Debug)]
pub struct SyncReply(pub Response);

impl Reply for SyncReply {
    fn into_response(self) -> Result<http::Response<body::Body>, ApiError> {
        let body = serde_json::to_vec(&Body::new(&self.0)).map_err(ApiError::internal)?;
        RawJson(body.into()).into_response()
    }
}

#[derive(Serialize)]
struct Body<'a> {
    next_batch: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    rooms: Option<RoomsBody<'a>>,
    #[serde(skip_serializing_if = "sync_events::Presence::is_empty")]
    presence: &'a sync_events::Presence,
    #[serde(skip_serializing_if = "sync_events::GlobalAccountData::is_empty")]
    account_data: &'a sync_events::GlobalAccountData,
    #[serde(skip_serializing_if = "sync_events::ToDevice::is_empty")]
    to_device: &'a sync_events::ToDevice,
    #[serde(skip_serializing_if = "DeviceLists::is_empty")]
    device_lists: &'a DeviceLists,
    device_one_time_keys_count: BTreeMap<&'a str, u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    device_unused_fallback_key_types: Option<Vec<&'a str>>,
}

#[derive(Serialize)]
struct RoomsBody<'a> {
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    join: BTreeMap<&'a RoomId, WithSections<'a, JoinedRoom>>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    leave: BTreeMap<&'a RoomId, WithSections<'a, LeftRoom>>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    invite: &'a BTreeMap<OwnedRoomId, sync_events::InvitedRoom>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    knock: &'a BTreeMap<OwnedRoomId, sync_events::KnockedRoom>,
}

/// A room with the sections that it would leave out.
#[derive(Serialize)]
struct WithSections<'a, R> {
    #[serde(flatten)]
    room: &'a R,
    #[serde(skip_serializing_if = "Option::is_none")]
    timeline: Option<NoEvents>,
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<NoEvents>,
}

#[derive(Serialize)]
struct NoEvents {
    events: [(); 0],
}

impl<'a> Body<'a> {
    fn new(response: &'a Response) -> Self {
        let counts = response.device_one_time_keys_count.iter();
        let fallback_keys = response.device_unused_fallback_key_types.as_ref();
        Self {
            next_batch: &response.next_batch,
            rooms: (!response.rooms.is_empty()).then(|| RoomsBody::new(&response.rooms)),
            presence: &response.presence,
            account_data: &response.account_data,
            to_device: &response.to_device,
            device_lists: &response.device_lists,
            device_one_time_keys_count: counts
                .map(|(name, count)| (name.as_str(), (*count).into()))
                .collect(),
            device_unused_fallback_key_types: fallback_keys
                .map(|types| types.iter().map(|name| name.as_str()).collect()),
        }
    }
}

impl<'a> RoomsBody<'a> {
    fn new(rooms: &'a Rooms) -> Self {
        Self {
            join: rooms
                .join
                .iter()
                .map(|(id, room)| (&**id, WithSections::new(room, &room.timeline, &room.state)))
                .collect(),
            leave: rooms
                .leave
                .iter()
                .map(|(id, room)| (&**id, WithSections::new(room, &room.timeline, &room.state)))
                .collect(),
            invite: &rooms.invite,
            knock: &rooms.knock,
        }
    }
}

impl<'a, R> WithSections<'a, R> {
    fn new(room: &'a R, timeline: &Timeline, state: &State) -> Self {
        let none = || NoEvents { events: [] };
        Self {
            room,
            timeline: timeline.is_empty().then(none),
            state: (matches!(state, State::Before(_)) && state.is_empty()).then(none),
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use http_body_util::BodyExt as _;
    use ruma::{api::client::sync::sync_events::v3::StateEvents, owned_room_id};
    use serde_json::{Value, json};

    use super::*;

    fn written(response: Response) -> Value {
        let response = SyncReply(response).into_response().expect("JSON");
        let body = response.into_body().collect().now_or_never().expect("it is there").expect("whole");
        serde_json::from_slice(&body.to_bytes()).expect("JSON")
    }

    #[test]
    fn an_empty_answer_is_a_token_and_counts() {
        let answer = written(Response::new("s1".to_owned()));
        assert_eq!(answer, json!({ "next_batch": "s1", "device_one_time_keys_count": {} }));
    }

    #[test]
    fn rooms_have_the_sections_that_clients_ask_for() {
        let mut response = Response::new("s1".to_owned());
        let mut full = JoinedRoom::new();
        full.timeline.prev_batch = Some("t1".to_owned());
        full.state = State::After(StateEvents::default());
        response.rooms.join.insert(owned_room_id!("!full:example.org"), full);
        response.rooms.join.insert(owned_room_id!("!empty:example.org"), JoinedRoom::new());
        response.rooms.leave.insert(owned_room_id!("!left:example.org"), LeftRoom::new());
        let none = json!({ "events": [] });
        assert_eq!(
            written(response)["rooms"],
            json!({
                "join": {
                    "!full:example.org": {
                        "timeline": { "events": [], "prev_batch": "t1" },
                        "state_after": {},
                    },
                    "!empty:example.org": { "timeline": none, "state": none },
                },
                "leave": { "!left:example.org": { "timeline": none, "state": none } },
            })
        );
    }
}
