//! `keys.pem`: the private keys, and who keeps the passphrase that opens them.
//!
//! Both are one file, so that a crash cannot leave the one without the other: a line of text, which every reader of PEM passes over
//! (RFC 7468, section 2), and the blocks. No line means that the owner keeps the passphrase.

use std::path::Path;

use keystead_keybox::Entropy;
use keystead_keybox::key_set::PrivateKeySet;
use keystead_keybox::sealed_keys::{self, SealedKeysError};

use super::files::{flush_folder, read, replace};
use super::{Account, StoreError};

pub(super) const FILE: &str = "keys.pem";
const KEPT: &str = "Passphrase: kept by the homeserver";
const TO_BE_DESTROYED: &str = "Passphrase: kept by its owner; the homeserver is to destroy the one before";
const BEGIN: &str = "-----BEGIN ";

/// Who keeps the passphrase of the private keys (`profiles/keybox/SPEC.md`, section 22).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PassphraseMode {
    /// *Advanced mode*: its owner, and nobody else.
    Advanced,
    /// *Normal mode*: the homeserver, which gives it to whoever logs in with the account's password.
    Normal,
}

/// What the first line of the file says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keeper {
    Homeserver,
    Owner,
    /// The owner, but the homeserver may still have the passphrase of before.
    OwnerNow,
}

impl Keeper {
    pub(crate) fn mode(self) -> PassphraseMode {
        match self {
            Self::Homeserver => PassphraseMode::Normal,
            Self::Owner | Self::OwnerNow => PassphraseMode::Advanced,
        }
    }

    fn line(self) -> Option<&'static str> {
        match self {
            Self::Homeserver => Some(KEPT),
            Self::Owner => None,
            Self::OwnerNow => Some(TO_BE_DESTROYED),
        }
    }

    fn of(text: &str) -> Option<Self> {
        match text.lines().next().unwrap_or_default() {
            KEPT => Some(Self::Homeserver),
            TO_BE_DESTROYED => Some(Self::OwnerNow),
            line if line.starts_with(BEGIN) => Some(Self::Owner),
            _ => None,
        }
    }
}

/// Reads the file: who keeps the passphrase, and the blocks.
fn load(folder: &Path) -> Result<(Keeper, String), StoreError> {
    let path = folder.join(FILE);
    let missing = || StoreError::Io { path: path.clone(), source: std::io::ErrorKind::NotFound.into() };
    let text = read(&path)?.ok_or_else(missing)?;
    let text = String::from_utf8(text)
        .map_err(|source| StoreError::Corrupt { path: path.clone(), source: source.into() })?;
    let unknown = || StoreError::Corrupt { path: path.clone(), source: "its first line is not known".into() };
    Ok((Keeper::of(&text).ok_or_else(unknown)?, text))
}

/// Puts the file in the place of the one before. When it returns, that survives a crash.
fn store(folder: &Path, keeper: Keeper, blocks: &str) -> Result<(), StoreError> {
    let text = match keeper.line() {
        Some(line) => format!("{line}\n{blocks}"),
        None => blocks.to_owned(),
    };
    replace(&folder.join(FILE), text.as_bytes())?;
    flush_folder(folder)
}

pub(super) fn keeper(folder: &Path) -> Result<Keeper, StoreError> {
    Ok(load(folder)?.0)
}

/// Seals the keys and stores them. Takes about half a second.
pub(super) fn seal(
    folder: &Path,
    keys: &PrivateKeySet,
    passphrase: &str,
    keeper: Keeper,
    entropy: &mut dyn Entropy,
) -> Result<(), StoreError> {
    let blocks = sealed_keys::seal(keys, passphrase, entropy).map_err(StoreError::Keys)?;
    store(folder, keeper, &blocks)
}

pub(super) fn open(folder: &Path, account: &Account, passphrase: &str) -> Result<PrivateKeySet, StoreError> {
    let (_, text) = load(folder)?;
    sealed_keys::open(&text, passphrase, &account.user_id, &account.keybox_id).map_err(StoreError::Keys)
}

/// Who keeps the passphrase, if it is this one.
pub(super) fn check(folder: &Path, passphrase: &str) -> Result<Keeper, StoreError> {
    let (keeper, text) = load(folder)?;
    let wrong = StoreError::Keys(SealedKeysError::WrongPassphrase);
    if sealed_keys::opens(&text, passphrase) { Ok(keeper) } else { Err(wrong) }
}

/// Says who keeps the passphrase; it stays the same.
pub(super) fn set_keeper(folder: &Path, keeper: Keeper) -> Result<(), StoreError> {
    let (_, text) = load(folder)?;
    let blocks = text.find(BEGIN).and_then(|start| text.get(start..)).unwrap_or_default();
    store(folder, keeper, blocks)
}
