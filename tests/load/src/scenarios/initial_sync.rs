//! First syncs.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use clap::Args;
use serde_json::json;

use super::{Measured, Stage, nth};
use crate::{
    Error,
    api::{Call, Failure, encode},
    check::{Message, Verdict},
    drive::drive,
    reader::Board,
    report::Report,
    room,
};

/// An account with some history.
#[derive(Args, Clone, Debug)]
pub struct Account {
    /// How many rooms it is in.
    #[arg(long, default_value_t = 20)]
    rooms: usize,
    /// How many messages of each the answer shows.
    #[arg(long, default_value_t = 20)]
    messages: usize,
    /// How many bytes of text a message has.
    #[arg(long, default_value_t = 200)]
    size: usize,
}

pub(super) async fn run(stage: &Stage<'_>, args: &Account) -> Result<Report, Error> {
    let users = stage.users(2).await?;
    let board = Board::new(stage.run.patience);
    let mut rooms = Vec::new();
    for number in 0..args.rooms {
        let room = room::make(users.clone(), Vec::new()).await?;
        for message in 0..args.messages {
            let lane = u64::try_from(number).unwrap_or(u64::MAX);
            let mark = board.mark(lane, u64::try_from(message).unwrap_or(u64::MAX), board.start);
            let sender = users.get(message % 2).ok_or_else(|| Error::Usage("no users".to_owned()))?;
            let sent = room::send(sender, &room.id, mark, args.size).await;
            sent.map_err(|failure| Error::server("send", failure))?;
            board.acknowledge(&room.id, mark.message());
        }
        rooms.push(room);
    }
    let filter = json!({
        "room": { "timeline": { "limit": args.messages } },
        "presence": { "types": [] },
    });
    let call = Call::get(format!("/sync?timeout=0&filter={}", encode(&filter.to_string())));

    // Once before the measured part, and looked at: all rooms with all their messages.
    let mut verdict = Verdict::default();
    for user in &users {
        let answer = user.need("first sync", &call).await?;
        for room in &rooms {
            let events = answer["rooms"]["join"][&room.id]["timeline"]["events"].as_array().cloned();
            let marks = events.into_iter().flatten().filter_map(|event| {
                let mark = &event["content"][room::MARK];
                Some(Message { lane: mark["lane"].as_u64()?, number: mark["number"].as_u64()? })
            });
            verdict.compare(&board.acknowledged(), &room.id, &user.id, &marks.collect::<Vec<_>>());
        }
    }
    let (users, bytes) = (Arc::new(users), Arc::new(AtomicUsize::new(0)));
    let before = stage.usage()?;
    let size = bytes.clone();
    let outcome = drive(stage.run.pace, stage.run.end, move |turn| {
        let (users, size, call) = (users.clone(), size.clone(), call.clone());
        async move {
            let user = nth(&users, turn.number)?;
            let answer = user.api().answer(user.replica, Some(&user.token), &call).await?;
            if answer.status != 200 {
                return Err(Failure(answer.status.to_string()));
            }
            size.store(answer.body.len(), Ordering::Relaxed);
            Ok(())
        }
    })
    .await?;
    let after = stage.usage()?;
    let measured = Measured {
        scenario: "initial-sync",
        operation: "sync",
        parameters: json!({
            "rooms": args.rooms,
            "messages": args.messages,
            "size": args.size,
            "answer_bytes": bytes.load(Ordering::Relaxed),
        }),
        operations: outcome.operations,
        outcome,
        more: Vec::new(),
        before,
        after,
        verdict,
    };
    Ok(stage.report(measured))
}
