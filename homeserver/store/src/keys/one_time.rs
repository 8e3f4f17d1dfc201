//! One-time and fallback keys.
//!
//! Every write of a user's keys holds the user's shard: the change of the counts is noted there, so that the device's
//! next sync tells it to upload more. The lock is also what makes a key be claimed exactly once, by whatever replica.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use ruma::{OwnedDeviceId, OwnedUserId};
use sea_orm::{DbBackend, QueryResult, Value};

use crate::{
    Error, ReadTx, WriteTx,
    streams::{self, UserChange},
    tx::Insert,
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

/// A user's device.
pub type Device = (OwnedUserId, OwnedDeviceId);

/// How many one-time keys of each algorithm a device has left.
pub type Counts = BTreeMap<String, u64>;

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

/// Stores keys of devices, and notes for the syncs of their users that the counts changed. Of the one-time keys none is
/// there yet ([`one_time_keys`]). The fallback keys, one a device and algorithm, take the place of the former ones; one that is
/// there already stays used if it was used. The shards of the users are locked.
///
/// # Errors
/// [`Error::Conflict`] if a one-time key is there after all; the database's own.
pub async fn put_keys(
    tx: &WriteTx,
    one_time_keys: Vec<(Device, NewKey)>,
    fallback_keys: Vec<(Device, NewKey)>,
) -> Result<(), Error> {
    let keys = one_time_keys.iter().chain(&fallback_keys);
    let users: BTreeSet<OwnedUserId> = keys.map(|((user_id, _), _)| user_id.clone()).collect();
    let changes = users.into_iter().map(|user_id| (tx.shards().of_user(&user_id), user_id));
    let expected = one_time_keys.len();
    let inserts = vec![
        Insert {
            table: "fallback_keys",
            columns: &["user_id", "device_id", "algorithm", "key_id", "json", "used"],
            rows: fallback_rows(fallback_keys),
            suffix: "ON CONFLICT (user_id, device_id, algorithm) DO UPDATE SET \
                     used = (fallback_keys.used AND fallback_keys.key_id = excluded.key_id \
                     AND fallback_keys.json = excluded.json), key_id = excluded.key_id, json = excluded.json",
        },
        streams::insert_user_changes(tx, changes, UserChange::OneTimeKeys)?,
        Insert {
            table: "one_time_keys",
            columns: &["user_id", "device_id", "key_id", "algorithm", "uploaded_at", "json"],
            rows: one_time_rows(tx, one_time_keys),
            // An error would stand in PostgreSQL's log, though nothing is wrong.
            suffix: "ON CONFLICT DO NOTHING",
        },
    ];
    let inserted = tx.insert_together(inserts).await?;
    if expected > 0 && usize::try_from(inserted).ok() != Some(expected) {
        return Err(Error::Conflict("one_time_keys".to_owned()));
    }
    Ok(())
}

fn one_time_rows(tx: &WriteTx, keys: Vec<(Device, NewKey)>) -> Vec<Vec<Value>> {
    let row = |((user_id, device_id), key): (Device, NewKey)| {
        let uploaded_at = tx.locked_position(tx.shards().of_user(&user_id));
        vec![
            user_id.as_str().into(),
            device_id.as_str().into(),
            key.key_id.into(),
            key.algorithm.into(),
            uploaded_at.into(),
            key.json.into(),
        ]
    };
    keys.into_iter().map(row).collect()
}

fn fallback_rows(keys: Vec<(Device, NewKey)>) -> Vec<Vec<Value>> {
    // By algorithm, or the statement would touch a row twice.
    let newest: BTreeMap<(Device, String), NewKey> =
        keys.into_iter().map(|(device, key)| ((device, key.algorithm.clone()), key)).collect();
    let row = |(((user_id, device_id), algorithm), key): ((Device, String), NewKey)| {
        vec![
            user_id.as_str().into(),
            device_id.as_str().into(),
            algorithm.into(),
            key.key_id.into(),
            key.json.into(),
            false.into(),
        ]
    };
    newest.into_iter().map(row).collect()
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

/// How many one-time keys of each algorithm devices have left. Devices that there are not are left out.
///
/// # Errors
/// The database's own, or a row that cannot be read.
pub async fn one_time_key_counts(tx: &ReadTx, devices: &[Device]) -> Result<BTreeMap<Device, Counts>, Error> {
    let mut counts: BTreeMap<Device, Counts> = BTreeMap::new();
    for chunk in devices.chunks(tx.rows_a_statement(2)) {
        let (sql, values) = count_one_time_keys(tx, chunk);
        for row in tx.query(&sql, values).await? {
            let of_device = counts.entry(device(&row)?).or_default();
            of_device.extend(one_time_key_count(&row)?);
        }
    }
    Ok(counts)
}

/// The keys that a device has left to be claimed.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct DeviceKeyCounts {
    /// How many one-time keys of each algorithm.
    pub one_time: Counts,
    /// The algorithms for which it has a fallback key that nobody was given yet, in their order.
    pub unused_fallback: BTreeSet<String>,
}

/// The keys that devices have left to be claimed. Devices that there are not are left out.
///
/// # Errors
/// The database's own, or a row that cannot be read.
pub async fn key_counts(tx: &ReadTx, devices: &[Device]) -> Result<HashMap<Device, DeviceKeyCounts>, Error> {
    let mut counts: HashMap<Device, DeviceKeyCounts> = HashMap::new();
    for chunk in devices.chunks(tx.rows_a_statement(2)) {
        let (count, values) = count_one_time_keys(tx, chunk);
        // The same devices, by the same parameters.
        let (wanted, _) = tx.rows(1, device_rows(chunk));
        let sql = format!(
            "{count} UNION ALL SELECT user_id, device_id, algorithm, CAST(NULL AS BIGINT) AS keys FROM fallback_keys \
             WHERE (user_id, device_id) IN ({wanted}) AND NOT used"
        );
        for row in tx.query(&sql, values).await? {
            let of_device = counts.entry(device(&row)?).or_default();
            match one_time_key_count(&row)? {
                Some(count) => of_device.one_time.extend([count]),
                None => of_device.unused_fallback.extend(row.try_get::<Option<String>>("", "algorithm")?),
            }
        }
    }
    Ok(counts)
}

/// What [`one_time_key_counts`] asks. A device without keys has one row, without an algorithm and a number.
fn count_one_time_keys(tx: &ReadTx, devices: &[Device]) -> (String, Vec<Value>) {
    let (rows, values) = tx.rows(1, device_rows(devices));
    let matches = "k.user_id = d.user_id AND k.device_id = d.device_id";
    let wanted = format!("(d.user_id, d.device_id) IN ({rows})");
    let sql = match tx.backend() {
        // Each device by itself: a plan made while there were few keys may else go through all of them.
        DbBackend::Postgres => format!(
            "SELECT d.user_id, d.device_id, k.algorithm, k.keys FROM devices d LEFT JOIN LATERAL \
             (SELECT algorithm, COUNT(*) AS keys FROM one_time_keys k WHERE {matches} GROUP BY algorithm) k ON TRUE \
             WHERE {wanted}"
        ),
        _ => format!(
            "SELECT d.user_id, d.device_id, k.algorithm, NULLIF(COUNT(k.key_id), 0) AS keys FROM devices d \
             LEFT JOIN one_time_keys k ON {matches} \
             WHERE {wanted} GROUP BY d.user_id, d.device_id, k.algorithm"
        ),
    };
    (sql, values)
}

fn device_rows(devices: &[Device]) -> Vec<Vec<Value>> {
    devices.iter().map(|(user, device)| vec![user.as_str().into(), device.as_str().into()]).collect()
}

fn device(row: &QueryResult) -> Result<Device, Error> {
    Ok((streams::user_id(row, "devices", "user_id")?, device_id(row)?))
}

/// An algorithm and its number of one-time keys, if that is what the row is about.
fn one_time_key_count(row: &QueryResult) -> Result<Option<(String, u64)>, Error> {
    let (algorithm, keys): (Option<String>, Option<i64>) =
        (row.try_get("", "algorithm")?, row.try_get("", "keys")?);
    Ok(algorithm.zip(keys).map(|(algorithm, keys)| (algorithm, keys.unsigned_abs())))
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
        for row in run(tx, claim_one_time_keys(tx.backend()), chunk).await? {
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

/// What [`claim`] asks first.
fn claim_one_time_keys(backend: DbBackend) -> &'static str {
    match backend {
        // First which key it is, then that key by all that its index has. A plan for both at once may go through all keys of a device, depending on
        // what PostgreSQL has last seen of the table.
        DbBackend::Postgres => {
            ", oldest AS MATERIALIZED ( \
             SELECT w.user_id, w.device_id, w.algorithm, o.uploaded_at, o.key_id FROM wanted w CROSS JOIN LATERAL ( \
             SELECT o.uploaded_at, o.key_id FROM one_time_keys o \
             WHERE o.user_id = w.user_id AND o.device_id = w.device_id AND o.algorithm = w.algorithm \
             ORDER BY o.uploaded_at, o.key_id LIMIT 1) o) \
             DELETE FROM one_time_keys k USING oldest o WHERE k.user_id = o.user_id AND k.device_id = o.device_id \
             AND k.algorithm = o.algorithm AND k.uploaded_at = o.uploaded_at AND k.key_id = o.key_id \
             RETURNING k.user_id, k.device_id, k.algorithm, k.key_id, k.json"
        }
        _ => {
            "DELETE FROM one_time_keys WHERE (user_id, device_id, key_id) IN ( \
             SELECT w.user_id, w.device_id, ( \
             SELECT o.key_id FROM one_time_keys o \
             WHERE o.user_id = w.user_id AND o.device_id = w.device_id AND o.algorithm = w.algorithm \
             ORDER BY o.uploaded_at, o.key_id LIMIT 1) \
             FROM wanted w) RETURNING user_id, device_id, algorithm, key_id, json"
        }
    }
}

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
