//! Passphrases of KeyBoxes' private keys, as sealed texts; only the server's master key opens them.

use ruma::{DeviceId, MilliSecondsSinceUnixEpoch, OwnedDeviceId, OwnedUserId, UserId};
use sea_orm::{QueryResult, Value};

use crate::{Error, ReadTx, WriteTx, streams};

/// What is kept for one KeyBox.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Kept {
    /// The owner.
    pub user_id: OwnedUserId,
    /// The KeyBox.
    pub keybox_id: OwnedDeviceId,
    /// The passphrase, sealed.
    pub sealed: String,
    /// The one before, sealed, if the client has not said yet that it is not needed any more.
    pub previous: Option<String>,
}

/// What is kept for a KeyBox.
///
/// # Errors
/// The database's own.
pub async fn find(tx: &ReadTx, user_id: &UserId, keybox_id: &DeviceId) -> Result<Option<Kept>, Error> {
    let sql = "SELECT user_id, keybox_id, sealed, previous FROM keybox_passphrases \
        WHERE user_id = $1 AND keybox_id = $2";
    let rows = tx.query(sql, [user_id.as_str().into(), keybox_id.as_str().into()]).await?;
    rows.first().map(from_row).transpose()
}

/// The KeyBoxes of a user for which a passphrase is kept.
///
/// # Errors
/// The database's own.
pub async fn keyboxes_of(tx: &ReadTx, user_id: &UserId) -> Result<Vec<OwnedDeviceId>, Error> {
    let sql = "SELECT keybox_id FROM keybox_passphrases WHERE user_id = $1 ORDER BY keybox_id";
    let id = |row: &QueryResult| {
        let id: String = row.try_get("", "keybox_id")?;
        Ok(id.as_str().into())
    };
    tx.query(sql, [user_id.as_str().into()]).await?.iter().map(id).collect()
}

/// Keeps a passphrase in the place of what was there. The user's shard is locked.
///
/// # Errors
/// The database's own.
pub async fn put(tx: &WriteTx, kept: &Kept, now: MilliSecondsSinceUnixEpoch) -> Result<(), Error> {
    tx.execute(
        "INSERT INTO keybox_passphrases (user_id, keybox_id, sealed, previous, stored_ts) VALUES ($1, $2, $3, $4, $5) \
         ON CONFLICT (user_id, keybox_id) DO UPDATE SET \
         sealed = excluded.sealed, previous = excluded.previous, stored_ts = excluded.stored_ts",
        [
            kept.user_id.as_str().into(),
            kept.keybox_id.as_str().into(),
            kept.sealed.as_str().into(),
            Value::from(kept.previous.clone()),
            i64::from(now.0).into(),
        ],
    )
    .await?;
    Ok(())
}

/// Deletes what is kept for a KeyBox; returns whether there was anything.
///
/// # Errors
/// The database's own.
pub async fn delete(tx: &WriteTx, user_id: &UserId, keybox_id: &DeviceId) -> Result<bool, Error> {
    let sql = "DELETE FROM keybox_passphrases WHERE user_id = $1 AND keybox_id = $2";
    Ok(tx.execute(sql, [user_id.as_str().into(), keybox_id.as_str().into()]).await? > 0)
}

/// What is kept for all KeyBoxes after that one, in the order of owner and id, at most `limit`: for sealing all anew.
///
/// # Errors
/// The database's own, or a row that cannot be read.
pub async fn page(tx: &ReadTx, after: (&str, &str), limit: u32) -> Result<Vec<Kept>, Error> {
    let sql = format!(
        "SELECT user_id, keybox_id, sealed, previous FROM keybox_passphrases \
         WHERE user_id > $1 OR (user_id = $1 AND keybox_id > $2) ORDER BY user_id, keybox_id LIMIT {limit}"
    );
    tx.query(&sql, [after.0.into(), after.1.into()]).await?.iter().map(from_row).collect()
}

/// Puts newly sealed texts in the place of `old`, unless these have changed meanwhile.
///
/// # Errors
/// The database's own.
pub async fn reseal(tx: &WriteTx, old: &Kept, sealed: &str, previous: Option<&str>) -> Result<bool, Error> {
    let sql = "UPDATE keybox_passphrases SET sealed = $4, previous = $5 \
        WHERE user_id = $1 AND keybox_id = $2 AND sealed = $3";
    let values = [
        old.user_id.as_str().into(),
        old.keybox_id.as_str().into(),
        old.sealed.as_str().into(),
        sealed.into(),
        Value::from(previous.map(str::to_owned)),
    ];
    Ok(tx.execute(sql, values).await? > 0)
}

fn from_row(row: &QueryResult) -> Result<Kept, Error> {
    let keybox_id: String = row.try_get("", "keybox_id")?;
    Ok(Kept {
        user_id: streams::user_id(row, "keybox_passphrases", "user_id")?,
        keybox_id: keybox_id.as_str().into(),
        sealed: row.try_get("", "sealed")?,
        previous: row.try_get("", "previous")?,
    })
}
