//! Any JSON as keys and key messages that a device uploads or sends: what is taken belongs to its user, and stays what it is.
#![no_main]

use keystead_core::{
    keybox::{KEY_MESSAGE_TYPES, check_key_message},
    keys,
};
use libfuzzer_sys::fuzz_target;
use ruma::{device_id, encryption::KeyUsage, user_id};

fuzz_target!(|data: &[u8]| {
    let Ok(json) = std::str::from_utf8(data) else { return };
    let (user, device) = (user_id!("@alice:example.org"), device_id!("ALICEBOX"));
    if let Ok(object) = keys::check_device_keys(user, device, json) {
        assert_eq!(object["user_id"].as_str(), Some(user.as_str()));
        let stored = keys::to_json(&object);
        assert!(keys::parse_object(&stored).is_ok(), "what is stored is read again");
        let _ = (keys::is_keybox(&object), keys::key_set_id(user, device, &object));
    }
    if let Ok(stored) = keys::check_one_time_key(json) {
        assert!(keys::same_one_time_key(&stored, &stored));
    }
    for usage in [KeyUsage::Master, KeyUsage::SelfSigning, KeyUsage::UserSigning] {
        let _ = keys::check_cross_signing_key(user, &usage, json);
    }
    for kind in KEY_MESSAGE_TYPES {
        let _ = check_key_message(kind, device, json);
    }
});
