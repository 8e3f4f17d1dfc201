//! Appending events to the rooms of one shard.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use keystead_core::{
    pdu::{Pdu, SignedPdu},
    room::membership_of,
    shard::{Shard, Shards},
};
use ruma::{
    MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedRoomId, RoomId,
    events::{TimelineEventType, room::member::MembershipState},
};
use sea_orm::{
    Value,
    sea_query::ArrayType::{self, BigInt, SmallInt, String as Text},
};

use super::{RoomHead, relations};
use crate::{
    Error, Store, WriteTx, keys, rows, streams,
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
    let state = state(tx, &append).await?;
    let memberships = memberships(tx, append.events).await?;
    let expected = append.done.len();
    let events = append.events.iter().map(|(position, event)| event_row(append.shard, *position, event));
    let related = append.events.iter().filter_map(|(position, event)| relations::row(&event.pdu, *position));
    let inserts = vec![
        state,
        memberships,
        Insert { table: "event_relations", columns: relations::COLUMNS, rows: related.collect(), suffix: "" },
        Insert { table: "events", columns: EVENT, rows: events.collect(), suffix: "" },
        Insert {
            table: "rooms",
            columns: HEAD,
            rows: head_rows(&append)?,
            suffix: "ON CONFLICT (room_id) DO UPDATE SET \
                     position = excluded.position, depth = excluded.depth, extremities = excluded.extremities, \
                     state_position = CASE WHEN excluded.state_position > rooms.state_position \
                     THEN excluded.state_position ELSE rooms.state_position END, \
                     relations_position = CASE WHEN rooms.relations_position = rooms.position \
                     THEN excluded.position ELSE rooms.relations_position END",
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

/// A message that is appended to a room.
pub struct Message<'a> {
    /// The room's shard.
    pub shard: Shard,
    /// By how many positions it comes after where the shard will stand: the first message of a shard has 1, the next one 2.
    pub after: i64,
    /// The event, neither state nor a redaction.
    pub event: &'a SignedPdu,
    /// The client's transaction id, which makes this event.
    pub transaction: ClientTransaction,
    /// Up to which position of the sender's own shard the session is known to be good; `None` if that needs no check.
    pub good_up_to: Option<i64>,
}

/// What became of messages.
#[derive(Debug, Default)]
pub struct Appended {
    /// The shards that were moved on, and where each stood before.
    pub shards: HashMap<Shard, i64>,
    /// The rooms whose messages were appended.
    pub rooms: HashSet<OwnedRoomId>,
}

impl Appended {
    /// Where the shard of a room stood before; `None` if the room's messages were not appended.
    pub fn before(&self, room_id: &RoomId, shard: Shard) -> Option<i64> {
        self.rooms.contains(room_id).then(|| self.shards.get(&shard).copied()).flatten()
    }
}

/// Appends messages to rooms of any shards by one call of a function in the database that is a transaction of itself: to those rooms whose
/// state has not changed since the position up to which they were `known`, where none of the transaction ids has been used and no session
/// has ended since it was known to be good. To the others nothing is written. The function is in `m0022_append_messages_by_index.sql`, why it is one in `m0018_append_messages.sql`.
///
/// Messages that other replicas have appended meanwhile are no obstacle: the new ones stand beside them in the room's graph, and
/// the next event follows both.
///
/// Only for PostgreSQL: SQLite has no functions and no other replicas.
///
/// # Errors
/// [`Error::Conflict`] if a transaction id is used at the same time through another replica; the database's own.
pub async fn append_messages(
    store: &Store,
    messages: Vec<Message<'_>>,
    known: &HashMap<OwnedRoomId, i64>,
    now: MilliSecondsSinceUnixEpoch,
) -> Result<Appended, Error> {
    if messages.is_empty() {
        return Ok(Appended::default());
    }
    let mut counts: BTreeMap<Shard, i64> = BTreeMap::new();
    messages.iter().for_each(|message| *counts.entry(message.shard).or_default() += 1);
    let wanted = counts.iter().map(|(shard, count)| vec![(*shard).into(), (*count).into()]);
    let related = messages.iter().filter_map(|message| relations::row(&message.event.pdu, message.after));
    let mut values = rows::columns(WANTED, wanted.collect());
    values.extend(rows::columns(MESSAGE_HEAD, message_heads(&messages, known)?));
    values.extend(rows::columns(RELATION, related.collect()));
    let messages = messages.into_iter().map(|message| message_row(store.shards(), message));
    values.extend(rows::columns(MESSAGE, messages.collect()));
    values.push(i64::from(now.0).into());
    let places: Vec<String> = (1..=values.len()).map(|number| format!("${number}")).collect();
    let sql = format!(
        "SELECT shard, before, room_id, appended FROM append_messages_by_index({})",
        places.join(", ")
    );
    let rows = match store.append_alone("append_messages", (&sql, &values)).await {
        // The connection was gone before the statement, as all are after a restart of the database; and if it was not, the
        // transaction ids tell.
        Err(error) if error.is_stale_connection() => return Ok(Appended::default()),
        result => result?,
    };
    let mut appended = Appended::default();
    for row in rows {
        appended.shards.insert(row.try_get("", "shard")?, row.try_get("", "before")?);
        if row.try_get("", "appended")? {
            appended.rooms.insert(streams::room_id(&row, "rooms")?);
        }
    }
    let reach = appended
        .shards
        .iter()
        .map(|(shard, before)| (*shard, before + counts.get(shard).copied().unwrap_or_default()));
    store.announce(reach.collect());
    Ok(appended)
}

const WANTED: &[ArrayType] = &[SmallInt, BigInt];
const MESSAGE_HEAD: &[ArrayType] = &[SmallInt, Text, BigInt, BigInt, BigInt, Text, Text];
const RELATION: &[ArrayType] = &[Text, BigInt, Text, Text, Text, Text, Text];
const MESSAGE: &[ArrayType] = &[SmallInt, BigInt, Text, Text, Text, Text, Text, Text, Text, SmallInt, BigInt];

fn message_row(shards: Shards, message: Message<'_>) -> Vec<Value> {
    let Message { shard, after, event, transaction, good_up_to } = message;
    let home = shards.of_user(&transaction.user_id);
    let mut row = vec![
        shard.into(),
        after.into(),
        event.pdu.room_id.as_str().into(),
        event.pdu.event_id.as_str().into(),
        event.json.as_str().into(),
    ];
    row.extend(transactions::key_values(&transaction));
    row.extend([home.into(), good_up_to.unwrap_or(i64::MAX).into()]);
    row
}

/// What appending does to where the rooms stand: up to which position each must not have changed, the last event's position,
/// the greatest depth, which events are followed now, and by which.
fn message_heads(
    messages: &[Message<'_>],
    known: &HashMap<OwnedRoomId, i64>,
) -> Result<Vec<Vec<Value>>, Error> {
    let mut rooms: BTreeMap<&OwnedRoomId, Vec<&Message<'_>>> = BTreeMap::new();
    for message in messages {
        rooms.entry(&message.event.pdu.room_id).or_default().push(message);
    }
    let row = |(room_id, messages): (&OwnedRoomId, Vec<&Message<'_>>)| {
        let pdus = || messages.iter().map(|message| &message.event.pdu);
        let consumed: BTreeSet<&OwnedEventId> = pdus().flat_map(|pdu| &pdu.prev_events).collect();
        let tips: Vec<_> =
            pdus().map(|pdu| &pdu.event_id).filter(|event_id| !consumed.contains(event_id)).collect();
        let text = |ids: serde_json::Result<String>| {
            ids.map_err(|error| Error::corrupt("rooms", "extremities", room_id.as_str(), error))
        };
        let depth = pdus().map(|pdu| pdu.depth).max().unwrap_or_default();
        let last = messages.last();
        Ok(vec![
            last.map(|message| message.shard).unwrap_or_default().into(),
            room_id.as_str().into(),
            known.get(room_id).copied().unwrap_or_default().into(),
            last.map(|message| message.after).unwrap_or_default().into(),
            i64::try_from(depth).unwrap_or(i64::MAX).into(),
            text(serde_json::to_string(&consumed))?.into(),
            text(serde_json::to_string(&tips))?.into(),
        ])
    };
    rooms.into_iter().map(row).collect()
}

const EVENT: &[&str] = &["shard", "position", "room_id", "event_id", "json", "device_id", "transaction_id"];
const HEAD: &[&str] = &[
    "room_id",
    "shard",
    "version",
    "position",
    "depth",
    "extremities",
    "state_position",
    "relations_position",
];

fn event_row(shard: Shard, position: i64, event: &SignedPdu) -> Vec<Value> {
    vec![
        shard.into(),
        position.into(),
        event.pdu.room_id.as_str().into(),
        event.pdu.event_id.as_str().into(),
        event.json.as_str().into(),
        event.pdu.sent_by.as_ref().map(|sent| sent.device_id.to_string()).into(),
        event.pdu.sent_by.as_ref().map(|sent| sent.transaction_id.clone()).into(),
    ]
}

/// The changes of state; those that they replace are told so here.
async fn state(tx: &WriteTx, append: &Append<'_>) -> Result<Insert<'static>, Error> {
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
    let columns = &["room_id", "event_type", "state_key", "position", "replaced_at"];
    Ok(Insert { table: "room_state", columns, rows, suffix: "" })
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

/// The changes of memberships; the users are held here.
async fn memberships(tx: &WriteTx, events: &[(i64, SignedPdu)]) -> Result<Insert<'static>, Error> {
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
    Ok(Insert {
        table: "memberships",
        columns: &["user_id", "room_id", "membership", "position", "forgotten"],
        rows,
        suffix: "ON CONFLICT (user_id, room_id) DO UPDATE SET \
                 membership = excluded.membership, position = excluded.position, forgotten = excluded.forgotten",
    })
}

fn head_rows(append: &Append<'_>) -> Result<Vec<Vec<Value>>, Error> {
    let mut state_changed: HashMap<&OwnedRoomId, i64> = HashMap::new();
    for (position, event) in append.events {
        if event.pdu.state_key.is_some() || event.pdu.redacts.is_some() {
            state_changed.insert(&event.pdu.room_id, *position);
        }
    }
    let row = |head: &RoomHead| {
        let extremities = serde_json::to_string(&head.extremities)
            .map_err(|error| Error::corrupt("rooms", "extremities", head.room_id.as_str(), error))?;
        Ok(vec![
            head.room_id.as_str().into(),
            head.shard.into(),
            head.version.as_str().into(),
            head.position.into(),
            i64::try_from(head.depth).unwrap_or(i64::MAX).into(),
            extremities.into(),
            state_changed.get(&head.room_id).copied().unwrap_or_default().into(),
            // Of a room that is made now: all its events are in this transaction.
            head.position.into(),
        ])
    };
    append.heads.iter().map(row).collect()
}
