//! Following `/sync` as a client does.

use serde_json::{Value, json};

use crate::{PATIENCE, User, cluster::at, http::encode};

/// A client's place in its sync stream.
pub struct Syncing {
    user: User,
    filter: Option<String>,
    since: Option<String>,
}

impl Syncing {
    pub(crate) fn new(user: User, filter: Option<String>) -> Self {
        Self { user, filter, since: None }
    }

    /// The token to go on from.
    pub fn since(&self) -> Option<&str> {
        self.since.as_deref()
    }

    /// Goes on from another token.
    pub fn resume(&mut self, since: &str) {
        self.since = Some(since.to_owned());
    }

    /// One request, which the server may hold for `timeout` milliseconds; moves on.
    ///
    /// The replica has seen all that was written before: a read that is no sync comes first, which waits for that.
    pub async fn next(&mut self, timeout: u32) -> Value {
        let mut path = format!("/sync?timeout={timeout}");
        if let Some(since) = &self.since {
            path.push_str(&format!("&since={}", encode(since)));
        }
        if let Some(filter) = &self.filter {
            path.push_str(&format!("&filter={}", encode(filter)));
        }
        let user = self.user.on_one_replica();
        user.get("/account/whoami").await.ok();
        let answer = user.get(&path).await.ok();
        self.since = Some(at(&answer, "/next_batch").as_str().expect("a token").to_owned());
        answer
    }

    /// Syncs on until `found` gives something for an answer.
    ///
    /// # Panics
    /// When that takes longer than [`PATIENCE`].
    pub async fn until<T>(&mut self, what: &str, mut found: impl FnMut(&Value) -> Option<T>) -> T {
        let mut last = Value::Null;
        let syncing = async {
            loop {
                last = self.next(5_000).await;
                if let Some(value) = found(&last) {
                    return value;
                }
            }
        };
        match tokio::time::timeout(PATIENCE, syncing).await {
            Ok(value) => value,
            Err(_) => panic!("{what}: not in {PATIENCE:?}; the last sync was {last:#}"),
        }
    }

    /// Syncs on until an event with this id is in the room's timeline, and gives it.
    pub async fn until_event(&mut self, room: &str, event_id: &str) -> Value {
        self.until(event_id, |answer| {
            timeline(answer, room).iter().find(|event| event["event_id"] == event_id).cloned()
        })
        .await
    }

    /// Syncs on until the room is joined.
    pub async fn until_joined(&mut self, room: &str) -> Value {
        self.until("joined", |answer| answer["rooms"]["join"].get(room).cloned()).await
    }

    /// Syncs on until an invitation to the room is there, and gives its stripped state.
    pub async fn until_invited(&mut self, room: &str) -> Value {
        self.until("invited", |answer| {
            answer["rooms"]["invite"].get(room).map(|invite| invite["invite_state"]["events"].clone())
        })
        .await
    }
}

/// The events of a joined room's timeline in a sync answer.
pub fn timeline<'a>(answer: &'a Value, room: &str) -> &'a [Value] {
    events(&answer["rooms"]["join"][room]["timeline"])
}

/// The `events` of an object, none if it is not there.
pub fn events(object: &Value) -> &[Value] {
    object["events"].as_array().map(Vec::as_slice).unwrap_or_default()
}

/// The first event of a type.
pub fn of_type<'a>(events: &'a [Value], kind: &str) -> Option<&'a Value> {
    events.iter().find(|event| event["type"] == kind)
}

/// A filter that leaves everything but the named parts of a joined room empty.
pub fn timeline_limit(limit: u32) -> Value {
    json!({ "room": { "timeline": { "limit": limit } } })
}
