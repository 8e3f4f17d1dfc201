//! Suites: sets of primitives, looked up by identifier in one table. A new suite is a row, a module and a vector file.

pub(crate) mod hpke;
#[cfg(test)]
mod tests;
pub(crate) mod v1;
pub(crate) mod v2;

use std::cmp::Ordering;
use std::sync::Arc;

use zeroize::Zeroizing;

pub use v1::ID as V1;
pub use v2::ID as V2;

use crate::context::WrapContext;
use crate::entropy::{Entropy, random};
use crate::key_set::{PrivateKeySet, PublicKeySet};
use crate::parallel;
use crate::primitives::CryptoError;
use crate::resource_key::ResourceKey;

/// Content sealed under a resource key, before it is signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sealed {
    /// Initialisation vector or nonce, fresh for each message.
    pub iv: Vec<u8>,
    /// As long as the plaintext.
    pub ciphertext: Vec<u8>,
    /// MAC or tag: authenticates context, IV and ciphertext.
    pub mac: Vec<u8>,
}

/// Why something did not open. Deliberately says little: it must not help to forge.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Altered, or not made for this context and key.
    #[error("not authentic for its context and key")]
    NotAuthentic,
    /// The cryptographic library failed.
    #[error("the ciphertext could not be opened")]
    Crypto(#[from] CryptoError),
}

/// Why a resource key could not be wrapped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WrapError {
    /// The cryptographic library failed.
    #[error("the resource key could not be wrapped")]
    Crypto(#[from] CryptoError),
    /// The recipient's key set does not name the suite.
    #[error("the receiving KeyBox does not speak the suite")]
    NotSpoken,
}

/// The last argument is random and secret: the seed of OAEP, or the ephemeral key.
type Wrap = fn(&ResourceKey, &PublicKeySet, &WrapContext<'_>, &[u8; 32]) -> Result<Vec<u8>, WrapError>;
type Unwrap = fn(&[u8], &PrivateKeySet, &WrapContext<'_>) -> Result<ResourceKey, OpenError>;
type Prepare = fn(&ResourceKey) -> Result<Arc<dyn ContentCipher>, CryptoError>;

/// A suite's cipher for content with the keys that it derives from one resource key, ready for any number of messages.
pub(crate) trait ContentCipher: Send + Sync {
    /// What [`Suite::seal`] promises.
    fn seal(
        &self,
        context: &[u8],
        plaintext: Vec<u8>,
        entropy: &mut dyn Entropy,
    ) -> Result<Sealed, CryptoError>;

    /// What [`Suite::open`] promises.
    fn open(&self, context: &[u8], sealed: Sealed) -> Result<Zeroizing<Vec<u8>>, OpenError>;
}

/// One row of the table: an identifier and its primitives.
#[derive(Debug)]
pub struct Suite {
    /// Identifier: in `m.room.encryption`, in `algorithms` of a key set, and in each message.
    pub id: &'static str,
    /// Greater for what replaces. A room may change to a greater one, never to a lesser.
    pub version: u32,
    /// The entry of a key set that the suite wraps for: a KeyBox that names the suite publishes it.
    pub key_entry: &'static str,
    wrap: Wrap,
    unwrap: Unwrap,
    prepare: Prepare,
}

/// All suites, best last.
pub static SUITES: &[Suite] = &[v1::SUITE, v2::SUITE];

/// The suite of that identifier; `None` if this implementation does not speak it.
pub fn find(id: &str) -> Option<&'static Suite> {
    SUITES.iter().find(|suite| suite.id == id)
}

/// Whether `id` is in the profile's name space, spoken here or not. A server guards rooms that use any of these.
pub fn is_keybox_suite(id: &str) -> bool {
    id.starts_with("com.trustner.keybox.v")
}

/// Suites are ordered by version, which is unique.
impl Ord for Suite {
    fn cmp(&self, other: &Self) -> Ordering {
        self.version.cmp(&other.version)
    }
}

impl PartialOrd for Suite {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Suite {
    fn eq(&self, other: &Self) -> bool {
        self.version == other.version
    }
}

impl Eq for Suite {}

impl Suite {
    /// Whether the KeyBox with that key set speaks the suite.
    pub fn is_spoken_by(&self, keys: &PublicKeySet) -> bool {
        keys.algorithms.iter().any(|spoken| spoken == self.id)
    }

    /// Encrypts `key` to the KeyBox `recipient`, bound to `context`.
    pub fn wrap(
        &self,
        key: &ResourceKey,
        recipient: &PublicKeySet,
        context: &WrapContext<'_>,
        entropy: &mut dyn Entropy,
    ) -> Result<Vec<u8>, WrapError> {
        if !self.is_spoken_by(recipient) {
            return Err(WrapError::NotSpoken);
        }
        (self.wrap)(key, recipient, context, &Zeroizing::new(random(entropy)?))
    }

    /// [`Self::wrap`] for many KeyBoxes, on all cores; the results are in the order of the recipients.
    pub fn wrap_all(
        &self,
        key: &ResourceKey,
        recipients: &[(&PublicKeySet, WrapContext<'_>)],
        entropy: &mut dyn Entropy,
    ) -> Result<Vec<Result<Vec<u8>, WrapError>>, CryptoError> {
        let mut seeds = Zeroizing::new(vec![[0; 32]; recipients.len()]);
        entropy.fill(seeds.as_flattened_mut())?;
        let work: Vec<_> = recipients.iter().zip(seeds.iter()).collect();
        Ok(parallel::map(&work, |((recipient, context), seed)| {
            if self.is_spoken_by(recipient) {
                (self.wrap)(key, recipient, context, seed)
            } else {
                Err(WrapError::NotSpoken)
            }
        }))
    }

    /// Opens a wrap that was made for this KeyBox and `context`, and checks that the key id in `context` is the key's.
    pub fn unwrap(
        &self,
        wrapped: &[u8],
        keys: &PrivateKeySet,
        context: &WrapContext<'_>,
    ) -> Result<ResourceKey, OpenError> {
        let key = (self.unwrap)(wrapped, keys, context)?;
        if key.id(context.room_id) == *context.key_id { Ok(key) } else { Err(OpenError::NotAuthentic) }
    }

    /// Encrypts and authenticates `plaintext`, bound to the bytes of a [`crate::context::MessageContext`]. Works in
    /// place: the plaintext's memory becomes the ciphertext.
    pub fn seal(
        &self,
        key: &ResourceKey,
        context: &[u8],
        plaintext: Vec<u8>,
        entropy: &mut dyn Entropy,
    ) -> Result<Sealed, CryptoError> {
        self.cipher(key)?.seal(context, plaintext, entropy)
    }

    /// Checks that `sealed` is authentic for `context`; only then is there a plaintext. Works in place.
    pub fn open(
        &self,
        key: &ResourceKey,
        context: &[u8],
        sealed: Sealed,
    ) -> Result<Zeroizing<Vec<u8>>, OpenError> {
        self.cipher(key)?.open(context, sealed)
    }

    /// The cipher of a resource key, which is prepared once and kept beside the key.
    fn cipher(&self, key: &ResourceKey) -> Result<Arc<dyn ContentCipher>, CryptoError> {
        if let Some(prepared) = key.prepared(self.version) {
            return Ok(prepared);
        }
        let prepared = (self.prepare)(key)?;
        key.keep(self.version, &prepared);
        Ok(prepared)
    }
}
