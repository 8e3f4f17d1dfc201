//! Who types where. Known by hints alone: it is gone when the process ends, and nobody misses it.
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#typing-notifications>

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, PoisonError},
};

use ruma::{MilliSecondsSinceUnixEpoch, OwnedRoomId, OwnedUserId, RoomId, UserId};

use super::RoomsOfUser;

/// The users who type, by room, and until when each counts as typing.
#[derive(Debug, Default)]
pub struct Typing {
    rooms: Mutex<HashMap<OwnedRoomId, BTreeMap<OwnedUserId, u64>>>,
}

impl Typing {
    /// Notes that a user types until `until` (milliseconds since the epoch), or no longer.
    pub fn set(&self, room_id: &RoomId, user_id: &UserId, until: Option<u64>) {
        let mut rooms = self.rooms.lock().unwrap_or_else(PoisonError::into_inner);
        match until {
            Some(until) => {
                rooms.entry(room_id.to_owned()).or_default().insert(user_id.to_owned(), until);
            }
            None => {
                if let Some(users) = rooms.get_mut(room_id) {
                    users.remove(user_id);
                    if users.is_empty() {
                        rooms.remove(room_id);
                    }
                }
            }
        }
    }

    /// The rooms that a user is joined to where somebody types at this time, with who does, in order of their ids.
    pub fn in_rooms(
        &self,
        joined: &RoomsOfUser,
        now: MilliSecondsSinceUnixEpoch,
    ) -> Vec<(OwnedRoomId, Vec<OwnedUserId>)> {
        let rooms = self.rooms.lock().unwrap_or_else(PoisonError::into_inner);
        let typing = |room_id: &OwnedRoomId, users: &BTreeMap<OwnedUserId, u64>| {
            let users: Vec<_> = users
                .iter()
                .filter(|(_, until)| **until > u64::from(now.0))
                .map(|(user, _)| user.clone())
                .collect();
            (!users.is_empty() && joined.is_joined(room_id)).then(|| (room_id.clone(), users))
        };
        // Whichever is less: in most rooms nobody types, and most people are in few rooms.
        if rooms.len() <= joined.count() {
            return rooms.iter().filter_map(|(room_id, users)| typing(room_id, users)).collect();
        }
        let here = joined.iter().filter_map(|(room_id, _)| rooms.get_key_value(room_id));
        here.filter_map(|(room_id, users)| typing(room_id, users)).collect()
    }

    /// Removes those whose time has run out; returns the rooms where that changed something.
    pub fn expire(&self, now: MilliSecondsSinceUnixEpoch) -> Vec<OwnedRoomId> {
        let mut rooms = self.rooms.lock().unwrap_or_else(PoisonError::into_inner);
        let mut changed = Vec::new();
        rooms.retain(|room_id, users| {
            let before = users.len();
            users.retain(|_, until| *until > u64::from(now.0));
            if users.len() != before {
                changed.push(room_id.clone());
            }
            !users.is_empty()
        });
        changed
    }
}
