//! Closed rooms: who may come in, and what may change (`profiles/keybox/SPEC.md`, section 24).
//!
//! The rules look at the room's state alone, so that the writer applies them to every event, wherever it comes from. Whether a
//! step is signed by the KeyBox that it names is asked where it arrives.

pub use keystead_keybox::closing::{Closing, ClosingError, EVENT_TYPE};
use keystead_keybox::{
    closing::{Content, SignedStep, key_set_id},
    key_set::{PublicKeySet, validate_device_keys},
};
use ruma::{
    DeviceId, RoomId, UserId,
    events::{TimelineEventType, room::member::MembershipState},
};
use serde::Deserialize;
use serde_json::{Value, value::RawValue};

use crate::{event::Draft, room::RoomState};

/// Why something is refused because a room is closed, or is to be.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClosingRefusal {
    /// The room is closed: nobody is invited, joins or knocks.
    #[error("The room is closed: nobody comes in until a moderator opens it")]
    Closed,
    /// The room has as many members as it may have.
    #[error("The room is full: it may have {0} member(s), those who are invited included")]
    Full(u64),
    /// The room does not use the KeyBox profile.
    #[error("Only rooms that use the KeyBox profile can be closed")]
    NotAKeyBoxRoom,
    /// The room is closed, and the KeyBox that takes the step is none of its KeyBoxes.
    #[error(
        "This KeyBox is none of those that the room was closed with: a moderator has to approve it first"
    )]
    NotInTheSet,
    /// The step is not signed by the KeyBox that sends it.
    #[error("The step is not signed by the KeyBox that sends it")]
    NotSigned,
    /// The step is taken in the name of somebody else.
    #[error("A step is taken by who sends it, with the KeyBox that sends it")]
    NotYours,
    /// A closing cannot be redacted.
    #[error("What closed or opened a room cannot be redacted")]
    Redaction,
    /// The step is malformed, or may not be the next.
    #[error("The room cannot be closed or opened like this: {0}")]
    Step(ClosingError),
    /// A closed room cannot be replaced.
    #[error("The room is closed: open it before you upgrade it")]
    Upgrade,
}

/// What the content of the closing event of a room says. What cannot be read is from before this profile, and closes nothing:
/// [`check`] lets nothing in that cannot.
pub fn read_closing(room_id: &RoomId, content: &RawValue) -> Option<Closing> {
    Closing::of(&steps(room_id.as_str(), content)?).ok()
}

/// What holds for a room by its closing event; `None` if it was never closed or opened.
pub fn closing_of(room: &RoomState) -> Option<Closing> {
    read_closing(&room.room_id, &room.get(EVENT_TYPE, "")?.pdu.content)
}

/// Checks an event that is to come next in a room: what a closed room does not let in, and what closes or opens it.
///
/// # Errors
/// The reason for the refusal, fit to be shown to the user.
pub fn check(room: &RoomState, draft: &Draft) -> Result<(), ClosingRefusal> {
    let Some(state_key) = draft.state_key.as_deref() else { return Ok(()) };
    match &draft.event_type {
        TimelineEventType::RoomMember => check_member(room, state_key, &draft.content),
        TimelineEventType::RoomTombstone if closing_of(room).is_some_and(|closing| closing.closed) => {
            Err(ClosingRefusal::Upgrade)
        }
        other if state_key.is_empty() && other.to_string() == EVENT_TYPE => {
            check_step(room, &draft.sender, &draft.content)
        }
        _ => Ok(()),
    }
}

/// Checks that the last step of a new closing event is signed by the device that sends it, whose published keys are
/// `device_keys` (JSON), and that this is one of the KeyBoxes of the room if that is closed.
///
/// # Errors
/// The reason for the refusal, fit to be shown to the user.
pub fn check_signer(
    room: &RoomState,
    content: &RawValue,
    (user_id, device_id): (&UserId, &DeviceId),
    device_keys: Option<&str>,
) -> Result<(), ClosingRefusal> {
    let room_id = room.room_id.as_str();
    let content = read(room_id, content).map_err(ClosingRefusal::Step)?;
    let last = content.steps().last().map(SignedStep::mark);
    let last = last.filter(|last| last.user_id == user_id.as_str() && last.keybox_id == device_id.as_str());
    let last = last.ok_or(ClosingRefusal::NotYours)?;
    let signer = device_keys.and_then(|json| public_keys(user_id, device_id, json));
    let signer = signer.ok_or(ClosingRefusal::NotSigned)?;
    if !last.is_signed_by(room_id, &signer).unwrap_or(false) {
        return Err(ClosingRefusal::NotSigned);
    }
    match closing_of(room) {
        Some(closing) if !closing.admits(&key_set_id(&signer.hash())) => Err(ClosingRefusal::NotInTheSet),
        _ => Ok(()),
    }
}

fn public_keys(user_id: &UserId, device_id: &DeviceId, device_keys: &str) -> Option<PublicKeySet> {
    let device_keys = serde_json::from_str(device_keys).ok()?;
    validate_device_keys(user_id.as_str(), device_id.as_str(), &device_keys).ok()?
}

/// Checks that an event may be redacted as far as closings go.
///
/// # Errors
/// [`ClosingRefusal::Redaction`] if it is one that closed or opened the room.
pub fn check_redaction(event_type: &str) -> Result<(), ClosingRefusal> {
    if event_type == EVENT_TYPE { Err(ClosingRefusal::Redaction) } else { Ok(()) }
}

fn steps(room_id: &str, content: &RawValue) -> Option<Content> {
    read(room_id, content).ok()
}

fn read(room_id: &str, content: &RawValue) -> Result<Content, ClosingError> {
    let content: Value =
        serde_json::from_str(content.get()).map_err(|_| ClosingError::Malformed("it is no JSON"))?;
    Content::read(room_id, &content)
}

/// Nobody new comes into a closed room, nor into one that is full. Who is in it may change their profile, and leave.
fn check_member(room: &RoomState, state_key: &str, content: &RawValue) -> Result<(), ClosingRefusal> {
    #[derive(Deserialize)]
    struct Member {
        membership: MembershipState,
    }
    use MembershipState as M;
    let Some(closing) = closing_of(room) else { return Ok(()) };
    let Ok(Member { membership }) = serde_json::from_str(content.get()) else { return Ok(()) };
    let before = <&UserId>::try_from(state_key).map_or(M::Leave, |user_id| room.membership(user_id));
    let comes = match membership {
        M::Join => before != M::Join,
        M::Invite | M::Knock => true,
        _ => false,
    };
    if comes && closing.closed {
        return Err(ClosingRefusal::Closed);
    }
    let counts = |membership: &M| matches!(membership, M::Join | M::Invite);
    let members = u64::try_from(room.joined_count() + room.invited_count()).unwrap_or(u64::MAX);
    match closing.limit {
        Some(limit) if counts(&membership) && !counts(&before) && members >= limit => {
            Err(ClosingRefusal::Full(limit))
        }
        _ => Ok(()),
    }
}

fn check_step(room: &RoomState, sender: &UserId, content: &RawValue) -> Result<(), ClosingRefusal> {
    use ClosingRefusal::Step as Bad;
    if !is_keybox_room(room) {
        return Err(ClosingRefusal::NotAKeyBoxRoom);
    }
    let room_id = room.room_id.as_str();
    let new = read(room_id, content).map_err(Bad)?;
    let now = room.get(EVENT_TYPE, "").and_then(|event| steps(room_id, &event.pdu.content));
    let step = match &now {
        None => new.steps().first().filter(|first| new.steps().len() == 1 && first.step().generation == 1),
        Some(now) => new.step_after(now),
    };
    let step = step.ok_or(Bad(ClosingError::DoesNotFollow))?;
    if let Some(now) = &now {
        Closing::of(now).and_then(|closing| closing.next(step)).map_err(Bad)?;
    }
    if step.step().user_id == sender.as_str() { Ok(()) } else { Err(ClosingRefusal::NotYours) }
}

fn is_keybox_room(room: &RoomState) -> bool {
    let encryption = room.get("m.room.encryption", "");
    let algorithm = encryption.and_then(|event| crate::encryption::algorithm(&event.pdu.content).ok());
    algorithm.is_some_and(|algorithm| crate::keybox::is_keybox_suite(&algorithm))
}

#[cfg(test)]
mod tests;
