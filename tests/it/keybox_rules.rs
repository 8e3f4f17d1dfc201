//! What the server asks of KeyBoxes: valid key sets, and resource keys from members to members only.

use keystead_keybox::{
    OpensslEntropy,
    canonical_json::sign_json,
    encoding::base64,
    key_message::{KeyMessage, Origin, Recipient, ResourceKeyContent, sign},
    key_set::{PrivateKeySet, RSA_ENTRY, X25519_ENTRY},
    resource_key::ResourceKey,
    suite,
};
use keystead_tests::{TestCluster, User, http::encode, sync::events, user::transaction_id};
use openssl::{bn::BigNum, rsa::Rsa};
use serde_json::{Value, json};

const NOT_A_MEMBER: &str = "COM.TRUSTNER.KEYBOX_NOT_A_MEMBER";

fn key_set(user: &User) -> PrivateKeySet {
    PrivateKeySet::generate(&user.id, &user.device, &mut OpensslEntropy).expect("keys")
}

/// Publishes a KeyBox key set for the user's device.
async fn publish(user: &User) -> PrivateKeySet {
    let keys = key_set(user);
    let device_keys = keys.device_keys().expect("signed");
    user.post("/keys/upload", json!({ "device_keys": device_keys })).await.ok();
    keys
}

/// The key set with one entry of `keys` replaced or removed, signed again.
fn altered(keys: &PrivateKeySet, entry: &str, value: Option<Value>) -> Value {
    let mut device_keys = keys.device_keys().expect("signed");
    device_keys.remove("signatures");
    let name = format!("{entry}:{}", keys.keybox_id());
    let of_device = device_keys["keys"].as_object_mut().expect("an object");
    match value {
        Some(value) => of_device.insert(name, value),
        None => of_device.remove(&name),
    };
    sign_json(keys, &mut device_keys).expect("signed");
    json!({ "device_keys": device_keys })
}

fn rsa(bits: u32, exponent: u32) -> Option<Value> {
    let exponent = BigNum::from_u32(exponent).expect("a number");
    let key = Rsa::generate_with_e(bits, &exponent).expect("a key");
    Some(base64(&key.public_key_to_der().expect("DER")).into())
}

#[tokio::test]
async fn a_key_set_that_breaks_the_rules_is_refused() {
    let cluster = TestCluster::start().await;
    let alice = cluster.user("alice").await;
    let keys = key_set(&alice);
    let low_order = base64(&[0; 32]);
    for (what, upload) in [
        ("a short RSA key", altered(&keys, RSA_ENTRY, rsa(1024, 65537))),
        ("a long RSA key", altered(&keys, RSA_ENTRY, rsa(3072, 65537))),
        ("a bad exponent", altered(&keys, RSA_ENTRY, rsa(2048, 3))),
        ("no RSA key", altered(&keys, RSA_ENTRY, None)),
        ("nonsense for an RSA key", altered(&keys, RSA_ENTRY, Some("AAAA".into()))),
        ("a point of low order", altered(&keys, X25519_ENTRY, Some(low_order.into()))),
    ] {
        let answer = alice.post("/keys/upload", upload).await;
        assert_eq!((answer.status, answer.errcode()), (400, "M_INVALID_PARAM"), "{what}: {}", answer.text);
    }
    let mut unsigned = keys.device_keys().expect("signed");
    unsigned.remove("signatures");
    let answer = alice.post("/keys/upload", json!({ "device_keys": unsigned })).await;
    assert_eq!(answer.status, 400, "{}", answer.text);

    let answer = alice.post("/keys/query", json!({ "device_keys": { &alice.id: [] } })).await.ok();
    assert!(answer["device_keys"][&alice.id].get(&alice.device).is_none(), "something was stored: {answer}");
    publish(&alice).await;
}

#[tokio::test]
async fn the_key_set_of_a_keybox_never_changes() {
    let cluster = TestCluster::start().await;
    let alice = cluster.user("alice").await;
    let first = publish(&alice).await.device_keys().expect("signed");
    alice.at(1).post("/keys/upload", json!({ "device_keys": first })).await.ok();
    let other = key_set(&alice).device_keys().expect("signed");
    let answer = alice.post("/keys/upload", json!({ "device_keys": other })).await;
    assert_eq!(answer.status, 400, "{}", answer.text);
    let answer = alice.post("/keys/query", json!({ "device_keys": { &alice.id: [] } })).await.ok();
    let shown = &answer["device_keys"][&alice.id][&alice.device]["keys"];
    assert_eq!(*shown, first["keys"]);
}

/// A key message that carries a resource key of `room` from one KeyBox to another. The server cannot look into it.
fn resource_key(keys: &PrivateKeySet, room: &str, recipient: &User) -> Value {
    let key_id = ResourceKey::generate(&mut OpensslEntropy).expect("a key").id(room);
    let origin = Origin::sign(keys, suite::V1, room, &key_id, 1, "audience".to_owned()).expect("signed");
    let content = ResourceKeyContent {
        algorithm: suite::V1.to_owned(),
        room_id: room.to_owned(),
        key_id,
        wrap: vec![7; 256],
        sender_keybox: keys.keybox_id().to_owned(),
        exchange_id: transaction_id(),
        sent_at: 1,
        origin,
    };
    sign(&content, keys, Recipient { user_id: &recipient.id, keybox_id: &recipient.device }).expect("signed")
}

async fn give(
    sender: &User,
    keys: &PrivateKeySet,
    room: &str,
    recipients: &[&User],
) -> keystead_tests::Response {
    let mut messages = json!({});
    for recipient in recipients {
        messages[&recipient.id][&recipient.device] = resource_key(keys, room, recipient);
    }
    let kind = ResourceKeyContent::EVENT_TYPE;
    let path = format!("/sendToDevice/{}/{}", encode(kind), transaction_id());
    sender.put(&path, json!({ "messages": messages })).await
}

/// How many to-device messages wait for a device.
async fn waiting(user: &User) -> usize {
    events(&user.sync_once(None).await["to_device"]).len()
}

async fn encrypted_room(founder: &User) -> String {
    founder
        .create_room(json!({
            "preset": "public_chat",
            "creation_content": { "com.trustner.encryption_algorithm": suite::V1 },
            "initial_state": [{ "type": "m.room.encryption", "state_key": "", "content": { "algorithm": suite::V1 } }],
        }))
        .await
}

#[tokio::test]
async fn a_resource_key_goes_from_members_to_members_only() {
    let cluster = TestCluster::start().await;
    let (alice, bob, eve) =
        (cluster.user("alice").await, cluster.user("bob").await, cluster.user("eve").await);
    let (of_alice, of_bob, of_eve) = (publish(&alice).await, publish(&bob).await, publish(&eve).await);
    let room = encrypted_room(&alice).await;
    bob.join(&room).await;

    give(&alice, &of_alice, &room, &[&bob]).await.ok();
    assert_eq!(waiting(&bob).await, 1);
    give(&bob.at(1), &of_bob, &room, &[&alice]).await.ok();
    assert_eq!(waiting(&alice).await, 1);

    give(&eve, &of_eve, &room, &[&bob]).await.refused(403, NOT_A_MEMBER);
    give(&alice, &of_alice, &room, &[&bob, &eve]).await.refused(403, NOT_A_MEMBER);
    assert_eq!(
        (waiting(&bob).await, waiting(&eve).await),
        (1, 0),
        "a refused call stores nothing, for anybody"
    );

    bob.leave(&room).await;
    give(&alice, &of_alice, &room, &[&bob]).await.refused(403, NOT_A_MEMBER);
    give(&bob.at(1), &of_bob, &room, &[&alice]).await.refused(403, NOT_A_MEMBER);
    assert_eq!((waiting(&alice).await, waiting(&bob).await), (1, 1));
}

#[tokio::test]
async fn a_resource_key_needs_a_room_of_the_profile_and_a_keybox() {
    let cluster = TestCluster::start().await;
    let (alice, bob) = (cluster.user("alice").await, cluster.user("bob").await);
    let of_alice = publish(&alice).await;
    let room = encrypted_room(&alice).await;
    bob.join(&room).await;
    // Bob's device has not published a key set.
    give(&alice, &of_alice, &room, &[&bob]).await.refused(403, NOT_A_MEMBER);
    publish(&bob).await;
    give(&alice, &of_alice, &room, &[&bob]).await.ok();

    let plain = alice.create_public_room().await;
    bob.join(&plain).await;
    give(&alice, &of_alice, &plain, &[&bob]).await.refused(403, NOT_A_MEMBER);
    give(&alice, &of_alice, "!nosuchroom", &[&bob]).await.refused(403, NOT_A_MEMBER);
    assert_eq!(waiting(&bob).await, 1);
}
