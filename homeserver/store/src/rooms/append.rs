//! Appending events to the rooms of one shard.

use std::collections::HashMap;

use keystead_core::{
    pdu::{Pdu, SignedPdu},
    room::membership_of,
    shard::Shard,
};
use ruma::{
    MilliSecondsSinceUnixEpoch, OwnedRoomId,
    events::{TimelineEventType, room::member::MembershipState},
};
use sea_orm::{DbBackend, Value};

use super::RoomHead;
use crate::{
    Error, Store, WriteTx, keys, rows,
    transactions::{self, ClientTransaction},
    tx::Insert,
};

/// What one transaction appends to the rooms of one shard.
pub struct Append<'a> {
    /// The shard, which the transaction has locked.
    pub shard: Shard,
    /// The events with the positions that they have been given, in that order.
    pub events: &'a [(i64, SignedPdu)],
    /// The position that each state event of `events` replaces, if its key was set before: from the room's state.
    pub replaced: &'a HashMap<(OwnedRoomId, String, String), i64>,
    /// Where each room of `events` stands afterwards.
    pub heads: &'a [RoomHead],
    /// The clients' transaction ids that `events` came with, and what each has done.
    pub done: Vec<(ClientTransaction, String)>,
    /// When the newest of those requests came.
    pub now: MilliSecondsSinceUnixEpoch,
}

/// Writes events, what they change of their rooms' state and of memberships, where the rooms stand, and the transaction ids
/// of their clients.
///
/// # Errors
/// [`Error::Conflict`] if an event is there already, or a transaction id has been used; the database's own.
pub async fn append(tx: &WriteTx, append: Append<'_>) -> Result<(), Error> {
    append_state(tx, &append).await?;
    upsert_memberships(tx, append.events).await?;
    let expected = append.done.len();
    let inserts = vec![
        Insert { table: "events", columns: EVENT, rows: event_rows(&append), suffix: "" },
        Insert {
            table: "rooms",
            columns: HEAD,
            rows: head_rows(append.heads)?,
            suffix: "ON CONFLICT (room_id) DO UPDATE SET \
                     position = excluded.position, depth = excluded.depth, extremities = excluded.extremities",
        },
        Insert {
            table: "client_transactions",
            columns: transactions::COLUMNS,
            rows: transactions::rows(append.done, append.now),
            // An error would stand in PostgreSQL's log, though nothing is wrong.
            suffix: "ON CONFLICT DO NOTHING",
        },
    ];
    let inserted = tx.insert_together(inserts).await?;
    if expected > 0 && usize::try_from(inserted).ok() != Some(expected) {
        return Err(Error::Conflict("client_transactions".to_owned()));
    }
    Ok(())
}

/// [`append`] of messages, in a single statement that is a transaction of itself, if the shard still stands where their
/// positions begin and none of their transaction ids has been used; else nothing is written. Returns which it was.
///
/// `events` hold no state. Nothing is ever written so on SQLite, which has no such statement, nor what came without a
/// transaction id.
///
/// # Errors
/// As [`append`].
pub async fn append_messages(store: &Store, append: &Append<'_>) -> Result<bool, Error> {
    let (Some((first, _)), Some((last, _))) = (append.events.first(), append.events.last()) else {
        return Ok(false);
    };
    if append.done.len() != append.events.len() || !store.is_shared() {
        return Ok(false);
    }
    let mut values: Vec<Value> = vec![append.shard.into(), (first - 1).into(), (*last).into()];
    let mut given = |rows: Vec<Vec<Value>>| {
        let (sql, mut more) = rows::rows(DbBackend::Postgres, values.len() + 1, rows);
        values.append(&mut more);
        sql
    };
    let done = given(transactions::rows(append.done.clone(), append.now));
    let events = given(event_rows(append));
    let heads = given(head_rows(append.heads)?);
    let (transaction, event, head) = (transactions::COLUMNS.join(", "), EVENT.join(", "), HEAD.join(", "));
    // Whoever else appends to the shard holds its row until the commit; the update waits for that and then sees that the shard
    // has moved. Transaction ids of a room are written with the shard's row held, so that none can come in between.
    let sql = format!(
        "WITH done ({transaction}) AS MATERIALIZED ({done}), \
         heads ({head}) AS MATERIALIZED ({heads}), \
         moved AS (UPDATE stream_shards SET position = $3 WHERE shard = $1 AND position = $2 AND NOT EXISTS ( \
             SELECT FROM done JOIN client_transactions t ON t.user_id = done.user_id \
             AND t.device_id = done.device_id AND t.kind = done.kind AND t.transaction_id = done.transaction_id) \
             RETURNING stream_shards.shard), \
         event AS (INSERT INTO events ({event}) {events}, moved), \
         head AS (UPDATE rooms SET position = heads.position, depth = heads.depth, \
             extremities = heads.extremities FROM heads, moved WHERE rooms.room_id = heads.room_id), \
         noted AS (INSERT INTO client_transactions ({transaction}) SELECT done.* FROM done, moved) \
         SELECT shard FROM moved"
    );
    match store.append_alone("append_messages", (&sql, &values), (append.shard, *last)).await {
        // The connection was gone before the statement, as all are after a restart of the database; and if it was not, the
        // transaction ids tell.
        Err(error) if error.is_stale_connection() => Ok(false),
        result => result,
    }
}

const EVENT: &[&str] = &["shard", "position", "room_id", "event_id", "json", "device_id", "transaction_id"];
const HEAD: &[&str] = &["room_id", "shard", "version", "position", "depth", "extremities"];

fn event_rows(append: &Append<'_>) -> Vec<Vec<Value>> {
    let row = |(position, event): &(i64, SignedPdu)| {
        vec![
            append.shard.into(),
            (*position).into(),
            event.pdu.room_id.as_str().into(),
            event.pdu.event_id.as_str().into(),
            event.json.as_str().into(),
            event.pdu.sent_by.as_ref().map(|sent| sent.device_id.to_string()).into(),
            event.pdu.sent_by.as_ref().map(|sent| sent.transaction_id.clone()).into(),
        ]
    };
    append.events.iter().map(row).collect()
}

async fn append_state(tx: &WriteTx, append: &Append<'_>) -> Result<(), Error> {
    let mut rows: Vec<Vec<Value>> = Vec::new();
    let mut newest: HashMap<(&str, String, &str), usize> = HashMap::new();
    for (position, event) in append.events {
        let Some(state_key) = &event.pdu.state_key else { continue };
        let event_type = event.pdu.event_type.to_string();
        let key = (event.pdu.room_id.as_str(), event_type.clone(), state_key.as_str());
        match newest.get(&key).and_then(|row| rows.get_mut(*row)).and_then(|row| row.last_mut()) {
            // An event of the same batch is replaced by this one.
            Some(replaced_at) => *replaced_at = (*position).into(),
            None => {
                let before = (event.pdu.room_id.clone(), event_type.clone(), state_key.clone());
                if let Some(before) = append.replaced.get(&before) {
                    replace(tx, &event.pdu, &event_type, state_key, (*before, *position)).await?;
                }
            }
        }
        newest.insert(key, rows.len());
        rows.push(vec![
            event.pdu.room_id.as_str().into(),
            event_type.into(),
            state_key.as_str().into(),
            (*position).into(),
            Value::BigInt(None),
        ]);
    }
    let columns = ["room_id", "event_type", "state_key", "position", "replaced_at"];
    tx.insert_rows("room_state", &columns, rows, "").await
}

async fn replace(
    tx: &WriteTx,
    pdu: &Pdu,
    event_type: &str,
    state_key: &str,
    (before, now): (i64, i64),
) -> Result<(), Error> {
    tx.execute(
        "UPDATE room_state SET replaced_at = $5 \
         WHERE room_id = $1 AND event_type = $2 AND state_key = $3 AND position = $4",
        [pdu.room_id.as_str().into(), event_type.into(), state_key.into(), before.into(), now.into()],
    )
    .await?;
    Ok(())
}

async fn upsert_memberships(tx: &WriteTx, events: &[(i64, SignedPdu)]) -> Result<(), Error> {
    // One row a user and room, or the statement would touch a row twice.
    let mut newest = HashMap::new();
    for (position, event) in events {
        if let (TimelineEventType::RoomMember, Some(user_id)) = (&event.pdu.event_type, &event.pdu.state_key)
        {
            newest.insert(
                (user_id.as_str(), event.pdu.room_id.as_str()),
                (*position, membership_of(&event.pdu)),
            );
        }
    }
    let arriving = newest
        .iter()
        .filter(|(_, (_, membership))| matches!(membership, MembershipState::Join | MembershipState::Invite))
        .map(|((user_id, _), _)| *user_id)
        .collect();
    keys::hold_memberships(tx, &arriving).await?;
    let rows = newest
        .into_iter()
        .map(|((user_id, room_id), (position, membership))| {
            vec![user_id.into(), room_id.into(), membership.as_str().into(), position.into(), false.into()]
        })
        .collect();
    tx.insert_rows(
        "memberships",
        &["user_id", "room_id", "membership", "position", "forgotten"],
        rows,
        "ON CONFLICT (user_id, room_id) DO UPDATE SET \
         membership = excluded.membership, position = excluded.position, forgotten = excluded.forgotten",
    )
    .await
}

fn head_rows(heads: &[RoomHead]) -> Result<Vec<Vec<Value>>, Error> {
    heads
        .iter()
        .map(|head| {
            let extremities = serde_json::to_string(&head.extremities)
                .map_err(|error| Error::corrupt("rooms", "extremities", head.room_id.as_str(), error))?;
            Ok(vec![
                head.room_id.as_str().into(),
                head.shard.into(),
                head.version.as_str().into(),
                head.position.into(),
                i64::try_from(head.depth).unwrap_or(i64::MAX).into(),
                extremities.into(),
            ])
        })
        .collect()
}
