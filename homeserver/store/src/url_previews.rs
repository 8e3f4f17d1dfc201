//! What pages on the web said about themselves when they were last fetched, so that not every reader makes the server fetch them.
//!
//! Pages are known by a hash of their address. A row is kept for as long as clients may still ask for its picture.

use ruma::MilliSecondsSinceUnixEpoch;

use crate::{Error, ReadTx, WriteTx, streams::milliseconds};

/// What came of fetching a page.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct UrlPreview {
    /// When it was fetched.
    pub fetched_ts: MilliSecondsSinceUnixEpoch,
    /// What clients are told, as JSON; none if the page could not be fetched.
    pub preview: Option<String>,
}

/// The row of a page, and the medium that its picture is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Old {
    /// The hash of the page's address.
    pub url_hash: String,
    /// When it was fetched.
    pub fetched_ts: MilliSecondsSinceUnixEpoch,
    /// The picture.
    pub media_id: Option<String>,
}

/// What came of fetching a page the last time.
///
/// # Errors
/// The database's own.
pub async fn newest(tx: &ReadTx, url_hash: &str) -> Result<Option<UrlPreview>, Error> {
    let sql =
        "SELECT fetched_ts, preview FROM url_previews WHERE url_hash = $1 ORDER BY fetched_ts DESC LIMIT 1";
    let rows = tx.query(sql, [url_hash.into()]).await?;
    let Some(row) = rows.first() else { return Ok(None) };
    let fetched_ts = milliseconds(row.try_get("", "fetched_ts")?);
    Ok(Some(UrlPreview { fetched_ts, preview: row.try_get("", "preview")? }))
}

/// Writes down what came of fetching a page. `false` if another replica did so in the same millisecond.
///
/// # Errors
/// The database's own.
pub async fn insert(
    tx: &WriteTx,
    url_hash: &str,
    new: &UrlPreview,
    media_id: Option<&str>,
) -> Result<bool, Error> {
    let sql = "INSERT INTO url_previews (url_hash, fetched_ts, preview, media_id) VALUES ($1, $2, $3, $4) \
               ON CONFLICT DO NOTHING";
    let values =
        [url_hash.into(), i64::from(new.fetched_ts.0).into(), new.preview.clone().into(), media_id.into()];
    Ok(tx.execute(sql, values).await? > 0)
}

/// Up to `limit` pages that were fetched before a time.
///
/// # Errors
/// The database's own.
pub async fn before(tx: &ReadTx, time: MilliSecondsSinceUnixEpoch, limit: u32) -> Result<Vec<Old>, Error> {
    let sql = format!(
        "SELECT url_hash, fetched_ts, media_id FROM url_previews WHERE fetched_ts < $1 ORDER BY fetched_ts LIMIT {limit}"
    );
    let rows = tx.query(&sql, [i64::from(time.0).into()]).await?;
    rows.iter()
        .map(|row| {
            Ok(Old {
                url_hash: row.try_get("", "url_hash")?,
                fetched_ts: milliseconds(row.try_get("", "fetched_ts")?),
                media_id: row.try_get("", "media_id")?,
            })
        })
        .collect()
}

/// Forgets what came of fetching pages then.
///
/// # Errors
/// The database's own.
pub async fn delete(tx: &WriteTx, old: &[Old]) -> Result<(), Error> {
    for Old { url_hash, fetched_ts, .. } in old {
        let sql = "DELETE FROM url_previews WHERE url_hash = $1 AND fetched_ts = $2";
        tx.execute(sql, [url_hash.as_str().into(), i64::from(fetched_ts.0).into()]).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use ruma::UInt;

    use super::*;
    use crate::store::tests::store;

    #[tokio::test]
    async fn the_newest_counts_and_the_old_are_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder).await;
        let at = |ms: u32| MilliSecondsSinceUnixEpoch(UInt::from(ms));
        let preview =
            |ms, text: Option<&str>| UrlPreview { fetched_ts: at(ms), preview: text.map(str::to_owned) };
        store
            .write("test", |tx| async move {
                assert_eq!(newest(&tx, "a").await?, None);
                assert!(insert(&tx, "a", &preview(1, Some("{}")), Some("m")).await?);
                assert!(insert(&tx, "a", &preview(3, None), None).await?);
                assert!(!insert(&tx, "a", &preview(3, Some("late")), None).await?);
                assert!(insert(&tx, "b", &preview(2, None), None).await?);
                assert_eq!(newest(&tx, "a").await?, Some(preview(3, None)));
                let old = before(&tx, at(3), 9).await?;
                assert_eq!(
                    old.iter().map(|old| old.media_id.as_deref()).collect::<Vec<_>>(),
                    [Some("m"), None]
                );
                assert_eq!(before(&tx, at(3), 1).await?.len(), 1);
                delete(&tx, &old).await?;
                assert_eq!((before(&tx, at(9), 9).await?.len(), newest(&tx, "b").await?), (1, None));
                Ok::<_, Error>(())
            })
            .await
            .unwrap();
    }
}
