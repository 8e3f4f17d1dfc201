//! Key sets: the private keys of a KeyBox, and the public ones that it publishes in `device_keys`.

mod public;
mod validate;

use std::fmt;

use openssl::pkey::{Id, PKey, Private};
use openssl::rsa::Rsa;
use serde_json::{Map, Value, json};

pub use public::{PublicKeySet, key_set_hash};
pub use validate::{KeySetError, validate_device_keys};

use crate::canonical_json::{JsonSignatureError, sign_json};
use crate::encoding::base64;
use crate::entropy::{Entropy, random};
use crate::primitives::{CryptoError, ed25519_sign};
use crate::suite;

/// Algorithm of the RSA entry in `keys` of `device_keys`; the entry's full name ends in `:<KeyBox id>`.
pub const RSA_ENTRY: &str = "com.trustner.keybox.rsa2048";
/// Algorithm of the X25519 entry in `keys` of `device_keys`.
pub const X25519_ENTRY: &str = "com.trustner.keybox.x25519";
/// Algorithm of the signing key's entry in `keys` of `device_keys`: Matrix's own.
pub const ED25519_ENTRY: &str = "ed25519";
/// The one size of RSA keys.
pub const RSA_BITS: u32 = 2048;

/// The private keys of one KeyBox: Ed25519 to sign, RSA 2048 to unwrap in suite v1, X25519 in suite v2.
///
/// OpenSSL wipes the keys when they are dropped.
#[derive(Clone)]
pub struct PrivateKeySet {
    user_id: String,
    keybox_id: String,
    pub(crate) ed25519: PKey<Private>,
    pub(crate) rsa: PKey<Private>,
    pub(crate) x25519: PKey<Private>,
}

impl PrivateKeySet {
    /// Makes the keys of a new KeyBox. Takes a noticeable fraction of a second, for the RSA key.
    ///
    /// Ed25519 and X25519 come from `entropy`; OpenSSL searches the primes of the RSA key with its own generator.
    pub fn generate(user_id: &str, keybox_id: &str, entropy: &mut dyn Entropy) -> Result<Self, CryptoError> {
        let ed25519 = zeroize::Zeroizing::new(random::<32>(entropy)?);
        let x25519 = zeroize::Zeroizing::new(random::<32>(entropy)?);
        Ok(Self {
            user_id: user_id.to_owned(),
            keybox_id: keybox_id.to_owned(),
            ed25519: PKey::private_key_from_raw_bytes(&*ed25519, Id::ED25519)?,
            rsa: PKey::from_rsa(Rsa::generate(RSA_BITS)?)?,
            x25519: PKey::private_key_from_raw_bytes(&*x25519, Id::X25519)?,
        })
    }

    /// Puts a key set together from keys that are already known to be of the right types.
    pub(crate) fn from_keys(
        user_id: &str,
        keybox_id: &str,
        ed25519: PKey<Private>,
        rsa: PKey<Private>,
        x25519: PKey<Private>,
    ) -> Self {
        Self { user_id: user_id.to_owned(), keybox_id: keybox_id.to_owned(), ed25519, rsa, x25519 }
    }

    /// The owner's Matrix user id.
    pub fn user_id(&self) -> &str {
        &self.user_id
    }

    /// The KeyBox id, which is the Matrix device id.
    pub fn keybox_id(&self) -> &str {
        &self.keybox_id
    }

    /// Signs `message` with the KeyBox's Ed25519 key: 64 bytes.
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, CryptoError> {
        ed25519_sign(&self.ed25519, message)
    }

    /// The `device_keys` object to upload with `/keys/upload`, signed.
    ///
    /// <https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3keysupload>
    pub fn device_keys(&self) -> Result<Map<String, Value>, JsonSignatureError> {
        let crypto = |error| JsonSignatureError::Crypto(CryptoError::from(error));
        let entry = |algorithm: &str| format!("{algorithm}:{}", self.keybox_id);
        let keys = json!({
            entry(ED25519_ENTRY): base64(&self.ed25519.raw_public_key().map_err(crypto)?),
            entry(RSA_ENTRY): base64(&self.rsa.public_key_to_der().map_err(crypto)?),
            entry(X25519_ENTRY): base64(&self.x25519.raw_public_key().map_err(crypto)?),
        });
        let mut device_keys = Map::new();
        device_keys.insert("user_id".to_owned(), self.user_id.as_str().into());
        device_keys.insert("device_id".to_owned(), self.keybox_id.as_str().into());
        device_keys.insert("algorithms".to_owned(), suite::SUITES.iter().map(|suite| suite.id).collect());
        device_keys.insert("keys".to_owned(), keys);
        sign_json(self, &mut device_keys)?;
        Ok(device_keys)
    }

    /// The public half, as others read it from [`Self::device_keys`].
    pub fn public(&self) -> Result<PublicKeySet, KeySetError> {
        let device_keys = self.device_keys().map_err(KeySetError::Signature)?;
        validate_device_keys(&self.user_id, &self.keybox_id, &device_keys)?
            .ok_or(KeySetError::Missing(RSA_ENTRY))
    }
}

impl fmt::Debug for PrivateKeySet {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("PrivateKeySet")
            .field("user_id", &self.user_id)
            .field("keybox_id", &self.keybox_id)
            .finish_non_exhaustive()
    }
}
