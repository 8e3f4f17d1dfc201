//! Pushers: where users want notifications sent.
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#push-notifications>

use std::collections::BTreeMap;

use ruma::{
    DeviceId, EventId, MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedRoomId, OwnedUserId, RoomId, UserId,
};
use sea_orm::{DbBackend, Value};

use crate::{Error, ReadTx, WriteTx, streams};

/// What identifies a pusher of one user.
#[derive(Clone, Copy, Debug)]
pub struct PusherKey<'a> {
    /// The application.
    pub app_id: &'a str,
    /// The address within the application's push service.
    pub pushkey: &'a str,
}

/// A pusher, as it is stored.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct StoredPusher {
    /// Whose it is.
    pub user_id: OwnedUserId,
    /// The JSON that the client set.
    pub pusher: String,
    /// How often its gateway has not taken what is pending.
    pub attempts: i64,
}

/// Whether there is any pusher.
///
/// # Errors
/// The database's own.
pub async fn exist(tx: &ReadTx) -> Result<bool, Error> {
    Ok(!tx.query("SELECT 1 AS found FROM pushers LIMIT 1", []).await?.is_empty())
}

/// The pushers of all who are in these rooms or invited there, by user within each room.
///
/// # Errors
/// The database's own, or a row that cannot be read.
pub async fn of_members(
    tx: &ReadTx,
    room_ids: &[&RoomId],
) -> Result<BTreeMap<OwnedRoomId, Vec<StoredPusher>>, Error> {
    let mut pushers: BTreeMap<OwnedRoomId, Vec<StoredPusher>> = BTreeMap::new();
    for chunk in room_ids.chunks(tx.rows_a_statement(1)) {
        let (rooms, values) = tx.list(1, chunk.iter().map(|room_id| room_id.as_str()));
        let sql = format!(
            "SELECT m.room_id, p.user_id, p.pusher, p.attempts FROM memberships m JOIN pushers p ON p.user_id = m.user_id \
             WHERE m.room_id IN ({rooms}) AND m.membership IN ('join', 'invite') ORDER BY m.room_id, p.user_id"
        );
        for row in tx.query(&sql, values).await? {
            let user_id = streams::user_id(&row, "pushers", "user_id")?;
            let (pusher, attempts) = (row.try_get("", "pusher")?, row.try_get("", "attempts")?);
            let pusher = StoredPusher { user_id, pusher, attempts };
            pushers.entry(streams::room_id(&row, "memberships")?).or_default().push(pusher);
        }
    }
    Ok(pushers)
}

/// An event that a pusher has to be told of.
#[derive(Clone, Copy, Debug)]
pub struct Pending<'a> {
    /// The pusher.
    pub key: PusherKey<'a>,
    /// Whose it is.
    pub user_id: &'a UserId,
    /// The event's room.
    pub room_id: &'a RoomId,
    /// The event.
    pub event_id: &'a EventId,
}

/// Notes of pushers the newest event that they have to be told of, to be tried again at `retry_at` if nobody has told them by then; of one whose gateway
/// has not taken something, when that is tried again.
///
/// # Errors
/// The database's own.
pub async fn note_pending(
    tx: &WriteTx,
    pending: &[Pending<'_>],
    retry_at: MilliSecondsSinceUnixEpoch,
) -> Result<(), Error> {
    for chunk in pending.chunks(tx.rows_a_statement(5)) {
        let row = |pending: &Pending<'_>| {
            vec![
                pending.key.app_id.into(),
                pending.key.pushkey.into(),
                pending.user_id.as_str().into(),
                pending.room_id.as_str().into(),
                pending.event_id.as_str().into(),
            ]
        };
        let (given, values) = tx.rows(2, chunk.iter().map(row).collect());
        let sql = format!(
            "WITH given (app_id, pushkey, user_id, room_id, event_id) AS ({given}) \
             UPDATE pushers SET pending_room = given.room_id, pending_event = given.event_id, \
             retry_at = CASE WHEN pushers.attempts > 0 THEN COALESCE(pushers.retry_at, $1) ELSE $1 END FROM given \
             WHERE pushers.app_id = given.app_id AND pushers.pushkey = given.pushkey AND pushers.user_id = given.user_id"
        );
        let at = std::iter::once(Value::from(i64::from(retry_at.0)));
        tx.execute(&sql, at.chain(values)).await?;
    }
    Ok(())
}

/// Notes that a pusher was told of an event, or need not be: if no other one has come since, nothing is pending any more.
///
/// # Errors
/// The database's own.
pub async fn told(tx: &WriteTx, told: Pending<'_>) -> Result<(), Error> {
    let sql = "UPDATE pushers SET attempts = 0, \
               pending_room = CASE WHEN pending_event = $4 THEN NULL ELSE pending_room END, \
               retry_at = CASE WHEN pending_event = $4 THEN NULL ELSE retry_at END, \
               pending_event = CASE WHEN pending_event = $4 THEN NULL ELSE pending_event END \
               WHERE app_id = $1 AND pushkey = $2 AND user_id = $3";
    let Pending { key, user_id, event_id, .. } = told;
    let values = [key.app_id.into(), key.pushkey.into(), user_id.as_str().into(), event_id.as_str().into()];
    tx.execute(sql, values).await?;
    Ok(())
}

/// Notes when a pusher that something is pending for is to be told; `has_failed` if its gateway was asked and did not take it.
///
/// # Errors
/// The database's own.
pub async fn retry(
    tx: &WriteTx,
    (key, user_id): (PusherKey<'_>, &UserId),
    retry_at: MilliSecondsSinceUnixEpoch,
    has_failed: bool,
) -> Result<(), Error> {
    let sql = "UPDATE pushers SET retry_at = $1, attempts = attempts + $2 \
               WHERE app_id = $3 AND pushkey = $4 AND user_id = $5 AND pending_event IS NOT NULL";
    let values = [
        i64::from(retry_at.0).into(),
        i64::from(has_failed).into(),
        key.app_id.into(),
        key.pushkey.into(),
        user_id.as_str().into(),
    ];
    tx.execute(sql, values).await?;
    Ok(())
}

/// A pusher that is to be told of an event now.
#[derive(Clone, Debug)]
pub struct Due {
    /// The pusher.
    pub pusher: StoredPusher,
    /// The event's room.
    pub room_id: OwnedRoomId,
    /// The event.
    pub event_id: OwnedEventId,
}

/// Takes pushers that are to be told of something by `now`, at most `limit`: nobody else takes them before `until`.
///
/// # Errors
/// The database's own, or a row that cannot be read.
pub async fn take_due(
    tx: &WriteTx,
    now: MilliSecondsSinceUnixEpoch,
    until: MilliSecondsSinceUnixEpoch,
    limit: u32,
) -> Result<Vec<Due>, Error> {
    // On SQLite the transaction has begun as the only writer.
    let lock = if tx.backend() == DbBackend::Postgres { "FOR UPDATE SKIP LOCKED" } else { "" };
    let sql = format!(
        "SELECT app_id, pushkey, user_id, pusher, pending_room, pending_event, attempts FROM pushers \
         WHERE retry_at <= $1 ORDER BY retry_at LIMIT {limit} {lock}"
    );
    let mut due = Vec::new();
    for row in tx.query(&sql, [i64::from(now.0).into()]).await? {
        let (app_id, pushkey): (String, String) = (row.try_get("", "app_id")?, row.try_get("", "pushkey")?);
        let user_id = streams::user_id(&row, "pushers", "user_id")?;
        let key = PusherKey { app_id: &app_id, pushkey: &pushkey };
        retry(tx, (key, &user_id), until, false).await?;
        let (room_id, event_id): (String, String) =
            (row.try_get("", "pending_room")?, row.try_get("", "pending_event")?);
        let corrupt = |error| Error::corrupt("pushers", "pending_event", user_id.as_str(), error);
        due.push(Due {
            room_id: room_id.try_into().map_err(corrupt)?,
            event_id: event_id.try_into().map_err(corrupt)?,
            pusher: StoredPusher {
                pusher: row.try_get("", "pusher")?,
                attempts: row.try_get("", "attempts")?,
                user_id: user_id.clone(),
            },
        });
    }
    Ok(due)
}

/// How many pushers a user has.
///
/// # Errors
/// The database's own.
pub async fn count(tx: &ReadTx, user_id: &UserId) -> Result<i64, Error> {
    let sql = "SELECT COUNT(*) AS pushers FROM pushers WHERE user_id = $1";
    let rows = tx.query(sql, [user_id.as_str().into()]).await?;
    Ok(rows.first().map_or(Ok(0), |row| row.try_get("", "pushers"))?)
}

/// The pushers of a user: the JSON that the clients set.
///
/// # Errors
/// The database's own.
pub async fn of_user(tx: &ReadTx, user_id: &UserId) -> Result<Vec<String>, Error> {
    let sql = "SELECT pusher FROM pushers WHERE user_id = $1 ORDER BY app_id, pushkey";
    let rows = tx.query(sql, [user_id.as_str().into()]).await?;
    rows.iter().map(|row| Ok(row.try_get("", "pusher")?)).collect()
}

/// Sets a pusher, given as JSON, for the device that asks for it. What is pending for it is tried again at once.
///
/// # Errors
/// The database's own.
pub async fn set(
    tx: &WriteTx,
    key: PusherKey<'_>,
    user_id: &UserId,
    device_id: &DeviceId,
    pusher: &str,
) -> Result<(), Error> {
    tx.execute(
        "INSERT INTO pushers (app_id, pushkey, user_id, device_id, pusher) VALUES ($1, $2, $3, $4, $5) \
         ON CONFLICT (app_id, pushkey, user_id) DO UPDATE SET \
         device_id = excluded.device_id, pusher = excluded.pusher, attempts = 0, \
         retry_at = CASE WHEN pushers.pending_event IS NULL THEN NULL ELSE 0 END",
        [
            key.app_id.into(),
            key.pushkey.into(),
            user_id.as_str().into(),
            device_id.as_str().into(),
            pusher.into(),
        ],
    )
    .await?;
    Ok(())
}

/// Removes a user's pusher; returns whether it was there.
///
/// # Errors
/// The database's own.
pub async fn delete(tx: &WriteTx, key: PusherKey<'_>, user_id: &UserId) -> Result<bool, Error> {
    let sql = "DELETE FROM pushers WHERE app_id = $1 AND pushkey = $2 AND user_id = $3";
    Ok(tx.execute(sql, [key.app_id.into(), key.pushkey.into(), user_id.as_str().into()]).await? > 0)
}

/// Removes the pushers of all other users at the same address: the device has changed hands.
///
/// # Errors
/// The database's own.
pub async fn delete_of_others(tx: &WriteTx, key: PusherKey<'_>, user_id: &UserId) -> Result<u64, Error> {
    let sql = "DELETE FROM pushers WHERE app_id = $1 AND pushkey = $2 AND user_id <> $3";
    tx.execute(sql, [key.app_id.into(), key.pushkey.into(), user_id.as_str().into()]).await
}

/// Removes the pushers of a device, with its session.
///
/// # Errors
/// The database's own.
pub async fn delete_of_device(tx: &WriteTx, user_id: &UserId, device_id: &DeviceId) -> Result<u64, Error> {
    let sql = "DELETE FROM pushers WHERE user_id = $1 AND device_id = $2";
    tx.execute(sql, [user_id.as_str().into(), device_id.as_str().into()]).await
}

#[cfg(test)]
mod tests {
    use ruma::{device_id, event_id, room_id, user_id};

    use super::*;
    use crate::store::tests::store;

    #[tokio::test]
    async fn one_address_can_serve_several_users_until_it_is_taken_over() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder).await;
        let (a, b, key) = (user_id!("@a:x"), user_id!("@b:x"), PusherKey { app_id: "app", pushkey: "k" });
        store
            .write("test", |tx| async move {
                set(&tx, key, a, device_id!("D"), "1").await?;
                set(&tx, key, a, device_id!("D"), "2").await?;
                set(&tx, key, b, device_id!("E"), "3").await?;
                assert_eq!(of_user(&tx, a).await?, ["2"]);
                assert_eq!(delete_of_others(&tx, key, b).await?, 1);
                assert!(of_user(&tx, a).await?.is_empty());
                assert_eq!(delete_of_device(&tx, b, device_id!("D")).await?, 0);
                assert!(delete(&tx, key, b).await? && !delete(&tx, key, b).await?);
                Ok::<_, Error>(())
            })
            .await
            .unwrap();
    }

    #[tokio::test]
    async fn what_is_pending_is_put_off_while_it_is_told_and_waits_its_time_when_that_fails() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder).await;
        let (a, key) = (user_id!("@a:x"), PusherKey { app_id: "app", pushkey: "k" });
        let at = |ms: u32| MilliSecondsSinceUnixEpoch(ms.into());
        let (room_id, first, second) = (room_id!("!r:x"), event_id!("$1"), event_id!("$2"));
        let pending = |event_id| Pending { key, user_id: a, room_id, event_id };
        store
            .write("test", |tx| async move {
                set(&tx, key, a, device_id!("D"), "1").await?;
                note_pending(&tx, &[pending(first)], at(10)).await?;
                note_pending(&tx, &[pending(second)], at(20)).await?;
                assert!(take_due(&tx, at(19), at(30), 9).await?.is_empty(), "it is being told");
                assert_eq!(take_due(&tx, at(20), at(30), 9).await?[0].event_id, second);
                retry(&tx, (key, a), at(40), true).await?;
                note_pending(&tx, &[pending(first)], at(99)).await?;
                told(&tx, pending(second)).await?;
                let due = take_due(&tx, at(40), at(50), 9).await?;
                assert_eq!((&*due[0].event_id, due[0].pusher.attempts), (first, 0));
                set(&tx, key, a, device_id!("D"), "2").await?;
                assert_eq!(take_due(&tx, at(0), at(60), 9).await?.len(), 1, "at once when it is set anew");
                told(&tx, pending(first)).await?;
                assert!(take_due(&tx, at(99), at(100), 9).await?.is_empty());
                Ok::<_, Error>(())
            })
            .await
            .unwrap();
    }
}
