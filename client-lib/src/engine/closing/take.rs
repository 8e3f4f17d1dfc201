//! Steps that this KeyBox takes itself: closing a room, opening it, letting a KeyBox in.

use std::collections::BTreeSet;

use serde_json::Value;

use keystead_keybox::closing::{Action, ClosingError, Content, SignedStep, Step, key_set_id};

use super::super::{EncryptError, Engine, KeyBoxAddress, KnownKeyBox, Membership, Room};

/// A step that is to be taken.
#[derive(Clone, Debug)]
pub struct NewStep {
    /// The content to set as the state of the room, of the type [`keystead_keybox::closing::EVENT_TYPE`].
    pub content: Value,
    /// The KeyBoxes that a closing names, or an approval adds.
    pub keyboxes: Vec<KnownKeyBox>,
}

/// Why a room cannot be closed or opened, or a KeyBox be approved.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClosingFailure {
    /// The KeyBox has the room's keys, or may have them.
    #[error("{0} is one of the room's KeyBoxes already")]
    AdmittedAlready(KeyBoxAddress),
    /// The room is as it is to be.
    #[error("{}", if *.0 { "the room is closed already" } else { "the room is open already" })]
    AsItIs(bool),
    /// Somebody's keys have changed, or this KeyBox's user is not in the room.
    #[error(transparent)]
    Encrypt(#[from] EncryptError),
    /// The server shows another state than this KeyBox knows and could check.
    #[error("the server shows this KeyBox other steps than it can check: nothing is built on them")]
    NotWhatIsKnown,
    /// No KeyBox of a member has that id.
    #[error("{0} is no KeyBox of somebody who is in the room, or is gone")]
    NotOfAMember(KeyBoxAddress),
    /// Only who may send such state may close the room.
    #[error("you do not have the power to close the room")]
    NoPower,
    /// The step cannot be the next.
    #[error(transparent)]
    Step(#[from] ClosingError),
}

impl Engine {
    /// The step that closes a room for all but the KeyBoxes that its members have now. `before` is the content of the closing event as the
    /// server has it; `moderators` are those who may open the room again. Ask for the members' key sets first
    /// ([`Engine::follow_members`]).
    pub fn close(
        &self,
        room_id: &str,
        before: Option<&Value>,
        moderators: BTreeSet<String>,
        limit: Option<u64>,
        now: u64,
    ) -> Result<NewStep, ClosingFailure> {
        let room = self.room_to_change(room_id)?;
        if room.is_closed() {
            return Err(ClosingFailure::AsItIs(true));
        }
        if !moderators.contains(&self.own.user_id) {
            return Err(ClosingFailure::NoPower);
        }
        let joined = room.members.iter().filter(|(_, membership)| **membership == Membership::Join);
        let users: Vec<_> = joined.map(|(user_id, _)| user_id.clone()).collect();
        self.refuse_changed_keys(&users)?;
        let present = users.iter().flat_map(|user_id| self.directory.all(user_id));
        let keyboxes: Vec<_> = present.filter(|known| !known.gone && !known.conflicting).cloned().collect();
        let mut names: BTreeSet<_> = keyboxes.iter().map(|known| key_set_id(&known.keys.hash())).collect();
        names.insert(key_set_id(&self.public.hash()));
        let content = self.step(room, before, now, |step| {
            step.action = Action::Close;
            step.keyboxes = names.into_iter().collect();
            step.moderators = moderators.into_iter().collect();
            step.limit = limit;
        })?;
        Ok(NewStep { content, keyboxes })
    }

    /// The step that opens a room, or says how many members an open one may have.
    pub fn open_room(
        &self,
        room_id: &str,
        before: Option<&Value>,
        limit: Option<u64>,
        now: u64,
    ) -> Result<NewStep, ClosingFailure> {
        let room = self.room_to_change(room_id)?;
        let limited = room.closing.now.as_ref().and_then(|closing| closing.limit);
        if !room.is_closed() && limit == limited {
            return Err(ClosingFailure::AsItIs(false));
        }
        let content = self.step(room, before, now, |step| {
            step.action = Action::Open;
            step.limit = limit;
        })?;
        Ok(NewStep { content, keyboxes: Vec::new() })
    }

    /// The step that lets one more KeyBox of a member have the keys of a closed room.
    pub fn approve_keybox(
        &self,
        room_id: &str,
        before: Option<&Value>,
        keybox: &KeyBoxAddress,
        now: u64,
    ) -> Result<NewStep, ClosingFailure> {
        let room = self.room_to_change(room_id)?;
        if !room.is_closed() {
            return Err(ClosingError::NotClosed.into());
        }
        self.refuse_changed_keys(std::slice::from_ref(&keybox.user_id))?;
        let known = self.directory.find(keybox).filter(|known| !known.gone).filter(|known| {
            room.membership_of(&keybox.user_id) == Some(Membership::Join)
                && !room.closing.departed.contains(&keybox.user_id)
                && !room.closing.revoked.contains(&key_set_id(&known.keys.hash()))
        });
        let known = known.ok_or_else(|| ClosingFailure::NotOfAMember(keybox.clone()))?.clone();
        if self.closing_admits(room_id, keybox).is_ok() {
            return Err(ClosingFailure::AdmittedAlready(keybox.clone()));
        }
        let content = self.step(room, before, now, |step| {
            step.action = Action::Approve;
            step.keyboxes = vec![key_set_id(&known.keys.hash())];
        })?;
        Ok(NewStep { content, keyboxes: vec![known] })
    }

    fn room_to_change(&self, room_id: &str) -> Result<&Room, ClosingFailure> {
        let room = self.rooms.get(room_id).filter(|room| room.membership == Membership::Join);
        let room = room.ok_or(EncryptError::NotJoined)?;
        if room.suite.is_none() {
            return Err(EncryptError::NotEncrypted.into());
        }
        if room.closing.offered.is_some() || room.hidden_step().is_some() {
            return Err(ClosingFailure::NotWhatIsKnown);
        }
        self.closing_admits(room_id, &self.own).map_err(|_| EncryptError::NotApproved)?;
        Ok(room)
    }

    /// Signs a step that follows what this KeyBox knows of the room, and puts it behind the steps that the server has.
    fn step(
        &self,
        room: &Room,
        before: Option<&Value>,
        now: u64,
        fill: impl FnOnce(&mut Step),
    ) -> Result<Value, ClosingFailure> {
        let before = before.map(|before| Content::read(&room.room_id, before)).transpose()?;
        let last = room.closing.now.as_ref().map(|closing| &closing.last);
        let shown = before.as_ref().and_then(|before| before.steps().last()).map(SignedStep::mark);
        if last != shown.as_ref() {
            return Err(ClosingFailure::NotWhatIsKnown);
        }
        let mut step = Step {
            action: Action::Open,
            generation: last.map_or(1, |last| last.generation.saturating_add(1)),
            prev: last.map(|last| last.hash.clone()).unwrap_or_default(),
            user_id: self.own.user_id.clone(),
            keybox_id: self.own.keybox_id.clone(),
            at: now,
            keyboxes: Vec::new(),
            moderators: Vec::new(),
            limit: None,
        };
        fill(&mut step);
        let step = SignedStep::sign(&room.room_id, &step, &self.keys)?;
        Ok(Content::with(before.as_ref(), step)?.to_json())
    }
}
