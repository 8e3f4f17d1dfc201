//! Background work that must happen: takes jobs out of the database, on every replica, and does them.
//!
//! Whoever writes a job may begin it at once ([`start`]); [`run`] finds those that nobody finished.

use std::{sync::Arc, time::Duration};

use keystead_store::{
    Error,
    jobs::{self, Job, NewJob},
};
use ruma::{MilliSecondsSinceUnixEpoch, UInt};
use tokio::time::Instant;

use crate::{
    accounts::deactivation,
    app::App,
    entropy::Entropy,
    http::error::ApiError,
    media::{objects::ObjectsError, removal, upload},
    profiles,
    rooms::WriteError,
    telemetry::metrics::JobOutcome,
};

/// How long whoever wrote a job, or took it, has it alone.
pub(crate) const GRACE: Duration = Duration::from_secs(60);
/// How often to look for jobs.
const INTERVAL: Duration = Duration::from_secs(5);
/// How many jobs to take at once.
const BATCH: u32 = 16;
/// After this many attempts a job is given up: something is wrong with it that time does not mend.
const MAX_ATTEMPTS: i32 = 30;

/// The kinds of jobs.
pub(crate) const KINDS: [&str; 4] = [deactivation::JOB, removal::JOB, upload::JOB, profiles::JOB];

/// Why a job was not done. It is tried again.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JobError {
    /// The job is not one that this version knows; a newer replica does.
    #[error("this version does not know jobs of the kind {0}")]
    UnknownKind(String),
    /// The job's payload cannot be read.
    #[error("the payload of the job cannot be read")]
    Payload,
    /// The database cannot be read.
    #[error("the database cannot be read")]
    Store(#[from] Error),
    /// This replica cannot find out whether it has seen everything.
    #[error("the replica cannot catch up")]
    Fence(#[source] ApiError),
    /// The objects of a medium could not be removed.
    #[error("the objects of a medium cannot be removed")]
    Media(#[source] ObjectsError),
    /// A room could not be written to.
    #[error("a room could not be written to")]
    Write(#[from] WriteError),
}

/// A job to be done by this replica first, and by any other one after [`GRACE`].
pub(crate) fn new(
    entropy: &(dyn Entropy + 'static),
    kind: &'static str,
    payload: &str,
    now: MilliSecondsSinceUnixEpoch,
) -> NewJob {
    let run_at = after(now, GRACE);
    NewJob { job_id: entropy.token(), kind, payload: payload.to_owned(), created_ts: now, run_at }
}

/// Begins a job that has just been written, without waiting for its end.
pub(crate) fn start(app: &Arc<App>, job: NewJob) {
    let app = Arc::clone(app);
    let tasks = app.shutdown.tasks().clone();
    tasks.spawn(async move { finish_new(&app, job).await });
}

/// Does a job that has just been written. One that fails is done by a replica, later.
pub(crate) async fn finish_new(app: &Arc<App>, job: NewJob) {
    let NewJob { job_id, kind, payload, created_ts, .. } = job;
    finish(app, &Job { job_id, kind: kind.to_owned(), payload, created_ts, attempts: 1 }).await;
}

/// Does the jobs that nobody has finished, until the server stops.
pub async fn run(app: Arc<App>) {
    while !app.shutdown.is_draining() {
        let now = app.clock.now();
        let taken = app
            .store
            .write("lease_jobs", |tx| async move {
                let backlog = jobs::backlog(&tx, now).await?;
                Ok::<_, Error>((backlog, jobs::lease(&tx, now, after(now, GRACE), BATCH).await?))
            })
            .await;
        let taken = taken.map(|(backlog, taken)| {
            let oldest = backlog.oldest.map_or(Duration::ZERO, |oldest| between(oldest, now));
            app.metrics.jobs_waiting(backlog.waiting, oldest);
            taken
        });
        match taken {
            Ok(taken) if !taken.is_empty() => {
                for job in taken {
                    finish(&app, &job).await;
                }
            }
            Ok(_) => pause(&app).await,
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "cannot look for jobs");
                pause(&app).await;
            }
        }
    }
}

/// Waits until it is time to look again, or to stop.
async fn pause(app: &App) {
    tokio::select! {
        () = app.shutdown.draining() => {}
        () = tokio::time::sleep(INTERVAL) => {}
    }
}

/// Does a job and removes it; one that fails stays, to be taken again when its lease has run out.
async fn finish(app: &Arc<App>, job: &Job) {
    let begun = Instant::now();
    let outcome = match perform(app, job).await {
        Ok(()) => JobOutcome::Done,
        Err(error) => {
            let given_up = job.attempts >= MAX_ATTEMPTS && !matches!(error, JobError::UnknownKind(_));
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                kind = job.kind,
                attempts = job.attempts,
                given_up,
                "a job failed"
            );
            if given_up { JobOutcome::GivenUp } else { JobOutcome::Failed }
        }
    };
    // What only a newer version knows is counted there.
    if let Some(kind) = KINDS.into_iter().find(|kind| *kind == job.kind) {
        app.metrics.job(kind, outcome, begun.elapsed());
    }
    if outcome != JobOutcome::Failed {
        let job_id = job.job_id.as_str();
        let deleted =
            app.store.write("delete_job", |tx| async move { jobs::delete(&tx, job_id).await }).await;
        if let Err(error) = deleted {
            tracing::warn!(error = &error as &dyn std::error::Error, "a job is done but cannot be removed");
        }
    }
}

async fn perform(app: &Arc<App>, job: &Job) -> Result<(), JobError> {
    match job.kind.as_str() {
        deactivation::JOB => deactivation::leave_rooms(app, &job.payload).await,
        removal::JOB => removal::erase(app, &job.payload).await,
        upload::JOB => upload::discard(app, &job.payload).await,
        profiles::JOB => profiles::carry_into_rooms(app, &job.payload).await,
        kind => Err(JobError::UnknownKind(kind.to_owned())),
    }
}

fn after(now: MilliSecondsSinceUnixEpoch, delay: Duration) -> MilliSecondsSinceUnixEpoch {
    let delay = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
    MilliSecondsSinceUnixEpoch(UInt::new_saturating(u64::from(now.0).saturating_add(delay)))
}

fn between(then: MilliSecondsSinceUnixEpoch, now: MilliSecondsSinceUnixEpoch) -> Duration {
    Duration::from_millis(u64::from(now.0).saturating_sub(u64::from(then.0)))
}
