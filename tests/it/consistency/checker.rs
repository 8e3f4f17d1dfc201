//! Compares what was acknowledged with what was read.

use std::collections::{BTreeMap, BTreeSet};

use keystead_tests::{User, cluster::at, http::encode, user::in_room};
use serde_json::Value;

use super::{reader::Journal, workload::History};

/// All events of a room from `/messages`, oldest first.
pub async fn whole_history(user: &User, room: &str) -> Vec<Value> {
    let mut all = Vec::new();
    let mut from = String::new();
    loop {
        let page = user.get(&in_room(room, &format!("/messages?dir=f&limit=100{from}"))).await.ok();
        all.extend_from_slice(at(&page, "/chunk").as_array().expect("a list"));
        match page["end"].as_str() {
            Some(end) => from = format!("&from={}", encode(end)),
            None => return all,
        }
    }
}

/// The ids of events.
pub fn ids(events: &[Value]) -> Vec<&str> {
    events.iter().map(|event| event["event_id"].as_str().expect("an id")).collect()
}

/// Every event of a room's state is the newest of its type and key.
pub fn state_is_newest(order: &[Value], state: &Value) {
    let key = |event: &Value| (event["type"].to_string(), event["state_key"].to_string());
    let newest: BTreeMap<_, _> = order
        .iter()
        .filter(|event| event["state_key"].is_string())
        .map(|event| (key(event), event))
        .collect();
    let state = state.as_array().expect("a list");
    assert_eq!(state.len(), newest.len());
    for event in state {
        assert_eq!(event["event_id"], newest[&key(event)]["event_id"], "an old state of {:?}", key(event));
    }
}

/// Compares the acknowledgements with the order of each room and with what each reader saw.
pub fn check(
    history: &History,
    orders: &BTreeMap<String, Vec<Value>>,
    observers: &[Journal],
    members: &[Journal],
) {
    for (room, order) in orders {
        nothing_lost_or_doubled(history, room, order);
        senders_order(order);
        for observer in observers {
            assert_eq!(ids(&observer.rooms[room]), ids(order), "{} saw something else", observer.user);
        }
        for member in members {
            let seen = member.rooms.get(room).map(Vec::as_slice).unwrap_or_default();
            saw_its_time_in_the_room(&member.user, seen, order);
        }
    }
    for journal in observers.iter().chain(members) {
        to_device(history, journal);
    }
}

fn nothing_lost_or_doubled(history: &History, room: &str, order: &[Value]) {
    let order_ids = ids(order);
    let unique: BTreeSet<_> = order_ids.iter().collect();
    assert_eq!(unique.len(), order_ids.len(), "an event stands twice in {room}");
    for sent in history.events.iter().filter(|sent| sent.room == room) {
        let event = order.iter().find(|event| event["event_id"] == *sent.event_id);
        let event = event
            .unwrap_or_else(|| panic!("lost: {} of {}, number {}", sent.event_id, sent.sender, sent.number));
        assert_eq!(
            (event["sender"].as_str(), event["content"]["number"].as_u64()),
            (Some(&*sent.sender), Some(sent.number))
        );
    }
    let mut messages = BTreeSet::new();
    for event in order.iter().filter(|event| event["type"] == "m.room.message") {
        let what = (event["sender"].to_string(), event["content"]["number"].to_string());
        assert!(messages.insert(what.clone()), "sent twice: {what:?}");
    }
}

fn senders_order(order: &[Value]) {
    let mut last: BTreeMap<&str, u64> = BTreeMap::new();
    for event in order {
        let Some(number) = event["content"]["number"].as_u64() else { continue };
        let sender = event["sender"].as_str().expect("a sender");
        let before = last.insert(sender, number).unwrap_or(0);
        // State has no transaction id: tried again after a lost answer it may stand there twice.
        let again = before == number && event["state_key"].is_string();
        assert!(before < number || again, "{sender}: {before} stands before {number}");
    }
}

/// What happened before a join or after a leave may be shown as well, and late, where the room's history is open.
fn saw_its_time_in_the_room(user: &str, seen: &[Value], order: &[Value]) {
    let mut due = Vec::new();
    let mut joined = false;
    for event in order {
        let own = event["type"] == "m.room.member" && event["state_key"] == user;
        let joins = own && event["content"]["membership"] == "join";
        if joined || joins {
            due.push(event["event_id"].as_str().expect("an id"));
        }
        joined = if own { joins } else { joined };
    }
    let places: BTreeMap<_, _> = due.iter().copied().zip(0..).collect();
    let seen: Vec<usize> = ids(seen).into_iter().filter_map(|id| places.get(id).copied()).collect();
    for (place, id) in due.iter().enumerate() {
        assert!(seen.contains(&place), "{user} was a member and did not see {id}");
    }
    for pair in seen.windows(2) {
        let [one, next] = [pair[0], pair[1]];
        assert!(one < next, "{user} saw {} after {}; in this order: {seen:?}", due[next], due[one]);
    }
}

fn to_device(history: &History, journal: &Journal) {
    let mut arrived: BTreeMap<(String, String), Vec<u64>> = BTreeMap::new();
    for event in journal.to_device.iter().filter(|event| event["type"] == "org.example.number") {
        let sender = event["sender"].as_str().expect("a sender").to_owned();
        let number = event["content"]["number"].as_u64().expect("a number");
        arrived.entry((sender, journal.user.clone())).or_default().push(number);
    }
    let sent: BTreeMap<_, _> =
        history.to_device.iter().filter(|((_, receiver), _)| *receiver == journal.user).collect();
    assert_eq!(arrived.iter().collect::<BTreeMap<_, _>>(), sent, "to-device messages of {}", journal.user);
}
