//! The encrypted store: one folder for each KeyBox.
//!
//! ```text
//! <home>/<user id>/<KeyBox id>/account.json   server, user id, KeyBox id: in the clear
//!                              keys.pem       private keys, sealed with the passphrase; who keeps that
//!                              lock           held while the records are in use
//!                              records/…      one file a record, sealed with a key derived from the private keys
//! ```
//!
//! Each file is replaced as a whole: written beside, flushed, renamed. File access blocks, for a few milliseconds.

pub(crate) mod files;
mod private_keys;

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use keystead_keybox::encoding::hex;
use keystead_keybox::key_set::PrivateKeySet;
use keystead_keybox::sealed_keys::SealedKeysError;
use keystead_keybox::vault::{NotOurs, Vault};
use keystead_keybox::{CryptoError, Entropy, sha256};

use crate::engine::Record;
use files::{folder_name, read, replace};
pub(crate) use private_keys::Keeper;
pub use private_keys::PassphraseMode;

const ACCOUNT: &str = "account.json";
const LOCK: &str = "lock";
const RECORDS: &str = "records";

/// Which KeyBox a folder is of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// The homeserver's address.
    pub server: String,
    /// The user id.
    pub user_id: String,
    /// The KeyBox id.
    pub keybox_id: String,
}

/// Why the store could not do what it was asked to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// A file is not what the store has written.
    #[error("the file {} is damaged", .path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The cryptographic library failed.
    #[error("the record could not be sealed")]
    Crypto(#[from] CryptoError),
    /// The file system failed.
    #[error("{} cannot be used", .path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The private keys could not be sealed, or opened: a wrong passphrase, above all.
    #[error("the private keys cannot be used")]
    Keys(#[source] SealedKeysError),
}

/// The store of one KeyBox, open.
#[derive(Debug)]
pub struct Store {
    folder: PathBuf,
    account: Account,
    vault: Vault,
}

/// While it lives, no other process changes the records.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// A record on disk: sealed under the name of its file, which tells nothing.
#[derive(Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
struct Sealed {
    name: String,
    json: String,
}

impl Store {
    /// The KeyBoxes under `home`, by user id and KeyBox id. A folder that does not exist has none.
    pub fn accounts(home: &Path) -> Result<Vec<Account>, StoreError> {
        let mut accounts = Vec::new();
        for user in files::folders(home)? {
            for keybox in files::folders(&user)? {
                let path = keybox.join(ACCOUNT);
                if let Some(json) = read(&path)? {
                    let account = serde_json::from_slice(&json);
                    accounts
                        .push(account.map_err(|source| StoreError::Corrupt { path, source: source.into() })?);
                }
            }
        }
        accounts.sort_by(|a: &Account, b| (&a.user_id, &a.keybox_id).cmp(&(&b.user_id, &b.keybox_id)));
        Ok(accounts)
    }

    /// Makes the folder of a new KeyBox, with its private keys sealed by the passphrase, which `mode` says who keeps. When it returns, the
    /// folder survives a crash.
    pub fn create(
        home: &Path,
        account: Account,
        keys: &PrivateKeySet,
        (passphrase, mode): (&str, PassphraseMode),
        entropy: &mut dyn Entropy,
    ) -> Result<Self, StoreError> {
        let folder = folder_of(home, &account);
        files::create_folder(&folder.join(RECORDS))?;
        let keeper = match mode {
            PassphraseMode::Advanced => Keeper::Owner,
            PassphraseMode::Normal => Keeper::Homeserver,
        };
        private_keys::seal(&folder, keys, passphrase, keeper, entropy)?;
        // Last: only with it the folder counts.
        write_account(&folder, &account)?;
        for folder in folder.ancestors().take(3) {
            files::flush_folder(folder)?;
        }
        Ok(Self { folder, account, vault: Vault::new(keys)? })
    }

    /// Opens the folder of a KeyBox with its passphrase.
    pub fn open(
        home: &Path,
        account: Account,
        passphrase: &str,
    ) -> Result<(Self, PrivateKeySet), StoreError> {
        let folder = folder_of(home, &account);
        let keys = private_keys::open(&folder, &account, passphrase)?;
        let vault = Vault::new(&keys)?;
        Ok((Self { folder, account, vault }, keys))
    }

    /// Remembers another address of the homeserver, or another pin in it, for a KeyBox; see [`crate::api::with_pin`]. When it returns, that
    /// survives a crash. Needs no passphrase: `account.json` is in the clear.
    pub fn set_server(home: &Path, account: &Account, server: String) -> Result<Account, StoreError> {
        let account = Account { server, ..account.clone() };
        let folder = folder_of(home, &account);
        write_account(&folder, &account)?;
        files::flush_folder(&folder)?;
        Ok(account)
    }

    /// Who keeps the passphrase of a KeyBox's private keys. Needs no passphrase.
    pub fn passphrase_mode(home: &Path, account: &Account) -> Result<PassphraseMode, StoreError> {
        Ok(private_keys::keeper(&folder_of(home, account))?.mode())
    }

    /// Checks that a passphrase opens the private keys as they are on disk now: another process may have changed it. Only under the lock it
    /// stays so.
    pub(crate) fn check_passphrase(&self, passphrase: &str) -> Result<Keeper, StoreError> {
        private_keys::check(&self.folder, passphrase)
    }

    /// Who keeps the passphrase, as the disk says now.
    pub(crate) fn keeper(&self) -> Result<Keeper, StoreError> {
        private_keys::keeper(&self.folder)
    }

    /// Seals the private keys with another passphrase, in place of the file before, in one step. When it returns, that survives a crash.
    pub(crate) fn reseal(
        &self,
        _lock: &Lock,
        keys: &PrivateKeySet,
        (passphrase, keeper): (&str, Keeper),
        entropy: &mut dyn Entropy,
    ) -> Result<(), StoreError> {
        private_keys::seal(&self.folder, keys, passphrase, keeper, entropy)
    }

    /// Says that somebody else keeps the passphrase, which stays the same.
    pub(crate) fn set_keeper(&self, _lock: &Lock, keeper: Keeper) -> Result<(), StoreError> {
        private_keys::set_keeper(&self.folder, keeper)
    }

    /// Whose store this is.
    pub fn account(&self) -> &Account {
        &self.account
    }

    /// Keeps other processes off the records; `None` if another one is at them now.
    pub fn try_lock(&self) -> Result<Option<Lock>, StoreError> {
        let path = self.folder.join(LOCK);
        let failed = |source| StoreError::Io { path: path.clone(), source };
        let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Lock { _file: file })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(source)) => Err(failed(source)),
        }
    }

    /// Stores records, each as a whole, in their order. When it returns they survive a crash.
    pub fn save(&self, records: &[Record], entropy: &mut dyn Entropy) -> Result<(), StoreError> {
        let folder = self.folder.join(RECORDS);
        for record in records {
            let file = file_name(&record.name);
            let path = folder.join(&file);
            let corrupt = |source: Box<dyn std::error::Error + Send + Sync>| StoreError::Corrupt {
                path: path.clone(),
                source,
            };
            let json = std::str::from_utf8(&record.json).map_err(|error| corrupt(error.into()))?;
            let sealed = Sealed { name: record.name.clone(), json: json.to_owned() };
            let plain = Zeroizing::new(serde_json::to_vec(&sealed).map_err(|error| corrupt(error.into()))?);
            replace(&path, &self.vault.seal(&file, &plain, entropy)?)?;
        }
        files::flush_folder(&folder)
    }

    /// All records.
    pub fn load(&self) -> Result<Vec<Record>, StoreError> {
        let mut records = Vec::new();
        for path in files::regular_files(&self.folder.join(RECORDS))? {
            records.extend(self.load_file(path)?);
        }
        Ok(records)
    }

    /// One record; `None` if it was never stored.
    pub fn load_one(&self, name: &str) -> Result<Option<Record>, StoreError> {
        self.load_file(self.folder.join(RECORDS).join(file_name(name)))
    }

    fn load_file(&self, path: PathBuf) -> Result<Option<Record>, StoreError> {
        let Some(sealed) = read(&path)? else { return Ok(None) };
        let file = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let plain = self
            .vault
            .open(file, &sealed)
            .map_err(|error: NotOurs| StoreError::Corrupt { path: path.clone(), source: error.into() })?;
        let mut record: Sealed = serde_json::from_slice(&plain)
            .map_err(|source| StoreError::Corrupt { path: path.clone(), source: source.into() })?;
        let (name, json) = (std::mem::take(&mut record.name), std::mem::take(&mut record.json));
        Ok(Some(Record { name, json: Zeroizing::new(json.into_bytes()) }))
    }

    /// Removes the folder with the private keys: what was sealed for this KeyBox can never be opened here again.
    pub fn destroy(self) -> Result<(), StoreError> {
        let failed = |source| StoreError::Io { path: self.folder.clone(), source };
        std::fs::remove_dir_all(&self.folder).map_err(failed)?;
        // The user's folder, if this was the last KeyBox in it.
        if let Some(user) = self.folder.parent() {
            std::fs::remove_dir(user).ok();
        }
        Ok(())
    }
}

fn folder_of(home: &Path, account: &Account) -> PathBuf {
    home.join(folder_name(&account.user_id)).join(folder_name(&account.keybox_id))
}

fn write_account(folder: &Path, account: &Account) -> Result<(), StoreError> {
    let path = folder.join(ACCOUNT);
    let json = serde_json::to_vec_pretty(account);
    let json = json.map_err(|source| StoreError::Corrupt { path: path.clone(), source: source.into() })?;
    replace(&path, &json)
}

fn file_name(record: &str) -> String {
    hex(&sha256(format!("com.trustner.keybox.record {record}").as_bytes()))
}

#[cfg(test)]
mod tests;
