//! Follow-up work that must happen: rows written in the transaction that makes it necessary, done by any replica.
//!
//! A job is leased for a while; if whoever took it dies, it becomes free again. So a job may be done twice, and must
//! be harmless then.

use ruma::MilliSecondsSinceUnixEpoch;
use sea_orm::{DbBackend, Value};

use crate::{Error, ReadTx, WriteTx, streams::milliseconds};

/// A job to be written.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NewJob {
    /// A random id.
    pub job_id: String,
    /// What is to be done.
    pub kind: &'static str,
    /// With what.
    pub payload: String,
    /// When it became necessary.
    pub created_ts: MilliSecondsSinceUnixEpoch,
    /// When it may be taken.
    pub run_at: MilliSecondsSinceUnixEpoch,
}

/// A job that was taken.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Job {
    /// Its id.
    pub job_id: String,
    /// What is to be done.
    pub kind: String,
    /// With what.
    pub payload: String,
    /// When it became necessary.
    pub created_ts: MilliSecondsSinceUnixEpoch,
    /// How often it has been taken, this time included.
    pub attempts: i32,
}

/// Writes a job.
///
/// # Errors
/// The database's own.
pub async fn insert(tx: &WriteTx, job: &NewJob) -> Result<(), Error> {
    tx.execute(
        "INSERT INTO jobs (job_id, kind, payload, created_ts, run_at) VALUES ($1, $2, $3, $4, $5)",
        [
            job.job_id.as_str().into(),
            job.kind.into(),
            job.payload.as_str().into(),
            i64::from(job.created_ts.0).into(),
            i64::from(job.run_at.0).into(),
        ],
    )
    .await?;
    Ok(())
}

/// Takes up to `limit` jobs that are due at `now`, the longest waiting first; nobody else takes them before `until`.
///
/// # Errors
/// The database's own.
pub async fn lease(
    tx: &WriteTx,
    now: MilliSecondsSinceUnixEpoch,
    until: MilliSecondsSinceUnixEpoch,
    limit: u32,
) -> Result<Vec<Job>, Error> {
    // On SQLite the transaction has begun as the only writer.
    let lock = if tx.backend() == DbBackend::Postgres { "FOR UPDATE SKIP LOCKED" } else { "" };
    let sql = format!(
        "UPDATE jobs SET run_at = $1, attempts = attempts + 1 WHERE job_id IN \
         (SELECT job_id FROM jobs WHERE run_at <= $2 ORDER BY run_at LIMIT {limit} {lock}) \
         RETURNING job_id, kind, payload, created_ts, attempts"
    );
    let rows = tx.query(&sql, [Value::from(i64::from(until.0)), i64::from(now.0).into()]).await?;
    rows.iter()
        .map(|row| {
            Ok(Job {
                job_id: row.try_get("", "job_id")?,
                kind: row.try_get("", "kind")?,
                payload: row.try_get("", "payload")?,
                created_ts: milliseconds(row.try_get("", "created_ts")?),
                attempts: row.try_get("", "attempts")?,
            })
        })
        .collect()
}

/// Removes a job that is done.
///
/// # Errors
/// The database's own.
pub async fn delete(tx: &WriteTx, job_id: &str) -> Result<(), Error> {
    tx.execute("DELETE FROM jobs WHERE job_id = $1", [job_id.into()]).await?;
    Ok(())
}

/// Puts off a job that nobody has taken yet: it becomes necessary at `run_at`. `false` if somebody has.
///
/// # Errors
/// The database's own.
pub async fn put_off(tx: &WriteTx, job_id: &str, run_at: MilliSecondsSinceUnixEpoch) -> Result<bool, Error> {
    let sql = "UPDATE jobs SET created_ts = $1, run_at = $1 WHERE job_id = $2 AND attempts = 0";
    Ok(tx.execute(sql, [i64::from(run_at.0).into(), job_id.into()]).await? > 0)
}

/// Gives a job that nobody has taken yet another payload. `false` if somebody has.
///
/// # Errors
/// The database's own.
pub async fn amend(tx: &WriteTx, job_id: &str, payload: &str) -> Result<bool, Error> {
    let sql = "UPDATE jobs SET payload = $1 WHERE job_id = $2 AND attempts = 0";
    Ok(tx.execute(sql, [payload.into(), job_id.into()]).await? > 0)
}

/// Takes back a job that nobody has taken yet: what it was for did not come to pass. `false` if somebody has taken it.
///
/// # Errors
/// The database's own.
pub async fn withdraw(tx: &WriteTx, job_id: &str) -> Result<bool, Error> {
    let sql = "DELETE FROM jobs WHERE job_id = $1 AND attempts = 0";
    Ok(tx.execute(sql, [job_id.into()]).await? > 0)
}

/// The jobs that are necessary and not done.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Backlog {
    /// How many there are.
    pub waiting: u64,
    /// When the oldest became necessary, if there is any.
    pub oldest: Option<MilliSecondsSinceUnixEpoch>,
}

/// The jobs that were necessary at `now` and are not done.
///
/// # Errors
/// The database's own.
pub async fn backlog(tx: &ReadTx, now: MilliSecondsSinceUnixEpoch) -> Result<Backlog, Error> {
    let sql = "SELECT COUNT(*) AS waiting, MIN(created_ts) AS oldest FROM jobs WHERE created_ts <= $1";
    let rows = tx.query(sql, [i64::from(now.0).into()]).await?;
    let Some(row) = rows.first() else { return Ok(Backlog::default()) };
    let (waiting, oldest): (i64, Option<i64>) = (row.try_get("", "waiting")?, row.try_get("", "oldest")?);
    Ok(Backlog { waiting: waiting.unsigned_abs(), oldest: oldest.map(milliseconds) })
}

#[cfg(test)]
mod tests {
    use ruma::UInt;

    use super::*;
    use crate::store::tests::store;

    fn at(ms: u32) -> MilliSecondsSinceUnixEpoch {
        MilliSecondsSinceUnixEpoch(UInt::from(ms))
    }

    #[tokio::test]
    async fn a_job_is_leased_to_one_and_comes_back_if_it_is_not_done() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder).await;
        store
            .write("test", |tx| async move {
                for (id, run_at) in [("late", 50), ("b", 20), ("a", 10)] {
                    let job = NewJob {
                        job_id: id.to_owned(),
                        kind: "k",
                        payload: "p".to_owned(),
                        created_ts: at(run_at),
                        run_at: at(run_at),
                    };
                    insert(&tx, &job).await?;
                }
                let ids = |jobs: Vec<Job>| {
                    let mut ids: Vec<_> = jobs.into_iter().map(|job| (job.job_id, job.attempts)).collect();
                    ids.sort();
                    ids
                };
                assert_eq!(backlog(&tx, at(9)).await?, Backlog::default());
                let due = Backlog { waiting: 2, oldest: Some(at(10)) };
                assert_eq!(backlog(&tx, at(20)).await?, due);
                assert!(put_off(&tx, "late", at(60)).await?);
                assert!(amend(&tx, "late", "more").await?);
                assert_eq!(ids(lease(&tx, at(30), at(100), 1).await?), [("a".to_owned(), 1)]);
                assert_eq!(ids(lease(&tx, at(30), at(100), 9).await?), [("b".to_owned(), 1)]);
                assert!(lease(&tx, at(30), at(100), 9).await?.is_empty());
                assert!(!withdraw(&tx, "a").await? && !put_off(&tx, "a", at(1_000)).await?);
                assert!(!amend(&tx, "a", "too late").await?);
                delete(&tx, "a").await?;
                let again = [("b".to_owned(), 2), ("late".to_owned(), 1)];
                let taken = lease(&tx, at(100), at(200), 9).await?;
                assert!(taken.iter().any(|job| job.job_id == "late" && job.payload == "more"));
                assert_eq!(ids(taken), again);
                delete(&tx, "b").await?;
                delete(&tx, "late").await?;
                assert_eq!(backlog(&tx, at(1_000)).await?, Backlog::default());
                let job = NewJob {
                    job_id: "w".to_owned(),
                    kind: "k",
                    payload: String::new(),
                    created_ts: at(1),
                    run_at: at(1),
                };
                insert(&tx, &job).await?;
                assert!(withdraw(&tx, "w").await?);
                assert!(lease(&tx, at(30), at(100), 9).await?.is_empty());
                Ok::<_, Error>(())
            })
            .await
            .unwrap();
    }
}
