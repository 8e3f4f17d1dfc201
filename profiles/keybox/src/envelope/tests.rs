use std::sync::LazyLock;

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::OpensslEntropy;

const ROOM: &str = "!room";

struct Scene {
    sender: PrivateKeySet,
    public: PublicKeySet,
    key: ResourceKey,
    envelope: Envelope,
    json: Vec<u8>,
}

static SCENE: LazyLock<Scene> = LazyLock::new(|| {
    let sender = PrivateKeySet::generate("@alice:example.org", "ALICEBOX", &mut OpensslEntropy).unwrap();
    let key = ResourceKey::generate(&mut OpensslEntropy).unwrap();
    let envelope = seal(&sender, &key, 10, ROOM);
    let json = serde_json::to_vec(&envelope).unwrap();
    Scene { public: sender.public().unwrap(), sender, key, envelope, json }
});

fn seal(sender: &PrivateKeySet, key: &ResourceKey, counter: u64, room_id: &str) -> Envelope {
    let payload = Payload {
        room_id: room_id.to_owned(),
        event_type: "m.room.message".to_owned(),
        content: json!({ "msgtype": "m.text", "body": "Grüße" }),
    };
    let request = SealRequest { suite: suite::V1, key, keys: sender, counter };
    Envelope::seal(request, &payload, &mut OpensslEntropy).unwrap()
}

fn open(envelope: &Envelope) -> Result<Payload, EnvelopeError> {
    envelope.open(ROOM, &SCENE.public, &SCENE.key)
}

#[test]
fn what_was_sealed_is_opened() {
    let payload = open(&SCENE.envelope).unwrap();
    assert_eq!(payload.event_type, "m.room.message");
    assert_eq!(payload.content["body"], "Grüße");
    let read: Envelope = serde_json::from_slice(&SCENE.json).unwrap();
    assert_eq!(read, SCENE.envelope);
}

#[test]
fn every_flipped_bit_of_the_json_is_refused() {
    for position in 0..SCENE.json.len() * 8 {
        let mut altered = SCENE.json.clone();
        altered[position / 8] ^= 1 << (position % 8);
        if let Ok(envelope) = serde_json::from_slice::<Envelope>(&altered) {
            assert!(open(&envelope).is_err(), "bit {position}: {}", String::from_utf8_lossy(&altered));
        }
    }
}

#[test]
fn an_envelope_moved_elsewhere_is_refused() {
    let scene = &*SCENE;
    assert!(matches!(
        scene.envelope.open("!other", &scene.public, &scene.key),
        Err(EnvelopeError::Signature)
    ));
    let other = PrivateKeySet::generate("@mallory:example.org", "ALICEBOX", &mut OpensslEntropy).unwrap();
    assert!(matches!(
        scene.envelope.open(ROOM, &other.public().unwrap(), &scene.key),
        Err(EnvelopeError::Signature)
    ));
    let other_key = ResourceKey::generate(&mut OpensslEntropy).unwrap();
    assert!(matches!(
        scene.envelope.open(ROOM, &scene.public, &other_key),
        Err(EnvelopeError::NotAuthentic(OpenError::NotAuthentic))
    ));
}

#[test]
fn the_sender_cannot_vouch_for_what_others_altered() {
    // Somebody who holds the sender's signing key but not the resource key signs an altered ciphertext again.
    let mut envelope = SCENE.envelope.clone();
    envelope.ciphertext[0] ^= 1;
    envelope.signature = SCENE.sender.sign(&envelope.hash(ROOM, SCENE.sender.user_id())).unwrap();
    assert!(matches!(open(&envelope), Err(EnvelopeError::NotAuthentic(_))));
}

#[test]
fn a_payload_for_another_room_is_refused() {
    // A sender that binds the envelope to this room but writes another into it.
    let (sender, key) = (&SCENE.sender, &SCENE.key);
    let mut envelope = SCENE.envelope.clone();
    let context = envelope.context(ROOM, sender.user_id()).to_bytes();
    let payload = br#"{"room_id":"!other","type":"m.room.message","content":{}}"#;
    let sealed = suite::find(suite::V1).unwrap().seal(key, &context, payload, &mut OpensslEntropy).unwrap();
    (envelope.iv, envelope.ciphertext, envelope.mac) = (sealed.iv, sealed.ciphertext, sealed.mac);
    envelope.signature = sender.sign(&envelope.hash(ROOM, sender.user_id())).unwrap();
    assert!(matches!(open(&envelope), Err(EnvelopeError::Payload)));
}

#[test]
fn each_message_has_its_own_iv_and_counters_end() {
    let (sender, key) = (&SCENE.sender, &SCENE.key);
    assert_ne!(seal(sender, key, 0, ROOM).iv, seal(sender, key, 0, ROOM).iv);
    let payload = Payload { room_id: ROOM.into(), event_type: "m".into(), content: json!({}) };
    let request = SealRequest { suite: suite::V1, key, keys: sender, counter: MAX_INTEGER + 1 };
    let refused = Envelope::seal(request, &payload, &mut OpensslEntropy).unwrap_err();
    assert!(matches!(refused, SealError::CounterExhausted));
    let request = SealRequest { suite: "com.example", key, keys: sender, counter: 0 };
    let refused = Envelope::seal(request, &payload, &mut OpensslEntropy).unwrap_err();
    assert!(matches!(refused, SealError::UnknownSuite(_)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_text_in_any_room_round_trips(body in ".*", room in "![a-z]{1,20}", counter in 0..=MAX_INTEGER) {
        let payload = Payload {
            room_id: room.clone(),
            event_type: "m.room.message".to_owned(),
            content: json!({ "body": body }),
        };
        let request = SealRequest { suite: suite::V1, key: &SCENE.key, keys: &SCENE.sender, counter };
        let envelope = Envelope::seal(request, &payload, &mut OpensslEntropy).unwrap();
        prop_assert_eq!(envelope.open(&room, &SCENE.public, &SCENE.key).unwrap(), payload);
    }

    #[test]
    fn a_change_of_any_field_is_refused(
        iv in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..40)),
        mac in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..40)),
        ciphertext in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..200)),
        counter in proptest::option::of(any::<u64>()),
    ) {
        let mut envelope = SCENE.envelope.clone();
        if let Some(iv) = iv { envelope.iv = iv; }
        if let Some(mac) = mac { envelope.mac = mac; }
        if let Some(ciphertext) = ciphertext { envelope.ciphertext = ciphertext; }
        if let Some(counter) = counter { envelope.counter = counter; }
        prop_assume!(envelope != SCENE.envelope);
        prop_assert!(open(&envelope).is_err());
    }
}
