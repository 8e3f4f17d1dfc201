//! Which stream shard a room or a user belongs to.

use ruma::{RoomId, UserId};

/// How the streams of a database are cut: fixed when it is created.
///
/// Room shards have the numbers `0..rooms`, user shards follow them.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Shards {
    /// How many room shards there are, and as many user shards.
    pub rooms: u16,
}

/// The number of a stream shard.
pub type Shard = i16;

impl Shards {
    /// The shard of a room.
    pub fn of_room(self, room_id: &RoomId) -> Shard {
        self.bucket(room_id.as_str())
    }

    /// The shard of what concerns one user alone: to-device messages, account data, private receipts.
    pub fn of_user(self, user_id: &UserId) -> Shard {
        self.first_user_shard() + self.bucket(user_id.as_str())
    }

    /// Whether the shard is one of rooms.
    pub fn is_room_shard(self, shard: Shard) -> bool {
        shard < self.first_user_shard()
    }

    /// All shards, rooms first.
    pub fn all(self) -> impl Iterator<Item = Shard> {
        0..self.first_user_shard().saturating_mul(2)
    }

    /// The shards of rooms.
    pub fn room_shards(self) -> impl Iterator<Item = Shard> {
        0..self.first_user_shard()
    }

    fn first_user_shard(self) -> Shard {
        Shard::try_from(self.rooms).unwrap_or(Shard::MAX)
    }

    fn bucket(self, id: &str) -> Shard {
        let bucket = fnv1a(id.as_bytes()) % u64::from(self.rooms.max(1));
        Shard::try_from(bucket).unwrap_or_default()
    }
}

/// FNV-1a, 64 bits: it must give the same number on every machine and in every version, for ever.
///
/// <http://www.isthe.com/chongo/tech/comp/fnv/>
pub(crate) fn fnv1a(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use ruma::{room_id, user_id};

    use super::*;

    #[test]
    fn the_hash_is_the_published_one() {
        assert_eq!(fnv1a(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(b"foobar"), 0x8594_4171_f739_67e8);
    }

    #[test]
    fn rooms_and_users_have_shards_of_their_own() {
        let shards = Shards { rooms: 8 };
        assert!(shards.is_room_shard(shards.of_room(room_id!("!a:b"))));
        assert!(!shards.is_room_shard(shards.of_user(user_id!("@a:b"))));
        assert_eq!(shards.all().count(), 16);
    }
}
