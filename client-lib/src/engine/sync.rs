//! Taking in what `/sync` delivers.

use serde_json::{Map, Value};

use keystead_keybox::Entropy;

use super::decrypt::is_envelope;
use super::exchange::EngineError;
use super::{DecryptError, Engine, KeyQuery, Membership, Message, Notice, RecordName, Room};
use crate::events::{JoinedRoom, RoomEvent, SyncResponse};

/// Events of a room that the server left out of a sync: to be read with `/messages`, backwards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    /// The room.
    pub room_id: String,
    /// Where to read backwards from.
    pub from: String,
    /// The newest event that is known already: where to stop.
    pub until: Option<String>,
}

/// What came of a sync.
#[derive(Clone, Debug, Default)]
pub struct Received {
    /// What the KeyBox did or noticed.
    pub notices: Vec<Notice>,
    /// Where events are missing.
    pub gaps: Vec<Gap>,
}

impl Engine {
    /// Takes in an answer of `/sync`: key sets that changed, who is in which room, key messages, content, in this order.
    pub fn receive_sync(
        &mut self,
        sync: &SyncResponse,
        now: u64,
        entropy: &mut dyn Entropy,
    ) -> Result<Received, EngineError> {
        let mut received = Received::default();
        for user_id in &sync.device_lists.changed {
            self.directory.changed(user_id);
            self.changed.insert(RecordName::Directory);
        }
        for (room_id, invited) in &sync.rooms.invite {
            self.apply_state(
                room_id,
                Membership::Invite,
                invited.invite_state.events.iter(),
                now,
                &mut received.notices,
            );
        }
        for (room_id, left) in &sync.rooms.leave {
            self.apply_room(room_id, Membership::Leave, left, now, &mut received);
        }
        for (room_id, joined) in &sync.rooms.join {
            self.apply_room(room_id, Membership::Join, joined, now, &mut received);
        }
        self.log_received(&sync.to_device.events);
        for event in &sync.to_device.events {
            self.receive_to_device(event.clone(), now, true, entropy, &mut received.notices)?;
        }
        // A key that came before its room was known may be judged now.
        self.retry_inbox(now, entropy, &mut received.notices)?;
        for (room_id, room) in sync.rooms.leave.iter().chain(&sync.rooms.join) {
            for event in &room.timeline.events {
                self.receive_event(room_id, event, now, entropy, &mut received.notices)?;
            }
        }
        Ok(received)
    }

    /// Takes in events that fill a [`Gap`], oldest first.
    pub fn receive_gap(
        &mut self,
        room_id: &str,
        events: &[RoomEvent],
        now: u64,
        entropy: &mut dyn Entropy,
    ) -> Result<Vec<Notice>, EngineError> {
        let mut notices = Vec::new();
        for event in events {
            self.receive_event(room_id, event, now, entropy, &mut notices)?;
        }
        Ok(notices)
    }

    /// Opens events that were read backwards for a person to look at, without counting them as news. A missing key is
    /// asked for, and an unknown KeyBox looked up.
    pub fn read_history(
        &mut self,
        room_id: &str,
        event: &RoomEvent,
        now: u64,
        entropy: &mut dyn Entropy,
    ) -> Result<Message, DecryptError> {
        if !is_envelope(event) {
            return Ok(Self::clear_message(room_id, event));
        }
        let opened = self.decrypt(room_id, event);
        if let Err(error) = &opened {
            self.pursue(room_id, event, error, now, entropy);
        }
        opened
    }

    /// The oldest messages that are not marked as read, of one room or of all.
    pub fn unread(&self, room_id: Option<&str>, limit: usize) -> Vec<Message> {
        let rooms = self.rooms.values().filter(|room| room_id.is_none_or(|id| id == room.room_id));
        let mut unread: Vec<_> = rooms.flat_map(|room| room.unread.iter().cloned()).collect();
        unread.sort_by_key(|message| message.sent_at);
        unread.truncate(limit);
        unread
    }

    /// Marks messages as read. Do so after they were shown or worked on: what a crash comes before is unread again.
    /// What was read stays so, even if the server delivers it once more.
    pub fn mark_read(&mut self, messages: &[Message]) {
        for message in messages {
            self.remember_read(message);
            let Some(room) = self.rooms.get_mut(&message.room_id) else { continue };
            room.unread.retain(|unread| unread.event_id != message.event_id);
            self.changed.insert(RecordName::Room(message.room_id.clone()));
        }
    }

    /// Takes in the key sets and identities of the users that were asked for, as `/keys/query` answers.
    pub fn receive_key_sets(
        &mut self,
        asked: &[String],
        query: &KeyQuery,
        now: u64,
        entropy: &mut dyn Entropy,
    ) -> Result<Vec<Notice>, EngineError> {
        let mut notices = Vec::new();
        let none = Map::new();
        for user_id in asked {
            let devices = query.device_keys.get(user_id).and_then(Value::as_object).unwrap_or(&none);
            // On the first look at its own account everything is new to a KeyBox.
            let looked_before = self.directory.find(&self.own).is_some();
            let update = self.directory.update(user_id, devices, now);
            for notice in &update.notices {
                if let Notice::KeyBoxGone { keybox } = notice {
                    self.revoked_from_closings(keybox);
                }
            }
            notices.extend(update.notices.into_iter().map(|notice| match notice {
                Notice::KeyBoxGone { keybox } if keybox.user_id == self.own.user_id => {
                    Notice::OwnKeyBoxGone { keybox }
                }
                Notice::NewKeyBox { keybox } if looked_before && keybox.user_id == self.own.user_id => {
                    Notice::NewOwnKeyBox { keybox }
                }
                other => other,
            }));
            if update.departed {
                for room in self.rooms.values_mut().filter(|room| room.members.contains_key(user_id)) {
                    room.depart();
                    self.changed.insert(RecordName::Room(room.room_id.clone()));
                }
            }
        }
        for user_id in asked {
            self.receive_identity(user_id, query, entropy, &mut notices)?;
        }
        self.changed.insert(RecordName::Directory);
        self.settle_closings(now, &mut notices);
        self.retry_inbox(now, entropy, &mut notices)?;
        let waiting: Vec<_> =
            self.rooms.values().filter(|room| room.waiting() > 0).map(|room| room.room_id.clone()).collect();
        for room_id in waiting {
            self.retry_waiting(&room_id, now, entropy, &mut notices);
        }
        Ok(notices)
    }

    fn apply_room(
        &mut self,
        room_id: &str,
        membership: Membership,
        update: &JoinedRoom,
        now: u64,
        received: &mut Received,
    ) {
        let known = self.rooms.get(room_id).filter(|room| room.membership == Membership::Join);
        if let (Some(room), true, Some(from)) = (known, update.timeline.limited, &update.timeline.prev_batch)
        {
            let gap =
                Gap { room_id: room_id.to_owned(), from: from.clone(), until: room.newest_event.clone() };
            received.gaps.push(gap);
        }
        let events = update.state.events.iter().chain(&update.timeline.events);
        self.apply_state(room_id, membership, events, now, &mut received.notices);
        if let (Some(room), Some(newest)) = (self.rooms.get_mut(room_id), update.timeline.events.last()) {
            room.newest_event = Some(newest.event_id.clone());
        }
    }

    fn apply_state<'a>(
        &mut self,
        room_id: &str,
        membership: Membership,
        events: impl Iterator<Item = &'a RoomEvent>,
        now: u64,
        notices: &mut Vec<Notice>,
    ) {
        let room = self.rooms.entry(room_id.to_owned()).or_insert_with(|| Room::new(room_id, membership));
        let suite_before = room.suite.clone();
        for event in events {
            room.count(event);
            if room.apply_state(event, &self.own.user_id) {
                notices.push(Notice::SuiteDowngrade { room_id: room_id.to_owned() });
            }
        }
        if let (Some(before), Some(suite)) = (suite_before, &room.suite)
            && before != *suite
        {
            let (room_id, suite) = (room_id.to_owned(), suite.clone());
            notices.push(Notice::SuiteUpgraded { room_id, suite });
        }
        room.membership = membership;
        if room.suite.is_some() {
            for user_id in room.audience_users() {
                self.directory.track(&user_id);
            }
            self.changed.insert(RecordName::Directory);
        }
        self.changed.insert(RecordName::Room(room_id.to_owned()));
        self.settle_closing(room_id, now, notices);
    }

    fn receive_event(
        &mut self,
        room_id: &str,
        event: &RoomEvent,
        now: u64,
        entropy: &mut dyn Entropy,
        notices: &mut Vec<Notice>,
    ) -> Result<(), EngineError> {
        if event.state_key.is_some() {
            return Ok(());
        }
        let opened = if is_envelope(event) {
            self.decrypt(room_id, event)
        } else if event.event_type == "m.room.message" {
            Ok(Self::clear_message(room_id, event))
        } else {
            return Ok(());
        };
        if let Err(error) = &opened {
            self.pursue(room_id, event, error, now, entropy);
        }
        self.settle(room_id, event, opened, notices);
        Ok(())
    }

    /// Does what can make an event readable: asks for its key, or for its sender's key sets.
    fn pursue(
        &mut self,
        room_id: &str,
        event: &RoomEvent,
        error: &DecryptError,
        now: u64,
        entropy: &mut dyn Entropy,
    ) {
        match error {
            DecryptError::MissingKey { .. } => self.want_key_of(room_id, event, now, entropy),
            DecryptError::UnknownKeyBox(keybox) => {
                self.directory.mark_outdated(&keybox.user_id);
                self.changed.insert(RecordName::Directory);
            }
            _ => {}
        }
    }

    /// Files an event by what came of it: unread, waiting, or refused.
    fn settle(
        &mut self,
        room_id: &str,
        event: &RoomEvent,
        opened: Result<Message, DecryptError>,
        notices: &mut Vec<Notice>,
    ) {
        let own_id = &self.own.keybox_id;
        let was_read = opened.as_ref().is_ok_and(|message| self.was_read(message));
        let Some(room) = self.rooms.get_mut(room_id) else { return };
        match opened {
            Ok(message) => {
                let sent_here =
                    message.sender == self.own.user_id && message.sender_keybox.as_ref() == Some(own_id);
                if sent_here || was_read {
                    return;
                }
                room.push_unread(message);
            }
            Err(error) if error.is_temporary() => room.push_waiting(event.clone()),
            Err(error) => notices.push(Notice::MessageRefused {
                room_id: room_id.to_owned(),
                event_id: event.event_id.clone(),
                reason: error.to_string(),
            }),
        }
        self.changed.insert(RecordName::Room(room_id.to_owned()));
    }

    /// Tries the waiting events of a room again.
    pub(super) fn retry_waiting(
        &mut self,
        room_id: &str,
        now: u64,
        entropy: &mut dyn Entropy,
        notices: &mut Vec<Notice>,
    ) {
        let Some(room) = self.rooms.get_mut(room_id) else { return };
        for event in std::mem::take(&mut room.waiting) {
            let opened = self.decrypt(room_id, &event);
            // Only a key is asked for here: an unknown KeyBox was looked up when the event came, and would be for ever.
            if let Err(DecryptError::MissingKey { .. }) = &opened {
                self.want_key_of(room_id, &event, now, entropy);
            }
            self.settle(room_id, &event, opened, notices);
        }
        self.changed.insert(RecordName::Room(room_id.to_owned()));
    }
}
