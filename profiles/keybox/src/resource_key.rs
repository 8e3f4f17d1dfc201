//! Resource keys: the symmetric keys that all KeyBoxes of a room hold.

use std::fmt;
use std::sync::{Arc, OnceLock};

use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

use crate::encoding::{DecodeError, Fields, base64_url, from_hex, hex};
use crate::entropy::Entropy;
use crate::primitives::{CryptoError, sha256};
use crate::suite::ContentCipher;

/// 32 random bytes under which the content of a room is sealed. Clones share them; they are wiped from memory with the last.
#[derive(Clone)]
pub struct ResourceKey(Arc<Inner>);

#[derive(Default)]
struct Inner {
    bytes: Zeroizing<[u8; 32]>,
    /// The cipher of the suite that the key serves, by version, once it was used.
    cipher: OnceLock<(u32, Arc<dyn ContentCipher>)>,
}

impl ResourceKey {
    /// Draws a new key.
    pub fn generate(entropy: &mut dyn Entropy) -> Result<Self, CryptoError> {
        let mut bytes = Zeroizing::new([0; 32]);
        entropy.fill(bytes.as_mut_slice())?;
        Ok(Self::new(&bytes))
    }

    /// A key from its 32 bytes; `None` for any other number of bytes.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        Some(Self::new(bytes.try_into().ok()?))
    }

    /// Copied to where it stays: what is moved would leave itself behind.
    fn new(bytes: &[u8; 32]) -> Self {
        let mut inner = Arc::new(Inner::default());
        if let Some(inner) = Arc::get_mut(&mut inner) {
            inner.bytes.copy_from_slice(bytes);
        }
        Self(inner)
    }

    /// A key from its 64 lower-case hexadecimal characters.
    pub fn from_hex(text: &str) -> Result<Self, DecodeError> {
        Ok(Self::new(&*from_hex(text)?))
    }

    /// The key as 64 lower-case hexadecimal characters: what `openssl enc -K` takes.
    pub fn to_hex(&self) -> Zeroizing<String> {
        Zeroizing::new(hex(self.as_bytes()))
    }

    /// The open key. Do not copy it into anything that is not wiped.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0.bytes
    }

    /// The id of this key in a room. It commits to both, so a receiver can check that id, room and key belong together.
    pub fn id(&self, room_id: &str) -> ResourceKeyId {
        let fields = Fields::new("com.trustner.keybox.resource_key_id").text(room_id).bytes(self.as_bytes());
        let digest = Zeroizing::new(sha256(fields.wiped().as_slice()));
        ResourceKeyId(base64_url(digest.first_chunk::<16>().map_or(&[], |half| half.as_slice())))
    }

    /// What [`Self::keep`] was given for that version of suite.
    pub(crate) fn prepared(&self, version: u32) -> Option<Arc<dyn ContentCipher>> {
        let (of, cipher) = self.0.cipher.get()?;
        (*of == version).then(|| Arc::clone(cipher))
    }

    /// Keeps a cipher that has this key, to be used again. A key serves one suite: only the first is kept.
    pub(crate) fn keep(&self, version: u32, cipher: &Arc<dyn ContentCipher>) {
        self.0.cipher.get_or_init(|| (version, Arc::clone(cipher)));
    }
}

impl PartialEq for ResourceKey {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes().ct_eq(other.as_bytes()).into()
    }
}

impl Eq for ResourceKey {}

impl fmt::Debug for ResourceKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("ResourceKey(redacted)")
    }
}

/// Names a resource key: 22 characters, the unpadded URL-safe base64 of 16 bytes of a hash over room and key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String")]
pub struct ResourceKeyId(String);

impl ResourceKeyId {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ResourceKeyId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl TryFrom<String> for ResourceKeyId {
    type Error = DecodeError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        if text.len() == 22 && text.bytes().all(allowed) { Ok(Self(text)) } else { Err(DecodeError) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::OpensslEntropy;

    #[test]
    fn the_id_depends_on_key_and_room() {
        let key = ResourceKey::generate(&mut OpensslEntropy).unwrap();
        let other = ResourceKey::generate(&mut OpensslEntropy).unwrap();
        assert!(key == key.clone() && key != other);
        assert_eq!(key.id("!a"), key.clone().id("!a"));
        assert_ne!(key.id("!a"), key.id("!b"));
        assert_ne!(key.id("!a"), other.id("!a"));
        assert_eq!(ResourceKeyId::try_from(key.id("!a").to_string()).unwrap(), key.id("!a"));
    }

    #[test]
    fn debug_does_not_show_the_key() {
        let key = ResourceKey::from_bytes(&[0xab; 32]).unwrap();
        assert_eq!(format!("{key:?}"), "ResourceKey(redacted)");
        assert_eq!(*ResourceKey::from_hex(&key.to_hex()).unwrap().as_bytes(), [0xab; 32]);
        assert!(ResourceKey::from_bytes(&[0; 31]).is_none());
    }

    #[test]
    fn ids_of_a_wrong_shape_are_refused() {
        for wrong in ["", "AAAAAAAAAAAAAAAAAAAAA", "AAAAAAAAAAAAAAAAAAAAAA=", "AAAAAAAAAAAAAAAAAAAA/A"] {
            assert!(ResourceKeyId::try_from(wrong.to_owned()).is_err(), "{wrong}");
        }
        let right = "AAAAAAAAAA-AAAAAAAA_9z";
        assert_eq!(ResourceKeyId::try_from(right.to_owned()).unwrap().as_str(), right);
    }
}
