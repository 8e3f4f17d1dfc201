//! The mix of a working day.

use std::sync::Arc;

use clap::Args;
use futures_util::future::try_join_all;
use keystead_keybox::suite::Suite;
use rand::RngExt as _;
use serde_json::{Value, json};

use super::{Measured, Stage, nth};
use crate::{
    Error,
    account::{User, in_room},
    api::{Call, Failure, encode, unique},
    drive::{Turn, drive},
    keybox::{self, KeyBox},
    reader::{self, Board},
    report::Report,
    room::{self, MARK, Room},
};

/// Who is at work.
#[derive(Args, Clone, Debug)]
pub struct People {
    /// How many people, all of them syncing.
    #[arg(long, default_value_t = 50)]
    people: usize,
    /// How many share a room.
    #[arg(long, default_value_t = 10)]
    members: usize,
    /// How many bytes of ciphertext a message has.
    #[arg(long, default_value_t = 400)]
    size: usize,
    /// How many of a hundred requests give a KeyBox a key, by a message to its device.
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u32).range(0..=100))]
    key_share: u32,
}

/// What one of them does, and how many of a hundred requests are that.
#[derive(Clone, Copy, Debug)]
enum Act {
    Message,
    Receipt,
    Typing,
    KeyExchange,
    Query,
    Scroll,
    Start,
}

const DAY: [(Act, u32); 7] = [
    (Act::Message, 45),
    (Act::Receipt, 20),
    (Act::Typing, 12),
    (Act::KeyExchange, 12),
    (Act::Query, 5),
    (Act::Scroll, 4),
    (Act::Start, 2),
];

struct Office {
    rooms: Vec<Room>,
    /// The KeyBoxes of each room's members.
    keyboxes: Vec<Vec<KeyBox>>,
    suite: &'static Suite,
    board: Arc<Board>,
    filter: String,
    size: usize,
    key_share: u32,
}

pub(super) async fn run(stage: &Stage<'_>, args: &People) -> Result<Report, Error> {
    let (users, suite) = (stage.users(args.people).await?, keybox::suite()?);
    let (mut rooms, mut keyboxes) = (Vec::new(), Vec::new());
    for members in users.chunks(args.members.max(2)) {
        let encryption = json!({ "type": "m.room.encryption", "content": { "algorithm": suite.id } });
        rooms.push(room::make(members.to_vec(), vec![encryption]).await?);
        keyboxes.push(try_join_all(members.iter().cloned().map(KeyBox::publish)).await?);
    }
    let board = Board::new(stage.run.patience);
    let mut readers = Vec::new();
    for room in &rooms {
        for member in &room.members {
            let streams = vec![room.id.clone(), member.id.clone()];
            readers.push(reader::start(member.clone(), streams, board.clone()).await?);
        }
    }
    let filter = json!({ "room": { "timeline": { "limit": 20 } }, "presence": { "types": [] } });
    let filter = encode(&filter.to_string());
    let office = Arc::new(Office {
        rooms,
        keyboxes,
        suite,
        board: board.clone(),
        filter,
        size: args.size,
        key_share: args.key_share,
    });
    let before = stage.usage()?;
    let mut outcome = drive(stage.run.pace, stage.run.end, move |turn| {
        let office = office.clone();
        async move { office.act(turn).await }
    })
    .await?;
    let journal = reader::finish(&board, readers).await?;
    let after = stage.usage()?;
    outcome.failures.extend(journal.failures);
    let measured = Measured {
        scenario: "day",
        operation: "request",
        parameters: json!({
            "people": args.people, "members": args.members, "size": args.size, "key_share": args.key_share, "deliveries": journal.deliveries,
        }),
        operations: outcome.operations,
        outcome,
        more: vec![("delivery", journal.latencies)],
        before,
        after,
        verdict: journal.verdict,
    };
    Ok(stage.report(measured))
}

/// What comes at this point of a hundred, of which the first `key_share` are key exchanges. The rest is shared by the others as in [`DAY`].
fn act(point: f64, key_share: u32) -> Act {
    let key_share = f64::from(key_share);
    if point < key_share {
        return Act::KeyExchange;
    }
    let others = DAY.iter().filter(|(act, _)| !matches!(act, Act::KeyExchange));
    let all: u32 = others.clone().map(|(_, share)| share).sum();
    let mut point = (point - key_share) / (100.0 - key_share) * f64::from(all);
    for (act, share) in others {
        if point < f64::from(*share) {
            return *act;
        }
        point -= f64::from(*share);
    }
    Act::Message
}

impl Office {
    async fn act(&self, turn: Turn) -> Result<(), Failure> {
        let room = nth(&self.rooms, turn.lane)?;
        let count = u64::try_from(self.rooms.len()).unwrap_or(u64::MAX).max(1);
        let user = nth(&room.members, turn.lane / count)?;
        let other = nth(&room.members, turn.lane / count + 1)?;
        let keyboxes = nth(&self.keyboxes, turn.lane)?;
        let point = rand::rng().random_range(0.0..100.0);
        match act(point, self.key_share) {
            Act::Message => self.message(turn, user, room).await,
            Act::KeyExchange => {
                let (from, to) = (nth(keyboxes, turn.lane / count)?, nth(keyboxes, turn.lane / count + 1)?);
                self.key_exchange(turn, from, to, room).await
            }
            Act::Receipt => self.receipt(user, room).await,
            Act::Typing => {
                let path = in_room(&room.id, &format!("/typing/{}", encode(&user.id)));
                user.ok(&Call::put(path, json!({ "typing": true, "timeout": 5000 }))).await.map(drop)
            }
            Act::Query => {
                let body = json!({ "device_keys": { &other.id: [] } });
                user.ok(&Call::post("/keys/query", body)).await.map(drop)
            }
            Act::Scroll => {
                let path = in_room(&room.id, "/messages?dir=b&limit=30");
                user.ok(&Call::get(path)).await.map(drop)
            }
            Act::Start => {
                let path = format!("/sync?timeout=0&filter={}", self.filter);
                user.ok(&Call::get(path)).await.map(drop)
            }
        }
    }

    async fn message(&self, turn: Turn, user: &User, room: &Room) -> Result<(), Failure> {
        let mark = self.board.mark(turn.lane, turn.number, turn.due);
        let content = json!({ "algorithm": self.suite.id, "ciphertext": "x".repeat(self.size), MARK: mark });
        let path = in_room(&room.id, &format!("/send/m.room.encrypted/{}", unique()));
        user.ok(&Call::put(path, content)).await?;
        self.board.acknowledge(&room.id, mark.message());
        Ok(())
    }

    /// A KeyBox gives another one a new resource key.
    async fn key_exchange(&self, turn: Turn, from: &KeyBox, to: &KeyBox, room: &Room) -> Result<(), Failure> {
        let mark = self.board.mark(turn.lane, turn.number, turn.due);
        from.give_key(self.suite, &room.id, to, mark).await?;
        self.board.acknowledge(&to.user.id, mark.message());
        Ok(())
    }

    /// The user has read the room's newest message.
    async fn receipt(&self, user: &User, room: &Room) -> Result<(), Failure> {
        let page: Value = user.ok(&Call::get(in_room(&room.id, "/messages?dir=b&limit=1"))).await?;
        let Some(newest) = page["chunk"][0]["event_id"].as_str() else { return Ok(()) };
        let path = in_room(&room.id, &format!("/receipt/m.read/{}", encode(newest)));
        user.ok(&Call::post(path, json!({}))).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shares_of_a_day_make_a_hundred() {
        assert_eq!(DAY.iter().map(|(_, share)| share).sum::<u32>(), 100);
        let share = |wanted: fn(Act) -> bool, key_share| {
            (0..1000).filter(|tenth| wanted(act(f64::from(*tenth) / 10.0, key_share))).count()
        };
        let is_key = |act| matches!(act, Act::KeyExchange);
        assert_eq!(share(is_key, 12), 120);
        assert_eq!(share(is_key, 0), 0);
        assert_eq!(share(is_key, 100), 1000);
        assert_eq!(share(|act| matches!(act, Act::Message), 12), 450);
        assert_eq!(share(|act| matches!(act, Act::Start), 12), 20);
        assert!(share(|act| matches!(act, Act::Message), 56).abs_diff(225) <= 1);
    }
}
