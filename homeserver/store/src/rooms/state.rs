//! The state of a room at a position, out of what changed at which position.

use std::collections::HashMap;

use keystead_core::room::{RoomEvent, membership_of};
use ruma::{OwnedEventId, OwnedRoomId, RoomId, UserId, events::room::member::MembershipState};
use sea_orm::Value;

use super::StoredEvent;
use crate::{Error, ReadTx};

/// The state of a room after the event at `position`.
///
/// # Errors
/// The database's own, or a row that cannot be read.
pub async fn state_at(tx: &ReadTx, room_id: &RoomId, position: i64) -> Result<Vec<RoomEvent>, Error> {
    let sql = format!("{SELECT} WHERE s.room_id = $1 AND {VALID}");
    read(tx.query(&sql, [room_id.as_str().into(), position.into()]).await?)
}

/// The member events of a room after the event at `position`.
///
/// # Errors
/// The database's own, or a row that cannot be read.
pub async fn members_at(tx: &ReadTx, room_id: &RoomId, position: i64) -> Result<Vec<RoomEvent>, Error> {
    let sql = format!("{SELECT} WHERE s.room_id = $1 AND s.event_type = 'm.room.member' AND {VALID}");
    read(tx.query(&sql, [room_id.as_str().into(), position.into()]).await?)
}

/// The member events of some users of a room after the event at `position`.
///
/// # Errors
/// The database's own, or a row that cannot be read.
pub async fn members_of_at(
    tx: &ReadTx,
    room_id: &RoomId,
    position: i64,
    users: &[&UserId],
) -> Result<Vec<RoomEvent>, Error> {
    let mut members = Vec::new();
    for chunk in users.chunks(tx.rows_a_statement(1)) {
        let (users, values) = tx.any_of(3, chunk.iter().map(|user| user.as_str()));
        let sql = format!(
            "{SELECT} WHERE s.room_id = $1 AND s.event_type = 'm.room.member' AND {VALID} AND s.state_key {users}"
        );
        let room = [Value::from(room_id.as_str()), position.into()];
        members.extend(read(tx.query(&sql, room.into_iter().chain(values)).await?)?);
    }
    Ok(members)
}

/// The state of a room after the event at `position`, without its member events.
///
/// # Errors
/// The database's own, or a row that cannot be read.
pub async fn state_without_members_at(
    tx: &ReadTx,
    room_id: &RoomId,
    position: i64,
) -> Result<Vec<RoomEvent>, Error> {
    let sql = format!("{SELECT} WHERE s.room_id = $1 AND {VALID} AND s.event_type <> 'm.room.member'");
    read(tx.query(&sql, [room_id.as_str().into(), position.into()]).await?)
}

/// One state event of a room after the event at `position`, if the key was set then.
///
/// # Errors
/// The database's own, or a row that cannot be read.
pub async fn state_event_at(
    tx: &ReadTx,
    room_id: &RoomId,
    position: i64,
    (event_type, state_key): (&str, &str),
) -> Result<Option<RoomEvent>, Error> {
    let sql = format!("{SELECT} WHERE s.room_id = $1 AND {VALID} AND s.event_type = $3 AND s.state_key = $4");
    let values = [room_id.as_str().into(), position.into(), event_type.into(), state_key.into()];
    Ok(read(tx.query(&sql, values).await?)?.pop())
}

/// What was in force just before `position` for those keys that have changed since: the difference between the
/// state then and a newer one, to be laid over the newer one. Keys that were not set then are not among them.
///
/// # Errors
/// The database's own, or a row that cannot be read.
pub async fn state_before(tx: &ReadTx, room_id: &RoomId, position: i64) -> Result<Vec<RoomEvent>, Error> {
    let sql = format!("{SELECT} WHERE s.room_id = $1 AND s.position < $2 AND s.replaced_at >= $2");
    read(tx.query(&sql, [room_id.as_str().into(), position.into()]).await?)
}

/// The state events after one position that were still in force just before another: the change between two points.
///
/// # Errors
/// The database's own, or a row that cannot be read.
pub async fn state_between(
    tx: &ReadTx,
    room_id: &RoomId,
    after: i64,
    before: i64,
) -> Result<Vec<RoomEvent>, Error> {
    let sql = format!(
        "{SELECT} WHERE s.room_id = $1 AND s.position > $2 AND s.position < $3 \
         AND (s.replaced_at IS NULL OR s.replaced_at >= $3)"
    );
    read(tx.query(&sql, [room_id.as_str().into(), after.into(), before.into()]).await?)
}

/// What state events replaced: the event that their key was set by before, by the id of the one that replaced it.
///
/// Events that set their key for the first time have nothing there, nor have events that are not state.
///
/// # Errors
/// The database's own, or a row that cannot be read.
pub async fn replaced_by(
    tx: &ReadTx,
    events: &[&RoomEvent],
) -> Result<HashMap<OwnedEventId, RoomEvent>, Error> {
    let mut replaced = HashMap::new();
    let state: Vec<(&RoomEvent, &str)> =
        events.iter().filter_map(|event| Some((*event, event.pdu.state_key.as_deref()?))).collect();
    for chunk in state.chunks(tx.rows_a_statement(4)) {
        let keys = chunk.iter().map(|(event, state_key)| {
            let event_type = event.pdu.event_type.to_string();
            let key = [event.pdu.room_id.as_str(), &event_type, state_key].map(Value::from);
            key.into_iter().chain([event.position.into()]).collect()
        });
        let (keys, values) = tx.rows(1, keys.collect());
        // A prefix of the primary key, and a rest.
        let sql = format!("{SELECT} WHERE (s.room_id, s.event_type, s.state_key, s.replaced_at) IN ({keys})");
        let before = read(tx.query(&sql, values).await?)?;
        let mut by_key: HashMap<_, Vec<RoomEvent>> = HashMap::new();
        for event in before {
            by_key.entry(key_of(&event)).or_default().push(event);
        }
        for (event, _) in chunk {
            let newest = by_key.get(&key_of(event)).and_then(|before| {
                before.iter().filter(|before| before.position < event.position).max_by_key(|e| e.position)
            });
            replaced.extend(newest.map(|before| (event.pdu.event_id.clone(), before.clone())));
        }
    }
    Ok(replaced)
}

fn key_of(event: &RoomEvent) -> (OwnedRoomId, String, Option<String>) {
    (event.pdu.room_id.clone(), event.pdu.event_type.to_string(), event.pdu.state_key.clone())
}

/// The positions at which a user came into rooms that it is in: a later member event of somebody who is there is a new name or
/// picture. Rooms that the user is not in are left out.
///
/// # Errors
/// The database's own, or a row that cannot be read.
pub async fn joined_positions(
    tx: &ReadTx,
    room_ids: &[&RoomId],
    user_id: &UserId,
) -> Result<HashMap<OwnedRoomId, i64>, Error> {
    let mut joined = HashMap::new();
    for chunk in room_ids.chunks(tx.rows_a_statement(1)) {
        let (rooms, values) = tx.any_of(2, chunk.iter().map(|room_id| room_id.as_str()));
        let sql = format!(
            "{SELECT} WHERE s.room_id {rooms} AND s.event_type = 'm.room.member' AND s.state_key = $1 ORDER BY s.position"
        );
        let user = std::iter::once(Value::from(user_id.as_str()));
        for event in read(tx.query(&sql, user.chain(values)).await?)? {
            let room_id = event.pdu.room_id.clone();
            if membership_of(&event.pdu) == MembershipState::Join {
                joined.entry(room_id).or_insert(event.position);
            } else {
                joined.remove(&room_id);
            }
        }
    }
    Ok(joined)
}

/// Every event that a state key was ever set by, oldest first.
///
/// # Errors
/// The database's own, or a row that cannot be read.
pub async fn state_history(
    tx: &ReadTx,
    room_id: &RoomId,
    (event_type, state_key): (&str, &str),
) -> Result<Vec<RoomEvent>, Error> {
    let sql = format!(
        "{SELECT} WHERE s.room_id = $1 AND s.event_type = $2 AND s.state_key = $3 ORDER BY s.position"
    );
    read(tx.query(&sql, [room_id.as_str().into(), event_type.into(), state_key.into()]).await?)
}

const SELECT: &str = "SELECT e.position, e.room_id, e.event_id, e.json, e.redacted_by, e.device_id, e.transaction_id \
    FROM room_state s JOIN events e ON e.room_id = s.room_id AND e.position = s.position";

/// In force after the event at position `$2`.
const VALID: &str = "s.position <= $2 AND (s.replaced_at IS NULL OR s.replaced_at > $2)";

fn read(rows: Vec<sea_orm::QueryResult>) -> Result<Vec<RoomEvent>, Error> {
    rows.iter().map(|row| StoredEvent::from_row(row)?.into_room_event()).collect()
}
