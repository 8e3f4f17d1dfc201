//! The contents of the events that make a room.

use std::collections::BTreeSet;

use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, Int, OwnedUserId, RoomVersionId, UserId,
    api::client::room::create_room::v3::{Request, RoomPreset},
    events::room::power_levels::RoomPowerLevelsEventContent,
    room_version_rules::RoomVersionRules,
};

use super::{CreationRefusal, PowerLevelInput, bad_json, bad_object};
use crate::json;

const ADDITIONAL_CREATORS: &str = "additional_creators";
/// The power level of the creator where creators have no power of their own (before room version 12).
const CREATOR_LEVEL: i32 = 100;

/// The content of `m.room.create`: what the client gave, kept with keys that nobody knows, and the server's keys.
pub(super) fn create(
    request: &Request,
    creator: &UserId,
    room_version: &RoomVersionId,
    rules: &RoomVersionRules,
) -> Result<CanonicalJsonObject, CreationRefusal> {
    const FIELD: &str = "creation_content";
    let mut content = CanonicalJsonObject::new();
    if let Some(given) = &request.creation_content {
        content = json::canonical_object(given.json()).map_err(|error| bad_object(FIELD, error))?;
        // The known keys must have their types: a create event cannot be mended later.
        given.deserialize().map_err(|_| bad_json(FIELD, "a known key has a value of the wrong type"))?;
    }
    // > The server will overwrite the following keys: `creator`, `room_version`. […] `creator` was removed in room
    // > version 11.
    content.remove("creator");
    if !rules.authorization.use_room_create_sender {
        content.insert("creator".to_owned(), text(creator.as_str()));
    }
    content.insert("room_version".to_owned(), text(room_version.as_str()));
    Ok(content)
}

/// Makes the invited users of a `trusted_private_chat` creators, where a room can have several.
///
/// They are added to the `additional_creators` that the client gave, each once.
pub(super) fn trust_invitees(
    create: &mut CanonicalJsonObject,
    rules: &RoomVersionRules,
    creator: &UserId,
    invites: &[OwnedUserId],
) -> Result<(), CreationRefusal> {
    if !rules.authorization.additional_room_creators || invites.is_empty() {
        return Ok(());
    }
    let listed =
        create.entry(ADDITIONAL_CREATORS.to_owned()).or_insert_with(|| CanonicalJsonValue::Array(vec![]));
    let CanonicalJsonValue::Array(listed) = listed else {
        return Err(bad_json("creation_content", "additional_creators is not a list"));
    };
    for invited in invites.iter().filter(|invited| *invited != creator) {
        let invited = text(invited.as_str());
        if !listed.contains(&invited) {
            listed.push(invited);
        }
    }
    Ok(())
}

/// The creator and the additional creators that a create content names.
pub(super) fn creators(create: &CanonicalJsonObject, creator: &UserId) -> BTreeSet<String> {
    let additional = match create.get(ADDITIONAL_CREATORS) {
        Some(CanonicalJsonValue::Array(listed)) => listed.as_slice(),
        _ => &[],
    };
    let additional = additional.iter().filter_map(|user| match user {
        CanonicalJsonValue::String(user) => Some(user.clone()),
        _ => None,
    });
    additional.chain([creator.to_string()]).collect()
}

/// The content of `m.room.power_levels`: the server's defaults, the preset's, and the client's on top.
pub(super) fn power_levels(
    request: &Request,
    rules: &RoomVersionRules,
    creator: &UserId,
    creators: &BTreeSet<String>,
    input: PowerLevelInput<'_>,
) -> Result<CanonicalJsonObject, CreationRefusal> {
    const FIELD: &str = "power_level_content_override";
    let PowerLevelInput { given, preset, trusted } = input;
    let mut content = given.unwrap_or_else(|| default_power_levels(rules, creator, preset, trusted));
    if let Some(over) = &request.power_level_content_override {
        let over = json::canonical_object(over.json()).map_err(|error| bad_object(FIELD, error))?;
        content.extend(over);
    }
    check_power_levels(&content, rules, creator, creators)?;
    Ok(content)
}

fn default_power_levels(
    rules: &RoomVersionRules,
    creator: &UserId,
    preset: &RoomPreset,
    trusted: &[OwnedUserId],
) -> CanonicalJsonObject {
    let creators_are_privileged = rules.authorization.explicitly_privilege_room_creators;
    let mut users = CanonicalJsonObject::new();
    if !creators_are_privileged {
        users.insert(creator.to_string(), level(CREATOR_LEVEL));
        users.extend(trusted.iter().map(|user| (user.to_string(), level(CREATOR_LEVEL))));
    }
    let events = [
        ("m.room.avatar", 50),
        ("m.room.canonical_alias", 50),
        ("m.room.encryption", 100),
        ("m.room.history_visibility", 100),
        ("m.room.name", 50),
        ("m.room.power_levels", 100),
        ("m.room.server_acl", 100),
        // Room version 12 raises it, so that upgrading a room is for its creators.
        ("m.room.tombstone", if creators_are_privileged { 150 } else { 100 }),
    ];
    // In a room that is closed to strangers, every member may bring somebody along.
    let invite = if *preset == RoomPreset::PublicChat { 50 } else { 0 };
    let numbers = [
        ("ban", 50),
        ("events_default", 0),
        ("invite", invite),
        ("kick", 50),
        ("redact", 50),
        ("state_default", 50),
        ("users_default", 0),
    ];
    let mut content: CanonicalJsonObject =
        numbers.into_iter().map(|(name, number)| (name.to_owned(), level(number))).collect();
    let events = events.into_iter().map(|(name, number)| (name.to_owned(), level(number))).collect();
    content.insert("events".to_owned(), CanonicalJsonValue::Object(events));
    content.insert("users".to_owned(), CanonicalJsonValue::Object(users));
    content
}

/// Refuses power levels under which the room could not be made, or would be nobody's.
fn check_power_levels(
    content: &CanonicalJsonObject,
    rules: &RoomVersionRules,
    creator: &UserId,
    creators: &BTreeSet<String>,
) -> Result<(), CreationRefusal> {
    const FIELD: &str = "power_level_content_override";
    let typed = CanonicalJsonValue::Object(content.clone());
    serde_json::from_value::<RoomPowerLevelsEventContent>(typed.into())
        .map_err(|_| bad_json(FIELD, "power levels are integers, by user id or by event type"))?;
    if !only_integers(content) {
        return Err(bad_json(FIELD, "power levels are integers"));
    }
    let no_users = CanonicalJsonObject::new();
    let users = match content.get("users") {
        Some(CanonicalJsonValue::Object(users)) => users,
        _ => &no_users,
    };
    if rules.authorization.explicitly_privilege_room_creators {
        // An authorisation rule of room version 12, told to the client in plain words here.
        if creators.iter().any(|creator| users.contains_key(creator)) {
            return Err(CreationRefusal::InvalidState(
                "creators have more power than any level and cannot be among the users of the power levels",
            ));
        }
    } else if !users.contains_key(creator.as_str()) {
        return Err(CreationRefusal::InvalidState("the power levels have no level for the room's creator"));
    }
    Ok(())
}

/// Room versions since 10 take no strings for power levels; ruma's type takes them for the sake of older ones.
fn only_integers(content: &CanonicalJsonObject) -> bool {
    let levels = ["ban", "events_default", "invite", "kick", "redact", "state_default", "users_default"];
    let is_integer = |value: &CanonicalJsonValue| matches!(value, CanonicalJsonValue::Integer(_));
    let maps = ["events", "notifications", "users"];
    levels.iter().all(|name| content.get(*name).is_none_or(is_integer))
        && maps.iter().all(|name| match content.get(*name) {
            None => true,
            Some(CanonicalJsonValue::Object(map)) => map.values().all(is_integer),
            Some(_) => false,
        })
}

/// The state that a preset sets: event type, key of the content, value.
pub(super) fn preset_state(preset: &RoomPreset) -> [(&'static str, &'static str, &'static str); 3] {
    let (join_rule, guest_access) = match preset {
        RoomPreset::PublicChat => ("public", "forbidden"),
        _ => ("invite", "can_join"),
    };
    [
        ("m.room.join_rules", "join_rule", join_rule),
        ("m.room.history_visibility", "history_visibility", "shared"),
        ("m.room.guest_access", "guest_access", guest_access),
    ]
}

/// The content of `m.room.member`.
pub(super) fn member(membership: &str, is_direct: bool) -> CanonicalJsonObject {
    let mut content = single("membership", membership);
    if is_direct {
        content.insert("is_direct".to_owned(), CanonicalJsonValue::Bool(true));
    }
    content
}

/// The content of `m.room.topic`: as plain text, and in the newer form that can hold several.
pub(super) fn topic(topic: &str) -> CanonicalJsonObject {
    let mut content = single("topic", topic);
    let text = CanonicalJsonValue::Array(vec![CanonicalJsonValue::Object(single("body", topic))]);
    let block = CanonicalJsonObject::from([("m.text".to_owned(), text)]);
    content.insert("m.topic".to_owned(), CanonicalJsonValue::Object(block));
    content
}

/// A content of one string.
pub(super) fn single(key: &str, value: &str) -> CanonicalJsonObject {
    CanonicalJsonObject::from([(key.to_owned(), text(value))])
}

fn text(value: &str) -> CanonicalJsonValue {
    CanonicalJsonValue::String(value.to_owned())
}

fn level(value: i32) -> CanonicalJsonValue {
    CanonicalJsonValue::Integer(Int::from(value))
}
