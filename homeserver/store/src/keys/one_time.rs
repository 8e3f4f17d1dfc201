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

/// Those of a device's one-time keys that have one of these ids, by id.
///
/// # Errors
/// The database's own.
pub async fn one_time_keys(
    tx: &ReadTx,
    user_id: &UserId,
    device_id: &DeviceId,
    key_ids: &[&str],
) -> Result<BTreeMap<String, String>, Error> {
    let mut found = BTreeMap::new();
    for chunk in key_ids.chunks(tx.rows_a_statement(1)) {
        let (wanted, values) = tx.list(3, chunk.iter().copied());
        let sql = format!(
            "SELECT key_id, json FROM one_time_keys WHERE user_id = $1 AND device_id = $2 AND key_id IN ({wanted})"
        );
        let device = [user_id.as_str(), device_id.as_str()].map(Value::from);
        for row in tx.query(&sql, device.into_iter().chain(values)).await? {
            found.insert(row.try_get("", "key_id")?, row.try_get("", "json")?);
        }
    }
    Ok(found)
}

/// Stores one-time keys of a device. None of them is there yet ([`one_time_keys`]); the user's shard is locked.
///
/// # Errors
/// [`Error::Conflict`] if one is there after all; the database's own.
pub async fn insert_one_time_keys(
    tx: &WriteTx,
    user_id: &UserId,
    device_id: &DeviceId,
    keys: Vec<NewKey>,
) -> Result<(), Error> {
    let uploaded_at = tx.locked_position(tx.shards().of_user(user_id));
    let rows = keys
        .into_iter()
        .map(|key| {
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

/// Stores a device's fallback keys, one an algorithm, in place of the former ones. A key that was there already stays used
/// if it was used.
///
/// # Errors
/// The database's own.
pub async fn put_fallback_keys(
    tx: &WriteTx,
    user_id: &UserId,
    device_id: &DeviceId,
    keys: Vec<NewKey>,
) -> Result<(), Error> {
    let by_algorithm: BTreeMap<String, NewKey> =
        keys.into_iter().map(|key| (key.algorithm.clone(), key)).collect();
    let rows = by_algorithm
        .into_values()
        .map(|key| {
            vec![
                user_id.as_str().into(),
                device_id.as_str().into(),
                key.algorithm.into(),
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

/// Notes that a user's one-time or fallback keys changed, so that the user's syncs tell the new counts. The user's
/// shard is locked.
///
/// # Errors
/// The database's own.
pub async fn note_one_time_keys(tx: &WriteTx, user_id: &UserId) -> Result<(), Error> {
    streams::append_user_change(tx, tx.shards().of_user(user_id), user_id, UserChange::OneTimeKeys).await
}

/// How many one-time keys of each algorithm a device has left.
///
/// # Errors
/// The database's own.
pub async fn one_time_key_counts(
    tx: &ReadTx,
    user_id: &UserId,
    device_id: &DeviceId,
) -> Result<BTreeMap<String, u64>, Error> {
    let rows = tx
        .query(
            "SELECT algorithm, COUNT(*) AS keys FROM one_time_keys \
             WHERE user_id = $1 AND device_id = $2 GROUP BY algorithm",
            [user_id.as_str().into(), device_id.as_str().into()],
        )
        .await?;
    rows.iter()
        .map(|row| {
            let count: i64 = row.try_get("", "keys")?;
            Ok((row.try_get("", "algorithm")?, count.try_into().unwrap_or_default()))
        })
        .collect()
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
/// without either are left out. The shards of all users in `wanted` are locked.
///
/// # Errors
/// A shard is not locked; the database's own, or a row that cannot be read.
pub async fn claim(tx: &WriteTx, wanted: &BTreeSet<Wanted>) -> Result<Vec<Claimed>, Error> {
    let wanted: Vec<&Wanted> = wanted.iter().collect();
    let mut claimed = Vec::new();
    for chunk in wanted.chunks(tx.rows_a_statement(3)) {
        let mut served = BTreeSet::new();
        for row in run(tx, CLAIM_ONE_TIME_KEYS, chunk).await? {
            let key = Claimed {
                user_id: streams::user_id(&row, "one_time_keys", "user_id")?,
                device_id: device_id(&row)?,
                key_id: row.try_get("", "key_id")?,
                json: row.try_get("", "json")?,
            };
            let algorithm: String = row.try_get("", "algorithm")?;
            served.insert((key.user_id.clone(), key.device_id.clone(), algorithm));
            claimed.push(key);
        }
        let unserved: Vec<&Wanted> = chunk
            .iter()
            .copied()
            .filter(|wanted| {
                let key = (wanted.user_id.clone(), wanted.device_id.clone(), wanted.algorithm.clone());
                !served.contains(&key)
            })
            .collect();
        if unserved.is_empty() {
            continue;
        }
        for row in run(tx, CLAIM_FALLBACK_KEYS, &unserved).await? {
            claimed.push(Claimed {
                user_id: streams::user_id(&row, "fallback_keys", "user_id")?,
                device_id: device_id(&row)?,
                key_id: row.try_get("", "key_id")?,
                json: row.try_get("", "json")?,
            });
        }
    }
    let changes = claimed.iter().map(|key| (tx.shards().of_user(&key.user_id), key.user_id.clone()));
    streams::append_user_changes(tx, changes, UserChange::OneTimeKeys).await?;
    Ok(claimed)
}

const CLAIM_ONE_TIME_KEYS: &str = "DELETE FROM one_time_keys WHERE (user_id, device_id, key_id) IN ( \
    SELECT w.user_id, w.device_id, ( \
        SELECT o.key_id FROM one_time_keys o \
        WHERE o.user_id = w.user_id AND o.device_id = w.device_id AND o.algorithm = w.algorithm \
        ORDER BY o.uploaded_at, o.key_id LIMIT 1) \
    FROM wanted w) RETURNING user_id, device_id, algorithm, key_id, json";

const CLAIM_FALLBACK_KEYS: &str = "UPDATE fallback_keys SET used = TRUE \
    WHERE (user_id, device_id, algorithm) IN (SELECT user_id, device_id, algorithm FROM wanted) \
    RETURNING user_id, device_id, key_id, json";

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
