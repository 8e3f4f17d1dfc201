//! Push rules: the defaults, changes of them, and that changes reach the other devices.

use keystead_tests::{
    TestCluster,
    cluster::at,
    http::encode,
    sync::{events, of_type},
};
use serde_json::{Value, json};

fn rule<'a>(rules: &'a Value, kind: &str, id: &str) -> Option<&'a Value> {
    at(rules, &format!("/global/{kind}")).as_array()?.iter().find(|rule| rule["rule_id"] == id)
}

#[tokio::test]
async fn every_user_has_the_default_rules() {
    let cluster = TestCluster::start().await;
    let alice = cluster.user("alice").await;
    let rules = alice.get("/pushrules/").await.ok();
    for (kind, id) in [
        ("override", ".m.rule.master"),
        ("override", ".m.rule.suppress_notices"),
        ("override", ".m.rule.invite_for_me"),
        ("override", ".m.rule.is_user_mention"),
        ("underride", ".m.rule.message"),
        ("underride", ".m.rule.encrypted_room_one_to_one"),
    ] {
        let rule = rule(&rules, kind, id).unwrap_or_else(|| panic!("no {id} in {rules:#}"));
        assert_eq!(rule["default"], true);
    }
    assert_eq!(rule(&rules, "override", ".m.rule.master").expect("checked")["enabled"], false);
    alice.get("/pushrules/global/override/.m.rule.nonsense").await.refused(404, "M_NOT_FOUND");
}

#[tokio::test]
async fn a_rule_is_added_changed_and_removed_on_all_devices() {
    let cluster = TestCluster::start().await;
    let alice = cluster.user("alice").await;
    let tablet = cluster.login("alice").await;
    let mut tablets = tablet.at(1).syncing();
    let first = tablets.next(0).await;
    assert!(
        of_type(events(&first["account_data"]), "m.push_rules").is_some(),
        "the first sync has the rules"
    );
    let path = "/pushrules/global/content/cake";

    let added = json!({ "pattern": "cake", "actions": ["notify"] });
    alice.at(0).put(path, added).await.ok();
    tablets
        .until("the new rule", |answer| {
            let data = of_type(events(&answer["account_data"]), "m.push_rules")?;
            rule(&data["content"], "content", "cake").cloned()
        })
        .await;
    let shown = tablet.at(1).get(path).await.ok();
    assert_eq!((&shown["pattern"], &shown["enabled"]), (&json!("cake"), &json!(true)));

    alice.at(0).put(&format!("{path}/enabled"), json!({ "enabled": false })).await.ok();
    assert_eq!(tablet.at(1).get(&format!("{path}/enabled")).await.ok()["enabled"], false);
    let actions = json!({ "actions": ["notify", { "set_tweak": "sound", "value": "bing" }] });
    alice.at(0).put(&format!("{path}/actions"), actions.clone()).await.ok();
    assert_eq!(tablet.at(1).get(&format!("{path}/actions")).await.ok()["actions"], actions["actions"]);

    alice.delete(path).await.ok();
    tablet.get(path).await.refused(404, "M_NOT_FOUND");
    alice.delete(path).await.refused(404, "M_NOT_FOUND");
}

#[tokio::test]
async fn rules_stand_in_the_order_that_was_asked_for() {
    let cluster = TestCluster::start().await;
    let alice = cluster.user("alice").await;
    let body = json!({ "pattern": "x", "actions": [] });
    for (id, query) in [("a", ""), ("b", ""), ("c", "?after=b"), ("d", "?before=a")] {
        alice.put(&format!("/pushrules/global/content/{id}{query}"), body.clone()).await.ok();
    }
    let rules = alice.get("/pushrules/").await.ok();
    let order: Vec<_> = at(&rules, "/global/content")
        .as_array()
        .expect("a list")
        .iter()
        .filter(|rule| rule["default"] == false)
        .map(|rule| rule["rule_id"].as_str().expect("text"))
        .collect();
    assert_eq!(order, ["b", "c", "d", "a"]);
}

#[tokio::test]
async fn what_the_server_set_cannot_be_taken_away() {
    let cluster = TestCluster::start().await;
    let alice = cluster.user("alice").await;
    let reserved =
        alice.put("/pushrules/global/content/.mine", json!({ "pattern": "x", "actions": [] })).await;
    assert_eq!(reserved.status, 400, "{}", reserved.text);
    let body = json!({ "actions": [], "conditions": [] });
    let before = alice.put("/pushrules/global/override/mine?before=none", body).await;
    assert!([400, 404].contains(&before.status), "{}", before.text);
    let default = alice.delete("/pushrules/global/underride/.m.rule.message").await;
    assert!([400, 404].contains(&default.status), "{}", default.text);
    alice.put("/pushrules/global/underride/.m.rule.message/enabled", json!({ "enabled": false })).await.ok();
    let shown = alice.get("/pushrules/global/underride/.m.rule.message").await.ok();
    assert_eq!(shown["enabled"], false);
}

#[tokio::test]
async fn notifications_are_listed_with_the_newest_first_and_paged() {
    let cluster = TestCluster::start().await;
    let (alice, bob) = (cluster.user("alice").await, cluster.user("bob").await);
    let room = alice.create_public_room().await;
    alice.send_text(&room, "before bob").await;
    bob.join(&room).await;
    let mut sent = Vec::new();
    sent.push(alice.at(0).send_text(&room, "one").await);
    let mention = json!({ "msgtype": "m.text", "body": "two", "m.mentions": { "user_ids": [bob.id] } });
    sent.push(alice.at(0).send_event(&room, "m.room.message", mention).await);
    sent.push(alice.at(0).send_text(&room, "three").await);
    bob.send_text(&room, "my own").await;
    let path = keystead_tests::user::in_room(&room, &format!("/receipt/m.read/{}", encode(&sent[0])));
    bob.at(0).post(&path, json!({})).await.ok();

    let listed = async |query: &str| bob.at(1).get(&format!("/notifications{query}")).await.ok();
    let ids = |answer: &Value| -> Vec<String> {
        let list = answer["notifications"].as_array().expect("a list");
        list.iter().map(|one| one["event"]["event_id"].as_str().expect("an id").to_owned()).collect()
    };
    let all = listed("").await;
    sent.reverse();
    assert_eq!(ids(&all), sent, "{all:#}");
    assert!(all.get("next_token").is_none());
    let read = |n: usize| all["notifications"][n]["read"].clone();
    assert_eq!([read(0), read(1), read(2)], [false, false, true].map(Value::from));
    let first = &all["notifications"][0];
    assert_eq!((&first["room_id"], &first["event"]["content"]["body"]), (&json!(room), &json!("three")));
    assert_eq!(first["ts"], first["event"]["origin_server_ts"]);
    assert!(first["actions"].as_array().is_some_and(|actions| actions.contains(&json!("notify"))), "{first}");

    let page = listed("?limit=2").await;
    assert_eq!(ids(&page), sent[..2]);
    let token = encode(page["next_token"].as_str().expect("a token"));
    let rest = listed(&format!("?limit=2&from={token}")).await;
    assert_eq!((ids(&rest), rest.get("next_token")), (sent[2..].to_vec(), None));
    assert_eq!(ids(&listed("?only=highlight").await), sent[1..2]);
    bob.get("/notifications?from=nonsense").await.refused(400, "M_INVALID_PARAM");
    bob.get("/notifications?limit=many").await.refused(400, "M_INVALID_PARAM");

    // What was redacted, what is said by those whom the user ignores, and rooms that they have left, notify nobody.
    alice
        .put(&keystead_tests::user::in_room(&room, &format!("/redact/{}/r", encode(&sent[0]))), json!({}))
        .await
        .ok();
    assert_eq!(ids(&listed("").await), sent[1..]);
    let ignored = format!("/user/{}/account_data/m.ignored_user_list", encode(&bob.id));
    bob.put(&ignored, json!({ "ignored_users": { alice.id.clone(): {} } })).await.ok();
    assert_eq!(ids(&listed("").await), [""; 0]);
    bob.put(&ignored, json!({ "ignored_users": {} })).await.ok();
    bob.leave(&room).await;
    assert_eq!(ids(&listed("").await), [""; 0]);
}
