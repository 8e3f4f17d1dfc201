//! The key that the server signs with, changed while it serves.

use keystead_tests::TestCluster;
use serde_json::Value;

async fn published(cluster: &TestCluster, replica: usize) -> Value {
    let request = keystead_tests::http::Request::new(hyper::Method::GET, "/_matrix/key/v2/server".to_owned());
    cluster.send_to(replica, request).await.ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_signing_key_leaves_the_old_one_to_check_old_signatures_with() {
    let cluster = TestCluster::start().await;
    let alice = cluster.user("alice").await;
    let room = alice.create_public_room().await;
    let first = published(&cluster, 0).await["verify_keys"]["ed25519:1"]["key"].clone();
    assert!(first.is_string());
    for version in ["2", "3"] {
        let output = cluster.run(&["admin", "signing-key", "rotate"], &[]).await;
        assert!(output.status.success(), "{output:?}");
        assert!(
            String::from_utf8_lossy(&output.stdout).contains(&format!("ed25519:{version}")),
            "{output:?}"
        );
    }
    for replica in 0..cluster.size() {
        cluster.stop(replica).await;
        cluster.restart(replica).await;
    }
    for replica in 0..cluster.size() {
        let keys = published(&cluster, replica).await;
        let current = keys["verify_keys"].as_object().expect("keys");
        assert_eq!(current.keys().collect::<Vec<_>>(), ["ed25519:3"]);
        assert_ne!(current["ed25519:3"]["key"], first);
        let old = keys["old_verify_keys"].as_object().expect("keys");
        assert_eq!(old.keys().collect::<Vec<_>>(), ["ed25519:1", "ed25519:2"]);
        assert_eq!(old["ed25519:1"]["key"], first);
        assert!(old["ed25519:1"]["expired_ts"].as_u64().expect("a time") > 1_700_000_000_000);
        assert!(keys["signatures"]["keystead.test"]["ed25519:3"].is_string(), "{keys}");
    }
    // What `keybox audit --accept-signing-key` is to be given is the key in force.
    let output = cluster.run(&["admin", "signing-key", "show"], &[]).await;
    let key =
        published(&cluster, 0).await["verify_keys"]["ed25519:3"]["key"].as_str().expect("a key").to_owned();
    let key = keystead_keybox::encoding::from_base64(&key).expect("base64").try_into().expect("32 bytes");
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    let fingerprint = shown.lines().last().expect("a fingerprint");
    assert!(keystead_keybox::fingerprint::matches_key(&key, fingerprint), "{shown}");
    // Rooms go on, signed with the new key.
    let event = alice.send_text(&room, "signed anew").await;
    alice.syncing().until_event(&room, &event).await;
}
