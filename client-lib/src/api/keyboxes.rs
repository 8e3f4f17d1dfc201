//! The profile's own endpoints: the server's log (`profiles/keybox/SPEC.md`, section 20).

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::account::PasswordLogin;
use super::http::{Call, secret_json, segment};
use super::{Api, ApiError};
use keystead_keybox::encoding::from_base64;

/// How many entries of a log are asked for at once.
const LOG_PAGE: u64 = 1_000;
/// After how many entries in a row that cannot be read an answer is no log at all.
const MAX_UNREADABLE: u64 = 100;
/// Where the endpoints are.
const BASE: &str = "/_matrix/client/unstable/com.trustner.keybox/v1";

/// Which entries of a log are wanted; all by default.
#[derive(Clone, Debug, Default)]
pub struct LogFilter {
    /// Only those after this number.
    pub after: u64,
    /// Only those about resource keys of this room.
    pub room_id: Option<String>,
    /// Only those that name this KeyBox, at either end.
    pub keybox_id: Option<String>,
    /// Only those of this time and later, in milliseconds since the Unix epoch.
    pub since: Option<u64>,
}

impl LogFilter {
    /// Whether an entry is wanted, whatever its number.
    pub fn lets_through(&self, entry: &Map<String, Value>) -> bool {
        let text = |name: &str| entry.get(name).and_then(Value::as_str);
        let named = |id: &str| text("keybox_id") == Some(id) || text("peer_keybox_id") == Some(id);
        self.room_id.as_deref().is_none_or(|room_id| text("room_id") == Some(room_id))
            && self.keybox_id.as_deref().is_none_or(named)
            && self.since.is_none_or(|since| entry.get("ts").and_then(Value::as_u64) >= Some(since))
    }
}

/// What stands at a place of the account's log.
#[derive(Clone, Debug, PartialEq)]
pub enum LogItem {
    /// An entry.
    Entry(Map<String, Value>),
    /// Something that is no JSON object.
    Unreadable {
        /// The number of the entry that should be here.
        seq: u64,
    },
}

#[derive(Deserialize)]
struct LogPage<T> {
    entries: Vec<T>,
    next_after: Option<u64>,
}

/// Reads a log page by page. Where a page is no JSON the pages become smaller, until what is wrong with it stands alone.
struct LogReader {
    items: Vec<LogItem>,
    after: u64,
    limit: u64,
    unreadable_in_a_row: u64,
    is_done: bool,
}

impl LogReader {
    fn new(after: u64) -> Self {
        Self { items: Vec::new(), after, limit: LOG_PAGE, unreadable_in_a_row: 0, is_done: false }
    }

    /// Takes in the answer to the question for `limit` entries after `after`.
    fn take(&mut self, page: Result<LogPage<Value>, ApiError>) -> Result<(), ApiError> {
        match page {
            Ok(page) => self.take_page(page),
            Err(ApiError::Malformed(_)) if self.limit > 1 => self.limit /= 10,
            Err(ApiError::Malformed(_)) if self.unreadable_in_a_row < MAX_UNREADABLE => {
                self.unreadable_in_a_row += 1;
                self.after += 1;
                self.items.push(LogItem::Unreadable { seq: self.after });
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn take_page(&mut self, page: LogPage<Value>) {
        let mut seq = self.after;
        if page.entries.is_empty() && page.next_after.is_some() {
            // An entry of no text at all.
            self.items.push(LogItem::Unreadable { seq: seq.saturating_add(1) });
        }
        for entry in page.entries {
            let expected = seq.saturating_add(1);
            seq = entry.get("seq").and_then(Value::as_u64).unwrap_or(expected);
            self.items.push(match entry {
                Value::Object(entry) => LogItem::Entry(entry),
                _ => LogItem::Unreadable { seq },
            });
        }
        self.unreadable_in_a_row = 0;
        self.limit = (self.limit * 10).min(LOG_PAGE);
        match page.next_after {
            // A server that leads in a circle is not followed.
            Some(next) if next > self.after => self.after = next,
            _ => self.is_done = true,
        }
    }
}

/// One of the account's KeyBoxes, as the server lists it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ListedKeyBox {
    /// Its id.
    pub keybox_id: String,
    /// What its owner calls it.
    pub name: Option<String>,
    /// When it was made, in milliseconds since the Unix epoch.
    pub created_ts: u64,
    /// When it was last seen, to within some minutes.
    pub last_seen_ts: u64,
    /// The address that it was last seen at.
    pub last_seen_ip: String,
    /// The suites that it speaks.
    pub suites: Vec<String>,
    /// Whether the server has a signature of the owner's self-signing key on its key set.
    pub verified: bool,
    /// Whether the server keeps the passphrase of its private keys.
    pub passphrase_kept: bool,
}

/// The key that a homeserver signs with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerKey {
    /// The server's name.
    pub server_name: String,
    /// The key's name, as in `ed25519:NAME`.
    pub key_name: String,
    /// The Ed25519 public key.
    pub key: [u8; 32],
}

impl Api {
    /// The account's KeyBoxes.
    pub async fn keyboxes(&self) -> Result<Vec<ListedKeyBox>, ApiError> {
        #[derive(Deserialize)]
        struct Answer {
            keyboxes: Vec<ListedKeyBox>,
        }
        Ok(self.call::<Answer>(Call::get(format!("{BASE}/keyboxes"))).await?.keyboxes)
    }

    /// Names one of the account's devices.
    ///
    /// <https://spec.matrix.org/v1.19/client-server-api/#put_matrixclientv3devicesdeviceid>
    pub async fn rename_device(&self, device_id: &str, name: &str) -> Result<(), ApiError> {
        let path = format!("/_matrix/client/v3/devices/{}", segment(device_id));
        self.call::<Value>(Call::put(path, json!({ "display_name": name }))).await.map(drop)
    }

    /// Deletes one of the account's devices, with its session, keys and messages; the password shows that it is the owner who asks.
    ///
    /// <https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3delete_devices>
    pub async fn delete_device(
        &self,
        device_id: &str,
        user_id: &str,
        password: &str,
    ) -> Result<(), ApiError> {
        #[derive(Serialize)]
        struct Request<'a> {
            devices: [&'a str; 1],
            auth: PasswordLogin<'a>,
        }
        let auth = PasswordLogin::new(user_id, password);
        let request = secret_json(&Request { devices: [device_id], auth })?;
        let call = Call::post_secret("/_matrix/client/v3/delete_devices", request).once();
        self.call::<Value>(call).await.map(drop)
    }

    /// The entries of the account's log that `filter` lets through, oldest first, and whatever cannot be read: nobody knows what that was.
    ///
    /// [`ApiError::Malformed`] if nothing of 100 entries in a row can be read.
    pub async fn log(&self, filter: &LogFilter) -> Result<Vec<LogItem>, ApiError> {
        match self.filtered_log(filter).await {
            // Where something is no entry, a filtered answer does not tell its place: all is read, and chosen from here.
            Err(ApiError::Malformed(_)) => {
                let mut items = self.whole_log(filter.after).await?;
                items.retain(|item| match item {
                    LogItem::Entry(entry) => filter.lets_through(entry),
                    LogItem::Unreadable { .. } => true,
                });
                Ok(items)
            }
            entries => Ok(entries?.into_iter().map(LogItem::Entry).collect()),
        }
    }

    async fn filtered_log(&self, filter: &LogFilter) -> Result<Vec<Map<String, Value>>, ApiError> {
        let mut entries = Vec::new();
        let mut after = filter.after;
        loop {
            let mut path = format!("{BASE}/log?limit={LOG_PAGE}&after={after}");
            let parameters = [("room_id", filter.room_id.clone()), ("keybox_id", filter.keybox_id.clone())];
            let since = ("since", filter.since.map(|since| since.to_string()));
            for (name, value) in parameters.into_iter().chain([since]) {
                if let Some(value) = value {
                    path.push_str(&format!("&{name}={}", segment(&value)));
                }
            }
            let page: LogPage<_> = self.call(Call::get(path)).await?;
            entries.extend(page.entries);
            match page.next_after {
                // A server that leads in a circle is not followed.
                Some(next) if next > after => after = next,
                _ => return Ok(entries),
            }
        }
    }

    /// The account's log after an entry, oldest first, with what cannot be read in it.
    ///
    /// [`ApiError::Malformed`] if nothing of 100 entries in a row can be read.
    pub async fn whole_log(&self, after: u64) -> Result<Vec<LogItem>, ApiError> {
        let mut reader = LogReader::new(after);
        while !reader.is_done {
            let path = format!("{BASE}/log?limit={}&after={}", reader.limit, reader.after);
            reader.take(self.call(Call::get(path)).await)?;
        }
        Ok(reader.items)
    }

    /// The signed head of the account's log.
    pub async fn log_head(&self) -> Result<Map<String, Value>, ApiError> {
        self.call(Call::get(format!("{BASE}/log/head"))).await
    }

    /// The key that the server says it signs with.
    ///
    /// <https://spec.matrix.org/v1.19/server-server-api/#publishing-keys>
    pub async fn server_key(&self) -> Result<ServerKey, ApiError> {
        let answer: Value = self.call(Call::get("/_matrix/key/v2/server")).await?;
        let key = || {
            let keys = answer.get("verify_keys")?.as_object()?;
            let (id, value) = keys.iter().find(|(id, _)| id.starts_with("ed25519:"))?;
            let bytes = from_base64(value.get("key")?.as_str()?).ok()?;
            Some(ServerKey {
                server_name: answer.get("server_name")?.as_str()?.to_owned(),
                key_name: id.strip_prefix("ed25519:")?.to_owned(),
                key: bytes.try_into().ok()?,
            })
        };
        key().ok_or_else(|| ApiError::Malformed("the homeserver publishes no Ed25519 key".into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server's log in which some entries are no JSON.
    fn read(entries: &[&str]) -> (Result<Vec<LogItem>, ApiError>, usize) {
        let mut reader = LogReader::new(0);
        let mut questions = 0;
        while !reader.is_done {
            questions += 1;
            let from = usize::try_from(reader.after).unwrap().min(entries.len());
            let to = (from + usize::try_from(reader.limit).unwrap()).min(entries.len());
            let next = if to < entries.len() { format!(r#","next_after":{to}"#) } else { String::new() };
            let answer = format!(r#"{{"entries":[{}]{next}}}"#, entries[from..to].join(","));
            let page = serde_json::from_str(&answer).map_err(|error| ApiError::Malformed(error.into()));
            if let Err(error) = reader.take(page) {
                return (Err(error), questions);
            }
        }
        (Ok(reader.items), questions)
    }

    #[test]
    fn a_filter_lets_through_what_it_names() {
        let entry = json!({
            "ts": 5, "keybox_id": "A", "peer_keybox_id": "B", "room_id": "!r:x", "type": "resource_key_given",
        });
        let entry = entry.as_object().unwrap();
        let passes = |room_id: Option<&str>, keybox_id: Option<&str>, since: Option<u64>| {
            let [room_id, keybox_id] = [room_id, keybox_id].map(|text| text.map(str::to_owned));
            LogFilter { after: 0, room_id, keybox_id, since }.lets_through(entry)
        };
        assert!(
            passes(None, None, None)
                && passes(Some("!r:x"), Some("A"), Some(5))
                && passes(None, Some("B"), None)
        );
        assert!(
            !passes(Some("!s:x"), None, None)
                && !passes(None, Some("C"), None)
                && !passes(None, None, Some(6))
        );
        let bare = LogFilter { since: Some(0), ..LogFilter::default() };
        assert!(!bare.lets_through(&Map::new()), "of no time");
    }

    #[test]
    fn what_cannot_be_read_in_a_log_is_named_and_passed_over() {
        let texts: Vec<String> = (1..=2_500).map(|seq| format!(r#"{{"seq":{seq}}}"#)).collect();
        let mut entries: Vec<&str> = texts.iter().map(String::as_str).collect();
        let (items, questions) = read(&entries);
        assert_eq!((items.unwrap().len(), questions), (2_500, 3));
        entries[1] = "{bad";
        entries[1_233] = "";
        entries[1_500] = "null";
        entries[2_499] = "]";
        let (items, questions) = read(&entries);
        let items = items.unwrap();
        assert_eq!(items.len(), 2_500);
        let unreadable: Vec<_> =
            items.iter().filter(|item| matches!(item, LogItem::Unreadable { .. })).collect();
        let expected = [2, 1_234, 1_501, 2_500].map(|seq| LogItem::Unreadable { seq });
        assert_eq!(unreadable, expected.iter().collect::<Vec<_>>());
        assert!(questions < 100, "{questions}");
    }

    #[test]
    fn an_answer_that_is_no_log_is_not_asked_for_without_end() {
        let (items, questions) = read(&["<html>"; 2_500]);
        assert!(matches!(items, Err(ApiError::Malformed(_))));
        assert!(questions < 200, "{questions}");
    }
}
