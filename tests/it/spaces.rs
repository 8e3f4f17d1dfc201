//! Spaces: the hierarchy below one, and the summary of a room.

use hyper::Method;
use keystead_tests::{
    TestCluster, User,
    http::{Request, Response, encode},
};
use serde_json::{Value, json};

async fn hierarchy(user: &User, room: &str, query: &str) -> Response {
    let path = format!("/_matrix/client/v1/rooms/{}/hierarchy{query}", encode(room));
    user.send(Request::new(Method::GET, path)).await
}

fn ids(page: &Value) -> Vec<&str> {
    let rooms = page["rooms"].as_array().expect("rooms");
    rooms.iter().map(|room| room["room_id"].as_str().expect("an id")).collect()
}

async fn space(user: &User, name: &str) -> String {
    let body = json!({
        "preset": "public_chat", "name": name, "creation_content": { "type": "m.space" },
    });
    user.create_room(body).await
}

async fn add(user: &User, space: &str, child: &str, content: Value) {
    user.set_state(space, "m.space.child", child, content).await;
}

fn at_place(order: &str) -> Value {
    json!({ "via": ["keystead.test"], "order": order })
}

#[tokio::test]
async fn the_tree_is_walked_depth_first_and_paged() {
    let cluster = TestCluster::start().await;
    let (alice, bob) = (cluster.user("alice").await, cluster.user("bob").await);
    let (root, inner) = (space(&alice, "Root").await, space(&alice, "Inner").await);
    let leaf = alice.create_public_room().await;
    let deep = alice.create_public_room().await;
    let private = alice.create_room(json!({ "preset": "private_chat" })).await;
    let suggested = json!({ "via": ["keystead.test"], "order": "c", "suggested": true });
    add(&alice, &root, &leaf, suggested).await;
    add(&alice, &root, &private, at_place("b")).await;
    add(&alice, &root, &inner, at_place("a")).await;
    add(&alice, &inner, &deep, at_place("a")).await;
    // A circle is walked once.
    add(&alice, &inner, &root, at_place("b")).await;
    add(&alice, &root, "!elsewhere:elsewhere.test", json!({ "via": ["elsewhere.test"] })).await;

    let all = hierarchy(&alice, &root, "").await.ok();
    assert_eq!(ids(&all), [&root, &inner, &deep, &private, &leaf]);
    assert!(all.get("next_batch").is_none(), "{all:#}");
    let first = &all["rooms"][0];
    assert_eq!((&first["name"], &first["room_type"]), (&json!("Root"), &json!("m.space")));
    // A room without a join rule here is public.
    assert_eq!((&first["num_joined_members"], first.get("join_rule")), (&json!(1), None));
    let children = first["children_state"].as_array().expect("children");
    assert_eq!(children.len(), 4, "{children:#?}");
    assert_eq!((&children[0]["state_key"], &children[0]["type"]), (&json!(inner), &json!("m.space.child")));
    assert!(children[0]["origin_server_ts"].is_u64() && children[0].get("event_id").is_none());
    assert_eq!(all["rooms"][2]["children_state"], json!([]));

    // Who may not see a room is not told of it.
    let bobs = hierarchy(&bob, &root, "").await.ok();
    assert_eq!(ids(&bobs), [&root, &inner, &deep, &leaf]);
    hierarchy(&bob, &private, "").await.refused(403, "M_FORBIDDEN");
    hierarchy(&bob, "!nowhere:keystead.test", "").await.refused(403, "M_FORBIDDEN");

    assert_eq!(ids(&hierarchy(&bob, &root, "?max_depth=0").await.ok()), [&root]);
    assert_eq!(ids(&hierarchy(&bob, &root, "?max_depth=1").await.ok()), [&root, &inner, &leaf]);
    let suggested = hierarchy(&bob, &root, "?suggested_only=true").await.ok();
    assert_eq!(ids(&suggested), [&root, &leaf]);
    assert_eq!(suggested["rooms"][0]["children_state"].as_array().map(Vec::len), Some(1));

    let (mut shown, mut query) = (Vec::new(), "?limit=3".to_owned());
    for replica in 0..2 {
        let page = hierarchy(&bob.at(replica), &root, &query).await.ok();
        shown.extend(ids(&page).into_iter().map(str::to_owned));
        query = match page["next_batch"].as_str() {
            Some(token) => format!("?limit=3&from={}", encode(token)),
            None => break,
        };
    }
    assert_eq!(shown, [&root, &inner, &deep, &leaf].map(String::clone));
    let changed = format!("{query}&max_depth=1");
    hierarchy(&bob, &root, &changed).await.refused(400, "M_INVALID_PARAM");
    hierarchy(&bob, &root, "?from=nonsense").await.refused(400, "M_INVALID_PARAM");
}

#[tokio::test]
async fn members_of_the_space_are_shown_its_restricted_rooms() {
    let cluster = TestCluster::start().await;
    let (alice, bob) = (cluster.user("alice").await, cluster.user("bob").await);
    let root = space(&alice, "Root").await;
    let rule = json!({
        "join_rule": "restricted", "allow": [{ "type": "m.room_membership", "room_id": root }],
    });
    let state = json!([{ "type": "m.room.join_rules", "content": rule }]);
    let room = alice.create_room(json!({ "preset": "private_chat", "initial_state": state })).await;
    add(&alice, &root, &room, json!({ "via": ["keystead.test"] })).await;
    assert_eq!(ids(&hierarchy(&bob, &root, "").await.ok()), [&root]);
    bob.join(&root).await;
    let page = hierarchy(&bob, &root, "").await.ok();
    assert_eq!(ids(&page), [&root, &room]);
    assert_eq!(page["rooms"][1]["join_rule"], "restricted");
    assert_eq!(page["rooms"][1]["allowed_room_ids"], json!([root]));
}

#[tokio::test]
async fn a_room_is_summarized_for_those_who_may_know_of_it() {
    let cluster = TestCluster::start().await;
    let (alice, bob) = (cluster.user("alice").await, cluster.user("bob").await);
    let body = json!({ "preset": "public_chat", "name": "Town", "topic": "talk", "room_alias_name": "town" });
    let open = alice.create_room(body).await;
    let closed = alice.create_room(json!({ "preset": "private_chat", "name": "Cellar" })).await;
    let path = |room: &str| format!("/_matrix/client/v1/room_summary/{}", encode(room));
    let summary = async |user: &User, room: &str| user.send(Request::new(Method::GET, path(room))).await;

    let by_alias = summary(&bob.at(1), "#town:keystead.test").await.ok();
    assert_eq!(by_alias["room_id"], json!(open));
    assert_eq!((&by_alias["name"], &by_alias["topic"]), (&json!("Town"), &json!("talk")));
    assert_eq!(by_alias["canonical_alias"], "#town:keystead.test");
    assert_eq!((&by_alias["membership"], &by_alias["room_version"]), (&json!("leave"), &json!("12")));
    assert_eq!(summary(&alice, &open).await.ok()["membership"], "join");
    let stranger = cluster.send(Request::new(Method::GET, path(&open))).await.ok();
    assert!(stranger.get("membership").is_none(), "{stranger}");

    for room in [closed.as_str(), "!nowhere:keystead.test", "#nowhere:keystead.test"] {
        summary(&bob, room).await.refused(404, "M_NOT_FOUND");
        cluster.send(Request::new(Method::GET, path(room))).await.refused(404, "M_NOT_FOUND");
    }
    alice.invite(&closed, &bob).await;
    let invited = summary(&bob, &closed).await.ok();
    assert_eq!((&invited["name"], &invited["membership"]), (&json!("Cellar"), &json!("invite")));
}
