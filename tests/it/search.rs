//! The search for words in what was said.

use keystead_tests::{TestCluster, User, http::encode, user::in_room};
use serde_json::{Value, json};

async fn search(user: &User, room_events: Value, next_batch: Option<&str>) -> Value {
    let query = next_batch.map(|token| format!("?next_batch={}", encode(token))).unwrap_or_default();
    let body = json!({ "search_categories": { "room_events": room_events } });
    user.post(&format!("/search{query}"), body).await.ok()["search_categories"]["room_events"].clone()
}

fn ids(found: &Value) -> Vec<&str> {
    let results = found["results"].as_array().map(Vec::as_slice).unwrap_or_default();
    results.iter().map(|result| result["result"]["event_id"].as_str().expect("an id")).collect()
}

#[tokio::test]
async fn words_are_found_in_messages_names_and_topics() {
    let cluster = TestCluster::start().await;
    let alice = cluster.user("alice").await;
    let room = alice.create_room(json!({ "name": "Martians" })).await;
    let other = alice.create_room(json!({ "topic": "about martians" })).await;
    let long = alice.at(0).send_text(&room, "Men and MARTIANS, and others").await;
    let short = alice.at(0).send_text(&other, "martians!").await;
    let umlaut = alice.send_text(&other, "die Ärzte").await;
    alice.send_text(&room, "a martian").await;
    alice.send_event(&room, "m.room.encrypted", json!({ "body": "martians" })).await;

    let all = search(&alice.at(1), json!({ "search_term": "martians", "order_by": "recent" }), None).await;
    assert_eq!(all["count"], 4, "{all:#}");
    assert!(ids(&all).contains(&short.as_str()) && ids(&all).contains(&long.as_str()), "{all:#}");
    assert_eq!(all["highlights"], json!(["martians"]));
    assert!(all.get("next_batch").is_none());
    assert_eq!(all["results"][0]["result"]["unsigned"]["membership"], "join");

    let bodies = json!({ "search_term": "martians", "keys": ["content.body"], "order_by": "rank" });
    let bodies = search(&alice, bodies, None).await;
    assert_eq!(ids(&bodies), [&short, &long], "what is more of the text ranks higher");
    assert!(bodies["results"][0]["rank"].as_f64() > bodies["results"][1]["rank"].as_f64(), "{bodies:#}");
    let of = async |criteria: Value| {
        let found = search(&alice, criteria, None).await;
        ids(&found).into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(of(json!({ "search_term": "others men" })).await, std::slice::from_ref(&long));
    assert_eq!(of(json!({ "search_term": "ÄRZTE" })).await, [umlaut]);
    assert_eq!(of(json!({ "search_term": "%" })).await, [""; 0]);
    let of_one_room =
        json!({ "search_term": "martians", "keys": ["content.body"], "filter": { "rooms": [room] } });
    assert_eq!(of(of_one_room).await, std::slice::from_ref(&long));
    let by_nobody = json!({ "search_term": "martians", "filter": { "senders": ["@nobody:keystead.test"] } });
    assert_eq!(of(by_nobody).await, [""; 0]);

    // What was redacted is not found any more.
    alice.put(&in_room(&room, &format!("/redact/{}/1", encode(&long))), json!({})).await.ok();
    assert_eq!(of(json!({ "search_term": "others men" })).await, [""; 0]);
}

#[tokio::test]
async fn results_come_in_pages_with_what_was_said_around_them() {
    let cluster = TestCluster::start().await;
    let (alice, bob) = (cluster.user("alice").await, cluster.user("bob").await);
    let name = format!("/profile/{}/displayname", encode(&bob.id));
    bob.put(&name, json!({ "displayname": "Bob" })).await.ok();
    let room = alice.create_public_room().await;
    bob.join(&room).await;
    let before = alice.send_text(&room, "before").await;
    let mut sent = vec![alice.send_text(&room, "needle 0").await];
    let after = bob.send_text(&room, "after").await;
    for n in 1..5 {
        sent.push(alice.send_text(&room, &format!("needle {n}")).await);
    }
    sent.push(bob.send_text(&room, "my needle").await);
    sent.reverse();

    let criteria = json!({
        "search_term": "needle", "order_by": "recent", "filter": { "limit": 4 }, "include_state": true,
        "event_context": { "before_limit": 1, "after_limit": 1, "include_profile": true },
        "groupings": { "group_by": [{ "key": "room_id" }, { "key": "sender" }] },
    });
    let first = search(&alice.at(0), criteria.clone(), None).await;
    let token = first["next_batch"].as_str().expect("a second page");
    let second = search(&alice.at(1), criteria.clone(), Some(token)).await;
    assert_eq!([ids(&first), ids(&second)].concat(), sent);
    assert!(second.get("next_batch").is_none(), "{second:#}");
    assert_eq!((&first["count"], &second["count"]), (&json!(6), &json!(6)));

    let context = &second["results"][1]["context"];
    assert_eq!(context["events_before"][0]["event_id"], json!(before));
    assert_eq!(context["events_after"][0]["event_id"], json!(after));
    assert_eq!(context["profile_info"][&bob.id]["displayname"], "Bob");
    let end = encode(context["end"].as_str().expect("a token"));
    let on = alice.get(&in_room(&room, &format!("/messages?dir=f&limit=1&from={end}"))).await.ok();
    assert_eq!(on["chunk"][0]["content"]["body"], "needle 1");

    assert_eq!(first["groups"]["room_id"][&room]["results"].as_array().map(Vec::len), Some(4));
    assert_eq!(first["groups"]["sender"][&bob.id]["results"], json!([sent[0]]));
    let state = first["state"][&room].as_array().expect("state");
    assert!(state.iter().any(|event| event["type"] == "m.room.create"), "{state:#?}");
    let body = json!({ "search_categories": { "room_events": criteria } });
    alice.post("/search?next_batch=nonsense", body).await.refused(400, "M_INVALID_PARAM");
    assert_eq!(alice.post("/search", json!({ "search_categories": {} })).await.status, 200);
}

#[tokio::test]
async fn nobody_finds_what_they_may_not_see() {
    let cluster = TestCluster::start().await;
    let (alice, bob, eve) =
        (cluster.user("alice").await, cluster.user("bob").await, cluster.user("eve").await);
    let visibility = json!([
        { "type": "m.room.history_visibility", "content": { "history_visibility": "joined" } },
    ]);
    let room = alice.create_room(json!({ "preset": "public_chat", "initial_state": visibility })).await;
    alice.send_text(&room, "needle before").await;
    bob.join(&room).await;
    let during = alice.send_text(&room, "needle during").await;
    bob.leave(&room).await;
    alice.send_text(&room, "needle after").await;
    let criteria = json!({ "search_term": "needle", "event_context": { "after_limit": 9 } });
    let bobs = search(&bob, criteria.clone(), None).await;
    assert_eq!(ids(&bobs), [&during]);
    assert!(!bobs.to_string().contains("needle after") && !bobs.to_string().contains("needle before"));
    assert_eq!(search(&alice, criteria.clone(), None).await["count"], 3);
    assert_eq!(search(&eve, criteria, None).await["count"], 0);

    // Nor what was said by those whom they ignore, nor rooms that they have forgotten or are only invited to.
    let open = alice.create_public_room().await;
    bob.join(&open).await;
    alice.send_text(&open, "haystack").await;
    let count =
        async |user: &User| search(user, json!({ "search_term": "haystack" }), None).await["count"].clone();
    assert_eq!(count(&bob).await, 1);
    let list = json!({ "ignored_users": { alice.id.clone(): {} } });
    bob.put(&format!("/user/{}/account_data/m.ignored_user_list", encode(&bob.id)), list).await.ok();
    assert_eq!(count(&bob).await, 0);
    alice.invite(&open, &eve).await;
    assert_eq!(count(&eve).await, 0);
    eve.join(&open).await;
    assert_eq!(count(&eve).await, 1);
    eve.leave(&open).await;
    assert_eq!(count(&eve).await, 1, "what was said while she was there");
    eve.post(&in_room(&open, "/forget"), json!({})).await.ok();
    assert_eq!(count(&eve).await, 0);
}

#[tokio::test]
async fn words_are_looked_for_beyond_the_newest_events_that_only_look_like_it() {
    let cluster = TestCluster::start().await;
    let alice = cluster.user("alice").await;
    let room = alice.create_public_room().await;
    // The word is in the type of each message, and so in its JSON.
    let said = alice.send_text(&room, "a text to find").await;
    let before = alice.send_text(&room, "Ünïcode").await;
    for n in 0..12 {
        alice.send_text(&room, &format!("number {n}")).await;
    }
    let found = search(&alice, json!({ "search_term": "TEXT" }), None).await;
    assert_eq!(ids(&found), [&said]);
    for term in ["ünïcode", "Ünïcode", "ÜNÏCODE"] {
        assert_eq!(ids(&search(&alice, json!({ "search_term": term }), None).await), [&before], "{term}");
    }
    let limited = json!({ "search_term": "number", "filter": { "limit": 5 } });
    let page = search(&alice, limited, None).await;
    assert_eq!((ids(&page).len(), &page["count"], &page["next_batch"]), (5, &json!(12), &json!("s5")));
}

#[tokio::test]
async fn a_search_that_makes_no_sense_is_refused() {
    let cluster = TestCluster::start_with(&[("KEYSTEAD_LIMITS_RATE_LIMITS", "true")]).await;
    let alice = cluster.user("alice").await;
    alice.post("/search", json!({})).await.refused(400, "M_BAD_JSON");
    let no_term = json!({ "search_categories": { "room_events": {} } });
    alice.post("/search", no_term).await.refused(400, "M_BAD_JSON");
    let body = json!({ "search_categories": { "room_events": { "search_term": "x" } } });
    let path = "/search?next_batch=s-1";
    alice.post(path, body.clone()).await.refused(400, "M_INVALID_PARAM");
    let mut answers = Vec::new();
    for _ in 0..45 {
        answers.push(alice.at(0).post("/search", body.clone()).await);
    }
    assert_eq!(answers[0].status, 200);
    assert!(answers.iter().any(|answer| answer.status == 429 && answer.text.contains("M_LIMIT_EXCEEDED")));
}
