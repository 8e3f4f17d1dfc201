//! `vectors/v1.json`: made once by [`regenerate`], checked here and, without this crate, by `vectors/check-openssl.sh`.

use std::collections::BTreeMap;

use openssl::pkey::{Id, PKey};
use serde_json::json;

use crate::canonical_json::canonical_json;
use crate::context::{MessageContext, WrapContext};
use crate::encoding::{Fields, base64, from_base64, from_hex, hex};
use crate::entropy::tests::SeededEntropy;
use crate::envelope::{Envelope, Payload, SealRequest};
use crate::key_message::{KeyRequest, Origin, Recipient, RequestAction, audience_hash, sign, verify};
use crate::key_set::{PrivateKeySet, validate_device_keys};
use crate::resource_key::ResourceKey;
use crate::suite::{self, mac_key};
use crate::{Entropy as _, OpensslEntropy};

const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/vectors/v1.json");
const ROOM: &str = "!r3UXd9oTgYpXnI3kCqhOPvYl4vJmWbPzJ0zvMGuTPHI";
const ALICE: (&str, &str) = ("@alice:example.org", "ALICEBOX");
const BOB: (&str, &str) = ("@bob:example.org", "BOBBOX");
const BOB_RECIPIENT: Recipient<'_> = Recipient { user_id: BOB.0, keybox_id: BOB.1 };
const CREATED_AT: u64 = 1_767_225_600_000;
const COUNTER: u64 = 7;

type Vectors = BTreeMap<String, String>;

fn wrap_context(key: &ResourceKey) -> Vec<u8> {
    let key_id = key.id(ROOM);
    with_wrap_context(&key_id, |context| context.to_bytes())
}

fn with_wrap_context<T>(
    key_id: &crate::resource_key::ResourceKeyId,
    use_it: impl Fn(&WrapContext<'_>) -> T,
) -> T {
    use_it(&WrapContext {
        suite: suite::V1,
        room_id: ROOM,
        key_id,
        sender: ALICE.0,
        sender_keybox: ALICE.1,
        recipient: BOB.0,
        recipient_keybox: BOB.1,
    })
}

fn message_context(key: &ResourceKey) -> Vec<u8> {
    let key_id = key.id(ROOM);
    let context = MessageContext {
        suite: suite::V1,
        room_id: ROOM,
        key_id: &key_id,
        sender: ALICE.0,
        sender_keybox: ALICE.1,
        counter: COUNTER,
    };
    context.to_bytes()
}

fn payload() -> Payload {
    Payload {
        room_id: ROOM.to_owned(),
        event_type: "m.room.message".to_owned(),
        content: json!({ "body": "Grüße aus Reutlingen", "msgtype": "m.text" }),
    }
}

fn request(key: &ResourceKey) -> KeyRequest {
    KeyRequest {
        action: RequestAction::Request,
        request_id: "request-1".to_owned(),
        algorithm: suite::V1.to_owned(),
        room_id: ROOM.to_owned(),
        key_id: key.id(ROOM),
        sender_keybox: ALICE.1.to_owned(),
    }
}

/// Writes `vectors/v1.json` anew. RSA keys and OAEP seeds differ each time, so this is for a change of the profile only.
#[test]
#[ignore = "rewrites the checked-in vectors"]
fn regenerate() {
    let entropy = &mut SeededEntropy::new("keybox vectors v1");
    let alice = PrivateKeySet::generate(ALICE.0, ALICE.1, entropy).unwrap();
    let bob = PrivateKeySet::generate(BOB.0, BOB.1, entropy).unwrap();
    let key = ResourceKey::generate(entropy).unwrap();
    let suite = suite::find(suite::V1).unwrap();
    let wrap = with_wrap_context(&key.id(ROOM), |context| {
        suite.wrap(&key, &bob.public().unwrap(), context, &mut OpensslEntropy).unwrap()
    });
    let seal = SealRequest { suite: suite::V1, key: &key, keys: &alice, counter: COUNTER };
    let envelope = Envelope::seal(seal, &payload(), entropy).unwrap();
    let audience = audience_hash([ALICE, BOB]);
    let origin = Origin::sign(&alice, suite::V1, ROOM, &key.id(ROOM), CREATED_AT, audience).unwrap();
    let request_json = sign(&request(&key), &alice, BOB_RECIPIENT).unwrap();

    let values = [
        ("suite", suite::V1.to_owned()),
        ("room_id", ROOM.to_owned()),
        ("sender", ALICE.0.to_owned()),
        ("sender_keybox", ALICE.1.to_owned()),
        ("recipient", BOB.0.to_owned()),
        ("recipient_keybox", BOB.1.to_owned()),
        ("sender_ed25519_private_hex", hex(&alice.ed25519.raw_private_key().unwrap())),
        ("sender_ed25519_public", base64(&alice.ed25519.raw_public_key().unwrap())),
        ("recipient_rsa_private_pkcs8", base64(&bob.rsa.private_key_to_pkcs8().unwrap())),
        ("recipient_device_keys", canonical_json(&bob.device_keys().unwrap().into()).unwrap()),
        ("recipient_key_set_hash_hex", hex(&bob.public().unwrap().hash())),
        ("resource_key_hex", key.to_hex().to_string()),
        ("key_id", key.id(ROOM).to_string()),
        ("wrap_context_hex", hex(&wrap_context(&key))),
        ("wrap", base64(&wrap)),
        ("counter", COUNTER.to_string()),
        ("message_context_hex", hex(&message_context(&key))),
        ("iv_hex", hex(&envelope.iv)),
        ("plaintext", serde_json::to_string(&payload()).unwrap()),
        ("ciphertext", base64(&envelope.ciphertext)),
        ("mac_key_hex", hex(&*mac_key(&key).unwrap())),
        ("mac_hex", hex(&envelope.mac)),
        ("envelope_hash_hex", hex(&envelope.hash(ROOM, ALICE.0))),
        ("signature", base64(&envelope.signature)),
        ("envelope", canonical_json(&serde_json::to_value(&envelope).unwrap()).unwrap()),
        ("audience_hash", origin.audience.clone()),
        ("origin", canonical_json(&serde_json::to_value(&origin).unwrap()).unwrap()),
        ("key_request", canonical_json(&request_json).unwrap()),
    ];
    let vectors: Vectors = values.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    std::fs::write(PATH, serde_json::to_string_pretty(&vectors).unwrap() + "\n").unwrap();
}

struct Loaded {
    vectors: Vectors,
    key: ResourceKey,
    alice: PrivateKeySet,
    bob: PrivateKeySet,
}

fn load() -> Loaded {
    let vectors: Vectors = serde_json::from_str(include_str!("../vectors/v1.json")).unwrap();
    let key = ResourceKey::from_hex(&vectors["resource_key_hex"]).unwrap();
    let seed = from_hex::<32>(&vectors["sender_ed25519_private_hex"]).unwrap();
    let ed25519 = PKey::private_key_from_raw_bytes(&*seed, Id::ED25519).unwrap();
    let rsa =
        PKey::private_key_from_pkcs8(&from_base64(&vectors["recipient_rsa_private_pkcs8"]).unwrap()).unwrap();
    let x25519 = PKey::generate_x25519().unwrap();
    let whole = |(user, keybox): (&str, &str)| {
        PrivateKeySet::from_keys(user, keybox, ed25519.clone(), rsa.clone(), x25519.clone())
    };
    let (alice, bob) = (whole(ALICE), whole(BOB));
    Loaded { vectors, key, alice, bob }
}

#[test]
fn the_key_its_id_and_its_wrap() {
    let Loaded { vectors, key, bob, .. } = load();
    let id = key.id(ROOM);
    assert_eq!(id.as_str(), vectors["key_id"]);
    assert_eq!(hex(&wrap_context(&key)), vectors["wrap_context_hex"]);
    let wrap = from_base64(&vectors["wrap"]).unwrap();
    let suite = suite::find(&vectors["suite"]).unwrap();
    assert_eq!(with_wrap_context(&id, |context| suite.unwrap(&wrap, &bob, context).unwrap()), key);
}

#[test]
fn the_key_set() {
    let Loaded { vectors, .. } = load();
    let device_keys = serde_json::from_str(&vectors["recipient_device_keys"]).unwrap();
    let public = validate_device_keys(BOB.0, BOB.1, &device_keys).unwrap().unwrap();
    assert_eq!(hex(&public.hash()), vectors["recipient_key_set_hash_hex"]);
}

#[test]
fn the_envelope_with_its_intermediate_values() {
    let Loaded { vectors, key, alice, .. } = load();
    let public = alice.public().unwrap();
    assert_eq!(base64(&public.ed25519), vectors["sender_ed25519_public"]);
    assert_eq!(hex(&message_context(&key)), vectors["message_context_hex"]);
    assert_eq!(hex(&*mac_key(&key).unwrap()), vectors["mac_key_hex"]);
    let envelope: Envelope = serde_json::from_str(&vectors["envelope"]).unwrap();
    assert_eq!(hex(&envelope.iv), vectors["iv_hex"]);
    assert_eq!(base64(&envelope.ciphertext), vectors["ciphertext"]);
    assert_eq!(hex(&envelope.mac), vectors["mac_hex"]);
    assert_eq!(hex(&envelope.hash(ROOM, ALICE.0)), vectors["envelope_hash_hex"]);
    assert_eq!(base64(&envelope.signature), vectors["signature"]);
    assert_eq!(envelope.open(ROOM, &public, &key).unwrap(), payload());
    assert_eq!(serde_json::from_str::<Payload>(&vectors["plaintext"]).unwrap(), payload());
}

#[test]
fn sealing_again_with_the_same_randomness_gives_the_same_envelope() {
    let Loaded { vectors, key, alice, .. } = load();
    let entropy = &mut SeededEntropy::new("keybox vectors v1");
    // Two key sets of two seeds, and the resource key, were drawn before the IV.
    for _ in 0..5 {
        entropy.fill(&mut [0; 32]).unwrap();
    }
    let seal = SealRequest { suite: suite::V1, key: &key, keys: &alice, counter: COUNTER };
    let envelope = Envelope::seal(seal, &payload(), entropy).unwrap();
    assert_eq!(envelope, serde_json::from_str(&vectors["envelope"]).unwrap());
}

#[test]
fn the_key_messages() {
    let Loaded { vectors, key, alice, .. } = load();
    let public = alice.public().unwrap();
    assert_eq!(audience_hash([ALICE, BOB]), vectors["audience_hash"]);
    let origin: Origin = serde_json::from_str(&vectors["origin"]).unwrap();
    let again =
        Origin::sign(&alice, suite::V1, ROOM, &key.id(ROOM), CREATED_AT, vectors["audience_hash"].clone());
    assert_eq!(origin, again.unwrap());
    assert!(origin.verify(&public, suite::V1, ROOM, &key.id(ROOM)).unwrap());
    let content = serde_json::from_str(&vectors["key_request"]).unwrap();
    assert_eq!(verify::<KeyRequest>(&content, &public, BOB_RECIPIENT).unwrap(), request(&key));
    let covered = canonical_json(&serde_json::to_value(request(&key)).unwrap()).unwrap();
    let signed = Fields::new("com.trustner.keybox.key_message")
        .text("com.trustner.keybox.resource_key_request")
        .text(ALICE.0)
        .text(BOB.0)
        .text(BOB.1)
        .text(&covered);
    let signature = from_base64(content["signature"].as_str().unwrap()).unwrap();
    assert!(public.verify(signed.as_slice(), &signature).unwrap());
}

#[test]
fn the_openssl_command_line_agrees() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/vectors/check-openssl.sh");
    let output = std::process::Command::new("bash").arg(script).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    let folder = tempfile::tempdir().unwrap();
    let altered = folder.path().join("altered.json");
    let text = std::fs::read_to_string(PATH).unwrap();
    let counter = format!("\"counter\": \"{COUNTER}\"");
    assert!(text.contains(&counter));
    std::fs::write(&altered, text.replace(&counter, "\"counter\": \"8\"")).unwrap();
    let output = std::process::Command::new("bash").arg(script).arg(&altered).output().unwrap();
    assert!(!output.status.success(), "an altered vector passed");
}
