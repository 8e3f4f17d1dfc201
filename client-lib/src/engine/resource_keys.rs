//! Resource keys as a KeyBox keeps them: wrapped to itself, with who made them, who has them, and what was sealed with them.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use keystead_keybox::context::WrapContext;
use keystead_keybox::encoding::{base64, from_base64, hex};
use keystead_keybox::envelope::Envelope;
use keystead_keybox::key_message::{Origin, WithheldCode};
use keystead_keybox::replay::ReplayGuard;
use keystead_keybox::resource_key::ResourceKey;
use keystead_keybox::{Entropy, suite};

use super::{Engine, KeyBoxAddress, KeyRef, Message, RecordName};
use crate::events::RoomEvent;

/// What is kept about a resource key. The key itself is only in `wrap`, encrypted to this KeyBox.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct KeyRecord {
    pub(super) key: KeyRef,
    pub(super) suite: String,
    /// Base64 of the wrap from this KeyBox to itself.
    pub(super) wrap: String,
    pub(super) origin: Origin,
    /// Whether the maker's signature in `origin` was checked.
    pub(super) origin_verified: bool,
    /// Who sent it; `None` if it was made here.
    pub(super) received_from: Option<KeyBoxAddress>,
    pub(super) received_at: u64,
    /// The room's epoch when the key was made or came; the greatest number if it is for reading only.
    pub(super) epoch: u64,
    /// Whether it may be sent with, as far as its origin goes.
    pub(super) for_sending: bool,
    /// The KeyBoxes that have it, or for which it is on its way.
    pub(super) holders: BTreeSet<KeyBoxAddress>,
    /// The KeyBoxes that were told why they do not get it.
    #[serde(default)]
    pub(super) withheld: Vec<(KeyBoxAddress, WithheldCode)>,
    /// Whether it is in the backup that the recovery key opens, if this KeyBox adds to one.
    #[serde(default)]
    pub(super) backed_up: bool,
    /// The counter of the next message that this KeyBox seals with it.
    pub(super) next_counter: u64,
    /// What was opened with it: by user, by KeyBox.
    pub(super) seen: BTreeMap<String, BTreeMap<String, ReplayGuard>>,
    /// The counters of the messages that were marked as read: by user, by KeyBox.
    #[serde(default)]
    pub(super) read: BTreeMap<String, BTreeMap<String, BTreeSet<u64>>>,
}

impl KeyRecord {
    /// A resource key that has just come to be known here: held by this KeyBox, `own`, and for reading only.
    pub(super) fn new(
        key: &KeyRef,
        suite: &str,
        wrap: String,
        origin: Origin,
        own: &KeyBoxAddress,
        now: u64,
    ) -> Self {
        Self {
            key: key.clone(),
            suite: suite.to_owned(),
            wrap,
            origin,
            origin_verified: false,
            received_from: None,
            received_at: now,
            // Of no present epoch.
            epoch: u64::MAX,
            for_sending: false,
            holders: BTreeSet::from([own.clone()]),
            withheld: Vec::new(),
            backed_up: false,
            next_counter: 0,
            seen: BTreeMap::new(),
            read: BTreeMap::new(),
        }
    }

    /// How many messages are known to be sealed with the key.
    pub(super) fn messages(&self, own: &KeyBoxAddress) -> u64 {
        let counts = self.seen.iter().flat_map(|(user_id, keyboxes)| {
            keyboxes.iter().map(move |(keybox_id, guard)| (KeyBoxAddress::new(user_id, keybox_id), guard))
        });
        let of_others: usize =
            counts.filter(|(address, _)| address != own).map(|(_, guard)| guard.count()).sum();
        self.next_counter.saturating_add(u64::try_from(of_others).unwrap_or(u64::MAX))
    }
}

/// Everything that is needed to open one message by hand with the `openssl` command line.
pub struct ExportedKey {
    /// Identifier of the message's suite.
    pub suite: String,
    /// The resource key's id.
    pub key_id: String,
    /// The resource key: 64 hexadecimal characters. Whoever has it reads every message under it.
    pub resource_key: Zeroizing<String>,
    /// The message's IV in hexadecimal: 32 characters in suite v1, 24 in v2.
    pub iv: String,
    /// The message's ciphertext, padded base64 as `openssl base64 -d -A` reads it.
    pub ciphertext: String,
    /// The message's MAC or tag, in hexadecimal.
    pub mac: String,
}

/// Messages that a KeyBox sealed, by the counters of later ones, and that have not come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MissingMessages {
    /// The resource key that they are sealed with.
    pub key: KeyRef,
    /// Who sealed them.
    pub keybox: KeyBoxAddress,
    /// Their counters.
    pub counters: RangeInclusive<u64>,
}

/// What an encrypted message is one of: the key, the KeyBox that sealed it, and its counter.
fn place_of(message: &Message) -> Option<(KeyRef, &str, u64)> {
    let key = KeyRef { room_id: message.room_id.clone(), key_id: message.key_id.clone()? };
    Some((key, message.sender_keybox.as_deref()?, message.counter?))
}

impl Engine {
    /// The messages of a room that are missing, as far as the counters of those that came tell (`profiles/keybox/SPEC.md`, section 6).
    /// That something is missing after the last one that came, no counter tells.
    pub fn missing_messages(&self, room_id: &str) -> Vec<MissingMessages> {
        let of_room = self.resource_keys.values().filter(|record| record.key.room_id == room_id);
        let guards = of_room.flat_map(|record| {
            record.seen.iter().flat_map(move |(user_id, keyboxes)| {
                keyboxes.iter().map(move |(keybox_id, guard)| (record, user_id, keybox_id, guard))
            })
        });
        let missing = guards.flat_map(|(record, user_id, keybox_id, guard)| {
            guard.gaps().into_iter().map(move |counters| MissingMessages {
                key: record.key.clone(),
                keybox: KeyBoxAddress::new(user_id, keybox_id),
                counters,
            })
        });
        missing.collect()
    }

    /// Remembers that a message was read. A server that delivers its event again must not make a program act on it twice.
    pub(super) fn remember_read(&mut self, message: &Message) {
        let Some((key, keybox_id, counter)) = place_of(message) else { return };
        let Some(record) = self.resource_keys.get_mut(&key) else { return };
        let of_user = record.read.entry(message.sender.clone()).or_default();
        if of_user.entry(keybox_id.to_owned()).or_default().insert(counter) {
            self.key_changed(&key);
        }
    }

    /// Whether a message was read before.
    pub(super) fn was_read(&self, message: &Message) -> bool {
        let read = || {
            let (key, keybox_id, counter) = place_of(message)?;
            let of_user = self.resource_keys.get(&key)?.read.get(&message.sender)?;
            Some(of_user.get(keybox_id)?.contains(&counter))
        };
        read().unwrap_or_default()
    }

    /// The open resource key, unwrapped on first use. `None` if this KeyBox does not have it, or cannot open it any more.
    pub(super) fn open_key(&mut self, key: &KeyRef) -> Option<ResourceKey> {
        if let Some(open) = self.open.get(key) {
            return Some(open.clone());
        }
        let record = self.resource_keys.get(key)?;
        let wrap = from_base64(&record.wrap).ok()?;
        let suite = suite::find(&record.suite)?;
        let open = suite.unwrap(&wrap, &self.keys, &self.wrap_context(key, &record.suite, &self.own)).ok()?;
        self.open.insert(key.clone(), open.clone());
        Some(open)
    }

    /// Wraps a resource key to this KeyBox itself: how it is stored.
    pub(super) fn wrap_to_self(
        &self,
        key: &KeyRef,
        suite: &str,
        open: &ResourceKey,
        entropy: &mut dyn Entropy,
    ) -> Option<String> {
        let context = self.wrap_context(key, suite, &self.own);
        let wrap = suite::find(suite)?.wrap(open, &self.public, &context, entropy).ok()?;
        Some(base64(&wrap))
    }

    /// Where a wrap of that key from this KeyBox to `recipient` belongs.
    pub(super) fn wrap_context<'a>(
        &'a self,
        key: &'a KeyRef,
        suite: &'a str,
        recipient: &'a KeyBoxAddress,
    ) -> WrapContext<'a> {
        WrapContext {
            suite,
            room_id: &key.room_id,
            key_id: &key.key_id,
            sender: &self.own.user_id,
            sender_keybox: &self.own.keybox_id,
            recipient: &recipient.user_id,
            recipient_keybox: &recipient.keybox_id,
        }
    }

    /// Notes in the key's room that it is known of from now on.
    pub(super) fn know_key(&mut self, key: &KeyRef) {
        if let Some(room) = self.rooms.get_mut(&key.room_id) {
            room.know_key(&key.key_id);
            self.changed.insert(RecordName::Room(key.room_id.clone()));
        }
    }

    pub(super) fn key_changed(&mut self, key: &KeyRef) {
        self.changed.insert(RecordName::Key(key.clone()));
    }

    /// The open resource key of an event, for a person who wants to decrypt it by hand. `None` if the event is not an
    /// envelope or its key is not here.
    pub fn export_key(&mut self, room_id: &str, event: &RoomEvent) -> Option<ExportedKey> {
        let envelope = Envelope::deserialize(&event.content).ok()?;
        let open = self.open_key(&KeyRef { room_id: room_id.to_owned(), key_id: envelope.key_id.clone() })?;
        let mut ciphertext = base64(&envelope.ciphertext);
        while !ciphertext.len().is_multiple_of(4) {
            ciphertext.push('=');
        }
        Some(ExportedKey {
            mac: hex(&envelope.mac),
            suite: envelope.algorithm,
            key_id: envelope.key_id.to_string(),
            resource_key: open.to_hex(),
            iv: hex(&envelope.iv),
            ciphertext,
        })
    }
}
