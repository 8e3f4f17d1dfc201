//! What must stay secret stands in no log line, not even at the level that tells everything.

use hyper::Method;
use keystead_tests::{
    TestCluster, User,
    cluster::{PASSWORD, SHARED_SECRET, on_sqlite},
    http::Request,
    keys::{SigningKey, device_keys, one_time_keys},
    user::transaction_id,
};
use serde_json::{Value, json};

use crate::{
    keybox_passphrases::{key, path, retrieve},
    keybox_permission::keybox,
};

const PASSPHRASE: &str = "passphrase-that-nobody-may-read";
const NEW_PASSWORD: &str = "Another-Secret-9-word!";
const MESSAGE: &str = "what-a-member-wrote-in-a-room";
const TO_DEVICE: &str = "what-one-device-told-another";
const ACCOUNT_DATA: &str = "what-an-account-keeps-for-itself";

async fn log_in(cluster: &TestCluster, password: &str) -> Value {
    let body = json!({
        "type": "m.login.password", "identifier": { "type": "m.id.user", "user": "alice" }, "password": password,
        "refresh_token": true,
    });
    cluster.send(Request::new(Method::POST, "/_matrix/client/v3/login").json(&body)).await.ok()
}

fn text(answer: &Value, name: &str) -> String {
    answer[name].as_str().unwrap_or_else(|| panic!("no {name} in {answer}")).to_owned()
}

/// Does all that secrets are used for, and returns these.
async fn use_secrets(cluster: &std::sync::Arc<TestCluster>) -> Vec<(&'static str, String)> {
    let (alice, bob) = (keybox(cluster, "alice").await, keybox(cluster, "bob").await);
    let mut secrets = vec![("an access token", alice.token.clone()), ("an access token", bob.token.clone())];
    // A wrong password, the right one, a session that is refreshed.
    retrieve(cluster, "alice", "wrong-password-typed-by-mistake", &alice.device).await;
    let session = log_in(cluster, PASSWORD).await;
    let refresh = json!({ "refresh_token": session["refresh_token"] });
    let renewed =
        cluster.send(Request::new(Method::POST, "/_matrix/client/v3/refresh").json(&refresh)).await.ok();
    for answer in [&session, &renewed] {
        secrets.push(("an access token", text(answer, "access_token")));
        secrets.push(("a refresh token", text(answer, "refresh_token")));
    }
    // A passphrase of a KeyBox, kept and given back.
    alice.put(&path(&alice), json!({ "passphrase": PASSPHRASE })).await.ok();
    retrieve(cluster, "alice", PASSWORD, &alice.device).await.ok();
    // Keys, rooms, messages.
    let other = cluster.login("bob").await;
    let signing = SigningKey::named(&other.device);
    let keys = json!({ "device_keys": device_keys(&other, &signing), "one_time_keys": one_time_keys(&other, &signing, 0, 2) });
    other.post("/keys/upload", keys).await.ok();
    let room = alice.create_public_room().await;
    bob.join(&room).await;
    alice.send_text(&room, MESSAGE).await;
    bob.get(&format!("/rooms/{}/messages?dir=b", keystead_tests::http::encode(&room))).await.ok();
    let note = format!("/sendToDevice/org.example.note/{}", transaction_id());
    alice.put(&note, json!({ "messages": { &bob.id: { &bob.device: { "text": TO_DEVICE } } } })).await.ok();
    let data = format!("/user/{}/account_data/org.example.note", keystead_tests::http::encode(&alice.id));
    alice.put(&data, json!({ "text": ACCOUNT_DATA })).await.ok();
    bob.sync_once(None).await;
    // What is malformed is not repeated in the refusal's log line either.
    malformed(cluster, &alice).await;
    let change = json!({
        "new_password": NEW_PASSWORD,
        "auth": { "type": "m.login.password", "identifier": { "type": "m.id.user", "user": "alice" }, "password": PASSWORD },
    });
    alice.post("/account/password", change).await;
    log_in(cluster, NEW_PASSWORD).await;
    secrets
}

async fn malformed(cluster: &TestCluster, alice: &User) {
    let body = format!("{{\"type\": \"m.login.password\", \"password\": \"{PASSWORD}\", \"identifier\": 7");
    let login =
        Request::new(Method::POST, "/_matrix/client/v3/login").bytes("application/json", body.into_bytes());
    cluster.send(login).await;
    let query = Request::new(Method::GET, format!("/_matrix/client/v3/sync?access_token={}", alice.token));
    cluster.send(query).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_secret_is_logged_even_at_the_level_that_tells_everything() {
    let master = key("one", 77);
    let cluster = TestCluster::start_with(&[
        ("KEYSTEAD_KEYBOX_MASTER_KEY", &master),
        ("KEYSTEAD_LOG_FILTER", "trace,sqlx=trace,sea_orm_migration=trace,ruma_state_res=trace"),
    ])
    .await;
    let mut secrets = use_secrets(&cluster).await;
    let (_, master) = master.split_once(':').expect("a name");
    secrets.extend([
        ("a password", PASSWORD.to_owned()),
        ("a new password", NEW_PASSWORD.to_owned()),
        ("a wrong password", "wrong-password-typed-by-mistake".to_owned()),
        ("the shared secret", SHARED_SECRET.to_owned()),
        ("the master key", master.to_owned()),
        ("a passphrase", PASSPHRASE.to_owned()),
        ("a message", MESSAGE.to_owned()),
        ("a message to a device", TO_DEVICE.to_owned()),
        ("account data", ACCOUNT_DATA.to_owned()),
        ("a hash of a password", "$2b$".to_owned()),
    ]);
    if !on_sqlite() {
        secrets.push(("the database's password", "postgres:postgres@".to_owned()));
    }
    for replica in 0..cluster.size() {
        let log = cluster.log(replica);
        assert!(
            log.contains("DEBUG") && log.contains("/_matrix/client/v3/login"),
            "the log tells what happens"
        );
        for (what, secret) in &secrets {
            let line = log.lines().find(|line| line.contains(secret.as_str()));
            assert!(line.is_none(), "{what} is in the log: {line:?}");
        }
    }
}
