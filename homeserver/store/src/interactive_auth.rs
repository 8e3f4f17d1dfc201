//! User-interactive authentication between its stages.
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#user-interactive-authentication-api>

use ruma::{MilliSecondsSinceUnixEpoch, OwnedUserId, UserId};

use crate::{Error, ReadTx, WriteTx, streams};

/// An authentication that is under way.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct InteractiveAuth {
    /// Its name; only the client knows it.
    pub session_id: String,
    /// Who authenticates; while registering nobody, and then who was made.
    pub user_id: Option<OwnedUserId>,
    /// What for: a session is good for one operation.
    pub operation: String,
    /// The stages that are done.
    pub completed: Vec<String>,
    /// The registration token of the stage of that name.
    pub registration_token: Option<String>,
    /// When it is over.
    pub expires_ts: MilliSecondsSinceUnixEpoch,
}

/// Finds an authentication for this operation that is not over.
///
/// # Errors
/// The database's own, or a row that cannot be read.
pub async fn find(
    tx: &ReadTx,
    session_id: &str,
    operation: &str,
    now: MilliSecondsSinceUnixEpoch,
) -> Result<Option<InteractiveAuth>, Error> {
    let sql = "SELECT user_id, completed, registration_token, expires_ts FROM interactive_auth \
        WHERE session_id = $1 AND operation = $2 AND expires_ts > $3";
    let rows = tx.query(sql, [session_id.into(), operation.into(), i64::from(now.get()).into()]).await?;
    let Some(row) = rows.first() else { return Ok(None) };
    let user_id: Option<String> = row.try_get("", "user_id")?;
    let corrupt = |error| Error::corrupt("interactive_auth", "user_id", session_id, error);
    let completed: String = row.try_get("", "completed")?;
    Ok(Some(InteractiveAuth {
        session_id: session_id.to_owned(),
        user_id: user_id.map(OwnedUserId::try_from).transpose().map_err(corrupt)?,
        operation: operation.to_owned(),
        completed: completed.split_whitespace().map(str::to_owned).collect(),
        registration_token: row.try_get("", "registration_token")?,
        expires_ts: streams::milliseconds(row.try_get("", "expires_ts")?),
    }))
}

/// Writes an authentication down, over what was known of it.
///
/// # Errors
/// The database's own.
pub async fn put(tx: &WriteTx, auth: &InteractiveAuth) -> Result<(), Error> {
    tx.execute(
        "INSERT INTO interactive_auth \
         (session_id, user_id, operation, completed, registration_token, expires_ts) \
         VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (session_id) DO UPDATE SET \
         completed = excluded.completed, registration_token = excluded.registration_token",
        [
            auth.session_id.as_str().into(),
            auth.user_id.as_ref().map(ToString::to_string).into(),
            auth.operation.as_str().into(),
            // Names of stages have no spaces.
            auth.completed.join(" ").into(),
            auth.registration_token.clone().into(),
            i64::from(auth.expires_ts.get()).into(),
        ],
    )
    .await?;
    Ok(())
}

/// Notes whom a registration has made.
///
/// # Errors
/// The database's own.
pub async fn set_registered(tx: &WriteTx, session_id: &str, user_id: &UserId) -> Result<(), Error> {
    let sql = "UPDATE interactive_auth SET user_id = $2 WHERE session_id = $1";
    tx.execute(sql, [session_id.into(), user_id.as_str().into()]).await?;
    Ok(())
}

/// Forgets all authentications that are over.
///
/// # Errors
/// The database's own.
pub async fn delete_over(tx: &WriteTx, now: MilliSecondsSinceUnixEpoch) -> Result<(), Error> {
    let sql = "DELETE FROM interactive_auth WHERE expires_ts <= $1";
    tx.execute(sql, [i64::from(now.get()).into()]).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use ruma::{UInt, user_id};

    use super::*;
    use crate::store::tests::store;

    fn at(millis: u64) -> MilliSecondsSinceUnixEpoch {
        MilliSecondsSinceUnixEpoch(UInt::new_saturating(millis))
    }

    #[tokio::test]
    async fn a_session_is_good_for_its_operation_and_its_time() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder).await;
        let alice = user_id!("@alice:x");
        let auth = InteractiveAuth {
            session_id: "s".to_owned(),
            user_id: Some(alice.to_owned()),
            operation: "delete".to_owned(),
            completed: vec!["m.login.dummy".to_owned()],
            registration_token: None,
            expires_ts: at(10),
        };
        let auth = &auth;
        store
            .write("test", |tx| async move {
                put(&tx, auth).await?;
                delete_over(&tx, at(9)).await?;
                assert_eq!(find(&tx, "s", "delete", at(9)).await?.as_ref(), Some(auth));
                assert_eq!(find(&tx, "s", "delete", at(10)).await?, None);
                assert_eq!(find(&tx, "s", "other", at(9)).await?, None);
                delete_over(&tx, at(10)).await?;
                assert_eq!(find(&tx, "s", "delete", at(9)).await?, None);
                Ok::<_, Error>(())
            })
            .await
            .unwrap();
    }
}
