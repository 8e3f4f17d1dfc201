//! Transaction ids of clients: a request that is sent again does nothing again and gets the first answer.
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#transaction-identifiers>

use std::collections::HashMap;

use ruma::{DeviceId, MilliSecondsSinceUnixEpoch, OwnedDeviceId, OwnedUserId, UserId};
use sea_orm::Value;

use crate::{Error, ReadTx, WriteTx};

/// One request of one device. Two requests of different kinds never stand for one another.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct ClientTransaction {
    /// The user.
    pub user_id: OwnedUserId,
    /// The device whose session it is.
    pub device_id: OwnedDeviceId,
    /// What the request does and where: the endpoint's name with the room or event type, for instance.
    pub kind: String,
    /// The id that the client chose.
    pub transaction_id: String,
}

/// What a transaction id has done before, if it has been used.
///
/// # Errors
/// The database's own.
pub async fn find(tx: &ReadTx, key: &ClientTransaction) -> Result<Option<String>, Error> {
    let rows = tx
        .query(
            "SELECT result FROM client_transactions \
             WHERE user_id = $1 AND device_id = $2 AND kind = $3 AND transaction_id = $4",
            key_values(key),
        )
        .await?;
    Ok(rows.first().map(|row| row.try_get("", "result")).transpose()?)
}

/// Those of `keys` that have been used before, with what they did then: one statement for a whole batch.
///
/// # Errors
/// The database's own.
pub async fn find_used(
    tx: &ReadTx,
    keys: &[&ClientTransaction],
) -> Result<HashMap<ClientTransaction, String>, Error> {
    if keys.is_empty() {
        return Ok(HashMap::new());
    }
    let (wanted, values) = tx.rows(1, keys.iter().map(|key| key_values(key).to_vec()).collect());
    // Key by key: a join may be planned as a pass through the whole table, depending on what PostgreSQL has last seen of it.
    let sql = format!(
        "WITH wanted (user_id, device_id, kind, transaction_id) AS ({wanted}) \
         SELECT * FROM (SELECT w.user_id, w.device_id, w.kind, w.transaction_id, \
         (SELECT t.result FROM client_transactions t WHERE t.user_id = w.user_id AND t.device_id = w.device_id \
         AND t.kind = w.kind AND t.transaction_id = w.transaction_id) AS result FROM wanted w) used \
         WHERE result IS NOT NULL"
    );
    let mut used = HashMap::new();
    for row in tx.query(&sql, values).await? {
        let user_id: String = row.try_get("", "user_id")?;
        let device_id: String = row.try_get("", "device_id")?;
        let user_id = UserId::parse(&user_id)
            .map_err(|error| Error::corrupt("client_transactions", "user_id", &user_id, error))?;
        let key = ClientTransaction {
            user_id,
            device_id: device_id.as_str().into(),
            kind: row.try_get("", "kind")?,
            transaction_id: row.try_get("", "transaction_id")?,
        };
        used.insert(key, row.try_get("", "result")?);
    }
    Ok(used)
}

/// Records what a transaction id did, in the transaction that did it.
///
/// # Errors
/// [`Error::Conflict`] if another replica was faster: run the transaction again and find it.
pub async fn insert(
    tx: &WriteTx,
    done: Vec<(ClientTransaction, String)>,
    now: MilliSecondsSinceUnixEpoch,
) -> Result<(), Error> {
    tx.insert_rows("client_transactions", COLUMNS, rows(done, now), "").await
}

pub(crate) const COLUMNS: &[&str] =
    &["user_id", "device_id", "kind", "transaction_id", "result", "created_ts"];

/// The rows of transaction ids and of what they did.
pub(crate) fn rows(
    done: Vec<(ClientTransaction, String)>,
    now: MilliSecondsSinceUnixEpoch,
) -> Vec<Vec<Value>> {
    let now = Value::from(i64::from(now.0));
    done.into_iter()
        .map(|(key, result)| key_values(&key).into_iter().chain([result.into(), now.clone()]).collect())
        .collect()
}

/// Forgets the transaction ids that are older than `before`; returns how many.
///
/// # Errors
/// The database's own.
pub async fn delete_before(tx: &WriteTx, before: MilliSecondsSinceUnixEpoch) -> Result<u64, Error> {
    tx.execute("DELETE FROM client_transactions WHERE created_ts < $1", [i64::from(before.0).into()]).await
}

/// Forgets a device's transaction ids, with the device.
///
/// # Errors
/// The database's own.
pub async fn delete_of_device(tx: &WriteTx, user_id: &UserId, device_id: &DeviceId) -> Result<u64, Error> {
    tx.execute(
        "DELETE FROM client_transactions WHERE user_id = $1 AND device_id = $2",
        [user_id.as_str().into(), device_id.as_str().into()],
    )
    .await
}

pub(crate) fn key_values(key: &ClientTransaction) -> [Value; 4] {
    [
        key.user_id.as_str().into(),
        key.device_id.as_str().into(),
        key.kind.as_str().into(),
        key.transaction_id.as_str().into(),
    ]
}
