//! The current state of one room, and how the next event is built on it.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::{Arc, OnceLock},
};

use rpds::HashTrieMapSync;
use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, EventId, Int, OwnedEventId, OwnedRoomId, OwnedServerName,
    OwnedUserId, RoomId, RoomVersionId, UserId,
    events::{
        StateEventType, TimelineEventType,
        room::{member::MembershipState, power_levels::UserPowerLevel},
    },
    room_version_rules::RoomVersionRules,
    signatures::{Ed25519KeyPair, JsonError, hash_and_sign_event, reference_hash},
    state_res::{
        auth_types_for_event, check_pdu_format, check_state_dependent_auth_rules,
        events::{RoomCreateEvent, RoomMemberEvent, RoomPowerLevelsEvent, RoomPowerLevelsIntField},
    },
};

use serde_json::value::{RawValue, to_raw_value};

use crate::{
    event::Draft,
    pdu::{Pdu, SignedPdu, redacts_of_content, room_id_of_create_event},
};

/// The greatest size of an event, in bytes of canonical JSON, signatures included.
///
/// <https://spec.matrix.org/v1.19/client-server-api/#size-limits>
pub const MAX_PDU_BYTES: usize = 65_535;

/// The greatest length of an event's type and state key, in bytes.
const MAX_NAME_BYTES: usize = 255;

/// How many events one event follows at most: of a room that several replicas write to at once, more may be open for a moment.
/// The specification allows 20.
const MAX_PREV_EVENTS: usize = 10;

/// How many members [`RoomState::first_members`] names: those whom the summary of a room shows, and the reader.
const FIRST_MEMBERS: usize = 6;

/// An event at its position in the stream of its room's shard.
#[derive(Clone, Debug)]
pub struct RoomEvent {
    /// The position in the shard's stream. Within a room, positions order the events.
    pub position: i64,
    /// The event.
    pub pdu: Arc<Pdu>,
}

/// Who signs the events of this server.
pub struct Signer {
    server_name: OwnedServerName,
    key_pair: Ed25519KeyPair,
}

/// Why an event cannot become part of the room.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Refusal {
    /// The room's rules do not let this sender do this.
    #[error("{0}")]
    Forbidden(String),
    /// The event, its type or its state key is larger than the specification allows.
    #[error("{0}")]
    TooLarge(&'static str),
    /// The content is not a canonical JSON object (floats, integers beyond 2^53, not an object).
    #[error("The content is not valid canonical JSON: {0}")]
    BadContent(String),
    /// The event is malformed in another way.
    #[error("{0}")]
    BadEvent(String),
}

/// The current state of a room: what the server knows of it after the event at `position`.
///
/// Cloning is cheap: the maps share their structure.
#[derive(Clone, Debug)]
pub struct RoomState {
    /// The room; for a room that is being made in room version 12, known once its create event is built.
    pub room_id: OwnedRoomId,
    /// The version that its create event names.
    pub version: RoomVersionId,
    /// The position of the newest event.
    pub position: i64,
    /// The greatest depth of the events that nothing follows yet.
    pub depth: u64,
    /// The events that nothing follows yet: the next event's `prev_events`.
    pub extremities: Vec<OwnedEventId>,
    rules: Arc<RoomVersionRules>,
    state: HashTrieMapSync<String, HashTrieMapSync<String, Arc<RoomEvent>>>,
    joined_count: usize,
    invited_count: usize,
    /// Found when first asked for, once for all clones, and again when one of them changes.
    first_members: Arc<OnceLock<Vec<OwnedUserId>>>,
}

impl Signer {
    /// A signer for `server_name` with its Ed25519 key.
    pub fn new(server_name: OwnedServerName, key_pair: Ed25519KeyPair) -> Self {
        Self { server_name, key_pair }
    }

    /// The server in whose name this signs.
    pub fn server_name(&self) -> &OwnedServerName {
        &self.server_name
    }

    /// The key pair, for JSON that is not an event.
    pub fn key_pair(&self) -> &Ed25519KeyPair {
        &self.key_pair
    }
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signer").field("server_name", &self.server_name).finish_non_exhaustive()
    }
}

impl RoomState {
    /// A room without events. `None` if the room version is not one that this server knows.
    pub fn empty(room_id: OwnedRoomId, version: RoomVersionId) -> Option<Self> {
        let rules = Arc::new(version.rules()?);
        Some(Self {
            room_id,
            version,
            position: 0,
            depth: 0,
            extremities: Vec::new(),
            rules,
            state: HashTrieMapSync::default(),
            joined_count: 0,
            invited_count: 0,
            first_members: Arc::default(),
        })
    }

    /// The rules of the room's version.
    pub fn rules(&self) -> &RoomVersionRules {
        &self.rules
    }

    /// The state event of this type and state key, if there is one.
    pub fn get(&self, event_type: &str, state_key: &str) -> Option<&Arc<RoomEvent>> {
        self.state.get(event_type)?.get(state_key)
    }

    /// All state events, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<RoomEvent>> {
        self.state.values().flat_map(|events| events.values())
    }

    /// All state events but those of members, in no particular order.
    pub fn without_members(&self) -> impl Iterator<Item = &Arc<RoomEvent>> {
        let others = self.state.iter().filter(|(event_type, _)| *event_type != "m.room.member");
        others.flat_map(|(_, events)| events.values())
    }

    /// The member events, in no particular order.
    pub fn members(&self) -> impl Iterator<Item = &Arc<RoomEvent>> {
        self.state.get("m.room.member").into_iter().flat_map(|members| members.values())
    }

    /// How many users are joined.
    pub fn joined_count(&self) -> usize {
        self.joined_count
    }

    /// How many users are invited.
    pub fn invited_count(&self) -> usize {
        self.invited_count
    }

    /// The first six of those who are joined or invited, by the order of their member events.
    pub fn first_members(&self) -> &[OwnedUserId] {
        self.first_members.get_or_init(|| {
            let mut first = BTreeMap::new();
            for member in self.members() {
                if is_present(&membership_of(&member.pdu)) {
                    first.insert(member.position, member);
                    if first.len() > FIRST_MEMBERS {
                        first.pop_last();
                    }
                }
            }
            let user_id =
                |event: &Arc<RoomEvent>| OwnedUserId::try_from(event.pdu.state_key.as_deref()?).ok();
            first.into_values().filter_map(user_id).collect()
        })
    }

    /// What the room's state says of a user; `leave` for somebody it does not know.
    pub fn membership(&self, user_id: &UserId) -> MembershipState {
        self.get("m.room.member", user_id.as_str())
            .map_or(MembershipState::Leave, |member| membership_of(&member.pdu))
    }

    /// The users who made the room, as far as the create event tells.
    pub fn creators(&self) -> HashSet<OwnedUserId> {
        let create = self.get("m.room.create", "");
        create
            .and_then(|create| RoomCreateEvent::new(&create.pdu).creators(&self.rules.authorization).ok())
            .unwrap_or_default()
    }

    /// The user's power in the room.
    ///
    /// # Errors
    /// The create or power levels event is malformed.
    pub fn power_level(&self, user_id: &UserId) -> Result<UserPowerLevel, Refusal> {
        let rules = &self.rules.authorization;
        let create = self.get("m.room.create", "").ok_or_else(no_create_event)?;
        let creators = RoomCreateEvent::new(&create.pdu).creators(rules).map_err(Refusal::BadEvent)?;
        let is_creator = creators.contains(user_id);
        if is_creator && rules.explicitly_privilege_room_creators {
            return Ok(UserPowerLevel::Infinite);
        }
        let level = match self.get("m.room.power_levels", "") {
            Some(levels) => RoomPowerLevelsEvent::new(&levels.pdu)
                .user_power_level(user_id, rules)
                .map_err(Refusal::BadEvent)?,
            None => Int::from(if is_creator { 100 } else { 0 }),
        };
        Ok(UserPowerLevel::Int(level))
    }

    /// The power that an action of the room needs.
    ///
    /// # Errors
    /// The power levels event is malformed.
    pub fn required_level(&self, field: RoomPowerLevelsIntField) -> Result<Int, Refusal> {
        match self.get("m.room.power_levels", "") {
            Some(levels) => RoomPowerLevelsEvent::new(&levels.pdu)
                .get_as_int_or_default(field, &self.rules.authorization)
                .map_err(Refusal::BadEvent),
            None => Ok(field.default_value()),
        }
    }

    /// The power that a state event of this type needs.
    ///
    /// # Errors
    /// The power levels event is malformed.
    pub fn state_level(&self, event_type: &TimelineEventType) -> Result<Int, Refusal> {
        match self.get("m.room.power_levels", "") {
            Some(levels) => RoomPowerLevelsEvent::new(&levels.pdu)
                .event_power_level(event_type, Some(""), &self.rules.authorization)
                .map_err(Refusal::BadEvent),
            None => Ok(RoomPowerLevelsIntField::StateDefault.default_value()),
        }
    }

    /// Whether `user_id` may redact an event of `author`: its own, or any with the power to redact.
    ///
    /// # Errors
    /// The power levels are malformed.
    pub fn may_redact(&self, user_id: &UserId, author: &UserId) -> Result<bool, Refusal> {
        Ok(user_id == author
            || self.power_level(user_id)?
                >= UserPowerLevel::Int(self.required_level(RoomPowerLevelsIntField::Redact)?))
    }

    /// Builds the next event of the room: checks that it is permitted, chains, hashes and signs it.
    ///
    /// The room itself does not change; [`RoomState::apply`] does that once the event has its position.
    ///
    /// # Errors
    /// The event is malformed, too large or not permitted ([authorisation rules]).
    ///
    /// [authorisation rules]: https://spec.matrix.org/v1.19/server-server-api/#authorization-rules
    pub fn build(&self, mut draft: Draft, signer: &Signer) -> Result<SignedPdu, Refusal> {
        check_names(&draft)?;
        let mut content: CanonicalJsonObject = serde_json::from_str(draft.content.get())
            .map_err(|error| Refusal::BadContent(error.to_string()))?;
        // What is kept in memory must be what is stored, or replicas could read one event (of keys that stand twice,
        // say) differently.
        draft.content = raw_content(&content)?;
        let mut pdu = self.unsigned_pdu(draft)?;
        if let Some(redacts) = &pdu.redacts
            && self.rules.redaction.content_field_redacts
        {
            // Room version 11 moved `redacts` into the content.
            content.insert("redacts".to_owned(), CanonicalJsonValue::String(redacts.to_string()));
            pdu.content = raw_content(&content)?;
        }
        self.authorize(&pdu)?;

        let mut object = self.object(&pdu, content);
        let size = |error: JsonError| match error {
            JsonError::PduTooLarge => Refusal::TooLarge("The event is larger than 65,535 bytes"),
            other => Refusal::BadEvent(other.to_string()),
        };
        hash_and_sign_event(
            signer.server_name.as_str(),
            &signer.key_pair,
            &mut object,
            &self.rules.redaction,
        )
        .map_err(size)?;
        let json = serde_json::to_string(&object).map_err(|error| Refusal::BadEvent(error.to_string()))?;
        if json.len() > MAX_PDU_BYTES {
            return Err(Refusal::TooLarge("The event is larger than 65,535 bytes"));
        }
        check_pdu_format(&object, &self.rules.event_format).map_err(Refusal::BadEvent)?;
        let hash = reference_hash(&object, &self.rules).map_err(size)?;
        pdu.event_id =
            EventId::parse(format!("${hash}")).map_err(|error| Refusal::BadEvent(error.to_string()))?;
        if self.names_room_after_create_event() && pdu.event_type == TimelineEventType::RoomCreate {
            pdu.room_id = room_id_of_create_event(&pdu.event_id).ok_or_else(no_create_event)?;
        }
        Ok(SignedPdu { pdu: Arc::new(pdu), json })
    }

    /// Takes an event into the state: the newest of the room, or nothing happens.
    ///
    /// Applying the same event twice, or one that is older than the state, changes nothing, so that a writer
    /// and a reader of the stream may both feed one state.
    pub fn apply(&mut self, event: &Arc<RoomEvent>) {
        if event.position <= self.position {
            return;
        }
        self.follow(event);
        self.position = event.position;
        if event.pdu.state_key.is_some() {
            self.insert_state(event);
        }
    }

    /// Lets the next event follow this one, which is part of the room already: the state stays as of the events before it, of which
    /// some may not be known yet. Nothing happens if the event is older than the state.
    pub fn follow(&mut self, event: &RoomEvent) {
        if event.position <= self.position {
            return;
        }
        let pdu = &event.pdu;
        self.extremities.retain(|extremity| !pdu.prev_events.contains(extremity));
        if !self.extremities.contains(&pdu.event_id) {
            self.extremities.push(pdu.event_id.clone());
        }
        self.depth = self.depth.max(pdu.depth);
    }

    /// Puts one event of the current state in its place: used when a room is loaded from the database.
    pub fn insert_state(&mut self, event: &Arc<RoomEvent>) {
        let pdu = &event.pdu;
        let Some(state_key) = &pdu.state_key else { return };
        let event_type = pdu.event_type.to_string();
        let mut of_type = self.state.get(&event_type).cloned().unwrap_or_default();
        if pdu.event_type == TimelineEventType::RoomMember {
            if let Some(before) = of_type.get(state_key) {
                self.count_member(&membership_of(&before.pdu), false);
            }
            self.count_member(&membership_of(pdu), true);
            self.check_first_members(state_key);
        }
        of_type.insert_mut(state_key.clone(), event.clone());
        self.state.insert_mut(event_type, of_type);
    }

    /// Replaces an event of the current state by its redacted form, if it is part of the state.
    pub fn replace_redacted(&mut self, redacted: &Arc<RoomEvent>) {
        let Some(state_key) = &redacted.pdu.state_key else { return };
        let current = self.get(&redacted.pdu.event_type.to_string(), state_key);
        if current.is_some_and(|current| current.pdu.event_id == redacted.pdu.event_id) {
            self.insert_state(redacted);
        }
    }

    /// Whoever comes when there are enough is not one of the first.
    fn check_first_members(&mut self, user_id: &str) {
        let stay = |first: &Vec<OwnedUserId>| {
            first.len() == FIRST_MEMBERS && !first.iter().any(|first| first == user_id)
        };
        if !self.first_members.get().is_some_and(stay) {
            self.first_members = Arc::default();
        }
    }

    fn count_member(&mut self, membership: &MembershipState, more: bool) {
        let count = match membership {
            MembershipState::Join => &mut self.joined_count,
            MembershipState::Invite => &mut self.invited_count,
            _ => return,
        };
        *count = if more { *count + 1 } else { count.saturating_sub(1) };
    }

    /// Room version 12 names a room after its create event.
    fn names_room_after_create_event(&self) -> bool {
        self.rules.authorization.room_create_event_id_as_room_id
    }

    /// The event as the room would hold it, without id, hashes and signatures.
    fn unsigned_pdu(&self, draft: Draft) -> Result<Pdu, Refusal> {
        let auth_types = auth_types_for_event(
            &draft.event_type,
            &draft.sender,
            draft.state_key.as_deref(),
            &draft.content,
            &self.rules.authorization,
        )
        .map_err(Refusal::BadEvent)?;
        // A set, because one event can stand for two roles (the sender may be the target too).
        let auth_events: BTreeSet<OwnedEventId> = auth_types
            .iter()
            .filter_map(|(event_type, key)| self.get(&event_type.to_string(), key))
            .map(|event| event.pdu.event_id.clone())
            .collect();
        let redacts = draft.redacts.or_else(|| {
            (draft.event_type == TimelineEventType::RoomRedaction)
                .then(|| redacts_of_content(&draft.content))?
        });
        Ok(Pdu {
            event_id: draft_event_id(),
            room_id: self.room_id.clone(),
            sender: draft.sender,
            event_type: draft.event_type,
            state_key: draft.state_key,
            content: draft.content,
            origin_server_ts: draft.origin_server_ts,
            prev_events: self.extremities.iter().rev().take(MAX_PREV_EVENTS).rev().cloned().collect(),
            auth_events: auth_events.into_iter().collect(),
            depth: self.depth + 1,
            redacts,
            redacted_by: None,
            sent_by: None,
        })
    }

    fn authorize(&self, pdu: &Pdu) -> Result<(), Refusal> {
        if pdu.event_type == TimelineEventType::RoomCreate && !self.state.is_empty() {
            return Err(Refusal::Forbidden("The room has been created already".to_owned()));
        }
        let fetch = |event_type: &StateEventType, key: &str| {
            self.get(&event_type.to_string(), key).map(|event| &event.pdu)
        };
        check_state_dependent_auth_rules(&self.rules.authorization, pdu, fetch).map_err(Refusal::Forbidden)
    }

    /// The JSON object that is hashed, signed, stored and sent to other servers.
    fn object(&self, pdu: &Pdu, content: CanonicalJsonObject) -> CanonicalJsonObject {
        let ids = |ids: &[OwnedEventId]| {
            CanonicalJsonValue::Array(
                ids.iter().map(|id| CanonicalJsonValue::String(id.to_string())).collect(),
            )
        };
        let mut object = CanonicalJsonObject::new();
        let mut set = |name: &str, value: CanonicalJsonValue| object.insert(name.to_owned(), value);
        if let Some(redacts) = &pdu.redacts
            && !self.rules.redaction.content_field_redacts
        {
            set("redacts", CanonicalJsonValue::String(redacts.to_string()));
        }
        set("auth_events", ids(&pdu.auth_events));
        set("content", CanonicalJsonValue::Object(content));
        set(
            "depth",
            CanonicalJsonValue::Integer(Int::new_saturating(pdu.depth.try_into().unwrap_or(i64::MAX))),
        );
        set(
            "origin_server_ts",
            CanonicalJsonValue::Integer(Int::new_saturating(i64::from(pdu.origin_server_ts.0))),
        );
        set("prev_events", ids(&pdu.prev_events));
        if !(self.names_room_after_create_event() && pdu.event_type == TimelineEventType::RoomCreate) {
            set("room_id", CanonicalJsonValue::String(pdu.room_id.to_string()));
        }
        set("sender", CanonicalJsonValue::String(pdu.sender.to_string()));
        if let Some(state_key) = &pdu.state_key {
            set("state_key", CanonicalJsonValue::String(state_key.clone()));
        }
        set("type", CanonicalJsonValue::String(pdu.event_type.to_string()));
        object
    }
}

/// The membership that a member event gives; `leave` for one that is malformed.
pub fn membership_of(pdu: &Pdu) -> MembershipState {
    RoomMemberEvent::new(pdu).membership().unwrap_or(MembershipState::Leave)
}

fn is_present(membership: &MembershipState) -> bool {
    matches!(membership, MembershipState::Join | MembershipState::Invite)
}

fn check_names(draft: &Draft) -> Result<(), Refusal> {
    if draft.event_type.to_string().len() > MAX_NAME_BYTES {
        return Err(Refusal::TooLarge("The event's type is longer than 255 bytes"));
    }
    if draft.state_key.as_ref().is_some_and(|key| key.len() > MAX_NAME_BYTES) {
        return Err(Refusal::TooLarge("The event's state key is longer than 255 bytes"));
    }
    if draft.event_type.to_string().contains('\0')
        || draft.state_key.as_ref().is_some_and(|key| key.contains('\0'))
    {
        return Err(Refusal::BadEvent("The event's type and state key must not contain U+0000".to_owned()));
    }
    Ok(())
}

fn raw_content(content: &CanonicalJsonObject) -> Result<Box<RawValue>, Refusal> {
    to_raw_value(content).map_err(|error| Refusal::BadContent(error.to_string()))
}

fn no_create_event() -> Refusal {
    Refusal::BadEvent("The room has no create event".to_owned())
}

/// The id that an event carries while it is being checked, before its hash is known.
fn draft_event_id() -> OwnedEventId {
    ruma::owned_event_id!("$draft")
}

/// A random-looking room id is needed before room version 12; the caller brings the opaque part.
///
/// # Errors
/// `localpart` has characters that a room id must not have.
pub fn room_id_from_parts(
    localpart: &str,
    server_name: &OwnedServerName,
) -> Result<OwnedRoomId, ruma::IdParseError> {
    RoomId::parse(format!("!{localpart}:{server_name}"))
}

#[cfg(test)]
mod tests {
    use ruma::{OwnedEventId, owned_room_id};
    use serde_json::json;

    use super::*;

    fn member(room: &mut RoomState, user_id: &str, membership: &str) {
        let position = room.position + 1;
        let event_id = OwnedEventId::try_from(format!("$e{position}")).unwrap();
        let json = json!({
            "type": "m.room.member", "state_key": user_id, "sender": user_id, "content": { "membership": membership },
            "origin_server_ts": 1, "prev_events": [], "auth_events": [], "depth": 1,
        });
        let pdu = Pdu::from_json(event_id, room.room_id.clone(), &json.to_string()).unwrap();
        room.apply(&Arc::new(RoomEvent { position, pdu: Arc::new(pdu) }));
    }

    #[test]
    fn the_first_members_are_those_who_have_been_here_longest() {
        let mut room = RoomState::empty(owned_room_id!("!r:x"), RoomVersionId::V12).unwrap();
        for user_id in ["@a:x", "@b:x", "@c:x", "@d:x"] {
            member(&mut room, user_id, "join");
        }
        assert_eq!(room.first_members(), ["@a:x", "@b:x", "@c:x", "@d:x"]);
        for (user_id, membership) in [("@e:x", "invite"), ("@f:x", "knock"), ("@g:x", "join")] {
            member(&mut room, user_id, membership);
        }
        assert_eq!(room.first_members(), ["@a:x", "@b:x", "@c:x", "@d:x", "@e:x", "@g:x"]);
        member(&mut room, "@h:x", "join");
        assert_eq!(room.first_members().len(), FIRST_MEMBERS);
        let before = room.clone();
        member(&mut room, "@b:x", "leave");
        assert_eq!(room.first_members(), ["@a:x", "@c:x", "@d:x", "@e:x", "@g:x", "@h:x"]);
        member(&mut room, "@b:x", "join");
        assert_eq!(room.first_members(), ["@a:x", "@c:x", "@d:x", "@e:x", "@g:x", "@h:x"]);
        member(&mut room, "@a:x", "join");
        assert_eq!(
            room.first_members(),
            ["@c:x", "@d:x", "@e:x", "@g:x", "@h:x", "@b:x"],
            "a new name counts anew"
        );
        assert_eq!(before.first_members().first().unwrap(), "@a:x", "a clone keeps its own");
    }

    fn message(position: i64, follows: &[&str]) -> Arc<RoomEvent> {
        let event_id = OwnedEventId::try_from(format!("$m{position}")).unwrap();
        let json = json!({
            "type": "m.room.message", "sender": "@a:x", "content": {}, "origin_server_ts": 1, "prev_events": follows,
            "auth_events": [], "depth": position,
        });
        let pdu = Pdu::from_json(event_id, owned_room_id!("!r:x"), &json.to_string()).unwrap();
        Arc::new(RoomEvent { position, pdu: Arc::new(pdu) })
    }

    #[test]
    fn what_was_written_at_once_stays_open_until_something_follows_both() {
        let mut room = RoomState::empty(owned_room_id!("!r:x"), RoomVersionId::V12).unwrap();
        room.apply(&message(1, &[]));
        room.apply(&message(2, &["$m1"]));
        room.apply(&message(3, &["$m1"]));
        assert_eq!(room.extremities, ["$m2", "$m3"]);
        room.apply(&message(4, &["$m2", "$m3"]));
        assert_eq!(room.extremities, ["$m4"]);
    }

    #[test]
    fn own_events_follow_each_other_before_those_between_them_are_known() {
        let mut room = RoomState::empty(owned_room_id!("!r:x"), RoomVersionId::V12).unwrap();
        room.apply(&message(1, &[]));
        // 2 and 4 are another replica's, which sees as little of these.
        let own = [message(3, &["$m1"]), message(5, &["$m3"])];
        let others = [message(2, &["$m1"]), message(4, &["$m2"])];
        own.iter().for_each(|event| room.follow(event));
        assert_eq!(
            (room.position, room.depth, &*room.extremities),
            (1, 5, &[own[1].pdu.event_id.clone()][..])
        );
        for event in [&others[0], &own[0], &others[1], &own[1]] {
            room.apply(event);
        }
        assert_eq!(room.position, 5);
        room.extremities.sort_unstable();
        assert_eq!(room.extremities, ["$m4", "$m5"]);
        room.apply(&message(6, &["$m4", "$m5"]));
        // Told late of what has been followed.
        room.follow(&own[1]);
        assert_eq!(room.extremities, ["$m6"]);
    }
}
