//! The events that make a room, in the order that the specification of [`createRoom`][spec] gives.
//!
//! [spec]: https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3createroom

mod content;

use std::collections::BTreeSet;

use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, MilliSecondsSinceUnixEpoch, OwnedRoomAliasId, OwnedUserId,
    RoomAliasId, RoomVersionId, UserId,
    api::client::room::{
        Visibility,
        create_room::v3::{Request, RoomPreset},
    },
    events::TimelineEventType,
};
use serde::Deserialize;
use serde_json::value::{RawValue, to_raw_value};

use crate::{
    closing,
    encryption::{self, EncryptionRefusal},
    event::Draft,
    json::{self, JsonRefusal},
};

/// A room may be made with this many invitations; further ones follow one by one.
pub const MAX_INVITES: usize = 500;
/// A room may be made with this many events of initial state.
pub const MAX_INITIAL_STATE: usize = 500;
/// The names of events (type, state key) may have this many bytes.
const MAX_NAME_BYTES: usize = 255;

/// What makes a room.
#[derive(Clone, Debug)]
pub struct RoomPlan {
    /// The version of the room.
    pub room_version: RoomVersionId,
    /// The events, in the order in which they are to be sent; the first is `m.room.create`.
    pub drafts: Vec<Draft>,
    /// The alias to be registered for the room, which `m.room.canonical_alias` names already.
    pub alias: Option<OwnedRoomAliasId>,
    /// Whether the room is listed in the server's room directory.
    pub visibility: Visibility,
}

/// Why a room cannot be made as asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CreationRefusal {
    /// The local part of the alias cannot be part of an alias of this server.
    #[error("room_alias_name is not the local part of a room alias")]
    BadAlias,
    /// A part of the request has the wrong shape.
    #[error("{field} is not valid: {reason}")]
    BadJson {
        /// The part of the request.
        field: &'static str,
        /// What is wrong with it, without quoting it.
        reason: String,
    },
    /// The room's encryption would break the rules of the KeyBox profile.
    #[error("the room's encryption is refused")]
    Encryption(#[from] EncryptionRefusal),
    /// The room would start in a state that its own rules forbid.
    #[error("{0}")]
    InvalidState(&'static str),
    /// There is no identity server that could invite somebody by address.
    #[error("invitations by address are not supported by this server")]
    ThirdPartyInvite,
    /// A part of the request is larger than events may be.
    #[error("{0} is too large")]
    TooLarge(&'static str),
    /// The server cannot make rooms of that version.
    #[error("this server cannot make rooms of that version")]
    UnsupportedRoomVersion,
}

/// Whether this server makes rooms of the version.
pub fn is_supported(version: &RoomVersionId) -> bool {
    matches!(version, RoomVersionId::V10 | RoomVersionId::V11 | RoomVersionId::V12)
}

/// Plans a room.
///
/// `request` is what `creator` asked for, `default_version` the version if the request names none, `now` the time
/// that all the events carry. The creator's own server is the room's: aliases are made there.
///
/// # Errors
///
/// [`CreationRefusal`], fit to be shown to the user. Whether the events pass the room's authorisation rules (a
/// power level too low for what follows, say) shows only when they are built.
pub fn plan(
    request: &Request,
    creator: &UserId,
    default_version: &RoomVersionId,
    now: MilliSecondsSinceUnixEpoch,
) -> Result<RoomPlan, CreationRefusal> {
    let room_version = request.room_version.as_ref().unwrap_or(default_version).clone();
    let rules = room_version
        .rules()
        .filter(|_| is_supported(&room_version))
        .ok_or(CreationRefusal::UnsupportedRoomVersion)?;
    check_sizes(request)?;

    let mut initial_state = InitialState::read(request)?;
    let invites = invites(request, creator);
    let preset = preset(request);
    let trusted = preset == RoomPreset::TrustedPrivateChat;
    let mut create = content::create(request, creator, &room_version, &rules)?;
    if trusted {
        content::trust_invitees(&mut create, &rules, creator, &invites)?;
    }
    freeze_suite(&mut create, &initial_state)?;
    let alias = alias(request, creator)?;

    let mut drafts = Drafts { sender: creator, now, list: Vec::new() };
    let creators = content::creators(&create, creator);
    drafts.push("m.room.create", "", create)?;
    drafts.push("m.room.member", creator.as_str(), content::member("join", false))?;
    let levels = PowerLevelInput {
        given: initial_state.take("m.room.power_levels", ""),
        preset: &preset,
        trusted: if trusted { &invites } else { &[] },
    };
    drafts.push(
        "m.room.power_levels",
        "",
        content::power_levels(request, &rules, creator, &creators, levels)?,
    )?;
    if let Some(alias) = &alias {
        initial_state.take("m.room.canonical_alias", "");
        drafts.push("m.room.canonical_alias", "", content::single("alias", alias.as_str()))?;
    }
    for (event_type, key, value) in content::preset_state(&preset) {
        // > `initial_state` […] takes precedence over events set by `preset`, but gets overridden by `name` and
        // > `topic` keys.
        if !initial_state.has(event_type) {
            drafts.push(event_type, "", content::single(key, value))?;
        }
    }
    let named = [
        ("m.room.name", request.name.as_deref().map(|name| content::single("name", name))),
        ("m.room.topic", request.topic.as_deref().map(content::topic)),
    ];
    for (event_type, content) in &named {
        if content.is_some() {
            initial_state.take(event_type, "");
        }
    }
    for event in initial_state.0 {
        drafts.push(&event.event_type, &event.state_key, event.content)?;
    }
    for (event_type, content) in named {
        if let Some(content) = content {
            drafts.push(event_type, "", content)?;
        }
    }
    for invited in &invites {
        drafts.push("m.room.member", invited.as_str(), content::member("invite", request.is_direct))?;
    }
    Ok(RoomPlan { room_version, drafts: drafts.list, alias, visibility: request.visibility.clone() })
}

/// What the power levels depend on beside the request itself.
struct PowerLevelInput<'a> {
    /// The power levels of the initial state, which stand for the generated ones.
    given: Option<CanonicalJsonObject>,
    preset: &'a RoomPreset,
    /// The invited users who are to be as powerful as the creator.
    trusted: &'a [OwnedUserId],
}

/// The events planned so far.
struct Drafts<'a> {
    sender: &'a UserId,
    now: MilliSecondsSinceUnixEpoch,
    list: Vec<Draft>,
}

impl Drafts<'_> {
    fn push(
        &mut self,
        event_type: &str,
        state_key: &str,
        content: CanonicalJsonObject,
    ) -> Result<(), CreationRefusal> {
        let content = to_raw_value(&content).map_err(|_| bad_json("content", "it cannot be written"))?;
        self.list.push(Draft {
            sender: self.sender.to_owned(),
            event_type: TimelineEventType::from(event_type),
            state_key: Some(state_key.to_owned()),
            content,
            redacts: None,
            origin_server_ts: self.now,
        });
        Ok(())
    }
}

/// An event of the `initial_state`.
struct InitialEvent {
    event_type: String,
    state_key: String,
    content: CanonicalJsonObject,
}

/// The `initial_state` of a request, in its order.
struct InitialState(Vec<InitialEvent>);

impl InitialState {
    fn read(request: &Request) -> Result<Self, CreationRefusal> {
        #[derive(Deserialize)]
        struct Event<'a> {
            #[serde(rename = "type")]
            event_type: String,
            #[serde(default)]
            state_key: String,
            #[serde(borrow)]
            content: &'a RawValue,
        }
        const FIELD: &str = "initial_state";
        let mut events = Vec::new();
        for raw in &request.initial_state {
            let event: Event<'_> = serde_json::from_str(raw.json().get())
                .map_err(|_| bad_json(FIELD, "events need a type, a state_key and a content"))?;
            if event.event_type.len() > MAX_NAME_BYTES || event.state_key.len() > MAX_NAME_BYTES {
                return Err(CreationRefusal::TooLarge("the type or state_key of an event of initial_state"));
            }
            if matches!(event.event_type.as_str(), "m.room.create" | "m.room.member") {
                return Err(CreationRefusal::InvalidState(
                    "initial_state cannot create the room or decide on memberships",
                ));
            }
            if event.event_type == closing::EVENT_TYPE {
                // It is signed for the room, whose id nobody knows yet.
                return Err(CreationRefusal::InvalidState("a room can be closed once it is there"));
            }
            let content = json::canonical_object(event.content).map_err(|error| bad_object(FIELD, error))?;
            events.push(InitialEvent { event_type: event.event_type, state_key: event.state_key, content });
        }
        let mut seen = BTreeSet::new();
        if !events.iter().all(|event| seen.insert((&event.event_type, &event.state_key))) {
            return Err(bad_json(FIELD, "it sets the same state twice"));
        }
        Ok(Self(events))
    }

    fn has(&self, event_type: &str) -> bool {
        self.get(event_type).is_some()
    }

    fn get(&self, event_type: &str) -> Option<&CanonicalJsonObject> {
        let event = self.0.iter().find(|event| event.event_type == event_type && event.state_key.is_empty());
        event.map(|event| &event.content)
    }

    fn take(&mut self, event_type: &str, state_key: &str) -> Option<CanonicalJsonObject> {
        let same = |event: &InitialEvent| event.event_type == event_type && event.state_key == state_key;
        let index = self.0.iter().position(same)?;
        Some(self.0.remove(index).content)
    }
}

fn check_sizes(request: &Request) -> Result<(), CreationRefusal> {
    if !request.invite_3pid.is_empty() {
        return Err(CreationRefusal::ThirdPartyInvite);
    }
    if request.invite.len() > MAX_INVITES {
        return Err(CreationRefusal::TooLarge("invite"));
    }
    if request.initial_state.len() > MAX_INITIAL_STATE {
        return Err(CreationRefusal::TooLarge("initial_state"));
    }
    Ok(())
}

/// > If unspecified, the server should use the `visibility` to determine which preset to use. A visibility of
/// > `public` equates to a preset of `public_chat` and `private` visibility equates to a preset of `private_chat`.
fn preset(request: &Request) -> RoomPreset {
    match (&request.preset, &request.visibility) {
        (Some(preset), _) => preset.clone(),
        (None, Visibility::Public) => RoomPreset::PublicChat,
        (None, _) => RoomPreset::PrivateChat,
    }
}

/// The users to invite, each once; the creator is in the room already.
fn invites(request: &Request, creator: &UserId) -> Vec<OwnedUserId> {
    let mut seen = BTreeSet::from([creator]);
    request.invite.iter().filter(|user| seen.insert(user)).cloned().collect()
}

fn alias(request: &Request, creator: &UserId) -> Result<Option<OwnedRoomAliasId>, CreationRefusal> {
    let Some(name) = &request.room_alias_name else { return Ok(None) };
    if name.is_empty() || name.contains([':', '\0']) {
        return Err(CreationRefusal::BadAlias);
    }
    RoomAliasId::parse(format!("#{name}:{}", creator.server_name()))
        .map(Some)
        .map_err(|_| CreationRefusal::BadAlias)
}

/// Writes the suite of a KeyBox room into the create content, where it stands frozen.
fn freeze_suite(create: &mut CanonicalJsonObject, state: &InitialState) -> Result<(), CreationRefusal> {
    let asked = match create.get(encryption::CREATE_CONTENT_KEY) {
        None => None,
        Some(CanonicalJsonValue::String(algorithm)) => Some(algorithm.as_str()),
        Some(_) => return Err(bad_json("creation_content", "the encryption algorithm is not a string")),
    };
    let encryption = state.get("m.room.encryption").map(to_raw_value).transpose();
    let encryption = encryption.map_err(|_| bad_json("initial_state", "it cannot be written"))?;
    if let Some(suite) = encryption::settle_new_room(asked, encryption.as_deref())? {
        let identifier = CanonicalJsonValue::String(suite.id.to_owned());
        create.insert(encryption::CREATE_CONTENT_KEY.to_owned(), identifier);
    }
    Ok(())
}

fn bad_json(field: &'static str, reason: impl Into<String>) -> CreationRefusal {
    CreationRefusal::BadJson { field, reason: reason.into() }
}

fn bad_object(field: &'static str, error: JsonRefusal) -> CreationRefusal {
    bad_json(field, error.to_string())
}

#[cfg(test)]
mod tests;
