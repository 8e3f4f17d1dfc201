//! Push gateways are told of what notifies a user: by a gateway of this machine that the tests allow.

use std::{
    io::{BufReader, Write as _},
    net::TcpListener,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use hyper::Method;
use keystead_tests::{
    TestCluster, User, certificate, eventually,
    http::{Request, encode},
    user::in_room,
};
use openssl::ssl::{SslAcceptor, SslFiletype, SslMethod};
use serde_json::{Value, json};

/// What a gateway says.
#[derive(Clone, Copy, PartialEq)]
enum Mood {
    Taking,
    /// Taking, and closing the connection after each answer.
    Closing,
    Rejecting,
    Failing,
}

/// A push gateway that notes what it is told.
struct Gateway {
    folder: tempfile::TempDir,
    port: u16,
    told: Arc<Mutex<Vec<Value>>>,
    mood: Arc<Mutex<Mood>>,
    connections: Arc<AtomicUsize>,
}

impl Gateway {
    fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name);
        certificate::make(folder.path());
        let mut tls = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls()).expect("TLS");
        tls.set_private_key_file(path("key.pem"), SslFiletype::PEM).expect("a key");
        tls.set_certificate_chain_file(path("certificate.pem")).expect("a certificate");
        let (tls, listener) = (Arc::new(tls.build()), TcpListener::bind("127.0.0.1:0").expect("a port"));
        let port = listener.local_addr().expect("an address").port();
        let (told, mood) = (Arc::<Mutex<Vec<Value>>>::default(), Arc::new(Mutex::new(Mood::Taking)));
        let (notes, says) = (Arc::clone(&told), Arc::clone(&mood));
        let connections = Arc::<AtomicUsize>::default();
        let count = Arc::clone(&connections);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                count.fetch_add(1, Ordering::SeqCst);
                let (tls, notes, says) = (Arc::clone(&tls), Arc::clone(&notes), Arc::clone(&says));
                thread::spawn(move || {
                    let Ok(stream) = tls.accept(stream) else { return };
                    let mut stream = BufReader::new(stream);
                    while let Some((path, body)) = request(&mut stream) {
                        assert_eq!(path, "/_matrix/push/v1/notify");
                        let mood = *says.lock().unwrap();
                        let keys = body["notification"]["devices"][0]["pushkey"].clone();
                        let (status, answer) = match mood {
                            Mood::Taking | Mood::Closing => ("200 OK", json!({ "rejected": [] })),
                            Mood::Rejecting => ("200 OK", json!({ "rejected": [keys] })),
                            Mood::Failing => ("503 Service Unavailable", json!({})),
                        };
                        if mood != Mood::Failing {
                            notes.lock().unwrap().push(body["notification"].clone());
                        }
                        let answer = answer.to_string();
                        let close = if mood == Mood::Closing { "Connection: close\r\n" } else { "" };
                        let head = format!(
                            "HTTP/1.1 {status}\r\n{close}Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
                            answer.len()
                        );
                        stream.get_mut().write_all(format!("{head}{answer}").as_bytes()).ok();
                        if mood == Mood::Closing {
                            break;
                        }
                    }
                });
            }
        });
        Self { folder, port, told, mood, connections }
    }

    /// Replicas that may reach it, and take it for who it is.
    async fn cluster(&self, settings: &[(&str, &str)]) -> Arc<TestCluster> {
        let certificate = self.folder.path().join("certificate.pem").display().to_string();
        let own = [("SSL_CERT_FILE", &*certificate), ("KEYSTEAD_PUSH_ALLOWED_NETWORKS", "127.0.0.0/8")];
        TestCluster::start_with(&[&own, settings].concat()).await
    }

    /// Such replicas, Alice, Bob, and a public room of hers that he is in.
    async fn room(&self, settings: &[(&str, &str)]) -> (Arc<TestCluster>, User, User, String) {
        let cluster = self.cluster(settings).await;
        let (alice, bob) = (cluster.user("alice").await, cluster.user("bob").await);
        let room = alice.create_public_room().await;
        bob.join(&room).await;
        (cluster, alice, bob, room)
    }

    async fn set_pusher(&self, user: &User, pushkey: &str, format: Option<&str>) {
        let mut data =
            json!({ "url": format!("https://localhost:{}/_matrix/push/v1/notify", self.port), "brand": "x" });
        if let Some(format) = format {
            data["format"] = format.into();
        }
        let pusher = json!({
            "kind": "http", "app_id": "app", "pushkey": pushkey, "app_display_name": "App", "lang": "en",
            "device_display_name": "Phone", "data": data, "append": true,
        });
        user.post("/pushers/set", pusher).await.ok();
    }

    /// What a pusher was told of, in the order in which it was.
    fn events(&self, pushkey: &str) -> Vec<String> {
        let told = self.told.lock().unwrap();
        let own = told.iter().filter(|told| told["devices"][0]["pushkey"] == pushkey);
        own.map(|told| told["event_id"].as_str().expect("an id").to_owned()).collect()
    }

    /// What a pusher is told of an event.
    async fn notification(&self, pushkey: &str, event_id: &str) -> Value {
        eventually(&format!("{pushkey} is told of {event_id}"), async || {
            let told = self.told.lock().unwrap();
            let is_it =
                |told: &&Value| told["event_id"] == event_id && told["devices"][0]["pushkey"] == pushkey;
            told.iter().find(is_it).cloned()
        })
        .await
    }

    fn be(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }
}

/// The path and the body of the next request.
fn request(stream: &mut impl std::io::BufRead) -> Option<(String, Value)> {
    let (mut first, mut length) = (String::new(), 0);
    stream.read_line(&mut first).ok().filter(|read| *read > 0)?;
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).ok().filter(|read| *read > 0)?;
        let line = line.trim().to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).ok()?;
    Some((first.split(' ').nth(1)?.to_owned(), serde_json::from_slice(&body).ok()?))
}

#[tokio::test]
async fn gateways_are_told_of_messages_and_invitations_by_whichever_replica() {
    let gateway = Gateway::start();
    let (cluster, alice, bob, room) = gateway.room(&[]).await;
    let room = &*room;
    cluster.user("carol").await.join(room).await;
    alice.send_text(room, "before").await;
    gateway.set_pusher(&bob.at(0), "bob", None).await;
    gateway.set_pusher(&alice.at(1), "alice", None).await;
    let mut sent = Vec::new();
    for number in 0..10 {
        sent.push(alice.at(number % 2).send_text(room, "secret").await);
    }
    let last = gateway.notification("bob", &sent[9]).await;
    // No more than the ids, unless the server is set to say more.
    assert_eq!(
        last,
        json!({
            "event_id": sent[9], "room_id": room, "prio": "low",
            "devices": [{ "app_id": "app", "pushkey": "bob", "data": { "brand": "x" } }],
        })
    );
    assert_eq!(gateway.events("bob"), sent, "each once, in their order, and nothing from before");
    assert!(gateway.events("alice").is_empty(), "nobody is told of their own");

    let quiet = alice.create_room(json!({ "invite": [bob.id], "is_direct": true })).await;
    let mention = json!({ "msgtype": "m.text", "body": "x", "m.mentions": { "user_ids": [bob.id] } });
    let mentioning = alice.send_event(room, "m.room.message", mention.clone()).await;
    let told = gateway.notification("bob", &mentioning).await;
    assert_eq!(
        (&told["prio"], &told["devices"][0]["tweaks"]),
        (&Value::Null, &json!({ "highlight": true, "sound": "default" }))
    );
    let invitations = || gateway.told.lock().unwrap().iter().filter(|told| told["room_id"] == *quiet).count();
    eventually("the invitation", async || (invitations() > 0).then_some(())).await;
    alice.send_text(&quiet, "not yet for bob").await;

    // Push rules hold here as they do for counting.
    let rule = format!("/_matrix/client/v3/pushrules/global/room/{}", encode(room));
    bob.put(&rule, json!({ "actions": [] })).await.ok();
    let muted = alice.send_text(room, "muted").await;
    let louder = alice.send_event(room, "m.room.message", mention).await;
    gateway.notification("bob", &louder).await;
    assert!(!gateway.events("bob").contains(&muted));
    assert_eq!(invitations(), 1, "who is invited is told of the invitation alone");
}

#[tokio::test]
async fn a_gateway_is_told_more_if_the_server_is_set_so_and_the_pusher_does_not_mind() {
    let gateway = Gateway::start();
    let cluster = gateway.cluster(&[("KEYSTEAD_PUSH_INCLUDE_CONTENT", "true")]).await;
    let (alice, bob) = (cluster.user("alice").await, cluster.user("bob").await);
    let name = format!("/_matrix/client/v3/profile/{}/displayname", encode(&alice.id));
    alice.put(&name, json!({ "displayname": "Alice" })).await.ok();
    let room = &*alice.create_room(json!({ "preset": "public_chat", "name": "Ward 7" })).await;
    bob.join(room).await;
    cluster.user("carol").await.join(room).await;
    gateway.set_pusher(&bob, "all", None).await;
    gateway.set_pusher(&bob, "ids", Some("event_id_only")).await;
    let sent = alice.send_text(room, "hello").await;
    let told = gateway.notification("all", &sent).await;
    let said = json!([
        told["type"],
        told["sender"],
        told["sender_display_name"],
        told["room_name"],
        told["content"]["body"]
    ]);
    assert_eq!(said, json!(["m.room.message", alice.id, "Alice", "Ward 7", "hello"]));
    let told = gateway.notification("ids", &sent).await;
    let device =
        json!({ "app_id": "app", "pushkey": "ids", "data": { "format": "event_id_only", "brand": "x" } });
    assert_eq!(told, json!({ "event_id": sent, "room_id": room, "prio": "low", "devices": [device] }));
}

/// How often something was counted, by all replicas.
async fn counted(cluster: &TestCluster, series: &str) -> f64 {
    let mut all = 0.0;
    for replica in 0..cluster.size() {
        let answer = cluster.send_to(replica, Request::new(Method::GET, "/metrics")).await;
        let found =
            answer.text.lines().find_map(|line| line.strip_prefix(series)?.trim().parse::<f64>().ok());
        all += found.unwrap_or_else(|| panic!("there is no {series}"));
    }
    all
}

#[tokio::test]
async fn a_pusher_that_is_rejected_goes_and_a_gateway_that_fails_is_told_later() {
    let gateway = Gateway::start();
    let (cluster, alice, bob, room) = gateway.room(&[]).await;
    let room = &*room;
    gateway.set_pusher(&bob, "key", None).await;
    gateway.be(Mood::Failing);
    let until = async |series: &str, expected: f64| {
        eventually(series, async || (counted(&cluster, series).await == expected).then_some(())).await;
    };
    let missed = alice.send_text(room, "missed").await;
    until(r#"keystead_pushes_total{outcome="put_off"}"#, 1.0).await;
    let newest = alice.at(1).send_text(room, "newest").await;
    let (answered, read) = (alice.create_public_room().await, json!({}));
    bob.join(&answered).await;
    let event = alice.send_text(&answered, "read meanwhile").await;
    bob.post(&in_room(&answered, &format!("/receipt/m.read/{}", encode(&event))), read).await.ok();
    gateway.be(Mood::Taking);
    eventually("the queue is told", async || {
        cluster.tamper("UPDATE pushers SET tell_at = 0 WHERE tell_at IS NOT NULL AND told_by = ''").await;
        (gateway.events("key").len() >= 2).then_some(())
    })
    .await;
    let after = alice.send_text(room, "after").await;
    gateway.notification("key", &after).await;
    let expected = [missed, newest, after];
    assert_eq!(gateway.events("key"), expected, "each once, in their order, and not what was read");

    gateway.be(Mood::Rejecting);
    alice.send_text(room, "rejected").await;
    eventually("the pusher goes", async || {
        (bob.get("/pushers").await.ok() == json!({ "pushers": [] })).then_some(())
    })
    .await;
}

#[tokio::test]
async fn what_waits_goes_where_the_pusher_is_set_to_or_nowhere() {
    let (gateway, other) = (Gateway::start(), Gateway::start());
    let (cluster, alice, bob, room) = gateway.room(&[]).await;
    let room = &*room;
    gateway.set_pusher(&bob, "moved", None).await;
    gateway.set_pusher(&bob, "gone", None).await;
    gateway.be(Mood::Failing);
    let sent = alice.send_text(room, "waits").await;
    let put_off = r#"keystead_pushes_total{outcome="put_off"}"#;
    eventually("both fail", async || (counted(&cluster, put_off).await == 2.0).then_some(())).await;
    // The other gateway has a certificate that is not trusted, so it is seen by its connections.
    other.set_pusher(&bob.at(1), "moved", None).await;
    let gone = json!({ "kind": null, "app_id": "app", "pushkey": "gone" });
    bob.post("/pushers/set", gone).await.ok();
    gateway.be(Mood::Taking);
    let tried = async || (other.connections.load(Ordering::SeqCst) > 0).then_some(());
    eventually("the other gateway is asked", tried).await;
    gateway.set_pusher(&bob, "moved", None).await;
    gateway.notification("moved", &sent).await;
    assert!(gateway.events("gone").is_empty());
}

#[tokio::test]
async fn a_tweak_needs_no_value() {
    let gateway = Gateway::start();
    let (_cluster, alice, bob, room) = gateway.room(&[]).await;
    gateway.set_pusher(&bob, "key", None).await;
    let rule = format!("/pushrules/global/room/{}", encode(&room));
    let actions = json!({ "actions": ["notify", { "set_tweak": "org.example.quiet" }] });
    bob.put(&rule, actions).await.ok();
    let sent = alice.send_text(&room, "x").await;
    let told = gateway.notification("key", &sent).await;
    assert_eq!(told["devices"][0]["tweaks"], json!({ "org.example.quiet": null }));
}

#[tokio::test]
async fn a_gateway_that_closes_its_connections_is_told_everything_all_the_same() {
    let gateway = Gateway::start();
    let (cluster, alice, bob, room) = gateway.room(&[]).await;
    let room = &*room;
    gateway.set_pusher(&bob, "key", None).await;
    gateway.be(Mood::Closing);
    let mut sent = Vec::new();
    for number in 0..10 {
        sent.push(alice.at(number % 2).send_text(room, "x").await);
    }
    gateway.notification("key", &sent[9]).await;
    assert_eq!(gateway.events("key"), sent);
    assert_eq!(counted(&cluster, r#"keystead_pushes_total{outcome="put_off"}"#).await, 0.0);
}

#[tokio::test]
async fn a_gateway_that_keeps_silent_holds_up_nobody_else() {
    let gateway = Gateway::start();
    let (cluster, alice, bob, room) = gateway.room(&[]).await;
    let room = &*room;
    let mal = cluster.user("mal").await;
    mal.join(room).await;
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!(
        "https://localhost:{}/_matrix/push/v1/notify",
        silent.local_addr().expect("an address").port()
    );
    let pusher = |number: usize| {
        json!({
            "kind": "http", "app_id": "app", "pushkey": number.to_string(), "app_display_name": "App", "lang": "en",
            "device_display_name": "Phone", "data": { "url": url }, "append": true,
        })
    };
    for number in 0..50 {
        mal.post("/pushers/set", pusher(number)).await.ok();
    }
    mal.post("/pushers/set", pusher(50)).await.refused(403, "M_FORBIDDEN");
    gateway.set_pusher(&bob, "key", None).await;
    let mut sent = Vec::new();
    for number in 0..5 {
        sent.push(alice.at(number % 2).send_text(room, "x").await);
        gateway.notification("key", &sent[number]).await;
    }
    assert_eq!(gateway.events("key"), sent);
}

#[tokio::test]
async fn a_gateway_in_the_servers_own_network_is_not_told_anything() {
    let gateway = Gateway::start();
    let (cluster, alice, bob, room) = gateway.room(&[("KEYSTEAD_PUSH_ALLOWED_NETWORKS", "10.9.8.7")]).await;
    let room = &*room;
    gateway.set_pusher(&bob, "key", None).await;
    alice.send_text(room, "x").await;
    eventually("it is put off", async || {
        (counted(&cluster, r#"keystead_pushes_total{outcome="put_off"}"#).await > 0.0).then_some(())
    })
    .await;
    assert_eq!(gateway.connections.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn when_the_replica_that_pushes_dies_another_one_goes_on() {
    let gateway = Gateway::start();
    let (cluster, alice, bob, room) = gateway.room(&[]).await;
    let room = &*room;
    gateway.set_pusher(&bob, "key", None).await;
    let first = alice.send_text(room, "first").await;
    gateway.notification("key", &first).await;
    cluster.kill(0);
    if cluster.size() == 1 {
        cluster.restart(0).await;
    }
    let second = alice.at(1).send_text(room, "second").await;
    if cluster.size() > 1 {
        cluster.restart(0).await;
    }
    // What the dead one held would be free half a minute later, and so would its share.
    let free = "UPDATE push_cursors SET held_until = 0; DELETE FROM push_holders; \
        UPDATE pushers SET tell_at = 0 WHERE tell_at IS NOT NULL";
    cluster.tamper(free).await;
    gateway.notification("key", &second).await;
}
