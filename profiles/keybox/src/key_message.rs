//! Key messages: the to-device events by which KeyBoxes hand each other resource keys.
//!
//! Each is signed by the sending KeyBox, bound to its type, its sender and the one KeyBox that is to receive it.

mod content;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

pub use content::{
    Acknowledgement, KeyRequest, Origin, RequestAction, ResourceKeyContent, Withheld, WithheldCode,
    audience_hash,
};

use crate::canonical_json::{NotCanonical, canonical_json};
use crate::encoding::{Fields, base64, from_base64};
use crate::key_set::{PrivateKeySet, PublicKeySet};
use crate::primitives::CryptoError;

/// The content of a key message.
pub trait KeyMessage: Serialize + DeserializeOwned {
    /// The to-device event type that carries it.
    const EVENT_TYPE: &'static str;

    /// The KeyBox that sends it.
    fn sender_keybox(&self) -> &str;
}

/// The KeyBox that a key message is meant for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recipient<'a> {
    /// Its owner.
    pub user_id: &'a str,
    /// Its id.
    pub keybox_id: &'a str,
}

/// Why a key message could not be signed or was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyMessageError {
    /// The cryptographic library failed.
    #[error("the key message could not be signed or checked")]
    Crypto(#[from] CryptoError),
    /// Not the content of this event type.
    #[error("the key message is malformed")]
    Malformed(#[from] serde_json::Error),
    /// The content has no canonical form.
    #[error("the key message has no canonical form")]
    NotCanonical(#[from] NotCanonical),
    /// Not signed by the KeyBox that it names, for this recipient.
    #[error("the key message is not signed by the KeyBox that it names")]
    Signature,
}

/// The JSON of `message`, signed by `keys` for `recipient`: the content of the to-device event.
pub fn sign<M: KeyMessage>(
    message: &M,
    keys: &PrivateKeySet,
    recipient: Recipient<'_>,
) -> Result<Value, KeyMessageError> {
    let mut content = serde_json::to_value(message)?;
    let signature = keys.sign(&signed_bytes(M::EVENT_TYPE, keys.user_id(), recipient, &content)?)?;
    if let Some(object) = content.as_object_mut() {
        object.insert("signature".to_owned(), base64(&signature).into());
    }
    Ok(content)
}

/// Reads the content of a to-device event and checks that `sender` signed it for `recipient`.
///
/// `sender` is the key set of the KeyBox named in the content, of the user named in the event: a caller finds it with
/// [`claimed_sender_keybox`] first.
pub fn verify<M: KeyMessage>(
    content: &Value,
    sender: &PublicKeySet,
    recipient: Recipient<'_>,
) -> Result<M, KeyMessageError> {
    let mut covered = content.clone();
    let signature = covered
        .as_object_mut()
        .and_then(|object| object.remove("signature"))
        .and_then(|signature| from_base64(signature.as_str()?).ok())
        .ok_or(KeyMessageError::Signature)?;
    let message = M::deserialize(&covered)?;
    let signed = signed_bytes(M::EVENT_TYPE, &sender.user_id, recipient, &covered)?;
    if message.sender_keybox() == sender.keybox_id && sender.verify(&signed, &signature)? {
        Ok(message)
    } else {
        Err(KeyMessageError::Signature)
    }
}

/// The KeyBox that a key message claims to come from, before anything is checked.
pub fn claimed_sender_keybox(content: &Value) -> Option<&str> {
    content.get("sender_keybox").and_then(Value::as_str)
}

/// Label, event type, sender, receiving user, receiving KeyBox, canonical JSON of the content without `signature`.
fn signed_bytes(
    event_type: &str,
    sender: &str,
    recipient: Recipient<'_>,
    content: &Value,
) -> Result<Vec<u8>, NotCanonical> {
    let fields = Fields::new("com.trustner.keybox.key_message")
        .text(event_type)
        .text(sender)
        .text(recipient.user_id)
        .text(recipient.keybox_id)
        .text(&canonical_json(content)?);
    Ok(fields.as_slice().to_vec())
}

#[cfg(test)]
mod tests;
