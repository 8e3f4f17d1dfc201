//! Redactions: what remains of an event ([spec]).
//!
//! [spec]: https://spec.matrix.org/v1.19/client-server-api/#redactions

use ruma::{canonical_json::redact_in_place, room_version_rules::RedactionRules};
use serde_json::value::{RawValue, to_raw_value};

use crate::json;

/// A stored event that cannot be read as an event.
#[derive(Debug, thiserror::Error)]
#[error("the event cannot be read as a persistent event")]
pub struct MalformedEvent;

/// What remains of an event after its redaction.
///
/// `pdu` is the event as the server stores it; the answer is the same event with only those keys that the
/// room version keeps. Its event id stays valid, since the id is the hash of the redacted event.
///
/// # Errors
///
/// [`MalformedEvent`] if `pdu` is no event.
pub fn redact(pdu: &RawValue, rules: &RedactionRules) -> Result<Box<RawValue>, MalformedEvent> {
    let mut event = json::canonical_object(pdu).map_err(|_| MalformedEvent)?;
    redact_in_place(&mut event, rules, None).map_err(|_| MalformedEvent)?;
    to_raw_value(&event).map_err(|_| MalformedEvent)
}

#[cfg(test)]
mod tests {
    use ruma::room_version_rules::RoomVersionRules;
    use serde_json::{Value, json};

    use super::*;
    use crate::json::raw;

    fn redacted(event: &Value, rules: &RoomVersionRules) -> Value {
        serde_json::from_str(redact(&raw(event), &rules.redaction).unwrap().get()).unwrap()
    }

    #[test]
    fn keeps_what_the_room_version_keeps() {
        let event = json!({
            "type": "m.room.member", "state_key": "@a:b.c", "sender": "@a:b.c", "room_id": "!r:b.c",
            "content": { "membership": "join", "displayname": "A", "join_authorised_via_users_server": "@x:b.c" },
            "origin_server_ts": 1, "depth": 2, "prev_events": [], "auth_events": [], "hashes": { "sha256": "x" },
            "signatures": {}, "origin": "b.c", "unsigned": { "age": 1 },
        });
        let v8 = redacted(&event, &RoomVersionRules::V8);
        assert_eq!(v8["content"], json!({ "membership": "join" }));
        assert_eq!(v8["origin"], "b.c");
        let v11 = redacted(&event, &RoomVersionRules::V11);
        assert_eq!(
            v11["content"],
            json!({ "membership": "join", "join_authorised_via_users_server": "@x:b.c" })
        );
        assert!(v11.get("origin").is_none() && v11.get("unsigned").is_none());
        assert_eq!(v11["hashes"], json!({ "sha256": "x" }));
    }

    #[test]
    fn the_create_content_stays_from_version_11_on() {
        let event = json!({
            "type": "m.room.create", "sender": "@a:b.c", "state_key": "",
            "content": { "creator": "@a:b.c", "com.trustner.encryption_algorithm": "x" },
        });
        assert_eq!(redacted(&event, &RoomVersionRules::V10)["content"], json!({ "creator": "@a:b.c" }));
        assert_eq!(redacted(&event, &RoomVersionRules::V12)["content"], event["content"]);
    }

    #[test]
    fn redacting_twice_changes_nothing() {
        let event = json!({
            "type": "m.room.message", "sender": "@a:b.c", "content": { "body": "x" }, "redacts": "$x", "depth": 3,
        });
        for rules in [RoomVersionRules::V10, RoomVersionRules::V11, RoomVersionRules::V12] {
            let once = redacted(&event, &rules);
            assert_eq!(redacted(&once, &rules), once);
            assert_eq!(once["content"], json!({}));
        }
    }

    #[test]
    fn refuses_what_is_no_event() {
        for odd in [json!([]), json!({}), json!({ "type": 1 })] {
            assert!(redact(&raw(&odd), &RoomVersionRules::V12.redaction).is_err(), "{odd}");
        }
        // A content that is no object has nothing to keep, but must not be taken for one either.
        let odd = json!({ "type": "m.room.message", "content": 1.5 });
        assert!(redact(&raw(&odd), &RoomVersionRules::V12.redaction).is_err());
    }
}
