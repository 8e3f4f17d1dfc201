//! `/sync`: everything that happens reaches everyone concerned, whichever replica they ask.

use keystead_tests::{
    TestCluster, User,
    cluster::{at, on_sqlite},
    http::encode,
    sync::{events, of_type, timeline, timeline_limit},
    user::{in_room, transaction_id},
};
use serde_json::{Value, json};

pub(crate) async fn pair() -> (User, User, String) {
    let cluster = TestCluster::start().await;
    let (alice, bob) = (cluster.user("alice").await, cluster.user("bob").await);
    let room = alice.create_public_room().await;
    bob.join(&room).await;
    (alice, bob, room)
}

fn ids(events: &[Value]) -> Vec<&str> {
    events.iter().map(|event| event["event_id"].as_str().expect("an id")).collect()
}

#[tokio::test]
async fn a_message_sent_through_one_replica_wakes_the_syncs_of_the_other() {
    let (alice, bob, room) = pair().await;
    for (writer, reader) in [(0, 1), (1, 0), (0, 0)] {
        let mut bobs = bob.at(reader).syncing();
        bobs.next(0).await;
        let alice = alice.at(writer);
        let waiting =
            bobs.until("the message", |answer| of_type(timeline(answer, &room), "m.room.message").cloned());
        let (event, seen) = tokio::join!(alice.send_text(&room, "wake up"), waiting);
        assert_eq!(seen["event_id"], json!(event));
        assert_eq!(seen["content"]["body"], "wake up");
        assert_eq!(seen["sender"], json!(alice.id));
        assert!(seen.get("room_id").is_none(), "the room is known from the place in the answer");
        assert!(seen["origin_server_ts"].is_u64());
    }
}

#[tokio::test]
async fn the_sender_learns_which_transaction_an_event_was() {
    let (alice, bob, room) = pair().await;
    let mut alices = alice.syncing();
    alices.next(0).await;
    let txn = transaction_id();
    let path = in_room(&room, &format!("/send/m.room.message/{txn}"));
    let answer = alice.put(&path, json!({ "msgtype": "m.text", "body": "hi" })).await.ok();
    let id = answer["event_id"].as_str().expect("an id");
    let own = alices.until_event(&room, id).await;
    assert_eq!(own["unsigned"]["transaction_id"], json!(txn));
    let others = bob.syncing().until_event(&room, id).await;
    assert!(others["unsigned"].get("transaction_id").is_none(), "{others}");
}

#[tokio::test]
async fn events_tell_what_their_reader_was_to_the_room() {
    let cluster = TestCluster::start().await;
    let (alice, bob) = (cluster.user("alice").await, cluster.user("bob").await);
    let room = alice.create_public_room().await;
    let before = alice.send_text(&room, "before").await;
    alice.invite(&room, &bob).await;
    let between = alice.send_text(&room, "between").await;
    bob.join(&room).await;
    let after = alice.send_text(&room, "after").await;
    let membership = |events: &[Value], id: &str| {
        let event = events.iter().find(|event| event["event_id"] == id);
        event.unwrap_or_else(|| panic!("{id}: {events:#?}"))["unsigned"]["membership"].clone()
    };
    let expected = [(&before, "leave"), (&between, "invite"), (&after, "join")];

    // A first sync, a page, a single event and its surroundings tell the same.
    let answer = bob.sync_once(None).await;
    let page = bob.get(&in_room(&room, "/messages?dir=b&limit=50")).await.ok();
    for (id, was) in expected {
        assert_eq!(membership(timeline(&answer, &room), id), was, "sync, {id}");
        assert_eq!(membership(page["chunk"].as_array().expect("events"), id), was, "messages, {id}");
        let event = bob.get(&in_room(&room, &format!("/event/{}", encode(id)))).await.ok();
        assert_eq!(event["unsigned"]["membership"], was, "event, {id}");
        let context = bob.get(&in_room(&room, &format!("/context/{}?limit=0", encode(id)))).await.ok();
        assert_eq!(context["event"]["unsigned"]["membership"], was, "context, {id}");
    }
    let members = bob.get(&in_room(&room, "/members")).await.ok();
    let member = |id: &str| {
        let chunk = members["chunk"].as_array().expect("members");
        let member = chunk.iter().find(|event| event["state_key"] == id).expect("a member");
        member["unsigned"]["membership"].clone()
    };
    assert_eq!((member(&alice.id), member(&bob.id)), (json!("leave"), json!("join")));

    // News of every later sync, and what was last seen of a room that was left.
    let mut bobs = bob.syncing();
    bobs.next(0).await;
    let news = alice.send_text(&room, "news").await;
    assert_eq!(bobs.until_event(&room, &news).await["unsigned"]["membership"], "join");
    let last = alice.send_text(&room, "last").await;
    bob.leave(&room).await;
    let answer = bobs.until("left", |answer| answer["rooms"]["leave"].get(&room).cloned()).await;
    let events = events(&answer["timeline"]).to_vec();
    assert_eq!(membership(&events, &last), "join");
    let left = events.last().expect("an event");
    assert_eq!((&left["state_key"], &left["unsigned"]["membership"]), (&json!(bob.id), &json!("leave")));
}

#[tokio::test]
async fn an_initial_sync_has_the_state_and_the_newest_events() {
    let (alice, bob, room) = pair().await;
    alice.set_state(&room, "m.room.name", "", json!({ "name": "Lobby" })).await;
    let mut sent = Vec::new();
    for number in 0..15 {
        sent.push(alice.send_text(&room, &format!("{number}")).await);
    }
    let mut bobs = bob.syncing_with(&timeline_limit(5));
    let joined = bobs.until_joined(&room).await;
    assert_eq!(joined["timeline"]["limited"], true);
    assert_eq!(ids(events(&joined["timeline"])), sent[10..]);
    let state = events(&joined["state"]);
    for kind in ["m.room.create", "m.room.power_levels", "m.room.join_rules", "m.room.name"] {
        assert!(of_type(state, kind).is_some(), "no {kind}");
    }
    assert_eq!(state.iter().filter(|event| event["type"] == "m.room.member").count(), 2);

    let before = at(&joined, "/timeline/prev_batch").as_str().expect("a token");
    let path = in_room(&room, &format!("/messages?dir=b&limit=3&from={}", encode(before)));
    let page = bob.get(&path).await.ok();
    let page = at(&page, "/chunk").as_array().expect("a list").clone();
    assert_eq!(ids(&page), [&*sent[9], &sent[8], &sent[7]], "prev_batch leads to what came before");
}

#[tokio::test]
async fn a_gap_is_marked_and_its_state_is_given() {
    let (alice, bob, room) = pair().await;
    let mut bobs = bob.at(1).syncing_with(&timeline_limit(3));
    bobs.until_joined(&room).await;
    alice.set_state(&room, "m.room.topic", "", json!({ "topic": "in the gap" })).await;
    let mut sent = Vec::new();
    for number in 0..6 {
        sent.push(alice.send_text(&room, &format!("{number}")).await);
    }
    let last = bobs.until_joined(&room).await;
    assert_eq!(last["timeline"]["limited"], true);
    assert_eq!(ids(events(&last["timeline"])), sent[3..]);
    let state = events(&last["state"]);
    assert_eq!(state.len(), 1, "the state that changed in the gap, and no more: {state:?}");
    assert_eq!(state[0]["content"]["topic"], "in the gap");

    let quiet = bobs.next(0).await;
    assert!(quiet["rooms"]["join"].get(&room).is_none(), "nothing happened: {quiet:#}");
}

#[tokio::test]
async fn who_wants_no_timeline_gets_the_state_alone() {
    let (alice, bob, room) = pair().await;
    let mut bobs = bob.at(1).syncing_with(&timeline_limit(0));
    let first = bobs.until_joined(&room).await;
    assert_eq!((&first["timeline"]["events"], &first["timeline"]["limited"]), (&json!([]), &json!(true)));
    assert!(of_type(events(&first["state"]), "m.room.create").is_some(), "{first:#}");
    alice.set_state(&room, "m.room.topic", "", json!({ "topic": "news" })).await;
    let next = bobs.until_joined(&room).await;
    assert_eq!((&next["timeline"]["events"], &next["timeline"]["limited"]), (&json!([]), &json!(true)));
    assert_eq!(events(&next["state"]).len(), 1, "{next:#}");
    assert_eq!(events(&next["state"])[0]["content"]["topic"], "news");
    // What was not shown can be read from where the timeline would have ended.
    let before = next["timeline"]["prev_batch"].as_str().expect("a token");
    let page =
        bob.get(&in_room(&room, &format!("/messages?dir=b&limit=1&from={}", encode(before)))).await.ok();
    assert_eq!(page["chunk"][0]["content"]["topic"], "news");
}

#[tokio::test]
async fn an_old_token_still_works_on_any_replica() {
    let (alice, bob, room) = pair().await;
    let mut bobs = bob.at(0).syncing();
    bobs.until_joined(&room).await;
    let since = bobs.since().expect("a token").to_owned();
    let event = alice.send_text(&room, "one").await;
    for replica in [1, 0, 1] {
        let mut again = bob.at(replica).syncing();
        again.resume(&since);
        let answer = again.next(0).await;
        assert_eq!(ids(timeline(&answer, &room)), [&*event], "the same answer each time");
    }
    bob.get("/sync?since=nonsense&timeout=0").await.refused(400, "M_INVALID_PARAM");
}

#[tokio::test]
async fn invitations_come_with_what_a_client_shows() {
    let cluster = TestCluster::start().await;
    let (alice, bob) = (cluster.user("alice").await, cluster.user("bob").await);
    let mut bobs = bob.at(1).syncing();
    bobs.next(0).await;
    let room = alice.at(0).create_room(json!({ "name": "Plans", "invite": [bob.id] })).await;
    let stripped = bobs.until_invited(&room).await;
    let stripped = stripped.as_array().expect("a list");
    for kind in ["m.room.create", "m.room.name", "m.room.join_rules"] {
        assert!(of_type(stripped, kind).is_some(), "no {kind} in {stripped:?}");
    }
    let own =
        stripped.iter().find(|event| event["state_key"] == json!(bob.id)).expect("the invitation itself");
    assert_eq!(own["content"]["membership"], "invite");

    bob.at(0).leave(&room).await;
    bobs.until("the refusal", |answer| answer["rooms"]["leave"].get(&room).cloned()).await;
}

#[tokio::test]
async fn a_join_brings_the_whole_state_and_a_leave_ends_the_room() {
    let cluster = TestCluster::start().await;
    let (alice, bob) = (cluster.user("alice").await, cluster.user("bob").await);
    let room = alice.create_room(json!({ "preset": "public_chat", "name": "Hall" })).await;
    let mut bobs = bob.syncing();
    bobs.next(0).await;
    bob.at(0).join(&room).await;
    let joined = bobs.until_joined(&room).await;
    let all: Vec<_> = [events(&joined["state"]), events(&joined["timeline"])].concat();
    for kind in ["m.room.create", "m.room.name", "m.room.power_levels"] {
        assert!(of_type(&all, kind).is_some(), "no {kind}: {joined:#}");
    }
    assert_eq!(joined["summary"]["m.joined_member_count"], 2);

    bob.at(1).leave(&room).await;
    let left = bobs.until("the leave", |answer| answer["rooms"]["leave"].get(&room).cloned()).await;
    let own = events(&left["timeline"]).last().expect("an event");
    assert_eq!((&own["state_key"], &own["content"]["membership"]), (&json!(bob.id), &json!("leave")));
    alice.send_text(&room, "after bob").await;
    let after = bobs.next(0).await;
    assert!(!after["rooms"].to_string().contains("after bob"), "{after:#}");
    let fresh = bob.sync_once(None).await;
    assert!(fresh["rooms"]["leave"].get(&room).is_none(), "left rooms need include_leave: {fresh:#}");
}

#[tokio::test]
async fn filters_choose_rooms_types_and_senders() {
    let (alice, bob, room) = pair().await;
    let other = alice.create_public_room().await;
    bob.join(&other).await;
    alice.send_text(&room, "text").await;
    bob.send_event(&room, "org.example.note", json!({ "note": 1 })).await;
    let note = alice.send_event(&room, "org.example.note", json!({ "note": 2 })).await;
    alice.send_event(&other, "org.example.note", json!({ "note": 3 })).await;

    let filter = json!({ "room": {
        "rooms": [room],
        "timeline": { "types": ["org.example.*"], "not_senders": [bob.id] },
        "state": { "types": [] },
    }});
    let stored = bob.at(0).post(&format!("/user/{}/filter", encode(&bob.id)), filter.clone()).await.ok();
    let id = at(&stored, "/filter_id").as_str().expect("an id").to_owned();
    let read = bob.at(1).get(&format!("/user/{}/filter/{id}", encode(&bob.id))).await.ok();
    assert_eq!(read["room"]["rooms"], filter["room"]["rooms"]);
    let unknown = bob.get(&format!("/user/{}/filter/999999", encode(&bob.id))).await;
    unknown.refused(404, "M_NOT_FOUND");

    let inline = bob.syncing_with(&filter).next(0).await;
    let by_id = bob.at(1).get(&format!("/sync?timeout=0&filter={id}")).await.ok();
    for answer in [inline, by_id] {
        assert_eq!(ids(timeline(&answer, &room)), [&*note]);
        assert!(answer["rooms"]["join"].get(&other).is_none());
        assert!(events(&answer["rooms"]["join"][&room]["state"]).is_empty());
    }
}

#[tokio::test]
async fn a_filter_may_ask_for_events_as_servers_exchange_them() {
    let (alice, bob, room) = pair().await;
    let filter = json!({ "event_format": "federation", "room": { "timeline": { "limit": 1 } } });
    let mut bobs = bob.syncing_with(&filter);
    let joined = bobs.until_joined(&room).await;
    let sent = alice.send_text(&room, "hello").await;
    let message = bobs.until_event(&room, &sent).await;
    let member = of_type(events(&joined["state"]), "m.room.member").expect("a member event");
    for event in [&message, member] {
        assert!(event["auth_events"].is_array(), "{event:#}");
        assert!(event["prev_events"].as_array().is_some_and(|ids| !ids.is_empty()), "{event:#}");
        assert!(event["depth"].is_u64() && event["hashes"]["sha256"].is_string(), "{event:#}");
        assert!(event["signatures"].is_object() && event["unsigned"]["age"].is_u64(), "{event:#}");
        assert_eq!((&event["room_id"], &event["sender"]), (&json!(room), &json!(alice.id)));
    }
    assert_eq!(message["content"]["body"], "hello");
    bob.leave(&room).await;
    let left = bobs.until("left", |answer| answer["rooms"]["leave"].get(&room).cloned()).await;
    assert!(events(&left["timeline"])[0]["hashes"].is_object(), "{left:#}");
}

#[tokio::test]
async fn lazy_loading_gives_the_members_who_spoke() {
    let (alice, bob, room) = pair().await;
    alice
        .set_state(&room, "m.room.name", "", json!({ "name": "Without a name, members stand for it" }))
        .await;
    let cluster = alice.cluster.clone();
    for name in ["carol", "dave", "erin"] {
        cluster.user(name).await.join(&room).await;
    }
    alice.send_text(&room, "hello").await;
    let filter = json!({ "room": {
        "timeline": { "limit": 1 },
        "state": { "lazy_load_members": true },
    }});
    let mut bobs = bob.syncing_with(&filter);
    let joined = bobs.until_joined(&room).await;
    let mut members: Vec<_> = events(&joined["state"])
        .iter()
        .filter(|event| event["type"] == "m.room.member")
        .map(|event| event["state_key"].as_str().expect("text"))
        .collect();
    members.sort_unstable();
    assert_eq!(members, [&*alice.id, &bob.id], "the sender and oneself");
    assert_eq!(joined["summary"]["m.joined_member_count"], 5);

    let carol = cluster.login("carol").await;
    carol.send_text(&room, "me too").await;
    let next = bobs.until_joined(&room).await;
    let state = events(&next["state"]);
    assert_eq!(state.len(), 1, "{state:?}");
    assert_eq!(state[0]["state_key"], json!(carol.id));
}

#[tokio::test]
async fn a_left_room_heeds_the_filter_of_its_state() {
    let (alice, bob, room) = pair().await;
    let carol = alice.cluster.user("carol").await;
    carol.join(&room).await;
    alice.set_state(&room, "m.room.topic", "", json!({ "topic": "early" })).await;
    let mut start = bob.syncing();
    start.until_joined(&room).await;
    let since = start.since().expect("a token").to_owned();
    alice.set_state(&room, "m.room.topic", "", json!({ "topic": "late" })).await;
    bob.leave(&room).await;
    alice.set_state(&room, "m.room.topic", "", json!({ "topic": "after bob" })).await;

    let state = async |section: &str, since: Option<&str>, limit: u32, filter: Value| {
        let filter = json!({ "room": {
            "include_leave": true,
            "timeline": { "limit": limit },
            "state": filter,
        }});
        let mut path = format!("/sync?timeout=0&filter={}", encode(&filter.to_string()));
        if section == "state_after" {
            path.push_str("&use_state_after=true");
        }
        if let Some(since) = since {
            path.push_str(&format!("&since={}", encode(since)));
        }
        let bob = bob.on_one_replica();
        bob.get("/account/whoami").await.ok();
        let answer = bob.get(&path).await.ok();
        let mut state: Vec<_> = events(&answer["rooms"]["leave"][&room][section])
            .iter()
            .map(|event| {
                let content = &event["content"];
                let detail = content["topic"].as_str().or(content["membership"].as_str());
                [event["type"].as_str(), event["state_key"].as_str(), detail]
                    .map(Option::unwrap_or_default)
                    .join(" ")
            })
            .collect();
        state.sort_unstable();
        state
    };
    let members = json!({ "types": ["m.room.member"] });
    let all = [(&alice, "join"), (&bob, "join"), (&carol, "join")];
    let all = all.map(|(user, membership)| format!("m.room.member {} {membership}", user.id));
    assert_eq!(state("state", None, 1, members.clone()).await, all, "types, on a first sync");
    let topic = json!({ "types": ["m.room.topic"] });
    assert_eq!(state("state", Some(&since), 1, topic.clone()).await, ["m.room.topic  late"]);
    assert_eq!(state("state", Some(&since), 1, json!({ "not_types": ["m.room.*"] })).await, [""; 0]);

    let lazy = json!({ "types": ["m.room.member"], "lazy_load_members": true });
    assert_eq!(state("state", None, 1, lazy.clone()).await, all[1..2], "only oneself spoke");
    assert_eq!(state("state", None, 2, lazy.clone()).await, all[..2], "alice set the topic");

    // As of the end of the timeline: with the own leave, and without what came after it.
    let left = format!("m.room.member {} leave", bob.id);
    assert_eq!(state("state_after", None, 2, lazy).await, [all[0].clone(), left]);
    assert_eq!(state("state_after", Some(&since), 2, topic).await, ["m.room.topic  late"]);
}

#[tokio::test]
async fn a_room_without_a_name_is_known_by_its_members() {
    let (alice, bob, room) = pair().await;
    let filter = json!({ "room": { "timeline": { "limit": 1 }, "state": { "lazy_load_members": true } } });
    alice.send_text(&room, "hello").await;
    let carol = alice.cluster.user("carol").await;
    carol.join(&room).await;
    alice.send_text(&room, "hello again").await;
    let joined = bob.syncing_with(&filter).until_joined(&room).await;
    let mut heroes: Vec<_> = at(&joined, "/summary/m.heroes").as_array().expect("a list").clone();
    heroes.sort_by_key(ToString::to_string);
    assert_eq!(heroes, [json!(alice.id), json!(carol.id)]);
    let state = events(&joined["state"]);
    for hero in heroes {
        assert!(state.iter().any(|event| event["state_key"] == hero), "no member event of {hero}");
    }
}

#[tokio::test]
async fn typing_shows_and_ends() {
    let (alice, bob, room) = pair().await;
    let mut bobs = bob.at(1).syncing();
    bobs.until_joined(&room).await;
    let path = in_room(&room, &format!("/typing/{}", encode(&alice.id)));
    let users = |answer: &Value| {
        let ephemeral = events(&answer["rooms"]["join"][&room]["ephemeral"]);
        of_type(ephemeral, "m.typing").map(|event| event["content"]["user_ids"].clone())
    };
    alice.at(0).put(&path, json!({ "typing": true, "timeout": 30_000 })).await.ok();
    bobs.until("alice types", |answer| users(answer).filter(|users| users == &json!([alice.id]))).await;
    alice.at(0).put(&path, json!({ "typing": false })).await.ok();
    bobs.until("alice stopped", |answer| users(answer).filter(|users| users == &json!([]))).await;
    alice.at(0).put(&path, json!({ "typing": true, "timeout": 300 })).await.ok();
    bobs.until("alice's typing ran out", |answer| users(answer).filter(|users| users == &json!([]))).await;
    let others = in_room(&room, &format!("/typing/{}", encode(&bob.id)));
    alice.put(&others, json!({ "typing": true })).await.refused(403, "M_FORBIDDEN");
}

#[tokio::test]
async fn receipts_reach_the_room_and_private_ones_only_oneself() {
    let (alice, bob, room) = pair().await;
    let event = alice.send_text(&room, "read me").await;
    let mut alices = alice.at(1).syncing();
    alices.until_event(&room, &event).await;
    let path = |kind: &str| in_room(&room, &format!("/receipt/{kind}/{}", encode(&event)));
    let receipt = |answer: &Value, kind: &str| {
        let ephemeral = events(&answer["rooms"]["join"][&room]["ephemeral"]);
        let content = of_type(ephemeral, "m.receipt")?["content"].clone();
        content[&event][kind].get(&bob.id).cloned()
    };

    bob.at(0).post(&path("m.read.private"), json!({})).await.ok();
    let mut bobs = bob.at(1).syncing();
    bobs.until("one's own private receipt", |answer| receipt(answer, "m.read.private")).await;
    bob.at(0).post(&path("m.read"), json!({})).await.ok();
    let mut private = None;
    let public = alices
        .until("bob's receipt", |answer| {
            private = private.take().or_else(|| receipt(answer, "m.read.private"));
            receipt(answer, "m.read")
        })
        .await;
    assert_eq!(private, None, "nobody else sees a private receipt");
    assert!(public["ts"].is_u64());

    assert_eq!(bob.post(&path("m.read.nonsense"), json!({})).await.status, 400);
}

#[tokio::test]
async fn receipts_keep_their_thread() {
    let (alice, bob, room) = pair().await;
    let event = alice.send_text(&room, "read me").await;
    let path = in_room(&room, &format!("/receipt/m.read/{}", encode(&event)));
    bob.post(&path, json!({ "thread_id": "main" })).await.ok();
    alice
        .syncing()
        .until("bob's receipt", |answer| {
            let ephemeral = events(&answer["rooms"]["join"][&room]["ephemeral"]);
            let receipt = of_type(ephemeral, "m.receipt")?["content"][&event]["m.read"].get(&bob.id)?.clone();
            (receipt["thread_id"] == "main").then_some(())
        })
        .await;
}

#[tokio::test]
async fn unread_counts_follow_the_receipts() {
    let (alice, bob, room) = pair().await;
    let mut bobs = bob.syncing();
    bobs.until_joined(&room).await;
    let mut last = String::new();
    for _ in 0..3 {
        last = alice.send_text(&room, "news").await;
    }
    bobs.until("three unread", |answer| {
        let counts = &answer["rooms"]["join"][&room]["unread_notifications"];
        (counts["notification_count"] == 3).then_some(())
    })
    .await;
    let mention = json!({ "msgtype": "m.text", "body": "look", "m.mentions": { "user_ids": [bob.id] } });
    alice.send_event(&room, "m.room.message", mention).await;
    bob.post(&in_room(&room, &format!("/receipt/m.read/{}", encode(&last))), json!({})).await.ok();
    bobs.until("one unread", |answer| {
        let counts = &answer["rooms"]["join"][&room]["unread_notifications"];
        (counts["notification_count"] == 1 && counts["highlight_count"] == 1).then_some(())
    })
    .await;
}

#[tokio::test]
async fn account_data_reaches_the_other_devices() {
    let (alice, bob, room) = pair().await;
    let tablet = alice.cluster.login("alice").await;
    let mut tablets = tablet.at(1).syncing();
    tablets.next(0).await;
    let me = encode(&alice.id);
    let global = format!("/user/{me}/account_data/org.example.setting");
    alice.at(0).put(&global, json!({ "dark": true })).await.ok();
    tablets
        .until("global data", |answer| {
            of_type(events(&answer["account_data"]), "org.example.setting").cloned()
        })
        .await;
    assert_eq!(tablet.at(1).get(&global).await.ok(), json!({ "dark": true }));

    let local = format!("/user/{me}/rooms/{}/account_data/org.example.mark", encode(&room));
    alice.at(1).put(&local, json!({ "mark": 1 })).await.ok();
    tablets
        .until("the room's data", |answer| {
            of_type(events(&answer["rooms"]["join"][&room]["account_data"]), "org.example.mark").cloned()
        })
        .await;
    let tags = format!("/user/{me}/rooms/{}/tags", encode(&room));
    alice.put(&format!("{tags}/m.favourite"), json!({ "order": 0.5 })).await.ok();
    assert_eq!(tablet.get(&tags).await.ok()["tags"]["m.favourite"]["order"], 0.5);

    bob.put(&global, json!({})).await.refused(403, "M_FORBIDDEN");
    let protected = format!("/user/{me}/account_data/m.fully_read");
    let answer = alice.put(&protected, json!({})).await;
    assert_eq!((answer.status, answer.errcode()), (405, "M_BAD_JSON"), "{}", answer.text);
    let never = format!("/user/{me}/account_data/org.example.never");
    alice.get(&never).await.refused(404, "M_NOT_FOUND");
}

#[tokio::test]
async fn account_data_of_rooms_heeds_the_filter_and_is_told_once() {
    let (alice, _bob, room) = pair().await;
    let filter = json!({ "room": { "account_data": { "not_types": ["org.example.unwanted"] } } });
    let mut alices = alice.syncing_with(&filter);
    alices.until_joined(&room).await;
    let place = format!("/user/{}/rooms/{}/account_data", encode(&alice.id), encode(&room));
    for number in 1..=3 {
        alice.put(&format!("{place}/org.example.mark"), json!({ "mark": number })).await.ok();
        alice.put(&format!("{place}/org.example.unwanted"), json!({ "mark": number })).await.ok();
    }
    let newest = json!([{ "type": "org.example.mark", "content": { "mark": 3 } }]);
    let next = alices.next(0).await;
    assert_eq!(next["rooms"]["join"][&room]["account_data"]["events"], newest, "{next:#}");
    let first = alice.syncing_with(&filter).next(0).await;
    assert_eq!(first["rooms"]["join"][&room]["account_data"]["events"], newest, "{first:#}");
}

#[tokio::test]
async fn to_device_messages_arrive_once_and_wait_for_their_device() {
    let (alice, bob, _room) = pair().await;
    let tablet = bob.cluster.login("bob").await;
    let mut bobs = bob.at(1).syncing();
    bobs.next(0).await;
    let to = |device: &str, number: u32| json!({ "messages": { &bob.id: { device: { "number": number } } } });
    let path = "/sendToDevice/org.example.ping/t1";
    alice.at(0).put(path, to(&bob.device, 1)).await.ok();
    alice.at(1).put(path, to(&bob.device, 1)).await.ok();
    alice.put("/sendToDevice/org.example.ping/t2", to("*", 2)).await.ok();

    let numbers = |answer: &Value| -> Vec<u64> {
        events(&answer["to_device"])
            .iter()
            .map(|event| event["content"]["number"].as_u64().unwrap())
            .collect()
    };
    let mut got = Vec::new();
    let before = bobs.since().expect("a token").to_owned();
    bobs.until("both messages", |answer| {
        got.extend(numbers(answer));
        got.contains(&2).then_some(())
    })
    .await;
    assert_eq!(got, [1, 2]);
    // An answer that was lost on its way can be had again.
    let mut again = bob.at(0).syncing();
    again.resume(&before);
    assert_eq!(numbers(&again.next(0).await), [1, 2]);
    // What a newer token acknowledged is gone.
    bobs.next(0).await;
    for replica in 0..2 {
        let fresh = bob.at(replica).sync_once(None).await;
        assert_eq!(numbers(&fresh), [0_u64; 0]);
    }

    let mut tablets = tablet.syncing();
    let event = tablets.until("the tablet's", |answer| events(&answer["to_device"]).first().cloned()).await;
    assert_eq!(event["content"]["number"], 2);
    assert_eq!((&event["sender"], &event["type"]), (&json!(alice.id), &json!("org.example.ping")));
}

#[tokio::test]
async fn a_sync_that_waits_ends_when_its_time_is_over() {
    let (_alice, bob, _room) = pair().await;
    let mut bobs = bob.syncing();
    bobs.next(0).await;
    let asked = tokio::time::Instant::now();
    bobs.next(500).await;
    let waited = asked.elapsed().as_millis();
    assert!((450..10_000).contains(&waited), "{waited} ms");
}

#[tokio::test]
async fn full_state_gives_all_of_it_again() {
    let (_alice, bob, room) = pair().await;
    let mut bobs = bob.syncing();
    bobs.until_joined(&room).await;
    let since = encode(bobs.since().expect("a token"));
    let bob = bob.on_one_replica();
    bob.get("/account/whoami").await.ok();
    let full = bob.get(&format!("/sync?timeout=0&full_state=true&since={since}")).await.ok();
    let state = events(&full["rooms"]["join"][&room]["state"]);
    assert!(of_type(state, "m.room.create").is_some(), "{full:#}");
}

#[tokio::test]
async fn state_that_the_filter_takes_out_of_the_timeline_is_told_as_state() {
    let (alice, bob, room) = pair().await;
    let filter = json!({ "room": { "timeline": { "types": ["m.room.message"] } } });
    let mut bobs = bob.syncing_with(&filter);
    let first = bobs.next(0).await;
    let state = events(&first["rooms"]["join"][&room]["state"]).to_vec();
    assert!(of_type(&state, "m.room.create").is_some(), "{first}");

    // In the middle of what is shown, where the start of the timeline does not tell it.
    let before = alice.send_text(&room, "before").await;
    alice.set_state(&room, "m.room.topic", "", json!({ "topic": "old" })).await;
    alice.set_state(&room, "m.room.topic", "", json!({ "topic": "new" })).await;
    let after = alice.send_text(&room, "after").await;
    let answer = bobs.next(0).await;
    assert_eq!(ids(timeline(&answer, &room)), [&*before, &*after]);
    let state = events(&answer["rooms"]["join"][&room]["state"]);
    assert_eq!(state.len(), 1, "{answer}");
    assert_eq!(state[0]["content"]["topic"], "new");
}

#[tokio::test]
async fn who_comes_back_learns_the_state_that_was_set_meanwhile() {
    let (alice, bob, room) = pair().await;
    alice.set_state(&room, "m.room.history_visibility", "", json!({ "history_visibility": "joined" })).await;
    let mut bobs = bob.syncing();
    bobs.next(0).await;
    bob.leave(&room).await;
    alice.set_state(&room, "m.room.topic", "", json!({ "topic": "set meanwhile" })).await;
    let secret = alice.send_text(&room, "not for bob").await;
    bob.join(&room).await;
    for answer in [bobs.next(0).await, bob.syncing_with(&timeline_limit(50)).next(0).await] {
        let shown = timeline(&answer, &room);
        assert!(!ids(shown).contains(&&*secret), "{answer}");
        let state = events(&answer["rooms"]["join"][&room]["state"]);
        let topic = of_type(state, "m.room.topic").expect("the topic in the state");
        assert_eq!(topic["content"]["topic"], "set meanwhile");
    }
}

#[tokio::test]
async fn messages_and_invitations_of_ignored_users_do_not_come() {
    let (alice, bob, room) = pair().await;
    let list = json!({ "ignored_users": { alice.id.clone(): {} } });
    bob.put(&format!("/user/{}/account_data/m.ignored_user_list", encode(&bob.id)), list).await.ok();
    let mut bobs = bob.syncing();
    bobs.next(0).await;
    let ignored = alice.send_text(&room, "ignored").await;
    alice.set_state(&room, "m.room.topic", "", json!({ "topic": "state is shown" })).await;
    let private = alice.create_room(json!({ "invite": [bob.id] })).await;
    let own = bob.send_text(&room, "own").await;
    let answer = bobs.next(0).await;
    let shown = timeline(&answer, &room);
    assert!(ids(shown).contains(&&*own) && !ids(shown).contains(&&*ignored), "{answer}");
    assert!(of_type(shown, "m.room.topic").is_some(), "{answer}");
    assert!(answer["rooms"]["invite"].get(&private).is_none(), "{answer}");
}

#[tokio::test]
async fn a_damaged_event_keeps_nobody_from_the_others() {
    let (alice, bob, room) = pair().await;
    let (damaged, after) = (alice.send_text(&room, "damaged").await, alice.send_text(&room, "after").await);
    let cluster = &alice.cluster;
    let mut bobs = bob.syncing();
    bobs.next(0).await;
    cluster.tamper(&format!("UPDATE events SET json = 'no JSON' WHERE event_id = '{damaged}'")).await;
    let first = bob.syncing().next(0).await;
    let shown = ids(timeline(&first, &room));
    assert!(shown.contains(&&*after) && !shown.contains(&&*damaged), "{first}");
    let page = bob.get(&in_room(&room, "/messages?dir=b&limit=3")).await.ok();
    let shown = ids(page["chunk"].as_array().expect("a chunk"));
    assert!(shown.contains(&&*after) && !shown.contains(&&*damaged), "{page}");
    assert_eq!(shown.len(), 3, "a page that has fewer is the last one: {page}");

    if !on_sqlite() {
        // The replicas come upon one while they follow the stream.
        cluster
            .sql(&format!(
                "WITH at AS (UPDATE stream_shards SET position = position + 1
                     WHERE shard = (SELECT shard FROM rooms WHERE room_id = '{room}') RETURNING shard, position),
                 head AS (UPDATE rooms SET position = at.position FROM at WHERE room_id = '{room}')
                 INSERT INTO events (shard, position, room_id, event_id, json)
                     SELECT shard, position, '{room}', 'no id', '{{}}' FROM at"
            ))
            .await;
    }
    for replica in 0..cluster.size() {
        let sent = alice.at(replica).send_text(&room, "and on").await;
        bobs.until_event(&room, &sent).await;
    }
}
