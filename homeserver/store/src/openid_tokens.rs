//! OpenID tokens: with one a user proves to somebody else who they are. Kept as hashes.
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#openid>

use ruma::{MilliSecondsSinceUnixEpoch, OwnedUserId, UserId};

use crate::{Error, ReadTx, WriteTx, streams};

/// Writes down a token that has been made for a user.
///
/// # Errors
/// The database's own.
pub async fn insert(
    tx: &WriteTx,
    token_hash: &str,
    user_id: &UserId,
    expires_ts: MilliSecondsSinceUnixEpoch,
) -> Result<(), Error> {
    tx.execute(
        "INSERT INTO openid_tokens (token_hash, user_id, expires_ts) VALUES ($1, $2, $3)",
        [token_hash.into(), user_id.as_str().into(), i64::from(expires_ts.get()).into()],
    )
    .await?;
    Ok(())
}

/// Whose token it is, if it has not expired and the account is not closed.
///
/// # Errors
/// The database's own, or a row that cannot be read.
pub async fn find(
    tx: &ReadTx,
    token_hash: &str,
    now: MilliSecondsSinceUnixEpoch,
) -> Result<Option<OwnedUserId>, Error> {
    let rows = tx
        .query(
            "SELECT t.user_id FROM openid_tokens t JOIN users u ON u.user_id = t.user_id \
             WHERE t.token_hash = $1 AND t.expires_ts > $2 AND NOT u.deactivated",
            [token_hash.into(), i64::from(now.get()).into()],
        )
        .await?;
    rows.first().map(|row| streams::user_id(row, "openid_tokens", "user_id")).transpose()
}

/// Forgets the tokens that have expired.
///
/// # Errors
/// The database's own.
pub async fn delete_expired(tx: &WriteTx, now: MilliSecondsSinceUnixEpoch) -> Result<u64, Error> {
    tx.execute("DELETE FROM openid_tokens WHERE expires_ts <= $1", [i64::from(now.get()).into()]).await
}

#[cfg(test)]
mod tests {
    use ruma::{UInt, user_id};

    use super::*;
    use crate::{
        store::tests::store,
        users::{self, User},
    };

    #[tokio::test]
    async fn a_token_holds_until_it_expires_or_the_account_is_closed() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder).await;
        let at = |ms: u32| MilliSecondsSinceUnixEpoch(UInt::from(ms));
        let alice = user_id!("@alice:x");
        store
            .write("test", |tx| async move {
                let user = User {
                    user_id: alice.to_owned(),
                    password_hash: None,
                    is_admin: false,
                    deactivated: false,
                    created_ts: at(1),
                };
                users::insert(&tx, &user).await?;
                insert(&tx, "h", alice, at(5)).await?;
                insert(&tx, "late", alice, at(9)).await?;
                assert_eq!(find(&tx, "h", at(4)).await?.as_deref(), Some(alice));
                assert_eq!(find(&tx, "h", at(5)).await?, None);
                assert_eq!(find(&tx, "other", at(4)).await?, None);
                assert_eq!(delete_expired(&tx, at(5)).await?, 1);
                assert_eq!(find(&tx, "h", at(4)).await?, None);
                assert_eq!(find(&tx, "late", at(4)).await?.as_deref(), Some(alice));
                users::deactivate(&tx, alice).await?;
                assert_eq!(find(&tx, "late", at(4)).await?, None);
                Ok::<_, Error>(())
            })
            .await
            .unwrap();
    }
}
