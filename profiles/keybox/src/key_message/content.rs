//! The contents of the four key messages.

use serde::{Deserialize, Serialize};

use super::KeyMessage;
use crate::closing::Mark;
use crate::encoding::{Fields, base64_bytes, base64_url};
use crate::key_set::{PrivateKeySet, PublicKeySet};
use crate::primitives::{CryptoError, sha256};
use crate::resource_key::ResourceKeyId;

/// `com.trustner.keybox.resource_key`: a resource key, wrapped for the receiving KeyBox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourceKeyContent {
    /// Identifier of the suite.
    pub algorithm: String,
    /// The room that the key is for. The server checks that the sender is joined to it.
    pub room_id: String,
    /// The key's id.
    pub key_id: ResourceKeyId,
    /// The key, encrypted to the receiving KeyBox.
    #[serde(with = "base64_bytes")]
    pub wrap: Vec<u8>,
    /// The KeyBox that sends it.
    pub sender_keybox: String,
    /// Names this exchange in acknowledgements and logs.
    pub exchange_id: String,
    /// When it was sent, by the sender's clock, in milliseconds since the Unix epoch.
    pub sent_at: u64,
    /// Who made the key.
    pub origin: Origin,
    /// The last step of the room's closing or opening that the sender knows of, if there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub closing: Option<Mark>,
}

/// The chain of a resource key: the KeyBox that made it, signed by that KeyBox, whoever hands the key on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The user who made it.
    pub user_id: String,
    /// The KeyBox that made it.
    pub keybox_id: String,
    /// When it was made, by the maker's clock, in milliseconds since the Unix epoch.
    pub created_at: u64,
    /// [`audience_hash`] of the KeyBoxes that the maker gave it to.
    pub audience: String,
    /// The maker's Ed25519 signature over all of this and the key's suite, room and id.
    #[serde(with = "base64_bytes")]
    pub signature: Vec<u8>,
}

/// A hash over a set of KeyBoxes, whatever their order: who was to get a resource key when it was made.
///
/// A KeyBox may send with a resource key that another one made only if it would have given it to the same KeyBoxes.
pub fn audience_hash<'a>(keyboxes: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let mut sorted: Vec<_> = keyboxes.into_iter().collect();
    sorted.sort_unstable();
    sorted.dedup();
    let fields =
        sorted.into_iter().fold(Fields::new("com.trustner.keybox.audience"), |fields, (user, keybox)| {
            fields.text(user).text(keybox)
        });
    base64_url(&sha256(fields.as_slice()))
}

impl Origin {
    /// Signs that `keys` made the resource key `key_id` of `room_id` for `audience`.
    pub fn sign(
        keys: &PrivateKeySet,
        suite: &str,
        room_id: &str,
        key_id: &ResourceKeyId,
        created_at: u64,
        audience: String,
    ) -> Result<Self, CryptoError> {
        let mut origin = Self {
            user_id: keys.user_id().to_owned(),
            keybox_id: keys.keybox_id().to_owned(),
            created_at,
            audience,
            signature: Vec::new(),
        };
        origin.signature = keys.sign(&origin.signed_bytes(suite, room_id, key_id))?;
        Ok(origin)
    }

    /// Whether `maker`, the key set of the KeyBox named here, signed this for that resource key.
    pub fn verify(
        &self,
        maker: &PublicKeySet,
        suite: &str,
        room_id: &str,
        key_id: &ResourceKeyId,
    ) -> Result<bool, CryptoError> {
        let named = self.user_id == maker.user_id && self.keybox_id == maker.keybox_id;
        Ok(named && maker.verify(&self.signed_bytes(suite, room_id, key_id), &self.signature)?)
    }

    fn signed_bytes(&self, suite: &str, room_id: &str, key_id: &ResourceKeyId) -> Vec<u8> {
        Fields::new("com.trustner.keybox.origin")
            .text(suite)
            .text(room_id)
            .text(key_id.as_str())
            .text(&self.user_id)
            .text(&self.keybox_id)
            .number(self.created_at)
            .text(&self.audience)
            .as_slice()
            .to_vec()
    }
}

/// `com.trustner.keybox.resource_key_request`: asks for a resource key, or takes the question back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyRequest {
    /// Ask, or take back.
    pub action: RequestAction,
    /// Names the question; the same in its cancellation.
    pub request_id: String,
    /// Identifier of the suite.
    pub algorithm: String,
    /// The room.
    pub room_id: String,
    /// The key that is missing.
    pub key_id: ResourceKeyId,
    /// The KeyBox that asks.
    pub sender_keybox: String,
}

/// What a [`KeyRequest`] wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RequestAction {
    /// Send me the key.
    Request,
    /// I have it now.
    Cancel,
}

/// `com.trustner.keybox.resource_key.withheld`: the key that was asked for will not come from here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Withheld {
    /// Identifier of the suite.
    pub algorithm: String,
    /// The room.
    pub room_id: String,
    /// The key.
    pub key_id: ResourceKeyId,
    /// Why, for programs.
    pub code: WithheldCode,
    /// Why, for people.
    pub reason: String,
    /// The KeyBox that answers.
    pub sender_keybox: String,
}

/// Why a key is withheld: Matrix's codes and some of the profile's.
///
/// <https://spec.matrix.org/v1.19/client-server-api/#mroom_keywithheld>
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum WithheldCode {
    /// A person has to approve the exchange first.
    #[serde(rename = "com.trustner.awaiting_approval")]
    AwaitingApproval,
    /// The asking KeyBox was blocked.
    #[serde(rename = "m.blacklisted")]
    Blacklisted,
    /// The asking device has published no KeyBox key set, or one that is invalid.
    #[serde(rename = "com.trustner.no_device_key")]
    NoDeviceKey,
    /// The room is closed, and the asking KeyBox is none of its KeyBoxes: a moderator has to approve it.
    #[serde(rename = "com.trustner.room_closed")]
    RoomClosed,
    /// The asking user may not read what the key opens.
    #[serde(rename = "m.unauthorised")]
    Unauthorised,
    /// The KeyBox that was asked does not have the key.
    #[serde(rename = "m.unavailable")]
    Unavailable,
    /// The asking KeyBox is not verified, and has to be.
    #[serde(rename = "m.unverified")]
    Unverified,
    /// The key serves another suite than the one that the question names.
    #[serde(rename = "com.trustner.wrong_suite")]
    WrongSuite,
}

/// `com.trustner.keybox.resource_key.ack`: the key arrived and opened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acknowledgement {
    /// The room.
    pub room_id: String,
    /// The key.
    pub key_id: ResourceKeyId,
    /// The exchange that brought it.
    pub exchange_id: String,
    /// The KeyBox that has it now.
    pub sender_keybox: String,
}

impl KeyMessage for ResourceKeyContent {
    const EVENT_TYPE: &'static str = "com.trustner.keybox.resource_key";

    fn sender_keybox(&self) -> &str {
        &self.sender_keybox
    }
}

impl KeyMessage for KeyRequest {
    const EVENT_TYPE: &'static str = "com.trustner.keybox.resource_key_request";

    fn sender_keybox(&self) -> &str {
        &self.sender_keybox
    }
}

impl KeyMessage for Withheld {
    const EVENT_TYPE: &'static str = "com.trustner.keybox.resource_key.withheld";

    fn sender_keybox(&self) -> &str {
        &self.sender_keybox
    }
}

impl KeyMessage for Acknowledgement {
    const EVENT_TYPE: &'static str = "com.trustner.keybox.resource_key.ack";

    fn sender_keybox(&self) -> &str {
        &self.sender_keybox
    }
}
