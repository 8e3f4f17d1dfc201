//! Readers: each follows its sync stream through all replicas, and writes down what it sees.

use std::collections::{BTreeMap, BTreeSet};

use hyper::Method;
use keystead_tests::{
    PATIENCE, User,
    cluster::at,
    http::{Request, encode},
    sync::{events, timeline_limit},
    user::in_room,
};
use serde_json::Value;
use tokio::sync::watch;

/// The event that ends each room for a reader.
pub type End = BTreeMap<String, String>;

/// What one user saw.
pub struct Journal {
    pub user: String,
    /// The events of each room in the order of their arrival, gaps filled.
    pub rooms: BTreeMap<String, Vec<Value>>,
    /// The to-device messages in the order of their arrival.
    pub to_device: Vec<Value>,
}

pub struct Reader {
    user: User,
    /// Whether the user comes and goes: then a room may be shown again when it is joined again.
    moves: bool,
    end: watch::Receiver<Option<End>>,
    known: BTreeSet<String>,
    journal: Journal,
    requests: usize,
    /// Where the last sync ended.
    since: Option<String>,
}

impl Reader {
    /// A reader that has done its first sync. That one passes over the rooms that the user has left, so whoever is to see
    /// all of its time in a room must begin before it first joins.
    pub async fn begin(user: User, moves: bool, end: watch::Receiver<Option<End>>) -> Self {
        let journal = Journal { user: user.id.clone(), rooms: BTreeMap::new(), to_device: Vec::new() };
        let mut reader = Self { user, moves, end, known: BTreeSet::new(), journal, requests: 0, since: None };
        reader.sync().await;
        reader
    }

    /// Reads until the end has been announced and seen.
    ///
    /// # Panics
    /// When the end does not come within [`PATIENCE`] after its announcement.
    pub async fn run(mut self) -> Journal {
        let mut end = self.end.clone();
        let user = self.user.id.clone();
        let out_of_patience = async move {
            end.wait_for(Option::is_some).await.expect("it is announced");
            tokio::time::sleep(PATIENCE).await;
        };
        tokio::select! {
            () = self.read() => self.journal,
            () = out_of_patience => panic!("{user} has not seen the end of the history"),
        }
    }

    async fn read(&mut self) {
        while !self.has_ended() {
            self.sync().await;
        }
    }

    async fn sync(&mut self) {
        let filter = encode(&timeline_limit(50).to_string());
        let from = self.since.iter().map(|since| format!("&since={}", encode(since))).collect::<String>();
        let answer = self.get(format!("/sync?timeout=1000&filter={filter}{from}")).await;
        for section in ["join", "leave"] {
            let rooms = answer["rooms"][section].as_object().cloned().unwrap_or_default();
            for (room, update) in rooms {
                self.note(&room, &update["timeline"]).await;
            }
        }
        self.journal.to_device.extend_from_slice(events(&answer["to_device"]));
        self.since = Some(at(&answer, "/next_batch").as_str().expect("a token").to_owned());
    }

    /// Writes down a timeline, and before it what a gap left out.
    async fn note(&mut self, room: &str, timeline: &Value) {
        let mut new = Vec::new();
        if timeline["limited"] == true {
            let before = at(timeline, "/prev_batch").as_str().expect("a token").to_owned();
            new = self.missing(room, before).await;
        }
        new.extend_from_slice(events(timeline));
        for event in new {
            let id = event["event_id"].as_str().expect("an id").to_owned();
            let fresh = self.known.insert(id);
            assert!(fresh || self.moves, "{} was shown twice: {event}", self.user.id);
            if fresh {
                self.journal.rooms.entry(room.to_owned()).or_default().push(event);
            }
        }
    }

    /// The events before a token, back to one that is known.
    async fn missing(&mut self, room: &str, before: String) -> Vec<Value> {
        let mut missing = Vec::new();
        let mut from = Some(before);
        while let Some(token) = from {
            let path = in_room(room, &format!("/messages?dir=b&limit=50&from={}", encode(&token)));
            let page = self.get(path).await;
            let chunk = at(&page, "/chunk").as_array().expect("a list");
            let known = |event: &&Value| self.known.contains(event["event_id"].as_str().expect("an id"));
            missing.extend(chunk.iter().take_while(|event| !known(event)).cloned());
            from =
                page["end"].as_str().filter(|_| !chunk.iter().any(|event| known(&event))).map(str::to_owned);
        }
        missing.reverse();
        missing
    }

    fn has_ended(&self) -> bool {
        let end = self.end.borrow();
        let Some(rooms) = end.as_ref() else { return false };
        let last_message = self.journal.to_device.iter().any(|event| event["type"] == "org.example.end");
        last_message && rooms.values().all(|event| self.known.contains(event))
    }

    async fn get(&mut self, path: String) -> Value {
        self.requests += 1;
        let request = Request::new(Method::GET, format!("/_matrix/client/v3{path}"));
        self.user.insist(self.requests, request).await.ok()
    }
}
