//! What `monitoring/` says of the server, on a real Prometheus: every query has data, every metric exists, and nothing is
//! alarmed at a server that is well.

use std::{
    collections::BTreeSet,
    fs,
    sync::Arc,
    time::{Duration, Instant},
};

use hyper::Method;
use keystead_tests::{
    TestCluster, User,
    cluster::on_sqlite,
    eventually,
    http::Request,
    keys::{SigningKey, device_keys, one_time_keys},
    prometheus::{Prometheus, monitoring},
    user::transaction_id,
};
use serde_json::{Value, json};

/// Expressions that are rightly empty while all is well, even without their thresholds.
const EMPTY: [(&str, &str); 1] = [("absent(keystead_build_info)", "a server answers")];

/// Two members of a room.
struct People {
    alice: User,
    bob: User,
    room: String,
}

/// People, and some of everything that is counted.
async fn people(cluster: &Arc<TestCluster>) -> People {
    let (alice, bob) = (cluster.user("alice").await, cluster.user("bob").await);
    let room = alice.create_public_room().await;
    bob.join(&room).await;
    let people = People { alice, bob, room };
    traffic(&people).await;
    people
}

/// Some of everything that is counted.
async fn traffic(People { alice, bob, room }: &People) {
    let mut syncing = bob.syncing();
    syncing.next(0).await;
    for number in 0..5 {
        alice.send_text(room, &format!("message {number}")).await;
        to_bob(alice, bob, "m.dummy", json!({})).await.ok();
    }
    syncing.next(0).await;
    syncing.next(0).await;
    // A name is carried into the rooms by a job.
    alice.put(&format!("/profile/{}/displayname", alice.id), json!({ "displayname": "Alice" })).await.ok();
    let key = SigningKey::named(&alice.device);
    let keys = json!({
        "device_keys": device_keys(alice, &key), "one_time_keys": one_time_keys(alice, &key, 0, 3),
    });
    // The keys of a device never change: the second time this is counted as refused.
    alice.post("/keys/upload", keys).await;
    let wanted = json!({ "one_time_keys": { &alice.id: { &alice.device: "signed_curve25519" } } });
    bob.post("/keys/claim", wanted).await.ok();
    let not_a_key_message = to_bob(alice, bob, "com.trustner.keybox.resource_key", json!({})).await;
    not_a_key_message.refused(400, "M_BAD_JSON");
    let registry = "/_matrix/client/unstable/com.trustner.keybox/v1/keyboxes";
    alice.send(Request::new(Method::GET, registry)).await;
    let upload = Request::new(Method::POST, "/_matrix/media/v3/upload").bytes("text/plain", "a file");
    alice.send(upload).await.ok();
    alice.get("/rooms/!nowhere:example.org/state").await;
}

async fn to_bob(alice: &User, bob: &User, kind: &str, content: Value) -> keystead_tests::Response {
    let body = json!({ "messages": { &bob.id: { &bob.device: content } } });
    alice.put(&format!("/sendToDevice/{kind}/{}", transaction_id()), body).await
}

async fn start() -> (Arc<TestCluster>, Prometheus, People) {
    let cluster = TestCluster::start().await;
    let urls: Vec<_> = (0..cluster.size()).map(|replica| cluster.url(replica)).collect();
    let prometheus = Prometheus::start(&urls, cluster.database_url()).await;
    let people = people(&cluster).await;
    (cluster, prometheus, people)
}

/// All queries of all dashboards with their panels, as Grafana would ask them: of everything, and of ten minutes.
fn dashboard_queries() -> Vec<(String, String)> {
    let mut queries = Vec::new();
    for entry in fs::read_dir(monitoring().join("dashboards")).expect("the dashboards") {
        let path = entry.expect("an entry").path();
        let text = fs::read_to_string(&path).expect("readable");
        let dashboard: Value = serde_json::from_str(&text).expect("JSON");
        for panel in dashboard["panels"].as_array().expect("panels") {
            for target in panel["targets"].as_array().into_iter().flatten() {
                let mut query = target["expr"].as_str().expect("a query").to_owned();
                for (variable, value) in
                    [("$job", ".*"), ("$instance", ".*"), ("$exporter", ".*"), ("$__rate_interval", "10m")]
                {
                    query = query.replace(variable, value);
                }
                queries.push((format!("{}, {}", dashboard["title"], panel["title"]), query));
            }
        }
    }
    queries
}

/// All rules: their names, queries, and whether they are alerts.
async fn rules(prometheus: &Prometheus) -> Vec<(String, String, bool)> {
    let data = prometheus.get("/api/v1/rules").await;
    let mut rules = Vec::new();
    for group in data["groups"].as_array().expect("groups") {
        for rule in group["rules"].as_array().expect("rules") {
            let text = |name: &str| rule[name].as_str().expect("a text").to_owned();
            rules.push((text("name"), text("query"), rule["type"] == "alerting"));
        }
    }
    rules
}

/// The query of an alert without its thresholds: all that it compares.
fn without_thresholds(query: &str) -> String {
    let words: Vec<_> = query.split_whitespace().collect();
    let mut out = Vec::new();
    for (index, word) in words.iter().enumerate() {
        let after_comparison = index > 0 && matches!(words[index - 1], ">" | "<" | "==");
        let number = word.trim_end_matches(')');
        if after_comparison && number.parse::<f64>().is_ok() {
            out.pop();
            out.push(format!(">= -1e300{}", &word[number.len()..]));
        } else {
            out.push((*word).to_owned());
        }
    }
    out.join(" ")
}

/// The names of metrics in a query.
fn metrics(query: &str) -> impl Iterator<Item = &str> {
    query.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':')).filter(|word| {
        ["keystead_", "keystead:", "process_", "pg_"].iter().any(|head| word.starts_with(head))
    })
}

#[tokio::test]
async fn every_query_has_data_and_nothing_is_alarmed() {
    let (cluster, prometheus, people) = start().await;
    let is_asked = |query: &str| !on_sqlite() || !(query.contains("pg_") || query.contains("postgresql"));
    let mut queries = dashboard_queries();
    for (name, query, is_alert) in rules(&prometheus).await {
        if EMPTY.iter().any(|(empty, _)| *empty == query) {
            continue;
        }
        queries.push((name, if is_alert { without_thresholds(&query) } else { query }));
    }
    queries.retain(|(_, query)| is_asked(query));
    assert!(queries.len() > if on_sqlite() { 120 } else { 140 }, "{} queries", queries.len());

    for (name, query) in &queries {
        // Two looks of Prometheus have to lie behind it, and Prometheus looks at the rules only after that.
        let until = Instant::now() + Duration::from_secs(15);
        loop {
            let samples = prometheus.query(query).await;
            if samples.iter().any(|(_, value)| value.is_finite()) {
                break;
            }
            assert!(Instant::now() < until, "{name}: no data: {query}: {samples:?}");
            // A counter that was first seen with what it has now has not grown yet.
            traffic(&people).await;
            people.alice.create_public_room().await;
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    let names = prometheus.get("/api/v1/label/__name__/values").await;
    let names: BTreeSet<_> = names.as_array().expect("names").iter().filter_map(Value::as_str).collect();
    for (name, query) in &queries {
        for metric in metrics(query) {
            assert!(names.contains(metric), "{name}: there is no metric {metric}");
        }
    }

    let up = prometheus.query("count(up == 1)").await;
    let services = if on_sqlite() { 1.0 } else { 3.0 };
    assert_eq!(up.first().map(|(_, value)| *value), Some(services));
    let alarmed = prometheus.query("ALERTS").await;
    assert!(alarmed.is_empty(), "{alarmed:?}");
    let failed = prometheus.query("sum(prometheus_rule_evaluation_failures_total)").await;
    assert!(failed.iter().all(|(_, count)| *count == 0.0), "{failed:?}");
    drop(cluster);
}

#[tokio::test]
async fn a_server_that_is_gone_is_alarmed() {
    let (cluster, prometheus, _) = start().await;
    cluster.kill(0);
    let expected = if on_sqlite() { "KeysteadDown" } else { "KeysteadReplicaDown" };
    eventually("the alert is pending", || async {
        let alarmed = prometheus.query(&format!("ALERTS{{alertname=\"{expected}\"}}")).await;
        (!alarmed.is_empty()).then_some(())
    })
    .await;
}

#[tokio::test]
async fn series_stay_below_2000_with_many_users_and_rooms() {
    let cluster = TestCluster::start().await;
    people(&cluster).await;
    let count = || async {
        let metrics = cluster.send_to(0, Request::new(Method::GET, "/metrics")).await.text;
        metrics.lines().filter(|line| !line.starts_with('#')).count()
    };
    // What there is has been used on both replicas.
    visit(&cluster, "w", 4).await;
    let before = count().await;
    visit(&cluster, "x", 40).await;
    let after = count().await;
    assert!(after < 2_000, "{after} series");
    assert!(after <= before + 20, "{before} series with few users and rooms, {after} with many");
}

/// So many people with a room each, who talk, look at each other's profiles and ask for what there is not.
async fn visit(cluster: &Arc<TestCluster>, prefix: &str, people: usize) {
    let mut users = Vec::new();
    for number in 0..people {
        users.push(cluster.user(&format!("{prefix}{number}")).await);
    }
    for (number, user) in users.iter().enumerate() {
        let room = user.create_public_room().await;
        let other = &users[(number + 1) % people];
        other.join(&room).await;
        user.send_text(&room, "hello").await;
        to_bob(user, other, "m.dummy", json!({})).await.ok();
        user.sync_once(None).await;
        user.get(&format!("/profile/{}", other.id)).await.ok();
        user.get(&format!("/rooms/!{prefix}{number}:example.org/state")).await;
        user.send(Request::new(Method::GET, format!("/_matrix/{prefix}{number}"))).await;
    }
}
