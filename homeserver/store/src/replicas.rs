//! What the replicas say about themselves, every so often: so that `keystead doctor` can compare them.
//!
//! Nothing that serves requests reads it.

use ruma::MilliSecondsSinceUnixEpoch;
use sea_orm::DbBackend;

use crate::{Error, ReadTx, WriteTx};

/// How long the row of a replica that says nothing any more is kept, in milliseconds.
const KEPT_MS: i64 = 3_600_000;

/// What a replica says about itself.
#[derive(Clone, Debug)]
pub struct Report {
    /// Its id: another one after each start.
    pub replica_id: String,
    /// When it started, by its own clock.
    pub started: MilliSecondsSinceUnixEpoch,
    /// What its clock shows now.
    pub now: MilliSecondsSinceUnixEpoch,
    /// What it has to say: a JSON object.
    pub status: String,
}

/// What is known of a replica.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Seen {
    /// Its id.
    pub replica_id: String,
    /// How long ago it last said something, in milliseconds, by the database's clock.
    pub age_ms: i64,
    /// By how many milliseconds its clock was ahead of the database's then.
    pub skew_ms: i64,
    /// What it said: a JSON object.
    pub status: String,
}

/// Keeps what a replica says, and forgets replicas that have said nothing for an hour.
///
/// # Errors
/// The database's own.
pub async fn put(tx: &WriteTx, report: &Report) -> Result<(), Error> {
    let clock = clock(tx);
    let forget = format!("DELETE FROM replicas WHERE seen_ts < {clock} - {KEPT_MS}");
    tx.execute(&forget, []).await?;
    let sql = format!(
        "INSERT INTO replicas (replica_id, started_ts, seen_ts, skew_ms, status) \
         VALUES ($1, $2, {clock}, $3 - {clock}, $4) ON CONFLICT (replica_id) DO UPDATE SET \
         seen_ts = excluded.seen_ts, skew_ms = excluded.skew_ms, status = excluded.status"
    );
    tx.execute(
        &sql,
        [
            report.replica_id.as_str().into(),
            i64::from(report.started.0).into(),
            i64::from(report.now.0).into(),
            report.status.as_str().into(),
        ],
    )
    .await?;
    Ok(())
}

/// Forgets a replica that stops.
///
/// # Errors
/// The database's own.
pub async fn delete(tx: &WriteTx, replica_id: &str) -> Result<(), Error> {
    tx.execute("DELETE FROM replicas WHERE replica_id = $1", [replica_id.into()]).await?;
    Ok(())
}

/// All replicas that have said something within the last hour or so.
///
/// # Errors
/// The database's own.
pub async fn all(tx: &ReadTx) -> Result<Vec<Seen>, Error> {
    let sql = format!(
        "SELECT replica_id, {} - seen_ts AS age_ms, skew_ms, status FROM replicas ORDER BY started_ts, replica_id",
        clock(tx)
    );
    let rows = tx.query(&sql, []).await?;
    rows.iter()
        .map(|row| {
            Ok(Seen {
                replica_id: row.try_get("", "replica_id")?,
                age_ms: row.try_get("", "age_ms")?,
                skew_ms: row.try_get("", "skew_ms")?,
                status: row.try_get("", "status")?,
            })
        })
        .collect()
}

/// The database's clock as an expression, in milliseconds since the epoch.
pub(crate) fn clock(tx: &ReadTx) -> &'static str {
    match tx.backend() {
        DbBackend::Postgres => "CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT)",
        _ => "CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)",
    }
}

#[cfg(test)]
mod tests {
    use ruma::UInt;

    use super::*;
    use crate::store::tests::store;

    #[tokio::test]
    async fn a_replica_is_known_by_what_it_said_last() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder).await;
        let report = |id: &str, status: &str| Report {
            replica_id: id.to_owned(),
            started: MilliSecondsSinceUnixEpoch(UInt::from(1_u8)),
            now: MilliSecondsSinceUnixEpoch(UInt::from(5_000_u32)),
            status: status.to_owned(),
        };
        let reports = &[report("a", "{}"), report("b", "{}"), report("a", "{\"x\":1}")];
        let seen = store
            .write("test", |tx| async move {
                for report in reports {
                    put(&tx, report).await?;
                }
                delete(&tx, "b").await?;
                let kept = all(&tx).await?;
                tx.execute("UPDATE replicas SET seen_ts = seen_ts - 3700000", []).await?;
                put(&tx, &reports[1]).await?;
                Ok::<_, Error>((kept, all(&tx).await?))
            })
            .await
            .unwrap();
        let (kept, later) = seen;
        assert_eq!(kept.len(), 1);
        assert_eq!((kept[0].replica_id.as_str(), kept[0].status.as_str()), ("a", "{\"x\":1}"));
        assert!((0..10_000).contains(&kept[0].age_ms), "{kept:?}");
        assert!(kept[0].skew_ms < -1_000_000_000_000, "its clock stands in 1970: {kept:?}");
        assert_eq!(later.iter().map(|seen| seen.replica_id.as_str()).collect::<Vec<_>>(), ["b"]);
    }
}
