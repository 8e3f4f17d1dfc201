//! Logins with a password.

use std::{sync::Arc, time::Instant};

use clap::Args;
use serde_json::json;

use super::{Measured, Stage, nth};
use crate::{
    Error,
    account::{PASSWORD, log_in},
    check::Verdict,
    drive::drive,
    report::Report,
};

/// Who logs in.
#[derive(Args, Clone, Debug)]
pub struct Accounts {
    /// How many accounts there are.
    #[arg(long, default_value_t = 50)]
    accounts: usize,
    /// The server's bcrypt cost: what one such check takes here is told beside the result.
    #[arg(long)]
    bcrypt_cost: Option<u32>,
}

pub(super) async fn run(stage: &Stage<'_>, args: &Accounts) -> Result<Report, Error> {
    let users = Arc::new(stage.users(args.accounts).await?);
    let before = stage.usage()?;
    let outcome = drive(stage.run.pace, stage.run.end, move |turn| {
        let users = users.clone();
        async move { log_in(nth(&users, turn.number)?).await }
    })
    .await?;
    let after = stage.usage()?;
    let bcrypt_ms = args.bcrypt_cost.map(bcrypt_ms).transpose()?;
    let measured = Measured {
        scenario: "login",
        operation: "login",
        parameters: json!({ "accounts": args.accounts, "bcrypt_ms": bcrypt_ms }),
        operations: outcome.operations,
        outcome,
        more: Vec::new(),
        before,
        after,
        verdict: Verdict::default(),
    };
    Ok(stage.report(measured))
}

/// How long one check of a password takes here, the shortest of three.
fn bcrypt_ms(cost: u32) -> Result<f64, Error> {
    let failed = |error: bcrypt::BcryptError| Error::Usage(format!("--bcrypt-cost: {error}"));
    let hash = bcrypt::hash(PASSWORD, cost).map_err(failed)?;
    let mut shortest = f64::MAX;
    for _ in 0..3 {
        let began = Instant::now();
        bcrypt::verify(PASSWORD, &hash).map_err(failed)?;
        shortest = shortest.min(began.elapsed().as_secs_f64() * 1e3);
    }
    Ok(shortest)
}
