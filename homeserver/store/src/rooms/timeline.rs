//! Events of rooms in the order of their positions.

use std::collections::HashMap;

use keystead_core::{room::RoomEvent, shard::Shard};
use ruma::{EventId, OwnedEventId, OwnedRoomId, RoomId};
use sea_orm::{QueryResult, Value};

use super::{StoredEvent, parse_event_id};
use crate::{Error, ReadTx, WriteTx};

/// Which way to read.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Direction {
    /// From the oldest to the newest.
    Forward,
    /// From the newest to the oldest.
    Backward,
}

/// A part of a room's timeline: after one position, up to and with another.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Bounds {
    /// Events after this position.
    pub after: i64,
    /// Events up to this position.
    pub upto: i64,
}

/// One event of a room by its id.
///
/// # Errors
/// The database's own, or a row that cannot be read.
pub async fn event(tx: &ReadTx, room_id: &RoomId, event_id: &EventId) -> Result<Option<RoomEvent>, Error> {
    stored_event(tx, room_id, event_id).await?.map(StoredEvent::into_room_event).transpose()
}

/// Several events by their ids, of whatever room; those that are not there are left out.
///
/// # Errors
/// The database's own, or a row that cannot be read.
pub async fn events(tx: &ReadTx, event_ids: &[&EventId]) -> Result<HashMap<OwnedEventId, RoomEvent>, Error> {
    let mut events = HashMap::new();
    for chunk in event_ids.chunks(tx.rows_a_statement(1)) {
        let (wanted, values) = tx.any_of(1, chunk.iter().map(|id| id.as_str()));
        let sql = format!(
            "SELECT position, room_id, event_id, json, redacted_by, device_id, transaction_id FROM events \
             WHERE event_id {wanted}"
        );
        for row in tx.query(&sql, values).await? {
            let event = read_event(&row)?;
            events.insert(event.pdu.event_id.clone(), event);
        }
    }
    Ok(events)
}

/// The stored JSON of several events by their ids, of whatever room, with their hashes and signatures; those that are not there are
/// left out.
///
/// # Errors
/// The database's own, or a row that cannot be read.
pub async fn stored_json(
    tx: &ReadTx,
    event_ids: &[&EventId],
) -> Result<HashMap<OwnedEventId, String>, Error> {
    let mut stored = HashMap::new();
    for chunk in event_ids.chunks(tx.rows_a_statement(1)) {
        let (wanted, values) = tx.any_of(1, chunk.iter().map(|id| id.as_str()));
        let sql = format!("SELECT event_id, json FROM events WHERE event_id {wanted}");
        for row in tx.query(&sql, values).await? {
            let event_id: String = row.try_get("", "event_id")?;
            stored.insert(parse_event_id("event_id", &event_id)?, row.try_get("", "json")?);
        }
    }
    Ok(stored)
}

/// One event of a room by its id, as it is stored.
///
/// # Errors
/// The database's own, or a row that cannot be read.
pub async fn stored_event(
    tx: &ReadTx,
    room_id: &RoomId,
    event_id: &EventId,
) -> Result<Option<StoredEvent>, Error> {
    let rows = tx
        .query(
            "SELECT position, room_id, event_id, json, redacted_by, device_id, transaction_id FROM events WHERE event_id = $1 AND room_id = $2",
            [event_id.as_str().into(), room_id.as_str().into()],
        )
        .await?;
    rows.first().map(StoredEvent::from_row).transpose()
}

/// At most `limit` events of a room within `bounds`, in the direction given. One that cannot be read is passed over
/// ([`Error::pass_over`]).
///
/// # Errors
/// The database's own.
pub async fn events_between(
    tx: &ReadTx,
    room_id: &RoomId,
    bounds: Bounds,
    direction: Direction,
    limit: u64,
) -> Result<Vec<RoomEvent>, Error> {
    let (mut events, mut bounds) = (Vec::new(), bounds);
    loop {
        let missing = limit.saturating_sub(u64::try_from(events.len()).unwrap_or(u64::MAX));
        let rows = rows_between(tx, room_id, bounds, direction, missing).await?;
        let readable = events.len();
        for row in &rows {
            events.extend(Error::pass_over(read_event(row))?);
        }
        // Fewer than asked for would be taken for the end of the timeline.
        let Some(last) = rows.last().filter(|_| events.len() - readable < rows.len()) else {
            return Ok(events);
        };
        let position: i64 = last.try_get("", "position")?;
        match direction {
            Direction::Forward => bounds.after = position,
            Direction::Backward => bounds.upto = position - 1,
        }
    }
}

/// All events of a room within `bounds`, oldest first, of which none is passed over: for bringing a room's state up to date.
///
/// # Errors
/// The database's own, or a row that cannot be read.
pub async fn all_events_between(
    tx: &ReadTx,
    room_id: &RoomId,
    bounds: Bounds,
) -> Result<Vec<RoomEvent>, Error> {
    let rows = rows_between(tx, room_id, bounds, Direction::Forward, u64::from(u32::MAX)).await?;
    rows.iter().map(read_event).collect()
}

/// The first events of a shard within `bounds`, of whatever rooms, at most `limit`. One that cannot be read is passed over
/// ([`Error::pass_over`]). Returns as well up to where that is all.
///
/// # Errors
/// The database's own.
pub async fn events_of_shard(
    tx: &ReadTx,
    shard: Shard,
    bounds: Bounds,
    limit: usize,
) -> Result<(Vec<RoomEvent>, i64), Error> {
    let sql = format!(
        "SELECT position, room_id, event_id, json, redacted_by, device_id, transaction_id FROM events \
         WHERE shard = $1 AND position > $2 AND position <= $3 ORDER BY position LIMIT {limit}"
    );
    let rows = tx.query(&sql, [shard.into(), bounds.after.into(), bounds.upto.into()]).await?;
    let reach = match rows.last() {
        Some(last) if rows.len() == limit => last.try_get("", "position")?,
        _ => bounds.upto,
    };
    let mut events = Vec::with_capacity(rows.len());
    for row in &rows {
        events.extend(Error::pass_over(read_event(row))?);
    }
    Ok((events, reach))
}

pub(super) async fn rows_between(
    tx: &ReadTx,
    room_id: &RoomId,
    bounds: Bounds,
    direction: Direction,
    limit: u64,
) -> Result<Vec<QueryResult>, Error> {
    let order = if direction == Direction::Forward { "ASC" } else { "DESC" };
    let sql = format!(
        "SELECT position, room_id, event_id, json, redacted_by, device_id, transaction_id FROM events \
         WHERE room_id = $1 AND position > $2 AND position <= $3 ORDER BY position {order} LIMIT {limit}"
    );
    tx.query(&sql, [room_id.as_str().into(), bounds.after.into(), bounds.upto.into()]).await
}

/// The newest event of a room within `bounds`.
///
/// # Errors
/// The database's own, or a row that cannot be read.
pub async fn newest(tx: &ReadTx, room_id: &RoomId, bounds: Bounds) -> Result<Option<RoomEvent>, Error> {
    Ok(events_between(tx, room_id, bounds, Direction::Backward, 1).await?.pop())
}

/// The newest events of many rooms, newest first: of each at most `limit` within its bounds. One that cannot be read is passed over
/// ([`Error::pass_over`]).
///
/// # Errors
/// The database's own.
pub async fn timelines(
    tx: &ReadTx,
    rooms: &[(OwnedRoomId, Bounds)],
    limit: u64,
) -> Result<HashMap<OwnedRoomId, Vec<RoomEvent>>, Error> {
    let mut timelines: HashMap<OwnedRoomId, Vec<RoomEvent>> = HashMap::new();
    for chunk in rooms.chunks(tx.rows_a_statement(3)) {
        let wanted = chunk.iter().map(|(room_id, bounds)| {
            vec![Value::from(room_id.as_str()), bounds.after.into(), bounds.upto.into()]
        });
        let (wanted, values) = tx.rows(1, wanted.collect());
        // First where each timeline begins, which walks the index backward and stops at the limit.
        let sql = format!(
            "WITH wanted (room_id, after, upto) AS ({wanted}), \
             reach AS MATERIALIZED (SELECT w.room_id, w.upto, COALESCE(( \
                 SELECT e.position FROM events e \
                 WHERE e.room_id = w.room_id AND e.position > w.after AND e.position <= w.upto \
                 ORDER BY e.position DESC LIMIT 1 OFFSET {limit}), w.after) AS after FROM wanted w) \
             SELECT e.position, e.room_id, e.event_id, e.json, e.redacted_by, e.device_id, e.transaction_id \
             FROM reach r JOIN events e \
             ON e.room_id = r.room_id AND e.position > r.after AND e.position <= r.upto"
        );
        for row in tx.query(&sql, values).await? {
            if let Some(event) = Error::pass_over(read_event(&row))? {
                timelines.entry(event.pdu.room_id.clone()).or_default().push(event);
            }
        }
    }
    for timeline in timelines.values_mut() {
        timeline.sort_unstable_by_key(|event| std::cmp::Reverse(event.position));
    }
    Ok(timelines)
}

pub(super) fn read_event(row: &QueryResult) -> Result<RoomEvent, Error> {
    StoredEvent::from_row(row)?.into_room_event()
}

/// Puts the redacted form of an event in the place of the event. Its first redaction stays its redaction.
///
/// # Errors
/// The database's own.
pub async fn redact(
    tx: &WriteTx,
    event_id: &EventId,
    json: &str,
    redacted_by: &EventId,
) -> Result<(), Error> {
    tx.execute(
        "UPDATE events SET json = $2, redacted_by = $3 WHERE event_id = $1 AND redacted_by IS NULL",
        [event_id.as_str().into(), json.into(), redacted_by.as_str().into()],
    )
    .await?;
    Ok(())
}
