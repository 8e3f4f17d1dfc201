//! Passphrases that the server keeps: sealed, and given out to whoever has the password.

use keystead_keybox::encoding::base64;
use keystead_tests::{
    TestCluster, User,
    cluster::PASSWORD,
    http::{Request, Response, encode},
    process,
};
use serde_json::{Value, json};

use crate::{keybox::Person, keybox_permission::keybox};

const BASE: &str = "/_matrix/client/unstable/com.trustner.keybox/v1";
const PASSPHRASE: &str = "correct horse battery staple";

pub(crate) fn key(name: &str, byte: u8) -> String {
    format!("{name}:{}", base64(&[byte; 32]))
}

pub(crate) fn path(user: &User) -> String {
    format!("{BASE}/keyboxes/{}/passphrase", encode(&user.device))
}

/// Logs in for the passphrase of that KeyBox, without a session.
pub(crate) async fn retrieve(cluster: &TestCluster, user: &str, password: &str, keybox_id: &str) -> Response {
    let body = json!({
        "type": "m.login.password", "identifier": { "type": "m.id.user", "user": user }, "password": password,
        "device_id": keybox_id, "com.trustner.keybox.passphrase": true, "com.trustner.keybox.inhibit_login": true,
    });
    cluster.send(Request::new(hyper::Method::POST, "/_matrix/client/v3/login").json(&body)).await
}

pub(crate) fn passphrases(answer: &Value) -> &Value {
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
    // Twice: the answer may have been lost, and the first one must not be for that.
    for _ in 0..2 {
        let answer = retrieve(&cluster, "alice", PASSWORD, &alice.device).await.ok();
        assert_eq!(*passphrases(&answer), json!(["second", "first"]));
        alice.put(&path(&alice), json!({ "passphrase": "second", "keep_previous": true })).await.ok();
    }
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

/// Runs `keystead admin rotate-master-key` with these master keys: whether it said that all is done, and what it printed.
async fn rotate(cluster: &TestCluster, keys: &[&str]) -> (Option<i32>, String) {
    let mut command = process::command("admin");
    command
        .arg("rotate-master-key")
        .env("KEYSTEAD_DATABASE_URL", cluster.database_url())
        .env("KEYSTEAD_SERVER_NAME", "keystead.test")
        .env("KEYSTEAD_DATA_DIR", cluster.folder().join("admin"))
        .env("KEYSTEAD_KEYBOX_MASTER_KEY", keys.join(","));
    let done =
        tokio::task::spawn_blocking(move || command.output()).await.expect("no panic").expect("it ran");
    let text = [done.stdout, done.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    (done.status.code(), text)
}

#[tokio::test]
async fn a_master_key_is_rotated() {
    let (one, two) = (&*key("one", 1), &*key("two", 2));
    let both = format!("{two},{one}");
    let cluster = TestCluster::start_with(&[("KEYSTEAD_KEYBOX_MASTER_KEY", &both)]).await;
    let alice = keybox(&cluster, "alice").await;
    alice.put(&path(&alice), json!({ "passphrase": PASSPHRASE })).await.ok();
    assert!(cluster.dump_database().await.contains("two:"));
    for counts in ["of 1 KeyBox(es) sealed anew, of 0 already", "of 0 KeyBox(es) sealed anew, of 1 already"] {
        let (status, out) = rotate(&cluster, &[one, two]).await;
        assert!(status == Some(0) && out.contains(counts) && out.contains("of 0 failed"), "{status:?} {out}");
        assert!(out.contains("not needed any more") && out.contains("every replica"), "{out}");
    }
    // The server, which has both keys, opens it still; without its key nobody does.
    let answer = retrieve(&cluster, "alice", PASSWORD, &alice.device).await.ok();
    assert_eq!(*passphrases(&answer), json!([PASSPHRASE]));
}

#[tokio::test]
async fn a_passphrase_that_cannot_be_opened_holds_up_no_other() {
    let (one, two, three) = (&*key("one", 1), &*key("two", 2), &*key("three", 3));
    let all = [one, two, three].join(",");
    let cluster = TestCluster::start_with(&[("KEYSTEAD_KEYBOX_MASTER_KEY", &all)]).await;
    let alice = keybox(&cluster, "alice").await;
    alice.put(&path(&alice), json!({ "passphrase": PASSPHRASE })).await.ok();
    rotate(&cluster, &[two, one]).await;
    let bob = keybox(&cluster, "bob").await;
    bob.put(&path(&bob), json!({ "passphrase": PASSPHRASE })).await.ok();

    // Alice's, which comes first, is under a key that is not given.
    let (status, out) = rotate(&cluster, &[three, one]).await;
    assert_eq!(status, Some(1), "{out}");
    assert!(out.contains("of 1 KeyBox(es) sealed anew, of 0 already"), "{out}");
    assert!(out.contains("of 1 failed") && !out.contains("not needed any more"), "{out}");
    assert!(out.contains(&format!("KeyBox {} of {}", alice.device, alice.id)), "{out}");
    assert!(out.contains("not configured any more") && out.contains("run this command again"), "{out}");
    let (status, out) = rotate(&cluster, &[three, two]).await;
    assert!(status == Some(0) && out.contains("of 1 KeyBox(es) sealed anew, of 1 already"), "{out}");
    for user in [&alice, &bob] {
        let answer = retrieve(&cluster, user.id.as_str(), PASSWORD, &user.device).await.ok();
        assert_eq!(*passphrases(&answer), json!([PASSPHRASE]));
    }
}

/// Runs `keybox` without a passphrase: status, what it printed, what it complained of.
pub(crate) async fn keybox_in_normal_mode(
    person: &Person,
    arguments: &[&str],
    env: &[(&str, &str)],
) -> (i32, Value, String) {
    let mut command = person.command(arguments);
    command.envs(env.iter().copied()).stdin(std::process::Stdio::null());
    let output =
        tokio::task::spawn_blocking(move || command.output()).await.expect("no panic").expect("it ran");
    let out = String::from_utf8_lossy(&output.stdout);
    let value = out.lines().next().map(|line| serde_json::from_str(line).expect("JSON")).unwrap_or_default();
    (output.status.code().unwrap_or(-1), value, String::from_utf8_lossy(&output.stderr).into_owned())
}

#[tokio::test]
async fn a_keybox_in_normal_mode_opens_with_the_password_and_changes_over_and_back() {
    let cluster = TestCluster::start_with(&[("KEYSTEAD_KEYBOX_MASTER_KEY", &key("one", 1))]).await;
    let alice = Person::new(&cluster, "alice", "alice-home", 0);
    let run = async |arguments: &[&str], env: &[(&str, &str)]| {
        let (status, value, error) = keybox_in_normal_mode(&alice, arguments, env).await;
        assert_eq!(status, 0, "{arguments:?}: {error}");
        value
    };
    // Normal mode is what there is if nothing is said, and the homeserver offers it.
    let made = run(&["register"], &[]).await;
    assert_eq!(made["passphrase_mode"], "normal", "{made}");
    let keybox_id = made["keybox_id"].as_str().expect("an id").to_owned();
    let file = |id: &str| {
        let folder = std::fs::read_dir(&alice.home).expect("the home").next().expect("a user").expect("one");
        std::fs::read_to_string(folder.path().join(id).join("keys.pem")).expect("the keys")
    };
    assert!(file(&keybox_id).starts_with("Passphrase: kept by the homeserver\n"));
    assert_eq!(run(&["passphrase"], &[]).await["mode"], "normal");
    let (status, _, error) =
        keybox_in_normal_mode(&alice, &["keyboxes"], &[("KEYBOX_PASSWORD", "wrong")]).await;
    assert!(status == 3 && error.contains("M_FORBIDDEN"), "{status} {error}");
    let listed = run(&["keyboxes"], &[]).await;
    assert_eq!(listed["passphrase_kept"], true, "{listed}");

    // Another one, that nobody has seen either.
    let before = retrieve(&cluster, "alice", PASSWORD, &keybox_id).await.ok();
    let changed = run(&["passphrase", "change"], &[]).await;
    assert_eq!((&changed["mode"], &changed["settled"]), (&json!("normal"), &json!(true)));
    let after = retrieve(&cluster, "alice", PASSWORD, &keybox_id).await.ok();
    assert_eq!(passphrases(&after).as_array().map(Vec::len), Some(1), "{after}");
    assert_ne!(passphrases(&before), passphrases(&after));

    // Over to advanced mode: the homeserver has nothing any more, and the password opens nothing.
    let own = [("KEYBOX_NEW_PASSPHRASE", "a passphrase of my own")];
    run(&["passphrase", "mode", "advanced"], &own).await;
    retrieve(&cluster, "alice", PASSWORD, &keybox_id).await.refused(404, "M_NOT_FOUND");
    assert!(file(&keybox_id).starts_with("-----BEGIN"));
    let (status, ..) = keybox_in_normal_mode(&alice, &["keyboxes"], &[("KEYBOX_PASSPHRASE", "wrong")]).await;
    assert_eq!(status, 3);
    let own = [("KEYBOX_PASSPHRASE", "a passphrase of my own")];
    assert_eq!(run(&["keyboxes"], &own).await["passphrase_kept"], false);
    run(&["passphrase", "mode", "normal"], &own).await;
    assert_eq!(run(&["keyboxes"], &[]).await["passphrase_kept"], true);

    // A revoked KeyBox can never be opened again.
    let body = json!({ "type": "m.login.password", "identifier": { "type": "m.id.user", "user": "alice" }, "password": PASSWORD });
    let session = User::from_login(
        &cluster,
        &cluster.send(Request::new(hyper::Method::POST, "/_matrix/client/v3/login").json(&body)).await.ok(),
    );
    session.post("/delete_devices", json!({ "devices": [keybox_id], "auth": body })).await.ok();
    let (status, _, error) = keybox_in_normal_mode(&alice, &["keyboxes"], &[]).await;
    assert!(status == 3 && error.contains("never be opened again"), "{status} {error}");
}

#[tokio::test]
async fn where_no_passphrases_are_kept_normal_mode_makes_no_account() {
    let cluster = TestCluster::start().await;
    let alice = Person::new(&cluster, "alice", "alice-home", 0);
    let (status, _, error) = keybox_in_normal_mode(&alice, &["register", "--mode", "normal"], &[]).await;
    assert!(status == 4 && error.contains("keeps no passphrases"), "{status} {error}");
    let given = [("KEYBOX_PASSPHRASE", "mine")];
    let (status, ..) = keybox_in_normal_mode(&alice, &["register", "--mode", "normal"], &given).await;
    assert_eq!(status, 2, "a passphrase that would not be used");
    let (status, value, error) = keybox_in_normal_mode(&alice, &["register"], &given).await;
    assert_eq!(
        (status, &value["passphrase_mode"]),
        (0, &json!("advanced")),
        "the name is free still: {error}"
    );
}
