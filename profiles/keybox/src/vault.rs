//! Sealing of what a KeyBox keeps on disk beside its private keys: AES-256-GCM under a key derived from them.

use std::fmt;

use zeroize::Zeroizing;

use crate::entropy::{Entropy, random};
use crate::key_set::PrivateKeySet;
use crate::primitives::{CryptoError, Gcm, hkdf_sha256};

const NONCE: usize = 12;
const TAG: usize = 16;

/// A record that cannot be opened: altered, cut short, of another name, or sealed by another KeyBox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the record is damaged or belongs to another KeyBox")]
pub struct NotOurs;

/// Seals and opens the local records of one KeyBox. Whoever has the private keys has the vault.
#[derive(Clone)]
pub struct Vault(Zeroizing<[u8; 32]>);

impl Vault {
    /// The vault of a KeyBox: its key is HKDF of the Ed25519 private key.
    pub fn new(keys: &PrivateKeySet) -> Result<Self, CryptoError> {
        let secret = Zeroizing::new(keys.ed25519.raw_private_key().map_err(CryptoError::from)?);
        Ok(Self(hkdf_sha256(&secret, "com.trustner.keybox.vault")))
    }

    /// A vault of which the key is known.
    pub(crate) fn with_key(key: Zeroizing<[u8; 32]>) -> Self {
        Self(key)
    }

    /// Seals a record under its name: nonce, ciphertext, tag. A record does not open under another name.
    pub fn seal(&self, name: &str, record: &[u8], entropy: &mut dyn Entropy) -> Result<Vec<u8>, CryptoError> {
        let nonce: [u8; NONCE] = random(entropy)?;
        let mut sealed = [&nonce, record].concat();
        if let Some((_, data)) = sealed.split_at_mut_checked(NONCE) {
            let tag = Gcm::new(&self.0)?.seal(&nonce, name.as_bytes(), data)?;
            sealed.extend_from_slice(&tag);
        }
        Ok(sealed)
    }

    /// Opens what [`Vault::seal`] made under the same name.
    pub fn open(&self, name: &str, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, NotOurs> {
        let (nonce, rest) = sealed.split_first_chunk::<NONCE>().ok_or(NotOurs)?;
        let (ciphertext, tag) = rest.split_last_chunk::<TAG>().ok_or(NotOurs)?;
        let mut record = Zeroizing::new(ciphertext.to_vec());
        let cipher = Gcm::new(&self.0).map_err(|_| NotOurs)?;
        cipher.open(nonce, name.as_bytes(), &mut record, tag).map_err(|_| NotOurs)?;
        Ok(record)
    }
}

impl fmt::Debug for Vault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Vault(redacted)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::OpensslEntropy;

    #[test]
    fn a_record_opens_whole_under_its_name_only() {
        let keys = PrivateKeySet::generate("@a:x", "A", &mut OpensslEntropy).unwrap();
        let vault = Vault::new(&keys).unwrap();
        let sealed = vault.seal("rooms", b"text", &mut OpensslEntropy).unwrap();
        assert_eq!(*vault.open("rooms", &sealed).unwrap(), b"text");
        assert_eq!(vault.open("other", &sealed), Err(NotOurs));
        for length in 0..sealed.len() {
            assert_eq!(vault.open("rooms", &sealed[..length]), Err(NotOurs));
        }
        for position in 0..sealed.len() {
            let mut altered = sealed.clone();
            altered[position] ^= 1;
            assert_eq!(vault.open("rooms", &altered), Err(NotOurs));
        }
        let stranger = PrivateKeySet::generate("@a:x", "A", &mut OpensslEntropy).unwrap();
        assert_eq!(Vault::new(&stranger).unwrap().open("rooms", &sealed), Err(NotOurs));
    }
}
