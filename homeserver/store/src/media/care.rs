//! What whoever looks after media needs: how much there is of whose, and getting rid of it.

use ruma::{MilliSecondsSinceUnixEpoch, OwnedUserId, UserId};
use sea_orm::{DbBackend, QueryResult, Value};

use super::{Content, read_size};
use crate::{
    Error, ReadTx, WriteTx,
    streams::{milliseconds, user_id},
};

/// A medium in a list.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Listed {
    /// Its id.
    pub media_id: String,
    /// Who uploaded it.
    pub user_id: OwnedUserId,
    /// When it, or its address, was made.
    pub created_ts: MilliSecondsSinceUnixEpoch,
    /// Since when it is withheld, if it is.
    pub quarantined_ts: Option<MilliSecondsSinceUnixEpoch>,
    /// What was uploaded; nothing yet at a reserved address.
    pub content: Option<Content>,
}

/// Which media are meant.
#[derive(Clone, Copy, Debug, Default)]
pub struct Selection<'a> {
    /// Those of one user; of all if none.
    pub user_id: Option<&'a UserId>,
    /// Those from before this time; of all times if none.
    pub before: Option<MilliSecondsSinceUnixEpoch>,
}

/// How many bytes a user has uploaded that are still there. Thumbnails do not count.
///
/// # Errors
/// The database's own.
pub async fn used_bytes(tx: &ReadTx, user_id: &UserId) -> Result<u64, Error> {
    let sql = "SELECT CAST(COALESCE(SUM(size), 0) AS BIGINT) AS used FROM media WHERE user_id = $1 AND object IS NOT NULL";
    let rows = tx.query(sql, [user_id.as_str().into()]).await?;
    let used = rows.first().map_or(Ok(0), |row| row.try_get("", "used"))?;
    read_size(used, "media", user_id.as_str())
}

/// Keeps everybody else from counting, and adding to, a user's media until the end of the transaction, and the account from being closed.
/// `false` if it is closed, or there is none.
///
/// # Errors
/// The database's own.
pub async fn lock_owner(tx: &WriteTx, user_id: &UserId) -> Result<bool, Error> {
    // On SQLite the transaction has begun as the only writer.
    let lock = if tx.backend() == DbBackend::Postgres { " FOR UPDATE" } else { "" };
    let sql = format!("SELECT 1 AS one FROM users WHERE user_id = $1 AND NOT deactivated{lock}");
    Ok(!tx.query(&sql, [user_id.as_str().into()]).await?.is_empty())
}

/// Media of a selection, the oldest first: up to `limit`, behind the one that is given.
///
/// # Errors
/// The database's own, or a row that cannot be read.
pub async fn list(
    tx: &ReadTx,
    selection: Selection<'_>,
    behind: Option<&Listed>,
    limit: u32,
) -> Result<Vec<Listed>, Error> {
    let (begin, id) =
        behind.map_or((i64::MIN, ""), |listed| (i64::from(listed.created_ts.0), listed.media_id.as_str()));
    let mut values: Vec<Value> = vec![before(selection).into(), begin.into(), id.into()];
    let owner = selection.user_id.map_or("", |user_id| {
        values.push(user_id.as_str().into());
        "AND user_id = $4"
    });
    let sql = format!(
        "SELECT media_id, user_id, created_ts, quarantined_ts, object, content_type, file_name, size FROM media \
         WHERE created_ts < $1 AND (created_ts, media_id) > ($2, $3) {owner} ORDER BY created_ts, media_id LIMIT {limit}"
    );
    tx.query(&sql, values).await?.iter().map(listed).collect()
}

/// How many media a selection has, and how many bytes they have together.
///
/// # Errors
/// The database's own.
pub async fn count(tx: &ReadTx, selection: Selection<'_>) -> Result<(u64, u64), Error> {
    let mut values: Vec<Value> = vec![before(selection).into()];
    let owner = selection.user_id.map_or("", |user_id| {
        values.push(user_id.as_str().into());
        "AND user_id = $2"
    });
    let sql = format!(
        "SELECT COUNT(*) AS media, CAST(COALESCE(SUM(size), 0) AS BIGINT) AS used FROM media \
         WHERE created_ts < $1 {owner}"
    );
    let rows = tx.query(&sql, values).await?;
    let number = |name: &str| rows.first().map_or(Ok(0_i64), |row| row.try_get("", name));
    Ok((read_size(number("media")?, "media", "")?, read_size(number("used")?, "media", "")?))
}

/// Removes media with their thumbnails, so that they cannot be found any more, and returns the names under which their objects are stored.
///
/// # Errors
/// The database's own.
pub async fn remove(tx: &WriteTx, media_ids: &[String]) -> Result<Vec<String>, Error> {
    if media_ids.is_empty() {
        return Ok(Vec::new());
    }
    let ids = || media_ids.iter().map(|id| Value::from(id.as_str()));
    let places: Vec<_> = (1..=media_ids.len()).map(|place| format!("${place}")).collect();
    let places = places.join(", ");
    // The media first: whoever adds a thumbnail has locked the medium.
    let sql = format!("DELETE FROM media WHERE media_id IN ({places}) RETURNING object");
    let removed = tx.query(&sql, ids()).await?;
    tx.execute(&format!("DELETE FROM media_thumbnails WHERE media_id IN ({places})"), ids()).await?;
    let objects: Result<Vec<Option<String>>, _> =
        removed.iter().map(|row| row.try_get("", "object")).collect();
    Ok(objects?.into_iter().flatten().collect())
}

/// Withholds a medium from everybody since a time, or no longer. `false` if there is none.
///
/// # Errors
/// The database's own.
pub async fn set_quarantine(
    tx: &WriteTx,
    media_id: &str,
    since: Option<MilliSecondsSinceUnixEpoch>,
) -> Result<bool, Error> {
    let sql = "UPDATE media SET quarantined_ts = $1 WHERE media_id = $2";
    Ok(tx.execute(sql, [since.map(|since| i64::from(since.0)).into(), media_id.into()]).await? > 0)
}

fn before(selection: Selection<'_>) -> i64 {
    selection.before.map_or(i64::MAX, |before| i64::from(before.0))
}

fn listed(row: &QueryResult) -> Result<Listed, Error> {
    let media_id: String = row.try_get("", "media_id")?;
    let quarantined_ts: Option<i64> = row.try_get("", "quarantined_ts")?;
    Ok(Listed {
        user_id: user_id(row, "media", "user_id")?,
        created_ts: milliseconds(row.try_get("", "created_ts")?),
        quarantined_ts: quarantined_ts.map(milliseconds),
        content: super::content(row, &media_id)?,
        media_id,
    })
}

#[cfg(test)]
mod tests {
    use ruma::{UInt, user_id};

    use super::*;
    use crate::{
        media::{ThumbnailSize, find, find_thumbnail, insert, insert_thumbnail, reserve},
        store::tests::store,
        users::{self, User},
    };

    fn at(ms: u32) -> MilliSecondsSinceUnixEpoch {
        MilliSecondsSinceUnixEpoch(UInt::from(ms))
    }

    fn content(object: &str, size: u64) -> Content {
        Content { object: object.to_owned(), content_type: "text/plain".to_owned(), file_name: None, size }
    }

    #[tokio::test]
    async fn media_are_counted_listed_withheld_and_removed() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder).await;
        let (a, b) = (user_id!("@a:x"), user_id!("@b:x"));
        store
            .write("test", |tx| async move {
                assert_eq!(used_bytes(&tx, a).await?, 0);
                insert(&tx, "one", a, at(1), &content("o1", 5_000_000_000)).await?;
                insert(&tx, "two", a, at(2), &content("o2", 7)).await?;
                reserve(&tx, "three", a, at(2), at(9)).await?;
                insert(&tx, "four", b, at(3), &content("o4", 1)).await?;
                assert_eq!((used_bytes(&tx, a).await?, used_bytes(&tx, b).await?), (5_000_000_007, 1));

                let of_a = Selection { user_id: Some(a), before: None };
                let all = list(&tx, of_a, None, 9).await?;
                let ids = |list: &[Listed]| list.iter().map(|l| l.media_id.clone()).collect::<Vec<_>>();
                assert_eq!(ids(&all), ["one", "three", "two"]);
                assert_eq!(ids(&list(&tx, of_a, all.first(), 1).await?), ["three"]);
                assert_eq!(ids(&list(&tx, of_a, all.last(), 9).await?), Vec::<String>::new());
                let old = Selection { user_id: None, before: Some(at(2)) };
                assert_eq!(ids(&list(&tx, old, None, 9).await?), ["one"]);
                assert_eq!(count(&tx, old).await?, (1, 5_000_000_000));
                assert_eq!(count(&tx, of_a).await?, (3, 5_000_000_007));
                assert_eq!(count(&tx, Selection::default()).await?, (4, 5_000_000_008));

                assert!(set_quarantine(&tx, "two", Some(at(5))).await?);
                assert!(!set_quarantine(&tx, "none", Some(at(5))).await?);
                assert!(find(&tx, "two").await?.unwrap().is_quarantined);
                assert!(set_quarantine(&tx, "two", None).await?);
                assert!(!find(&tx, "two").await?.unwrap().is_quarantined);

                let size = ThumbnailSize { method: "crop", width: 96, height: 96 };
                assert!(insert_thumbnail(&tx, "one", size, &content("crop", 1)).await?);
                let gone = ["one", "three", "none"].map(str::to_owned);
                assert_eq!(remove(&tx, &gone).await?, ["o1"]);
                assert_eq!((find(&tx, "one").await?, find_thumbnail(&tx, "one", size).await?), (None, None));
                assert!(!insert_thumbnail(&tx, "one", size, &content("crop", 1)).await?);
                assert_eq!(find_thumbnail(&tx, "one", size).await?, None);
                assert_eq!(used_bytes(&tx, a).await?, 7);
                assert!(remove(&tx, &[]).await?.is_empty());
                Ok::<_, Error>(())
            })
            .await
            .unwrap();
    }

    #[tokio::test]
    async fn only_an_open_account_can_be_locked() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder).await;
        let a = user_id!("@a:x");
        store
            .write("test", |tx| async move {
                assert!(!lock_owner(&tx, a).await?);
                let user = User {
                    user_id: a.to_owned(),
                    password_hash: None,
                    is_admin: false,
                    deactivated: false,
                    created_ts: at(1),
                };
                users::insert(&tx, &user).await?;
                assert!(lock_owner(&tx, a).await?);
                users::deactivate(&tx, a).await?;
                assert!(!lock_owner(&tx, a).await?);
                Ok::<_, Error>(())
            })
            .await
            .unwrap();
    }
}
