//! A homeserver that lies in its log is found out by the KeyBox that knows better.

use std::{path::PathBuf, sync::Arc, time::Duration};

use keystead_client::{
    api::{LogFilter, LogItem, Registration},
    client::{AuditReport, Client, Difference, Passphrase},
    engine::Notice,
};
use keystead_keybox::{
    audit_log::{LogEvent, entry_hash},
    suite::SUITES,
};
use keystead_tests::{TestCluster, cluster::PASSWORD, proxy::Proxy};
use serde_json::{Map, Value, json};

const PASSPHRASE: &str = "a passphrase for tests";

async fn register(cluster: &Arc<TestCluster>, server: &str, name: &str) -> Client {
    let registration =
        Registration { username: name, password: PASSWORD, token: None, display_name: "KeyBox" };
    Client::register(&home(cluster), server, &registration, Passphrase::Own(PASSPHRASE))
        .await
        .expect("registered")
}

fn home(cluster: &TestCluster) -> PathBuf {
    cluster.folder().join("homes")
}

/// Alice behind a proxy and Bob on the other replica, after they have exchanged resource keys both ways.
async fn talk(cluster: &Arc<TestCluster>) -> (Client, Proxy) {
    let proxy = Proxy::start(cluster).await;
    let mut alice = register(cluster, &proxy.url, "alice").await;
    let mut bob = register(cluster, &cluster.url(1), "bob").await;
    let bob_id = bob.account().user_id.clone();
    let room =
        alice.create_room(Some("tea"), &SUITES[0], std::slice::from_ref(&bob_id)).await.expect("a room");
    bob.api().join(&room).await.expect("joined");
    alice.send_text(&room, "hello").await.expect("sent");
    let deadline = std::time::Instant::now() + keystead_tests::PATIENCE;
    while bob.unread(None, 10).await.expect("read").is_empty() {
        assert!(std::time::Instant::now() < deadline, "bob hears nothing");
        bob.sync(Duration::from_secs(1)).await.expect("synced");
    }
    bob.send_text(&room, "hello yourself").await.expect("sent");
    (alice, proxy)
}

async fn audit(client: &mut Client) -> AuditReport {
    client.audit().await.expect("an audit")
}

/// What the audit finds when the server's answers about the log are altered like this.
async fn lied_to(
    alice: &mut Client,
    proxy: &Proxy,
    alter: impl FnMut(&str, &mut Value) + Send + 'static,
) -> Vec<Difference> {
    proxy.alter(alter);
    let differences = audit(alice).await.differences;
    proxy.alter(|_, _| {});
    assert_eq!(audit(alice).await.differences, [], "an honest server is believed again");
    differences
}

/// Alters the entries of the log, and makes a chain of what comes of it, as a server that lies well would.
fn with_entries(alter: impl Fn(&mut Vec<Value>) + Send + 'static) -> impl FnMut(&str, &mut Value) + Send {
    move |path, answer| {
        if !path.contains("/log?") {
            return;
        }
        let Some(entries) = answer["entries"].as_array_mut() else { return };
        if !path.contains("after=0") {
            entries.clear();
            return;
        }
        alter(entries);
        let mut prev = String::new();
        for (index, entry) in entries.iter_mut().enumerate() {
            entry["seq"] = json!(index + 1);
            entry["prev"] = json!(prev);
            prev = entry_hash(entry.as_object().expect("an entry")).expect("canonical");
        }
    }
}

fn is_exchange(entry: &Value) -> bool {
    entry["type"].as_str().is_some_and(|kind| kind.starts_with("resource_key"))
}

#[tokio::test]
async fn an_honest_server_and_an_honest_keybox_agree() {
    let cluster = TestCluster::start().await;
    let (mut alice, _proxy) = talk(&cluster).await;
    let report = audit(&mut alice).await;
    assert_eq!(report.differences, []);
    assert!(report.compared >= 2, "registered and given: {report:?}");
    let own = alice.own_log().await.expect("a log");
    let kinds: Vec<_> = own.iter().filter_map(|entry| entry["type"].as_str()).collect();
    assert!(kinds.starts_with(&["keybox_registered", "resource_key_given"]), "{kinds:?}");
    // A restart forgets nothing.
    let account = alice.account().clone();
    drop(alice);
    let mut alice = Client::open(&home(&cluster), account, PASSPHRASE).expect("opened");
    assert_eq!(alice.own_log().await.expect("a log"), own);
    assert_eq!(audit(&mut alice).await.differences, []);
}

#[tokio::test]
async fn a_server_that_lies_is_found_out() {
    let cluster = TestCluster::start().await;
    let (mut alice, proxy) = talk(&cluster).await;
    assert_eq!(audit(&mut alice).await.differences, []);

    // Entries that are hidden, invented or altered, in a chain that is made anew so that it looks whole.
    let hiding = with_entries(|entries| entries.retain(|entry| !is_exchange(entry)));
    let found = lied_to(&mut alice, &proxy, hiding).await;
    let is_hidden =
        |found: &Difference| matches!(found, Difference::Hidden { own: LogEvent::ResourceKeyGiven(_) });
    assert!(found.iter().any(is_hidden), "{found:?}");
    assert!(found.iter().any(|found| matches!(found, Difference::NotTheHead { .. })), "{found:?}");

    let inventing = with_entries(|entries| {
        let mut invented = entries.iter().find(|entry| is_exchange(entry)).expect("an exchange").clone();
        invented["peer_user_id"] = json!("@eve:keystead.test");
        invented["reference"] = json!("never");
        entries.push(invented);
    });
    let found = lied_to(&mut alice, &proxy, inventing).await;
    let is_invented = |found: &Difference| matches!(found, Difference::Invented { server: LogEvent::ResourceKeyGiven(exchange) } if exchange.reference == "never");
    assert!(found.iter().any(is_invented), "{found:?}");

    let altering = with_entries(|entries| {
        let entry = entries.iter_mut().find(|entry| is_exchange(entry)).expect("an exchange");
        entry["peer_keybox_id"] = json!("OTHER");
    });
    let found = lied_to(&mut alice, &proxy, altering).await;
    let is_altered = |found: &Difference| matches!(found, Difference::Altered { .. });
    assert!(found.iter().any(is_altered), "{found:?}");
    assert!(
        found
            .iter()
            .any(|found| matches!(found, Difference::Rewritten { .. } | Difference::NotTheHead { .. }))
    );

    // A chain that is no chain.
    let breaking = |path: &str, answer: &mut Value| {
        if path.contains("/log?")
            && let Some(entry) = answer["entries"].as_array_mut().and_then(|entries| entries.get_mut(1))
        {
            entry["prev"] = json!("AAAA");
        }
    };
    let found = lied_to(&mut alice, &proxy, breaking).await;
    assert!(found.iter().any(|found| matches!(found, Difference::BrokenChain { seq: 2, .. })), "{found:?}");
}

#[tokio::test]
async fn a_break_in_the_chain_accuses_the_server_of_nothing_else() {
    let cluster = TestCluster::start().await;
    let (mut alice, proxy) = talk(&cluster).await;
    let report = audit(&mut alice).await;
    assert_eq!(report.differences, []);
    assert!(report.server.seq >= 2, "{report:?}");

    let removing = |path: &str, answer: &mut Value| {
        if path.contains("/log?")
            && let Some(entries) = answer["entries"].as_array_mut()
        {
            entries.retain(|entry| entry["seq"] != 1);
        }
    };
    let found = lied_to(&mut alice, &proxy, removing).await;
    let [Difference::BrokenChain { seq: 1, .. }, Difference::Hidden { own: LogEvent::KeyboxRegistered(_) }] =
        found.as_slice()
    else {
        panic!("{found:?}");
    };

    let altering = |path: &str, answer: &mut Value| {
        if path.contains("/log?")
            && let Some(entry) = answer["entries"].as_array_mut().and_then(|entries| entries.first_mut())
            && entry["seq"] == 1
        {
            entry["address"] = json!("192.0.2.1");
        }
    };
    let found = lied_to(&mut alice, &proxy, altering).await;
    assert!(matches!(found.as_slice(), [Difference::BrokenChain { seq: 2, .. }]), "{found:?}");

    // An entry that is no JSON, as somebody leaves it who writes into the database.
    proxy.alter_bytes(|path, bytes| {
        if path.contains("/log?") {
            *bytes = String::from_utf8_lossy(bytes).replace("\"unreadable\"", "{bad").into_bytes();
        }
    });
    let spoiling = |path: &str, answer: &mut Value| {
        if path.contains("/log?")
            && let Some(entries) = answer["entries"].as_array_mut()
            && let Some(entry) = entries.iter_mut().find(|entry| entry["seq"] == 1)
        {
            *entry = json!("unreadable");
        }
    };
    // Whoever looks at the log is shown the rest, by whatever it is filtered.
    proxy.alter(spoiling);
    let own = alice.account().keybox_id.clone();
    for keybox_id in [None, Some(own)] {
        let filter = LogFilter { keybox_id, ..LogFilter::default() };
        let items = alice.api().log(&filter).await.expect("a log");
        assert_eq!(items.first(), Some(&LogItem::Unreadable { seq: 1 }));
        assert!(
            items.len() > 1 && items[1..].iter().all(|item| matches!(item, LogItem::Entry(_))),
            "{items:?}"
        );
    }
    let found = lied_to(&mut alice, &proxy, spoiling).await;
    let [Difference::Unreadable { seq: 1 }, Difference::Hidden { own: LogEvent::KeyboxRegistered(_) }] =
        found.as_slice()
    else {
        panic!("{found:?}");
    };
}

#[tokio::test]
async fn a_head_that_is_forged_or_goes_back_is_found_out() {
    let cluster = TestCluster::start().await;
    let (mut alice, proxy) = talk(&cluster).await;
    assert_eq!(audit(&mut alice).await.differences, []);

    let forging = |path: &str, answer: &mut Value| {
        if path.ends_with("/log/head") {
            answer["hash"] = json!("AAAA");
        }
    };
    let found = lied_to(&mut alice, &proxy, forging).await;
    assert!(found.iter().any(|found| matches!(found, Difference::HeadSignature { .. })), "{found:?}");

    // An old head is truly signed, and the entries up to it are true.
    let old: Arc<std::sync::Mutex<Option<Value>>> = Arc::default();
    let kept = Arc::clone(&old);
    proxy.alter(move |path, answer| {
        if path.ends_with("/log/head") {
            *kept.lock().expect("not poisoned") = Some(answer.clone());
        }
    });
    assert_eq!(audit(&mut alice).await.differences, []);
    let room = alice.create_room(None, &SUITES[0], &[]).await.expect("a room");
    alice.sync(Duration::ZERO).await.expect("synced");
    proxy.alter(|_, _| {});
    let mut second =
        Client::login(&home(&cluster), &cluster.url(1), "alice", PASSWORD, Passphrase::Own(PASSPHRASE))
            .await
            .expect("in");
    second.sync(Duration::ZERO).await.expect("synced");
    alice.send_text(&room, "to my other KeyBox").await.expect("sent");
    let report = audit(&mut alice).await;
    assert_eq!(report.differences, []);
    let old = old.lock().expect("not poisoned").clone().expect("a head");
    let old_seq = old["seq"].as_u64().expect("a number");
    assert!(old_seq < report.server.seq);
    let going_back = move |path: &str, answer: &mut Value| {
        if path.ends_with("/log/head") {
            *answer = old.clone();
        } else if path.contains("/log?")
            && let Some(entries) = answer["entries"].as_array_mut()
        {
            entries.retain(|entry| entry["seq"].as_u64().expect("a number") <= old_seq);
        }
    };
    let found = lied_to(&mut alice, &proxy, going_back).await;
    let went_back = Difference::HeadWentBack { seen: report.server.seq, now: old_seq };
    assert!(found.contains(&went_back), "{found:?}");

    // Another key than the one that was seen first.
    let other = |path: &str, answer: &mut Value| {
        if path == "/_matrix/key/v2/server" {
            let mut keys = Map::new();
            keys.insert("ed25519:2".to_owned(), json!({ "key": "A".repeat(43) }));
            answer["verify_keys"] = keys.into();
        }
    };
    let found = lied_to(&mut alice, &proxy, other).await;
    assert!(found.iter().any(|found| matches!(found, Difference::ServerKeyChanged { .. })), "{found:?}");
}

/// An administrator changes the key that the server signs with: KeyBoxes take it when a person accepts its fingerprint, and no other.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_signing_key_is_accepted_by_its_fingerprint() {
    let cluster = TestCluster::start().await;
    let (mut alice, _proxy) = talk(&cluster).await;
    assert_eq!(audit(&mut alice).await.differences, []);
    let output = cluster.run(&["admin", "signing-key", "rotate"], &[]).await;
    assert!(output.status.success(), "{output:?}");
    for replica in 0..cluster.size() {
        cluster.stop(replica).await;
        cluster.restart(replica).await;
    }
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    let fingerprint = told.lines().last().expect("a fingerprint");

    let changed = |found: &[Difference]| {
        found
            .iter()
            .any(|found| matches!(found, Difference::ServerKeyChanged { key_name, .. } if key_name == "2"))
    };
    let found = audit(&mut alice).await.differences;
    assert!(changed(&found), "{found:?}");
    let wrong = fingerprint.replace(['a', '1'], "b");
    let found = alice.audit_accepting(Some(&wrong)).await.expect("an audit").differences;
    assert!(changed(&found), "{found:?}");
    assert!(changed(&audit(&mut alice).await.differences), "nothing was accepted");
    let accepted = alice.audit_accepting(Some(fingerprint)).await.expect("an audit");
    assert_eq!(accepted.differences, []);
    assert_eq!(audit(&mut alice).await.differences, [], "it is remembered");
}

/// Somebody who has the password makes a KeyBox and removes it, while the owner's KeyBox is away.
#[tokio::test(flavor = "multi_thread")]
async fn a_keybox_that_came_and_went_is_told() {
    let cluster = TestCluster::start().await;
    let (mut alice, _proxy) = talk(&cluster).await;
    alice.sync(Duration::ZERO).await.expect("synced");
    alice.take_notices();
    let mut visitor =
        Client::login(&home(&cluster), &cluster.url(1), "alice", PASSWORD, Passphrase::Own(PASSPHRASE))
            .await
            .expect("in");
    visitor.sync(Duration::ZERO).await.expect("synced");
    let visitor_id = visitor.account().keybox_id.clone();
    visitor.logout().await.expect("out");
    let passed = |notices: Vec<Notice>| {
        let passed = notices.into_iter().filter_map(|notice| match notice {
            Notice::OwnKeyBoxPassed { keybox, .. } => Some(keybox.keybox_id),
            _ => None,
        });
        passed.collect::<Vec<_>>()
    };
    alice.sync(Duration::ZERO).await.expect("synced");
    assert_eq!(passed(alice.take_notices()), [visitor_id]);
    alice.sync(Duration::ZERO).await.expect("synced");
    assert!(passed(alice.take_notices()).is_empty(), "it is told once");
}
