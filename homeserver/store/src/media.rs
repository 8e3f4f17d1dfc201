//! Media: what users have uploaded. The bytes are objects outside of the database; here stands which object a medium has.
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#content-repository>

pub mod care;

use ruma::{MilliSecondsSinceUnixEpoch, OwnedUserId, UserId};
use sea_orm::{DbBackend, QueryResult, Value};

use crate::{Error, ReadTx, WriteTx, streams::milliseconds};

/// A medium, or the address that was reserved for one.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Medium {
    /// Who uploaded it, or may.
    pub user_id: OwnedUserId,
    /// When a reserved address lapses, in milliseconds since the epoch; none for what was uploaded at once.
    pub expires_ts: Option<MilliSecondsSinceUnixEpoch>,
    /// What was uploaded; nothing yet at a reserved address.
    pub content: Option<Content>,
    /// Whether it is withheld from everybody.
    pub is_quarantined: bool,
}

/// What was uploaded.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Content {
    /// The name under which the objects of this medium are stored.
    pub object: String,
    /// The media type that the uploader named.
    pub content_type: String,
    /// The file name that the uploader gave.
    pub file_name: Option<String>,
    /// In bytes.
    pub size: u64,
}

/// How a thumbnail was asked for: the key under which it is found again.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ThumbnailSize {
    /// `crop` or `scale`.
    pub method: &'static str,
    /// In pixels.
    pub width: u32,
    /// In pixels.
    pub height: u32,
}

/// A medium by its id.
///
/// # Errors
/// The database's own, or a row that cannot be read.
pub async fn find(tx: &ReadTx, media_id: &str) -> Result<Option<Medium>, Error> {
    let sql = "SELECT user_id, expires_ts, object, content_type, file_name, size, quarantined_ts FROM media \
               WHERE media_id = $1";
    let rows = tx.query(sql, [media_id.into()]).await?;
    rows.first().map(|row| read(row, media_id)).transpose()
}

/// Writes down a medium that was uploaded.
///
/// # Errors
/// The database's own.
pub async fn insert(
    tx: &WriteTx,
    media_id: &str,
    user_id: &UserId,
    now: MilliSecondsSinceUnixEpoch,
    content: &Content,
) -> Result<(), Error> {
    tx.execute(
        "INSERT INTO media (media_id, user_id, created_ts, object, content_type, file_name, size) \
         VALUES ($1, $2, $3, $4, $5, $6, $7)",
        [
            media_id.into(),
            user_id.as_str().into(),
            i64::from(now.0).into(),
            content.object.as_str().into(),
            content.content_type.as_str().into(),
            content.file_name.clone().into(),
            bytes(content.size).into(),
        ],
    )
    .await?;
    Ok(())
}

/// Reserves an address for a medium that its owner will upload until `expires`.
///
/// # Errors
/// The database's own.
pub async fn reserve(
    tx: &WriteTx,
    media_id: &str,
    user_id: &UserId,
    now: MilliSecondsSinceUnixEpoch,
    expires: MilliSecondsSinceUnixEpoch,
) -> Result<(), Error> {
    tx.execute(
        "INSERT INTO media (media_id, user_id, created_ts, expires_ts) VALUES ($1, $2, $3, $4)",
        [media_id.into(), user_id.as_str().into(), i64::from(now.0).into(), i64::from(expires.0).into()],
    )
    .await?;
    Ok(())
}

/// How many addresses a user has reserved that are neither used nor lapsed at `now`.
///
/// # Errors
/// The database's own.
pub async fn count_reserved(
    tx: &ReadTx,
    user_id: &UserId,
    now: MilliSecondsSinceUnixEpoch,
) -> Result<i64, Error> {
    let sql =
        "SELECT COUNT(*) AS reserved FROM media WHERE user_id = $1 AND object IS NULL AND expires_ts > $2";
    let rows = tx.query(sql, [user_id.as_str().into(), i64::from(now.0).into()]).await?;
    Ok(rows.first().map_or(Ok(0), |row| row.try_get("", "reserved"))?)
}

/// Gives a reserved address its content, once. `false` if it has one already, or is gone.
///
/// # Errors
/// The database's own.
pub async fn fill(tx: &WriteTx, media_id: &str, content: &Content) -> Result<bool, Error> {
    let filled = tx
        .execute(
            "UPDATE media SET object = $1, content_type = $2, file_name = $3, size = $4 \
             WHERE media_id = $5 AND object IS NULL",
            [
                content.object.as_str().into(),
                content.content_type.as_str().into(),
                content.file_name.clone().into(),
                bytes(content.size).into(),
                media_id.into(),
            ],
        )
        .await?;
    Ok(filled > 0)
}

/// Forgets addresses that had lapsed by `before` and were never used. Returns how many.
///
/// # Errors
/// The database's own.
pub async fn delete_lapsed(tx: &WriteTx, before: MilliSecondsSinceUnixEpoch) -> Result<u64, Error> {
    let sql = "DELETE FROM media WHERE object IS NULL AND expires_ts < $1";
    tx.execute(sql, [i64::from(before.0).into()]).await
}

/// The thumbnail of a medium of that size, if it was made already.
///
/// # Errors
/// The database's own, or a row that cannot be read.
pub async fn find_thumbnail(
    tx: &ReadTx,
    media_id: &str,
    size: ThumbnailSize,
) -> Result<Option<Content>, Error> {
    let sql = "SELECT object, content_type, size FROM media_thumbnails \
               WHERE media_id = $1 AND method = $2 AND width = $3 AND height = $4";
    let rows = tx.query(sql, thumbnail_key(media_id, size)).await?;
    let content = |row: &QueryResult| {
        Ok(Content {
            object: row.try_get("", "object")?,
            content_type: row.try_get("", "content_type")?,
            file_name: None,
            size: read_size(row.try_get("", "size")?, "media_thumbnails", media_id)?,
        })
    };
    rows.first().map(content).transpose()
}

/// Writes down a thumbnail; whoever came first has made it. `false` if the medium has gone meanwhile.
///
/// # Errors
/// The database's own.
pub async fn insert_thumbnail(
    tx: &WriteTx,
    media_id: &str,
    size: ThumbnailSize,
    content: &Content,
) -> Result<bool, Error> {
    // The medium stays until this is committed; on SQLite the transaction has begun as the only writer.
    let lock = if tx.backend() == DbBackend::Postgres { " FOR SHARE" } else { "" };
    let medium = format!("SELECT 1 AS one FROM media WHERE media_id = $1{lock}");
    if tx.query(&medium, [media_id.into()]).await?.is_empty() {
        return Ok(false);
    }
    let [media_id, method, width, height] = thumbnail_key(media_id, size);
    tx.execute(
        "INSERT INTO media_thumbnails (media_id, method, width, height, object, content_type, size) \
         VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING",
        [
            media_id,
            method,
            width,
            height,
            content.object.as_str().into(),
            content.content_type.as_str().into(),
            bytes(content.size).into(),
        ],
    )
    .await?;
    Ok(true)
}

fn thumbnail_key(media_id: &str, size: ThumbnailSize) -> [Value; 4] {
    [media_id.into(), size.method.into(), i64::from(size.width).into(), i64::from(size.height).into()]
}

fn read(row: &QueryResult, media_id: &str) -> Result<Medium, Error> {
    let user_id: String = row.try_get("", "user_id")?;
    let expires_ts: Option<i64> = row.try_get("", "expires_ts")?;
    let quarantined_ts: Option<i64> = row.try_get("", "quarantined_ts")?;
    Ok(Medium {
        user_id: UserId::parse(user_id)
            .map_err(|error| Error::corrupt("media", "user_id", media_id, error))?,
        expires_ts: expires_ts.map(milliseconds),
        content: content(row, media_id)?,
        is_quarantined: quarantined_ts.is_some(),
    })
}

fn content(row: &QueryResult, media_id: &str) -> Result<Option<Content>, Error> {
    let Some(object) = row.try_get("", "object")? else { return Ok(None) };
    Ok(Some(Content {
        object,
        content_type: row.try_get("", "content_type")?,
        file_name: row.try_get("", "file_name")?,
        size: read_size(row.try_get("", "size")?, "media", media_id)?,
    }))
}

fn read_size(size: i64, table: &'static str, media_id: &str) -> Result<u64, Error> {
    u64::try_from(size).map_err(|error| Error::corrupt(table, "size", media_id, error))
}

/// Databases count in signed numbers, and no disk holds what those cannot count.
fn bytes(size: u64) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}

/// The objects of the newest media, at most `limit`.
///
/// # Errors
/// The database's own.
pub async fn newest_objects(tx: &ReadTx, limit: u32) -> Result<Vec<String>, Error> {
    let sql = format!(
        "SELECT object FROM media WHERE object IS NOT NULL ORDER BY created_ts DESC, media_id DESC LIMIT {limit}"
    );
    tx.query(&sql, []).await?.iter().map(|row| Ok(row.try_get("", "object")?)).collect()
}

#[cfg(test)]
mod tests {
    use ruma::{UInt, user_id};

    use super::*;
    use crate::store::tests::store;

    fn at(ms: u32) -> MilliSecondsSinceUnixEpoch {
        MilliSecondsSinceUnixEpoch(UInt::from(ms))
    }

    fn content(object: &str) -> Content {
        Content {
            object: object.to_owned(),
            content_type: "text/plain".to_owned(),
            file_name: Some("ä.txt".to_owned()),
            size: 5_000_000_000,
        }
    }

    #[tokio::test]
    async fn a_reserved_address_is_filled_once_and_lapses_only_while_it_is_empty() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder).await;
        let a = user_id!("@a:x");
        store
            .write("test", |tx| async move {
                reserve(&tx, "one", a, at(1), at(10)).await?;
                reserve(&tx, "two", a, at(1), at(10)).await?;
                insert(&tx, "three", a, at(1), &content("o3")).await?;
                assert_eq!(count_reserved(&tx, a, at(9)).await?, 2);
                assert_eq!(count_reserved(&tx, a, at(10)).await?, 0);
                assert_eq!(find(&tx, "one").await?.unwrap().content, None);

                assert!(fill(&tx, "one", &content("o1")).await?);
                assert!(!fill(&tx, "one", &content("another")).await?);
                assert!(!fill(&tx, "three", &content("another")).await?);
                assert!(!fill(&tx, "nowhere", &content("o")).await?);
                assert_eq!(count_reserved(&tx, a, at(9)).await?, 1);

                assert_eq!(delete_lapsed(&tx, at(11)).await?, 1);
                let one = find(&tx, "one").await?.unwrap();
                assert_eq!((one.content, one.expires_ts), (Some(content("o1")), Some(at(10))));
                assert_eq!(find(&tx, "two").await?, None);
                assert_eq!(find(&tx, "three").await?.unwrap().content, Some(content("o3")));
                Ok::<_, Error>(())
            })
            .await
            .unwrap();
    }

    #[tokio::test]
    async fn a_thumbnail_is_found_by_its_size_and_the_first_one_stays() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder).await;
        let size = ThumbnailSize { method: "crop", width: 96, height: 96 };
        store
            .write("test", |tx| async move {
                let thumbnail = Content { file_name: None, ..content("t1") };
                insert(&tx, "one", user_id!("@a:x"), at(1), &content("o")).await?;
                insert_thumbnail(&tx, "one", size, &thumbnail).await?;
                insert_thumbnail(&tx, "one", size, &content("t2")).await?;
                assert_eq!(find_thumbnail(&tx, "one", size).await?, Some(thumbnail));
                let other = ThumbnailSize { method: "scale", ..size };
                assert_eq!(find_thumbnail(&tx, "one", other).await?, None);
                assert_eq!(find_thumbnail(&tx, "two", size).await?, None);
                Ok::<_, Error>(())
            })
            .await
            .unwrap();
    }
}
