//! How far the events of each shard of rooms have been told to push gateways, and which replica does so.
//!
//! A replica holds shards for a while, and says every so often that it still does. If it dies, another one takes them over and goes on
//! where it had come to, so that something may be told twice, and nothing is left out.

use std::time::Duration;

use keystead_core::shard::Shard;
use sea_orm::DbBackend;

use crate::{Error, WriteTx, replicas};

/// A replica that pushes and has said nothing for so long, in milliseconds, counts for nothing when the shards are divided.
const GONE_MS: i64 = 30_000;

/// A shard that is held.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Cursor {
    /// The shard, one of rooms.
    pub shard: Shard,
    /// Up to here everything has been told.
    pub position: i64,
}

/// Makes the cursors of shards that have none, at the shards' ends.
///
/// # Errors
/// The database's own.
pub async fn begin(tx: &WriteTx) -> Result<(), Error> {
    let sql = "INSERT INTO push_cursors (shard, position, holder, held_until) \
               SELECT shard, position, '', 0 FROM stream_shards WHERE shard < $1 ON CONFLICT (shard) DO NOTHING";
    tx.execute(sql, [count(tx).into()]).await?;
    Ok(())
}

/// Moves all cursors to the shards' ends, and makes those that are not there: while there is no pusher nobody moves them.
///
/// # Errors
/// The database's own.
pub async fn skip(tx: &WriteTx) -> Result<(), Error> {
    let sql = "INSERT INTO push_cursors (shard, position, holder, held_until) \
               SELECT shard, position, '', 0 FROM stream_shards WHERE shard < $1 \
               ON CONFLICT (shard) DO UPDATE SET position = excluded.position";
    tx.execute(sql, [count(tx).into()]).await?;
    Ok(())
}

/// Notes how far the shards have come that `holder` holds, and holds them on, for `time`; of those that nobody holds it takes what is missing to its fair
/// share among the replicas that push, and of its own it gives back what is more. Returns what it holds then.
///
/// # Errors
/// The database's own.
pub async fn hold(tx: &WriteTx, holder: &str, held: &[Cursor], time: Duration) -> Result<Vec<Cursor>, Error> {
    for cursor in held {
        save(tx, holder, *cursor).await?;
    }
    let clock = replicas::clock(tx);
    let seen = format!(
        "INSERT INTO push_holders (holder, seen_ts) VALUES ($1, {clock}) \
         ON CONFLICT (holder) DO UPDATE SET seen_ts = excluded.seen_ts"
    );
    tx.execute(&seen, [holder.into()]).await?;
    let forget = format!("DELETE FROM push_holders WHERE seen_ts <= {clock} - {GONE_MS}");
    tx.execute(&forget, []).await?;
    let alive = tx.query("SELECT COUNT(*) AS holders FROM push_holders", []).await?;
    let alive: i64 = alive.first().map_or(Ok(1), |row| row.try_get("", "holders"))?;
    let share = count(tx).div_euclid(alive.max(1)) + i64::from(count(tx).rem_euclid(alive.max(1)) > 0);
    let until = i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
    let release = "UPDATE push_cursors SET holder = '', held_until = 0 WHERE holder = $1 AND shard NOT IN \
                   (SELECT shard FROM push_cursors WHERE holder = $1 ORDER BY shard LIMIT $2)";
    tx.execute(release, [holder.into(), share.into()]).await?;
    let renew = format!("UPDATE push_cursors SET held_until = {clock} + $1 WHERE holder = $2");
    let kept = tx.execute(&renew, [until.into(), holder.into()]).await?;
    // On SQLite the transaction has begun as the only writer.
    let lock = if tx.backend() == DbBackend::Postgres { "FOR UPDATE SKIP LOCKED" } else { "" };
    let take = format!(
        "UPDATE push_cursors SET holder = $1, held_until = {clock} + $2 WHERE shard IN \
         (SELECT shard FROM push_cursors WHERE held_until <= {clock} ORDER BY shard LIMIT $3 {lock})"
    );
    let missing = share - i64::try_from(kept).unwrap_or(i64::MAX).min(share);
    tx.execute(&take, [holder.into(), until.into(), missing.into()]).await?;
    let mine = "SELECT shard, position FROM push_cursors WHERE holder = $1 ORDER BY shard";
    let rows = tx.query(mine, [holder.into()]).await?;
    rows.iter()
        .map(|row| Ok(Cursor { shard: row.try_get("", "shard")?, position: row.try_get("", "position")? }))
        .collect()
}

/// Notes how far a shard has come, if `holder` still holds it. Returns whether it does.
///
/// # Errors
/// The database's own.
pub async fn save(tx: &WriteTx, holder: &str, cursor: Cursor) -> Result<bool, Error> {
    let sql = "UPDATE push_cursors SET position = $1 WHERE shard = $2 AND holder = $3";
    Ok(tx.execute(sql, [cursor.position.into(), cursor.shard.into(), holder.into()]).await? > 0)
}

/// Gives all shards back that `holder` holds.
///
/// # Errors
/// The database's own.
pub async fn release(tx: &WriteTx, holder: &str) -> Result<(), Error> {
    let sql = "UPDATE push_cursors SET holder = '', held_until = 0 WHERE holder = $1";
    tx.execute(sql, [holder.into()]).await?;
    tx.execute("DELETE FROM push_holders WHERE holder = $1", [holder.into()]).await?;
    Ok(())
}

/// How many shards of rooms there are.
fn count(tx: &WriteTx) -> i64 {
    i64::try_from(tx.shards().room_shards().count()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::store;

    #[tokio::test]
    async fn a_shard_is_held_by_one_until_it_is_given_back_or_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder).await;
        let (long, gone) = (Duration::from_secs(3_600), Duration::ZERO);
        store
            .write("test", |tx| async move {
                begin(&tx).await?;
                let held = hold(&tx, "a", &[], long).await?;
                assert_eq!(held.len(), tx.shards().room_shards().count());
                assert_eq!(hold(&tx, "b", &[], long).await?, []);
                let moved = Cursor { position: held[0].position + 7, ..held[0] };
                assert_eq!(hold(&tx, "a", &[moved], gone).await?[0], moved);
                // What nobody holds any more is taken, and what whoever held it says now comes too late.
                tx.execute("DELETE FROM push_holders WHERE holder = 'a'", []).await?;
                assert_eq!(hold(&tx, "b", &[], long).await?[0], moved);
                assert!(!save(&tx, "a", held[0]).await?);
                release(&tx, "b").await?;
                assert_eq!(hold(&tx, "a", &[], long).await?[0], moved);
                skip(&tx).await?;
                assert_eq!(hold(&tx, "a", &[], long).await?, held);
                Ok::<_, Error>(())
            })
            .await
            .unwrap();
    }
}
