//! A person's identity: Matrix's three cross-signing keys, by which one verification covers all of a person's KeyBoxes.
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#cross-signing>

use std::fmt;

use openssl::pkey::{Id, PKey, Private};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use zeroize::Zeroizing;

use crate::canonical_json::{JsonSignatureError, sign_json, sign_json_with, verify_json};
use crate::context::{MessageContext, WrapContext};
use crate::encoding::{base64, base64_bytes, from_base64};
use crate::entropy::{Entropy, random};
use crate::key_message::KeyMessage;
use crate::key_set::{PrivateKeySet, PublicKeySet};
use crate::primitives::CryptoError;
use crate::resource_key::{ResourceKey, ResourceKeyId};
use crate::suite::{self, OpenError, SUITES, Sealed, WrapError};

/// Stands where the room id stands in other wraps. Room ids begin with `!`, so that no wrap of a room is one of an identity.
const PLACE: &str = "com.trustner.keybox.identity";
const SEED: usize = 32;

/// What a cross-signing key is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usage {
    /// The identity itself: signs the other two.
    Master,
    /// Signs the owner's own KeyBoxes.
    SelfSigning,
    /// Signs the master keys of other people.
    UserSigning,
}

impl Usage {
    /// Its name in `usage`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Master => "master",
            Self::SelfSigning => "self_signing",
            Self::UserSigning => "user_signing",
        }
    }
}

/// The private cross-signing keys of a person. OpenSSL wipes them when they are dropped.
#[derive(Clone)]
pub struct IdentityKeys {
    user_id: String,
    master: PKey<Private>,
    self_signing: PKey<Private>,
    user_signing: PKey<Private>,
}

/// The three public keys as they are uploaded, each signed as the specification demands.
#[derive(Clone, Debug, PartialEq)]
pub struct IdentityObjects {
    /// Signed by the KeyBox that uploads it.
    pub master: Map<String, Value>,
    /// Signed by the master key.
    pub self_signing: Map<String, Value>,
    /// Signed by the master key.
    pub user_signing: Map<String, Value>,
}

/// `com.trustner.keybox.identity`: the private cross-signing keys, sealed for another KeyBox of the same person.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdentityContent {
    /// Identifier of the suite.
    pub algorithm: String,
    /// Id of the key that seals them, drawn for this message alone.
    pub key_id: ResourceKeyId,
    /// That key, encrypted to the receiving KeyBox.
    #[serde(with = "base64_bytes")]
    pub wrap: Vec<u8>,
    /// Initialisation vector or nonce.
    #[serde(with = "base64_bytes")]
    pub iv: Vec<u8>,
    /// The three seeds of 32 bytes: master, self-signing, user-signing.
    #[serde(with = "base64_bytes")]
    pub ciphertext: Vec<u8>,
    /// MAC or tag.
    #[serde(with = "base64_bytes")]
    pub mac: Vec<u8>,
    /// The KeyBox that sends them.
    pub sender_keybox: String,
}

impl KeyMessage for IdentityContent {
    const EVENT_TYPE: &'static str = "com.trustner.keybox.identity";

    fn sender_keybox(&self) -> &str {
        &self.sender_keybox
    }
}

impl IdentityKeys {
    /// Makes a new identity.
    pub fn generate(user_id: &str, entropy: &mut dyn Entropy) -> Result<Self, CryptoError> {
        let mut key = || {
            let seed = Zeroizing::new(random::<SEED>(entropy)?);
            PKey::private_key_from_raw_bytes(&*seed, Id::ED25519).map_err(CryptoError::from)
        };
        Ok(Self { user_id: user_id.to_owned(), master: key()?, self_signing: key()?, user_signing: key()? })
    }

    /// An identity from [`Self::seeds`]; `None` for any other number of bytes.
    pub fn from_seeds(user_id: &str, seeds: &[u8]) -> Result<Option<Self>, CryptoError> {
        let mut parts = seeds.chunks_exact(SEED);
        let (Some(master), Some(self_signing), Some(user_signing), None, []) =
            (parts.next(), parts.next(), parts.next(), parts.next(), parts.remainder())
        else {
            return Ok(None);
        };
        let key = |seed: &[u8]| PKey::private_key_from_raw_bytes(seed, Id::ED25519);
        Ok(Some(Self {
            user_id: user_id.to_owned(),
            master: key(master)?,
            self_signing: key(self_signing)?,
            user_signing: key(user_signing)?,
        }))
    }

    /// The private keys: three seeds of 32 bytes (RFC 8032), master, self-signing, user-signing.
    pub fn seeds(&self) -> Result<Zeroizing<Vec<u8>>, CryptoError> {
        let mut seeds = Zeroizing::new(Vec::with_capacity(3 * SEED));
        for key in [&self.master, &self.self_signing, &self.user_signing] {
            seeds.extend_from_slice(&Zeroizing::new(key.raw_private_key()?));
        }
        Ok(seeds)
    }

    fn key(&self, usage: Usage) -> &PKey<Private> {
        match usage {
            Usage::Master => &self.master,
            Usage::SelfSigning => &self.self_signing,
            Usage::UserSigning => &self.user_signing,
        }
    }

    /// A public key, as unpadded base64: what other places name it by.
    pub fn public(&self, usage: Usage) -> Result<String, CryptoError> {
        Ok(base64(&self.key(usage).raw_public_key()?))
    }

    /// The objects for `/keys/device_signing/upload`, uploaded by the KeyBox `keybox`.
    ///
    /// <https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3keysdevice_signingupload>
    pub fn objects(&self, keybox: &PrivateKeySet) -> Result<IdentityObjects, JsonSignatureError> {
        let object = |usage: Usage| -> Result<Map<String, Value>, JsonSignatureError> {
            let public = self.public(usage)?;
            let mut object = Map::new();
            object.insert("user_id".to_owned(), self.user_id.as_str().into());
            object.insert("usage".to_owned(), json!([usage.name()]));
            object.insert("keys".to_owned(), json!({ format!("ed25519:{public}"): public }));
            Ok(object)
        };
        let mut master = object(Usage::Master)?;
        sign_json(keybox, &mut master)?;
        let signed = |usage| {
            let mut object = object(usage)?;
            self.sign(Usage::Master, &mut object)?;
            Ok::<_, JsonSignatureError>(object)
        };
        Ok(IdentityObjects {
            master,
            self_signing: signed(Usage::SelfSigning)?,
            user_signing: signed(Usage::UserSigning)?,
        })
    }

    /// A published object with the signature of one of these keys in place of all others: what `/keys/signatures/upload` takes.
    pub fn signed(
        &self,
        usage: Usage,
        object: &Map<String, Value>,
    ) -> Result<Map<String, Value>, JsonSignatureError> {
        let mut object = object.clone();
        object.remove("signatures");
        object.remove("unsigned");
        self.sign(usage, &mut object)?;
        Ok(object)
    }

    fn sign(&self, usage: Usage, object: &mut Map<String, Value>) -> Result<(), JsonSignatureError> {
        sign_json_with(self.key(usage), &self.user_id, &self.public(usage)?, object)
    }

    /// Seals the private keys for another KeyBox of the same person, with the best suite that it speaks.
    pub fn seal(
        &self,
        sender: &PrivateKeySet,
        recipient: &PublicKeySet,
        entropy: &mut dyn Entropy,
    ) -> Result<IdentityContent, WrapError> {
        let suite =
            SUITES.iter().rev().find(|suite| suite.is_spoken_by(recipient)).ok_or(WrapError::NotSpoken)?;
        let key = ResourceKey::generate(entropy)?;
        let key_id = key.id(PLACE);
        let context = wrap_context(suite.id, &key_id, sender.keybox_id(), recipient);
        let wrap = suite.wrap(&key, recipient, &context, entropy)?;
        let context = content_context(suite.id, &key_id, &recipient.user_id, sender.keybox_id());
        let sealed = suite.seal(&key, &context, self.seeds()?.to_vec(), entropy)?;
        Ok(IdentityContent {
            algorithm: suite.id.to_owned(),
            key_id,
            wrap,
            iv: sealed.iv,
            ciphertext: sealed.ciphertext,
            mac: sealed.mac,
            sender_keybox: sender.keybox_id().to_owned(),
        })
    }

    /// Opens what [`Self::seal`] made for the KeyBox `keys`. Whether these are the keys of its owner's identity, and whether the
    /// sender may be trusted with that, is for the caller to check.
    pub fn open(
        content: IdentityContent,
        keys: &PrivateKeySet,
        public: &PublicKeySet,
    ) -> Result<Self, OpenError> {
        let suite = suite::find(&content.algorithm).ok_or(OpenError::NotAuthentic)?;
        let context = wrap_context(suite.id, &content.key_id, &content.sender_keybox, public);
        let key = suite.unwrap(&content.wrap, keys, &context)?;
        let context = content_context(suite.id, &content.key_id, &public.user_id, &content.sender_keybox);
        let sealed = Sealed { iv: content.iv, ciphertext: content.ciphertext, mac: content.mac };
        let seeds = suite.open(&key, &context, sealed)?;
        Self::from_seeds(&public.user_id, &seeds)?.ok_or(OpenError::NotAuthentic)
    }
}

impl fmt::Debug for IdentityKeys {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("IdentityKeys").field("user_id", &self.user_id).finish_non_exhaustive()
    }
}

fn wrap_context<'a>(
    suite: &'a str,
    key_id: &'a ResourceKeyId,
    sender_keybox: &'a str,
    recipient: &'a PublicKeySet,
) -> WrapContext<'a> {
    WrapContext {
        suite,
        room_id: PLACE,
        key_id,
        sender: &recipient.user_id,
        sender_keybox,
        recipient: &recipient.user_id,
        recipient_keybox: &recipient.keybox_id,
    }
}

fn content_context(suite: &str, key_id: &ResourceKeyId, user_id: &str, sender_keybox: &str) -> Vec<u8> {
    MessageContext { suite, room_id: PLACE, key_id, sender: user_id, sender_keybox, counter: 0 }.to_bytes()
}

/// The public key, as base64, of a published cross-signing key object; `None` unless it is of that user and for that use, and holds
/// one Ed25519 key named after itself.
pub fn read_key<'a>(user_id: &str, usage: Usage, object: &'a Map<String, Value>) -> Option<&'a str> {
    let usages = object.get("usage")?.as_array()?;
    let mut keys = object.get("keys")?.as_object()?.iter();
    let (Some((name, Value::String(key))), None) = (keys.next(), keys.next()) else { return None };
    let fits = object.get("user_id")?.as_str() == Some(user_id)
        && usages.iter().any(|name| name.as_str() == Some(usage.name()))
        && name.strip_prefix("ed25519:") == Some(key)
        && from_base64(key).is_ok_and(|bytes| bytes.len() == 32);
    fits.then_some(key.as_str())
}

/// Whether `signer`, a cross-signing key of `user_id` as base64, signed `object`.
pub fn is_signed_by(user_id: &str, signer: &str, object: &Map<String, Value>) -> bool {
    let key = from_base64(signer).ok().and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
    key.is_some_and(|key| verify_json(&key, user_id, signer, object).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::OpensslEntropy;

    fn keybox(name: &str) -> PrivateKeySet {
        PrivateKeySet::generate("@a:x", name, &mut OpensslEntropy).unwrap()
    }

    #[test]
    fn the_objects_are_signed_as_the_specification_demands() {
        let identity = IdentityKeys::generate("@a:x", &mut OpensslEntropy).unwrap();
        let first = keybox("A1");
        let objects = identity.objects(&first).unwrap();
        let master = read_key("@a:x", Usage::Master, &objects.master).unwrap();
        assert_eq!(master, identity.public(Usage::Master).unwrap());
        let ed25519 = first.public().unwrap().ed25519;
        verify_json(&ed25519, "@a:x", "A1", &objects.master).unwrap();
        for (usage, object) in
            [(Usage::SelfSigning, &objects.self_signing), (Usage::UserSigning, &objects.user_signing)]
        {
            assert!(read_key("@a:x", usage, object).is_some());
            assert!(is_signed_by("@a:x", master, object));
            assert!(read_key("@a:x", Usage::Master, object).is_none());
            assert!(read_key("@b:x", usage, object).is_none());
        }
        let device_keys = first.device_keys().unwrap();
        let signed = identity.signed(Usage::SelfSigning, &device_keys).unwrap();
        let signer = identity.public(Usage::SelfSigning).unwrap();
        assert!(is_signed_by("@a:x", &signer, &signed));
        assert!(!is_signed_by("@a:x", &signer, &device_keys));
        assert_eq!(signed["signatures"]["@a:x"].as_object().unwrap().len(), 1);
        let mut altered = signed;
        altered["algorithms"] = json!([]);
        assert!(!is_signed_by("@a:x", &signer, &altered));
    }

    #[test]
    fn the_private_keys_open_at_the_keybox_that_they_were_sealed_for() {
        let identity = IdentityKeys::generate("@a:x", &mut OpensslEntropy).unwrap();
        let (first, second, third) = (keybox("A1"), keybox("A2"), keybox("A3"));
        let public = second.public().unwrap();
        let content = identity.seal(&first, &public, &mut OpensslEntropy).unwrap();
        assert_eq!(content.algorithm, suite::V2);
        let opened = IdentityKeys::open(content.clone(), &second, &public).unwrap();
        assert_eq!(*opened.seeds().unwrap(), *identity.seeds().unwrap());
        assert!(IdentityKeys::open(content.clone(), &third, &third.public().unwrap()).is_err());
        for change in [
            |content: &mut IdentityContent| content.ciphertext[0] ^= 1,
            |content: &mut IdentityContent| content.mac[0] ^= 1,
            |content: &mut IdentityContent| content.wrap[0] ^= 1,
            |content: &mut IdentityContent| content.sender_keybox.push('X'),
            |content: &mut IdentityContent| content.algorithm = suite::V1.to_owned(),
        ] {
            let mut altered = content.clone();
            change(&mut altered);
            assert!(IdentityKeys::open(altered, &second, &public).is_err());
        }
        let shown = format!("{identity:?}");
        assert!(!shown.contains(&base64(&identity.seeds().unwrap()[..32])) && shown.contains("@a:x"));
    }

    /// What is sealed is bound to what section 15.1 says, and opens with nothing else.
    #[test]
    fn the_private_keys_are_bound_as_a_message_of_no_room() {
        let identity = IdentityKeys::generate("@a:x", &mut OpensslEntropy).unwrap();
        let (first, second) = (keybox("A1"), keybox("A2"));
        let content = identity.seal(&first, &second.public().unwrap(), &mut OpensslEntropy).unwrap();
        assert_eq!(content.sender_keybox(), "A1");
        assert_eq!(IdentityContent::EVENT_TYPE, "com.trustner.keybox.identity");
        let context = WrapContext {
            suite: suite::V2,
            room_id: "com.trustner.keybox.identity",
            key_id: &content.key_id,
            sender: "@a:x",
            sender_keybox: "A1",
            recipient: "@a:x",
            recipient_keybox: "A2",
        };
        let suite = suite::find(suite::V2).unwrap();
        let key = suite.unwrap(&content.wrap, &second, &context).unwrap();
        let context = MessageContext {
            suite: suite::V2,
            room_id: "com.trustner.keybox.identity",
            key_id: &content.key_id,
            sender: "@a:x",
            sender_keybox: "A1",
            counter: 0,
        };
        let sealed = || Sealed {
            iv: content.iv.clone(),
            ciphertext: content.ciphertext.clone(),
            mac: content.mac.clone(),
        };
        let seeds = suite.open(&key, &context.to_bytes(), sealed()).unwrap();
        assert_eq!(*seeds, *identity.seeds().unwrap());
        assert!(suite.open(&key, &[], sealed()).is_err());
    }

    #[test]
    fn a_published_key_is_of_its_user_use_and_name() {
        let key = base64(&[7; 32]);
        let object = |user: &str, usage: &str, name: &str, key: &str| {
            let object =
                json!({ "user_id": user, "usage": [usage], "keys": { format!("ed25519:{name}"): key } });
            object.as_object().unwrap().clone()
        };
        let read =
            |object: &Map<String, Value>| read_key("@a:x", Usage::SelfSigning, object).map(str::to_owned);
        assert_eq!(read(&object("@a:x", "self_signing", &key, &key)), Some(key.clone()));
        let short = base64(&[7; 31]);
        for (what, wrong) in [
            ("user", object("@b:x", "self_signing", &key, &key)),
            ("usage", object("@a:x", "user_signing", &key, &key)),
            ("usage", object("@a:x", "master", &key, &key)),
            ("name", object("@a:x", "self_signing", &base64(&[8; 32]), &key)),
            ("length", object("@a:x", "self_signing", &short, &short)),
            ("encoding", object("@a:x", "self_signing", "?", "?")),
        ] {
            assert_eq!(read(&wrong), None, "{what}");
        }
        let mut two = object("@a:x", "self_signing", &key, &key);
        two["keys"]["ed25519:more"] = "more".into();
        assert_eq!(read(&two), None, "two keys");
    }
}
