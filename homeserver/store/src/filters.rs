//! Filters that clients have uploaded.
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#filtering>

use ruma::UserId;

use crate::{Error, ReadTx, WriteTx};

/// Keeps a filter of a user and returns its id; the same filter gets the same id.
///
/// The user's shard must be locked ([`WriteTx::lock_shards`]): that is what makes ids unique.
///
/// # Errors
/// The database's own.
pub async fn insert(tx: &WriteTx, user_id: &UserId, definition: &str) -> Result<i64, Error> {
    let same = "SELECT filter_id FROM filters WHERE user_id = $1 AND definition = $2";
    if let Some(row) = tx.query(same, [user_id.as_str().into(), definition.into()]).await?.first() {
        return Ok(row.try_get("", "filter_id")?);
    }
    let next = "SELECT COALESCE(MAX(filter_id), 0) + 1 AS filter_id FROM filters WHERE user_id = $1";
    let rows = tx.query(next, [user_id.as_str().into()]).await?;
    let filter_id: i64 = rows.first().map_or(Ok(1), |row| row.try_get("", "filter_id"))?;
    tx.execute(
        "INSERT INTO filters (user_id, filter_id, definition) VALUES ($1, $2, $3)",
        [user_id.as_str().into(), filter_id.into(), definition.into()],
    )
    .await?;
    Ok(filter_id)
}

/// The filter of a user with that id, as JSON.
///
/// # Errors
/// The database's own.
pub async fn find(tx: &ReadTx, user_id: &UserId, filter_id: i64) -> Result<Option<String>, Error> {
    let rows = tx
        .query(
            "SELECT definition FROM filters WHERE user_id = $1 AND filter_id = $2",
            [user_id.as_str().into(), filter_id.into()],
        )
        .await?;
    Ok(rows.first().map(|row| row.try_get("", "definition")).transpose()?)
}

#[cfg(test)]
mod tests {
    use ruma::user_id;

    use super::*;
    use crate::store::tests::store;

    #[tokio::test]
    async fn equal_filters_share_an_id_and_users_do_not() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder).await;
        let (a, b) = (user_id!("@a:x"), user_id!("@b:x"));
        let ids = store
            .write("test", |tx| async move {
                let mut ids = Vec::new();
                for (user, definition) in [(a, "{}"), (a, "[]"), (a, "{}"), (b, "[]")] {
                    ids.push(insert(&tx, user, definition).await?);
                }
                Ok::<_, Error>(ids)
            })
            .await
            .unwrap();
        assert_eq!(ids, [1, 2, 1, 1]);
        let found = store
            .read("test", |tx| async move {
                Ok::<_, Error>((find(&tx, a, 2).await?, find(&tx, b, 1).await?, find(&tx, b, 2).await?))
            })
            .await
            .unwrap();
        assert_eq!(found, (Some("[]".to_owned()), Some("[]".to_owned()), None));
    }
}
