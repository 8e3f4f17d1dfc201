//! Rooms: their events, their state and who is in them.

mod append;
pub(crate) mod contacts;
mod relations;
mod search;
mod state;
mod timeline;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use keystead_core::{
    pdu::{ClientSend, Pdu},
    room::{RoomEvent, RoomState},
    shard::Shard,
};
use ruma::{
    OwnedEventId, OwnedRoomId, OwnedUserId, RoomId, RoomVersionId, UserId,
    events::room::member::MembershipState,
};
use sea_orm::{QueryResult, Value};

pub use self::{
    append::{Append, Appended, Message, append, append_messages},
    contacts::share_room,
    relations::{
        Annotation, Child, Related, Thread, View, children, forget_relations, index_relations, is_annotated,
        newest_threads, possible_parents, related_events, threaded_events, threads_of,
        with_unindexed_relations,
    },
    search::{WithWords, with_words},
    state::{
        joined_positions, members_at, members_of_at, replaced_by, state_at, state_before, state_between,
        state_event_at, state_history, state_without_members_at,
    },
    timeline::{
        Bounds, Direction, all_events_between, event, events, events_between, events_of_shard, newest,
        redact, stored_event, stored_json, timelines,
    },
};
use crate::{Error, ReadTx, WriteTx, streams};

/// A row of the table of events.
#[derive(Clone, Debug)]
pub struct StoredEvent {
    /// Where it stands in the shard of its room.
    pub position: i64,
    /// Its room.
    pub room_id: OwnedRoomId,
    /// Its id.
    pub event_id: OwnedEventId,
    /// The whole event as canonical JSON; redacted, if it was redacted.
    pub json: String,
    /// The redaction that emptied it.
    pub redacted_by: Option<OwnedEventId>,
    /// How a client of this server sent it.
    pub sent_by: Option<ClientSend>,
}

/// A row of the table of rooms: where the room stands.
#[derive(Clone, Debug)]
pub struct RoomHead {
    /// The room.
    pub room_id: OwnedRoomId,
    /// The shard that its stream lies in.
    pub shard: Shard,
    /// Its version.
    pub version: RoomVersionId,
    /// The position of its newest event.
    pub position: i64,
    /// The greatest depth of `extremities`.
    pub depth: u64,
    /// The events that nothing follows yet.
    pub extremities: Vec<OwnedEventId>,
}

/// A user's newest membership of a room.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Membership {
    /// The room.
    pub room_id: OwnedRoomId,
    /// `join`, `invite`, `leave`, `ban` or `knock`.
    pub membership: MembershipState,
    /// The position of the member event.
    pub position: i64,
    /// Whether the user has forgotten the room after leaving it.
    pub forgotten: bool,
}

impl StoredEvent {
    /// Reads the columns `position, room_id, event_id, json, redacted_by, device_id, transaction_id`.
    pub(crate) fn from_row(row: &QueryResult) -> Result<Self, Error> {
        let redacted_by: Option<String> = row.try_get("", "redacted_by")?;
        let event_id: String = row.try_get("", "event_id")?;
        let device_id: Option<String> = row.try_get("", "device_id")?;
        let transaction_id: Option<String> = row.try_get("", "transaction_id")?;
        Ok(Self {
            position: row.try_get("", "position")?,
            room_id: streams::room_id(row, "events")?,
            event_id: parse_event_id("event_id", &event_id)?,
            json: row.try_get("", "json")?,
            redacted_by: redacted_by.map(|id| parse_event_id("redacted_by", &id)).transpose()?,
            sent_by: device_id.zip(transaction_id).map(|(device, transaction_id)| ClientSend {
                device_id: device.as_str().into(),
                transaction_id,
            }),
        })
    }

    /// The event in the form that the rules work on.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if the JSON is not an event.
    pub fn into_room_event(self) -> Result<RoomEvent, Error> {
        let mut pdu = Pdu::from_json(self.event_id.clone(), self.room_id, &self.json)
            .map_err(|error| Error::corrupt("events", "json", self.event_id.as_str(), error))?;
        pdu.redacted_by = self.redacted_by;
        pdu.sent_by = self.sent_by;
        Ok(RoomEvent { position: self.position, pdu: Arc::new(pdu) })
    }
}

/// Where a room stands, if the server knows it.
///
/// # Errors
/// The database's own, or a row that cannot be read.
pub async fn head(tx: &ReadTx, room_id: &RoomId) -> Result<Option<RoomHead>, Error> {
    Ok(heads(tx, &[room_id]).await?.pop())
}

/// Where several rooms stand; those that the server does not know are left out.
///
/// # Errors
/// The database's own, or a row that cannot be read.
pub async fn heads(tx: &ReadTx, room_ids: &[&RoomId]) -> Result<Vec<RoomHead>, Error> {
    let mut heads = Vec::with_capacity(room_ids.len());
    for chunk in room_ids.chunks(tx.rows_a_statement(1)) {
        let (wanted, values) = tx.any_of(1, chunk.iter().map(|id| id.as_str()));
        let sql = format!(
            "SELECT room_id, shard, version, position, depth, extremities FROM rooms WHERE room_id {wanted}"
        );
        for row in tx.query(&sql, values).await? {
            heads.push(read_head(&row)?);
        }
    }
    Ok(heads)
}

/// Everything that the next event of a room is built on. `None` for a room that the server does not know.
///
/// # Errors
/// The database's own, or a row that cannot be read.
pub async fn load(tx: &ReadTx, room_id: &RoomId) -> Result<Option<RoomState>, Error> {
    Ok(load_several(tx, &[room_id]).await?.pop())
}

/// [`load`] for several rooms; those that the server does not know are left out.
///
/// # Errors
/// The database's own, or a row that cannot be read.
pub async fn load_several(tx: &ReadTx, room_ids: &[&RoomId]) -> Result<Vec<RoomState>, Error> {
    let mut rooms = HashMap::new();
    for head in heads(tx, room_ids).await? {
        let corrupt =
            || Error::corrupt("rooms", "version", head.room_id.as_str(), "the room version is unknown");
        let mut room = RoomState::empty(head.room_id.clone(), head.version.clone()).ok_or_else(corrupt)?;
        room.position = head.position;
        room.depth = head.depth;
        room.extremities = head.extremities;
        rooms.insert(head.room_id, room);
    }
    for chunk in room_ids.chunks(tx.rows_a_statement(1)) {
        let (wanted, values) = tx.any_of(1, chunk.iter().map(|room_id| room_id.as_str()));
        let sql = format!("{CURRENT_STATE} WHERE s.room_id {wanted} AND s.replaced_at IS NULL");
        for row in tx.query(&sql, values).await? {
            let event = Arc::new(StoredEvent::from_row(&row)?.into_room_event()?);
            if let Some(room) = rooms.get_mut(&event.pdu.room_id) {
                room.insert_state(&event);
            }
        }
    }
    Ok(rooms.into_values().collect())
}

/// The rooms that a user is, was or is invited to be in.
///
/// # Errors
/// The database's own, or a row that cannot be read.
pub async fn memberships_of(tx: &ReadTx, user_id: &UserId) -> Result<Vec<Membership>, Error> {
    let users = [user_id.to_owned()];
    Ok(memberships_of_users(tx, &users).await?.remove(user_id).unwrap_or_default())
}

/// [`memberships_of`] several users; those who are in no room are left out.
///
/// # Errors
/// The database's own, or a row that cannot be read.
pub async fn memberships_of_users(
    tx: &ReadTx,
    user_ids: &[OwnedUserId],
) -> Result<HashMap<OwnedUserId, Vec<Membership>>, Error> {
    let mut memberships: HashMap<OwnedUserId, Vec<Membership>> = HashMap::new();
    for chunk in user_ids.chunks(tx.rows_a_statement(1)) {
        let (users, values) = tx.any_of(1, chunk.iter().map(|user_id| user_id.as_str()));
        let sql = format!(
            "SELECT user_id, room_id, membership, position, forgotten FROM memberships WHERE user_id {users}"
        );
        for row in tx.query(&sql, values).await? {
            let membership: String = row.try_get("", "membership")?;
            let membership = Membership {
                room_id: streams::room_id(&row, "memberships")?,
                membership: membership.into(),
                position: row.try_get("", "position")?,
                forgotten: row.try_get("", "forgotten")?,
            };
            let user_id = streams::user_id(&row, "memberships", "user_id")?;
            memberships.entry(user_id).or_default().push(membership);
        }
    }
    Ok(memberships)
}

/// Those rooms of a shard that a user is or was in and that have events after a position. Whether the user was in them at a
/// time of the past is for the caller to know: a membership that ended a moment ago must not hide what came before.
///
/// # Errors
/// The database's own, or a row that cannot be read.
pub async fn with_news(
    tx: &ReadTx,
    user_id: &UserId,
    shard: Shard,
    after: i64,
) -> Result<Vec<OwnedRoomId>, Error> {
    let rows = tx
        .query(
            "SELECT r.room_id FROM memberships m JOIN rooms r ON r.room_id = m.room_id \
             WHERE m.user_id = $1 AND r.shard = $2 AND r.position > $3",
            [user_id.as_str().into(), shard.into(), after.into()],
        )
        .await?;
    rows.iter().map(|row| streams::room_id(row, "rooms")).collect()
}

/// The memberships that these users have of a room; who never had one is left out.
///
/// # Errors
/// The database's own, or a row that cannot be read.
pub async fn memberships_in(
    tx: &ReadTx,
    room_id: &RoomId,
    user_ids: &[&UserId],
) -> Result<BTreeMap<OwnedUserId, MembershipState>, Error> {
    let mut memberships = BTreeMap::new();
    for chunk in user_ids.chunks(tx.rows_a_statement(1)) {
        let (wanted, values) = tx.list(2, chunk.iter().map(|user_id| user_id.as_str()));
        // Each user by itself: PostgreSQL may else look through all of `wanted` for each member of the room.
        let sql = format!(
            "WITH wanted (user_id) AS ({wanted}) SELECT w.user_id, (SELECT m.membership FROM memberships m \
             WHERE m.user_id = w.user_id AND m.room_id = $1) AS membership FROM wanted w"
        );
        let room = std::iter::once(Value::from(room_id.as_str()));
        for row in tx.query(&sql, room.chain(values)).await? {
            let membership: Option<String> = row.try_get("", "membership")?;
            if let Some(membership) = membership {
                memberships.insert(streams::user_id(&row, "memberships", "user_id")?, membership.into());
            }
        }
    }
    Ok(memberships)
}

/// Marks a room that the user has left as forgotten. Returns whether there was such a membership.
///
/// # Errors
/// The database's own.
pub async fn forget(tx: &WriteTx, user_id: &UserId, room_id: &RoomId) -> Result<bool, Error> {
    let changed = tx
        .execute(
            "UPDATE memberships SET forgotten = TRUE \
             WHERE user_id = $1 AND room_id = $2 AND membership IN ('leave', 'ban')",
            [user_id.as_str().into(), room_id.as_str().into()],
        )
        .await?;
    Ok(changed > 0)
}

const CURRENT_STATE: &str = "SELECT e.position, e.room_id, e.event_id, e.json, e.redacted_by, e.device_id, e.transaction_id \
    FROM room_state s JOIN events e ON e.room_id = s.room_id AND e.position = s.position";

fn read_head(row: &QueryResult) -> Result<RoomHead, Error> {
    let room_id = streams::room_id(row, "rooms")?;
    let extremities: String = row.try_get("", "extremities")?;
    let version: String = row.try_get("", "version")?;
    let depth: i64 = row.try_get("", "depth")?;
    Ok(RoomHead {
        shard: row.try_get("", "shard")?,
        version: RoomVersionId::try_from(version.as_str())
            .map_err(|error| Error::corrupt("rooms", "version", room_id.as_str(), error))?,
        position: row.try_get("", "position")?,
        depth: depth.try_into().unwrap_or_default(),
        extremities: serde_json::from_str(&extremities)
            .map_err(|error| Error::corrupt("rooms", "extremities", room_id.as_str(), error))?,
        room_id,
    })
}

pub(crate) fn parse_event_id(column: &'static str, id: &str) -> Result<OwnedEventId, Error> {
    OwnedEventId::try_from(id).map_err(|error| Error::corrupt("events", column, id, error))
}
