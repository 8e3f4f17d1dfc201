//! Positions that were handed out and then lost, because the database was restored from a backup that is older.

use crate::{shard::Shard, token::SyncToken};

/// The positions of each shard that restores have lost.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct LostPositions {
    /// The shard, the last position before and the first one after what was lost.
    gaps: Vec<(Shard, i64, i64)>,
}

/// Where the holder of a token has to go on.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Settled {
    /// A token that misses nothing.
    pub token: SyncToken,
    /// The position up to which the device has its messages, if the token begins before.
    pub delivered: Option<i64>,
}

impl LostPositions {
    /// Takes each gap as its shard, the last position before it and the first one after it.
    pub fn new(gaps: impl IntoIterator<Item = (Shard, i64, i64)>) -> Self {
        Self { gaps: gaps.into_iter().collect() }
    }

    /// Where the holder of a token has to go on, whose user has the shard `user_shard`.
    ///
    /// Whoever has read a lost position has read what is gone: rooms may stand differently than that reader believes. So the reader is told
    /// all of that shard anew, from position 0. What the reader's device was sent before the backup it has, because its token stood after it.
    pub fn settle(&self, mut token: SyncToken, user_shard: Shard) -> Settled {
        for (shard, position) in (0..).zip(&mut token.rooms) {
            if self.last_kept(shard, *position).is_some() {
                *position = 0;
            }
        }
        let delivered = self.last_kept(user_shard, token.user);
        if delivered.is_some() {
            token.user = 0;
        }
        Settled { token, delivered }
    }

    /// The last position before the gap that a position lies in.
    fn last_kept(&self, shard: Shard, position: i64) -> Option<i64> {
        let around = |gap: &&(Shard, i64, i64)| gap.0 == shard && gap.1 < position && position < gap.2;
        // An older restore's gap can only lie before.
        self.gaps.iter().filter(around).map(|gap| gap.1).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(rooms: &[i64], user: i64) -> SyncToken {
        SyncToken { rooms: rooms.to_vec(), user, typing: Vec::new() }
    }

    #[test]
    fn only_shards_of_which_something_is_lost_are_read_anew() {
        let lost = LostPositions::new([(0, 5, 100), (1, 7, 100), (2, 9, 100), (3, 11, 100), (0, 150, 900)]);
        let settle = |rooms: &[i64], user| {
            let Settled { token, delivered } = lost.settle(token(rooms, user), 2);
            (token.rooms, token.user, delivered)
        };
        assert_eq!(settle(&[5, 7], 9), (vec![5, 7], 9, None), "before the backup");
        assert_eq!(settle(&[100, 100], 100), (vec![100, 100], 100, None), "after the restore");
        assert_eq!(settle(&[6, 7], 9), (vec![0, 7], 9, None));
        assert_eq!(settle(&[5, 99], 9), (vec![5, 0], 9, None));
        assert_eq!(settle(&[5, 7], 50), (vec![5, 7], 0, Some(9)));
        assert_eq!(settle(&[151, 150], 100), (vec![0, 150], 100, None), "the second restore");
        assert_eq!(LostPositions::default().settle(token(&[6], 50), 1).token, token(&[6], 50));
    }
}
