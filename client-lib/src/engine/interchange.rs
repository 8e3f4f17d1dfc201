//! Resource keys out of this KeyBox and into it, by an interchange file.

use std::collections::BTreeSet;

use keystead_keybox::Entropy;
use keystead_keybox::interchange::Entry;

use super::exchange::EngineError;
use super::resource_keys::KeyRecord;
use super::{Engine, KeyBoxAddress, KeyRef, Notice};

/// What came of an import.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Imported {
    /// Keys that were not here.
    pub new: Vec<KeyRef>,
    /// Keys that were here already, just so.
    pub known: Vec<KeyRef>,
    /// Keys that are here with another suite or maker than in the file. What is here was kept.
    pub conflicts: Vec<KeyRef>,
    /// Entries that were refused, and why.
    pub refused: Vec<(KeyRef, &'static str)>,
}

impl Engine {
    /// The open resource keys of some rooms, or with `None` of all, for an interchange file. Whoever has them reads what they sealed.
    pub fn export_keys(&mut self, rooms: Option<&[String]>) -> Vec<Entry> {
        let wanted = |key: &&KeyRef| rooms.is_none_or(|rooms| rooms.contains(&key.room_id));
        let keys: Vec<_> = self.resource_keys.keys().filter(wanted).cloned().collect();
        keys.into_iter().filter_map(|key| self.export_entry(&key)).collect()
    }

    /// One open resource key, with what is known of it; `None` if it is not here, or does not open any more.
    pub(super) fn export_entry(&mut self, key: &KeyRef) -> Option<Entry> {
        let open = self.open_key(key)?;
        let record = self.resource_keys.get(key)?;
        Some(Entry {
            algorithm: record.suite.clone(),
            room_id: key.room_id.clone(),
            key_id: key.key_id.clone(),
            key: open.to_hex().to_string(),
            origin: record.origin.clone(),
        })
    }

    /// Takes in keys of an interchange file, for reading: nothing is sent with them. What they open is opened.
    pub fn import_keys(
        &mut self,
        entries: &[Entry],
        now: u64,
        entropy: &mut dyn Entropy,
        notices: &mut Vec<Notice>,
    ) -> Result<Imported, EngineError> {
        let mut imported = Imported::default();
        for entry in entries {
            let key = KeyRef { room_id: entry.room_id.clone(), key_id: entry.key_id.clone() };
            if let Some(record) = self.resource_keys.get(&key) {
                let same = record.suite == entry.algorithm && record.origin == entry.origin;
                if entry.open().is_none() || !same {
                    imported.conflicts.push(key);
                } else {
                    imported.known.push(key);
                }
                continue;
            }
            match self.import_key(&key, entry, now, entropy) {
                Ok(()) => imported.new.push(key),
                Err(reason) => imported.refused.push((key, reason)),
            }
        }
        for key in &imported.new {
            self.stop_wanting(key, entropy)?;
        }
        let rooms: BTreeSet<_> = imported.new.iter().map(|key| key.room_id.clone()).collect();
        for room_id in rooms {
            self.retry_waiting(&room_id, now, entropy, notices);
        }
        Ok(imported)
    }

    fn import_key(
        &mut self,
        key: &KeyRef,
        entry: &Entry,
        now: u64,
        entropy: &mut dyn Entropy,
    ) -> Result<(), &'static str> {
        let open = entry.open().ok_or("its id does not belong to its key and room")?;
        let maker = KeyBoxAddress::new(&entry.origin.user_id, &entry.origin.keybox_id);
        let origin_verified = match self.directory.find(&maker) {
            None => false,
            Some(maker) => {
                let signed = |keys| entry.origin.verify(keys, &entry.algorithm, &key.room_id, &key.key_id);
                if !maker.keys_at(entry.origin.created_at).any(|keys| signed(keys).unwrap_or(false)) {
                    return Err("it is not signed by the KeyBox that made it");
                }
                true
            }
        };
        let wrap =
            self.wrap_to_self(key, &entry.algorithm, &open, entropy).ok_or("its suite is not known")?;
        let new = KeyRecord::new(key, &entry.algorithm, wrap, entry.origin.clone(), &self.own, now);
        let record = KeyRecord { origin_verified, ..new };
        self.resource_keys.insert(key.clone(), record);
        self.open.insert(key.clone(), open);
        self.key_changed(key);
        Ok(())
    }
}
