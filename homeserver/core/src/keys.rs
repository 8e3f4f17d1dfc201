//! What devices publish for end-to-end encryption: device keys, one-time keys, cross-signing keys and signatures on
//! them, as the server checks and hands them out.
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#end-to-end-encryption>

use keystead_keybox::{
    closing,
    key_set::{key_set_hash, validate_device_keys},
};
use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, DeviceId, SigningKeyAlgorithm, UserId,
    canonical_json::try_from_json_map,
    encryption::KeyUsage,
    serde::base64::{Base64, Standard},
    signatures::{to_canonical_json_string_for_signing, verify_canonical_json_bytes},
};
use serde_json::{Map, Value};

/// The greatest size of one published key object, in bytes of canonical JSON.
const MAX_KEY_OBJECT_BYTES: usize = 65_535;

/// Why something that a device publishes is refused.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum KeyRefusal {
    /// A field is missing or of the wrong type.
    #[error("{0}")]
    Malformed(String),
    /// A field has a value that it must not have: `M_INVALID_PARAM`.
    #[error("{0}")]
    Invalid(String),
    /// A signature is missing or does not verify: `M_INVALID_SIGNATURE`.
    #[error("{0}")]
    Signature(String),
    /// Larger than 65,535 bytes: `M_TOO_LARGE`.
    #[error("The key object is larger than 65,535 bytes")]
    TooLarge,
}

/// A signature that somebody made on a published key.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct KeySignature {
    /// Who signed.
    pub signer_id: String,
    /// With which key: `ed25519:` and a device id or a cross-signing public key.
    pub signer_key_id: String,
    /// Unpadded base64.
    pub signature: String,
}

/// An Ed25519 public key by the name that signatures call it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct VerifyKey {
    /// `ed25519:` and a device id or the public key itself.
    pub key_id: String,
    /// 32 bytes.
    pub public_key: Vec<u8>,
}

/// A cross-signing key that passed [`check_cross_signing_key`].
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CrossSigningKey {
    /// The public key, as unpadded base64: what other places name the key by.
    pub public_key: String,
    /// The key that signatures are verified with.
    pub verify_key: VerifyKey,
    /// The object without the signatures of other users.
    pub object: CanonicalJsonObject,
}

/// Reads a published object.
///
/// # Errors
/// [`KeyRefusal::Malformed`] if it is not a JSON object in the bounds of canonical JSON; [`KeyRefusal::TooLarge`].
pub fn parse_object(json: &str) -> Result<CanonicalJsonObject, KeyRefusal> {
    if json.len() > MAX_KEY_OBJECT_BYTES {
        return Err(KeyRefusal::TooLarge);
    }
    let object: Map<String, Value> =
        serde_json::from_str(json).map_err(|error| KeyRefusal::Malformed(error.to_string()))?;
    try_from_json_map(object).map_err(|error| KeyRefusal::Malformed(error.to_string()))
}

/// The canonical text of an object.
pub fn to_json(object: &CanonicalJsonObject) -> String {
    CanonicalJsonValue::Object(object.clone()).to_string()
}

/// Checks what `user_id` uploads as `device_keys` of its device `device_id`, and returns what is to be stored:
/// without `unsigned`, and without signatures of other users.
///
/// A KeyBox's key set (`com.trustner.keybox.*`) is checked as its profile demands, self-signature included.
///
/// # Errors
/// [`KeyRefusal`]: the object names another user or device, lacks a field, or holds a malformed KeyBox key.
pub fn check_device_keys(
    user_id: &UserId,
    device_id: &DeviceId,
    json: &str,
) -> Result<CanonicalJsonObject, KeyRefusal> {
    let mut object = parse_object(json)?;
    for (field, expected) in [("user_id", user_id.as_str()), ("device_id", device_id.as_str())] {
        match object.get(field) {
            Some(CanonicalJsonValue::String(value)) if value == expected => {}
            Some(CanonicalJsonValue::String(_)) => {
                return Err(KeyRefusal::Invalid(format!("The device keys are of another {field}")));
            }
            _ => return Err(KeyRefusal::Malformed(format!("The device keys lack {field}"))),
        }
    }
    let strings = |value: &CanonicalJsonValue| matches!(value, CanonicalJsonValue::String(_));
    match object.get("algorithms") {
        Some(CanonicalJsonValue::Array(algorithms)) if algorithms.iter().all(strings) => {}
        _ => return Err(KeyRefusal::Malformed("algorithms is not a list of texts".to_owned())),
    }
    match object.get("keys") {
        Some(CanonicalJsonValue::Object(keys)) if keys.values().all(strings) => {}
        _ => return Err(KeyRefusal::Malformed("keys is not an object of texts".to_owned())),
    }
    let plain: Map<String, Value> =
        object.iter().map(|(name, value)| (name.clone(), value.clone().into())).collect();
    validate_device_keys(user_id.as_str(), device_id.as_str(), &plain)
        .map_err(|error| KeyRefusal::Invalid(format!("Not a KeyBox key set: {error}")))?;
    keep_own_signatures(&mut object, user_id)?;
    object.remove("unsigned");
    Ok(object)
}

/// Whether two `device_keys` objects hold the same keys, whatever else they say (algorithms, signatures).
pub fn same_device_keys(stored: &CanonicalJsonObject, new: &CanonicalJsonObject) -> bool {
    stored.get("keys") == new.get("keys")
}

/// Whether stored device keys hold a KeyBox key set, so that the device may be given resource keys.
pub fn is_keybox(device_keys: &CanonicalJsonObject) -> bool {
    let Some(CanonicalJsonValue::Object(keys)) = device_keys.get("keys") else { return false };
    keys.keys().any(|name| name.starts_with("com.trustner.keybox."))
}

/// How a closed room names a KeyBox: by the hash of its key set (`profiles/keybox/SPEC.md`, section 24). `None` if the device is none.
pub fn key_set_id(
    user_id: &UserId,
    device_id: &DeviceId,
    device_keys: &CanonicalJsonObject,
) -> Option<String> {
    let Some(CanonicalJsonValue::Object(keys)) = device_keys.get("keys") else { return None };
    let entry = |name: &str| match keys.get(name) {
        Some(CanonicalJsonValue::String(key)) => Some(key.as_str()),
        _ => None,
    };
    key_set_hash(user_id.as_str(), device_id.as_str(), entry).map(|hash| closing::key_set_id(&hash))
}

/// Checks a one-time or fallback key, and returns what is to be stored.
///
/// # Errors
/// [`KeyRefusal`]: it is neither a text nor an object with the text `key`.
pub fn check_one_time_key(json: &str) -> Result<String, KeyRefusal> {
    if json.len() > MAX_KEY_OBJECT_BYTES {
        return Err(KeyRefusal::TooLarge);
    }
    let value: Value =
        serde_json::from_str(json).map_err(|error| KeyRefusal::Malformed(error.to_string()))?;
    let value =
        CanonicalJsonValue::try_from(value).map_err(|error| KeyRefusal::Malformed(error.to_string()))?;
    let well_formed = match &value {
        CanonicalJsonValue::String(_) => true,
        CanonicalJsonValue::Object(object) => {
            matches!(object.get("key"), Some(CanonicalJsonValue::String(_)))
        }
        _ => false,
    };
    if well_formed {
        Ok(value.to_string())
    } else {
        Err(KeyRefusal::Malformed("A one-time key is neither a text nor an object with a key".to_owned()))
    }
}

/// Whether two stored one-time keys are the same key. A device may sign it again, so signatures do not count.
pub fn same_one_time_key(stored: &str, new: &str) -> bool {
    let without_signatures = |json: &str| {
        let mut value: Value = serde_json::from_str(json).ok()?;
        if let Some(object) = value.as_object_mut() {
            object.remove("signatures");
        }
        Some(value)
    };
    stored == new || without_signatures(stored).is_some_and(|stored| Some(stored) == without_signatures(new))
}

/// Checks the form of a cross-signing key: whose it is, what for, and that it holds one Ed25519 key named after itself.
///
/// <https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3keysdevice_signingupload>
///
/// # Errors
/// [`KeyRefusal`].
pub fn check_cross_signing_key(
    user_id: &UserId,
    usage: &KeyUsage,
    json: &str,
) -> Result<CrossSigningKey, KeyRefusal> {
    let mut object = parse_object(json)?;
    match object.get("user_id") {
        Some(CanonicalJsonValue::String(value)) if value == user_id.as_str() => {}
        _ => return Err(KeyRefusal::Invalid(format!("The {usage} key is not of this user"))),
    }
    match object.get("usage") {
        Some(CanonicalJsonValue::Array(usages))
            if usages.contains(&CanonicalJsonValue::String(usage.to_string())) => {}
        _ => return Err(KeyRefusal::Invalid(format!("The {usage} key lacks the usage {usage}"))),
    }
    let (public_key, verify_key) = one_ed25519_key(&object)
        .ok_or_else(|| KeyRefusal::Invalid(format!("The {usage} key does not hold one ed25519 key")))?;
    keep_own_signatures(&mut object, user_id)?;
    object.remove("unsigned");
    Ok(CrossSigningKey { public_key, verify_key, object })
}

/// The key that a cross-signing key object holds; `None` unless it is one Ed25519 key named after itself.
pub fn one_ed25519_key(object: &CanonicalJsonObject) -> Option<(String, VerifyKey)> {
    let CanonicalJsonValue::Object(keys) = object.get("keys")? else { return None };
    let mut keys = keys.iter();
    let (Some((key_id, CanonicalJsonValue::String(public_key))), None) = (keys.next(), keys.next()) else {
        return None;
    };
    if key_id.strip_prefix("ed25519:") != Some(public_key) {
        return None;
    }
    let bytes = decode_key(public_key)?;
    Some((public_key.clone(), VerifyKey { key_id: key_id.clone(), public_key: bytes }))
}

/// The Ed25519 key of a device, out of its device keys; `None` if it has none.
pub fn device_verify_key(device_keys: &CanonicalJsonObject, device_id: &DeviceId) -> Option<VerifyKey> {
    let CanonicalJsonValue::Object(keys) = device_keys.get("keys")? else { return None };
    let key_id = format!("ed25519:{device_id}");
    let CanonicalJsonValue::String(public_key) = keys.get(&key_id)? else { return None };
    Some(VerifyKey { public_key: decode_key(public_key)?, key_id })
}

/// Checks that `signer` signed `object` with `key`, and returns the signature.
///
/// # Errors
/// [`KeyRefusal::Signature`].
pub fn check_signature(
    object: &CanonicalJsonObject,
    signer: &UserId,
    key: &VerifyKey,
) -> Result<KeySignature, KeyRefusal> {
    let refuse = |what: &str| KeyRefusal::Signature(format!("The signature of {} {what}", key.key_id));
    let signature = own_signatures(object, signer)
        .and_then(|signatures| signatures.get(&key.key_id))
        .and_then(|value| match value {
            CanonicalJsonValue::String(signature) => Some(signature.clone()),
            _ => None,
        });
    let signature = signature.ok_or_else(|| refuse("is missing"))?;
    let bytes = Base64::<Standard>::parse(&signature).map_err(|_| refuse("is not base64"))?;
    let signed = to_canonical_json_string_for_signing(object).map_err(|_| refuse("cannot be checked"))?;
    verify_canonical_json_bytes(
        &SigningKeyAlgorithm::Ed25519,
        &key.public_key,
        bytes.as_bytes(),
        signed.as_bytes(),
    )
    .map_err(|_| refuse("does not verify"))?;
    Ok(KeySignature { signer_id: signer.to_string(), signer_key_id: key.key_id.clone(), signature })
}

/// The names of the keys with which `signer` signed `object`.
pub fn signing_key_ids(object: &CanonicalJsonObject, signer: &UserId) -> Vec<String> {
    own_signatures(object, signer).map(|signatures| signatures.keys().cloned().collect()).unwrap_or_default()
}

/// Whether two objects are the same but for `signatures` and `unsigned`, which signatures do not cover.
pub fn same_signed_part(stored: &CanonicalJsonObject, uploaded: &CanonicalJsonObject) -> bool {
    let signed = |object| to_canonical_json_string_for_signing(object).ok();
    signed(stored).is_some_and(|stored| Some(stored) == signed(uploaded))
}

/// Lays signatures that were uploaded apart over a published object.
pub fn add_signatures(object: &mut CanonicalJsonObject, signatures: &[KeySignature]) {
    if signatures.is_empty() {
        return;
    }
    let all = object.entry("signatures".to_owned()).or_insert_with(empty);
    let CanonicalJsonValue::Object(all) = all else { return };
    for signature in signatures {
        if let CanonicalJsonValue::Object(of_signer) =
            all.entry(signature.signer_id.clone()).or_insert_with(empty)
        {
            of_signer.insert(
                signature.signer_key_id.clone(),
                CanonicalJsonValue::String(signature.signature.clone()),
            );
        }
    }
}

/// Names a device as its owner calls it, in the part that signatures do not cover.
pub fn set_display_name(device_keys: &mut CanonicalJsonObject, display_name: &str) {
    let name = CanonicalJsonValue::String(display_name.to_owned());
    device_keys.insert(
        "unsigned".to_owned(),
        CanonicalJsonValue::Object([("device_display_name".to_owned(), name)].into()),
    );
}

fn empty() -> CanonicalJsonValue {
    CanonicalJsonValue::Object(CanonicalJsonObject::new())
}

fn decode_key(public_key: &str) -> Option<Vec<u8>> {
    let bytes = Base64::<Standard>::parse(public_key).ok()?.into_inner();
    (bytes.len() == 32).then_some(bytes)
}

fn own_signatures<'a>(object: &'a CanonicalJsonObject, signer: &UserId) -> Option<&'a CanonicalJsonObject> {
    let CanonicalJsonValue::Object(signatures) = object.get("signatures")? else { return None };
    match signatures.get(signer.as_str())? {
        CanonicalJsonValue::Object(of_signer) => Some(of_signer),
        _ => None,
    }
}

/// Drops what others are said to have signed: they upload their signatures themselves.
fn keep_own_signatures(object: &mut CanonicalJsonObject, user_id: &UserId) -> Result<(), KeyRefusal> {
    match object.get_mut("signatures") {
        None => Ok(()),
        Some(CanonicalJsonValue::Object(signatures)) => {
            signatures.retain(|signer, _| signer == user_id.as_str());
            let well_formed = signatures.values().all(|of_signer| match of_signer {
                CanonicalJsonValue::Object(of_signer) => {
                    of_signer.values().all(|value| matches!(value, CanonicalJsonValue::String(_)))
                }
                _ => false,
            });
            if well_formed { Ok(()) } else { Err(signatures_malformed()) }
        }
        Some(_) => Err(signatures_malformed()),
    }
}

fn signatures_malformed() -> KeyRefusal {
    KeyRefusal::Malformed("signatures is not an object of users, keys and signatures".to_owned())
}

#[cfg(test)]
mod tests;
