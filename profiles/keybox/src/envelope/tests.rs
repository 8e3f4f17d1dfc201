use std::sync::LazyLock;

use proptest::prelude::*;
use proptest::sample::select;
use serde_json::json;

use super::*;
use crate::OpensslEntropy;
use crate::suite::SUITES;

const ROOM: &str = "!room";

/// One sealed message of each suite.
struct Scene {
    suite: &'static str,
    sender: PrivateKeySet,
    public: PublicKeySet,
    key: ResourceKey,
    envelope: Envelope,
    json: Vec<u8>,
}

static SCENES: LazyLock<Vec<Scene>> = LazyLock::new(|| {
    let scene = |suite: &'static suite::Suite| {
        let sender = PrivateKeySet::generate("@alice:example.org", "ALICEBOX", &mut OpensslEntropy).unwrap();
        let key = ResourceKey::generate(&mut OpensslEntropy).unwrap();
        let envelope = seal(suite.id, &sender, &key, 10);
        let json = serde_json::to_vec(&envelope).unwrap();
        Scene { suite: suite.id, public: sender.public().unwrap(), sender, key, envelope, json }
    };
    SUITES.iter().map(scene).collect()
});

fn seal(suite: &str, sender: &PrivateKeySet, key: &ResourceKey, counter: u64) -> Envelope {
    let payload = Payload {
        room_id: ROOM.to_owned(),
        event_type: "m.room.message".to_owned(),
        content: json!({ "msgtype": "m.text", "body": "Grüße" }),
    };
    let request = SealRequest { suite, key, keys: sender, counter };
    Envelope::seal(request, &payload, &mut OpensslEntropy).unwrap()
}

impl Scene {
    fn open(&self, envelope: &Envelope) -> Result<Payload, EnvelopeError> {
        envelope.open(ROOM, &self.public, &self.key)
    }

    /// Signs an altered envelope as its sender would.
    fn sign_again(&self, envelope: &mut Envelope) {
        envelope.signature = self.sender.sign(&envelope.hash(ROOM, self.sender.user_id())).unwrap();
    }
}

#[test]
fn what_was_sealed_is_opened() {
    for scene in &*SCENES {
        let payload = scene.open(&scene.envelope).unwrap();
        assert_eq!(payload.event_type, "m.room.message");
        assert_eq!(payload.content["body"], "Grüße");
        assert_eq!(scene.envelope.algorithm, scene.suite);
        let read: Envelope = serde_json::from_slice(&scene.json).unwrap();
        assert_eq!(read, scene.envelope);
    }
}

#[test]
fn every_flipped_bit_of_the_json_is_refused() {
    for scene in &*SCENES {
        for position in 0..scene.json.len() * 8 {
            let mut altered = scene.json.clone();
            altered[position / 8] ^= 1 << (position % 8);
            if let Ok(envelope) = serde_json::from_slice::<Envelope>(&altered) {
                let refused = scene.open(&envelope);
                assert!(refused.is_err(), "bit {position}: {}", String::from_utf8_lossy(&altered));
            }
        }
    }
}

#[test]
fn every_flipped_bit_is_refused_without_the_signature_too() {
    // Somebody who holds the sender's signing key, but not the resource key, alters the message and signs it again.
    for scene in &*SCENES {
        let fields: [fn(&mut Envelope) -> &mut Vec<u8>; 3] =
            [|envelope| &mut envelope.iv, |envelope| &mut envelope.ciphertext, |envelope| &mut envelope.mac];
        for field in fields {
            for position in 0..field(&mut scene.envelope.clone()).len() * 8 {
                let mut altered = scene.envelope.clone();
                field(&mut altered)[position / 8] ^= 1 << (position % 8);
                scene.sign_again(&mut altered);
                assert!(matches!(scene.open(&altered), Err(EnvelopeError::NotAuthentic(_))), "{position}");
            }
        }
        for altered in [
            Envelope { counter: 11, ..scene.envelope.clone() },
            Envelope {
                key_id: ResourceKey::from_bytes(&[1; 32]).unwrap().id(ROOM),
                ..scene.envelope.clone()
            },
        ] {
            let mut altered = altered;
            scene.sign_again(&mut altered);
            assert!(matches!(scene.open(&altered), Err(EnvelopeError::NotAuthentic(_))), "{altered:?}");
        }
    }
}

#[test]
fn an_envelope_moved_elsewhere_is_refused() {
    for scene in &*SCENES {
        let elsewhere = scene.envelope.open("!other", &scene.public, &scene.key);
        assert!(matches!(elsewhere, Err(EnvelopeError::Signature)));
        for (user, keybox) in [("@mallory:example.org", "ALICEBOX"), ("@alice:example.org", "OTHERBOX")] {
            // Even one that holds the very same signing key.
            let other =
                PublicKeySet { user_id: user.into(), keybox_id: keybox.into(), ..scene.public.clone() };
            let refused = scene.envelope.open(ROOM, &other, &scene.key);
            assert!(matches!(refused, Err(EnvelopeError::Signature)));
        }
        let stranger =
            PrivateKeySet::generate("@alice:example.org", "ALICEBOX", &mut OpensslEntropy).unwrap();
        let refused = scene.envelope.open(ROOM, &stranger.public().unwrap(), &scene.key);
        assert!(matches!(refused, Err(EnvelopeError::Signature)));
        let other_key = ResourceKey::generate(&mut OpensslEntropy).unwrap();
        let refused = scene.envelope.open(ROOM, &scene.public, &other_key);
        assert!(matches!(refused, Err(EnvelopeError::NotAuthentic(OpenError::NotAuthentic))));
    }
}

#[test]
fn an_envelope_passed_off_as_one_of_another_suite_is_refused() {
    for scene in &*SCENES {
        for other in SUITES.iter().filter(|other| other.id != scene.suite) {
            let mut altered = Envelope { algorithm: other.id.to_owned(), ..scene.envelope.clone() };
            assert!(matches!(scene.open(&altered), Err(EnvelopeError::Signature)));
            scene.sign_again(&mut altered);
            assert!(matches!(scene.open(&altered), Err(EnvelopeError::NotAuthentic(_))));
        }
        let altered = Envelope { algorithm: "com.trustner.keybox.v9".into(), ..scene.envelope.clone() };
        assert!(matches!(scene.open(&altered), Err(EnvelopeError::UnknownSuite(_))));
    }
}

#[test]
fn a_payload_for_another_room_is_refused() {
    // A sender that binds the envelope to this room but writes another, or no event, into it.
    for scene in &*SCENES {
        let other_room = r#"{"room_id":"!other","type":"m.room.message","content":{}}"#;
        for payload in [other_room, "{}", "", "no JSON"] {
            let mut envelope = scene.envelope.clone();
            let context = envelope.context(ROOM, scene.sender.user_id()).to_bytes();
            let suite = suite::find(scene.suite).unwrap();
            let sealed = suite.seal(&scene.key, &context, payload.into(), &mut OpensslEntropy).unwrap();
            (envelope.iv, envelope.ciphertext, envelope.mac) = (sealed.iv, sealed.ciphertext, sealed.mac);
            scene.sign_again(&mut envelope);
            assert!(matches!(scene.open(&envelope), Err(EnvelopeError::Payload)));
        }
    }
}

#[test]
fn each_message_has_its_own_iv_and_counters_end() {
    for Scene { suite, sender, key, .. } in &*SCENES {
        assert_ne!(seal(suite, sender, key, 0).iv, seal(suite, sender, key, 0).iv);
        assert_eq!(seal(suite, sender, key, MAX_INTEGER).counter, MAX_INTEGER);
        let payload = Payload { room_id: ROOM.into(), event_type: "m".into(), content: json!({}) };
        let request = SealRequest { suite, key, keys: sender, counter: MAX_INTEGER + 1 };
        let refused = Envelope::seal(request, &payload, &mut OpensslEntropy).unwrap_err();
        assert!(matches!(refused, SealError::CounterExhausted));
        let request = SealRequest { suite: "com.example", key, keys: sender, counter: 0 };
        let refused = Envelope::seal(request, &payload, &mut OpensslEntropy).unwrap_err();
        assert!(matches!(refused, SealError::UnknownSuite(_)));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_text_in_any_room_round_trips(
        scene in select((0..SUITES.len()).collect::<Vec<_>>()),
        body in ".*",
        room in "![a-z]{1,20}",
        counter in 0..=MAX_INTEGER,
    ) {
        let scene = &SCENES[scene];
        let payload = Payload {
            room_id: room.clone(),
            event_type: "m.room.message".to_owned(),
            content: json!({ "body": body }),
        };
        let request = SealRequest { suite: scene.suite, key: &scene.key, keys: &scene.sender, counter };
        let envelope = Envelope::seal(request, &payload, &mut OpensslEntropy).unwrap();
        prop_assert_eq!(envelope.open(&room, &scene.public, &scene.key).unwrap(), payload);
    }

    #[test]
    fn a_change_of_any_field_is_refused(
        scene in select((0..SUITES.len()).collect::<Vec<_>>()),
        iv in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..40)),
        mac in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..40)),
        ciphertext in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..200)),
        counter in proptest::option::of(any::<u64>()),
        signed_again in any::<bool>(),
    ) {
        let scene = &SCENES[scene];
        let mut envelope = scene.envelope.clone();
        if let Some(iv) = iv { envelope.iv = iv; }
        if let Some(mac) = mac { envelope.mac = mac; }
        if let Some(ciphertext) = ciphertext { envelope.ciphertext = ciphertext; }
        if let Some(counter) = counter { envelope.counter = counter; }
        prop_assume!(envelope != scene.envelope);
        if signed_again { scene.sign_again(&mut envelope); }
        prop_assert!(scene.open(&envelope).is_err());
    }

    #[test]
    fn a_replayed_envelope_is_refused(
        scene in select((0..SUITES.len()).collect::<Vec<_>>()),
        counters in proptest::collection::vec(0..50_u64, 1..20),
        events in proptest::collection::vec("[a-z]{1,2}", 20),
    ) {
        // Whatever order messages are posted in, and again: each counter counts under one event id only.
        let scene = &SCENES[scene];
        let mut guard = crate::replay::ReplayGuard::default();
        let mut first = std::collections::BTreeMap::new();
        for (counter, event) in counters.iter().zip(&events) {
            let envelope = seal(scene.suite, &scene.sender, &scene.key, *counter);
            prop_assert!(scene.open(&envelope).is_ok());
            let known = first.entry(envelope.counter).or_insert(event);
            prop_assert_eq!(guard.accept(envelope.counter, event).is_ok(), *known == event);
        }
    }
}
