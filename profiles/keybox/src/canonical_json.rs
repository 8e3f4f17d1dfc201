//! Canonical JSON and the signing of JSON objects.
//!
//! <https://spec.matrix.org/v1.19/appendices/#canonical-json> and
//! <https://spec.matrix.org/v1.19/appendices/#signing-json>.

use openssl::pkey::{PKeyRef, Private};
use serde_json::{Map, Value, json};

use crate::encoding::{base64, from_base64};
use crate::key_set::PrivateKeySet;
use crate::primitives::{CryptoError, ed25519_sign, ed25519_verify};

/// The greatest magnitude of a number in canonical JSON, 2^53 - 1.
pub const MAX_INTEGER: u64 = (1 << 53) - 1;

/// JSON that has no canonical form: a fraction, or an integer out of range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a number in the JSON is not an integer between -(2^53)+1 and (2^53)-1")]
pub struct NotCanonical;

/// The shortest UTF-8 text of `value`, with sorted object keys.
pub fn canonical_json(value: &Value) -> Result<String, NotCanonical> {
    let mut text = String::new();
    write_value(value, &mut text)?;
    Ok(text)
}

fn write_value(value: &Value, text: &mut String) -> Result<(), NotCanonical> {
    match value {
        Value::Null | Value::Bool(_) | Value::String(_) => text.push_str(&value.to_string()),
        Value::Number(number) => {
            let magnitude = number.as_u64().or_else(|| number.as_i64().map(i64::unsigned_abs));
            if magnitude.is_none_or(|magnitude| magnitude > MAX_INTEGER) {
                return Err(NotCanonical);
            }
            text.push_str(&number.to_string());
        }
        Value::Array(items) => {
            text.push('[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    text.push(',');
                }
                write_value(item, text)?;
            }
            text.push(']');
        }
        Value::Object(object) => write_object(object, text)?,
    }
    Ok(())
}

fn write_object(object: &Map<String, Value>, text: &mut String) -> Result<(), NotCanonical> {
    // Rust compares strings by their UTF-8 bytes, which is the order of their code points.
    let mut entries: Vec<_> = object.iter().collect();
    entries.sort_by_key(|(key, _)| *key);
    text.push('{');
    for (index, (key, value)) in entries.into_iter().enumerate() {
        if index > 0 {
            text.push(',');
        }
        text.push_str(&Value::from(key.as_str()).to_string());
        text.push(':');
        write_value(value, text)?;
    }
    text.push('}');
    Ok(())
}

/// Why a JSON object could not be signed, or its signature not be accepted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JsonSignatureError {
    /// The cryptographic library failed.
    #[error("the signature could not be computed")]
    Crypto(#[from] CryptoError),
    /// No signature of that user and key is on the object, or it is not base64.
    #[error("the object carries no signature of that key")]
    Missing,
    /// The object has no canonical form, or `signatures` is not an object of objects.
    #[error("the object has no canonical form")]
    NotCanonical(#[from] NotCanonical),
    /// The signature does not belong to this object and key.
    #[error("the signature does not verify")]
    Wrong,
}

/// The bytes that a signature on `object` covers: canonical JSON without `signatures` and `unsigned`.
fn signed_bytes(object: &Map<String, Value>) -> Result<String, NotCanonical> {
    let mut covered = object.clone();
    covered.remove("signatures");
    covered.remove("unsigned");
    canonical_json(&Value::Object(covered))
}

/// Adds the Ed25519 signature of `keys` to `object`, keeping the signatures of others.
pub fn sign_json(keys: &PrivateKeySet, object: &mut Map<String, Value>) -> Result<(), JsonSignatureError> {
    sign_json_with(&keys.ed25519, keys.user_id(), keys.keybox_id(), object)
}

/// As [`sign_json`], with any Ed25519 key of `user_id`, called `ed25519:<key_name>`.
pub(crate) fn sign_json_with(
    key: &PKeyRef<Private>,
    user_id: &str,
    key_name: &str,
    object: &mut Map<String, Value>,
) -> Result<(), JsonSignatureError> {
    let signature = base64(&ed25519_sign(key, signed_bytes(object)?.as_bytes())?);
    let key_id = format!("ed25519:{key_name}");
    let signatures = object.entry("signatures").or_insert_with(|| json!({}));
    let of_user = signatures
        .as_object_mut()
        .map(|signatures| signatures.entry(user_id).or_insert_with(|| json!({})))
        .and_then(Value::as_object_mut)
        .ok_or(NotCanonical)?;
    of_user.insert(key_id, signature.into());
    Ok(())
}

/// Checks the signature that `user_id` made on `object` with the Ed25519 key called `ed25519:<key_name>`.
pub fn verify_json(
    public: &[u8; 32],
    user_id: &str,
    key_name: &str,
    object: &Map<String, Value>,
) -> Result<(), JsonSignatureError> {
    let signature = object
        .get("signatures")
        .and_then(|signatures| signatures.get(user_id))
        .and_then(|of_user| of_user.get(format!("ed25519:{key_name}")))
        .and_then(Value::as_str)
        .and_then(|text| from_base64(text).ok())
        .ok_or(JsonSignatureError::Missing)?;
    if ed25519_verify(public, signed_bytes(object)?.as_bytes(), &signature)? {
        Ok(())
    } else {
        Err(JsonSignatureError::Wrong)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_examples_of_the_matrix_specification_and_a_list() {
        let cases = [
            (r#"{"one": 1, "two": "Two"}"#, r#"{"one":1,"two":"Two"}"#),
            (r#"{"b": "2", "a": "1"}"#, r#"{"a":"1","b":"2"}"#),
            (r#"{"本": 2, "日": 1}"#, r#"{"日":1,"本":2}"#),
            (r#"{"a": "\u65E5"}"#, r#"{"a":"日"}"#),
            ("[1, [2, 3], []]", "[1,[2,3],[]]"),
            (
                r#"{"a": null, "x": [ {"d": true, "c": "\t\"\\"} ]}"#,
                r#"{"a":null,"x":[{"c":"\t\"\\","d":true}]}"#,
            ),
        ];
        for (input, expected) in cases {
            assert_eq!(canonical_json(&serde_json::from_str(input).unwrap()).unwrap(), expected);
        }
    }

    #[test]
    fn numbers_outside_the_range_have_no_canonical_form() {
        for number in ["1.5", "-0", "1e3", "9007199254740992", "-9007199254740992"] {
            assert_eq!(canonical_json(&serde_json::from_str(number).unwrap()), Err(NotCanonical), "{number}");
        }
        assert_eq!(canonical_json(&json!(-9_007_199_254_740_991_i64)).unwrap(), "-9007199254740991");
    }
}
