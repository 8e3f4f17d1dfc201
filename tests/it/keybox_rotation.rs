//! Resource keys are replaced when somebody is removed from the room, as the server tells it, and when they have served long enough.

use std::{collections::BTreeMap, time::Duration};

use keystead_client::{
    api::Registration,
    client::{Client, Passphrase},
};
use keystead_keybox::suite::SUITES;
use keystead_tests::{PATIENCE, TestCluster, cluster::PASSWORD, user::in_room};
use serde_json::json;

use crate::keybox::{field, pair};

#[tokio::test]
async fn who_is_kicked_or_banned_is_given_no_later_key() {
    let cluster = TestCluster::start().await;
    let (alice, _bob, room) = pair(&cluster).await;
    let owner = cluster.login("alice").await;
    let mut key_ids = Vec::new();
    for action in [None, Some("kick"), Some("ban")] {
        if action == Some("ban") {
            owner.post(&in_room(&room, "/invite"), json!({ "user_id": "@bob:keystead.test" })).await.ok();
            alice.run(&["send", &room, "to who was invited again"]).await;
        }
        if let Some(action) = action {
            let body = json!({ "user_id": "@bob:keystead.test" });
            owner.post(&in_room(&room, &format!("/{action}")), body).await.ok();
        }
        let sent = alice.run(&["send", &room, "text"]).await;
        let path = in_room(&room, &format!("/event/{}", field(&sent, "event_id")));
        let event = owner.get(&path).await.ok();
        key_ids.push(event["content"]["key_id"].as_str().expect("an envelope").to_owned());
    }
    key_ids.sort();
    key_ids.dedup();
    assert_eq!(key_ids.len(), 3);
}

/// What three KeyBoxes do at a time: each sends, and reads what the others have sent.
async fn talk(mut client: Client, room: String, own: &'static str) -> (Client, Vec<String>) {
    let mut heard = Vec::new();
    for number in 0..12 {
        client.send_text(&room, &format!("{own} {number}")).await.expect("sent");
        heard.extend(news(&mut client).await);
    }
    (client, heard)
}

async fn news(client: &mut Client) -> Vec<String> {
    client.sync(Duration::ZERO).await.expect("synced");
    let unread = client.unread(None, 1_000).await.expect("read");
    client.mark_read(&unread).await.expect("marked");
    unread.iter().map(|message| message.body().expect("a text").to_owned()).collect()
}

#[tokio::test]
async fn who_seal_and_rotate_at_once_are_all_read_once() {
    let cluster = TestCluster::start().await;
    let mut clients = Vec::new();
    for (replica, name) in ["alice", "bob", "carol"].into_iter().enumerate() {
        let registration =
            Registration { username: name, password: PASSWORD, token: None, display_name: "KeyBox" };
        let (home, passphrase) = (cluster.folder().join("homes"), Passphrase::Own("a passphrase for tests"));
        let client = Client::register(&home, &cluster.url(replica), &registration, passphrase).await;
        clients.push(client.expect("registered"));
    }
    let others: Vec<_> = clients[1..].iter().map(|client| client.account().user_id.clone()).collect();
    let room = clients[0].create_room(None, &SUITES[0], &others).await.expect("a room");
    // A new key for every third message.
    let rotation = json!({ "algorithm": SUITES[0].id, "rotation_period_msgs": 3 });
    clients[0].api().set_state(&room, "m.room.encryption", rotation).await.expect("set");
    for client in &mut clients {
        client.api().join(&room).await.expect("joined");
        client.sync(Duration::ZERO).await.expect("synced");
    }
    let talking =
        clients.into_iter().zip(["a", "b", "c"]).map(|(client, own)| talk(client, room.clone(), own));
    let talked = futures_util::future::join_all(talking).await;

    let owner = cluster.login("alice").await;
    let path = in_room(&room, "/messages?dir=b&limit=1000");
    let events = owner.get(&path).await.ok();
    let mut sealed: BTreeMap<&str, usize> = BTreeMap::new();
    let events = events["chunk"].as_array().expect("events");
    for key_id in events.iter().filter_map(|event| event["content"]["key_id"].as_str()) {
        *sealed.entry(key_id).or_default() += 1;
    }
    // Each counts what it knows of: three at a time seal three each with one key at most.
    assert_eq!(sealed.values().sum::<usize>(), 36);
    assert!(sealed.values().all(|count| *count <= 9), "{sealed:?}");
    let mut waiting: Vec<_> = talked.into_iter().zip(["a", "b", "c"]).collect();
    let deadline = std::time::Instant::now() + PATIENCE;
    while waiting.iter().any(|((_, heard), _)| heard.len() < 24) {
        assert!(std::time::Instant::now() < deadline, "somebody misses messages");
        for ((client, heard), _) in &mut waiting {
            heard.extend(news(client).await);
        }
    }
    for ((client, heard), own) in &mut waiting {
        heard.extend(news(client).await);
        let expected = ["a", "b", "c"].into_iter().filter(|name| name != own);
        let mut expected: Vec<_> =
            expected.flat_map(|name| (0..12).map(move |number| format!("{name} {number}"))).collect();
        expected.sort();
        heard.sort();
        assert_eq!(*heard, expected);
        assert_eq!(client.missing_messages(&room), []);
        assert_eq!(client.audit().await.expect("an audit").differences, []);
    }
}
