//! The newest rows of one shard, in memory.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use keystead_core::room::RoomEvent;
use keystead_store::streams::{AccountData, Receipt, ToDeviceMessage, UserChange};
use ruma::{OwnedRoomId, OwnedUserId, RoomId, UserId};

use super::memberships::RoomsInShard;

/// What a ring holds at most, in bytes of the rows' texts and a guess at what each costs besides.
const MAX_BYTES: usize = 16 << 20;
/// What an entry costs besides its texts: ids, pointers, its place in the index, the allocator's rounding.
const ENTRY_OVERHEAD: usize = 450;

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
    index: Index,
    bytes: usize,
}

/// Where the rows of each room and user stand, oldest first: one that was away for long finds its own without looking at
/// everybody else's.
#[derive(Debug, Default)]
struct Index {
    rooms: HashMap<OwnedRoomId, VecDeque<i64>>,
    users: HashMap<OwnedUserId, VecDeque<i64>>,
    contacts: VecDeque<i64>,
}

/// Whose rows are asked for.
#[derive(Clone, Copy, Debug)]
pub enum Whose<'a> {
    /// Those of these rooms, in a shard of rooms.
    Rooms(&'a RoomsInShard),
    /// Those of this user, in a shard of users.
    User(&'a UserId),
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
    fn between(&self, after: i64, upto: i64) -> Option<impl ExactSizeIterator<Item = &Entry>> {
        if after < self.floor {
            return None;
        }
        let first = self.entries.partition_point(|entry| entry.position <= after);
        let end = self.entries.partition_point(|entry| entry.position <= upto).max(first);
        Some(self.entries.range(first..end))
    }

    /// Shows `each` the rows that are asked for, and all changes of device lists and presence, after one position and up to another: those
    /// of one room or user oldest first. It may be shown others' rows too, where looking at all is less work.
    ///
    /// Returns false, having shown nothing, if the ring does not reach back so far.
    pub fn visit(&self, after: i64, upto: i64, whose: Whose<'_>, mut each: impl FnMut(&Entry)) -> bool {
        let Some(all) = self.between(after, upto) else { return false };
        let subjects = match whose {
            Whose::Rooms(rooms) => rooms.count(),
            Whose::User(_) => 1,
        };
        if all.len() <= subjects {
            all.for_each(each);
            return true;
        }
        let mut show = |positions: &VecDeque<i64>| {
            let first = positions.partition_point(|position| *position <= after);
            positions
                .range(first..)
                .take_while(|position| **position <= upto)
                .filter_map(|position| self.at(*position))
                .for_each(&mut each);
        };
        show(&self.index.contacts);
        match whose {
            Whose::Rooms(rooms) => {
                rooms.iter().filter_map(|(room_id, _)| self.index.rooms.get(room_id)).for_each(show);
            }
            Whose::User(user_id) => self.index.users.get(user_id).into_iter().for_each(show),
        }
        true
    }

    /// The events of a room after a position, oldest first; `None` if the ring does not reach back so far.
    pub fn events_after(&self, room_id: &RoomId, after: i64) -> Option<Vec<Arc<RoomEvent>>> {
        if after < self.floor {
            return None;
        }
        let Some(positions) = self.index.rooms.get(room_id) else { return Some(Vec::new()) };
        let first = positions.partition_point(|position| *position <= after);
        let event_of = |entry: &Entry| match &entry.item {
            Item::Event(event) => Some(event.clone()),
            _ => None,
        };
        let entries = positions.range(first..).filter_map(|position| self.at(*position));
        Some(entries.filter_map(event_of).collect())
    }

    fn at(&self, position: i64) -> Option<&Entry> {
        let index = self.entries.partition_point(|entry| entry.position < position);
        self.entries.get(index).filter(|entry| entry.position == position)
    }

    /// Takes in what was read: rows in order, complete up to `upto`. Rows that it has already are passed over.
    pub fn extend(&mut self, entries: Vec<Entry>, upto: i64) {
        for entry in entries {
            if entry.position > self.position {
                self.position = entry.position;
                self.bytes += size(&entry);
                self.index.push(&entry);
                self.entries.push_back(entry);
            }
        }
        self.position = self.position.max(upto);
        while self.bytes > MAX_BYTES
            && let Some(oldest) = self.entries.pop_front()
        {
            self.bytes -= size(&oldest);
            self.index.pop(&oldest);
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

impl Index {
    /// Adds the newest row.
    fn push(&mut self, entry: &Entry) {
        let positions = match entry.subject() {
            Subject::Room(room_id) => self.rooms.entry(room_id.clone()).or_default(),
            Subject::User(user_id) => self.users.entry(user_id.clone()).or_default(),
            Subject::Contacts => &mut self.contacts,
        };
        positions.push_back(entry.position);
    }

    /// Takes out the oldest row.
    fn pop(&mut self, entry: &Entry) {
        fn pop_of<K: std::hash::Hash + Eq>(map: &mut HashMap<K, VecDeque<i64>>, key: &K) {
            if let Some(positions) = map.get_mut(key) {
                positions.pop_front();
                if positions.is_empty() {
                    map.remove(key);
                }
            }
        }
        match entry.subject() {
            Subject::Room(room_id) => pop_of(&mut self.rooms, room_id),
            Subject::User(user_id) => pop_of(&mut self.users, user_id),
            Subject::Contacts => drop(self.contacts.pop_front()),
        }
    }
}

/// Who looks for a row.
enum Subject<'a> {
    /// Who is in this room.
    Room(&'a OwnedRoomId),
    /// This user alone.
    User(&'a OwnedUserId),
    /// Who shares a room with a user, whichever it is.
    Contacts,
}

impl Entry {
    fn subject(&self) -> Subject<'_> {
        match &self.item {
            Item::Event(event) => Subject::Room(&event.pdu.room_id),
            Item::Receipt(receipt) if receipt.is_private() => Subject::User(&receipt.user_id),
            Item::Receipt(receipt) => Subject::Room(&receipt.room_id),
            Item::UserChange(_, UserChange::DeviceList | UserChange::Presence) => Subject::Contacts,
            Item::UserChange(user_id, _) => Subject::User(user_id),
            Item::ToDevice(message) => Subject::User(&message.user_id),
            Item::AccountData(data) => Subject::User(&data.user_id),
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
    use ruma::{owned_user_id, user_id};

    use super::*;

    fn entry(position: i64) -> Entry {
        Entry { position, item: Item::UserChange(owned_user_id!("@a:x"), UserChange::Sessions) }
    }

    fn positions(ring: &Ring, after: i64, upto: i64) -> Option<Vec<i64>> {
        ring.between(after, upto).map(|entries| entries.map(|entry| entry.position).collect())
    }

    fn of_user(position: i64, user_id: &UserId) -> Entry {
        Entry { position, item: Item::UserChange(user_id.to_owned(), UserChange::Sessions) }
    }

    fn seen_by(ring: &Ring, user_id: &UserId, after: i64, upto: i64) -> Option<Vec<i64>> {
        let mut seen = Vec::new();
        ring.visit(after, upto, Whose::User(user_id), |entry| seen.push(entry.position)).then_some(seen)
    }

    #[test]
    fn who_was_away_is_shown_its_own_rows_and_all_device_lists() {
        let (reader, other) = (user_id!("@a:x"), user_id!("@b:x"));
        let mut ring = Ring::starting_at(0);
        let mut entries: Vec<_> = (1..=100).map(|position| of_user(position, other)).collect();
        entries[9] = of_user(10, reader);
        entries[49] = of_user(50, reader);
        entries[29].item = Item::UserChange(other.to_owned(), UserChange::DeviceList);
        ring.extend(entries, 100);
        assert_eq!(seen_by(&ring, reader, 0, 100), Some(vec![30, 10, 50]));
        assert_eq!(seen_by(&ring, reader, 10, 49), Some(vec![30]));
        assert_eq!(seen_by(&ring, reader, 49, 50), Some(vec![50]));
        assert_eq!(seen_by(&ring, user_id!("@c:x"), 30, 100), Some(vec![]));
    }

    #[test]
    fn what_has_gone_is_in_no_index() {
        let mut ring = Ring::starting_at(0);
        let count = i64::try_from(MAX_BYTES / ENTRY_OVERHEAD).unwrap() + 10;
        let reader = user_id!("@reader:x");
        ring.extend(vec![of_user(1, reader), of_user(2, reader)], 2);
        ring.extend((3..=count).map(entry).collect(), count);
        assert_eq!(seen_by(&ring, reader, 0, count), None);
        assert_eq!(seen_by(&ring, reader, 20, count), Some(vec![]));
        assert!(!ring.index.users.contains_key(reader));
        let kept = ring.index.users.values().map(VecDeque::len).sum::<usize>();
        assert_eq!(kept, ring.entries.len());
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
