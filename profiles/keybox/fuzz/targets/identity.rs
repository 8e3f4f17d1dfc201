//! Any JSON as an identity: published keys, and private keys that were sent. Any bytes as seeds.
#![no_main]

use std::sync::LazyLock;

use keystead_keybox::OpensslEntropy;
use keystead_keybox::identity::{IdentityContent, IdentityKeys, Usage, is_signed_by, read_key};
use keystead_keybox::key_set::{PrivateKeySet, PublicKeySet};
use keystead_keybox::suite;
use libfuzzer_sys::fuzz_target;
use serde_json::{Map, Value};

const USER: &str = "@a:x";
static KEYS: LazyLock<PrivateKeySet> =
    LazyLock::new(|| PrivateKeySet::generate(USER, "A", &mut OpensslEntropy).unwrap());
static PUBLIC: LazyLock<PublicKeySet> = LazyLock::new(|| KEYS.public().unwrap());
static IDENTITY: LazyLock<IdentityKeys> =
    LazyLock::new(|| IdentityKeys::generate(USER, &mut OpensslEntropy).unwrap());
static SENT: LazyLock<IdentityContent> =
    LazyLock::new(|| IDENTITY.seal(&KEYS, &PUBLIC, &mut OpensslEntropy).unwrap());

fuzz_target!(|data: &[u8]| {
    if let Some(identity) = IdentityKeys::from_seeds(USER, data).unwrap() {
        assert_eq!(*identity.seeds().unwrap(), data);
    } else {
        assert_ne!(data.len(), 96);
    }
    published(data);
    sent(data);
});

fn published(data: &[u8]) {
    let Ok(object) = serde_json::from_slice::<Map<String, Value>>(data) else { return };
    for usage in [Usage::Master, Usage::SelfSigning, Usage::UserSigning] {
        if let Some(key) = read_key(USER, usage, &object) {
            assert_eq!(object["user_id"], USER);
            assert_eq!(object["keys"].as_object().unwrap().len(), 1);
            assert_eq!(object["keys"][format!("ed25519:{key}")], key);
            is_signed_by(USER, key, &object);
        }
        let public = IDENTITY.public(usage).unwrap();
        assert!(!is_signed_by(USER, &public, &object), "taken without a signature");
        // Past the signature: what has a canonical form can be signed, and is then signed by that key only.
        let Ok(signed) = IDENTITY.signed(usage, &object) else { continue };
        assert!(is_signed_by(USER, &public, &signed));
        assert!(!is_signed_by("@b:x", &public, &signed));
        let mut altered = signed;
        altered.insert("usage of another".to_owned(), Value::Null);
        assert!(!is_signed_by(USER, &public, &altered));
    }
}

fn sent(data: &[u8]) {
    let Ok(content) = serde_json::from_slice::<IdentityContent>(data) else { return };
    let again: IdentityContent = serde_json::from_value(serde_json::to_value(&content).unwrap()).unwrap();
    assert_eq!(again, content, "one text for each");
    assert!(IdentityKeys::open(content.clone(), &KEYS, &PUBLIC).is_err());
    // Each part of it in the place of that of a true one.
    let parts = [
        IdentityContent { algorithm: content.algorithm, ..SENT.clone() },
        IdentityContent { key_id: content.key_id, ..SENT.clone() },
        IdentityContent { wrap: content.wrap, ..SENT.clone() },
        IdentityContent { iv: content.iv, ..SENT.clone() },
        IdentityContent { ciphertext: content.ciphertext, ..SENT.clone() },
        IdentityContent { mac: content.mac, ..SENT.clone() },
        IdentityContent { sender_keybox: content.sender_keybox, ..SENT.clone() },
    ];
    for altered in parts {
        let opened = IdentityKeys::open(altered.clone(), &KEYS, &PUBLIC);
        assert_eq!(opened.is_ok(), altered == *SENT);
    }
    assert_eq!(SENT.algorithm, suite::V2);
}
