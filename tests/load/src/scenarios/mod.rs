//! What is done under load.

mod day;
mod idle;
mod initial_sync;
mod join;
mod key_messages;
mod keys;
mod login;
mod messages;
mod push;
mod to_device;

use std::{collections::BTreeMap, time::Duration};

use clap::Subcommand;
use serde_json::Value;

use crate::{
    Error,
    account::{self, User},
    api::Api,
    check::Verdict,
    drive::{End, Outcome, Pace},
    process::{self, Process, Usage},
    report::{self, Latencies, Report},
};

/// What every scenario needs.
#[derive(Clone, Debug)]
pub struct Run {
    /// The servers.
    pub urls: Vec<String>,
    /// The registration shared secret, if accounts are made with it.
    pub secret: Option<String>,
    /// The processes to watch.
    pub processes: Vec<Process>,
    /// How operations follow each other.
    pub pace: Pace,
    /// When the measured part ends.
    pub end: End,
    /// How long to wait at the end for what has not arrived, before it counts as lost.
    pub patience: Duration,
    /// A name for the server in the results.
    pub label: String,
    /// How often a request is sent again that a server did not answer, or failed at.
    pub retries: u32,
    /// How many replicas there are, if not as many as addresses.
    pub replicas: Option<usize>,
}

/// The scenarios.
#[derive(Clone, Debug, Subcommand)]
pub enum Scenario {
    /// Members of rooms send messages; an operation is an event.
    Send(messages::Rooms),
    /// The same while every member syncs; an operation is a delivery: one event reaching one member.
    FanOut(messages::Rooms),
    /// Messages in rooms whose members do not sync but have pushers; an operation is a notice: a push gateway told of one event for one member.
    Push(push::Pushers),
    /// Messages from device to device; an operation is a message, sent and delivered.
    ToDevice(to_device::Recipients),
    /// First syncs of an account; an operation is a sync.
    InitialSync(initial_sync::Account),
    /// Open long-polls that run out; an operation is one of them. Then all are woken.
    Idle(idle::Polls),
    /// Users join one room; an operation is a join.
    Join(join::Room),
    /// Key messages between KeyBoxes, of a kind that the log notes and of one that it does not; an operation is a request.
    KeyMessages(key_messages::KeyBoxes),
    /// One-time keys: upload, query and claim, one report each.
    Keys(keys::Devices),
    /// Logins with a password; an operation is a login.
    Login(login::Accounts),
    /// The mix of a working day, key exchange between KeyBoxes included; an operation is a request.
    Day(day::People),
}

impl Scenario {
    /// Runs it.
    ///
    /// # Errors
    /// The server does not do what the run rests on. Failures under load are part of the reports.
    pub async fn run(&self, run: &Run) -> Result<Vec<Report>, Error> {
        let stage = Stage { api: Api::new(&run.urls)?.with_retries(run.retries), run };
        match self {
            Self::Send(rooms) => Ok(vec![messages::send(&stage, rooms).await?]),
            Self::FanOut(rooms) => Ok(vec![messages::fan_out(&stage, rooms).await?]),
            Self::Push(pushers) => Ok(vec![push::run(&stage, pushers).await?]),
            Self::ToDevice(recipients) => Ok(vec![to_device::run(&stage, recipients).await?]),
            Self::InitialSync(account) => Ok(vec![initial_sync::run(&stage, account).await?]),
            Self::Idle(polls) => Ok(vec![idle::run(&stage, polls).await?]),
            Self::Join(room) => Ok(vec![join::run(&stage, room).await?]),
            Self::KeyMessages(keyboxes) => key_messages::run(&stage, keyboxes).await,
            Self::Keys(devices) => keys::run(&stage, devices).await,
            Self::Login(accounts) => Ok(vec![login::run(&stage, accounts).await?]),
            Self::Day(people) => Ok(vec![day::run(&stage, people).await?]),
        }
    }
}

/// A run that has begun.
struct Stage<'a> {
    api: Api,
    run: &'a Run,
}

/// What a scenario gives for its report.
struct Measured {
    scenario: &'static str,
    operation: &'static str,
    parameters: Value,
    operations: u64,
    outcome: Outcome,
    /// Latencies beside those of the operations, which are called after the scenario.
    more: Vec<(&'static str, Latencies)>,
    before: Usage,
    after: Usage,
    verdict: Verdict,
}

impl Stage<'_> {
    async fn users(&self, count: usize) -> Result<Vec<User>, Error> {
        account::register(&self.api, self.run.secret.as_deref(), count).await
    }

    fn usage(&self) -> Result<Usage, Error> {
        process::usage(&self.run.processes)
    }

    /// How many lanes the run has: how many operations may be under way without being of one sender.
    fn lanes(&self) -> usize {
        match self.run.pace {
            Pace::Closed(lanes) => lanes,
            Pace::Open(_) => 1,
        }
    }

    #[allow(clippy::cast_precision_loss)]
    fn report(&self, measured: Measured) -> Report {
        let Measured { scenario, operation, mut parameters, operations, outcome, more, .. } = measured;
        match self.run.pace {
            Pace::Closed(lanes) => parameters["in_flight"] = lanes.into(),
            Pace::Open(rate) => parameters["rate"] = rate.into(),
        }
        let seconds = outcome.elapsed.as_secs_f64();
        let mut latencies = BTreeMap::from([(scenario.to_owned(), outcome.latencies.summary())]);
        latencies.extend(more.iter().map(|(name, latencies)| ((*name).to_owned(), latencies.summary())));
        Report {
            scenario: scenario.to_owned(),
            label: self.run.label.clone(),
            time: report::now(),
            began: outcome.began,
            parameters,
            replicas: self.run.replicas.unwrap_or(self.run.urls.len()),
            retried: self.api.retried(),
            operations,
            operation: operation.to_owned(),
            seconds,
            rate: operations as f64 / seconds.max(1e-9),
            failures: report::count_failures(&outcome.failures),
            latencies,
            stalls: Some(outcome.stalls.summary()),
            processes: measured.after.since(&measured.before, operations),
            check: measured.verdict,
        }
    }
}

/// The one of `list` whose turn it is.
fn nth<T>(list: &[T], number: u64) -> Result<&T, crate::api::Failure> {
    let count = u64::try_from(list.len()).unwrap_or(u64::MAX).max(1);
    let index = usize::try_from(number % count).unwrap_or_default();
    list.get(index).ok_or_else(|| crate::api::Failure("there is nobody to do it".to_owned()))
}

/// Milliseconds as a duration that a server takes.
fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
