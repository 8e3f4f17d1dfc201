//! Appending events to the rooms of one shard.

use std::collections::HashMap;

use keystead_core::{
    pdu::{Pdu, SignedPdu},
    room::membership_of,
    shard::Shard,
};
use ruma::{
    OwnedRoomId,
    events::{TimelineEventType, room::member::MembershipState},
};
use sea_orm::Value;

use super::RoomHead;
use crate::{Error, WriteTx, keys};

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
}

/// Writes events, what they change of their rooms' state and of memberships, and where the rooms stand.
///
/// # Errors
/// [`Error::Conflict`] if an event is there already; the database's own.
pub async fn append(tx: &WriteTx, append: &Append<'_>) -> Result<(), Error> {
    let events = append
        .events
        .iter()
        .map(|(position, event)| {
            vec![
                append.shard.into(),
                (*position).into(),
                event.pdu.room_id.as_str().into(),
                event.pdu.event_id.as_str().into(),
                event.json.as_str().into(),
                event.pdu.sent_by.as_ref().map(|sent| sent.device_id.to_string()).into(),
                event.pdu.sent_by.as_ref().map(|sent| sent.transaction_id.clone()).into(),
            ]
        })
        .collect();
    let columns = ["shard", "position", "room_id", "event_id", "json", "device_id", "transaction_id"];
    tx.insert_rows("events", &columns, events, "").await?;
    append_state(tx, append).await?;
    upsert_memberships(tx, append.events).await?;
    upsert_heads(tx, append.heads).await
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

async fn upsert_heads(tx: &WriteTx, heads: &[RoomHead]) -> Result<(), Error> {
    let rows = heads
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
        .collect::<Result<_, Error>>()?;
    tx.insert_rows(
        "rooms",
        &["room_id", "shard", "version", "position", "depth", "extremities"],
        rows,
        "ON CONFLICT (room_id) DO UPDATE SET \
         position = excluded.position, depth = excluded.depth, extremities = excluded.extremities",
    )
    .await
}
