//! Content messages: the content of an `m.room.encrypted` event of a room that uses the profile.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::canonical_json::MAX_INTEGER;
use crate::context::MessageContext;
use crate::encoding::{Fields, base64_bytes};
use crate::entropy::Entropy;
use crate::key_set::{PrivateKeySet, PublicKeySet};
use crate::primitives::{CryptoError, sha256};
use crate::resource_key::{ResourceKey, ResourceKeyId};
use crate::suite::{self, OpenError, Sealed};

/// The content of an `m.room.encrypted` event. Room and sender are not in it: they are the event's own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    /// Identifier of the suite.
    pub algorithm: String,
    /// The resource key that opens it.
    pub key_id: ResourceKeyId,
    /// The KeyBox that sealed it.
    pub sender_keybox: String,
    /// How many messages that KeyBox had sealed with that resource key before.
    pub counter: u64,
    /// Initialisation vector or nonce.
    #[serde(with = "base64_bytes")]
    pub iv: Vec<u8>,
    /// The ciphertext.
    #[serde(with = "base64_bytes")]
    pub ciphertext: Vec<u8>,
    /// Authenticates context, IV and ciphertext to holders of the resource key.
    #[serde(with = "base64_bytes")]
    pub mac: Vec<u8>,
    /// Ed25519 signature of the sending KeyBox over [`Envelope::hash`].
    #[serde(with = "base64_bytes")]
    pub signature: Vec<u8>,
}

/// What an envelope holds: an event's type and content, and the room that it is for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Payload {
    /// The room; compared with the room in which the envelope arrived.
    pub room_id: String,
    /// The event's type, such as `m.room.message`.
    #[serde(rename = "type")]
    pub event_type: String,
    /// The event's content.
    pub content: Value,
}

/// Why an envelope could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SealError {
    /// The counter of this KeyBox is used up for this resource key.
    #[error("the resource key has been used for too many messages")]
    CounterExhausted,
    /// The cryptographic library failed.
    #[error("the message could not be sealed")]
    Crypto(#[from] CryptoError),
    /// The content is not JSON.
    #[error("the content cannot be written as JSON")]
    Payload(#[from] serde_json::Error),
    /// No such suite here.
    #[error("the suite {0} is not supported")]
    UnknownSuite(String),
}

/// Why an envelope was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EnvelopeError {
    /// The cryptographic library failed.
    #[error("the message could not be opened")]
    Crypto(#[from] CryptoError),
    /// Altered, moved from another place, or sealed under another key.
    #[error("the message does not belong to this room, sender and resource key")]
    NotAuthentic(#[source] OpenError),
    /// What it holds is not an event for this room.
    #[error("the message holds no event for this room")]
    Payload,
    /// Not signed by the KeyBox that it names.
    #[error("the message is not signed by the KeyBox that it names")]
    Signature,
    /// No such suite here.
    #[error("the suite {0} is not supported")]
    UnknownSuite(String),
}

/// Who seals, and where to.
#[derive(Clone, Copy, Debug)]
pub struct SealRequest<'a> {
    /// Identifier of the room's suite.
    pub suite: &'a str,
    /// The room's current resource key.
    pub key: &'a ResourceKey,
    /// The sending KeyBox.
    pub keys: &'a PrivateKeySet,
    /// How many messages this KeyBox has sealed with `key` before. Never use a number twice.
    pub counter: u64,
}

impl Envelope {
    /// Seals `payload` for its room and signs the result.
    pub fn seal(
        request: SealRequest<'_>,
        payload: &Payload,
        entropy: &mut dyn Entropy,
    ) -> Result<Self, SealError> {
        let suite =
            suite::find(request.suite).ok_or_else(|| SealError::UnknownSuite(request.suite.to_owned()))?;
        if request.counter > MAX_INTEGER {
            return Err(SealError::CounterExhausted);
        }
        let key_id = request.key.id(&payload.room_id);
        let sender = request.keys.user_id();
        let mut envelope = Self {
            algorithm: suite.id.to_owned(),
            key_id,
            sender_keybox: request.keys.keybox_id().to_owned(),
            counter: request.counter,
            iv: Vec::new(),
            ciphertext: Vec::new(),
            mac: Vec::new(),
            signature: Vec::new(),
        };
        let context = envelope.context(&payload.room_id, sender).to_bytes();
        let sealed = suite.seal(request.key, &context, serde_json::to_vec(payload)?, entropy)?;
        envelope.iv = sealed.iv;
        envelope.ciphertext = sealed.ciphertext;
        envelope.mac = sealed.mac;
        envelope.signature = request.keys.sign(&envelope.hash(&payload.room_id, sender))?;
        Ok(envelope)
    }

    /// Checks that the KeyBox of `sender_keys` made this envelope for `room_id`: enough to ask for a missing key on its word.
    pub fn check_signature(&self, room_id: &str, sender_keys: &PublicKeySet) -> Result<(), EnvelopeError> {
        let hash = self.hash(room_id, &sender_keys.user_id);
        if self.sender_keybox == sender_keys.keybox_id && sender_keys.verify(&hash, &self.signature)? {
            Ok(())
        } else {
            Err(EnvelopeError::Signature)
        }
    }

    /// Opens an envelope that arrived in `room_id` from `sender`: checks the signature by `sender_keys`, then the MAC,
    /// and only then decrypts. Replays are for [`crate::replay::ReplayGuard`] to refuse.
    pub fn open(
        &self,
        room_id: &str,
        sender_keys: &PublicKeySet,
        key: &ResourceKey,
    ) -> Result<Payload, EnvelopeError> {
        let suite = suite::find(&self.algorithm)
            .ok_or_else(|| EnvelopeError::UnknownSuite(self.algorithm.clone()))?;
        let sender = sender_keys.user_id.as_str();
        self.check_signature(room_id, sender_keys)?;
        let sealed =
            Sealed { iv: self.iv.clone(), ciphertext: self.ciphertext.clone(), mac: self.mac.clone() };
        let context = self.context(room_id, sender).to_bytes();
        let plaintext = suite.open(key, &context, sealed).map_err(EnvelopeError::NotAuthentic)?;
        let payload: Payload = serde_json::from_slice(&plaintext).map_err(|_| EnvelopeError::Payload)?;
        if payload.room_id == room_id { Ok(payload) } else { Err(EnvelopeError::Payload) }
    }

    /// SHA-256 over label, context, IV, ciphertext and MAC: what the sending KeyBox signs.
    pub fn hash(&self, room_id: &str, sender: &str) -> [u8; 32] {
        let fields = Fields::new("com.trustner.keybox.envelope")
            .bytes(&self.context(room_id, sender).to_bytes())
            .bytes(&self.iv)
            .bytes(&self.ciphertext)
            .bytes(&self.mac);
        sha256(fields.as_slice())
    }

    fn context<'a>(&'a self, room_id: &'a str, sender: &'a str) -> MessageContext<'a> {
        MessageContext {
            suite: &self.algorithm,
            room_id,
            key_id: &self.key_id,
            sender,
            sender_keybox: &self.sender_keybox,
            counter: self.counter,
        }
    }
}

#[cfg(test)]
mod tests;
