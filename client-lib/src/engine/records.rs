//! The KeyBox's state as records to store: one for each key, each room, and each of the rest.

use zeroize::Zeroizing;

use keystead_keybox::key_set::{KeySetError, PrivateKeySet};

use super::{Engine, KeyRef, Room};

/// One thing to store, under its name. Seal it: it holds messages and whom they are from.
pub struct Record {
    /// Its name; a later record of the same name replaces it.
    pub name: String,
    /// Its JSON.
    pub json: Zeroizing<Vec<u8>>,
}

impl std::fmt::Debug for Record {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Record").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Why records could not be written or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// A record is not what its name says.
    #[error("the record {name} cannot be read")]
    Corrupt {
        /// Its name.
        name: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The key set itself is not valid.
    #[error("the KeyBox's own keys are not valid")]
    Keys(#[from] KeySetError),
}

/// Records in the order in which they are stored: what is needed to read comes first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum RecordName {
    /// A finished part of the log.
    LogPart(u64),
    /// The log's newest part, and how far it reaches. Before what the entries tell of: a crash between the two makes that happen
    /// again, and the log knows it then.
    Log,
    Key(KeyRef),
    Room(String),
    Directory,
    Identity,
    Policies,
    Recovery,
    Exchange,
}

impl RecordName {
    fn text(&self) -> String {
        match self {
            Self::LogPart(part) => super::log::part_name(*part),
            Self::Log => super::log::NAME.to_owned(),
            Self::Key(key) => format!("key {} {}", key.room_id, key.key_id),
            Self::Room(room_id) => format!("room {room_id}"),
            Self::Directory => "directory".to_owned(),
            Self::Exchange => "exchange".to_owned(),
            Self::Identity => "identity".to_owned(),
            Self::Policies => "policies".to_owned(),
            Self::Recovery => "recovery".to_owned(),
        }
    }
}

impl Engine {
    /// What has changed since the last call, to be stored in this order.
    pub fn take_changes(&mut self) -> Result<Vec<Record>, RecordError> {
        let changed = std::mem::take(&mut self.changed);
        let mut records = Vec::with_capacity(changed.len());
        for name in &changed {
            let json = match name {
                RecordName::LogPart(part) => self.log.take_part(*part).map(|part| serde_json::to_vec(&part)),
                RecordName::Log => Some(serde_json::to_vec(&self.log)),
                RecordName::Key(key) => self.resource_keys.get(key).map(serde_json::to_vec),
                RecordName::Room(room_id) => self.rooms.get(room_id).map(serde_json::to_vec),
                RecordName::Directory => Some(serde_json::to_vec(&self.directory)),
                RecordName::Exchange => Some(serde_json::to_vec(&self.exchange)),
                RecordName::Identity => Some(serde_json::to_vec(&self.identity)),
                RecordName::Policies => Some(serde_json::to_vec(&self.policies)),
                RecordName::Recovery => Some(serde_json::to_vec(&self.recovery)),
            };
            if let Some(json) = json {
                let json = json.map_err(|source| RecordError::Corrupt { name: name.text(), source })?;
                records.push(Record { name: name.text(), json: Zeroizing::new(json) });
            }
        }
        Ok(records)
    }

    /// A KeyBox as it was when `records` were stored. Records of unknown names are left alone.
    pub fn load(keys: PrivateKeySet, records: &[Record]) -> Result<Self, RecordError> {
        let mut engine = Self::new(keys)?;
        for record in records {
            let corrupt = |source| RecordError::Corrupt { name: record.name.clone(), source };
            match record.name.split(' ').next() {
                Some("key") => {
                    let key: super::KeyRecord = serde_json::from_slice(&record.json).map_err(corrupt)?;
                    engine.resource_keys.insert(key.key.clone(), key);
                }
                Some("room") => {
                    let mut room: Room = serde_json::from_slice(&record.json).map_err(corrupt)?;
                    room.bound_rotation();
                    engine.rooms.insert(room.room_id.clone(), room);
                }
                Some("directory") => {
                    engine.directory = serde_json::from_slice(&record.json).map_err(corrupt)?
                }
                Some(super::log::NAME) => {
                    engine.log = serde_json::from_slice(&record.json).map_err(corrupt)?;
                }
                Some("exchange") => {
                    engine.exchange = serde_json::from_slice(&record.json).map_err(corrupt)?
                }
                Some("identity") => {
                    engine.identity = serde_json::from_slice(&record.json).map_err(corrupt)?
                }
                Some("policies") => {
                    engine.policies = serde_json::from_slice(&record.json).map_err(corrupt)?
                }
                Some("recovery") => {
                    engine.recovery = serde_json::from_slice(&record.json).map_err(corrupt)?
                }
                _ => {}
            }
        }
        engine.changed.clear();
        Ok(engine)
    }
}
