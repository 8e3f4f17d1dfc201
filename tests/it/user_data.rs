//! What users keep at the server: account data, tags, filters, profiles, receipts, pushers.

use keystead_tests::{
    TestCluster,
    http::encode,
    sync::{events, of_type, timeline},
    user::{User, in_room},
};
use serde_json::{Value, json};

#[tokio::test]
async fn account_data_reaches_the_other_devices_and_nobody_else() {
    let cluster = TestCluster::start().await;
    let (alice, bob) = (cluster.user("alice").await, cluster.user("bob").await);
    let tablet = cluster.login("alice").await;
    let mut tablets = tablet.at(1).syncing();
    tablets.next(0).await;
    let path = format!("/user/{}/account_data/org.example.x", encode(&alice.id));

    alice.at(0).get(&path).await.refused(404, "M_NOT_FOUND");
    alice.at(0).put(&path, json!({ "n": 1 })).await.ok();
    assert_eq!(tablet.at(1).get(&path).await.ok(), json!({ "n": 1 }));
    tablets
        .until("the account data", |answer| {
            let data = of_type(events(&answer["account_data"]), "org.example.x")?;
            (data["content"] == json!({ "n": 1 })).then_some(())
        })
        .await;
    bob.get(&path).await.refused(403, "M_FORBIDDEN");
    bob.put(&path, json!({})).await.refused(403, "M_FORBIDDEN");
    alice.put(&path, json!([1])).await.refused(400, "M_BAD_JSON");
    for controlled in ["m.push_rules", "m.fully_read"] {
        let path = format!("/user/{}/account_data/{controlled}", encode(&alice.id));
        alice.put(&path, json!({})).await.refused(405, "M_BAD_JSON");
    }
}

#[tokio::test]
async fn tags_are_account_data_of_their_room() {
    let cluster = TestCluster::start().await;
    let alice = cluster.user("alice").await;
    let room = alice.create_room(json!({})).await;
    let tags = format!("/user/{}/rooms/{}/tags", encode(&alice.id), encode(&room));
    alice.at(0).put(&format!("{tags}/m.favourite"), json!({ "order": 0.25 })).await.ok();
    alice.at(1).put(&format!("{tags}/u.work"), json!({})).await.ok();
    alice.at(0).delete(&format!("{tags}/u.gone")).await.ok();
    let all = json!({ "tags": { "m.favourite": { "order": 0.25 }, "u.work": {} } });
    assert_eq!(alice.at(1).get(&tags).await.ok(), all);
    let answer = alice.sync_once(None).await;
    let data = of_type(events(&answer["rooms"]["join"][&room]["account_data"]), "m.tag").expect("the tags");
    assert_eq!(data["content"], all);
    alice.delete(&format!("{tags}/m.favourite")).await.ok();
    assert_eq!(alice.get(&tags).await.ok(), json!({ "tags": { "u.work": {} } }));
}

#[tokio::test]
async fn settings_for_a_room_go_along_to_the_one_that_replaces_it() {
    let cluster = TestCluster::start().await;
    let (alice, bob) = (cluster.user("alice").await, cluster.user("bob").await);
    let old = alice.create_public_room().await;
    bob.join(&old).await;
    let tags = |user: &User, room: &str| format!("/user/{}/rooms/{}/tags", encode(&user.id), encode(room));
    let rule = |kind: &str, room: &str| format!("/pushrules/global/{kind}/{}", encode(room));
    let direct = |user: &User| format!("/user/{}/account_data/m.direct", encode(&user.id));
    for user in [&alice, &bob] {
        user.put(&format!("{}/m.favourite", tags(user, &old)), json!({ "order": 0.5 })).await.ok();
        user.put(&rule("room", &old), json!({ "actions": ["notify"] })).await.ok();
    }
    let of_room = json!({ "kind": "event_match", "key": "room_id", "pattern": old });
    bob.put(&rule("override", &old), json!({ "actions": [], "conditions": [of_room] })).await.ok();
    bob.put(&direct(&bob), json!({ &alice.id: [old] })).await.ok();

    // A room that only says that it replaces the other one gets nothing.
    let content = json!({ "predecessor": { "room_id": old, "event_id": "$last" } });
    let pretender = alice.create_room(json!({ "preset": "public_chat", "creation_content": content })).await;
    bob.join(&pretender).await;
    assert_eq!(bob.get(&tags(&bob, &pretender)).await.ok(), json!({ "tags": {} }));

    let upgraded = alice.at(0).post(&in_room(&old, "/upgrade"), json!({ "new_version": "12" })).await.ok();
    let new = upgraded["replacement_room"].as_str().expect("a room");
    bob.at(1).join(new).await;
    for user in [&alice, &bob] {
        let expected = json!({ "tags": { "m.favourite": { "order": 0.5 } } });
        assert_eq!(user.get(&tags(user, new)).await.ok(), expected, "{}", user.id);
        assert_eq!(user.get(&rule("room", new)).await.ok()["actions"], json!(["notify"]));
        assert_eq!(user.get(&tags(user, &old)).await.ok(), expected, "what there was stays");
    }
    assert_eq!(bob.get(&rule("override", new)).await.ok()["conditions"][0]["pattern"], new);
    assert_eq!(bob.get(&direct(&bob)).await.ok(), json!({ &alice.id: [old, new] }));
}

#[tokio::test]
async fn an_uploaded_filter_is_used_by_its_id() {
    let cluster = TestCluster::start().await;
    let (alice, bob) = (cluster.user("alice").await, cluster.user("bob").await);
    let room = alice.create_room(json!({ "name": "Filtered" })).await;
    alice.send_text(&room, "hello").await;
    let filters = format!("/user/{}/filter", encode(&alice.id));
    let filter = json!({ "room": { "timeline": { "types": ["m.room.name"] } } });
    let id = alice.at(0).post(&filters, filter.clone()).await.ok()["filter_id"].clone();
    let again = alice.at(1).post(&filters, filter.clone()).await.ok()["filter_id"].clone();
    assert_eq!(id, again, "the same filter is kept once");
    let id = id.as_str().expect("a string");
    assert_eq!(alice.at(1).get(&format!("{filters}/{id}")).await.ok(), filter);
    let answer = alice.at(1).get(&format!("/sync?timeout=0&filter={id}")).await.ok();
    assert!(timeline(&answer, &room).iter().all(|event| event["type"] == "m.room.name"), "{answer:#}");
    alice.get(&format!("{filters}/999")).await.refused(404, "M_NOT_FOUND");
    alice.get(&format!("{filters}/nonsense")).await.refused(404, "M_NOT_FOUND");
    bob.get(&format!("{filters}/{id}")).await.refused(403, "M_FORBIDDEN");
}

#[tokio::test]
async fn a_changed_profile_reaches_the_rooms() {
    let cluster = TestCluster::start().await;
    let (alice, bob) = (cluster.user("alice").await, cluster.user("bob").await);
    let room = alice.create_public_room().await;
    bob.join(&room).await;
    let mut bobs = bob.at(1).syncing();
    bobs.next(0).await;
    let profile = format!("/profile/{}", encode(&alice.id));

    alice.at(0).put(&format!("{profile}/displayname"), json!({ "displayname": "Alice L." })).await.ok();
    alice.at(0).put(&format!("{profile}/m.tz"), json!({ "m.tz": "Europe/Berlin" })).await.ok();
    let shown = json!({ "displayname": "Alice L.", "m.tz": "Europe/Berlin" });
    assert_eq!(bob.at(1).get(&profile).await.ok(), shown);
    assert_eq!(bob.get(&format!("{profile}/m.tz")).await.ok(), json!({ "m.tz": "Europe/Berlin" }));
    let member = bobs
        .until("the new name", |answer| {
            let named = |event: &&Value| event["content"]["displayname"] == "Alice L.";
            timeline(answer, &room).iter().find(named).cloned()
        })
        .await;
    assert_eq!((&member["state_key"], &member["content"]["membership"]), (&json!(alice.id), &json!("join")));

    alice.put(&format!("{profile}/displayname"), json!({ "displayname": "" })).await.ok();
    bobs.until("no name", |answer| {
        let unnamed = |event: &&Value| {
            event["state_key"] == json!(alice.id) && event["content"].get("displayname").is_none()
        };
        timeline(answer, &room).iter().find(unnamed).cloned()
    })
    .await;
    bob.get(&format!("{profile}/displayname")).await.refused(404, "M_NOT_FOUND");
    bob.put(&format!("{profile}/displayname"), json!({ "displayname": "x" }))
        .await
        .refused(403, "M_FORBIDDEN");
    bob.get("/profile/%40nobody%3Akeystead.test").await.refused(404, "M_NOT_FOUND");
    bob.get("/profile/%40nobody%3Aelsewhere.test").await.refused(404, "M_NOT_FOUND");
    let long = "a".repeat(256);
    alice.put(&format!("{profile}/{long}"), json!({ &long: 1 })).await.refused(400, "M_KEY_TOO_LARGE");
    let huge = json!({ "org.example.x": "a".repeat(70_000) });
    alice.put(&format!("{profile}/org.example.x"), huge).await.refused(400, "M_PROFILE_TOO_LARGE");
}

#[tokio::test]
async fn private_receipts_are_seen_by_their_reader_alone() {
    let cluster = TestCluster::start().await;
    let (alice, bob) = (cluster.user("alice").await, cluster.user("bob").await);
    let room = alice.create_public_room().await;
    bob.join(&room).await;
    let first = alice.send_text(&room, "one").await;
    let second = alice.send_text(&room, "two").await;
    let (mut alices, mut bobs) = (alice.at(0).syncing(), bob.at(1).syncing());
    alices.next(0).await;
    bobs.next(0).await;
    let receipt = |kind: &str, event: &str| in_room(&room, &format!("/receipt/{kind}/{}", encode(event)));
    let seen = |answer: &Value, kind: &str, event: &str| {
        let ephemeral = events(&answer["rooms"]["join"][&room]["ephemeral"]);
        let receipts = of_type(ephemeral, "m.receipt")?;
        receipts["content"][event][kind].get(&bob.id).map(|_| ())
    };

    bob.at(0).post(&receipt("m.read.private", &first), json!({})).await.ok();
    bobs.until("the private receipt", |answer| seen(answer, "m.read.private", &first)).await;
    bob.at(0).post(&receipt("m.read", &second), json!({})).await.ok();
    let mut private = false;
    alices
        .until("the public receipt", |answer| {
            private |= seen(answer, "m.read.private", &first).is_some();
            seen(answer, "m.read", &second)
        })
        .await;
    assert!(!private, "a private receipt reached somebody else");

    let stranger = cluster.user("mallory").await;
    stranger.post(&receipt("m.read", &second), json!({})).await.refused(403, "M_FORBIDDEN");
    bob.post(&receipt("m.seen", &second), json!({})).await.refused(400, "M_INVALID_PARAM");
    bob.post(&receipt("m.read", "$nothing"), json!({})).await.refused(404, "M_NOT_FOUND");
    let thread = json!({ "thread_id": "$elsewhere" });
    bob.post(&receipt("m.read", &second), thread).await.refused(400, "M_INVALID_PARAM");
}

#[tokio::test]
async fn the_read_marker_moves_forward_only() {
    let cluster = TestCluster::start().await;
    let alice = cluster.user("alice").await;
    let room = alice.create_room(json!({})).await;
    let first = alice.send_text(&room, "one").await;
    let second = alice.send_text(&room, "two").await;
    let marker = format!("/user/{}/rooms/{}/account_data/m.fully_read", encode(&alice.id), encode(&room));
    let mark = async |event: &str| {
        let body = json!({ "m.fully_read": event, "m.read": event });
        alice.at(0).post(&in_room(&room, "/read_markers"), body).await.ok();
        alice.at(1).get(&marker).await.ok()["event_id"].clone()
    };
    assert_eq!(mark(&first).await, json!(first));
    assert_eq!(mark(&second).await, json!(second));
    assert_eq!(mark(&first).await, json!(second));
}

#[tokio::test]
async fn typing_is_seen_until_it_ends() {
    let cluster = TestCluster::start().await;
    let (alice, bob) = (cluster.user("alice").await, cluster.user("bob").await);
    let room = alice.create_public_room().await;
    bob.join(&room).await;
    let mut bobs = bob.at(1).syncing();
    bobs.next(0).await;
    let path = in_room(&room, &format!("/typing/{}", encode(&alice.id)));
    let typists = |answer: &Value| {
        let ephemeral = events(&answer["rooms"]["join"][&room]["ephemeral"]);
        of_type(ephemeral, "m.typing").map(|event| event["content"]["user_ids"].clone())
    };
    alice.at(0).put(&path, json!({ "typing": true })).await.ok();
    let who = bobs.until("typing", typists).await;
    assert_eq!(who, json!([alice.id]));
    alice.at(0).put(&path, json!({ "typing": false })).await.ok();
    assert_eq!(bobs.until("no more typing", typists).await, json!([]));
    bob.put(&path, json!({ "typing": true })).await.refused(403, "M_FORBIDDEN");
    alice.put(&path, json!({ "typing": "yes" })).await.refused(400, "M_BAD_JSON");
}

#[tokio::test]
async fn a_pusher_belongs_to_the_last_user_of_its_address() {
    let cluster = TestCluster::start().await;
    let (alice, bob) = (cluster.user("alice").await, cluster.user("bob").await);
    let pusher = |kind: Value| {
        json!({
            "kind": kind, "app_id": "app", "pushkey": "key", "app_display_name": "App", "lang": "en",
            "device_display_name": "Phone", "data": { "url": "https://push.example/_matrix/push/v1/notify" },
        })
    };
    alice.at(0).post("/pushers/set", pusher(json!("http"))).await.ok();
    assert_eq!(alice.at(1).get("/pushers").await.ok()["pushers"][0]["pushkey"], "key");
    bob.post("/pushers/set", pusher(json!("http"))).await.ok();
    assert_eq!(alice.get("/pushers").await.ok(), json!({ "pushers": [] }));
    bob.post("/pushers/set", pusher(Value::Null)).await.ok();
    assert_eq!(bob.get("/pushers").await.ok(), json!({ "pushers": [] }));
    bob.post("/pushers/set", pusher(json!("email"))).await.refused(400, "M_INVALID_PARAM");
}

#[tokio::test]
async fn clients_that_start_get_what_they_ask_for() {
    let cluster = TestCluster::start().await;
    let alice = cluster.user("alice").await;
    let capabilities = alice.get("/capabilities").await.ok()["capabilities"].clone();
    assert_eq!(capabilities["m.room_versions"]["default"], "12");
    assert_eq!(capabilities["m.room_versions"]["available"]["10"], "stable");
    assert_eq!(alice.get("/voip/turnServer").await.ok(), json!({}));
    assert_eq!(alice.get("/thirdparty/protocols").await.ok(), json!({}));
    alice.get("/thirdparty/protocol/irc").await.refused(404, "M_NOT_FOUND");
}
