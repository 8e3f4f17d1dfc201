//! An operator who writes into the database: what KeyBoxes are shown then, they do not take for what people have said and done.

use std::{sync::Arc, time::Duration};

use keystead_client::{
    api::Registration,
    client::{Client, ClientError, Difference, Passphrase},
    engine::{EncryptError, KeyBoxAddress, Notice},
};
use keystead_keybox::{OpensslEntropy, audit_log::LogEvent, key_set::PrivateKeySet, suite::SUITES};
use keystead_tests::{PATIENCE, TestCluster, cluster::PASSWORD};

async fn register(cluster: &TestCluster, replica: usize, name: &str) -> Client {
    let registration =
        Registration { username: name, password: PASSWORD, token: None, display_name: "KeyBox" };
    let (home, passphrase) = (cluster.folder().join("homes"), Passphrase::Own("a passphrase for tests"));
    Client::register(&home, &cluster.url(replica), &registration, passphrase).await.expect("registered")
}

/// Alice and Bob in a room.
async fn pair(cluster: &Arc<TestCluster>) -> (Client, Client, String) {
    let (mut alice, bob) = (register(cluster, 0, "alice").await, register(cluster, 1, "bob").await);
    let bob_id = bob.account().user_id.clone();
    let room = alice.create_room(None, &SUITES[0], std::slice::from_ref(&bob_id)).await.expect("a room");
    bob.api().join(&room).await.expect("joined");
    (alice, bob, room)
}

/// What has come and was not read yet, until there are `count` of it; it is read then.
async fn read(client: &mut Client, count: usize) -> Vec<String> {
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        client.sync(Duration::from_millis(500)).await.expect("synced");
        let unread = client.unread(None, 100).await.expect("read");
        if unread.len() >= count {
            client.mark_read(&unread).await.expect("marked");
            return unread.iter().filter_map(|message| message.body().map(str::to_owned)).collect();
        }
        assert!(std::time::Instant::now() < deadline, "{} of {count} came", unread.len());
    }
}

#[tokio::test]
async fn altered_deleted_and_repeated_events_are_noticed() {
    let cluster = TestCluster::start().await;
    let (mut alice, mut bob, room) = pair(&cluster).await;
    let first = alice.send_text(&room, "pay 100").await.expect("sent");
    assert_eq!(read(&mut bob, 1).await, ["pay 100"]);
    let mut ids = Vec::new();
    for text in ["altered", "of another sender", "deleted", "last"] {
        ids.push(alice.send_text(&room, text).await.expect("sent"));
    }
    let [altered, misattributed, deleted, last] = &ids[..] else { panic!("four") };
    let copy = "$copied00000000000000000000000000000000000000";
    cluster
        .tamper(&format!(
            r#"UPDATE events SET json = replace(json, '"counter":1', '"counter":11') WHERE event_id = '{altered}';
            UPDATE events SET json = replace(json, '"sender":"@alice', '"sender":"@bob') WHERE event_id = '{misattributed}';
            DELETE FROM events WHERE event_id = '{deleted}';
            UPDATE stream_shards SET position = position + 1 WHERE shard = (SELECT shard FROM events WHERE event_id = '{first}');
            UPDATE rooms SET position = position + 1 WHERE room_id = '{room}';
            INSERT INTO events (shard, position, room_id, event_id, json)
                SELECT e.shard, s.position, e.room_id, '{copy}', e.json
                FROM events e JOIN stream_shards s ON s.shard = e.shard WHERE e.event_id = '{first}';"#
        ))
        .await;

    assert_eq!(read(&mut bob, 1).await, ["last"]);
    let notices = bob.take_notices();
    let refused = |id: &str| {
        notices
            .iter()
            .any(|notice| matches!(notice, Notice::MessageRefused { event_id, .. } if event_id == id))
    };
    assert!(refused(altered) && refused(copy), "{notices:?}");
    let missing: Vec<_> = bob.missing_messages(&room).into_iter().map(|missing| missing.counters).collect();
    assert_eq!(missing, [1..=3]);
    let history = bob.history(&room, 20, Duration::ZERO).await.expect("a history");
    let readable: Vec<_> = history
        .iter()
        .filter_map(|item| item.message.as_ref().ok().map(|message| message.event_id.as_str()))
        .collect();
    assert_eq!(readable, [&first, last], "{history:?}");

    // What was read comes again at the end of the timeline, under its own id.
    cluster
        .tamper(&format!(
            "DELETE FROM events WHERE event_id = '{copy}';
            UPDATE stream_shards SET position = position + 1 WHERE shard = (SELECT shard FROM events WHERE event_id = '{first}');
            UPDATE rooms SET position = position + 1 WHERE room_id = '{room}';
            UPDATE events SET position = (SELECT s.position FROM stream_shards s WHERE s.shard = events.shard)
                WHERE event_id = '{first}';"
        ))
        .await;
    alice.send_text(&room, "and on").await.expect("sent");
    assert_eq!(read(&mut bob, 1).await, ["and on"]);
}

#[tokio::test]
async fn altered_and_repeated_key_messages_are_noticed() {
    let cluster = TestCluster::start().await;
    let (mut alice, mut bob, room) = pair(&cluster).await;
    bob.sync(Duration::ZERO).await.expect("synced");
    alice.send_text(&room, "sealed").await.expect("sent");
    cluster
        .tamper(
            r#"CREATE TABLE kept AS SELECT * FROM to_device WHERE message_type = 'com.trustner.keybox.resource_key';
            UPDATE to_device SET content = replace(content, '"wrap":"', '"wrap":"AAAA');"#,
        )
        .await;
    bob.sync(Duration::ZERO).await.expect("synced");
    let notices = bob.take_notices();
    let dropped = |notice: &Notice| matches!(notice, Notice::KeyMessageDropped { .. });
    assert!(notices.iter().any(dropped), "{notices:?}");
    assert!(bob.unread(None, 9).await.expect("read").is_empty());
    // It is asked for anew, and comes.
    let deadline = std::time::Instant::now() + PATIENCE;
    while bob.unread(None, 9).await.expect("read").is_empty() {
        assert!(std::time::Instant::now() < deadline, "the key does not come");
        alice.sync(Duration::from_millis(200)).await.expect("synced");
        bob.sync(Duration::from_millis(200)).await.expect("synced");
    }
    assert_eq!(read(&mut bob, 1).await, ["sealed"]);
    for client in [&mut alice, &mut bob] {
        assert_eq!(client.audit().await.expect("an audit").differences, []);
    }

    // The first one once more: nothing comes of it, but that the log does not tell of it.
    cluster
        .tamper(
            "UPDATE stream_shards SET position = position + 1 WHERE shard = (SELECT shard FROM kept);
            INSERT INTO to_device (shard, position, user_id, device_id, sender, message_type, content)
                SELECT k.shard, s.position, k.user_id, k.device_id, k.sender, k.message_type, k.content
                FROM kept k JOIN stream_shards s ON s.shard = k.shard;",
        )
        .await;
    bob.sync(Duration::ZERO).await.expect("synced");
    bob.send_text(&room, "an answer").await.expect("sent");
    assert_eq!(read(&mut alice, 1).await, ["an answer"]);
    let found = bob.audit().await.expect("an audit").differences;
    let repeated = |found: &Difference| matches!(found, Difference::Hidden { own: LogEvent::ResourceKeyGiven(given) } if given.peer_user_id.starts_with("@alice"));
    assert!(found.iter().any(repeated), "{found:?}");
}

#[tokio::test]
async fn a_log_that_was_written_over_is_found_out() {
    let cluster = TestCluster::start().await;
    let (mut alice, mut bob, room) = pair(&cluster).await;
    alice.send_text(&room, "hello").await.expect("sent");
    assert_eq!(read(&mut bob, 1).await, ["hello"]);
    assert_eq!(bob.audit().await.expect("an audit").differences, []);
    let given = "user_id = '@bob:keystead.test' AND entry LIKE '%resource_key_given%'";
    cluster.tamper("CREATE TABLE kept AS SELECT * FROM keybox_log; CREATE TABLE heads AS SELECT * FROM keybox_log_heads;").await;

    type Found = fn(&Difference) -> bool;
    let lies: [(&str, String, Found); 5] = [
        ("deleted", format!("DELETE FROM keybox_log WHERE {given};"), |found| {
            matches!(found, Difference::Hidden { own: LogEvent::ResourceKeyGiven(_) })
        }),
        ("altered", format!("UPDATE keybox_log SET entry = replace(entry, '@alice', '@eve') WHERE {given};"), |found| {
            matches!(found, Difference::Altered { .. })
        }),
        ("no entry", format!("UPDATE keybox_log SET entry = 'nothing' WHERE {given};"), |found| {
            matches!(found, Difference::Unreadable { .. })
        }),
        (
            "invented",
            "INSERT INTO keybox_log SELECT user_id, seq + 1000, ts, keybox_id, peer_keybox_id, room_id, entry FROM kept \
             WHERE user_id = '@bob:keystead.test' AND entry LIKE '%resource_key_given%';"
                .to_owned(),
            |found| matches!(found, Difference::Invented { .. } | Difference::BrokenChain { .. }),
        ),
        (
            "taken back",
            "DELETE FROM keybox_log WHERE seq > 1; UPDATE keybox_log_heads SET seq = 1;".to_owned(),
            |found| matches!(found, Difference::HeadWentBack { .. }),
        ),
    ];
    for (what, lie, named) in lies {
        cluster.tamper(&lie).await;
        let found = bob.audit().await.expect("an audit").differences;
        assert!(found.iter().any(named), "{what}: {found:?}");
        // Whoever only looks at it is shown something.
        bob.api().log(&Default::default()).await.expect("a log");
        cluster
            .tamper(
                "DELETE FROM keybox_log; INSERT INTO keybox_log SELECT * FROM kept;
                DELETE FROM keybox_log_heads; INSERT INTO keybox_log_heads SELECT * FROM heads;",
            )
            .await;
        assert_eq!(bob.audit().await.expect("an audit").differences, [], "{what}: put right");
    }
}

#[tokio::test]
async fn a_key_set_that_was_replaced_blocks_sending_though_it_is_well_signed() {
    let cluster = TestCluster::start().await;
    let (mut alice, mut bob, room) = pair(&cluster).await;
    alice.send_text(&room, "hello").await.expect("sent");
    assert_eq!(read(&mut bob, 1).await, ["hello"]);
    let account = bob.account().clone();
    let other =
        PrivateKeySet::generate(&account.user_id, &account.keybox_id, &mut OpensslEntropy).expect("keys");
    let json = serde_json::to_string(&other.device_keys().expect("device keys")).expect("text");
    cluster
        .tamper(&format!(
            "UPDATE device_keys SET json = '{json}' WHERE user_id = '{}' AND device_id = '{}';",
            account.user_id, account.keybox_id
        ))
        .await;
    let address = KeyBoxAddress::new(&account.user_id, &account.keybox_id);
    let shown = alice.keyboxes(&account.user_id).await.expect("key sets");
    assert!(shown.iter().any(|known| known.keys.keybox_id == account.keybox_id && known.blocks_sending()));
    assert!(alice.take_notices().contains(&Notice::KeySetChanged { keybox: address }));
    let refused = alice.send_text(&room, "not to him").await;
    let Err(ClientError::Encrypt(EncryptError::KeysChanged { user_id, .. })) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!(user_id, account.user_id);
}
