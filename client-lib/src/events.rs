//! What a homeserver delivers: the parts of `/sync` and of events that a KeyBox reads.
//!
//! Reading is lenient where the network is untrusted anyway: an event that is not of the expected shape is left out, and
//! never makes the rest unreadable. <https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3sync>

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

/// An event of a room: from its state or its timeline.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RoomEvent {
    /// The event type.
    #[serde(rename = "type")]
    pub event_type: String,
    /// The state key; `None` for an event that is not state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state_key: Option<String>,
    /// The user who sent it, as the server says.
    pub sender: String,
    /// The event id; empty in the stripped state of an invitation.
    #[serde(default)]
    pub event_id: String,
    /// When the sender's server got it, in milliseconds since the Unix epoch.
    #[serde(default)]
    pub origin_server_ts: u64,
    /// The content.
    #[serde(default)]
    pub content: Value,
}

/// A to-device event.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ToDeviceEvent {
    /// The event type.
    #[serde(rename = "type")]
    pub event_type: String,
    /// The user who sent it, as the server says.
    pub sender: String,
    /// The content.
    #[serde(default)]
    pub content: Value,
}

/// The answer to `/sync`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct SyncResponse {
    /// Where to go on.
    pub next_batch: String,
    /// What happened in rooms.
    pub rooms: SyncRooms,
    /// What came for this device.
    pub to_device: Events<ToDeviceEvent>,
    /// Whose devices changed.
    pub device_lists: DeviceLists,
}

/// The rooms of a `/sync`, by room id.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct SyncRooms {
    /// Rooms that the user is in.
    pub join: BTreeMap<String, JoinedRoom>,
    /// Rooms that the user is invited to.
    pub invite: BTreeMap<String, InvitedRoom>,
    /// Rooms that the user has left or was removed from.
    pub leave: BTreeMap<String, JoinedRoom>,
}

/// News of a room that the user is or was in.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct JoinedRoom {
    /// State changes before the timeline.
    pub state: Events<RoomEvent>,
    /// The events themselves.
    pub timeline: Timeline,
}

/// The timeline of a room in a `/sync`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Timeline {
    /// Oldest first.
    #[serde(deserialize_with = "readable")]
    pub events: Vec<RoomEvent>,
    /// Whether events before these were left out.
    pub limited: bool,
    /// Where to read backwards from.
    pub prev_batch: Option<String>,
}

/// An invitation.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct InvitedRoom {
    /// Stripped state: enough to say what the room is.
    pub invite_state: Events<RoomEvent>,
}

/// Users whose devices changed, or with whom no encrypted room is shared any more.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct DeviceLists {
    /// Ask for their keys again.
    pub changed: Vec<String>,
    /// No need to follow them.
    pub left: Vec<String>,
}

/// A list of events, without those that cannot be read.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, bound = "T: serde::de::DeserializeOwned")]
pub struct Events<T> {
    /// In the order of the server.
    #[serde(deserialize_with = "readable")]
    pub events: Vec<T>,
}

impl<T> Default for Events<T> {
    fn default() -> Self {
        Self { events: Vec::new() }
    }
}

fn readable<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: serde::de::DeserializeOwned,
{
    let values = Vec::<Value>::deserialize(deserializer)?;
    Ok(values.into_iter().filter_map(|value| serde_json::from_value(value).ok()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unreadable_event_is_left_out_and_the_rest_is_read() {
        let sync: SyncResponse = serde_json::from_str(
            r#"{"next_batch":"s1","rooms":{"join":{"!r":{"timeline":{"events":[
                {"type":"m.room.message","sender":"@a:x","event_id":"$1","content":{}},
                {"type":7}, null,
                {"type":"m.room.name","state_key":"","sender":"@a:x","event_id":"$2","content":{"name":"n"}}
            ],"limited":true,"prev_batch":"p"}}}},"presence":{}}"#,
        )
        .unwrap();
        let timeline = &sync.rooms.join["!r"].timeline;
        assert_eq!(
            timeline.events.iter().map(|event| event.event_id.as_str()).collect::<Vec<_>>(),
            ["$1", "$2"]
        );
        assert!(timeline.limited);
    }
}
