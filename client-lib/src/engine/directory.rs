//! The key sets of other KeyBoxes: who has which, since when, and whether somebody compared the fingerprint.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use keystead_keybox::identity::is_signed_by;
use keystead_keybox::key_set::{PublicKeySet, validate_device_keys};

use super::identity::{KnownIdentity, ShownIdentity};
use super::{KeyBoxAddress, Notice};

/// A KeyBox that this one has seen.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct KnownKeyBox {
    /// Its public keys: those first seen under its id, for ever.
    pub keys: PublicKeySet,
    /// When it was first seen, in milliseconds since the Unix epoch.
    pub first_seen: u64,
    /// Whether a person compared its fingerprint.
    pub verified: bool,
    /// Whether its owner's identity is verified and has signed it: one verification covers all of a person's KeyBoxes.
    #[serde(default)]
    pub vouched: bool,
    /// Whether the key of its owner's identity for that has signed it.
    #[serde(default)]
    pub(super) cross_signed: bool,
    /// Whether it has disappeared from the server: its old messages can still be checked.
    pub gone: bool,
    /// Whether it was gone and is shown again, and nobody has compared its fingerprint since: what verified it before may be what
    /// its owner revoked.
    #[serde(default)]
    pub(super) returned: bool,
    /// Whether a person has taken back that its keys were compared: nobody else vouches for it here then.
    #[serde(default)]
    pub(super) distrusted: bool,
    /// Whether the server showed other keys under this id, which nobody has accepted. It gets no resource key then.
    pub conflicting: bool,
    /// The keys that the server showed last, if they are others.
    #[serde(default)]
    pub offered: Option<PublicKeySet>,
    /// Keys that were accepted changes of: messages of that time can still be checked.
    #[serde(default)]
    pub(super) former: Vec<FormerKeys>,
}

/// Keys that a KeyBox had before a person accepted others.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct FormerKeys {
    keys: PublicKeySet,
    /// They count for resource keys that were here by then.
    until: u64,
}

impl KnownKeyBox {
    /// The key sets that may have signed what belongs to a resource key that came at `received_at`.
    pub(super) fn keys_at(&self, received_at: u64) -> impl Iterator<Item = &PublicKeySet> {
        let former = self.former.iter().filter(move |former| received_at <= former.until);
        std::iter::once(&self.keys).chain(former.map(|former| &former.keys))
    }

    /// Whether a person has made sure of its keys, or of its owner's identity, which has signed them.
    pub fn is_verified(&self) -> bool {
        (self.verified || self.vouched) && !self.conflicting
    }

    /// Whether its keys have changed, and it is still there.
    pub fn blocks_sending(&self) -> bool {
        self.conflicting && !self.gone
    }
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Directory {
    users: BTreeMap<String, User>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct User {
    keyboxes: BTreeMap<String, KnownKeyBox>,
    outdated: bool,
    #[serde(default)]
    identity: Option<KnownIdentity>,
}

/// What an answer about a user changed.
pub(super) struct Update {
    pub(super) notices: Vec<Notice>,
    /// Whether a KeyBox that was there is no longer: resource keys that it holds must not be used to send any more.
    pub(super) departed: bool,
}

impl User {
    /// Says of each KeyBox whether the identity vouches for it; and of the identity whether a verified KeyBox vouches for it.
    fn vouch(&mut self) {
        let Some(identity) = &mut self.identity else { return };
        let vouches = |known: &KnownKeyBox| {
            let counts = known.verified && !known.conflicting && !known.gone;
            counts && identity.keys.signed_by.contains(&known.keys.keybox_id)
        };
        identity.verified = identity.verified || self.keyboxes.values().any(vouches);
        let vouched = identity.verified && identity.offered.is_none();
        for known in self.keyboxes.values_mut() {
            known.vouched = vouched && known.cross_signed && !known.returned && !known.distrusted;
        }
    }
}

impl Directory {
    /// Follows a user from now on; asks for their key sets if they are new here.
    pub(super) fn track(&mut self, user_id: &str) {
        self.users.entry(user_id.to_owned()).or_insert_with(|| User { outdated: true, ..User::default() });
    }

    /// Asks for the user's key sets again before they are next used.
    pub(super) fn mark_outdated(&mut self, user_id: &str) {
        self.users.entry(user_id.to_owned()).or_default().outdated = true;
    }

    /// The server has told of a change; of no interest for users that are not followed.
    pub(super) fn changed(&mut self, user_id: &str) {
        if let Some(user) = self.users.get_mut(user_id) {
            user.outdated = true;
        }
    }

    pub(super) fn is_outdated(&self, user_id: &str) -> bool {
        self.users.get(user_id).is_none_or(|user| user.outdated)
    }

    pub(super) fn outdated(&self) -> Vec<String> {
        self.users.iter().filter(|(_, user)| user.outdated).map(|(user_id, _)| user_id.clone()).collect()
    }

    /// A KeyBox, gone or not.
    pub(super) fn find(&self, address: &KeyBoxAddress) -> Option<&KnownKeyBox> {
        self.users.get(&address.user_id)?.keyboxes.get(&address.keybox_id)
    }

    pub(super) fn all(&self, user_id: &str) -> impl Iterator<Item = &KnownKeyBox> {
        self.users.get(user_id).into_iter().flat_map(|user| user.keyboxes.values())
    }

    /// The KeyBoxes of a user that do not speak a suite.
    pub(super) fn not_speaking<'a>(
        &'a self,
        user_id: &str,
        suite: &'a str,
    ) -> impl Iterator<Item = &'a KnownKeyBox> {
        let speaks = move |known: &KnownKeyBox| known.keys.algorithms.iter().any(|spoken| spoken == suite);
        self.all(user_id).filter(move |known| !known.gone && !speaks(known))
    }

    /// The KeyBoxes of a user that may be given resource keys of `suite`.
    pub(super) fn usable<'a>(
        &'a self,
        user_id: &str,
        suite: &'a str,
    ) -> impl Iterator<Item = &'a KnownKeyBox> {
        let speaks = move |known: &&KnownKeyBox| known.keys.algorithms.iter().any(|spoken| spoken == suite);
        self.all(user_id).filter(|known| !known.gone && !known.conflicting).filter(speaks)
    }

    /// Takes the keys that the server shows for the user's KeyBoxes now instead of those known. Returns which have changed.
    pub(super) fn accept(&mut self, user_id: &str, now: u64) -> Vec<KnownKeyBox> {
        let mut accepted = Vec::new();
        let Some(user) = self.users.get_mut(user_id) else { return accepted };
        for known in user.keyboxes.values_mut().filter(|known| known.blocks_sending()) {
            known.conflicting = false;
            if let Some(keys) = known.offered.take() {
                let keys = std::mem::replace(&mut known.keys, keys);
                known.former.push(FormerKeys { keys, until: now });
                known.verified = false;
            }
            accepted.push(known.clone());
        }
        if let Some(identity) = &mut user.identity {
            identity.accept();
        }
        user.vouch();
        accepted
    }

    /// The identity of a user, if one was ever published.
    pub(super) fn identity(&self, user_id: &str) -> Option<&KnownIdentity> {
        self.users.get(user_id)?.identity.as_ref()
    }

    /// Whether a user's identity is another than before, and nobody has accepted it.
    pub(super) fn identity_changed(&self, user_id: &str) -> bool {
        self.identity(user_id).is_some_and(|identity| identity.offered.is_some())
    }

    /// Takes in a user's identity as the server shows it, and which KeyBoxes it has signed. Returns what to tell.
    pub(super) fn update_identity(
        &mut self,
        user_id: &str,
        shown: Option<ShownIdentity>,
        devices: &Map<String, Value>,
    ) -> Vec<Notice> {
        let mut notices = Vec::new();
        let Some(user) = self.users.get_mut(user_id) else { return notices };
        if let Some(shown) = shown {
            match &mut user.identity {
                None => user.identity = Some(KnownIdentity::new(shown)),
                Some(known) => {
                    if known.update(shown) {
                        notices.push(Notice::IdentityChanged { user_id: user_id.to_owned() });
                    }
                }
            }
        }
        let signer = user.identity.as_ref().and_then(|identity| identity.keys.self_signing.clone());
        for (keybox_id, known) in &mut user.keyboxes {
            let device_keys = devices.get(keybox_id).and_then(Value::as_object);
            known.cross_signed = match (&signer, device_keys) {
                (Some(signer), Some(device_keys)) => is_signed_by(user_id, signer, device_keys),
                _ => false,
            };
        }
        user.vouch();
        notices
    }

    /// Marks a user's identity as verified, or not.
    pub(super) fn set_identity_verified(&mut self, user_id: &str, verified: bool) {
        let Some(user) = self.users.get_mut(user_id) else { return };
        if let Some(identity) = &mut user.identity {
            identity.verified = verified;
        }
        user.vouch();
    }

    /// The users whose KeyBoxes are known here.
    pub(super) fn user_ids(&self) -> impl Iterator<Item = &String> {
        self.users.iter().filter(|(_, user)| !user.keyboxes.is_empty()).map(|(user_id, _)| user_id)
    }

    pub(super) fn set_verified(&mut self, address: &KeyBoxAddress, verified: bool) -> bool {
        let Some(user) = self.users.get_mut(&address.user_id) else { return false };
        let Some(known) = user.keyboxes.get_mut(&address.keybox_id) else { return false };
        (known.verified, known.distrusted) = (verified, !verified);
        known.returned &= !verified;
        if let Some(identity) = &mut user.identity {
            // What rested on this KeyBox goes with it, and what this account has signed before does not bring it back.
            identity.distrusted = !verified;
            identity.verified &= verified;
        }
        user.vouch();
        true
    }

    /// Takes in what the server says about a user's devices: `device_keys` by device id.
    pub(super) fn update(&mut self, user_id: &str, devices: &Map<String, Value>, now: u64) -> Update {
        let mut update = Update { notices: Vec::new(), departed: false };
        let user = self.users.entry(user_id.to_owned()).or_default();
        user.outdated = false;
        let mut present = Vec::new();
        for (keybox_id, device_keys) in devices {
            let address = KeyBoxAddress::new(user_id, keybox_id);
            let keys = match device_keys
                .as_object()
                .map(|keys| validate_device_keys(user_id, keybox_id, keys))
            {
                Some(Ok(Some(keys))) => keys,
                Some(Ok(None)) => continue,
                Some(Err(error)) => {
                    update.notices.push(Notice::InvalidKeySet { keybox: address, reason: error.to_string() });
                    continue;
                }
                None => continue,
            };
            present.push(keybox_id.as_str());
            match user.keyboxes.get_mut(keybox_id) {
                None => {
                    let known = KnownKeyBox {
                        keys,
                        first_seen: now,
                        verified: false,
                        vouched: false,
                        cross_signed: false,
                        gone: false,
                        returned: false,
                        distrusted: false,
                        conflicting: false,
                        offered: None,
                        former: Vec::new(),
                    };
                    user.keyboxes.insert(keybox_id.clone(), known);
                    update.notices.push(Notice::NewKeyBox { keybox: address });
                }
                Some(known) if known.keys.hash() == keys.hash() => {
                    if std::mem::take(&mut known.gone) {
                        (known.verified, known.vouched, known.returned) = (false, false, true);
                        update.notices.push(Notice::KeyBoxReturned { keybox: address });
                    }
                    known.offered = None;
                    // A KeyBox learns new suites with new software. It forgets none: an old list, which a server can
                    // show again, must not cut it off.
                    let learnt: Vec<_> = keys
                        .algorithms
                        .into_iter()
                        .filter(|id| !known.keys.algorithms.contains(id))
                        .collect();
                    known.keys.algorithms.extend(learnt);
                }
                Some(known) if known.offered.as_ref() == Some(&keys) => known.gone = false,
                Some(known) => {
                    update.departed |= !known.conflicting;
                    known.gone = false;
                    known.conflicting = true;
                    known.offered = Some(keys);
                    update.notices.push(Notice::KeySetChanged { keybox: address });
                }
            }
        }
        for (keybox_id, known) in &mut user.keyboxes {
            if !known.gone && !present.contains(&keybox_id.as_str()) {
                known.gone = true;
                update.departed = true;
                update.notices.push(Notice::KeyBoxGone { keybox: KeyBoxAddress::new(user_id, keybox_id) });
            }
        }
        update
    }
}
