//! Long-polls in which nothing happens, thousands at once; then something does.

use std::{sync::Arc, time::Duration};

use clap::Args;
use futures_util::{StreamExt as _, TryStreamExt as _, future::join_all, stream};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::{Measured, Stage, millis};
use crate::{
    Error,
    account::User,
    api::{Call, encode},
    check::{Message, Verdict},
    drive::Outcome,
    reader::Board,
    report::{self, Latencies, Report},
    room::{self, MARK, Room},
};

/// How many accounts get ready at once.
const AT_ONCE: usize = 16;
/// How long a message has to wake the long-polls of its room.
const PATIENCE: Duration = Duration::from_secs(60);

/// How many long-polls, of what length.
#[derive(Args, Clone, Debug)]
pub struct Polls {
    /// How many are open at once, each of an account of its own.
    #[arg(long, default_value_t = 1000)]
    polls: usize,
    /// How long each waits, in seconds.
    #[arg(long, default_value_t = 30)]
    wait: u64,
    /// How many accounts share a room.
    #[arg(long, default_value_t = 50)]
    members: usize,
}

/// A user and the token of its last sync.
struct Ready {
    user: User,
    room: String,
    since: String,
}

pub(super) async fn run(stage: &Stage<'_>, args: &Polls) -> Result<Report, Error> {
    let users = stage.users(args.polls).await?;
    let rooms = room::make_several(&users, args.members).await?;
    let ready = Arc::new(get_ready(&rooms).await?);
    let closed = stage.usage()?;
    // Connections are opened, and caches filled, by one round whose time is not measured. Their memory is: no poll is without one.
    round(&ready, Duration::from_millis(1)).await?;

    let before = stage.usage()?;
    let (began_at, began) = (report::since_1970().as_secs_f64(), Instant::now());
    let wait = Duration::from_secs(args.wait);
    let (latencies, halfway) = tokio::join!(round(&ready, wait), async {
        sleep(wait / 2).await;
        stage.usage()
    });
    let (latencies, elapsed) = (latencies?, began.elapsed());
    let memory = halfway?.since(&closed, 1);
    let after = stage.usage()?;

    let (verdict, woken) = wake(&ready, &rooms).await?;
    let operations = latencies.count();
    let outcome = Outcome {
        began: began_at,
        operations,
        failures: Vec::new(),
        latencies,
        elapsed,
        stalls: Latencies::new()?,
    };
    let per_poll = |growth: i64| growth * 1024 / i64::try_from(args.polls.max(1)).unwrap_or(i64::MAX);
    let bytes: serde_json::Map<String, Value> =
        memory.iter().map(|(name, cost)| (name.clone(), per_poll(cost.memory_growth_kib).into())).collect();
    let measured = Measured {
        scenario: "idle",
        operation: "long-poll",
        parameters: json!({
            "polls": args.polls, "wait": args.wait, "members": args.members, "memory_bytes_per_poll": bytes,
        }),
        operations,
        outcome,
        more: vec![("wake", woken)],
        before,
        after,
        verdict,
    };
    Ok(stage.report(measured))
}

async fn get_ready(rooms: &[Room]) -> Result<Vec<Ready>, Error> {
    let members = rooms.iter().flat_map(|room| room.members.iter().map(|user| (user, &room.id)));
    stream::iter(members)
        .map(|(user, room)| async move {
            let answer = user.need("first sync", &Call::get("/sync?timeout=0")).await?;
            let since = answer["next_batch"].as_str().unwrap_or_default().to_owned();
            Ok(Ready { user: user.clone(), room: room.clone(), since })
        })
        .buffered(AT_ONCE)
        .try_collect()
        .await
}

/// All long-polls at once.
async fn round(ready: &[Ready], wait: Duration) -> Result<Latencies, Error> {
    let polls = ready.iter().map(|one| async move {
        let began = Instant::now();
        one.user.need("long-poll", &poll(one, wait)).await?;
        Ok::<_, Error>(began.elapsed())
    });
    let mut latencies = Latencies::new()?;
    for latency in join_all(polls).await {
        latencies.record(latency?);
    }
    Ok(latencies)
}

fn poll(one: &Ready, wait: Duration) -> Call {
    Call::get(format!("/sync?timeout={}&since={}", millis(wait), encode(&one.since)))
}

/// A message into each room must end the long-polls of all its members.
async fn wake(ready: &[Ready], rooms: &[Room]) -> Result<(Verdict, Latencies), Error> {
    let board = Board::new(PATIENCE);
    let polls = join_all(ready.iter().map(|one| async move {
        let answer = one.user.need("long-poll", &poll(one, PATIENCE)).await?;
        Ok::<_, Error>((answer, Instant::now()))
    }));
    let messages = async {
        // The long-polls may be there or still on their way: both must get the message.
        for (room, number) in rooms.iter().zip(0..) {
            let Some(sender) = room.members.first() else { continue };
            let mark = board.mark(number, 0, Instant::now());
            let sent = room::send(sender, &room.id, mark, 100).await;
            sent.map_err(|failure| Error::server("send", failure))?;
            board.acknowledge(&room.id, mark.message());
        }
        Ok::<_, Error>(())
    };
    let (answers, sent) = tokio::join!(polls, messages);
    sent?;
    let (mut verdict, mut latencies) = (Verdict::default(), Latencies::new()?);
    for (one, answer) in ready.iter().zip(answers) {
        let (answer, arrived) = answer?;
        let events = answer["rooms"]["join"][&one.room]["timeline"]["events"].as_array().cloned();
        let mut seen = Vec::new();
        for event in events.into_iter().flatten() {
            let mark = &event["content"][MARK];
            let (Some(lane), Some(number), Some(due)) =
                (mark["lane"].as_u64(), mark["number"].as_u64(), mark["due"].as_u64())
            else {
                continue;
            };
            seen.push(Message { lane, number });
            latencies.record(arrived.duration_since(board.start).saturating_sub(Duration::from_micros(due)));
        }
        verdict.compare(&board.acknowledged(), &one.room, &one.user.id, &seen);
    }
    Ok((verdict, latencies))
}
