//! Who is no member of a room gets no key message about it through, whatever its kind.

use keystead_keybox::suite;
use keystead_tests::{TestCluster, User, http::Response, sync::events, user::transaction_id};
use serde_json::{Value, json};

use crate::keybox_permission::{keybox, keybox_room};

const NOT_A_MEMBER: &str = "COM.TRUSTNER.KEYBOX_NOT_A_MEMBER";
const KINDS: [&str; 4] =
    ["resource_key_request", "resource_key_request", "resource_key.withheld", "resource_key.ack"];

/// Sends the key message number `kind` about the room.
async fn send(sender: &User, kind: usize, room: &str, to: &User) -> Response {
    let mut content = json!({
        "algorithm": suite::V1, "room_id": room, "key_id": "AAAAAAAAAAAAAAAAAAAAAA", "sender_keybox": sender.device,
        "signature": "AAAA", "request_id": "q", "code": "m.unavailable", "reason": "gone", "exchange_id": "e",
    });
    content["action"] = json!(if kind == 0 { "request" } else { "cancel" });
    let path = format!("/sendToDevice/com.trustner.keybox.{}/{}", KINDS[kind], transaction_id());
    sender.put(&path, json!({ "messages": { &to.id: { &to.device: content } } })).await
}

async fn waiting(user: &User) -> Vec<Value> {
    events(&user.sync_once(None).await["to_device"]).to_vec()
}

#[tokio::test]
async fn a_stranger_gets_no_key_message_through() {
    let cluster = TestCluster::start().await;
    let (alice, bob, eve) =
        (keybox(&cluster, "alice").await, keybox(&cluster, "bob").await, keybox(&cluster, "eve").await);
    let room = keybox_room(&alice, "shared").await;
    let plain = alice.create_public_room().await;
    bob.join(&room).await;
    eve.join(&plain).await;
    for kind in 0..KINDS.len() {
        send(&eve, kind, &room, &alice).await.refused(403, NOT_A_MEMBER);
        send(&alice, kind, &room, &eve).await.refused(403, NOT_A_MEMBER);
        send(&eve, kind, &plain, &alice).await.refused(403, NOT_A_MEMBER);
        send(&eve, kind, "!none:keystead.test", &alice).await.refused(403, NOT_A_MEMBER);
    }
    assert!(waiting(&alice).await.is_empty() && waiting(&eve).await.is_empty(), "nothing was stored");
    for kind in 0..KINDS.len() {
        send(&bob, kind, &room, &alice).await.ok();
    }
    assert_eq!(waiting(&alice).await.len(), KINDS.len());

    // Who has left asks for nothing more, but what was under way may be brought to its end.
    bob.leave(&room).await;
    send(&bob, 0, &room, &alice).await.refused(403, NOT_A_MEMBER);
    for kind in 1..KINDS.len() {
        send(&bob, kind, &room, &alice).await.ok();
    }
}

#[tokio::test]
async fn an_identity_goes_to_its_own_user_only() {
    let cluster = TestCluster::start().await;
    let (alice, bob) = (keybox(&cluster, "alice").await, keybox(&cluster, "bob").await);
    let room = keybox_room(&alice, "shared").await;
    bob.join(&room).await;
    let second = cluster.login("alice").await;
    let send = async |messages: Value| {
        let path = format!("/sendToDevice/com.trustner.keybox.identity/{}", transaction_id());
        alice.put(&path, json!({ "messages": messages })).await
    };
    let content = json!({ "sender_keybox": alice.device });
    for device in [&*bob.device, "*"] {
        let both = json!({ &alice.id: { &second.device: content }, &bob.id: { device: content } });
        send(both).await.refused(403, "M_FORBIDDEN");
    }
    assert!(waiting(&bob).await.is_empty() && waiting(&second).await.is_empty(), "nothing was stored");
    send(json!({ &alice.id: { &second.device: content } })).await.ok();
    assert_eq!(waiting(&second).await.len(), 1);
}
