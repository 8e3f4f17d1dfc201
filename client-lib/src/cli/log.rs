//! Logs: what the KeyBox saw, what the homeserver has noted, and whether the two fit.

use serde_json::{Map, Value, json};

use super::failure::Failure;
use super::output::{Output, date_time};
use crate::api::{LogFilter, LogItem};
use crate::client::Client;

/// Which entries to show.
pub(super) struct Wanted<'a> {
    pub(super) room: Option<&'a str>,
    pub(super) of: Option<&'a str>,
    pub(super) since: Option<&'a str>,
}

pub(super) async fn show(
    client: &mut Client,
    output: &Output,
    homeserver: bool,
    wanted: &Wanted<'_>,
) -> Result<(), Failure> {
    let room_id = match wanted.room {
        Some(room) => Some(super::rooms::find_room(client, room).await?),
        None => None,
    };
    let since = wanted.since.map(|text| time(text).ok_or_else(|| Failure::NotATime(text.to_owned())));
    let filter =
        LogFilter { after: 0, room_id, keybox_id: wanted.of.map(str::to_owned), since: since.transpose()? };
    let items = if homeserver {
        client.api().log(&filter).await?
    } else {
        let own = client.own_log().await?;
        own.into_iter().filter(|entry| filter.lets_through(entry)).map(LogItem::Entry).collect()
    };
    for item in items {
        match item {
            LogItem::Entry(entry) => output.result(&line(&entry), &Value::Object(entry)),
            LogItem::Unreadable { seq } => {
                output.result(&unreadable(seq), &json!({ "seq": seq, "unreadable": true }));
            }
        }
    }
    Ok(())
}

pub(super) async fn audit(
    client: &mut Client,
    output: &Output,
    signing_key: Option<&str>,
) -> Result<(), Failure> {
    let report = client.audit_accepting(signing_key).await?;
    for difference in &report.differences {
        output.result(&format!("! {difference}"), &json!(difference));
    }
    if !report.differences.is_empty() {
        return Err(Failure::Differences(report.differences.len()));
    }
    let text = format!(
        "The homeserver's log fits what this KeyBox saw: {} entries, {} of them compared. Its head is\n{}",
        report.server.seq, report.compared, report.server.hash
    );
    output.lines(&text, &json!(report));
    Ok(())
}

/// A place of the homeserver's log where no entry is.
fn unreadable(seq: u64) -> String {
    format!("{seq:>6}  CANNOT BE READ: it was altered or removed at the homeserver (keybox audit says more)")
}

/// An entry in words.
fn line(entry: &Map<String, Value>) -> String {
    let text = |name: &str| entry.get(name).and_then(Value::as_str).unwrap_or_default();
    let when = date_time(entry.get("ts").and_then(Value::as_u64).unwrap_or_default());
    let keybox = text("keybox_id");
    let peer = format!("{}/{}", text("peer_user_id"), text("peer_keybox_id"));
    let sent = text("direction") == "sent";
    let (from, to) = if sent { (keybox, peer.as_str()) } else { (peer.as_str(), keybox) };
    let key = format!("{} of {}", text("key_id"), text("room_id"));
    let what = match text("type") {
        "resource_key_given" => format!("{from} gave {to} the resource key {key}"),
        "resource_key_asked" => format!("{from} asked {to} for the resource key {key}"),
        "resource_key_refused" => {
            format!("{from} refused {to} the resource key {key} ({})", text("reference"))
        }
        other => {
            let name = entry.get("name").and_then(Value::as_str).map(|name| format!(" ({name})"));
            let by = match (text("by"), text("address")) {
                ("", "") => String::new(),
                ("", address) => format!(" from {address}"),
                (by, "") => format!(" by {by}"),
                (by, address) => format!(" by {by} from {address}"),
            };
            format!("{} {keybox}{}{by}", other.replace('_', " "), name.unwrap_or_default())
        }
    };
    let undelivered = entry.get("undelivered").and_then(Value::as_bool).unwrap_or_default();
    let note = if undelivered { ", which does not exist" } else { "" };
    format!("{:>6}  {when}  {what}{note}", entry.get("seq").and_then(Value::as_u64).unwrap_or_default())
}

/// The milliseconds since the Unix epoch of `2026-01-31` or `2026-01-31T12:00:00`, in UTC.
fn time(text: &str) -> Option<u64> {
    let (date, clock) = text.split_once(['T', ' ']).unwrap_or((text, "00:00:00"));
    let numbers = |text: &str, separator: char| -> Option<Vec<u64>> {
        text.trim_end_matches('Z').split(separator).map(|part| part.parse().ok()).collect()
    };
    let [year, month, day] = numbers(date, '-')?.try_into().ok()?;
    let [hour, minute, second] = numbers(clock, ':')?.try_into().ok()?;
    if !(1970..=9999).contains(&year) || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    if hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    // Years counted from March, so that a leap day is a year's last.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = year * 365 + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1 - 719_468;
    Some((days * 86_400 + hour * 3_600 + minute * 60 + second) * 1_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_they_are_written() {
        for ms in [0, 951_782_399_000, 951_782_400_000, 1_767_225_599_000, 4_107_542_400_000] {
            let written = date_time(ms);
            assert_eq!(time(&written), Some(ms), "{written}");
            assert_eq!(time(&written.replace(' ', "T")), Some(ms));
        }
        assert_eq!(time("2026-01-31"), time("2026-01-31T00:00:00Z"));
        for wrong in ["yesterday", "2026-13-01", "2026-01-31T25:00:00", "26", "", "1969-12-31"] {
            assert_eq!(time(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_told_in_its_place() {
        assert!(unreadable(7).starts_with("     7  CANNOT BE READ"));
    }

    #[test]
    fn entries_are_told_in_words() {
        let entry = json!({
            "seq": 3, "ts": 0, "type": "resource_key_given", "keybox_id": "BOX", "direction": "received",
            "peer_user_id": "@b:x", "peer_keybox_id": "B", "room_id": "!r:x", "key_id": "k", "reference": "e",
        });
        let words = "     3  1970-01-01 00:00:00  @b:x/B gave BOX the resource key k of !r:x";
        assert_eq!(line(entry.as_object().unwrap()), words);
    }
}
