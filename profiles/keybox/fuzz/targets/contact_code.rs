//! Any text as a contact code, and as a fingerprint that somebody reads out.
#![no_main]

use std::sync::LazyLock;

use keystead_keybox::OpensslEntropy;
use keystead_keybox::contact_code::{ContactCode, ContactCodeError};
use keystead_keybox::fingerprint;
use keystead_keybox::key_set::{PrivateKeySet, PublicKeySet};
use keystead_keybox::sha256;
use libfuzzer_sys::fuzz_target;

static KEYS: LazyLock<PublicKeySet> =
    LazyLock::new(|| PrivateKeySet::generate("@a:x", "A", &mut OpensslEntropy).unwrap().public().unwrap());

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    read(text);
    read(&format!("com.trustner.keybox.contact:1:{text}"));
    // The text in the places of the ids.
    let (user_id, keybox_id) = text.split_at(text.floor_char_boundary(text.len() / 2));
    let code = ContactCode {
        user_id: user_id.to_owned(),
        keybox_id: keybox_id.to_owned(),
        ed25519: sha256(data),
        key_set_hash: sha256(user_id.as_bytes()),
    };
    let fits = [user_id, keybox_id].iter().all(|id| (1..=255).contains(&id.len()));
    assert_eq!(ContactCode::parse(&code.to_string()).is_ok_and(|read| read == code), fits);
    assert!(code.check(&KEYS).is_err());

    let digits: String = text.chars().filter(|char| !char.is_whitespace()).collect();
    let right: String =
        fingerprint::fingerprint(&KEYS).chars().filter(|char| !char.is_whitespace()).collect();
    assert_eq!(fingerprint::matches(&KEYS, text), digits.eq_ignore_ascii_case(&right));
});

fn read(text: &str) {
    match ContactCode::parse(text) {
        Ok(code) => {
            assert_eq!(code.to_string(), text, "one text for each code");
            assert!(code.check(&KEYS).is_err(), "made for keys that nobody has seen");
        }
        Err(ContactCodeError::Version(version)) => assert!(!version.is_empty() && version != "1"),
        Err(ContactCodeError::Foreign) => assert!(!text.starts_with("com.trustner.keybox.contact:")),
        Err(_) => assert!(text.starts_with("com.trustner.keybox.contact")),
    }
}
