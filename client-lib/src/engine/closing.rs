//! Closed rooms: which KeyBoxes get resource keys while a room is closed, whatever the server says (`SPEC.md`, section 24).
//!
//! The server brings the steps that close and open a room. This KeyBox takes one only if a KeyBox that may has signed it, and
//! remembers what it took: the server can hide a later step, but not bring back an earlier one. That a step is hidden shows
//! with the next resource key of somebody who has seen it.

mod take;

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use keystead_keybox::closing::{Action, Closing, Content, Mark, SignedStep, key_set_id};
use keystead_keybox::key_message::WithheldCode;
use keystead_keybox::key_set::PublicKeySet;

pub use take::{ClosingFailure, NewStep};

use super::{EncryptError, Engine, KeyBoxAddress, Membership, Notice, RecordName, Room};

/// What a KeyBox knows of a room's closing.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct RoomClosing {
    /// What holds.
    pub(super) now: Option<Closing>,
    /// Later steps that the server shows, and that cannot be checked yet.
    offered: Option<Value>,
    /// The latest step that another KeyBox has named.
    heard: Option<Mark>,
    /// The users who left while the room was closed: they come back only after it was open.
    departed: BTreeSet<String>,
    /// The key sets that were revoked while the room was closed.
    revoked: BTreeSet<String>,
}

/// What to do with steps that the server shows.
enum Verdict {
    Taken {
        closing: Closing,
        closes_at: Option<u64>,
    },
    /// The key sets of this user have to be asked for first.
    AskFor(String),
    Refused(&'static str),
}

impl Room {
    /// Whether the room is closed, as far as this KeyBox could check.
    pub fn is_closed(&self) -> bool {
        self.closing.now.as_ref().is_some_and(|closing| closing.closed)
    }

    /// What closed the room, or opened it again; `None` if it never was.
    pub fn closing(&self) -> Option<&Closing> {
        self.closing.now.as_ref()
    }

    /// Takes in the closing event as the server shows it, to be checked by [`Engine::settle_closing`].
    pub(super) fn offer_closing(&mut self, sender: &str, content: &Value) {
        let Ok(read) = Content::read(&self.room_id, content) else { return };
        let Some(last) = read.steps().last().map(SignedStep::mark) else { return };
        let known = self.closing.now.as_ref().map_or(0, |closing| closing.last.generation);
        if last.user_id == sender && last.generation > known {
            self.closing.offered = Some(content.clone());
        }
    }

    /// Notes that a user is not in the room any more.
    pub(super) fn departed_from_closing(&mut self, user_id: &str) {
        if self.is_closed() {
            self.closing.departed.insert(user_id.to_owned());
        }
    }

    /// Who took a step that another KeyBox named, and that the server has not shown, or has shown otherwise.
    fn hidden_step(&self) -> Option<&Mark> {
        let heard = self.closing.heard.as_ref()?;
        let counts = match &self.closing.now {
            Some(now) if now.closed => now.moderators.contains(&heard.user_id),
            _ => self.membership_of(&heard.user_id) == Some(Membership::Join),
        };
        let differs = match &self.closing.now {
            Some(now) if heard.generation == now.last.generation => heard.hash != now.last.hash,
            Some(now) => heard.generation > now.last.generation,
            None => true,
        };
        (counts && differs).then_some(heard)
    }
}

impl Engine {
    /// Whether a room's closing lets a KeyBox have its resource keys.
    pub(super) fn closing_admits(&self, room_id: &str, keybox: &KeyBoxAddress) -> Result<(), WithheldCode> {
        let Some(room) = self.rooms.get(room_id) else { return Ok(()) };
        if room.closing.offered.is_some() || room.hidden_step().is_some() {
            return Err(WithheldCode::RoomClosed);
        }
        if self.is_outside(room, keybox) { Err(WithheldCode::RoomClosed) } else { Ok(()) }
    }

    /// Whether a room is closed, as far as this KeyBox knows, and a KeyBox is none of the room's.
    pub(super) fn is_outside(&self, room: &Room, keybox: &KeyBoxAddress) -> bool {
        let Some(now) = room.closing.now.as_ref().filter(|now| now.closed) else { return false };
        let name = self.keys_of(keybox).map(|keys| key_set_id(&keys.hash())).unwrap_or_default();
        let is_out = room.closing.departed.contains(&keybox.user_id) || room.closing.revoked.contains(&name);
        is_out || !now.admits(&name)
    }

    /// Whether a room's closing is still to be checked: key sets are being asked for.
    pub(super) fn awaits_closing(&self, room_id: &str) -> bool {
        self.rooms.get(room_id).is_some_and(|room| room.closing.offered.is_some())
    }

    /// Stops a message to a room whose closing leaves this KeyBox out, or is kept from it. `true` if key sets have to be asked for first.
    pub(super) fn check_closing(
        &mut self,
        room_id: &str,
        now: u64,
        notices: &mut Vec<Notice>,
    ) -> Result<bool, EncryptError> {
        self.settle_closing(room_id, now, notices);
        let Some(room) = self.rooms.get(room_id) else { return Ok(false) };
        if room.closing.offered.is_some() {
            return Ok(true);
        }
        if let Some(hidden) = room.hidden_step() {
            let (user_id, keybox_id) = (&hidden.user_id, &hidden.keybox_id);
            return Err(EncryptError::ClosingHidden(KeyBoxAddress::new(user_id, keybox_id)));
        }
        let present = |membership: &&Membership| matches!(membership, Membership::Join | Membership::Invite);
        let members = u64::try_from(room.members.values().filter(present).count()).unwrap_or(u64::MAX);
        match room.closing.now.as_ref().and_then(|closing| closing.limit) {
            Some(limit) if members > limit => return Err(EncryptError::TooManyMembers { limit, members }),
            _ => {}
        }
        self.closing_admits(room_id, &self.own).map_err(|_| EncryptError::NotApproved)?;
        Ok(false)
    }

    /// Checks the steps that the server shows for a room, as far as the key sets of who took them are here.
    pub(super) fn settle_closing(&mut self, room_id: &str, now: u64, notices: &mut Vec<Notice>) {
        let Some(room) = self.rooms.get(room_id) else { return };
        let Some(offered) = &room.closing.offered else { return };
        let verdict = match Content::read(room_id, offered) {
            Ok(content) => self.judge_steps(room, &content),
            Err(_) => Verdict::Refused("it is malformed"),
        };
        self.changed.insert(RecordName::Room(room_id.to_owned()));
        match verdict {
            Verdict::AskFor(user_id) => {
                self.directory.mark_outdated(&user_id);
                self.changed.insert(RecordName::Directory);
            }
            Verdict::Refused(reason) => {
                let Some(room) = self.rooms.get_mut(room_id) else { return };
                room.closing.offered = None;
                notices
                    .push(Notice::ClosingRefused { room_id: room_id.to_owned(), reason: reason.to_owned() });
            }
            Verdict::Taken { closing, closes_at } => {
                self.take_closing(room_id, closing, closes_at.map(|at| at.min(now)), notices);
            }
        }
    }

    /// The same for all rooms: the key sets of who took a step may be here by now.
    pub(super) fn settle_closings(&mut self, now: u64, notices: &mut Vec<Notice>) {
        let offered = self.rooms.values().filter(|room| room.closing.offered.is_some());
        let room_ids: Vec<_> = offered.map(|room| room.room_id.clone()).collect();
        for room_id in room_ids {
            self.settle_closing(&room_id, now, notices);
        }
    }

    fn judge_steps(&self, room: &Room, content: &Content) -> Verdict {
        let known = room.closing.now.as_ref();
        let newer: Vec<_> = content
            .steps()
            .iter()
            .filter(|step| known.is_none_or(|known| step.step().generation > known.last.generation))
            .collect();
        let follows = match (known, newer.first()) {
            (Some(known), Some(first)) => first.follows(&known.last),
            _ => false,
        };
        if let Some(known) = known.filter(|known| follows || known.closed) {
            if !follows {
                return Verdict::Refused("steps before it are missing");
            }
            return self.follow_steps(room, known.clone(), &newer);
        }
        // An open room, or one that this KeyBox is new in: it begins with the newest step that rests on no other. Who could
        // take that one, the server says; but it is signed.
        let Some(start) = newer.iter().rposition(|step| step.step().action != Action::Approve) else {
            return Verdict::Refused("steps before it are missing");
        };
        let (first, later) = newer.split_at(start + 1);
        let Some(first) = first.last() else { return Verdict::Refused("it has no steps") };
        let signer = KeyBoxAddress::new(&first.step().user_id, &first.step().keybox_id);
        match self.keys_of(&signer) {
            Some(keys) if first.mark().is_signed_by(&room.room_id, keys).unwrap_or(false) => {}
            Some(_) => return Verdict::Refused("it is not signed by the KeyBox that it names"),
            None if self.directory.is_outdated(&signer.user_id) => return Verdict::AskFor(signer.user_id),
            // Revoked since: what others name with their keys must be this all the same.
            None => {}
        }
        let Ok(start) = Content::with(None, (*first).clone()).and_then(|first| Closing::of(&first)) else {
            return Verdict::Refused("it is malformed");
        };
        let verdict = self.follow_steps(room, start, later);
        match verdict {
            Verdict::Taken { closing, closes_at } => {
                let begins_at = (first.step().action == Action::Close).then_some(first.step().at);
                Verdict::Taken { closing, closes_at: closes_at.max(begins_at) }
            }
            other => other,
        }
    }

    /// Takes steps one by one, each signed, and while the room is closed by a KeyBox of the room.
    fn follow_steps(&self, room: &Room, mut closing: Closing, steps: &[&SignedStep]) -> Verdict {
        let mut closes_at = None;
        for step in steps {
            let taken = step.step();
            let signer = KeyBoxAddress::new(&taken.user_id, &taken.keybox_id);
            let Some(keys) = self.keys_of(&signer) else {
                if self.directory.is_outdated(&signer.user_id) {
                    return Verdict::AskFor(signer.user_id);
                }
                return Verdict::Refused("the KeyBox that it names is not known");
            };
            if !step.mark().is_signed_by(&room.room_id, keys).unwrap_or(false) {
                return Verdict::Refused("it is not signed by the KeyBox that it names");
            }
            let name = key_set_id(&keys.hash());
            let is_out =
                room.closing.departed.contains(&taken.user_id) || room.closing.revoked.contains(&name);
            if closing.closed && (!closing.admits(&name) || is_out) {
                return Verdict::Refused("it is signed by a KeyBox that is none of the closed room's");
            }
            closing = match closing.next(step) {
                Ok(next) => next,
                Err(_) => return Verdict::Refused("it is not by a moderator of the closed room"),
            };
            if taken.action == Action::Close {
                closes_at = Some(taken.at);
            }
        }
        Verdict::Taken { closing, closes_at }
    }

    fn take_closing(
        &mut self,
        room_id: &str,
        closing: Closing,
        closes_at: Option<u64>,
        notices: &mut Vec<Notice>,
    ) {
        let Some(room) = self.rooms.get_mut(room_id) else { return };
        if let Some(at) = closes_at {
            // Who was given the keys so far, nobody knows for certain.
            room.depart();
            room.last_departure_at = room.last_departure_at.max(at);
        }
        if !closing.closed {
            room.closing.departed.clear();
            room.closing.revoked.clear();
        }
        room.closing.offered = None;
        notices.push(Notice::RoomClosing {
            room_id: room_id.to_owned(),
            closed: closing.closed,
            by: KeyBoxAddress::new(&closing.last.user_id, &closing.last.keybox_id),
            keyboxes: closing.keyboxes.len(),
        });
        room.closing.now = Some(closing);
        if self.closing_admits(room_id, &self.own).is_ok() {
            // Who was refused before may be answered now.
            for wanted in self.exchange.wanted.iter_mut().filter(|wanted| wanted.key.room_id == room_id) {
                wanted.asked.clear();
                wanted.refused.clear();
                (wanted.rounds, wanted.next_at, wanted.told) = (0, 0, None);
            }
            self.changed.insert(RecordName::Exchange);
        }
        if self.rooms.get(room_id).is_some_and(|room| self.is_outside(room, &self.own)) {
            let keybox = self.own.clone();
            notices.push(Notice::KeyBoxOutside { room_id: room_id.to_owned(), keybox });
        }
    }

    /// Notes a step that another KeyBox names together with a resource key.
    pub(super) fn hear_of_closing(&mut self, room_id: &str, mark: &Mark) {
        let signer = KeyBoxAddress::new(&mark.user_id, &mark.keybox_id);
        let signed =
            self.keys_of(&signer).is_some_and(|keys| mark.is_signed_by(room_id, keys).unwrap_or(false));
        let Some(room) = self.rooms.get_mut(room_id).filter(|_| signed) else { return };
        let known = room.closing.now.as_ref().map_or(0, |closing| closing.last.generation);
        let heard = room.closing.heard.as_ref().map_or(0, |heard| heard.generation);
        if mark.generation >= known && mark.generation > heard {
            room.closing.heard = Some(mark.clone());
            self.changed.insert(RecordName::Room(room_id.to_owned()));
        }
    }

    /// Notes that KeyBoxes of a user were revoked.
    pub(super) fn revoked_from_closings(&mut self, keybox: &KeyBoxAddress) {
        let Some(known) = self.directory.find(keybox) else { return };
        let name = key_set_id(&known.keys.hash());
        for room in self.rooms.values_mut().filter(|room| room.is_closed()) {
            if room.members.contains_key(&keybox.user_id) && room.closing.revoked.insert(name.clone()) {
                self.changed.insert(RecordName::Room(room.room_id.clone()));
            }
        }
    }

    /// The public keys of a KeyBox, this one included: those first seen, or accepted since.
    fn keys_of(&self, keybox: &KeyBoxAddress) -> Option<&PublicKeySet> {
        if *keybox == self.own {
            return Some(&self.public);
        }
        self.directory.find(keybox).map(|known| &known.keys)
    }
}
