//! Printing: results on standard output, everything else on standard error.

use std::error::Error as _;
use std::io::Write as _;

use serde_json::{Value, json};

use super::failure::Failure;
use crate::engine::{Message, Notice};

pub(super) struct Output {
    pub(super) json: bool,
    pub(super) verbose: bool,
}

impl Output {
    /// A result: `text` for a person, or `value` for a script. A reader that has gone away is no failure.
    pub(super) fn result(&self, text: &str, value: &Value) {
        let mut out = std::io::stdout().lock();
        let written = if self.json { writeln!(out, "{value}") } else { writeln!(out, "{text}") };
        written.and_then(|()| out.flush()).ok();
    }

    /// What is going on, for a person.
    pub(super) fn progress(&self, text: &str) {
        if !self.json {
            writeln!(std::io::stderr(), "{text}").ok();
        }
    }

    /// What the KeyBox did by itself: warnings always, the rest if asked for.
    pub(super) fn notices(&self, notices: Vec<Notice>) {
        for notice in notices.iter().filter(|notice| self.verbose || is_warning(notice)) {
            let mut out = std::io::stderr().lock();
            let written =
                if self.json { writeln!(out, "{}", json!(notice)) } else { writeln!(out, "* {notice}") };
            written.ok();
        }
    }

    pub(super) fn message(&self, message: &Message) {
        let is_file = message.content.get("file").is_some();
        let text = match message.body() {
            Some(body) if is_file => {
                format!("[file] {body} (keybox download '{}' '{}')", message.room_id, message.event_id)
            }
            Some(body) => body.to_owned(),
            None => format!("[{}] {}", message.event_type, message.content),
        };
        let mark = match (message.encrypted, message.verified) {
            (true, true) => "verified",
            (true, false) => "not verified",
            (false, _) => "NOT ENCRYPTED",
        };
        let line = format!("{}  {} ({mark}): {text}", date_time(message.sent_at), message.sender);
        let mut value = json!(message);
        if let Some(object) = value.as_object_mut() {
            object.insert("text".to_owned(), message.body().into());
        }
        self.result(&line, &value);
    }

    pub(super) fn failure(&self, failure: &Failure) {
        let mut text = failure.to_string();
        let mut source = failure.source();
        while let Some(cause) = source {
            text = format!("{text}: {cause}");
            source = cause.source();
        }
        if self.json {
            let value = json!({ "error": text, "errcode": failure.errcode(), "status": failure.status() });
            writeln!(std::io::stderr(), "{value}").ok();
        } else {
            writeln!(std::io::stderr(), "keybox: {text}").ok();
        }
    }
}

fn is_warning(notice: &Notice) -> bool {
    matches!(
        notice,
        Notice::ApprovalNeeded { .. }
            | Notice::BackupEnded { .. }
            | Notice::ClosingRefused { .. }
            | Notice::GapLeft { .. }
            | Notice::IdentityChanged { .. }
            | Notice::Invited { .. }
            | Notice::KeyBoxOutside { .. }
            | Notice::KeyBoxReturned { .. }
            | Notice::KeyMessageDropped { .. }
            | Notice::KeySetChanged { .. }
            | Notice::KeyUndeliverable { .. }
            | Notice::InvalidKeySet { .. }
            | Notice::MessageRefused { .. }
            | Notice::NewOwnKeyBox { .. }
            | Notice::OwnKeyBoxGone { .. }
            | Notice::RoomClosing { .. }
            | Notice::SuiteDowngrade { .. }
    )
}

/// A time in UTC, to the second, from milliseconds since the Unix epoch.
pub(super) fn date_time(ms: u64) -> String {
    let (days, seconds) = (ms / 86_400_000, ms / 1000 % 86_400);
    // Years of 365.2425 days counted from 1 March of the year 0, so that a leap day is a year's last.
    let day = days + 719_468;
    let (era, of_era) = (day / 146_097, day % 146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_in_utc() {
        assert_eq!(date_time(0), "1970-01-01 00:00:00");
        assert_eq!(date_time(951_782_399_000), "2000-02-28 23:59:59");
        assert_eq!(date_time(951_782_400_000), "2000-02-29 00:00:00");
        assert_eq!(date_time(1_767_225_599_999), "2025-12-31 23:59:59");
        assert_eq!(date_time(4_107_542_400_000), "2100-03-01 00:00:00");
    }
}
