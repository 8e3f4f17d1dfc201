use serde_json::json;

use super::*;
use crate::resource_key::{ResourceKey, ResourceKeyId};
use crate::{OpensslEntropy, suite};

const BOB: Recipient<'_> = Recipient { user_id: "@bob:example.org", keybox_id: "BOBBOX" };

fn alice() -> PrivateKeySet {
    PrivateKeySet::generate("@alice:example.org", "ALICEBOX", &mut OpensslEntropy).unwrap()
}

fn key_id() -> ResourceKeyId {
    ResourceKey::from_bytes(&[1; 32]).unwrap().id("!room")
}

fn request() -> KeyRequest {
    KeyRequest {
        action: RequestAction::Request,
        request_id: "r1".to_owned(),
        algorithm: suite::V1.to_owned(),
        room_id: "!room".to_owned(),
        key_id: key_id(),
        sender_keybox: "ALICEBOX".to_owned(),
    }
}

#[test]
fn a_signed_message_is_read_back() {
    let alice = alice();
    let content = sign(&request(), &alice, BOB).unwrap();
    assert_eq!(content["action"], "request");
    assert_eq!(claimed_sender_keybox(&content), Some("ALICEBOX"));
    assert_eq!(verify::<KeyRequest>(&content, &alice.public().unwrap(), BOB).unwrap(), request());
}

#[test]
fn what_is_altered_or_meant_for_another_is_refused() {
    let alice = alice();
    let public = alice.public().unwrap();
    let content = sign(&request(), &alice, BOB).unwrap();
    let signature = |result: Result<KeyRequest, _>| matches!(result, Err(KeyMessageError::Signature));

    assert!(signature(verify(&content, &public, Recipient { user_id: "@eve:example.org", ..BOB })));
    assert!(signature(verify(&content, &public, Recipient { keybox_id: "EVEBOX", ..BOB })));
    let other = PrivateKeySet::generate("@alice:example.org", "ALICEBOX", &mut OpensslEntropy).unwrap();
    assert!(signature(verify(&content, &other.public().unwrap(), BOB)));
    for (field, value) in [("request_id", json!("r2")), ("action", json!("cancel")), ("more", json!(1))] {
        let mut altered = content.clone();
        altered[field] = value;
        assert!(signature(verify(&altered, &public, BOB)), "{field}");
    }
    let mut unsigned = content.clone();
    unsigned.as_object_mut().unwrap().remove("signature");
    assert!(signature(verify(&unsigned, &public, BOB)));
    assert!(matches!(verify::<Withheld>(&content, &public, BOB), Err(KeyMessageError::Malformed(_))));
}

#[test]
fn each_type_names_the_keybox_that_sends_it() {
    let alice = alice();
    let public = alice.public().unwrap();
    fn told<M: KeyMessage>(message: &M, alice: &PrivateKeySet, public: &PublicKeySet) -> bool {
        verify::<M>(&sign(message, alice, BOB).unwrap(), public, BOB).is_ok()
    }
    for (sender, right) in [("ALICEBOX", true), ("OTHERBOX", false), ("", false)] {
        let sender_keybox = sender.to_owned();
        let (algorithm, room_id, exchange_id) = (suite::V1.to_owned(), "!room".to_owned(), "e1".to_owned());
        let origin = Origin::sign(&alice, suite::V1, "!room", &key_id(), 7, String::new()).unwrap();
        let messages = (
            ResourceKeyContent {
                algorithm: algorithm.clone(),
                room_id: room_id.clone(),
                key_id: key_id(),
                wrap: vec![1],
                sender_keybox: sender_keybox.clone(),
                exchange_id: exchange_id.clone(),
                sent_at: 7,
                origin,
                closing: None,
            },
            KeyRequest { sender_keybox: sender_keybox.clone(), ..request() },
            Withheld {
                algorithm,
                room_id: room_id.clone(),
                key_id: key_id(),
                code: WithheldCode::Unavailable,
                reason: String::new(),
                sender_keybox: sender_keybox.clone(),
            },
            Acknowledgement { room_id, key_id: key_id(), exchange_id, sender_keybox },
        );
        assert_eq!(told(&messages.0, &alice, &public), right, "key of {sender}");
        assert_eq!(told(&messages.1, &alice, &public), right, "request of {sender}");
        assert_eq!(told(&messages.2, &alice, &public), right, "withheld by {sender}");
        assert_eq!(told(&messages.3, &alice, &public), right, "acknowledged by {sender}");
    }
}

#[test]
fn a_message_does_not_pass_for_one_of_another_type() {
    #[derive(serde::Serialize, serde::Deserialize)]
    struct Lookalike(serde_json::Map<String, Value>);
    impl KeyMessage for Lookalike {
        const EVENT_TYPE: &'static str = "com.example.lookalike";
        fn sender_keybox(&self) -> &str {
            "ALICEBOX"
        }
    }
    let alice = alice();
    let content = sign(&request(), &alice, BOB).unwrap();
    assert!(matches!(
        verify::<Lookalike>(&content, &alice.public().unwrap(), BOB),
        Err(KeyMessageError::Signature)
    ));
}

#[test]
fn the_origin_is_the_makers_word() {
    let alice = alice();
    let public = alice.public().unwrap();
    let audience = audience_hash([("@alice:example.org", "ALICEBOX")]);
    let origin = Origin::sign(&alice, suite::V1, "!room", &key_id(), 7, audience).unwrap();
    assert!(origin.verify(&public, suite::V1, "!room", &key_id()).unwrap());
    assert!(!origin.verify(&public, suite::V1, "!other", &key_id()).unwrap());
    assert!(
        !Origin { created_at: 8, ..origin.clone() }.verify(&public, suite::V1, "!room", &key_id()).unwrap()
    );
    // The same keys, as they would be if somebody showed them as another KeyBox's.
    for other in [
        PublicKeySet { user_id: "@eve:x".into(), ..public.clone() },
        PublicKeySet { keybox_id: "OTHERBOX".into(), ..public.clone() },
    ] {
        assert!(!origin.verify(&other, suite::V1, "!room", &key_id()).unwrap());
    }
    assert!(
        !Origin { user_id: "@eve:x".into(), ..origin }
            .verify(&public, suite::V1, "!room", &key_id())
            .unwrap()
    );
}

#[test]
fn an_audience_is_a_set() {
    let both = audience_hash([("@a:x", "A"), ("@b:x", "B")]);
    assert_eq!(both, audience_hash([("@b:x", "B"), ("@a:x", "A"), ("@b:x", "B")]));
    assert_ne!(both, audience_hash([("@a:x", "A")]));
    assert_ne!(both, audience_hash([("@a:x", "B"), ("@b:x", "A")]));
}
