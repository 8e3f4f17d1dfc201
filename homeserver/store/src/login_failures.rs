//! Failed logins in a row, counted for all replicas together.

use std::collections::BTreeMap;

use ruma::MilliSecondsSinceUnixEpoch;
use sea_orm::QueryResult;

use crate::{Error, ReadTx, WriteTx, streams::milliseconds};

/// The failures of one account or one address.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Failures {
    /// How many in a row.
    pub count: u32,
    /// When the newest one was.
    pub newest_ts: MilliSecondsSinceUnixEpoch,
    /// Until when no other attempt is taken.
    pub blocked_until_ts: MilliSecondsSinceUnixEpoch,
}

/// The failures of those of these subjects that have any.
///
/// # Errors
/// The database's own.
pub async fn find(tx: &ReadTx, subjects: &[&str]) -> Result<BTreeMap<String, Failures>, Error> {
    let (wanted, values) = tx.any_of(1, subjects.iter().copied());
    let sql = format!(
        "SELECT subject, failures, last_failure_ts, blocked_until_ts FROM login_failures \
         WHERE subject {wanted}"
    );
    let read = |row: &QueryResult| {
        let count: i64 = row.try_get("", "failures")?;
        let failures = Failures {
            count: u32::try_from(count).unwrap_or(u32::MAX),
            newest_ts: milliseconds(row.try_get("", "last_failure_ts")?),
            blocked_until_ts: milliseconds(row.try_get("", "blocked_until_ts")?),
        };
        Ok((row.try_get("", "subject")?, failures))
    };
    tx.query(&sql, values).await?.iter().map(read).collect()
}

/// Takes the row of a subject until the transaction ends, so that failures at the same moment are all counted.
///
/// # Errors
/// The database's own.
pub async fn lock(tx: &WriteTx, subject: &str) -> Result<(), Error> {
    tx.execute(
        "INSERT INTO login_failures (subject, failures, last_failure_ts, blocked_until_ts) VALUES ($1, 0, 0, 0) \
         ON CONFLICT (subject) DO UPDATE SET failures = login_failures.failures",
        [subject.into()],
    )
    .await?;
    Ok(())
}

/// Replaces what is known of a subject.
///
/// # Errors
/// The database's own.
pub async fn put(tx: &WriteTx, subject: &str, failures: Failures) -> Result<(), Error> {
    tx.execute(
        "UPDATE login_failures SET failures = $2, last_failure_ts = $3, blocked_until_ts = $4 WHERE subject = $1",
        [
            subject.into(),
            i64::from(failures.count).into(),
            i64::from(failures.newest_ts.get()).into(),
            i64::from(failures.blocked_until_ts.get()).into(),
        ],
    )
    .await?;
    Ok(())
}

/// Forgets a subject.
///
/// # Errors
/// The database's own.
pub async fn forget(tx: &WriteTx, subject: &str) -> Result<(), Error> {
    tx.execute("DELETE FROM login_failures WHERE subject = $1", [subject.into()]).await?;
    Ok(())
}

/// Forgets all whose newest failure is older than this.
///
/// # Errors
/// The database's own.
pub async fn forget_older(tx: &WriteTx, than: MilliSecondsSinceUnixEpoch) -> Result<u64, Error> {
    let sql = "DELETE FROM login_failures WHERE last_failure_ts < $1";
    tx.execute(sql, [i64::from(than.get()).into()]).await
}
