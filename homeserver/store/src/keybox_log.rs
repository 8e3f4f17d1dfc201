//! The log of each user's KeyBoxes, kept by the server: append-only, in a hash chain.
//!
//! An entry is written in the transaction that does what it tells. The lock of the user's shard makes one chain of what
//! several replicas append.

use std::collections::BTreeMap;

use keystead_core::keybox::{
    audit_log::{Head, LogEvent},
    base64, sha256,
};
use ruma::{MilliSecondsSinceUnixEpoch, OwnedUserId, UserId};
use sea_orm::{DbBackend, QueryResult, Value};

use crate::{Error, ReadTx, WriteTx};

/// Something to be written into a user's log.
#[derive(Clone, Debug)]
pub struct NewEntry {
    /// Whose log.
    pub user_id: OwnedUserId,
    /// What happened.
    pub event: LogEvent,
}

/// Which entries are wanted. The default is all.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Only those after this number.
    pub after: u64,
    /// Only those about a resource key of this room.
    pub room_id: Option<String>,
    /// Only those that name this KeyBox, at either end.
    pub keybox_id: Option<String>,
    /// Only those of this time and later, in milliseconds since the epoch.
    pub since: Option<u64>,
    /// Only those before this time, in milliseconds since the epoch.
    pub until: Option<u64>,
}

/// An entry as it is kept.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct StoredEntry {
    /// Its number in the user's log.
    pub seq: u64,
    /// Its canonical JSON.
    pub json: String,
}

/// Writes entries, in their order; the shards of all their users are locked.
///
/// # Errors
/// A shard is not locked ([`WriteTx::lock_shards`]); the database's own.
pub async fn append(
    tx: &WriteTx,
    entries: Vec<NewEntry>,
    now: MilliSecondsSinceUnixEpoch,
) -> Result<(), Error> {
    if entries.is_empty() {
        return Ok(());
    }
    if entries.iter().any(|entry| !tx.is_locked(tx.shards().of_user(&entry.user_id))) {
        return Err(Error::Setup("A log was written to without the lock of its shard".to_owned()));
    }
    let mut heads = heads(tx, entries.iter().map(|entry| &*entry.user_id)).await?;
    let mut rows = Vec::with_capacity(entries.len());
    for NewEntry { user_id, event } in entries {
        let (keybox_id, peer, room_id) = looked_up_by(&event);
        let head = heads.entry(user_id.clone()).or_default();
        let json = head
            .append(user_id.as_str(), now.0.into(), event)
            .map_err(|error| Error::corrupt("keybox_log", "entry", user_id.as_str(), error))?;
        rows.push(vec![
            user_id.as_str().into(),
            number(head.seq).into(),
            number(head.ts).into(),
            keybox_id.into(),
            peer.into(),
            room_id.into(),
            json.into(),
        ]);
    }
    let columns = ["user_id", "seq", "ts", "keybox_id", "peer_keybox_id", "room_id", "entry"];
    tx.insert_rows("keybox_log", &columns, rows, "").await?;
    let heads = heads.into_iter().map(|(user_id, head)| {
        vec![user_id.as_str().into(), number(head.seq).into(), head.hash.into(), number(head.ts).into()]
    });
    let suffix =
        "ON CONFLICT (user_id) DO UPDATE SET seq = excluded.seq, hash = excluded.hash, ts = excluded.ts";
    tx.insert_rows("keybox_log_heads", &["user_id", "seq", "hash", "ts"], heads.collect(), suffix).await
}

/// How far a user's log reaches.
///
/// # Errors
/// The database's own.
pub async fn head(tx: &ReadTx, user_id: &UserId) -> Result<Head, Error> {
    Ok(heads(tx, [user_id]).await?.remove(user_id).unwrap_or_default())
}

/// A page of a user's log, oldest first, at most `limit` entries.
///
/// # Errors
/// The database's own.
pub async fn page(
    tx: &ReadTx,
    user_id: &UserId,
    filter: &Filter,
    limit: u32,
) -> Result<Vec<StoredEntry>, Error> {
    let mut sql = "SELECT seq, entry FROM keybox_log WHERE user_id = $1 AND seq > $2".to_owned();
    let mut values: Vec<Value> = vec![user_id.as_str().into(), number(filter.after).into()];
    let mut require = |condition: &str, value: Value| {
        values.push(value);
        sql.push_str(&condition.replace('?', &format!("${}", values.len())));
    };
    if let Some(room_id) = &filter.room_id {
        require(" AND room_id = ?", room_id.as_str().into());
    }
    if let Some(keybox_id) = &filter.keybox_id {
        require(" AND (keybox_id = ? OR peer_keybox_id = ?)", keybox_id.as_str().into());
    }
    if let Some(since) = filter.since {
        require(" AND ts >= ?", number(since).into());
    }
    if let Some(until) = filter.until {
        require(" AND ts < ?", number(until).into());
    }
    sql.push_str(&format!(" ORDER BY seq LIMIT {limit}"));
    let read = |row: &QueryResult| {
        let seq: i64 = row.try_get("", "seq")?;
        Ok(StoredEntry { seq: seq.try_into().unwrap_or_default(), json: row.try_get("", "entry")? })
    };
    tx.query(&sql, values).await?.iter().map(read).collect()
}

/// Deletes the log of an account that is closed.
///
/// # Errors
/// The database's own.
pub async fn delete_of_user(tx: &WriteTx, user_id: &UserId) -> Result<(), Error> {
    for sql in
        ["DELETE FROM keybox_log WHERE user_id = $1", "DELETE FROM keybox_log_heads WHERE user_id = $1"]
    {
        tx.execute(sql, [user_id.as_str().into()]).await?;
    }
    Ok(())
}

/// How far the logs reach. A head that the log reaches beyond is damaged: its newest entry stands for it, because otherwise
/// nothing could be written into that log any more, nor the user's KeyBoxes be opened with the password. No entry is altered
/// by that; who walks along them finds what does not fit.
async fn heads<'a>(
    tx: &ReadTx,
    user_ids: impl IntoIterator<Item = &'a UserId>,
) -> Result<BTreeMap<OwnedUserId, Head>, Error> {
    let mut heads: BTreeMap<OwnedUserId, Head> =
        user_ids.into_iter().map(|user_id| (user_id.to_owned(), Head::default())).collect();
    let users: Vec<OwnedUserId> = heads.keys().cloned().collect();
    for chunk in users.chunks(tx.rows_a_statement(1)) {
        let (users, values) = tx.list(1, chunk.iter().map(|user_id| user_id.as_str()));
        let joined = match tx.backend() {
            // User by user, whatever PostgreSQL has last seen of the tables.
            DbBackend::Postgres => {
                "LEFT JOIN LATERAL (SELECT * FROM keybox_log_heads h WHERE h.user_id = w.user_id LIMIT 1) h ON TRUE \
                 LEFT JOIN LATERAL (SELECT * FROM keybox_log l WHERE l.user_id = w.user_id ORDER BY l.seq DESC LIMIT 1) l \
                 ON l.seq > COALESCE(h.seq, 0)"
            }
            _ => {
                "LEFT JOIN keybox_log_heads h ON h.user_id = w.user_id \
                 LEFT JOIN keybox_log l ON l.user_id = w.user_id AND l.seq > COALESCE(h.seq, 0) \
                 AND l.seq = (SELECT MAX(seq) FROM keybox_log WHERE user_id = w.user_id)"
            }
        };
        let sql = format!(
            "WITH wanted (user_id) AS ({users}) \
             SELECT w.user_id, COALESCE(h.seq, 0) AS seq, COALESCE(h.hash, '') AS hash, COALESCE(h.ts, 0) AS ts, \
             l.seq AS newest, l.ts AS newest_ts, l.entry FROM wanted w {joined}"
        );
        for row in tx.query(&sql, values).await? {
            let user_id = crate::streams::user_id(&row, "keybox_log_heads", "user_id")?;
            let (seq, ts): (i64, i64) = (row.try_get("", "seq")?, row.try_get("", "ts")?);
            let mut head = Head { seq: unsigned(seq), hash: row.try_get("", "hash")?, ts: unsigned(ts) };
            if let Some(newest) = newest_beyond(&row)? {
                tracing::error!(
                    %user_id,
                    head = head.seq,
                    newest = newest.seq,
                    "damaged row of keybox_log_heads: the log reaches further, and goes on after its newest entry"
                );
                head = newest;
            }
            heads.insert(user_id, head);
        }
    }
    Ok(heads)
}

/// The head that the newest entry makes, if the log reaches further than the head that is kept.
fn newest_beyond(row: &QueryResult) -> Result<Option<Head>, Error> {
    let Some(seq) = row.try_get::<Option<i64>>("", "newest")? else { return Ok(None) };
    let (ts, entry): (i64, String) = (row.try_get("", "newest_ts")?, row.try_get("", "entry")?);
    // The entry is kept in its canonical form, which is what is hashed.
    let hash = base64(&sha256(entry.as_bytes()));
    Ok(Some(Head { seq: unsigned(seq), hash, ts: unsigned(ts) }))
}

/// The KeyBox, the KeyBox at the other end and the room of an event; empty where it has none.
fn looked_up_by(event: &LogEvent) -> (String, String, String) {
    let (peer, room_id) = match event.exchange() {
        Some(exchange) => (exchange.peer_keybox_id.clone(), exchange.room_id.clone()),
        None => Default::default(),
    };
    (event.keybox_id().to_owned(), peer, room_id)
}

fn number(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn unsigned(value: i64) -> u64 {
    value.try_into().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use keystead_core::keybox::audit_log::{ChainError, Direction, KeyExchange, OnKeyBox, entry_hash};
    use ruma::{UInt, user_id};

    use super::*;
    use crate::{Store, store::tests::store};

    fn registered(keybox_id: &str) -> LogEvent {
        LogEvent::KeyboxRegistered(OnKeyBox { keybox_id: keybox_id.to_owned(), ..OnKeyBox::default() })
    }

    fn given(peer_keybox_id: &str, room_id: &str) -> LogEvent {
        LogEvent::ResourceKeyGiven(KeyExchange {
            keybox_id: "BOX".to_owned(),
            direction: Direction::Sent,
            peer_user_id: "@b:x".to_owned(),
            peer_keybox_id: peer_keybox_id.to_owned(),
            room_id: room_id.to_owned(),
            key_id: "k".to_owned(),
            reference: "e".to_owned(),
            undelivered: false,
        })
    }

    async fn write(store: &Store, user_id: &UserId, now: u32, events: &[LogEvent]) {
        let entry = |event: &LogEvent| NewEntry { user_id: user_id.to_owned(), event: event.clone() };
        let entries: &Vec<_> = &events.iter().map(entry).collect();
        store
            .write("test", |tx| async move {
                tx.lock_shards(&[tx.shards().of_user(user_id)]).await?;
                append(&tx, entries.clone(), MilliSecondsSinceUnixEpoch(UInt::from(now))).await
            })
            .await
            .unwrap();
    }

    async fn numbers(store: &Store, filter: Filter, limit: u32) -> Vec<u64> {
        let filter = &filter;
        let page = store.read("test", |tx| async move { page(&tx, user_id!("@a:x"), filter, limit).await });
        page.await.unwrap().iter().map(|entry| entry.seq).collect()
    }

    #[tokio::test]
    async fn each_user_has_a_chain_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder).await;
        let (a, b) = (user_id!("@a:x"), user_id!("@b:x"));
        write(&store, a, 10, &[registered("BOX"), given("B", "!r:x")]).await;
        write(&store, b, 11, &[registered("B")]).await;
        write(&store, a, 9, &[given("C", "!s:x")]).await;
        for (user_id, length) in [(a, 3), (b, 1)] {
            let (entries, head) = store
                .read("test", |tx| async move {
                    Ok::<_, Error>((
                        page(&tx, user_id, &Filter::default(), 100).await?,
                        head(&tx, user_id).await?,
                    ))
                })
                .await
                .unwrap();
            assert_eq!(entries.len(), length);
            let mut walked = Head::default();
            for entry in &entries {
                let entry = serde_json::from_str(&entry.json).unwrap();
                walked.follow(user_id.as_str(), &entry).unwrap();
                assert_eq!(walked.hash, entry_hash(&entry).unwrap());
            }
            assert_eq!(walked, head, "the head is where the chain ends");
        }
    }

    #[tokio::test]
    async fn entries_are_found_by_room_keybox_and_time() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder).await;
        let a = user_id!("@a:x");
        write(&store, a, 10, &[registered("BOX"), given("B", "!r:x")]).await;
        write(&store, a, 20, &[given("C", "!r:x"), given("B", "!s:x"), registered("OTHER")]).await;
        let text = |text: &str| Some(text.to_owned());
        let all = Filter::default;
        assert_eq!(numbers(&store, all(), 100).await, [1, 2, 3, 4, 5]);
        assert_eq!(numbers(&store, Filter { after: 2, ..all() }, 2).await, [3, 4]);
        assert_eq!(numbers(&store, Filter { room_id: text("!r:x"), ..all() }, 9).await, [2, 3]);
        assert_eq!(numbers(&store, Filter { keybox_id: text("BOX"), ..all() }, 9).await, [1, 2, 3, 4]);
        assert_eq!(numbers(&store, Filter { keybox_id: text("B"), ..all() }, 9).await, [2, 4]);
        assert_eq!(numbers(&store, Filter { since: Some(20), ..all() }, 9).await, [3, 4, 5]);
        let both = Filter { until: Some(20), room_id: text("!r:x"), ..all() };
        assert_eq!(numbers(&store, both, 9).await, [2]);
    }

    /// Walks along a log as an audit does, and returns where it ends.
    async fn walk(store: &Store, user_id: &UserId) -> Result<Head, ChainError> {
        let page = store.read("test", |tx| async move { page(&tx, user_id, &Filter::default(), 100).await });
        let mut walked = Head::default();
        for entry in page.await.unwrap() {
            walked.follow(user_id.as_str(), &serde_json::from_str(&entry.json).unwrap())?;
        }
        Ok(walked)
    }

    #[tokio::test]
    async fn a_damaged_head_locks_nobody_out_and_hides_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder).await;
        let (a, b) = (user_id!("@a:x"), user_id!("@b:x"));
        write(&store, b, 10, &[registered("B")]).await;
        write(&store, a, 10, &[registered("BOX"), given("B", "!r:x")]).await;
        let damages = [
            "DELETE FROM keybox_log_heads WHERE user_id = '@a:x'",
            "UPDATE keybox_log_heads SET seq = 1, hash = 'nonsense' WHERE user_id = '@a:x'",
            "UPDATE keybox_log_heads SET seq = -3 WHERE user_id = '@a:x'",
        ];
        for (damage, length) in damages.into_iter().zip(3..) {
            store.write("test", |tx| async move { tx.execute(damage, []).await }).await.unwrap();
            write(&store, a, 20, &[given("C", "!s:x")]).await;
            let kept = store.read("test", |tx| async move { head(&tx, a).await }).await.unwrap();
            assert_eq!((kept.seq, walk(&store, a).await), (length, Ok(kept)), "{damage}");
        }

        // What was altered is found all the same, whatever the log went on after.
        let forged =
            "UPDATE keybox_log SET entry = REPLACE(entry, '!s:x', '!t:x') WHERE user_id = '@a:x' AND seq = 3";
        for sql in [forged, damages[0]] {
            store.write("test", |tx| async move { tx.execute(sql, []).await }).await.unwrap();
        }
        write(&store, a, 30, &[given("C", "!s:x")]).await;
        assert_eq!(walk(&store, a).await, Err(ChainError::Hash));
        assert_eq!(walk(&store, b).await.map(|head| head.seq), Ok(1));
    }

    #[tokio::test]
    async fn nothing_is_written_without_the_lock() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder).await;
        let entry = &NewEntry { user_id: user_id!("@a:x").to_owned(), event: registered("BOX") };
        let written = store
            .write("test", |tx| async move {
                append(&tx, vec![entry.clone()], MilliSecondsSinceUnixEpoch(UInt::MIN)).await
            })
            .await;
        assert!(matches!(written, Err(Error::Setup(_))));
    }
}
