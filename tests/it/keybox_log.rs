//! The log that the server keeps of each user's KeyBoxes.

use keystead_keybox::{
    audit_log::{Head, check_head, entry_hash},
    encoding::from_base64,
};
use keystead_tests::{
    TestCluster, User,
    http::{Request, encode},
    user::transaction_id,
};
use serde_json::{Map, Value, json};

use crate::keybox_permission::{give, keybox, keybox_room};

/// Where the profile's own endpoints are.
const BASE: &str = "/_matrix/client/unstable/com.trustner.keybox/v1";

/// A user's whole log, page by page, after a walk along its chain to the signed head.
async fn log(user: &User) -> Vec<Map<String, Value>> {
    let mut entries = Vec::new();
    let mut after = json!(0);
    while !after.is_null() {
        let page = user.get(&format!("{BASE}/log?limit=3&after={after}")).await.ok();
        for entry in page["entries"].as_array().expect("entries") {
            entries.push(entry.as_object().expect("an entry").clone());
        }
        after = page["next_after"].clone();
    }
    let mut walked = Head::default();
    for entry in &entries {
        walked.follow(&user.id, entry).unwrap_or_else(|error| panic!("{error}: {entry:?}"));
    }
    assert_eq!(walked, signed_head(user).await);
    entries
}

async fn signed_head(user: &User) -> Head {
    let keys = user.get("/_matrix/key/v2/server").await.ok();
    let name = keys["server_name"].as_str().expect("a name");
    let key = keys["verify_keys"]["ed25519:1"]["key"].as_str().expect("a key");
    let key: [u8; 32] = from_base64(key).expect("base64").try_into().expect("32 bytes");
    let head = user.get(&format!("{BASE}/log/head")).await.ok();
    check_head(head.as_object().expect("an object"), &user.id, name, ("1", &key)).expect("signed")
}

/// The types of the entries, and the KeyBox at the other end where there is one.
fn told(entries: &[Map<String, Value>]) -> Vec<(String, Value)> {
    let peer = |entry: &Map<String, Value>| entry.get("peer_keybox_id").cloned().unwrap_or_default();
    let kind = |entry: &Map<String, Value>| entry["type"].as_str().expect("a type").to_owned();
    entries.iter().map(|entry| (kind(entry), peer(entry))).collect()
}

fn in_log(kind: &str, peer: &str) -> (String, Value) {
    (kind.to_owned(), if peer.is_empty() { Value::Null } else { peer.into() })
}

async fn send(sender: &User, kind: &str, to: &User, content: Value) {
    let path = format!("/sendToDevice/com.trustner.keybox.{kind}/{}", transaction_id());
    sender.put(&path, json!({ "messages": { &to.id: { &to.device: content } } })).await.ok();
}

#[tokio::test]
async fn what_happens_to_keyboxes_and_keys_is_in_the_logs_of_both() {
    let cluster = TestCluster::start().await;
    let (alice, bob) = (keybox(&cluster, "alice").await, keybox(&cluster, "bob").await);
    let room = keybox_room(&alice, "shared").await;
    bob.join(&room).await;
    give(&alice, &room, &[(&bob, "*"), (&alice, "NOSUCH")]).await.ok();
    let key = json!({
        "algorithm": keystead_keybox::suite::V1, "room_id": room, "key_id": "AAAAAAAAAAAAAAAAAAAAAA",
        "sender_keybox": bob.device, "signature": "AAAA",
    });
    let with = |more: Value| {
        let mut content = key.clone();
        content.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        content
    };
    let request = |action: &str| with(json!({ "action": action, "request_id": "q" }));
    send(&bob, "resource_key_request", &alice, request("request")).await;
    send(&bob, "resource_key_request", &alice, request("cancel")).await;
    let withheld = with(json!({ "code": "m.unavailable", "reason": "gone", "sender_keybox": alice.device }));
    send(&alice, "resource_key.withheld", &bob, withheld).await;
    let path = format!("/devices/{}", encode(&bob.device));
    bob.put(&path, json!({ "display_name": "at home" })).await.ok();
    let second = cluster.login("bob").await;
    second.post("/logout", json!({})).await.ok();

    let (of_alice, of_bob) = (log(&alice).await, log(&bob).await);
    assert_eq!(
        told(&of_alice),
        [
            in_log("keybox_registered", ""),
            in_log("resource_key_given", "NOSUCH"),
            in_log("resource_key_given", &bob.device),
            in_log("resource_key_asked", &bob.device),
            in_log("resource_key_refused", &bob.device),
        ]
    );
    assert_eq!(
        told(&of_bob),
        [
            in_log("keybox_registered", ""),
            in_log("resource_key_given", &alice.device),
            in_log("resource_key_asked", &alice.device),
            in_log("resource_key_refused", &alice.device),
            in_log("keybox_renamed", ""),
        ],
        "a device that is no KeyBox leaves no trace"
    );
    let directions = |entries: &[Map<String, Value>]| -> Vec<Value> {
        entries.iter().filter_map(|entry| entry.get("direction").cloned()).collect()
    };
    assert_eq!(directions(&of_alice), ["sent", "sent", "received", "sent"]);
    assert_eq!(directions(&of_bob), ["received", "sent", "received"]);
    assert_eq!(of_alice[1]["undelivered"], true);
    assert_eq!(of_bob[0]["address"], "127.0.0.1");
    assert_eq!(of_bob[3]["reference"], "m.unavailable");
    assert_eq!(of_bob[4]["name"], "at home");
}

#[tokio::test]
async fn what_was_refused_or_repeated_leaves_no_trace() {
    let cluster = TestCluster::start().await;
    let (alice, eve) = (keybox(&cluster, "alice").await, keybox(&cluster, "eve").await);
    let room = keybox_room(&alice, "shared").await;
    give(&eve, &room, &[(&alice, &alice.device)]).await.refused(403, "COM.TRUSTNER.KEYBOX_NOT_A_MEMBER");
    assert_eq!((log(&alice).await.len(), log(&eve).await.len()), (1, 1));

    let content = crate::keybox_permission::resource_key(&alice, &room);
    let path = format!("/sendToDevice/com.trustner.keybox.resource_key/{}", transaction_id());
    let body = json!({ "messages": { &alice.id: { &alice.device: content } } });
    let calls = (0..6).map(|replica| {
        let (alice, path, body) = (alice.at(replica), path.clone(), body.clone());
        async move { alice.put(&path, body).await.ok() }
    });
    futures_util::future::join_all(calls).await;
    assert_eq!(log(&alice).await.len(), 3, "given once, sent and received");
}

#[tokio::test]
async fn a_revoked_keybox_is_in_the_log_with_who_revoked_it() {
    let cluster = TestCluster::start().await;
    let alice = keybox(&cluster, "alice").await;
    let second = cluster.login("alice").await;
    crate::keybox_permission::publish_keybox(&second).await;
    second.post("/logout", json!({})).await.ok();
    let entries = log(&alice).await;
    let last = entries.last().expect("an entry");
    assert_eq!((&last["type"], &last["keybox_id"]), (&json!("keybox_revoked"), &json!(second.device)));
    assert_eq!((&last["by"], &last["address"]), (&json!(second.device), &json!("127.0.0.1")));
}

#[tokio::test]
async fn a_log_is_read_by_room_keybox_and_time_and_exported() {
    let cluster = TestCluster::start().await;
    let (alice, bob) = (keybox(&cluster, "alice").await, keybox(&cluster, "bob").await);
    let (one, two) = (keybox_room(&alice, "shared").await, keybox_room(&alice, "shared").await);
    for room in [&one, &two] {
        bob.join(room).await;
        give(&alice, room, &[(&bob, &bob.device)]).await.ok();
    }
    let count = |query: String| {
        let alice = alice.clone();
        async move {
            let page = alice.get(&format!("{BASE}/log?{query}")).await.ok();
            page["entries"].as_array().expect("entries").len()
        }
    };
    assert_eq!(count(format!("room_id={}", encode(&one))).await, 1);
    assert_eq!(count(format!("keybox_id={}", encode(&bob.device))).await, 2);
    assert_eq!(count("since=9999999999999".to_owned()).await, 0);
    assert_eq!(count("until=9999999999999&limit=2".to_owned()).await, 2);
    for bad in ["limit=many", "after=-1", "since=today"] {
        alice.get(&format!("{BASE}/log?{bad}")).await.refused(400, "M_INVALID_PARAM");
    }
    let entries = log(&alice).await;
    let text = alice.get(&format!("{BASE}/log/export")).await;
    assert_eq!(text.status, 200);
    let lines: Vec<_> = text.text.lines().collect();
    assert_eq!(lines.len(), entries.len());
    for (line, entry) in lines.iter().zip(&entries) {
        // Each line is what the hash is made of.
        let hash = openssl::sha::sha256(line.as_bytes());
        assert_eq!(from_base64(&entry_hash(entry).expect("canonical")).expect("base64"), hash);
    }
}

#[tokio::test]
async fn many_writers_make_one_chain() {
    let cluster = TestCluster::start().await;
    let (alice, bob) = (keybox(&cluster, "alice").await, keybox(&cluster, "bob").await);
    let room = &keybox_room(&alice, "shared").await;
    bob.join(room).await;
    let (to_bob, to_alice) = ([(&bob, bob.device.as_str())], [(&alice, alice.device.as_str())]);
    let calls = (0..40).map(|number| {
        let (sender, recipients) = if number % 2 == 0 { (&alice, &to_bob) } else { (&bob, &to_alice) };
        let sender = sender.at(number / 2);
        async move { give(&sender, room, recipients).await.ok() }
    });
    futures_util::future::join_all(calls).await;
    for user in [&alice, &bob] {
        assert_eq!(log(user).await.len(), 41, "each message is in both logs, once");
    }
}

#[tokio::test]
async fn the_log_goes_with_the_account() {
    let cluster = TestCluster::start().await;
    let alice = keybox(&cluster, "alice").await;
    let auth = json!({
        "type": "m.login.password",
        "identifier": { "type": "m.id.user", "user": "alice" },
        "password": keystead_tests::cluster::PASSWORD,
    });
    assert!(cluster.dump_database().await.contains("keybox_registered"));
    let request = Request::new(hyper::Method::POST, "/_matrix/client/v3/account/deactivate");
    alice.send(request.json(&json!({ "auth": auth }))).await.ok();
    if !keystead_tests::cluster::on_sqlite() {
        // SQLite's file keeps deleted rows until their pages are used again.
        assert!(!cluster.dump_database().await.contains("keybox_registered"));
    }
}
