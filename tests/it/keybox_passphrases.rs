//! Passphrases that the server keeps: sealed, and given out to whoever has the password.

use keystead_keybox::encoding::base64;
use keystead_tests::{
    TestCluster, User,
    cluster::PASSWORD,
    http::{Request, Response, encode},
    process,
};
use serde_json::{Value, json};

use crate::keybox_permission::keybox;

const BASE: &str = "/_matrix/client/unstable/com.trustner.keybox/v1";
const PASSPHRASE: &str = "correct horse battery staple";

fn key(name: &str, byte: u8) -> String {
    format!("{name}:{}", base64(&[byte; 32]))
}

fn path(user: &User) -> String {
    format!("{BASE}/keyboxes/{}/passphrase", encode(&user.device))
}

/// Logs in for the passphrase of that KeyBox, without a session.
async fn retrieve(cluster: &TestCluster, user: &str, password: &str, keybox_id: &str) -> Response {
    let body = json!({
        "type": "m.login.password", "identifier": { "type": "m.id.user", "user": user }, "password": password,
        "device_id": keybox_id, "com.trustner.keybox.passphrase": true, "com.trustner.keybox.inhibit_login": true,
    });
    cluster.send(Request::new(hyper::Method::POST, "/_matrix/client/v3/login").json(&body)).await
}

fn passphrases(answer: &Value) -> &Value {
    &answer["com.trustner.keybox.passphrases"]
}

async fn log_types(user: &User) -> Vec<String> {
    let page = user.get(&format!("{BASE}/log")).await.ok();
    let entries = page["entries"].as_array().expect("entries").clone();
    entries.iter().map(|entry| entry["type"].as_str().expect("a type").to_owned()).collect()
}

#[tokio::test]
async fn a_passphrase_comes_back_with_the_password_only() {
    let cluster = TestCluster::start_with(&[("KEYSTEAD_KEYBOX_MASTER_KEY", &key("one", 1))]).await;
    let (alice, bob) = (keybox(&cluster, "alice").await, keybox(&cluster, "bob").await);
    let features = alice.get("/_matrix/client/versions").await.ok();
    assert_eq!(features["unstable_features"]["com.trustner.keybox.passphrases"], true);
    retrieve(&cluster, "alice", PASSWORD, &alice.device).await.refused(404, "M_NOT_FOUND");
    alice.put(&path(&alice), json!({ "passphrase": PASSPHRASE })).await.ok();
    for bad in [json!({ "passphrase": "" }), json!({ "passphrase": "x".repeat(513) })] {
        alice.put(&path(&alice), bad).await.refused(400, "M_INVALID_PARAM");
    }

    let answer = retrieve(&cluster, "alice", PASSWORD, &alice.device).await.ok();
    assert_eq!(*passphrases(&answer), json!([PASSPHRASE]));
    assert!(answer.get("access_token").is_none(), "{answer}");
    alice.get("/account/whoami").await.ok();
    retrieve(&cluster, "alice", "wrong", &alice.device).await.refused(403, "M_FORBIDDEN");
    retrieve(&cluster, "bob", PASSWORD, &alice.device).await.refused(404, "M_NOT_FOUND");
    // No other session stores, destroys or reads it, not even another one of the same user; none reads it at all.
    let second = cluster.login("alice").await;
    for other in [&bob, &second] {
        other.put(&path(&alice), json!({ "passphrase": "mine now" })).await.refused(403, "M_FORBIDDEN");
        other.delete(&path(&alice)).await.refused(403, "M_FORBIDDEN");
    }
    alice.get(&path(&alice)).await.refused(405, "M_UNRECOGNIZED");
    // An ordinary login brings none, one with the same device brings it with the session.
    let body = json!({
        "type": "m.login.password", "identifier": { "type": "m.id.user", "user": "alice" }, "password": PASSWORD,
        "device_id": alice.device,
    });
    let login = |body: Value| {
        let request = Request::new(hyper::Method::POST, "/_matrix/client/v3/login").json(&body);
        let cluster = &cluster;
        async move { cluster.send(request).await.ok() }
    };
    assert!(passphrases(&login(body.clone()).await).is_null());
    let mut wanted = body;
    wanted["com.trustner.keybox.passphrase"] = json!(true);
    let answer = login(wanted).await;
    assert_eq!(*passphrases(&answer), json!([PASSPHRASE]));
    let alice = User::from_login(&cluster, &answer);
    assert_eq!(
        log_types(&alice).await,
        ["keybox_registered", "passphrase_stored", "passphrase_retrieved", "passphrase_retrieved"]
    );
    assert!(!cluster.dump_database().await.contains(PASSPHRASE), "at rest it is sealed");
}

#[tokio::test]
async fn while_it_changes_both_are_kept_and_then_the_old_one_is_gone() {
    let cluster = TestCluster::start_with(&[("KEYSTEAD_KEYBOX_MASTER_KEY", &key("one", 1))]).await;
    let alice = keybox(&cluster, "alice").await;
    alice.put(&path(&alice), json!({ "passphrase": "first" })).await.ok();
    alice.put(&path(&alice), json!({ "passphrase": "second", "keep_previous": true })).await.ok();
    let answer = retrieve(&cluster, "alice", PASSWORD, &alice.device).await.ok();
    assert_eq!(*passphrases(&answer), json!(["second", "first"]));
    alice.put(&path(&alice), json!({ "passphrase": "second" })).await.ok();
    let answer = retrieve(&cluster, "alice", PASSWORD, &alice.device).await.ok();
    assert_eq!(*passphrases(&answer), json!(["second"]));
    alice.delete(&path(&alice)).await.ok();
    alice.delete(&path(&alice)).await.ok();
    retrieve(&cluster, "alice", PASSWORD, &alice.device).await.refused(404, "M_NOT_FOUND");
    let destroyed = log_types(&alice).await.into_iter().filter(|kind| kind == "passphrase_destroyed").count();
    assert_eq!(destroyed, 1);
}

#[tokio::test]
async fn a_revoked_keybox_takes_its_passphrase_with_it() {
    let cluster = TestCluster::start_with(&[("KEYSTEAD_KEYBOX_MASTER_KEY", &key("one", 1))]).await;
    let alice = keybox(&cluster, "alice").await;
    let lost = cluster.login("alice").await;
    crate::keybox_permission::publish_keybox(&lost).await;
    lost.put(&path(&lost), json!({ "passphrase": PASSPHRASE })).await.ok();
    lost.post("/logout", json!({})).await.ok();
    retrieve(&cluster, "alice", PASSWORD, &lost.device).await.refused(404, "M_NOT_FOUND");
    let types = log_types(&alice).await;
    assert!(types.ends_with(&["passphrase_destroyed".to_owned(), "keybox_revoked".to_owned()]), "{types:?}");
}

#[tokio::test]
async fn a_server_without_a_master_key_keeps_none() {
    let cluster = TestCluster::start().await;
    let alice = keybox(&cluster, "alice").await;
    let refused = alice.put(&path(&alice), json!({ "passphrase": PASSPHRASE })).await;
    refused.refused(403, "COM.TRUSTNER.KEYBOX_PASSPHRASES_NOT_KEPT");
    let features = alice.get("/_matrix/client/versions").await.ok();
    assert!(features["unstable_features"].get("com.trustner.keybox.passphrases").is_none());
}

#[tokio::test]
async fn a_master_key_is_rotated() {
    let both = format!("{},{}", key("two", 2), key("one", 1));
    let cluster = TestCluster::start_with(&[("KEYSTEAD_KEYBOX_MASTER_KEY", &both)]).await;
    let alice = keybox(&cluster, "alice").await;
    alice.put(&path(&alice), json!({ "passphrase": PASSPHRASE })).await.ok();
    let admin = |keys: String| {
        let (url, data) = (cluster.database_url().to_owned(), cluster.folder().join("admin"));
        tokio::task::spawn_blocking(move || {
            process::command("admin")
                .arg("rotate-master-key")
                .env("KEYSTEAD_DATABASE_URL", url)
                .env("KEYSTEAD_SERVER_NAME", "keystead.test")
                .env("KEYSTEAD_DATA_DIR", data)
                .env("KEYSTEAD_KEYBOX_MASTER_KEY", keys)
                .output()
                .expect("it ran")
        })
    };
    assert!(cluster.dump_database().await.contains("two:"));
    let turned = format!("{},{}", key("one", 1), key("two", 2));
    let done = admin(turned).await.expect("no panic");
    let out = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(
        done.status.success() && out.contains("1 passphrase(s)"),
        "{out}{}",
        String::from_utf8_lossy(&done.stderr)
    );
    // The server, which has both keys, opens it still; without its key nobody does.
    let answer = retrieve(&cluster, "alice", PASSWORD, &alice.device).await.ok();
    assert_eq!(*passphrases(&answer), json!([PASSPHRASE]));
    let done = admin(key("three", 3)).await.expect("no panic");
    let error = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(!done.status.success() && error.contains("not configured any more"), "{error}");
}
