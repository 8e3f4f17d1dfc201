//! Sending: a resource key that everybody in the room has, then content sealed with it.

use std::collections::BTreeSet;

use serde_json::Value;

use keystead_keybox::envelope::{Envelope, Payload, SealError, SealRequest};
use keystead_keybox::key_message::{Origin, ResourceKeyContent, WithheldCode, audience_hash};
use keystead_keybox::resource_key::{ResourceKey, ResourceKeyId};
use keystead_keybox::{CryptoError, Entropy, suite};

use super::exchange::{EngineError, new_id};
use super::resource_keys::KeyRecord;
use super::{Engine, KeyBoxAddress, KeyRef, Membership, Notice, Policy, Room};

/// Whether a message can be sealed for a room now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// Carry out [`Engine::outgoing`] first: it asks for key sets of members.
    KeySetsNeeded,
    /// Seal with this resource key; [`Engine::outgoing`] brings it to those who do not have it.
    Ready(KeyRef),
}

/// Why a message cannot be sealed for a room.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EncryptError {
    /// Somebody has closed or opened the room, or approved a KeyBox, and the server does not show it.
    #[error(
        "{0} has closed or opened the room, or approved a KeyBox, and the homeserver does not show it, or shows something else: \
         nothing is sent before it does"
    )]
    ClosingHidden(KeyBoxAddress),
    /// The KeyBox failed.
    #[error("the message could not be encrypted")]
    Engine(#[from] EngineError),
    /// Somebody who would read the message has another identity than before, and nobody has accepted it: [`Engine::accept`].
    #[error(
        "{0} has another identity than before: ask them whether they know why, and compare fingerprints; \
         nothing is sent to them until you accept it: keybox accept {0}"
    )]
    IdentityChanged(String),
    /// Somebody who would read the message has other keys than before, and nobody has accepted them: [`Engine::accept`].
    #[error(
        "the keys of {user_id} have changed (KeyBox {}): ask them whether they know why, and compare the new fingerprint; \
         nothing is sent to them until you accept it: keybox accept {user_id}",
        keyboxes.join(", ")
    )]
    KeysChanged {
        /// Whose.
        user_id: String,
        /// Which of their KeyBoxes.
        keyboxes: Vec<String>,
    },
    /// The room is closed, and this KeyBox is none of those that it was closed with.
    #[error(
        "the room is closed, and this KeyBox was not there when that was done: ask a moderator of the room to let it in \
         (keybox approve-keybox ROOM USER KEYBOX)"
    )]
    NotApproved,
    /// The resource key named is not one to send with.
    #[error("the resource key is not known")]
    NoKey,
    /// The policy is to give resource keys to nobody, so that nobody could read the message: [`Engine::set_policy`].
    #[error(
        "the exchange policy of this room is `never`: nobody would get the key of what you send; \
         change it with keybox policy"
    )]
    PolicyNever,
    /// The room does not use the KeyBox profile. Nothing is sent in the clear instead.
    #[error("the room does not use KeyBox encryption")]
    NotEncrypted,
    /// This KeyBox's user is not in the room.
    #[error("you are not in this room")]
    NotJoined,
    /// The content could not be sealed.
    #[error("the message could not be sealed")]
    Seal(#[from] SealError),
    /// More people are in the room than a moderator has limited it to: the server has let somebody in.
    #[error(
        "the room may have {limit} member(s), and the homeserver shows {members}: nothing is sent to so many"
    )]
    TooManyMembers {
        /// How many there may be.
        limit: u64,
        /// How many there are.
        members: u64,
    },
    /// The room uses a suite that this KeyBox does not speak.
    #[error("the room uses the suite {0}, which this KeyBox does not speak")]
    UnknownSuite(String),
}

impl From<CryptoError> for EncryptError {
    fn from(error: CryptoError) -> Self {
        Self::Engine(error.into())
    }
}

impl Engine {
    /// Makes sure that there is a resource key for the room's present members and that it is on its way to them.
    pub fn prepare(
        &mut self,
        room_id: &str,
        now: u64,
        entropy: &mut dyn Entropy,
        notices: &mut Vec<Notice>,
    ) -> Result<Readiness, EncryptError> {
        let room = self.rooms.get(room_id).filter(|room| room.membership == Membership::Join);
        let room = room.ok_or(EncryptError::NotJoined)?;
        let suite = room.suite.clone().ok_or(EncryptError::NotEncrypted)?;
        if suite::find(&suite).is_none() {
            return Err(EncryptError::UnknownSuite(suite));
        }
        let users = room.audience_users();
        let unknown: Vec<_> =
            users.iter().filter(|user_id| self.directory.is_outdated(user_id)).cloned().collect();
        if !unknown.is_empty() {
            for user_id in unknown {
                self.follow(&user_id);
            }
            return Ok(Readiness::KeySetsNeeded);
        }
        self.refuse_changed_keys(&users)?;
        if self.check_closing(room_id, now, notices)? {
            return Ok(Readiness::KeySetsNeeded);
        }
        let readers = self.readers(&users, &suite);
        if self.policy(Some(room_id)) == Policy::Never && readers.len() > 1 {
            return Err(EncryptError::PolicyNever);
        }
        let key = match self.current_key(room_id, &suite, &readers, now) {
            Some(key) => key,
            None => {
                let audience = self.admitted(room_id, None, &readers);
                let key = self.make_key(room_id, &suite, &audience, now, entropy)?;
                notices.push(Notice::KeyMade { key: key.clone() });
                for keybox in self.not_speaking(room_id, &suite) {
                    let code = WithheldCode::NoDeviceKey;
                    self.withhold(&key, &suite, &keybox, code, entropy, notices)?;
                    notices.push(Notice::SuiteNotSpoken { key: key.clone(), keybox });
                }
                key
            }
        };
        let audience = self.admitted(room_id, Some(&key.key_id), &readers);
        let holders = self.resource_keys.get(&key).map(|record| record.holders.clone()).unwrap_or_default();
        let lacking: Vec<_> = audience.difference(&holders).cloned().collect();
        self.give(&key, &lacking, now, entropy, notices)?;
        self.shut_out(&key, &suite, readers.difference(&audience), now, entropy, notices)?;
        Ok(Readiness::Ready(key))
    }

    /// Tells those whom the policy keeps out why, once for each key and reason.
    fn shut_out<'a>(
        &mut self,
        key: &KeyRef,
        suite: &str,
        keyboxes: impl Iterator<Item = &'a KeyBoxAddress>,
        now: u64,
        entropy: &mut dyn Entropy,
        notices: &mut Vec<Notice>,
    ) -> Result<(), EngineError> {
        for keybox in keyboxes {
            let Err(code) = self.admits(&key.room_id, Some(&key.key_id), keybox) else { continue };
            let told = (keybox.clone(), code);
            let Some(record) = self.resource_keys.get_mut(key) else { continue };
            if record.withheld.contains(&told) {
                continue;
            }
            record.withheld.push(told);
            self.key_changed(key);
            self.withhold(key, suite, keybox, code, entropy, notices)?;
            if code == WithheldCode::AwaitingApproval {
                self.await_approval(key, keybox, now, notices);
            }
        }
        Ok(())
    }

    /// Seals an event for its room: the content of an `m.room.encrypted` event. Store the changes before sending it.
    pub fn encrypt(
        &mut self,
        key: &KeyRef,
        event_type: &str,
        content: Value,
        entropy: &mut dyn Entropy,
    ) -> Result<Envelope, EncryptError> {
        let open = self.open_key(key).ok_or(EncryptError::NoKey)?;
        let record = self.resource_keys.get_mut(key).ok_or(EncryptError::NoKey)?;
        let counter = record.next_counter;
        record.next_counter = counter.saturating_add(1);
        let suite = record.suite.clone();
        self.key_changed(key);
        let payload = Payload { room_id: key.room_id.clone(), event_type: event_type.to_owned(), content };
        let request = SealRequest { suite: &suite, key: &open, keys: &self.keys, counter };
        Ok(Envelope::seal(request, &payload, entropy)?)
    }

    /// Those of `readers` that the policy lets have a resource key, or with `None` one that is to be made.
    pub(super) fn admitted(
        &self,
        room_id: &str,
        key_id: Option<&ResourceKeyId>,
        readers: &BTreeSet<KeyBoxAddress>,
    ) -> BTreeSet<KeyBoxAddress> {
        readers.iter().filter(|keybox| self.admits(room_id, key_id, keybox).is_ok()).cloned().collect()
    }

    /// The KeyBoxes that may read what is sent now, this one included.
    pub(super) fn readers(&self, users: &[String], suite: &str) -> BTreeSet<KeyBoxAddress> {
        let usable = users.iter().flat_map(|user_id| {
            self.directory
                .usable(user_id, suite)
                .map(|known| KeyBoxAddress::new(user_id, &known.keys.keybox_id))
        });
        usable.chain([self.own.clone()]).collect()
    }

    /// The KeyBoxes of those who get a room's resource keys that do not speak a suite.
    pub fn not_speaking(&self, room_id: &str, suite: &str) -> Vec<KeyBoxAddress> {
        let users = self.rooms.get(room_id).map(Room::audience_users).unwrap_or_default();
        let of_user = |user_id: &String| {
            let keyboxes = self.directory.not_speaking(user_id, suite);
            keyboxes.map(|known| KeyBoxAddress::new(user_id, &known.keys.keybox_id)).collect::<Vec<_>>()
        };
        users.iter().flat_map(of_user).collect()
    }

    /// Makes sure that the next [`Self::outgoing`] asks for the key sets of everybody who gets a room's resource keys.
    pub fn follow_members(&mut self, room_id: &str) {
        let users = self.rooms.get(room_id).map(Room::audience_users).unwrap_or_default();
        for user_id in users {
            self.follow(&user_id);
        }
    }

    /// The resource key to send with: the newest that is of this suite and epoch, not used up, not too old, and with nobody
    /// who would not be given it now.
    fn current_key(
        &mut self,
        room_id: &str,
        suite: &str,
        readers: &BTreeSet<KeyBoxAddress>,
        now: u64,
    ) -> Option<KeyRef> {
        let of_room: Vec<_> =
            self.resource_keys.keys().filter(|key| key.room_id == room_id).cloned().collect();
        for key in &of_room {
            self.adopt(key);
        }
        let room = self.rooms.get(room_id)?;
        let fit = |record: &&KeyRecord| {
            // A maker's clock in the future must not make a key last longer.
            let age = now.saturating_sub(record.origin.created_at.min(record.received_at));
            record.for_sending
                && record.suite == suite
                && record.epoch == room.epoch
                && age < room.rotation_period_ms
                && record.messages(&self.own) < room.rotation_period_msgs
                && record.holders.is_subset(&self.admitted(room_id, Some(&record.key.key_id), readers))
        };
        let candidates = of_room.iter().filter_map(|key| self.resource_keys.get(key)).filter(fit);
        candidates
            .max_by_key(|record| (record.origin.created_at, &record.key))
            .map(|record| record.key.clone())
    }

    fn make_key(
        &mut self,
        room_id: &str,
        suite: &str,
        audience: &BTreeSet<KeyBoxAddress>,
        now: u64,
        entropy: &mut dyn Entropy,
    ) -> Result<KeyRef, EncryptError> {
        let open = ResourceKey::generate(entropy)?;
        let key = KeyRef { room_id: room_id.to_owned(), key_id: open.id(room_id) };
        let hash = audience_hash(
            audience.iter().map(|address| (address.user_id.as_str(), address.keybox_id.as_str())),
        );
        let origin = Origin::sign(&self.keys, suite, room_id, &key.key_id, now, hash)?;
        let wrap = self.wrap_to_self(&key, suite, &open, entropy).ok_or(EncryptError::NoKey)?;
        let epoch = self.rooms.get(room_id).map(|room| room.epoch).unwrap_or_default();
        let new = KeyRecord::new(&key, suite, wrap, origin, &self.own, now);
        let record = KeyRecord { origin_verified: true, epoch, for_sending: true, ..new };
        self.resource_keys.insert(key.clone(), record);
        self.open.insert(key.clone(), open);
        self.key_changed(&key);
        self.know_key(&key);
        Ok(key)
    }

    /// Wraps a resource key for KeyBoxes, on all cores, and queues it for them.
    pub(super) fn give(
        &mut self,
        key: &KeyRef,
        recipients: &[KeyBoxAddress],
        now: u64,
        entropy: &mut dyn Entropy,
        notices: &mut Vec<Notice>,
    ) -> Result<(), EngineError> {
        let Some(open) = self.open_key(key) else { return Ok(()) };
        let Some(record) = self.resource_keys.get(key) else { return Ok(()) };
        let Some(suite) = suite::find(&record.suite) else { return Ok(()) };
        let speaking: Vec<_> = recipients
            .iter()
            .filter_map(|address| Some((address, &self.directory.find(address)?.keys)))
            .filter(|(_, keys)| suite.is_spoken_by(keys))
            .map(|(address, keys)| (keys, self.wrap_context(key, suite.id, address)))
            .collect();
        let wraps = suite.wrap_all(&open, &speaking, entropy)?;
        let closing =
            self.rooms.get(&key.room_id).and_then(Room::closing).map(|closing| closing.last.clone());
        let mut messages = Vec::new();
        for ((_, context), wrap) in speaking.into_iter().zip(wraps) {
            let content = ResourceKeyContent {
                algorithm: suite.id.to_owned(),
                room_id: key.room_id.clone(),
                key_id: key.key_id.clone(),
                wrap: wrap?,
                sender_keybox: self.own.keybox_id.clone(),
                exchange_id: new_id(entropy)?,
                sent_at: now,
                origin: record.origin.clone(),
                closing: closing.clone(),
            };
            let address = KeyBoxAddress::new(context.recipient, context.recipient_keybox);
            notices.push(Notice::KeyGiven { key: key.clone(), keybox: address.clone() });
            messages.push((address, content));
        }
        if messages.is_empty() {
            return Ok(());
        }
        if let Some(record) = self.resource_keys.get_mut(key) {
            record.holders.extend(messages.iter().map(|(address, _)| address.clone()));
            record.withheld.retain(|(address, _)| !messages.iter().any(|(given, _)| given == address));
        }
        self.key_changed(key);
        self.enqueue(key, messages, entropy)
    }
}
