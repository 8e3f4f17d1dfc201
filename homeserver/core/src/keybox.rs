//! What the server asks of KeyBox key messages: their form, and who may give whom a resource key.
//!
//! The server holds no key and opens nothing. It takes a resource key only from a joined member of the room that it is for,
//! only for KeyBoxes of members, only where the room uses the profile (`profiles/keybox/SPEC.md`, section 7.1).

use std::collections::BTreeMap;

pub use keystead_keybox::{
    CryptoError, Entropy, audit_log, encoding::base64, fingerprint::of_key, master_key, sha256,
    suite::is_keybox_suite,
};
use keystead_keybox::{
    audit_log::{Direction, KeyExchange, LogEvent},
    key_message::{Acknowledgement, KeyMessage, KeyRequest, RequestAction, ResourceKeyContent, Withheld},
};
use ruma::{
    DeviceId, OwnedDeviceId, OwnedRoomId, OwnedUserId, RoomId, UserId,
    events::room::{history_visibility::HistoryVisibility, member::MembershipState},
};
use serde_json::Value;

use crate::closing::Closing;

/// The errcode, sent with 403, of a resource key that its sender may not give to those recipients.
pub const NOT_A_MEMBER: &str = "COM.TRUSTNER.KEYBOX_NOT_A_MEMBER";

/// The errcode, sent with 403, of a resource key of a closed room from or to a KeyBox that is none of the room's.
pub const ROOM_CLOSED: &str = "COM.TRUSTNER.KEYBOX_ROOM_CLOSED";

/// The errcode, sent with 403, of a key message to a device for which too many others of the same sender, or in all, wait.
pub const TOO_MANY_PENDING: &str = "COM.TRUSTNER.KEYBOX_TOO_MANY_PENDING";

/// The type of the message that takes an identity's private keys to another KeyBox of the same user.
pub const IDENTITY_MESSAGE_TYPE: &str = "com.trustner.keybox.identity";

/// The greatest size of a key message's content, in bytes of JSON.
pub const MAX_KEY_MESSAGE_BYTES: usize = 16_384;
/// The greatest size of a wrapped resource key, in bytes; 256 in suite v1.
const MAX_WRAP_BYTES: usize = 4_096;
/// The greatest length of an opaque id that a KeyBox makes up, in bytes.
const MAX_ID_BYTES: usize = 255;

/// Why a key message is refused as malformed.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum KeyMessageRefusal {
    /// Not the content of that type: `M_BAD_JSON`.
    #[error("The content is not one of {0}: {1}")]
    Malformed(&'static str, String),
    /// A value that it must not have: `M_INVALID_PARAM`.
    #[error("{0}")]
    Invalid(String),
    /// Larger than [`MAX_KEY_MESSAGE_BYTES`]: `M_TOO_LARGE`.
    #[error("A key message must not be larger than 16,384 bytes")]
    TooLarge,
}

/// What the permission to give a resource key depends on: the room as it is in the transaction that stores the message.
#[derive(Clone, Debug)]
pub struct RoomFacts {
    /// The `algorithm` of the room's `m.room.encryption` event.
    pub algorithm: Option<String>,
    /// The room's history visibility.
    pub history_visibility: HistoryVisibility,
    /// The memberships of the sender and of all recipients; who is missing has none.
    pub memberships: BTreeMap<OwnedUserId, MembershipState>,
    /// What the room's closing event says; `None` if it was never closed.
    pub closing: Option<Closing>,
}

/// Why a resource key may not be given.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum NotPermitted {
    /// The room does not use the profile, or the server does not know it.
    #[error("The room does not use the KeyBox profile")]
    RoomWithoutProfile,
    /// The sender is not joined.
    #[error("You are not joined to the room that the resource key is for")]
    SenderNotJoined,
    /// A recipient is not a member who may read what the key opens.
    #[error("{0} is not a member of the room that the resource key is for")]
    RecipientNotAMember(OwnedUserId),
    /// The room is closed, and a KeyBox at either end is none of those that it was closed with.
    #[error(
        "The room is closed, and {device_id} of {user_id} is none of its KeyBoxes: a moderator has to approve it"
    )]
    RoomClosed {
        /// The owner of the KeyBox.
        user_id: OwnedUserId,
        /// The KeyBox.
        device_id: OwnedDeviceId,
    },
    /// A recipient's device is not a KeyBox.
    #[error("A device of {0} that the resource key is for is not a KeyBox")]
    NotAKeyBox(OwnedUserId),
}

impl NotPermitted {
    /// The errcode of the refusal.
    pub fn errcode(&self) -> &'static str {
        match self {
            Self::RoomClosed { .. } => ROOM_CLOSED,
            _ => NOT_A_MEMBER,
        }
    }
}

/// What a key message does.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum KeyMessageKind {
    /// Says that a resource key has arrived.
    Acknowledge,
    /// Asks for a resource key.
    Ask,
    /// Takes a question back.
    Cancel,
    /// Gives a resource key.
    Give,
    /// Refuses a resource key.
    Refuse,
}

/// A key message that has the form that the profile demands.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CheckedKeyMessage {
    /// What it does.
    pub kind: KeyMessageKind,
    /// The room of the resource key.
    pub room_id: OwnedRoomId,
    /// The resource key.
    pub key_id: String,
    /// What the log calls it by: the id of the exchange or the question, or the code of the refusal.
    pub reference: String,
}

impl CheckedKeyMessage {
    fn new(
        kind: KeyMessageKind,
        room_id: &str,
        key_id: &impl ToString,
        reference: &str,
    ) -> Result<Option<Self>, KeyMessageRefusal> {
        let room_id = RoomId::parse(room_id).map_err(|_| invalid("room_id is not the id of a room"))?;
        Ok(Some(Self { kind, room_id, key_id: key_id.to_string(), reference: reference.to_owned() }))
    }

    /// What the log of the KeyBox at one end says of it, `peer` being at the other; `None` for what is not logged.
    pub fn log_event(
        &self,
        direction: Direction,
        keybox_id: &DeviceId,
        (peer_user_id, peer_keybox_id): (&UserId, &DeviceId),
        undelivered: bool,
    ) -> Option<LogEvent> {
        let event = match self.kind {
            KeyMessageKind::Give => LogEvent::ResourceKeyGiven,
            KeyMessageKind::Ask => LogEvent::ResourceKeyAsked,
            KeyMessageKind::Refuse => LogEvent::ResourceKeyRefused,
            KeyMessageKind::Acknowledge | KeyMessageKind::Cancel => return None,
        };
        Some(event(KeyExchange {
            keybox_id: keybox_id.to_string(),
            direction,
            peer_user_id: peer_user_id.to_string(),
            peer_keybox_id: peer_keybox_id.to_string(),
            room_id: self.room_id.to_string(),
            key_id: self.key_id.clone(),
            reference: self.reference.clone(),
            undelivered,
        }))
    }
}

/// Checks the content of a to-device message of `event_type` that the device `sender_device` sends.
///
/// Returns what the message does if it is one of the profile's key messages, `None` for any other.
///
/// # Errors
/// [`KeyMessageRefusal`] if it is one of the profile's types, but not what the profile says.
pub fn check_key_message(
    event_type: &str,
    sender_device: &DeviceId,
    content: &str,
) -> Result<Option<CheckedKeyMessage>, KeyMessageRefusal> {
    let checked = CheckedKeyMessage::new;
    match event_type {
        ResourceKeyContent::EVENT_TYPE => {
            let message: ResourceKeyContent = read(sender_device, content)?;
            if !is_keybox_suite(&message.algorithm) {
                return Err(invalid("algorithm does not name a KeyBox suite"));
            }
            if message.wrap.is_empty() || message.wrap.len() > MAX_WRAP_BYTES {
                return Err(invalid("wrap has a size that no suite gives"));
            }
            check_id("exchange_id", &message.exchange_id)?;
            checked(KeyMessageKind::Give, &message.room_id, &message.key_id, &message.exchange_id)
        }
        KeyRequest::EVENT_TYPE => {
            let message: KeyRequest = read(sender_device, content)?;
            check_id("request_id", &message.request_id)?;
            let kind = match message.action {
                RequestAction::Request => KeyMessageKind::Ask,
                RequestAction::Cancel => KeyMessageKind::Cancel,
            };
            checked(kind, &message.room_id, &message.key_id, &message.request_id)
        }
        Withheld::EVENT_TYPE => {
            let message: Withheld = read(sender_device, content)?;
            let code = serde_json::to_value(message.code).unwrap_or_default();
            let code = code.as_str().unwrap_or_default();
            checked(KeyMessageKind::Refuse, &message.room_id, &message.key_id, code)
        }
        Acknowledgement::EVENT_TYPE => {
            let message: Acknowledgement = read(sender_device, content)?;
            check_id("exchange_id", &message.exchange_id)?;
            let kind = KeyMessageKind::Acknowledge;
            checked(kind, &message.room_id, &message.key_id, &message.exchange_id)
        }
        _ => Ok(None),
    }
}

/// The types of the profile's key messages.
pub const KEY_MESSAGE_TYPES: [&str; 4] = [
    ResourceKeyContent::EVENT_TYPE,
    KeyRequest::EVENT_TYPE,
    Withheld::EVENT_TYPE,
    Acknowledgement::EVENT_TYPE,
];

impl RoomFacts {
    /// Whether `sender` may give the room's resource keys to KeyBoxes of `recipients`.
    ///
    /// # Errors
    /// [`NotPermitted`], which the server answers with 403 and [`NOT_A_MEMBER`].
    pub fn permits<'a>(
        &self,
        sender: &UserId,
        recipients: impl IntoIterator<Item = &'a UserId>,
    ) -> Result<(), NotPermitted> {
        if !self.algorithm.as_deref().is_some_and(is_keybox_suite) {
            return Err(NotPermitted::RoomWithoutProfile);
        }
        if self.memberships.get(sender) != Some(&MembershipState::Join) {
            return Err(NotPermitted::SenderNotJoined);
        }
        for recipient in recipients {
            let permitted = match self.memberships.get(recipient) {
                Some(MembershipState::Join) => true,
                Some(MembershipState::Invite) => self.invited_may_read(),
                _ => false,
            };
            if !permitted {
                return Err(NotPermitted::RecipientNotAMember(recipient.to_owned()));
            }
        }
        Ok(())
    }

    /// Whether `sender` may send `recipients` a key message of this kind about the room.
    ///
    /// Who asks for keys is in the room and asks members. Answers, acknowledgements and what takes a question back may
    /// come after either has left. Strangers to the room get nothing through.
    ///
    /// # Errors
    /// [`NotPermitted`], as for [`Self::permits`].
    pub fn permits_message<'a>(
        &self,
        kind: KeyMessageKind,
        sender: &UserId,
        recipients: impl IntoIterator<Item = &'a UserId>,
    ) -> Result<(), NotPermitted> {
        use MembershipState as M;
        if kind == KeyMessageKind::Give {
            return self.permits(sender, recipients);
        }
        if !self.algorithm.as_deref().is_some_and(is_keybox_suite) {
            return Err(NotPermitted::RoomWithoutProfile);
        }
        let asks = kind == KeyMessageKind::Ask;
        let sends = match self.memberships.get(sender) {
            Some(M::Join) => true,
            Some(M::Invite) => !asks || self.invited_may_read(),
            Some(M::Leave) => !asks,
            _ => false,
        };
        if !sends {
            return Err(NotPermitted::SenderNotJoined);
        }
        for recipient in recipients {
            let receives = match self.memberships.get(recipient) {
                Some(M::Join) => true,
                Some(M::Invite | M::Leave) => !asks,
                _ => false,
            };
            if !receives {
                return Err(NotPermitted::RecipientNotAMember(recipient.to_owned()));
            }
        }
        Ok(())
    }

    /// Whether a KeyBox may give or get resource keys, as far as a closing of the room goes. `key_set_id` is that of its published
    /// keys ([`crate::keys::key_set_id`]).
    ///
    /// # Errors
    /// [`NotPermitted::RoomClosed`], which the server answers with 403 and [`ROOM_CLOSED`].
    pub fn permits_keybox(
        &self,
        user_id: &UserId,
        device_id: &DeviceId,
        key_set_id: Option<&str>,
    ) -> Result<(), NotPermitted> {
        let Some(closing) = self.closing.as_ref().filter(|closing| closing.closed) else { return Ok(()) };
        if key_set_id.is_some_and(|id| closing.admits(id)) {
            return Ok(());
        }
        Err(NotPermitted::RoomClosed { user_id: user_id.to_owned(), device_id: device_id.to_owned() })
    }

    /// Whether somebody who is invited may read what is sent from then on.
    fn invited_may_read(&self) -> bool {
        matches!(
            self.history_visibility,
            HistoryVisibility::Invited | HistoryVisibility::Shared | HistoryVisibility::WorldReadable
        )
    }
}

fn read<M: KeyMessage>(sender_device: &DeviceId, content: &str) -> Result<M, KeyMessageRefusal> {
    if content.len() > MAX_KEY_MESSAGE_BYTES {
        return Err(KeyMessageRefusal::TooLarge);
    }
    let malformed = |problem: String| KeyMessageRefusal::Malformed(M::EVENT_TYPE, problem);
    let content: Value = serde_json::from_str(content).map_err(|error| malformed(error.to_string()))?;
    if !content.get("signature").is_some_and(Value::is_string) {
        return Err(malformed("missing field `signature`".to_owned()));
    }
    let message: M = serde_json::from_value(content).map_err(|error| malformed(error.to_string()))?;
    if message.sender_keybox() != sender_device.as_str() {
        return Err(invalid("sender_keybox is not the device that sends the message"));
    }
    Ok(message)
}

fn check_id(field: &str, id: &str) -> Result<(), KeyMessageRefusal> {
    if id.is_empty() || id.len() > MAX_ID_BYTES {
        return Err(KeyMessageRefusal::Invalid(format!("{field} must have 1 to 255 bytes")));
    }
    Ok(())
}

fn invalid(problem: &str) -> KeyMessageRefusal {
    KeyMessageRefusal::Invalid(problem.to_owned())
}

#[cfg(test)]
mod tests {
    use ruma::{device_id, user_id};
    use serde_json::json;

    use super::*;

    const SUITE: &str = keystead_keybox::suite::V1;

    fn resource_key() -> Value {
        json!({
            "algorithm": SUITE, "room_id": "!r:x", "key_id": "AAAAAAAAAAAAAAAAAAAAAA", "wrap": "AAAA",
            "sender_keybox": "BOX", "exchange_id": "e", "sent_at": 1, "signature": "AAAA",
            "origin": {"user_id": "@a:x", "keybox_id": "BOX", "created_at": 1, "audience": "x", "signature": "AA"},
        })
    }

    fn check(content: &Value) -> Result<Option<CheckedKeyMessage>, KeyMessageRefusal> {
        check_key_message(ResourceKeyContent::EVENT_TYPE, device_id!("BOX"), &content.to_string())
    }

    #[test]
    fn a_resource_key_names_its_room() {
        let checked = check(&resource_key()).unwrap().unwrap();
        assert_eq!((checked.kind, &*checked.reference), (KeyMessageKind::Give, "e"));
        assert_eq!(checked.room_id, "!r:x");
        assert_eq!(check_key_message("m.room_key", device_id!("BOX"), "{}"), Ok(None));
    }

    #[test]
    fn malformed_key_messages_are_refused() {
        for field in ["algorithm", "room_id", "key_id", "wrap", "sender_keybox", "origin", "signature"] {
            let mut content = resource_key();
            content.as_object_mut().unwrap().remove(field);
            assert!(matches!(check(&content), Err(KeyMessageRefusal::Malformed(..))), "{field}");
        }
        let changed = |field: &str, value: Value| {
            let mut content = resource_key();
            content[field] = value;
            content
        };
        for content in [
            changed("sender_keybox", "OTHER".into()),
            changed("algorithm", "m.megolm.v1.aes-sha2".into()),
            changed("room_id", "r".into()),
            changed("wrap", "".into()),
            changed("exchange_id", "".into()),
        ] {
            assert!(matches!(check(&content), Err(KeyMessageRefusal::Invalid(_))), "{content}");
        }
        let large = changed("padding", "x".repeat(MAX_KEY_MESSAGE_BYTES).into());
        assert_eq!(check(&large), Err(KeyMessageRefusal::TooLarge));
    }

    #[test]
    fn keys_go_from_joined_members_to_members_of_rooms_with_the_profile() {
        let (a, b) = (user_id!("@a:x"), user_id!("@b:x"));
        let facts = |algorithm: &str, visibility: &str, ours: Option<&str>, theirs: Option<&str>| RoomFacts {
            algorithm: Some(algorithm.to_owned()),
            closing: None,
            history_visibility: visibility.into(),
            memberships: [(a, ours), (b, theirs)]
                .into_iter()
                .filter_map(|(user, membership)| Some((user.to_owned(), membership?.into())))
                .collect(),
        };
        let not_b = Err(NotPermitted::RecipientNotAMember(b.to_owned()));
        let table = [
            (facts(SUITE, "shared", Some("join"), Some("join")), Ok(())),
            (facts(SUITE, "shared", Some("join"), Some("invite")), Ok(())),
            (facts(SUITE, "invited", Some("join"), Some("invite")), Ok(())),
            (facts(SUITE, "joined", Some("join"), Some("invite")), not_b.clone()),
            (facts(SUITE, "shared", Some("join"), Some("leave")), not_b.clone()),
            (facts(SUITE, "shared", Some("join"), Some("ban")), not_b.clone()),
            (facts(SUITE, "shared", Some("join"), Some("knock")), not_b.clone()),
            (facts(SUITE, "world_readable", Some("join"), None), not_b),
            (facts(SUITE, "shared", Some("invite"), Some("join")), Err(NotPermitted::SenderNotJoined)),
            (facts(SUITE, "shared", None, Some("join")), Err(NotPermitted::SenderNotJoined)),
            (
                facts("m.megolm.v1.aes-sha2", "shared", Some("join"), Some("join")),
                Err(NotPermitted::RoomWithoutProfile),
            ),
        ];
        for (facts, expected) in table {
            assert_eq!(facts.permits(a, [b]), expected, "{facts:?}");
        }
    }

    #[test]
    fn strangers_to_a_room_send_no_key_messages_about_it() {
        use KeyMessageKind::{Acknowledge, Ask, Cancel, Give, Refuse};
        let (a, b) = (user_id!("@a:x"), user_id!("@b:x"));
        let permits = |kind, ours: Option<&str>, theirs: Option<&str>| {
            let memberships = [(a, ours), (b, theirs)]
                .into_iter()
                .filter_map(|(user, membership)| Some((user.to_owned(), membership?.into())))
                .collect();
            let facts = RoomFacts {
                algorithm: Some(SUITE.to_owned()),
                closing: None,
                history_visibility: HistoryVisibility::Joined,
                memberships,
            };
            facts.permits_message(kind, a, [b]).is_ok()
        };
        for kind in [Acknowledge, Ask, Cancel, Give, Refuse] {
            assert!(permits(kind, Some("join"), Some("join")), "{kind:?}");
            for stranger in [None, Some("ban"), Some("knock")] {
                assert!(!permits(kind, stranger, Some("join")), "{kind:?} from {stranger:?}");
                assert!(!permits(kind, Some("join"), stranger), "{kind:?} to {stranger:?}");
            }
        }
        for kind in [Acknowledge, Cancel, Refuse] {
            assert!(permits(kind, Some("leave"), Some("join")) && permits(kind, Some("join"), Some("leave")));
        }
        assert!(!permits(Ask, Some("leave"), Some("join")) && !permits(Ask, Some("join"), Some("leave")));
        assert!(!permits(Ask, Some("invite"), Some("join")), "who may not read has nothing to ask for");
    }
}
