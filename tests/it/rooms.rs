//! Rooms: who may do what, and that each replica shows what the other was told.

use std::collections::{HashMap, HashSet};

use keystead_tests::{
    TestCluster, User,
    cluster::{at, on_sqlite},
    http::encode,
    user::{in_room, transaction_id},
};
use serde_json::{Value, json};

#[tokio::test]
async fn presets_set_the_rules_of_a_room() {
    let cluster = TestCluster::start().await;
    let alice = cluster.user("alice").await;
    for (preset, join_rule, guests) in [
        ("private_chat", "invite", "can_join"),
        ("trusted_private_chat", "invite", "can_join"),
        ("public_chat", "public", "forbidden"),
    ] {
        let room = alice.create_room(json!({ "preset": preset })).await;
        let state = |kind: &'static str| {
            let (alice, room) = (alice.clone(), room.clone());
            async move { alice.state(&room, kind, "").await.ok() }
        };
        assert_eq!(state("m.room.join_rules").await["join_rule"], join_rule);
        assert_eq!(state("m.room.history_visibility").await["history_visibility"], "shared");
        let access = alice.state(&room, "m.room.guest_access", "").await;
        let access = access.body["guest_access"].as_str().unwrap_or("forbidden"); // as is a room without the event
        assert_eq!(access, guests);
    }
}

#[tokio::test]
async fn a_new_room_has_what_was_asked_for() {
    let cluster = TestCluster::start().await;
    let alice = cluster.user("alice").await;
    let bob = cluster.user("bob").await;
    let room = alice
        .create_room(json!({
            "preset": "private_chat",
            "name": "Board",
            "topic": "Figures",
            "room_alias_name": "board",
            "invite": [bob.id],
            "is_direct": true,
            "creation_content": { "m.federate": false },
            "power_level_content_override": { "events_default": 5 },
            "initial_state": [
                { "type": "m.room.history_visibility", "content": { "history_visibility": "joined" } },
                { "type": "org.example.color", "state_key": "wall", "content": { "color": "blue" } },
            ],
        }))
        .await;
    assert_eq!(alice.state(&room, "m.room.name", "").await.ok()["name"], "Board");
    let topic = alice.state(&room, "m.room.topic", "").await.ok();
    assert_eq!(topic["topic"], "Figures");
    let create = alice.state(&room, "m.room.create", "").await.ok();
    assert_eq!((&create["room_version"], &create["m.federate"]), (&json!("12"), &json!(false)));
    let visibility = alice.state(&room, "m.room.history_visibility", "").await.ok();
    assert_eq!(visibility["history_visibility"], "joined");
    assert_eq!(alice.state(&room, "org.example.color", "wall").await.ok()["color"], "blue");
    assert_eq!(alice.state(&room, "m.room.power_levels", "").await.ok()["events_default"], 5);
    let alias = alice.state(&room, "m.room.canonical_alias", "").await.ok();
    assert_eq!(alias["alias"], "#board:keystead.test");
    let invitation = alice.state(&room, "m.room.member", &bob.id).await.ok();
    assert_eq!((&invitation["membership"], &invitation["is_direct"]), (&json!("invite"), &json!(true)));
    let found = bob.get(&format!("/directory/room/{}", encode("#board:keystead.test"))).await.ok();
    assert_eq!(found["room_id"], json!(room));
}

#[tokio::test]
async fn every_room_version_that_is_offered_works() {
    let cluster = TestCluster::start().await;
    let alice = cluster.user("alice").await;
    let bob = cluster.user("bob").await;
    let capabilities = alice.get("/capabilities").await.ok();
    let versions = at(&capabilities, "/capabilities/m.room_versions");
    assert_eq!(versions["default"], "12");
    for version in ["10", "11", "12"] {
        assert_eq!(versions["available"][version], "stable");
        let room = alice.create_room(json!({ "room_version": version, "preset": "public_chat" })).await;
        bob.join(&room).await;
        let event = bob.send_text(&room, "hello").await;
        alice
            .put(&in_room(&room, &format!("/redact/{}/{}", encode(&event), transaction_id())), json!({}))
            .await
            .ok();
        let create = bob.state(&room, "m.room.create", "").await.ok();
        assert_eq!(create["room_version"], version);
    }
    let room = alice.create_public_room().await;
    for version in ["0815", "my_bad_version", "", "no version", &"9".repeat(40)] {
        let unknown = alice.post("/createRoom", json!({ "room_version": version })).await;
        unknown.refused(400, "M_UNSUPPORTED_ROOM_VERSION");
        let unknown = alice.post(&in_room(&room, "/upgrade"), json!({ "new_version": version })).await;
        unknown.refused(400, "M_UNSUPPORTED_ROOM_VERSION");
    }
    alice.post("/createRoom", json!({ "room_version": 1 })).await.refused(400, "M_BAD_JSON");
}

#[tokio::test]
async fn a_private_room_lets_in_whom_it_invites() {
    let cluster = TestCluster::start().await;
    let (alice, bob, eve) =
        (cluster.user("alice").await, cluster.user("bob").await, cluster.user("eve").await);
    let room = alice.create_room(json!({ "preset": "private_chat" })).await;
    eve.post(&in_room(&room, "/join"), json!({})).await.refused(403, "M_FORBIDDEN");
    alice.at(0).invite(&room, &bob).await;
    bob.at(1).join(&room).await;
    eve.post(&in_room(&room, "/invite"), json!({ "user_id": eve.id })).await.refused(403, "M_FORBIDDEN");
    eve.post(&in_room(&room, "/join"), json!({})).await.refused(403, "M_FORBIDDEN");

    for replica in 0..2 {
        let members = alice.at(replica).get(&in_room(&room, "/joined_members")).await.ok();
        let mut joined: Vec<_> =
            at(&members, "/joined").as_object().expect("a map").keys().cloned().collect();
        joined.sort();
        assert_eq!(joined, [alice.id.clone(), bob.id.clone()]);
        let rooms = bob.at(replica).get("/joined_rooms").await.ok();
        assert_eq!(rooms["joined_rooms"], json!([room]));
    }
}

#[tokio::test]
async fn strangers_learn_nothing_of_a_private_room() {
    let cluster = TestCluster::start().await;
    let (alice, eve) = (cluster.user("alice").await, cluster.user("eve").await);
    let room = alice.create_room(json!({ "preset": "private_chat" })).await;
    let event = alice.send_text(&room, "secret").await;
    let event = encode(&event);
    for path in ["/state", "/state/m.room.create/", "/members", "/joined_members", "/messages?dir=b"] {
        eve.get(&in_room(&room, path)).await.refused(403, "M_FORBIDDEN");
    }
    let context = eve.get(&in_room(&room, &format!("/context/{event}"))).await;
    assert!([403, 404].contains(&context.status), "{}", context.text);
    eve.get(&in_room(&room, &format!("/event/{event}"))).await.refused(404, "M_NOT_FOUND");
    let text = json!({ "msgtype": "m.text", "body": "let me in" });
    eve.put(&in_room(&room, "/send/m.room.message/1"), text).await.refused(403, "M_FORBIDDEN");
    eve.put(&in_room(&room, "/state/m.room.name/"), json!({ "name": "mine" }))
        .await
        .refused(403, "M_FORBIDDEN");
    let own = encode(&eve.id);
    let typing = json!({ "typing": true, "timeout": 1000 });
    eve.put(&in_room(&room, &format!("/typing/{own}")), typing).await.refused(403, "M_FORBIDDEN");
}

#[tokio::test]
async fn kick_and_ban_need_power_and_hold_on_all_replicas() {
    let cluster = TestCluster::start().await;
    let (alice, bob, carol) =
        (cluster.user("alice").await, cluster.user("bob").await, cluster.user("carol").await);
    let room = alice.create_public_room().await;
    bob.join(&room).await;
    carol.join(&room).await;
    let act = |user: &User, action: &str, target: &User| {
        let (user, path) = (user.clone(), in_room(&room, &format!("/{action}")));
        let body = json!({ "user_id": target.id, "reason": "because" });
        async move { user.post(&path, body).await }
    };
    for action in ["kick", "ban"] {
        act(&bob, action, &carol).await.refused(403, "M_FORBIDDEN");
    }
    assert_eq!(act(&bob, "unban", &carol).await.status, 403);
    act(&alice, "kick", &carol).await.ok();
    let member = bob.state(&room, "m.room.member", &carol.id).await.ok();
    assert_eq!((&member["membership"], &member["reason"]), (&json!("leave"), &json!("because")));
    carol.join(&room).await;

    act(&alice.at(0), "ban", &carol).await.ok();
    for replica in 0..2 {
        carol.at(replica).post(&in_room(&room, "/join"), json!({})).await.refused(403, "M_FORBIDDEN");
    }
    act(&alice.at(1), "unban", &carol).await.ok();
    carol.at(0).join(&room).await;
}

#[tokio::test]
async fn power_levels_decide_who_sets_state() {
    let cluster = TestCluster::start().await;
    let (alice, bob) = (cluster.user("alice").await, cluster.user("bob").await);
    let room = alice.create_public_room().await;
    bob.join(&room).await;
    let name = in_room(&room, "/state/m.room.name");
    bob.put(&name, json!({ "name": "Bob's" })).await.refused(403, "M_FORBIDDEN");

    let mut levels = alice.state(&room, "m.room.power_levels", "").await.ok();
    levels["users"][&bob.id] = 50.into();
    alice.at(0).set_state(&room, "m.room.power_levels", "", levels.clone()).await;
    bob.at(1).put(&name, json!({ "name": "Bob's" })).await.ok();
    assert_eq!(alice.at(0).state(&room, "m.room.name", "").await.ok()["name"], "Bob's");

    levels["users"][&bob.id] = 100.into();
    let more = bob.put(&in_room(&room, "/state/m.room.power_levels"), levels.clone()).await;
    more.refused(403, "M_FORBIDDEN");
    levels["users"][&bob.id] = "fifty".into();
    let odd = alice.put(&in_room(&room, "/state/m.room.power_levels"), levels).await;
    assert!([400, 403].contains(&odd.status), "{}", odd.text);
    alice.state(&room, "m.room.no_such_thing", "").await.refused(404, "M_NOT_FOUND");
}

#[tokio::test]
async fn the_rules_of_state_events_hold_for_messages_of_their_types() {
    let cluster = TestCluster::start().await;
    let (alice, bob) = (cluster.user("alice").await, cluster.user("bob").await);
    for version in ["10", "12"] {
        let body = json!({ "preset": "public_chat", "room_version": version });
        let room = alice.create_room(body).await;
        bob.join(&room).await;
        let mut levels = alice.state(&room, "m.room.power_levels", "").await.ok();
        levels["invite"] = 50.into();
        alice.set_state(&room, "m.room.power_levels", "", levels.clone()).await;
        let send = async |user: &User, kind: &str, content: &Value| {
            let path = in_room(&room, &format!("/send/{kind}/{}", transaction_id()));
            user.put(&path, content.clone()).await
        };

        let member = json!({ "membership": "ban" });
        let create = json!({ "room_version": version });
        let invitation = json!({ "display_name": "b", "key_validity_url": "https://x", "public_key": "k" });
        let own_levels = json!({ "users": { bob.id.clone(): 100 } });
        for (kind, content) in [
            ("m.room.create", &create),
            ("m.room.third_party_invite", &invitation),
            ("m.room.power_levels", &own_levels),
        ] {
            send(&bob, kind, content).await.refused(403, "M_FORBIDDEN");
        }
        // Of the room's admin only what no rule permits: a member event must have a state key, and a room is made once.
        for user in [&alice, &bob] {
            send(user, "m.room.member", &member).await.refused(400, "M_BAD_JSON");
        }
        send(&alice, "m.room.create", &create).await.refused(403, "M_FORBIDDEN");
        send(&alice, "m.room.third_party_invite", &invitation).await.ok();
        let malformed = send(&alice, "m.room.power_levels", &json!({ "users": { "nobody": 1 } })).await;
        assert!([400, 403].contains(&malformed.status), "{}", malformed.text);
        send(&alice, "m.room.power_levels", &levels).await.ok();
        send(&alice, "m.room.encryption", &json!({ "algorithm": "m.megolm.v1.aes-sha2" })).await.ok();
        alice.state(&room, "m.room.encryption", "").await.refused(404, "M_NOT_FOUND");
        assert_eq!(alice.state(&room, "m.room.power_levels", "").await.ok(), levels);

        // Nor does the type of a message get out of the rules of state.
        let named = in_room(&room, &format!("/state/m.room.message/{}", encode(&alice.id)));
        bob.put(&named, json!({})).await.refused(403, "M_FORBIDDEN");
        alice.put(&in_room(&room, "/state/m.room.redaction"), json!({})).await.refused(403, "M_FORBIDDEN");
    }
}

#[tokio::test]
async fn messages_are_paged_in_both_directions() {
    let cluster = TestCluster::start().await;
    let (alice, bob) = (cluster.user("alice").await, cluster.user("bob").await);
    let room = alice.create_public_room().await;
    bob.join(&room).await;
    let mut sent = Vec::new();
    for number in 0..25 {
        sent.push(alice.send_text(&room, &format!("message {number}")).await);
    }

    let mut backwards = page_through(&bob, &room, "b", None).await;
    backwards.reverse();
    let forwards = page_through(&bob, &room, "f", None).await;
    assert_eq!(backwards, forwards, "both directions show the same events");
    let messages: Vec<_> = forwards.into_iter().filter(|id| sent.contains(id)).collect();
    assert_eq!(messages, sent);

    let middle = bob.get(&in_room(&room, &format!("/context/{}?limit=4", encode(&sent[10])))).await.ok();
    assert_eq!(middle["event"]["event_id"], json!(sent[10]));
    let ids = |pointer: &str| event_ids(at(&middle, pointer));
    assert_eq!(ids("/events_before"), [&*sent[9], &sent[8]]);
    assert_eq!(ids("/events_after"), [&*sent[11], &sent[12]]);
    assert!(!at(&middle, "/state").as_array().expect("a list").is_empty());
    let alone = bob.get(&in_room(&room, &format!("/context/{}?limit=0", encode(&sent[14])))).await.ok();
    for list in ["/events_before", "/events_after"] {
        assert_eq!(at(&alone, list), &json!([]), "clients count on the list");
    }
    let end = at(&middle, "/end").as_str().expect("a token").to_owned();
    let on = bob.get(&in_room(&room, &format!("/messages?dir=f&limit=2&from={}", encode(&end)))).await.ok();
    assert_eq!(event_ids(at(&on, "/chunk")), [&*sent[13], &sent[14]]);
}

/// The ids of all events of a room, read in pages of seven.
async fn page_through(user: &User, room: &str, direction: &str, from: Option<String>) -> Vec<String> {
    let mut all = Vec::new();
    let mut from = from;
    loop {
        let place = from.map(|from| format!("&from={}", encode(&from))).unwrap_or_default();
        let path = in_room(room, &format!("/messages?dir={direction}&limit=7{place}"));
        let page = user.get(&path).await.ok();
        all.extend(event_ids(at(&page, "/chunk")));
        match page["end"].as_str() {
            Some(end) => from = Some(end.to_owned()),
            None => return all,
        }
        assert!(all.len() < 200, "the pages do not end");
    }
}

fn event_ids(events: &Value) -> Vec<String> {
    let events = events.as_array().expect("a list");
    events.iter().map(|event| at(event, "/event_id").as_str().expect("an id").to_owned()).collect()
}

#[tokio::test]
async fn messages_can_be_filtered_by_type_and_sender() {
    let cluster = TestCluster::start().await;
    let (alice, bob) = (cluster.user("alice").await, cluster.user("bob").await);
    let room = alice.create_public_room().await;
    bob.join(&room).await;
    alice.send_text(&room, "from alice").await;
    let wanted = bob.send_text(&room, "from bob").await;
    bob.send_event(&room, "org.example.other", json!({})).await;
    let filter = json!({ "types": ["m.room.message"], "senders": [bob.id] }).to_string();
    let path = in_room(&room, &format!("/messages?dir=b&filter={}", encode(&filter)));
    let page = alice.get(&path).await.ok();
    assert_eq!(event_ids(at(&page, "/chunk")), [wanted]);
}

#[tokio::test]
async fn history_is_shown_as_the_room_wants() {
    let cluster = TestCluster::start().await;
    let (alice, bob, carol) =
        (cluster.user("alice").await, cluster.user("bob").await, cluster.user("carol").await);
    for (visibility, sees) in [("shared", true), ("joined", false)] {
        let room = alice
            .create_room(json!({ "preset": "public_chat", "initial_state": [
                { "type": "m.room.history_visibility", "content": { "history_visibility": visibility } },
            ]}))
            .await;
        let before = alice.send_text(&room, "before bob").await;
        bob.join(&room).await;
        let while_in = alice.send_text(&room, "with bob").await;
        let shown = page_through(&bob, &room, "b", None).await;
        assert_eq!(shown.contains(&before), sees, "{visibility}");
        assert!(shown.contains(&while_in));
        let event = bob.get(&in_room(&room, &format!("/event/{}", encode(&before)))).await;
        assert_eq!(event.status, if sees { 200 } else { 404 }, "{}", event.text);

        bob.leave(&room).await;
        let after = alice.send_text(&room, "after bob").await;
        let shown = page_through(&bob, &room, "b", None).await;
        assert!(
            shown.contains(&while_in) && !shown.contains(&after),
            "{visibility}: what was seen stays seen"
        );
        let never = carol.get(&in_room(&room, &format!("/event/{}", encode(&after)))).await;
        never.refused(404, "M_NOT_FOUND");
    }
}

#[tokio::test]
async fn redaction_removes_the_content_everywhere() {
    let cluster = TestCluster::start().await;
    let (alice, bob) = (cluster.user("alice").await, cluster.user("bob").await);
    let room = alice.create_public_room().await;
    bob.join(&room).await;
    let event = alice.at(0).send_text(&room, "a slip").await;
    let path = in_room(&room, &format!("/redact/{}/r1", encode(&event)));
    bob.put(&path, json!({})).await.refused(403, "M_FORBIDDEN");
    let redaction = alice.at(0).put(&path, json!({ "reason": "a slip" })).await.ok();
    let again = alice.at(1).put(&path, json!({ "reason": "a slip" })).await.ok();
    assert_eq!(redaction, again, "the same transaction is the same redaction");
    for replica in 0..2 {
        let shown = bob.at(replica).get(&in_room(&room, &format!("/event/{}", encode(&event)))).await.ok();
        assert_eq!(shown["content"], json!({}));
        assert_eq!(shown["unsigned"]["redacted_because"]["event_id"], redaction["event_id"]);
    }
}

#[tokio::test]
async fn a_transaction_id_sends_once_through_whichever_replica() {
    let cluster = TestCluster::start().await;
    let alice = cluster.user("alice").await;
    let room = alice.create_public_room().await;
    let path = in_room(&room, "/send/m.room.message/once");
    let content = json!({ "msgtype": "m.text", "body": "once" });
    let tries = (0..10).map(|replica| {
        let user = alice.at(replica);
        let (path, content) = (path.clone(), content.clone());
        async move { user.put(&path, content).await.ok() }
    });
    let answers = futures_util::future::join_all(tries).await;
    assert!(answers.iter().all(|answer| answer == &answers[0]), "{answers:?}");
    let shown = page_through(&alice, &room, "b", None).await;
    let id = at(&answers[0], "/event_id").as_str().expect("an id");
    assert_eq!(shown.iter().filter(|shown| *shown == id).count(), 1);
    let filter = encode(&json!({ "types": ["m.room.message"] }).to_string());
    let messages = alice.get(&in_room(&room, &format!("/messages?dir=b&filter={filter}"))).await.ok();
    assert_eq!(at(&messages, "/chunk").as_array().expect("a list").len(), 1);

    // Another device's transactions are its own.
    let other = cluster.login("alice").await;
    let again = other.put(&path, content.clone()).await.ok();
    assert_ne!(again["event_id"], answers[0]["event_id"]);

    // What was done stays done, though it would be refused today.
    alice.leave(&room).await;
    for replica in 0..2 {
        assert_eq!(alice.at(replica).put(&path, content.clone()).await.ok(), answers[0]);
    }
}

#[tokio::test]
async fn members_can_be_filtered_by_membership() {
    let cluster = TestCluster::start().await;
    let (alice, bob, carol) =
        (cluster.user("alice").await, cluster.user("bob").await, cluster.user("carol").await);
    let room = alice.create_public_room().await;
    bob.join(&room).await;
    bob.leave(&room).await;
    alice.invite(&room, &carol).await;
    let members = |query: &str| {
        let (alice, path) = (alice.clone(), in_room(&room, &format!("/members{query}")));
        async move {
            let answer = alice.get(&path).await.ok();
            let mut ids: Vec<_> = at(&answer, "/chunk")
                .as_array()
                .expect("a list")
                .iter()
                .map(|event| event["state_key"].as_str().expect("text").to_owned())
                .collect();
            ids.sort();
            ids
        }
    };
    assert_eq!(members("").await, [&*alice.id, &bob.id, &carol.id]);
    assert_eq!(members("?membership=join").await, [&*alice.id]);
    assert_eq!(members("?not_membership=join").await, [&*bob.id, &carol.id]);
}

#[tokio::test]
async fn an_alias_names_one_room() {
    let cluster = TestCluster::start().await;
    let (alice, bob) = (cluster.user("alice").await, cluster.user("bob").await);
    let room = alice.create_public_room().await;
    let path = format!("/directory/room/{}", encode("#lobby:keystead.test"));
    bob.get(&path).await.refused(404, "M_NOT_FOUND");
    alice.put(&path, json!({ "room_id": room })).await.ok();
    let other = bob.create_public_room().await;
    bob.put(&path, json!({ "room_id": other })).await.refused(409, "M_UNKNOWN");
    let joined = bob.post(&format!("/join/{}", encode("#lobby:keystead.test")), json!({})).await.ok();
    assert_eq!(joined["room_id"], json!(room));
    let aliases = bob.get(&in_room(&room, "/aliases")).await.ok();
    assert_eq!(aliases["aliases"], json!(["#lobby:keystead.test"]));
    bob.delete(&path).await.refused(403, "M_FORBIDDEN");
    alice.delete(&path).await.ok();
    for replica in 0..2 {
        bob.at(replica).get(&path).await.refused(404, "M_NOT_FOUND");
    }
}

#[tokio::test]
async fn a_profile_shows_in_its_rooms() {
    let cluster = TestCluster::start().await;
    let (alice, bob) = (cluster.user("alice").await, cluster.user("bob").await);
    let room = alice.create_public_room().await;
    bob.join(&room).await;
    let path = format!("/profile/{}", encode(&bob.id));
    bob.put(&format!("{path}/displayname"), json!({ "displayname": "Bob B." })).await.ok();
    assert_eq!(alice.get(&path).await.ok()["displayname"], "Bob B.");
    let member = keystead_tests::eventually("the member event follows", || async {
        let member = alice.state(&room, "m.room.member", &bob.id).await.ok();
        (member["displayname"] == "Bob B.").then_some(member)
    })
    .await;
    assert_eq!(member["membership"], "join");
    alice
        .put(&format!("{path}/displayname"), json!({ "displayname": "x" }))
        .await
        .refused(403, "M_FORBIDDEN");
    let nobody = format!("/profile/{}", encode("@nobody:keystead.test"));
    alice.get(&nobody).await.refused(404, "M_NOT_FOUND");
}

#[tokio::test]
async fn who_joins_several_times_at_once_joins_once() {
    let cluster = TestCluster::start().await;
    let (alice, bob) = (cluster.user("alice").await, cluster.user("bob").await);
    let room = alice.create_public_room().await;
    futures_util::future::join_all((0..8).map(|n| {
        let (bob, room) = (bob.at(n % 2), &room);
        async move { bob.join(room).await }
    }))
    .await;
    let page = alice.get(&in_room(&room, "/messages?dir=b&limit=50")).await.ok();
    let joins = page["chunk"]
        .as_array()
        .expect("a list")
        .iter()
        .filter(|event| event["type"] == "m.room.member" && event["state_key"] == bob.id);
    assert_eq!(joins.count(), 1, "{page}");
}

#[tokio::test]
async fn a_profile_that_no_member_event_could_carry_is_refused() {
    let cluster = TestCluster::start().await;
    let bob = cluster.user("bob").await;
    let path = format!("/profile/{}", encode(&bob.id));
    bob.put(&format!("{path}/displayname"), json!({ "displayname": "x".repeat(3_000) }))
        .await
        .refused(400, "M_PROFILE_TOO_LARGE");
    bob.put(&format!("{path}/displayname"), json!({ "displayname": "x".repeat(1_000) })).await.ok();
    let room = bob.create_public_room().await;
    let member = bob.state(&room, "m.room.member", &bob.id).await.ok();
    assert_eq!(member["displayname"], "x".repeat(1_000));
}

#[tokio::test]
async fn messages_of_several_replicas_follow_each_other() {
    if on_sqlite() {
        return;
    }
    let cluster = TestCluster::start().await;
    let alice = cluster.user("alice").await;
    let room = alice.create_room(json!({})).await;
    // Each replica has the room in memory, and none hears of the other's messages before it sends its next one.
    let senders = (0..2).map(async |replica| {
        let mut own = Vec::new();
        for number in 0..20 {
            own.push(alice.at(replica).send_text(&room, &number.to_string()).await);
        }
        own
    });
    let sent = futures_util::future::join_all(senders).await;

    let events = cluster
        .sql(&format!("SELECT json_build_object('id', event_id, 'prev', json::json->'prev_events') FROM events WHERE room_id = '{room}'"))
        .await;
    let mut follows: HashMap<String, Vec<String>> = HashMap::new();
    for event in events.lines() {
        let event: Value = serde_json::from_str(event).expect("JSON");
        let prev: Vec<String> = serde_json::from_value(event["prev"].clone()).expect("a list");
        assert!(prev.len() <= 10, "{event}");
        follows.insert(event["id"].as_str().expect("an id").to_owned(), prev);
    }
    let comes_after = |event: &String, earlier: &String| {
        let (mut seen, mut open) = (HashSet::new(), vec![event]);
        while let Some(event) = open.pop() {
            if event == earlier {
                return true;
            }
            if seen.insert(event) {
                open.extend(&follows[event]);
            }
        }
        false
    };
    for own in &sent {
        for pair in own.windows(2) {
            assert!(comes_after(&pair[1], &pair[0]), "{} does not come after {}", pair[1], pair[0]);
        }
    }
    // One that is sent when both are known follows all.
    let last = alice.at(0).set_state(&room, "m.room.topic", "", json!({ "topic": "the end" })).await;
    let follows_last = cluster.sql(&format!("SELECT json FROM events WHERE event_id = '{last}'")).await;
    let open = cluster.sql(&format!("SELECT extremities FROM rooms WHERE room_id = '{room}'")).await;
    assert_eq!(open.trim(), json!([last]).to_string(), "{follows_last}");
}
