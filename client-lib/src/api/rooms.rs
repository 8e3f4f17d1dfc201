//! Rooms: making, joining and leaving them, sending to them, reading them.

use serde::Deserialize;
use serde_json::{Value, json};

use super::http::{Call, segment};
use super::{Api, ApiError};
use crate::events::RoomEvent;

/// What a new room is to be.
#[derive(Clone, Debug)]
pub struct NewRoom<'a> {
    /// Its name.
    pub name: Option<&'a str>,
    /// Identifier of its suite, set from the start and frozen in the room's creation.
    pub suite: &'a str,
    /// Users to invite.
    pub invite: &'a [String],
}

/// Events read with `/messages`, newest first when reading backwards.
#[derive(Clone, Debug, Deserialize)]
pub struct MessagesPage {
    /// The events.
    #[serde(default)]
    pub chunk: Vec<Value>,
    /// Where to go on; `None` at the end.
    pub end: Option<String>,
}

impl MessagesPage {
    /// The events that can be read.
    pub fn events(&self) -> Vec<RoomEvent> {
        self.chunk.iter().filter_map(|event| RoomEvent::deserialize(event).ok()).collect()
    }
}

#[derive(Deserialize)]
struct RoomId {
    room_id: String,
}

impl Api {
    /// Makes a private room that uses the KeyBox profile. Returns its id.
    ///
    /// <https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3createroom>
    pub async fn create_room(&self, room: &NewRoom<'_>) -> Result<String, ApiError> {
        let name = room.name.map(|name| ("name".to_owned(), Value::from(name)));
        let request = json!({
            "preset": "private_chat",
            "creation_content": { "com.trustner.encryption_algorithm": room.suite },
            "initial_state": [
                { "type": "m.room.encryption", "state_key": "", "content": { "algorithm": room.suite } },
            ],
            "invite": room.invite,
        });
        let request = request.as_object().cloned().into_iter().flatten().chain(name).collect();
        Ok(self.call::<RoomId>(Call::post("/_matrix/client/v3/createRoom", request)).await?.room_id)
    }

    /// Invites a user.
    pub async fn invite(&self, room_id: &str, user_id: &str) -> Result<(), ApiError> {
        let path = format!("/_matrix/client/v3/rooms/{}/invite", segment(room_id));
        self.call::<Value>(Call::post(path, json!({ "user_id": user_id }))).await.map(drop)
    }

    /// Joins a room by its id or alias. Returns its id.
    pub async fn join(&self, room: &str) -> Result<String, ApiError> {
        let path = format!("/_matrix/client/v3/join/{}", segment(room));
        Ok(self.call::<RoomId>(Call::post(path, json!({})).repeatable()).await?.room_id)
    }

    /// Leaves a room, or declines an invitation.
    pub async fn leave(&self, room_id: &str) -> Result<(), ApiError> {
        let path = format!("/_matrix/client/v3/rooms/{}/leave", segment(room_id));
        self.call::<Value>(Call::post(path, json!({})).repeatable()).await.map(drop)
    }

    /// Sends an event. The same `txn_id` again gives the same event. Returns its id.
    pub async fn send(
        &self,
        room_id: &str,
        event_type: &str,
        txn_id: &str,
        content: Value,
    ) -> Result<String, ApiError> {
        #[derive(Deserialize)]
        struct Answer {
            event_id: String,
        }
        let (room_id, event_type, txn_id) = (segment(room_id), segment(event_type), segment(txn_id));
        let path = format!("/_matrix/client/v3/rooms/{room_id}/send/{event_type}/{txn_id}");
        Ok(self.call::<Answer>(Call::put(path, content)).await?.event_id)
    }

    /// Reads a room backwards, from `from` or from its end.
    ///
    /// <https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3roomsroomidmessages>
    pub async fn messages(
        &self,
        room_id: &str,
        from: Option<&str>,
        limit: usize,
    ) -> Result<MessagesPage, ApiError> {
        let mut path = format!("/_matrix/client/v3/rooms/{}/messages?dir=b&limit={limit}", segment(room_id));
        if let Some(from) = from {
            path.push_str("&from=");
            path.push_str(&segment(from));
        }
        self.call(Call::get(path)).await
    }

    /// The content of a room's state of a type, under the empty state key.
    ///
    /// <https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3roomsroomidstateeventtypestatekey>
    pub async fn state(&self, room_id: &str, event_type: &str) -> Result<Value, ApiError> {
        self.call(Call::get(state_path(room_id, event_type))).await
    }

    /// All state of a room.
    ///
    /// <https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3roomsroomidstate>
    pub async fn all_state(&self, room_id: &str) -> Result<Vec<RoomEvent>, ApiError> {
        let path = format!("/_matrix/client/v3/rooms/{}/state", segment(room_id));
        let events: Vec<Value> = self.call(Call::get(path)).await?;
        Ok(events.iter().filter_map(|event| RoomEvent::deserialize(event).ok()).collect())
    }

    /// Sets a room's state of a type, under the empty state key.
    pub async fn set_state(&self, room_id: &str, event_type: &str, content: Value) -> Result<(), ApiError> {
        self.call::<Value>(Call::put(state_path(room_id, event_type), content)).await.map(drop)
    }

    /// One event of a room.
    pub async fn event(&self, room_id: &str, event_id: &str) -> Result<RoomEvent, ApiError> {
        let path = format!("/_matrix/client/v3/rooms/{}/event/{}", segment(room_id), segment(event_id));
        self.call(Call::get(path)).await
    }

    /// The membership events of a room.
    pub async fn members(&self, room_id: &str) -> Result<Vec<RoomEvent>, ApiError> {
        let path = format!("/_matrix/client/v3/rooms/{}/members", segment(room_id));
        Ok(self.call::<MessagesPage>(Call::get(path)).await?.events())
    }
}

fn state_path(room_id: &str, event_type: &str) -> String {
    format!("/_matrix/client/v3/rooms/{}/state/{}", segment(room_id), segment(event_type))
}
