//! Sessions: access tokens and the refresh tokens that renew them. Only hashes of tokens come here.
//!
//! A refresh gives a new pair of tokens. The old pair holds until the new one is first used, because the answer may be
//! lost on its way: <https://spec.matrix.org/v1.19/client-server-api/#refreshing-access-tokens>.

use std::collections::HashMap;

use ruma::{DeviceId, MilliSecondsSinceUnixEpoch, OwnedDeviceId, OwnedUserId, UserId};
use sea_orm::{QueryResult, Value};

use crate::{
    Error, ReadTx, WriteTx,
    devices::{self, Device},
    streams::{self, UserChange, milliseconds},
    tx::Insert,
};

/// What an access token stands for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct StoredSession {
    /// The user.
    pub user_id: OwnedUserId,
    /// The device.
    pub device_id: OwnedDeviceId,
    /// Whether the user is an administrator.
    pub is_admin: bool,
    /// When the token stops being valid.
    pub expires_ts: Option<MilliSecondsSinceUnixEpoch>,
    /// When the device was last seen, to within some minutes.
    pub last_seen_ts: MilliSecondsSinceUnixEpoch,
    /// Whether the token came from a refresh and is used for the first time: [`confirm`] it.
    pub unconfirmed: bool,
}

/// A new pair of tokens, as hashes.
#[derive(Clone, Debug)]
pub struct NewTokens {
    /// The hash of the access token.
    pub access_hash: String,
    /// When the access token stops being valid.
    pub expires_ts: Option<MilliSecondsSinceUnixEpoch>,
    /// The hash of the refresh token, if the client wants one.
    pub refresh_hash: Option<String>,
}

/// A session that begins.
#[derive(Clone, Debug)]
pub struct NewSession {
    /// The user.
    pub user_id: OwnedUserId,
    /// The device, which may be there already.
    pub device: Device,
    /// What it is known by.
    pub tokens: NewTokens,
}

/// Finds what access tokens stand for, by their hashes. Sessions of closed accounts are not found.
///
/// # Errors
/// The database's own, or a row that cannot be read.
pub async fn find(tx: &ReadTx, hashes: &[String]) -> Result<HashMap<String, StoredSession>, Error> {
    let mut found = HashMap::with_capacity(hashes.len());
    for chunk in hashes.chunks(tx.rows_a_statement(1)) {
        let (hashes, values) = tx.any_of(1, chunk.iter().map(String::as_str));
        let sql = format!(
            "SELECT t.token_hash, t.user_id, t.device_id, t.expires_ts, t.replaces, u.is_admin, d.last_seen_ts \
             FROM access_tokens t JOIN users u ON u.user_id = t.user_id \
             JOIN devices d ON d.user_id = t.user_id AND d.device_id = t.device_id \
             WHERE t.token_hash {hashes} AND NOT u.deactivated"
        );
        for row in tx.query(&sql, values).await? {
            found.insert(row.try_get("", "token_hash")?, stored(&row)?);
        }
    }
    Ok(found)
}

fn stored(row: &QueryResult) -> Result<StoredSession, Error> {
    let device_id: String = row.try_get("", "device_id")?;
    let replaces: Option<String> = row.try_get("", "replaces")?;
    let expires_ts: Option<i64> = row.try_get("", "expires_ts")?;
    Ok(StoredSession {
        user_id: streams::user_id(row, "access_tokens", "user_id")?,
        device_id: device_id.as_str().into(),
        is_admin: row.try_get("", "is_admin")?,
        expires_ts: expires_ts.map(milliseconds),
        last_seen_ts: milliseconds(row.try_get("", "last_seen_ts")?),
        unconfirmed: replaces.is_some(),
    })
}

/// Ends the sessions that devices have, if any, for others to begin ([`begin`], which tells the caches).
///
/// # Errors
/// The database's own.
pub async fn end(tx: &WriteTx, devices: &[(&UserId, &DeviceId)]) -> Result<(), Error> {
    for table in ["access_tokens", "refresh_tokens"] {
        for chunk in devices.chunks(tx.rows_a_statement(2)) {
            let rows = chunk.iter().map(|(user, device)| vec![user.as_str().into(), device.as_str().into()]);
            let (rows, values) = tx.rows(1, rows.collect());
            tx.execute(&format!("DELETE FROM {table} WHERE (user_id, device_id) IN ({rows})"), values)
                .await?;
        }
    }
    Ok(())
}

/// Begins sessions on devices that have none, each on another, and makes the devices that are not there: one that is keeps its name and
/// is seen anew. The users' own shards are locked.
///
/// # Errors
/// A shard is not locked ([`WriteTx::lock_shards`]); the database's own.
pub async fn begin(tx: &WriteTx, sessions: &[NewSession]) -> Result<(), Error> {
    let (mut access, mut refresh) = (Vec::new(), Vec::new());
    for NewSession { user_id, device, tokens } in sessions {
        let (access_row, refresh_row) = token_rows(user_id, &device.device_id, tokens, None);
        access.push(access_row);
        refresh.extend(refresh_row);
    }
    let changes =
        sessions.iter().map(|session| (tx.shards().of_user(&session.user_id), session.user_id.clone()));
    let void_caches = streams::insert_user_changes(tx, changes, UserChange::Sessions)?;
    let devices = devices::upsert(sessions.iter().map(|session| (&*session.user_id, &session.device)));
    let [access, refresh] = insert_tokens(access, refresh);
    tx.insert_together(vec![devices, access, refresh, void_caches]).await?;
    Ok(())
}

/// The user whose session a refresh token renews.
///
/// # Errors
/// The database's own, or a row that cannot be read.
pub async fn user_of_refresh_token(tx: &ReadTx, refresh_hash: &str) -> Result<Option<OwnedUserId>, Error> {
    let sql = "SELECT user_id FROM refresh_tokens WHERE token_hash = $1";
    let rows = tx.query(sql, [refresh_hash.into()]).await?;
    rows.first().map(|row| streams::user_id(row, "refresh_tokens", "user_id")).transpose()
}

/// Renews a session: the old refresh token is good until one of the new tokens is used. Returns false if the old one is not known. The
/// user's own shard is locked.
///
/// # Errors
/// The shard is not locked ([`WriteTx::lock_shards`]); the database's own.
pub async fn refresh(
    tx: &WriteTx,
    user_id: &UserId,
    refresh_hash: &str,
    new: &NewTokens,
) -> Result<bool, Error> {
    let sql = "SELECT device_id, replaces FROM refresh_tokens WHERE token_hash = $1 AND user_id = $2";
    let rows = tx.query(sql, [refresh_hash.into(), user_id.as_str().into()]).await?;
    let Some(row) = rows.first() else { return Ok(false) };
    let device_id: String = row.try_get("", "device_id")?;
    let replaces: Option<String> = row.try_get("", "replaces")?;
    if let Some(older) = replaces {
        drop_pair(tx, &older).await?;
        let sql = "UPDATE refresh_tokens SET replaces = NULL WHERE token_hash = $1";
        tx.execute(sql, [refresh_hash.into()]).await?;
        let sql = "UPDATE access_tokens SET replaces = NULL WHERE replaces = $1 AND user_id = $2";
        tx.execute(sql, [older.into(), user_id.as_str().into()]).await?;
    }
    // An earlier refresh with the same token whose answer was lost.
    let sql = "SELECT token_hash FROM refresh_tokens WHERE replaces = $1";
    for row in tx.query(sql, [refresh_hash.into()]).await? {
        let lost: String = row.try_get("", "token_hash")?;
        drop_pair(tx, &lost).await?;
    }
    let (access, refresh) = token_rows(user_id, device_id.as_str().into(), new, Some(refresh_hash));
    tx.insert_together(insert_tokens(vec![access], refresh.into_iter().collect()).into()).await?;
    void_caches(tx, user_id).await?;
    Ok(true)
}

/// Notes the first use of an access token that came from a refresh: the old pair of tokens is over. The user's own shard is
/// locked.
///
/// # Errors
/// The shard is not locked ([`WriteTx::lock_shards`]); the database's own.
pub async fn confirm(tx: &WriteTx, user_id: &UserId, access_hash: &str) -> Result<(), Error> {
    let sql = "SELECT replaces FROM access_tokens WHERE token_hash = $1";
    let rows = tx.query(sql, [access_hash.into()]).await?;
    let replaces: Option<String> = rows.first().map(|row| row.try_get("", "replaces")).transpose()?.flatten();
    // Another request was first.
    let Some(older) = replaces else { return Ok(()) };
    drop_pair(tx, &older).await?;
    for sql in [
        "UPDATE access_tokens SET replaces = NULL WHERE token_hash = $1",
        "UPDATE refresh_tokens SET replaces = NULL WHERE access_hash = $1",
    ] {
        tx.execute(sql, [access_hash.into()]).await?;
    }
    void_caches(tx, user_id).await
}

/// Deletes a refresh token and the access token that it came with.
async fn drop_pair(tx: &WriteTx, refresh_hash: &str) -> Result<(), Error> {
    for sql in [
        "DELETE FROM access_tokens WHERE token_hash IN \
            (SELECT access_hash FROM refresh_tokens WHERE token_hash = $1)",
        "DELETE FROM refresh_tokens WHERE token_hash = $1",
    ] {
        tx.execute(sql, [refresh_hash.into()]).await?;
    }
    Ok(())
}

/// The rows of a pair of tokens, the second one only if there is a refresh token.
fn token_rows(
    user_id: &UserId,
    device_id: &DeviceId,
    tokens: &NewTokens,
    replaces: Option<&str>,
) -> (Vec<Value>, Option<Vec<Value>>) {
    let NewTokens { access_hash, expires_ts, refresh_hash } = tokens;
    let row = |hash: &str, more: Value| {
        let (user_id, device_id) = (user_id.as_str().into(), device_id.as_str().into());
        vec![hash.into(), user_id, device_id, more, replaces.map(str::to_owned).into()]
    };
    let access = row(access_hash, expires_ts.map(|at| i64::from(at.get())).into());
    (access, refresh_hash.as_deref().map(|hash| row(hash, access_hash.as_str().into())))
}

fn insert_tokens(access: Vec<Vec<Value>>, refresh: Vec<Vec<Value>>) -> [Insert<'static>; 2] {
    [
        Insert {
            table: "access_tokens",
            columns: &["token_hash", "user_id", "device_id", "expires_ts", "replaces"],
            rows: access,
            suffix: "",
        },
        Insert {
            table: "refresh_tokens",
            columns: &["token_hash", "user_id", "device_id", "access_hash", "replaces"],
            rows: refresh,
            suffix: "",
        },
    ]
}

async fn void_caches(tx: &WriteTx, user_id: &UserId) -> Result<(), Error> {
    streams::append_user_change(tx, tx.shards().of_user(user_id), user_id, UserChange::Sessions).await
}

#[cfg(test)]
mod tests {
    use ruma::{UInt, device_id, user_id};

    use super::*;
    use crate::{
        devices::{self, Device},
        store::tests::store,
        users::{self, User},
    };

    fn alice() -> &'static UserId {
        user_id!("@alice:x")
    }

    fn phone() -> &'static DeviceId {
        device_id!("PHONE")
    }

    fn alices_phone() -> Device {
        Device {
            device_id: phone().to_owned(),
            display_name: Some("phone".to_owned()),
            last_seen_ts: MilliSecondsSinceUnixEpoch(UInt::new_saturating(5)),
            last_seen_ip: "::1".to_owned(),
        }
    }

    async fn alice_with_session(tx: &WriteTx) -> Result<(), Error> {
        tx.lock_shards(&[tx.shards().of_user(alice())]).await?;
        let user = User {
            user_id: alice().to_owned(),
            password_hash: None,
            is_admin: false,
            deactivated: false,
            created_ts: alices_phone().last_seen_ts,
        };
        users::insert(tx, &user).await?;
        begin_alices(tx, pair("a1", "r1")).await
    }

    async fn begin_alices(tx: &WriteTx, tokens: NewTokens) -> Result<(), Error> {
        begin(tx, &[NewSession { user_id: alice().to_owned(), device: alices_phone(), tokens }]).await
    }

    fn pair(access: &str, refresh: &str) -> NewTokens {
        NewTokens { access_hash: access.to_owned(), expires_ts: None, refresh_hash: Some(refresh.to_owned()) }
    }

    async fn known(tx: &ReadTx, tokens: &[&str]) -> Result<Vec<bool>, Error> {
        let hashes: Vec<_> = tokens.iter().map(|token| (*token).to_owned()).collect();
        let found = find(tx, &hashes).await?;
        Ok(tokens.iter().map(|token| found.contains_key(*token)).collect())
    }

    async fn is_unconfirmed(tx: &ReadTx, token: &str) -> Result<bool, Error> {
        Ok(find(tx, &[token.to_owned()]).await?[token].unconfirmed)
    }

    #[tokio::test]
    async fn the_old_pair_holds_until_the_new_one_is_used() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder).await;
        store
            .write("test", |tx| async move {
                alice_with_session(&tx).await?;
                assert!(refresh(&tx, alice(), "r1", &pair("a2", "r2")).await?);
                assert_eq!(known(&tx, &["a1", "a2"]).await?, [true, true]);
                // The answer was lost: the client tries again, and the lost pair is void.
                assert!(refresh(&tx, alice(), "r1", &pair("a3", "r3")).await?);
                assert_eq!(known(&tx, &["a1", "a2", "a3"]).await?, [true, false, true]);
                assert!(!refresh(&tx, alice(), "r2", &pair("x", "y")).await?);
                assert!(is_unconfirmed(&tx, "a3").await?);
                confirm(&tx, alice(), "a3").await?;
                assert_eq!(known(&tx, &["a1", "a3"]).await?, [false, true]);
                assert!(!is_unconfirmed(&tx, "a3").await?);
                assert!(!refresh(&tx, alice(), "r1", &pair("x", "y")).await?);
                // Using the refresh token confirms as well.
                assert!(refresh(&tx, alice(), "r3", &pair("a4", "r4")).await?);
                assert!(refresh(&tx, alice(), "r4", &pair("a5", "r5")).await?);
                assert_eq!(known(&tx, &["a3", "a4", "a5"]).await?, [false, true, true]);
                assert!(!is_unconfirmed(&tx, "a4").await?);
                Ok::<_, Error>(())
            })
            .await
            .unwrap();
    }

    #[tokio::test]
    async fn sessions_end_with_their_device_with_a_new_login_and_with_the_account() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder).await;
        store
            .write("test", |tx| async move {
                alice_with_session(&tx).await?;
                end(&tx, &[(alice(), phone())]).await?;
                begin_alices(&tx, pair("a2", "r2")).await?;
                assert_eq!(known(&tx, &["a1", "a2"]).await?, [false, true]);
                assert_eq!(user_of_refresh_token(&tx, "r1").await?, None);
                assert_eq!(user_of_refresh_token(&tx, "r2").await?.as_deref(), Some(alice()));
                devices::delete(&tx, alice(), &[phone().to_owned()]).await?;
                assert_eq!(known(&tx, &["a2"]).await?, [false]);
                assert!(devices::of_user(&tx, alice()).await?.is_empty());
                alice_with_session(&tx).await?;
                end(&tx, &[(alice(), phone())]).await?;
                begin_alices(&tx, pair("a3", "r3")).await?;
                users::deactivate(&tx, alice()).await?;
                assert_eq!(known(&tx, &["a3"]).await?, [false]);
                Ok::<_, Error>(())
            })
            .await
            .unwrap();
    }
}
