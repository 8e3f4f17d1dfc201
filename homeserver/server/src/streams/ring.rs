//! The newest rows of one shard, in memory.

use std::{collections::VecDeque, sync::Arc};

use keystead_core::room::RoomEvent;
use keystead_store::streams::{AccountData, Receipt, ToDeviceMessage, UserChange};
use ruma::OwnedUserId;

/// What a ring holds at most, in bytes of the rows' texts and a guess at what each costs besides.
const MAX_BYTES: usize = 16 << 20;
/// What an entry costs besides its texts: ids, pointers, the allocator's rounding.
const ENTRY_OVERHEAD: usize = 400;

/// A row of a stream.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its position in the shard.
    pub position: i64,
    /// What it is.
    pub item: Item,
}

/// What a row of a stream can be.
#[derive(Clone, Debug)]
pub enum Item {
    /// An event of a room.
    Event(Arc<RoomEvent>),
    /// A read receipt.
    Receipt(Arc<Receipt>),
    /// Something about a user changed.
    UserChange(OwnedUserId, UserChange),
    /// A message to one device.
    ToDevice(Arc<ToDeviceMessage>),
    /// A user's account data.
    AccountData(Arc<AccountData>),
}

/// The newest rows of one shard: all that stand after `floor`, up to `position`.
#[derive(Debug, Default)]
pub struct Ring {
    floor: i64,
    position: i64,
    entries: VecDeque<Entry>,
    bytes: usize,
}

impl Ring {
    /// A ring that knows nothing of what happened up to `position`.
    pub fn starting_at(position: i64) -> Self {
        Self { floor: position, position, ..Self::default() }
    }

    /// How far the replica has read this shard.
    pub fn position(&self) -> i64 {
        self.position
    }

    /// The rows after one position and up to another, oldest first; `None` if the ring does not reach back so far.
    pub fn between(&self, after: i64, upto: i64) -> Option<impl DoubleEndedIterator<Item = &Entry>> {
        if after < self.floor {
            return None;
        }
        let first = self.entries.partition_point(|entry| entry.position <= after);
        let end = self.entries.partition_point(|entry| entry.position <= upto).max(first);
        Some(self.entries.range(first..end))
    }

    /// Takes in what was read: rows in order, complete up to `upto`. Rows that it has already are passed over.
    pub fn extend(&mut self, entries: Vec<Entry>, upto: i64) {
        for entry in entries {
            if entry.position > self.position {
                self.position = entry.position;
                self.bytes += size(&entry);
                self.entries.push_back(entry);
            }
        }
        self.position = self.position.max(upto);
        while self.bytes > MAX_BYTES
            && let Some(oldest) = self.entries.pop_front()
        {
            self.bytes -= size(&oldest);
            self.floor = oldest.position;
        }
    }

    /// Puts the redacted form of an event in the place of the event.
    pub fn replace_redacted(&mut self, redacted: &Arc<RoomEvent>) {
        let index = self.entries.partition_point(|entry| entry.position < redacted.position);
        if let Some(entry) = self.entries.get_mut(index)
            && entry.position == redacted.position
        {
            self.bytes -= size(entry);
            entry.item = Item::Event(redacted.clone());
            self.bytes += size(entry);
        }
    }
}

fn size(entry: &Entry) -> usize {
    ENTRY_OVERHEAD
        + match &entry.item {
            Item::Event(event) => event.pdu.content.get().len(),
            Item::ToDevice(message) => message.content.len(),
            Item::AccountData(data) => data.content.len(),
            Item::Receipt(_) | Item::UserChange(..) => 0,
        }
}

#[cfg(test)]
mod tests {
    use keystead_store::streams::UserChange;
    use ruma::owned_user_id;

    use super::*;

    fn entry(position: i64) -> Entry {
        Entry { position, item: Item::UserChange(owned_user_id!("@a:x"), UserChange::Sessions) }
    }

    fn positions(ring: &Ring, after: i64, upto: i64) -> Option<Vec<i64>> {
        ring.between(after, upto).map(|entries| entries.map(|entry| entry.position).collect())
    }

    #[test]
    fn it_answers_only_for_what_it_holds_completely() {
        let mut ring = Ring::starting_at(10);
        ring.extend(vec![entry(11), entry(13)], 14);
        assert_eq!(positions(&ring, 9, 14), None);
        assert_eq!(positions(&ring, 10, 14), Some(vec![11, 13]));
        assert_eq!(positions(&ring, 11, 12), Some(vec![]));
        assert_eq!(positions(&ring, 20, 14), Some(vec![]));
        assert_eq!(ring.position(), 14);
    }

    #[test]
    fn what_it_has_already_is_not_taken_twice() {
        let mut ring = Ring::starting_at(0);
        ring.extend(vec![entry(1), entry(2)], 2);
        ring.extend(vec![entry(2), entry(3)], 3);
        assert_eq!(positions(&ring, 0, 9), Some(vec![1, 2, 3]));
    }

    #[test]
    fn the_oldest_rows_go_when_it_is_full_and_are_then_not_answered_for() {
        let mut ring = Ring::starting_at(0);
        let count = i64::try_from(MAX_BYTES / ENTRY_OVERHEAD).unwrap() + 10;
        ring.extend((1..=count).map(entry).collect(), count);
        assert_eq!(positions(&ring, 0, count), None);
        assert!(positions(&ring, 10, count).is_some());
    }
}
