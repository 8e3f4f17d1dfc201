//! Taking in key messages from other KeyBoxes.

use serde::Deserialize as _;
use serde_json::Value;

use keystead_keybox::Entropy;
use keystead_keybox::context::WrapContext;
use keystead_keybox::identity::IdentityContent;
use keystead_keybox::key_message::{
    Acknowledgement, KeyMessage, KeyRequest, Recipient, RequestAction, ResourceKeyContent, Withheld,
    WithheldCode, audience_hash, claimed_sender_keybox, verify,
};
use keystead_keybox::key_set::PublicKeySet;
use keystead_keybox::suite;

use super::exchange::EngineError;
use super::resource_keys::KeyRecord;
use super::{Engine, KeyBoxAddress, KeyRef, Membership, Notice, RecordName};
use crate::events::ToDeviceEvent;

/// How long a key message waits for its sender or its room to become known.
const MAX_WAIT_MS: u64 = 7 * 24 * 60 * 60 * 1000;
/// How many answers to devices without keys are remembered: beyond, none is given.
const MAX_ANSWERED: usize = 1_000;
const KEY_MESSAGES: [&str; 5] = [
    ResourceKeyContent::EVENT_TYPE,
    KeyRequest::EVENT_TYPE,
    Withheld::EVENT_TYPE,
    Acknowledgement::EVENT_TYPE,
    IdentityContent::EVENT_TYPE,
];

/// What became of a key message.
enum Outcome {
    Done,
    /// Keep it: the sender's key set or the room may become known.
    Later,
    Dropped(String),
}

impl Engine {
    /// Takes in one to-device event. `first` is whether it comes from the server, not from the inbox.
    pub(super) fn receive_to_device(
        &mut self,
        event: ToDeviceEvent,
        now: u64,
        first: bool,
        entropy: &mut dyn Entropy,
        notices: &mut Vec<Notice>,
    ) -> Result<(), EngineError> {
        if !KEY_MESSAGES.contains(&event.event_type.as_str()) {
            return Ok(());
        }
        let outcome = self.judge(&event, now, first, entropy, notices)?;
        match outcome {
            Outcome::Done => {}
            Outcome::Later => self.postpone(event, now),
            Outcome::Dropped(reason) => {
                let (sender, event_type) = (event.sender, event.event_type);
                notices.push(Notice::KeyMessageDropped { sender, event_type, reason });
            }
        }
        Ok(())
    }

    /// Tries the postponed key messages again.
    pub(super) fn retry_inbox(
        &mut self,
        now: u64,
        entropy: &mut dyn Entropy,
        notices: &mut Vec<Notice>,
    ) -> Result<(), EngineError> {
        if self.exchange.inbox.is_empty() {
            return Ok(());
        }
        self.changed.insert(RecordName::Exchange);
        for pending in std::mem::take(&mut self.exchange.inbox) {
            if now.saturating_sub(pending.received_at) > MAX_WAIT_MS {
                continue;
            }
            match self.judge(&pending.event, now, false, entropy, notices)? {
                Outcome::Done => {}
                Outcome::Later => self.exchange.inbox.push(pending),
                Outcome::Dropped(reason) => notices.push(Notice::KeyMessageDropped {
                    sender: pending.event.sender,
                    event_type: pending.event.event_type,
                    reason,
                }),
            }
        }
        Ok(())
    }

    fn judge(
        &mut self,
        event: &ToDeviceEvent,
        now: u64,
        first: bool,
        entropy: &mut dyn Entropy,
        notices: &mut Vec<Notice>,
    ) -> Result<Outcome, EngineError> {
        let Some(keybox_id) = claimed_sender_keybox(&event.content) else {
            return Ok(Outcome::Dropped("it names no KeyBox".to_owned()));
        };
        let sender = KeyBoxAddress::new(&event.sender, keybox_id);
        let Some(known) = self.directory.find(&sender).filter(|known| !known.conflicting) else {
            if first {
                self.directory.mark_outdated(&event.sender);
                self.changed.insert(RecordName::Directory);
            }
            return self.judge_unknown(event, &sender, now, entropy, notices);
        };
        if event.event_type == KeyRequest::EVENT_TYPE {
            let room_id = event.content.get("room_id").and_then(Value::as_str);
            if self.directory.is_outdated(&sender.user_id)
                || room_id.is_some_and(|room_id| self.awaits_closing(room_id))
            {
                // The KeyBox may have been revoked, or shut out, just now: look before anything is given to it.
                return Ok(Outcome::Later);
            }
        }
        let keys = known.keys.clone();
        match event.event_type.as_str() {
            ResourceKeyContent::EVENT_TYPE => match self.checked::<ResourceKeyContent>(event, &keys) {
                Ok(content) => self.on_resource_key(content, &sender, now, entropy, notices),
                Err(reason) => Ok(Outcome::Dropped(reason)),
            },
            KeyRequest::EVENT_TYPE => match self.checked::<KeyRequest>(event, &keys) {
                Ok(request) => {
                    self.on_request(request, &sender, now, entropy, notices)?;
                    Ok(Outcome::Done)
                }
                Err(reason) => Ok(Outcome::Dropped(reason)),
            },
            IdentityContent::EVENT_TYPE => match self.checked::<IdentityContent>(event, &keys) {
                Ok(content) => Ok(match self.on_identity(content, &sender, notices)? {
                    None => Outcome::Later,
                    Some(Ok(())) => Outcome::Done,
                    Some(Err(reason)) => Outcome::Dropped(reason.to_owned()),
                }),
                Err(reason) => Ok(Outcome::Dropped(reason)),
            },
            Withheld::EVENT_TYPE => match self.checked::<Withheld>(event, &keys) {
                Ok(withheld) => {
                    self.on_withheld(&withheld, &sender, now, notices);
                    Ok(Outcome::Done)
                }
                Err(reason) => Ok(Outcome::Dropped(reason)),
            },
            _ => match self.checked::<Acknowledgement>(event, &keys) {
                Ok(acknowledgement) => {
                    let key = KeyRef { room_id: acknowledgement.room_id, key_id: acknowledgement.key_id };
                    // It confirms what was given, and no more: whoever says to have a key does not get it for that.
                    if self.resource_keys.get(&key).is_some_and(|record| record.holders.contains(&sender)) {
                        notices.push(Notice::KeyConfirmed { key, keybox: sender });
                    }
                    Ok(Outcome::Done)
                }
                Err(reason) => Ok(Outcome::Dropped(reason)),
            },
        }
    }

    /// A question of a device that has no key set, even after a look, is answered all the same: it should know why it gets nothing.
    /// One of a KeyBox whose keys have changed waits for a person, and is told so, once.
    fn judge_unknown(
        &mut self,
        event: &ToDeviceEvent,
        sender: &KeyBoxAddress,
        now: u64,
        entropy: &mut dyn Entropy,
        notices: &mut Vec<Notice>,
    ) -> Result<Outcome, EngineError> {
        if event.event_type != KeyRequest::EVENT_TYPE || self.directory.is_outdated(&sender.user_id) {
            return Ok(Outcome::Later);
        }
        let changed = self.directory.find(sender).is_some();
        let code = if changed { WithheldCode::AwaitingApproval } else { WithheldCode::NoDeviceKey };
        let asked = KeyRequest::deserialize(&event.content).ok();
        if let Some(request) = asked.filter(|request| request.action == RequestAction::Request) {
            let room = self.rooms.get(&request.room_id);
            let of_member =
                room.is_some_and(|room| room.membership_of(&sender.user_id) == Some(Membership::Join));
            // The name of the answer is the question's: it is given once for as long as the question waits.
            let told = format!("{sender} {} told", request.request_id);
            let answered = &mut self.exchange.answered;
            if of_member && answered.len() < MAX_ANSWERED && !answered.contains_key(&told) {
                answered.insert(told, now.saturating_add(MAX_WAIT_MS));
                let key = KeyRef { room_id: request.room_id, key_id: request.key_id };
                self.withhold(&key, &request.algorithm, sender, code, entropy, notices)?;
            }
        }
        if changed {
            return Ok(Outcome::Later);
        }
        Ok(Outcome::Dropped("the device that asks has no valid key set".to_owned()))
    }

    fn checked<M: KeyMessage>(&self, event: &ToDeviceEvent, sender: &PublicKeySet) -> Result<M, String> {
        let recipient = Recipient { user_id: &self.own.user_id, keybox_id: &self.own.keybox_id };
        verify(&event.content, sender, recipient).map_err(|error| error.to_string())
    }

    fn on_resource_key(
        &mut self,
        content: ResourceKeyContent,
        sender: &KeyBoxAddress,
        now: u64,
        entropy: &mut dyn Entropy,
        notices: &mut Vec<Notice>,
    ) -> Result<Outcome, EngineError> {
        let key = KeyRef { room_id: content.room_id.clone(), key_id: content.key_id.clone() };
        let Some(room) = self.rooms.get(&key.room_id).filter(|room| room.membership != Membership::Invite)
        else {
            // The key of a room that we are about to join may come before the room.
            return Ok(Outcome::Later);
        };
        let sender_membership = room.membership_of(&sender.user_id);
        if sender_membership.is_none() {
            return Ok(Outcome::Dropped("its sender was never in the room".to_owned()));
        }
        if let Some(mark) = &content.closing {
            self.hear_of_closing(&key.room_id, mark);
        }
        if self.rooms.get(&key.room_id).is_some_and(|room| self.is_outside(room, sender)) {
            // The server may show later what lets it in.
            return Ok(Outcome::Later);
        }
        if self.resource_keys.contains_key(&key) {
            return self.on_known_key(&key, &content, sender, entropy);
        }
        let maker = KeyBoxAddress::new(&content.origin.user_id, &content.origin.keybox_id);
        let origin_verified = match self.directory.find(&maker) {
            Some(maker) => {
                let signed = |keys: &PublicKeySet| {
                    content.origin.verify(keys, &content.algorithm, &key.room_id, &key.key_id)
                };
                let current = signed(&maker.keys)?;
                // One of a time before the maker's keys changed serves for reading only.
                let former =
                    || maker.keys_at(content.origin.created_at).any(|keys| signed(keys).unwrap_or(false));
                if !current && !former() {
                    return Ok(Outcome::Dropped("it is not signed by the KeyBox that made it".to_owned()));
                }
                current
            }
            None => false,
        };
        let epoch = self.rooms.get(&key.room_id).map(|room| room.epoch).unwrap_or_default();
        let Some(wrap) = self.unwrap_and_keep(&key, &content, sender, entropy) else {
            return Ok(Outcome::Dropped("it does not open".to_owned()));
        };
        self.acknowledge(&key, &content, sender, entropy)?;
        let new = KeyRecord::new(&key, &content.algorithm, wrap, content.origin, &self.own, now);
        let mut record = KeyRecord { origin_verified, received_from: Some(sender.clone()), ..new };
        record.holders.insert(sender.clone());
        // One that came from somebody who has left stays for reading only.
        if sender_membership == Some(Membership::Join) {
            record.epoch = epoch;
        }
        self.resource_keys.insert(key.clone(), record);
        self.key_changed(&key);
        self.know_key(&key);
        notices.push(Notice::KeyReceived { key: key.clone(), keybox: sender.clone() });
        self.stop_wanting(&key, entropy)?;
        self.adopt(&key);
        self.retry_waiting(&key.room_id, now, entropy, notices);
        Ok(Outcome::Done)
    }

    /// A key that is here already, from one more KeyBox. If its wrap opens, that one has the key too.
    fn on_known_key(
        &mut self,
        key: &KeyRef,
        content: &ResourceKeyContent,
        sender: &KeyBoxAddress,
        entropy: &mut dyn Entropy,
    ) -> Result<Outcome, EngineError> {
        let same_suite = self.resource_keys.get(key).is_some_and(|record| record.suite == content.algorithm);
        if !same_suite || self.unwrap_and_keep(key, content, sender, entropy).is_none() {
            return Ok(Outcome::Dropped("it does not open".to_owned()));
        }
        if let Some(record) = self.resource_keys.get_mut(key) {
            record.holders.insert(sender.clone());
            self.key_changed(key);
        }
        self.acknowledge(key, content, sender, entropy)?;
        Ok(Outcome::Done)
    }

    /// Opens the wrap, keeps the open key in memory, and returns the wrap to store.
    fn unwrap_and_keep(
        &mut self,
        key: &KeyRef,
        content: &ResourceKeyContent,
        sender: &KeyBoxAddress,
        entropy: &mut dyn Entropy,
    ) -> Option<String> {
        let context = WrapContext {
            suite: &content.algorithm,
            room_id: &key.room_id,
            key_id: &key.key_id,
            sender: &sender.user_id,
            sender_keybox: &sender.keybox_id,
            recipient: &self.own.user_id,
            recipient_keybox: &self.own.keybox_id,
        };
        let open = suite::find(&content.algorithm)?.unwrap(&content.wrap, &self.keys, &context).ok()?;
        let wrap = self.wrap_to_self(key, &content.algorithm, &open, entropy)?;
        self.open.insert(key.clone(), open);
        Some(wrap)
    }

    /// Lets a resource key that another KeyBox made be sent with, if that one gave it to exactly those to whom this one would.
    pub(super) fn adopt(&mut self, key: &KeyRef) {
        let Some(room) = self.rooms.get(&key.room_id) else { return };
        let Some(record) = self.resource_keys.get(key) else { return };
        let users = room.audience_users();
        let settled = record.origin_verified
            && record.epoch == room.epoch
            && record.origin.created_at > room.last_departure_at
            && users.iter().all(|user_id| !self.directory.is_outdated(user_id));
        if record.for_sending || !settled {
            return;
        }
        let audience = self.admitted(&key.room_id, Some(&key.key_id), &self.readers(&users, &record.suite));
        let hash = audience_hash(
            audience.iter().map(|address| (address.user_id.as_str(), address.keybox_id.as_str())),
        );
        // Who makes a key reads with it. A maker that is none of the readers was revoked, has changed keys, or means to listen.
        let maker = KeyBoxAddress::new(&record.origin.user_id, &record.origin.keybox_id);
        if hash == record.origin.audience
            && audience.contains(&maker)
            && let Some(record) = self.resource_keys.get_mut(key)
        {
            record.for_sending = true;
            record.holders.extend(audience);
            self.key_changed(key);
        }
    }

    fn acknowledge(
        &mut self,
        key: &KeyRef,
        content: &ResourceKeyContent,
        sender: &KeyBoxAddress,
        entropy: &mut dyn Entropy,
    ) -> Result<(), EngineError> {
        let acknowledgement = Acknowledgement {
            room_id: key.room_id.clone(),
            key_id: key.key_id.clone(),
            exchange_id: content.exchange_id.clone(),
            sender_keybox: self.own.keybox_id.clone(),
        };
        self.enqueue(key, vec![(sender.clone(), acknowledgement)], entropy)
    }
}
