use keystead_keybox::{OpensslEntropy, key_set::PrivateKeySet};
use ruma::{
    device_id,
    signatures::{Ed25519KeyPair, sign_json},
    user_id,
};
use serde_json::json;

use super::*;

fn signer(name: &str) -> (Ed25519KeyPair, String) {
    let pair = Ed25519KeyPair::from_der(&Ed25519KeyPair::generate(), name.to_owned()).unwrap();
    let public = Base64::<Standard, _>::new(pair.public_key().to_vec()).encode();
    (pair, public)
}

fn cross_signing_key(user: &str, usage: &str, public: &str) -> String {
    json!({"user_id": user, "usage": [usage], "keys": {format!("ed25519:{public}"): public}}).to_string()
}

fn device_keys(keys: Value) -> String {
    json!({
        "user_id": "@a:x", "device_id": "D", "algorithms": ["m.olm.v1.curve25519-aes-sha2"], "keys": keys,
        "signatures": {"@a:x": {"ed25519:D": "c2ln"}, "@m:x": {"ed25519:M": "c2ln"}},
        "unsigned": {"device_display_name": "forged"},
    })
    .to_string()
}

#[test]
fn device_keys_are_stored_without_what_others_say() {
    let json = device_keys(json!({"ed25519:D": "AAAA"}));
    let object = check_device_keys(user_id!("@a:x"), device_id!("D"), &json).unwrap();
    assert!(!object.contains_key("unsigned"));
    assert_eq!(signing_key_ids(&object, user_id!("@a:x")), ["ed25519:D"]);
    assert!(signing_key_ids(&object, user_id!("@m:x")).is_empty());
}

#[test]
fn device_keys_of_somebody_else_or_of_no_shape_are_refused() {
    let json = device_keys(json!({"ed25519:D": "AAAA"}));
    let invalid = |result| matches!(result, Err(KeyRefusal::Invalid(_)));
    assert!(invalid(check_device_keys(user_id!("@b:x"), device_id!("D"), &json)));
    assert!(invalid(check_device_keys(user_id!("@a:x"), device_id!("E"), &json)));
    for json in ["[]", "{}", "{", r#"{"user_id":"@a:x","device_id":"D","algorithms":[],"keys":{"a":1}}"#] {
        let result = check_device_keys(user_id!("@a:x"), device_id!("D"), json);
        assert!(matches!(result, Err(KeyRefusal::Malformed(_))), "{json}");
    }
    let large = device_keys(json!({"ed25519:D": "A".repeat(70_000)}));
    assert_eq!(check_device_keys(user_id!("@a:x"), device_id!("D"), &large), Err(KeyRefusal::TooLarge));
}

#[test]
fn a_keybox_key_set_is_checked_to_the_signature() {
    let keys = PrivateKeySet::generate("@a:x", "BOX", &mut OpensslEntropy).unwrap();
    let published = Value::Object(keys.device_keys().unwrap());
    let check = |value: &Value| check_device_keys(user_id!("@a:x"), device_id!("BOX"), &value.to_string());
    let object = check(&published).unwrap();
    assert!(is_keybox(&object));

    let mut unsigned = published.clone();
    unsigned.as_object_mut().unwrap().remove("signatures");
    assert!(matches!(check(&unsigned), Err(KeyRefusal::Invalid(_))));

    let mut short = published.clone();
    short["keys"]["com.trustner.keybox.rsa2048:BOX"] = "AAAA".into();
    assert!(matches!(check(&short), Err(KeyRefusal::Invalid(_))));

    let plain = device_keys(json!({"ed25519:D": "AAAA"}));
    let plain = check_device_keys(user_id!("@a:x"), device_id!("D"), &plain).unwrap();
    assert!(!is_keybox(&plain));
    assert!(!same_device_keys(&plain, &object));
}

#[test]
fn one_time_keys_are_texts_or_objects_with_a_key() {
    assert_eq!(check_one_time_key(r#" "abc" "#).unwrap(), r#""abc""#);
    assert_eq!(check_one_time_key(r#"{"key": "abc"}"#).unwrap(), r#"{"key":"abc"}"#);
    for bad in ["1", "null", "[]", "{}", r#"{"key":1}"#, "{", r#"{"key":"a","x":1.5}"#] {
        assert!(matches!(check_one_time_key(bad), Err(KeyRefusal::Malformed(_))), "{bad}");
    }
    assert!(same_one_time_key(r#"{"key":"a","signatures":{"x":1}}"#, r#"{"key":"a"}"#));
    assert!(!same_one_time_key(r#"{"key":"a"}"#, r#"{"key":"b"}"#));
}

#[test]
fn a_cross_signing_key_holds_one_key_named_after_itself() {
    let user = user_id!("@a:x");
    let (_, public) = signer("x");
    let good = cross_signing_key("@a:x", "master", &public);
    assert_eq!(check_cross_signing_key(user, &KeyUsage::Master, &good).unwrap().public_key, public);

    let other = signer("y").1;
    let bad = [
        cross_signing_key("@b:x", "master", &public),
        cross_signing_key("@a:x", "self_signing", &public),
        json!({"user_id": user, "usage": ["master"], "keys": {}}).to_string(),
        json!({"user_id": user, "usage": ["master"], "keys": {format!("ed25519:{public}"): other}})
            .to_string(),
        json!({"user_id": user, "usage": ["master"], "keys": {"ed25519:AAAA": "AAAA"}}).to_string(),
        json!({"user_id": user, "usage": ["master"], "keys":
            {format!("ed25519:{public}"): public, format!("ed25519:{other}"): other}})
        .to_string(),
    ];
    for bad in bad {
        let result = check_cross_signing_key(user, &KeyUsage::Master, &bad);
        assert!(matches!(result, Err(KeyRefusal::Invalid(_))), "{bad}");
    }
}

#[test]
fn a_signature_verifies_with_its_key_only() {
    let user = user_id!("@a:x");
    let (_, public) = signer("x");
    let mut object = parse_object(&cross_signing_key("@a:x", "self_signing", &public)).unwrap();
    let (master, master_public) = signer("placeholder");
    let master = {
        let _ = master;
        let der = Ed25519KeyPair::generate();
        let unnamed = Ed25519KeyPair::from_der(&der, String::new()).unwrap();
        let name = Base64::<Standard, _>::new(unnamed.public_key().to_vec()).encode();
        assert_ne!(name, master_public);
        Ed25519KeyPair::from_der(&der, name).unwrap()
    };
    sign_json(user.as_str(), &master, &mut object).unwrap();
    let key = VerifyKey {
        key_id: format!("ed25519:{}", master.version()),
        public_key: master.public_key().to_vec(),
    };
    let signature = check_signature(&object, user, &key).unwrap();
    assert_eq!(signature.signer_key_id, key.key_id);

    let wrong = VerifyKey { public_key: vec![1; 32], ..key.clone() };
    assert!(matches!(check_signature(&object, user, &wrong), Err(KeyRefusal::Signature(_))));
    let mut altered = object.clone();
    altered.insert("more".to_owned(), CanonicalJsonValue::Bool(true));
    assert!(matches!(check_signature(&altered, user, &key), Err(KeyRefusal::Signature(_))));
    assert!(!same_signed_part(&object, &altered));
    assert!(matches!(check_signature(&object, user_id!("@b:x"), &key), Err(KeyRefusal::Signature(_))));
}

#[test]
fn signatures_and_names_are_laid_over_what_was_published() {
    let mut object = parse_object(r#"{"keys":{},"signatures":{"@a:x":{"ed25519:D":"s1"}}}"#).unwrap();
    add_signatures(
        &mut object,
        &[KeySignature {
            signer_id: "@a:x".to_owned(),
            signer_key_id: "ed25519:S".to_owned(),
            signature: "s2".to_owned(),
        }],
    );
    set_display_name(&mut object, "phone");
    assert_eq!(
        to_json(&object),
        r#"{"keys":{},"signatures":{"@a:x":{"ed25519:D":"s1","ed25519:S":"s2"}},"unsigned":{"device_display_name":"phone"}}"#
    );
}
