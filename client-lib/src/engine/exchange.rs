//! What is under way between KeyBoxes: messages to send, messages that cannot be judged yet, and questions. All of it is
//! stored, so that a restart forgets nothing.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use keystead_keybox::encoding::base64_url;
use keystead_keybox::key_message::{KeyMessage, KeyMessageError, Recipient, WithheldCode, sign};
use keystead_keybox::suite::WrapError;
use keystead_keybox::{CryptoError, Entropy, parallel};

use super::{Engine, KeyBoxAddress, KeyRef, RecordName};
use crate::events::ToDeviceEvent;

/// KeyBoxes that one to-device request is for.
const RECIPIENTS_PER_REQUEST: usize = 50;
/// Key messages kept until their sender's key set is known; the oldest go first.
const MAX_INBOX: usize = 1_000;

/// A failure inside the KeyBox itself: its own random generator, keys, or clockwork.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// The cryptographic library failed.
    #[error("the KeyBox could not compute")]
    Crypto(#[from] CryptoError),
    /// A key message could not be made.
    #[error("the KeyBox could not make a key message")]
    KeyMessage(#[from] KeyMessageError),
    /// The KeyBox's own key set could not be written down.
    #[error("the KeyBox could not sign its own key set")]
    OwnKeys,
    /// A resource key could not be wrapped.
    #[error("the KeyBox could not wrap a resource key")]
    Wrap(#[from] WrapError),
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Exchange {
    /// The suites named by this KeyBox's key set on the server: empty until it is there.
    #[serde(default)]
    pub(super) published: Vec<String>,
    pub(super) outbox: Vec<Queued>,
    pub(super) inbox: Vec<Pending>,
    pub(super) wanted: Vec<Wanted>,
    /// Why resource keys were not sent along, said before anybody asked for them.
    #[serde(default)]
    pub(super) told: Vec<(KeyRef, WithheldCode)>,
    /// Questions answered of late, and when: the same one is not answered twice in a row.
    pub(super) answered: BTreeMap<String, u64>,
}

/// A to-device request that has not been confirmed by the server.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Queued {
    pub(super) txn_id: String,
    pub(super) event_type: String,
    /// By user, by KeyBox.
    pub(super) messages: BTreeMap<String, BTreeMap<String, Value>>,
    /// The resource key that it is about.
    pub(super) key: KeyRef,
}

/// A key message from a KeyBox, or for a room, that is not known yet.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Pending {
    pub(super) event: ToDeviceEvent,
    pub(super) received_at: u64,
}

/// A resource key that is missing, and what was done to get it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Wanted {
    pub(super) key: KeyRef,
    pub(super) suite: String,
    pub(super) request_id: String,
    /// The KeyBox that sealed with it, which therefore has it.
    pub(super) sealed_by: KeyBoxAddress,
    pub(super) asked: BTreeSet<KeyBoxAddress>,
    pub(super) refused: BTreeSet<KeyBoxAddress>,
    /// Those where a person has to decide first: the question stays open there.
    #[serde(default)]
    pub(super) awaiting: BTreeSet<KeyBoxAddress>,
    /// What the last one answered that does not give it.
    #[serde(default)]
    pub(super) told: Option<WithheldCode>,
    pub(super) rounds: u32,
    /// When to ask on, in milliseconds since the Unix epoch.
    pub(super) next_at: u64,
}

/// A new random identifier.
pub(super) fn new_id(entropy: &mut dyn Entropy) -> Result<String, CryptoError> {
    let mut bytes = [0; 16];
    entropy.fill(&mut bytes)?;
    Ok(base64_url(&bytes))
}

impl Engine {
    /// Signs key messages about `key`, each for its KeyBox, on all cores, and queues them.
    pub(super) fn enqueue<M: KeyMessage + Sync>(
        &mut self,
        key: &KeyRef,
        messages: Vec<(KeyBoxAddress, M)>,
        entropy: &mut dyn Entropy,
    ) -> Result<(), EngineError> {
        let contents = parallel::map(&messages, |(address, message)| {
            let recipient = Recipient { user_id: &address.user_id, keybox_id: &address.keybox_id };
            sign(message, &self.keys, recipient)
        });
        let mut contents = messages.into_iter().map(|(address, _)| address).zip(contents).peekable();
        while contents.peek().is_some() {
            let mut signed: BTreeMap<String, BTreeMap<String, Value>> = BTreeMap::new();
            for (address, content) in contents.by_ref().take(RECIPIENTS_PER_REQUEST) {
                signed.entry(address.user_id).or_default().insert(address.keybox_id, content?);
            }
            self.exchange.outbox.push(Queued {
                txn_id: new_id(entropy)?,
                event_type: M::EVENT_TYPE.to_owned(),
                messages: signed,
                key: key.clone(),
            });
            self.changed.insert(RecordName::Exchange);
        }
        Ok(())
    }

    /// Keeps a key message until more is known.
    pub(super) fn postpone(&mut self, event: ToDeviceEvent, received_at: u64) {
        self.exchange.inbox.push(Pending { event, received_at });
        let surplus = self.exchange.inbox.len().saturating_sub(MAX_INBOX);
        self.exchange.inbox.drain(..surplus);
        self.changed.insert(RecordName::Exchange);
    }
}
