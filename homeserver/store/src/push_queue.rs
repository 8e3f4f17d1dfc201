//! What push gateways have to be told, pusher by pusher, and which replica tells them.
//!
//! Every change of a pusher's queue holds the pusher's row, so that whoever finds the queue empty and lets go of the pusher does so before something
//! is added, or sees it.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    time::Duration,
};

use ruma::{OwnedEventId, OwnedUserId};
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
    /// Nothing waited for it: what has just been added is all that is in its queue.
    pub was_idle: bool,
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

/// What a pusher has been told since it was last asked what is next for it.
#[derive(Clone, Debug)]
pub struct Told {
    /// The pusher.
    pub id: PusherId,
    /// The events.
    pub events: Vec<OwnedEventId>,
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
        let (given, values) = tx.rows(1, chunk.iter().map(|id| id.values().into()).collect());
        let clock = replicas::clock(tx);
        let there = hold(tx, &format!("(user_id, app_id, pushkey) IN ({given})"), values).await?;
        let Some(now) = there.first().map(|row| row.try_get("", "now")).transpose()? else { continue };
        let mut idle = HashSet::new();
        for row in &there {
            if row.try_get::<Option<i64>>("", "tell_at")?.is_none() {
                idle.insert(PusherId::from_row(row)?);
            }
        }
        let chosen: BTreeSet<&PusherId> = chunk.iter().copied().collect();
        let of_chunk: Vec<&Notice> = notices.iter().filter(|notice| chosen.contains(&notice.id)).collect();
        insert(tx, &of_chunk, now).await?;
        let (given, values) = tx.rows(3, chunk.iter().map(|id| id.values().into()).collect());
        let sql = format!(
            "UPDATE pushers SET told_by = $1, tell_at = {clock} + $2 \
             WHERE (user_id, app_id, pushkey) IN ({given}) AND (tell_at IS NULL OR tell_at <= {clock}) \
             RETURNING user_id, app_id, pushkey, pusher"
        );
        let whose = [holder.into(), millis(lease).into()];
        taken.extend(read_taken(tx.query(&sql, whose.into_iter().chain(values)).await?, &idle)?);
    }
    Ok(taken)
}

/// Holds the rows of pushers that a condition is true of. They come in their order, so that two who do so cannot wait for each other, and with the time
/// by the database's clock (`now`).
async fn hold(
    tx: &WriteTx,
    condition: &str,
    values: impl IntoIterator<Item = Value>,
) -> Result<Vec<QueryResult>, Error> {
    // On SQLite the transaction has begun as the only writer.
    let lock = if tx.backend() == DbBackend::Postgres { "FOR UPDATE" } else { "" };
    let clock = replicas::clock(tx);
    let sql = format!(
        "SELECT {clock} AS now, user_id, app_id, pushkey, pusher, attempts, tell_at FROM pushers \
         WHERE {condition} ORDER BY user_id, app_id, pushkey {lock}"
    );
    tx.query(&sql, values).await
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
    read_taken(tx.query(&sql, [holder.into(), millis(lease).into()]).await?, &HashSet::new())
}

/// Takes what pushers were told out of their queues and gives what comes next for each, at most `limit` events; they are `holder`'s for `lease` from now
/// on. Those for whom nothing comes next are let go. Pushers that are not `holder`'s any more, or are gone, are left out.
///
/// # Errors
/// The database's own, or a row that cannot be read.
pub async fn next(
    tx: &WriteTx,
    holder: &str,
    told: &[Told],
    lease: Duration,
    limit: u32,
) -> Result<HashMap<PusherId, Next>, Error> {
    let mut all = HashMap::new();
    for chunk in told.chunks(tx.rows_a_statement(5)) {
        let (given, values) = tx.rows(2, chunk.iter().map(|told| told.id.values().into()).collect());
        let condition = format!("(user_id, app_id, pushkey) IN ({given}) AND told_by = $1");
        let mut next = HashMap::new();
        for row in hold(tx, &condition, std::iter::once(holder.into()).chain(values)).await? {
            let (pusher, attempts) = (row.try_get("", "pusher")?, row.try_get("", "attempts")?);
            next.insert(PusherId::from_row(&row)?, Next { pusher, attempts, events: Vec::new() });
        }
        let of_holder: Vec<&Told> = chunk.iter().filter(|told| next.contains_key(&told.id)).collect();
        if of_holder.is_empty() {
            continue;
        }
        remove(tx, &of_holder).await?;
        for (id, event) in first_events(tx, &of_holder, limit).await? {
            if let Some(next) = next.get_mut(&id) {
                next.events.push(event);
            }
        }
        for told in &of_holder {
            if let Some(next) = next.get_mut(&told.id)
                && (next.events.is_empty() || !told.events.is_empty())
            {
                next.attempts = 0;
            }
        }
        let row = |(id, next): (&PusherId, &Next)| {
            let mut row = Vec::from(id.values());
            row.extend([next.attempts.into(), i64::from(!next.events.is_empty()).into()]);
            row
        };
        let (given, values) = tx.rows(2, next.iter().map(row).collect());
        let clock = replicas::clock(tx);
        let sql = format!(
            "WITH given (user_id, app_id, pushkey, attempts, is_left) AS ({given}) UPDATE pushers SET \
             tell_at = CASE WHEN g.is_left > 0 THEN {clock} + $1 END, \
             told_by = CASE WHEN g.is_left > 0 THEN pushers.told_by ELSE '' END, attempts = g.attempts FROM given g \
             WHERE pushers.user_id = g.user_id AND pushers.app_id = g.app_id AND pushers.pushkey = g.pushkey"
        );
        tx.execute(&sql, std::iter::once(millis(lease).into()).chain(values)).await?;
        all.extend(next);
    }
    Ok(all)
}

async fn remove(tx: &WriteTx, told: &[&Told]) -> Result<(), Error> {
    let rows = told.iter().flat_map(|told| {
        told.events.iter().map(|event_id| {
            let mut row = Vec::from(told.id.values());
            row.push(event_id.as_str().into());
            row
        })
    });
    let rows: Vec<Vec<Value>> = rows.collect();
    for chunk in rows.chunks(tx.rows_a_statement(4)) {
        let (given, values) = tx.rows(1, chunk.to_vec());
        let sql = match tx.backend() {
            // One by one: PostgreSQL mostly finds the table empty when it looks, and would plan to read all of it.
            DbBackend::Postgres => format!(
                "WITH given (user_id, app_id, pushkey, event_id) AS ({given}) \
                 DELETE FROM push_queue WHERE ctid = ANY (ARRAY(SELECT q.ctid FROM given g CROSS JOIN LATERAL \
                 (SELECT q.ctid FROM push_queue q WHERE q.user_id = g.user_id AND q.app_id = g.app_id \
                 AND q.pushkey = g.pushkey AND q.event_id = g.event_id LIMIT 1) q))"
            ),
            _ => format!("DELETE FROM push_queue WHERE (user_id, app_id, pushkey, event_id) IN ({given})"),
        };
        tx.execute(&sql, values).await?;
    }
    Ok(())
}

/// The first events in the queues of pushers, at most `limit` of each, in their order.
async fn first_events(
    tx: &WriteTx,
    pushers: &[&Told],
    limit: u32,
) -> Result<Vec<(PusherId, StoredEvent)>, Error> {
    let columns = "e.position, e.room_id, e.event_id, e.json, e.redacted_by, e.device_id, e.transaction_id";
    let mut rows = Vec::new();
    if tx.backend() == DbBackend::Postgres {
        let (given, values) = tx.rows(1, pushers.iter().map(|told| told.id.values().into()).collect());
        let sql = format!(
            "WITH given (user_id, app_id, pushkey) AS ({given}) \
             SELECT g.user_id, g.app_id, g.pushkey, {columns} FROM given g CROSS JOIN LATERAL \
             (SELECT event_id, queued_ts, position FROM push_queue q \
             WHERE q.user_id = g.user_id AND q.app_id = g.app_id AND q.pushkey = g.pushkey \
             ORDER BY queued_ts, position LIMIT {limit}) q \
             JOIN events e ON e.event_id = q.event_id ORDER BY q.queued_ts, q.position"
        );
        rows = tx.query(&sql, values).await?;
    } else {
        for told in pushers {
            let sql = format!(
                "SELECT q.user_id, q.app_id, q.pushkey, {columns} FROM (SELECT * FROM push_queue \
                 WHERE {THIS} ORDER BY queued_ts, position LIMIT {limit}) q \
                 JOIN events e ON e.event_id = q.event_id ORDER BY q.queued_ts, q.position"
            );
            rows.extend(tx.query(&sql, told.id.values()).await?);
        }
    }
    rows.iter().map(|row| Ok((PusherId::from_row(row)?, StoredEvent::from_row(row)?))).collect()
}

/// Lets go of a pusher for some time, after it was told of some events. `failed` is the JSON of the pusher whose gateway did not take what came next: then it
/// keeps the newest of what is left; if the client has set another one meanwhile, that is to be told at once. Nothing happens if the pusher is not
/// `holder`'s any more.
///
/// # Errors
/// The database's own.
pub async fn put_off(
    tx: &WriteTx,
    holder: &str,
    told: &Told,
    (time, failed): (Duration, Option<&str>),
) -> Result<(), Error> {
    let id = &told.id;
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
    remove(tx, &[told]).await?;
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

fn read_taken(rows: Vec<QueryResult>, idle: &HashSet<PusherId>) -> Result<Vec<Taken>, Error> {
    rows.iter()
        .map(|row| {
            let id = PusherId::from_row(row)?;
            Ok(Taken { pusher: row.try_get("", "pusher")?, was_idle: idle.contains(&id), id })
        })
        .collect()
}

fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use ruma::{EventId, device_id, event_id, user_id};

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

    fn told(events: &[&EventId]) -> Told {
        Told { id: pusher(), events: events.iter().map(|event_id| (*event_id).to_owned()).collect() }
    }

    async fn next(
        tx: &WriteTx,
        holder: &str,
        events: &[&EventId],
        (lease, limit): (Duration, u32),
    ) -> Result<Option<Next>, Error> {
        Ok(super::next(tx, holder, &[told(events)], lease, limit).await?.remove(&pusher()))
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
                assert!(add(&tx, "a", &[notice(one, 1)], LONG).await?.is_empty(), "there is none yet");
                set(&tx, "{}").await?;
                let taken = add(&tx, "a", &[notice(two, 2)], LONG).await?;
                assert_eq!(taken, [Taken { id: pusher(), pusher: "{}".to_owned(), was_idle: true }]);
                // Another replica leaves it to the first, who finds what is added.
                assert!(add(&tx, "b", &[notice(three, 3), notice(two, 2)], LONG).await?.is_empty());
                assert!(take_due(&tx, "b", LONG, 9).await?.is_empty());
                assert_eq!(ids(next(&tx, "b", &[], (LONG, 9)).await?), None);
                let first = next(&tx, "a", &[], (LONG, 1)).await?;
                assert_eq!(ids(first), Some(vec!["$2".to_owned()]));
                let rest = next(&tx, "a", &[two], (Duration::ZERO, 9)).await?;
                assert_eq!(ids(rest), Some(vec!["$3".to_owned()]));
                // Whoever does not say in time that it goes on has it no longer.
                assert_eq!(take_due(&tx, "b", LONG, 9).await?.len(), 1);
                assert_eq!(ids(next(&tx, "a", &[], (LONG, 9)).await?), None);
                let empty = next(&tx, "b", &[three], (LONG, 9)).await?;
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
                put_off(&tx, "b", &told(&[]), (Duration::ZERO, Some("first"))).await?;
                assert!(take_due(&tx, "b", LONG, 9).await?.is_empty(), "it is another's to put off");
                put_off(&tx, "a", &told(&[]), (LONG, Some("first"))).await?;
                assert!(add(&tx, "a", &[notice(two, 2)], LONG).await?.is_empty(), "it is left alone");
                // The client has set it anew.
                set(&tx, "second").await?;
                assert_eq!(take_due(&tx, "a", LONG, 9).await?[0].pusher, "second");
                let both = next(&tx, "a", &[], (LONG, 9)).await?.unwrap();
                assert_eq!((both.attempts, both.events.len()), (0, 2));
                // What the one before it could not be told of is no reason to leave it alone.
                put_off(&tx, "a", &told(&[]), (LONG, Some("first"))).await?;
                assert_eq!(take_due(&tx, "a", LONG, 9).await?[0].pusher, "second");
                reject(&tx, id, "first").await?;
                assert!(next(&tx, "a", &[], (LONG, 9)).await?.is_some(), "it was the other that is no more");
                reject(&tx, id, "second").await?;
                assert!(next(&tx, "a", &[], (LONG, 9)).await?.is_none());
                set(&tx, "third").await?;
                add(&tx, "a", &[notice(two, 2)], LONG).await?;
                assert_eq!(
                    next(&tx, "a", &[], (LONG, 9)).await?.unwrap().events.len(),
                    1,
                    "nothing from before"
                );
                Ok::<_, Error>(())
            })
            .await
            .unwrap();
    }
}
