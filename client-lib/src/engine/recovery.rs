//! The backup that a recovery key opens (`profiles/keybox/SPEC.md`, section 17): this KeyBox adds to it, and opens nothing of it.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use zeroize::Zeroize as _;

use keystead_keybox::Entropy;
use keystead_keybox::encoding::{base64, from_base64};
use keystead_keybox::recovery::{BackupWriter, SealEntryError};

use super::exchange::EngineError;
use super::{Engine, KeyRef, Notice, Outgoing, RecordName};

/// Resource keys of one upload.
const KEYS_PER_UPLOAD: usize = 100;

/// The backup that this KeyBox adds to.
#[derive(Serialize, Deserialize)]
pub(super) struct RecoveryRecord {
    version: String,
    /// Base64 of [`BackupWriter::to_bytes`].
    writer: String,
}

impl Drop for RecoveryRecord {
    fn drop(&mut self) {
        self.writer.zeroize();
    }
}

impl std::fmt::Debug for RecoveryRecord {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("RecoveryRecord").field("version", &self.version).finish_non_exhaustive()
    }
}

impl Engine {
    /// The version of the backup that this KeyBox adds to, if it does.
    pub fn backup_version(&self) -> Option<&str> {
        self.recovery.as_ref().map(|record| record.version.as_str())
    }

    /// Adds all resource keys, those that are here and those to come, to a version of the account's backup from now on.
    pub fn keep_backup(&mut self, version: &str, writer: &BackupWriter) {
        let writer = base64(&writer.to_bytes());
        self.recovery = Some(RecoveryRecord { version: version.to_owned(), writer });
        for (key, record) in &mut self.resource_keys {
            if std::mem::take(&mut record.backed_up) {
                self.changed.insert(RecordName::Key(key.clone()));
            }
        }
        self.changed.insert(RecordName::Recovery);
    }

    /// Adds to no backup any more.
    pub fn stop_backup(&mut self) {
        self.recovery = None;
        self.changed.insert(RecordName::Recovery);
    }

    /// What is to be added to the backup: some of the keys that are not in it yet.
    pub(super) fn outgoing_backup(
        &mut self,
        entropy: &mut dyn Entropy,
    ) -> Result<Option<Outgoing>, EngineError> {
        let Some(record) = &self.recovery else { return Ok(None) };
        let version = record.version.clone();
        let bytes = from_base64(&record.writer).map(zeroize::Zeroizing::new).ok();
        let Some(writer) = bytes.and_then(|bytes| BackupWriter::from_bytes(&bytes)) else {
            return Ok(None);
        };
        let missing: Vec<_> = self.resource_keys.iter().filter(|(_, record)| !record.backed_up).collect();
        let missing: Vec<_> =
            missing.into_iter().map(|(key, record)| (key.clone(), record.origin_verified)).collect();
        let (mut keys, mut rooms) = (Vec::new(), Map::new());
        for (key, is_verified) in missing {
            // One that does not open any more is of no use to anybody.
            let Some(entry) = self.export_entry(&key) else { continue };
            let sealed = writer.seal(&self.own.user_id, &entry, entropy).map_err(|error| match error {
                SealEntryError::Crypto(error) => EngineError::Crypto(error),
                _ => EngineError::OwnKeys,
            })?;
            let room = rooms.entry(&key.room_id).or_insert_with(|| json!({ "sessions": {} }));
            if let Some(sessions) = room.get_mut("sessions").and_then(Value::as_object_mut) {
                let entry = json!({
                    "first_message_index": 0, "forwarded_count": 0, "is_verified": is_verified, "session_data": sealed,
                });
                sessions.insert(key.key_id.to_string(), entry);
            }
            keys.push(key);
            if keys.len() >= KEYS_PER_UPLOAD {
                break;
            }
        }
        Ok((!keys.is_empty()).then_some(Outgoing::BackUpKeys { version, rooms, keys }))
    }

    /// Resource keys are in a version of the backup.
    pub fn backed_up(&mut self, version: &str, keys: &[KeyRef]) {
        if self.backup_version() != Some(version) {
            return;
        }
        for key in keys {
            if let Some(record) = self.resource_keys.get_mut(key) {
                record.backed_up = true;
                self.changed.insert(RecordName::Key(key.clone()));
            }
        }
    }

    /// The server has refused to add to the backup: it was removed, or replaced, elsewhere. This KeyBox adds to none any more.
    pub fn backup_refused(&mut self, errcode: &str) -> Notice {
        self.stop_backup();
        Notice::BackupEnded { errcode: errcode.to_owned() }
    }
}
