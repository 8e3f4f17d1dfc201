//! What a database needs that was restored from a backup, before it serves again.
//!
//! Clients know of things that happened after the backup and that the database does not know of any more. They hold sync tokens with positions that
//! would be handed out a second time, for other things: whoever holds such a token would then miss these. So every shard goes on far beyond any position
//! that can have been handed out, and the positions between are noted as lost ([`lost_positions`]): a token that names one of them tells that its
//! holder has to be told everything about that shard anew.

use std::collections::BTreeSet;

use keystead_core::{lost_positions::LostPositions, shard::Shard};
use ruma::{MilliSecondsSinceUnixEpoch, OwnedUserId, UserId};
use sea_orm::{DbBackend, Value};

use crate::{
    Error, ReadTx, WriteTx, settings,
    streams::{self, UserChange, milliseconds},
};

/// The setting that says when the database was last restored: milliseconds since the epoch.
const RESTORED: &str = "restored_ts";
/// More positions than a shard can hand out in a second, as a power of two. A position after a restore is the time of the restore in seconds,
/// shifted by this: so it is beyond all that was handed out before, also after an earlier restore of the same backup.
const POSITIONS_A_SECOND: u32 = 20;
/// How far a shard goes on at least, whatever the clock shows.
const LEAST_STEP: i64 = 1 << 40;
/// How many numbers of a user's filters and key backups are passed over, because clients may know them for something that is lost.
const PASSED_OVER: i64 = 1_000_000;
/// How many users are worked on at a time.
const PAGE: u32 = 1_000;

/// What was done to a restored database.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Settled {
    /// One-time keys that were dropped.
    pub one_time_keys: u64,
    /// Fallback keys that count as used from now on, so that their devices replace them.
    pub fallback_keys: u64,
    /// Users whose device lists everybody asks for again.
    pub users: u64,
    /// Sessions that were ended.
    pub sessions: u64,
}

/// How many other processes of this program are connected to the database; 0 on SQLite, where that cannot be seen.
///
/// # Errors
/// The database's own.
pub async fn other_processes(tx: &WriteTx) -> Result<u64, Error> {
    if tx.backend() != DbBackend::Postgres {
        return Ok(0);
    }
    // This process's own listener began after the connection that asks.
    let sql = "SELECT COUNT(*) AS others FROM pg_stat_activity WHERE datname = current_database() \
        AND application_name = 'keystead listen' \
        AND backend_start < (SELECT backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid())";
    let rows = tx.query(sql, []).await?;
    let others: i64 = rows.first().map_or(Ok(0), |row| row.try_get("", "others"))?;
    Ok(others.unsigned_abs())
}

/// Makes a database that was restored from a backup fit to serve again; no replica serves meanwhile. Doing it twice does no harm.
///
/// One-time keys are dropped, because some were handed out after the backup; fallback keys count as used; every user's device list counts as changed;
/// positions go on beyond all that were handed out; numbers of filters and key backups, too; registrations and confirmations that were under way are
/// void. With `end_sessions`, every access token counts as expired: people have to log in again, and their clients keep their keys
/// (`soft_logout`).
///
/// # Errors
/// The database's own.
pub async fn settle(
    tx: &WriteTx,
    now: MilliSecondsSinceUnixEpoch,
    end_sessions: bool,
) -> Result<Settled, Error> {
    if tx.backend() == DbBackend::Postgres {
        tx.execute("SET LOCAL statement_timeout = 0", []).await?;
    }
    skip_lost_positions(tx, now).await?;
    let mut settled = Settled {
        one_time_keys: tx.execute("DELETE FROM one_time_keys", []).await?,
        fallback_keys: tx.execute("UPDATE fallback_keys SET used = TRUE WHERE NOT used", []).await?,
        ..Settled::default()
    };
    settled.users = note_all_devices(tx).await?;
    pass_over_numbers(tx).await?;
    for sql in [
        "DELETE FROM registration_nonces",
        "DELETE FROM interactive_auth",
        // They are of replicas that served when the backup was made.
        "DELETE FROM replicas",
    ] {
        tx.execute(sql, []).await?;
    }
    if end_sessions {
        settled.sessions = tx.execute("UPDATE access_tokens SET expires_ts = 0, replaces = NULL", []).await?;
        tx.execute("DELETE FROM refresh_tokens", []).await?;
    }
    settings::put(tx, RESTORED, &now.get().to_string()).await?;
    Ok(settled)
}

/// The positions that restores have lost.
///
/// # Errors
/// The database's own.
pub async fn lost_positions(tx: &ReadTx) -> Result<LostPositions, Error> {
    let sql = "SELECT shard, after_position, before_position FROM lost_positions";
    let rows = tx.query(sql, []).await?;
    let gaps = rows
        .iter()
        .map(|row| {
            Ok((
                row.try_get::<Shard>("", "shard")?,
                row.try_get("", "after_position")?,
                row.try_get("", "before_position")?,
            ))
        })
        .collect::<Result<Vec<(Shard, i64, i64)>, Error>>()?;
    Ok(LostPositions::new(gaps))
}

/// When the database was last restored, if it ever was.
///
/// # Errors
/// The database's own.
pub async fn last_restore(tx: &ReadTx) -> Result<Option<MilliSecondsSinceUnixEpoch>, Error> {
    let restored = settings::find(tx, RESTORED).await?;
    Ok(restored.and_then(|ts| ts.parse().ok()).map(milliseconds))
}

async fn skip_lost_positions(tx: &WriteTx, now: MilliSecondsSinceUnixEpoch) -> Result<(), Error> {
    let shards: Vec<Shard> = tx.shards().all().collect();
    tx.lock_shards(&shards).await?;
    let seconds = i64::from(now.get()) / 1_000;
    let by_clock = seconds.checked_shl(POSITIONS_A_SECOND).unwrap_or_default();
    let mut rows: Vec<Vec<Value>> = Vec::with_capacity(shards.len());
    for shard in shards {
        let after = tx.locked_position(shard);
        let before = by_clock.max(after.saturating_add(LEAST_STEP));
        tx.skip_to(shard, before)?;
        rows.push(vec![shard.into(), after.into(), before.into()]);
    }
    tx.insert_rows("lost_positions", &["shard", "after_position", "before_position"], rows, "").await
}

/// Notes for all users with devices that these, and the counts of their one-time keys, changed; returns how many users that are.
async fn note_all_devices(tx: &WriteTx) -> Result<u64, Error> {
    let (mut last, mut noted) = (String::new(), 0);
    loop {
        let sql =
            format!("SELECT DISTINCT user_id FROM devices WHERE user_id > $1 ORDER BY user_id LIMIT {PAGE}");
        let rows = tx.query(&sql, [last.as_str().into()]).await?;
        let users: Vec<OwnedUserId> =
            rows.iter().map(|row| streams::user_id(row, "devices", "user_id")).collect::<Result<_, _>>()?;
        let Some(newest) = users.last() else { return Ok(noted) };
        last = newest.to_string();
        noted += u64::try_from(users.len()).unwrap_or_default();
        let own = |user_id: &OwnedUserId| (tx.shards().of_user(user_id), user_id.clone());
        let mut places: BTreeSet<(Shard, OwnedUserId)> = users.iter().map(own).collect();
        streams::append_user_changes(tx, places.clone(), UserChange::OneTimeKeys).await?;
        for chunk in users.chunks(tx.rows_a_statement(1)) {
            let (wanted, values) = tx.any_of(1, chunk.iter().map(|user_id| UserId::as_str(user_id)));
            let sql = format!(
                "SELECT user_id, room_id FROM memberships WHERE user_id {wanted} AND membership IN ('join', 'invite')"
            );
            for row in tx.query(&sql, values).await? {
                let shard = tx.shards().of_room(&streams::room_id(&row, "memberships")?);
                places.insert((shard, streams::user_id(&row, "memberships", "user_id")?));
            }
        }
        streams::append_user_changes(tx, places, UserChange::DeviceList).await?;
    }
}

/// A number that a client knows must not stand for something else: neither that of a filter nor that of a key backup.
async fn pass_over_numbers(tx: &WriteTx) -> Result<(), Error> {
    let filters = format!(
        "INSERT INTO filters (user_id, filter_id, definition) \
         SELECT u.user_id, COALESCE(MAX(f.filter_id), 0) + {PASSED_OVER}, '{{}}' FROM users u \
         LEFT JOIN filters f ON f.user_id = u.user_id GROUP BY u.user_id"
    );
    tx.execute(&filters, []).await?;
    let backups = format!(
        "INSERT INTO backup_versions (user_id, version, algorithm, auth_data, etag, deleted) \
         SELECT u.user_id, COALESCE(MAX(b.version), 0) + {PASSED_OVER}, '', '{{}}', 0, TRUE FROM users u \
         LEFT JOIN backup_versions b ON b.user_id = u.user_id GROUP BY u.user_id"
    );
    tx.execute(&backups, []).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use keystead_core::token::SyncToken;
    use ruma::{UInt, user_id};

    use super::*;
    use crate::{Store, filters, store::tests::store};

    fn at(seconds: u32) -> MilliSecondsSinceUnixEpoch {
        MilliSecondsSinceUnixEpoch(UInt::from(seconds) * UInt::from(1_000_u32))
    }

    async fn settled(store: &Store, seconds: u32) -> (Settled, LostPositions, i64) {
        let settled = store.write("test", |tx| async move { settle(&tx, at(seconds), true).await }).await;
        let lost = store.read("test", |tx| async move { lost_positions(&tx).await }).await.unwrap();
        let positions = store.positions().await.unwrap();
        (settled.unwrap(), lost, positions[0].1)
    }

    #[tokio::test]
    async fn positions_go_on_beyond_all_that_were_handed_out_even_if_the_same_backup_is_restored_twice() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder).await;
        store
            .write("test", |tx| async move {
                tx.lock_shards(&[0, 1]).await?;
                for _ in 0..5 {
                    tx.next_position(0)?;
                }
                tx.next_position(1).map(drop)
            })
            .await
            .unwrap();
        let (_, lost, first) = settled(&store, 1_790_000_000).await;
        assert_eq!(first, 1_790_000_000 << 20);
        let token = |room: i64, user: i64| SyncToken { rooms: vec![room], user, typing: Vec::new() };
        let read = |lost: &LostPositions, room, user| {
            let settled = lost.settle(token(room, user), 1);
            (settled.token.rooms[0], settled.token.user, settled.delivered)
        };
        // What was read before the backup, and what is read after the restore, is as it was; what lies between is read anew.
        assert_eq!(read(&lost, 5, 1), (5, 1, None));
        assert_eq!(read(&lost, first, first), (first, first, None));
        assert_eq!(read(&lost, 6, 1), (0, 1, None));
        assert_eq!(read(&lost, 4, 2), (4, 0, Some(1)));
        // As if the same backup had been restored again ten minutes later: all positions of these ten minutes are lost ones.
        let reset = "UPDATE stream_shards SET position = 5 WHERE shard = 0";
        for sql in
            [reset, "DELETE FROM lost_positions", "UPDATE stream_shards SET position = 1 WHERE shard = 1"]
        {
            store.write("test", |tx| async move { tx.execute(sql, []).await }).await.unwrap();
        }
        let (_, lost, second) = settled(&store, 1_790_000_600).await;
        assert!(second > first + 100_000_000);
        assert_eq!(read(&lost, first + 1_000_000, 1), (0, 1, None));
        // With a clock that stands in the past it goes on all the same.
        let (_, _, third) = settled(&store, 5).await;
        assert!(third > second + (1 << 39));
    }

    #[tokio::test]
    async fn keys_that_may_have_been_given_out_go_and_numbers_that_clients_know_are_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder).await;
        let alice = user_id!("@a:x");
        for sql in [
            "INSERT INTO users (user_id, is_admin, deactivated, created_ts) VALUES ('@a:x', FALSE, FALSE, 0)",
            "INSERT INTO devices (user_id, device_id, created_ts, last_seen_ts, last_seen_ip) VALUES ('@a:x', 'D', 0, 0, '')",
            "INSERT INTO one_time_keys VALUES ('@a:x', 'D', 'x:1', 'x', 1, '{}'), ('@a:x', 'D', 'x:2', 'x', 1, '{}')",
            "INSERT INTO fallback_keys VALUES ('@a:x', 'D', 'x', 'x:3', '{}', FALSE)",
            "INSERT INTO access_tokens (token_hash, user_id, device_id) VALUES ('h', '@a:x', 'D')",
            "INSERT INTO memberships (user_id, room_id, membership, position) VALUES ('@a:x', '!r:x', 'join', 1)",
            "INSERT INTO filters VALUES ('@a:x', 3, '{\"limit\":1}')",
        ] {
            store.write("test", |tx| async move { tx.execute(sql, []).await }).await.unwrap();
        }
        let (done, _, position) = settled(&store, 1_790_000_000).await;
        assert_eq!(done, Settled { one_time_keys: 2, fallback_keys: 1, users: 1, sessions: 1 });
        let (filter, rows, restored) = store
            .write("test", |tx| async move {
                let filter = filters::insert(&tx, alice, "{\"limit\":2}").await?;
                let rows =
                    streams::read_shards(&tx, &[(0, position - 1)]).await?.remove(&0).unwrap_or_default();
                Ok::<_, Error>((filter, rows.len(), last_restore(&tx).await?))
            })
            .await
            .unwrap();
        assert_eq!(filter, 1_000_004);
        assert_eq!(rows, 1, "the room's shard says that the device list changed");
        assert_eq!(restored, Some(at(1_790_000_000)));
    }
}
