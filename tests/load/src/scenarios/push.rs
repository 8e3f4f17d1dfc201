//! Messages that push gateways are told of.

use std::{
    collections::HashMap,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use clap::Args;
use serde_json::json;
use tokio::time::Instant;

use super::{Measured, Stage, nth};
use crate::{
    Error,
    account::User,
    api::Call,
    check::{Message, Verdict},
    drive::drive,
    gateway::{Gateway, PATH},
    reader::Board,
    report::{Latencies, Report},
    room::{self, Mark, Room},
};

/// How often it is looked whether everything has been told.
const LOOK: Duration = Duration::from_millis(200);
/// How long after that something may still be told a second time.
const AFTERWARDS: Duration = Duration::from_secs(1);

/// Rooms whose members do not sync, but have pushers.
#[derive(Args, Clone, Debug)]
pub struct Pushers {
    /// How many rooms.
    #[arg(long, default_value_t = 5)]
    rooms: usize,
    /// How many members each has; the first one sends, the others have a pusher each.
    #[arg(long, default_value_t = 10)]
    members: usize,
    /// How many bytes of text a message has.
    #[arg(long, default_value_t = 200)]
    size: usize,
    /// Where the generator itself listens as the push gateway. The server has to be allowed to connect to it.
    #[arg(long, default_value = "127.0.0.1:0")]
    gateway: SocketAddr,
    /// The gateway's address as the server is told, without a path, if it is another one.
    #[arg(long, value_name = "URL")]
    gateway_url: Option<String>,
    /// The gateway's certificate (PEM), which the server has to trust; without one it speaks plain HTTP.
    #[arg(long, requires = "gateway_key")]
    gateway_certificate: Option<PathBuf>,
    /// The certificate's key (PEM).
    #[arg(long, requires = "gateway_certificate")]
    gateway_key: Option<PathBuf>,
}

pub(super) async fn run(stage: &Stage<'_>, args: &Pushers) -> Result<Report, Error> {
    let certificate = args.gateway_certificate.as_deref().zip(args.gateway_key.as_deref());
    let gateway = Gateway::start(args.gateway, certificate).await?;
    let scheme = if certificate.is_some() { "https" } else { "http" };
    let url = args.gateway_url.clone().unwrap_or_else(|| format!("{scheme}://{}", gateway.address));
    let url = format!("{}{PATH}", url.trim_end_matches('/'));
    let users = stage.users(args.rooms * args.members).await?;
    let rooms = Arc::new(room::make_several(&users, args.members).await?);
    for user in rooms.iter().flat_map(told) {
        set_pusher(user, &url).await?;
    }

    let board = Board::new(stage.run.patience);
    let marks: Arc<Mutex<HashMap<String, Mark>>> = Arc::default();
    let before = stage.usage()?;
    let began = Instant::now();
    let shared = (rooms.clone(), board.clone(), marks.clone(), args.size);
    let mut outcome = drive(stage.run.pace, stage.run.end, move |turn| {
        let (rooms, board, marks, size) = shared.clone();
        async move {
            let room = nth(&rooms, turn.lane)?;
            let mark = board.mark(turn.lane, turn.number, turn.due);
            let event_id = room::send(nth(&room.members, 0)?, &room.id, mark, size).await?;
            marks.lock().unwrap_or_else(PoisonError::into_inner).insert(event_id, mark);
            board.acknowledge(&room.id, mark.message());
            Ok(())
        }
    })
    .await?;
    all_told(&gateway, &rooms, (&board, &marks), stage.run.patience).await;
    // Until the last notice, not until the last message.
    outcome.elapsed = began.elapsed();
    let after = stage.usage()?;
    tokio::time::sleep(AFTERWARDS).await;

    let marks = marks.lock().unwrap_or_else(PoisonError::into_inner);
    let (mut verdict, mut latencies, mut notices) = (Verdict::default(), Latencies::new()?, 0);
    for room in rooms.iter() {
        for user in told(room) {
            let mut seen: Vec<Message> = Vec::new();
            // Of what was sent without an answer it is not known which event it became.
            for told in gateway.told(&user.id) {
                let Some(mark) = marks.get(&told.event_id) else { continue };
                let due = board.start + Duration::from_micros(mark.due);
                latencies.record(told.at.saturating_duration_since(due));
                seen.push(mark.message());
            }
            notices += u64::try_from(seen.len()).unwrap_or_default();
            verdict.compare(&board.acknowledged(), &room.id, &user.id, &seen);
        }
    }
    let measured = Measured {
        scenario: "push",
        operation: "notice",
        parameters: json!({ "rooms": args.rooms, "members": args.members, "size": args.size }),
        operations: notices,
        outcome,
        more: vec![("notice", latencies)],
        before,
        after,
        verdict,
    };
    Ok(stage.report(measured))
}

/// The members of a room that have pushers.
fn told(room: &Room) -> impl Iterator<Item = &User> {
    room.members.iter().skip(1)
}

async fn set_pusher(user: &User, url: &str) -> Result<(), Error> {
    let body = json!({
        "app_id": "org.keystead.load",
        "pushkey": user.id,
        "kind": "http",
        "app_display_name": "Load",
        "device_display_name": "Load",
        "lang": "en",
        "data": { "url": url, "format": "event_id_only" },
    });
    user.need("a pusher", &Call::post("/pushers/set", body)).await.map(drop)
}

/// Waits until every pusher was told as often as its room has messages, or none was told anything for as long as `patience`.
async fn all_told(
    gateway: &Gateway,
    rooms: &[Room],
    (board, marks): (&Board, &Mutex<HashMap<String, Mark>>),
    patience: Duration,
) {
    let (mut last, mut since) = (0, Instant::now());
    loop {
        let (mut count, mut is_complete) = (0, true);
        for room in rooms {
            let messages = board.acknowledged().count(&room.id);
            for user in told(room) {
                let marks = marks.lock().unwrap_or_else(PoisonError::into_inner);
                let of_user = gateway.count(&user.id, |event_id| marks.contains_key(event_id));
                count += of_user;
                is_complete &= of_user >= messages;
            }
        }
        if count > last {
            (last, since) = (count, Instant::now());
        }
        if is_complete || since.elapsed() >= patience {
            return;
        }
        tokio::time::sleep(LOOK).await;
    }
}
