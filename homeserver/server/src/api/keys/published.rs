//! What users have published, in memory and as `/keys/query` shows it.
//!
//! The tail tells of every change of a user's devices, keys and signatures ([`UserChange::DeviceList`]), and what is known of the
//! user is dropped. A fenced request comes after whatever was committed before it, so it never sees what was replaced.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use keystead_core::keys::{self as rules, KeySignature};
use keystead_store::{
    Error,
    cross_signing::{self, Signatures, SignedKey},
    keys::DeviceKeys,
    streams::UserChange,
};
use lru::LruCache;
use ruma::{CanonicalJsonObject, OwnedUserId, UserId, encryption::KeyUsage};
use serde_json::value::RawValue;

use super::stored_object;
use crate::streams::Item;

/// How much is kept, in bytes of the keys and a guess at what they cost besides.
const MAX_BYTES: usize = 64 << 20;
/// What a user costs besides the texts, and what a key does: pointers, the allocator's rounding.
const OVERHEAD: usize = 200;

/// What users have published, of those who were asked for lately.
#[derive(Debug)]
pub struct PublishedKeys(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    users: LruCache<OwnedUserId, Slot>,
    bytes: usize,
    /// Counts the loads, so that each has a name of its own.
    loads: u64,
}

#[derive(Debug)]
enum Slot {
    /// The database is being read. What it says is kept only if this is still here then: a change takes it away.
    Loading(Load),
    Loaded(Arc<Published>),
}

/// A load that has begun.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Load(u64);

/// What some users have published.
pub(super) type Known<'a> = BTreeMap<&'a UserId, Arc<Published>>;
/// The users whom the database is asked for.
pub(super) type Missing<'a> = Vec<(&'a UserId, Load)>;

/// What one user has published.
#[derive(Debug)]
pub(super) struct Published {
    pub(super) user_id: OwnedUserId,
    pub(super) devices: Vec<Key>,
    pub(super) master: Option<Key>,
    pub(super) self_signing: Option<Key>,
    /// Nobody else's business: it tells whom the user has verified.
    pub(super) user_signing: Option<Key>,
    /// The signatures that others made, each for the eyes of its signer alone; `None` if there are too many to be kept.
    others: Option<Signatures>,
}

/// A published key.
#[derive(Debug)]
pub(super) struct Key {
    /// The device's id, or the public key.
    pub(super) id: String,
    /// The object as everybody sees it: with the owner's signatures, and the device's name.
    json: Box<RawValue>,
}

impl Default for PublishedKeys {
    fn default() -> Self {
        Self(Mutex::new(Inner { users: LruCache::unbounded(), bytes: 0, loads: 0 }))
    }
}

impl PublishedKeys {
    /// Drops what is known of a user when the stream says that it changed.
    pub fn hear(&self, item: &Item) {
        if let Item::UserChange(user_id, UserChange::DeviceList) = item {
            self.lock().remove(user_id);
        }
    }

    /// What is known of these users, and whom the database has to be asked for: from now on a change is noticed.
    pub(super) fn begin<'a>(&self, user_ids: impl Iterator<Item = &'a UserId>) -> (Known<'a>, Missing<'a>) {
        let (mut known, mut missing) = (Known::new(), Missing::new());
        let mut inner = self.lock();
        for user_id in user_ids {
            match inner.users.get(user_id) {
                Some(Slot::Loaded(published)) => drop(known.insert(user_id, published.clone())),
                Some(Slot::Loading(load)) => missing.push((user_id, *load)),
                None => {
                    inner.loads += 1;
                    let load = Load(inner.loads);
                    inner.put(user_id.to_owned(), Slot::Loading(load));
                    missing.push((user_id, load));
                }
            }
        }
        (known, missing)
    }

    /// Keeps what was read from the database, unless there was a change since the load began: then it may be old by now.
    pub(super) fn finish(&self, load: Load, published: Arc<Published>) {
        let mut inner = self.lock();
        match inner.users.peek(&published.user_id) {
            Some(Slot::Loading(current)) if *current == load => {
                inner.put(published.user_id.clone(), Slot::Loaded(published));
            }
            _ => {}
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn put(&mut self, user_id: OwnedUserId, slot: Slot) {
        self.remove(&user_id);
        if slot.size() > MAX_BYTES / 8 {
            return;
        }
        self.bytes += slot.size();
        self.users.put(user_id, slot);
        while self.bytes > MAX_BYTES
            && let Some((_, oldest)) = self.users.pop_lru()
        {
            self.bytes -= oldest.size();
        }
    }

    fn remove(&mut self, user_id: &UserId) {
        if let Some(slot) = self.users.pop(user_id) {
            self.bytes -= slot.size();
        }
    }
}

impl Slot {
    fn size(&self) -> usize {
        match self {
            Self::Loading(_) => OVERHEAD,
            Self::Loaded(published) => OVERHEAD + published.size(),
        }
    }
}

impl Published {
    /// What `user_id` has published, out of the rows of some users. With `is_crowded` there are more signatures of others
    /// than are kept.
    pub(super) fn new(
        user_id: &UserId,
        devices: &[DeviceKeys],
        cross_signing: &[cross_signing::CrossSigningKey],
        signatures: &Signatures,
        is_crowded: bool,
    ) -> Result<Self, Error> {
        let of_owner = |key_id: &str| {
            let signed = SignedKey { user_id: user_id.to_owned(), key_id: key_id.to_owned() };
            let all = signatures.get(&signed).into_iter().flatten();
            all.filter(|signature| signature.signer_id == user_id.as_str()).cloned().collect::<Vec<_>>()
        };
        let mut published = Self {
            user_id: user_id.to_owned(),
            devices: Vec::new(),
            master: None,
            self_signing: None,
            user_signing: None,
            others: (!is_crowded).then(|| made_by_others(user_id, signatures)),
        };
        for device in devices.iter().filter(|device| device.user_id == user_id) {
            let id = device.device_id.to_string();
            let mut object = stored_object("device_keys", &id, &device.json)?;
            rules::add_signatures(&mut object, &of_owner(&id));
            if let Some(name) = &device.display_name {
                rules::set_display_name(&mut object, name);
            }
            published.devices.push(Key { json: raw(&object, &id)?, id });
        }
        for key in cross_signing.iter().filter(|key| key.user_id == user_id) {
            let place = match key.usage {
                KeyUsage::Master => &mut published.master,
                KeyUsage::SelfSigning => &mut published.self_signing,
                KeyUsage::UserSigning => &mut published.user_signing,
                _ => continue,
            };
            let id = key.public_key.clone();
            let mut object = stored_object("cross_signing_keys", &id, &key.json)?;
            rules::add_signatures(&mut object, &of_owner(&id));
            *place = Some(Key { json: raw(&object, &id)?, id });
        }
        Ok(published)
    }

    /// Whether the signatures of others are not here, so that the database has to be asked for the viewer's.
    pub(super) fn is_crowded(&self) -> bool {
        self.others.is_none()
    }

    /// One of the keys as `viewer` sees it: with the signatures that the viewer made, which are in `asked` if they are not here.
    pub(super) fn show<'a>(
        &self,
        key: &'a Key,
        viewer: &UserId,
        asked: &Signatures,
    ) -> Result<Cow<'a, RawValue>, Error> {
        let signatures = self.others.as_ref().unwrap_or(asked);
        if signatures.is_empty() || viewer == self.user_id {
            return Ok(Cow::Borrowed(&key.json));
        }
        let signed = SignedKey { user_id: self.user_id.clone(), key_id: key.id.clone() };
        let on_key = signatures.get(&signed).into_iter().flatten();
        let own: Vec<KeySignature> =
            on_key.filter(|signature| signature.signer_id == viewer.as_str()).cloned().collect();
        if own.is_empty() {
            return Ok(Cow::Borrowed(&key.json));
        }
        let mut object = stored_object("key_signatures", &key.id, key.json.get())?;
        rules::add_signatures(&mut object, &own);
        Ok(Cow::Owned(raw(&object, &key.id)?))
    }

    fn size(&self) -> usize {
        let cross_signing = [&self.master, &self.self_signing, &self.user_signing];
        let keys = self.devices.iter().chain(cross_signing.into_iter().flatten());
        let keys: usize = keys.map(|key| OVERHEAD + key.id.len() + key.json.get().len()).sum();
        let signature = |signature: &KeySignature| {
            OVERHEAD + signature.signer_id.len() + signature.signer_key_id.len() + signature.signature.len()
        };
        let others = self.others.iter().flat_map(BTreeMap::values).flatten();
        keys + others.map(signature).sum::<usize>()
    }
}

/// Those of the signatures on a user's keys that somebody else made.
fn made_by_others(user_id: &UserId, signatures: &Signatures) -> Signatures {
    let on_own = signatures.iter().filter(|(signed, _)| signed.user_id == user_id);
    let by_others = on_own.map(|(signed, all)| {
        let others = all.iter().filter(|signature| signature.signer_id != user_id.as_str());
        (signed.clone(), others.cloned().collect::<Vec<_>>())
    });
    by_others.filter(|(_, others)| !others.is_empty()).collect()
}

fn raw(object: &CanonicalJsonObject, id: &str) -> Result<Box<RawValue>, Error> {
    RawValue::from_string(rules::to_json(object))
        .map_err(|error| Error::corrupt("device_keys", "json", id, error))
}

#[cfg(test)]
mod tests {
    use ruma::user_id;

    use super::*;

    fn published(user_id: &UserId, name: &str) -> Arc<Published> {
        let device = DeviceKeys {
            user_id: user_id.to_owned(),
            device_id: "D".into(),
            json: "{}".to_owned(),
            display_name: Some(name.to_owned()),
        };
        Arc::new(Published::new(user_id, &[device], &[], &Signatures::new(), false).unwrap())
    }

    fn change(user_id: &UserId) -> Item {
        Item::UserChange(user_id.to_owned(), UserChange::DeviceList)
    }

    #[test]
    fn what_changed_is_forgotten_and_what_was_read_before_is_not_kept_after() {
        let cache = PublishedKeys::default();
        let (a, b) = (user_id!("@a:x"), user_id!("@b:x"));
        let begin = |user_id: &'static UserId| cache.begin(std::iter::once(user_id));
        let is_known = |user_id: &'static UserId| begin(user_id).0.contains_key(user_id);

        let older = begin(a).1[0].1;
        cache.hear(&change(b));
        cache.hear(&change(a));
        let newer = begin(a).1[0].1;
        assert_ne!(older, newer);
        cache.finish(older, published(a, "before the change"));
        assert!(!is_known(a));
        cache.finish(newer, published(a, "after it"));
        assert!(begin(a).0[a].devices[0].json.get().contains("after it"));
        cache.finish(older, published(a, "before the change"));
        assert!(begin(a).0[a].devices[0].json.get().contains("after it"));

        let load = begin(b).1[0].1;
        cache.finish(load, published(b, "b"));
        cache.hear(&change(a));
        assert!(!is_known(a) && is_known(b));
    }

    #[test]
    fn two_who_read_at_once_share_their_load() {
        let cache = PublishedKeys::default();
        let a = user_id!("@a:x");
        let first = cache.begin(std::iter::once(a)).1[0].1;
        let second = cache.begin(std::iter::once(a)).1[0].1;
        assert_eq!(first, second);
        cache.hear(&change(a));
        cache.finish(first, published(a, "x"));
        cache.finish(second, published(a, "x"));
        assert!(cache.begin(std::iter::once(a)).0.is_empty());
    }

    #[test]
    fn who_was_asked_for_longest_ago_goes_when_there_are_too_many_bytes() {
        let cache = PublishedKeys::default();
        let ids: Vec<OwnedUserId> =
            (0..12).map(|number| UserId::parse(format!("@{number:02}:x")).unwrap()).collect();
        let name = "x".repeat(MAX_BYTES / 10);
        for id in &ids {
            let load = cache.begin(std::iter::once(&**id)).1[0].1;
            cache.finish(load, published(id, &name));
        }
        let (known, missing) = cache.begin(ids.iter().map(|id| &**id));
        assert_eq!(known.keys().copied().collect::<Vec<_>>(), ids[3..]);
        assert_eq!(missing.len(), 3);
        for id in &ids {
            cache.hear(&change(id));
        }
        let inner = cache.lock();
        assert_eq!((inner.bytes, inner.users.len()), (0, 0));
    }

    #[test]
    fn what_others_signed_is_shown_to_each_signer_alone() {
        let (a, b, c) = (user_id!("@a:x"), user_id!("@b:x"), user_id!("@c:x"));
        let by = |signer: &UserId| KeySignature {
            signer_id: signer.to_string(),
            signer_key_id: "ed25519:K".to_owned(),
            signature: format!("by {signer}"),
        };
        let key = cross_signing::CrossSigningKey {
            user_id: a.to_owned(),
            usage: KeyUsage::Master,
            public_key: "M".to_owned(),
            json: "{}".to_owned(),
        };
        let keys = std::slice::from_ref(&key);
        let signed = SignedKey { user_id: a.to_owned(), key_id: "M".to_owned() };
        let all = Signatures::from([(signed.clone(), vec![by(a), by(b), by(c)])]);
        let signers = |published: &Published, viewer: &UserId, asked: &Signatures| {
            let master = published.master.as_ref().unwrap();
            let shown = published.show(master, viewer, asked).unwrap();
            let shown: serde_json::Value = serde_json::from_str(shown.get()).unwrap();
            shown["signatures"].as_object().unwrap().keys().cloned().collect::<Vec<_>>()
        };

        let few = Published::new(a, &[], keys, &all, false).unwrap();
        assert_eq!(signers(&few, a, &Signatures::new()), ["@a:x"]);
        assert_eq!(signers(&few, b, &Signatures::new()), ["@a:x", "@b:x"]);
        assert_eq!(signers(&few, user_id!("@d:x"), &Signatures::new()), ["@a:x"]);

        // What was asked for b is b's alone, even if there is more in it.
        let many = Published::new(a, &[], keys, &all, true).unwrap();
        assert!(many.is_crowded());
        assert_eq!(signers(&many, b, &all), ["@a:x", "@b:x"]);
        assert_eq!(signers(&many, a, &all), ["@a:x"]);
        assert_eq!(signers(&many, c, &Signatures::new()), ["@a:x"]);
    }
}
