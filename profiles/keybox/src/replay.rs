//! Replays: which counters of a KeyBox have been seen under a resource key, and which are missing.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

/// A counter that has been seen under another event id: the envelope was posted again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the message was already received as event {first_event_id}")]
pub struct Replayed {
    /// The event that carried the counter first.
    pub first_event_id: String,
}

/// The counters seen of one KeyBox under one resource key, each with the event that carried it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ReplayGuard {
    seen: BTreeMap<u64, String>,
}

impl ReplayGuard {
    /// Accepts a counter that is new, or that the same event carries again (as when a sync is repeated), and records it.
    /// Ask only after the envelope was found authentic.
    pub fn accept(&mut self, counter: u64, event_id: &str) -> Result<(), Replayed> {
        let first = self.seen.entry(counter).or_insert_with(|| event_id.to_owned());
        if first == event_id { Ok(()) } else { Err(Replayed { first_event_id: first.clone() }) }
    }

    /// How many messages have been seen.
    pub fn count(&self) -> usize {
        self.seen.len()
    }

    /// The counter after the greatest one seen: 0 if none was.
    pub fn next(&self) -> u64 {
        self.seen.last_key_value().map_or(0, |(counter, _)| counter.saturating_add(1))
    }

    /// The counters below the greatest one seen that never came: messages that the KeyBox sealed and we did not get.
    pub fn gaps(&self) -> Vec<RangeInclusive<u64>> {
        let mut gaps = Vec::new();
        let mut expected = 0;
        for counter in self.seen.keys() {
            if *counter > expected {
                gaps.push(expected..=counter - 1);
            }
            expected = counter.saturating_add(1);
        }
        gaps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_counter_under_another_event_is_a_replay() {
        let mut guard = ReplayGuard::default();
        guard.accept(0, "$a").unwrap();
        guard.accept(0, "$a").unwrap();
        assert_eq!(guard.accept(0, "$b"), Err(Replayed { first_event_id: "$a".to_owned() }));
        guard.accept(1, "$b").unwrap();
        assert_eq!(guard.count(), 2);
    }

    #[test]
    fn gaps_are_named_until_they_are_filled() {
        let mut guard = ReplayGuard::default();
        assert_eq!((guard.next(), guard.gaps()), (0, vec![]));
        for counter in [1, 5, 2] {
            guard.accept(counter, &format!("${counter}")).unwrap();
        }
        assert_eq!((guard.next(), guard.gaps()), (6, vec![0..=0, 3..=4]));
        for counter in [0, 3, 4] {
            guard.accept(counter, &format!("${counter}")).unwrap();
        }
        assert_eq!(guard.gaps(), vec![]);
    }
}
