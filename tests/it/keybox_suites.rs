//! Suite v2 from end to end, and rooms that go from v1 to v2.

use hyper::Method;
use keystead_keybox::{OpensslEntropy, canonical_json::sign_json, key_set::PrivateKeySet, suite};
use keystead_tests::{TestCluster, http::Request};
use serde_json::json;

use crate::keybox::{Person, field, pair};

#[tokio::test]
async fn two_people_talk_in_suite_v2() {
    let cluster = TestCluster::start().await;
    let alice = Person::new(&cluster, "alice", "alice-home", 0);
    let bob = Person::new(&cluster, "bob", "bob-home", 1);
    alice.run(&["register"]).await;
    bob.run(&["register"]).await;
    let made = alice.run(&["create", "--suite", "v2", "--invite", "@bob:keystead.test"]).await;
    assert_eq!(field(&made, "suite"), suite::V2);
    let room = field(&made, "room_id");
    bob.run(&["join", &room]).await;
    let sent = alice.run(&["send", &room, "over elliptic curves"]).await;
    let heard = bob.texts(&["listen", "--until-messages", "1", "--timeout", "30"]).await;
    assert_eq!(heard, ["over elliptic curves"]);
    let exported = bob.run(&["export-message", &room, &field(&sent, "event_id")]).await;
    assert_eq!((field(&exported, "suite").as_str(), field(&exported, "mac").len()), (suite::V2, 32));

    let held = cluster.dump_database().await;
    assert!(held.contains(suite::V2) && !held.contains("elliptic curves"), "the dump holds ciphertext only");
    let refused = alice.refused(&["upgrade-suite", &room]).await;
    assert!(refused["error"].as_str().is_some_and(|error| error.contains("already")), "{refused}");
}

#[tokio::test]
async fn a_running_room_goes_to_suite_v2_and_not_back() {
    let cluster = TestCluster::start().await;
    let (alice, bob, room) = pair(&cluster).await;
    alice.run(&["send", &room, "in the old suite"]).await;
    bob.run(&["listen", "--until-messages", "1", "--timeout", "30"]).await;

    // Carol's KeyBox has software that knows suite v1 only.
    let carol = cluster.user("carol").await;
    let keys = PrivateKeySet::generate(&carol.id, &carol.device, &mut OpensslEntropy).expect("keys");
    let mut device_keys = keys.device_keys().expect("device keys");
    device_keys["algorithms"] = json!([suite::V1]);
    sign_json(&keys, &mut device_keys).expect("signed");
    carol.post("/keys/upload", json!({ "device_keys": device_keys })).await.ok();
    alice.run(&["invite", &room, &carol.id]).await;
    carol.post(&format!("/join/{room}"), json!({})).await.ok();
    let refused = alice.refused(&["upgrade-suite", &room]).await;
    let error = refused["error"].as_str().unwrap_or_default();
    assert!(error.contains(&format!("{}/{}", carol.id, carol.device)), "{refused}");

    // Bob may not change the room's state.
    let refused = bob.refused(&["upgrade-suite", &room, "--leave-behind"]).await;
    assert_eq!(refused["errcode"], "M_FORBIDDEN");
    let upgraded = alice.run(&["upgrade-suite", &room, "--leave-behind"]).await;
    assert_eq!((field(&upgraded, "from"), field(&upgraded, "suite")), (suite::V1.into(), suite::V2.into()));
    assert_eq!(upgraded[0]["left_behind"][0]["user_id"], carol.id.as_str());

    alice.run(&["send", &room, "in the new suite"]).await;
    let heard = bob.texts(&["listen", "--until-messages", "1", "--timeout", "30"]).await;
    assert_eq!(heard, ["in the new suite"]);
    let history = bob.texts(&["history", &room]).await;
    assert_eq!(history, ["in the old suite", "in the new suite"]);
}

#[tokio::test]
async fn the_server_lets_no_room_step_down_or_off() {
    let cluster = TestCluster::start().await;
    let alice = cluster.user("alice").await;
    let encryption = |algorithm: &str| json!({ "algorithm": algorithm });
    let room = alice
        .create_room(json!({
            "creation_content": { "com.trustner.encryption_algorithm": suite::V1 },
            "initial_state": [
                { "type": "m.room.encryption", "state_key": "", "content": encryption(suite::V1) },
            ],
        }))
        .await;
    let path = format!("/rooms/{room}/state/m.room.encryption");
    alice.put(&path, encryption(suite::V2)).await.ok();
    let create = alice.get(&format!("/rooms/{room}/state/m.room.create")).await.ok();
    assert_eq!(create["com.trustner.encryption_algorithm"], suite::V1, "where it began stays written");
    for refused in [suite::V1, "m.megolm.v1.aes-sha2", "com.trustner.keybox.v0"] {
        alice.put(&path, encryption(refused)).await.refused(403, "M_FORBIDDEN");
    }
    let now = alice.get(&path).await.ok();
    assert_eq!(now["algorithm"], suite::V2);

    // Nor may its state ask for a key to be used for ever, or stand where nobody looks for it.
    let periods = |messages: u64, ms: u64| json!({ "algorithm": suite::V2, "rotation_period_msgs": messages, "rotation_period_ms": ms });
    alice.put(&path, periods(1_000_000, 31_536_000_000)).await.ok();
    for (messages, ms) in [(0, 1), (1, 0), (1_000_001, 1), (1, 31_536_000_001)] {
        alice.put(&path, periods(messages, ms)).await.refused(403, "M_FORBIDDEN");
    }
    alice.put(&format!("{path}/elsewhere"), encryption(suite::V2)).await.refused(403, "M_FORBIDDEN");

    // An ordinary room takes no suite, also not hidden behind another algorithm.
    let path = format!("/rooms/{}/state/m.room.encryption", alice.create_public_room().await);
    alice.put(&path, encryption(suite::V2)).await.refused(403, "M_FORBIDDEN");
    let twice = format!(r#"{{"algorithm":"m.megolm.v1.aes-sha2","algorithm":"{}"}}"#, suite::V2);
    let twice =
        Request::new(Method::PUT, format!("/_matrix/client/v3{path}")).bytes("application/json", twice);
    alice.send(twice).await.refused(403, "M_FORBIDDEN");
    alice.get(&path).await.refused(404, "M_NOT_FOUND");
}
