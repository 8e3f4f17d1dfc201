//! The recovery key: resource keys that a server keeps, and that open with a key which only a person has (SPEC, section 17).
//!
//! Whoever writes, [`BackupWriter`], holds a public key and a MAC key: it can add, and open nothing. The secret, [`RecoveryKey`], is on paper.

use std::fmt;

use openssl::pkey::{Id, PKey, Private};
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

use crate::encoding::{Fields, base64_bytes, from_hex, hex};
use crate::entropy::{Entropy, random};
use crate::interchange::Entry;
use crate::primitives::{CryptoError, HmacKey, hkdf_sha256, x25519_public};
use crate::resource_key::ResourceKeyId;
use crate::sha256;
use crate::suite::{OpenError, hpke};

/// Names the form of a backup, in the place where Matrix names the algorithm of one.
pub const ALGORITHM: &str = "com.trustner.keybox.recovery.v1";
const SECRET: usize = 32;
const CHECK: usize = 2;
/// The public key and the MAC key.
const WRITER: usize = 64;

/// 32 random bytes that open a backup. Wiped from memory when dropped.
pub struct RecoveryKey(Zeroizing<[u8; SECRET]>);

/// What a KeyBox needs to add to a backup. It opens nothing; who has it can pass off keys as those of a KeyBox of the account.
#[derive(Clone)]
pub struct BackupWriter {
    public: [u8; 32],
    mac_key: Zeroizing<[u8; 32]>,
}

/// What a backup says of itself: `auth_data` of its version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupHead {
    /// The X25519 public key that keys are sealed for.
    #[serde(with = "base64_bytes")]
    pub public_key: [u8; 32],
    /// Shows that whoever made the backup had the recovery key.
    #[serde(with = "base64_bytes")]
    pub mac: [u8; 32],
}

/// A resource key in a backup: `session_data`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedEntry {
    /// HPKE: the encapsulated key, the ciphertext, the tag.
    #[serde(with = "base64_bytes")]
    pub sealed: Vec<u8>,
    /// Shows that a KeyBox of the account sealed it.
    #[serde(with = "base64_bytes")]
    pub mac: [u8; 32],
}

/// Why a text is not a recovery key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecoveryKeyError {
    /// Not 68 hexadecimal digits.
    #[error("a recovery key has 17 groups of four hexadecimal digits")]
    Malformed,
    /// A digit is wrong.
    #[error("the recovery key is mistyped: compare it digit by digit")]
    Mistyped,
}

/// Why a resource key could not be sealed for a backup.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SealEntryError {
    /// The cryptographic library failed.
    #[error("the resource key could not be sealed")]
    Crypto(#[from] CryptoError),
    /// It has no JSON form.
    #[error("the resource key could not be written")]
    Json(#[from] serde_json::Error),
}

impl RecoveryKey {
    /// Draws a new one.
    pub fn generate(entropy: &mut dyn Entropy) -> Result<Self, CryptoError> {
        Ok(Self(Zeroizing::new(random(entropy)?)))
    }

    fn check(&self) -> [u8; CHECK] {
        let fields = Fields::new("com.trustner.keybox.recovery.check").bytes(&*self.0).wiped();
        let [first, second, ..] = *Zeroizing::new(sha256(&fields));
        [first, second]
    }

    /// As a person keeps it: the hexadecimal digits of secret and checksum, 17 groups of four.
    pub fn to_text(&self) -> Zeroizing<String> {
        let bytes = Zeroizing::new([self.0.as_slice(), &self.check()].concat());
        let digits = Zeroizing::new(hex(&bytes));
        let mut text = Zeroizing::new(String::with_capacity(2 * digits.len()));
        for (index, digit) in digits.chars().enumerate() {
            if index > 0 && index % 4 == 0 {
                text.push(' ');
            }
            text.push(digit);
        }
        text
    }

    /// Reads [`Self::to_text`]; white space, dashes and case do not matter.
    pub fn from_text(text: &str) -> Result<Self, RecoveryKeyError> {
        let mut digits = Zeroizing::new(String::with_capacity(text.len()));
        digits
            .extend(text.chars().filter(|c| !c.is_whitespace() && *c != '-').map(|c| c.to_ascii_lowercase()));
        let bytes = from_hex::<{ SECRET + CHECK }>(&digits).map_err(|_| RecoveryKeyError::Malformed)?;
        let (secret, check) = bytes.split_first_chunk::<SECRET>().ok_or(RecoveryKeyError::Malformed)?;
        let key = Self(Zeroizing::new(*secret));
        if key.check() == *check { Ok(key) } else { Err(RecoveryKeyError::Mistyped) }
    }

    fn private(&self) -> Result<PKey<Private>, CryptoError> {
        let seed: Zeroizing<[u8; 32]> = hkdf_sha256(&*self.0, "com.trustner.keybox.recovery.x25519");
        Ok(PKey::private_key_from_raw_bytes(&*seed, Id::X25519)?)
    }

    /// What a KeyBox needs to add to this key's backup.
    pub fn writer(&self) -> Result<BackupWriter, CryptoError> {
        let mac_key = hkdf_sha256(&*self.0, "com.trustner.keybox.recovery.mac_key");
        Ok(BackupWriter { public: x25519_public(self.private()?.as_ref())?, mac_key })
    }

    /// Opens an entry of a user's backup. What it holds is for its room and its id; whether id and key belong together is for
    /// [`Entry::open`] to say.
    pub fn open(
        &self,
        user_id: &str,
        (room_id, key_id): (&str, &ResourceKeyId),
        entry: &SealedEntry,
    ) -> Result<Entry, OpenError> {
        let expected = self.writer()?.entry_mac(user_id, (room_id, key_id), &entry.sealed);
        if !bool::from(expected.ct_eq(&entry.mac)) {
            return Err(OpenError::NotAuthentic);
        }
        let info = info(user_id, room_id, key_id);
        let plain = hpke::open(self.private()?.as_ref(), info.as_slice(), &entry.sealed)?;
        let opened: Entry = serde_json::from_slice(&plain).map_err(|_| OpenError::NotAuthentic)?;
        let fits = opened.room_id == room_id && opened.key_id == *key_id;
        if fits { Ok(opened) } else { Err(OpenError::NotAuthentic) }
    }
}

impl BackupWriter {
    /// The public key, then the MAC key: keep them sealed.
    pub fn to_bytes(&self) -> Zeroizing<Vec<u8>> {
        let mut bytes = Zeroizing::new(Vec::with_capacity(WRITER));
        bytes.extend_from_slice(&self.public);
        bytes.extend_from_slice(&*self.mac_key);
        bytes
    }

    /// Reads [`Self::to_bytes`]; `None` for any other number of bytes.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (public, mac_key) = bytes.split_first_chunk::<32>()?;
        Some(Self { public: *public, mac_key: Zeroizing::new(mac_key.try_into().ok()?) })
    }

    /// What a user's backup says of itself.
    pub fn head(&self, user_id: &str) -> BackupHead {
        let fields = Fields::new("com.trustner.keybox.recovery.head").text(user_id).bytes(&self.public);
        BackupHead { public_key: self.public, mac: HmacKey::new(&*self.mac_key).mac(&[fields.as_slice()]) }
    }

    /// Whether a user's backup is of this recovery key.
    pub fn is_of(&self, user_id: &str, head: &BackupHead) -> bool {
        let expected = self.head(user_id);
        expected.public_key == head.public_key && bool::from(expected.mac.ct_eq(&head.mac))
    }

    /// Seals a resource key for a user's backup.
    pub fn seal(
        &self,
        user_id: &str,
        entry: &Entry,
        entropy: &mut dyn Entropy,
    ) -> Result<SealedEntry, SealEntryError> {
        // Room for all of it, so that no open key is left behind by a reallocation.
        let mut plain = Zeroizing::new(Vec::with_capacity(4096));
        serde_json::to_writer(&mut *plain, entry)?;
        let place = (entry.room_id.as_str(), &entry.key_id);
        let ephemeral = Zeroizing::new(random::<32>(entropy)?);
        let info = info(user_id, place.0, place.1);
        let sealed = hpke::seal(&ephemeral, &self.public, info.as_slice(), &plain)?;
        let mac = self.entry_mac(user_id, place, &sealed);
        Ok(SealedEntry { sealed, mac })
    }

    fn entry_mac(&self, user_id: &str, (room_id, key_id): (&str, &ResourceKeyId), sealed: &[u8]) -> [u8; 32] {
        let fields = Fields::new("com.trustner.keybox.recovery.mac")
            .text(user_id)
            .text(room_id)
            .text(key_id.as_str())
            .bytes(sealed);
        HmacKey::new(&*self.mac_key).mac(&[fields.as_slice()])
    }
}

fn info(user_id: &str, room_id: &str, key_id: &ResourceKeyId) -> Fields {
    Fields::new("com.trustner.keybox.recovery.entry").text(user_id).text(room_id).text(key_id.as_str())
}

impl fmt::Debug for RecoveryKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("RecoveryKey(redacted)")
    }
}

impl fmt::Debug for BackupWriter {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("BackupWriter(redacted)")
    }
}

#[cfg(test)]
mod tests;
