//! Key sets that are too weak are refused by the server, though their owner signed them.

use keystead_keybox::{
    OpensslEntropy,
    canonical_json::sign_json,
    encoding::base64,
    key_set::{PrivateKeySet, RSA_ENTRY, X25519_ENTRY},
};
use keystead_tests::TestCluster;
use openssl::{bn::BigNum, rsa::Rsa};
use serde_json::{Value, json};

/// The key set with one entry of `keys` replaced or removed, signed again.
fn altered(keys: &PrivateKeySet, entry: &str, value: Option<Value>) -> Value {
    let mut device_keys = keys.device_keys().expect("signed");
    device_keys.remove("signatures");
    let name = format!("{entry}:{}", keys.keybox_id());
    let of_device = device_keys["keys"].as_object_mut().expect("an object");
    match value {
        Some(value) => of_device.insert(name, value),
        None => of_device.remove(&name),
    };
    sign_json(keys, &mut device_keys).expect("signed");
    json!({ "device_keys": device_keys })
}

fn rsa(bits: u32, exponent: u32) -> Option<Value> {
    let exponent = BigNum::from_u32(exponent).expect("a number");
    let key = Rsa::generate_with_e(bits, &exponent).expect("a key");
    Some(base64(&key.public_key_to_der().expect("DER")).into())
}

#[tokio::test]
async fn a_weak_key_set_is_refused_though_it_is_signed() {
    let cluster = TestCluster::start().await;
    let alice = cluster.user("alice").await;
    let keys = PrivateKeySet::generate(&alice.id, &alice.device, &mut OpensslEntropy).expect("keys");
    let low_order = base64(&[0; 32]);
    for (what, upload) in [
        ("a short RSA key", altered(&keys, RSA_ENTRY, rsa(1024, 65537))),
        ("a long RSA key", altered(&keys, RSA_ENTRY, rsa(3072, 65537))),
        ("a bad exponent", altered(&keys, RSA_ENTRY, rsa(2048, 3))),
        ("no RSA key", altered(&keys, RSA_ENTRY, None)),
        ("nonsense for an RSA key", altered(&keys, RSA_ENTRY, Some("AAAA".into()))),
        ("a point of low order", altered(&keys, X25519_ENTRY, Some(low_order.into()))),
    ] {
        println!("{what}");
        alice.post("/keys/upload", upload).await.refused(400, "M_INVALID_PARAM");
    }
    let answer = alice.post("/keys/query", json!({ "device_keys": { &alice.id: [] } })).await.ok();
    assert!(answer["device_keys"][&alice.id].get(&alice.device).is_none(), "something was stored: {answer}");
    let good = json!({ "device_keys": keys.device_keys().expect("signed") });
    alice.post("/keys/upload", good).await.ok();
}
