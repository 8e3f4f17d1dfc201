//! The KeyBox itself, without I/O: it takes what arrived, gives what to send, and says what to store.
//!
//! One round of a client that uses it:
//!
//! 1. [`Engine::receive_sync`] with an answer of `/sync`;
//! 2. [`Engine::outgoing`]: carry out each request, report with [`Engine::keys_uploaded`],
//!    [`Engine::receive_key_sets`], [`Engine::to_device_sent`] or [`Engine::to_device_refused`]; again until none is left;
//! 3. [`Engine::take_changes`]: store the records, then the sync token.
//!
//! To send: [`Engine::prepare`] until it is ready (it may ask for key sets first), then [`Engine::encrypt`], store, send.
//!
//! A crash between any two steps loses nothing: what was not stored comes again with the old sync token, and taking
//! anything in twice changes nothing.

mod closing;
mod contacts;
mod decrypt;
mod directory;
mod exchange;
mod identity;
mod interchange;
mod key_messages;
mod log;
mod notice;
mod outgoing;
mod policy;
mod records;
mod recovery;
mod requests;
mod resource_keys;
mod room;
mod send;
mod sync;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::{Deserialize, Serialize};

use keystead_keybox::key_set::{KeySetError, PrivateKeySet, PublicKeySet};
use keystead_keybox::resource_key::{ResourceKey, ResourceKeyId};

pub use closing::{ClosingFailure, NewStep};
pub use contacts::{Accepted, Contact, ContactError};
pub use decrypt::{DecryptError, Message};
pub use directory::KnownKeyBox;
pub use exchange::EngineError;
pub use identity::KeyQuery;
pub use interchange::Imported;
pub(crate) use log::part_name;
pub use notice::Notice;
pub use outgoing::Outgoing;
pub use policy::{Approval, Decision, Policy};
pub use records::{Record, RecordError};
pub use resource_keys::{ExportedKey, MissingMessages};
pub use room::{Membership, Room};
pub use send::{EncryptError, Readiness};
pub use sync::{Gap, Received};

use directory::Directory;
use exchange::Exchange;
use identity::IdentityRecord;
use log::OwnLog;
use policy::Policies;
use records::RecordName;
use recovery::RecoveryRecord;
use resource_keys::KeyRecord;

/// Names a KeyBox among all.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct KeyBoxAddress {
    /// Its owner.
    pub user_id: String,
    /// Its id, which is the Matrix device id.
    pub keybox_id: String,
}

impl KeyBoxAddress {
    /// The address of a user's KeyBox.
    pub fn new(user_id: &str, keybox_id: &str) -> Self {
        Self { user_id: user_id.to_owned(), keybox_id: keybox_id.to_owned() }
    }
}

impl std::fmt::Display for KeyBoxAddress {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}/{}", self.user_id, self.keybox_id)
    }
}

/// Names a resource key among all.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct KeyRef {
    /// Its room.
    pub room_id: String,
    /// Its id in the room.
    pub key_id: ResourceKeyId,
}

/// The state of one KeyBox.
#[derive(Debug)]
pub struct Engine {
    keys: PrivateKeySet,
    public: PublicKeySet,
    own: KeyBoxAddress,
    directory: Directory,
    rooms: BTreeMap<String, Room>,
    resource_keys: BTreeMap<KeyRef, KeyRecord>,
    exchange: Exchange,
    policies: Policies,
    /// The private keys of the user's identity, if they are here.
    identity: Option<IdentityRecord>,
    /// Whether the server has refused an identity of this KeyBox's making: it is not asked again before a restart.
    identity_refused: bool,
    /// The backup of the resource keys, if there is a recovery key and this KeyBox adds to it.
    recovery: Option<RecoveryRecord>,
    /// Resource keys that are open, in memory only.
    open: HashMap<KeyRef, ResourceKey>,
    log: OwnLog,
    changed: BTreeSet<RecordName>,
}

impl Engine {
    /// A KeyBox that knows nothing yet but its own keys.
    pub fn new(keys: PrivateKeySet) -> Result<Self, KeySetError> {
        let public = keys.public()?;
        let own = KeyBoxAddress::new(keys.user_id(), keys.keybox_id());
        let mut directory = Directory::default();
        directory.track(&own.user_id);
        Ok(Self {
            keys,
            public,
            own,
            directory,
            rooms: BTreeMap::new(),
            resource_keys: BTreeMap::new(),
            exchange: Exchange::default(),
            policies: Policies::default(),
            identity: None,
            identity_refused: false,
            recovery: None,
            open: HashMap::new(),
            log: OwnLog::default(),
            changed: BTreeSet::from([RecordName::Directory, RecordName::Exchange]),
        })
    }

    /// This KeyBox.
    pub fn address(&self) -> &KeyBoxAddress {
        &self.own
    }

    /// This KeyBox's public keys.
    pub fn public_keys(&self) -> &PublicKeySet {
        &self.public
    }

    /// The rooms that this KeyBox knows, by id.
    pub fn rooms(&self) -> &BTreeMap<String, Room> {
        &self.rooms
    }

    /// The KeyBoxes of a user that have been seen so far.
    pub fn keyboxes(&self, user_id: &str) -> Vec<&KnownKeyBox> {
        self.directory.all(user_id).collect()
    }

    /// Makes sure that the next [`Self::outgoing`] asks for a user's key sets.
    pub fn follow(&mut self, user_id: &str) {
        self.directory.mark_outdated(user_id);
        self.changed.insert(RecordName::Directory);
    }

    /// Marks a KeyBox as verified (or not) after a person has compared its fingerprint. `false` if it is not known.
    pub fn set_verified(&mut self, address: &KeyBoxAddress, verified: bool) -> bool {
        let known = self.directory.set_verified(address, verified);
        if known {
            // What follows from it, such as a signature for others to see, follows when the key sets are here anew.
            self.directory.mark_outdated(&address.user_id);
            self.changed.insert(RecordName::Directory);
        }
        known
    }
}
