//! KeyBoxes, as far as load needs them: real key sets, real key messages.

use keystead_keybox::{
    OpensslEntropy,
    context::WrapContext,
    key_message::{self, KeyMessage as _, Origin, Recipient, ResourceKeyContent, audience_hash},
    key_set::{PrivateKeySet, PublicKeySet},
    resource_key::ResourceKey,
    suite::{self, Suite},
};
use serde_json::json;

use crate::{
    Error,
    account::User,
    api::{Call, Failure, unique},
    report,
    room::{MARK, Mark},
};

/// A KeyBox whose key set the server has.
pub struct KeyBox {
    /// The device.
    pub user: User,
    keys: PrivateKeySet,
    public: PublicKeySet,
}

/// The suite that is used: the first and default one.
///
/// # Errors
/// The profile has none.
pub fn suite() -> Result<&'static Suite, Error> {
    suite::SUITES.first().ok_or_else(|| Error::Usage("the KeyBox profile has no suite".to_owned()))
}

impl KeyBox {
    /// Makes a key set for a device and publishes it.
    ///
    /// # Errors
    /// The server refuses it.
    pub async fn publish(user: User) -> Result<Self, Error> {
        let failed = |error: &dyn std::fmt::Display| Error::server("a key set", error);
        let keys = PrivateKeySet::generate(&user.id, &user.device, &mut OpensslEntropy);
        let keys = keys.map_err(|error| failed(&error))?;
        let public = keys.public().map_err(|error| failed(&error))?;
        let device_keys = keys.device_keys().map_err(|error| failed(&error))?;
        let call = Call::post("/keys/upload", json!({ "device_keys": device_keys }));
        user.need("keys/upload", &call).await?;
        Ok(Self { user, keys, public })
    }

    /// Gives a new resource key of a room to another KeyBox.
    ///
    /// # Errors
    /// There was no answer, or a refusal.
    pub async fn give_key(&self, suite: &Suite, room: &str, to: &Self, mark: Mark) -> Result<(), Failure> {
        let mut content = self.key_message(suite, room, to).map_err(|error| Failure(error.to_string()))?;
        content[MARK] = json!(mark);
        let messages = json!({ "messages": { &to.user.id: { &to.user.device: content } } });
        let path = format!("/sendToDevice/{}/{}", ResourceKeyContent::EVENT_TYPE, unique());
        self.user.ok(&Call::put(path, messages)).await.map(drop)
    }

    fn key_message(&self, suite: &Suite, room: &str, to: &Self) -> Result<serde_json::Value, Error> {
        let failed = |error: &dyn std::fmt::Display| Error::server("a key message", error);
        let key = ResourceKey::generate(&mut OpensslEntropy).map_err(|error| failed(&error))?;
        let key_id = key.id(room);
        let context = WrapContext {
            suite: suite.id,
            room_id: room,
            key_id: &key_id,
            sender: &self.user.id,
            sender_keybox: &self.user.device,
            recipient: &to.user.id,
            recipient_keybox: &to.user.device,
        };
        let wrap = suite.wrap(&key, &to.public, &context, &mut OpensslEntropy);
        let now = report::now() * 1000;
        let audience = audience_hash([(&*to.user.id, &*to.user.device)]);
        let origin = Origin::sign(&self.keys, suite.id, room, &key_id, now, audience);
        let message = ResourceKeyContent {
            algorithm: suite.id.to_owned(),
            room_id: room.to_owned(),
            wrap: wrap.map_err(|error| failed(&error))?,
            sender_keybox: self.user.device.clone(),
            exchange_id: unique(),
            sent_at: now,
            origin: origin.map_err(|error| failed(&error))?,
            key_id,
            closing: None,
        };
        let recipient = Recipient { user_id: &to.user.id, keybox_id: &to.user.device };
        key_message::sign(&message, &self.keys, recipient).map_err(|error| failed(&error))
    }
}
