//! Any text as a file of private keys.
#![no_main]

use keystead_keybox::sealed_keys;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    assert!(sealed_keys::open(text, "a passphrase", "@a:x", "A").is_err());
});
