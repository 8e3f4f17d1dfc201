//! `vectors/closing.json`: a room that is closed, let a KeyBox in, opened and closed again. Made once by [`regenerate`], checked here
//! and, without this crate, by `vectors/check_cryptography.py`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use openssl::pkey::{Id, PKey};
use serde_json::Value;

use super::*;
use crate::canonical_json::canonical_json;
use crate::encoding::{Fields, base64, from_hex, hex};
use crate::entropy::tests::SeededEntropy;
use crate::key_set::{PrivateKeySet, PublicKeySet, validate_device_keys};

type Vectors = BTreeMap<String, String>;

const ROOM: &str = "!r3UXd9oTgYpXnI3kCqhOPvYl4vJmWbPzJ0zvMGuTPHI";
const ALICE: &str = "@alice:example.org";
const BOB: &str = "@bob:example.org";
/// Names in the file, users, KeyBox ids.
const KEYBOXES: [(&str, &str, &str); 3] =
    [("alice", ALICE, "ALICEBOX"), ("bob", BOB, "BOBBOX"), ("phone", ALICE, "ALICEPHONE")];
const FIRST_AT: u64 = 1_767_225_600_000;

/// What is taken, by which of [`KEYBOXES`]; the KeyBoxes and moderators that it names, and its limit.
type Taken = (Action, usize, &'static [usize], &'static [&'static str], Option<u64>);
const STEPS: [Taken; 4] = [
    (Action::Close, 0, &[0, 1], &[ALICE, BOB], Some(5)),
    (Action::Approve, 1, &[2], &[], None),
    (Action::Open, 2, &[], &[], None),
    (Action::Close, 1, &[0, 1], &[BOB], None),
];

fn path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("vectors/closing.json")
}

fn canonical(value: &impl serde::Serialize) -> String {
    canonical_json(&serde_json::to_value(value).unwrap()).unwrap()
}

/// The byte strings under the hash and the signature of a step, as section 24.1 has them.
fn covered(step: &SignedStep) -> (Vec<u8>, Vec<u8>) {
    let mut unsigned = step.json().as_object().unwrap().clone();
    unsigned.remove("signature");
    let hashed = Fields::new("com.trustner.keybox.closing_step").text(ROOM).text(&canonical(&unsigned));
    let Mark { generation, hash, user_id, keybox_id, .. } = step.mark();
    let signed = Fields::new("com.trustner.keybox.closing").text(ROOM).number(generation);
    let signed = signed.text(&hash).text(&user_id).text(&keybox_id);
    (hashed.into_vec(), signed.into_vec())
}

/// The steps as these keys sign them, each with the content that it makes.
fn taken(keys: &[PrivateKeySet], names: &[String]) -> Vec<(SignedStep, Content)> {
    let mut taken: Vec<(SignedStep, Content)> = Vec::new();
    for (at, (action, by, keyboxes, moderators, limit)) in (FIRST_AT..).step_by(60_000).zip(STEPS) {
        let last = taken.last().map(|(step, _)| step.mark());
        let keyboxes: BTreeSet<_> = keyboxes.iter().map(|index| names[*index].clone()).collect();
        let step = Step {
            action,
            generation: last.as_ref().map_or(1, |last| last.generation + 1),
            prev: last.map(|last| last.hash).unwrap_or_default(),
            user_id: KEYBOXES[by].1.to_owned(),
            keybox_id: KEYBOXES[by].2.to_owned(),
            at,
            keyboxes: keyboxes.into_iter().collect(),
            moderators: moderators.iter().map(|user_id| (*user_id).to_owned()).collect(),
            limit,
        };
        let step = SignedStep::sign(ROOM, &step, &keys[by]).unwrap();
        let content = Content::with(taken.last().map(|(_, content)| content), step.clone()).unwrap();
        taken.push((step, content));
    }
    taken
}

fn step_values(taken: &[(SignedStep, Content)]) -> Vectors {
    let mut values = Vectors::new();
    for (index, (step, content)) in taken.iter().enumerate() {
        let (hashed, signed) = covered(step);
        for (name, value) in [
            ("", canonical(step.json())),
            ("_hash_input_hex", hex(&hashed)),
            ("_hash", step.mark().hash),
            ("_signature_input_hex", hex(&signed)),
            ("_mark", canonical(&step.mark())),
            ("_content", canonical(&content.to_json())),
        ] {
            values.insert(format!("step_{}{name}", index + 1), value);
        }
    }
    values
}

/// Writes the vectors anew. RSA keys differ each time, so this is for a change of the profile only.
#[test]
#[ignore = "rewrites checked-in vectors"]
fn regenerate() {
    let entropy = &mut SeededEntropy::new("keybox vectors closing");
    let generate = |(_, user, keybox): (&str, &str, &str)| PrivateKeySet::generate(user, keybox, entropy);
    let keys: Vec<_> = KEYBOXES.map(generate).into_iter().map(Result::unwrap).collect();
    let names: Vec<_> = keys.iter().map(|keys| key_set_id(&keys.public().unwrap().hash())).collect();
    let mut vectors = step_values(&taken(&keys, &names));
    vectors.insert("room_id".to_owned(), ROOM.to_owned());
    for ((owner, ..), keys) in KEYBOXES.iter().zip(&keys) {
        let device_keys = canonical(&keys.device_keys().unwrap());
        vectors.insert(format!("{owner}_device_keys"), device_keys);
        vectors.insert(format!("{owner}_ed25519_private_hex"), hex(&keys.ed25519.raw_private_key().unwrap()));
        vectors.insert(format!("{owner}_keybox"), key_set_id(&keys.public().unwrap().hash()));
    }
    std::fs::write(path(), serde_json::to_string_pretty(&vectors).unwrap() + "\n").unwrap();
}

fn load() -> (Vectors, Vec<PublicKeySet>) {
    let vectors: Vectors = serde_json::from_slice(&std::fs::read(path()).unwrap()).unwrap();
    let public = KEYBOXES.map(|(owner, user, keybox)| {
        let device_keys = serde_json::from_str(&vectors[&format!("{owner}_device_keys")]).unwrap();
        validate_device_keys(user, keybox, &device_keys).unwrap().unwrap()
    });
    (vectors, public.to_vec())
}

#[test]
fn the_same_steps_give_the_same_bytes() {
    let (mut vectors, public) = load();
    let names: Vec<_> = public.iter().map(|keys| key_set_id(&keys.hash())).collect();
    let keys: Vec<_> = KEYBOXES
        .iter()
        .map(|(owner, user, keybox)| {
            let seed = from_hex::<32>(&vectors[&format!("{owner}_ed25519_private_hex")]).unwrap();
            let ed25519 = PKey::private_key_from_raw_bytes(&*seed, Id::ED25519).unwrap();
            // Steps are only signed: the other keys of the set stand for those that are not in the file.
            let other = PrivateKeySet::generate(user, keybox, &mut crate::OpensslEntropy).unwrap();
            PrivateKeySet::from_keys(user, keybox, ed25519, other.rsa.clone(), other.x25519.clone())
        })
        .collect();
    assert_eq!(vectors.remove("room_id").unwrap(), ROOM);
    for ((owner, ..), (name, (public, keys))) in
        KEYBOXES.iter().zip(names.iter().zip(public.iter().zip(&keys)))
    {
        assert_eq!(vectors.remove(&format!("{owner}_keybox")).as_ref(), Some(name));
        assert_eq!(keys.ed25519.raw_public_key().unwrap(), public.ed25519);
        vectors.retain(|member, _| !member.starts_with(&format!("{owner}_")));
    }
    assert_eq!(step_values(&taken(&keys, &names)), vectors);
}

#[test]
fn what_is_read_holds_as_the_steps_say() {
    let (vectors, public) = load();
    let value = |name: &str| serde_json::from_str::<Value>(&vectors[name]).unwrap();
    let mut before: Option<Content> = None;
    for (number, (action, by, ..)) in (1..).zip(STEPS) {
        let content = Content::read(ROOM, &value(&format!("step_{number}_content"))).unwrap();
        let step = SignedStep::read(ROOM, &value(&format!("step_{number}"))).unwrap();
        assert_eq!(content.steps().last(), Some(&step));
        let (hashed, signed) = covered(&step);
        assert_eq!(step.mark().hash, base64_url(&crate::sha256(&hashed)));
        assert!(public[by].verify(&signed, &step.mark().signature).unwrap());
        let mark: Mark = serde_json::from_str(&vectors[&format!("step_{number}_mark")]).unwrap();
        assert_eq!(mark, step.mark());
        assert_eq!(base64(&mark.signature), value(&format!("step_{number}"))["signature"]);
        for (index, keys) in public.iter().enumerate() {
            assert_eq!(mark.is_signed_by(ROOM, keys).unwrap(), index == by);
        }
        if let Some(before) = &before {
            assert_eq!(content.step_after(before), Some(&step));
        }
        let now = Closing::of(&content).unwrap();
        assert_eq!((now.closed, now.limit), (action != Action::Open, (number < 3).then_some(5)));
        let admitted = public.iter().map(|keys| now.admits(&key_set_id(&keys.hash())));
        assert_eq!(admitted.collect::<Vec<_>>(), [true, true, number == 2 || number == 3]);
        before = Some(content);
    }
    assert_eq!(before.unwrap().steps().len(), 3, "the closing before is left out");
}
