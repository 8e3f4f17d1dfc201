//! Who is there: what users say, what their clients do, and who is told.

use keystead_tests::{TestCluster, User, http::encode};
use serde_json::{Value, json};
use std::sync::Arc;

async fn cluster() -> Arc<TestCluster> {
    TestCluster::start_with(&[("KEYSTEAD_PRESENCE_ENABLED", "true")]).await
}

fn status(user: &User) -> String {
    format!("/presence/{}/status", encode(&user.id))
}

/// The contents of a sync's presence events of a user.
fn presence_of(answer: &Value, user: &User) -> Vec<Value> {
    let events = answer["presence"]["events"].as_array().cloned().unwrap_or_default();
    let of_user = events.into_iter().filter(|event| event["sender"] == user.id.as_str());
    of_user
        .inspect(|event| assert_eq!(event["type"], "m.presence"))
        .map(|event| event["content"].clone())
        .collect()
}

#[tokio::test]
async fn who_shares_a_room_sees_who_comes_and_goes_through_any_replica() {
    let cluster = cluster().await;
    let (alice, bob, eve) =
        (cluster.user("alice").await, cluster.user("bob").await, cluster.user("eve").await);
    let room = alice.create_public_room().await;
    bob.join(&room).await;

    let busy = json!({ "presence": "unavailable", "status_msg": "in a meeting" });
    alice.at(0).put(&status(&alice), busy).await.ok();
    for reader in [&alice, &bob] {
        let seen = reader.at(1).get(&status(&alice)).await.ok();
        assert_eq!((&seen["presence"], &seen["status_msg"]), (&json!("unavailable"), &json!("in a meeting")));
        assert!(seen["last_active_ago"].is_u64(), "{seen}");
        assert_eq!(seen.get("currently_active"), None);
    }
    eve.get(&status(&alice)).await.refused(403, "M_FORBIDDEN");
    eve.get("/presence/%40nobody%3Akeystead.test/status").await.refused(403, "M_FORBIDDEN");
    // An invitation does not show who is there, to neither side.
    alice.invite(&room, &eve).await;
    eve.get(&status(&alice)).await.refused(403, "M_FORBIDDEN");
    alice.get(&status(&eve)).await.refused(403, "M_FORBIDDEN");

    // A first sync tells of those who are there, and says that its user is.
    let first = bob.at(1).sync_once(None).await;
    assert_eq!(presence_of(&first, &alice)[0]["status_msg"], "in a meeting");
    assert_eq!(bob.get(&status(&bob)).await.ok()["presence"], "online");
    let eves = eve.get("/sync?set_presence=offline").await.ok();
    assert_eq!(presence_of(&eves, &alice), [Value::Null; 0]);
    eve.get(&status(&eve)).await.refused(404, "M_NOT_FOUND");

    // News wakes a sync that waits at the other replica.
    let mut bobs = bob.at(1).syncing();
    bobs.next(0).await;
    alice.at(0).put(&status(&alice), json!({ "presence": "online" })).await.ok();
    let seen = bobs.until("presence", |answer| presence_of(answer, &alice).pop()).await;
    assert_eq!((&seen["presence"], seen.get("status_msg")), (&json!("online"), None));
    // > When true, the server will not send further updates to the last active time until [that changes].
    assert_eq!(seen["currently_active"], true);
    assert_eq!(bob.get(&status(&alice)).await.ok()["currently_active"], true);
    alice.at(0).put(&status(&alice), json!({ "presence": "offline" })).await.ok();
    let seen = bobs.until("presence", |answer| presence_of(answer, &alice).pop()).await;
    assert_eq!((&seen["presence"], seen.get("currently_active")), (&json!("offline"), None));

    // Who comes into a room is shown to those who are there, and sees them.
    eve.put(&status(&eve), json!({ "presence": "online", "status_msg": "new" })).await.ok();
    let mut eves = eve.syncing();
    eves.next(0).await;
    eve.join(&room).await;
    let seen = bobs.until("presence", |answer| presence_of(answer, &eve).pop()).await;
    assert_eq!(seen["status_msg"], "new");
    let seen = eves.until("presence", |answer| presence_of(answer, &bob).pop()).await;
    assert_eq!(seen["presence"], "online");
}

#[tokio::test]
async fn what_was_seen_of_others_while_away_is_told_after_a_restart_too() {
    let cluster = cluster().await;
    let (alice, bob) = (cluster.user("alice").await, cluster.user("bob").await);
    let room = alice.create_public_room().await;
    bob.join(&room).await;
    let before = bob.sync_once(None).await["next_batch"].as_str().unwrap().to_owned();
    alice.put(&status(&alice), json!({ "presence": "unavailable", "status_msg": "lunch" })).await.ok();
    assert_eq!(presence_of(&bob.sync_once(Some(&before)).await, &alice)[0]["status_msg"], "lunch");
    // The replica remembers nothing of it.
    cluster.kill(0);
    cluster.restart(0).await;
    assert_eq!(presence_of(&bob.at(0).sync_once(Some(&before)).await, &alice)[0]["status_msg"], "lunch");
}

#[tokio::test]
async fn what_a_user_does_is_no_news_to_the_same_user() {
    let cluster = cluster().await;
    let alice = cluster.user("alice").await;
    let before =
        alice.get("/sync?set_presence=offline").await.ok()["next_batch"].as_str().unwrap().to_owned();
    alice.put(&status(&alice), json!({ "presence": "unavailable", "status_msg": "lunch" })).await.ok();
    assert_eq!(presence_of(&alice.sync_once(Some(&before)).await, &alice), [Value::Null; 0]);
    // Nor does one's own coming and going make news of what others were before.
    let bob = cluster.user("bob").await;
    let (room, other) = (alice.create_public_room().await, alice.create_public_room().await);
    bob.join(&room).await;
    bob.put(&status(&bob), json!({ "presence": "online" })).await.ok();
    let seen = alice.sync_once(Some(&before)).await;
    assert_eq!(presence_of(&seen, &bob).len(), 1);
    let next = seen["next_batch"].as_str().unwrap().to_owned();
    alice.leave(&other).await;
    let seen = alice.sync_once(Some(&next)).await;
    assert!(seen["rooms"]["leave"][&other].is_object(), "{seen}");
    assert_eq!(presence_of(&seen, &bob), [Value::Null; 0]);
}

#[tokio::test]
async fn syncs_say_what_their_clients_ask_them_to_and_filters_are_heeded() {
    let cluster = cluster().await;
    let (alice, bob) = (cluster.user("alice").await, cluster.user("bob").await);
    let room = alice.create_public_room().await;
    bob.join(&room).await;
    alice.get("/sync?set_presence=unavailable").await.ok();
    assert_eq!(bob.get(&status(&alice)).await.ok()["presence"], "unavailable");
    alice.get("/sync").await.ok();
    assert_eq!(bob.get(&status(&alice)).await.ok()["presence"], "online");
    // A device that is not in use does not outweigh the one that is.
    alice.get("/sync?set_presence=unavailable").await.ok();
    assert_eq!(bob.get(&status(&alice)).await.ok()["presence"], "online");

    let none = encode(&json!({ "presence": { "not_types": ["m.presence"] } }).to_string());
    let answer = bob.get(&format!("/sync?filter={none}")).await.ok();
    assert_eq!(presence_of(&answer, &alice), [Value::Null; 0]);
    let ignored = json!({ "ignored_users": { alice.id.clone(): {} } });
    let answer = bob.sync_once(None).await;
    assert_eq!(presence_of(&answer, &alice)[0]["presence"], "online");
    bob.put(&format!("/user/{}/account_data/m.ignored_user_list", encode(&bob.id)), ignored).await.ok();
    assert_eq!(presence_of(&bob.sync_once(None).await, &alice), [Value::Null; 0]);

    let path = status(&alice);
    bob.put(&path, json!({ "presence": "online" })).await.refused(403, "M_FORBIDDEN");
    alice.put(&path, json!({})).await.refused(400, "M_BAD_JSON");
    alice.put(&path, json!({ "presence": "asleep" })).await.refused(400, "M_INVALID_PARAM");
    let long = json!({ "presence": "online", "status_msg": "x".repeat(5_000) });
    alice.put(&path, long).await.refused(413, "M_TOO_LARGE");
}

#[tokio::test]
async fn nobody_is_seen_where_presence_is_switched_off() {
    let cluster = TestCluster::start().await;
    let alice = cluster.user("alice").await;
    alice.put(&status(&alice), json!({ "presence": "online" })).await.refused(403, "M_FORBIDDEN");
    let answer = alice.sync_once(None).await;
    assert!(answer.get("presence").is_none(), "{answer}");
    alice.get(&status(&alice)).await.refused(404, "M_NOT_FOUND");
}
