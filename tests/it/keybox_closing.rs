//! Closed rooms: what the server lets in, and what KeyBoxes do whatever it says.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use keystead_client::{
    api::Registration,
    client::{Client, ClientError, Passphrase},
    engine::EncryptError,
};
use keystead_keybox::{
    OpensslEntropy,
    closing::{Action, Closing, Content, EVENT_TYPE, SignedStep, Step, key_set_id},
    key_set::PrivateKeySet,
    suite::SUITES,
};
use keystead_tests::{
    TestCluster, User,
    cluster::PASSWORD,
    http::{Request, Response, encode},
    proxy::Proxy,
    user::{in_room, transaction_id},
};
use serde_json::{Value, json};

use crate::{
    keybox::{Person, field, pair},
    keybox_permission::{give, keybox_room},
    keybox_registry::revoke,
};

const PASSPHRASE: &str = "a passphrase for tests";
const ROOM_CLOSED: &str = "COM.TRUSTNER.KEYBOX_ROOM_CLOSED";

/// A user's device with the keys that it has published.
struct Box {
    user: User,
    keys: PrivateKeySet,
}

impl Box {
    async fn of(user: User) -> Self {
        let keys = PrivateKeySet::generate(&user.id, &user.device, &mut OpensslEntropy).expect("keys");
        let device_keys = keys.device_keys().expect("device keys");
        user.post("/keys/upload", json!({ "device_keys": device_keys })).await.ok();
        Self { user, keys }
    }

    fn name(&self) -> String {
        key_set_id(&self.keys.public().expect("public keys").hash())
    }

    /// The content that the step makes, signed by this KeyBox, of the state that stands.
    async fn step(&self, room: &str, action: Action, boxes: &[&Self], moderators: &[&Self]) -> Value {
        let before = self.user.state(room, EVENT_TYPE, "").await;
        let before =
            (before.status == 200).then(|| Content::read(room, &before.clone().ok()).expect("a closing"));
        let last = before.as_ref().map(|before| Closing::of(before).expect("a closing").last);
        let sorted = |names: BTreeSet<String>| names.into_iter().collect();
        let step = Step {
            action,
            generation: last.as_ref().map_or(1, |last| last.generation + 1),
            prev: last.map(|last| last.hash).unwrap_or_default(),
            user_id: self.user.id.clone(),
            keybox_id: self.user.device.clone(),
            at: 1,
            keyboxes: sorted(boxes.iter().map(|one| one.name()).collect()),
            moderators: sorted(moderators.iter().map(|one| one.user.id.clone()).collect()),
            limit: None,
        };
        let step = SignedStep::sign(room, &step, &self.keys).expect("signed");
        // What may not follow is put behind all the same: the server has to refuse it.
        let mut steps: Vec<_> =
            before.iter().flat_map(Content::steps).map(|step| step.json().clone()).collect();
        steps.push(step.json().clone());
        json!({ "closed": action != Action::Open, "by": self.user.id, "steps": steps })
    }

    async fn put(&self, room: &str, content: Value) -> Response {
        self.user.put(&in_room(room, &format!("/state/{EVENT_TYPE}")), content).await
    }

    async fn take(&self, room: &str, action: Action, boxes: &[&Self], moderators: &[&Self]) -> Response {
        self.put(room, self.step(room, action, boxes, moderators).await).await
    }
}

async fn alice_and_bob(cluster: &Arc<TestCluster>) -> (Box, Box, String) {
    let alice = Box::of(cluster.user("alice").await).await;
    let bob = Box::of(cluster.user("bob").await).await;
    let room = keybox_room(&alice.user, "shared").await;
    bob.user.join(&room).await;
    (alice, bob, room)
}

#[tokio::test]
async fn a_closed_room_takes_in_nobody_and_no_keybox() {
    let cluster = TestCluster::start().await;
    let (alice, bob, room) = alice_and_bob(&cluster).await;
    let carol = cluster.user("carol").await;
    alice.user.invite(&room, &carol).await;
    bob.take(&room, Action::Close, &[&bob], &[&bob]).await.refused(403, "M_FORBIDDEN");
    alice.take(&room, Action::Close, &[&alice, &bob], &[&alice]).await.ok();

    // Nobody comes in, by whatever door and replica.
    for replica in 0..2 {
        let (alice, carol, dave) = (alice.user.at(replica), carol.at(replica), carol.at(replica));
        carol.post(&in_room(&room, "/join"), json!({})).await.refused(403, "M_FORBIDDEN");
        carol.post(&format!("/join/{}", encode(&room)), json!({})).await.refused(403, "M_FORBIDDEN");
        let member = in_room(&room, &format!("/state/m.room.member/{}", encode(&carol.id)));
        dave.put(&member, json!({ "membership": "join" })).await.refused(403, "M_FORBIDDEN");
        let invite = json!({ "user_id": "@dave:keystead.test" });
        alice.post(&in_room(&room, "/invite"), invite).await.refused(403, "M_FORBIDDEN");
        let join_rules = in_room(&room, "/state/m.room.join_rules");
        alice.put(&join_rules, json!({ "join_rule": "public" })).await.ok();
        carol.post(&in_room(&room, "/join"), json!({})).await.refused(403, "M_FORBIDDEN");
        alice
            .post(&in_room(&room, "/upgrade"), json!({ "new_version": "12" }))
            .await
            .refused(403, "M_FORBIDDEN");
        let tombstone = json!({ "body": "gone", "replacement_room": "!other:keystead.test" });
        let path = in_room(&room, "/state/m.room.tombstone");
        alice.put(&path, tombstone).await.refused(403, "M_FORBIDDEN");
    }
    // Who is in it may still change their profile, speak, and exchange keys.
    bob.user
        .put(&format!("/profile/{}/displayname", encode(&bob.user.id)), json!({ "displayname": "B" }))
        .await
        .ok();
    give(&alice.user, &room, &[(&bob.user, &bob.user.device)]).await.ok();

    // A new KeyBox of a member neither gets keys nor gives any, alone, by `*`, or among others.
    let second = Box::of(cluster.login("bob").await).await;
    let to_second = [(&bob.user, &*bob.user.device), (&bob.user, &*second.user.device)];
    for replica in 0..2 {
        give(&alice.user.at(replica), &room, &to_second).await.refused(403, ROOM_CLOSED);
        give(&bob.user.at(replica), &room, &to_second[1..]).await.refused(403, ROOM_CLOSED);
        give(&alice.user.at(replica), &room, &[(&bob.user, "*")]).await.refused(403, ROOM_CLOSED);
        give(&second.user.at(replica), &room, &[(&alice.user, &alice.user.device)])
            .await
            .refused(403, ROOM_CLOSED);
    }
    // It may ask, and be told why it gets nothing.
    bob.take(&room, Action::Approve, &[&second], &[]).await.refused(403, "M_FORBIDDEN");
    second.take(&room, Action::Approve, &[&second], &[]).await.refused(403, "M_FORBIDDEN");
    alice.take(&room, Action::Approve, &[&second], &[]).await.ok();
    give(&alice.user, &room, &to_second).await.ok();
    give(&second.user, &room, &[(&alice.user, &alice.user.device)]).await.ok();

    // Opened, it is a room as any other.
    alice.take(&room, Action::Open, &[], &[]).await.ok();
    carol.post(&in_room(&room, "/join"), json!({})).await.ok();
    let third = Box::of(cluster.login("bob").await).await;
    give(&alice.user, &room, &[(&bob.user, &third.user.device)]).await.ok();
}

#[tokio::test]
async fn the_closing_cannot_be_got_round() {
    let cluster = TestCluster::start().await;
    let (alice, bob, room) = alice_and_bob(&cluster).await;
    let close = alice.step(&room, Action::Close, &[&alice, &bob], &[&alice]).await;
    let mut forged = close.clone();
    forged["steps"][0]["keyboxes"] = json!([alice.name()]);
    alice.put(&room, forged).await.refused(403, "M_FORBIDDEN");
    let elsewhere = keybox_room(&alice.user, "shared").await;
    alice.put(&elsewhere, close.clone()).await.refused(403, "M_FORBIDDEN");
    for content in
        [json!({}), json!({ "closed": true }), json!({ "closed": true, "by": alice.user.id, "steps": [] })]
    {
        alice.put(&room, content).await.refused(403, "M_FORBIDDEN");
    }
    let event_id = alice.put(&room, close.clone()).await.ok()["event_id"].as_str().expect("an id").to_owned();

    // Bob gets the power to, but he was no moderator when the room was closed.
    let levels = alice.user.state(&room, "m.room.power_levels", "").await.ok();
    let mut more = levels.clone();
    more["users"][&bob.user.id] = json!(99);
    alice.user.set_state(&room, "m.room.power_levels", "", more).await;
    bob.take(&room, Action::Open, &[], &[]).await.refused(403, "M_FORBIDDEN");
    bob.put(&room, json!({ "closed": false, "by": bob.user.id })).await.refused(403, "M_FORBIDDEN");
    // A new KeyBox of the moderator is none of the room's.
    let new = Box::of(cluster.login("alice").await).await;
    for action in [Action::Open, Action::Approve] {
        let boxes: &[&Box] = if action == Action::Open { &[] } else { &[&new] };
        new.take(&room, action, boxes, &[]).await.refused(403, "M_FORBIDDEN");
        // Nor does it help to send what another KeyBox would have signed.
        let signed_by_the_old_one = alice.step(&room, action, boxes, &[]).await;
        new.put(&room, signed_by_the_old_one).await.refused(403, "M_FORBIDDEN");
    }
    // The first closing is not taken back by redaction, nor put in the place of what follows.
    for user in [&alice.user, &bob.user] {
        let path = in_room(&room, &format!("/redact/{}/{}", encode(&event_id), transaction_id()));
        user.put(&path, json!({})).await.refused(403, "M_FORBIDDEN");
        let path = in_room(&room, &format!("/send/m.room.redaction/{}", transaction_id()));
        user.put(&path, json!({ "redacts": event_id })).await.refused(403, "M_FORBIDDEN");
    }
    alice.take(&room, Action::Approve, &[&new], &[]).await.ok();
    alice.put(&room, close).await.refused(403, "M_FORBIDDEN");
    // Who left does not come back, and who holds the keys of who left does not either.
    bob.user.leave(&room).await;
    bob.user.post(&in_room(&room, "/join"), json!({})).await.refused(403, "M_FORBIDDEN");
    give(&alice.user, &room, &[(&bob.user, &bob.user.device)])
        .await
        .refused(403, "COM.TRUSTNER.KEYBOX_NOT_A_MEMBER");
    // Of two steps at the same time on two replicas one is taken.
    let first = alice.step(&room, Action::Open, &[], &[]).await;
    let second = new.step(&room, Action::Approve, &[&new], &[]).await;
    let path = in_room(&room, &format!("/state/{EVENT_TYPE}"));
    let (one, other) = (alice.user.at(0), new.user.at(1));
    let (one, other) = futures_util::future::join(one.put(&path, first), other.put(&path, second)).await;
    let mut statuses = [one.status, other.status];
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 403], "{} {}", one.text, other.text);
}

#[tokio::test]
async fn the_keys_of_a_revoked_keybox_never_count_again() {
    let cluster = TestCluster::start().await;
    let (alice, bob, room) = alice_and_bob(&cluster).await;
    let lost = Box::of(cluster.login("bob").await).await;
    alice.take(&room, Action::Close, &[&alice, &bob, &lost], &[&alice]).await.ok();
    give(&alice.user, &room, &[(&bob.user, &lost.user.device)]).await.ok();
    revoke(&bob.user.at(0), &lost.user.device).await;

    // Who found it knows the password, too, and has its private keys: under the old id, on both replicas.
    let body = json!({
        "type": "m.login.password", "identifier": { "type": "m.id.user", "user": "bob" },
        "password": PASSWORD, "device_id": lost.user.device,
    });
    let login = Request::new(hyper::Method::POST, "/_matrix/client/v3/login").json(&body);
    let thief = User::from_login(&cluster, &cluster.send(login).await.ok());
    assert_eq!(thief.device, lost.user.device);
    let upload = json!({ "device_keys": lost.keys.device_keys().expect("device keys") });
    for replica in 0..2 {
        thief.at(replica).post("/keys/upload", upload.clone()).await.refused(400, "M_INVALID_PARAM");
        give(&alice.user.at(replica), &room, &[(&bob.user, &thief.device)])
            .await
            .refused(403, "COM.TRUSTNER.KEYBOX_NOT_A_MEMBER");
        give(&thief.at(replica), &room, &[(&alice.user, &alice.user.device)]).await.refused(403, ROOM_CLOSED);
    }
    let shown = alice.user.post("/keys/query", json!({ "device_keys": { &bob.user.id: [] } })).await.ok();
    assert!(shown["device_keys"][&bob.user.id].get(&thief.device).is_none(), "{shown}");
    // Other keys under that id are another KeyBox, which the room was not closed with.
    let other = Box::of(thief).await;
    give(&alice.user, &room, &[(&bob.user, &other.user.device)]).await.refused(403, ROOM_CLOSED);
    other.take(&room, Action::Open, &[], &[]).await.refused(403, "M_FORBIDDEN");
}

#[tokio::test]
async fn a_limit_holds_on_every_replica_at_once() {
    let cluster = TestCluster::start().await;
    let (alice, _bob, room) = alice_and_bob(&cluster).await;
    let mut content = alice.step(&room, Action::Open, &[], &[]).await;
    content["steps"][0]["limit"] = json!(3);
    content["limit"] = json!(3);
    alice.put(&room, content).await.refused(403, "M_FORBIDDEN");
    let step = Step {
        action: Action::Open,
        generation: 1,
        prev: String::new(),
        user_id: alice.user.id.clone(),
        keybox_id: alice.user.device.clone(),
        at: 1,
        keyboxes: Vec::new(),
        moderators: Vec::new(),
        limit: Some(3),
    };
    let step = SignedStep::sign(&room, &step, &alice.keys).expect("signed");
    alice.put(&room, Content::with(None, step).expect("a content").to_json()).await.ok();
    let mut joins = Vec::new();
    for (index, name) in ["carol", "dave", "eve"].into_iter().enumerate() {
        let user = cluster.user(name).await.at(index);
        let path = in_room(&room, "/join");
        joins.push(async move { user.post(&path, json!({})).await.status });
    }
    let mut statuses = futures_util::future::join_all(joins).await;
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 403, 403]);
}

#[tokio::test]
async fn a_room_is_closed_and_opened_on_the_command_line() {
    let cluster = TestCluster::start().await;
    let (alice, bob, room) = pair(&cluster).await;
    let refused = bob.refused(&["close", &room]).await;
    assert_eq!(refused["status"], 1, "{refused}");
    let closed = alice.run(&["close", "tea", "--limit", "5"]).await;
    assert_eq!((&closed[0]["closed"], &closed[0]["limit"]), (&json!(true), &json!(5)));
    assert_eq!(closed[0]["keyboxes"].as_array().map(Vec::len), Some(2), "{closed:?}");
    assert_eq!(closed[0]["moderators"], json!(["@alice:keystead.test"]));

    let second = Person { home: cluster.folder().join("bob-second-home"), ..bob.clone() };
    let keybox_id = field(&second.run(&["login"]).await, "keybox_id");
    alice.run(&["send", &room, "for two KeyBoxes"]).await;
    let refused = second.refused(&["send", &room, "from the second"]).await;
    assert!(refused["error"].as_str().is_some_and(|error| error.contains("approve-keybox")), "{refused}");
    let approved = alice.run(&["approve-keybox", &room, "@bob:keystead.test", &keybox_id]).await;
    assert_eq!((&approved[0]["verified"], &approved[0]["generation"]), (&json!(false), &json!(2)));
    let texts = second.texts(&["history", &room, "--wait", "5"]).await;
    assert_eq!(texts, ["for two KeyBoxes"]);
    let opened = alice.run(&["open", &room]).await;
    assert_eq!((&opened[0]["closed"], &opened[0]["generation"]), (&json!(false), &json!(3)));
    assert_eq!(alice.run(&["rooms"]).await[0]["closed"], json!(false));
}

async fn register(cluster: &Arc<TestCluster>, server: &str, name: &str) -> Client {
    let registration =
        Registration { username: name, password: PASSWORD, token: None, display_name: "KeyBox" };
    let home = cluster.folder().join("homes");
    Client::register(&home, server, &registration, Passphrase::Own(PASSPHRASE)).await.expect("registered")
}

async fn hears(client: &mut Client, text: &str) {
    let deadline = std::time::Instant::now() + keystead_tests::PATIENCE;
    loop {
        let unread = client.unread(None, 10).await.expect("read");
        client.mark_read(&unread).await.expect("marked");
        if unread.iter().any(|message| message.body() == Some(text)) {
            return;
        }
        assert!(std::time::Instant::now() < deadline, "{text:?} does not come");
        client.sync(Duration::from_secs(1)).await.expect("synced");
    }
}

#[tokio::test]
async fn keyboxes_keep_a_room_closed_that_the_server_shows_as_open() {
    let cluster = TestCluster::start().await;
    let proxy = Proxy::start(&cluster).await;
    let mut alice = register(&cluster, &cluster.url(1), "alice").await;
    let mut bob = register(&cluster, &proxy.url, "bob").await;
    let bob_id = bob.account().user_id.clone();
    let room =
        alice.create_room(Some("tea"), &SUITES[0], std::slice::from_ref(&bob_id)).await.expect("a room");
    bob.api().join(&room).await.expect("joined");
    alice.send_text(&room, "open").await.expect("sent");
    hears(&mut bob, "open").await;

    // Bob's server hides that Alice closes the room, or shows something else instead.
    for lie in
        [json!(null), json!({}), json!({ "closed": false, "by": alice.account().user_id, "steps": [] })]
    {
        proxy.alter(move |path, answer| lie_about_closings(path, answer, &lie));
        let closed = alice.close_room(&room, None).await.expect("closed");
        assert_eq!(closed.keyboxes.len(), 2);
        alice.send_text(&room, "closed").await.expect("sent");
        hears(&mut bob, "closed").await;
        let refused = bob.send_text(&room, "who reads this?").await.expect_err("refused");
        let hidden =
            |error: &ClientError| matches!(error, ClientError::Encrypt(EncryptError::ClosingHidden(_)));
        assert!(hidden(&refused), "{refused}");
        alice.open_room(&room, None).await.expect("opened");
    }
    // What is shown as it is, is believed; what is shown differently afterwards, is not.
    proxy.alter(|_, _| {});
    alice.close_room(&room, None).await.expect("closed");
    bob.sync(Duration::ZERO).await.expect("synced");
    assert!(bob.rooms().any(|known| known.room_id == room && known.is_closed()));
    proxy.alter(|path, answer| lie_about_closings(path, answer, &json!({ "closed": false })));
    let home = cluster.folder().join("second");
    let mut second = Client::login(&home, &cluster.url(0), "bob", PASSWORD, Passphrase::Own(PASSPHRASE))
        .await
        .expect("logged in");
    second.sync(Duration::ZERO).await.expect("synced");
    let refused = second.send_text(&room, "let me in").await.expect_err("refused");
    assert!(matches!(refused, ClientError::Encrypt(EncryptError::NotApproved)), "{refused}");
    for client in [&mut alice, &mut bob] {
        client.send_text(&room, "still closed").await.expect("sent");
    }
    second.history(&room, 10, Duration::from_secs(1)).await.expect("read");
    for client in [&mut alice, &mut bob] {
        client.sync(Duration::ZERO).await.expect("synced");
        let second = &second.account().keybox_id;
        let log = client.own_log().await.expect("a log");
        let is = |entry: &serde_json::Map<String, Value>, name: &str, text: &str| {
            entry.get(name).is_some_and(|value| value == text)
        };
        let of_second: Vec<_> = log.iter().filter(|entry| is(entry, "peer_keybox_id", second)).collect();
        let refused = of_second.iter().any(|entry| is(entry, "reference", "com.trustner.room_closed"));
        let given = of_second.iter().any(|entry| is(entry, "type", "resource_key_given"));
        assert!(refused && !given, "{of_second:?}");
    }
}

/// Shows `lie` as the content of what closes rooms, or with `null` nothing.
fn lie_about_closings(path: &str, answer: &mut Value, lie: &Value) {
    let rooms = answer.pointer_mut("/rooms/join").filter(|_| path.contains("/sync"));
    for room in rooms.and_then(Value::as_object_mut).into_iter().flat_map(|rooms| rooms.values_mut()) {
        for part in ["/state/events", "/timeline/events"] {
            let Some(events) = room.pointer_mut(part).and_then(Value::as_array_mut) else { continue };
            events.retain(|event| event["type"] != EVENT_TYPE || !lie.is_null());
            for event in events.iter_mut().filter(|event| event["type"] == EVENT_TYPE) {
                event["content"] = lie.clone();
            }
        }
    }
}
