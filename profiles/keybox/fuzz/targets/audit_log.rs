//! Any JSON lines as a log: what is taken is a chain, and an entry of any other user, number or hash is not.
#![no_main]

use std::sync::LazyLock;

use keystead_keybox::OpensslEntropy;
use keystead_keybox::audit_log::{Direction, Entry, Head, LogEvent, check_head, entry_hash};
use keystead_keybox::canonical_json::sign_json;
use keystead_keybox::encoding::from_base64;
use keystead_keybox::key_set::PrivateKeySet;
use libfuzzer_sys::fuzz_target;
use serde_json::{Map, Value};

const USER: &str = "@a:x";
static SERVER: LazyLock<(PrivateKeySet, [u8; 32])> = LazyLock::new(|| {
    let keys = PrivateKeySet::generate("x", "1", &mut OpensslEntropy).unwrap();
    let device_keys = keys.device_keys().unwrap();
    let public = from_base64(device_keys["keys"]["ed25519:1"].as_str().unwrap()).unwrap();
    (keys, public.try_into().unwrap())
});

fuzz_target!(|data: &[u8]| {
    let mut head = Head::default();
    for line in data.split(|byte| *byte == b'\n') {
        let Ok(object) = serde_json::from_slice::<Map<String, Value>>(line) else { continue };
        follow(&mut head, &object);
        entry(&object);
        message(&object);
        signed_head(&object);
    }
});

/// As it is, and made to fit: with the number, hash, time and user that come next.
fn follow(head: &mut Head, object: &Map<String, Value>) {
    let before = head.clone();
    if head.follow(USER, object).is_err() {
        assert_eq!(*head, before, "moved on to what was refused");
        let mut fitting = object.clone();
        fitting.insert("seq".to_owned(), (head.seq + 1).into());
        fitting.insert("prev".to_owned(), head.hash.clone().into());
        fitting.insert("ts".to_owned(), head.ts.into());
        fitting.insert("user_id".to_owned(), USER.into());
        if head.follow(USER, &fitting).is_err() {
            assert_eq!(*head, before);
            entry_hash(&fitting).unwrap_err();
            return;
        }
        assert_eq!(head.hash, entry_hash(&fitting).unwrap());
        assert!(before.clone().follow("@b:x", &fitting).is_err());
        assert!(head.clone().follow(USER, &fitting).is_err(), "taken twice");
    }
    assert_eq!(head.seq, before.seq + 1);
    assert!(head.ts >= before.ts);
    assert_ne!(head.hash, before.hash);
}

/// What is read as an entry is written as one, and can be appended.
fn entry(object: &Map<String, Value>) {
    let Ok(entry) = serde_json::from_value::<Entry>(object.clone().into()) else { return };
    let again: Entry = serde_json::from_value(serde_json::to_value(&entry).unwrap()).unwrap();
    assert_eq!(again, entry);
    let _ = (entry.event.keybox_id(), entry.event.exchange());
    let (mut appended, mut followed) = (Head::default(), Head::default());
    // A number that is too great for canonical JSON is refused, and nothing was appended.
    if let Ok(text) = appended.append(&entry.user_id, entry.ts, entry.event) {
        followed.follow(&entry.user_id, &serde_json::from_str(&text).unwrap()).unwrap();
        assert_eq!(followed, appended);
    } else {
        assert_eq!(appended, Head::default());
    }
}

fn message(object: &Map<String, Value>) {
    let content = Value::Object(object.clone());
    for kind in ["resource_key", "resource_key_request", "resource_key.withheld", "resource_key.ack"] {
        let kind = format!("com.trustner.keybox.{kind}");
        if let Some(event) = LogEvent::of_message(&kind, &content, Direction::Sent, "A", ("@b:x", "B")) {
            let exchange = event.exchange().unwrap();
            assert_eq!((exchange.keybox_id.as_str(), event.keybox_id()), ("A", "A"));
            assert_eq!(content["room_id"], exchange.room_id);
            assert_eq!(content["key_id"], exchange.key_id);
        }
    }
}

/// Not without the signature; with it, for its user only.
fn signed_head(object: &Map<String, Value>) {
    let (keys, public) = &*SERVER;
    assert!(check_head(object, USER, "x", ("1", public)).is_err(), "taken without a signature");
    let mut signed = object.clone();
    signed.remove("signatures");
    if sign_json(keys, &mut signed).is_err() {
        return;
    }
    if let Ok(head) = check_head(&signed, USER, "x", ("1", public)) {
        assert_eq!((&signed["user_id"], &signed["seq"]), (&USER.into(), &head.seq.into()));
        assert!(check_head(&signed, "@b:x", "x", ("1", public)).is_err());
        assert!(check_head(&signed, USER, "y", ("1", public)).is_err());
    }
}
