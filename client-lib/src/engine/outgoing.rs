//! What a KeyBox wants sent, and what became of it.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use keystead_keybox::Entropy;
use keystead_keybox::canonical_json::JsonSignatureError;
use keystead_keybox::identity::IdentityObjects;
use keystead_keybox::key_message::{KeyMessage as _, ResourceKeyContent};

use super::exchange::{EngineError, Queued, new_id};
use super::{Engine, KeyBoxAddress, KeyRef, Notice, RecordName};

/// Users that one question for key sets names.
const USERS_PER_QUERY: usize = 200;

/// A request for the client to carry out.
#[derive(Clone, Debug, PartialEq)]
pub enum Outgoing {
    /// `PUT /room_keys/keys` with these rooms; then [`Engine::backed_up`] or [`Engine::backup_refused`].
    BackUpKeys {
        /// The version of the backup.
        version: String,
        /// Sealed keys: `rooms` of the request.
        rooms: Map<String, Value>,
        /// Which keys these are.
        keys: Vec<KeyRef>,
    },
    /// `POST /keys/query` for these users; then [`Engine::receive_key_sets`].
    QueryKeys {
        /// Whose key sets.
        users: Vec<String>,
    },
    /// `PUT /sendToDevice/{event_type}/{txn_id}`; then [`Engine::to_device_sent`] or [`Engine::to_device_refused`].
    SendToDevice {
        /// The transaction id: the same again after a crash.
        txn_id: String,
        /// The event type.
        event_type: String,
        /// Contents by user, by device.
        messages: BTreeMap<String, BTreeMap<String, Value>>,
    },
    /// `POST /keys/device_signing/upload`; then [`Engine::identity_uploaded`], or if the server wants more than the session for
    /// it [`Engine::identity_refused`].
    UploadIdentity {
        /// The three keys.
        objects: Box<IdentityObjects>,
    },
    /// `POST /keys/signatures/upload` with this content; then [`Engine::signatures_uploaded`].
    UploadSignatures {
        /// Signed objects by user, by key or device.
        signatures: Map<String, Value>,
    },
    /// `POST /keys/upload` with these `device_keys`; then [`Engine::keys_uploaded`].
    UploadKeys {
        /// The signed key set.
        device_keys: Map<String, Value>,
    },
}

impl Engine {
    /// What to send now, in this order. Ask again after carrying it out, until nothing is left: answers lead to more.
    pub fn outgoing(
        &mut self,
        now: u64,
        entropy: &mut dyn Entropy,
        notices: &mut Vec<Notice>,
    ) -> Result<Vec<Outgoing>, EngineError> {
        let mut requests = Vec::new();
        // Again after an update of the software that brought a suite.
        if self.exchange.published != self.public.algorithms {
            let device_keys = self.keys.device_keys().map_err(|error| match error {
                JsonSignatureError::Crypto(error) => EngineError::Crypto(error),
                _ => EngineError::OwnKeys,
            })?;
            requests.push(Outgoing::UploadKeys { device_keys });
        }
        requests.extend(self.outgoing_identity()?);
        for users in self.directory.outdated().chunks(USERS_PER_QUERY) {
            requests.push(Outgoing::QueryKeys { users: users.to_vec() });
        }
        self.ask_due(now, entropy, notices)?;
        requests.extend(self.exchange.outbox.iter().map(|queued| Outgoing::SendToDevice {
            txn_id: queued.txn_id.clone(),
            event_type: queued.event_type.clone(),
            messages: queued.messages.clone(),
        }));
        requests.extend(self.outgoing_backup(entropy)?);
        Ok(requests)
    }

    /// This KeyBox's key set is on the server.
    pub fn keys_uploaded(&mut self) {
        self.log_registered();
        self.exchange.published.clone_from(&self.public.algorithms);
        self.changed.insert(RecordName::Exchange);
    }

    /// The server has taken a to-device request.
    pub fn to_device_sent(&mut self, txn_id: &str) {
        self.log_sent(txn_id);
        self.exchange.outbox.retain(|queued| queued.txn_id != txn_id);
        self.changed.insert(RecordName::Exchange);
    }

    /// The server has refused a to-device request for good. A request for several KeyBoxes is tried again one by one, since a
    /// user who has just left, or a KeyBox that is gone, makes the server refuse the whole.
    pub fn to_device_refused(
        &mut self,
        txn_id: &str,
        errcode: &str,
        entropy: &mut dyn Entropy,
    ) -> Result<Vec<Notice>, EngineError> {
        let Some(index) = self.exchange.outbox.iter().position(|queued| queued.txn_id == txn_id) else {
            return Ok(Vec::new());
        };
        let refused = self.exchange.outbox.remove(index);
        self.changed.insert(RecordName::Exchange);
        if refused.messages.values().map(BTreeMap::len).sum::<usize>() > 1 {
            for (user_id, contents) in refused.messages {
                for (keybox_id, content) in contents {
                    self.exchange.outbox.push(Queued {
                        txn_id: new_id(entropy)?,
                        event_type: refused.event_type.clone(),
                        messages: BTreeMap::from([(user_id.clone(), BTreeMap::from([(keybox_id, content)]))]),
                        key: refused.key.clone(),
                    });
                }
            }
            return Ok(Vec::new());
        }
        let mut notices = Vec::new();
        for (user_id, contents) in refused.messages {
            for keybox_id in contents.into_keys() {
                let keybox = KeyBoxAddress::new(&user_id, &keybox_id);
                if refused.event_type == ResourceKeyContent::EVENT_TYPE
                    && let Some(record) = self.resource_keys.get_mut(&refused.key)
                {
                    record.holders.remove(&keybox);
                    self.key_changed(&refused.key);
                }
                let errcode = errcode.to_owned();
                notices.push(Notice::KeyUndeliverable { key: refused.key.clone(), keybox, errcode });
            }
        }
        Ok(notices)
    }
}
