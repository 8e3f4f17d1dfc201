//! Missing resource keys: asking for them, and answering those who ask.

use std::collections::BTreeMap;

use keystead_keybox::Entropy;
use keystead_keybox::envelope::Envelope;
use keystead_keybox::key_message::{KeyRequest, RequestAction, Withheld, WithheldCode};
use serde::Deserialize as _;

use super::exchange::{EngineError, Wanted, new_id};
use super::{Engine, KeyBoxAddress, KeyRef, Membership, Notice, RecordName, Room};
use crate::events::RoomEvent;

/// How long to wait for an answer before asking on; doubled each round.
const FIRST_WAIT_MS: u64 = 5_000;
const LONGEST_WAIT_MS: u64 = 60 * 60 * 1000;
/// How many KeyBoxes of the room are asked at a time.
const ASKED_AT_ONCE: usize = 5;
/// How many questions go out in one round; the others follow a little later, so that a KeyBox that comes back after a long time
/// does not shout.
const QUESTIONS_AT_ONCE: usize = 50;
const NEXT_QUESTIONS_MS: u64 = 1_000;
/// How many keys are asked for at the same time: more are a member's attempt to make this KeyBox shout. Members share it evenly.
const MAX_WANTED: usize = 1_000;
/// The same question of the same KeyBox is answered once in this time.
const ANSWER_AGAIN_MS: u64 = 3_000;

impl Engine {
    /// When [`Engine::outgoing`] will next have something to send without anything arriving: for the time-out of a
    /// long-poll. Milliseconds since the Unix epoch.
    pub fn next_deadline(&self) -> Option<u64> {
        self.exchange.wanted.iter().map(|wanted| wanted.next_at).min()
    }

    /// Notes that the key of an event is missing; the question goes out with the next [`Engine::outgoing`].
    pub(super) fn want_key_of(
        &mut self,
        room_id: &str,
        event: &RoomEvent,
        now: u64,
        entropy: &mut dyn Entropy,
    ) {
        let Ok(envelope) = Envelope::deserialize(&event.content) else { return };
        let key = KeyRef { room_id: room_id.to_owned(), key_id: envelope.key_id };
        if self.exchange.wanted.iter().any(|wanted| wanted.key == key)
            || !self.has_place_for(&event.sender, entropy)
        {
            return;
        }
        // Without an id the question cannot be asked now; the event waits, and is tried again.
        let Ok(request_id) = new_id(entropy) else { return };
        self.exchange.wanted.push(Wanted {
            key,
            suite: envelope.algorithm,
            request_id,
            sealed_by: KeyBoxAddress::new(&event.sender, &envelope.sender_keybox),
            asked: Default::default(),
            refused: Default::default(),
            awaiting: Default::default(),
            told: None,
            rounds: 0,
            next_at: now,
        });
        self.changed.insert(RecordName::Exchange);
    }

    /// Whether one more key of messages of `sender` can be asked for. Whoever names keys that nobody has must not keep others' keys from
    /// being asked for: where there is no place, the longest of those in vain goes, of whom has the most.
    fn has_place_for(&mut self, sender: &str, entropy: &mut dyn Entropy) -> bool {
        if self.exchange.wanted.len() < MAX_WANTED {
            return true;
        }
        let mut shares: BTreeMap<&str, usize> = BTreeMap::new();
        for wanted in &self.exchange.wanted {
            *shares.entry(&wanted.sealed_by.user_id).or_default() += 1;
        }
        let own_share = shares.get(sender).copied().unwrap_or_default();
        let Some((greedy, share)) = shares.into_iter().max_by_key(|(_, share)| *share) else { return false };
        if share <= own_share {
            return false;
        }
        let of_greedy = self.exchange.wanted.iter().filter(|wanted| wanted.sealed_by.user_id == greedy);
        let Some(given_up) = of_greedy.max_by_key(|wanted| wanted.rounds).map(|wanted| wanted.key.clone())
        else {
            return false;
        };
        self.stop_wanting(&given_up, entropy).is_ok()
    }

    /// Sends the questions that are due.
    pub(super) fn ask_due(
        &mut self,
        now: u64,
        entropy: &mut dyn Entropy,
        notices: &mut Vec<Notice>,
    ) -> Result<(), EngineError> {
        let mut asked = 0;
        for index in 0..self.exchange.wanted.len() {
            let due = self.exchange.wanted.get(index).filter(|wanted| wanted.next_at <= now).cloned();
            let Some(wanted) = due else { continue };
            let members = self.rooms.get(&wanted.key.room_id).map(Room::audience_users).unwrap_or_default();
            if members.iter().chain([&self.own.user_id]).any(|user_id| self.directory.is_outdated(user_id)) {
                // Which KeyBoxes there are to ask is being looked up in this very round.
                continue;
            }
            if asked >= QUESTIONS_AT_ONCE {
                if let Some(wanted) = self.exchange.wanted.get_mut(index) {
                    wanted.next_at = now.saturating_add(NEXT_QUESTIONS_MS);
                }
                self.changed.insert(RecordName::Exchange);
                continue;
            }
            let candidates = self.candidates(&wanted);
            asked += usize::from(!candidates.is_empty());
            let jitter = jitter(entropy)?;
            let request = self.request(&wanted, RequestAction::Request);
            let messages = candidates.iter().map(|address| (address.clone(), request.clone())).collect();
            self.enqueue(&wanted.key, messages, entropy)?;
            self.changed.insert(RecordName::Exchange);
            if let Some(wanted) = self.exchange.wanted.get_mut(index) {
                if candidates.is_empty() {
                    // All have been asked: start over, more slowly.
                    wanted.asked.clear();
                    wanted.refused.clear();
                }
                wanted.rounds = wanted.rounds.saturating_add(1);
                let wait = FIRST_WAIT_MS.saturating_mul(1 << wanted.rounds.saturating_sub(1).min(10));
                let wait = wait.min(LONGEST_WAIT_MS);
                // Up to a quarter more, so that KeyBoxes which miss the same key do not ask in step.
                wanted.next_at = now.saturating_add(wait + wait / 4 * jitter / 256);
                wanted.asked.extend(candidates.iter().cloned());
            }
            if !candidates.is_empty() {
                notices.push(Notice::KeyAsked { key: wanted.key, keyboxes: candidates });
            }
        }
        Ok(())
    }

    /// Whom to ask next: the user's own other KeyBoxes; then the one that sealed the message and a few of the room's.
    fn candidates(&self, wanted: &Wanted) -> Vec<KeyBoxAddress> {
        let others = |user_id: &str| -> Vec<KeyBoxAddress> {
            let usable = self.directory.usable(user_id, &wanted.suite);
            usable
                .map(|known| KeyBoxAddress::new(user_id, &known.keys.keybox_id))
                .filter(|address| *address != self.own && !wanted.asked.contains(address))
                .collect()
        };
        let own = others(&self.own.user_id);
        if !own.is_empty() {
            return own;
        }
        let mut joined: Vec<_> = self
            .rooms
            .get(&wanted.key.room_id)
            .into_iter()
            .flat_map(|room| &room.members)
            .filter(|(user_id, membership)| **membership == Membership::Join && **user_id != self.own.user_id)
            .flat_map(|(user_id, _)| others(user_id))
            .collect();
        joined.sort_by_key(|address| *address != wanted.sealed_by);
        joined.truncate(ASKED_AT_ONCE);
        joined
    }

    fn request(&self, wanted: &Wanted, action: RequestAction) -> KeyRequest {
        KeyRequest {
            action,
            request_id: wanted.request_id.clone(),
            algorithm: wanted.suite.clone(),
            room_id: wanted.key.room_id.clone(),
            key_id: wanted.key.key_id.clone(),
            sender_keybox: self.own.keybox_id.clone(),
        }
    }

    /// The key has come: takes the question back from those who have not answered.
    pub(super) fn stop_wanting(
        &mut self,
        key: &KeyRef,
        entropy: &mut dyn Entropy,
    ) -> Result<(), EngineError> {
        self.exchange.told.retain(|(told, _)| told != key);
        let Some(index) = self.exchange.wanted.iter().position(|wanted| wanted.key == *key) else {
            return Ok(());
        };
        let wanted = self.exchange.wanted.remove(index);
        self.changed.insert(RecordName::Exchange);
        let request = self.request(&wanted, RequestAction::Cancel);
        let open: Vec<_> = wanted
            .asked
            .union(&wanted.awaiting)
            .filter(|address| !wanted.refused.contains(address))
            .map(|address| (address.clone(), request.clone()))
            .collect();
        self.enqueue(key, open, entropy)
    }

    pub(super) fn on_withheld(
        &mut self,
        withheld: &Withheld,
        sender: &KeyBoxAddress,
        now: u64,
        notices: &mut Vec<Notice>,
    ) {
        let key = KeyRef { room_id: withheld.room_id.clone(), key_id: withheld.key_id.clone() };
        let Some(wanted) = self.exchange.wanted.iter_mut().find(|wanted| wanted.key == key) else {
            // Said without being asked, by who seals with the key: a person should know why messages will not open.
            let room = self.rooms.get(&key.room_id);
            let of_member =
                room.is_some_and(|room| room.membership_of(&sender.user_id) == Some(Membership::Join));
            if of_member && !self.resource_keys.contains_key(&key) {
                let told = &mut self.exchange.told;
                told.retain(|(other, _)| *other != key);
                told.push((key.clone(), withheld.code));
                let surplus = told.len().saturating_sub(MAX_WANTED);
                told.drain(..surplus);
                self.changed.insert(RecordName::Exchange);
                notices.push(Notice::KeyWithheld { key, keybox: sender.clone(), code: withheld.code });
            }
            return;
        };
        if !wanted.asked.contains(sender) && !wanted.awaiting.contains(sender) {
            return;
        }
        wanted.told = Some(withheld.code);
        if withheld.code == WithheldCode::AwaitingApproval {
            wanted.awaiting.insert(sender.clone());
        } else {
            wanted.awaiting.remove(sender);
            wanted.refused.insert(sender.clone());
        }
        let answered =
            |address: &KeyBoxAddress| wanted.refused.contains(address) || wanted.awaiting.contains(address);
        if wanted.asked.iter().all(answered) {
            // All who were asked have answered: no need to wait before asking others.
            wanted.next_at = wanted.next_at.min(now);
        }
        self.changed.insert(RecordName::Exchange);
        notices.push(Notice::KeyWithheld { key, keybox: sender.clone(), code: withheld.code });
    }

    pub(super) fn on_request(
        &mut self,
        request: KeyRequest,
        sender: &KeyBoxAddress,
        now: u64,
        entropy: &mut dyn Entropy,
        notices: &mut Vec<Notice>,
    ) -> Result<(), EngineError> {
        let key = KeyRef { room_id: request.room_id.clone(), key_id: request.key_id.clone() };
        if request.action == RequestAction::Cancel {
            // Answers leave with the round that brought the question; what is left to take back is what waits for a person.
            self.stop_awaiting(&key, sender);
            return Ok(());
        }
        let name = format!("{sender} {} {}", key.room_id, key.key_id);
        self.exchange.answered.retain(|_, answered_at| now.saturating_sub(*answered_at) < ANSWER_AGAIN_MS);
        if self.exchange.answered.contains_key(&name) {
            return Ok(());
        }
        self.exchange.answered.insert(name, now);
        self.changed.insert(RecordName::Exchange);
        self.answer(&key, Some(&request.algorithm), sender, now, entropy, notices)
    }

    /// Gives a KeyBox a resource key, or says why not. `suite` is what it asked with, if it did.
    pub(super) fn answer(
        &mut self,
        key: &KeyRef,
        suite: Option<&str>,
        keybox: &KeyBoxAddress,
        now: u64,
        entropy: &mut dyn Entropy,
        notices: &mut Vec<Notice>,
    ) -> Result<(), EngineError> {
        let known_suite = self.resource_keys.get(key).map(|record| record.suite.clone());
        let suite = suite.map(str::to_owned).or(known_suite).unwrap_or_default();
        let mut verdict = self.may_have(key, &suite, keybox);
        if verdict.is_ok() && self.open_key(key).is_none() {
            // It is here, and does not open any more.
            verdict = Err(WithheldCode::Unavailable);
        }
        match verdict.and_then(|()| self.admits(&key.room_id, Some(&key.key_id), keybox)) {
            Ok(()) => self.give(key, std::slice::from_ref(keybox), now, entropy, notices),
            Err(code) => {
                self.withhold(key, &suite, keybox, code, entropy, notices)?;
                if code == WithheldCode::AwaitingApproval {
                    self.await_approval(key, keybox, now, notices);
                }
                Ok(())
            }
        }
    }

    /// Tells a KeyBox that it does not get a resource key, and why.
    pub(super) fn withhold(
        &mut self,
        key: &KeyRef,
        suite: &str,
        keybox: &KeyBoxAddress,
        code: WithheldCode,
        entropy: &mut dyn Entropy,
        notices: &mut Vec<Notice>,
    ) -> Result<(), EngineError> {
        let withheld = Withheld {
            algorithm: suite.to_owned(),
            room_id: key.room_id.clone(),
            key_id: key.key_id.clone(),
            code,
            reason: reason_of(code).to_owned(),
            sender_keybox: self.own.keybox_id.clone(),
        };
        self.enqueue(key, vec![(keybox.clone(), withheld)], entropy)?;
        if code == WithheldCode::RoomClosed {
            let (room_id, keybox) = (key.room_id.clone(), keybox.clone());
            notices.push(Notice::KeyBoxOutside { room_id, keybox });
        }
        notices.push(Notice::KeyRefused { key: key.clone(), keybox: keybox.clone(), code });
        Ok(())
    }

    /// Whether a KeyBox that asks may have a resource key: it is of a joined member, and the member may read what the
    /// key opens: as a KeyBox that had it before, as another of our own user, because it is what is sent with now, or by the room's
    /// history visibility.
    fn may_have(&self, key: &KeyRef, suite: &str, sender: &KeyBoxAddress) -> Result<(), WithheldCode> {
        let room = self.rooms.get(&key.room_id).ok_or(WithheldCode::Unavailable)?;
        if room.membership_of(&sender.user_id) != Some(Membership::Join) {
            return Err(WithheldCode::Unauthorised);
        }
        let record = self.resource_keys.get(key).ok_or(WithheldCode::Unavailable)?;
        if record.suite != suite {
            return Err(WithheldCode::WrongSuite);
        }
        let usable = self
            .directory
            .usable(&sender.user_id, suite)
            .any(|known| known.keys.keybox_id == sender.keybox_id);
        if !usable {
            return Err(WithheldCode::NoDeviceKey);
        }
        let same_user = |holder: &KeyBoxAddress| holder.user_id == sender.user_id;
        let had_it = record.holders.iter().any(same_user);
        let is_current = record.for_sending && record.epoch == room.epoch;
        let origin = &record.origin;
        let made_here = origin.user_id == self.own.user_id && origin.keybox_id == self.own.keybox_id;
        let lets_read = || room.lets_read(&sender.user_id, &key.key_id, origin.created_at, made_here);
        if had_it || is_current || lets_read() { Ok(()) } else { Err(WithheldCode::Unauthorised) }
    }
}

/// A random number from 0 to 255.
fn jitter(entropy: &mut dyn Entropy) -> Result<u64, EngineError> {
    let mut byte = [0];
    entropy.fill(&mut byte)?;
    Ok(byte.map(u64::from).into_iter().sum())
}

fn reason_of(code: WithheldCode) -> &'static str {
    match code {
        WithheldCode::AwaitingApproval => "A person has to approve this first.",
        WithheldCode::Blacklisted => "This KeyBox gives its keys to nobody.",
        WithheldCode::RoomClosed => "The room is closed: a moderator has to let this KeyBox in.",
        WithheldCode::WrongSuite => "The key serves another suite than the one that was asked for.",
        WithheldCode::NoDeviceKey => "This device has no valid KeyBox key set.",
        WithheldCode::Unauthorised => "This KeyBox may not read what the key opens.",
        WithheldCode::Unavailable => "This KeyBox does not have the key.",
        WithheldCode::Unverified => "This KeyBox has to be verified first.",
    }
}
