//! `/sync` after a gap: what memory no longer holds, and what a client may not see or does not want to.

use std::collections::BTreeMap;

use futures_util::future::join_all;
use keystead_tests::{
    TestCluster, User,
    http::encode,
    sync::{Syncing, events, of_type, timeline, timeline_limit},
    user::{in_room, transaction_id},
};
use serde_json::{Value, json};

use crate::syncing::pair;

async fn set_topic(user: &User, room: &str, topic: &str) {
    user.set_state(room, "m.room.topic", "", json!({ "topic": topic })).await;
}

/// The state that a client has after an answer that shows it a whole room: the state section, and the timeline laid over it.
fn state_of(room: &Value) -> BTreeMap<(String, String), Value> {
    let text = |event: &Value, name: &str| event[name].as_str().map(str::to_owned);
    let all = events(&room["state"]).iter().chain(events(&room["timeline"]));
    all.filter_map(|event| {
        Some(((text(event, "type")?, text(event, "state_key")?), event["content"].clone()))
    })
    .collect()
}

fn topic_of(room: &Value) -> Option<String> {
    let state = state_of(room);
    let topic = state.get(&("m.room.topic".to_owned(), String::new()))?;
    topic["topic"].as_str().map(str::to_owned)
}

fn unread_in(room: &str, answer: &Value) -> Option<u64> {
    answer["rooms"]["join"][room]["unread_notifications"]["notification_count"].as_u64()
}

/// Two in a room, both at the first replica, of whom the second syncs and has been told of one message.
async fn pair_with_one_unread() -> (User, User, String, Syncing) {
    let (alice, bob, room) = pair().await;
    let (alice, bob) = (alice.at(0), bob.at(0));
    let mut bobs = bob.syncing();
    bobs.until_joined(&room).await;
    alice.send_text(&room, "one").await;
    assert_eq!(bobs.until("the first", |answer| unread_in(&room, answer)).await, 1);
    (alice, bob, room, bobs)
}

#[tokio::test]
async fn a_private_receipt_in_memory_hides_no_events_that_are_not() {
    let (alice, bob, room) = pair().await;
    let cluster = alice.cluster.clone();
    let mut bobs = bob.at(0).syncing();
    bobs.until_joined(&room).await;
    let event = alice.send_text(&room, "while nobody looks").await;
    // The replica remembers nothing of the room from before its start.
    cluster.kill(0);
    cluster.restart(0).await;
    let path = in_room(&room, &format!("/receipt/m.read.private/{}", encode(&event)));
    bob.at(0).post(&path, json!({})).await.ok();
    bobs.until_event(&room, &event).await;
}

#[tokio::test]
async fn what_is_unread_is_counted_though_memory_does_not_reach_back() {
    let (alice, bob, room) = pair().await;
    let mut bobs = bob.at(0).syncing_with(&timeline_limit(3));
    bobs.until_joined(&room).await;
    let unread = |answer: &Value| unread_in(&room, answer);
    alice.send_text(&room, "one").await;
    assert_eq!(bobs.until("the first", unread).await, 1);
    // More than the 16 MiB that a replica remembers of a shard.
    let big = "x".repeat(60_000);
    for _ in 0..15 {
        join_all((0..20).map(|_| alice.send_text(&room, &big))).await;
    }
    assert_eq!(bobs.until("the others", unread).await, 100, "as far as events are counted");
}

#[tokio::test]
async fn what_is_unread_is_counted_on_after_other_rooms_had_news() {
    let (alice, bob, room, mut bobs) = pair_with_one_unread().await;
    let unread = |answer: &Value| unread_in(&room, answer);
    // More rooms than there are shards, so that the token passes on in that of this room.
    let others = join_all((0..24).map(|_| alice.create_public_room())).await;
    for (sent, counted) in [(1, 2), (2, 4), (105, 100)] {
        for other in &others {
            bob.join(other).await;
            bobs.until_joined(other).await;
            bob.leave(other).await;
        }
        bobs.next(0).await;
        join_all((0..sent).map(|_| alice.send_text(&room, "more"))).await;
        // The messages may come in parts.
        let all = |answer: &Value| unread(answer).filter(|told| *told >= counted);
        assert_eq!(bobs.until("the others", all).await, counted, "{sent} more");
    }
}

#[tokio::test]
async fn what_came_before_a_join_is_not_unread() {
    let (alice, bob, room, mut bobs) = pair_with_one_unread().await;
    let unread = |answer: &Value| unread_in(&room, answer);
    bob.leave(&room).await;
    alice.send_text(&room, "while he is away").await;
    bob.join(&room).await;
    assert_eq!(bobs.until("the join", unread).await, 0);
    alice.send_text(&room, "two").await;
    assert_eq!(bobs.until("the next", unread).await, 1);
}

#[tokio::test]
async fn who_comes_back_ends_with_the_state_that_is_in_force() {
    let (alice, bob, room) = pair().await;
    let joined = json!({ "history_visibility": "joined" });
    alice.set_state(&room, "m.room.history_visibility", "", joined).await;
    set_topic(&alice, &room, "seen").await;
    let mut bobs = bob.syncing_with(&timeline_limit(50));
    bobs.until_joined(&room).await;
    bob.leave(&room).await;
    set_topic(&alice, &room, "not seen").await;
    bob.join(&room).await;
    let back = bobs.until_joined(&room).await;
    assert_eq!(topic_of(&back).as_deref(), Some("not seen"), "{back:#}");

    let first = bob.syncing_with(&timeline_limit(50)).until_joined(&room).await;
    assert_eq!(topic_of(&first).as_deref(), Some("not seen"), "{first:#}");
    assert_eq!(first["timeline"]["limited"], true, "it begins after the topic that is no longer so");
}

#[tokio::test]
async fn a_filter_by_senders_does_not_bring_back_older_state() {
    let (alice, bob, room) = pair().await;
    let carol = alice.cluster.user("carol").await;
    carol.join(&room).await;
    alice.set_state(&room, "m.room.power_levels", "", json!({ "state_default": 0 })).await;
    let filter = json!({ "room": { "timeline": { "not_senders": [carol.id], "limit": 50 } } });
    let mut bobs = bob.syncing_with(&filter);
    bobs.until_joined(&room).await;
    let since = bobs.since().expect("a token").to_owned();
    set_topic(&alice, &room, "older").await;
    set_topic(&carol, &room, "newer").await;
    let last = alice.send_text(&room, "last").await;
    let mut again = bob.syncing_with(&filter);
    again.resume(&since);
    let answer = again.until_joined(&room).await;
    assert_eq!(topic_of(&answer).as_deref(), Some("newer"), "{answer:#}");
    assert_eq!(events(&answer["timeline"]).last().expect("an event")["event_id"], json!(last));

    bob.leave(&room).await;
    again.resume(&since);
    let answer = again.until("left", |answer| answer["rooms"]["leave"].get(&room).cloned()).await;
    assert_eq!(topic_of(&answer).as_deref(), Some("newer"), "{answer:#}");
}

#[tokio::test]
async fn who_came_and_went_between_two_syncs_is_shown_the_whole_state() {
    let cluster = TestCluster::start().await;
    let (alice, bob) = (cluster.user("alice").await, cluster.user("bob").await);
    let room = alice.create_public_room().await;
    let mut bobs: Syncing = bob.syncing_with(&timeline_limit(1));
    bobs.next(0).await;
    bob.join(&room).await;
    bob.leave(&room).await;
    let left = bobs.until("left", |answer| answer["rooms"]["leave"].get(&room).cloned()).await;
    assert!(of_type(events(&left["state"]), "m.room.create").is_some(), "{left:#}");
    assert!(timeline(&json!({ "rooms": { "join": { &room: left } } }), &room).len() == 1);
}

#[tokio::test]
async fn who_leaves_a_room_hears_that_nobody_is_shared_with_any_longer() {
    let (alice, bob, room) = pair().await;
    let carol = alice.cluster.user("carol").await;
    carol.join(&room).await;
    let mut bobs = bob.syncing();
    bobs.until_joined(&room).await;
    alice.leave(&room).await;
    bob.leave(&room).await;
    let answer = bobs.next(0).await;
    let mut left = answer["device_lists"]["left"].as_array().expect("a list").clone();
    left.sort_by_key(ToString::to_string);
    assert_eq!(left, [json!(alice.id), json!(carol.id)], "also who has left like oneself");
}

#[tokio::test]
async fn what_was_redacted_is_no_longer_counted_as_unread() {
    let (alice, bob, room) = pair().await;
    let mut bobs = bob.at(0).syncing();
    bobs.until_joined(&room).await;
    let unread = |answer: &Value| unread_in(&room, answer);
    let first = alice.send_text(&room, "one").await;
    alice.send_text(&room, "two").await;
    let mut count = 0;
    while count < 2 {
        count = bobs.until("both", unread).await;
    }
    let path = in_room(&room, &format!("/redact/{}/{}", encode(&first), transaction_id()));
    alice.put(&path, json!({})).await.ok();
    assert_eq!(bobs.until("the redaction", unread).await, 1);
}

#[tokio::test]
async fn a_new_name_reads_nothing() {
    let (alice, bob, room) = pair().await;
    let cluster = alice.cluster.clone();
    let mut bobs = bob.at(0).syncing();
    bobs.until_joined(&room).await;
    alice.send_text(&room, "one").await;
    let name = json!({ "displayname": "Robert" });
    bob.put(&format!("/profile/{}/displayname", encode(&bob.id)), name).await.ok();
    // So that it counts anew, from the database.
    cluster.kill(0);
    cluster.restart(0).await;
    let answer = bobs.until_joined(&room).await;
    assert_eq!(answer["unread_notifications"]["notification_count"], 1, "{answer:#}");
}

fn ids_of(events: &[Value]) -> Vec<&str> {
    events.iter().filter_map(|event| event["event_id"].as_str()).collect()
}

fn is_limited(room: &Value) -> bool {
    room["timeline"]["limited"] == true
}

/// The ids of the events before a token that a filter lets through, newest first.
async fn ids_before(user: &User, room: &str, token: &Value, filter: &Value) -> Vec<String> {
    let token = encode(token.as_str().expect("a token"));
    let path = format!("/messages?dir=b&limit=100&from={token}&filter={}", encode(&filter.to_string()));
    let page = user.get(&in_room(room, &path)).await.ok();
    ids_of(page["chunk"].as_array().expect("a chunk")).into_iter().map(str::to_owned).collect()
}

#[tokio::test]
async fn what_a_filter_takes_out_does_not_count_towards_the_limit() {
    let (alice, bob, room) = pair().await;
    let fill = async |count: u32| {
        join_all((0..count).map(|_| alice.send_event(&room, "org.example.filler", json!({})))).await;
    };
    let messages = json!({ "types": ["m.room.message"] });
    let limit =
        |limit: u32| json!({ "room": { "timeline": { "types": ["m.room.message"], "limit": limit } } });
    let first = alice.send_text(&room, "first").await;
    fill(12).await;
    let mut bobs = bob.syncing_with(&limit(1));
    let joined = bobs.until_joined(&room).await;
    assert_eq!(ids_of(events(&joined["timeline"])), [&*first]);
    assert!(!is_limited(&joined), "nothing else is wanted: {joined:#}");

    // From memory.
    let second = alice.send_text(&room, "second").await;
    let third = alice.send_text(&room, "third").await;
    fill(3).await;
    let joined = bobs.until_joined(&room).await;
    let shown: Vec<_> = events(&joined["timeline"]).to_vec();
    assert_eq!((ids_of(&shown), &joined["timeline"]["limited"]), (vec![&*third], &json!(true)));
    let before = ids_before(&bob, &room, &joined["timeline"]["prev_batch"], &messages).await;
    assert_eq!(before, [&*second, &*first], "paging goes on right before what was shown");

    // Far back, where one page of the database does not reach.
    fill(240).await;
    for (wanted, shown, has_more) in
        [(2, vec![&*second, &*third], true), (3, vec![&*first, &*second, &*third], false)]
    {
        let joined = bob.syncing_with(&limit(wanted)).until_joined(&room).await;
        assert_eq!(ids_of(events(&joined["timeline"])), shown);
        assert_eq!(is_limited(&joined), has_more, "{wanted}");
        let before = ids_before(&bob, &room, &joined["timeline"]["prev_batch"], &messages).await;
        assert_eq!(before, if has_more { vec![&*first] } else { vec![] }, "{wanted}");
        assert!(state_of(&joined).len() > 5, "the whole state: {joined:#}");
    }
    bob.leave(&room).await;
    let left =
        json!({ "room": { "include_leave": true, "timeline": { "types": ["m.room.message"], "limit": 2 } } });
    let answer = bob.syncing_with(&left).next(0).await;
    let timeline = &answer["rooms"]["leave"][&room]["timeline"];
    assert_eq!((ids_of(events(timeline)), &timeline["limited"]), (vec![&*second, &*third], &json!(true)));
}

#[tokio::test]
async fn ignored_users_do_not_fill_the_timeline_after_a_gap() {
    let (alice, bob, room) = pair().await;
    let cluster = alice.cluster.clone();
    let list = json!({ "ignored_users": { alice.id.clone(): {} } });
    bob.put(&format!("/user/{}/account_data/m.ignored_user_list", encode(&bob.id)), list).await.ok();
    let mut bobs = bob.at(0).syncing_with(&timeline_limit(2));
    bobs.until_joined(&room).await;
    let topic = "in the middle";
    let own = bob.send_text(&room, "own").await;
    join_all((0..60).map(|_| alice.send_text(&room, "ignored"))).await;
    set_topic(&alice, &room, topic).await;
    join_all((0..60).map(|_| alice.send_text(&room, "ignored"))).await;
    // The replica remembers nothing of the room from before its start.
    cluster.kill(0);
    cluster.restart(0).await;
    let joined = bobs.until_joined(&room).await;
    let shown = events(&joined["timeline"]);
    assert_eq!(shown.len(), 2, "{joined:#}");
    assert_eq!((&shown[0]["event_id"], &shown[1]["content"]["topic"]), (&json!(own), &json!(topic)));
    assert!(!is_limited(&joined), "{joined:#}");
}

#[tokio::test]
async fn what_somebody_may_not_see_takes_no_place_among_what_is_wanted() {
    let (alice, bob, room) = pair().await;
    let seen = alice.send_text(&room, "seen").await;
    bob.leave(&room).await;
    let joined = json!({ "history_visibility": "joined" });
    alice.set_state(&room, "m.room.history_visibility", "", joined).await;
    join_all((0..60).map(|_| alice.send_text(&room, "not for bob"))).await;
    bob.join(&room).await;
    let filter = json!({ "room": { "timeline": { "types": ["m.room.message"], "limit": 1 } } });
    let joined = bob.syncing_with(&filter).until_joined(&room).await;
    assert_eq!(ids_of(events(&joined["timeline"])), [&*seen]);
    assert!(!is_limited(&joined), "{joined:#}");
}

/// What the state section says of members, in the order of their ids.
fn members_of(room: &Value) -> BTreeMap<&str, &str> {
    let members = events(&room["state"]).iter().filter(|event| event["type"] == "m.room.member");
    members
        .filter_map(|event| Some((event["state_key"].as_str()?, event["content"]["membership"].as_str()?)))
        .collect()
}

#[tokio::test]
async fn who_came_and_went_in_a_gap_is_told_though_members_are_loaded_lazily() {
    let (alice, bob, room) = pair().await;
    let cluster = alice.cluster.clone();
    let (carol, dave) = (cluster.user("carol").await, cluster.user("dave").await);
    carol.join(&room).await;
    let filter = json!({ "room": { "timeline": { "limit": 2 }, "state": { "lazy_load_members": true } } });
    for restarted in [false, true] {
        let mut bobs = bob.at(0).syncing_with(&filter);
        let whole = bobs.until_joined(&room).await;
        assert!(!members_of(&whole).contains_key(&*carol.id), "a whole state: {whole:#}");
        let (gone, come) = if restarted { (&dave, &carol) } else { (&carol, &dave) };
        gone.leave(&room).await;
        come.join(&room).await;
        for _ in 0..3 {
            alice.send_text(&room, "hi").await;
        }
        if restarted {
            // What happened is no longer in the replica's memory.
            cluster.kill(0);
            cluster.restart(0).await;
        }
        let gap = bobs.until_joined(&room).await;
        assert!(is_limited(&gap), "{gap:#}");
        let expected = [(&*alice.id, "join"), (&*gone.id, "leave"), (&*come.id, "join")];
        assert_eq!(members_of(&gap), BTreeMap::from(expected), "restarted: {restarted}");
    }
}

#[tokio::test]
async fn what_is_known_of_a_room_from_before_does_not_reach_up_to_its_timeline() {
    let (alice, bob, room) = pair().await;
    bob.leave(&room).await;
    let messages = json!({ "room": { "timeline": { "types": ["m.room.message"] } } });
    let mut bobs = bob.syncing_with(&messages);
    bobs.next(0).await;
    let mut sent = Vec::new();
    for text in ["when it comes", "when it comes back"] {
        sent.push(alice.send_text(&room, text).await);
        bob.join(&room).await;
        let joined = bobs.until_joined(&room).await;
        assert_eq!(ids_of(events(&joined["timeline"])), sent);
        assert!(is_limited(&joined), "{joined:#}");
        bob.leave(&room).await;
        bobs.until("the end of it", |answer| answer["rooms"]["leave"].get(&room).cloned()).await;
    }

    let mut alices = alice.syncing();
    alices.next(0).await;
    let own = alice.create_room(json!({})).await;
    let joined = alices.until_joined(&own).await;
    assert!(!is_limited(&joined), "nothing was before its beginning: {joined:#}");
}
