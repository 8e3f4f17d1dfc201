//! The log of a user's KeyBoxes: what an entry says, the hash chain, and the signed head (`SPEC.md`, section 20).
//!
//! A homeserver keeps one for each of its users; a KeyBox keeps its own of what it saw, in the same form.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::canonical_json::{JsonSignatureError, NotCanonical, canonical_json, verify_json};
use crate::encoding::base64;
use crate::key_message::{KeyMessage as _, KeyRequest, ResourceKeyContent, Withheld};
use crate::primitives::sha256;

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum LogEvent {
    /// A device published a key set, and so became a KeyBox.
    KeyboxRegistered(OnKeyBox),
    /// A KeyBox got another name.
    KeyboxRenamed(OnKeyBox),
    /// A KeyBox is gone, with its session and its keys.
    KeyboxRevoked(OnKeyBox),
    /// The server holds a passphrase for the KeyBox's private keys from now on.
    PassphraseStored(OnKeyBox),
    /// The server gave the passphrase out.
    PassphraseRetrieved(OnKeyBox),
    /// The server does not hold the passphrase any more.
    PassphraseDestroyed(OnKeyBox),
    /// A resource key was given.
    ResourceKeyGiven(KeyExchange),
    /// A resource key was asked for.
    ResourceKeyAsked(KeyExchange),
    /// A resource key was refused.
    ResourceKeyRefused(KeyExchange),
}

/// What happened to a KeyBox.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct OnKeyBox {
    /// The KeyBox.
    pub keybox_id: String,
    /// What its owner calls it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The network address that the request came from; none if an administrator did it at the server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// The device whose session did it; none where no session was used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
}

/// A key message between one of the user's KeyBoxes and another KeyBox.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct KeyExchange {
    /// The user's KeyBox.
    pub keybox_id: String,
    /// Whether that KeyBox sent the message or is to receive it.
    pub direction: Direction,
    /// The owner of the KeyBox at the other end.
    pub peer_user_id: String,
    /// The KeyBox at the other end.
    pub peer_keybox_id: String,
    /// The room of the resource key.
    pub room_id: String,
    /// The resource key.
    pub key_id: String,
    /// The `exchange_id` of a key that was given, the `request_id` of a question, the `code` of a refusal.
    pub reference: String,
    /// That the message reached nobody: there was no such device.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub undelivered: bool,
}

/// Which way a key message went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// To the user's KeyBox.
    Received,
    /// From the user's KeyBox.
    Sent,
}

/// One entry of a log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its number: 1, 2, 3, …
    pub seq: u64,
    /// [`entry_hash`] of the entry before; empty in the first.
    pub prev: String,
    /// When, by the clock of who keeps the log, in milliseconds since the Unix epoch; never before the entry before.
    pub ts: u64,
    /// Whose log it is.
    pub user_id: String,
    /// What happened.
    #[serde(flatten)]
    pub event: LogEvent,
}

/// How far a log reaches: the number and the hash of its newest entry; 0 and empty before the first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// The number of the newest entry.
    pub seq: u64,
    /// Its hash.
    pub hash: String,
    /// Its time.
    pub ts: u64,
}

/// Why an entry does not continue a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChainError {
    /// It is of another user's log.
    #[error("the entry belongs to the log of another user")]
    OtherUser,
    /// An entry is missing before it, or it comes twice.
    #[error("the number of the entry does not follow on the one before")]
    Number,
    /// It follows on another entry than the one before it.
    #[error("the entry does not carry the hash of the one before")]
    Hash,
    /// Its time is before that of the entry before.
    #[error("the time of the entry is before that of the one before")]
    Time,
    /// It has no canonical form, or not the members of an entry.
    #[error("the entry is malformed")]
    Malformed,
}

impl From<NotCanonical> for ChainError {
    fn from(_: NotCanonical) -> Self {
        Self::Malformed
    }
}

impl LogEvent {
    /// What the log of `keybox_id` says of a to-device message between it and `peer`; `None` for what is not logged, or is no
    /// key message.
    pub fn of_message(
        message_type: &str,
        content: &Value,
        direction: Direction,
        keybox_id: &str,
        (peer_user_id, peer_keybox_id): (&str, &str),
    ) -> Option<Self> {
        let event = match message_type {
            ResourceKeyContent::EVENT_TYPE => Self::ResourceKeyGiven,
            KeyRequest::EVENT_TYPE => Self::ResourceKeyAsked,
            Withheld::EVENT_TYPE => Self::ResourceKeyRefused,
            _ => return None,
        };
        let text = |name: &str| content.get(name).and_then(Value::as_str).map(str::to_owned);
        let reference = match message_type {
            ResourceKeyContent::EVENT_TYPE => text("exchange_id")?,
            KeyRequest::EVENT_TYPE if text("action")? == "request" => text("request_id")?,
            Withheld::EVENT_TYPE => text("code")?,
            _ => return None,
        };
        Some(event(KeyExchange {
            keybox_id: keybox_id.to_owned(),
            direction,
            peer_user_id: peer_user_id.to_owned(),
            peer_keybox_id: peer_keybox_id.to_owned(),
            room_id: text("room_id")?,
            key_id: text("key_id")?,
            reference,
            undelivered: false,
        }))
    }

    /// The user's KeyBox that it is about.
    pub fn keybox_id(&self) -> &str {
        match self {
            Self::KeyboxRegistered(on)
            | Self::KeyboxRenamed(on)
            | Self::KeyboxRevoked(on)
            | Self::PassphraseStored(on)
            | Self::PassphraseRetrieved(on)
            | Self::PassphraseDestroyed(on) => &on.keybox_id,
            Self::ResourceKeyGiven(exchange)
            | Self::ResourceKeyAsked(exchange)
            | Self::ResourceKeyRefused(exchange) => &exchange.keybox_id,
        }
    }

    /// The exchange, if it is one.
    pub fn exchange(&self) -> Option<&KeyExchange> {
        match self {
            Self::ResourceKeyGiven(exchange)
            | Self::ResourceKeyAsked(exchange)
            | Self::ResourceKeyRefused(exchange) => Some(exchange),
            _ => None,
        }
    }
}

impl Head {
    /// Makes the entry that follows, and moves on to it. Returns its canonical JSON, which is what is kept.
    pub fn append(&mut self, user_id: &str, now: u64, event: LogEvent) -> Result<String, NotCanonical> {
        let entry = Entry {
            seq: self.seq + 1,
            prev: self.hash.clone(),
            // Clocks of replicas differ a little, and may be set back.
            ts: now.max(self.ts),
            user_id: user_id.to_owned(),
            event,
        };
        let text = canonical_json(&serde_json::to_value(&entry).map_err(|_| NotCanonical)?)?;
        *self = Self { seq: entry.seq, hash: base64(&sha256(text.as_bytes())), ts: entry.ts };
        Ok(text)
    }

    /// Moves on to `entry` if it is the one that follows in the log of `user_id`.
    ///
    /// Members that this implementation does not know count for the hash all the same.
    pub fn follow(&mut self, user_id: &str, entry: &Map<String, Value>) -> Result<(), ChainError> {
        let number = |name: &str| entry.get(name).and_then(Value::as_u64).ok_or(ChainError::Malformed);
        let text = |name: &str| entry.get(name).and_then(Value::as_str).ok_or(ChainError::Malformed);
        let (seq, ts) = (number("seq")?, number("ts")?);
        if text("user_id")? != user_id {
            return Err(ChainError::OtherUser);
        }
        if seq != self.seq + 1 {
            return Err(ChainError::Number);
        }
        if text("prev")? != self.hash {
            return Err(ChainError::Hash);
        }
        if ts < self.ts {
            return Err(ChainError::Time);
        }
        *self = Self { seq, hash: entry_hash(entry)?, ts };
        Ok(())
    }
}

/// The hash of an entry: unpadded base64 of the SHA-256 of its canonical JSON.
pub fn entry_hash(entry: &Map<String, Value>) -> Result<String, NotCanonical> {
    let text = canonical_json(&Value::Object(entry.clone()))?;
    Ok(base64(&sha256(text.as_bytes())))
}

/// Checks a signed head: that it is of the log of `user_id`, and signed by the server's key `ed25519:<key_name>`.
pub fn check_head(
    head: &Map<String, Value>,
    user_id: &str,
    server_name: &str,
    (key_name, key): (&str, &[u8; 32]),
) -> Result<Head, HeadError> {
    verify_json(key, server_name, key_name, head)?;
    if head.get("user_id").and_then(Value::as_str) != Some(user_id) {
        return Err(HeadError::OtherUser);
    }
    serde_json::from_value(Value::Object(head.clone())).map_err(|_| HeadError::Malformed)
}

/// Why a signed head is not accepted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HeadError {
    /// It is of another user's log.
    #[error("the head belongs to the log of another user")]
    OtherUser,
    /// It lacks members.
    #[error("the head is malformed")]
    Malformed,
    /// It is not signed by that key.
    #[error("the head is not signed by the homeserver's key")]
    Signature(#[from] JsonSignatureError),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registered(name: &str) -> LogEvent {
        LogEvent::KeyboxRegistered(OnKeyBox {
            keybox_id: "BOX".to_owned(),
            name: Some(name.to_owned()),
            ..OnKeyBox::default()
        })
    }

    fn chain() -> Vec<Map<String, Value>> {
        let mut head = Head::default();
        ["one", "two", "three"]
            .map(|name| serde_json::from_str(&head.append("@a:x", 5, registered(name)).unwrap()).unwrap())
            .into()
    }

    fn walk(entries: &[Map<String, Value>]) -> Result<Head, ChainError> {
        let mut head = Head::default();
        entries.iter().try_for_each(|entry| head.follow("@a:x", entry)).map(|()| head)
    }

    #[test]
    fn an_entry_is_canonical_json_with_the_hash_of_the_one_before() {
        let mut head = Head::default();
        let first = head.append("@a:x", 5, registered("one")).unwrap();
        assert_eq!(
            first,
            r#"{"keybox_id":"BOX","name":"one","prev":"","seq":1,"ts":5,"type":"keybox_registered","user_id":"@a:x"}"#
        );
        // printf %s '{…}' | openssl dgst -sha256 -binary | base64
        assert_eq!(head.hash, base64(&sha256(first.as_bytes())));
        let second = head.append("@a:x", 3, registered("two")).unwrap();
        let second: Entry = serde_json::from_str(&second).unwrap();
        assert_eq!((second.seq, second.ts), (2, 5), "time does not go back");
        assert_eq!(second.prev, base64(&sha256(first.as_bytes())));
        assert_eq!(second.event, registered("two"));
    }

    #[test]
    fn messages_that_hand_keys_on_are_logged_and_others_are_not() {
        let content = serde_json::json!({
            "room_id": "!r:x", "key_id": "k", "exchange_id": "e", "action": "request", "request_id": "q", "code": "c",
        });
        let of = |kind: &str, content: &Value| {
            LogEvent::of_message(kind, content, Direction::Sent, "BOX", ("@b:x", "B"))
        };
        let exchange = |reference: &str| KeyExchange {
            keybox_id: "BOX".to_owned(),
            direction: Direction::Sent,
            peer_user_id: "@b:x".to_owned(),
            peer_keybox_id: "B".to_owned(),
            room_id: "!r:x".to_owned(),
            key_id: "k".to_owned(),
            reference: reference.to_owned(),
            undelivered: false,
        };
        for (kind, event) in [
            (ResourceKeyContent::EVENT_TYPE, LogEvent::ResourceKeyGiven(exchange("e"))),
            (KeyRequest::EVENT_TYPE, LogEvent::ResourceKeyAsked(exchange("q"))),
            (Withheld::EVENT_TYPE, LogEvent::ResourceKeyRefused(exchange("c"))),
        ] {
            assert_eq!(of(kind, &content), Some(event.clone()));
            assert_eq!(
                (event.keybox_id(), event.exchange().map(|of| of.keybox_id.as_str())),
                ("BOX", Some("BOX"))
            );
            for missing in ["room_id", "key_id"] {
                let mut less = content.clone();
                less[missing] = Value::Null;
                assert_eq!(of(kind, &less), None, "{kind} without {missing}");
            }
        }
        let mut cancelled = content.clone();
        cancelled["action"] = "cancel".into();
        assert_eq!(of(KeyRequest::EVENT_TYPE, &cancelled), None);
        for other in
            ["com.trustner.keybox.resource_key.ack", "com.trustner.keybox.identity", "m.room_key", ""]
        {
            assert_eq!(of(other, &content), None, "{other}");
        }
        let on = || OnKeyBox { keybox_id: "BOX".to_owned(), ..OnKeyBox::default() };
        for event in [
            LogEvent::KeyboxRegistered(on()),
            LogEvent::KeyboxRenamed(on()),
            LogEvent::KeyboxRevoked(on()),
            LogEvent::PassphraseStored(on()),
            LogEvent::PassphraseRetrieved(on()),
            LogEvent::PassphraseDestroyed(on()),
        ] {
            assert_eq!((event.keybox_id(), event.exchange()), ("BOX", None));
        }
    }

    #[test]
    fn an_entry_that_is_refused_changes_nothing() {
        let entries = chain();
        let mut head = Head::default();
        head.follow("@a:x", &entries[0]).unwrap();
        let before = head.clone();
        head.follow("@a:x", &entries[2]).unwrap_err();
        assert_eq!(head, before);
        head.follow("@a:x", &entries[1]).unwrap();
        let hash = entry_hash(&entries[1]).unwrap();
        assert_eq!(
            hash,
            base64(&sha256(canonical_json(&Value::Object(entries[1].clone())).unwrap().as_bytes()))
        );
        assert_eq!(head, Head { seq: 2, hash, ts: 5 });
        // As late as the one before is in time.
        let mut number = entries[2].clone();
        number.insert("more".to_owned(), serde_json::json!(1.5));
        assert_eq!(head.follow("@a:x", &number), Err(ChainError::Malformed));
        assert_eq!(head.seq, 2);
    }

    #[test]
    fn nothing_can_be_taken_out_put_in_or_changed() {
        let entries = chain();
        assert_eq!(walk(&entries).unwrap().seq, 3);
        assert_eq!(walk(&[entries[0].clone(), entries[2].clone()]), Err(ChainError::Number));
        assert_eq!(walk(&[entries[0].clone(), entries[0].clone()]), Err(ChainError::Number));
        let changed = |index: usize, member: &str, value: Value| {
            let mut entries = entries.clone();
            entries[index].insert(member.to_owned(), value);
            walk(&entries)
        };
        assert_eq!(changed(1, "name", "other".into()), Err(ChainError::Hash));
        assert_eq!(changed(1, "more", 1.into()), Err(ChainError::Hash), "an unknown member counts");
        assert_eq!(changed(1, "user_id", "@b:x".into()), Err(ChainError::OtherUser));
        assert_eq!(changed(1, "ts", 4.into()), Err(ChainError::Time));
        assert_eq!(changed(1, "prev", Value::Null), Err(ChainError::Malformed));
        assert_ne!(changed(2, "name", "other".into()).unwrap().hash, walk(&entries).unwrap().hash);
    }

    #[test]
    fn a_head_is_signed_by_the_server_for_one_user() {
        use crate::canonical_json::sign_json;
        use crate::key_set::PrivateKeySet;
        let keys = PrivateKeySet::generate("@server:x", "1", &mut crate::OpensslEntropy).unwrap();
        let mut object = serde_json::json!({ "user_id": "@a:x", "seq": 3, "hash": "h", "ts": 9 });
        let head = object.as_object_mut().unwrap();
        sign_json(&keys, head).unwrap();
        let key = keys.public().unwrap().ed25519;
        let check = |head: &Map<String, Value>, user: &str| check_head(head, user, "@server:x", ("1", &key));
        assert_eq!(check(head, "@a:x").unwrap(), Head { seq: 3, hash: "h".to_owned(), ts: 9 });
        assert!(matches!(check(head, "@b:x"), Err(HeadError::OtherUser)));
        head.insert("seq".to_owned(), 2.into());
        assert!(matches!(check(head, "@a:x"), Err(HeadError::Signature(_))));
    }
}
