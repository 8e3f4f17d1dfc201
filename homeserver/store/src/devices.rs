//! Devices: where users are logged in.

use std::collections::BTreeMap;

use ruma::{DeviceId, MilliSecondsSinceUnixEpoch, OwnedDeviceId, OwnedUserId, UserId};
use sea_orm::{QueryResult, Value};

use crate::{
    Error, ReadTx, WriteTx, keys, pushers,
    streams::{self, UserChange, milliseconds},
    to_device,
    tx::Insert,
};

/// A device.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Device {
    /// Its id, unique within its user.
    pub device_id: OwnedDeviceId,
    /// What its user calls it.
    pub display_name: Option<String>,
    /// When it was last seen, to within some minutes.
    pub last_seen_ts: MilliSecondsSinceUnixEpoch,
    /// The address that it was last seen at.
    pub last_seen_ip: String,
}

/// All devices of a user, by id.
///
/// # Errors
/// The database's own.
pub async fn of_user(tx: &ReadTx, user_id: &UserId) -> Result<Vec<Device>, Error> {
    let sql = "SELECT device_id, display_name, last_seen_ts, last_seen_ip FROM devices \
        WHERE user_id = $1 ORDER BY device_id";
    tx.query(sql, [user_id.as_str().into()]).await?.iter().map(from_row).collect()
}

/// When each of a user's devices was made.
///
/// # Errors
/// The database's own.
pub async fn created(
    tx: &ReadTx,
    user_id: &UserId,
) -> Result<BTreeMap<OwnedDeviceId, MilliSecondsSinceUnixEpoch>, Error> {
    let sql = "SELECT device_id, created_ts FROM devices WHERE user_id = $1";
    let read = |row: &QueryResult| {
        let device_id: String = row.try_get("", "device_id")?;
        Ok((device_id.as_str().into(), milliseconds(row.try_get("", "created_ts")?)))
    };
    tx.query(sql, [user_id.as_str().into()]).await?.iter().map(read).collect()
}

/// The devices of several users, by user. Users without devices are left out.
///
/// # Errors
/// The database's own, or a row that cannot be read.
pub async fn ids_of_users(
    tx: &ReadTx,
    user_ids: &[&UserId],
) -> Result<BTreeMap<OwnedUserId, Vec<OwnedDeviceId>>, Error> {
    let mut devices: BTreeMap<OwnedUserId, Vec<OwnedDeviceId>> = BTreeMap::new();
    for chunk in user_ids.chunks(tx.rows_a_statement(1)) {
        let (users, values) = tx.any_of(1, chunk.iter().map(|user_id| user_id.as_str()));
        let sql = format!(
            "SELECT user_id, device_id FROM devices WHERE user_id {users} ORDER BY user_id, device_id"
        );
        for row in tx.query(&sql, values).await? {
            let device_id: String = row.try_get("", "device_id")?;
            let user_id = streams::user_id(&row, "devices", "user_id")?;
            devices.entry(user_id).or_default().push(device_id.as_str().into());
        }
    }
    Ok(devices)
}

/// One device of a user.
///
/// # Errors
/// The database's own.
pub async fn find(tx: &ReadTx, user_id: &UserId, device_id: &DeviceId) -> Result<Option<Device>, Error> {
    let sql = "SELECT device_id, display_name, last_seen_ts, last_seen_ip FROM devices \
        WHERE user_id = $1 AND device_id = $2";
    tx.query(sql, [user_id.as_str().into(), device_id.as_str().into()])
        .await?
        .first()
        .map(from_row)
        .transpose()
}

/// What makes devices; one that is there already keeps its name and is seen anew.
pub(crate) fn upsert<'a>(devices: impl IntoIterator<Item = (&'a UserId, &'a Device)>) -> Insert<'static> {
    let row = |(user_id, device): (&UserId, &Device)| {
        let seen = i64::from(device.last_seen_ts.get());
        vec![
            user_id.as_str().into(),
            device.device_id.as_str().into(),
            device.display_name.clone().into(),
            seen.into(),
            seen.into(),
            device.last_seen_ip.as_str().into(),
        ]
    };
    Insert {
        table: "devices",
        columns: &["user_id", "device_id", "display_name", "created_ts", "last_seen_ts", "last_seen_ip"],
        rows: devices.into_iter().map(row).collect(),
        suffix: "ON CONFLICT (user_id, device_id) DO UPDATE SET \
                 last_seen_ts = excluded.last_seen_ts, last_seen_ip = excluded.last_seen_ip",
    }
}

/// Notes when and where a device was seen.
///
/// # Errors
/// The database's own.
pub async fn note_seen(
    tx: &WriteTx,
    user_id: &UserId,
    device_id: &DeviceId,
    at: MilliSecondsSinceUnixEpoch,
    address: &str,
) -> Result<(), Error> {
    tx.execute(
        "UPDATE devices SET last_seen_ts = $3, last_seen_ip = $4 WHERE user_id = $1 AND device_id = $2",
        [user_id.as_str().into(), device_id.as_str().into(), i64::from(at.get()).into(), address.into()],
    )
    .await?;
    Ok(())
}

/// Names a device; returns whether there is such a device. The caller notes the change of the device list.
///
/// # Errors
/// The database's own.
pub async fn rename(
    tx: &WriteTx,
    user_id: &UserId,
    device_id: &DeviceId,
    display_name: Option<&str>,
) -> Result<bool, Error> {
    let sql = "UPDATE devices SET display_name = $3 WHERE user_id = $1 AND device_id = $2";
    let name: Value = display_name.map(str::to_owned).into();
    Ok(tx.execute(sql, [user_id.as_str().into(), device_id.as_str().into(), name]).await? > 0)
}

/// Deletes devices with their sessions, keys and all that waits for them; the caches of access tokens and the device
/// lists of others hear of it. The shards of [`keys::device_list_shards`] are locked.
///
/// # Errors
/// A shard is not locked ([`WriteTx::lock_shards`]); the database's own.
pub async fn delete(tx: &WriteTx, user_id: &UserId, device_ids: &[OwnedDeviceId]) -> Result<(), Error> {
    for device_id in device_ids {
        for sql in [
            "DELETE FROM access_tokens WHERE user_id = $1 AND device_id = $2",
            "DELETE FROM refresh_tokens WHERE user_id = $1 AND device_id = $2",
            "DELETE FROM devices WHERE user_id = $1 AND device_id = $2",
            "DELETE FROM keybox_passphrases WHERE user_id = $1 AND keybox_id = $2",
        ] {
            tx.execute(sql, [user_id.as_str().into(), device_id.as_str().into()]).await?;
        }
        keys::delete_of_device(tx, user_id, device_id).await?;
        pushers::delete_of_device(tx, user_id, device_id).await?;
        to_device::delete_of_device(tx, user_id, device_id).await?;
    }
    keys::note_device_list_change(tx, user_id).await?;
    streams::append_user_change(tx, tx.shards().of_user(user_id), user_id, UserChange::Sessions).await
}

fn from_row(row: &QueryResult) -> Result<Device, Error> {
    let device_id: String = row.try_get("", "device_id")?;
    Ok(Device {
        device_id: device_id.as_str().into(),
        display_name: row.try_get("", "display_name")?,
        last_seen_ts: milliseconds(row.try_get("", "last_seen_ts")?),
        last_seen_ip: row.try_get("", "last_seen_ip")?,
    })
}
