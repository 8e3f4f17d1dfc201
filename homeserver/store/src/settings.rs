//! What belongs to the whole server and is the same for all replicas: its name and its keys.

use crate::{Error, ReadTx, WriteTx};

/// The value of a setting, if it was ever given one.
///
/// # Errors
/// The database's own.
pub async fn find(tx: &ReadTx, name: &str) -> Result<Option<String>, Error> {
    let rows = tx.query("SELECT value FROM server_settings WHERE name = $1", [name.into()]).await?;
    Ok(rows.first().map(|row| row.try_get("", "value")).transpose()?)
}

/// Gives a setting its first value and returns the value that it has now: that of whoever came first.
///
/// # Errors
/// The database's own.
pub async fn find_or_insert(tx: &WriteTx, name: &str, value: &str) -> Result<String, Error> {
    tx.execute(
        "INSERT INTO server_settings (name, value) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING",
        [name.into(), value.into()],
    )
    .await?;
    Ok(find(tx, name).await?.unwrap_or_else(|| value.to_owned()))
}

/// Gives a setting a value, whatever it had before.
///
/// # Errors
/// The database's own.
pub async fn put(tx: &WriteTx, name: &str, value: &str) -> Result<(), Error> {
    tx.execute(
        "INSERT INTO server_settings (name, value) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET value = excluded.value",
        [name.into(), value.into()],
    )
    .await?;
    Ok(())
}
