//! JSON that came from outside: what the server takes of it, and how deep it may be nested.

use ruma::CanonicalJsonObject;
use serde_json::value::RawValue;

/// Objects and arrays may be nested this deep in what the server takes.
///
/// Parsers of this kind stop at 128; the margin is for the objects that the server wraps around a content.
pub const MAX_DEPTH: usize = 100;

/// Why JSON is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JsonRefusal {
    /// It is not a JSON object.
    #[error("a JSON object was expected")]
    NotAnObject,
    /// It cannot be written as canonical JSON: a number that is not an integer, or is out of range.
    #[error("numbers in events must be integers between -(2^53)+1 and (2^53)-1")]
    NotCanonical,
    /// Nested deeper than [`MAX_DEPTH`].
    #[error("the JSON is nested too deep")]
    TooDeep,
}

/// Whether the JSON is nested deeper than [`MAX_DEPTH`].
///
/// `json` must be valid JSON; only brackets outside strings are counted, nothing is parsed.
pub fn is_too_deep(json: impl AsRef<[u8]>) -> bool {
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    for byte in json.as_ref() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'{' | b'[' if !in_string => {
                depth += 1;
                if depth > MAX_DEPTH {
                    return true;
                }
            }
            b'}' | b']' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    false
}

/// Reads an object that goes into an event, which must be [canonical JSON].
///
/// # Errors
///
/// [`JsonRefusal`] if it is no object, nested too deep, or holds a number that events cannot hold.
///
/// [canonical JSON]: https://spec.matrix.org/v1.19/appendices/#canonical-json
pub fn canonical_object(json: &RawValue) -> Result<CanonicalJsonObject, JsonRefusal> {
    if !json.get().starts_with('{') {
        return Err(JsonRefusal::NotAnObject);
    }
    if is_too_deep(json.get()) {
        return Err(JsonRefusal::TooDeep);
    }
    serde_json::from_str(json.get()).map_err(|_| JsonRefusal::NotCanonical)
}

#[cfg(test)]
pub(crate) fn raw(value: &serde_json::Value) -> Box<RawValue> {
    serde_json::value::to_raw_value(value).unwrap()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn nested(depth: usize) -> Box<RawValue> {
        let text = format!("{{\"a\":{}1{}}}", "[".repeat(depth - 1), "]".repeat(depth - 1));
        RawValue::from_string(text).unwrap()
    }

    #[test]
    fn counts_nesting_outside_strings_only() {
        assert!(!is_too_deep(nested(MAX_DEPTH).get()));
        assert!(is_too_deep(nested(MAX_DEPTH + 1).get()));
        assert!(!is_too_deep(format!("{{\"a\":\"\\\"{}\"}}", "[".repeat(500))));
        assert!(!is_too_deep(format!("[{}]", "[],".repeat(500))));
    }

    #[test]
    fn takes_canonical_objects_only() {
        assert!(canonical_object(&raw(&json!({ "a": [1, { "b": null }] }))).is_ok());
        assert_eq!(canonical_object(&raw(&json!([1]))), Err(JsonRefusal::NotAnObject));
        assert_eq!(canonical_object(&raw(&json!({ "a": 1.5 }))), Err(JsonRefusal::NotCanonical));
        assert_eq!(canonical_object(&raw(&json!({ "a": 1_u64 << 60 }))), Err(JsonRefusal::NotCanonical));
        assert_eq!(canonical_object(&nested(MAX_DEPTH + 1)), Err(JsonRefusal::TooDeep));
    }
}
