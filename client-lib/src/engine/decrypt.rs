//! Opening content messages.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use keystead_keybox::envelope::{Envelope, EnvelopeError};
use keystead_keybox::key_message::WithheldCode;
use keystead_keybox::key_set::PublicKeySet;
use keystead_keybox::replay::Replayed;
use keystead_keybox::resource_key::ResourceKeyId;
use keystead_keybox::suite;

use super::{Engine, KeyBoxAddress, KeyRef};
use crate::events::RoomEvent;

/// A message that can be read.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// The room.
    pub room_id: String,
    /// The event.
    pub event_id: String,
    /// The user who sent it.
    pub sender: String,
    /// The KeyBox that signed it; `None` if it came without encryption.
    pub sender_keybox: Option<String>,
    /// When the server got it, in milliseconds since the Unix epoch.
    pub sent_at: u64,
    /// The event type, such as `m.room.message`.
    #[serde(rename = "type")]
    pub event_type: String,
    /// The content.
    pub content: Value,
    /// Whether it was end-to-end encrypted and signed.
    pub encrypted: bool,
    /// Whether a person has compared the fingerprint of the KeyBox that sent it.
    pub verified: bool,
    /// What it was sealed with; `None` if it came without encryption.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_id: Option<ResourceKeyId>,
    /// How many messages its KeyBox had sealed with that key before; `None` if it came without encryption.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counter: Option<u64>,
}

impl std::fmt::Debug for Message {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Message")
            .field("room_id", &self.room_id)
            .field("event_id", &self.event_id)
            .field("sender", &self.sender)
            .finish_non_exhaustive()
    }
}

impl Message {
    /// The text, for a message that has one.
    pub fn body(&self) -> Option<&str> {
        self.content.get("body").and_then(Value::as_str)
    }
}

/// Why an event is not readable.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DecryptError {
    /// The resource key is not here.
    #[error("{}", missing_key(.key, *.told))]
    MissingKey {
        /// The key.
        key: KeyRef,
        /// Why it is not, as far as that is known: what was last answered, or what this KeyBox knows of the room.
        told: Option<WithheldCode>,
    },
    /// Not an encrypted event of this profile.
    #[error("not a message of the KeyBox profile")]
    NotAnEnvelope,
    /// Altered, forged, or of an unknown suite.
    #[error("the message was refused")]
    Refused(#[source] EnvelopeError),
    /// Posted again under another event id.
    #[error("the message was posted before")]
    Replayed(#[source] Replayed),
    /// It claims another suite than the one that the resource key was made for.
    #[error("the message does not use the suite of its resource key")]
    WrongSuite,
    /// The key set of the KeyBox that it names has not been seen yet.
    #[error("the KeyBox {0} is not known")]
    UnknownKeyBox(KeyBoxAddress),
}

impl DecryptError {
    /// Whether it may become readable later.
    pub fn is_temporary(&self) -> bool {
        matches!(self, Self::MissingKey { .. } | Self::UnknownKeyBox(_))
    }
}

fn missing_key(key: &KeyRef, told: Option<WithheldCode>) -> String {
    let Some(code) = told else { return format!("the resource key {} has not arrived yet", key.key_id) };
    let why = match code {
        WithheldCode::AwaitingApproval => "a person who has it must approve this KeyBox first",
        WithheldCode::Blacklisted => "who was asked gives it to nobody",
        WithheldCode::NoDeviceKey => "who was asked knows no valid key set of this KeyBox for its suite",
        WithheldCode::RoomClosed => {
            "the room is closed, and this KeyBox was not there when that was done: ask a moderator of the room to let it in \
             (keybox approve-keybox ROOM USER KEYBOX)"
        }
        WithheldCode::Unauthorised => "who was asked says that this KeyBox may not read it",
        WithheldCode::Unavailable => "who was asked does not have it",
        WithheldCode::Unverified => "who was asked has to verify this KeyBox first",
        WithheldCode::WrongSuite => "it serves another suite than the message names",
    };
    format!("the resource key {} was not given: {why}", key.key_id)
}

/// Whether an event claims to be encrypted with a suite of this profile.
pub(super) fn is_envelope(event: &RoomEvent) -> bool {
    let algorithm = event.content.get("algorithm").and_then(Value::as_str);
    event.event_type == "m.room.encrypted" && algorithm.is_some_and(suite::is_keybox_suite)
}

impl Engine {
    /// Opens an event of a room. Opening the same event again is fine.
    pub fn decrypt(&mut self, room_id: &str, event: &RoomEvent) -> Result<Message, DecryptError> {
        if !is_envelope(event) {
            return Err(DecryptError::NotAnEnvelope);
        }
        let envelope = Envelope::deserialize(&event.content).map_err(|_| DecryptError::NotAnEnvelope)?;
        let sender = KeyBoxAddress::new(&event.sender, &envelope.sender_keybox);
        let key = KeyRef { room_id: room_id.to_owned(), key_id: envelope.key_id.clone() };
        let (sender_keys, verified) = self.sender_of(&sender, &key, &envelope)?;
        envelope.check_signature(room_id, &sender_keys).map_err(DecryptError::Refused)?;
        let Some(open) = self.open_key(&key) else { return Err(self.missing_key(key)) };
        // A resource key serves one suite.
        if self.resource_keys.get(&key).is_some_and(|record| record.suite != envelope.algorithm) {
            return Err(DecryptError::WrongSuite);
        }
        let payload = envelope.open(room_id, &sender_keys, &open).map_err(DecryptError::Refused)?;
        self.accept_counter(&key, &sender, envelope.counter, &event.event_id)?;
        Ok(Message {
            room_id: room_id.to_owned(),
            event_id: event.event_id.clone(),
            sender: event.sender.clone(),
            sender_keybox: Some(envelope.sender_keybox),
            sent_at: event.origin_server_ts,
            event_type: payload.event_type,
            content: payload.content,
            encrypted: true,
            verified,
            key_id: Some(key.key_id),
            counter: Some(envelope.counter),
        })
    }

    /// The key set that an envelope is to be checked with, and whether its owner is verified: those that the KeyBox has, or
    /// had before a change was accepted.
    fn sender_of(
        &self,
        sender: &KeyBoxAddress,
        key: &KeyRef,
        envelope: &Envelope,
    ) -> Result<(PublicKeySet, bool), DecryptError> {
        if *sender == self.own {
            return Ok((self.public.clone(), true));
        }
        let known = self.directory.find(sender).ok_or_else(|| DecryptError::UnknownKeyBox(sender.clone()))?;
        let received_at = self.resource_keys.get(key).map_or(u64::MAX, |record| record.received_at);
        let signed_with = known
            .keys_at(received_at)
            .find(|keys| envelope.check_signature(&key.room_id, keys).is_ok())
            .unwrap_or(&known.keys);
        // Whoever has a KeyBox that was revoked can still sign, and a server can deliver it.
        let verified = known.is_verified() && !known.gone && *signed_with == known.keys;
        Ok((signed_with.clone(), verified))
    }

    fn accept_counter(
        &mut self,
        key: &KeyRef,
        sender: &KeyBoxAddress,
        counter: u64,
        event_id: &str,
    ) -> Result<(), DecryptError> {
        let Some(record) = self.resource_keys.get_mut(key) else {
            return Err(self.missing_key(key.clone()));
        };
        let of_user = record.seen.entry(sender.user_id.clone()).or_default();
        let guard = of_user.entry(sender.keybox_id.clone()).or_default();
        let before = guard.count();
        guard.accept(counter, event_id).map_err(DecryptError::Replayed)?;
        let new = guard.count() > before;
        if *sender == self.own {
            // After a restore from an old copy of the store, our own messages tell which counters are used up.
            record.next_counter = record.next_counter.max(counter.saturating_add(1));
        }
        if new {
            self.key_changed(key);
        }
        Ok(())
    }

    /// Why a message whose resource key is not here cannot be read.
    fn missing_key(&self, key: KeyRef) -> DecryptError {
        let is_outside = self.rooms.get(&key.room_id).is_some_and(|room| self.is_outside(room, &self.own));
        let answered = || self.exchange.wanted.iter().find(|wanted| wanted.key == key)?.told;
        let unasked = || self.exchange.told.iter().find(|(told, _)| *told == key).map(|(_, code)| *code);
        let told = if is_outside { Some(WithheldCode::RoomClosed) } else { answered().or_else(unasked) };
        DecryptError::MissingKey { key, told }
    }

    /// A message that came in the clear, to be shown as such.
    pub(super) fn clear_message(room_id: &str, event: &RoomEvent) -> Message {
        Message {
            room_id: room_id.to_owned(),
            event_id: event.event_id.clone(),
            sender: event.sender.clone(),
            sender_keybox: None,
            sent_at: event.origin_server_ts,
            event_type: event.event_type.clone(),
            content: event.content.clone(),
            encrypted: false,
            verified: false,
            key_id: None,
            counter: None,
        }
    }
}
