//! Any JSON as the content of an encrypted event: it opens only if it is the one that was sealed.
#![no_main]

use std::sync::LazyLock;

use keystead_keybox::OpensslEntropy;
use keystead_keybox::envelope::{Envelope, Payload, SealRequest};
use keystead_keybox::key_set::PrivateKeySet;
use keystead_keybox::resource_key::ResourceKey;
use keystead_keybox::suite::SUITES;
use libfuzzer_sys::fuzz_target;

static KEYS: LazyLock<PrivateKeySet> =
    LazyLock::new(|| PrivateKeySet::generate("@alice:example.org", "ALICEBOX", &mut OpensslEntropy).unwrap());

fuzz_target!(|data: &[u8]| {
    let Ok(envelope) = serde_json::from_slice::<Envelope>(data) else { return };
    let again: Envelope = serde_json::from_value(serde_json::to_value(&envelope).unwrap()).unwrap();
    assert_eq!(again, envelope, "one text for each envelope");
    let (public, key) = (KEYS.public().unwrap(), ResourceKey::from_bytes(&[7; 32]).unwrap());
    envelope.open("!room", &public, &key).unwrap_err();
    // Past the signature: as if the sender itself had made it.
    let mut signed = envelope;
    signed.sender_keybox = "ALICEBOX".to_owned();
    signed.signature = KEYS.sign(&signed.hash("!room", "@alice:example.org")).unwrap();
    signed.open("!room", &public, &key).unwrap_err();
    // And what opens is read without a panic, whatever it holds.
    for suite in SUITES {
        let Ok(payload) = serde_json::from_slice::<Payload>(&signed.ciphertext) else { return };
        let request = SealRequest { suite: suite.id, key: &key, keys: &KEYS, counter: 0 };
        let sealed = Envelope::seal(request, &payload, &mut OpensslEntropy).unwrap();
        assert_eq!(sealed.open(&payload.room_id, &public, &key).unwrap(), payload);
    }
});
