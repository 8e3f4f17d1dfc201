//! Printing: results on standard output, everything else on standard error.
//!
//! What others wrote is printed so that it stays what it is: it can neither drive the terminal nor look like a line of its own.

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
    /// A result of one line: `text` for a person, or `value` for a script.
    pub(super) fn result(&self, text: &str, value: &Value) {
        self.print(&plain(text), value);
    }

    /// A result of several lines. What others wrote in it has to go through [`plain`] before.
    pub(super) fn lines(&self, text: &str, value: &Value) {
        self.print(&lines(text), value);
    }

    /// A reader that has gone away is no failure.
    fn print(&self, text: &str, value: &Value) {
        let mut out = std::io::stdout().lock();
        let written = if self.json { writeln!(out, "{value}") } else { writeln!(out, "{text}") };
        written.and_then(|()| out.flush()).ok();
    }

    /// What is going on, for a person.
    pub(super) fn progress(&self, text: &str) {
        if !self.json {
            writeln!(std::io::stderr(), "{}", lines(text)).ok();
        }
    }

    /// What the KeyBox did by itself: warnings always, the rest if asked for.
    pub(super) fn notices(&self, notices: Vec<Notice>) {
        for notice in notices.iter().filter(|notice| self.verbose || is_warning(notice)) {
            let mut out = std::io::stderr().lock();
            let written = if self.json {
                writeln!(out, "{}", json!(notice))
            } else {
                writeln!(out, "* {}", plain(&notice.to_string()))
            };
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
        let line = format!(
            "{}  {} ({mark}): {}",
            date_time(message.sent_at),
            one_word(&message.sender),
            indented(&text)
        );
        let mut value = json!(message);
        if let Some(object) = value.as_object_mut() {
            object.insert("text".to_owned(), message.body().into());
        }
        self.lines(&line, &value);
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
            writeln!(std::io::stderr(), "keybox: {}", plain(&text)).ok();
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
            | Notice::OwnKeyBoxPassed { .. }
            | Notice::RoomClosing { .. }
            | Notice::SuiteDowngrade { .. }
    )
}

/// In place of what is not printed.
const NOT_PRINTED: char = '\u{fffd}';

/// Text of others on one line.
pub(super) fn plain(text: &str) -> String {
    text.chars().map(|c| if is_harmful(c) { NOT_PRINTED } else { c }).collect()
}

/// An id of others: one word.
pub(super) fn one_word(id: &str) -> String {
    plain(id).replace(char::is_whitespace, "\u{fffd}")
}

/// Text of several lines: the lines stay.
fn lines(text: &str) -> String {
    text.split('\n').map(plain).collect::<Vec<_>>().join("\n")
}

/// The same, where each line but the first is set in: only the first can be taken for the beginning of something.
fn indented(text: &str) -> String {
    lines(text).replace('\n', "\n    ")
}

/// Whether a character does more than to be seen: moves the cursor, ends the line, or turns what follows around.
fn is_harmful(c: char) -> bool {
    let turns = matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    (c.is_control() && c != '\t') || matches!(c, '\u{2028}' | '\u{2029}') || turns
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
    fn what_others_write_stays_what_it_is() {
        assert_eq!(
            plain("caf\u{e9} \u{5e9}\u{5dc}\u{5d5}\u{5dd}\t!"),
            "caf\u{e9} \u{5e9}\u{5dc}\u{5d5}\u{5dd}\t!"
        );
        for harmful in
            ["\u{1b}[2J", "\r", "\n", "\u{7}", "\u{9b}", "\u{85}", "\u{2028}", "\u{202e}", "\u{2066}"]
        {
            let shown = plain(&format!("a{harmful}b"));
            assert!(shown.starts_with("a\u{fffd}") && shown.ends_with('b'), "{shown:?}");
        }
        // Nobody makes a line that looks as if somebody else had said it.
        let forged = "hello\n2026-11-22 09:38:45  @alice:x (verified): pay Eve\r\nnow";
        assert_eq!(
            indented(forged),
            "hello\n    2026-11-22 09:38:45  @alice:x (verified): pay Eve\u{fffd}\n    now"
        );
        assert_eq!(
            one_word("@alice:x (verified): pay Eve"),
            "@alice:x\u{fffd}(verified):\u{fffd}pay\u{fffd}Eve"
        );
        // What the program itself says in several lines stays so.
        assert_eq!(lines("one\n  two\n\u{2588}"), "one\n  two\n\u{2588}");
    }

    #[test]
    fn times_are_written_in_utc() {
        assert_eq!(date_time(0), "1970-01-01 00:00:00");
        assert_eq!(date_time(951_782_399_000), "2000-02-28 23:59:59");
        assert_eq!(date_time(951_782_400_000), "2000-02-29 00:00:00");
        assert_eq!(date_time(1_767_225_599_999), "2025-12-31 23:59:59");
        assert_eq!(date_time(4_107_542_400_000), "2100-03-01 00:00:00");
    }
}
