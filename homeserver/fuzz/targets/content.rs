//! Any JSON as the content of an event: what is taken is canonical, and stays what it is when it is read again.
#![no_main]

use keystead_core::{encryption, json};
use libfuzzer_sys::fuzz_target;
use ruma::CanonicalJsonValue;
use serde_json::value::RawValue;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let _ = json::is_too_deep(text);
    let Ok(raw) = serde_json::from_str::<Box<RawValue>>(text) else { return };
    let _ = encryption::algorithm(&raw);
    let suite = encryption::frozen_suite(&raw);
    let _ = encryption::check_change(suite, Some(&raw), &raw);
    let Ok(object) = json::canonical_object(&raw) else { return };
    let written = CanonicalJsonValue::Object(object.clone()).to_string();
    assert!(!json::is_too_deep(&written));
    let again: Box<RawValue> = serde_json::from_str(&written).expect("canonical JSON is JSON");
    assert_eq!(json::canonical_object(&again).expect("it was taken before"), object);
});
