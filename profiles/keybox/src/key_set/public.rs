//! The public keys of a KeyBox.

use std::fmt;
use std::sync::OnceLock;

use openssl::pkey::Public;
use openssl::rsa::Rsa;
use serde::{Deserialize, Serialize};

use super::{ED25519_ENTRY, RSA_ENTRY, X25519_ENTRY};
use crate::encoding::{Fields, base64, base64_bytes, from_base64, optional_base64_bytes};
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
    /// `rsa` as OpenSSL has it.
    #[serde(skip)]
    pub(crate) prepared: Prepared,
}

/// An RSA key that was read from its DER, with that DER. OpenSSL keeps beside it what it works out at the first operation, which
/// takes half as long as the operation itself.
#[derive(Clone, Default)]
pub(crate) struct Prepared(OnceLock<(Vec<u8>, Rsa<Public>)>);

impl PublicKeySet {
    /// Whether `signature` over `message` was made by this KeyBox.
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> Result<bool, CryptoError> {
        ed25519_verify(&self.ed25519, message, signature)
    }

    /// The RSA key, ready for use.
    pub(crate) fn rsa_key(&self) -> Result<Rsa<Public>, CryptoError> {
        // `rsa` is public: it may have become another key since.
        if let Some((_, key)) = self.prepared.0.get().filter(|(der, _)| *der == self.rsa) {
            return Ok(key.clone());
        }
        // The RSA type reads its one format directly; a general key would be tried as every type there is.
        let key = Rsa::public_key_from_der(&self.rsa)?;
        self.prepared.0.get_or_init(|| (self.rsa.clone(), key.clone()));
        Ok(key)
    }

    /// SHA-256 over every key of the set and whose it is: one value that changes if any of them does.
    pub fn hash(&self) -> [u8; 32] {
        let x25519 = self.x25519.map(|key| base64(&key)).unwrap_or_default();
        hash(&self.user_id, &self.keybox_id, &self.ed25519, &self.rsa, &x25519)
    }
}

/// It adds nothing to what a key set says.
impl PartialEq for Prepared {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Prepared {}

impl fmt::Debug for Prepared {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(if self.0.get().is_some() { "prepared" } else { "not prepared" })
    }
}

/// [`PublicKeySet::hash`] of keys that were checked when they were published, without checking them again. `entry` gives the text
/// of a member of `keys` in `device_keys`. `None` if it is no key set.
pub fn key_set_hash<'a>(
    user_id: &str,
    keybox_id: &str,
    entry: impl Fn(&str) -> Option<&'a str>,
) -> Option<[u8; 32]> {
    let entry = |algorithm: &str| entry(&format!("{algorithm}:{keybox_id}"));
    let key = |algorithm: &str| from_base64(entry(algorithm)?).ok();
    let x25519 = entry(X25519_ENTRY).unwrap_or_default();
    Some(hash(user_id, keybox_id, &key(ED25519_ENTRY)?, &key(RSA_ENTRY)?, x25519))
}

fn hash(user_id: &str, keybox_id: &str, ed25519: &[u8], rsa: &[u8], x25519: &str) -> [u8; 32] {
    let fields = Fields::new("com.trustner.keybox.key_set")
        .text(user_id)
        .text(keybox_id)
        .bytes(ed25519)
        .bytes(rsa)
        .text(x25519);
    sha256(fields.as_slice())
}

#[cfg(test)]
mod tests {
    use super::{ED25519_ENTRY, RSA_ENTRY, key_set_hash};
    use crate::OpensslEntropy;
    use crate::key_set::PrivateKeySet;

    #[test]
    fn the_hash_of_published_keys_is_that_of_the_set() {
        let keys = PrivateKeySet::generate("@a:x", "A", &mut OpensslEntropy).unwrap();
        let published = keys.device_keys().unwrap();
        let hash = |user_id, keybox_id, without: &str| {
            key_set_hash(user_id, keybox_id, |name| {
                published["keys"].get(name)?.as_str().filter(|_| !name.starts_with(without))
            })
        };
        assert_eq!(hash("@a:x", "A", "-"), Some(keys.public().unwrap().hash()));
        assert_ne!(hash("@b:x", "A", "-"), hash("@a:x", "A", "-"));
        assert_eq!(hash("@a:x", "B", "-"), None);
        for needed in [ED25519_ENTRY, RSA_ENTRY] {
            assert_eq!(hash("@a:x", "A", needed), None, "{needed}");
        }
    }

    #[test]
    fn the_prepared_key_is_always_that_of_the_set() {
        let keys = || PrivateKeySet::generate("@a:x", "A", &mut OpensslEntropy).unwrap().public().unwrap();
        let (mut one, other) = (keys(), keys());
        let modulus = |keys: &super::PublicKeySet| keys.rsa_key().unwrap().n().to_vec();
        let of_one = modulus(&one);
        assert_ne!(of_one, modulus(&other));
        assert_eq!(of_one, modulus(&one));
        assert_eq!(one, serde_json::from_value(serde_json::to_value(&one).unwrap()).unwrap());
        one.rsa = other.rsa.clone();
        assert_eq!(modulus(&one), modulus(&other));
        one.rsa.pop();
        assert!(one.rsa_key().is_err());
    }
}
