//! Identities: Matrix's cross-signing keys, so that one verification covers all of a person's KeyBoxes. The account's own are made
//! here, signed with, and handed to those of its KeyBoxes that a person has verified.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use zeroize::{Zeroize, Zeroizing};

use keystead_keybox::Entropy;
use keystead_keybox::canonical_json::{JsonSignatureError, verify_json};
use keystead_keybox::encoding::{base64, from_base64};
use keystead_keybox::identity::{IdentityContent, IdentityKeys, Usage, is_signed_by, read_key};
use keystead_keybox::key_set::{PublicKeySet, validate_device_keys};

use super::exchange::EngineError;
use super::{Engine, KeyBoxAddress, KeyRef, Notice, Outgoing, RecordName};

/// What `/keys/query` answers: by user.
///
/// <https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3keysquery>
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct KeyQuery {
    /// Key sets, by device.
    pub device_keys: Map<String, Value>,
    /// Master keys.
    pub master_keys: Map<String, Value>,
    /// Self-signing keys.
    pub self_signing_keys: Map<String, Value>,
    /// The asking user's own user-signing key.
    pub user_signing_keys: Map<String, Value>,
}

/// The public keys of an identity, as base64.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ShownIdentity {
    pub(super) master: String,
    /// Signed by the master key, as all of these.
    pub(super) self_signing: Option<String>,
    pub(super) user_signing: Option<String>,
    /// The user's own KeyBoxes that signed the master key.
    pub(super) signed_by: BTreeSet<String>,
}

/// An identity that this KeyBox knows.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct KnownIdentity {
    pub(super) keys: ShownIdentity,
    /// Whether a person has made sure of it: by one of the KeyBoxes that signed it, here or at another KeyBox of our user.
    pub(super) verified: bool,
    /// Whether a person has taken that back since: the signature that this account made on it does not count any more.
    #[serde(default)]
    pub(super) distrusted: bool,
    /// Another one that the server shows, which nobody has accepted.
    pub(super) offered: Option<ShownIdentity>,
}

impl KnownIdentity {
    pub(super) fn new(keys: ShownIdentity) -> Self {
        Self { keys, verified: false, distrusted: false, offered: None }
    }

    /// Returns whether it is another one than before, and was not on the last look.
    pub(super) fn update(&mut self, shown: ShownIdentity) -> bool {
        if shown.master == self.keys.master {
            // The keys below it may be replaced: the master key has signed them.
            self.keys = shown;
            return false;
        }
        let new = self.offered.as_ref().is_none_or(|offered| offered.master != shown.master);
        self.offered = Some(shown);
        new
    }

    pub(super) fn accept(&mut self) {
        if let Some(keys) = self.offered.take() {
            *self = Self::new(keys);
        }
    }
}

/// The private keys of the account's identity, and what has been done with them.
#[derive(Serialize, Deserialize)]
pub(super) struct IdentityRecord {
    /// Base64 of [`IdentityKeys::seeds`].
    seeds: String,
    /// Whether the public keys are on the server.
    pub(super) uploaded: bool,
    /// The KeyBoxes of the account that were given the private keys.
    shared_with: BTreeSet<String>,
    /// Signatures to upload: the content of `/keys/signatures/upload`.
    signatures: Map<String, Value>,
}

impl Drop for IdentityRecord {
    fn drop(&mut self) {
        self.seeds.zeroize();
    }
}

impl std::fmt::Debug for IdentityRecord {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("IdentityRecord").field("uploaded", &self.uploaded).finish_non_exhaustive()
    }
}

fn object<'a>(of: &'a Map<String, Value>, user_id: &str) -> Option<&'a Map<String, Value>> {
    of.get(user_id)?.as_object()
}

/// Whether what the server shows is that key set, whole and signed by itself. Anything else, which is taken for no KeyBox, must not get a signature
/// of ours either: with a self-signature that the server adds afterwards it would count at those who see it first.
fn is_key_set(keys: &PublicKeySet, device_keys: &Value) -> bool {
    let shown = device_keys
        .as_object()
        .and_then(|object| validate_device_keys(&keys.user_id, &keys.keybox_id, object).ok().flatten());
    shown.is_some_and(|shown| shown.hash() == keys.hash())
}

impl Engine {
    /// Whether the private keys of the account's identity are here, so that what is verified here counts at all of its KeyBoxes.
    pub fn holds_identity(&self) -> bool {
        self.identity.is_some()
    }

    /// Takes in a user's identity, and does what follows from it.
    pub(super) fn receive_identity(
        &mut self,
        user_id: &str,
        query: &KeyQuery,
        entropy: &mut dyn Entropy,
        notices: &mut Vec<Notice>,
    ) -> Result<(), EngineError> {
        let none = Map::new();
        let devices = object(&query.device_keys, user_id).unwrap_or(&none);
        let shown = self.shown_identity(user_id, query, devices);
        let published = shown.is_some();
        notices.extend(self.directory.update_identity(user_id, shown, devices));
        if user_id == self.own.user_id {
            let is_wanted = self.identity.is_none() && !self.identity_refused;
            if !published && is_wanted && self.directory.identity(user_id).is_none() {
                self.keep_identity(&IdentityKeys::generate(user_id, entropy)?, false)?;
            }
            self.confirm_own_identity()?;
            self.sign_own_keyboxes(devices)?;
            self.share_identity(entropy, notices)?;
        } else {
            self.honour_signatures(user_id, query);
            self.sign_user(user_id, query)?;
        }
        Ok(())
    }

    fn shown_identity(
        &self,
        user_id: &str,
        query: &KeyQuery,
        devices: &Map<String, Value>,
    ) -> Option<ShownIdentity> {
        let master_object = object(&query.master_keys, user_id)?;
        let master = read_key(user_id, Usage::Master, master_object)?.to_owned();
        let below = |keys: &Map<String, Value>, usage| {
            let object = object(keys, user_id).filter(|object| is_signed_by(user_id, &master, object))?;
            read_key(user_id, usage, object).map(str::to_owned)
        };
        let signed = devices.keys().filter(|keybox_id| {
            let known = self.directory.find(&KeyBoxAddress::new(user_id, keybox_id));
            known.is_some_and(|known| {
                verify_json(&known.keys.ed25519, user_id, keybox_id, master_object).is_ok()
            })
        });
        Some(ShownIdentity {
            self_signing: below(&query.self_signing_keys, Usage::SelfSigning),
            user_signing: below(&query.user_signing_keys, Usage::UserSigning),
            signed_by: signed.cloned().collect(),
            master,
        })
    }

    fn keep_identity(&mut self, keys: &IdentityKeys, uploaded: bool) -> Result<(), EngineError> {
        self.identity = Some(IdentityRecord {
            seeds: base64(&keys.seeds()?),
            uploaded,
            shared_with: BTreeSet::new(),
            signatures: Map::new(),
        });
        self.changed.insert(RecordName::Identity);
        // Its KeyBoxes and contacts are to be signed.
        self.directory.mark_outdated(&self.own.user_id.clone());
        Ok(())
    }

    pub(super) fn forget_identity_keys(&mut self) {
        self.identity = None;
        self.changed.insert(RecordName::Identity);
    }

    fn identity_keys(&self) -> Result<Option<IdentityKeys>, EngineError> {
        let Some(record) = &self.identity else { return Ok(None) };
        let Ok(seeds) = from_base64(&record.seeds).map(Zeroizing::new) else { return Ok(None) };
        Ok(IdentityKeys::from_seeds(&self.own.user_id, &seeds)?)
    }

    /// Whose private keys are here is verified.
    fn confirm_own_identity(&mut self) -> Result<(), EngineError> {
        let own = self.own.user_id.clone();
        if let (Some(keys), Some(known)) = (self.identity_keys()?, self.directory.identity(&own))
            && known.keys.master == keys.public(Usage::Master)?
        {
            self.directory.set_identity_verified(&own, true);
            self.changed.insert(RecordName::Directory);
        }
        Ok(())
    }

    /// Signs this KeyBox, and those of the account that a person has verified here.
    fn sign_own_keyboxes(&mut self, devices: &Map<String, Value>) -> Result<(), EngineError> {
        let Some(keys) = self.identity_keys()? else { return Ok(()) };
        let own = self.own.clone();
        for (keybox_id, device_keys) in devices {
            let known = self.directory.find(&KeyBoxAddress::new(&own.user_id, keybox_id));
            let ours = *keybox_id == own.keybox_id || known.is_some_and(|known| known.verified);
            let sound = known.is_some_and(|known| {
                !known.cross_signed && !known.conflicting && is_key_set(&known.keys, device_keys)
            });
            if let (true, true, Some(device_keys)) = (ours, sound, device_keys.as_object()) {
                let signed = keys.signed(Usage::SelfSigning, device_keys).map_err(signing_failed)?;
                self.queue_signature(&own.user_id, keybox_id, signed);
            }
        }
        Ok(())
    }

    /// Signs the identity of somebody whom a person has verified.
    fn sign_user(&mut self, user_id: &str, query: &KeyQuery) -> Result<(), EngineError> {
        let Some(keys) = self.identity_keys()? else { return Ok(()) };
        let Some(known) = self.directory.identity(user_id) else { return Ok(()) };
        let Some(master_object) = object(&query.master_keys, user_id) else { return Ok(()) };
        let signer = keys.public(Usage::UserSigning)?;
        let ours = self.own.user_id.clone();
        let due = known.verified
            && known.offered.is_none()
            && read_key(user_id, Usage::Master, master_object) == Some(known.keys.master.as_str())
            && !is_signed_by(&ours, &signer, master_object);
        if due {
            let name = known.keys.master.clone();
            let signed = keys.signed(Usage::UserSigning, master_object).map_err(signing_failed)?;
            self.queue_signature(user_id, &name, signed);
        }
        Ok(())
    }

    /// A contact whose identity another KeyBox of our verified identity has signed is verified here too.
    fn honour_signatures(&mut self, user_id: &str, query: &KeyQuery) {
        let Some(own) = self.directory.identity(&self.own.user_id) else { return };
        let Some(known) = self.directory.identity(user_id) else { return };
        let trusted = own.verified && own.offered.is_none() && known.offered.is_none() && !known.distrusted;
        let signed = object(&query.master_keys, user_id).is_some_and(|master_object| {
            let signer = own.keys.user_signing.as_deref();
            read_key(user_id, Usage::Master, master_object) == Some(known.keys.master.as_str())
                && signer.is_some_and(|signer| is_signed_by(&self.own.user_id, signer, master_object))
        });
        if trusted && signed {
            self.directory.set_identity_verified(user_id, true);
            self.changed.insert(RecordName::Directory);
        }
    }

    fn queue_signature(&mut self, user_id: &str, key: &str, signed: Map<String, Value>) {
        let Some(record) = &mut self.identity else { return };
        let of_user = record.signatures.entry(user_id).or_insert_with(|| json!({}));
        if let Some(of_user) = of_user.as_object_mut() {
            of_user.insert(key.to_owned(), signed.into());
        }
        self.changed.insert(RecordName::Identity);
    }

    /// Gives the private keys to the KeyBoxes of the account that a person has verified here.
    fn share_identity(
        &mut self,
        entropy: &mut dyn Entropy,
        notices: &mut Vec<Notice>,
    ) -> Result<(), EngineError> {
        let Some(keys) = self.identity_keys()? else { return Ok(()) };
        let own = self.own.clone();
        let confirmed = self
            .directory
            .identity(&own.user_id)
            .is_some_and(|identity| identity.verified && identity.offered.is_none());
        let given = self.identity.as_ref().map(|record| record.shared_with.clone()).unwrap_or_default();
        let lacking = self.directory.all(&own.user_id).filter(|known| {
            let sound = known.verified && !known.gone && !known.conflicting;
            confirmed
                && sound
                && !given.contains(&known.keys.keybox_id)
                && known.keys.keybox_id != own.keybox_id
        });
        let lacking: Vec<_> = lacking.map(|known| known.keys.clone()).collect();
        for recipient in lacking {
            let content = keys.seal(&self.keys, &recipient, entropy)?;
            let keybox = KeyBoxAddress::new(&own.user_id, &recipient.keybox_id);
            // It is about no room.
            let key = KeyRef { room_id: String::new(), key_id: content.key_id.clone() };
            self.enqueue(&key, vec![(keybox.clone(), content)], entropy)?;
            if let Some(record) = &mut self.identity {
                record.shared_with.insert(recipient.keybox_id);
            }
            self.changed.insert(RecordName::Identity);
            notices.push(Notice::IdentityShared { keybox });
        }
        Ok(())
    }

    /// Takes the private keys of the account's identity from another of its KeyBoxes. `None`: not yet, a person has to verify that
    /// KeyBox here first. An error is why they are not taken.
    pub(super) fn on_identity(
        &mut self,
        content: IdentityContent,
        sender: &KeyBoxAddress,
        notices: &mut Vec<Notice>,
    ) -> Result<Option<Result<(), &'static str>>, EngineError> {
        if sender.user_id != self.own.user_id {
            return Ok(Some(Err("it is of another user")));
        }
        if self.identity.is_some() {
            return Ok(Some(Ok(())));
        }
        let trusted = self.directory.find(sender).is_some_and(|known| known.verified && !known.conflicting);
        let Some(known) = self.directory.identity(&self.own.user_id).filter(|_| trusted) else {
            return Ok(None);
        };
        let master = known.keys.master.clone();
        let Ok(keys) = IdentityKeys::open(content, &self.keys, &self.public) else {
            return Ok(Some(Err("it does not open")));
        };
        if keys.public(Usage::Master)? != master {
            return Ok(Some(Err("it is not the identity that the server shows")));
        }
        self.keep_identity(&keys, true)?;
        self.confirm_own_identity()?;
        for user_id in self.directory.user_ids().cloned().collect::<Vec<_>>() {
            self.directory.mark_outdated(&user_id);
        }
        self.changed.insert(RecordName::Directory);
        notices.push(Notice::IdentityReceived { keybox: sender.clone() });
        Ok(Some(Ok(())))
    }

    /// What the identity wants sent.
    pub(super) fn outgoing_identity(&self) -> Result<Option<Outgoing>, EngineError> {
        let (Some(record), Some(keys)) = (&self.identity, self.identity_keys()?) else { return Ok(None) };
        if !record.uploaded {
            let objects = Box::new(keys.objects(&self.keys).map_err(signing_failed)?);
            return Ok(Some(Outgoing::UploadIdentity { objects }));
        }
        let due = !record.signatures.is_empty();
        Ok(due.then(|| Outgoing::UploadSignatures { signatures: record.signatures.clone() }))
    }

    /// The identity is on the server.
    pub fn identity_uploaded(&mut self) {
        if let Some(record) = &mut self.identity {
            record.uploaded = true;
        }
        self.directory.mark_outdated(&self.own.user_id.clone());
        self.changed.extend([RecordName::Directory, RecordName::Identity]);
    }

    /// The server has refused the identity: another KeyBox of the account was faster, and that one's counts. Or it takes none: then the account
    /// has none.
    pub fn identity_refused(&mut self) {
        self.forget_identity_keys();
        self.identity_refused = true;
        self.directory.mark_outdated(&self.own.user_id.clone());
        self.changed.insert(RecordName::Directory);
    }

    /// The server has taken the signatures, or judged them; what it did not take is tried again with the next look at the keys.
    pub fn signatures_uploaded(&mut self) {
        if let Some(record) = &mut self.identity {
            record.signatures.clear();
        }
        self.changed.insert(RecordName::Identity);
    }
}

fn signing_failed(error: JsonSignatureError) -> EngineError {
    match error {
        JsonSignatureError::Crypto(error) => EngineError::Crypto(error),
        _ => EngineError::OwnKeys,
    }
}
