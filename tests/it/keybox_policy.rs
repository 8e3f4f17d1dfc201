//! Exchange policies and the queue of approvals, over the command line.

use keystead_tests::TestCluster;

use crate::keybox::{field, pair};

#[tokio::test]
async fn a_resource_key_waits_for_a_persons_approval() {
    let cluster = TestCluster::start().await;
    let (alice, bob, room) = pair(&cluster).await;
    let policies = alice.run(&["policy", "ask"]).await;
    assert_eq!(field(&policies, "policy"), "ask");
    alice.run(&["policy", &room, "verified_only"]).await;
    alice.run(&["policy", &room, "default"]).await;
    assert_eq!(field(&alice.run(&["policy", &room]).await, "policy"), "ask");
    let refused = alice.refused(&["policy", &room, "sometimes"]).await;
    assert_eq!(refused["status"], 2, "{refused}");

    alice.run(&["send", &room, "for approved eyes"]).await;
    assert!(bob.texts(&["history", &room, "--wait", "1"]).await.is_empty());
    let waiting = alice.run(&["approvals"]).await;
    assert_eq!((waiting.len(), &waiting[0]["state"]), (1, &"waiting".into()), "{waiting:?}");
    let id = waiting[0]["id"].to_string();
    let decided = alice.run(&["approve", &id]).await;
    assert_eq!(decided[0]["state"], "approved");
    assert_eq!(bob.texts(&["history", &room, "--wait", "10"]).await, ["for approved eyes"]);
    assert!(alice.run(&["approvals"]).await.is_empty());
    assert_eq!(alice.run(&["refuse", &id]).await[0]["state"], "refused");
    assert_eq!(alice.refused(&["approve", "99"]).await["status"], 7);
}
