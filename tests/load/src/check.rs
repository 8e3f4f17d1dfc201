//! Whether everything that was acknowledged arrived, once and in order.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde::{Deserialize, Serialize};

/// Who sends in an order: each lane waits for an answer before it sends again.
pub type Lane = u64;

/// What was acknowledged: for each stream (a room, or a device's inbox) the messages, by lane and number.
#[derive(Clone, Debug, Default)]
pub struct Acknowledged {
    streams: HashMap<String, HashSet<Message>>,
}

/// A message of the run.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Message {
    /// Who sent it.
    pub lane: Lane,
    /// How many the lane had sent before.
    pub number: u64,
}

/// What was found.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Verdict {
    /// Deliveries that were compared: one for each message and reader.
    pub deliveries: u64,
    /// Acknowledged messages that did not reach a reader.
    pub lost: u64,
    /// Messages that reached a reader more than once.
    pub doubled: u64,
    /// Messages that reached a reader before one that the same lane had sent earlier.
    pub reordered: u64,
    /// Long-polls that hung while a sync with the same token answered at once.
    pub late: u64,
    /// Whether there was anything to compare.
    pub checked: bool,
    /// The first few defects in words.
    pub examples: Vec<String>,
}

/// How many defects are described.
const EXAMPLES: usize = 10;

impl Acknowledged {
    /// Takes in a message that the server acknowledged.
    pub fn add(&mut self, stream: &str, message: Message) {
        match self.streams.get_mut(stream) {
            Some(messages) => drop(messages.insert(message)),
            None => drop(self.streams.insert(stream.to_owned(), HashSet::from([message]))),
        }
    }

    /// How many there are in a stream.
    pub fn count(&self, stream: &str) -> usize {
        self.streams.get(stream).map_or(0, HashSet::len)
    }

    /// Whether a reader that has seen `seen` of a stream has all of it.
    pub fn is_complete(&self, stream: &str, seen: &HashSet<Message>) -> bool {
        self.streams.get(stream).is_none_or(|messages| messages.is_subset(seen))
    }
}

impl Verdict {
    /// Compares what one reader saw of a stream, in the order of its arrival, with what was acknowledged.
    ///
    /// What was not acknowledged may arrive as well: an answer can be lost on the way. It counts for the order and must not
    /// arrive twice either.
    pub fn compare(&mut self, acknowledged: &Acknowledged, stream: &str, reader: &str, seen: &[Message]) {
        self.checked = true;
        let mut arrived = HashSet::new();
        let mut last: BTreeMap<Lane, u64> = BTreeMap::new();
        for message in seen {
            if !arrived.insert(*message) {
                self.doubled += 1;
                self.example(format!("{reader} saw {message:?} of {stream} again"));
                continue;
            }
            let before = last.entry(message.lane).or_insert(message.number);
            if *before > message.number {
                self.reordered += 1;
                self.example(format!("{reader} saw {message:?} of {stream} after number {before}"));
            }
            *before = message.number.max(*before);
        }
        for message in acknowledged.streams.get(stream).into_iter().flatten() {
            self.deliveries += 1;
            if !arrived.contains(message) {
                self.lost += 1;
                self.example(format!("{reader} did not see {message:?} of {stream}"));
            }
        }
    }

    /// Notes a long-poll that hung.
    pub fn late(&mut self, example: String) {
        self.checked = true;
        self.late += 1;
        self.example(example);
    }

    /// Adds what another comparison found.
    pub fn add(&mut self, other: Self) {
        self.deliveries += other.deliveries;
        self.lost += other.lost;
        self.doubled += other.doubled;
        self.reordered += other.reordered;
        self.late += other.late;
        self.checked |= other.checked;
        other.examples.into_iter().for_each(|example| self.example(example));
    }

    /// Whether there is no defect.
    pub fn is_clean(&self) -> bool {
        self.lost + self.doubled + self.reordered + self.late == 0
    }

    /// The result in words.
    pub fn to_text(&self) -> String {
        if !self.checked {
            return "  nothing was delivered that could be checked\n".to_owned();
        }
        let mut text = format!(
            "  checked {} deliveries: {} lost, {} doubled, {} reordered, {} late\n",
            self.deliveries, self.lost, self.doubled, self.reordered, self.late
        );
        for example in &self.examples {
            text += &format!("    {example}\n");
        }
        text
    }

    fn example(&mut self, example: String) {
        if self.examples.len() < EXAMPLES {
            self.examples.push(example);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(list: &[(Lane, u64)]) -> Vec<Message> {
        list.iter().map(|(lane, number)| Message { lane: *lane, number: *number }).collect()
    }

    #[test]
    fn each_kind_of_defect_is_counted_as_what_it_is() {
        let mut acknowledged = Acknowledged::default();
        for message in messages(&[(1, 0), (1, 1), (1, 2), (2, 0)]) {
            acknowledged.add("room", message);
        }
        type Seen = &'static [(Lane, u64)];
        // (what was seen, lost, doubled, reordered)
        let table: [(Seen, u64, u64, u64); 6] = [
            (&[(1, 0), (2, 0), (1, 1), (1, 2)], 0, 0, 0),
            (&[(1, 0), (1, 1), (1, 2)], 1, 0, 0),
            (&[(1, 0), (1, 1), (1, 1), (1, 2), (2, 0)], 0, 1, 0),
            (&[(1, 1), (1, 0), (1, 2), (2, 0)], 0, 0, 1),
            // Not acknowledged: it may have been written all the same.
            (&[(1, 0), (1, 1), (1, 2), (2, 0), (2, 1)], 0, 0, 0),
            (&[], 4, 0, 0),
        ];
        for (seen, lost, doubled, reordered) in table {
            let mut verdict = Verdict::default();
            verdict.compare(&acknowledged, "room", "reader", &messages(seen));
            assert_eq!(
                (verdict.lost, verdict.doubled, verdict.reordered),
                (lost, doubled, reordered),
                "{seen:?}"
            );
            assert_eq!(verdict.deliveries, 4);
            assert_eq!(verdict.is_clean(), lost + doubled + reordered == 0);
        }
    }
}
