//! Any bytes as a wrap, as sealed content, and as a sealed record: nothing opens.
#![no_main]

use std::sync::LazyLock;

use keystead_keybox::OpensslEntropy;
use keystead_keybox::context::WrapContext;
use keystead_keybox::key_set::PrivateKeySet;
use keystead_keybox::resource_key::ResourceKey;
use keystead_keybox::suite::{SUITES, Sealed};
use keystead_keybox::vault::Vault;
use libfuzzer_sys::fuzz_target;

static KEYS: LazyLock<PrivateKeySet> =
    LazyLock::new(|| PrivateKeySet::generate("@bob:example.org", "BOBBOX", &mut OpensslEntropy).unwrap());
static VAULT: LazyLock<Vault> = LazyLock::new(|| Vault::new(&KEYS).unwrap());

fuzz_target!(|data: &[u8]| {
    let key = ResourceKey::from_bytes(&[7; 32]).unwrap();
    let key_id = key.id("!room");
    for suite in SUITES {
        let context = WrapContext {
            suite: suite.id,
            room_id: "!room",
            key_id: &key_id,
            sender: "@alice:example.org",
            sender_keybox: "ALICEBOX",
            recipient: "@bob:example.org",
            recipient_keybox: "BOBBOX",
        };
        assert!(suite.unwrap(data, &KEYS, &context).is_err());
        for (iv, mac) in [(16, 32), (12, 16), (usize::from(data.first().copied().unwrap_or(0)), 16)] {
            let (iv, rest) = data.split_at(iv.min(data.len()));
            let (mac, ciphertext) = rest.split_at(mac.min(rest.len()));
            let sealed = Sealed { iv: iv.to_vec(), ciphertext: ciphertext.to_vec(), mac: mac.to_vec() };
            assert!(suite.open(&key, b"here", sealed).is_err());
        }
    }
    assert!(VAULT.open("name", data).is_err());
});
