//! Canonical JSON: the same value, and the same text again.
#![no_main]

use keystead_keybox::canonical_json::{canonical_json, verify_json};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

fuzz_target!(|data: &[u8]| {
    let Ok(value) = serde_json::from_slice::<Value>(data) else { return };
    if let Ok(text) = canonical_json(&value) {
        let again: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(again, value);
        assert_eq!(canonical_json(&again).unwrap(), text);
    }
    if let Some(object) = value.as_object() {
        assert!(verify_json(&[9; 32], "@a:x", "A", object).is_err());
    }
});
