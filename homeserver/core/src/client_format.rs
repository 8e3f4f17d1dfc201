//! Events as clients see them ([spec]): made from the stored event without taking its content apart.
//!
//! [spec]: https://spec.matrix.org/v1.19/client-server-api/#room-event-format

use std::collections::BTreeMap;

use ruma::{EventId, MilliSecondsSinceUnixEpoch, RoomId, TransactionId};
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};

/// A stored event that cannot be read as an event.
#[derive(Debug, thiserror::Error)]
#[error("the stored event cannot be read as a persistent event")]
pub struct MalformedEvent(#[from] serde_json::Error);

/// A stored event, read only as far as clients need it.
#[derive(Debug, Deserialize)]
pub struct StoredEvent<'a> {
    #[serde(borrow, rename = "type")]
    event_type: &'a RawValue,
    #[serde(borrow)]
    sender: &'a RawValue,
    #[serde(borrow, default)]
    state_key: Option<&'a RawValue>,
    #[serde(borrow)]
    content: &'a RawValue,
    origin_server_ts: MilliSecondsSinceUnixEpoch,
    #[serde(borrow, default)]
    redacts: Option<&'a RawValue>,
}

/// What goes into `unsigned`: facts about the event that depend on who asks, and when.
#[derive(Clone, Debug, Default)]
pub struct Unsigned<'a> {
    /// The time of the request; makes `age`.
    pub now: Option<MilliSecondsSinceUnixEpoch>,
    /// The client's transaction id; only for the device that sent the event.
    pub transaction_id: Option<&'a TransactionId>,
    /// The content of the state event that this one replaced.
    pub prev_content: Option<&'a RawValue>,
    /// The id of the state event that this one replaced.
    pub replaces_state: Option<&'a EventId>,
    /// The redaction of this event, in the same client format as the event itself.
    pub redacted_because: Option<&'a RawValue>,
    /// The asking user's membership at the event.
    pub membership: Option<&'a str>,
}

#[derive(Serialize)]
struct UnsignedJson<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    age: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    membership: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prev_content: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    redacted_because: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    replaces_state: Option<&'a EventId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    transaction_id: Option<&'a TransactionId>,
}

#[derive(Serialize)]
struct ClientEventJson<'a> {
    content: &'a RawValue,
    event_id: &'a EventId,
    origin_server_ts: MilliSecondsSinceUnixEpoch,
    #[serde(skip_serializing_if = "Option::is_none")]
    redacts: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    room_id: Option<&'a RoomId>,
    sender: &'a RawValue,
    #[serde(skip_serializing_if = "Option::is_none")]
    state_key: Option<&'a RawValue>,
    #[serde(rename = "type")]
    event_type: &'a RawValue,
    unsigned: UnsignedJson<'a>,
}

#[derive(Serialize)]
struct StrippedJson<'a> {
    content: &'a RawValue,
    sender: &'a RawValue,
    #[serde(skip_serializing_if = "Option::is_none")]
    state_key: Option<&'a RawValue>,
    #[serde(rename = "type")]
    event_type: &'a RawValue,
}

impl<'a> StoredEvent<'a> {
    /// Reads a stored event.
    ///
    /// # Errors
    ///
    /// [`MalformedEvent`] if a field that every event has is missing or of the wrong type.
    pub fn read(pdu: &'a RawValue) -> Result<Self, MalformedEvent> {
        Ok(serde_json::from_str(pdu.get())?)
    }

    /// The event's content.
    pub fn content(&self) -> &'a RawValue {
        self.content
    }

    /// The event with its `room_id`, as `/messages`, `/context`, `/event` and push gateways want it.
    ///
    /// # Errors
    ///
    /// [`MalformedEvent`] if the content of a redaction is no object.
    pub fn with_room_id(
        &self,
        event_id: &EventId,
        room_id: &RoomId,
        unsigned: &Unsigned<'_>,
    ) -> Result<Box<RawValue>, MalformedEvent> {
        self.client_event(event_id, Some(room_id), unsigned)
    }

    /// The event without its `room_id`, as `/sync` wants it.
    ///
    /// # Errors
    ///
    /// [`MalformedEvent`] if the content of a redaction is no object.
    pub fn for_sync(
        &self,
        event_id: &EventId,
        unsigned: &Unsigned<'_>,
    ) -> Result<Box<RawValue>, MalformedEvent> {
        self.client_event(event_id, None, unsigned)
    }

    /// The [stripped state] that an invited or knocking user is shown of the room.
    ///
    /// # Errors
    ///
    /// [`MalformedEvent`] if the event cannot be written, which valid parts never cause.
    ///
    /// [stripped state]: https://spec.matrix.org/v1.19/client-server-api/#stripped-state
    pub fn stripped(&self) -> Result<Box<RawValue>, MalformedEvent> {
        let Self { event_type, sender, state_key, content, .. } = *self;
        Ok(to_raw_value(&StrippedJson { content, sender, state_key, event_type })?)
    }

    fn client_event(
        &self,
        event_id: &EventId,
        room_id: Option<&RoomId>,
        unsigned: &Unsigned<'_>,
    ) -> Result<Box<RawValue>, MalformedEvent> {
        let redaction = self.redacts_everywhere()?;
        let (redacts, content) = match &redaction {
            Some(both) => (Some(both.redacts), &*both.content),
            None => (self.redacts, self.content),
        };
        Ok(to_raw_value(&ClientEventJson {
            content,
            event_id,
            origin_server_ts: self.origin_server_ts,
            redacts,
            room_id,
            sender: self.sender,
            state_key: self.state_key,
            event_type: self.event_type,
            unsigned: UnsignedJson {
                age: unsigned.now.map(|now| age(self.origin_server_ts, now)),
                membership: unsigned.membership,
                prev_content: unsigned.prev_content,
                redacted_because: unsigned.redacted_because,
                replaces_state: unsigned.replaces_state,
                transaction_id: unsigned.transaction_id,
            },
        })?)
    }

    /// For a redaction, `redacts` both at the top level and in the content.
    ///
    /// > For improved compatibility with newer clients, servers should add a `redacts` property to the `content` of
    /// > `m.room.redaction` events in *older* room versions. […] with older clients, […] to the top level […] in
    /// > *newer* room versions when serving such events over the Client-Server API.
    fn redacts_everywhere(&self) -> Result<Option<Redaction<'_>>, MalformedEvent> {
        if self.event_type.get() != "\"m.room.redaction\"" {
            return Ok(None);
        }
        let mut fields: BTreeMap<String, &RawValue> = serde_json::from_str(self.content.get())?;
        let Some(redacts) = self.redacts.or_else(|| fields.get("redacts").copied()) else {
            return Ok(None);
        };
        fields.entry("redacts".to_owned()).or_insert(redacts);
        Ok(Some(Redaction { redacts, content: to_raw_value(&fields)? }))
    }
}

struct Redaction<'a> {
    redacts: &'a RawValue,
    content: Box<RawValue>,
}

/// Milliseconds since the event; 0 if it comes from a server whose clock is ahead.
fn age(sent: MilliSecondsSinceUnixEpoch, now: MilliSecondsSinceUnixEpoch) -> u64 {
    u64::from(now.get()).saturating_sub(u64::from(sent.get()))
}

#[cfg(test)]
mod tests {
    use ruma::{UInt, event_id, events::AnySyncTimelineEvent, room_id, serde::Raw};
    use serde_json::{Value, json};

    use super::*;
    use crate::json::raw;

    fn at(ms: u32) -> MilliSecondsSinceUnixEpoch {
        MilliSecondsSinceUnixEpoch(UInt::from(ms))
    }

    fn pdu(extra: Value) -> Box<RawValue> {
        let mut event = json!({
            "type": "m.room.message", "sender": "@a:b.c", "content": { "body": "x", "msgtype": "m.text" }, "origin_server_ts": 1000,
            "room_id": "!r:b.c", "depth": 7, "auth_events": ["$a"], "prev_events": ["$b"], "hashes": {}, "signatures": {},
        });
        let fields = event.as_object_mut().unwrap();
        fields.extend(extra.as_object().unwrap().clone());
        raw(&event)
    }

    fn parsed(event: &RawValue) -> Value {
        serde_json::from_str(event.get()).unwrap()
    }

    #[test]
    fn the_two_formats_differ_in_the_room_id_alone() {
        let pdu = pdu(json!({}));
        let event = StoredEvent::read(&pdu).unwrap();
        let unsigned = Unsigned { now: Some(at(1250)), ..Unsigned::default() };
        let sync = event.for_sync(event_id!("$e"), &unsigned).unwrap();
        let mut expected = json!({
            "type": "m.room.message", "sender": "@a:b.c", "content": { "body": "x", "msgtype": "m.text" },
            "origin_server_ts": 1000, "event_id": "$e", "unsigned": { "age": 250 },
        });
        assert_eq!(parsed(&sync), expected);
        expected["room_id"] = "!r:b.c".into();
        let full = event.with_room_id(event_id!("$e"), room_id!("!r:b.c"), &unsigned).unwrap();
        assert_eq!(parsed(&full), expected);
        Raw::<AnySyncTimelineEvent>::from_json(sync).deserialize().unwrap();
    }

    #[test]
    fn state_carries_its_key_and_what_it_replaced() {
        let pdu = pdu(json!({ "type": "m.room.topic", "state_key": "" }));
        let previous = raw(&json!({ "topic": "old" }));
        let unsigned = Unsigned {
            transaction_id: Some("t1".into()),
            prev_content: Some(&previous),
            replaces_state: Some(event_id!("$old")),
            membership: Some("join"),
            ..Unsigned::default()
        };
        let event = StoredEvent::read(&pdu).unwrap().for_sync(event_id!("$e"), &unsigned).unwrap();
        let event = parsed(&event);
        assert_eq!(event["state_key"], "");
        assert_eq!(
            event["unsigned"],
            json!({
                "transaction_id": "t1", "prev_content": { "topic": "old" }, "replaces_state": "$old", "membership": "join",
            })
        );
    }

    #[test]
    fn a_redaction_names_its_target_in_both_places() {
        let old = pdu(json!({ "type": "m.room.redaction", "redacts": "$t", "content": { "reason": "r" } }));
        let new = pdu(json!({ "type": "m.room.redaction", "content": { "reason": "r", "redacts": "$t" } }));
        for pdu in [old, new] {
            let event = StoredEvent::read(&pdu).unwrap();
            let event = parsed(&event.for_sync(event_id!("$e"), &Unsigned::default()).unwrap());
            assert_eq!(event["redacts"], "$t");
            assert_eq!(event["content"], json!({ "reason": "r", "redacts": "$t" }));
        }
        let redacted = pdu(json!({ "type": "m.room.redaction", "content": {} }));
        let event = StoredEvent::read(&redacted).unwrap();
        let event = parsed(&event.for_sync(event_id!("$e"), &Unsigned::default()).unwrap());
        assert!(event.get("redacts").is_none());
    }

    #[test]
    fn stripped_state_has_four_fields() {
        let pdu = pdu(json!({ "type": "m.room.name", "state_key": "", "content": { "name": "n" } }));
        let event = StoredEvent::read(&pdu).unwrap().stripped().unwrap();
        assert_eq!(
            parsed(&event),
            json!({ "type": "m.room.name", "state_key": "", "content": { "name": "n" }, "sender": "@a:b.c" })
        );
    }

    #[test]
    fn content_is_copied_byte_for_byte() {
        let text =
            r#"{"type":"m.x","sender":"@a:b.c","origin_server_ts":5,"content":{"z":1,  "a":"\u00e9"}}"#;
        let pdu = RawValue::from_string(text.to_owned()).unwrap();
        let event = StoredEvent::read(&pdu).unwrap();
        let sync =
            event.for_sync(event_id!("$e"), &Unsigned { now: Some(at(1)), ..Unsigned::default() }).unwrap();
        assert!(sync.get().contains(r#"{"z":1,  "a":"\u00e9"}"#), "{}", sync.get());
        assert_eq!(parsed(&sync)["unsigned"], json!({ "age": 0 }));
    }

    #[test]
    fn what_is_no_event_is_an_error() {
        for text in ["[]", "{}", r#"{"type":"m.x","sender":"@a:b.c","content":{},"origin_server_ts":"now"}"#]
        {
            let raw = RawValue::from_string(text.to_owned()).unwrap();
            assert!(StoredEvent::read(&raw).is_err(), "{text}");
        }
    }
}
