//! A homeserver in memory, as small as the load needs, with one fault.

use std::{
    collections::HashMap,
    convert::Infallible,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, Response, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use keystead_load::api::{Api, Call};
use serde_json::{Map, Value, json};
use tokio::{
    net::TcpListener,
    sync::{Notify, mpsc},
};

/// What the server does wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    None,
    /// Every seventh message does not reach one reader, or one pusher.
    Drop,
    /// Every seventh message comes twice.
    Double,
    /// Every fifth message comes after the next ones.
    Reorder,
    /// Long-polls do not hear of what happens, while a sync that does not wait answers at once.
    Delay,
}

struct Server {
    fault: Fault,
    state: Mutex<State>,
    news: Notify,
    notices: mpsc::UnboundedSender<Notice>,
}

/// What a gateway is to be told.
#[derive(Clone)]
struct Notice {
    gateway: String,
    user: String,
    event_id: String,
    number: u64,
}

#[derive(Default)]
struct State {
    users: usize,
    /// Everything that was sent: (room or user, content).
    log: Vec<(String, Value)>,
    rooms: HashMap<String, Vec<String>>,
    /// The gateways of users who have pushers.
    gateways: HashMap<String, String>,
    /// What is held back from a user until something newer came.
    held: HashMap<String, Vec<(String, Value)>>,
}

/// Starts one and gives its URL.
pub async fn start(fault: Fault) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let (notices, queued) = mpsc::unbounded_channel();
    tokio::spawn(tell(fault, queued));
    let server = Arc::new(Server { fault, state: Mutex::default(), news: Notify::new(), notices });
    tokio::spawn(async move {
        loop {
            let (socket, _) = listener.accept().await.expect("a connection");
            let server = server.clone();
            let service = service_fn(move |request| {
                let server = server.clone();
                async move { Ok::<_, Infallible>(server.answer(request).await) }
            });
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(socket), service));
        }
    });
    url
}

/// Tells gateways, one notice after another.
async fn tell(fault: Fault, mut queued: mpsc::UnboundedReceiver<Notice>) {
    let mut held: HashMap<String, Notice> = HashMap::new();
    while let Some(notice) = queued.recv().await {
        let is_seventh = notice.number % 7 == 3;
        let now = match fault {
            Fault::Drop if is_seventh && notice.user.starts_with("@u2:") => continue,
            Fault::Double if is_seventh => vec![notice.clone(), notice],
            Fault::Reorder if notice.number % 5 == 3 => {
                held.insert(notice.user.clone(), notice);
                continue;
            }
            _ => {
                let before = held.remove(&notice.user);
                [notice].into_iter().chain(before).collect()
            }
        };
        for Notice { gateway, user, event_id, .. } in now {
            let gateway = gateway.strip_suffix("/_matrix/push/v1/notify").expect("the gateway's path");
            let body = json!({ "notification": { "event_id": event_id, "devices": [{ "pushkey": user }] } });
            let api = Api::new(&[gateway.to_owned()]).expect("an address");
            let told = api.ok(0, None, &Call::post("/_matrix/push/v1/notify", body)).await;
            told.expect("the gateway takes it");
        }
    }
}

impl Server {
    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let user = request.headers().get("authorization").and_then(|value| value.to_str().ok());
        let user = user.and_then(|value| value.strip_prefix("Bearer ")).unwrap_or_default().to_owned();
        let path = request.uri().path().replace("%21", "!").replace("%40", "@").replace("%3A", ":");
        let query = request.uri().query().unwrap_or_default().to_owned();
        let body = request.into_body().collect().await.expect("a body").to_bytes();
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        let parts: Vec<&str> = path.trim_start_matches("/_matrix/client/v3/").split('/').collect();
        let answer = match parts.as_slice() {
            ["register"] => self.register(),
            ["createRoom"] => self.create_room(&user),
            ["rooms", room, "join"] => self.join(&user, room),
            ["rooms", room, "send", ..] => self.append((*room).to_owned(), body),
            ["pushers", "set"] => {
                let gateway = body["data"]["url"].as_str().expect("a gateway").to_owned();
                self.state.lock().expect("no panic").gateways.insert(user, gateway);
                json!({})
            }
            ["sendToDevice", ..] => {
                for (to, devices) in body["messages"].as_object().expect("messages") {
                    let content = devices.as_object().and_then(|devices| devices.values().next());
                    self.append(to.clone(), content.expect("a content").clone());
                }
                json!({})
            }
            ["user", _, "filter"] => json!({ "filter_id": "1" }),
            ["sync"] => self.sync(&user, &query).await,
            other => panic!("the load asks for {other:?}"),
        };
        Response::new(Full::from(answer.to_string()))
    }

    fn register(&self) -> Value {
        let mut state = self.state.lock().expect("no panic");
        state.users += 1;
        let id = format!("@u{}:faulty", state.users);
        // The access token is the user's id.
        json!({ "user_id": id, "device_id": "D", "access_token": id })
    }

    fn create_room(&self, user: &str) -> Value {
        let mut state = self.state.lock().expect("no panic");
        let room = format!("!r{}:faulty", state.rooms.len());
        state.rooms.insert(room.clone(), vec![user.to_owned()]);
        json!({ "room_id": room })
    }

    fn join(&self, user: &str, room: &str) -> Value {
        let mut state = self.state.lock().expect("no panic");
        state.rooms.get_mut(room).expect("a room").push(user.to_owned());
        json!({ "room_id": room })
    }

    fn append(&self, stream: String, content: Value) -> Value {
        let mut state = self.state.lock().expect("no panic");
        let event_id = format!("${}", state.log.len());
        for user in state.rooms.get(&stream).into_iter().flatten() {
            let Some(gateway) = state.gateways.get(user) else { continue };
            let (gateway, user, event_id) = (gateway.clone(), user.clone(), event_id.clone());
            self.notices.send(Notice { gateway, user, event_id, number: number(&content) }).expect("no end");
        }
        state.log.push((stream, content));
        self.news.notify_waiters();
        json!({ "event_id": event_id })
    }

    async fn sync(&self, user: &str, query: &str) -> Value {
        let parameter = |name: &str| {
            let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
            pairs.into_iter().find(|(key, _)| *key == name).and_then(|(_, value)| value.parse::<usize>().ok())
        };
        let (since, timeout) = (parameter("since"), parameter("timeout").unwrap_or_default());
        let time = Duration::from_millis(u64::try_from(timeout).expect("a time"));
        let deadline = tokio::time::Instant::now() + time.min(Duration::from_secs(3));
        loop {
            let news = self.news.notified();
            let waits = timeout > 0 && tokio::time::Instant::now() < deadline;
            let answer = self.collect(user, since);
            if since.is_none() || !waits || (answer.1 && self.fault != Fault::Delay) {
                return answer.0;
            }
            let _ = tokio::time::timeout_at(deadline, news).await;
        }
    }

    /// The answer, and whether there is anything in it.
    fn collect(&self, user: &str, since: Option<usize>) -> (Value, bool) {
        let mut state = self.state.lock().expect("no panic");
        let next = state.log.len();
        let concerns = |stream: &str| {
            stream == user
                || state.rooms.get(stream).is_some_and(|members| members.iter().any(|one| one == user))
        };
        let mut news: Vec<(String, Value)> = Vec::new();
        for (stream, content) in state.log.get(since.unwrap_or(next)..).expect("a token of ours") {
            if concerns(stream) {
                news.push((stream.clone(), content.clone()));
            }
        }
        // What is held back has been looked at all the same: the token goes on.
        let was_news = !news.is_empty();
        match self.fault {
            Fault::Drop => {
                news.retain(|(stream, content)| {
                    number(content) % 7 != 3 || (stream != user && !user.starts_with("@u2:"))
                });
            }
            Fault::Double => {
                let again: Vec<_> =
                    news.iter().filter(|(_, content)| number(content) % 7 == 3).cloned().collect();
                news.extend(again);
                news.sort_by_key(|(_, content)| number(content));
            }
            Fault::Reorder => {
                let (hold, mut pass): (Vec<_>, Vec<_>) =
                    news.into_iter().partition(|(_, content)| number(content) % 5 == 3);
                let held = state.held.entry(user.to_owned()).or_default();
                pass.append(held);
                *held = hold;
                news = pass;
            }
            Fault::None | Fault::Delay => {}
        }
        let is_news = was_news || !news.is_empty();
        let mut rooms: Map<String, Value> = Map::new();
        let mut inbox = Vec::new();
        for (stream, content) in news {
            let event = json!({ "type": "m.room.message", "content": content });
            if stream == user {
                inbox.push(event);
                continue;
            }
            let room = rooms.entry(stream).or_insert_with(|| json!({ "timeline": { "events": [] } }));
            room["timeline"]["events"].as_array_mut().expect("a list").push(event);
        }
        let answer = json!({
            "next_batch": next.to_string(),
            "rooms": { "join": rooms },
            "to_device": { "events": inbox },
        });
        (answer, is_news)
    }
}

/// The number of a message.
fn number(content: &Value) -> u64 {
    content["org.keystead.load"]["number"].as_u64().unwrap_or_default()
}
