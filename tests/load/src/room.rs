//! Rooms, and messages that can be told apart.

use std::time::Duration;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::{
    Error,
    account::{User, in_room},
    api::{Call, Failure, encode, unique},
    check::Message,
};

/// The field of a content that says which message it is.
pub const MARK: &str = "org.keystead.load";
/// How many members join at once.
const AT_ONCE: usize = 8;

/// What tells a message apart.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Mark {
    /// Who sent it.
    pub lane: u64,
    /// How many the lane had sent before.
    pub number: u64,
    /// When it was due, in microseconds after the run began.
    pub due: u64,
}

impl Mark {
    /// Which message it is.
    pub fn message(self) -> Message {
        Message { lane: self.lane, number: self.number }
    }

    /// How long ago it was due.
    pub fn age(self, start: Instant) -> Duration {
        start.elapsed().saturating_sub(Duration::from_micros(self.due))
    }
}

/// An event, as far as it matters here.
#[derive(Debug, Deserialize)]
pub struct Event {
    #[serde(default)]
    content: Content,
}

#[derive(Debug, Default, Deserialize)]
struct Content {
    #[serde(rename = "org.keystead.load")]
    mark: Option<Mark>,
}

impl Event {
    /// Which message of the run it is, if it is one.
    pub fn mark(&self) -> Option<Mark> {
        self.content.mark
    }
}

/// A room and who is in it.
#[derive(Debug)]
pub struct Room {
    /// Its id.
    pub id: String,
    /// Its members; the first one made it.
    pub members: Vec<User>,
}

/// Makes a room that anybody may join, and lets all members join it.
///
/// # Errors
/// The server refuses.
pub async fn make(members: Vec<User>, state: Vec<Value>) -> Result<Room, Error> {
    let owner = members.first().ok_or_else(|| Error::Usage("a room needs a member".to_owned()))?;
    let body = json!({ "preset": "public_chat", "initial_state": state });
    let answer = owner.need("createRoom", &Call::post("/createRoom", body)).await?;
    let id = answer["room_id"].as_str().unwrap_or_default().to_owned();
    let path = &in_room(&id, "/join");
    stream::iter(members.iter().skip(1))
        .map(|member| async move { member.need("join", &Call::post(path, json!({}))).await.map(drop) })
        .buffer_unordered(AT_ONCE)
        .try_collect::<()>()
        .await?;
    Ok(Room { id, members })
}

/// Makes rooms out of as many users as there are, `members` in each.
///
/// # Errors
/// The server refuses.
pub async fn make_several(users: &[User], members: usize) -> Result<Vec<Room>, Error> {
    let mut rooms = Vec::new();
    for members in users.chunks(members.max(1)) {
        rooms.push(make(members.to_vec(), Vec::new()).await?);
    }
    Ok(rooms)
}

/// Sends a text of `size` bytes. Returns the event's id.
///
/// # Errors
/// There was no answer, or a refusal.
pub async fn send(user: &User, room: &str, mark: Mark, size: usize) -> Result<String, Failure> {
    let path = in_room(room, &format!("/send/m.room.message/{}", unique()));
    let body = json!({ "msgtype": "m.text", "body": "x".repeat(size), MARK: mark });
    let answer = user.ok(&Call::put(path, body)).await?;
    Ok(answer["event_id"].as_str().unwrap_or_default().to_owned())
}

/// The messages of the run in a room from `/messages`, oldest first.
///
/// # Errors
/// The server refuses.
pub async fn history(user: &User, room: &str) -> Result<Vec<Message>, Error> {
    let mut all = Vec::new();
    let mut from = String::new();
    loop {
        let path = in_room(room, &format!("/messages?dir=f&limit=100{from}"));
        let page = user.need("messages", &Call::get(path)).await?;
        for event in page["chunk"].as_array().into_iter().flatten() {
            let event: Event =
                serde_json::from_value(event.clone()).map_err(|error| Error::server("messages", error))?;
            all.extend(event.mark().map(Mark::message));
        }
        match page["end"].as_str() {
            Some(end) => from = format!("&from={}", encode(end)),
            None => return Ok(all),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_comes_back_from_an_event() {
        let mark = Mark { lane: 3, number: 4, due: 5 };
        let event = json!({ "type": "m.room.message", "content": { "body": "x", MARK: mark } });
        let event: Event = serde_json::from_value(event).unwrap();
        assert_eq!(event.mark(), Some(mark));
        let other: Event = serde_json::from_value(json!({ "content": { "membership": "join" } })).unwrap();
        assert_eq!(other.mark(), None);
    }
}
