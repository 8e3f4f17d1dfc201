//! Start, stop, restart, and what operators see.

use std::time::Duration;

use hyper::Method;
use keystead_tests::{TestCluster, eventually, http::Request, process};
use serde_json::json;

fn get(path: &str) -> Request {
    Request::new(Method::GET, path)
}

#[tokio::test]
async fn a_replica_that_is_asked_to_stop_ends_its_work_first() {
    let cluster = TestCluster::start().await;
    let alice = cluster.user("alice").await.at(0);
    let since = alice.sync_once(None).await["next_batch"].as_str().expect("a token").to_owned();
    let waiting = tokio::spawn(async move {
        let asked = tokio::time::Instant::now();
        let path = format!("/sync?timeout=50000&since={since}");
        (alice.get(&path).await, asked.elapsed())
    });
    // Until the long-poll has arrived there is nothing to be ended.
    eventually("the long-poll waits", || async {
        let metrics = cluster.send_to(0, get("/metrics")).await.text;
        metrics.lines().any(|line| line == "keystead_sync_waiters 1").then_some(())
    })
    .await;
    let status = cluster.stop(0).await;
    assert!(status.success(), "{status}");
    let (answer, time) = waiting.await.expect("an answer");
    assert_eq!(answer.status, 200, "the sync was answered, not cut off: {}", answer.text);
    assert!(time < Duration::from_secs(20), "{time:?}");
}

#[tokio::test]
async fn what_was_written_outlives_a_stop_and_a_crash() {
    let cluster = TestCluster::start().await;
    let alice = cluster.user("alice").await;
    let room = alice.create_public_room().await;
    let first = alice.at(0).send_text(&room, "before the stop").await;
    let mut syncing = alice.at(0).syncing();
    syncing.until_event(&room, &first).await;
    cluster.stop(0).await;
    cluster.restart(0).await;
    let second = alice.at(0).send_text(&room, "before the crash").await;
    cluster.kill(0);
    cluster.restart(0).await;
    // The old session and the old sync token are as good as they were.
    syncing.until_event(&room, &second).await;
}

/// Most rooms of a large server are quiet.
#[tokio::test]
async fn a_room_that_was_quiet_since_the_start_is_read_from_the_database_once() {
    let cluster = TestCluster::start().await;
    let alice = cluster.user("alice").await.at(0);
    let rooms = [alice.create_public_room().await, alice.create_public_room().await];
    cluster.stop(0).await;
    cluster.restart(0).await;
    let loads = || async {
        let metrics = cluster.send_to(0, get("/metrics")).await.text;
        let name = "keystead_transactions_total{name=\"load_rooms\",outcome=\"committed\"}";
        let line = metrics.lines().find(|line| line.starts_with(name)).expect("rooms were read").to_owned();
        line.rsplit(' ').next().and_then(|count| count.parse::<f64>().ok()).expect("a number")
    };
    for room in &rooms {
        let answer = alice.sync_once(None).await;
        assert!(answer["rooms"]["join"].get(room).is_some(), "{answer}");
    }
    assert!((loads().await - 1.0).abs() < 0.5, "both rooms at once, and once: {}", loads().await);
}

#[tokio::test]
async fn readiness_and_liveness_are_public() {
    let cluster = TestCluster::start().await;
    for path in ["/live", "/ready"] {
        cluster.send(get(path)).await.ok();
    }
}

#[tokio::test]
async fn metrics_are_bounded() {
    let cluster = TestCluster::start().await;
    let alice = cluster.user("alice").await;
    let room = alice.create_public_room().await;
    alice.send_text(&room, "counted").await;
    for number in 0..20 {
        cluster.send(get(&format!("/_matrix/client/v3/nonsense{number}"))).await;
        alice.get(&format!("/rooms/!{number}:example.org/state")).await;
    }
    let metrics = cluster.send_to(0, get("/metrics")).await;
    assert_eq!(metrics.status, 200);
    let series: Vec<_> = metrics.text.lines().filter(|line| !line.starts_with('#')).collect();
    assert!(series.iter().any(|line| line.starts_with("keystead_")));
    assert!(series.len() < 2_000, "{} series", series.len());
    for label in ["nonsense", "example.org", "alice", &room] {
        assert!(!metrics.text.contains(label), "{label} is in a label");
    }
}

/// By a language's rules a look into an index costs more, and a change of the rules breaks the index.
#[tokio::test]
async fn postgresql_compares_texts_by_their_bytes() {
    let cluster = TestCluster::start().await;
    if cluster.database_url().starts_with("sqlite:") {
        return;
    }
    let dump = cluster.dump_database().await;
    let is_text = |line: &&str| {
        line.starts_with("    ")
            && line.split_whitespace().nth(1).is_some_and(|word| word.trim_end_matches(',') == "text")
    };
    let texts: Vec<_> = dump.lines().filter(is_text).collect();
    assert!(texts.len() > 50, "{texts:?}");
    let others: Vec<_> = texts.iter().filter(|line| !line.contains("COLLATE pg_catalog.\"C\"")).collect();
    assert!(others.is_empty(), "{others:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_belongs_to_one_server_name() {
    let cluster = TestCluster::start().await;
    let mut command = process::command("serve");
    command
        .env("KEYSTEAD_DATABASE_URL", cluster.database_url())
        .env("KEYSTEAD_SERVER_NAME", "another.test")
        .env("KEYSTEAD_SERVER_LISTEN", "127.0.0.1:0")
        .env("KEYSTEAD_DATA_DIR", cluster.folder());
    let output =
        tokio::task::spawn_blocking(move || command.output()).await.expect("no panic").expect("it ran");
    let messages = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{messages}");
    assert!(messages.contains("keystead.test"), "{messages}");
}

#[test]
fn all_mistakes_in_the_settings_are_told_at_once() {
    let output = process::command("check-config")
        .env("KEYSTEAD_AUTH_BCRYPT_COST", "many")
        .env("KEYSTEAD_DATABASE_URL", "mysql://localhost")
        .env("KEYSTEAD_NO_SUCH_THING", "1")
        .output()
        .expect("it ran");
    let messages = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{messages}");
    for name in ["BCRYPT_COST", "DATABASE_URL", "KEYSTEAD_NO_SUCH_THING"] {
        let setting = name.to_lowercase().replacen('_', ".", 1);
        let known = messages.contains(name) || messages.to_lowercase().contains(&setting);
        assert!(known || messages.contains(&name.to_lowercase()), "nothing about {name}: {messages}");
    }
}

#[tokio::test]
async fn clients_are_told_what_the_server_can() {
    let cluster = TestCluster::start().await;
    let versions = cluster.send(get("/_matrix/client/versions")).await.ok();
    let versions = versions["versions"].as_array().expect("a list").clone();
    assert!(versions.contains(&json!("v1.11")), "{versions:?}");
    let well_known = cluster.send(get("/.well-known/matrix/client")).await.ok();
    let url = well_known["m.homeserver"]["base_url"].as_str().expect("a URL");
    assert!(url.starts_with("http://127.0.0.1:"), "{url}");
}
