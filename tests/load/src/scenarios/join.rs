//! Users join one room.

use std::sync::Arc;

use clap::Args;
use serde_json::json;

use super::{Measured, Stage, nth};
use crate::{
    Error,
    account::in_room,
    api::Call,
    check::Verdict,
    drive::{End, drive},
    report::Report,
    room,
};

/// A room to join.
#[derive(Args, Clone, Debug)]
pub struct Room {
    /// How many users join it, each once.
    #[arg(long, default_value_t = 200)]
    members: usize,
}

pub(super) async fn run(stage: &Stage<'_>, args: &Room) -> Result<Report, Error> {
    let mut users = stage.users(args.members + 1).await?;
    let owner = users.pop().ok_or_else(|| Error::Usage("no users".to_owned()))?;
    let room = room::make(vec![owner.clone()], Vec::new()).await?;
    let (users, path) = (Arc::new(users), Arc::new(in_room(&room.id, "/join")));
    let before = stage.usage()?;
    let joins = End::Count(u64::try_from(args.members).unwrap_or(u64::MAX));
    let outcome = drive(stage.run.pace, joins, move |turn| {
        let (users, path) = (users.clone(), path.clone());
        async move { nth(&users, turn.number)?.ok(&Call::post(&*path, json!({}))).await.map(drop) }
    })
    .await?;
    let after = stage.usage()?;

    let path = in_room(&room.id, "/joined_members");
    let answer = owner.at(owner.replica + 1).need("joined_members", &Call::get(path)).await?;
    let there = answer["joined"].as_object().map_or(0, serde_json::Map::len);
    let there = u64::try_from(there).unwrap_or_default();
    let expected = outcome.operations + 1;
    let verdict = Verdict {
        deliveries: expected,
        lost: expected.saturating_sub(there),
        checked: true,
        ..Verdict::default()
    };
    let measured = Measured {
        scenario: "join",
        operation: "join",
        parameters: json!({ "members": args.members }),
        operations: outcome.operations,
        outcome,
        more: Vec::new(),
        before,
        after,
        verdict,
    };
    Ok(stage.report(measured))
}
