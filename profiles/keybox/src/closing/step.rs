//! One step: what changes, signed by the KeyBox that takes it.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{ClosingError, MAX_KEYBOXES, MAX_MODERATORS};
use crate::canonical_json::{MAX_INTEGER, canonical_json};
use crate::encoding::{Fields, base64, base64_bytes, base64_url, from_base64, from_base64_url};
use crate::key_set::{PrivateKeySet, PublicKeySet};
use crate::primitives::{CryptoError, sha256};

/// The greatest length of a user's or a KeyBox's id, in bytes.
const MAX_ID_BYTES: usize = 255;

/// What a step does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Adds KeyBoxes to the set of a closed room.
    Approve,
    /// Closes the room; sets the KeyBoxes and the moderators.
    Close,
    /// Opens the room.
    Open,
}

/// A step as it is signed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// What it does.
    pub action: Action,
    /// Its number in the room: 1, 2, 3, …
    pub generation: u64,
    /// The hash of the step before; empty in the first.
    pub prev: String,
    /// Who takes it.
    pub user_id: String,
    /// With which KeyBox.
    pub keybox_id: String,
    /// When, in milliseconds since the Unix epoch, by the KeyBox's clock.
    pub at: u64,
    /// Names of KeyBoxes ([`super::key_set_id`]), sorted: the whole set of a closing, those added by an approval.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keyboxes: Vec<String>,
    /// The users whose KeyBoxes may take the next steps, sorted; of a closing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub moderators: Vec<String>,
    /// How many users may be in the room or invited to it; of a closing or opening.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
}

/// A step with its signature, of one room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedStep {
    step: Step,
    json: Value,
    mark: Mark,
}

/// What a step is known by, signed: small enough to go along with every resource key, so that a KeyBox learns of a closing that
/// the server does not show it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// The step's number.
    pub generation: u64,
    /// Its hash.
    pub hash: String,
    /// Who took it.
    pub user_id: String,
    /// With which KeyBox.
    pub keybox_id: String,
    /// That KeyBox's signature.
    #[serde(with = "base64_bytes")]
    pub signature: Vec<u8>,
}

impl SignedStep {
    /// Signs a step of a room with the KeyBox that takes it.
    ///
    /// # Errors
    /// The step has not the form of its action, or names another KeyBox than `keys`.
    pub fn sign(room_id: &str, step: &Step, keys: &PrivateKeySet) -> Result<Self, ClosingError> {
        if step.user_id != keys.user_id() || step.keybox_id != keys.keybox_id() {
            return Err(ClosingError::Malformed("the step is taken by another KeyBox"));
        }
        let malformed = |_| ClosingError::Malformed("a step cannot be written");
        let Value::Object(mut json) = serde_json::to_value(step).map_err(malformed)? else {
            return Err(ClosingError::Malformed("a step is not an object"));
        };
        let hash = hash(room_id, &json)?;
        let mut mark = Mark {
            generation: step.generation,
            hash,
            user_id: step.user_id.clone(),
            keybox_id: step.keybox_id.clone(),
            signature: Vec::new(),
        };
        mark.signature = keys.sign(&mark.signed_bytes(room_id))?;
        json.insert("signature".to_owned(), base64(&mark.signature).into());
        let signed = Self { step: step.clone(), json: Value::Object(json), mark };
        signed.step.check()?;
        Ok(signed)
    }

    /// Reads a step of a room, and checks its form; not the signature.
    ///
    /// # Errors
    /// It has not the form of its action.
    pub fn read(room_id: &str, json: &Value) -> Result<Self, ClosingError> {
        let step =
            Step::deserialize(json).map_err(|_| ClosingError::Malformed("a member of a step is missing"))?;
        step.check()?;
        let mut covered = json.as_object().cloned().unwrap_or_default();
        let signature = covered.remove("signature");
        let signature = signature.as_ref().and_then(Value::as_str).and_then(|text| from_base64(text).ok());
        let signature = signature.ok_or(ClosingError::Malformed("a step is not signed"))?;
        let mark = Mark {
            generation: step.generation,
            hash: hash(room_id, &covered)?,
            user_id: step.user_id.clone(),
            keybox_id: step.keybox_id.clone(),
            signature,
        };
        Ok(Self { step, json: json.clone(), mark })
    }

    /// What it says.
    pub fn step(&self) -> &Step {
        &self.step
    }

    /// Its JSON, with the signature.
    pub fn json(&self) -> &Value {
        &self.json
    }

    /// What it is known by.
    pub fn mark(&self) -> Mark {
        self.mark.clone()
    }

    /// Whether it is the one after `last`.
    pub fn follows(&self, last: &Mark) -> bool {
        last.generation.checked_add(1) == Some(self.step.generation) && self.step.prev == last.hash
    }
}

impl Mark {
    /// Whether `signer` took this step of that room.
    ///
    /// # Errors
    /// The cryptographic library failed.
    pub fn is_signed_by(&self, room_id: &str, signer: &PublicKeySet) -> Result<bool, CryptoError> {
        let named = self.user_id == signer.user_id && self.keybox_id == signer.keybox_id;
        Ok(named && signer.verify(&self.signed_bytes(room_id), &self.signature)?)
    }

    fn signed_bytes(&self, room_id: &str) -> Vec<u8> {
        Fields::new("com.trustner.keybox.closing")
            .text(room_id)
            .number(self.generation)
            .text(&self.hash)
            .text(&self.user_id)
            .text(&self.keybox_id)
            .as_slice()
            .to_vec()
    }
}

impl Step {
    /// The form that goes with the action.
    fn check(&self) -> Result<(), ClosingError> {
        let malformed = |what| Err(ClosingError::Malformed(what));
        let is_id = |id: &str| !id.is_empty() && id.len() <= MAX_ID_BYTES;
        let sorted = |names: &[String]| names.windows(2).all(|pair| pair.first() < pair.last());
        let is_hash = |name: &String| from_base64_url(name).is_ok_and(|hash| hash.len() == 32);
        if self.generation == 0 || self.generation > MAX_INTEGER {
            return malformed("generation counts from 1");
        }
        if self.prev.is_empty() != (self.generation == 1) {
            return malformed("prev names the step before");
        }
        if !is_id(&self.user_id) || !is_id(&self.keybox_id) || !self.moderators.iter().all(|id| is_id(id)) {
            return malformed("an id must have 1 to 255 bytes");
        }
        if !sorted(&self.keyboxes) || !sorted(&self.moderators) || !self.keyboxes.iter().all(is_hash) {
            return malformed("keyboxes and moderators must be sorted, keyboxes hashes of key sets");
        }
        if self.keyboxes.len() > MAX_KEYBOXES {
            return Err(ClosingError::TooManyKeyBoxes);
        }
        if self.moderators.len() > MAX_MODERATORS {
            return malformed("a closing names 50 moderators at most");
        }
        let (keyboxes, moderators) = (!self.keyboxes.is_empty(), !self.moderators.is_empty());
        let fits = match self.action {
            Action::Approve => keyboxes && !moderators && self.limit.is_none(),
            Action::Close => keyboxes && self.moderators.contains(&self.user_id),
            Action::Open => !keyboxes && !moderators,
        };
        if fits && self.limit != Some(0) {
            Ok(())
        } else {
            malformed("members do not fit the action of a step")
        }
    }
}

/// The hash of a step without its signature.
fn hash(room_id: &str, step: &Map<String, Value>) -> Result<String, ClosingError> {
    let text = canonical_json(&Value::Object(step.clone()))?;
    let fields = Fields::new("com.trustner.keybox.closing_step").text(room_id).text(&text);
    Ok(base64_url(&sha256(fields.as_slice())))
}
