//! Pushers: where users want notifications sent.
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#push-notifications>

use ruma::{DeviceId, UserId};

use crate::{Error, ReadTx, WriteTx};

/// What identifies a pusher of one user.
#[derive(Clone, Copy, Debug)]
pub struct PusherKey<'a> {
    /// The application.
    pub app_id: &'a str,
    /// The address within the application's push service.
    pub pushkey: &'a str,
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

/// Sets a pusher, given as JSON, for the device that asks for it.
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
         device_id = excluded.device_id, pusher = excluded.pusher",
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
