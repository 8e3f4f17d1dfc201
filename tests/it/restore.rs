//! The drill of a restore: a backup is made, life goes on, everything is lost, and the backup comes back.

use keystead_tests::{
    TestCluster, User,
    cluster::on_sqlite,
    http::{Request, encode},
    keys::{SigningKey, device_keys, fallback_key, one_time_keys},
    sync::{events, of_type, timeline},
    user::transaction_id,
};
use serde_json::{Value, json};

use crate::media::{bytes, download, upload, uploaded};

fn claim(user: &User) -> Value {
    json!({ "one_time_keys": { &user.id: { &user.device: "signed_curve25519" } } })
}

/// The name of the key that a claim gave.
fn claimed(answer: &Value, user: &User) -> String {
    let keys = answer["one_time_keys"][&user.id][&user.device].as_object().expect("a key");
    keys.keys().next().expect("one").clone()
}

async fn send_to_device(from: &User, to: &User, text: &str) {
    let path = format!("/sendToDevice/org.example.note/{}", transaction_id());
    from.put(&path, json!({ "messages": { &to.id: { &to.device: { "text": text } } } })).await.ok();
}

/// The texts of the messages to the device in an answer.
fn notes(answer: &Value) -> Vec<&str> {
    events(&answer["to_device"]).iter().filter_map(|event| event["content"]["text"].as_str()).collect()
}

fn token(answer: &Value) -> String {
    answer["next_batch"].as_str().expect("a token").to_owned()
}

fn bodies<'a>(answer: &'a Value, room: &str) -> Vec<&'a str> {
    timeline(answer, room).iter().filter_map(|event| event["content"]["body"].as_str()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_misses_anything_after_a_restore_and_no_key_is_given_out_twice() {
    let cluster = TestCluster::start().await;
    let (alice, bob) = (cluster.user("alice").await, cluster.user("bob").await);
    let away = cluster.login("bob").await;
    let key = SigningKey::named(&bob.device);
    let keys = json!({
        "device_keys": device_keys(&bob, &key), "one_time_keys": one_time_keys(&bob, &key, 0, 3),
        "fallback_keys": fallback_key(&bob, &key),
    });
    bob.post("/keys/upload", keys).await.ok();
    let room = alice.create_public_room().await;
    bob.join(&room).await;
    alice.set_state(&room, "m.room.topic", "", json!({ "topic": "kept" })).await;
    let file = uploaded(&alice, upload("kept.bin", "application/octet-stream", bytes(9_000))).await;
    alice.send_text(&room, "kept").await;
    // Bob's one device has read up to here; the other has not yet when the backup is made.
    let since_away = token(&away.sync_once(None).await);
    send_to_device(&alice, &bob, "before").await;
    send_to_device(&alice, &away, "waits").await;
    cluster.backup().await;

    // What the backup does not know.
    let first = claimed(&alice.post("/keys/claim", claim(&bob)).await.ok(), &bob);
    alice.set_state(&room, "m.room.topic", "", json!({ "topic": "lost" })).await;
    alice.send_text(&room, "lost").await;
    let lost_login = cluster.login("alice").await;
    let answer = bob.sync_once(None).await;
    assert_eq!(notes(&answer), ["before"]);
    let since_bob = token(&answer);

    for replica in 0..cluster.size() {
        cluster.stop(replica).await;
    }
    cluster.restore().await;
    let output = cluster.run(&["admin", "after-restore"], &[]).await;
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("3 one-time key(s) dropped"), "{output:?}");
    for replica in 0..cluster.size() {
        cluster.restart(replica).await;
    }

    // As many events as were lost, so that their positions would be handed out again if nothing prevented that.
    for text in ["new 1", "new 2"] {
        alice.send_text(&room, text).await;
    }
    send_to_device(&alice, &bob, "after").await;
    let answer = bob.sync_once(Some(&since_bob)).await;
    assert_eq!(bodies(&answer, &room), ["kept", "new 1", "new 2"], "{answer:#}");
    let joined = &answer["rooms"]["join"][&room];
    let state = [events(&joined["state"]), timeline(&answer, &room)].concat();
    let topic = of_type(&state, "m.room.topic").expect("a topic");
    assert_eq!(topic["content"]["topic"], "kept", "the client learns that its topic is gone");
    assert_eq!(notes(&answer), ["after"], "what it had comes no second time, what is new comes");
    assert_eq!(answer["device_one_time_keys_count"]["signed_curve25519"], 0);
    assert_eq!(answer["device_unused_fallback_key_types"], json!([]));
    let changed = answer["device_lists"]["changed"].as_array().expect("a list");
    assert!(changed.contains(&json!(alice.id)) && changed.contains(&json!(bob.id)), "{changed:?}");
    let changes = format!("/keys/changes?from={0}&to={0}", encode(&since_bob));
    let changed = bob.get(&changes).await.ok()["changed"].clone();
    assert!(changed.as_array().expect("a list").contains(&json!(alice.id)), "{changed:?}");
    // From there on nothing is said twice.
    let answer = bob.sync_once(Some(&token(&answer))).await;
    assert!(notes(&answer).is_empty() && answer["rooms"]["join"].get(&room).is_none(), "{answer:#}");

    // Who had read nothing of what is lost goes on as if nothing had been.
    let answer = away.sync_once(Some(&since_away)).await;
    assert_eq!(bodies(&answer, &room), ["new 1", "new 2"]);
    assert_eq!(notes(&answer), ["waits"]);

    let second = claimed(&alice.post("/keys/claim", claim(&bob)).await.ok(), &bob);
    assert_ne!(first, second);
    assert_eq!(second, "signed_curve25519:AAAFB", "only the fallback key is left");
    assert_eq!(download(&bob, &file).await.bytes, bytes(9_000));
    // A session that the backup does not know keeps its keys and logs in again.
    let refused = lost_login.get("/account/whoami").await.refused(401, "M_UNKNOWN_TOKEN");
    assert_eq!(refused["soft_logout"], true);
}

#[tokio::test(flavor = "multi_thread")]
async fn all_sessions_can_be_ended_without_costing_anybody_the_keys() {
    let cluster = TestCluster::start().await;
    let alice = cluster.user("alice").await;
    if !on_sqlite() {
        let output = cluster.run(&["admin", "after-restore"], &[]).await;
        assert_eq!(output.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&output.stderr).contains("stop all replicas first"), "{output:?}");
    }
    for replica in 0..cluster.size() {
        cluster.stop(replica).await;
    }
    let output = cluster.run(&["admin", "after-restore", "--end-sessions"], &[]).await;
    assert!(String::from_utf8_lossy(&output.stdout).contains("1 session(s) ended"), "{output:?}");
    for replica in 0..cluster.size() {
        cluster.restart(replica).await;
    }
    let refused = alice.get("/account/whoami").await.refused(401, "M_UNKNOWN_TOKEN");
    assert_eq!(refused["soft_logout"], true);
    let body = json!({
        "type": "m.login.password", "identifier": { "type": "m.id.user", "user": "alice" },
        "password": keystead_tests::cluster::PASSWORD, "device_id": alice.device,
    });
    let login = Request::new(hyper::Method::POST, "/_matrix/client/v3/login").json(&body);
    let again = User::from_login(&cluster, &cluster.send(login).await.ok());
    again.get("/account/whoami").await.ok();
}
