//! The sync token: where a reader stands in the streams that concern it.
//!
//! One position per room shard and one for the user's own shard. The token is opaque to clients, names its own
//! version and is not bound to a replica: any of them can go on from it.

use std::fmt;

use ruma::{RoomId, UserId};

use crate::shard::fnv1a;

const VERSION: &str = "k1";

/// A reader's place in every room shard and in the user's own shard.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct SyncToken {
    /// The position reached in each room shard, by shard number.
    pub rooms: Vec<i64>,
    /// The position reached in the user's own shard.
    pub user: i64,
    /// The rooms that somebody types in, as the reader was last told: who types is in no stream, so the token itself
    /// tells any replica what is news to this reader.
    pub typing: Vec<TypingSeen>,
}

/// What a reader knows of the typing in one room, as hashes: a mistaken match costs at most a typing notification.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct TypingSeen {
    /// Stands for the room.
    pub room: u32,
    /// Stands for the set of users who type.
    pub users: u32,
}

impl TypingSeen {
    /// What a reader knows who was told that these users type in a room.
    pub fn new<'a>(room_id: &RoomId, users: impl IntoIterator<Item = &'a UserId>) -> Self {
        let users = users.into_iter().fold(0, |hash: u32, user_id| hash ^ short_hash(user_id.as_str()));
        Self { room: short_hash(room_id.as_str()), users }
    }

    /// Whether this is about the room.
    pub fn is_about(&self, room_id: &RoomId) -> bool {
        self.room == short_hash(room_id.as_str())
    }
}

fn short_hash(id: &str) -> u32 {
    let hash = fnv1a(id.as_bytes());
    u32::try_from((hash >> 32) ^ (hash & 0xffff_ffff)).unwrap_or_default()
}

/// A token that this server did not give out, or that was damaged on the way.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("This is not a token of this server")]
pub struct InvalidToken;

impl SyncToken {
    /// Reads a token.
    ///
    /// `room_shards` is the number of room shards of the database.
    ///
    /// # Errors
    /// It has another version, another number of shards, or a position that is not a number.
    pub fn parse(token: &str, room_shards: usize) -> Result<Self, InvalidToken> {
        let (positions, typing) = token.split_once('~').map_or((token, None), |(a, b)| (a, Some(b)));
        let mut parts = positions.split('_');
        if parts.next() != Some(VERSION) {
            return Err(InvalidToken);
        }
        let mut positions = parts.map(parse_position).collect::<Result<Vec<_>, _>>()?;
        let user = positions.pop().ok_or(InvalidToken)?;
        if positions.len() != room_shards {
            return Err(InvalidToken);
        }
        let typing = typing.map_or(Ok(Vec::new()), |seen| seen.split('.').map(parse_typing).collect())?;
        Ok(Self { rooms: positions, user, typing })
    }
}

impl fmt::Display for SyncToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(VERSION)?;
        for position in self.rooms.iter().chain([&self.user]) {
            write!(f, "_{position:x}")?;
        }
        for (index, seen) in self.typing.iter().enumerate() {
            write!(f, "{}{:08x}{:08x}", if index == 0 { '~' } else { '.' }, seen.room, seen.users)?;
        }
        Ok(())
    }
}

/// A place in one room's timeline, as `/messages` hands it out: between two positions.
///
/// `t<position>` stands after the event at that position.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct TimelineToken(pub i64);

impl TimelineToken {
    /// Reads a place in the timeline of a room that lies in room shard `shard`: its own form or a sync token.
    ///
    /// # Errors
    /// The token is neither.
    pub fn parse(token: &str, shard: usize, room_shards: usize) -> Result<Self, InvalidToken> {
        match token.strip_prefix('t') {
            Some(position) => parse_position(position).map(Self),
            None => {
                SyncToken::parse(token, room_shards)?.rooms.get(shard).copied().map(Self).ok_or(InvalidToken)
            }
        }
    }
}

impl fmt::Display for TimelineToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "t{:x}", self.0)
    }
}

fn parse_typing(text: &str) -> Result<TypingSeen, InvalidToken> {
    let number = |digits: Option<&str>| {
        let digits = digits.filter(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
        u32::from_str_radix(digits.ok_or(InvalidToken)?, 16).map_err(|_| InvalidToken)
    };
    if text.len() != 16 {
        return Err(InvalidToken);
    }
    Ok(TypingSeen { room: number(text.get(..8))?, users: number(text.get(8..))? })
}

fn parse_position(text: &str) -> Result<i64, InvalidToken> {
    // `from_str_radix` would take a sign.
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(InvalidToken);
    }
    i64::from_str_radix(text, 16).map_err(|_| InvalidToken)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_the_round_trip() {
        let mut token = SyncToken { rooms: vec![0, 1, i64::MAX], user: 42, typing: vec![] };
        assert_eq!(token.to_string(), "k1_0_1_7fffffffffffffff_2a");
        assert_eq!(SyncToken::parse(&token.to_string(), 3), Ok(token.clone()));
        token.typing = vec![TypingSeen { room: 1, users: u32::MAX }, TypingSeen { room: 2, users: 0 }];
        assert_eq!(token.to_string(), "k1_0_1_7fffffffffffffff_2a~00000001ffffffff.0000000200000000");
        assert_eq!(SyncToken::parse(&token.to_string(), 3), Ok(token));
    }

    #[test]
    fn foreign_and_damaged_tokens_are_refused() {
        for bad in [
            "",
            "k1",
            "k1_",
            "k1_0",
            "k1_0_0_0",
            "k2_0_0",
            "k1_-1_0",
            "k1_+1_0",
            "k1_g_0",
            "k1_8000000000000000_0",
            "k1_0_0~",
            "k1_0_0~0000000100000001.",
            "k1_0_0~+000000100000001",
            "s72",
        ] {
            assert_eq!(SyncToken::parse(bad, 1), Err(InvalidToken), "{bad}");
        }
    }

    #[test]
    fn a_sync_token_names_a_place_in_a_timeline() {
        assert_eq!(TimelineToken::parse("k1_5_6_7", 1, 2), Ok(TimelineToken(6)));
        assert_eq!(TimelineToken::parse("t1f", 1, 2), Ok(TimelineToken(31)));
        assert_eq!(TimelineToken::parse("t-1", 1, 2), Err(InvalidToken));
    }
}
