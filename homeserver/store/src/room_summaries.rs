//! What a few words about rooms are made of: their describing state, their children and how many are in them, without their members.

use std::collections::HashMap;

use keystead_core::room::RoomEvent;
use ruma::{OwnedRoomId, RoomId};

use crate::{Error, ReadTx, rooms::StoredEvent, streams};

/// A room, as far as a summary needs it.
#[derive(Clone, Debug, Default)]
pub struct RoomFacts {
    /// How many users are in it.
    pub joined: i64,
    /// Those of its current state events that describe it, with empty state keys.
    pub state: Vec<RoomEvent>,
    /// Its current `m.space.child` events.
    pub children: Vec<RoomEvent>,
}

/// The facts about rooms; those that the server does not know are left out. Two statements for any number of rooms.
///
/// # Errors
/// The database's own, or a row that cannot be read.
pub async fn read(tx: &ReadTx, room_ids: &[&RoomId]) -> Result<HashMap<OwnedRoomId, RoomFacts>, Error> {
    let mut rooms: HashMap<OwnedRoomId, RoomFacts> = HashMap::new();
    for chunk in room_ids.chunks(tx.rows_a_statement(1)) {
        let (wanted, values) = tx.any_of(1, chunk.iter().map(|room_id| room_id.as_str()));
        let sql = format!(
            "SELECT e.position, e.room_id, e.event_id, e.json, e.redacted_by, e.device_id, e.transaction_id \
             FROM room_state s JOIN events e ON e.room_id = s.room_id AND e.position = s.position \
             WHERE s.replaced_at IS NULL AND s.room_id {wanted} \
             AND ((s.state_key = '' AND s.event_type IN ({DESCRIBING})) OR s.event_type = 'm.space.child')"
        );
        for row in tx.query(&sql, values).await? {
            let event = StoredEvent::from_row(&row)?.into_room_event()?;
            let room = rooms.entry(event.pdu.room_id.clone()).or_default();
            let is_child = event.pdu.event_type.to_string() == "m.space.child";
            if is_child { room.children.push(event) } else { room.state.push(event) }
        }
        let (wanted, values) = tx.any_of(1, chunk.iter().map(|room_id| room_id.as_str()));
        let sql = format!(
            "SELECT room_id, COUNT(*) AS joined FROM memberships \
             WHERE membership = 'join' AND room_id {wanted} GROUP BY room_id"
        );
        for row in tx.query(&sql, values).await? {
            if let Some(room) = rooms.get_mut(&streams::room_id(&row, "memberships")?) {
                room.joined = row.try_get("", "joined")?;
            }
        }
    }
    Ok(rooms)
}

/// The state events that a summary tells something of.
const DESCRIBING: &str = "'m.room.avatar', 'm.room.canonical_alias', 'm.room.create', 'm.room.encryption', \
    'm.room.guest_access', 'm.room.history_visibility', 'm.room.join_rules', 'm.room.name', 'm.room.topic'";
