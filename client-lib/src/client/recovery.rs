//! The recovery key: resource keys come back after all KeyBoxes are lost (`profiles/keybox/SPEC.md`, section 17).

use serde::Deserialize as _;
use zeroize::Zeroizing;

use keystead_keybox::OpensslEntropy;
use keystead_keybox::interchange::Entry;
use keystead_keybox::recovery::{ALGORITHM, BackupHead, RecoveryKey, RecoveryKeyError, SealedEntry};
use keystead_keybox::resource_key::ResourceKeyId;

use super::{Client, ClientError};
use crate::api::Backup;
use crate::clock::now_ms;
use crate::engine::{Imported, KeyRef};

/// Why there is nothing to make, to restore or to remove.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecoveryError {
    /// The account has a recovery key already.
    #[error(
        "the account has a recovery key already: restore with it here, or, if it is lost, remove it first (keybox recovery-key remove)"
    )]
    Exists,
    /// The account's key backup is another program's.
    #[error("another program keeps the account's key backup ({0}); an account has only one")]
    Foreign(String),
    /// The text is not a recovery key.
    #[error(transparent)]
    Key(#[from] RecoveryKeyError),
    /// The account has no recovery key.
    #[error("the account has no recovery key")]
    None,
    /// The backup is of another recovery key, or of a server that invents one.
    #[error("the backup at the homeserver is not of this recovery key")]
    OtherKey,
}

/// Whether there is a recovery key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecoveryStatus {
    /// How many resource keys the homeserver says are in the account's backup; `None` if it has none.
    pub backed_up: Option<u64>,
    /// Whether this KeyBox adds to it.
    pub kept_here: bool,
}

impl Client {
    /// Whether the account has a recovery key, as the homeserver says, and whether this KeyBox adds to its backup.
    pub async fn recovery_status(&mut self) -> Result<RecoveryStatus, ClientError> {
        let _lock = self.begin().await?;
        let backup = self.recovery_backup().await?;
        let kept = self.engine.backup_version();
        Ok(RecoveryStatus {
            kept_here: backup.as_ref().is_some_and(|backup| Some(backup.version.as_str()) == kept),
            backed_up: backup.map(|backup| backup.count),
        })
    }

    /// Makes a recovery key, and backs up all resource keys for it, those to come too. Returns what a person has to write down: it is
    /// stored nowhere.
    ///
    /// # Errors
    /// [`RecoveryError::Exists`], [`RecoveryError::Foreign`]; the homeserver's and the store's. If it fails after the backup was made,
    /// [`Self::remove_recovery_key`] clears up.
    pub async fn create_recovery_key(&mut self) -> Result<Zeroizing<String>, ClientError> {
        let _lock = self.begin().await?;
        if self.recovery_backup().await?.is_some() {
            return Err(RecoveryError::Exists.into());
        }
        let key = RecoveryKey::generate(&mut OpensslEntropy)?;
        let writer = key.writer()?;
        let head = writer.head(&self.account().user_id);
        let version = self.api.create_backup(ALGORITHM, &head).await?;
        self.engine.keep_backup(&version, &writer);
        self.flush().await?;
        Ok(key.to_text())
    }

    /// Takes in all resource keys of the account's backup, for reading, and adds to it from now on.
    ///
    /// # Errors
    /// [`RecoveryError::Key`], [`RecoveryError::None`], [`RecoveryError::OtherKey`]; the homeserver's and the store's.
    pub async fn restore(&mut self, recovery_key: &str) -> Result<Imported, ClientError> {
        let key = RecoveryKey::from_text(recovery_key).map_err(RecoveryError::from)?;
        let _lock = self.begin().await?;
        let backup = self.recovery_backup().await?.ok_or(RecoveryError::None)?;
        let (writer, user_id) = (key.writer()?, self.account().user_id.clone());
        let head = BackupHead::deserialize(&backup.auth_data);
        if !head.is_ok_and(|head| writer.is_of(&user_id, &head)) {
            return Err(RecoveryError::OtherKey.into());
        }
        let (mut entries, mut refused): (Vec<Entry>, Vec<KeyRef>) = Default::default();
        for (room_id, room) in self.api.backed_up_keys(&backup.version).await? {
            for (key_id, session) in room.sessions {
                let Ok(key_id) = ResourceKeyId::try_from(key_id) else { continue };
                let sealed = SealedEntry::deserialize(&session.session_data).ok();
                let opened = sealed.and_then(|sealed| key.open(&user_id, (&room_id, &key_id), &sealed).ok());
                match opened {
                    Some(entry) => entries.push(entry),
                    None => refused.push(KeyRef { room_id: room_id.clone(), key_id }),
                }
            }
        }
        let entropy = &mut OpensslEntropy;
        let mut imported = self.engine.import_keys(&entries, now_ms(), entropy, &mut self.notices)?;
        let restored: Vec<_> = imported.new.iter().chain(&imported.known).cloned().collect();
        imported.refused.extend(refused.into_iter().map(|key| (key, "it does not open, or was altered")));
        self.engine.keep_backup(&backup.version, &writer);
        self.engine.backed_up(&backup.version, &restored);
        self.flush().await?;
        Ok(imported)
    }

    /// Has the homeserver delete the backup, and adds to none any more. Other KeyBoxes stop when they next would.
    ///
    /// # Errors
    /// [`RecoveryError::None`], [`RecoveryError::Foreign`]; the homeserver's and the store's.
    pub async fn remove_recovery_key(&mut self) -> Result<(), ClientError> {
        let _lock = self.begin().await?;
        let backup = self.recovery_backup().await?;
        if let Some(backup) = &backup {
            self.api.delete_backup(&backup.version).await?;
        }
        self.engine.stop_backup();
        self.commit()?;
        backup.map(drop).ok_or_else(|| RecoveryError::None.into())
    }

    /// The account's backup, if it is one of the profile's.
    async fn recovery_backup(&self) -> Result<Option<Backup>, ClientError> {
        match self.api.backup().await? {
            Some(backup) if backup.algorithm != ALGORITHM => {
                Err(RecoveryError::Foreign(backup.algorithm).into())
            }
            backup => Ok(backup),
        }
    }
}
