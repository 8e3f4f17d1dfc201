//! One history for everybody: a random concurrent workload through all replicas, everything that was acknowledged
//! noted down, everything that was read noted down, and the two compared.
//!
//! What is proven, for every room and every reader:
//!
//! - each acknowledged event is there exactly once, and nothing was sent twice, however often it was tried;
//! - all readers see one order, whichever replicas they read from, in `/sync` and in `/messages`;
//! - what one user sends stands in the order in which it was sent;
//! - a member sees all that happens between its join and its leave;
//! - each to-device message arrives exactly once, those of one sender to one receiver in order.

mod checker;
mod reader;
mod workload;

use std::{
    collections::BTreeMap,
    hash::{BuildHasher, Hasher, RandomState},
    sync::{Arc, Mutex},
};

use futures_util::future::join_all;
use keystead_tests::{TestCluster, User, eventually, user::in_room};
use serde_json::json;
use tokio::sync::watch;

use self::{
    reader::{Journal, Reader},
    workload::{History, Writer},
};

const WRITERS: usize = 6;
const OBSERVERS: usize = 2;
const ROOMS: usize = 3;

#[tokio::test]
async fn all_readers_see_one_history() {
    run(Disaster::None, &[]).await;
}

#[tokio::test]
async fn a_killed_replica_loses_and_doubles_nothing() {
    run(Disaster::Kill, &[("KEYSTEAD_DATABASE_MESSAGE_WRITERS", "3")]).await;
}

#[derive(Clone, Copy, PartialEq)]
enum Disaster {
    None,
    /// Every replica in its turn is killed in mid-load, and started again.
    Kill,
}

async fn run(disaster: Disaster, settings: &[(&str, &str)]) {
    let seed = seed();
    println!("to repeat this workload: KEYSTEAD_TEST_SEED={seed}");
    let cluster = TestCluster::start_with(settings).await;
    let observers = users(&cluster, "observer", OBSERVERS).await;
    let writers = users(&cluster, "writer", WRITERS).await;
    let everybody: Vec<_> = observers.iter().chain(&writers).cloned().collect();
    let rooms = rooms(&observers).await;

    let mut readers = Vec::new();
    let mut ends = Vec::new();
    for user in &everybody {
        let (end, ended) = watch::channel(None);
        ends.push(end);
        let moves = observers.iter().all(|one| one.id != user.id);
        readers.push(tokio::spawn(Reader::begin(user.clone(), moves, ended).await.run()));
    }
    let history = Arc::new(Mutex::new(History::default()));
    let writing: Vec<_> = writers
        .iter()
        .enumerate()
        .map(|(number, user)| {
            let writer = Writer::new(user.clone(), seed.wrapping_add(number as u64), &everybody, &history);
            tokio::spawn(writer.run(rooms.clone()))
        })
        .collect();
    if disaster == Disaster::Kill {
        kill_each_in_turn(&cluster, &history).await;
    }
    let mut memberships = vec![rooms.clone(); OBSERVERS];
    for writer in writing {
        memberships.push(writer.await.expect("the writer wrote"));
    }

    // The last event of each room, and the last message to each device: whoever has these has all.
    let mut last = BTreeMap::new();
    for room in &rooms {
        last.insert(room.clone(), observers[0].send_event(room, "org.example.end", json!({})).await);
    }
    let devices: serde_json::Map<_, _> =
        everybody.iter().map(|user| (user.id.clone(), json!({ &user.device: {} }))).collect();
    observers[0].put("/sendToDevice/org.example.end/end", json!({ "messages": devices })).await.ok();
    for (end, joined) in ends.iter().zip(&memberships) {
        let events = joined.iter().map(|room| (room.clone(), last[room].clone())).collect();
        end.send_replace(Some(events));
    }
    let mut journals: Vec<Journal> = Vec::new();
    for reader in readers {
        journals.push(reader.await.expect("the reader read"));
    }

    let mut orders = BTreeMap::new();
    for room in &rooms {
        let order = checker::whole_history(&observers[0].at(0), room).await;
        let other = checker::whole_history(&observers[1].at(1), room).await;
        assert_eq!(checker::ids(&order), checker::ids(&other), "/messages differs between replicas");
        let state = observers[1].at(1).get(&in_room(room, "/state")).await.ok();
        checker::state_is_newest(&order, &state);
        orders.insert(room.clone(), order);
    }
    let history = history.lock().expect("no panic");
    println!("{} writes were acknowledged", history.acknowledged());
    checker::check(&history, &orders, &journals[..OBSERVERS], &journals[OBSERVERS..]);
}

async fn kill_each_in_turn(cluster: &TestCluster, history: &Mutex<History>) {
    let all = WRITERS * workload::STEPS;
    for replica in 0..cluster.size() {
        progress(history, all * (replica + 1) / 4).await;
        cluster.kill(replica);
        if cluster.size() > 1 {
            // The other carries on alone for a while.
            let now = history.lock().expect("no panic").acknowledged();
            progress(history, now + all / 10).await;
        }
        cluster.restart(replica).await;
    }
    let finished = history.lock().expect("no panic").finished;
    assert!(finished < WRITERS, "the load ended before the last replica was back: make it longer");
}

async fn users(cluster: &Arc<TestCluster>, name: &str, count: usize) -> Vec<User> {
    join_all((0..count).map(|number| {
        let name = format!("{name}{number}");
        async move { cluster.user(&name).await }
    }))
    .await
}

/// Rooms in which everybody may set the state that the workload sets; the observers are in all of them.
async fn rooms(observers: &[User]) -> Vec<String> {
    let mut rooms = Vec::new();
    for _ in 0..ROOMS {
        let levels = json!({ "events": { "org.example.counter": 0 } });
        let body = json!({ "preset": "public_chat", "power_level_content_override": levels });
        let room = observers[0].create_room(body).await;
        for observer in &observers[1..] {
            observer.join(&room).await;
        }
        rooms.push(room);
    }
    rooms
}

/// Waits until so much was acknowledged, or all is done.
async fn progress(history: &Mutex<History>, acknowledged: usize) {
    let what = format!("{acknowledged} acknowledged writes");
    eventually(&what, || async {
        let history = history.lock().expect("no panic");
        (history.acknowledged() >= acknowledged || history.finished == WRITERS).then_some(())
    })
    .await;
}

fn seed() -> u64 {
    match std::env::var("KEYSTEAD_TEST_SEED") {
        Ok(seed) => seed.parse().expect("KEYSTEAD_TEST_SEED is a number"),
        Err(_) => RandomState::new().build_hasher().finish(),
    }
}
