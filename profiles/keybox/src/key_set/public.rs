//! The public keys of a KeyBox.

use serde::{Deserialize, Serialize};

use crate::encoding::{Fields, base64, base64_bytes, optional_base64_bytes};
use crate::primitives::{CryptoError, ed25519_verify, sha256};

/// The public keys of one KeyBox, checked by [`super::validate_device_keys`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublicKeySet {
    /// The owner's Matrix user id.
    pub user_id: String,
    /// The KeyBox id, which is the Matrix device id.
    pub keybox_id: String,
    /// Identifiers of the suites that the KeyBox speaks, known to this crate or not.
    pub algorithms: Vec<String>,
    /// Ed25519 public key: verifies what the KeyBox signs.
    #[serde(with = "base64_bytes")]
    pub ed25519: [u8; 32],
    /// RSA 2048 public key, DER SubjectPublicKeyInfo: wraps resource keys for it in suite v1.
    #[serde(with = "base64_bytes")]
    pub rsa: Vec<u8>,
    /// X25519 public key, if it published one: wraps resource keys for it in suite v2.
    #[serde(default, with = "optional_base64_bytes")]
    pub x25519: Option<[u8; 32]>,
}

impl PublicKeySet {
    /// Whether `signature` over `message` was made by this KeyBox.
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> Result<bool, CryptoError> {
        ed25519_verify(&self.ed25519, message, signature)
    }

    /// SHA-256 over every key of the set and whose it is: one value that changes if any of them does.
    pub fn hash(&self) -> [u8; 32] {
        let fields = Fields::new("com.trustner.keybox.key_set")
            .text(&self.user_id)
            .text(&self.keybox_id)
            .bytes(&self.ed25519)
            .bytes(&self.rsa)
            .text(&self.x25519.map(|key| base64(&key)).unwrap_or_default());
        sha256(fields.as_slice())
    }
}
