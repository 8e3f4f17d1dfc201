//! Devices' identity keys, and the lists of devices that others watch.
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#key-and-signature-management>

mod device_lists;
mod one_time;
mod revoked;

use std::collections::BTreeMap;

use ruma::{DeviceId, OwnedDeviceId, OwnedUserId, UserId};

pub(crate) use self::device_lists::hold_memberships;
pub use self::{
    device_lists::{
        DeviceListDelta, device_list_changes, device_list_delta, device_list_shards, note_device_list_change,
        note_user_signature,
    },
    one_time::{
        Claimed, Counts, Device, DeviceKey, DeviceKeyCounts, NewKey, Wanted, claim, key_counts,
        note_one_time_keys, one_time_key_counts, one_time_keys, put_keys,
    },
    revoked::{forget_revoked_key_sets, is_revoked_key_set, note_revoked_key_set},
};
use crate::{Error, ReadTx, WriteTx, streams};

/// The identity keys of a device.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DeviceKeys {
    /// The owner.
    pub user_id: OwnedUserId,
    /// The device.
    pub device_id: OwnedDeviceId,
    /// The `device_keys` object, as stored: no `unsigned`, no signatures but the owner's.
    pub json: String,
    /// What the owner calls the device.
    pub display_name: Option<String>,
}

/// The identity keys of one device, if it has published any.
///
/// # Errors
/// The database's own.
pub async fn device_keys(
    tx: &ReadTx,
    user_id: &UserId,
    device_id: &DeviceId,
) -> Result<Option<String>, Error> {
    let rows = tx
        .query(
            "SELECT json FROM device_keys WHERE user_id = $1 AND device_id = $2",
            [user_id.as_str().into(), device_id.as_str().into()],
        )
        .await?;
    Ok(rows.first().map(|row| row.try_get("", "json")).transpose()?)
}

/// The identity keys of those of these devices that have published any.
///
/// # Errors
/// The database's own, or a row that cannot be read.
pub async fn stored_device_keys(tx: &ReadTx, devices: &[Device]) -> Result<BTreeMap<Device, String>, Error> {
    let mut found = BTreeMap::new();
    for chunk in devices.chunks(tx.rows_a_statement(2)) {
        let rows = chunk.iter().map(|(user, device)| vec![user.as_str().into(), device.as_str().into()]);
        let (rows, values) = tx.rows(1, rows.collect());
        let sql = format!(
            "SELECT user_id, device_id, json FROM device_keys WHERE (user_id, device_id) IN ({rows})"
        );
        for row in tx.query(&sql, values).await? {
            let device_id: String = row.try_get("", "device_id")?;
            let device = (streams::user_id(&row, "device_keys", "user_id")?, device_id.as_str().into());
            found.insert(device, row.try_get("", "json")?);
        }
    }
    Ok(found)
}

/// The identity keys of many devices: of the devices named, or of all of a user's where none is named.
///
/// # Errors
/// The database's own, or a row that cannot be read.
pub async fn query(
    tx: &ReadTx,
    wanted: &BTreeMap<OwnedUserId, Vec<OwnedDeviceId>>,
) -> Result<Vec<DeviceKeys>, Error> {
    let mut found = Vec::new();
    let users: Vec<&OwnedUserId> = wanted.keys().collect();
    for chunk in users.chunks(tx.rows_a_statement(1)) {
        let (users, values) = tx.any_of(1, chunk.iter().map(|user_id| user_id.as_str()));
        let sql = format!(
            "SELECT k.user_id, k.device_id, k.json, d.display_name FROM device_keys k \
             LEFT JOIN devices d ON d.user_id = k.user_id AND d.device_id = k.device_id \
             WHERE k.user_id {users}"
        );
        for row in tx.query(&sql, values).await? {
            let device_id: String = row.try_get("", "device_id")?;
            let keys = DeviceKeys {
                user_id: streams::user_id(&row, "device_keys", "user_id")?,
                device_id: device_id.as_str().into(),
                json: row.try_get("", "json")?,
                display_name: row.try_get("", "display_name")?,
            };
            let devices = wanted.get(&keys.user_id).map(Vec::as_slice).unwrap_or_default();
            if devices.is_empty() || devices.contains(&keys.device_id) {
                found.push(keys);
            }
        }
    }
    Ok(found)
}

/// Stores the identity keys of a device. Whether they may replace what is there is for the caller to check, after it
/// has locked the user's shard; it then notes the change ([`note_device_list_change`]).
///
/// # Errors
/// The database's own.
pub async fn put_device_keys(
    tx: &WriteTx,
    user_id: &UserId,
    device_id: &DeviceId,
    json: &str,
) -> Result<(), Error> {
    tx.execute(
        "INSERT INTO device_keys (user_id, device_id, json) VALUES ($1, $2, $3) \
         ON CONFLICT (user_id, device_id) DO UPDATE SET json = excluded.json",
        [user_id.as_str().into(), device_id.as_str().into(), json.into()],
    )
    .await?;
    Ok(())
}

/// Deletes all keys of a device that is deleted, and the signatures on it. The caller notes the change
/// ([`note_device_list_change`]).
///
/// # Errors
/// The database's own.
pub async fn delete_of_device(tx: &WriteTx, user_id: &UserId, device_id: &DeviceId) -> Result<(), Error> {
    for sql in [
        "DELETE FROM device_keys WHERE user_id = $1 AND device_id = $2",
        "DELETE FROM one_time_keys WHERE user_id = $1 AND device_id = $2",
        "DELETE FROM fallback_keys WHERE user_id = $1 AND device_id = $2",
        "DELETE FROM key_signatures WHERE user_id = $1 AND key_id = $2",
    ] {
        tx.execute(sql, [user_id.as_str().into(), device_id.as_str().into()]).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
