//! The homeserver's log as it is read: whether it is a chain that leads to the signed head, and what it says.

use std::collections::HashSet;

use keystead_keybox::audit_log::{Entry, Head, LogEvent, entry_hash};
use serde_json::{Map, Value};

use super::Difference;
use crate::api::{LogItem, ServerKey};

/// Numbers from here on have no canonical form.
const END_OF_NUMBERS: u64 = 1 << 53;

/// What was read of the server's log so far.
pub(super) struct ServerLog {
    pub(super) user_id: String,
    /// The newest entry that was read.
    pub(super) walked: Head,
    pub(super) events: Vec<LogEvent>,
    pub(super) differences: Vec<Difference>,
    /// The key that heads must be signed with, if it is not the one that the server names now.
    pub(super) trusted: Option<ServerKey>,
    /// Up to where it was a chain, if it is none further on.
    whole_to: Option<u64>,
    /// That the hash of the newest entry is not known: it cannot be read.
    is_blind: bool,
    /// What was read beyond a break. Its numbers say nothing for sure, so that it is read again, and known by this.
    beyond: HashSet<String>,
}

impl ServerLog {
    pub(super) fn new(user_id: &str) -> Self {
        Self {
            user_id: user_id.to_owned(),
            walked: Head::default(),
            events: Vec::new(),
            differences: Vec::new(),
            trusted: None,
            whole_to: None,
            is_blind: false,
            beyond: HashSet::new(),
        }
    }

    /// After which entry to read on.
    pub(super) fn whole_to(&self) -> u64 {
        self.whole_to.unwrap_or(self.walked.seq)
    }

    pub(super) fn note(&mut self, difference: Difference) {
        if !self.differences.contains(&difference) {
            self.differences.push(difference);
        }
    }

    /// Takes in what stands after [`Self::whole_to`], which is to pass through `known` and lead to `head`.
    pub(super) fn take_all(&mut self, items: Vec<LogItem>, known: Option<&Head>, head: Option<&Head>) {
        let before = std::mem::take(&mut self.beyond);
        for item in items {
            let text = match &item {
                LogItem::Entry(entry) => serde_json::to_string(entry).unwrap_or_default(),
                LogItem::Unreadable { seq } => seq.to_string(),
            };
            match item {
                _ if before.contains(&text) => {}
                LogItem::Entry(entry) => self.take(&entry, known, head),
                LogItem::Unreadable { seq } => self.pass_over(seq),
            }
            if self.whole_to.is_some() {
                self.beyond.insert(text);
            }
        }
        if let Some(head) = head
            && (head.seq > self.walked.seq
                || (head.seq == self.walked.seq && head.hash != self.walked.hash && !self.is_blind))
        {
            self.note(Difference::NotTheHead { seq: head.seq });
        }
    }

    /// Takes an entry in: its place in the chain, and what it says.
    fn take(&mut self, entry: &Map<String, Value>, known: Option<&Head>, head: Option<&Head>) {
        if std::mem::take(&mut self.is_blind) {
            // Whatever the entry says of the one before cannot be checked.
            self.walked.hash = entry.get("prev").and_then(Value::as_str).unwrap_or_default().to_owned();
        }
        if let Err(error) = self.walked.follow(&self.user_id, entry) {
            let problem = error.to_string();
            self.note(Difference::BrokenChain { seq: self.walked.seq + 1, problem });
            self.walk_on_from(entry);
        }
        if let Some(known) = known.filter(|known| known.seq == self.walked.seq)
            && known.hash != self.walked.hash
        {
            self.note(Difference::Rewritten { seq: known.seq });
        }
        if let Some(head) = head.filter(|head| head.seq == self.walked.seq)
            && head.hash != self.walked.hash
        {
            self.note(Difference::NotTheHead { seq: head.seq });
        }
        // What a newer server notes is not for this version to compare.
        if let Ok(entry) = serde_json::from_value::<Entry>(Value::Object(entry.clone())) {
            self.events.push(entry.event);
        }
    }

    /// Notes an entry that cannot be read, and goes on after it.
    fn pass_over(&mut self, seq: u64) {
        self.whole_to.get_or_insert(self.walked.seq);
        self.note(Difference::Unreadable { seq });
        let seq = seq.min(END_OF_NUMBERS);
        self.walked = Head { seq, hash: String::new(), ts: self.walked.ts };
        self.is_blind = true;
    }

    /// Begins a chain anew at an entry that continues none, so that each break is named once.
    fn walk_on_from(&mut self, entry: &Map<String, Value>) {
        self.whole_to.get_or_insert(self.walked.seq);
        let number =
            |name: &str| entry.get(name).and_then(Value::as_u64).filter(|number| *number < END_OF_NUMBERS);
        self.walked = Head {
            seq: number("seq").unwrap_or(self.walked.seq + 1),
            hash: entry_hash(entry).unwrap_or_default(),
            ts: number("ts").unwrap_or(self.walked.ts),
        };
    }
}

#[cfg(test)]
mod tests {
    use keystead_keybox::audit_log::OnKeyBox;

    use super::*;

    const USER: &str = "@a:x";

    fn event(name: &str) -> LogEvent {
        LogEvent::KeyboxRegistered(OnKeyBox { keybox_id: name.to_owned(), ..OnKeyBox::default() })
    }

    /// A true log of entries about these KeyBoxes, and its head.
    fn chain(names: &[&str]) -> (Vec<Map<String, Value>>, Head) {
        let mut head = Head::default();
        let entry = |name: &&str| serde_json::from_str(&head.append(USER, 5, event(name)).unwrap()).unwrap();
        (names.iter().map(entry).collect(), head)
    }

    /// Reads a log twice, as an audit does; the second time it has come to `later`.
    fn read(first: &[Map<String, Value>], later: &[Map<String, Value>], head: &Head) -> ServerLog {
        let mut log = ServerLog::new(USER);
        for entries in [first, later] {
            let after = log.whole_to();
            let numbered = entries.iter().filter(|entry| entry["seq"].as_u64().is_none_or(|seq| seq > after));
            log.take_all(numbered.cloned().map(LogItem::Entry).collect(), None, Some(head));
        }
        log
    }

    fn broken(seq: u64) -> impl Fn(&Difference) -> bool {
        move |found| matches!(found, Difference::BrokenChain { seq: at, .. } if *at == seq)
    }

    #[test]
    fn what_follows_a_break_counts_once() {
        let (entries, head) = chain(&["A", "B", "C", "D"]);
        let without_first = &entries[1..];
        let log = read(&without_first[..2], without_first, &head);
        assert_eq!(log.events, [event("B"), event("C"), event("D")]);
        let named: Vec<_> = log.differences.iter().filter(|found| broken(1)(found)).collect();
        assert_eq!(named.len(), 1, "{:?}", log.differences);
    }

    #[test]
    fn an_altered_entry_breaks_the_chain_at_the_next_one_only() {
        let (mut entries, head) = chain(&["A", "B", "C", "D"]);
        entries[1]["keybox_id"] = "OTHER".into();
        let log = read(&entries, &entries, &head);
        assert_eq!(log.events, [event("A"), event("OTHER"), event("C"), event("D")]);
        assert_eq!(log.differences.len(), 1, "{:?}", log.differences);
        assert!(broken(3)(&log.differences[0]));
    }

    #[test]
    fn every_break_is_named() {
        let (mut entries, head) = chain(&["A", "B", "C", "D", "E"]);
        entries[0]["keybox_id"] = "OTHER".into();
        entries[3]["seq"] = u64::MAX.into();
        let log = read(&entries, &entries, &head);
        assert_eq!(log.events.len(), 5);
        assert!(broken(2)(&log.differences[0]), "{:?}", log.differences);
        assert!(log.differences.iter().any(broken(4)), "{:?}", log.differences);
    }

    #[test]
    fn an_entry_that_cannot_be_read_is_named_and_no_other() {
        let (entries, head) = chain(&["A", "B", "C"]);
        for place in 0..3 {
            let mut items: Vec<_> = entries.iter().cloned().map(LogItem::Entry).collect();
            let seq = entries[place]["seq"].as_u64().unwrap();
            items[place] = LogItem::Unreadable { seq };
            let mut log = ServerLog::new(USER);
            log.take_all(items.clone(), None, Some(&head));
            log.take_all(items[place..].to_vec(), None, Some(&head));
            assert_eq!(log.differences, [Difference::Unreadable { seq }]);
            assert_eq!(log.events.len(), 2);
        }
    }

    #[test]
    fn a_log_that_is_cut_does_not_lead_to_its_head() {
        let (entries, head) = chain(&["A", "B", "C"]);
        let log = read(&entries[..2], &entries[..2], &head);
        assert_eq!(log.differences, [Difference::NotTheHead { seq: 3 }]);
        let log = read(&entries, &entries, &head);
        assert_eq!((log.differences, log.walked), (vec![], head));
    }
}
