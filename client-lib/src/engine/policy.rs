//! To which KeyBoxes this one gives resource keys: a policy for the account, others for single rooms, and the decisions of a
//! person where the policy is to ask.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use keystead_keybox::Entropy;
use keystead_keybox::key_message::WithheldCode;
use keystead_keybox::resource_key::ResourceKeyId;

use super::exchange::EngineError;
use super::{Engine, KeyBoxAddress, KeyRef, Notice, RecordName};

/// How many KeyBoxes wait for a decision at most; more are told to wait and not kept. They ask again by themselves.
const MAX_WAITING: usize = 1_000;

/// To which of the KeyBoxes that may have a resource key it is given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Policy {
    /// To each.
    #[default]
    Automatic,
    /// To those that a person has verified.
    VerifiedOnly,
    /// To each that a person agrees to, one by one.
    Ask,
    /// To none.
    Never,
}

impl Policy {
    /// The policy of that name; `None` if there is none.
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "automatic" => Some(Self::Automatic),
            "verified_only" => Some(Self::VerifiedOnly),
            "ask" => Some(Self::Ask),
            "never" => Some(Self::Never),
            _ => None,
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Automatic => "automatic",
            Self::VerifiedOnly => "verified_only",
            Self::Ask => "ask",
            Self::Never => "never",
        }
    }
}

/// What a person has to decide, or has decided: whether one KeyBox gets the resource keys of one room.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Approval {
    /// Names it in [`Engine::approve`] and [`Engine::refuse`].
    pub id: u64,
    /// The room.
    pub room_id: String,
    /// The KeyBox.
    pub keybox: KeyBoxAddress,
    /// Since when it has been waiting, in milliseconds since the Unix epoch.
    pub since: u64,
    /// The keys that it waits for.
    pub waiting: BTreeSet<ResourceKeyId>,
    /// The keys that were agreed to.
    pub approved: BTreeSet<ResourceKeyId>,
    /// What was decided for all keys of the room, those to come included.
    pub decided: Option<Decision>,
}

/// A decision that holds from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decision {
    /// The KeyBox gets the room's keys.
    Approved,
    /// It does not.
    Refused,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Policies {
    account: Policy,
    rooms: BTreeMap<String, Policy>,
    approvals: Vec<Approval>,
    last_id: u64,
}

impl Policies {
    fn of(&self, room_id: &str) -> Policy {
        self.rooms.get(room_id).copied().unwrap_or(self.account)
    }

    fn approval(&self, room_id: &str, keybox: &KeyBoxAddress) -> Option<&Approval> {
        self.approvals.iter().find(|approval| approval.room_id == room_id && approval.keybox == *keybox)
    }

    fn approval_mut(&mut self, room_id: &str, keybox: &KeyBoxAddress) -> Option<&mut Approval> {
        self.approvals.iter_mut().find(|approval| approval.room_id == room_id && approval.keybox == *keybox)
    }

    fn waiting(&self) -> usize {
        self.approvals.iter().filter(|approval| !approval.waiting.is_empty()).count()
    }
}

impl Engine {
    /// The policy that holds for a room, or for the account.
    pub fn policy(&self, room_id: Option<&str>) -> Policy {
        room_id.map_or(self.policies.account, |room_id| self.policies.of(room_id))
    }

    /// The rooms that have a policy of their own.
    pub fn room_policies(&self) -> &BTreeMap<String, Policy> {
        &self.policies.rooms
    }

    /// Sets the policy of the account.
    pub fn set_policy(&mut self, policy: Policy) {
        self.policies.account = policy;
        self.changed.insert(RecordName::Policies);
    }

    /// Sets the policy of one room; `None` lets the account's hold again.
    pub fn set_room_policy(&mut self, room_id: &str, policy: Option<Policy>) {
        match policy {
            Some(policy) => self.policies.rooms.insert(room_id.to_owned(), policy),
            None => self.policies.rooms.remove(room_id),
        };
        self.changed.insert(RecordName::Policies);
    }

    /// What waits for a decision, and what was decided, oldest first.
    pub fn approvals(&self) -> &[Approval] {
        &self.policies.approvals
    }

    /// Agrees that a KeyBox gets the keys that it waits for, and with `always` those to come. `false` if there is no such approval.
    pub fn approve(
        &mut self,
        id: u64,
        always: bool,
        now: u64,
        entropy: &mut dyn Entropy,
        notices: &mut Vec<Notice>,
    ) -> Result<bool, EngineError> {
        let Some(approval) = self.policies.approvals.iter_mut().find(|approval| approval.id == id) else {
            return Ok(false);
        };
        approval.decided = always.then_some(Decision::Approved);
        let waiting = std::mem::take(&mut approval.waiting);
        approval.approved.extend(waiting.iter().cloned());
        let (room_id, keybox) = (approval.room_id.clone(), approval.keybox.clone());
        self.changed.insert(RecordName::Policies);
        for key_id in waiting {
            let key = KeyRef { room_id: room_id.clone(), key_id };
            self.answer(&key, None, &keybox, now, entropy, notices)?;
        }
        Ok(true)
    }

    /// Decides that a KeyBox gets no keys of the room, and tells it so. `false` if there is no such approval.
    pub fn refuse(
        &mut self,
        id: u64,
        entropy: &mut dyn Entropy,
        notices: &mut Vec<Notice>,
    ) -> Result<bool, EngineError> {
        let Some(approval) = self.policies.approvals.iter_mut().find(|approval| approval.id == id) else {
            return Ok(false);
        };
        approval.decided = Some(Decision::Refused);
        approval.approved.clear();
        let waiting = std::mem::take(&mut approval.waiting);
        let (room_id, keybox) = (approval.room_id.clone(), approval.keybox.clone());
        self.changed.insert(RecordName::Policies);
        for key_id in waiting {
            let key = KeyRef { room_id: room_id.clone(), key_id };
            let Some(record) = self.resource_keys.get(&key) else { continue };
            let suite = record.suite.clone();
            self.withhold(&key, &suite, &keybox, WithheldCode::Unauthorised, entropy, notices)?;
        }
        Ok(true)
    }

    /// Whether the room's closing and the policy let a KeyBox have a resource key, or with `None` one that is to be made; and if not, what to answer.
    pub(super) fn admits(
        &self,
        room_id: &str,
        key_id: Option<&ResourceKeyId>,
        keybox: &KeyBoxAddress,
    ) -> Result<(), WithheldCode> {
        if *keybox == self.own {
            return Ok(());
        }
        self.closing_admits(room_id, keybox)?;
        match self.policies.of(room_id) {
            Policy::Automatic => Ok(()),
            Policy::VerifiedOnly if self.is_verified(keybox) => Ok(()),
            Policy::VerifiedOnly => Err(WithheldCode::Unverified),
            Policy::Never => Err(WithheldCode::Blacklisted),
            Policy::Ask => {
                let approval = self.policies.approval(room_id, keybox);
                match approval.and_then(|approval| approval.decided) {
                    Some(Decision::Approved) => Ok(()),
                    Some(Decision::Refused) => Err(WithheldCode::Unauthorised),
                    None => {
                        let agreed = |approval: &Approval| {
                            key_id.is_some_and(|key_id| approval.approved.contains(key_id))
                        };
                        if approval.is_some_and(agreed) {
                            Ok(())
                        } else {
                            Err(WithheldCode::AwaitingApproval)
                        }
                    }
                }
            }
        }
    }

    /// Whether a person has made sure of a KeyBox's keys.
    pub(super) fn is_verified(&self, keybox: &KeyBoxAddress) -> bool {
        self.directory.find(keybox).is_some_and(|known| known.is_verified())
    }

    /// Puts a KeyBox into the queue for a key.
    pub(super) fn await_approval(
        &mut self,
        key: &KeyRef,
        keybox: &KeyBoxAddress,
        now: u64,
        notices: &mut Vec<Notice>,
    ) {
        let full = self.policies.waiting() >= MAX_WAITING;
        let id = match self.policies.approval_mut(&key.room_id, keybox) {
            Some(approval) => {
                if approval.waiting.is_empty() {
                    approval.since = now;
                }
                if !approval.waiting.insert(key.key_id.clone()) {
                    return;
                }
                approval.id
            }
            None if full => return,
            None => {
                self.policies.last_id += 1;
                let id = self.policies.last_id;
                self.policies.approvals.push(Approval {
                    id,
                    room_id: key.room_id.clone(),
                    keybox: keybox.clone(),
                    since: now,
                    waiting: BTreeSet::from([key.key_id.clone()]),
                    approved: BTreeSet::new(),
                    decided: None,
                });
                id
            }
        };
        self.changed.insert(RecordName::Policies);
        notices.push(Notice::ApprovalNeeded { id, room_id: key.room_id.clone(), keybox: keybox.clone() });
    }

    /// A KeyBox does not want a key any more: nobody has to decide about it.
    pub(super) fn stop_awaiting(&mut self, key: &KeyRef, keybox: &KeyBoxAddress) {
        let Some(approval) = self.policies.approval_mut(&key.room_id, keybox) else { return };
        if approval.waiting.remove(&key.key_id) {
            self.policies.approvals.retain(|approval| {
                !approval.waiting.is_empty() || !approval.approved.is_empty() || approval.decided.is_some()
            });
            self.changed.insert(RecordName::Policies);
        }
    }
}
