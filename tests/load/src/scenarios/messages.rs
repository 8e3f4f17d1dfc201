//! Messages into rooms, read afterwards or while they are sent.

use std::sync::Arc;

use clap::Args;
use serde_json::json;

use super::{Measured, Stage, nth};
use crate::{
    Error,
    check::Verdict,
    drive::{Outcome, drive},
    reader::{self, Board},
    report::Report,
    room::{self, Room},
};

/// How many rooms of how many members.
#[derive(Args, Clone, Debug)]
pub struct Rooms {
    /// How many rooms.
    #[arg(long, default_value_t = 5)]
    rooms: usize,
    /// How many members each has.
    #[arg(long, default_value_t = 10)]
    members: usize,
    /// How many bytes of text a message has.
    #[arg(long, default_value_t = 200)]
    size: usize,
}

pub(super) async fn send(stage: &Stage<'_>, args: &Rooms) -> Result<Report, Error> {
    let rooms = rooms(stage, args).await?;
    let board = Board::new(stage.run.patience);
    let before = stage.usage()?;
    let outcome = load(stage, args, &rooms, &board).await?;
    let after = stage.usage()?;

    // Each room as a member sees it who asks another replica than the one that was written to.
    let mut verdict = Verdict::default();
    for room in rooms.iter() {
        let Some(member) = room.members.first() else { continue };
        let seen = room::history(&member.at(member.replica + 1), &room.id).await?;
        verdict.compare(&board.acknowledged(), &room.id, &member.id, &seen);
    }
    let operations = outcome.operations;
    let measured = Measured {
        scenario: "send",
        operation: "event",
        parameters: parameters(args),
        operations,
        outcome,
        more: Vec::new(),
        before,
        after,
        verdict,
    };
    Ok(stage.report(measured))
}

pub(super) async fn fan_out(stage: &Stage<'_>, args: &Rooms) -> Result<Report, Error> {
    let rooms = rooms(stage, args).await?;
    let board = Board::new(stage.run.patience);
    let mut readers = Vec::new();
    for room in rooms.iter() {
        for member in &room.members {
            readers.push(reader::start(member.clone(), vec![room.id.clone()], board.clone()).await?);
        }
    }
    let before = stage.usage()?;
    let mut outcome = load(stage, args, &rooms, &board).await?;
    let journal = reader::finish(&board, readers).await?;
    let after = stage.usage()?;
    outcome.failures.extend(journal.failures);
    let measured = Measured {
        scenario: "fan-out",
        operation: "delivery",
        parameters: parameters(args),
        operations: journal.deliveries,
        outcome,
        more: vec![("delivery", journal.latencies)],
        before,
        after,
        verdict: journal.verdict,
    };
    Ok(stage.report(measured))
}

async fn rooms(stage: &Stage<'_>, args: &Rooms) -> Result<Arc<Vec<Room>>, Error> {
    let users = stage.users(args.rooms * args.members).await?;
    Ok(Arc::new(room::make_several(&users, args.members).await?))
}

/// Lane n writes to room n, n + rooms, … always as the same member.
async fn load(
    stage: &Stage<'_>,
    args: &Rooms,
    rooms: &Arc<Vec<Room>>,
    board: &Arc<Board>,
) -> Result<Outcome, Error> {
    let (rooms, board, size) = (rooms.clone(), board.clone(), args.size);
    drive(stage.run.pace, stage.run.end, move |turn| {
        let (rooms, board) = (rooms.clone(), board.clone());
        async move {
            let room = nth(&rooms, turn.lane)?;
            let count = u64::try_from(rooms.len()).unwrap_or(u64::MAX).max(1);
            let member = nth(&room.members, turn.lane / count)?;
            let mark = board.mark(turn.lane, turn.number, turn.due);
            room::send(member, &room.id, mark, size).await?;
            board.acknowledge(&room.id, mark.message());
            Ok(())
        }
    })
    .await
}

fn parameters(args: &Rooms) -> serde_json::Value {
    json!({ "rooms": args.rooms, "members": args.members, "size": args.size })
}
