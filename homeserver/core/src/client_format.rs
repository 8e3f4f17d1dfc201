//! Events as clients see them ([spec]): made from the stored event without taking its content apart.
//!
//! [spec]: https://spec.matrix.org/v1.19/client-server-api/#room-event-format

use std::collections::BTreeMap;

use ruma::{EventId, MilliSecondsSinceUnixEpoch, RoomId, UserId, events::TimelineEventType};
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};

use crate::pdu::Pdu;

/// An event whose content is not what events of its type have, so that it cannot be shown.
#[derive(Debug, thiserror::Error)]
#[error("the event cannot be written in the form that clients read")]
pub struct MalformedEvent(#[from] serde_json::Error);

/// What goes into `unsigned`: facts about the event that depend on who asks, and when.
#[derive(Clone, Debug, Default)]
pub struct Unsigned<'a> {
    /// The time of the request; makes `age`.
    pub now: Option<MilliSecondsSinceUnixEpoch>,
    /// The client's transaction id; only for the device that sent the event.
    pub transaction_id: Option<&'a str>,
    /// The content of the state event that this one replaced.
    pub prev_content: Option<&'a RawValue>,
    /// The id of the state event that this one replaced.
    pub replaces_state: Option<&'a EventId>,
    /// The redaction of this event, in the same client format as the event itself.
    pub redacted_because: Option<&'a RawValue>,
    /// The asking user's membership at the event.
    pub membership: Option<&'a str>,
    /// What the children of the event say about it.
    pub relations: Option<&'a RawValue>,
}

#[derive(Serialize)]
struct UnsignedJson<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    age: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    membership: Option<&'a str>,
    #[serde(rename = "m.relations", skip_serializing_if = "Option::is_none")]
    relations: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prev_content: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    redacted_because: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    replaces_state: Option<&'a EventId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    transaction_id: Option<&'a str>,
}

#[derive(Serialize)]
struct ClientEventJson<'a> {
    content: &'a RawValue,
    event_id: &'a EventId,
    origin_server_ts: MilliSecondsSinceUnixEpoch,
    #[serde(skip_serializing_if = "Option::is_none")]
    redacts: Option<&'a EventId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    room_id: Option<&'a RoomId>,
    sender: &'a UserId,
    #[serde(skip_serializing_if = "Option::is_none")]
    state_key: Option<&'a str>,
    #[serde(rename = "type")]
    event_type: &'a TimelineEventType,
    unsigned: UnsignedJson<'a>,
}

#[derive(Serialize)]
struct StrippedJson<'a> {
    content: &'a RawValue,
    #[serde(skip_serializing_if = "Option::is_none")]
    origin_server_ts: Option<MilliSecondsSinceUnixEpoch>,
    sender: &'a UserId,
    #[serde(skip_serializing_if = "Option::is_none")]
    state_key: Option<&'a str>,
    #[serde(rename = "type")]
    event_type: &'a TimelineEventType,
}

/// The event with its `room_id`, as `/messages`, `/context`, `/event` and push gateways want it.
///
/// # Errors
/// [`MalformedEvent`] if the content of a redaction is no object.
pub fn with_room_id(pdu: &Pdu, unsigned: &Unsigned<'_>) -> Result<Box<RawValue>, MalformedEvent> {
    client_event(pdu, Some(&pdu.room_id), unsigned)
}

/// The event without its `room_id`, as `/sync` wants it.
///
/// # Errors
/// [`MalformedEvent`] if the content of a redaction is no object.
pub fn for_sync(pdu: &Pdu, unsigned: &Unsigned<'_>) -> Result<Box<RawValue>, MalformedEvent> {
    client_event(pdu, None, unsigned)
}

/// The event as it goes from server to server: its stored JSON, with its id, which clients could not else know, and with what
/// its client format has in `unsigned` and `content`, which may be empty for this reader.
///
/// # Errors
/// [`MalformedEvent`] if the stored JSON or the client format is no event.
pub fn for_federation(
    stored: &str,
    event_id: &EventId,
    client_format: &RawValue,
) -> Result<Box<RawValue>, MalformedEvent> {
    #[derive(Deserialize)]
    struct OfReader<'a> {
        #[serde(borrow)]
        content: &'a RawValue,
        #[serde(borrow)]
        unsigned: &'a RawValue,
    }
    let mut fields: BTreeMap<&str, &RawValue> = serde_json::from_str(stored)?;
    let event_id = to_raw_value(event_id)?;
    let OfReader { content, unsigned } = serde_json::from_str(client_format.get())?;
    fields.insert("event_id", &event_id);
    fields.insert("content", content);
    fields.insert("unsigned", unsigned);
    Ok(to_raw_value(&fields)?)
}

/// The [stripped state] that an invited or knocking user is shown of the room.
///
/// # Errors
/// [`MalformedEvent`] if the event cannot be written, which valid parts never cause.
///
/// [stripped state]: https://spec.matrix.org/v1.19/client-server-api/#stripped-state
pub fn stripped(pdu: &Pdu) -> Result<Box<RawValue>, MalformedEvent> {
    stripped_with(pdu, None)
}

/// A child of a space as the hierarchy shows it: stripped state with the time at which it was set.
///
/// > The `m.space.child` events of the space-room, represented as Stripped State Events with an added `origin_server_ts` key.
///
/// # Errors
/// [`MalformedEvent`] if the event cannot be written, which valid parts never cause.
pub fn stripped_with_time(pdu: &Pdu) -> Result<Box<RawValue>, MalformedEvent> {
    stripped_with(pdu, Some(pdu.origin_server_ts))
}

fn stripped_with(
    pdu: &Pdu,
    origin_server_ts: Option<MilliSecondsSinceUnixEpoch>,
) -> Result<Box<RawValue>, MalformedEvent> {
    Ok(to_raw_value(&StrippedJson {
        content: &pdu.content,
        origin_server_ts,
        sender: &pdu.sender,
        state_key: pdu.state_key.as_deref(),
        event_type: &pdu.event_type,
    })?)
}

fn client_event(
    pdu: &Pdu,
    room_id: Option<&RoomId>,
    unsigned: &Unsigned<'_>,
) -> Result<Box<RawValue>, MalformedEvent> {
    let content = content_with_redacts(pdu)?;
    Ok(to_raw_value(&ClientEventJson {
        content: content.as_deref().unwrap_or(&pdu.content),
        event_id: &pdu.event_id,
        origin_server_ts: pdu.origin_server_ts,
        redacts: pdu.redacts.as_deref(),
        room_id,
        sender: &pdu.sender,
        state_key: pdu.state_key.as_deref(),
        event_type: &pdu.event_type,
        unsigned: UnsignedJson {
            age: unsigned.now.map(|now| age(pdu.origin_server_ts, now)),
            membership: unsigned.membership,
            prev_content: unsigned.prev_content,
            redacted_because: unsigned.redacted_because,
            relations: unsigned.relations,
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
fn content_with_redacts(pdu: &Pdu) -> Result<Option<Box<RawValue>>, MalformedEvent> {
    let Some(redacts) = pdu.redacts.as_ref().filter(|_| pdu.event_type == TimelineEventType::RoomRedaction)
    else {
        return Ok(None);
    };
    let mut fields: BTreeMap<&str, &RawValue> = serde_json::from_str(pdu.content.get())?;
    let redacts = to_raw_value(redacts)?;
    fields.entry("redacts").or_insert(&redacts);
    Ok(Some(to_raw_value(&fields)?))
}

/// Milliseconds since the event; 0 if it comes from a server whose clock is ahead.
fn age(sent: MilliSecondsSinceUnixEpoch, now: MilliSecondsSinceUnixEpoch) -> u64 {
    u64::from(now.get()).saturating_sub(u64::from(sent.get()))
}

#[cfg(test)]
mod tests {
    use ruma::{UInt, event_id, events::AnySyncTimelineEvent, owned_event_id, owned_room_id, serde::Raw};
    use serde_json::{Value, json};

    use super::*;
    use crate::json::raw;

    fn at(ms: u32) -> MilliSecondsSinceUnixEpoch {
        MilliSecondsSinceUnixEpoch(UInt::from(ms))
    }

    fn pdu(extra: Value) -> Pdu {
        let mut event = json!({
            "type": "m.room.message", "sender": "@a:b.c", "content": { "body": "x", "msgtype": "m.text" }, "origin_server_ts": 1000,
            "room_id": "!r:b.c", "depth": 7, "auth_events": ["$a"], "prev_events": ["$b"], "hashes": {}, "signatures": {},
        });
        let fields = event.as_object_mut().unwrap();
        fields.extend(extra.as_object().unwrap().clone());
        Pdu::from_json(owned_event_id!("$e"), owned_room_id!("!r:b.c"), &event.to_string()).unwrap()
    }

    fn parsed(event: &RawValue) -> Value {
        serde_json::from_str(event.get()).unwrap()
    }

    #[test]
    fn the_two_formats_differ_in_the_room_id_alone() {
        let pdu = pdu(json!({}));
        let unsigned = Unsigned { now: Some(at(1250)), ..Unsigned::default() };
        let sync = for_sync(&pdu, &unsigned).unwrap();
        let mut expected = json!({
            "type": "m.room.message", "sender": "@a:b.c", "content": { "body": "x", "msgtype": "m.text" },
            "origin_server_ts": 1000, "event_id": "$e", "unsigned": { "age": 250 },
        });
        assert_eq!(parsed(&sync), expected);
        expected["room_id"] = "!r:b.c".into();
        assert_eq!(parsed(&with_room_id(&pdu, &unsigned).unwrap()), expected);
        Raw::<AnySyncTimelineEvent>::from_json(sync).deserialize().unwrap();
    }

    #[test]
    fn state_carries_its_key_and_what_it_replaced() {
        let pdu = pdu(json!({ "type": "m.room.topic", "state_key": "" }));
        let previous = raw(&json!({ "topic": "old" }));
        let unsigned = Unsigned {
            transaction_id: Some("t1"),
            prev_content: Some(&previous),
            replaces_state: Some(event_id!("$old")),
            membership: Some("join"),
            ..Unsigned::default()
        };
        let event = parsed(&for_sync(&pdu, &unsigned).unwrap());
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
            let event = parsed(&for_sync(&pdu, &Unsigned::default()).unwrap());
            assert_eq!(event["redacts"], "$t");
            assert_eq!(event["content"], json!({ "reason": "r", "redacts": "$t" }));
        }
        let redacted = pdu(json!({ "type": "m.room.redaction", "content": {} }));
        assert!(parsed(&for_sync(&redacted, &Unsigned::default()).unwrap()).get("redacts").is_none());
    }

    #[test]
    fn stripped_state_has_four_fields() {
        let pdu = pdu(json!({ "type": "m.room.name", "state_key": "", "content": { "name": "n" } }));
        assert_eq!(
            parsed(&stripped(&pdu).unwrap()),
            json!({ "type": "m.room.name", "state_key": "", "content": { "name": "n" }, "sender": "@a:b.c" })
        );
    }

    #[test]
    fn a_child_of_a_space_tells_when_it_was_set() {
        let pdu =
            pdu(json!({ "type": "m.space.child", "state_key": "!c:b.c", "content": { "via": ["b.c"] } }));
        let child = parsed(&stripped_with_time(&pdu).unwrap());
        assert_eq!((&child["origin_server_ts"], &child["state_key"]), (&json!(1000), &json!("!c:b.c")));
        assert!(parsed(&stripped(&pdu).unwrap()).get("origin_server_ts").is_none());
    }

    #[test]
    fn the_format_of_the_federation_is_what_is_stored_with_what_only_its_reader_is_told() {
        let stored = json!({
            "type": "m.x", "sender": "@a:b.c", "content": {}, "origin_server_ts": 1, "room_id": "!r:b.c", "depth": 7,
            "auth_events": ["$a"], "prev_events": ["$b"], "hashes": { "sha256": "h" }, "signatures": { "b.c": {} },
        });
        let pdu =
            Pdu::from_json(owned_event_id!("$e"), owned_room_id!("!r:b.c"), &stored.to_string()).unwrap();
        let unsigned = Unsigned { transaction_id: Some("t"), ..Unsigned::default() };
        let client = for_sync(&pdu, &unsigned).unwrap();
        let mut expected = stored.clone();
        expected["event_id"] = "$e".into();
        expected["unsigned"] = json!({ "transaction_id": "t" });
        assert_eq!(parsed(&for_federation(&stored.to_string(), &pdu.event_id, &client).unwrap()), expected);
        assert!(for_federation("no JSON", &pdu.event_id, &client).is_err());
    }

    #[test]
    fn content_is_copied_byte_for_byte() {
        let text = r#"{"type":"m.x","sender":"@a:b.c","origin_server_ts":5,"prev_events":[],"auth_events":[],"depth":1,"content":{"z":1,  "a":"\u00e9"}}"#;
        let pdu = Pdu::from_json(owned_event_id!("$e"), owned_room_id!("!r:b.c"), text).unwrap();
        let sync = for_sync(&pdu, &Unsigned { now: Some(at(1)), ..Unsigned::default() }).unwrap();
        assert!(sync.get().contains(r#"{"z":1,  "a":"\u00e9"}"#), "{}", sync.get());
        assert_eq!(parsed(&sync)["unsigned"], json!({ "age": 0 }));
    }
}
