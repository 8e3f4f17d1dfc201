//! Cross-signing: one verification covers all of a person's KeyBoxes.

use keystead_tests::TestCluster;
use serde_json::Value;

use crate::keybox::{Person, field, pair};

#[tokio::test]
async fn who_verifies_one_keybox_trusts_what_its_owner_vouches_for() {
    let cluster = TestCluster::start().await;
    let (alice, bob, _room) = pair(&cluster).await;
    let bob_id = "@bob:keystead.test";
    let png = cluster.folder().join("bob.png");
    let png = png.to_str().expect("text");
    bob.run(&["qr", "--png", png]).await;
    alice.run(&["scan", png]).await;

    let second = Person { home: cluster.folder().join("bob-second-home"), ..bob.clone() };
    let made = second.run(&["login"]).await;
    let (keybox_id, fingerprint) = (field(&made, "keybox_id"), field(&made, "fingerprint"));
    let verified = |lines: &[Value]| -> Vec<bool> {
        let of = |line: &Value| line["keybox_id"] == keybox_id.as_str() && line["verified"] == true;
        lines.iter().map(of).filter(|verified| *verified).collect()
    };
    assert!(verified(&alice.run(&["devices", bob_id]).await).is_empty());
    bob.run(&["verify", bob_id, &keybox_id, "--fingerprint", &fingerprint]).await;
    assert_eq!(verified(&alice.run(&["devices", bob_id]).await), [true]);
    let contacts = alice.run(&["contacts"]).await;
    assert_eq!((&contacts[0]["user_id"], &contacts[0]["verified"]), (&bob_id.into(), &true.into()));

    // Any Matrix client sees the same.
    let viewer = cluster.login("alice").await;
    let asked = serde_json::json!({ "device_keys": { bob_id: [] } });
    let keys = viewer.post("/_matrix/client/v3/keys/query", asked).await.ok();
    let signer = keys["self_signing_keys"][bob_id]["keys"]
        .as_object()
        .expect("keys")
        .keys()
        .next()
        .expect("one")
        .clone();
    for device in keys["device_keys"][bob_id].as_object().expect("devices").values() {
        assert!(device["signatures"][bob_id][&signer].is_string(), "{device}");
    }
    let master = &keys["master_keys"][bob_id];
    assert_eq!(
        master["signatures"]["@alice:keystead.test"].as_object().map(|made| made.len()),
        Some(1),
        "{master}"
    );
}
