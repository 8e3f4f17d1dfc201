//! Pushers: where users want notifications sent.
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#push-notifications>

use std::collections::BTreeMap;

use ruma::{DeviceId, OwnedRoomId, OwnedUserId, RoomId, UserId};

use crate::{Error, ReadTx, WriteTx, push_queue, streams};

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
        let (rooms, values) = tx.any_of(1, chunk.iter().map(|room_id| room_id.as_str()));
        let sql = format!(
            "SELECT m.room_id, p.user_id, p.pusher FROM memberships m JOIN pushers p ON p.user_id = m.user_id \
             WHERE m.room_id {rooms} AND m.membership IN ('join', 'invite') ORDER BY m.room_id, p.user_id"
        );
        for row in tx.query(&sql, values).await? {
            let user_id = streams::user_id(&row, "pushers", "user_id")?;
            let pusher = StoredPusher { user_id, pusher: row.try_get("", "pusher")? };
            pushers.entry(streams::room_id(&row, "memberships")?).or_default().push(pusher);
        }
    }
    Ok(pushers)
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

/// Sets a pusher, given as JSON, for the device that asks for it. What is in its queue is tried again at once.
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
         tell_at = CASE WHEN pushers.told_by = '' AND pushers.tell_at IS NOT NULL THEN 0 ELSE pushers.tell_at END",
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
    let condition = "app_id = $1 AND pushkey = $2 AND user_id = $3";
    let values = [key.app_id.into(), key.pushkey.into(), user_id.as_str().into()];
    Ok(push_queue::delete_pushers(tx, condition, values).await? > 0)
}

/// Removes the pushers of all other users at the same address: the device has changed hands.
///
/// # Errors
/// The database's own.
pub async fn delete_of_others(tx: &WriteTx, key: PusherKey<'_>, user_id: &UserId) -> Result<u64, Error> {
    let condition = "app_id = $1 AND pushkey = $2 AND user_id <> $3";
    let values = [key.app_id.into(), key.pushkey.into(), user_id.as_str().into()];
    push_queue::delete_pushers(tx, condition, values).await
}

/// Removes the pushers of a device, with its session.
///
/// # Errors
/// The database's own.
pub async fn delete_of_device(tx: &WriteTx, user_id: &UserId, device_id: &DeviceId) -> Result<u64, Error> {
    let condition = "user_id = $1 AND device_id = $2";
    push_queue::delete_pushers(tx, condition, [user_id.as_str().into(), device_id.as_str().into()]).await
}

#[cfg(test)]
mod tests {
    use ruma::{device_id, user_id};

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
}
