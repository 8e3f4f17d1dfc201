//! What this KeyBox did and saw, in a hash chain of its own: to hold the homeserver's log against (`SPEC.md`, section 20.4).
//!
//! An entry is stored before what it tells of is, and what a crash makes happen again is recognised, so that nothing is missing and
//! nothing stands twice.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use keystead_keybox::audit_log::{Direction, Head, LogEvent, OnKeyBox};

use super::{Engine, RecordName};
use crate::clock::now_ms;
use crate::events::ToDeviceEvent;

pub(super) const NAME: &str = "log";
/// Entries of one record.
const PART: usize = 256;
/// How many to-device requests are remembered as noted: more than can be under way at a time between two stores.
const REMEMBERED: usize = 256;

/// The name of the record with a finished part of the log.
pub(crate) fn part_name(part: u64) -> String {
    format!("log-part {part}")
}

/// The newest part of the log, and how far it reaches.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct OwnLog {
    head: Head,
    /// Canonical JSON of the entries that are in no finished part yet.
    entries: Vec<String>,
    /// How many parts are finished.
    parts: u64,
    /// Whether the KeyBox has noted that it is registered.
    registered: bool,
    /// The sync token of the last batch of messages, and how many of them are noted.
    batch: Option<(String, usize)>,
    /// Transaction ids of the newest requests that are noted.
    sent: Vec<String>,
    /// Finished parts that are not stored yet.
    #[serde(skip)]
    finished: BTreeMap<u64, Vec<String>>,
}

impl OwnLog {
    pub(super) fn take_part(&mut self, part: u64) -> Option<Vec<String>> {
        self.finished.remove(&part)
    }
}

impl Engine {
    /// Says which batch of a sync comes now: the token that it was asked for with. A crash may make the same come again.
    pub fn begin_batch(&mut self, since: &str) {
        if self.log.batch.as_ref().is_none_or(|(known, _)| known != since) {
            self.log.batch = Some((since.to_owned(), 0));
        }
    }

    /// Notes something in the KeyBox's own log.
    pub fn note(&mut self, event: LogEvent) {
        // An entry holds texts and integers far below 2^53: it always has a canonical form.
        let Ok(entry) = self.log.head.append(&self.own.user_id, now_ms(), event) else { return };
        self.log.entries.push(entry);
        if self.log.entries.len() >= PART {
            let part = self.log.parts;
            self.log.finished.insert(part, std::mem::take(&mut self.log.entries));
            self.log.parts += 1;
            self.changed.insert(RecordName::LogPart(part));
        }
        self.changed.insert(RecordName::Log);
    }

    /// How far the KeyBox's own log reaches, how many finished parts it has, and the entries after these.
    pub(crate) fn log_state(&self) -> (&Head, u64, &[String]) {
        (&self.log.head, self.log.parts, &self.log.entries)
    }

    pub(super) fn log_registered(&mut self) {
        if !self.log.registered {
            self.log.registered = true;
            let keybox_id = self.own.keybox_id.clone();
            self.note(LogEvent::KeyboxRegistered(OnKeyBox { keybox_id, ..OnKeyBox::default() }));
        }
    }

    /// Notes what the server has taken of a to-device request, which is still in the outbox.
    pub(super) fn log_sent(&mut self, txn_id: &str) {
        let Some(queued) = self.exchange.outbox.iter().find(|queued| queued.txn_id == txn_id) else { return };
        if self.log.sent.iter().any(|noted| noted == txn_id) {
            return;
        }
        let own = &self.own.keybox_id;
        let events: Vec<_> = queued
            .messages
            .iter()
            .flat_map(|(user_id, contents)| contents.iter().map(move |content| (user_id, content)))
            .filter_map(|(user_id, (keybox_id, content))| {
                let peer = (user_id.as_str(), keybox_id.as_str());
                LogEvent::of_message(&queued.event_type, content, Direction::Sent, own, peer)
            })
            .collect();
        if events.is_empty() {
            return;
        }
        events.into_iter().for_each(|event| self.note(event));
        self.log.sent.push(txn_id.to_owned());
        let surplus = self.log.sent.len().saturating_sub(REMEMBERED);
        self.log.sent.drain(..surplus);
    }

    /// Notes the key messages of a batch, whatever comes of them.
    pub(super) fn log_received(&mut self, events: &[ToDeviceEvent]) {
        let noted = self.log.batch.as_ref().map_or(0, |(_, noted)| *noted);
        for event in events.iter().skip(noted) {
            let sender = event.content.get("sender_keybox").and_then(serde_json::Value::as_str);
            let peer = (event.sender.as_str(), sender.unwrap_or_default());
            let own = &self.own.keybox_id;
            let direction = Direction::Received;
            let event = LogEvent::of_message(&event.event_type, &event.content, direction, own, peer);
            event.into_iter().for_each(|event| self.note(event));
        }
        if let Some((_, noted)) = &mut self.log.batch
            && events.len() > *noted
        {
            *noted = events.len();
            self.changed.insert(RecordName::Log);
        }
    }
}
