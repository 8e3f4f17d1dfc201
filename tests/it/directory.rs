//! Names that lead to rooms and people: aliases, the room directory, the user directory.

use hyper::Method;
use keystead_tests::{TestCluster, http::Request, http::encode, user::in_room};
use serde_json::{Value, json};

#[tokio::test]
async fn an_alias_leads_to_its_room_until_it_is_deleted() {
    let cluster = TestCluster::start().await;
    let (alice, bob) = (cluster.user("alice").await, cluster.user("bob").await);
    let room = alice.create_public_room().await;
    bob.join(&room).await;
    let alias = "#town:keystead.test";
    let path = format!("/directory/room/{}", encode(alias));

    alice.at(0).put(&path, json!({ "room_id": room })).await.ok();
    let stranger = Request::new(Method::GET, format!("/_matrix/client/v3{path}"));
    assert_eq!(cluster.send_to(1, stranger).await.ok()["room_id"], json!(room));
    alice.put(&path, json!({ "room_id": room })).await.refused(409, "M_UNKNOWN");
    assert_eq!(bob.at(1).get(&in_room(&room, "/aliases")).await.ok(), json!({ "aliases": [alias] }));
    let canonical = json!({ "alias": alias });
    alice.set_state(&room, "m.room.canonical_alias", "", canonical.clone()).await;
    assert_eq!(bob.at(1).state(&room, "m.room.canonical_alias", "").await.ok(), canonical);

    bob.delete(&path).await.refused(403, "M_FORBIDDEN");
    alice.at(0).delete(&path).await.ok();
    alice.at(1).get(&path).await.refused(404, "M_NOT_FOUND");
    alice.delete(&path).await.refused(404, "M_NOT_FOUND");
    assert_eq!(bob.at(1).state(&room, "m.room.canonical_alias", "").await.ok(), json!({}));
}

#[tokio::test]
async fn aliases_are_refused_where_they_do_not_belong() {
    let cluster = TestCluster::start().await;
    let (alice, bob) = (cluster.user("alice").await, cluster.user("bob").await);
    let room = alice.create_room(json!({})).await;
    let put = async |alias: &str| {
        let path = format!("/directory/room/{}", encode(alias));
        bob.put(&path, json!({ "room_id": room })).await
    };
    put("#x:elsewhere.test").await.refused(400, "M_INVALID_PARAM");
    put("#x:keystead.test").await.refused(403, "M_FORBIDDEN");
    put("no-alias").await.refused(400, "M_INVALID_PARAM");
    bob.get(&in_room(&room, "/aliases")).await.refused(403, "M_FORBIDDEN");
    let state = in_room(&room, "/state/m.room.canonical_alias");
    alice.put(&state, json!({ "alias": "#nothing:keystead.test" })).await.refused(400, "M_BAD_ALIAS");
    alice.put(&state, json!({ "alias": "nonsense" })).await.refused(400, "M_INVALID_PARAM");
}

#[tokio::test]
async fn the_room_directory_is_listed_searched_and_paged() {
    let cluster = TestCluster::start().await;
    let (alice, bob) = (cluster.user("alice").await, cluster.user("bob").await);
    let mut rooms = Vec::new();
    for name in ["Apples", "Pears", "Hidden"] {
        let visibility = if name == "Hidden" { "private" } else { "public" };
        let body = json!({ "preset": "public_chat", "visibility": visibility, "name": name });
        rooms.push(alice.create_room(body).await);
    }
    bob.join(&rooms[1]).await;
    let names = |answer: &Value| -> Vec<String> {
        let chunk = answer["chunk"].as_array().expect("a list");
        chunk.iter().map(|room| room["name"].as_str().expect("a name").to_owned()).collect()
    };
    let all = bob.at(1).get("/publicRooms").await.ok();
    assert_eq!(names(&all), ["Pears", "Apples"], "most members first");
    assert_eq!(
        (&all["chunk"][0]["num_joined_members"], &all["total_room_count_estimate"]),
        (&json!(2), &json!(2))
    );

    let first = bob.get("/publicRooms?limit=1").await.ok();
    assert_eq!(names(&first), ["Pears"]);
    let next = encode(first["next_batch"].as_str().expect("there is more"));
    let second = bob.get(&format!("/publicRooms?limit=1&since={next}")).await.ok();
    assert_eq!(names(&second), ["Apples"]);
    assert!(second.get("next_batch").is_none(), "{second:#}");
    let back = encode(second["prev_batch"].as_str().expect("there was something before"));
    assert_eq!(names(&bob.get(&format!("/publicRooms?limit=1&since={back}")).await.ok()), ["Pears"]);

    let search = json!({ "filter": { "generic_search_term": "APP" } });
    assert_eq!(names(&bob.post("/publicRooms", search).await.ok()), ["Apples"]);
    bob.get("/publicRooms?since=nonsense").await.refused(400, "M_INVALID_PARAM");

    let listing = format!("/directory/list/room/{}", encode(&rooms[0]));
    bob.put(&listing, json!({ "visibility": "private" })).await.refused(403, "M_FORBIDDEN");
    alice.put(&listing, json!({ "visibility": "private" })).await.ok();
    assert_eq!(bob.get(&listing).await.ok(), json!({ "visibility": "private" }));
    assert_eq!(names(&bob.at(1).get("/publicRooms").await.ok()), ["Pears"]);
}

#[tokio::test]
async fn users_are_found_who_share_a_room() {
    let cluster = TestCluster::start().await;
    let (alice, bob) = (cluster.user("alice").await, cluster.user("bob").await);
    let name = format!("/profile/{}/displayname", encode(&bob.id));
    bob.put(&name, json!({ "displayname": "Robert" })).await.ok();
    let found = async |term: &str| {
        let body = json!({ "search_term": term });
        alice.at(1).post("/user_directory/search", body).await.ok()["results"].clone()
    };
    assert_eq!(found("bob").await, json!([]));
    let room = alice.create_room(json!({ "invite": [bob.id] })).await;
    bob.join(&room).await;
    let robert = json!([{ "user_id": bob.id, "display_name": "Robert" }]);
    assert_eq!(found("BOB").await, robert);
    assert_eq!(found("robe").await, robert);
    assert_eq!(found("alice").await, json!([]), "nobody searches for themselves");
}

#[tokio::test]
async fn users_are_found_who_are_in_a_room_that_everybody_may_join_or_read() {
    let cluster = TestCluster::start().await;
    let (alice, bob) = (cluster.user("alice").await, cluster.user("bob").await);
    let room = bob.create_room(json!({ "preset": "private_chat" })).await;
    let is_found = async || {
        let body = json!({ "search_term": "bob" });
        let found = alice.at(1).post("/user_directory/search", body).await.ok();
        found["results"] == json!([{ "user_id": bob.id, "display_name": null }])
            || found["results"] == json!([{ "user_id": bob.id }])
    };
    assert!(!is_found().await, "a private room");
    for (event_type, field, open, closed) in [
        ("m.room.join_rules", "join_rule", "public", "invite"),
        ("m.room.history_visibility", "history_visibility", "world_readable", "shared"),
    ] {
        bob.at(0).set_state(&room, event_type, "", json!({ field: open })).await;
        assert!(is_found().await, "{open}");
        bob.at(0).set_state(&room, event_type, "", json!({ field: closed })).await;
        assert!(!is_found().await, "{closed}");
    }
}
