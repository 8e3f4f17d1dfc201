//! The rooms' current states, as far as this replica has them in memory.

use std::{
    num::NonZeroUsize,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use keystead_core::room::{RoomEvent, RoomState};
use lru::LruCache;
use ruma::{OwnedRoomId, RoomId, events::TimelineEventType};

/// How many rooms are kept.
const CAPACITY: NonZeroUsize = NonZeroUsize::MIN.saturating_add(9_999);

/// States by room. The writer and the tail both feed them; each event counts once.
#[derive(Debug)]
pub struct RoomStates {
    rooms: Mutex<LruCache<OwnedRoomId, RoomState>>,
}

impl Default for RoomStates {
    fn default() -> Self {
        Self { rooms: Mutex::new(LruCache::new(CAPACITY)) }
    }
}

impl RoomStates {
    /// The state of a room, if it is here.
    pub fn get(&self, room_id: &RoomId) -> Option<RoomState> {
        self.lock().get(room_id).cloned()
    }

    /// Forgets all states: they are read anew.
    pub fn clear(&self) {
        self.lock().clear();
    }

    /// Takes in a state that was read from the database or has been written to it; an older one than the one here is passed over.
    ///
    /// `missed` gives the events that the tail passed on between the reading and now, if it has them all: else the
    /// state is not kept, and is read again when it is next needed.
    pub fn insert(&self, mut state: RoomState, missed: impl FnOnce() -> Option<Vec<Arc<RoomEvent>>>) {
        let mut rooms = self.lock();
        if rooms.peek(&state.room_id).is_some_and(|here| here.position >= state.position) {
            return;
        }
        // What was redacted meanwhile may have been read as it was before.
        let is_redaction = |event: &Arc<RoomEvent>| event.pdu.event_type == TimelineEventType::RoomRedaction;
        let Some(missed) = missed().filter(|missed| !missed.iter().any(is_redaction)) else {
            rooms.pop(&state.room_id);
            return;
        };
        for event in &missed {
            state.apply(event);
        }
        rooms.put(state.room_id.clone(), state);
    }

    /// Brings a room that is here up to an event of the stream.
    pub fn apply(&self, event: &Arc<RoomEvent>) {
        if let Some(state) = self.lock().peek_mut(&event.pdu.room_id) {
            state.apply(event);
        }
    }

    /// Lets the next event of a room that is here follow this one, though not all before it are known.
    pub fn follow(&self, event: &RoomEvent) {
        if let Some(state) = self.lock().peek_mut(&event.pdu.room_id) {
            state.follow(event);
        }
    }

    /// Puts the redacted form of an event in the place of the event.
    pub fn replace_redacted(&self, redacted: &Arc<RoomEvent>) {
        if let Some(state) = self.lock().peek_mut(&redacted.pdu.room_id) {
            state.replace_redacted(redacted);
        }
    }

    fn lock(&self) -> MutexGuard<'_, LruCache<OwnedRoomId, RoomState>> {
        self.rooms.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
