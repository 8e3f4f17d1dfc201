//! What goes over from a room into the one that replaces it ([spec]).
//!
//! [spec]: https://spec.matrix.org/v1.19/client-server-api/#room-upgrades

use std::collections::BTreeSet;

use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, Int, OwnedUserId, RoomVersionId, UserId,
    api::client::room::create_room::v3::Request,
    events::{
        AnyInitialStateEvent,
        room::{member::MembershipState, power_levels::UserPowerLevel},
    },
    room_version_rules::RoomVersionRules,
    serde::Raw,
};
use serde::Serialize;
use serde_json::value::to_raw_value;

use crate::{
    encryption,
    room::{RoomState, membership_of},
};

/// The state that goes over: what the specification lists, and the aliases, which go over as well.
const TRANSFERRED: [&str; 9] = [
    "m.room.avatar",
    "m.room.canonical_alias",
    "m.room.encryption",
    "m.room.guest_access",
    "m.room.history_visibility",
    "m.room.join_rules",
    "m.room.name",
    "m.room.server_acl",
    "m.room.topic",
];
/// The power that a creator has at least, where creators have none of their own.
const CREATOR_LEVEL: i32 = 100;
/// The power that a replaced room asks for at least, to speak in it or to invite to it.
const SPEAKER_LEVEL: i32 = 50;

/// A room that cannot be carried over, because its create event or power levels are no JSON objects that events hold.
#[derive(Debug, thiserror::Error)]
#[error("the room's state cannot be read")]
pub struct MalformedState(#[from] serde_json::Error);

#[derive(Serialize)]
struct InitialEvent<'a> {
    #[serde(rename = "type")]
    event_type: &'a str,
    state_key: &'a str,
    content: &'a CanonicalJsonObject,
}

/// How the room that replaces `room` is to be made: the request that `upgrader` would have to send to `createRoom`.
///
/// `additional_creators` are passed over if the new version does not know of such.
///
/// # Errors
///
/// [`MalformedState`] if the old room's state cannot be read.
pub fn replacement(
    room: &RoomState,
    upgrader: &UserId,
    new_version: &RoomVersionId,
    rules: &RoomVersionRules,
    additional_creators: &[OwnedUserId],
) -> Result<Request, MalformedState> {
    let additional_creators =
        if rules.authorization.additional_room_creators { additional_creators } else { &[] };
    let mut request = Request::new();
    request.room_version = Some(new_version.clone());
    let create = create_content(room, additional_creators)?;
    request.creation_content = Some(Raw::from_json(to_raw_value(&create)?));

    let mut push = |event_type: &str, content: &CanonicalJsonObject| -> Result<(), MalformedState> {
        let event = to_raw_value(&InitialEvent { event_type, state_key: "", content })?;
        request.initial_state.push(Raw::<AnyInitialStateEvent>::from_json(event));
        Ok(())
    };
    for event_type in TRANSFERRED {
        match content_of(room, event_type)? {
            Some(content) => push(event_type, &content)?,
            // Without the event guests are kept out; a new room would let them in.
            None if event_type == "m.room.guest_access" => {
                push(event_type, &object("guest_access", text("forbidden")))?;
            }
            None => {}
        }
    }
    if let Some(mut levels) = content_of(room, "m.room.power_levels")? {
        let creators: BTreeSet<&UserId> =
            additional_creators.iter().map(AsRef::as_ref).chain([upgrader]).collect();
        settle_creators(&mut levels, rules, upgrader, &creators);
        push("m.room.power_levels", &levels)?;
    }
    Ok(request)
}

/// The power levels that the new room is to have in the end, if [`replacement`] gives the upgrader more: only who makes a room needs so
/// much, and only until it is made.
///
/// # Errors
///
/// [`MalformedState`] if the power levels cannot be read.
pub fn lasting_levels(
    room: &RoomState,
    upgrader: &UserId,
    rules: &RoomVersionRules,
) -> Result<Option<CanonicalJsonObject>, MalformedState> {
    // Whose power came from having made the old room would be left without.
    let was_creator = matches!(room.power_level(upgrader), Ok(UserPowerLevel::Infinite));
    if rules.authorization.explicitly_privilege_room_creators || was_creator {
        return Ok(None);
    }
    let Some(levels) = content_of(room, "m.room.power_levels")? else { return Ok(None) };
    let mut raised = levels.clone();
    settle_creators(&mut raised, rules, upgrader, &BTreeSet::new());
    Ok((raised != levels).then_some(levels))
}

/// The users who are banned from a room, and stay so in the one that replaces it.
pub fn banned(room: &RoomState) -> impl Iterator<Item = &str> {
    room.members()
        .filter(|member| membership_of(&member.pdu) == MembershipState::Ban)
        .filter_map(|member| member.pdu.state_key.as_deref())
}

/// The power levels of a room that was replaced: they keep ordinary members from speaking in it and inviting to it.
///
/// `None` if the room has no power levels, or asks for as much already.
///
/// > If possible, the power levels in the old room should also be modified to prevent sending of events and inviting new
/// > users. For example, setting `events_default` and `invite` to the greater of `50` and `users_default + 1`.
///
/// # Errors
///
/// [`MalformedState`] if the power levels cannot be read.
pub fn silenced(room: &RoomState) -> Result<Option<CanonicalJsonObject>, MalformedState> {
    let Some(mut levels) = content_of(room, "m.room.power_levels")? else { return Ok(None) };
    let after_default = level(&levels, "users_default").unwrap_or_default().saturating_add(Int::from(1));
    let required = after_default.max(Int::from(SPEAKER_LEVEL));
    let mut changed = false;
    for name in ["events_default", "invite"] {
        if level(&levels, name).unwrap_or_default() < required {
            levels.insert(name.to_owned(), CanonicalJsonValue::Integer(required));
            changed = true;
        }
    }
    Ok(changed.then_some(levels))
}

/// What stood in the old room's create content, with the old room as its predecessor. Who made it, and with which version
/// and encryption, is for the new room to say.
fn create_content(
    room: &RoomState,
    additional_creators: &[OwnedUserId],
) -> Result<CanonicalJsonObject, MalformedState> {
    let mut content = content_of(room, "m.room.create")?.unwrap_or_default();
    for key in ["additional_creators", "creator", "room_version", encryption::CREATE_CONTENT_KEY] {
        content.remove(key);
    }
    if !additional_creators.is_empty() {
        let creators = additional_creators.iter().map(|user| text(user.as_str())).collect();
        content.insert("additional_creators".to_owned(), CanonicalJsonValue::Array(creators));
    }
    let mut predecessor = object("room_id", text(room.room_id.as_str()));
    if let Some(last) = room.extremities.first() {
        predecessor.insert("event_id".to_owned(), text(last.as_str()));
    }
    content.insert("predecessor".to_owned(), CanonicalJsonValue::Object(predecessor));
    Ok(content)
}

/// Creators either have power of their own, and must not be named, or have it from the power levels: then as much as any
/// state of the new room needs.
fn settle_creators(
    levels: &mut CanonicalJsonObject,
    rules: &RoomVersionRules,
    upgrader: &UserId,
    creators: &BTreeSet<&UserId>,
) {
    let needed = [level(levels, "state_default"), greatest(levels, "events"), Some(Int::from(CREATOR_LEVEL))]
        .into_iter()
        .flatten()
        .max();
    let users = levels
        .entry("users".to_owned())
        .or_insert_with(|| CanonicalJsonValue::Object(CanonicalJsonObject::new()));
    let CanonicalJsonValue::Object(users) = users else { return };
    if rules.authorization.explicitly_privilege_room_creators {
        users.retain(|user, _| !creators.iter().any(|creator| creator.as_str() == user));
        return;
    }
    let level = [level(users, upgrader.as_str()), needed].into_iter().flatten().max().unwrap_or_default();
    users.insert(upgrader.to_string(), CanonicalJsonValue::Integer(level));
}

fn content_of(room: &RoomState, event_type: &str) -> Result<Option<CanonicalJsonObject>, MalformedState> {
    let event = room.get(event_type, "");
    Ok(event.map(|event| serde_json::from_str(event.pdu.content.get())).transpose()?)
}

fn level(levels: &CanonicalJsonObject, name: &str) -> Option<Int> {
    match levels.get(name) {
        Some(CanonicalJsonValue::Integer(level)) => Some(*level),
        _ => None,
    }
}

fn greatest(levels: &CanonicalJsonObject, name: &str) -> Option<Int> {
    let Some(CanonicalJsonValue::Object(map)) = levels.get(name) else { return None };
    map.keys().filter_map(|key| level(map, key)).max()
}

fn text(text: &str) -> CanonicalJsonValue {
    CanonicalJsonValue::String(text.to_owned())
}

fn object(key: &str, value: CanonicalJsonValue) -> CanonicalJsonObject {
    CanonicalJsonObject::from([(key.to_owned(), value)])
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use ruma::{owned_event_id, owned_room_id, owned_user_id, user_id};
    use serde_json::{Value, json};

    use super::*;
    use crate::{pdu::Pdu, room::RoomEvent};

    fn room(state: &[(&str, &str, Value)]) -> RoomState {
        room_of_version(RoomVersionId::V11, state)
    }

    fn room_of_version(version: RoomVersionId, state: &[(&str, &str, Value)]) -> RoomState {
        let mut room = RoomState::empty(owned_room_id!("!old:x"), version).unwrap();
        for (event_type, state_key, content) in state {
            let json = json!({
                "type": event_type, "state_key": state_key, "content": content, "sender": "@a:x",
                "origin_server_ts": 1, "depth": 1, "prev_events": [], "auth_events": [],
            });
            let pdu = Pdu::from_json(owned_event_id!("$e"), room.room_id.clone(), &json.to_string()).unwrap();
            room.insert_state(&Arc::new(RoomEvent { position: 1, pdu: pdu.into() }));
        }
        room.extremities = vec![owned_event_id!("$last")];
        room
    }

    fn state_of(request: &Request) -> Vec<Value> {
        request.initial_state.iter().map(|event| serde_json::from_str(event.json().get()).unwrap()).collect()
    }

    fn content(request: &Request, event_type: &str) -> Value {
        state_of(request).iter().find(|event| event["type"] == event_type).unwrap()["content"].clone()
    }

    const OLD_CREATE: &str = "m.room.create";

    #[test]
    fn the_listed_state_goes_over_and_nothing_else() {
        let suite = keystead_keybox::suite::V1;
        let old = room(&[
            (
                OLD_CREATE,
                "",
                json!({ "type": "m.space", "creator": "@z:x", "room_version": "11", encryption::CREATE_CONTENT_KEY: suite }),
            ),
            ("m.room.name", "", json!({ "name": "n" })),
            ("m.room.member", "@b:x", json!({ "membership": "ban" })),
            ("m.room.pinned_events", "", json!({ "pinned": [] })),
            ("m.room.encryption", "", json!({ "algorithm": suite })),
        ]);
        let others = [owned_user_id!("@c:x")];
        let rules = RoomVersionRules::V12;
        let request = replacement(&old, user_id!("@a:x"), &RoomVersionId::V12, &rules, &others).unwrap();
        let create: Value =
            serde_json::from_str(request.creation_content.as_ref().unwrap().json().get()).unwrap();
        assert_eq!(
            create,
            json!({
                "type": "m.space", "additional_creators": ["@c:x"],
                "predecessor": { "room_id": "!old:x", "event_id": "$last" },
            })
        );
        let types: Vec<_> = state_of(&request).iter().map(|event| event["type"].clone()).collect();
        assert_eq!(types, ["m.room.encryption", "m.room.guest_access", "m.room.name"]);
        assert_eq!(content(&request, "m.room.guest_access"), json!({ "guest_access": "forbidden" }));
        assert_eq!(banned(&old).collect::<Vec<_>>(), ["@b:x"]);
    }

    #[test]
    fn creators_get_their_power_in_the_way_of_the_new_version() {
        let levels = json!({ "users": { "@a:x": 60, "@b:x": 50 }, "events": { "m.room.name": 120 } });
        let old = room(&[(OLD_CREATE, "", json!({})), ("m.room.power_levels", "", levels)]);
        let table = [
            (RoomVersionId::V11, RoomVersionRules::V11, json!({ "@a:x": 120, "@b:x": 50 })),
            (RoomVersionId::V12, RoomVersionRules::V12, json!({ "@b:x": 50 })),
        ];
        for (version, rules, users) in table {
            let request = replacement(&old, user_id!("@a:x"), &version, &rules, &[]).unwrap();
            assert_eq!(content(&request, "m.room.power_levels")["users"], users, "{version}");
        }
    }

    #[test]
    fn whom_the_upgrade_raises_falls_back_unless_the_power_was_a_creators() {
        let levels = json!({ "users": { "@a:x": 60, "@b:x": 100 } });
        let state =
            [(OLD_CREATE, "", json!({ "room_version": "12" })), ("m.room.power_levels", "", levels.clone())];
        let old = room(&state);
        let lasting = |room: &RoomState, user: &str, rules: &RoomVersionRules| {
            let user = <&UserId>::try_from(user).unwrap();
            lasting_levels(room, user, rules).unwrap().map(|levels| serde_json::to_value(levels).unwrap())
        };
        assert_eq!(lasting(&old, "@a:x", &RoomVersionRules::V11), Some(levels));
        assert_eq!(lasting(&old, "@b:x", &RoomVersionRules::V11), None, "raised by nothing");
        assert_eq!(lasting(&old, "@a:x", &RoomVersionRules::V12), None, "creators stay what they are");
        let privileged = room_of_version(RoomVersionId::V12, &state);
        assert_eq!(lasting(&privileged, "@a:x", &RoomVersionRules::V11), None);
    }

    #[test]
    fn a_replaced_room_falls_silent() {
        let table = [
            (json!({}), Some((50, 50))),
            (json!({ "users_default": 70, "invite": 0 }), Some((71, 71))),
            (json!({ "events_default": 80 }), Some((80, 50))),
            (json!({ "events_default": 50, "invite": 60 }), None),
        ];
        for (levels, expected) in table {
            let old = room(&[("m.room.power_levels", "", levels.clone())]);
            let found = silenced(&old).unwrap().map(|levels| {
                let level = |name| i64::from(level(&levels, name).unwrap());
                (level("events_default"), level("invite"))
            });
            assert_eq!(found, expected, "{levels}");
        }
        assert!(silenced(&room(&[])).unwrap().is_none());
    }
}
