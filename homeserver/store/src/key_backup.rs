//! Key backup: sealed room keys that a user keeps at the server.
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#server-side-key-backups>

use ruma::{OwnedRoomId, RoomId, UserId};
use sea_orm::{DbBackend, DbErr, QueryResult, Value};

use crate::{Error, ReadTx, WriteTx, streams};

/// A version of a user's key backup.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Version {
    /// Counts up from 1 for each user; the number of a deleted version is not used again.
    pub version: i64,
    /// What the keys are sealed with.
    pub algorithm: String,
    /// The algorithm's data: a JSON object.
    pub auth_data: String,
    /// Changes whenever the stored keys do.
    pub etag: i64,
}

/// A room key in a backup.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct BackedUpKey {
    /// The room.
    pub room_id: OwnedRoomId,
    /// The session whose key it is.
    pub session_id: String,
    /// The first message of the session that the key opens.
    pub first_message_index: i64,
    /// How often the key was forwarded before it came into the backup.
    pub forwarded_count: i64,
    /// Whether the device that stored it had verified the one that gave it.
    pub is_verified: bool,
    /// The whole entry as JSON, sealed data included.
    pub json: String,
}

/// A part of a backup: everything, one room, or one session.
#[derive(Clone, Copy, Debug)]
pub enum Part<'a> {
    /// All keys.
    All,
    /// The keys of a room.
    Room(&'a RoomId),
    /// One session's key.
    Session(&'a RoomId, &'a str),
}

impl BackedUpKey {
    /// Whether this key takes the place of `old`: verified beats not verified; then the lower first message index;
    /// then the lower forwarded count.
    ///
    /// <https://spec.matrix.org/v1.19/client-server-api/#put_matrixclientv3room_keyskeysroomidsessionid>
    pub fn is_better_than(&self, old: &Self) -> bool {
        let rank = |key: &Self| (!key.is_verified, key.first_message_index, key.forwarded_count);
        rank(self) < rank(old)
    }
}

/// The user's newest version, if there is one.
///
/// # Errors
/// The database's own.
pub async fn newest_version(tx: &ReadTx, user_id: &UserId) -> Result<Option<Version>, Error> {
    let sql = format!("{SELECT_VERSION} ORDER BY version DESC LIMIT 1");
    tx.query(&sql, [user_id.as_str().into()]).await?.first().map(read_version).transpose()
}

/// One version of the user's, unless it was deleted.
///
/// # Errors
/// The database's own.
pub async fn version(tx: &ReadTx, user_id: &UserId, version: i64) -> Result<Option<Version>, Error> {
    let sql = format!("{SELECT_VERSION} AND version = $2");
    tx.query(&sql, [user_id.as_str().into(), version.into()]).await?.first().map(read_version).transpose()
}

/// Like [`newest_version`], held until the transaction ends: two uploads to a backup follow one another.
///
/// # Errors
/// The database's own.
pub async fn lock_newest_version(tx: &WriteTx, user_id: &UserId) -> Result<Option<Version>, Error> {
    let lock = if tx.backend() == DbBackend::Postgres { " FOR UPDATE" } else { "" };
    let sql = format!("{SELECT_VERSION} ORDER BY version DESC LIMIT 1{lock}");
    tx.query(&sql, [user_id.as_str().into()]).await?.first().map(read_version).transpose()
}

/// Makes a new version and returns its number.
///
/// # Errors
/// [`Error::Retryable`] if another request made one at the same time; the database's own.
pub async fn create_version(
    tx: &WriteTx,
    user_id: &UserId,
    algorithm: &str,
    auth_data: &str,
) -> Result<i64, Error> {
    let rows = tx
        .query(
            "INSERT INTO backup_versions (user_id, version, algorithm, auth_data, etag, deleted) \
             SELECT $1, COALESCE(MAX(version), 0) + 1, $2, $3, 0, FALSE FROM backup_versions WHERE user_id = $1 \
             RETURNING version",
            [user_id.as_str().into(), algorithm.into(), auth_data.into()],
        )
        .await
        .map_err(|error| match error {
            Error::Conflict(constraint) => Error::Retryable(DbErr::Custom(constraint)),
            error => error,
        })?;
    let row = rows.first().ok_or_else(|| Error::Setup("a key backup version was not inserted".to_owned()))?;
    Ok(row.try_get("", "version")?)
}

/// Replaces the algorithm's data of a version. Returns whether there is such a version.
///
/// # Errors
/// The database's own.
pub async fn update_auth_data(
    tx: &WriteTx,
    user_id: &UserId,
    version: i64,
    auth_data: &str,
) -> Result<bool, Error> {
    let changed = tx
        .execute(
            "UPDATE backup_versions SET auth_data = $3 WHERE user_id = $1 AND version = $2 AND NOT deleted",
            [user_id.as_str().into(), version.into(), auth_data.into()],
        )
        .await?;
    Ok(changed > 0)
}

/// Deletes a version with its keys. Returns whether there was such a version.
///
/// # Errors
/// The database's own.
pub async fn delete_version(tx: &WriteTx, user_id: &UserId, version: i64) -> Result<bool, Error> {
    let changed = tx
        .execute(
            "UPDATE backup_versions SET deleted = TRUE, auth_data = '{}' \
             WHERE user_id = $1 AND version = $2 AND NOT deleted",
            [user_id.as_str().into(), version.into()],
        )
        .await?;
    delete_rows(tx, user_id, version, Part::All).await?;
    Ok(changed > 0)
}

/// Deletes all versions of an account that is closed, with their keys.
///
/// # Errors
/// The database's own.
pub async fn delete_of_user(tx: &WriteTx, user_id: &UserId) -> Result<(), Error> {
    for sql in
        ["DELETE FROM backup_keys WHERE user_id = $1", "DELETE FROM backup_versions WHERE user_id = $1"]
    {
        tx.execute(sql, [user_id.as_str().into()]).await?;
    }
    Ok(())
}

/// Stores keys in a version that is locked ([`lock_newest_version`]), except where a better one is there
/// ([`BackedUpKey::is_better_than`]). Returns the version's new etag, which is the old one if nothing was stored.
///
/// # Errors
/// The database's own, or a row that cannot be read.
pub async fn put_keys(
    tx: &WriteTx,
    user_id: &UserId,
    version: &Version,
    keys: Vec<BackedUpKey>,
) -> Result<i64, Error> {
    // One session is looked for by its key; more, with one statement that reads those of their rooms.
    let mut stored = std::collections::HashMap::new();
    let part = match keys.as_slice() {
        [] => return Ok(version.etag),
        [key] => Part::Session(&key.room_id, &key.session_id),
        [first, rest @ ..] if rest.iter().all(|key| key.room_id == first.room_id) => {
            Part::Room(&first.room_id)
        }
        _ => Part::All,
    };
    for key in self::keys(tx, user_id, version.version, part).await? {
        stored.insert((key.room_id.clone(), key.session_id.clone()), key);
    }
    let mut better = std::collections::BTreeMap::new();
    for key in keys {
        let place = (key.room_id.clone(), key.session_id.clone());
        if stored.get(&place).is_none_or(|old| key.is_better_than(old)) {
            better.insert(place, key);
        }
    }
    if better.is_empty() {
        return Ok(version.etag);
    }
    let rows = better.into_values().map(|key| key_values(user_id, version.version, key)).collect();
    tx.insert_rows(
        "backup_keys",
        &[
            "user_id",
            "version",
            "room_id",
            "session_id",
            "first_message_index",
            "forwarded_count",
            "is_verified",
            "json",
        ],
        rows,
        "ON CONFLICT (user_id, version, room_id, session_id) DO UPDATE SET \
         first_message_index = excluded.first_message_index, forwarded_count = excluded.forwarded_count, \
         is_verified = excluded.is_verified, json = excluded.json",
    )
    .await?;
    advance_etag(tx, user_id, version.version).await
}

/// The keys of a part of a version, by room and session.
///
/// # Errors
/// The database's own, or a row that cannot be read.
pub async fn keys(
    tx: &ReadTx,
    user_id: &UserId,
    version: i64,
    part: Part<'_>,
) -> Result<Vec<BackedUpKey>, Error> {
    let (condition, values) = part_condition(user_id, version, part);
    let sql = format!(
        "SELECT room_id, session_id, first_message_index, forwarded_count, is_verified, json \
         FROM backup_keys WHERE {condition} ORDER BY room_id, session_id"
    );
    tx.query(&sql, values)
        .await?
        .iter()
        .map(|row| {
            Ok(BackedUpKey {
                room_id: streams::room_id(row, "backup_keys")?,
                session_id: row.try_get("", "session_id")?,
                first_message_index: row.try_get("", "first_message_index")?,
                forwarded_count: row.try_get("", "forwarded_count")?,
                is_verified: row.try_get("", "is_verified")?,
                json: row.try_get("", "json")?,
            })
        })
        .collect()
}

/// How many keys a version holds.
///
/// # Errors
/// The database's own.
pub async fn count(tx: &ReadTx, user_id: &UserId, version: i64) -> Result<u64, Error> {
    let (condition, values) = part_condition(user_id, version, Part::All);
    let rows =
        tx.query(&format!("SELECT COUNT(*) AS keys FROM backup_keys WHERE {condition}"), values).await?;
    let count: i64 = rows.first().map(|row| row.try_get("", "keys")).transpose()?.unwrap_or_default();
    Ok(count.try_into().unwrap_or_default())
}

/// Deletes a part of a version's keys. Returns the version's new etag, which is the old one if nothing was there.
///
/// # Errors
/// The database's own.
pub async fn delete_keys(
    tx: &WriteTx,
    user_id: &UserId,
    version: &Version,
    part: Part<'_>,
) -> Result<i64, Error> {
    if delete_rows(tx, user_id, version.version, part).await? == 0 {
        return Ok(version.etag);
    }
    advance_etag(tx, user_id, version.version).await
}

const SELECT_VERSION: &str = "SELECT version, algorithm, auth_data, etag FROM backup_versions \
    WHERE user_id = $1 AND NOT deleted";

fn read_version(row: &QueryResult) -> Result<Version, Error> {
    Ok(Version {
        version: row.try_get("", "version")?,
        algorithm: row.try_get("", "algorithm")?,
        auth_data: row.try_get("", "auth_data")?,
        etag: row.try_get("", "etag")?,
    })
}

fn key_values(user_id: &UserId, version: i64, key: BackedUpKey) -> Vec<Value> {
    vec![
        user_id.as_str().into(),
        version.into(),
        key.room_id.as_str().into(),
        key.session_id.into(),
        key.first_message_index.into(),
        key.forwarded_count.into(),
        key.is_verified.into(),
        key.json.into(),
    ]
}

fn part_condition(user_id: &UserId, version: i64, part: Part<'_>) -> (&'static str, Vec<Value>) {
    let mut values: Vec<Value> = vec![user_id.as_str().into(), version.into()];
    let condition = match part {
        Part::All => "user_id = $1 AND version = $2",
        Part::Room(room_id) => {
            values.push(room_id.as_str().into());
            "user_id = $1 AND version = $2 AND room_id = $3"
        }
        Part::Session(room_id, session_id) => {
            values.extend([room_id.as_str().into(), session_id.into()]);
            "user_id = $1 AND version = $2 AND room_id = $3 AND session_id = $4"
        }
    };
    (condition, values)
}

async fn delete_rows(tx: &WriteTx, user_id: &UserId, version: i64, part: Part<'_>) -> Result<u64, Error> {
    let (condition, values) = part_condition(user_id, version, part);
    tx.execute(&format!("DELETE FROM backup_keys WHERE {condition}"), values).await
}

async fn advance_etag(tx: &WriteTx, user_id: &UserId, version: i64) -> Result<i64, Error> {
    let rows = tx
        .query(
            "UPDATE backup_versions SET etag = etag + 1 WHERE user_id = $1 AND version = $2 RETURNING etag",
            [user_id.as_str().into(), version.into()],
        )
        .await?;
    Ok(rows.first().map(|row| row.try_get("", "etag")).transpose()?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use ruma::{room_id, user_id};

    use super::*;
    use crate::store::tests::store;

    fn key(session: &str, rank: (bool, i64, i64), json: &str) -> BackedUpKey {
        BackedUpKey {
            room_id: room_id!("!r:x").to_owned(),
            session_id: session.to_owned(),
            is_verified: rank.0,
            first_message_index: rank.1,
            forwarded_count: rank.2,
            json: json.to_owned(),
        }
    }

    #[test]
    fn verified_then_earlier_then_less_forwarded_keys_are_better() {
        let old = key("s", (false, 5, 5), "{}");
        for (rank, better) in [
            ((true, 9, 9), true),
            ((false, 4, 9), true),
            ((false, 5, 4), true),
            ((false, 5, 5), false),
            ((false, 5, 6), false),
            ((false, 6, 0), false),
        ] {
            assert_eq!(key("s", rank, "{}").is_better_than(&old), better, "{rank:?}");
        }
        assert!(!key("s", (false, 0, 0), "{}").is_better_than(&key("s", (true, 9, 9), "{}")));
    }

    #[tokio::test]
    async fn a_backup_keeps_the_better_keys_and_counts_its_changes() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder).await;
        let user = user_id!("@a:x");
        let put = |keys: Vec<BackedUpKey>| {
            store.write("test", move |tx| {
                let keys = keys.clone();
                async move {
                    let version = lock_newest_version(&tx, user).await?.unwrap();
                    put_keys(&tx, user, &version, keys).await
                }
            })
        };
        let created =
            store.write("test", |tx| async move { create_version(&tx, user, "m.x", "{}").await }).await;
        assert_eq!(created.unwrap(), 1);
        assert_eq!(put(vec![key("s", (false, 3, 0), "1"), key("t", (false, 0, 0), "2")]).await.unwrap(), 1);
        // Nothing better: nothing changes.
        assert_eq!(put(vec![key("s", (false, 3, 0), "3")]).await.unwrap(), 1);
        assert_eq!(put(vec![key("s", (false, 2, 0), "4")]).await.unwrap(), 2);
        let (of_session, count, etag) = store
            .write("test", |tx| async move {
                let version = lock_newest_version(&tx, user).await?.unwrap();
                let session = Part::Session(room_id!("!r:x"), "s");
                let of_session = keys(&tx, user, 1, session).await?;
                delete_keys(&tx, user, &version, Part::Room(room_id!("!other:x"))).await?;
                let etag = delete_keys(&tx, user, &version, session).await?;
                Ok::<_, Error>((of_session, count(&tx, user, 1).await?, etag))
            })
            .await
            .unwrap();
        assert_eq!(of_session, [key("s", (false, 2, 0), "4")]);
        assert_eq!((count, etag), (1, 3));
    }

    #[tokio::test]
    async fn a_deleted_version_is_gone_and_its_number_is_not_used_again() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder).await;
        let user = user_id!("@a:x");
        let (deleted, again, newest, found) = store
            .write("test", |tx| async move {
                create_version(&tx, user, "m.x", "{}").await?;
                let deleted = delete_version(&tx, user, 1).await?;
                let again = delete_version(&tx, user, 1).await?;
                create_version(&tx, user, "m.y", "{}").await?;
                let newest = newest_version(&tx, user).await?.map(|version| version.version);
                Ok::<_, Error>((deleted, again, newest, version(&tx, user, 1).await?))
            })
            .await
            .unwrap();
        assert!(deleted && !again);
        assert_eq!((newest, found), (Some(2), None));
        let newest = store
            .write("test", |tx| async move {
                delete_of_user(&tx, user).await?;
                newest_version(&tx, user).await
            })
            .await
            .unwrap();
        assert_eq!(newest, None);
    }
}
