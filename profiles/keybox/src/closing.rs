//! Closed rooms: nobody comes in, and resource keys go to a frozen set of KeyBoxes only (`SPEC.md`, section 24).
//!
//! What holds for a room is written in *steps* (close, approve a KeyBox, open), each signed by a KeyBox and bound to the one
//! before. The state event [`EVENT_TYPE`] carries the last of them, so that neither the server nor whoever may send state
//! can alter the set: it only grows by a step of a moderator's KeyBox that is in it.

mod step;

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

pub use step::{Action, Mark, SignedStep, Step};

use crate::canonical_json::NotCanonical;
use crate::encoding::base64_url;
use crate::primitives::CryptoError;

/// The type of the state event that carries the steps; its state key is empty.
pub const EVENT_TYPE: &str = "com.trustner.room.closed";
/// How many KeyBoxes a closed room can have: their hashes have to fit into one event.
pub const MAX_KEYBOXES: usize = 1_000;
/// How many moderators a step names at most.
pub const MAX_MODERATORS: usize = 50;

/// Why a content of [`EVENT_TYPE`], or a step, is refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClosingError {
    /// The cryptographic library failed.
    #[error("the step could not be signed or checked")]
    Crypto(#[from] CryptoError),
    /// It does not follow the step that is the last.
    #[error("somebody else has closed or opened the room, or approved a KeyBox, at the same time")]
    DoesNotFollow,
    /// Not of the form that the profile prescribes.
    #[error("malformed: {0}")]
    Malformed(&'static str),
    /// A number in it is not one of canonical JSON.
    #[error("the step has no canonical form")]
    NotCanonical(#[from] NotCanonical),
    /// The room is closed, and the user is none of those who may change that.
    #[error("only the moderators that the closing names may change it: {0} is none of them")]
    NotAModerator(String),
    /// KeyBoxes can be approved in closed rooms only.
    #[error("the room is not closed: KeyBoxes of its members need no approval")]
    NotClosed,
    /// There are more KeyBoxes than [`MAX_KEYBOXES`].
    #[error("a closed room can have 1,000 KeyBoxes at most")]
    TooManyKeyBoxes,
}

/// The content of a [`EVENT_TYPE`] event: steps that follow each other. Signatures are not checked by reading it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    steps: Vec<SignedStep>,
}

/// What holds for a room after a step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Closing {
    /// Whether it is closed.
    pub closed: bool,
    /// How many users may be in the room or invited to it.
    pub limit: Option<u64>,
    /// The KeyBoxes that resource keys go to while it is closed: [`key_set_id`] of each.
    pub keyboxes: BTreeSet<String>,
    /// The users whose KeyBoxes may take the next step while it is closed.
    pub moderators: BTreeSet<String>,
    /// The last step.
    pub last: Mark,
}

/// How a closing names a KeyBox: by the hash of its key set, in unpadded URL-safe base64.
pub fn key_set_id(hash: &[u8; 32]) -> String {
    base64_url(hash)
}

impl Content {
    /// Reads the content of the event of a room.
    ///
    /// # Errors
    /// [`ClosingError::Malformed`] if a step has not the form of its action, does not follow the one before it, or the content says
    /// something else than its last step.
    pub fn read(room_id: &str, content: &Value) -> Result<Self, ClosingError> {
        let steps = content.get("steps").and_then(Value::as_array);
        let steps = steps.ok_or(ClosingError::Malformed("steps is missing"))?;
        let steps: Vec<_> =
            steps.iter().map(|step| SignedStep::read(room_id, step)).collect::<Result<_, _>>()?;
        for (one, next) in steps.iter().zip(steps.iter().skip(1)) {
            if !next.follows(&one.mark()) {
                return Err(ClosingError::Malformed("a step does not follow the one before it"));
            }
        }
        let read = Self { steps };
        let now = Closing::of(&read)?;
        let says = |name: &str, expected: &Value| content.get(name).unwrap_or(&Value::Null) == expected;
        if !says("closed", &now.closed.into())
            || !says("by", &now.last.user_id.as_str().into())
            || !says("limit", &now.limit.into())
        {
            return Err(ClosingError::Malformed("closed, by and limit are not those of the last step"));
        }
        Ok(read)
    }

    /// The content for the first step of a room, or for one that follows `before`. Steps that nobody needs any more are left out.
    ///
    /// # Errors
    /// What [`Closing::next`] says.
    pub fn with(before: Option<&Self>, step: SignedStep) -> Result<Self, ClosingError> {
        let Some(before) = before else { return Self::first(step) };
        Closing::of(before)?.next(&step)?;
        let mut steps = before.steps.clone();
        if step.step().action == Action::Close {
            // Whoever knows the closing before, or a later step, can follow; who knows less begins with the new one.
            let last = steps.iter().rposition(|step| step.step().action == Action::Close);
            steps.drain(..last.map_or(0, |last| last + 1));
        }
        steps.push(step);
        Ok(Self { steps })
    }

    fn first(step: SignedStep) -> Result<Self, ClosingError> {
        let first = Self { steps: vec![step] };
        Closing::of(&first)?;
        Ok(first)
    }

    /// The steps, oldest first; there is one at least.
    pub fn steps(&self) -> &[SignedStep] {
        &self.steps
    }

    /// The JSON of the event's content.
    pub fn to_json(&self) -> Value {
        let now = Closing::of(self).ok();
        let mut content = json!({
            "closed": now.as_ref().is_some_and(|now| now.closed),
            "by": now.as_ref().map(|now| now.last.user_id.as_str()).unwrap_or_default(),
            "steps": self.steps.iter().map(SignedStep::json).collect::<Vec<_>>(),
        });
        if let (Some(limit), Some(content)) = (now.and_then(|now| now.limit), content.as_object_mut()) {
            content.insert("limit".to_owned(), limit.into());
        }
        content
    }

    /// Whether this is `before` (but for the oldest of its steps, perhaps) and one step more, which it returns.
    pub fn step_after(&self, before: &Self) -> Option<&SignedStep> {
        let (last, kept) = self.steps.split_last()?;
        let dropped = before.steps.len().checked_sub(kept.len())?;
        (before.steps.get(dropped..)? == kept).then_some(last)
    }
}

impl Closing {
    /// What holds after the steps of a content, from the newest on that does not rest on others.
    ///
    /// # Errors
    /// [`ClosingError::Malformed`] if there is none that the others could rest on.
    pub fn of(content: &Content) -> Result<Self, ClosingError> {
        let anchor = content.steps.iter().rposition(|step| step.step().action != Action::Approve);
        let mut steps = content.steps.iter().skip(anchor.unwrap_or(content.steps.len()));
        let first = steps.next().ok_or(ClosingError::Malformed("it neither closes nor opens the room"))?;
        steps.try_fold(Self::begun(first), |closing, step| closing.next(step))
    }

    fn begun(step: &SignedStep) -> Self {
        let Step { action, limit, keyboxes, moderators, .. } = step.step();
        let set = |names: &[String]| names.iter().cloned().collect();
        Self {
            closed: *action == Action::Close,
            limit: *limit,
            keyboxes: set(keyboxes),
            moderators: set(moderators),
            last: step.mark(),
        }
    }

    /// What holds after one more step. Whether it is signed, and by a KeyBox of the set, is for the caller to check.
    ///
    /// # Errors
    /// The step may not be the next.
    pub fn next(&self, step: &SignedStep) -> Result<Self, ClosingError> {
        if !step.follows(&self.last) {
            return Err(ClosingError::DoesNotFollow);
        }
        let taken = step.step();
        if self.closed && !self.moderators.contains(&taken.user_id) {
            return Err(ClosingError::NotAModerator(taken.user_id.clone()));
        }
        if taken.action != Action::Approve {
            return Ok(Self::begun(step));
        }
        if !self.closed {
            return Err(ClosingError::NotClosed);
        }
        let mut next = Self { last: step.mark(), ..self.clone() };
        next.keyboxes.extend(taken.keyboxes.iter().cloned());
        if next.keyboxes.len() > MAX_KEYBOXES {
            return Err(ClosingError::TooManyKeyBoxes);
        }
        Ok(next)
    }

    /// Whether a KeyBox with that [`key_set_id`] gets resource keys, as far as the closing goes.
    pub fn admits(&self, key_set_id: &str) -> bool {
        !self.closed || self.keyboxes.contains(key_set_id)
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod vectors;
