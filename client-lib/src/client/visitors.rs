//! KeyBoxes of the account that came and went while this one was away: the list of KeyBoxes shows nothing of them, the homeserver's log does.

use keystead_keybox::OpensslEntropy;
use keystead_keybox::audit_log::{Entry, LogEvent};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use zeroize::Zeroizing;

use super::{Client, ClientError};
use crate::api::{ApiError, LogItem};
use crate::engine::{KeyBoxAddress, Notice, Record, RecordError};

/// The record of how far the log was looked through.
const NAME: &str = "visitors";

/// How far the log was looked through.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
struct Looked {
    /// The number of the last entry.
    after: u64,
    /// Whether this KeyBox's own registration was among them: what is before is not its business.
    is_registered: bool,
}

impl Client {
    /// Notices KeyBoxes of the account that were made and revoked since the last look, and that this one has never seen. Only under the lock, and
    /// after the account's key sets were looked up.
    pub(super) async fn look_for_visitors(&mut self) -> Result<(), ClientError> {
        let corrupt = |source| RecordError::Corrupt { name: NAME.to_owned(), source };
        let looked = match self.store.load_one(NAME)? {
            Some(record) => serde_json::from_slice(&record.json).map_err(corrupt)?,
            None => Looked::default(),
        };
        let items = match self.api.whole_log(looked.after).await {
            Ok(items) => items,
            // A server that shows no log must not stop all else. `audit` says what is wrong with it.
            Err(ApiError::Server(_) | ApiError::Malformed(_)) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let user_id = self.account().user_id.clone();
        let is_known = |keybox_id: &str| {
            let known = self.engine.keyboxes(&user_id);
            known.into_iter().any(|known| known.keys.keybox_id == keybox_id)
        };
        let (looked, gone) = visitors(looked, &items, &self.account().keybox_id, is_known);
        self.notices.extend(gone.into_iter().map(|(keybox_id, revoked_at)| Notice::OwnKeyBoxPassed {
            keybox: KeyBoxAddress::new(&user_id, &keybox_id),
            revoked_at,
        }));
        let json = Zeroizing::new(serde_json::to_vec(&looked).map_err(corrupt)?);
        Ok(self.store.save(&[Record { name: NAME.to_owned(), json }], &mut OpensslEntropy)?)
    }
}

/// The KeyBoxes that `items`, the entries that follow `looked`, say were revoked, and that are not known here, with the time; and how far that is.
fn visitors(
    mut looked: Looked,
    items: &[LogItem],
    own: &str,
    is_known: impl Fn(&str) -> bool,
) -> (Looked, Vec<(String, u64)>) {
    let mut gone: Vec<(String, u64)> = Vec::new();
    for item in items {
        match item {
            LogItem::Unreadable { seq } => looked.after = looked.after.max(*seq),
            LogItem::Entry(entry) => {
                looked.after = looked.after.max(entry.get("seq").and_then(Value::as_u64).unwrap_or_default());
                match event(entry) {
                    Some((LogEvent::KeyboxRegistered(on), _)) if on.keybox_id == own => {
                        looked.is_registered = true;
                    }
                    Some((LogEvent::KeyboxRevoked(on), ts))
                        if looked.is_registered
                            && !is_known(&on.keybox_id)
                            && !gone.iter().any(|(keybox_id, _)| *keybox_id == on.keybox_id) =>
                    {
                        gone.push((on.keybox_id, ts));
                    }
                    _ => {}
                }
            }
        }
    }
    (looked, gone)
}

fn event(entry: &Map<String, Value>) -> Option<(LogEvent, u64)> {
    let entry: Entry = serde_json::from_value(Value::Object(entry.clone())).ok()?;
    Some((entry.event, entry.ts))
}

#[cfg(test)]
mod tests {
    use keystead_keybox::audit_log::{Head, OnKeyBox};

    use super::*;

    /// A log, from the names of KeyBoxes: `+A` was registered, `-A` revoked.
    fn log(of: &[&str]) -> Vec<LogItem> {
        let mut head = Head::default();
        let entry = |what: &&str| {
            let on = OnKeyBox { keybox_id: what[1..].to_owned(), ..OnKeyBox::default() };
            let is_new = what.starts_with('+');
            let event = if is_new { LogEvent::KeyboxRegistered(on) } else { LogEvent::KeyboxRevoked(on) };
            LogItem::Entry(serde_json::from_str(&head.append("@a:x", 5, event).unwrap()).unwrap())
        };
        of.iter().map(entry).collect()
    }

    #[test]
    fn who_came_and_went_unseen_is_named_once() {
        let log = log(&["+Z", "-Z", "+A", "+B", "+C", "-B", "-C", "+D", "-C"]);
        let (looked, gone) = visitors(Looked::default(), &log, "A", |known| known == "B");
        assert_eq!(gone, [("C".to_owned(), 5)], "Z was before, B is known, D is there");
        assert_eq!((looked.after, looked.is_registered), (9, true));
    }

    #[test]
    fn a_look_goes_on_where_the_last_one_ended() {
        let log = log(&["+A", "+B", "-B"]);
        let (looked, gone) = visitors(Looked::default(), &log[..2], "A", |_| false);
        assert_eq!((looked.after, gone.len()), (2, 0));
        let unreadable = [LogItem::Unreadable { seq: 7 }, log[2].clone()];
        let (looked, gone) = visitors(looked, &unreadable, "A", |_| false);
        assert_eq!((looked.after, gone), (7, vec![("B".to_owned(), 5)]));
    }
}
