//! Writers: users that send, set state, join, leave and send to devices at random, and note what was acknowledged.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use hyper::Method;
use keystead_tests::{
    User,
    cluster::at,
    http::{Request, encode},
    user::{in_room, transaction_id},
};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};

/// How much each writer does.
pub const STEPS: usize = 60;

/// What the server acknowledged.
#[derive(Default)]
pub struct History {
    /// Messages and state, in the order of each sender.
    pub events: Vec<Sent>,
    /// To-device messages: (sender, receiver) and the numbers sent.
    pub to_device: BTreeMap<(String, String), Vec<u64>>,
    /// Joins and leaves.
    pub memberships: usize,
    /// How many writers have finished.
    pub finished: usize,
}

/// An acknowledged event.
pub struct Sent {
    pub room: String,
    pub event_id: String,
    pub sender: String,
    pub number: u64,
}

impl History {
    pub fn acknowledged(&self) -> usize {
        self.events.len() + self.to_device.values().map(Vec::len).sum::<usize>() + self.memberships
    }
}

pub struct Writer {
    user: User,
    random: StdRng,
    devices: Vec<(String, String)>,
    history: Arc<Mutex<History>>,
    number: u64,
}

impl Writer {
    pub fn new(user: User, seed: u64, everybody: &[User], history: &Arc<Mutex<History>>) -> Self {
        let devices = everybody.iter().map(|user| (user.id.clone(), user.device.clone())).collect();
        Self { user, random: StdRng::seed_from_u64(seed), devices, history: Arc::clone(history), number: 0 }
    }

    /// Does [`STEPS`] things, and gives the rooms that it is in at the end.
    pub async fn run(mut self, rooms: Vec<String>) -> Vec<String> {
        let mut joined = vec![true; rooms.len()];
        for room in &rooms {
            self.membership(room, "join").await;
        }
        for _ in 0..STEPS {
            let choice = self.random.random_range(0..rooms.len());
            let room = &rooms[choice];
            match (self.random.random_range(0..100), joined[choice]) {
                (0..20, _) => self.send_to_device().await,
                (20..30, true) => {
                    self.membership(room, "leave").await;
                    joined[choice] = false;
                }
                (_, false) => {
                    self.membership(room, "join").await;
                    joined[choice] = true;
                }
                (30..45, true) => self.state(room).await,
                (_, true) => self.message(room).await,
            }
        }
        self.history.lock().expect("no panic").finished += 1;
        rooms.into_iter().zip(joined).filter(|(_, joined)| *joined).map(|(room, _)| room).collect()
    }

    async fn message(&mut self, room: &str) {
        let number = self.next_number();
        let content = json!({ "msgtype": "m.text", "body": format!("message {number}"), "number": number });
        let path = in_room(room, &format!("/send/m.room.message/{}", transaction_id()));
        self.event(room, number, &path, &content).await;
    }

    async fn state(&mut self, room: &str) {
        let number = self.next_number();
        let path = in_room(room, &format!("/state/org.example.counter/{}", encode(&self.user.id)));
        self.event(room, number, &path, &json!({ "number": number })).await;
    }

    async fn event(&mut self, room: &str, number: u64, path: &str, content: &Value) {
        let answer = self.insist(Method::PUT, path, content).await.ok();
        let event_id = at(&answer, "/event_id").as_str().expect("an id").to_owned();
        let sent = Sent { room: room.to_owned(), event_id, sender: self.user.id.clone(), number };
        self.history.lock().expect("no panic").events.push(sent);
    }

    async fn send_to_device(&mut self) {
        let number = self.next_number();
        let (user, device) = self.devices[self.random.random_range(0..self.devices.len())].clone();
        let body = json!({ "messages": { &user: { device: { "number": number } } } });
        let path = format!("/sendToDevice/org.example.number/{}", transaction_id());
        self.insist(Method::PUT, &path, &body).await.ok();
        let mut history = self.history.lock().expect("no panic");
        history.to_device.entry((self.user.id.clone(), user)).or_default().push(number);
    }

    async fn membership(&mut self, room: &str, action: &str) {
        let answer = self.insist(Method::POST, &in_room(room, &format!("/{action}")), &json!({})).await;
        // A leave that was done but whose answer was lost is refused when it is tried again.
        if action != "leave" || answer.status != 403 {
            answer.ok();
        }
        self.history.lock().expect("no panic").memberships += 1;
    }

    async fn insist(&mut self, method: Method, path: &str, body: &Value) -> keystead_tests::Response {
        let replica = self.random.random_range(0..2);
        self.user.insist(replica, Request::new(method, format!("/_matrix/client/v3{path}")).json(body)).await
    }

    fn next_number(&mut self) -> u64 {
        self.number += 1;
        self.number
    }
}
