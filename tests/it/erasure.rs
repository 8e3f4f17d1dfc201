//! What is left of somebody who closes their account and asks for erasure.

use keystead_tests::{TestCluster, User, cluster::on_sqlite, http::encode, sync::timeline, user::in_room};
use serde_json::{Value, json};

use crate::media_care::deactivate;

/// The text of the events of an answer.
fn bodies(events: &Value) -> Vec<Value> {
    let events = events.as_array().expect("a list").iter();
    events
        .filter(|event| event["type"] == "m.room.message")
        .map(|event| event["content"]["body"].clone())
        .collect()
}

/// What a user reads of a room by each way of reading.
async fn read(user: &User, room: &str, event_id: &str) -> Vec<(&'static str, Vec<Value>)> {
    let get = async |rest: &str| user.get(&in_room(room, rest)).await.ok();
    let event = get(&format!("/event/{}", encode(event_id))).await;
    let context = get(&format!("/context/{}?limit=0", encode(event_id))).await;
    let threads = user.get(&format!("/_matrix/client/v1/rooms/{}/threads", encode(room))).await.ok();
    let latest = threads["chunk"][0]["unsigned"]["m.relations"]["m.thread"]["latest_event"].clone();
    let filter = encode(r#"{"event_format":"federation"}"#);
    let federation = user.get(&format!("/_matrix/client/v3/sync?filter={filter}")).await.ok();
    vec![
        ("event", bodies(&json!([event]))),
        ("context", bodies(&json!([context["event"]]))),
        ("messages", bodies(&get("/messages?dir=b&limit=50").await["chunk"])),
        ("sync", bodies(&Value::from(timeline(&user.sync_once(None).await, room).to_vec()))),
        (
            "sync in the format of the federation",
            bodies(&federation["rooms"]["join"][room]["timeline"]["events"]),
        ),
        ("the latest of a thread", bodies(&json!([latest]))),
    ]
}

#[tokio::test]
async fn who_was_not_there_is_shown_nothing_of_the_messages_of_somebody_erased() {
    let cluster = TestCluster::start().await;
    let (alice, bob) = (cluster.user("alice").await, cluster.user("bob").await);
    let (carol, dave) = (cluster.user("carol").await, cluster.user("dave").await);
    let room = &*bob.create_public_room().await;
    alice.join(room).await;
    carol.join(room).await;
    let said = alice.send_text(room, "said by alice").await;
    let relation = json!({ "rel_type": "m.thread", "event_id": said });
    let content = json!({ "msgtype": "m.text", "body": "said by alice", "m.relates_to": relation });
    alice.send_event(room, "m.room.message", content).await;
    let reasoned = alice.send_text(room, "taken back").await;
    let path = in_room(room, &format!("/redact/{}/reasoned", encode(&reasoned)));
    let redaction = alice.put(&path, json!({ "reason": "the reason of alice" })).await.ok();
    let redaction =
        in_room(room, &format!("/event/{}", encode(redaction["event_id"].as_str().expect("an id"))));
    alice.put(&format!("/user/{}/account_data/x.y", encode(&alice.id)), json!({ "a": 1 })).await.ok();
    alice.put(&format!("/user/{}/rooms/{}/tags/u.x", encode(&alice.id), encode(room)), json!({})).await.ok();
    deactivate(&alice, true).await;
    bob.send_text(room, "said by bob").await;
    dave.join(room).await;
    for (way, bodies) in read(&carol, room, &said).await {
        assert!(bodies.iter().any(|body| body == "said by alice"), "{way}: {bodies:?}");
    }
    for replica in 0..2 {
        for (way, bodies) in read(&dave.at(replica), room, &said).await {
            assert!(bodies.iter().any(Value::is_null), "{way}: it is there, and empty: {bodies:?}");
            assert!(bodies.iter().all(|body| body != "said by alice"), "{way}: {bodies:?}");
        }
    }
    let search = json!({ "search_categories": { "room_events": { "search_term": "said" } } });
    let found = async |user: &User| {
        user.post("/search", search.clone()).await.ok()["search_categories"]["room_events"]["count"].clone()
    };
    assert_eq!((found(&carol).await, found(&dave).await), (json!(3), json!(1)));
    let all = dave.get(&in_room(room, "/messages?dir=b&limit=50")).await.ok();
    assert!(bodies(&all["chunk"]).contains(&json!("said by bob")), "what others said is as it was");
    assert!(!all.to_string().contains("the reason of alice"));
    let shown = async |user: &User| user.get(&redaction).await.ok()["content"].clone();
    assert_eq!(shown(&carol).await, json!({ "reason": "the reason of alice", "redacts": reasoned }));
    assert_eq!(shown(&dave).await, json!({ "redacts": reasoned }));
    // The file of SQLite keeps what was deleted until its pages are used again.
    if !on_sqlite() {
        let dump = cluster.dump_database().await;
        assert!(!dump.contains("x.y") && !dump.contains("u.x"), "account data are gone");
    }
}

#[tokio::test]
async fn who_closes_an_account_without_erasure_has_said_what_was_said() {
    let cluster = TestCluster::start().await;
    let (alice, bob) = (cluster.user("alice").await, cluster.user("bob").await);
    let room = &*bob.create_public_room().await;
    alice.join(room).await;
    let said = alice.send_text(room, "said by alice").await;
    deactivate(&alice, false).await;
    let dave = cluster.user("dave").await;
    dave.join(room).await;
    let event = dave.get(&in_room(room, &format!("/event/{}", encode(&said)))).await.ok();
    assert_eq!(event["content"]["body"], "said by alice");
}
