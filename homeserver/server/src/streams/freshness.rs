//! As of when a replica is known to have read everything: what tells an idle replica from one that hears nothing.

use keystead_core::shard::Shard;
use tokio::time::Instant;

/// What is known of it.
#[derive(Debug)]
pub(super) struct Freshness {
    as_of: Instant,
    /// When the database was asked where the streams stand, and what it said, until the replica has read that far.
    looked: Option<(Instant, Vec<(Shard, i64)>)>,
}

impl Freshness {
    /// Everything was read as of `begin`.
    pub(super) fn new(begin: Instant) -> Self {
        Self { as_of: begin, looked: None }
    }

    /// The database was asked at `asked` and named these positions. `read` tells how far a shard has been read.
    ///
    /// While the replica has not read as far as an earlier answer, that one is kept: else one that is always behind by
    /// more than the time between two looks would never be known to have reached anything.
    pub(super) fn looked(
        &mut self,
        asked: Instant,
        positions: Vec<(Shard, i64)>,
        read: impl Fn(Shard) -> i64,
    ) {
        self.as_of(read);
        if self.looked.is_none() {
            self.looked = Some((asked, positions));
        }
    }

    /// As of when everything has been read, given how far each shard has been.
    pub(super) fn as_of(&mut self, read: impl Fn(Shard) -> i64) -> Instant {
        let is_reached = |(_, positions): &mut (Instant, Vec<(Shard, i64)>)| {
            positions.iter().all(|(shard, position)| read(*shard) >= *position)
        };
        if let Some((asked, _)) = self.looked.take_if(is_reached) {
            self.as_of = asked;
        }
        self.as_of
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_replica_is_as_fresh_as_the_last_answer_that_it_has_reached() {
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let mut freshness = Freshness::new(begin);
        freshness.looked(at(2), vec![(0, 5), (1, 1)], |_| 5);
        assert_eq!(freshness.as_of(|_| 5), at(2));
        // Behind in one shard: what was asked first counts, however often is asked meanwhile.
        let behind = |shard| if shard == 1 { 1 } else { 9 };
        freshness.looked(at(4), vec![(0, 6), (1, 2)], behind);
        freshness.looked(at(6), vec![(0, 6), (1, 3)], behind);
        assert_eq!(freshness.as_of(behind), at(2));
        assert_eq!(freshness.as_of(|shard| if shard == 1 { 2 } else { 9 }), at(4));
        // Nobody has looked since.
        assert_eq!(freshness.as_of(|_| 100), at(4));
    }
}
