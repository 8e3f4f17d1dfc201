//! Contact codes: what a KeyBox's owner shows, above all as a QR code, so that somebody else can verify the KeyBox.

use std::fmt;

use subtle::ConstantTimeEq as _;

use crate::encoding::{base64_url, from_base64_url};
use crate::key_set::PublicKeySet;

const PREFIX: &str = "com.trustner.keybox.contact";
const VERSION: &str = "1";
/// Longest user id and KeyBox id in a code, in bytes. <https://spec.matrix.org/v1.19/appendices/#user-identifiers>
const MAX_ID: usize = 255;

/// Whose KeyBox it is, and what its keys are: everything that somebody else has to compare.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContactCode {
    /// The owner's Matrix user id.
    pub user_id: String,
    /// The KeyBox id.
    pub keybox_id: String,
    /// The Ed25519 public key: the fingerprint.
    pub ed25519: [u8; 32],
    /// [`PublicKeySet::hash`] of the whole key set.
    pub key_set_hash: [u8; 32],
}

/// Why a text is not a contact code that can be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ContactCodeError {
    /// It begins as a code, and goes on otherwise.
    #[error("the contact code is damaged; scan or copy it again")]
    Damaged,
    /// It is something else.
    #[error("this is not the contact code of a KeyBox")]
    Foreign,
    /// It is of a version that this crate does not know.
    #[error("the contact code is of version {0:?}, which this program does not know; update it")]
    Version(String),
}

/// How a contact code and a key set differ: one of them is not what the owner made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Mismatch {
    /// They are of different KeyBoxes.
    #[error("the contact code is of another KeyBox")]
    Address,
    /// The signing keys differ.
    #[error(
        "the fingerprint in the contact code is another one than the server shows; do not trust this KeyBox"
    )]
    Fingerprint,
    /// The signing keys agree, and another key of the set does not.
    #[error(
        "the contact code was made for other encryption keys than the server shows; do not trust this KeyBox"
    )]
    KeySet,
}

impl ContactCode {
    /// The code of a KeyBox.
    pub fn of(keys: &PublicKeySet) -> Self {
        Self {
            user_id: keys.user_id.clone(),
            keybox_id: keys.keybox_id.clone(),
            ed25519: keys.ed25519,
            key_set_hash: keys.hash(),
        }
    }

    /// Reads what [`fmt::Display`] writes. There is one text for each code, and no other is taken.
    pub fn parse(text: &str) -> Result<Self, ContactCodeError> {
        let mut parts = text.split(':');
        if parts.next() != Some(PREFIX) {
            return Err(ContactCodeError::Foreign);
        }
        match parts.next() {
            Some(VERSION) => {}
            Some("") | None => return Err(ContactCodeError::Damaged),
            Some(other) => return Err(ContactCodeError::Version(other.chars().take(16).collect())),
        }
        let mut field = || {
            let text = parts.next().ok_or(ContactCodeError::Damaged)?;
            from_base64_url(text).map_err(|_| ContactCodeError::Damaged)
        };
        let id = |bytes: Vec<u8>| {
            let id = String::from_utf8(bytes).map_err(|_| ContactCodeError::Damaged)?;
            if (1..=MAX_ID).contains(&id.len()) { Ok(id) } else { Err(ContactCodeError::Damaged) }
        };
        let hash = |bytes: Vec<u8>| <[u8; 32]>::try_from(bytes).map_err(|_| ContactCodeError::Damaged);
        let code = Self {
            user_id: id(field()?)?,
            keybox_id: id(field()?)?,
            ed25519: hash(field()?)?,
            key_set_hash: hash(field()?)?,
        };
        if parts.next().is_none() { Ok(code) } else { Err(ContactCodeError::Damaged) }
    }

    /// Whether `keys` are what this code was made for.
    pub fn check(&self, keys: &PublicKeySet) -> Result<(), Mismatch> {
        if self.user_id != keys.user_id || self.keybox_id != keys.keybox_id {
            Err(Mismatch::Address)
        } else if !bool::from(self.ed25519.ct_eq(&keys.ed25519)) {
            Err(Mismatch::Fingerprint)
        } else if !bool::from(self.key_set_hash.ct_eq(&keys.hash())) {
            Err(Mismatch::KeySet)
        } else {
            Ok(())
        }
    }
}

impl fmt::Display for ContactCode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{PREFIX}:{VERSION}")?;
        let fields: [&[u8]; 4] =
            [self.user_id.as_bytes(), self.keybox_id.as_bytes(), &self.ed25519, &self.key_set_hash];
        for field in fields {
            write!(formatter, ":{}", base64_url(field))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "com.trustner.keybox.contact:1:QGFsaWNlOmV4YW1wbGUub3Jn:QUxJQ0VCT1g:\
                        AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8:jfk7zTA7QmHnw4-7kYMcl-rmyIHGpdpe_Mov-caBDZE";

    fn keys() -> PublicKeySet {
        PublicKeySet {
            user_id: "@alice:example.org".to_owned(),
            keybox_id: "ALICEBOX".to_owned(),
            algorithms: Vec::new(),
            ed25519: std::array::from_fn(|index| u8::try_from(index).unwrap()),
            rsa: vec![1, 2, 3],
            x25519: None,
            prepared: Default::default(),
        }
    }

    #[test]
    fn the_text_is_fixed_and_is_read_back() {
        let code = ContactCode::of(&keys());
        assert_eq!(code.to_string(), TEXT);
        assert_eq!(ContactCode::parse(TEXT).unwrap(), code);
        code.check(&keys()).unwrap();
    }

    #[test]
    fn what_is_no_code_is_told_apart() {
        use ContactCodeError::{Damaged, Foreign, Version};
        let of = |text: &str| ContactCode::parse(text).unwrap_err();
        assert_eq!(of(""), Foreign);
        assert_eq!(of("https://example.org"), Foreign);
        assert_eq!(of("com.trustner.keybox.contact"), Damaged);
        assert_eq!(of(&TEXT.replacen(":1:", ":2:", 1)), Version("2".to_owned()));
        assert_eq!(of(&format!("{TEXT}:")), Damaged);
        assert_eq!(of(&format!("{TEXT}=")), Damaged);
        assert_eq!(of(&TEXT.replace(":QUxJQ0VCT1g", ":")), Damaged);
        for length in PREFIX.len()..TEXT.len() {
            assert_eq!(of(&TEXT[..length]), Damaged, "{length}");
        }
    }

    #[test]
    fn a_code_does_not_fit_other_keys() {
        let code = ContactCode::of(&keys());
        let check = |change: fn(&mut PublicKeySet)| {
            let mut other = keys();
            change(&mut other);
            code.check(&other).unwrap_err()
        };
        assert_eq!(check(|keys| keys.keybox_id.push('X')), Mismatch::Address);
        assert_eq!(check(|keys| keys.user_id.push('X')), Mismatch::Address);
        assert_eq!(check(|keys| keys.ed25519[31] ^= 1), Mismatch::Fingerprint);
        assert_eq!(check(|keys| keys.rsa[0] ^= 1), Mismatch::KeySet);
        assert_eq!(check(|keys| keys.x25519 = Some([7; 32])), Mismatch::KeySet);
    }
}
