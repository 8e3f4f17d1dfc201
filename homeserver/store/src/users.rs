//! Accounts.

use std::collections::HashSet;

use ruma::{MilliSecondsSinceUnixEpoch, OwnedUserId, UserId};
use sea_orm::QueryResult;

use crate::{
    Error, ReadTx, WriteTx,
    streams::{self, milliseconds},
};

/// An account.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct User {
    /// Its name.
    pub user_id: OwnedUserId,
    /// The hash of its password; none if nobody can log in with one.
    pub password_hash: Option<String>,
    /// Whether it may use the administration endpoints.
    pub is_admin: bool,
    /// Whether it is closed for ever.
    pub deactivated: bool,
    /// When it was made.
    pub created_ts: MilliSecondsSinceUnixEpoch,
}

/// Finds an account.
///
/// # Errors
/// The database's own, or a row that cannot be read.
pub async fn find(tx: &ReadTx, user_id: &UserId) -> Result<Option<User>, Error> {
    let sql =
        "SELECT user_id, password_hash, is_admin, deactivated, created_ts FROM users WHERE user_id = $1";
    tx.query(sql, [user_id.as_str().into()]).await?.first().map(from_row).transpose()
}

/// Makes an account; returns false, and changes nothing, if the name is taken.
///
/// # Errors
/// The database's own.
pub async fn insert(tx: &WriteTx, user: &User) -> Result<bool, Error> {
    let inserted = tx
        .execute(
            "INSERT INTO users (user_id, password_hash, is_admin, deactivated, created_ts) \
             VALUES ($1, $2, $3, $4, $5) ON CONFLICT (user_id) DO NOTHING",
            [
                user.user_id.as_str().into(),
                user.password_hash.clone().into(),
                user.is_admin.into(),
                user.deactivated.into(),
                i64::from(user.created_ts.get()).into(),
            ],
        )
        .await?;
    Ok(inserted > 0)
}

/// Sets the hash of the password; returns whether there is such an account that is not closed.
///
/// # Errors
/// The database's own.
pub async fn set_password(tx: &WriteTx, user_id: &UserId, hash: &str) -> Result<bool, Error> {
    let sql = "UPDATE users SET password_hash = $2 WHERE user_id = $1 AND NOT deactivated";
    Ok(tx.execute(sql, [user_id.as_str().into(), hash.into()]).await? > 0)
}

/// Closes an account for ever. The caller ends its sessions.
///
/// # Errors
/// The database's own.
pub async fn deactivate(tx: &WriteTx, user_id: &UserId) -> Result<(), Error> {
    let sql =
        "UPDATE users SET password_hash = NULL, is_admin = FALSE, deactivated = TRUE WHERE user_id = $1";
    tx.execute(sql, [user_id.as_str().into()]).await?;
    Ok(())
}

/// Notes that a user has asked for erasure.
///
/// # Errors
/// The database's own.
pub async fn erase(tx: &WriteTx, user_id: &UserId) -> Result<(), Error> {
    tx.execute("UPDATE users SET erased = TRUE WHERE user_id = $1", [user_id.as_str().into()]).await?;
    Ok(())
}

/// Those of these users who have asked for erasure.
///
/// # Errors
/// The database's own, or a row that cannot be read.
pub async fn erased(tx: &ReadTx, user_ids: &[&UserId]) -> Result<HashSet<OwnedUserId>, Error> {
    let mut erased = HashSet::new();
    for chunk in user_ids.chunks(tx.rows_a_statement(1)) {
        let (users, values) = tx.any_of(1, chunk.iter().map(|user_id| user_id.as_str()));
        let sql = format!("SELECT user_id FROM users WHERE user_id {users} AND erased = TRUE");
        for row in tx.query(&sql, values).await? {
            erased.insert(streams::user_id(&row, "users", "user_id")?);
        }
    }
    Ok(erased)
}

fn from_row(row: &QueryResult) -> Result<User, Error> {
    Ok(User {
        user_id: streams::user_id(row, "users", "user_id")?,
        password_hash: row.try_get("", "password_hash")?,
        is_admin: row.try_get("", "is_admin")?,
        deactivated: row.try_get("", "deactivated")?,
        created_ts: milliseconds(row.try_get("", "created_ts")?),
    })
}

#[cfg(test)]
mod tests {
    use ruma::{UInt, user_id};

    use super::*;
    use crate::store::tests::store;

    #[tokio::test]
    async fn a_name_is_given_once_even_after_the_account_was_closed() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder).await;
        let alice = User {
            user_id: user_id!("@alice:x").to_owned(),
            password_hash: Some("h".to_owned()),
            is_admin: true,
            deactivated: false,
            created_ts: MilliSecondsSinceUnixEpoch(UInt::new_saturating(5)),
        };
        let (alice, id) = (&alice, &*alice.user_id);
        store
            .write("test", |tx| async move {
                assert!(insert(&tx, alice).await?);
                assert!(!insert(&tx, &User { is_admin: false, ..alice.clone() }).await?);
                assert_eq!(find(&tx, id).await?.as_ref(), Some(alice));
                assert!(set_password(&tx, id, "h2").await?);
                deactivate(&tx, id).await?;
                assert!(!set_password(&tx, id, "h3").await?);
                assert!(!insert(&tx, alice).await?);
                let closed = find(&tx, id).await?.unwrap();
                assert_eq!((closed.deactivated, closed.is_admin, closed.password_hash), (true, false, None));
                assert_eq!(find(&tx, user_id!("@bob:x")).await?, None);
                Ok::<_, Error>(())
            })
            .await
            .unwrap();
    }
}
