//! What push gateways have to be told, pusher by pusher, and which replica tells them.
//!
//! Every change of a pusher's queue holds the pusher's row, so that whoever finds the queue empty and lets go of the pusher does so before something
//! is added, or sees it.

use std::{collections::BTreeSet, time::Duration};

use ruma::{EventId, OwnedEventId, OwnedUserId};
use sea_orm::{DbBackend, QueryResult, Value};

use crate::{Error, WriteTx, replicas, rooms::StoredEvent, streams};

/// How many notices a pusher keeps whose gateway does not take them: of more the oldest are left out.
const MOST: usize = 500;

/// What makes out a pusher.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct PusherId {
    /// Whose it is.
    pub user_id: OwnedUserId,
    /// The application.
    pub app_id: String,
    /// The address within the application's push service.
    pub pushkey: String,
}

/// A pusher that this replica is to tell.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Taken {
    /// Which it is.
    pub id: PusherId,
    /// The JSON that the client set.
    pub pusher: String,
}

/// An event that a pusher has to be told of.
#[derive(Clone, Debug)]
pub struct Notice {
    /// The pusher.
    pub id: PusherId,
    /// The event.
    pub event_id: OwnedEventId,
    /// Its position in its shard: which of two that are added at once comes first.
    pub position: i64,
}

/// What is next for a pusher.
#[derive(Clone, Debug)]
pub struct Next {
    /// The JSON that the client set.
    pub pusher: String,
    /// How often its gateway has not taken what comes first.
    pub attempts: i64,
    /// The first events in its queue; if there are none, the pusher was let go.
    pub events: Vec<StoredEvent>,
}

impl PusherId {
    fn values(&self) -> [Value; 3] {
        [self.user_id.as_str().into(), self.app_id.as_str().into(), self.pushkey.as_str().into()]
    }

    fn from_row(row: &QueryResult) -> Result<Self, Error> {
        Ok(Self {
            user_id: streams::user_id(row, "pushers", "user_id")?,
            app_id: row.try_get("", "app_id")?,
            pushkey: row.try_get("", "pushkey")?,
        })
    }
}

/// The condition for a pusher whose values are the first three.
const THIS: &str = "user_id = $1 AND app_id = $2 AND pushkey = $3";

/// Adds notices to the queues of pushers, but for pushers that there are no longer. Takes those that nobody tells and that are not left alone: they
/// are `holder`'s for `lease`.
///
/// # Errors
/// The database's own, or a row that cannot be read.
pub async fn add(
    tx: &WriteTx,
    holder: &str,
    notices: &[Notice],
    lease: Duration,
) -> Result<Vec<Taken>, Error> {
    let pushers: BTreeSet<&PusherId> = notices.iter().map(|notice| &notice.id).collect();
    let pushers: Vec<&PusherId> = pushers.into_iter().collect();
    let mut taken = Vec::new();
    for chunk in pushers.chunks(tx.rows_a_statement(3)) {
        let Some(now) = hold(tx, chunk).await? else { continue };
        let chosen: BTreeSet<&PusherId> = chunk.iter().copied().collect();
        let of_chunk: Vec<&Notice> = notices.iter().filter(|notice| chosen.contains(&notice.id)).collect();
        insert(tx, &of_chunk, now).await?;
        let (given, values) = tx.rows(3, chunk.iter().map(|id| id.values().into()).collect());
        let clock = replicas::clock(tx);
        let sql = format!(
            "UPDATE pushers SET told_by = $1, tell_at = {clock} + $2 \
             WHERE (user_id, app_id, pushkey) IN ({given}) AND (tell_at IS NULL OR tell_at <= {clock}) \
             RETURNING user_id, app_id, pushkey, pusher"
        );
        let whose = [holder.into(), millis(lease).into()];
        taken.extend(read_taken(tx.query(&sql, whose.into_iter().chain(values)).await?)?);
    }
    Ok(taken)
}

/// Holds the rows of pushers, which come in their order, so that two who do so cannot wait for each other. Returns the time, by the database's clock; `None`
/// if there is none of them.
async fn hold(tx: &WriteTx, pushers: &[&PusherId]) -> Result<Option<i64>, Error> {
    // On SQLite the transaction has begun as the only writer.
    let lock = if tx.backend() == DbBackend::Postgres { "FOR UPDATE" } else { "" };
    let (given, values) = tx.rows(1, pushers.iter().map(|id| id.values().into()).collect());
    let clock = replicas::clock(tx);
    let sql = format!(
        "SELECT {clock} AS now FROM pushers WHERE (user_id, app_id, pushkey) IN ({given}) \
         ORDER BY user_id, app_id, pushkey {lock}"
    );
    let rows = tx.query(&sql, values).await?;
    Ok(rows.last().map(|row| row.try_get("", "now")).transpose()?)
}

async fn insert(tx: &WriteTx, notices: &[&Notice], now: i64) -> Result<(), Error> {
    for chunk in notices.chunks(tx.rows_a_statement(6)) {
        let row = |notice: &&Notice| {
            let mut row = Vec::from(notice.id.values());
            row.extend([notice.event_id.as_str().into(), now.into(), notice.position.into()]);
            row
        };
        let (given, values) = tx.rows(1, chunk.iter().map(row).collect());
        let sql = format!(
            "WITH given (user_id, app_id, pushkey, event_id, queued_ts, position) AS ({given}) \
             INSERT INTO push_queue (user_id, app_id, pushkey, event_id, queued_ts, position) \
             SELECT g.user_id, g.app_id, g.pushkey, g.event_id, g.queued_ts, g.position FROM given g JOIN pushers p \
             ON p.user_id = g.user_id AND p.app_id = g.app_id AND p.pushkey = g.pushkey \
             WHERE TRUE ON CONFLICT DO NOTHING"
        );
        tx.execute(&sql, values).await?;
    }
    Ok(())
}

/// Takes pushers that are to be told, or that whoever told them has not let go of in time, at most `limit`: they are `holder`'s for `lease`.
///
/// # Errors
/// The database's own, or a row that cannot be read.
pub async fn take_due(tx: &WriteTx, holder: &str, lease: Duration, limit: u32) -> Result<Vec<Taken>, Error> {
    let clock = replicas::clock(tx);
    let lock = if tx.backend() == DbBackend::Postgres { "FOR UPDATE SKIP LOCKED" } else { "" };
    let sql = format!(
        "UPDATE pushers SET told_by = $1, tell_at = {clock} + $2 WHERE (user_id, app_id, pushkey) IN \
         (SELECT user_id, app_id, pushkey FROM pushers WHERE tell_at <= {clock} ORDER BY tell_at LIMIT {limit} {lock}) \
         RETURNING user_id, app_id, pushkey, pusher"
    );
    read_taken(tx.query(&sql, [holder.into(), millis(lease).into()]).await?)
}

/// Takes what was told out of a pusher's queue and gives what comes next, at most `limit` events; the pusher is `holder`'s for `lease` from now on. If
/// nothing comes next, it is let go. `None` if it is not `holder`'s any more, or there is no such pusher.
///
/// # Errors
/// The database's own, or a row that cannot be read.
pub async fn next(
    tx: &WriteTx,
    (holder, id): (&str, &PusherId),
    told: &[OwnedEventId],
    lease: Duration,
    limit: u32,
) -> Result<Option<Next>, Error> {
    let clock = replicas::clock(tx);
    let sql = format!(
        "UPDATE pushers SET tell_at = {clock} + $4, attempts = CASE WHEN $5 > 0 THEN 0 ELSE attempts END \
         WHERE {THIS} AND told_by = $6 RETURNING pusher, attempts"
    );
    let was_told = i64::try_from(told.len()).unwrap_or(i64::MAX);
    let more = [millis(lease).into(), was_told.into(), holder.into()];
    let rows = tx.query(&sql, id.values().into_iter().chain(more)).await?;
    let Some(row) = rows.first() else { return Ok(None) };
    let (pusher, attempts) = (row.try_get("", "pusher")?, row.try_get("", "attempts")?);
    remove(tx, id, told).await?;
    let sql = format!(
        "SELECT e.position, e.room_id, e.event_id, e.json, e.redacted_by, e.device_id, e.transaction_id \
         FROM (SELECT event_id, queued_ts, position FROM push_queue WHERE {THIS} ORDER BY queued_ts, position LIMIT {limit}) q \
         JOIN events e ON e.event_id = q.event_id ORDER BY q.queued_ts, q.position"
    );
    let rows = tx.query(&sql, id.values()).await?;
    let events: Vec<StoredEvent> = rows.iter().map(StoredEvent::from_row).collect::<Result<_, _>>()?;
    if events.is_empty() {
        let sql = format!("UPDATE pushers SET tell_at = NULL, told_by = '', attempts = 0 WHERE {THIS}");
        tx.execute(&sql, id.values()).await?;
    }
    Ok(Some(Next { pusher, attempts, events }))
}

async fn remove(tx: &WriteTx, id: &PusherId, told: &[OwnedEventId]) -> Result<(), Error> {
    for chunk in told.chunks(tx.rows_a_statement(1).saturating_sub(3).max(1)) {
        let (events, values) = tx.list(4, chunk.iter().map(|event_id| EventId::as_str(event_id)));
        let sql = format!("DELETE FROM push_queue WHERE {THIS} AND event_id IN ({events})");
        tx.execute(&sql, id.values().into_iter().chain(values)).await?;
    }
    Ok(())
}

/// Lets go of a pusher for some time, after it was told of some events. `failed` is the JSON of the pusher whose gateway did not take what came next: then it
/// keeps the newest of what is left; if the client has set another one meanwhile, that is to be told at once. Nothing happens if the pusher is not
/// `holder`'s any more.
///
/// # Errors
/// The database's own.
pub async fn put_off(
    tx: &WriteTx,
    (holder, id): (&str, &PusherId),
    told: &[OwnedEventId],
    (time, failed): (Duration, Option<&str>),
) -> Result<(), Error> {
    let clock = replicas::clock(tx);
    let sql = format!(
        "UPDATE pushers SET told_by = '', \
         tell_at = {clock} + CASE WHEN $5 = '' OR pusher = $5 THEN $4 ELSE 0 END, \
         attempts = CASE WHEN $5 = '' THEN attempts WHEN pusher = $5 THEN attempts + 1 ELSE 0 END \
         WHERE {THIS} AND told_by = $6"
    );
    let more = [millis(time).into(), failed.unwrap_or_default().into(), holder.into()];
    if tx.execute(&sql, id.values().into_iter().chain(more)).await? == 0 {
        return Ok(());
    }
    remove(tx, id, told).await?;
    if failed.is_some() {
        let sql = format!(
            "DELETE FROM push_queue WHERE {THIS} AND event_id NOT IN (SELECT event_id FROM push_queue \
             WHERE {THIS} ORDER BY queued_ts DESC, position DESC LIMIT {MOST})"
        );
        tx.execute(&sql, id.values()).await?;
    }
    Ok(())
}

/// Removes a pusher whose gateway says that it is no more, unless the client has set another one in its place.
///
/// # Errors
/// The database's own.
pub async fn reject(tx: &WriteTx, id: &PusherId, pusher: &str) -> Result<(), Error> {
    let sql = format!("DELETE FROM pushers WHERE {THIS} AND pusher = $4");
    if tx.execute(&sql, id.values().into_iter().chain([pusher.into()])).await? > 0 {
        clear(tx, id).await?;
    }
    Ok(())
}

/// Empties the queue of a pusher.
///
/// # Errors
/// The database's own.
pub async fn clear(tx: &WriteTx, id: &PusherId) -> Result<(), Error> {
    tx.execute(&format!("DELETE FROM push_queue WHERE {THIS}"), id.values()).await?;
    Ok(())
}

/// Removes pushers that a condition is true of, with their queues. Returns how many.
///
/// # Errors
/// The database's own, or a row that cannot be read.
pub(crate) async fn delete_pushers(
    tx: &WriteTx,
    condition: &str,
    values: impl IntoIterator<Item = Value>,
) -> Result<u64, Error> {
    let sql = format!("DELETE FROM pushers WHERE {condition} RETURNING user_id, app_id, pushkey");
    let deleted = tx.query(&sql, values).await?;
    for row in &deleted {
        clear(tx, &PusherId::from_row(row)?).await?;
    }
    Ok(u64::try_from(deleted.len()).unwrap_or(u64::MAX))
}

fn read_taken(rows: Vec<QueryResult>) -> Result<Vec<Taken>, Error> {
    rows.iter()
        .map(|row| Ok(Taken { id: PusherId::from_row(row)?, pusher: row.try_get("", "pusher")? }))
        .collect()
}

fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use ruma::{device_id, event_id, user_id};

    use super::*;
    use crate::{
        pushers::{self, PusherKey},
        store::tests::store,
    };

    const LONG: Duration = Duration::from_secs(3_600);

    fn pusher() -> PusherId {
        PusherId { user_id: user_id!("@a:x").to_owned(), app_id: "app".to_owned(), pushkey: "k".to_owned() }
    }

    async fn set(tx: &WriteTx, json: &str) -> Result<(), Error> {
        let key = PusherKey { app_id: "app", pushkey: "k" };
        pushers::set(tx, key, user_id!("@a:x"), device_id!("D"), json).await
    }

    fn notice(event_id: &EventId, position: i64) -> Notice {
        Notice { id: pusher(), event_id: event_id.to_owned(), position }
    }

    /// Makes the event that a notice is of.
    async fn make_event(tx: &WriteTx, event_id: &EventId, position: i64) -> Result<(), Error> {
        let sql =
            "INSERT INTO events (shard, position, room_id, event_id, json) VALUES (0, $1, '!r:x', $2, '{}')";
        tx.execute(sql, [position.into(), event_id.as_str().into()]).await?;
        Ok(())
    }

    fn ids(next: Option<Next>) -> Option<Vec<String>> {
        Some(next?.events.iter().map(|event| event.event_id.to_string()).collect())
    }

    #[tokio::test]
    async fn one_replica_tells_a_pusher_in_the_order_of_the_events() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder).await;
        let (one, two, three) = (event_id!("$1"), event_id!("$2"), event_id!("$3"));
        store
            .write("test", |tx| async move {
                for (position, event_id) in [(1, one), (2, two), (3, three)] {
                    make_event(&tx, event_id, position).await?;
                }
                let id = &pusher();
                assert!(add(&tx, "a", &[notice(one, 1)], LONG).await?.is_empty(), "there is none yet");
                set(&tx, "{}").await?;
                let taken = add(&tx, "a", &[notice(two, 2)], LONG).await?;
                assert_eq!(taken, [Taken { id: id.clone(), pusher: "{}".to_owned() }]);
                // Another replica leaves it to the first, who finds what is added.
                assert!(add(&tx, "b", &[notice(three, 3), notice(two, 2)], LONG).await?.is_empty());
                assert!(take_due(&tx, "b", LONG, 9).await?.is_empty());
                assert_eq!(ids(next(&tx, ("b", id), &[], LONG, 9).await?), None);
                let first = next(&tx, ("a", id), &[], LONG, 1).await?;
                assert_eq!(ids(first), Some(vec!["$2".to_owned()]));
                let rest = next(&tx, ("a", id), &[two.to_owned()], Duration::ZERO, 9).await?;
                assert_eq!(ids(rest), Some(vec!["$3".to_owned()]));
                // Whoever does not say in time that it goes on has it no longer.
                assert_eq!(take_due(&tx, "b", LONG, 9).await?.len(), 1);
                assert_eq!(ids(next(&tx, ("a", id), &[], LONG, 9).await?), None);
                let empty = next(&tx, ("b", id), &[three.to_owned()], LONG, 9).await?;
                assert_eq!(ids(empty), Some(vec![]));
                assert_eq!(add(&tx, "a", &[notice(one, 1)], LONG).await?.len(), 1, "it was let go");
                Ok::<_, Error>(())
            })
            .await
            .unwrap();
    }

    #[tokio::test]
    async fn a_gateway_that_fails_is_left_alone_and_a_pusher_goes_with_its_queue() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder).await;
        let (one, two) = (event_id!("$1"), event_id!("$2"));
        store
            .write("test", |tx| async move {
                let id = &pusher();
                for (position, event_id) in [(1, one), (2, two)] {
                    make_event(&tx, event_id, position).await?;
                }
                set(&tx, "first").await?;
                add(&tx, "a", &[notice(one, 1)], LONG).await?;
                put_off(&tx, ("b", id), &[], (Duration::ZERO, Some("first"))).await?;
                assert!(take_due(&tx, "b", LONG, 9).await?.is_empty(), "it is another's to put off");
                put_off(&tx, ("a", id), &[], (LONG, Some("first"))).await?;
                assert!(add(&tx, "a", &[notice(two, 2)], LONG).await?.is_empty(), "it is left alone");
                // The client has set it anew.
                set(&tx, "second").await?;
                assert_eq!(take_due(&tx, "a", LONG, 9).await?[0].pusher, "second");
                let both = next(&tx, ("a", id), &[], LONG, 9).await?.unwrap();
                assert_eq!((both.attempts, both.events.len()), (0, 2));
                // What the one before it could not be told of is no reason to leave it alone.
                put_off(&tx, ("a", id), &[], (LONG, Some("first"))).await?;
                assert_eq!(take_due(&tx, "a", LONG, 9).await?[0].pusher, "second");
                reject(&tx, id, "first").await?;
                assert!(
                    next(&tx, ("a", id), &[], LONG, 9).await?.is_some(),
                    "it was the other that is no more"
                );
                reject(&tx, id, "second").await?;
                assert!(next(&tx, ("a", id), &[], LONG, 9).await?.is_none());
                set(&tx, "third").await?;
                add(&tx, "a", &[notice(two, 2)], LONG).await?;
                assert_eq!(
                    next(&tx, ("a", id), &[], LONG, 9).await?.unwrap().events.len(),
                    1,
                    "nothing from before"
                );
                Ok::<_, Error>(())
            })
            .await
            .unwrap();
    }
}
