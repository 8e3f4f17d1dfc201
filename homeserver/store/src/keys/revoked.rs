//! Key sets of KeyBoxes that were revoked, by their hashes.

use ruma::{DeviceId, MilliSecondsSinceUnixEpoch, UserId};

use crate::{Error, ReadTx, WriteTx};

/// Notes that a KeyBox with this key set was revoked. The user's shard is locked.
///
/// # Errors
/// The database's own.
pub async fn note_revoked_key_set(
    tx: &WriteTx,
    user_id: &UserId,
    keybox_id: &DeviceId,
    key_set_id: &str,
    now: MilliSecondsSinceUnixEpoch,
) -> Result<(), Error> {
    tx.execute(
        "INSERT INTO revoked_key_sets (user_id, keybox_id, key_set_id, revoked_ts) VALUES ($1, $2, $3, $4) \
         ON CONFLICT DO NOTHING",
        [user_id.as_str().into(), keybox_id.as_str().into(), key_set_id.into(), i64::from(now.get()).into()],
    )
    .await?;
    Ok(())
}

/// Whether a KeyBox with this key set was revoked.
///
/// # Errors
/// The database's own.
pub async fn is_revoked_key_set(
    tx: &ReadTx,
    user_id: &UserId,
    keybox_id: &DeviceId,
    key_set_id: &str,
) -> Result<bool, Error> {
    let sql = "SELECT 1 FROM revoked_key_sets WHERE user_id = $1 AND keybox_id = $2 AND key_set_id = $3";
    let rows = tx.query(sql, [user_id.as_str().into(), keybox_id.as_str().into(), key_set_id.into()]).await?;
    Ok(!rows.is_empty())
}

/// Forgets the revoked key sets of an account that is closed: nobody logs in to it again.
///
/// # Errors
/// The database's own.
pub async fn forget_revoked_key_sets(tx: &WriteTx, user_id: &UserId) -> Result<(), Error> {
    tx.execute("DELETE FROM revoked_key_sets WHERE user_id = $1", [user_id.as_str().into()]).await?;
    Ok(())
}
