//! A first line as a recovery key, the others as the head and the entries of a backup: nothing is taken that was not made with the key.
#![no_main]

use std::sync::LazyLock;

use keystead_keybox::interchange::Entry;
use keystead_keybox::recovery::{BackupHead, BackupWriter, RecoveryKey, RecoveryKeyError, SealedEntry};
use keystead_keybox::resource_key::ResourceKey;
use keystead_keybox::{CryptoError, Entropy, OpensslEntropy, sha256};
use libfuzzer_sys::fuzz_target;
use serde::{Serialize, de::DeserializeOwned};

const USER: &str = "@a:x";
static KEY: LazyLock<RecoveryKey> = LazyLock::new(|| RecoveryKey::generate(&mut OpensslEntropy).unwrap());
static WRITER: LazyLock<BackupWriter> = LazyLock::new(|| KEY.writer().unwrap());

/// What the input says is drawn.
struct Chosen([u8; 32]);

impl Entropy for Chosen {
    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), CryptoError> {
        for chunk in buffer.chunks_mut(32) {
            chunk.copy_from_slice(&self.0[..chunk.len()]);
            self.0 = sha256(&self.0);
        }
        Ok(())
    }
}

fuzz_target!(|data: &[u8]| {
    match BackupWriter::from_bytes(data) {
        Some(writer) => assert_eq!(*writer.to_bytes(), data),
        None => assert_ne!(data.len(), 64),
    }
    let Ok(text) = std::str::from_utf8(data) else { return };
    let mut lines = text.lines();
    let first = lines.next().unwrap_or_default();
    text_of_a_key(first);
    slips(data);
    for line in std::iter::once(first).chain(lines) {
        head(line);
        sealed(line);
        entry(line);
    }
});

/// Digits and checksum are what is read, however they are written.
fn text_of_a_key(text: &str) {
    let digits: String = text.chars().filter(|c| !c.is_whitespace() && *c != '-').collect();
    let is_key = digits.len() == 68 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    match RecoveryKey::from_text(text) {
        Ok(key) => {
            assert_eq!(key.to_text().replace(' ', ""), digits.to_ascii_lowercase());
            assert_eq!(format!("{key:?}"), "RecoveryKey(redacted)");
        }
        Err(RecoveryKeyError::Mistyped) => assert!(is_key),
        Err(RecoveryKeyError::Malformed) => assert!(!is_key),
    }
}

/// A key of any value is read back; with a digit altered it is not.
fn slips(data: &[u8]) {
    let key = RecoveryKey::generate(&mut Chosen(sha256(data))).unwrap();
    let text = key.to_text();
    assert_eq!(*RecoveryKey::from_text(&text).unwrap().to_text(), *text);
    let place = usize::from(data.first().copied().unwrap_or_default()) % text.len();
    let mut slipped = text.as_bytes().to_vec();
    slipped[place] = match slipped[place] {
        b' ' => return,
        b'0' => b'f',
        _ => b'0',
    };
    // Two bytes of checksum: a slip in 65,536 is not noticed, and it is none in the checksum.
    if let Ok(other) = RecoveryKey::from_text(std::str::from_utf8(&slipped).unwrap()) {
        assert!(place < 80 && *other.to_text() != *text);
    }
}

fn one_text<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(value: &T) {
    let again: T = serde_json::from_value(serde_json::to_value(value).unwrap()).unwrap();
    assert_eq!(again, *value);
}

fn head(line: &str) {
    let Ok(mut head) = serde_json::from_str::<BackupHead>(line) else { return };
    one_text(&head);
    assert!(!WRITER.is_of(USER, &head), "a head that nobody made");
    // With our own public key, as a server can: the MAC still is not ours.
    head.public_key = WRITER.head(USER).public_key;
    assert!(!WRITER.is_of(USER, &head), "a head without the recovery key");
    head.mac = WRITER.head(USER).mac;
    assert!(WRITER.is_of(USER, &head) && !WRITER.is_of("@b:x", &head));
}

fn sealed(line: &str) {
    let Ok(sealed) = serde_json::from_str::<SealedEntry>(line) else { return };
    one_text(&sealed);
    let id = ResourceKey::from_bytes(&[7; 32]).unwrap().id("!r:x");
    assert!(KEY.open(USER, ("!r:x", &id), &sealed).is_err());
}

/// What a KeyBox seals opens as it was, in its place and for its user only.
fn entry(line: &str) {
    let Ok(entry) = serde_json::from_str::<Entry>(line) else { return };
    let sealed = WRITER.seal(USER, &entry, &mut Chosen(sha256(line.as_bytes()))).unwrap();
    let place = (&*entry.room_id, &entry.key_id);
    assert_eq!(KEY.open(USER, place, &sealed).unwrap(), entry);
    assert!(KEY.open("@b:x", place, &sealed).is_err());
    let elsewhere = format!("{}x", entry.room_id);
    assert!(KEY.open(USER, (&elsewhere, &entry.key_id), &sealed).is_err());
}
