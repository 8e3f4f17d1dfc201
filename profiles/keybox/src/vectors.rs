//! `vectors/v<version>.json`, one file a suite: made once by [`regenerate`], checked here and, without this crate, by
//! `vectors/check_cryptography.py` and (v1) `vectors/check-openssl.sh`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use openssl::pkey::{Id, PKey, Private};
use serde_json::json;

use crate::Entropy as _;
use crate::canonical_json::canonical_json;
use crate::context::{MessageContext, WrapContext};
use crate::encoding::{Fields, base64, from_base64, from_hex, hex};
use crate::entropy::tests::SeededEntropy;
use crate::envelope::{Envelope, Payload, SealRequest};
use crate::key_message::{KeyRequest, Origin, Recipient, RequestAction, audience_hash, sign, verify};
use crate::key_set::{PrivateKeySet, validate_device_keys};
use crate::primitives::{x25519, x25519_public};
use crate::resource_key::{ResourceKey, ResourceKeyId};
use crate::suite::{self, SUITES, Suite, hpke, v1, v2};

const ROOM: &str = "!r3UXd9oTgYpXnI3kCqhOPvYl4vJmWbPzJ0zvMGuTPHI";
const ALICE: (&str, &str) = ("@alice:example.org", "ALICEBOX");
const BOB: (&str, &str) = ("@bob:example.org", "BOBBOX");
const BOB_RECIPIENT: Recipient<'_> = Recipient { user_id: BOB.0, keybox_id: BOB.1 };
const CREATED_AT: u64 = 1_767_225_600_000;
const COUNTER: u64 = 7;

type Vectors = BTreeMap<String, String>;

fn path(suite: &Suite) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("vectors/v{}.json", suite.version))
}

fn entropy(suite: &Suite) -> SeededEntropy {
    SeededEntropy::new(&format!("keybox vectors v{}", suite.version))
}

fn wrap_context<'a>(suite: &'a Suite, key_id: &'a ResourceKeyId) -> WrapContext<'a> {
    WrapContext {
        suite: suite.id,
        room_id: ROOM,
        key_id,
        sender: ALICE.0,
        sender_keybox: ALICE.1,
        recipient: BOB.0,
        recipient_keybox: BOB.1,
    }
}

fn message_context(suite: &Suite, key: &ResourceKey) -> Vec<u8> {
    let key_id = key.id(ROOM);
    let context = MessageContext {
        suite: suite.id,
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

fn request(suite: &Suite, key: &ResourceKey) -> KeyRequest {
    KeyRequest {
        action: RequestAction::Request,
        request_id: "request-1".to_owned(),
        algorithm: suite.id.to_owned(),
        room_id: ROOM.to_owned(),
        key_id: key.id(ROOM),
        sender_keybox: ALICE.1.to_owned(),
    }
}

/// The values that only one suite has: keys that it derives, and the steps of its wrap.
fn own_values(
    suite: &Suite,
    key: &ResourceKey,
    bob: &PrivateKeySet,
    wrap: &[u8],
) -> Vec<(&'static str, String)> {
    match suite.id {
        suite::V1 => vec![
            ("recipient_rsa_private_pkcs8", base64(&bob.rsa.private_key_to_pkcs8().unwrap())),
            ("mac_key_hex", hex(&*v1::mac_key(key))),
        ],
        suite::V2 => {
            let enc = wrap.first_chunk::<32>().unwrap();
            let dh = x25519(&bob.x25519, enc).unwrap();
            let shared = hpke::shared_secret(&dh, enc, &x25519_public(&bob.x25519).unwrap());
            let info = wrap_context(suite, &key.id(ROOM)).to_bytes();
            let context = hpke::key_schedule(&shared, &info);
            vec![
                ("recipient_x25519_private_hex", hex(&bob.x25519.raw_private_key().unwrap())),
                ("hpke_enc_hex", hex(enc)),
                ("hpke_dh_hex", hex(&*dh)),
                ("hpke_shared_secret_hex", hex(&*shared)),
                ("hpke_key_schedule_context_hex", hex(&hpke::key_schedule_context(&info))),
                ("hpke_key_hex", hex(&*context.key)),
                ("hpke_base_nonce_hex", hex(&*context.base_nonce)),
                ("content_key_hex", hex(&*v2::content_key(key))),
            ]
        }
        other => panic!("no vectors for {other}"),
    }
}

/// Writes the vectors of one suite anew, named by its version in `KEYBOX_VECTORS`. RSA keys differ each time, so this is for a
/// new suite or a change of the profile only.
#[test]
#[ignore = "rewrites checked-in vectors"]
fn regenerate() {
    let version = std::env::var("KEYBOX_VECTORS").unwrap();
    let suite = SUITES.iter().find(|suite| suite.version.to_string() == version).unwrap();
    let entropy = &mut entropy(suite);
    let alice = PrivateKeySet::generate(ALICE.0, ALICE.1, entropy).unwrap();
    let bob = PrivateKeySet::generate(BOB.0, BOB.1, entropy).unwrap();
    let key = ResourceKey::generate(entropy).unwrap();
    let id = key.id(ROOM);
    let context = wrap_context(suite, &id);
    let wrap = suite.wrap(&key, &bob.public().unwrap(), &context, entropy).unwrap();
    let seal = SealRequest { suite: suite.id, key: &key, keys: &alice, counter: COUNTER };
    let envelope = Envelope::seal(seal, &payload(), entropy).unwrap();
    let audience = audience_hash([ALICE, BOB]);
    let origin = Origin::sign(&alice, suite.id, ROOM, &id, CREATED_AT, audience).unwrap();
    let request_json = sign(&request(suite, &key), &alice, BOB_RECIPIENT).unwrap();

    let values = [
        ("suite", suite.id.to_owned()),
        ("room_id", ROOM.to_owned()),
        ("sender", ALICE.0.to_owned()),
        ("sender_keybox", ALICE.1.to_owned()),
        ("recipient", BOB.0.to_owned()),
        ("recipient_keybox", BOB.1.to_owned()),
        ("sender_ed25519_private_hex", hex(&alice.ed25519.raw_private_key().unwrap())),
        ("sender_ed25519_public", base64(&alice.ed25519.raw_public_key().unwrap())),
        ("recipient_device_keys", canonical_json(&bob.device_keys().unwrap().into()).unwrap()),
        ("recipient_key_set_hash_hex", hex(&bob.public().unwrap().hash())),
        ("resource_key_hex", key.to_hex().to_string()),
        ("key_id", id.to_string()),
        ("wrap_context_hex", hex(&context.to_bytes())),
        ("wrap", base64(&wrap)),
        ("counter", COUNTER.to_string()),
        ("message_context_hex", hex(&message_context(suite, &key))),
        ("iv_hex", hex(&envelope.iv)),
        ("plaintext", serde_json::to_string(&payload()).unwrap()),
        ("ciphertext", base64(&envelope.ciphertext)),
        ("mac_hex", hex(&envelope.mac)),
        ("envelope_hash_hex", hex(&envelope.hash(ROOM, ALICE.0))),
        ("signature", base64(&envelope.signature)),
        ("envelope", canonical_json(&serde_json::to_value(&envelope).unwrap()).unwrap()),
        ("audience_hash", origin.audience.clone()),
        ("origin", canonical_json(&serde_json::to_value(&origin).unwrap()).unwrap()),
        ("key_request", canonical_json(&request_json).unwrap()),
    ];
    let own = own_values(suite, &key, &bob, &wrap);
    let vectors: Vectors =
        values.into_iter().chain(own).map(|(name, value)| (name.to_owned(), value)).collect();
    std::fs::write(path(suite), serde_json::to_string_pretty(&vectors).unwrap() + "\n").unwrap();
}

struct Loaded {
    suite: &'static Suite,
    vectors: Vectors,
    key: ResourceKey,
    alice: PrivateKeySet,
    bob: PrivateKeySet,
}

/// The vectors of every suite, with their keys. A key that a suite does not use is not in its file, and made up.
fn load() -> Vec<Loaded> {
    let raw =
        |text: &str, id: Id| PKey::private_key_from_raw_bytes(&*from_hex::<32>(text).unwrap(), id).unwrap();
    let load = |suite: &'static Suite| {
        let vectors: Vectors = serde_json::from_slice(&std::fs::read(path(suite)).unwrap()).unwrap();
        let key = ResourceKey::from_hex(&vectors["resource_key_hex"]).unwrap();
        let ed25519 = raw(&vectors["sender_ed25519_private_hex"], Id::ED25519);
        let rsa: PKey<Private> = match vectors.get("recipient_rsa_private_pkcs8") {
            Some(pkcs8) => PKey::private_key_from_pkcs8(&from_base64(pkcs8).unwrap()).unwrap(),
            None => PKey::from_rsa(openssl::rsa::Rsa::generate(2048).unwrap()).unwrap(),
        };
        let x25519 = match vectors.get("recipient_x25519_private_hex") {
            Some(private) => raw(private, Id::X25519),
            None => PKey::generate_x25519().unwrap(),
        };
        let whole = |(user, keybox): (&str, &str)| {
            PrivateKeySet::from_keys(user, keybox, ed25519.clone(), rsa.clone(), x25519.clone())
        };
        let (alice, bob) = (whole(ALICE), whole(BOB));
        Loaded { suite, vectors, key, alice, bob }
    };
    SUITES.iter().map(load).collect()
}

#[test]
fn the_key_its_id_and_its_wrap() {
    for Loaded { suite, vectors, key, bob, .. } in load() {
        let id = key.id(ROOM);
        let context = wrap_context(suite, &id);
        assert_eq!(vectors["suite"], suite.id);
        assert_eq!(id.as_str(), vectors["key_id"]);
        assert_eq!(hex(&context.to_bytes()), vectors["wrap_context_hex"]);
        let wrap = from_base64(&vectors["wrap"]).unwrap();
        assert_eq!(suite.unwrap(&wrap, &bob, &context).unwrap(), key);
        for (name, value) in own_values(suite, &key, &bob, &wrap) {
            assert_eq!(value, vectors[name], "{name}");
        }
    }
}

#[test]
fn the_key_set() {
    for Loaded { vectors, .. } in load() {
        let device_keys = serde_json::from_str(&vectors["recipient_device_keys"]).unwrap();
        let public = validate_device_keys(BOB.0, BOB.1, &device_keys).unwrap().unwrap();
        assert_eq!(hex(&public.hash()), vectors["recipient_key_set_hash_hex"]);
    }
}

#[test]
fn the_envelope_with_its_intermediate_values() {
    for Loaded { suite, vectors, key, alice, .. } in load() {
        let public = alice.public().unwrap();
        assert_eq!(base64(&public.ed25519), vectors["sender_ed25519_public"]);
        assert_eq!(hex(&message_context(suite, &key)), vectors["message_context_hex"]);
        let envelope: Envelope = serde_json::from_str(&vectors["envelope"]).unwrap();
        assert_eq!(hex(&envelope.iv), vectors["iv_hex"]);
        assert_eq!(base64(&envelope.ciphertext), vectors["ciphertext"]);
        assert_eq!(hex(&envelope.mac), vectors["mac_hex"]);
        assert_eq!(hex(&envelope.hash(ROOM, ALICE.0)), vectors["envelope_hash_hex"]);
        assert_eq!(base64(&envelope.signature), vectors["signature"]);
        assert_eq!(envelope.open(ROOM, &public, &key).unwrap(), payload());
        assert_eq!(serde_json::from_str::<Payload>(&vectors["plaintext"]).unwrap(), payload());
    }
}

#[test]
fn the_same_randomness_gives_the_same_envelope_and_the_same_hpke_wrap() {
    for Loaded { suite, vectors, key, alice, bob } in load() {
        let entropy = &mut entropy(suite);
        // Two key sets of two seeds, and the resource key, were drawn first.
        for _ in 0..5 {
            entropy.fill(&mut [0; 32]).unwrap();
        }
        // The seed of OAEP in v1.json was OpenSSL's own.
        if suite.id != suite::V1 {
            let id = key.id(ROOM);
            let context = wrap_context(suite, &id);
            let wrap = suite.wrap(&key, &bob.public().unwrap(), &context, entropy).unwrap();
            assert_eq!(base64(&wrap), vectors["wrap"]);
        }
        let seal = SealRequest { suite: suite.id, key: &key, keys: &alice, counter: COUNTER };
        let envelope = Envelope::seal(seal, &payload(), entropy).unwrap();
        assert_eq!(envelope, serde_json::from_str(&vectors["envelope"]).unwrap());
    }
}

#[test]
fn the_key_messages() {
    for Loaded { suite, vectors, key, alice, .. } in load() {
        let public = alice.public().unwrap();
        let (id, audience) = (key.id(ROOM), audience_hash([ALICE, BOB]));
        assert_eq!(audience, vectors["audience_hash"]);
        let origin: Origin = serde_json::from_str(&vectors["origin"]).unwrap();
        let again = Origin::sign(&alice, suite.id, ROOM, &id, CREATED_AT, audience);
        assert_eq!(origin, again.unwrap());
        assert!(origin.verify(&public, suite.id, ROOM, &id).unwrap());
        let content = serde_json::from_str(&vectors["key_request"]).unwrap();
        let request = request(suite, &key);
        assert_eq!(verify::<KeyRequest>(&content, &public, BOB_RECIPIENT).unwrap(), request);
        let covered = canonical_json(&serde_json::to_value(request).unwrap()).unwrap();
        let signed = Fields::new("com.trustner.keybox.key_message")
            .text("com.trustner.keybox.resource_key_request")
            .text(ALICE.0)
            .text(BOB.0)
            .text(BOB.1)
            .text(&covered);
        let signature = from_base64(content["signature"].as_str().unwrap()).unwrap();
        assert!(public.verify(signed.as_slice(), &signature).unwrap());
    }
}

#[test]
fn the_openssl_command_line_agrees() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/vectors/check-openssl.sh");
    let output = std::process::Command::new("bash").arg(script).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    let folder = tempfile::tempdir().unwrap();
    let altered = folder.path().join("altered.json");
    let text = std::fs::read_to_string(path(suite::find(suite::V1).unwrap())).unwrap();
    let counter = format!("\"counter\": \"{COUNTER}\"");
    assert!(text.contains(&counter));
    std::fs::write(&altered, text.replace(&counter, "\"counter\": \"8\"")).unwrap();
    let output = std::process::Command::new("bash").arg(script).arg(&altered).output().unwrap();
    assert!(!output.status.success(), "an altered vector passed");
}
