//! Reports to the administrators, and what these see of them.

use hyper::Method;
use keystead_tests::{
    TestCluster,
    http::{Request, encode},
    user::in_room,
};
use serde_json::{Value, json};

async fn reports(cluster: &TestCluster) -> Vec<Value> {
    let output = cluster.run(&["admin", "reports", "list", "--json"], &[]).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("text");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

#[tokio::test]
async fn reports_reach_the_administrators() {
    let cluster = TestCluster::start().await;
    let (alice, bob) = (cluster.user("alice").await, cluster.user("bob").await);
    let room = alice.create_public_room().await;
    let early = alice.send_text(&room, "before bob").await;
    bob.join(&room).await;
    let event = alice.send_text(&room, "spam").await;
    assert_eq!(reports(&cluster).await, [Value::Null; 0]);

    let path = |event: &str| in_room(&room, &format!("/report/{}", encode(event)));
    let reason = json!({ "reason": "spam\nspam" });
    assert_eq!(bob.at(0).post(&path(&event), reason).await.ok(), json!({}));
    assert_eq!(bob.at(1).post(&path(&early), json!({ "score": -100 })).await.ok(), json!({}));
    bob.post(&in_room(&room, "/report"), json!({ "reason": "a bad place" })).await.ok();
    let user = format!("/users/{}/report", encode(&alice.id));
    bob.post(&user, json!({ "reason": "" })).await.ok();

    let mut list = reports(&cluster).await;
    for report in &mut list {
        assert_eq!(report["reporter"], json!(bob.id));
        assert!(report["received_ts"].as_u64().is_some_and(|ts| ts > 0), "{report}");
    }
    list.sort_by_key(|report| (report["kind"].to_string(), report["reason"].to_string()));
    let of = |report: &Value, name: &str| report[name].as_str().unwrap_or_default().to_owned();
    let about: Vec<_> = list
        .iter()
        .map(|report| {
            ["kind", "room_id", "event_id", "sender", "user_id", "reason"].map(|name| of(report, name))
        })
        .collect();
    let (event, early, alice_id) = (event.as_str(), early.as_str(), alice.id.as_str());
    let expected = [
        ["event", &room, early, alice_id, "", ""],
        ["event", &room, event, alice_id, "", "spam\nspam"],
        ["room", &room, "", "", "", "a bad place"],
        ["user", "", "", "", alice_id, ""],
    ];
    assert_eq!(about, expected.map(|row| row.map(str::to_owned)));

    // Those that were dealt with are deleted: all that are named, or none.
    let id = of(&list[0], "report_id");
    let refused = cluster.run(&["admin", "reports", "delete", &id, "NOSUCH"], &[]).await;
    assert!(!refused.status.success());
    assert_eq!(reports(&cluster).await.len(), 4);
    let output = cluster.run(&["admin", "reports", "delete", &id], &[]).await;
    assert_eq!(String::from_utf8_lossy(&output.stdout), "Deleted 1 report(s).\n");
    let plain = cluster.run(&["admin", "reports", "list"], &[]).await;
    let plain = String::from_utf8(plain.stdout).expect("text");
    assert_eq!(plain.lines().count(), 3, "{plain}");
    assert!(plain.contains(&format!("{} reports room {room}: a bad place\n", bob.id)), "{plain}");
}

#[tokio::test]
async fn what_cannot_be_seen_cannot_be_reported() {
    let cluster = TestCluster::start().await;
    let (alice, eve) = (cluster.user("alice").await, cluster.user("eve").await);
    let room = alice.create_room(json!({ "preset": "private_chat" })).await;
    let event = alice.send_text(&room, "secret").await;
    let path = in_room(&room, &format!("/report/{}", encode(&event)));
    eve.post(&path, json!({ "reason": "x" })).await.refused(404, "M_NOT_FOUND");
    alice.post(&in_room(&room, "/report/%24nothing"), json!({})).await.refused(404, "M_NOT_FOUND");
    // Who is no member any more is not joined.
    let open = alice.create_public_room().await;
    eve.join(&open).await;
    let seen = alice.send_text(&open, "seen").await;
    eve.leave(&open).await;
    let path = in_room(&open, &format!("/report/{}", encode(&seen)));
    eve.post(&path, json!({})).await.refused(404, "M_NOT_FOUND");

    let reason = json!({ "reason": "x" });
    eve.post("/rooms/%21nowhere%3Akeystead.test/report", reason.clone()).await.refused(404, "M_NOT_FOUND");
    eve.post("/users/%40nobody%3Akeystead.test/report", reason.clone()).await.refused(404, "M_NOT_FOUND");
    eve.post("/users/%40a%3Aelsewhere.test/report", reason).await.refused(404, "M_NOT_FOUND");
    let user = format!("/users/{}/report", encode(&alice.id));
    eve.post(&user, json!({})).await.refused(400, "M_BAD_JSON");
    eve.post(&user, json!({ "reason": "x".repeat(5_000) })).await.refused(413, "M_TOO_LARGE");
    eve.post(&user, json!({ "reason": "a\0b" })).await.refused(400, "M_INVALID_PARAM");
    assert_eq!(reports(&cluster).await, [Value::Null; 0]);
}

#[tokio::test]
async fn who_reports_without_end_is_slowed_down() {
    let cluster = TestCluster::start_with(&[("KEYSTEAD_LIMITS_RATE_LIMITS", "true")]).await;
    let (alice, bob) = (cluster.user("alice").await, cluster.user("bob").await);
    let path = format!("/_matrix/client/v3/users/{}/report", encode(&bob.id));
    let report = Request::new(Method::POST, path).json(&json!({ "reason": "again" }));
    let mut answers = Vec::new();
    for _ in 0..30 {
        answers.push(alice.at(0).send(report.clone()).await);
    }
    let last = answers.pop().expect("an answer");
    last.refused(429, "M_LIMIT_EXCEEDED");
    assert!(answers.iter().filter(|answer| answer.status == 200).count() >= 20);
}
