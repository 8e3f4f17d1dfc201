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

/// A row as it stands in the table, whatever stands there: one that is damaged must not keep the others from being looked at.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Listed {
    /// The owner's user id, unchecked.
    pub user_id: String,
    /// The KeyBox.
    pub keybox_id: String,
    /// The passphrase, sealed.
    pub sealed: String,
    /// The one before, sealed.
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
/// The database's own.
pub async fn page(tx: &ReadTx, after: (&str, &str), limit: u32) -> Result<Vec<Listed>, Error> {
    let sql = format!(
        "SELECT user_id, keybox_id, sealed, previous FROM keybox_passphrases \
         WHERE user_id > $1 OR (user_id = $1 AND keybox_id > $2) ORDER BY user_id, keybox_id LIMIT {limit}"
    );
    let listed = |row: &QueryResult| {
        Ok(Listed {
            user_id: row.try_get("", "user_id")?,
            keybox_id: row.try_get("", "keybox_id")?,
            sealed: row.try_get("", "sealed")?,
            previous: row.try_get("", "previous")?,
        })
    };
    tx.query(&sql, [after.0.into(), after.1.into()]).await?.iter().map(listed).collect()
}

/// Puts newly sealed texts in the place of `old`; returns whether it did, which it does not if anything but `old` stands
/// there. The user's shard is locked: a client that keeps a new passphrase reads the old one first, to keep it too, and
/// must not put the old seal back.
///
/// # Errors
/// The shard is not locked ([`WriteTx::lock_shards`]); the database's own.
pub async fn reseal(tx: &WriteTx, old: &Kept, sealed: &str, previous: Option<&str>) -> Result<bool, Error> {
    if !tx.is_locked(tx.shards().of_user(&old.user_id)) {
        return Err(Error::Setup("A passphrase was resealed without the lock of its shard".to_owned()));
    }
    let sql = "UPDATE keybox_passphrases SET sealed = $4, previous = $5 \
        WHERE user_id = $1 AND keybox_id = $2 AND sealed = $3 AND COALESCE(previous, '') = $6";
    let values = [
        old.user_id.as_str().into(),
        old.keybox_id.as_str().into(),
        old.sealed.as_str().into(),
        sealed.into(),
        Value::from(previous.map(str::to_owned)),
        old.previous.clone().unwrap_or_default().into(),
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

#[cfg(test)]
mod tests {
    use ruma::{UInt, device_id, user_id};

    use super::*;
    use crate::{Store, store::tests::store};

    fn kept(sealed: &str, previous: Option<&str>) -> Kept {
        Kept {
            user_id: user_id!("@a:x").to_owned(),
            keybox_id: device_id!("BOX").to_owned(),
            sealed: sealed.to_owned(),
            previous: previous.map(str::to_owned),
        }
    }

    async fn keep(store: &Store, kept: &Kept) {
        let now = MilliSecondsSinceUnixEpoch(UInt::MIN);
        store.write("test", |tx| async move { put(&tx, kept, now).await }).await.unwrap();
    }

    async fn found(store: &Store) -> Option<Kept> {
        let place = (user_id!("@a:x"), device_id!("BOX"));
        store.read("test", |tx| async move { find(&tx, place.0, place.1).await }).await.unwrap()
    }

    async fn resealed(store: &Store, old: &Kept, to: &Kept) -> bool {
        store
            .write("test", |tx| async move {
                tx.lock_shards(&[tx.shards().of_user(&old.user_id)]).await?;
                reseal(&tx, old, &to.sealed, to.previous.as_deref()).await
            })
            .await
            .unwrap()
    }

    #[tokio::test]
    async fn resealing_overwrites_nothing_that_a_client_kept_meanwhile() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder).await;
        let (old, anew) = (kept("one:a", None), kept("two:a", None));
        for meanwhile in [kept("one:b", None), kept("one:b", Some("one:a")), kept("one:a", Some("one:0"))] {
            keep(&store, &meanwhile).await;
            assert!(!resealed(&store, &old, &anew).await, "{meanwhile:?}");
            assert_eq!(found(&store).await, Some(meanwhile));
        }
        keep(&store, &old).await;
        assert!(resealed(&store, &old, &anew).await);
        assert_eq!(found(&store).await, Some(anew.clone()));
        let both = kept("two:b", Some("two:a"));
        let before = kept("one:b", Some("one:a"));
        keep(&store, &before).await;
        assert!(resealed(&store, &before, &both).await);
        assert_eq!(found(&store).await, Some(both));
    }

    #[tokio::test]
    async fn nothing_is_resealed_without_the_lock() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder).await;
        let old = &kept("one:a", None);
        keep(&store, old).await;
        let done = store.write("test", |tx| async move { reseal(&tx, old, "two:a", None).await }).await;
        assert!(matches!(done, Err(Error::Setup(_))));
    }
}
