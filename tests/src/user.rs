//! A logged-in user (one device) and the calls that tests make most.

use std::sync::{
    Arc,
    atomic::{AtomicU64, AtomicUsize, Ordering},
};

use hyper::Method;
use serde_json::{Value, json};

use crate::{
    TestCluster,
    cluster::at,
    eventually,
    http::{Request, Response, encode},
    sync::Syncing,
};

/// A device of a user. Its requests go to the replicas in turn, unless [`User::at`] ties it to one.
#[derive(Clone)]
pub struct User {
    /// The servers.
    pub cluster: Arc<TestCluster>,
    /// `@name:keystead.test`.
    pub id: String,
    /// The device's id.
    pub device: String,
    /// The access token.
    pub token: String,
    /// What else the login gave (`refresh_token`).
    pub login: Value,
    replica: Option<usize>,
}

impl User {
    /// From the answer to a login or registration.
    pub fn from_login(cluster: &Arc<TestCluster>, answer: &Value) -> Self {
        let text = |name: &str| at(answer, name).as_str().expect("a string").to_owned();
        Self {
            cluster: Arc::clone(cluster),
            id: text("/user_id"),
            device: text("/device_id"),
            token: text("/access_token"),
            login: answer.clone(),
            replica: None,
        }
    }

    /// The same device, talking to one replica only.
    pub fn at(&self, replica: usize) -> Self {
        Self { replica: Some(replica), ..self.clone() }
    }

    /// The same device, talking to the replica whose turn it is, or the one that it is tied to.
    pub fn on_one_replica(&self) -> Self {
        self.at(self.replica.unwrap_or_else(|| self.cluster.next_replica()))
    }

    /// Sends a request with this device's token.
    pub async fn send(&self, request: Request) -> Response {
        let request = request.token(&self.token);
        match self.replica {
            Some(replica) => self.cluster.send_to(replica, request).await,
            None => self.cluster.send(request).await,
        }
    }

    /// Sends a request again and again, to one replica after the other, until one answers without a fault of its
    /// own. The request must be one that may be repeated.
    ///
    /// # Panics
    /// When none does within [`crate::PATIENCE`].
    pub async fn insist(&self, first_replica: usize, request: Request) -> Response {
        let request = request.token(&self.token);
        let tries = AtomicUsize::new(first_replica);
        eventually(&format!("an answer to {} {}", request.method, request.path), || async {
            let replica = tries.fetch_add(1, Ordering::Relaxed);
            let answer = self.cluster.try_send_to(replica, request.clone()).await;
            answer.ok().filter(|answer| answer.status < 500)
        })
        .await
    }

    /// GET `path` below `/_matrix/client/v3`.
    pub async fn get(&self, path: &str) -> Response {
        self.send(Request::new(Method::GET, v3(path))).await
    }

    /// POST below `/_matrix/client/v3`.
    pub async fn post(&self, path: &str, body: Value) -> Response {
        self.send(Request::new(Method::POST, v3(path)).json(&body)).await
    }

    /// PUT below `/_matrix/client/v3`.
    pub async fn put(&self, path: &str, body: Value) -> Response {
        self.send(Request::new(Method::PUT, v3(path)).json(&body)).await
    }

    /// DELETE below `/_matrix/client/v3`.
    pub async fn delete(&self, path: &str) -> Response {
        self.send(Request::new(Method::DELETE, v3(path))).await
    }

    /// Creates a room and gives its id.
    pub async fn create_room(&self, body: Value) -> String {
        let answer = self.post("/createRoom", body).await.ok();
        at(&answer, "/room_id").as_str().expect("a room id").to_owned()
    }

    /// Creates a room that anybody may join.
    pub async fn create_public_room(&self) -> String {
        self.create_room(json!({ "preset": "public_chat" })).await
    }

    /// Invites, expecting success.
    pub async fn invite(&self, room: &str, user: &User) {
        self.post(&in_room(room, "/invite"), json!({ "user_id": user.id })).await.ok();
    }

    /// Joins, expecting success.
    pub async fn join(&self, room: &str) {
        self.post(&in_room(room, "/join"), json!({})).await.ok();
    }

    /// Leaves, expecting success.
    pub async fn leave(&self, room: &str) {
        self.post(&in_room(room, "/leave"), json!({})).await.ok();
    }

    /// Sends an event with a transaction id of its own and gives the event's id.
    pub async fn send_event(&self, room: &str, kind: &str, content: Value) -> String {
        let path = in_room(room, &format!("/send/{kind}/{}", transaction_id()));
        let answer = self.put(&path, content).await.ok();
        at(&answer, "/event_id").as_str().expect("an event id").to_owned()
    }

    /// Sends a text message.
    pub async fn send_text(&self, room: &str, text: &str) -> String {
        self.send_event(room, "m.room.message", json!({ "msgtype": "m.text", "body": text })).await
    }

    /// Sets state, expecting success, and gives the event's id.
    pub async fn set_state(&self, room: &str, kind: &str, key: &str, content: Value) -> String {
        let answer = self.put(&in_room(room, &format!("/state/{kind}/{}", encode(key))), content).await.ok();
        at(&answer, "/event_id").as_str().expect("an event id").to_owned()
    }

    /// The content of a state event.
    pub async fn state(&self, room: &str, kind: &str, key: &str) -> Response {
        self.get(&in_room(room, &format!("/state/{kind}/{}", encode(key)))).await
    }

    /// Starts to sync from nothing, without a filter.
    pub fn syncing(&self) -> Syncing {
        Syncing::new(self.clone(), None)
    }

    /// Starts to sync from nothing with an inline filter.
    pub fn syncing_with(&self, filter: &Value) -> Syncing {
        Syncing::new(self.clone(), Some(filter.to_string()))
    }

    /// The answer to one sync that does not wait, of a replica that has seen all that was written before; an initial
    /// one without `since`.
    pub async fn sync_once(&self, since: Option<&str>) -> Value {
        let user = self.on_one_replica();
        user.get("/account/whoami").await.ok();
        let since = since.map(|since| format!("&since={}", encode(since))).unwrap_or_default();
        user.get(&format!("/sync?timeout=0{since}")).await.ok()
    }
}

/// A transaction id that this run has not used.
pub fn transaction_id() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    format!("txn{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// The path of a room's endpoint below `/_matrix/client/v3`.
pub fn in_room(room: &str, rest: &str) -> String {
    format!("/rooms/{}{rest}", encode(room))
}

fn v3(path: &str) -> String {
    if path.starts_with("/_") { path.to_owned() } else { format!("/_matrix/client/v3{path}") }
}
