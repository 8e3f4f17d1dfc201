//! The interchange file: resource keys under a passphrase, to move them to another place or to keep them.

use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::encoding::{Fields, base64_bytes};
use crate::entropy::{Entropy, random};
use crate::key_message::Origin;
use crate::primitives::{CryptoError, Gcm, scrypt};
use crate::resource_key::{ResourceKey, ResourceKeyId};

const FORMAT: &str = "com.trustner.keybox.interchange";
const VERSION: u64 = 1;
const TAG: usize = 16;
/// scrypt (RFC 7914): the cost of one guess at the passphrase. Fixed by the version, so that no file can demand more.
const SCRYPT: (u64, u64, u64) = (16_384, 8, 5);
/// The file leaves the machine: what protects it is the passphrase alone.
const SHORTEST_PASSPHRASE: usize = 12;
const LONGEST_PASSPHRASE: usize = 512;
/// The largest file that is read, in bytes: about 100,000 keys.
pub const MAX_FILE: usize = 64 << 20;

/// A resource key, in the clear, with what is known of it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
pub struct Entry {
    /// Identifier of the suite.
    #[zeroize(skip)]
    pub algorithm: String,
    /// The room.
    #[zeroize(skip)]
    pub room_id: String,
    /// The key's id.
    #[zeroize(skip)]
    pub key_id: ResourceKeyId,
    /// The key: 64 hexadecimal characters.
    pub key: String,
    /// Who made it.
    #[zeroize(skip)]
    pub origin: Origin,
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Entry")
            .field("room_id", &self.room_id)
            .field("key_id", &self.key_id)
            .finish_non_exhaustive()
    }
}

impl Entry {
    /// The open key, if the entry's id commits to it and its room.
    pub fn open(&self) -> Option<ResourceKey> {
        let key = ResourceKey::from_hex(&self.key).ok()?;
        (key.id(&self.room_id) == self.key_id).then_some(key)
    }
}

/// Why an interchange file could not be written or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InterchangeError {
    /// The cryptographic library failed.
    #[error("the interchange file could not be sealed")]
    Crypto(#[from] CryptoError),
    /// It is something else, or damaged.
    #[error("this is not an interchange file of resource keys")]
    Malformed(#[source] Option<serde_json::Error>),
    /// The passphrase is too short, or too long.
    #[error("the passphrase of an interchange file has 12 to 512 bytes")]
    PassphraseLength,
    /// It is of a version that this crate does not know.
    #[error("the interchange file is of version {0}, which this program does not know; update it")]
    Version(u64),
    /// The passphrase does not open it, or it was altered, which cannot be told apart.
    #[error("the passphrase does not open the interchange file, or the file was altered")]
    WrongPassphrase,
}

#[derive(Serialize, Deserialize)]
struct File {
    format: String,
    version: u64,
    #[serde(with = "base64_bytes")]
    salt: [u8; 16],
    #[serde(with = "base64_bytes")]
    nonce: [u8; 12],
    #[serde(with = "base64_bytes")]
    ciphertext: Vec<u8>,
}

#[derive(Serialize, Deserialize)]
struct Keys {
    keys: Vec<Entry>,
}

fn associated(salt: &[u8], nonce: &[u8]) -> Fields {
    Fields::new(FORMAT).number(VERSION).bytes(salt).bytes(nonce)
}

fn derive(passphrase: &str, salt: &[u8]) -> Result<Zeroizing<[u8; 32]>, CryptoError> {
    let (n, r, p) = SCRYPT;
    scrypt(passphrase.as_bytes(), salt, n, r, p)
}

/// Seals keys under a passphrase: the text of an interchange file.
pub fn seal(
    entries: &[Entry],
    passphrase: &str,
    entropy: &mut dyn Entropy,
) -> Result<String, InterchangeError> {
    if !(SHORTEST_PASSPHRASE..=LONGEST_PASSPHRASE).contains(&passphrase.len()) {
        return Err(InterchangeError::PassphraseLength);
    }
    let (salt, nonce) = (random::<16>(entropy)?, random::<12>(entropy)?);
    // Room for all of it, so that no open key is left behind by a reallocation.
    let mut plain = Zeroizing::new(Vec::with_capacity(1024 + entries.len() * 1024));
    serde_json::to_writer(&mut *plain, &Keys { keys: entries.to_vec() })
        .map_err(|error| InterchangeError::Malformed(Some(error)))?;
    let cipher = Gcm::new(&*derive(passphrase, &salt)?)?;
    let tag = cipher.seal(&nonce, associated(&salt, &nonce).as_slice(), &mut plain)?;
    let ciphertext = [plain.as_slice(), &tag].concat();
    let file = File { format: FORMAT.to_owned(), version: VERSION, salt, nonce, ciphertext };
    serde_json::to_string(&file).map_err(|error| InterchangeError::Malformed(Some(error)))
}

/// Whether a text has the form of an interchange file: all that can be said without the passphrase.
pub fn check(text: &str) -> Result<(), InterchangeError> {
    read(text).map(drop)
}

fn read(text: &str) -> Result<File, InterchangeError> {
    let malformed = |error| InterchangeError::Malformed(Some(error));
    if text.len() > MAX_FILE {
        return Err(InterchangeError::Malformed(None));
    }
    let head: serde_json::Value = serde_json::from_str(text).map_err(malformed)?;
    if head.get("format").and_then(serde_json::Value::as_str) != Some(FORMAT) {
        return Err(InterchangeError::Malformed(None));
    }
    match head.get("version").and_then(serde_json::Value::as_u64) {
        Some(VERSION) => {}
        Some(other) => return Err(InterchangeError::Version(other)),
        None => return Err(InterchangeError::Malformed(None)),
    }
    serde_json::from_value(head).map_err(malformed)
}

/// Opens an interchange file. Whether each entry's id commits to its key is for [`Entry::open`] to say.
pub fn open(text: &str, passphrase: &str) -> Result<Vec<Entry>, InterchangeError> {
    let file = read(text)?;
    let (ciphertext, tag) =
        file.ciphertext.split_last_chunk::<TAG>().ok_or(InterchangeError::Malformed(None))?;
    let mut plain = Zeroizing::new(ciphertext.to_vec());
    Gcm::new(&*derive(passphrase, &file.salt)?)?
        .open(&file.nonce, associated(&file.salt, &file.nonce).as_slice(), &mut plain, tag)
        .map_err(|_| InterchangeError::WrongPassphrase)?;
    let keys: Keys =
        serde_json::from_slice(&plain).map_err(|error| InterchangeError::Malformed(Some(error)))?;
    Ok(keys.keys)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encoding::hex;
    use crate::entropy::tests::SeededEntropy;

    const PASSPHRASE: &str = "a passphrase for moving";
    const VECTOR: &str = include_str!("../vectors/interchange.json");

    fn entry() -> Entry {
        let key = ResourceKey::from_bytes(&[7; 32]).unwrap();
        let origin = Origin {
            user_id: "@alice:example.org".to_owned(),
            keybox_id: "ALICEBOX".to_owned(),
            created_at: 1_790_000_000_000,
            audience: "A".repeat(43),
            signature: vec![1; 64],
        };
        Entry {
            algorithm: crate::suite::V1.to_owned(),
            room_id: "!room:example.org".to_owned(),
            key_id: key.id("!room:example.org"),
            key: key.to_hex().to_string(),
            origin,
        }
    }

    #[test]
    fn the_vector_is_what_is_written_and_read() {
        let vector: serde_json::Value = serde_json::from_str(VECTOR).unwrap();
        let text = |name: &str| vector[name].as_str().unwrap().to_owned();
        assert_eq!(text("passphrase"), PASSPHRASE);
        let sealed = seal(&[entry()], PASSPHRASE, &mut SeededEntropy::new("interchange")).unwrap();
        assert_eq!(sealed, text("file"), "{sealed}");
        let file: File = serde_json::from_str(&sealed).unwrap();
        assert_eq!(hex(&*derive(PASSPHRASE, &file.salt).unwrap()), text("key"));
        assert_eq!(hex(associated(&file.salt, &file.nonce).as_slice()), text("associated"));
        assert_eq!(serde_json::to_string(&Keys { keys: vec![entry()] }).unwrap(), text("plaintext"));
        assert_eq!(open(&sealed, PASSPHRASE).unwrap(), [entry()]);
        check(&sealed).unwrap();
        assert!(matches!(check("[]"), Err(InterchangeError::Malformed(_))));
    }

    #[test]
    fn what_does_not_open_says_why() {
        let mut entropy = SeededEntropy::new("interchange");
        let sealed = seal(&[entry()], PASSPHRASE, &mut entropy).unwrap();
        assert!(matches!(seal(&[], "too short", &mut entropy), Err(InterchangeError::PassphraseLength)));
        assert!(matches!(open(&sealed, "another passphrase"), Err(InterchangeError::WrongPassphrase)));
        assert!(matches!(open("{}", PASSPHRASE), Err(InterchangeError::Malformed(_))));
        assert!(matches!(open("-----BEGIN", PASSPHRASE), Err(InterchangeError::Malformed(_))));
        let later = sealed.replacen("\"version\":1", "\"version\":2", 1);
        assert!(matches!(open(&later, PASSPHRASE), Err(InterchangeError::Version(2))));
        let too_large = sealed.clone() + &" ".repeat(MAX_FILE + 1 - sealed.len());
        assert!(matches!(check(&too_large), Err(InterchangeError::Malformed(None))));
        let mut altered: File = serde_json::from_str(&sealed).unwrap();
        altered.ciphertext[0] ^= 1;
        let altered = serde_json::to_string(&altered).unwrap();
        assert!(matches!(open(&altered, PASSPHRASE), Err(InterchangeError::WrongPassphrase)));
    }

    #[test]
    fn an_id_that_does_not_commit_to_its_key_is_seen_and_no_key_is_shown() {
        assert!(entry().open().is_some());
        let mut other = entry();
        other.room_id.push('x');
        assert!(other.open().is_none());
        let mut other = entry();
        other.key = "00".repeat(32);
        assert!(other.open().is_none());
        assert!(!format!("{:?}", entry()).contains("0707"));
    }
}
