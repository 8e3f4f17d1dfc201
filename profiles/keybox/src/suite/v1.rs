//! Suite v1, the whitepaper's: RSA 2048 for keys, AES-256-OFB for content, with a MAC that the whitepaper lacks.
//!
//! OFB is a stream cipher: whoever carries the ciphertext can flip any bit of the plaintext. The MAC is therefore
//! part of the suite, compared in constant time, and checked before anything is decrypted.

use std::sync::Arc;

use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

use super::{ContentCipher, OpenError, Sealed, Suite, WrapError};
use crate::context::WrapContext;
use crate::encoding::Fields;
use crate::entropy::{Entropy, random_public};
use crate::key_set::{PrivateKeySet, PublicKeySet, RSA_ENTRY};
use crate::primitives::{CryptoError, HmacKey, Ofb, hkdf_sha256, rsa_oaep_decrypt, rsa_oaep_encrypt};
use crate::resource_key::ResourceKey;

/// Identifier of suite v1.
pub const ID: &str = "com.trustner.keybox.v1.rsa2048-oaep-sha256.aes256-ofb-hmac-sha256";

pub(super) const SUITE: Suite = Suite { id: ID, version: 1, key_entry: RSA_ENTRY, wrap, unwrap, prepare };

fn wrap(
    key: &ResourceKey,
    recipient: &PublicKeySet,
    context: &WrapContext<'_>,
    seed: &[u8; 32],
) -> Result<Vec<u8>, WrapError> {
    Ok(rsa_oaep_encrypt(&*recipient.rsa_key()?, &context.to_bytes(), key.as_bytes(), seed)?)
}

fn unwrap(wrapped: &[u8], keys: &PrivateKeySet, context: &WrapContext<'_>) -> Result<ResourceKey, OpenError> {
    let opened =
        rsa_oaep_decrypt(&keys.rsa, &context.to_bytes(), wrapped).map_err(|_| OpenError::NotAuthentic)?;
    ResourceKey::from_bytes(&opened).ok_or(OpenError::NotAuthentic)
}

/// The resource key serves the cipher, and a key derived from it the MAC.
struct Content {
    cipher: Ofb,
    mac_key: HmacKey,
}

fn prepare(key: &ResourceKey) -> Result<Arc<dyn ContentCipher>, CryptoError> {
    Ok(Arc::new(Content {
        cipher: Ofb::new(key.as_bytes())?,
        mac_key: HmacKey::new(mac_key(key).as_slice()),
    }))
}

impl ContentCipher for Content {
    fn seal(
        &self,
        context: &[u8],
        mut content: Vec<u8>,
        entropy: &mut dyn Entropy,
    ) -> Result<Sealed, CryptoError> {
        let iv: [u8; 16] = random_public(entropy)?;
        self.cipher.apply(&iv, &mut content)?;
        let mac = self.mac(context, &iv, &content);
        Ok(Sealed { iv: iv.to_vec(), ciphertext: content, mac: mac.to_vec() })
    }

    fn open(&self, context: &[u8], sealed: Sealed) -> Result<Zeroizing<Vec<u8>>, OpenError> {
        let iv = <[u8; 16]>::try_from(sealed.iv.as_slice()).map_err(|_| OpenError::NotAuthentic)?;
        let expected = self.mac(context, &iv, &sealed.ciphertext);
        if !bool::from(expected.ct_eq(&sealed.mac)) {
            return Err(OpenError::NotAuthentic);
        }
        let mut content = Zeroizing::new(sealed.ciphertext);
        self.cipher.apply(&iv, &mut content)?;
        Ok(content)
    }
}

impl Content {
    /// HMAC-SHA-256 over the fields label, context, IV, ciphertext.
    fn mac(&self, context: &[u8], iv: &[u8; 16], ciphertext: &[u8]) -> [u8; 32] {
        let head = Fields::new("com.trustner.keybox.v1.mac").bytes(context).bytes(iv).length_of(ciphertext);
        self.mac_key.mac(&[head.as_slice(), ciphertext])
    }
}

/// The MAC has its own key, so that the resource key serves one primitive only.
pub(crate) fn mac_key(key: &ResourceKey) -> Zeroizing<[u8; 32]> {
    hkdf_sha256(key.as_bytes(), "com.trustner.keybox.v1.mac_key")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::OpensslEntropy;

    #[test]
    fn a_wrap_of_something_else_than_32_bytes_is_refused() {
        let keys = PrivateKeySet::generate("@a:x", "A", &mut OpensslEntropy).unwrap();
        let id = ResourceKey::from_bytes(&[1; 32]).unwrap().id("!r");
        let context = WrapContext {
            suite: ID,
            room_id: "!r",
            key_id: &id,
            sender: "@b:x",
            sender_keybox: "B",
            recipient: "@a:x",
            recipient_keybox: "A",
        };
        let public = keys.public().unwrap().rsa_key().unwrap();
        let wrapped = rsa_oaep_encrypt(&public, &context.to_bytes(), &[1; 31], &[7; 32]).unwrap();
        assert!(matches!(unwrap(&wrapped, &keys, &context), Err(OpenError::NotAuthentic)));
    }
}
