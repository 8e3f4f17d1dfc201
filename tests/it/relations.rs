//! Events that relate to others: each replica shows what was sent through the other.

use hyper::Method;
use keystead_tests::{
    TestCluster, User,
    http::{Request, encode},
    sync::timeline,
    user::{in_room, transaction_id},
};
use serde_json::{Value, json};

/// Sends a message that relates to another event; returns its id.
async fn relate(user: &User, room: &str, (rel_type, parent): (&str, &str), body: &str) -> String {
    let content = json!({
        "msgtype": "m.text", "body": body, "m.new_content": { "msgtype": "m.text", "body": body },
        "m.relates_to": { "rel_type": rel_type, "event_id": parent },
    });
    user.send_event(room, "m.room.message", content).await
}

async fn get(user: &User, room: &str, rest: &str) -> Value {
    user.get(&format!("/_matrix/client/v1/rooms/{}{rest}", encode(room))).await.ok()
}

fn ids(chunk: &Value) -> Vec<&str> {
    chunk.as_array().expect("a list").iter().filter_map(|event| event["event_id"].as_str()).collect()
}

#[tokio::test]
async fn relations_sent_through_one_replica_are_read_through_the_other() {
    let cluster = TestCluster::start().await;
    let (alice, bob) = (cluster.user("alice").await, cluster.user("bob").await);
    let room = alice.create_public_room().await;
    bob.join(&room).await;
    let root = alice.at(0).send_text(&room, "root").await;
    let edit = relate(&alice.at(0), &room, ("m.replace", &root), "edited").await;
    let reply = relate(&bob.at(1), &room, ("m.thread", &root), "reply").await;
    let reaction = json!({ "m.relates_to": { "rel_type": "m.annotation", "event_id": root, "key": "x" } });
    let reaction = bob.at(1).send_event(&room, "m.reaction", reaction).await;
    for replica in 0..2 {
        let alice = alice.at(replica);
        let all = get(&alice, &room, &format!("/relations/{}", encode(&root))).await;
        assert_eq!(ids(&all["chunk"]), [&*reaction, &*reply, &*edit]);
        let threaded = get(&alice, &room, &format!("/relations/{}/m.thread", encode(&root))).await;
        assert_eq!(ids(&threaded["chunk"]), [&*reply]);
        let reactions = format!("/relations/{}/m.annotation/m.reaction", encode(&root));
        assert_eq!(ids(&get(&alice, &room, &reactions).await["chunk"]), [&*reaction]);
        let threads = get(&alice, &room, "/threads").await;
        assert_eq!(ids(&threads["chunk"]), [&*root]);
        let relations = &threads["chunk"][0]["unsigned"]["m.relations"];
        assert_eq!(relations["m.replace"]["event_id"], json!(edit));
        assert_eq!(relations["m.thread"]["latest_event"]["event_id"], json!(reply));
    }
    bob.put(&in_room(&room, &format!("/redact/{}/{}", encode(&reply), transaction_id())), json!({}))
        .await
        .ok();
    assert_eq!(ids(&get(&alice, &room, "/threads").await["chunk"]), [""; 0]);
    let threaded = get(&alice, &room, &format!("/relations/{}/m.thread", encode(&root))).await;
    assert_eq!(ids(&threaded["chunk"]), [""; 0]);
}

#[tokio::test]
async fn a_sync_shows_events_with_what_their_children_say() {
    let cluster = TestCluster::start().await;
    let (alice, bob, eve) =
        (cluster.user("alice").await, cluster.user("bob").await, cluster.user("eve").await);
    let room = alice.create_public_room().await;
    bob.join(&room).await;
    eve.join(&room).await;
    let before = bob.sync_once(None).await;
    let root = alice.send_text(&room, "root").await;
    let reply = relate(&alice, &room, ("m.thread", &root), "reply").await;
    relate(&eve, &room, ("m.thread", &root), "noise").await;
    let ignored = json!({ "ignored_users": { (eve.id.clone()): {} } });
    bob.put(&format!("/user/{}/account_data/m.ignored_user_list", encode(&bob.id)), ignored).await.ok();
    for since in [None, before["next_batch"].as_str()] {
        let answer = bob.sync_once(since).await;
        let shown = timeline(&answer, &room).iter().find(|event| event["event_id"] == json!(root));
        let thread = &shown.expect("the root")["unsigned"]["m.relations"]["m.thread"];
        assert_eq!(thread["latest_event"]["event_id"], json!(reply), "{since:?}");
        assert_eq!(thread["latest_event"].get("room_id"), None, "as all events of a sync");
        assert_eq!((&thread["count"], &thread["current_user_participated"]), (&json!(1), &json!(false)));
    }
    let path = in_room(&room, &format!("/context/{}?limit=0", encode(&root)));
    let context = alice.get(&path).await.ok();
    assert_eq!(context["event"]["unsigned"]["m.relations"]["m.thread"]["count"], 2);
}

#[tokio::test]
async fn strangers_learn_nothing_of_relations() {
    let cluster = TestCluster::start().await;
    let (alice, eve) = (cluster.user("alice").await, cluster.user("eve").await);
    let room = alice.create_room(json!({ "preset": "private_chat" })).await;
    let root = alice.send_text(&room, "root").await;
    relate(&alice, &room, ("m.thread", &root), "reply").await;
    let base = format!("/_matrix/client/v1/rooms/{}", encode(&room));
    eve.get(&format!("{base}/relations/{}", encode(&root))).await.refused(404, "M_NOT_FOUND");
    eve.get(&format!("{base}/threads")).await.refused(403, "M_FORBIDDEN");
}

#[tokio::test]
async fn what_no_column_takes_relates_to_nothing() {
    let cluster = TestCluster::start().await;
    let alice = cluster.user("alice").await;
    let room = alice.create_public_room().await;
    let root = alice.send_text(&room, "root").await;
    for (rel_type, parent) in
        [("a\0b", &*root), (&*"x".repeat(4_000), &*root), ("m.thread", "$a\0b"), ("r", "no id")]
    {
        relate(&alice, &room, (rel_type, parent), "odd").await;
    }
    let all = get(&alice, &room, &format!("/relations/{}", encode(&root))).await;
    assert_eq!(ids(&all["chunk"]), [""; 0]);
    let odd = format!("/_matrix/client/v1/rooms/{}/relations/{}/a%00b", encode(&room), encode(&root));
    alice.get(&odd).await.refused(400, "M_INVALID_PARAM");
}

#[tokio::test]
async fn nobody_says_the_same_of_an_event_twice() {
    let cluster = TestCluster::start().await;
    let (alice, bob) = (cluster.user("alice").await, cluster.user("bob").await);
    let room = alice.create_public_room().await;
    bob.join(&room).await;
    let root = alice.send_text(&room, "root").await;
    let reaction =
        |key: &str| json!({ "m.relates_to": { "rel_type": "m.annotation", "event_id": root, "key": key } });
    let path = |id: &str| in_room(&room, &format!("/send/m.reaction/{id}"));

    // Through both replicas at once, each request with an id of its own.
    let tries = (0..24_usize).map(|number| {
        let (alice, path, content) = (alice.at(number % 2), path(&format!("same{number}")), reaction("x"));
        async move { (number, alice.put(&path, content).await) }
    });
    let answers = futures_util::future::join_all(tries).await;
    let (sent, refused): (Vec<_>, Vec<_>) = answers.into_iter().partition(|(_, answer)| answer.status == 200);
    let [(number, answer)] = <[_; 1]>::try_from(sent).expect("one of them is sent");
    for (_, answer) in refused {
        answer.refused(400, "M_DUPLICATE_ANNOTATION");
    }
    let first = answer.ok()["event_id"].as_str().expect("an id").to_owned();
    for replica in 0..2 {
        let again = alice.at(replica).put(&path(&format!("same{number}")), reaction("x")).await.ok();
        assert_eq!(again["event_id"], json!(first), "the same request gets the same answer");
    }

    alice.put(&path("other"), reaction("y")).await.ok();
    bob.put(&path("bob"), reaction("x")).await.ok();
    alice.put(&in_room(&room, "/send/m.other/type"), reaction("x")).await.ok();
    // Of a name that stands twice in the JSON the last value counts, here as in what is stored.
    let twice = format!(r#"{{"m.relates_to":null,"m.relates_to":{}}}"#, reaction("x")["m.relates_to"]);
    let to = format!("/_matrix/client/v3{}", path("twice"));
    let twice = Request::new(Method::PUT, to).bytes("application/json", twice);
    alice.send(twice).await.refused(400, "M_DUPLICATE_ANNOTATION");
    alice.put(&path("late"), reaction("x")).await.refused(400, "M_DUPLICATE_ANNOTATION");
    alice.put(&in_room(&room, &format!("/redact/{}/r", encode(&first))), json!({})).await.ok();
    alice.at(1).put(&path("late"), reaction("x")).await.ok();
}

#[tokio::test]
async fn nobody_learns_of_what_he_may_not_see() {
    let cluster = TestCluster::start().await;
    let (alice, bob) = (cluster.user("alice").await, cluster.user("bob").await);
    let room = alice.create_public_room().await;
    let visibility = json!({ "history_visibility": "joined" });
    alice.put(&in_room(&room, "/state/m.room.history_visibility/"), visibility).await.ok();
    bob.join(&room).await;
    let root = alice.send_text(&room, "root").await;
    let other = alice.send_text(&room, "other").await;
    let seen = relate(&alice, &room, ("m.thread", &root), "seen").await;
    bob.post(&in_room(&room, "/leave"), json!({})).await.ok();
    for parent in [&root, &other] {
        for rel_type in ["m.thread", "m.replace", "m.reference"] {
            relate(&alice, &room, (rel_type, parent), "hidden").await;
        }
    }
    bob.join(&room).await;
    let threads = get(&bob, &room, "/threads").await;
    assert_eq!(ids(&threads["chunk"]), [&*root], "of the other thread nothing is to be seen but its root");
    let shown = json!({ "count": 1, "current_user_participated": false });
    let relations = |event: &Value| {
        let relations = &event["unsigned"]["m.relations"];
        let thread = &relations["m.thread"];
        assert_eq!((relations.get("m.replace"), relations.get("m.reference")), (None, None), "{event}");
        json!({ "count": thread["count"], "current_user_participated": thread["current_user_participated"] })
    };
    assert_eq!(relations(&threads["chunk"][0]), shown);
    assert_eq!(threads["chunk"][0]["unsigned"]["m.relations"]["m.thread"]["latest_event"]["event_id"], seen);
    let all = get(&bob, &room, &format!("/relations/{}?recurse=true", encode(&root))).await;
    assert_eq!(ids(&all["chunk"]), [&*seen]);
    let event = bob.get(&in_room(&room, &format!("/event/{}", encode(&other)))).await.ok();
    assert_eq!(event["unsigned"].get("m.relations"), None);
    let thread = get(&alice, &room, &format!("/relations/{}/m.thread", encode(&root))).await;
    assert_eq!(ids(&thread["chunk"]).len(), 2, "she may see both");
}

#[tokio::test]
async fn pages_of_relations_stand_still_while_more_is_written() {
    let cluster = TestCluster::start().await;
    let alice = cluster.user("alice").await;
    let room = alice.create_public_room().await;
    let root = alice.send_text(&room, "root").await;
    let mut expected = Vec::new();
    for number in 0..5 {
        expected.push(relate(&alice.at(number % 2), &room, ("m.thread", &root), &number.to_string()).await);
    }
    let mut later = Vec::new();
    for direction in ["b", "f"] {
        let mut found = Vec::new();
        let mut from = String::new();
        for page in 0..100 {
            later.push(relate(&alice.at(page), &room, ("m.thread", &root), "later").await);
            let rest = format!("/relations/{}?limit=2&dir={direction}{from}", encode(&root));
            let answer = get(&alice.at(page + 1), &room, &rest).await;
            found.extend(ids(&answer["chunk"]).iter().map(|id| (*id).to_owned()));
            match answer["next_batch"].as_str() {
                Some(next) if found.len() < 7 => from = format!("&from={next}"),
                _ => break,
            }
        }
        let mut wanted = [expected.clone(), later.clone()].concat();
        if direction == "b" {
            wanted.truncate(6);
            wanted.reverse();
        }
        wanted.truncate(found.len());
        assert_eq!(found, wanted, "{direction}: each once and in order, from where the first page began");
    }
    alice.put(&in_room(&room, &format!("/redact/{}/r", encode(&root))), json!({})).await.ok();
    let threads = get(&alice, &room, "/threads").await;
    assert_eq!(ids(&threads["chunk"]), [&*root], "what was said in a thread stays when its root is redacted");
    let thread = &threads["chunk"][0]["unsigned"]["m.relations"]["m.thread"];
    assert_eq!(thread["count"], 5 + later.len());
}

/// What is unread in a room: of all of it as clients without threads are told, of what is in no thread, and of each thread.
async fn unread(user: &User, room: &str) -> (Value, Value, Value) {
    let filter = encode(r#"{"room":{"timeline":{"unread_thread_notifications":true}}}"#);
    let user = user.on_one_replica();
    user.get("/account/whoami").await.ok();
    let sync = async |query: String| {
        let answer = user.get(&format!("/_matrix/client/v3/sync?timeout=0{query}")).await.ok();
        answer["rooms"]["join"][room].clone()
    };
    let (plain, by_thread) = (sync(String::new()).await, sync(format!("&filter={filter}")).await);
    assert_eq!(plain.get("unread_thread_notifications"), None, "nobody has asked for it");
    let count = |room: &Value| room["unread_notifications"]["notification_count"].clone();
    let mut threads = serde_json::Map::new();
    for (root, counts) in by_thread["unread_thread_notifications"].as_object().into_iter().flatten() {
        threads.insert(root.clone(), counts["notification_count"].clone());
    }
    (count(&plain), count(&by_thread), threads.into())
}

#[tokio::test]
async fn what_is_unread_is_counted_by_thread() {
    let cluster = TestCluster::start().await;
    let (alice, bob) = (cluster.user("alice").await, cluster.user("bob").await);
    let room = &*alice.create_public_room().await;
    bob.join(room).await;
    let bob_has_read = async |event: &str, thread: Option<&str>| {
        let body = thread.map_or(json!({}), |thread| json!({ "thread_id": thread }));
        bob.post(&in_room(room, &format!("/receipt/m.read/{}", encode(event))), body).await.ok();
    };
    let (first, second) = (alice.send_text(room, "1").await, alice.send_text(room, "2").await);
    relate(&alice.at(0), room, ("m.thread", &first), "1a").await;
    let last = relate(&alice.at(1), room, ("m.thread", &first), "1b").await;
    relate(&alice.at(0), room, ("m.thread", &second), "2a").await;
    let threads = |one: u32, other: u32| {
        let unread = [(&first, one), (&second, other)].into_iter().filter(|(_, unread)| *unread > 0);
        Value::from_iter(unread.map(|(root, unread)| (root.clone(), json!(unread))))
    };
    for replica in 0..2 {
        assert_eq!(unread(&bob.at(replica), room).await, (json!(5), json!(2), threads(2, 1)));
    }
    bob_has_read(&second, Some("main")).await;
    assert_eq!(unread(&bob, room).await, (json!(3), json!(0), threads(2, 1)));
    bob_has_read(&last, Some(&first)).await;
    assert_eq!(unread(&bob, room).await, (json!(1), json!(0), threads(0, 1)));
    // What lies before the receipt of the main thread may yet be unread in another.
    let newest = alice.send_text(room, "3").await;
    bob_has_read(&newest, Some("main")).await;
    assert_eq!(unread(&bob, room).await, (json!(1), json!(0), threads(0, 1)));
    let unwanted = relate(&alice, room, ("m.thread", &first), "1c").await;
    assert_eq!(unread(&bob.at(1), room).await, (json!(2), json!(0), threads(1, 1)));
    alice.put(&in_room(room, &format!("/redact/{}/r", encode(&unwanted))), json!({})).await.ok();
    assert_eq!(unread(&bob, room).await, (json!(1), json!(0), threads(0, 1)));
    // A receipt without a thread is one for all of them.
    let end = alice.send_text(room, "4").await;
    bob_has_read(&end, None).await;
    assert_eq!(unread(&bob, room).await, (json!(0), json!(0), json!({})));
    relate(&alice, room, ("m.thread", &second), "2b").await;
    assert_eq!(unread(&bob, room).await, (json!(1), json!(0), threads(0, 1)));
}

#[tokio::test]
async fn what_relates_to_an_event_of_a_thread_is_in_that_thread() {
    let cluster = TestCluster::start().await;
    let (alice, bob) = (cluster.user("alice").await, cluster.user("bob").await);
    let room = &*alice.create_public_room().await;
    bob.join(room).await;
    let receipt = async |event: &str, thread: &str| {
        let path = in_room(room, &format!("/receipt/m.read/{}", encode(event)));
        bob.post(&path, json!({ "thread_id": thread })).await
    };
    let root = alice.send_text(room, "root").await;
    let reply = relate(&alice.at(0), room, ("m.thread", &root), "reply").await;
    // One event further with each.
    let mut chain = vec![reply];
    for number in 1..=4 {
        let parent = &chain[number - 1];
        chain.push(relate(&alice.at(number % 2), room, ("m.reference", parent), "x").await);
    }
    let beside_root = relate(&alice, room, ("m.reference", &root), "beside").await;
    // Three are followed; the fourth is too far away, and in the main timeline like the root and what stands beside it.
    let in_thread = |unread: u32| json!({ &root: unread });
    for replica in 0..2 {
        assert_eq!(unread(&bob.at(replica), room).await, (json!(7), json!(3), in_thread(4)));
    }
    receipt(&chain[2], "main").await.refused(400, "M_INVALID_PARAM");
    receipt(&chain[4], &root).await.refused(400, "M_INVALID_PARAM");
    receipt(&beside_root, "$another").await.refused(400, "M_INVALID_PARAM");
    receipt(&chain[2], &root).await.ok();
    assert_eq!(unread(&bob, room).await, (json!(4), json!(3), in_thread(1)));
    // What is older than the receipt of the main timeline may be unread in the thread.
    receipt(&beside_root, "main").await.ok();
    assert_eq!(unread(&bob, room).await, (json!(1), json!(0), in_thread(1)));
    receipt(&beside_root, &root).await.ok();
    assert_eq!(unread(&bob, room).await, (json!(0), json!(0), json!({})));
    let is_read = async |event: &str| {
        let answer = bob.get("/_matrix/client/v3/notifications").await.ok();
        let notifications = answer["notifications"].as_array().expect("a list").iter();
        notifications
            .filter(|notification| notification["event"]["event_id"] == event)
            .all(|it| it["read"] == true)
    };
    assert!(is_read(&chain[3]).await);
    let later = relate(&alice, room, ("m.reference", &chain[1]), "later").await;
    assert!(!is_read(&later).await);
    assert_eq!(unread(&bob.at(1), room).await, (json!(1), json!(0), in_thread(1)));
}
