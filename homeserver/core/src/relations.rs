//! Relationships between events ([spec]): which event is the child of which.
//!
//! [spec]: https://spec.matrix.org/v1.19/client-server-api/#forming-relationships-between-events

use ruma::{OwnedEventId, events::TimelineEventType};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::pdu::Pdu;

/// The relationship of an event that says something short about another, such as a reaction.
pub const ANNOTATION: &str = "m.annotation";
/// The relationship of an event that replaces another.
pub const REPLACE: &str = "m.replace";
/// The relationship of an event that refers to another.
pub const REFERENCE: &str = "m.reference";
/// The relationship of an event to the root of its thread.
pub const THREAD: &str = "m.thread";

/// The most bytes of a relationship's and of an event's type that take part in relationships: as much as the specification lets the type of
/// an event have. Longer ones would not fit into an index.
const MAX_BYTES: usize = 255;

/// What an event says about itself and another one.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Relation {
    /// The kind of relationship, such as `m.thread`.
    pub rel_type: String,
    /// The other event, which is the parent.
    pub parent: OwnedEventId,
    /// What an [`ANNOTATION`] says.
    pub key: Option<String>,
}

#[derive(Deserialize)]
struct Content {
    #[serde(rename = "m.relates_to")]
    relates_to: RelatesTo,
}

#[derive(Deserialize)]
struct RelatesTo {
    rel_type: String,
    event_id: OwnedEventId,
    key: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct NewContent<'a> {
    #[serde(borrow, rename = "m.new_content")]
    new_content: &'a RawValue,
}

/// The relationship that an event forms to its parent; `None` if it forms none, as state events, redacted ones and plain replies do.
pub fn relation_of(pdu: &Pdu) -> Option<Relation> {
    if pdu.state_key.is_some() || pdu.redacted_by.is_some() {
        return None;
    }
    relation_in(&pdu.content).filter(|_| is_storable(&pdu.event_type.to_string()))
}

/// Where an event stands among the threads of its room, as far as it says so itself ([spec]).
///
/// [spec]: https://spec.matrix.org/v1.19/client-server-api/#threaded-read-receipts
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Place {
    /// In no thread.
    Main,
    /// In the thread with this root.
    Thread(OwnedEventId),
    /// Where the event stands to which it relates in some other way.
    Beside(OwnedEventId),
}

/// Where an event stands among the threads of its room.
pub fn place_of(pdu: &Pdu) -> Place {
    match relation_of(pdu) {
        None => Place::Main,
        Some(relation) if relation.rel_type == THREAD => Place::Thread(relation.parent),
        Some(relation) => Place::Beside(relation.parent),
    }
}

/// The relationship that a content names, of an event that is no state.
pub fn relation_in(content: &RawValue) -> Option<Relation> {
    let content = content.get();
    // Nearly all events have none, and need not be parsed; a name may also be written with escapes.
    if !content.contains("m.relates_to") && !content.contains("\\u") {
        return None;
    }
    let RelatesTo { rel_type, event_id, key } = serde_json::from_str::<Content>(content).ok()?.relates_to;
    let fits = is_storable(&rel_type) && is_storable(event_id.as_str());
    let key = match key {
        Some(serde_json::Value::String(key)) if rel_type == ANNOTATION => Some(key),
        _ => None,
    };
    fits.then_some(Relation { rel_type, parent: event_id, key })
}

fn is_storable(text: &str) -> bool {
    text.len() <= MAX_BYTES && !text.contains('\0')
}

/// Whether an event that relates to `original` by [`REPLACE`] takes its place ([spec]). That it is in the same room and relates to that
/// event is for the caller to know.
///
/// [spec]: https://spec.matrix.org/v1.19/client-server-api/#validity-of-replacement-events
pub fn is_valid_replacement(original: &Pdu, replacement: &Pdu) -> bool {
    // The new content of an encrypted event is encrypted with it.
    let has_new_content = || {
        original.event_type == TimelineEventType::RoomEncrypted
            || serde_json::from_str::<NewContent<'_>>(replacement.content.get())
                .is_ok_and(|content| content.new_content.get().starts_with('{'))
    };
    original.sender == replacement.sender
        && original.event_type == replacement.event_type
        && original.state_key.is_none()
        && replacement.state_key.is_none()
        // > If the original event is redacted, any m.replace relationship should not be bundled with it.
        && original.redacted_by.is_none()
        && replacement.redacted_by.is_none()
        && relation_of(original).is_none_or(|relation| relation.rel_type != REPLACE)
        && has_new_content()
}

#[cfg(test)]
mod tests {
    use ruma::{owned_event_id, owned_room_id};
    use serde_json::{Value, json};

    use super::*;

    fn pdu(extra: Value) -> Pdu {
        let mut event = json!({
            "type": "m.room.message", "sender": "@a:x", "content": {}, "origin_server_ts": 1000,
            "depth": 1, "auth_events": [], "prev_events": [],
        });
        event.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        Pdu::from_json(owned_event_id!("$e"), owned_room_id!("!r:x"), &event.to_string()).unwrap()
    }

    #[test]
    fn a_relation_has_a_type_and_a_parent() {
        let related =
            |relates_to: Value| relation_of(&pdu(json!({ "content": { "m.relates_to": relates_to } })));
        let found = related(json!({ "rel_type": "m.thread", "event_id": "$root", "is_falling_back": true }));
        let thread = Relation { rel_type: THREAD.to_owned(), parent: owned_event_id!("$root"), key: None };
        assert_eq!(found, Some(thread));
        let key = |rel_type: &str, key: Value| {
            related(json!({ "rel_type": rel_type, "event_id": "$root", "key": key })).unwrap().key
        };
        assert_eq!(key(ANNOTATION, json!("a\0")), Some("a\0".to_owned()));
        assert_eq!((key(ANNOTATION, json!(1)), key(THREAD, json!("a"))), (None, None));
        let none = [
            json!(null),
            json!({ "m.in_reply_to": { "event_id": "$x" } }),
            json!({ "rel_type": "m.thread" }),
            json!({ "rel_type": 7, "event_id": "$x" }),
            json!({ "rel_type": "m.thread", "event_id": "x" }),
            json!({ "rel_type": "x".repeat(256), "event_id": "$x" }),
            json!({ "rel_type": "a\0b", "event_id": "$x" }),
            json!({ "rel_type": "m.thread", "event_id": "$a\0b" }),
        ];
        for relates_to in none {
            assert_eq!(related(relates_to.clone()), None, "{relates_to}");
        }
    }

    #[test]
    fn state_and_redacted_events_relate_to_nothing() {
        let content = json!({ "m.relates_to": { "rel_type": "m.reference", "event_id": "$x" } });
        assert!(relation_of(&pdu(json!({ "content": content, "state_key": "" }))).is_none());
        let mut redacted = pdu(json!({ "content": content }));
        redacted.redacted_by = Some(owned_event_id!("$r"));
        assert!(relation_of(&redacted).is_none());
    }

    #[test]
    fn a_place_is_a_thread_or_beside_another_event() {
        let place = |content: Value| place_of(&pdu(json!({ "content": content })));
        let related = |rel_type| json!({ "m.relates_to": { "rel_type": rel_type, "event_id": "$x" } });
        assert_eq!(place(json!({})), Place::Main);
        assert_eq!(place(related(THREAD)), Place::Thread(owned_event_id!("$x")));
        assert_eq!(place(related(ANNOTATION)), Place::Beside(owned_event_id!("$x")));
    }

    #[test]
    fn a_name_written_with_escapes_is_the_same_name() {
        let text = r#"{"type":"m.x","sender":"@a:x","origin_server_ts":5,"prev_events":[],"auth_events":[],"depth":1,
            "content":{"m\u002erelates_to":{"rel_type":"r","event_id":"$p"}}}"#;
        let pdu = Pdu::from_json(owned_event_id!("$e"), owned_room_id!("!r:x"), text).unwrap();
        assert_eq!(relation_of(&pdu).unwrap().rel_type, "r");
    }

    #[test]
    fn a_replacement_follows_each_rule() {
        let original = pdu(json!({ "content": { "body": "a" } }));
        let new = json!({ "body": "* b", "m.new_content": { "body": "b" } });
        let table = [
            (json!({ "content": new }), true),
            (json!({ "content": new, "sender": "@b:x" }), false),
            (json!({ "content": new, "type": "m.room.encrypted" }), false),
            (json!({ "content": new, "state_key": "" }), false),
            (json!({ "content": { "body": "* b" } }), false),
            (json!({ "content": { "m.new_content": "b" } }), false),
        ];
        for (replacement, expected) in table {
            assert_eq!(is_valid_replacement(&original, &pdu(replacement.clone())), expected, "{replacement}");
        }
        let replacement = pdu(json!({ "content": new }));
        assert!(!is_valid_replacement(&pdu(json!({ "state_key": "" })), &replacement));
        let edit = json!({ "m.relates_to": { "rel_type": "m.replace", "event_id": "$x" } });
        assert!(!is_valid_replacement(&pdu(json!({ "content": edit })), &replacement));
        let reply = json!({ "m.relates_to": { "rel_type": "m.thread", "event_id": "$x" } });
        assert!(is_valid_replacement(&pdu(json!({ "content": reply })), &replacement));
        let encrypted = pdu(json!({ "type": "m.room.encrypted" }));
        assert!(is_valid_replacement(&encrypted, &encrypted));
        let mut redacted = original;
        redacted.redacted_by = Some(owned_event_id!("$r"));
        assert!(!is_valid_replacement(&redacted, &replacement));
    }
}
