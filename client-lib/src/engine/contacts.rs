//! The people this KeyBox knows: whether somebody made sure of their keys, and what happens when these change.

use keystead_keybox::contact_code::{ContactCode, Mismatch};

use super::{EncryptError, Engine, KeyBoxAddress, KnownKeyBox, RecordName};

/// Somebody whose KeyBoxes this one has seen.
#[derive(Clone, Debug)]
pub struct Contact {
    /// The user id.
    pub user_id: String,
    /// Their KeyBoxes, with those that are gone.
    pub keyboxes: Vec<KnownKeyBox>,
    /// Whether their identity is another than before, and nobody has accepted it.
    pub identity_changed: bool,
}

impl Contact {
    /// Whether a person has made sure of each of their present KeyBoxes.
    pub fn is_verified(&self) -> bool {
        let mut present = self.keyboxes.iter().filter(|known| !known.gone).peekable();
        present.peek().is_some() && present.all(KnownKeyBox::is_verified)
    }

    /// Whether their keys have changed, so that nothing is sent to them until that is accepted.
    pub fn keys_changed(&self) -> bool {
        self.identity_changed || self.keyboxes.iter().any(KnownKeyBox::blocks_sending)
    }
}

/// What was accepted of a user.
#[derive(Clone, Debug, Default)]
pub struct Accepted {
    /// Whether it was another identity.
    pub identity: bool,
    /// The KeyBoxes whose keys had changed, as they are now.
    pub keyboxes: Vec<KnownKeyBox>,
}

/// Why a contact code did not verify a KeyBox.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ContactError {
    /// The server shows other keys for the KeyBox than before.
    #[error("the keys of {0} have changed; accept them first (keybox accept {user})", user = .0.user_id)]
    Changed(KeyBoxAddress),
    /// The code and the keys differ.
    #[error("{keybox} is not verified")]
    Mismatch {
        /// The KeyBox that the code names.
        keybox: KeyBoxAddress,
        /// How they differ.
        source: Mismatch,
    },
    /// The code is this KeyBox's own.
    #[error("this is your own contact code; scan somebody else's")]
    Own,
    /// The server shows no such KeyBox: it is gone, or never was.
    #[error("the homeserver knows no KeyBox {0}; it may have been logged out, or the code is not genuine")]
    Unknown(KeyBoxAddress),
}

impl Engine {
    /// The contact code of this KeyBox, for others to scan.
    pub fn contact_code(&self) -> ContactCode {
        ContactCode::of(&self.public)
    }

    /// Everybody whose KeyBoxes have been seen, but this KeyBox's own user.
    pub fn contacts(&self) -> Vec<Contact> {
        let others = self.directory.user_ids().filter(|user_id| **user_id != self.own.user_id);
        let contact = |user_id: &String| Contact {
            user_id: user_id.clone(),
            keyboxes: self.directory.all(user_id).cloned().collect(),
            identity_changed: self.directory.identity_changed(user_id),
        };
        others.map(contact).collect()
    }

    /// Marks the KeyBox that a contact code names as verified, if the code was made for the keys that it has. Ask the server for
    /// the user's key sets first ([`Engine::follow`]).
    pub fn verify_contact(&mut self, code: &ContactCode) -> Result<KeyBoxAddress, ContactError> {
        let address = KeyBoxAddress::new(&code.user_id, &code.keybox_id);
        if address == self.own {
            let source = match code.check(&self.public) {
                Ok(()) => return Err(ContactError::Own),
                Err(source) => source,
            };
            return Err(ContactError::Mismatch { keybox: address, source });
        }
        let known = self.directory.find(&address).filter(|known| !known.gone);
        let known = known.ok_or_else(|| ContactError::Unknown(address.clone()))?;
        if known.conflicting {
            return Err(ContactError::Changed(address));
        }
        code.check(&known.keys)
            .map_err(|source| ContactError::Mismatch { keybox: address.clone(), source })?;
        self.set_verified(&address, true);
        Ok(address)
    }

    /// Accepts the keys that the server shows for a user's KeyBoxes now in place of those known so far, and the identity. They count as not verified.
    pub fn accept(&mut self, user_id: &str, now: u64) -> Accepted {
        let identity = self.directory.identity_changed(user_id);
        let accepted = self.directory.accept(user_id, now);
        for known in &accepted {
            // What the old keys were given, the new ones were not.
            let address = KeyBoxAddress::new(user_id, &known.keys.keybox_id);
            for (key, record) in &mut self.resource_keys {
                if record.holders.remove(&address) {
                    self.changed.insert(RecordName::Key(key.clone()));
                }
            }
        }
        if identity && *user_id == self.own.user_id {
            // It is not the one whose private keys are here.
            self.forget_identity_keys();
        }
        if identity || !accepted.is_empty() {
            self.directory.mark_outdated(user_id);
            self.changed.insert(RecordName::Directory);
        }
        Accepted { identity, keyboxes: accepted }
    }

    /// Stops a message to people whose keys have changed.
    pub(super) fn refuse_changed_keys(&self, users: &[String]) -> Result<(), EncryptError> {
        for user_id in users {
            let changed = self.directory.all(user_id).filter(|known| known.blocks_sending());
            let keyboxes: Vec<_> = changed.map(|known| known.keys.keybox_id.clone()).collect();
            if self.directory.identity_changed(user_id) {
                return Err(EncryptError::IdentityChanged(user_id.clone()));
            }
            if !keyboxes.is_empty() {
                return Err(EncryptError::KeysChanged { user_id: user_id.clone(), keyboxes });
            }
        }
        Ok(())
    }
}
