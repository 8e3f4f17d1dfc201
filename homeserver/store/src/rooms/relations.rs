//! Which events of a room are the children of which.
//!
//! Whoever appends an event that relates to another notes it in the same transaction. Rooms from before that was done, and those to which a
//! replica of an older version has appended since, say in their row how far their relationships are known ([`index_relations`]).

use std::collections::{HashMap, HashSet};

use keystead_core::{
    keybox::{base64, sha256},
    pdu::Pdu,
    relations::{ANNOTATION, Place, REFERENCE, REPLACE, Relation, THREAD, place_of, relation_of},
    room::RoomEvent,
    shard::Shard,
};
use ruma::{EventId, OwnedEventId, OwnedRoomId, RoomId, UserId};
use sea_orm::{QueryResult, Value};

use super::{
    parse_event_id,
    timeline::{Bounds, Direction, events as events_by_id, read_event, rows_between},
};
use crate::{Error, ReadTx, Store, WriteTx, streams, transactions::ClientTransaction};

/// How many events one transaction looks through for relationships. With the last of them it holds up those who append.
const PAGE: u64 = 500;

/// Of so many replacements of an event at most, the newest, the most recent one is sought: by their senders' clocks they may stand in another
/// order than they came in.
const MAX_REPLACEMENTS: u32 = 50;
/// Among so many related events those of threads are sought that have not been read.
const MAX_THREADED: u32 = 1_000;
/// Over so many events at most one that relates to others is followed to its thread.
const MAX_HOPS: usize = 3;
/// So many of the events that refer to another are named with it at most, the newest.
const MAX_REFERENCES: u32 = 500;

pub(super) const COLUMNS: &[&str] =
    &["room_id", "position", "parent_id", "rel_type", "event_type", "sender", "annotation"];

/// The row of an event that relates to another.
pub(super) fn row(pdu: &Pdu, position: i64) -> Option<Vec<Value>> {
    let Relation { rel_type, parent, key } = relation_of(pdu)?;
    Some(vec![
        pdu.room_id.as_str().into(),
        position.into(),
        parent.as_str().into(),
        rel_type.into(),
        pdu.event_type.to_string().into(),
        pdu.sender.as_str().into(),
        key.as_deref().map(hash_of).into(),
    ])
}

/// What stands for the key of an annotation, which may be of any length and have any characters.
fn hash_of(key: &str) -> String {
    base64(&sha256(key.as_bytes()))
}

/// Brings the relationships of a room up to date, if they are not: to be called before they are asked for. Takes up to so many `pages`
/// of 500 events, from the oldest on; what was done lasts, and the next call goes on there.
///
/// Returns whether all of them are known now.
///
/// # Errors
/// The database's own.
pub async fn index_relations(store: &Store, room_id: &RoomId, pages: usize) -> Result<bool, Error> {
    let gap = store.read_one("relations_gap", |tx| async move { Gap::of(&tx, room_id).await }).await?;
    if gap.is_none() {
        return Ok(true);
    }
    for _ in 0..pages {
        if store.write("index_relations", |tx| async move { index_page(&tx, room_id).await }).await? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Rooms whose relationships are not all known: at most `limit`.
///
/// # Errors
/// The database's own, or a row that cannot be read.
pub async fn with_unindexed_relations(tx: &ReadTx, limit: u32) -> Result<Vec<OwnedRoomId>, Error> {
    let sql = format!("SELECT room_id FROM rooms WHERE relations_position < position LIMIT {limit}");
    tx.query(&sql, []).await?.iter().map(|row| streams::room_id(row, "rooms")).collect()
}

/// Forgets the relationships of a room, which is then as one from before they were noted: for tests, and for a table that was damaged.
///
/// # Errors
/// The database's own.
pub async fn forget_relations(tx: &WriteTx, room_id: &RoomId) -> Result<(), Error> {
    tx.execute("DELETE FROM event_relations WHERE room_id = $1", [room_id.as_str().into()]).await?;
    tx.execute("UPDATE rooms SET relations_position = 0 WHERE room_id = $1", [room_id.as_str().into()])
        .await?;
    Ok(())
}

/// The part of a room whose relationships are not known.
struct Gap {
    shard: Shard,
    bounds: Bounds,
}

impl Gap {
    async fn of(tx: &ReadTx, room_id: &RoomId) -> Result<Option<Self>, Error> {
        let rows = tx
            .query(
                "SELECT shard, relations_position, position FROM rooms \
                 WHERE room_id = $1 AND relations_position < position",
                [room_id.as_str().into()],
            )
            .await?;
        let Some(row) = rows.first() else { return Ok(None) };
        let bounds =
            Bounds { after: row.try_get("", "relations_position")?, upto: row.try_get("", "position")? };
        Ok(Some(Self { shard: row.try_get("", "shard")?, bounds }))
    }

    async fn rows(&self, tx: &ReadTx, room_id: &RoomId) -> Result<Vec<QueryResult>, Error> {
        rows_between(tx, room_id, self.bounds, Direction::Forward, PAGE).await
    }
}

/// Looks through the next events of a room; returns whether those were the last.
async fn index_page(tx: &WriteTx, room_id: &RoomId) -> Result<bool, Error> {
    let is_page = |rows: &[QueryResult]| u64::try_from(rows.len()).is_ok_and(|rows| rows >= PAGE);
    let Some(mut gap) = Gap::of(tx, room_id).await? else { return Ok(true) };
    let mut rows = gap.rows(tx, room_id).await?;
    if !is_page(&rows) {
        // The end is only known where nobody appends meanwhile.
        tx.lock_shards(&[gap.shard]).await?;
        gap = match Gap::of(tx, room_id).await? {
            Some(gap) => gap,
            None => return Ok(true),
        };
        rows = gap.rows(tx, room_id).await?;
    }
    let mut related = Vec::new();
    for found in &rows {
        let event = Error::pass_over(read_event(found))?;
        related.extend(event.and_then(|event| row(&event.pdu, event.position)));
    }
    // Those of newer replicas may be there already.
    tx.insert_rows("event_relations", COLUMNS, related, "ON CONFLICT DO NOTHING").await?;
    let upto = match rows.last().filter(|_| is_page(&rows)) {
        Some(last) => last.try_get("", "position")?,
        None => gap.bounds.upto,
    };
    tx.execute(
        "UPDATE rooms SET relations_position = $2 WHERE room_id = $1 AND relations_position < $2",
        [room_id.as_str().into(), upto.into()],
    )
    .await?;
    Ok(upto == gap.bounds.upto && !is_page(&rows))
}

/// Which descendants of an event are asked for.
#[derive(Clone, Copy, Debug)]
pub struct Related<'a> {
    /// The room.
    pub room_id: &'a RoomId,
    /// The event that they relate to.
    pub parent: &'a EventId,
    /// By which kind of relationship; those in between may be of any.
    pub rel_type: Option<&'a str>,
    /// Of which type they are.
    pub event_type: Option<&'a str>,
    /// How many steps away from `parent` they may be: 1 for its children alone.
    pub depth: u32,
}

/// The positions and the events that relate to an event, within `bounds` and in the order of `direction`: at most `limit`. Redacted events
/// relate to nothing. The event is `None` where it cannot be read ([`Error::pass_over`]).
///
/// # Errors
/// The database's own.
pub async fn related_events(
    tx: &ReadTx,
    related: Related<'_>,
    bounds: Bounds,
    direction: Direction,
    limit: u64,
) -> Result<Vec<(i64, Option<RoomEvent>)>, Error> {
    let Related { room_id, parent, rel_type, event_type, depth } = related;
    let mut values: Vec<Value> =
        vec![room_id.as_str().into(), parent.as_str().into(), bounds.after.into(), bounds.upto.into()];
    let mut wanted = String::new();
    for (column, value) in [("rel_type", rel_type), ("event_type", event_type)] {
        if let Some(value) = value {
            // No event has such a type, and PostgreSQL takes no such text.
            if value.contains('\0') {
                return Ok(Vec::new());
            }
            values.push(value.into());
            wanted.push_str(&format!(" AND r.{column} = ${}", values.len()));
        }
    }
    let order = if direction == Direction::Forward { "ASC" } else { "DESC" };
    let (with, found, of_parent) = if depth > 1 {
        (recursion(depth), "found", "")
    } else {
        (String::new(), "event_relations", " AND r.room_id = $1 AND r.parent_id = $2")
    };
    let sql = format!(
        "{with}SELECT e.position, e.room_id, e.event_id, e.json, e.redacted_by, e.device_id, e.transaction_id \
         FROM {found} r JOIN events e ON e.room_id = $1 AND e.position = r.position \
         WHERE r.position > $3 AND r.position <= $4 AND e.redacted_by IS NULL{of_parent}{wanted} \
         ORDER BY r.position {order} LIMIT {limit}"
    );
    let rows = tx.query(&sql, values).await?;
    rows.iter().map(|row| Ok((row.try_get("", "position")?, Error::pass_over(read_event(row))?))).collect()
}

/// The descendants of an event as `found`. An event has one parent, so they are a tree, and the depth ends what forged ids may make of it.
fn recursion(depth: u32) -> String {
    format!(
        "WITH RECURSIVE found (position, event_id, rel_type, event_type, depth) AS ( \
             SELECT r.position, e.event_id, r.rel_type, r.event_type, 1 FROM event_relations r \
             JOIN events e ON e.room_id = r.room_id AND e.position = r.position \
             WHERE r.room_id = $1 AND r.parent_id = $2 AND e.redacted_by IS NULL \
             UNION ALL \
             SELECT r.position, e.event_id, r.rel_type, r.event_type, f.depth + 1 FROM found f \
             JOIN event_relations r ON r.room_id = $1 AND r.parent_id = f.event_id \
             JOIN events e ON e.room_id = r.room_id AND e.position = r.position \
             WHERE f.depth < {depth} AND e.redacted_by IS NULL) "
    )
}

/// An annotation that a client sends.
#[derive(Clone, Debug)]
pub struct Annotation {
    /// The room.
    pub room_id: OwnedRoomId,
    /// The event that it is about.
    pub parent: OwnedEventId,
    /// Its type.
    pub event_type: String,
    /// What it says.
    pub key: String,
    /// The client's transaction that sends it.
    pub transaction: ClientTransaction,
}

/// Whether the sender of an annotation has sent the same before, by another transaction, and it was not redacted since.
///
/// # Errors
/// The database's own.
pub async fn is_annotated(tx: &ReadTx, annotation: &Annotation) -> Result<bool, Error> {
    let Annotation { room_id, parent, event_type, key, transaction } = annotation;
    let sql = "SELECT e.position FROM event_relations r JOIN events e ON e.room_id = r.room_id AND e.position = r.position \
               WHERE r.room_id = $1 AND r.parent_id = $2 AND r.sender = $3 AND r.annotation = $4 AND r.event_type = $5 \
               AND e.redacted_by IS NULL AND NOT (COALESCE(e.device_id, '') = $6 AND COALESCE(e.transaction_id, '') = $7) \
               LIMIT 1";
    let values: [Value; 7] = [
        room_id.as_str().into(),
        parent.as_str().into(),
        transaction.user_id.as_str().into(),
        hash_of(key).into(),
        event_type.as_str().into(),
        transaction.device_id.as_str().into(),
        transaction.transaction_id.as_str().into(),
    ];
    Ok(!tx.query(sql, values).await?.is_empty())
}

/// Whose view of a room is asked for.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// The user.
    pub user_id: &'a UserId,
    /// The parts of the room's timeline that the user may see.
    pub visible: &'a [Bounds],
    /// Users whose events count for nothing.
    pub ignored: &'a [&'a UserId],
}

impl View<'_> {
    /// The condition on a row `r` of `event_relations` and the event `e` that it is of, which were not redacted; adds its values to `values`.
    fn condition(&self, tx: &ReadTx, values: &mut Vec<Value>) -> String {
        let parts = self.visible.iter();
        let parts: Vec<_> = parts
            .map(|Bounds { after, upto }| format!("r.position > {after} AND r.position <= {upto}"))
            .collect();
        let visible = if parts.is_empty() { "1 = 0".to_owned() } else { parts.join(" OR ") };
        // No statement takes any number of values; half of what it takes is for the rest of it.
        let ignored = self.ignored.get(..tx.rows_a_statement(2).min(self.ignored.len())).unwrap_or_default();
        if ignored.is_empty() {
            return format!("e.redacted_by IS NULL AND ({visible})");
        }
        let (list, more) = tx.list(values.len() + 1, ignored.iter().map(|user_id| user_id.as_str()));
        values.extend(more);
        format!("e.redacted_by IS NULL AND ({visible}) AND r.sender NOT IN ({list})")
    }
}

/// A thread of a room.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Thread {
    /// The event that it begins with.
    pub root: OwnedEventId,
    /// The position of its newest event.
    pub latest: i64,
    /// Whether the user has sent one of the events that refer to the root.
    pub has_own: bool,
}

/// The threads of a room whose newest event does not lie after `upto`, in the descending order of those: at most `limit`. What is not in
/// the `view` and what was redacted counts for nothing.
///
/// # Errors
/// The database's own, or a row that cannot be read.
pub async fn newest_threads(
    tx: &ReadTx,
    room_id: &RoomId,
    view: View<'_>,
    upto: i64,
    limit: u64,
) -> Result<Vec<Thread>, Error> {
    let mut values: Vec<Value> = vec![room_id.as_str().into(), view.user_id.as_str().into(), upto.into()];
    let counts = view.condition(tx, &mut values);
    let sql = format!(
        "SELECT r.parent_id, MAX(r.position) AS latest, MAX(CASE WHEN r.sender = $2 THEN 1 ELSE 0 END) AS own \
         FROM event_relations r JOIN events e ON e.room_id = r.room_id AND e.position = r.position \
         WHERE r.room_id = $1 AND r.rel_type = '{THREAD}' AND {counts} \
         GROUP BY r.parent_id HAVING MAX(r.position) <= $3 ORDER BY latest DESC LIMIT {limit}"
    );
    let read = |row: &QueryResult| {
        let own: i32 = row.try_get("", "own")?;
        let latest = row.try_get("", "latest")?;
        Ok(Thread { root: parent_id(row)?, latest, has_own: own == 1 })
    };
    tx.query(&sql, values).await?.iter().map(read).collect()
}

/// The events of parts of rooms that may be in threads, oldest first, which were not redacted: those among the 1,000 newest events of each part that relate to
/// any other, without reactions and edits, which are no news. One that cannot be read is passed over ([`Error::pass_over`]).
///
/// # Errors
/// The database's own.
pub async fn threaded_events(tx: &ReadTx, parts: &[(OwnedRoomId, Bounds)]) -> Result<Vec<RoomEvent>, Error> {
    let mut events = Vec::new();
    for chunk in parts.chunks(tx.rows_a_statement(3)) {
        let wanted = chunk.iter().map(|(room_id, bounds)| {
            vec![Value::from(room_id.as_str()), bounds.after.into(), bounds.upto.into()]
        });
        let (wanted, values) = tx.rows(1, wanted.collect());
        // First where to begin, which walks the index backward and stops soon.
        let sql = format!(
            "WITH wanted (room_id, after, upto) AS ({wanted}), \
             reach AS MATERIALIZED (SELECT w.room_id, w.upto, COALESCE(( \
                 SELECT r.position FROM event_relations r \
                 WHERE r.room_id = w.room_id AND r.position > w.after AND r.position <= w.upto \
                 ORDER BY r.position DESC LIMIT 1 OFFSET {MAX_THREADED}), w.after) AS after FROM wanted w) \
             SELECT e.position, e.room_id, e.event_id, e.json, e.redacted_by, e.device_id, e.transaction_id FROM reach \
             JOIN event_relations r ON r.room_id = reach.room_id AND r.position > reach.after AND r.position <= reach.upto \
             JOIN events e ON e.room_id = r.room_id AND e.position = r.position \
             WHERE r.rel_type NOT IN ('{ANNOTATION}', '{REPLACE}') AND e.redacted_by IS NULL ORDER BY e.position"
        );
        for row in tx.query(&sql, values).await? {
            events.extend(Error::pass_over(read_event(&row))?);
        }
    }
    Ok(events)
}

/// The roots of the threads that events are part of, by the events' ids; those that are in none are left out.
///
/// An event that is in no thread by itself is where the event stands to which it relates, if that is in the same room, and so on, over at most three of them
/// ([spec]).
///
/// [spec]: https://spec.matrix.org/v1.19/client-server-api/#threaded-read-receipts
///
/// # Errors
/// The database's own.
pub async fn threads_of<'a>(
    tx: &ReadTx,
    events: impl IntoIterator<Item = &'a RoomEvent>,
) -> Result<HashMap<OwnedEventId, OwnedEventId>, Error> {
    let mut roots = HashMap::new();
    let mut beside = Vec::new();
    let mut look = |event_id: &OwnedEventId, pdu: &Pdu, beside: &mut Vec<_>| match place_of(pdu) {
        Place::Main => {}
        Place::Thread(root) => drop(roots.insert(event_id.clone(), root)),
        Place::Beside(parent) => beside.push((event_id.clone(), pdu.room_id.clone(), parent)),
    };
    events.into_iter().for_each(|event| look(&event.pdu.event_id, &event.pdu, &mut beside));
    for _ in 0..MAX_HOPS {
        if beside.is_empty() {
            break;
        }
        let wanted: HashSet<&EventId> = beside.iter().map(|(_, _, parent)| &**parent).collect();
        let wanted: Vec<&EventId> = wanted.into_iter().collect();
        let parents = Error::pass_over(events_by_id(tx, &wanted).await)?.unwrap_or_default();
        for (event_id, room_id, parent) in std::mem::take(&mut beside) {
            if let Some(parent) = parents.get(&parent).filter(|parent| parent.pdu.room_id == room_id) {
                look(&event_id, &parent.pdu, &mut beside);
            }
        }
    }
    Ok(roots)
}

/// A child of an event, one of the newest of its kind.
#[derive(Clone, Debug)]
pub struct Child {
    /// The parent.
    pub parent: OwnedEventId,
    /// The kind of relationship.
    pub rel_type: String,
    /// Its id.
    pub event_id: OwnedEventId,
    /// How many children the parent has that relate to it in the same way.
    pub siblings: i64,
    /// Whether the user has sent one of those.
    pub has_own: bool,
}

/// Children of events of a room, oldest first: those in the `view` that were not redacted, of each parent and kind of relationship (of
/// references, replacements by the parent's sender and threads) the newest. The parents are given with their senders.
///
/// # Errors
/// The database's own, or a row that cannot be read.
pub async fn children(
    tx: &ReadTx,
    room_id: &RoomId,
    parents: &[(&EventId, &UserId)],
    view: View<'_>,
) -> Result<Vec<Child>, Error> {
    let mut children = Vec::new();
    // As many values again are left for the users who are ignored.
    for chunk in parents.chunks((tx.rows_a_statement(2) / 4).max(1)) {
        let mut values: Vec<Value> = vec![room_id.as_str().into(), view.user_id.as_str().into()];
        let wanted =
            chunk.iter().map(|(parent, sender)| vec![parent.as_str().into(), sender.as_str().into()]);
        let (wanted, more) = tx.rows(values.len() + 1, wanted.collect());
        values.extend(more);
        let counts = view.condition(tx, &mut values);
        let sql = format!(
            "WITH wanted (parent_id, sender) AS ({wanted}), found AS ( \
                 SELECT r.parent_id, r.rel_type, r.position, e.event_id, \
                 ROW_NUMBER() OVER (PARTITION BY r.parent_id, r.rel_type ORDER BY r.position DESC) AS place, \
                 COUNT(*) OVER (PARTITION BY r.parent_id, r.rel_type) AS siblings, \
                 MAX(CASE WHEN r.sender = $2 THEN 1 ELSE 0 END) OVER (PARTITION BY r.parent_id, r.rel_type) AS own \
                 FROM wanted w JOIN event_relations r ON r.room_id = $1 AND r.parent_id = w.parent_id \
                 JOIN events e ON e.room_id = r.room_id AND e.position = r.position \
                 WHERE (r.rel_type IN ('{REFERENCE}', '{THREAD}') OR r.rel_type = '{REPLACE}' AND r.sender = w.sender) \
                 AND {counts}) \
             SELECT parent_id, rel_type, event_id, siblings, own FROM found WHERE place <= CASE rel_type \
             WHEN '{THREAD}' THEN 1 WHEN '{REPLACE}' THEN {MAX_REPLACEMENTS} ELSE {MAX_REFERENCES} END ORDER BY position"
        );
        for row in tx.query(&sql, values).await? {
            let event_id: String = row.try_get("", "event_id")?;
            let own: i32 = row.try_get("", "own")?;
            children.push(Child {
                parent: parent_id(&row)?,
                rel_type: row.try_get("", "rel_type")?,
                event_id: parse_event_id("event_id", &event_id)?,
                siblings: row.try_get("", "siblings")?,
                has_own: own == 1,
            });
        }
    }
    Ok(children)
}

/// Those of the events, given with their rooms, that may have children: in a room whose relationships are not all known, any may.
///
/// # Errors
/// The database's own, or a row that cannot be read.
pub async fn possible_parents(
    tx: &ReadTx,
    events: &[(&RoomId, &EventId)],
) -> Result<HashSet<OwnedEventId>, Error> {
    let mut parents = HashSet::new();
    for chunk in events.chunks(tx.rows_a_statement(2)) {
        let wanted =
            chunk.iter().map(|(room_id, event_id)| vec![room_id.as_str().into(), event_id.as_str().into()]);
        let (wanted, values) = tx.rows(1, wanted.collect());
        // Not EXISTS: while PostgreSQL believes that there are few relationships, it would read all of them first.
        let sql = format!(
            "WITH wanted (room_id, parent_id) AS ({wanted}) SELECT w.parent_id FROM wanted w \
             WHERE (SELECT 1 FROM event_relations r \
             WHERE r.room_id = w.room_id AND r.parent_id = w.parent_id LIMIT 1) = 1 \
             OR EXISTS (SELECT 1 FROM rooms WHERE rooms.room_id = w.room_id AND rooms.relations_position < rooms.position)"
        );
        for row in tx.query(&sql, values).await? {
            parents.insert(parent_id(&row)?);
        }
    }
    Ok(parents)
}

fn parent_id(row: &QueryResult) -> Result<OwnedEventId, Error> {
    let id: String = row.try_get("", "parent_id")?;
    OwnedEventId::try_from(id.as_str())
        .map_err(|error| Error::corrupt("event_relations", "parent_id", &id, error))
}
