//! One-time and fallback keys.
//!
//! Every write of a user's keys holds the user's shard: the change of the counts is noted there, so that the device's
//! next sync tells it to upload more. The lock is also what makes a key be claimed exactly once, by whatever replica.

use std::collections::{BTreeMap, BTreeSet};

use ruma::{DeviceId, OwnedDeviceId, OwnedUserId, UserId};
use sea_orm::Value;

use crate::{
    Error, ReadTx, WriteTx,
    streams::{self, UserChange},
};

/// A one-time or fallback key to be stored.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NewKey {
    /// Algorithm and name: `signed_curve25519:AAAAAQ`.
    pub key_id: String,
    /// The algorithm: `signed_curve25519`.
    pub algorithm: String,
    /// The key: a JSON text or object.
    pub json: String,
}

/// A device that somebody wants a key of.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Wanted {
    /// The owner.
    pub user_id: OwnedUserId,
    /// The device.
    pub device_id: OwnedDeviceId,
    /// The key's algorithm.
    pub algorithm: String,
}

/// A key that was claimed: nobody else gets it, unless it is the fallback key.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Claimed {
    /// The owner.
    pub user_id: OwnedUserId,
    /// The device.
    pub device_id: OwnedDeviceId,
    /// Algorithm and name.
    pub key_id: String,
    /// The key: a JSON text or object.
    pub json: String,
}

/// A key's owner, device and id.
pub type DeviceKey = (OwnedUserId, OwnedDeviceId, String);

/// Those of these one-time keys that are there.
///
/// # Errors
/// The database's own, or a row that cannot be read.
pub async fn one_time_keys(tx: &ReadTx, wanted: &[DeviceKey]) -> Result<BTreeMap<DeviceKey, String>, Error> {
    let mut found = BTreeMap::new();
    for chunk in wanted.chunks(tx.rows_a_statement(3)) {
        let rows = chunk.iter().map(|(user_id, device_id, key_id)| {
            [user_id.as_str(), device_id.as_str(), key_id].map(Value::from).to_vec()
        });
        let (rows, values) = tx.rows(1, rows.collect());
        let sql = format!(
            "SELECT user_id, device_id, key_id, json FROM one_time_keys \
             WHERE (user_id, device_id, key_id) IN ({rows})"
        );
        for row in tx.query(&sql, values).await? {
            let user_id = streams::user_id(&row, "one_time_keys", "user_id")?;
            found.insert((user_id, device_id(&row)?, row.try_get("", "key_id")?), row.try_get("", "json")?);
        }
    }
    Ok(found)
}

/// Stores one-time keys of devices. None of them is there yet ([`one_time_keys`]); the shards of their users are locked.
///
/// # Errors
/// [`Error::Conflict`] if one is there after all; the database's own.
pub async fn insert_one_time_keys(
    tx: &WriteTx,
    keys: Vec<(OwnedUserId, OwnedDeviceId, NewKey)>,
) -> Result<(), Error> {
    let rows = keys
        .into_iter()
        .map(|(user_id, device_id, key)| {
            let uploaded_at = tx.locked_position(tx.shards().of_user(&user_id));
            vec![
                user_id.as_str().into(),
                device_id.as_str().into(),
                key.key_id.into(),
                key.algorithm.into(),
                uploaded_at.into(),
                key.json.into(),
            ]
        })
        .collect();
    let columns = ["user_id", "device_id", "key_id", "algorithm", "uploaded_at", "json"];
    tx.insert_rows("one_time_keys", &columns, rows, "").await
}

/// Stores fallback keys, one a device and algorithm, in place of the former ones. A key that was there already stays used
/// if it was used.
///
/// # Errors
/// The database's own.
pub async fn put_fallback_keys(
    tx: &WriteTx,
    keys: Vec<(OwnedUserId, OwnedDeviceId, NewKey)>,
) -> Result<(), Error> {
    let newest: BTreeMap<DeviceKey, NewKey> = keys
        .into_iter()
        .map(|(user_id, device_id, key)| ((user_id, device_id, key.algorithm.clone()), key))
        .collect();
    let rows = newest
        .into_iter()
        .map(|((user_id, device_id, algorithm), key)| {
            vec![
                user_id.as_str().into(),
                device_id.as_str().into(),
                algorithm.into(),
                key.key_id.into(),
                key.json.into(),
                false.into(),
            ]
        })
        .collect();
    tx.insert_rows(
        "fallback_keys",
        &["user_id", "device_id", "algorithm", "key_id", "json", "used"],
        rows,
        "ON CONFLICT (user_id, device_id, algorithm) DO UPDATE SET \
         used = (fallback_keys.used AND fallback_keys.key_id = excluded.key_id \
         AND fallback_keys.json = excluded.json), key_id = excluded.key_id, json = excluded.json",
    )
    .await
}

/// Notes that one-time or fallback keys of these users changed, so that their syncs tell the new counts. The shards of the
/// users are locked.
///
/// # Errors
/// The database's own.
pub async fn note_one_time_keys(tx: &WriteTx, users: BTreeSet<OwnedUserId>) -> Result<(), Error> {
    let changes = users.into_iter().map(|user_id| (tx.shards().of_user(&user_id), user_id));
    streams::append_user_changes(tx, changes, UserChange::OneTimeKeys).await
}

/// How many one-time keys of each algorithm devices have left; who has none is left out.
///
/// # Errors
/// The database's own, or a row that cannot be read.
pub async fn one_time_key_counts(
    tx: &ReadTx,
    devices: &[(OwnedUserId, OwnedDeviceId)],
) -> Result<BTreeMap<(OwnedUserId, OwnedDeviceId), BTreeMap<String, u64>>, Error> {
    let mut counts: BTreeMap<_, BTreeMap<String, u64>> = BTreeMap::new();
    for chunk in devices.chunks(tx.rows_a_statement(2)) {
        let rows = chunk.iter().map(|(user, device)| vec![user.as_str().into(), device.as_str().into()]);
        let (rows, values) = tx.rows(1, rows.collect());
        let sql = format!(
            "SELECT user_id, device_id, algorithm, COUNT(*) AS keys FROM one_time_keys \
             WHERE (user_id, device_id) IN ({rows}) GROUP BY user_id, device_id, algorithm"
        );
        for row in tx.query(&sql, values).await? {
            let device = (streams::user_id(&row, "one_time_keys", "user_id")?, device_id(&row)?);
            let count: i64 = row.try_get("", "keys")?;
            let count = count.try_into().unwrap_or_default();
            counts.entry(device).or_default().insert(row.try_get("", "algorithm")?, count);
        }
    }
    Ok(counts)
}

/// The algorithms for which a device has a fallback key that nobody was given yet.
///
/// # Errors
/// The database's own.
pub async fn unused_fallback_keys(
    tx: &ReadTx,
    user_id: &UserId,
    device_id: &DeviceId,
) -> Result<Vec<String>, Error> {
    let rows = tx
        .query(
            "SELECT algorithm FROM fallback_keys \
             WHERE user_id = $1 AND device_id = $2 AND NOT used ORDER BY algorithm",
            [user_id.as_str().into(), device_id.as_str().into()],
        )
        .await?;
    rows.iter().map(|row| Ok(row.try_get("", "algorithm")?)).collect()
}

/// Claims one key of each device: the one-time key that was uploaded first, or else the fallback key. Devices
/// without either are left out. The shards of all users in `wanted` are locked; the caller notes the changes
/// ([`note_one_time_keys`]).
///
/// # Errors
/// The database's own, or a row that cannot be read.
pub async fn claim(tx: &WriteTx, wanted: &BTreeSet<&Wanted>) -> Result<BTreeMap<Wanted, Claimed>, Error> {
    let wanted: Vec<&Wanted> = wanted.iter().copied().collect();
    let mut claimed = BTreeMap::new();
    for chunk in wanted.chunks(tx.rows_a_statement(3)) {
        for row in run(tx, CLAIM_ONE_TIME_KEYS, chunk).await? {
            claimed.extend([read_claimed(&row)?]);
        }
        let unserved: Vec<&Wanted> =
            chunk.iter().copied().filter(|wanted| !claimed.contains_key(*wanted)).collect();
        if !unserved.is_empty() {
            for row in run(tx, CLAIM_FALLBACK_KEYS, &unserved).await? {
                claimed.extend([read_claimed(&row)?]);
            }
        }
    }
    Ok(claimed)
}

fn read_claimed(row: &sea_orm::QueryResult) -> Result<(Wanted, Claimed), Error> {
    let user_id = streams::user_id(row, "one_time_keys", "user_id")?;
    let device_id = device_id(row)?;
    let key = Claimed {
        user_id: user_id.clone(),
        device_id: device_id.clone(),
        key_id: row.try_get("", "key_id")?,
        json: row.try_get("", "json")?,
    };
    Ok((Wanted { user_id, device_id, algorithm: row.try_get("", "algorithm")? }, key))
}

const CLAIM_ONE_TIME_KEYS: &str = "DELETE FROM one_time_keys WHERE (user_id, device_id, key_id) IN ( \
    SELECT w.user_id, w.device_id, ( \
        SELECT o.key_id FROM one_time_keys o \
        WHERE o.user_id = w.user_id AND o.device_id = w.device_id AND o.algorithm = w.algorithm \
        ORDER BY o.uploaded_at, o.key_id LIMIT 1) \
    FROM wanted w) RETURNING user_id, device_id, algorithm, key_id, json";

const CLAIM_FALLBACK_KEYS: &str = "UPDATE fallback_keys SET used = TRUE \
    WHERE (user_id, device_id, algorithm) IN (SELECT user_id, device_id, algorithm FROM wanted) \
    RETURNING user_id, device_id, algorithm, key_id, json";

async fn run(tx: &WriteTx, statement: &str, wanted: &[&Wanted]) -> Result<Vec<sea_orm::QueryResult>, Error> {
    let rows = wanted.iter().map(|wanted| {
        let names = [wanted.user_id.as_str(), wanted.device_id.as_str(), wanted.algorithm.as_str()];
        names.map(Value::from).to_vec()
    });
    let (rows, values) = tx.rows(1, rows.collect());
    let sql = format!("WITH wanted (user_id, device_id, algorithm) AS ({rows}) {statement}");
    tx.query(&sql, values).await
}

fn device_id(row: &sea_orm::QueryResult) -> Result<OwnedDeviceId, Error> {
    let device_id: String = row.try_get("", "device_id")?;
    Ok(device_id.as_str().into())
}
