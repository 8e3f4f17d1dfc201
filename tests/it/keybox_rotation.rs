//! Resource keys are replaced when somebody is removed from the room, as the server tells it.

use keystead_tests::{TestCluster, user::in_room};
use serde_json::json;

use crate::keybox::{field, pair};

#[tokio::test]
async fn who_is_kicked_or_banned_is_given_no_later_key() {
    let cluster = TestCluster::start().await;
    let (alice, _bob, room) = pair(&cluster).await;
    let owner = cluster.login("alice").await;
    let mut key_ids = Vec::new();
    for action in [None, Some("kick"), Some("ban")] {
        if action == Some("ban") {
            owner.post(&in_room(&room, "/invite"), json!({ "user_id": "@bob:keystead.test" })).await.ok();
            alice.run(&["send", &room, "to who was invited again"]).await;
        }
        if let Some(action) = action {
            let body = json!({ "user_id": "@bob:keystead.test" });
            owner.post(&in_room(&room, &format!("/{action}")), body).await.ok();
        }
        let sent = alice.run(&["send", &room, "text"]).await;
        let path = in_room(&room, &format!("/event/{}", field(&sent, "event_id")));
        let event = owner.get(&path).await.ok();
        key_ids.push(event["content"]["key_id"].as_str().expect("an envelope").to_owned());
    }
    key_ids.sort();
    key_ids.dedup();
    assert_eq!(key_ids.len(), 3);
}
