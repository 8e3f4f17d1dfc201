//! What lets people register: tokens that were given out, and nonces of registrations with the shared secret.

use ruma::MilliSecondsSinceUnixEpoch;
use sea_orm::QueryResult;

use crate::{Error, ReadTx, WriteTx, streams::milliseconds};

/// A registration token.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RegistrationToken {
    /// The token itself: people type it.
    pub token: String,
    /// How many accounts it may make; none for any number.
    pub uses_allowed: Option<u32>,
    /// How many it has made.
    pub uses: u32,
    /// When it stops being valid.
    pub expires_ts: Option<MilliSecondsSinceUnixEpoch>,
}

impl RegistrationToken {
    /// Whether it can make an account at this time.
    #[must_use]
    pub fn is_valid(&self, now: MilliSecondsSinceUnixEpoch) -> bool {
        self.uses_allowed.is_none_or(|allowed| self.uses < allowed)
            && self.expires_ts.is_none_or(|expiry| now < expiry)
    }
}

/// Makes a token; returns false if there is one of this name.
///
/// # Errors
/// The database's own.
pub async fn insert_token(
    tx: &WriteTx,
    token: &RegistrationToken,
    now: MilliSecondsSinceUnixEpoch,
) -> Result<bool, Error> {
    let inserted = tx
        .execute(
            "INSERT INTO registration_tokens (token, uses_allowed, uses, expires_ts, created_ts) \
             VALUES ($1, $2, $3, $4, $5) ON CONFLICT (token) DO NOTHING",
            [
                token.token.as_str().into(),
                token.uses_allowed.map(i64::from).into(),
                i64::from(token.uses).into(),
                token.expires_ts.map(|at| i64::from(at.get())).into(),
                i64::from(now.get()).into(),
            ],
        )
        .await?;
    Ok(inserted > 0)
}

/// All tokens, the newest first.
///
/// # Errors
/// The database's own.
pub async fn tokens(tx: &ReadTx) -> Result<Vec<RegistrationToken>, Error> {
    let sql = "SELECT token, uses_allowed, uses, expires_ts FROM registration_tokens \
        ORDER BY created_ts DESC, token";
    tx.query(sql, []).await?.iter().map(from_row).collect()
}

/// One token.
///
/// # Errors
/// The database's own.
pub async fn find_token(tx: &ReadTx, token: &str) -> Result<Option<RegistrationToken>, Error> {
    let sql = "SELECT token, uses_allowed, uses, expires_ts FROM registration_tokens WHERE token = $1";
    tx.query(sql, [token.into()]).await?.first().map(from_row).transpose()
}

/// Uses a token once; returns false, and changes nothing, if it is not valid any more.
///
/// # Errors
/// The database's own.
pub async fn use_token(tx: &WriteTx, token: &str, now: MilliSecondsSinceUnixEpoch) -> Result<bool, Error> {
    let sql = "UPDATE registration_tokens SET uses = uses + 1 WHERE token = $1 \
        AND (uses_allowed IS NULL OR uses < uses_allowed) AND (expires_ts IS NULL OR expires_ts > $2)";
    Ok(tx.execute(sql, [token.into(), i64::from(now.get()).into()]).await? > 0)
}

/// Notes a nonce that was given out, and forgets those that are over.
///
/// # Errors
/// The database's own.
pub async fn insert_nonce(
    tx: &WriteTx,
    nonce: &str,
    now: MilliSecondsSinceUnixEpoch,
    expires_ts: MilliSecondsSinceUnixEpoch,
) -> Result<(), Error> {
    let sql = "DELETE FROM registration_nonces WHERE expires_ts <= $1";
    tx.execute(sql, [i64::from(now.get()).into()]).await?;
    let sql = "INSERT INTO registration_nonces (nonce, expires_ts) VALUES ($1, $2)";
    tx.execute(sql, [nonce.into(), i64::from(expires_ts.get()).into()]).await?;
    Ok(())
}

/// Uses a nonce up; returns whether it was valid.
///
/// # Errors
/// The database's own.
pub async fn take_nonce(tx: &WriteTx, nonce: &str, now: MilliSecondsSinceUnixEpoch) -> Result<bool, Error> {
    let sql = "DELETE FROM registration_nonces WHERE nonce = $1 AND expires_ts > $2";
    Ok(tx.execute(sql, [nonce.into(), i64::from(now.get()).into()]).await? > 0)
}

fn from_row(row: &QueryResult) -> Result<RegistrationToken, Error> {
    let uses_allowed: Option<i64> = row.try_get("", "uses_allowed")?;
    let uses: i64 = row.try_get("", "uses")?;
    let expires_ts: Option<i64> = row.try_get("", "expires_ts")?;
    let number = |uses: i64| u32::try_from(uses).unwrap_or(u32::MAX);
    Ok(RegistrationToken {
        token: row.try_get("", "token")?,
        uses_allowed: uses_allowed.map(number),
        uses: number(uses),
        expires_ts: expires_ts.map(milliseconds),
    })
}

#[cfg(test)]
mod tests {
    use ruma::UInt;

    use super::*;
    use crate::store::tests::store;

    fn at(millis: u64) -> MilliSecondsSinceUnixEpoch {
        MilliSecondsSinceUnixEpoch(UInt::new_saturating(millis))
    }

    #[tokio::test]
    async fn a_token_is_good_for_as_many_uses_and_as_long_as_it_says() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder).await;
        let token = |name: &str, uses_allowed, expires_ts| RegistrationToken {
            token: name.to_owned(),
            uses_allowed,
            uses: 0,
            expires_ts,
        };
        let (once, short) = (&token("once", Some(1), None), &token("short", None, Some(at(10))));
        store
            .write("test", |tx| async move {
                assert!(insert_token(&tx, once, at(1)).await?);
                assert!(!insert_token(&tx, once, at(1)).await?);
                assert!(insert_token(&tx, short, at(2)).await?);
                assert!(use_token(&tx, "once", at(5)).await?);
                assert!(!use_token(&tx, "once", at(5)).await?);
                assert!(!find_token(&tx, "once").await?.unwrap().is_valid(at(5)));
                assert!(find_token(&tx, "short").await?.unwrap().is_valid(at(9)));
                assert!(use_token(&tx, "short", at(9)).await?);
                assert!(!use_token(&tx, "short", at(10)).await?);
                assert!(!use_token(&tx, "none", at(1)).await?);
                let all = tokens(&tx).await?;
                assert_eq!(all.iter().map(|token| &*token.token).collect::<Vec<_>>(), ["short", "once"]);
                Ok::<_, Error>(())
            })
            .await
            .unwrap();
    }

    #[tokio::test]
    async fn a_nonce_is_good_once_and_for_its_time() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder).await;
        store
            .write("test", |tx| async move {
                insert_nonce(&tx, "a", at(0), at(10)).await?;
                insert_nonce(&tx, "b", at(0), at(10)).await?;
                assert!(take_nonce(&tx, "a", at(1)).await?);
                assert!(!take_nonce(&tx, "a", at(1)).await?);
                assert!(!take_nonce(&tx, "b", at(10)).await?);
                Ok::<_, Error>(())
            })
            .await
            .unwrap();
    }
}
