//! What a KeyBox knows of a room: who is in it, how it is encrypted, and what is not readable yet.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use keystead_keybox::envelope::Envelope;
use keystead_keybox::resource_key::ResourceKeyId;
use keystead_keybox::{closing, suite};

use super::Message;
use super::closing::RoomClosing;
use super::decrypt::is_envelope;
use crate::events::RoomEvent;

const DEFAULT_ROTATION_MESSAGES: u64 = 100;
const DEFAULT_ROTATION_MS: u64 = 7 * 24 * 60 * 60 * 1000;
/// The most messages under one resource key, whatever the room says: far below 2^32 (`SPEC.md`, section 5.4), even if many seal at once.
const MAX_ROTATION_MESSAGES: u64 = 100_000;
/// The shortest life of a resource key: a room that says 0 would have one made for every message.
const MIN_ROTATION_MS: u64 = 60_000;
/// The longest: 13 weeks.
const MAX_ROTATION_MS: u64 = 13 * DEFAULT_ROTATION_MS;
/// How much unread and unreadable material is kept for a room; the oldest goes first, and stays on the server.
const MAX_KEPT: usize = 10_000;
/// A visibility that is set this soon after a room was made has held from its beginning. Clocks of members may differ by less.
const BEGINNING_MS: u64 = 60_000;

/// What a user is to a room. <https://spec.matrix.org/v1.19/client-server-api/#mroommember>
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Membership {
    /// Banned.
    Ban,
    /// Invited.
    Invite,
    /// In the room.
    Join,
    /// Asking to come in.
    Knock,
    /// Left, or removed.
    Leave,
}

/// A point in a room's life.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
struct Moment {
    /// By the server's clock.
    at: u64,
    /// How many of the room's events this KeyBox had seen by then.
    order: u64,
}

/// Since when a user may be in the know. <https://spec.matrix.org/v1.19/client-server-api/#mroomhistory_visibility>
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
struct Access {
    invited: Option<Moment>,
    joined: Option<Moment>,
}

/// A room as this KeyBox sees it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Room {
    /// Its id.
    pub room_id: String,
    /// Its name, if it has one.
    pub name: Option<String>,
    /// What this KeyBox's user is to it.
    pub membership: Membership,
    /// Who invited this KeyBox's user, if it was an invitation.
    pub inviter: Option<String>,
    /// Its members, and those who were.
    pub members: BTreeMap<String, Membership>,
    /// The identifier of the suite, once the room uses one. It never goes back to none.
    pub suite: Option<String>,
    /// Whose messages before joining can be read: the content of `m.room.history_visibility`.
    pub history_visibility: String,
    /// After how many messages a resource key is replaced: 1 to 100,000.
    pub rotation_period_msgs: u64,
    /// After how many milliseconds a resource key is replaced: a minute to 13 weeks.
    pub rotation_period_ms: u64,
    /// Since when members have access.
    #[serde(default)]
    access: BTreeMap<String, Access>,
    /// When the room was made.
    #[serde(default)]
    created_at: u64,
    /// Since when `history_visibility` has let new members read back, if it does.
    #[serde(default)]
    shared_since: Option<Moment>,
    /// How many of its events this KeyBox has seen.
    #[serde(default)]
    order: u64,
    /// When each resource key, by its id, was first known of: it came, or a message was sealed with it.
    #[serde(default)]
    first_known: BTreeMap<String, u64>,
    /// What closes it.
    #[serde(default)]
    pub(super) closing: RoomClosing,
    /// Counts departures of users and KeyBoxes: a resource key of an earlier epoch is not sent with.
    pub(super) epoch: u64,
    /// When the last user left, by the server's clock.
    pub(super) last_departure_at: u64,
    /// The newest event of the timeline that has been taken in.
    pub(super) newest_event: Option<String>,
    /// Messages that nobody has marked as read yet.
    pub(super) unread: Vec<Message>,
    /// Events that could not be decrypted yet.
    pub(super) waiting: Vec<RoomEvent>,
}

impl Room {
    pub(super) fn new(room_id: &str, membership: Membership) -> Self {
        Self {
            room_id: room_id.to_owned(),
            name: None,
            membership,
            inviter: None,
            members: BTreeMap::new(),
            suite: None,
            // https://spec.matrix.org/v1.19/client-server-api/#mroomhistory_visibility: "by default ... `shared`"
            history_visibility: "shared".to_owned(),
            rotation_period_msgs: DEFAULT_ROTATION_MESSAGES,
            rotation_period_ms: DEFAULT_ROTATION_MS,
            access: BTreeMap::new(),
            created_at: 0,
            shared_since: Some(Moment::default()),
            order: 0,
            first_known: BTreeMap::new(),
            closing: RoomClosing::default(),
            epoch: 0,
            last_departure_at: 0,
            newest_event: None,
            unread: Vec::new(),
            waiting: Vec::new(),
        }
    }

    /// What a user is to the room; `None` for a stranger.
    pub fn membership_of(&self, user_id: &str) -> Option<Membership> {
        self.members.get(user_id).copied()
    }

    /// How many events wait for a resource key.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Whether a member may read what was sent before joining.
    fn history_is_shared(&self) -> bool {
        matches!(self.history_visibility.as_str(), "shared" | "world_readable")
    }

    /// Whether a member may read what a resource key made at `created_at` opens, by the room's history visibility:
    /// where it lets members read back, what was sent since it does; else what was sent since the member's own invitation
    /// (`invited`) or joining (`joined`, and whatever is not known).
    ///
    /// A key that was known of before then is older, whatever its maker's clock said; one that was made here afterwards is not. Only
    /// where the order of events does not tell, the maker's clock does.
    pub(super) fn lets_read(
        &self,
        user_id: &str,
        key_id: &ResourceKeyId,
        created_at: u64,
        made_here: bool,
    ) -> bool {
        let of_member = self.access.get(user_id).and_then(|access| match self.history_visibility.as_str() {
            "invited" => access.invited.or(access.joined),
            _ => access.joined,
        });
        let known = self.first_known.get(key_id.as_str()).copied();
        let is_since = |since: Moment| match known {
            Some(known) if known < since.order => false,
            Some(_) if made_here => true,
            _ => created_at >= since.at,
        };
        [of_member, self.shared_since].into_iter().flatten().any(is_since)
    }

    /// Notes that a resource key has come, or was made.
    pub(super) fn know_key(&mut self, key_id: &ResourceKeyId) {
        if self.first_known.len() < MAX_KEPT || self.first_known.contains_key(key_id.as_str()) {
            self.first_known.entry(key_id.as_str().to_owned()).or_insert(self.order);
        }
    }

    /// Counts an event in, in the order of the room; notes the resource key of a message.
    pub(super) fn count(&mut self, event: &RoomEvent) {
        self.order = self.order.saturating_add(1);
        if is_envelope(event)
            && let Ok(envelope) = Envelope::deserialize(&event.content)
        {
            self.know_key(&envelope.key_id);
        }
    }

    /// The users whose KeyBoxes are given resource keys: joined ones, and invited ones where they may read already.
    pub(super) fn audience_users(&self) -> Vec<String> {
        self.members
            .iter()
            .filter(|(_, membership)| self.reads(**membership))
            .map(|(user_id, _)| user_id.clone())
            .collect()
    }

    /// Whether a user of that membership is given resource keys.
    fn reads(&self, membership: Membership) -> bool {
        match membership {
            Membership::Join => true,
            // https://spec.matrix.org/v1.19/client-server-api/#mroomhistory_visibility: all but `joined`
            Membership::Invite => self.history_visibility != "joined",
            Membership::Ban | Membership::Knock | Membership::Leave => false,
        }
    }

    /// Takes in a state event. Returns whether it was an attempt to weaken the encryption.
    pub(super) fn apply_state(&mut self, event: &RoomEvent, own_user: &str) -> bool {
        let Some(state_key) = &event.state_key else { return false };
        let text = |field: &str| event.content.get(field).and_then(|value| value.as_str());
        match event.event_type.as_str() {
            "m.room.member" => {
                if let Some(membership) = text("membership").and_then(membership_of) {
                    self.set_membership(state_key, membership, event, own_user);
                }
            }
            // What follows is told of the room as a whole: with a key of its own such an event means nothing.
            _ if !state_key.is_empty() => {}
            "m.room.create" => {
                self.created_at = event.origin_server_ts;
                // Where the room began: it may have gone on to a better suite, and the server may show that first.
                if let Some(id) = text("com.trustner.encryption_algorithm") {
                    self.take_suite(id);
                }
            }
            "m.room.encryption" => {
                if !self.take_suite(text("algorithm").unwrap_or_default()) {
                    return true;
                }
                self.set_rotation(&event.content);
            }
            "m.room.history_visibility" => {
                if let Some(visibility) = text("history_visibility") {
                    self.set_visibility(visibility, event.origin_server_ts);
                }
            }
            closing::EVENT_TYPE => self.offer_closing(&event.sender, &event.content),
            "m.room.name" => self.name = text("name").filter(|name| !name.is_empty()).map(str::to_owned),
            _ => {}
        }
        false
    }

    /// Takes in how long a resource key serves, within what is safe.
    fn set_rotation(&mut self, content: &Value) {
        let number =
            |field: &str, default: u64| content.get(field).and_then(Value::as_u64).unwrap_or(default);
        self.rotation_period_msgs = number("rotation_period_msgs", DEFAULT_ROTATION_MESSAGES);
        self.rotation_period_ms = number("rotation_period_ms", DEFAULT_ROTATION_MS);
        self.bound_rotation();
    }

    /// Brings how long a resource key serves within what is safe. What earlier software has stored may be outside.
    pub(super) fn bound_rotation(&mut self) {
        self.rotation_period_msgs = self.rotation_period_msgs.clamp(1, MAX_ROTATION_MESSAGES);
        self.rotation_period_ms = self.rotation_period_ms.clamp(MIN_ROTATION_MS, MAX_ROTATION_MS);
    }

    fn set_membership(&mut self, user_id: &str, membership: Membership, event: &RoomEvent, own_user: &str) {
        let before = self.members.insert(user_id.to_owned(), membership);
        let had_access = matches!(before, Some(Membership::Join | Membership::Invite));
        let has_access = matches!(membership, Membership::Join | Membership::Invite);
        // Where members do not read back, what was said before someone came must not open with a key that they get.
        let read_before = before.is_some_and(|before| self.reads(before));
        let comes = self.reads(membership) && !read_before && !self.history_is_shared();
        if had_access && !has_access || comes {
            self.depart();
            self.last_departure_at = self.last_departure_at.max(event.origin_server_ts);
        }
        if had_access && !has_access {
            self.departed_from_closing(user_id);
        }
        self.note_access(user_id, membership, event.origin_server_ts);
        if user_id == own_user {
            self.membership = membership;
            if membership == Membership::Invite {
                self.inviter = Some(event.sender.clone());
            }
        }
    }

    fn set_visibility(&mut self, visibility: &str, at: u64) {
        if self.history_visibility != visibility {
            // What was said under one visibility must not open with a key that is given under another.
            self.depart();
            self.last_departure_at = self.last_departure_at.max(at);
        }
        visibility.clone_into(&mut self.history_visibility);
        let from_beginning = at <= self.created_at.saturating_add(BEGINNING_MS);
        let since = if from_beginning { Moment::default() } else { Moment { at, order: self.order } };
        // Reading back reaches to when it was last allowed, not to what was sent while it was not.
        let shared = self.history_is_shared();
        self.shared_since = shared.then(|| self.shared_since.unwrap_or(since));
    }

    fn note_access(&mut self, user_id: &str, membership: Membership, at: u64) {
        let now = Moment { at, order: self.order };
        let access = self.access.entry(user_id.to_owned()).or_default();
        match membership {
            Membership::Join => access.joined = Some(access.joined.unwrap_or(now)),
            Membership::Invite => *access = Access { invited: Some(now), joined: None },
            Membership::Ban | Membership::Knock | Membership::Leave => {
                self.access.remove(user_id);
            }
        }
    }

    /// Those who may hold resource keys are not those who may read from now on: the keys that exist are not sent with any more.
    pub(super) fn depart(&mut self) {
        self.epoch += 1;
    }

    /// `false` if `id` would take the room from a suite to none, to another profile, or to an earlier version.
    fn take_suite(&mut self, id: &str) -> bool {
        match &self.suite {
            Some(current) if current == id => true,
            Some(current) => {
                let version = |id: &str| suite::find(id).map(|suite| suite.version);
                let upgrade = version(id).is_some_and(|new| version(current).is_some_and(|old| new > old));
                if upgrade {
                    self.suite = Some(id.to_owned());
                }
                upgrade
            }
            // Other encryptions of Matrix are not ours to judge.
            None => {
                if suite::is_keybox_suite(id) {
                    self.suite = Some(id.to_owned());
                }
                true
            }
        }
    }

    pub(super) fn push_unread(&mut self, message: Message) {
        if !self.unread.iter().any(|known| known.event_id == message.event_id) {
            self.unread.push(message);
            drop_oldest(&mut self.unread);
        }
    }

    pub(super) fn push_waiting(&mut self, event: RoomEvent) {
        if !self.waiting.iter().any(|known| known.event_id == event.event_id) {
            self.waiting.push(event);
            drop_oldest(&mut self.waiting);
        }
    }
}

fn drop_oldest<T>(items: &mut Vec<T>) {
    let surplus = items.len().saturating_sub(MAX_KEPT);
    items.drain(..surplus);
}

fn membership_of(text: &str) -> Option<Membership> {
    match text {
        "ban" => Some(Membership::Ban),
        "invite" => Some(Membership::Invite),
        "join" => Some(Membership::Join),
        "knock" => Some(Membership::Knock),
        "leave" => Some(Membership::Leave),
        _ => None,
    }
}
