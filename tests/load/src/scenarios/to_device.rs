//! Messages from device to device.

use std::sync::Arc;

use clap::Args;
use serde_json::{Map, Value, json};

use super::{Measured, Stage, nth};
use crate::{
    Error,
    account::User,
    api::{Call, Failure, unique},
    drive::drive,
    reader::{self, Board},
    report::Report,
    room::{MARK, Mark},
};

/// Who sends to whom.
#[derive(Args, Clone, Debug)]
pub struct Recipients {
    /// How many devices one request writes to.
    #[arg(long, default_value_t = 1)]
    recipients: usize,
    /// How many devices there are to be written to; each request takes the next ones.
    #[arg(long, default_value_t = 50)]
    devices: usize,
    /// How many bytes a message has.
    #[arg(long, default_value_t = 600)]
    size: usize,
}

/// Sends one message to several devices.
pub(super) async fn send(sender: &User, to: &[&User], mark: Mark, size: usize) -> Result<(), Failure> {
    let content = json!({ "text": "x".repeat(size), MARK: mark });
    let messages: Map<String, Value> =
        to.iter().map(|user| (user.id.clone(), json!({ &user.device: content }))).collect();
    let path = format!("/sendToDevice/org.keystead.load/{}", unique());
    sender.ok(&Call::put(path, json!({ "messages": messages }))).await.map(drop)
}

pub(super) async fn run(stage: &Stage<'_>, args: &Recipients) -> Result<Report, Error> {
    let devices = args.devices.max(args.recipients);
    let senders = Arc::new(stage.users(stage.lanes()).await?);
    let users = Arc::new(stage.users(devices).await?);
    let board = Board::new(stage.run.patience);
    let mut readers = Vec::new();
    for user in users.iter() {
        readers.push(reader::start(user.clone(), vec![user.id.clone()], board.clone()).await?);
    }
    let before = stage.usage()?;
    let (size, recipients) = (args.size, u64::try_from(args.recipients).unwrap_or(1));
    let shared = (senders, users, board.clone());
    let mut outcome = drive(stage.run.pace, stage.run.end, move |turn| {
        let (senders, users, board) = shared.clone();
        async move {
            let first = turn.number * recipients;
            let to: Vec<_> = (first..first + recipients).map(|n| nth(&users, n)).collect::<Result<_, _>>()?;
            let mark = board.mark(turn.lane, turn.number, turn.due);
            send(nth(&senders, turn.lane)?, &to, mark, size).await?;
            to.iter().for_each(|user| board.acknowledge(&user.id, mark.message()));
            Ok(())
        }
    })
    .await?;
    let journal = reader::finish(&board, readers).await?;
    let after = stage.usage()?;
    outcome.failures.extend(journal.failures);
    let measured = Measured {
        scenario: "to-device",
        operation: "message",
        parameters: json!({ "recipients": args.recipients, "devices": devices, "size": size }),
        operations: journal.deliveries,
        outcome,
        more: vec![("delivery", journal.latencies)],
        before,
        after,
        verdict: journal.verdict,
    };
    Ok(stage.report(measured))
}
