//! What has piled up in the database and should not have: what `keystead doctor` asks of a server that runs.

use ruma::MilliSecondsSinceUnixEpoch;

use crate::{Error, ReadTx};

/// What has piled up.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Backlog {
    /// Jobs that were to be done by `overdue_since` and are not; and how often the one tried most often was tried.
    pub overdue_jobs: (i64, i64),
    /// Messages to devices that were last seen before `unseen_since`, and how many devices that are.
    pub dead_messages: (i64, i64),
    /// Devices for which at least `full` messages wait.
    pub full_devices: i64,
}

/// Counts what has piled up; `full` is how many messages are many for one device.
///
/// # Errors
/// The database's own.
pub async fn count(
    tx: &ReadTx,
    overdue_since: MilliSecondsSinceUnixEpoch,
    unseen_since: MilliSecondsSinceUnixEpoch,
    full: u64,
) -> Result<Backlog, Error> {
    let jobs = "SELECT COUNT(*) AS jobs, CAST(COALESCE(MAX(attempts), 0) AS BIGINT) AS attempts FROM jobs WHERE created_ts < $1";
    let dead = "SELECT CAST(COALESCE(SUM(messages), 0) AS BIGINT) AS messages, COUNT(*) AS devices FROM ( \
        SELECT COUNT(*) AS messages FROM to_device t JOIN devices d ON d.user_id = t.user_id AND d.device_id = t.device_id \
        WHERE d.last_seen_ts < $1 GROUP BY t.user_id, t.device_id) AS dead";
    let full = format!(
        "SELECT COUNT(*) AS devices FROM (SELECT 1 FROM to_device GROUP BY user_id, device_id HAVING COUNT(*) >= {full}) AS full_ones"
    );
    let mut backlog = Backlog::default();
    for row in tx.query(jobs, [i64::from(overdue_since.0).into()]).await? {
        backlog.overdue_jobs = (row.try_get("", "jobs")?, row.try_get("", "attempts")?);
    }
    for row in tx.query(dead, [i64::from(unseen_since.0).into()]).await? {
        backlog.dead_messages = (row.try_get("", "messages")?, row.try_get("", "devices")?);
    }
    for row in tx.query(&full, []).await? {
        backlog.full_devices = row.try_get("", "devices")?;
    }
    Ok(backlog)
}

#[cfg(test)]
mod tests {
    use ruma::UInt;

    use super::*;
    use crate::store::tests::store;

    #[tokio::test]
    async fn what_is_late_or_waits_for_nobody_is_counted() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder).await;
        let backlog = store
            .write("test", |tx| async move {
                for sql in [
                    "INSERT INTO devices (user_id, device_id, created_ts, last_seen_ts, last_seen_ip) \
                     VALUES ('@a:x', 'DEAD', 0, 10, ''), ('@a:x', 'LIVE', 0, 90, '')",
                    "INSERT INTO to_device VALUES (1, 1, '@a:x', 'DEAD', '@b:x', 't', '{}'), \
                     (1, 2, '@a:x', 'DEAD', '@b:x', 't', '{}'), (1, 3, '@a:x', 'LIVE', '@b:x', 't', '{}')",
                    "INSERT INTO jobs VALUES ('late', 'k', '', 10, 99, 7), ('young', 'k', '', 90, 99, 1)",
                ] {
                    tx.execute(sql, []).await?;
                }
                let at = MilliSecondsSinceUnixEpoch(UInt::from(50_u8));
                count(&tx, at, at, 2).await
            })
            .await
            .unwrap();
        assert_eq!(backlog, Backlog { overdue_jobs: (1, 7), dead_messages: (2, 1), full_devices: 1 });
    }
}
