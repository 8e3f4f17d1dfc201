//! What replicas tell each other by LISTEN and NOTIFY.

use std::sync::Arc;

use keystead_store::{Hint, Options, Store};
use keystead_tests::{PATIENCE, TestCluster, cluster::on_sqlite, eventually};
use tokio::sync::broadcast::Receiver;

fn typing(number: u64) -> Hint {
    Hint::Typing { room_id: "!r".to_owned(), user_id: "@u:x".to_owned(), until: Some(number) }
}

async fn next(hints: &mut Receiver<Hint>) -> Hint {
    tokio::time::timeout(PATIENCE, hints.recv()).await.expect("a hint in time").expect("a hint")
}

#[tokio::test(flavor = "multi_thread")]
async fn positions_are_told_to_those_who_want_them_and_typing_to_all() {
    if on_sqlite() {
        return;
    }
    // The database alone is wanted.
    let cluster = TestCluster::start().await;
    for replica in 0..cluster.size() {
        cluster.stop(replica).await;
    }
    let url = cluster.database_url().to_owned();
    let options = Options { url, max_connections: 2, room_shards: 8, observer: Arc::new(|_| {}) };
    let (told, tells) = (Store::open(options.clone()).await.unwrap(), Store::open(options).await.unwrap());
    let hints = &mut told.hints();
    eventually("both are connected", || async {
        (told.has_wake_bus() && tells.has_wake_bus()).then_some(())
    })
    .await;

    let mut number = 0;
    // They are wanted at first; later, what was missed before is to be looked for.
    for (wanted, mut heard_resync) in [(true, true), (false, true), (true, false)] {
        told.hear_positions(wanted);
        loop {
            number += 1;
            let (positions, typing) = (Hint::Positions(vec![(0, number)]), typing(number.unsigned_abs()));
            // They go over one connection: whoever hears the second would have heard the first before.
            tells.send_hint(positions.clone());
            tells.send_hint(typing.clone());
            let mut heard = Vec::new();
            while heard.last() != Some(&typing) {
                heard.push(next(hints).await);
            }
            heard_resync |= heard.contains(&Hint::Resync);
            if heard.contains(&positions) == wanted && heard_resync {
                break;
            }
        }
    }
}
