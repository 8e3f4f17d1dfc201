//! Any JSON as a device's published keys, and any bytes in the place of each key.
#![no_main]

use std::sync::LazyLock;

use keystead_keybox::OpensslEntropy;
use keystead_keybox::canonical_json::sign_json;
use keystead_keybox::encoding::base64;
use keystead_keybox::key_set::{ED25519_ENTRY, PrivateKeySet, RSA_ENTRY, X25519_ENTRY, validate_device_keys};
use libfuzzer_sys::fuzz_target;
use serde_json::{Map, Value};

const USER: &str = "@bob:example.org";
const KEYBOX: &str = "BOBBOX";
static KEYS: LazyLock<PrivateKeySet> =
    LazyLock::new(|| PrivateKeySet::generate(USER, KEYBOX, &mut OpensslEntropy).unwrap());

fuzz_target!(|data: &[u8]| {
    if let Ok(device_keys) = serde_json::from_slice::<Map<String, Value>>(data)
        && let Ok(Some(keys)) = validate_device_keys(USER, KEYBOX, &device_keys)
    {
        assert_eq!((keys.user_id.as_str(), keys.keybox_id.as_str()), (USER, KEYBOX));
        assert_eq!(
            serde_json::from_value::<keystead_keybox::key_set::PublicKeySet>(
                serde_json::to_value(&keys).unwrap()
            )
            .unwrap(),
            keys
        );
    }
    let Some((which, key)) = data.split_first() else { return };
    let entry = [RSA_ENTRY, X25519_ENTRY, ED25519_ENTRY][usize::from(*which) % 3];
    let mut device_keys = KEYS.device_keys().unwrap();
    device_keys["keys"][format!("{entry}:{KEYBOX}")] = base64(key).into();
    device_keys.remove("signatures");
    sign_json(&KEYS, &mut device_keys).unwrap();
    if let Ok(Some(keys)) = validate_device_keys(USER, KEYBOX, &device_keys) {
        assert_ne!(entry, ED25519_ENTRY, "the signature was made with another key");
        let (kept, length) =
            if entry == RSA_ENTRY { (keys.rsa, 294) } else { (keys.x25519.unwrap().to_vec(), 32) };
        assert_eq!((kept.as_slice(), kept.len()), (key, length));
    }
});
