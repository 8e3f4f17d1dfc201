//! The room directory: the rooms that the server lists to strangers.
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#published-room-directory>

use std::collections::BTreeMap;

use keystead_core::room::RoomEvent;
use ruma::{OwnedRoomId, RoomId};
use sea_orm::Value;

use crate::{Error, ReadTx, WriteTx, rooms::StoredEvent, streams};

/// A listed room: where it stands in the list, and what is told about it.
#[derive(Clone, Debug)]
pub struct ListedRoom {
    /// The room.
    pub room_id: OwnedRoomId,
    /// How many users are in it.
    pub joined: i64,
    /// Those of its current state events that describe it, with empty state keys.
    pub state: Vec<RoomEvent>,
}

/// A place in the list, which is ordered by members (most first), then by room id.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Place {
    /// The number of members of the room at that place.
    pub joined: i64,
    /// Its id.
    pub room_id: String,
}

/// Which part of the list to read.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Page {
    /// From the beginning.
    First,
    /// The rooms after this place.
    After(Place),
    /// The rooms before this place.
    Before(Place),
}

/// Puts a room on the list, or takes it off.
///
/// # Errors
/// The database's own.
pub async fn set_listed(tx: &WriteTx, room_id: &RoomId, listed: bool) -> Result<(), Error> {
    let sql = if listed {
        "INSERT INTO room_directory (room_id) VALUES ($1) ON CONFLICT (room_id) DO NOTHING"
    } else {
        "DELETE FROM room_directory WHERE room_id = $1"
    };
    tx.execute(sql, [room_id.as_str().into()]).await?;
    Ok(())
}

/// Whether a room is on the list.
///
/// # Errors
/// The database's own.
pub async fn is_listed(tx: &ReadTx, room_id: &RoomId) -> Result<bool, Error> {
    let sql = "SELECT room_id FROM room_directory WHERE room_id = $1";
    Ok(!tx.query(sql, [room_id.as_str().into()]).await?.is_empty())
}

/// How many rooms are on the list.
///
/// # Errors
/// The database's own.
pub async fn count(tx: &ReadTx) -> Result<i64, Error> {
    let rows = tx.query("SELECT COUNT(*) AS rooms FROM room_directory", []).await?;
    Ok(rows.first().map(|row| row.try_get("", "rooms")).transpose()?.unwrap_or_default())
}

/// At most `limit` rooms of the list, in its order; those before a place are the nearest ones before it.
///
/// # Errors
/// The database's own, or a row that cannot be read.
pub async fn page(tx: &ReadTx, page: &Page, limit: u64) -> Result<Vec<ListedRoom>, Error> {
    let (condition, order, place) = match page {
        Page::First => ("", "joined DESC, room_id ASC", None),
        Page::After(place) => {
            ("WHERE joined < $1 OR (joined = $1 AND room_id > $2)", "joined DESC, room_id ASC", Some(place))
        }
        Page::Before(place) => {
            ("WHERE joined > $1 OR (joined = $1 AND room_id < $2)", "joined ASC, room_id DESC", Some(place))
        }
    };
    let sql = format!(
        "SELECT room_id, joined FROM (SELECT d.room_id AS room_id, COUNT(m.user_id) AS joined FROM room_directory d \
         LEFT JOIN memberships m ON m.room_id = d.room_id AND m.membership = 'join' GROUP BY d.room_id) AS listed \
         {condition} ORDER BY {order} LIMIT {limit}"
    );
    let values: Vec<Value> =
        place.map(|place| vec![place.joined.into(), place.room_id.as_str().into()]).unwrap_or_default();
    let mut rooms = tx
        .query(&sql, values)
        .await?
        .iter()
        .map(|row| {
            let room_id = streams::room_id(row, "room_directory")?;
            Ok(ListedRoom { room_id, joined: row.try_get("", "joined")?, state: Vec::new() })
        })
        .collect::<Result<Vec<_>, Error>>()?;
    if matches!(page, Page::Before(_)) {
        rooms.reverse();
    }
    let mut states = describe(tx, &rooms).await?;
    for room in &mut rooms {
        room.state = states.remove(&room.room_id).unwrap_or_default();
    }
    Ok(rooms)
}

async fn describe(tx: &ReadTx, rooms: &[ListedRoom]) -> Result<BTreeMap<OwnedRoomId, Vec<RoomEvent>>, Error> {
    let mut states: BTreeMap<OwnedRoomId, Vec<RoomEvent>> = BTreeMap::new();
    if rooms.is_empty() {
        return Ok(states);
    }
    let (wanted, values) = tx.any_of(1, rooms.iter().map(|room| room.room_id.as_str()));
    let sql = format!(
        "SELECT e.position, e.room_id, e.event_id, e.json, e.redacted_by, e.device_id, e.transaction_id FROM room_state s \
         JOIN events e ON e.room_id = s.room_id AND e.position = s.position \
         WHERE s.replaced_at IS NULL AND s.state_key = '' AND s.event_type IN ({DESCRIBING}) \
         AND s.room_id {wanted}"
    );
    for row in tx.query(&sql, values).await? {
        let event = StoredEvent::from_row(&row)?.into_room_event()?;
        states.entry(event.pdu.room_id.clone()).or_default().push(event);
    }
    Ok(states)
}

/// The state events that the directory tells something of.
const DESCRIBING: &str = "'m.room.avatar', 'm.room.canonical_alias', 'm.room.create', 'm.room.encryption', \
    'm.room.guest_access', 'm.room.history_visibility', 'm.room.join_rules', 'm.room.name', 'm.room.topic'";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::store;

    #[tokio::test]
    async fn the_list_is_ordered_by_members_and_paged_both_ways() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder).await;
        let members = [("!a:x", 1), ("!b:x", 3), ("!c:x", 1), ("!d:x", 0), ("!unlisted:x", 5)];
        let (count, first, after, before) = store
            .write("test", |tx| async move {
                for (room, joined) in members {
                    let rows = (0..joined)
                        .map(|n| {
                            let user = format!("@u{n}:x");
                            vec![user.into(), room.into(), "join".into(), 1_i64.into(), false.into()]
                        })
                        .collect();
                    let columns = ["user_id", "room_id", "membership", "position", "forgotten"];
                    tx.insert_rows("memberships", &columns, rows, "").await?;
                    set_listed(&tx, <&RoomId>::try_from(room).unwrap(), room != "!unlisted:x").await?;
                }
                let ids = |rooms: Vec<ListedRoom>| {
                    rooms.into_iter().map(|room| (room.room_id.to_string(), room.joined)).collect::<Vec<_>>()
                };
                let place = Place { joined: 1, room_id: "!c:x".to_owned() };
                Ok::<_, Error>((
                    count(&tx).await?,
                    ids(page(&tx, &Page::First, 2).await?),
                    ids(page(&tx, &Page::After(place.clone()), 5).await?),
                    ids(page(&tx, &Page::Before(place), 5).await?),
                ))
            })
            .await
            .unwrap();
        let room = |id: &str, joined| (id.to_owned(), joined);
        assert_eq!(count, 4);
        assert_eq!(first, [room("!b:x", 3), room("!a:x", 1)]);
        assert_eq!(after, [room("!d:x", 0)]);
        assert_eq!(before, [room("!b:x", 3), room("!a:x", 1)]);
    }
}
