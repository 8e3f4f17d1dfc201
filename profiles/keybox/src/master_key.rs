//! Passphrases at rest at a homeserver: sealed under a master key that is not in its database (`SPEC.md`, section 22).

use std::fmt;

use zeroize::Zeroizing;

use crate::encoding::{base64, from_base64};
use crate::entropy::Entropy;
use crate::primitives::CryptoError;
use crate::vault::Vault;

const MAX_NAME: usize = 32;

/// The master keys of a homeserver, the one that seals first.
#[derive(Clone)]
pub struct MasterKeys(Vec<(String, Vault)>);

/// Why a text does not name master keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MasterKeyError {
    /// There is none in it.
    #[error("at least one master key is needed, as NAME:BASE64 of 32 bytes")]
    None,
    /// An entry is not `NAME:BASE64`, or the key does not have 32 bytes.
    #[error(
        "a master key is written NAME:BASE64; the name has 1 to 32 letters, digits, - or _, the key 32 bytes"
    )]
    Malformed,
    /// Two have the same name.
    #[error("two master keys have the same name")]
    Twice,
}

/// A sealed passphrase that cannot be opened: its master key is not there any more, or it is not of this KeyBox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CannotOpen {
    /// None of the master keys has the name that it was sealed under.
    #[error("the passphrase was sealed under a master key that is not configured any more")]
    UnknownKey,
    /// Altered, or another KeyBox's.
    #[error("the sealed passphrase is damaged, or belongs to another KeyBox")]
    Damaged,
}

impl MasterKeys {
    /// Reads keys as `NAME:BASE64`, separated by commas or white space. The first seals; all open.
    pub fn parse(text: &str) -> Result<Self, MasterKeyError> {
        let mut keys: Vec<(String, Vault)> = Vec::new();
        let items = text.split(|c: char| c == ',' || c.is_whitespace()).filter(|item| !item.is_empty());
        for item in items {
            let (name, key) = item.split_once(':').ok_or(MasterKeyError::Malformed)?;
            let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
            if name.is_empty() || name.len() > MAX_NAME || !name.chars().all(allowed) {
                return Err(MasterKeyError::Malformed);
            }
            let bytes = from_base64(key.trim_end_matches('=')).map_err(|_| MasterKeyError::Malformed)?;
            let bytes = Zeroizing::new(bytes);
            let key: [u8; 32] = bytes.as_slice().try_into().map_err(|_| MasterKeyError::Malformed)?;
            if keys.iter().any(|(known, _)| known == name) {
                return Err(MasterKeyError::Twice);
            }
            keys.push((name.to_owned(), Vault::with_key(Zeroizing::new(key))));
        }
        if keys.is_empty() { Err(MasterKeyError::None) } else { Ok(Self(keys)) }
    }

    /// Whether a passphrase was sealed under the key that seals now.
    pub fn is_current(&self, sealed: &str) -> bool {
        let name = sealed.split_once(':').map(|(name, _)| name);
        self.0.first().map(|(current, _)| current.as_str()) == name
    }

    /// Seals the passphrase of a KeyBox: `NAME:BASE64`.
    pub fn seal(
        &self,
        (user_id, keybox_id): (&str, &str),
        passphrase: &str,
        entropy: &mut dyn Entropy,
    ) -> Result<String, CryptoError> {
        let mut sealed = String::new();
        if let Some((name, vault)) = self.0.first() {
            let bytes = vault.seal(&place(user_id, keybox_id), passphrase.as_bytes(), entropy)?;
            sealed = format!("{name}:{}", base64(&bytes));
        }
        Ok(sealed)
    }

    /// Opens what [`Self::seal`] made for that KeyBox.
    pub fn open(
        &self,
        (user_id, keybox_id): (&str, &str),
        sealed: &str,
    ) -> Result<Zeroizing<String>, CannotOpen> {
        let (name, text) = sealed.split_once(':').ok_or(CannotOpen::Damaged)?;
        let (_, vault) = self.0.iter().find(|(known, _)| known == name).ok_or(CannotOpen::UnknownKey)?;
        let bytes = from_base64(text).map_err(|_| CannotOpen::Damaged)?;
        let open = vault.open(&place(user_id, keybox_id), &bytes).map_err(|_| CannotOpen::Damaged)?;
        let text = std::str::from_utf8(&open).map_err(|_| CannotOpen::Damaged)?;
        Ok(Zeroizing::new(text.to_owned()))
    }
}

/// What a sealed passphrase is bound to. A user id has no space in it.
fn place(user_id: &str, keybox_id: &str) -> String {
    format!("com.trustner.keybox.passphrase {user_id} {keybox_id}")
}

impl fmt::Debug for MasterKeys {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.0.iter().map(|(name, _)| name).collect();
        formatter.debug_tuple("MasterKeys").field(&names).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::OpensslEntropy;

    const BOX: (&str, &str) = ("@a:x", "BOX");

    fn key(name: &str, byte: u8) -> String {
        format!("{name}:{}", base64(&[byte; 32]))
    }

    #[test]
    fn a_passphrase_opens_for_its_keybox_under_its_key_only() {
        let keys = MasterKeys::parse(&key("one", 1)).unwrap();
        let sealed = keys.seal(BOX, "secret words", &mut OpensslEntropy).unwrap();
        assert!(sealed.starts_with("one:") && !sealed.contains("secret"));
        assert_eq!(*keys.open(BOX, &sealed).unwrap(), "secret words");
        assert_eq!(keys.open(("@b:x", "BOX"), &sealed), Err(CannotOpen::Damaged));
        assert_eq!(keys.open(("@a:x", "OTHER"), &sealed), Err(CannotOpen::Damaged));
        let same_name = MasterKeys::parse(&key("one", 2)).unwrap();
        assert_eq!(same_name.open(BOX, &sealed), Err(CannotOpen::Damaged));
        let other = MasterKeys::parse(&key("two", 1)).unwrap();
        assert_eq!(other.open(BOX, &sealed), Err(CannotOpen::UnknownKey));
    }

    #[test]
    fn the_first_key_seals_and_all_open() {
        let old = MasterKeys::parse(&key("one", 1)).unwrap();
        let sealed = old.seal(BOX, "secret", &mut OpensslEntropy).unwrap();
        let both = MasterKeys::parse(&format!("{}\n{},", key("two", 2), key("one", 1))).unwrap();
        assert_eq!(*both.open(BOX, &sealed).unwrap(), "secret");
        assert!(!both.is_current(&sealed) && old.is_current(&sealed));
        assert!(both.is_current(&both.seal(BOX, "secret", &mut OpensslEntropy).unwrap()));
    }

    #[test]
    fn keys_are_checked_and_never_shown() {
        let parse = |text: &str| MasterKeys::parse(text).map(drop);
        assert_eq!(parse(" ,"), Err(MasterKeyError::None));
        assert_eq!(parse("one"), Err(MasterKeyError::Malformed));
        assert_eq!(parse("one:AAAA"), Err(MasterKeyError::Malformed));
        assert_eq!(parse(&key("a b", 1)), Err(MasterKeyError::Malformed));
        for wrong in ["", "a.b", "ü", &"n".repeat(MAX_NAME + 1)] {
            assert_eq!(parse(&key(wrong, 1)), Err(MasterKeyError::Malformed), "{wrong}");
        }
        for right in ["a", "A-b_9", &"n".repeat(MAX_NAME)] {
            assert_eq!(parse(&key(right, 1)), Ok(()), "{right}");
        }
        assert_eq!(parse(&format!("{},{}", key("one", 1), key("one", 2))), Err(MasterKeyError::Twice));
        // As `openssl rand -base64 32` writes it.
        assert_eq!(parse(&format!("{}=", key("one", 1))), Ok(()));
        assert_eq!(format!("{:?}", MasterKeys::parse(&key("one", 1)).unwrap()), r#"MasterKeys(["one"])"#);
    }
}
