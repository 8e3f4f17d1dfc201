//! The list of a user's KeyBoxes, and what remains of one that is revoked: nothing.

use std::sync::Arc;

use keystead_keybox::suite;
use keystead_tests::{
    TestCluster, User,
    cluster::PASSWORD,
    http::{Request, encode},
    keys::{SigningKey, cross_signing_key},
    sync::{events, of_type},
};
use serde_json::{Value, json};

use crate::{
    keybox::{Person, field},
    keybox_passphrases::{key, path as passphrase_path, retrieve},
    keybox_permission::{give, keybox, keybox_room, publish_keybox},
};

const KEYBOXES: &str = "/_matrix/client/unstable/com.trustner.keybox/v1/keyboxes";

fn password(user: &str) -> Value {
    json!({ "type": "m.login.password", "identifier": { "type": "m.id.user", "user": user }, "password": PASSWORD })
}

async fn second_keybox(cluster: &Arc<TestCluster>, name: &str) -> User {
    let second = cluster.login(name).await;
    publish_keybox(&second).await;
    second
}

async fn keyboxes(user: &User) -> Vec<Value> {
    let answer = user.get(KEYBOXES).await.ok();
    answer["keyboxes"].as_array().expect("a list").clone()
}

/// Deletes a device, giving the password.
pub(crate) async fn revoke(user: &User, device: &str) {
    let request =
        Request::new(hyper::Method::DELETE, format!("/_matrix/client/v3/devices/{}", encode(device)));
    let name = user.id.trim_start_matches('@').split(':').next().expect("a name").to_owned();
    user.send(request.json(&json!({ "auth": password(&name) }))).await.ok();
}

#[tokio::test]
async fn the_list_tells_what_matters_of_each_keybox() {
    let cluster = TestCluster::start().await;
    let alice = keybox(&cluster, "alice").await;
    let second = second_keybox(&cluster, "alice").await;
    let phone = cluster.login("alice").await;
    let path = format!("/devices/{}", encode(&second.device));
    alice.put(&path, json!({ "display_name": "at work" })).await.ok();
    let (master, self_signing) = (SigningKey::anonymous(), SigningKey::anonymous());
    let upload = json!({
        "master_key": cross_signing_key(&alice, "master", &master, &[]),
        "self_signing_key": cross_signing_key(&alice, "self_signing", &self_signing, &[&master]),
        "auth": password("alice"),
    });
    alice.post("/keys/device_signing/upload", upload).await.ok();
    let shown = alice.post("/keys/query", json!({ "device_keys": { &alice.id: [] } })).await.ok();
    let mut key_set = shown["device_keys"][&alice.id][&second.device].clone();
    key_set.as_object_mut().expect("an object").remove("unsigned");
    let signed = self_signing.sign(&alice.id, key_set);
    alice.post("/keys/signatures/upload", json!({ &alice.id: { &second.device: signed } })).await.ok();

    let list = keyboxes(&alice).await;
    assert_eq!(list.len(), 2, "{} is no KeyBox: {list:?}", phone.device);
    let of = |device: &str| list.iter().find(|item| item["keybox_id"] == device).expect("listed");
    let (first, other) = (of(&alice.device), of(&second.device));
    assert_eq!((&first["verified"], &other["verified"]), (&json!(false), &json!(true)));
    assert_eq!(other["name"], "at work");
    assert!(other["suites"].as_array().expect("a list").contains(&json!(suite::V1)), "{other}");
    assert_eq!((&other["last_seen_ip"], &other["passphrase_kept"]), (&json!("127.0.0.1"), &json!(false)));
    assert!(
        other["created_ts"].as_u64() > Some(0)
            && other["last_seen_ts"].as_u64() >= other["created_ts"].as_u64()
    );
    assert!(
        keyboxes(&keybox(&cluster, "bob").await).await.iter().all(|item| item["keybox_id"] != alice.device)
    );
}

#[tokio::test]
async fn of_a_revoked_keybox_nothing_remains_on_any_replica() {
    let cluster = TestCluster::start_with(&[("KEYSTEAD_KEYBOX_MASTER_KEY", &key("one", 1))]).await;
    let (alice, bob) = (keybox(&cluster, "alice").await, keybox(&cluster, "bob").await);
    let lost = second_keybox(&cluster, "alice").await;
    let room = keybox_room(&bob, "shared").await;
    alice.join(&room).await;
    give(&bob, &room, &[(&alice, &lost.device)]).await.ok();
    lost.put(&passphrase_path(&lost), json!({ "passphrase": "opens the private keys" })).await.ok();
    let before = alice.sync_once(None).await;
    for replica in 0..2 {
        lost.at(replica).get("/account/whoami").await.ok();
    }

    // Without the password nothing happens.
    let path = format!("/devices/{}", encode(&lost.device));
    let asked = alice.delete(&path).await;
    assert_eq!(asked.status, 401);
    lost.get("/account/whoami").await.ok();
    revoke(&alice.at(0), &lost.device).await;

    for replica in [1, 0] {
        lost.at(replica).get("/account/whoami").await.refused(401, "M_UNKNOWN_TOKEN");
        let shown =
            bob.at(replica).post("/keys/query", json!({ "device_keys": { &alice.id: [] } })).await.ok();
        assert!(shown["device_keys"][&alice.id].get(&lost.device).is_none(), "{shown}");
        give(&bob.at(replica), &room, &[(&alice, &lost.device)]).await.ok();
    }
    for _ in 0..2 {
        retrieve(&cluster, "alice", PASSWORD, &lost.device).await.refused(404, "M_NOT_FOUND");
    }
    assert_eq!(keyboxes(&alice).await.len(), 1);
    let news = alice.sync_once(before["next_batch"].as_str()).await;
    let changed = news["device_lists"]["changed"].as_array().cloned().unwrap_or_default();
    assert!(changed.contains(&json!(alice.id)), "the user's other KeyBoxes hear of it: {news}");
    // Whoever takes the same id again finds nothing that waited for the old one.
    let body = json!({
        "type": "m.login.password", "identifier": { "type": "m.id.user", "user": "alice" },
        "password": PASSWORD, "device_id": lost.device,
    });
    let request = Request::new(hyper::Method::POST, "/_matrix/client/v3/login").json(&body);
    let again = User::from_login(&cluster, &cluster.send(request).await.ok());
    let answer = again.sync_once(None).await;
    let waiting = of_type(events(&answer["to_device"]), "com.trustner.keybox.resource_key");
    assert!(waiting.is_none(), "{answer}");
}

#[tokio::test]
async fn a_lost_keybox_is_named_and_revoked_on_the_command_line() {
    let cluster = TestCluster::start().await;
    let alice = Person::new(&cluster, "alice", "alice-home", 0);
    let lost = Person::new(&cluster, "alice", "alice-lost-home", 1);
    let third = Person::new(&cluster, "alice", "alice-third-home", 1);
    let own_id = field(&alice.run(&["register"]).await, "keybox_id");
    let lost_id = field(&lost.run(&["login"]).await, "keybox_id");
    third.run(&["login"]).await;
    // From its first sync on it hears of changes.
    third.run(&["rooms"]).await;

    let renamed = alice.run(&["rename", &lost_id, "left on the train"]).await;
    assert_eq!(field(&renamed, "name"), "left on the train");
    assert_eq!(alice.refused(&["rename", "NOSUCH", "x"]).await["status"], 7);
    // Through the other replica, at once.
    let list = third.run(&["keyboxes"]).await;
    assert_eq!(list.len(), 3, "{list:?}");
    let shown = list.iter().find(|listed| listed["keybox_id"] == lost_id.as_str()).expect("listed");
    assert_eq!((&shown["name"], &shown["this_one"]), (&json!("left on the train"), &json!(false)));
    assert!(
        shown["created_ts"].as_u64() > Some(0) && shown["suites"].to_string().contains(suite::V1),
        "{shown}"
    );

    assert_eq!(alice.refused(&["revoke", &own_id]).await["status"], 2);
    assert_eq!(alice.refused(&["revoke", &lost_id, "--password", "wrong"]).await["status"], 3);
    let revoked = alice.run(&["revoke", &lost_id]).await;
    assert_eq!((field(&revoked, "keybox_id"), &revoked[0]["revoked"]), (lost_id.clone(), &json!(true)));
    assert_eq!(lost.refused(&["rooms"]).await["status"], 3);
    // The user's other KeyBoxes say so by themselves.
    let told = third.try_run(&["rooms"]).await;
    let told = String::from_utf8_lossy(&told.stderr).into_owned();
    assert!(told.contains("own_key_box_gone") && told.contains(&lost_id), "{told}");
    let list = third.run(&["keyboxes"]).await;
    assert!(list.len() == 2 && list.iter().all(|listed| listed["keybox_id"] != lost_id.as_str()), "{list:?}");
}
