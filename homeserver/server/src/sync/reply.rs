//! The answer of `/sync` as JSON.

use std::collections::BTreeMap;

use ruma::{
    OwnedEventId, OwnedRoomId, RoomId,
    api::client::sync::sync_events::{DeviceLists, UnreadNotificationsCount, v3 as sync_events},
    events::{AnySyncStateEvent, AnySyncTimelineEvent},
    serde::Raw,
};
use serde::Serialize;
use sync_events::{Ephemeral, JoinedRoom, Response, RoomAccountData, RoomSummary, Rooms, State, Timeline};

use crate::http::{
    body,
    error::ApiError,
    reply::{RawJson, Reply},
};

/// The answer of `/sync`. Each joined or left room has a `timeline`, which says whether it is `limited`, and a `state`, if empty ones: the
/// specification lets a server leave them out, but clients (matrix-nio) refuse rooms without them, or expect them (Complement).
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
    join: BTreeMap<&'a RoomId, JoinedBody<'a>>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    leave: BTreeMap<&'a RoomId, EventsBody<'a>>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    invite: &'a BTreeMap<OwnedRoomId, sync_events::InvitedRoom>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    knock: &'a BTreeMap<OwnedRoomId, sync_events::KnockedRoom>,
}

#[derive(Serialize)]
struct JoinedBody<'a> {
    #[serde(skip_serializing_if = "RoomSummary::is_empty")]
    summary: &'a RoomSummary,
    #[serde(skip_serializing_if = "UnreadNotificationsCount::is_empty")]
    unread_notifications: &'a UnreadNotificationsCount,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    unread_thread_notifications: &'a BTreeMap<OwnedEventId, UnreadNotificationsCount>,
    #[serde(flatten)]
    events: EventsBody<'a>,
    #[serde(skip_serializing_if = "Ephemeral::is_empty")]
    ephemeral: &'a Ephemeral,
}

/// What joined and left rooms have.
#[derive(Serialize)]
struct EventsBody<'a> {
    timeline: TimelineBody<'a>,
    #[serde(flatten)]
    state: StateBody<'a>,
    #[serde(skip_serializing_if = "RoomAccountData::is_empty")]
    account_data: &'a RoomAccountData,
}

#[derive(Serialize)]
struct TimelineBody<'a> {
    limited: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    prev_batch: Option<&'a str>,
    events: &'a [Raw<AnySyncTimelineEvent>],
}

#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum StateBody<'a> {
    State { events: &'a [Raw<AnySyncStateEvent>] },
    StateAfter { events: &'a [Raw<AnySyncStateEvent>] },
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
            join: rooms.join.iter().map(|(id, room)| (&**id, JoinedBody::new(room))).collect(),
            leave: rooms
                .leave
                .iter()
                .map(|(id, room)| (&**id, EventsBody::new(&room.timeline, &room.state, &room.account_data)))
                .collect(),
            invite: &rooms.invite,
            knock: &rooms.knock,
        }
    }
}

impl<'a> JoinedBody<'a> {
    fn new(room: &'a JoinedRoom) -> Self {
        Self {
            summary: &room.summary,
            unread_notifications: &room.unread_notifications,
            unread_thread_notifications: &room.unread_thread_notifications,
            events: EventsBody::new(&room.timeline, &room.state, &room.account_data),
            ephemeral: &room.ephemeral,
        }
    }
}

impl<'a> EventsBody<'a> {
    fn new(timeline: &'a Timeline, state: &'a State, account_data: &'a RoomAccountData) -> Self {
        let Timeline { limited, prev_batch, events, .. } = timeline;
        let state = match state {
            State::After(after) => StateBody::StateAfter { events: &after.events },
            State::Before(before) => StateBody::State { events: &before.events },
            // ruma knows no other.
            _ => StateBody::State { events: &[] },
        };
        Self {
            timeline: TimelineBody { limited: *limited, prev_batch: prev_batch.as_deref(), events },
            state,
            account_data,
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use http_body_util::BodyExt as _;
    use ruma::{
        api::client::sync::sync_events::v3::{LeftRoom, StateEvents},
        owned_room_id,
    };
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
        let (no_timeline, no_state) = (json!({ "limited": false, "events": [] }), json!({ "events": [] }));
        assert_eq!(
            written(response)["rooms"],
            json!({
                "join": {
                    "!full:example.org": {
                        "timeline": { "limited": false, "events": [], "prev_batch": "t1" },
                        "state_after": { "events": [] },
                    },
                    "!empty:example.org": { "timeline": no_timeline, "state": no_state },
                },
                "leave": { "!left:example.org": { "timeline": no_timeline, "state": no_state } },
            })
        );
    }
}
