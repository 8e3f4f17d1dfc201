use serde_json::json;

use super::*;
use crate::canonical_json::sign_json;
use crate::encoding::{base64, from_hex};
use crate::key_set::PrivateKeySet;
use crate::{OpensslEntropy, suite};

const USER: &str = "@alice:example.org";
const KEYBOX: &str = "ALICEBOX";

fn key_set() -> PrivateKeySet {
    PrivateKeySet::generate(USER, KEYBOX, &mut OpensslEntropy).unwrap()
}

/// The key set with one entry of `keys` replaced, signed again.
fn with_entry(keys: &PrivateKeySet, algorithm: &str, value: Value) -> Map<String, Value> {
    let mut device_keys = keys.device_keys().unwrap();
    device_keys["keys"][format!("{algorithm}:{KEYBOX}")] = value;
    device_keys.remove("signatures");
    sign_json(keys, &mut device_keys).unwrap();
    device_keys
}

fn refusal(device_keys: &Map<String, Value>) -> KeySetError {
    validate_device_keys(USER, KEYBOX, device_keys).unwrap_err()
}

fn rsa_der(bits: u32, exponent: u32) -> Value {
    let exponent = BigNum::from_u32(exponent).unwrap();
    base64(&Rsa::generate_with_e(bits, &exponent).unwrap().public_key_to_der().unwrap()).into()
}

#[test]
fn a_published_key_set_is_accepted() {
    let keys = key_set();
    let public = keys.public().unwrap();
    assert_eq!(public.algorithms, [suite::V1, suite::V2]);
    assert!(public.x25519.is_some());
    assert!(public.verify(b"text", &keys.sign(b"text").unwrap()).unwrap());
}

#[test]
fn a_device_of_another_client_is_none_of_our_business() {
    let device_keys = json!({
        "user_id": USER, "device_id": KEYBOX, "algorithms": ["m.olm.v1.curve25519-aes-sha2"],
        "keys": { format!("ed25519:{KEYBOX}"): "not checked here" },
    });
    assert!(validate_device_keys(USER, KEYBOX, device_keys.as_object().unwrap()).unwrap().is_none());
}

#[test]
fn wrong_rsa_keys_are_refused() {
    let keys = key_set();
    assert!(matches!(
        refusal(&with_entry(&keys, RSA_ENTRY, rsa_der(1024, 65537))),
        KeySetError::WrongSize(1024)
    ));
    assert!(matches!(refusal(&with_entry(&keys, RSA_ENTRY, rsa_der(2048, 3))), KeySetError::BadExponent));
    let ec = openssl::pkey::PKey::generate_x25519().unwrap().public_key_to_der().unwrap();
    assert!(matches!(
        refusal(&with_entry(&keys, RSA_ENTRY, base64(&ec).into())),
        KeySetError::Malformed(RSA_ENTRY)
    ));
    let mut trailing = keys.public().unwrap().rsa;
    trailing.push(0);
    let trailing = with_entry(&keys, RSA_ENTRY, base64(&trailing).into());
    assert!(matches!(refusal(&trailing), KeySetError::Malformed(RSA_ENTRY)));
    assert!(matches!(refusal(&with_entry(&keys, RSA_ENTRY, json!(7))), KeySetError::Malformed(RSA_ENTRY)));
    let mut missing = keys.device_keys().unwrap();
    missing["keys"].as_object_mut().unwrap().remove(&format!("{RSA_ENTRY}:{KEYBOX}"));
    assert!(matches!(refusal(&missing), KeySetError::Missing(RSA_ENTRY)));
}

#[test]
fn a_suite_is_named_only_with_its_key() {
    let keys = key_set();
    let mut device_keys = keys.device_keys().unwrap();
    device_keys["keys"].as_object_mut().unwrap().remove(&format!("{X25519_ENTRY}:{KEYBOX}"));
    device_keys.remove("signatures");
    sign_json(&keys, &mut device_keys).unwrap();
    assert!(matches!(refusal(&device_keys), KeySetError::Missing(X25519_ENTRY)));
    device_keys["algorithms"] = json!([suite::V1]);
    device_keys.remove("signatures");
    sign_json(&keys, &mut device_keys).unwrap();
    let public = validate_device_keys(USER, KEYBOX, &device_keys).unwrap().unwrap();
    assert_eq!((public.x25519, public.algorithms), (None, vec![suite::V1.to_owned()]));
}

#[test]
fn points_of_low_order_are_refused() {
    let keys = key_set();
    for point in [
        "0000000000000000000000000000000000000000000000000000000000000000",
        "0100000000000000000000000000000000000000000000000000000000000000",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
        "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
    ] {
        let point = base64(&*from_hex::<32>(point).unwrap());
        let refused = refusal(&with_entry(&keys, X25519_ENTRY, point.into()));
        assert!(matches!(refused, KeySetError::LowOrder(X25519_ENTRY)), "{refused}");
    }
    for point in [
        "0100000000000000000000000000000000000000000000000000000000000000",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "0000000000000000000000000000000000000000000000000000000000000080",
        "0000000000000000000000000000000000000000000000000000000000000000",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
    ] {
        let refused =
            refusal(&with_entry(&keys, ED25519_ENTRY, base64(&*from_hex::<32>(point).unwrap()).into()));
        assert!(matches!(refused, KeySetError::LowOrder(ED25519_ENTRY)), "{point}: {refused}");
    }
}

#[test]
fn bytes_that_are_no_canonical_point_are_refused() {
    let keys = key_set();
    // p itself encodes 0 a second time; y = 2 is not on the curve.
    let prime =
        base64(&*from_hex::<32>("edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f").unwrap());
    let off_curve = base64(&[&[2][..], &[0; 31]].concat());
    for wrong in [prime.as_str(), off_curve.as_str(), "AAAA", "not base64!", ""] {
        let refused = refusal(&with_entry(&keys, ED25519_ENTRY, wrong.into()));
        assert!(matches!(refused, KeySetError::Malformed(ED25519_ENTRY)), "{wrong}: {refused}");
    }
    for wrong in [prime.as_str(), "AAAA"] {
        let refused = refusal(&with_entry(&keys, X25519_ENTRY, wrong.into()));
        assert!(matches!(refused, KeySetError::Malformed(X25519_ENTRY)), "{wrong}: {refused}");
    }
}

#[test]
fn many_honest_ed25519_keys_are_points() {
    for _ in 0..200 {
        let key = PKey::generate_ed25519().unwrap().raw_public_key().unwrap();
        checked_ed25519(key).unwrap();
    }
}

#[test]
fn identity_and_signature_are_checked() {
    let keys = key_set();
    let device_keys = keys.device_keys().unwrap();
    let other = |user, keybox| validate_device_keys(user, keybox, &device_keys).unwrap_err();
    assert!(matches!(other("@mallory:example.org", KEYBOX), KeySetError::Identity));
    assert!(matches!(other(USER, "OTHER"), KeySetError::Identity));
    let mut unsigned = device_keys.clone();
    unsigned.remove("signatures");
    assert!(matches!(refusal(&unsigned), KeySetError::Signature(JsonSignatureError::Missing)));
    let mut altered = device_keys.clone();
    altered["algorithms"] = json!(["com.trustner.keybox.v0"]);
    assert!(matches!(refusal(&altered), KeySetError::Signature(JsonSignatureError::Wrong)));
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(256))]

    #[test]
    fn no_bytes_under_any_entry_make_a_key_set_without_a_signature(
        ed25519 in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..64),
        rsa in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..400),
        signature in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..80),
    ) {
        let device_keys = json!({
            "user_id": USER, "device_id": KEYBOX, "algorithms": [suite::V1],
            "keys": {
                format!("{ED25519_ENTRY}:{KEYBOX}"): base64(&ed25519),
                format!("{RSA_ENTRY}:{KEYBOX}"): base64(&rsa),
            },
            "signatures": { USER: { format!("ed25519:{KEYBOX}"): base64(&signature) } },
        });
        proptest::prop_assert!(validate_device_keys(USER, KEYBOX, device_keys.as_object().unwrap()).is_err());
    }
}
