//! What every suite of the table must do.

use std::sync::LazyLock;

use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

use super::*;
use crate::OpensslEntropy;
use crate::resource_key::ResourceKeyId;

fn keybox() -> PrivateKeySet {
    PrivateKeySet::generate("@a:x", "A", &mut OpensslEntropy).unwrap()
}

fn context<'a>(suite: &'a Suite, key_id: &'a ResourceKeyId) -> WrapContext<'a> {
    WrapContext {
        suite: suite.id,
        room_id: "!r",
        key_id,
        sender: "@b:x",
        sender_keybox: "B",
        recipient: "@a:x",
        recipient_keybox: "A",
    }
}

#[test]
fn identifiers_are_unique_and_versions_grow() {
    assert_eq!(SUITES.iter().map(|suite| suite.id).collect::<Vec<_>>(), [V1, V2]);
    for (before, after) in SUITES.iter().zip(&SUITES[1..]) {
        assert!(before < after && before != after);
    }
    assert_eq!(find(V2).unwrap().version, 2);
    assert_eq!(find(V1), SUITES.first());
    assert!(find("com.trustner.keybox.v3").is_none());
    assert!(SUITES.iter().all(|suite| is_keybox_suite(suite.id)));
    assert!(is_keybox_suite("com.trustner.keybox.v3"));
    assert!(!is_keybox_suite("m.megolm.v1.aes-sha2"));
}

#[test]
fn a_wrap_opens_for_its_context_only() {
    let keys = keybox();
    let stranger = keybox();
    let key = ResourceKey::generate(&mut OpensslEntropy).unwrap();
    let (id, other_id) = (key.id("!r"), key.id("!s"));
    for suite in SUITES {
        let context = context(suite, &id);
        let wrapped = suite.wrap(&key, &keys.public().unwrap(), &context, &mut OpensslEntropy).unwrap();
        assert_eq!(wrapped.len(), if suite.id == V1 { 256 } else { 80 });
        assert_eq!(suite.unwrap(&wrapped, &keys, &context).unwrap(), key);
        let moved = [
            WrapContext { suite: "v9", ..context },
            WrapContext { room_id: "!s", ..context },
            WrapContext { key_id: &other_id, ..context },
            WrapContext { room_id: "!s", key_id: &other_id, ..context },
            WrapContext { sender: "@c:x", ..context },
            WrapContext { sender_keybox: "C", ..context },
            WrapContext { recipient: "@c:x", ..context },
            WrapContext { recipient_keybox: "C", ..context },
        ];
        for elsewhere in moved {
            let refused = suite.unwrap(&wrapped, &keys, &elsewhere);
            assert!(matches!(refused, Err(OpenError::NotAuthentic)), "{elsewhere:?}");
        }
        assert!(matches!(suite.unwrap(&wrapped, &stranger, &context), Err(OpenError::NotAuthentic)));
        for other in SUITES.iter().filter(|other| other.id != suite.id) {
            assert!(matches!(other.unwrap(&wrapped, &keys, &context), Err(OpenError::NotAuthentic)));
        }
    }
}

#[test]
fn a_key_that_does_not_belong_to_its_id_is_refused() {
    let keys = keybox();
    let key = ResourceKey::generate(&mut OpensslEntropy).unwrap();
    let other_id = ResourceKey::generate(&mut OpensslEntropy).unwrap().id("!r");
    for suite in SUITES {
        // The sender itself lies about the id, in the context too.
        let context = context(suite, &other_id);
        let wrapped = suite.wrap(&key, &keys.public().unwrap(), &context, &mut OpensslEntropy).unwrap();
        assert!(matches!(suite.unwrap(&wrapped, &keys, &context), Err(OpenError::NotAuthentic)));
    }
}

#[test]
fn nothing_is_wrapped_for_a_keybox_that_does_not_speak_the_suite() {
    let key = ResourceKey::generate(&mut OpensslEntropy).unwrap();
    let id = key.id("!r");
    for suite in SUITES {
        let mut public = keybox().public().unwrap();
        public.algorithms.retain(|spoken| spoken != suite.id);
        assert!(!suite.is_spoken_by(&public));
        let refused = suite.wrap(&key, &public, &context(suite, &id), &mut OpensslEntropy);
        assert!(matches!(refused, Err(WrapError::NotSpoken)));
    }
    let mut without_key = keybox().public().unwrap();
    without_key.x25519 = None;
    let v2 = find(V2).unwrap();
    let refused = v2.wrap(&key, &without_key, &context(v2, &id), &mut OpensslEntropy);
    assert!(matches!(refused, Err(WrapError::NotSpoken)));
}

#[test]
fn content_opens_for_its_context_and_key_only() {
    let key = ResourceKey::generate(&mut OpensslEntropy).unwrap();
    let other = ResourceKey::generate(&mut OpensslEntropy).unwrap();
    for suite in SUITES {
        for text in ["", "x", "a text that is longer than one block of the cipher"] {
            let seal = || suite.seal(&key, b"here", text.into(), &mut OpensslEntropy).unwrap();
            let sealed = seal();
            assert_ne!(sealed.iv, seal().iv);
            assert_eq!(sealed.ciphertext.len(), text.len());
            assert_eq!(*suite.open(&key, b"here", sealed.clone()).unwrap(), text.as_bytes());
            assert!(suite.open(&key, b"there", sealed.clone()).is_err());
            assert!(suite.open(&other, b"here", sealed.clone()).is_err());
            let cut = |bytes: &[u8]| bytes.split_last().map(|(_, rest)| rest.to_vec()).unwrap_or_default();
            for altered in [
                Sealed { iv: cut(&sealed.iv), ..sealed.clone() },
                Sealed { mac: cut(&sealed.mac), ..sealed.clone() },
                Sealed { mac: Vec::new(), ..sealed.clone() },
                Sealed { ciphertext: [&sealed.ciphertext[..], &[0]].concat(), ..sealed.clone() },
            ] {
                assert!(matches!(suite.open(&key, b"here", altered), Err(OpenError::NotAuthentic)));
            }
        }
    }
}

/// With a seed and an ephemeral key of its own for each.
#[test]
fn wraps_for_many_keyboxes_open_each_for_its_own_and_none_is_like_another() {
    let (keys, key) = ([keybox(), keybox()], ResourceKey::generate(&mut OpensslEntropy).unwrap());
    let id = key.id("!r");
    let public: Vec<_> = keys.iter().map(|keys| keys.public().unwrap()).collect();
    let mut silent = public[0].clone();
    silent.algorithms.clear();
    let names: Vec<_> = (0..100).map(|number| format!("BOX{number}")).collect();
    for suite in SUITES {
        let here = |name| WrapContext { recipient_keybox: name, ..context(suite, &id) };
        let mut recipients: Vec<_> =
            names.iter().zip(public.iter().cycle()).map(|(name, public)| (public, here(name))).collect();
        recipients[50].0 = &silent;
        let wraps = suite.wrap_all(&key, &recipients, &mut OpensslEntropy).unwrap();
        assert_eq!(wraps.len(), recipients.len());
        let mut beginnings = std::collections::BTreeSet::new();
        for (index, wrap) in wraps.iter().enumerate() {
            if index == 50 {
                assert!(matches!(wrap, Err(WrapError::NotSpoken)));
                continue;
            }
            let wrap = wrap.as_ref().unwrap();
            assert_eq!(suite.unwrap(wrap, &keys[index % 2], &recipients[index].1).unwrap(), key);
            assert!(suite.unwrap(wrap, &keys[index % 2], &recipients[(index + 2) % 100].1).is_err());
            assert!(beginnings.insert(wrap[..32].to_vec()), "two have the same {index}");
        }
        let wrap = |entropy| suite.wrap(&key, &public[0], &here("BOX"), entropy).unwrap();
        assert_ne!(wrap(&mut OpensslEntropy)[..32], wrap(&mut OpensslEntropy)[..32]);
        assert!(suite.wrap_all(&key, &[], &mut OpensslEntropy).unwrap().is_empty());
    }
}

/// What is kept beside a resource key is that of the suite that asks for it.
#[test]
fn a_key_that_is_used_with_two_suites_serves_each_as_a_new_one_does() {
    let bytes = [9; 32];
    let key = ResourceKey::from_bytes(&bytes).unwrap();
    for suite in [&SUITES[1], &SUITES[0], &SUITES[1]] {
        let new = ResourceKey::from_bytes(&bytes).unwrap();
        let sealed = suite.seal(&key, b"here", b"text".to_vec(), &mut OpensslEntropy).unwrap();
        assert_eq!(*suite.open(&new, b"here", sealed).unwrap(), b"text");
        let sealed = suite.seal(&new, b"here", b"text".to_vec(), &mut OpensslEntropy).unwrap();
        assert_eq!(*suite.open(&key.clone(), b"here", sealed).unwrap(), b"text");
        // Of the first suite only: a key serves one, as a rule.
        assert_eq!([1, 2].map(|version| key.prepared(version).is_some()), [false, true]);
    }
}

/// One wrap of each suite with its keys: what the properties below alter and move.
struct Wrapped {
    suite: &'static Suite,
    keys: PrivateKeySet,
    key: ResourceKey,
    wrap: Vec<u8>,
}

static WRAPPED: LazyLock<Vec<Wrapped>> = LazyLock::new(|| {
    let wrapped = |suite: &'static Suite| {
        let (keys, key) = (keybox(), ResourceKey::generate(&mut OpensslEntropy).unwrap());
        let (id, public) = (key.id("!r"), keys.public().unwrap());
        let wrap = suite.wrap(&key, &public, &context(suite, &id), &mut OpensslEntropy).unwrap();
        Wrapped { suite, keys, key, wrap }
    };
    SUITES.iter().map(wrapped).collect()
});

#[test]
fn every_flipped_bit_of_a_wrap_is_refused() {
    for Wrapped { suite, keys, key, wrap } in &*WRAPPED {
        let id = key.id("!r");
        for position in 0..wrap.len() * 8 {
            let mut altered = wrap.clone();
            altered[position / 8] ^= 1 << (position % 8);
            let refused = suite.unwrap(&altered, keys, &context(suite, &id));
            // X25519 ignores the highest bit of a public key (RFC 7748, section 5), but the key schedule covers it.
            assert!(matches!(refused, Err(OpenError::NotAuthentic)), "{} bit {position}", suite.id);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn a_wrap_moved_anywhere_is_refused(
        one in select((0..SUITES.len()).collect::<Vec<_>>()),
        suite in option::weighted(0.2, ".{0,60}"),
        room in option::weighted(0.3, "!?.{0,10}"),
        key_bytes in option::weighted(0.3, any::<[u8; 32]>()),
        users in (option::weighted(0.3, "@?.{0,10}"), option::weighted(0.3, "@?.{0,10}")),
        keyboxes in (option::weighted(0.3, ".{0,10}"), option::weighted(0.3, ".{0,10}")),
        opened_with in select((0..SUITES.len()).collect::<Vec<_>>()),
    ) {
        let Wrapped { suite: made_with, keys, key, wrap } = &WRAPPED[one];
        let id = key.id("!r");
        let here = context(made_with, &id);
        let room = room.as_deref().unwrap_or(here.room_id);
        // The id of the same key in the other room, or that of another key.
        let id = key_bytes.map_or_else(|| key.id(room), |bytes| ResourceKey::from_bytes(&bytes).unwrap().id(room));
        let moved = WrapContext {
            suite: suite.as_deref().unwrap_or(here.suite),
            room_id: room,
            key_id: &id,
            sender: users.0.as_deref().unwrap_or(here.sender),
            sender_keybox: keyboxes.0.as_deref().unwrap_or(here.sender_keybox),
            recipient: users.1.as_deref().unwrap_or(here.recipient),
            recipient_keybox: keyboxes.1.as_deref().unwrap_or(here.recipient_keybox),
        };
        let same_place = moved.to_bytes() == here.to_bytes() && opened_with == one;
        prop_assert_eq!(SUITES[opened_with].unwrap(wrap, keys, &moved).is_ok(), same_place);
    }

    #[test]
    fn a_wrap_cut_grown_or_made_up_is_refused(
        one in select((0..SUITES.len()).collect::<Vec<_>>()),
        length in 0..300_usize,
        tail in proptest::collection::vec(any::<u8>(), 0..100),
    ) {
        let Wrapped { suite, keys, key, wrap } = &WRAPPED[one];
        let id = key.id("!r");
        let altered = [&wrap[..length.min(wrap.len())], &tail].concat();
        prop_assume!(altered != *wrap);
        prop_assert!(suite.unwrap(&altered, keys, &context(suite, &id)).is_err());
    }
}
