//! The small formats: base64, hexadecimal, resource key ids, contact codes, fingerprints. One text for each value.
#![no_main]

use keystead_keybox::contact_code::ContactCode;
use keystead_keybox::encoding::{base64, from_base64, from_hex, hex};
use keystead_keybox::resource_key::{ResourceKey, ResourceKeyId};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    assert_eq!(from_base64(&base64(data)).unwrap(), data);
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(bytes) = from_base64(text) {
        assert_eq!(base64(&bytes), text);
    }
    if let Ok(bytes) = from_hex::<4>(text) {
        assert_eq!(hex(&*bytes), text);
    }
    if let Ok(key) = ResourceKey::from_hex(text) {
        assert_eq!(key.to_hex().as_str(), text);
    }
    if let Ok(id) = ResourceKeyId::try_from(text.to_owned()) {
        assert_eq!(id.as_str(), text);
    }
    if let Ok(code) = ContactCode::parse(text) {
        assert_eq!(code.to_string(), text);
    }
});
