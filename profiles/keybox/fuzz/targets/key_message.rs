//! Any JSON as a key message: none is taken without the signature of the KeyBox that it names.
#![no_main]

use std::sync::LazyLock;

use keystead_keybox::OpensslEntropy;
use keystead_keybox::key_message::{
    Acknowledgement, KeyRequest, Recipient, ResourceKeyContent, Withheld, claimed_sender_keybox, sign, verify,
};
use keystead_keybox::key_set::PrivateKeySet;
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

static KEYS: LazyLock<PrivateKeySet> =
    LazyLock::new(|| PrivateKeySet::generate("@alice:example.org", "ALICEBOX", &mut OpensslEntropy).unwrap());
const BOB: Recipient<'_> = Recipient { user_id: "@bob:example.org", keybox_id: "BOBBOX" };

macro_rules! check {
    ($type:ty, $content:expr) => {
        let public = KEYS.public().unwrap();
        assert!(verify::<$type>($content, &public, BOB).is_err(), "taken without a signature");
        if let Ok(mut message) = serde_json::from_value::<$type>($content.clone()) {
            message.sender_keybox = "ALICEBOX".to_owned();
            if let Ok(signed) = sign(&message, &KEYS, BOB) {
                assert_eq!(verify::<$type>(&signed, &public, BOB).unwrap(), message);
            }
        }
    };
}

fuzz_target!(|data: &[u8]| {
    let Ok(content) = serde_json::from_slice::<Value>(data) else { return };
    let _ = claimed_sender_keybox(&content);
    check!(ResourceKeyContent, &content);
    check!(KeyRequest, &content);
    check!(Withheld, &content);
    check!(Acknowledgement, &content);
});
