//! Who may give whom a resource key: the server's part of the KeyBox profile.

use std::sync::Arc;

use keystead_keybox::{OpensslEntropy, key_set::PrivateKeySet, suite};
use keystead_tests::{
    TestCluster, User,
    http::{Response, encode},
    sync::{events, of_type},
    user::transaction_id,
};
use serde_json::{Value, json};

const RESOURCE_KEY: &str = "com.trustner.keybox.resource_key";
const NOT_A_MEMBER: &str = "COM.TRUSTNER.KEYBOX_NOT_A_MEMBER";

/// A user whose device is a KeyBox.
pub(crate) async fn keybox(cluster: &Arc<TestCluster>, name: &str) -> User {
    let user = cluster.user(name).await;
    publish_keybox(&user).await;
    user
}

pub(crate) async fn publish_keybox(user: &User) {
    let keys = PrivateKeySet::generate(&user.id, &user.device, &mut OpensslEntropy).expect("keys");
    let device_keys = keys.device_keys().expect("device keys");
    user.post("/keys/upload", json!({ "device_keys": device_keys })).await.ok();
}

pub(crate) async fn keybox_room(user: &User, visibility: &str) -> String {
    user.create_room(json!({
        "preset": "public_chat",
        "initial_state": [
            { "type": "m.room.encryption", "state_key": "", "content": { "algorithm": suite::V1 } },
            { "type": "m.room.history_visibility", "state_key": "", "content": { "history_visibility": visibility } },
        ],
    }))
    .await
}

pub(crate) fn resource_key(sender: &User, room: &str) -> Value {
    json!({
        "algorithm": suite::V1, "room_id": room, "key_id": "AAAAAAAAAAAAAAAAAAAAAA", "wrap": "AAAA",
        "sender_keybox": sender.device, "exchange_id": transaction_id(), "sent_at": 1, "signature": "AAAA",
        "origin": {
            "user_id": sender.id, "keybox_id": sender.device, "created_at": 1, "audience": "x", "signature": "AAAA",
        },
    })
}

/// Gives the room's key to the devices named.
pub(crate) async fn give(sender: &User, room: &str, recipients: &[(&User, &str)]) -> Response {
    let mut messages = json!({});
    for (user, device) in recipients {
        messages[&user.id][*device] = resource_key(sender, room);
    }
    let path = format!("/sendToDevice/{RESOURCE_KEY}/{}", transaction_id());
    sender.put(&path, json!({ "messages": messages })).await
}

async fn has_been_given(user: &User) -> bool {
    of_type(events(&user.sync_once(None).await["to_device"]), RESOURCE_KEY).is_some()
}

#[tokio::test]
async fn a_resource_key_goes_from_members_to_members_or_to_nobody() {
    let cluster = TestCluster::start().await;
    let (alice, bob, eve) =
        (keybox(&cluster, "alice").await, keybox(&cluster, "bob").await, keybox(&cluster, "eve").await);
    let room = keybox_room(&alice, "shared").await;
    bob.join(&room).await;

    for device in [eve.device.as_str(), "*", "NOSUCH"] {
        let call = [(&bob, bob.device.as_str()), (&eve, device)];
        give(&alice, &room, &call).await.refused(403, NOT_A_MEMBER);
    }
    give(&eve, &room, &[(&bob, &bob.device)]).await.refused(403, NOT_A_MEMBER);
    give(&eve, "!none:keystead.test", &[(&bob, &bob.device)]).await.refused(403, NOT_A_MEMBER);
    assert!(!has_been_given(&bob).await && !has_been_given(&eve).await, "a refused call stores nothing");

    give(&alice, &room, &[(&bob, &bob.device), (&alice, "NOSUCH")]).await.ok();
    assert!(has_been_given(&bob).await);

    bob.leave(&room).await;
    give(&alice, &room, &[(&bob, &bob.device)]).await.refused(403, NOT_A_MEMBER);
    give(&bob, &room, &[(&alice, &alice.device)]).await.refused(403, NOT_A_MEMBER);
}

#[tokio::test]
async fn the_invited_are_given_keys_where_they_may_read() {
    let cluster = TestCluster::start().await;
    let (alice, bob) = (keybox(&cluster, "alice").await, keybox(&cluster, "bob").await);
    for (visibility, permitted) in [("shared", true), ("invited", true), ("joined", false)] {
        let room = keybox_room(&alice, visibility).await;
        alice.invite(&room, &bob).await;
        let answer = give(&alice, &room, &[(&bob, &bob.device)]).await;
        if permitted {
            answer.ok()
        } else {
            answer.refused(403, NOT_A_MEMBER)
        };
        // To be invited is not enough to give.
        give(&bob, &room, &[(&alice, &alice.device)]).await.refused(403, NOT_A_MEMBER);
    }
}

#[tokio::test]
async fn keys_go_to_keyboxes_of_rooms_with_the_profile_only() {
    let cluster = TestCluster::start().await;
    let (alice, bob) = (keybox(&cluster, "alice").await, keybox(&cluster, "bob").await);
    let plain = alice.create_public_room().await;
    bob.join(&plain).await;
    give(&alice, &plain, &[(&bob, &bob.device)]).await.refused(403, NOT_A_MEMBER);

    let room = keybox_room(&alice, "shared").await;
    bob.join(&room).await;
    give(&alice, &room, &[(&bob, "*")]).await.ok();
    let phone = cluster.login("bob").await;
    give(&alice, &room, &[(&bob, &phone.device)]).await.refused(403, NOT_A_MEMBER);
    give(&alice, &room, &[(&bob, "*")]).await.refused(403, NOT_A_MEMBER);
}

#[tokio::test]
async fn a_malformed_key_message_is_refused_whole() {
    let cluster = TestCluster::start().await;
    let (alice, bob) = (keybox(&cluster, "alice").await, keybox(&cluster, "bob").await);
    let room = keybox_room(&alice, "shared").await;
    bob.join(&room).await;
    let good = resource_key(&alice, &room);
    let changed = |field: &str, value: Value| {
        let mut content = good.clone();
        content[field] = value;
        content
    };
    let bad = [
        (changed("room_id", json!("room")), 400, "M_INVALID_PARAM"),
        (changed("room_id", json!(7)), 400, "M_BAD_JSON"),
        (changed("algorithm", json!("m.megolm.v1.aes-sha2")), 400, "M_INVALID_PARAM"),
        (changed("sender_keybox", json!("OTHER")), 400, "M_INVALID_PARAM"),
        (changed("wrap", json!("not base64!")), 400, "M_BAD_JSON"),
        (changed("signature", Value::Null), 400, "M_BAD_JSON"),
        (changed("more", json!("x".repeat(20_000))), 413, "M_TOO_LARGE"),
        (json!({}), 400, "M_BAD_JSON"),
        (json!([]), 400, "M_BAD_JSON"),
    ];
    for (content, status, errcode) in bad {
        let messages = json!({ &alice.id: { &alice.device: &good }, &bob.id: { &bob.device: content } });
        let path = format!("/sendToDevice/{RESOURCE_KEY}/{}", transaction_id());
        alice.put(&path, json!({ "messages": messages })).await.refused(status, errcode);
    }
    assert!(!has_been_given(&alice).await && !has_been_given(&bob).await);
}

#[tokio::test]
async fn a_key_set_is_checked_and_never_changes() {
    let cluster = TestCluster::start().await;
    let (alice, bob) = (keybox(&cluster, "alice").await, cluster.user("bob").await);
    let keys = PrivateKeySet::generate(&alice.id, &alice.device, &mut OpensslEntropy).expect("keys");
    let other = json!({ "device_keys": keys.device_keys().expect("device keys") });
    alice.post("/keys/upload", other).await.refused(400, "M_INVALID_PARAM");

    let keys = PrivateKeySet::generate(&bob.id, &bob.device, &mut OpensslEntropy).expect("keys");
    let good = Value::Object(keys.device_keys().expect("device keys"));
    let entry = |algorithm: &str| format!("com.trustner.keybox.{algorithm}:{}", bob.device);
    for (algorithm, value) in [
        ("rsa2048", json!("AAAA")),
        ("rsa2048", Value::Null),
        ("x25519", json!("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA")),
    ] {
        let mut bad = good.clone();
        match value {
            Value::Null => drop(bad["keys"].as_object_mut().expect("keys").remove(&entry(algorithm))),
            value => bad["keys"][entry(algorithm)] = value,
        }
        bob.post("/keys/upload", json!({ "device_keys": bad })).await.refused(400, "M_INVALID_PARAM");
    }
    bob.post("/keys/upload", json!({ "device_keys": good })).await.ok();
    bob.post("/keys/upload", json!({ "device_keys": good })).await.ok();
    let query = json!({ "device_keys": { &bob.id: [] } });
    let shown = alice.post("/keys/query", query).await.ok();
    assert_eq!(shown["device_keys"][&bob.id][&bob.device]["keys"], good["keys"]);
}

#[tokio::test]
async fn a_message_to_a_device_is_sent_once_for_a_transaction_id() {
    let cluster = TestCluster::start().await;
    let (alice, bob) = (cluster.user("alice").await, cluster.user("bob").await);
    let path = format!("/sendToDevice/{}/{}", encode("org.example.hello"), transaction_id());
    let body = json!({ "messages": { &bob.id: { "*": { "n": 1 } }, "@nobody:keystead.test": { "*": {} } } });
    let sends = (0..6).map(|replica| {
        let (alice, path, body) = (alice.at(replica), path.clone(), body.clone());
        async move { alice.put(&path, body).await.ok() }
    });
    futures_util::future::join_all(sends).await;
    let answer = bob.sync_once(None).await;
    assert_eq!(events(&answer["to_device"]).len(), 1, "{}", answer["to_device"]);
    let again = bob.sync_once(answer["next_batch"].as_str()).await;
    assert!(events(&again["to_device"]).is_empty(), "what was acknowledged is gone");
}
