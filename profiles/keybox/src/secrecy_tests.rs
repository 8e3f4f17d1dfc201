//! No secret in what is printed: `Debug` of everything that holds one, and `Debug` and `Display` of errors.

use std::error::Error;
use std::fmt::Debug;

use crate::context::WrapContext;
use crate::encoding::{base64, base64_url, hex};
use crate::envelope::{Envelope, Payload, SealRequest};
use crate::key_set::PrivateKeySet;
use crate::resource_key::ResourceKey;
use crate::suite::SUITES;
use crate::vault::Vault;
use crate::{OpensslEntropy, sealed_keys};

const PASSPHRASE: &str = "Zq9!Xv7~Kw2%Jh5^Tb8&Rf3";

struct Secrets {
    keys: PrivateKeySet,
    key: ResourceKey,
    bytes: Vec<Vec<u8>>,
}

fn secrets() -> Secrets {
    let keys = PrivateKeySet::generate("@a:x", "A", &mut OpensslEntropy).unwrap();
    let key = ResourceKey::generate(&mut OpensslEntropy).unwrap();
    let rsa = keys.rsa.rsa().unwrap();
    let bytes = vec![
        keys.ed25519.raw_private_key().unwrap(),
        keys.x25519.raw_private_key().unwrap(),
        rsa.d().to_vec(),
        rsa.p().unwrap().to_vec(),
        rsa.q().unwrap().to_vec(),
        key.as_bytes().to_vec(),
        PASSPHRASE.as_bytes().to_vec(),
    ];
    Secrets { keys, key, bytes }
}

impl Secrets {
    /// Looks for any eight bytes of any secret in all ways of writing bytes that are in use.
    fn assert_absent_from(&self, text: &str) {
        let text = text.to_lowercase();
        for part in self.bytes.iter().flat_map(|secret| secret.windows(8)) {
            let list = format!("{part:?}").trim_matches(['[', ']']).to_owned();
            let wide = format!("{part:#?}").split_whitespace().collect::<String>();
            for written in [hex(part), base64(&part[..6]), base64_url(&part[..6]), list, wide] {
                assert!(!text.contains(&written.to_lowercase()), "{text} shows {written}");
            }
            if let Ok(plain) = std::str::from_utf8(part) {
                assert!(!text.contains(&plain.to_lowercase()), "{text} shows {plain}");
            }
        }
    }

    fn assert_hidden(&self, value: &dyn Debug) {
        self.assert_absent_from(&format!("{value:?}"));
        self.assert_absent_from(&format!("{value:#?}"));
    }

    fn assert_silent(&self, error: &dyn Error) {
        self.assert_hidden(&error);
        let mut cause = Some(error);
        while let Some(error) = cause {
            self.assert_absent_from(&error.to_string());
            cause = error.source();
        }
    }
}

#[test]
fn the_search_finds_what_is_shown() {
    let secrets = secrets();
    for shown in [
        hex(secrets.key.as_bytes()),
        base64(secrets.key.as_bytes()),
        format!("{:?}", secrets.key.as_bytes()),
        format!("no, not {PASSPHRASE}"),
    ] {
        let search =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| secrets.assert_absent_from(&shown)));
        assert!(search.is_err(), "{shown}");
    }
}

#[test]
fn debug_shows_no_secret() {
    let secrets = secrets();
    let payload = Payload {
        room_id: "!r".to_owned(),
        event_type: "m.room.message".to_owned(),
        content: serde_json::json!({ "body": "text" }),
    };
    secrets.assert_hidden(&secrets.keys);
    let shown = format!("{:?} {:?} {:?}", secrets.keys, secrets.key, Vault::new(&secrets.keys).unwrap());
    for named in ["user_id: \"@a:x\", keybox_id: \"A\", ..", "ResourceKey(redacted)", "Vault(redacted)"] {
        assert!(shown.contains(named), "{shown} does not say {named}");
    }
    secrets.assert_hidden(&secrets.keys.public().unwrap());
    secrets.assert_hidden(&secrets.key);
    secrets.assert_hidden(&secrets.key.id("!r"));
    secrets.assert_hidden(&Vault::new(&secrets.keys).unwrap());
    secrets.assert_hidden(&SUITES);
    for suite in SUITES {
        let request = SealRequest { suite: suite.id, key: &secrets.key, keys: &secrets.keys, counter: 0 };
        secrets.assert_hidden(&request);
        secrets.assert_hidden(&Envelope::seal(request, &payload, &mut OpensslEntropy).unwrap());
    }
}

#[test]
fn errors_show_no_secret() {
    let secrets = secrets();
    let (keys, key) = (&secrets.keys, &secrets.key);
    let (id, public) = (key.id("!r"), keys.public().unwrap());
    for suite in SUITES {
        let context = WrapContext {
            suite: suite.id,
            room_id: "!r",
            key_id: &id,
            sender: "@a:x",
            sender_keybox: "A",
            recipient: "@a:x",
            recipient_keybox: "A",
        };
        let mut wrap = suite.wrap(key, &public, &context, &mut OpensslEntropy).unwrap();
        wrap[3] ^= 1;
        secrets.assert_silent(&suite.unwrap(&wrap, keys, &context).unwrap_err());
        let mut silent = public.clone();
        silent.algorithms.clear();
        secrets.assert_silent(&suite.wrap(key, &silent, &context, &mut OpensslEntropy).unwrap_err());
        let mut sealed = suite.seal(key, b"here", b"text".to_vec(), &mut OpensslEntropy).unwrap();
        sealed.mac[0] ^= 1;
        secrets.assert_silent(&suite.open(key, b"here", sealed).unwrap_err());
    }
    let sealed = sealed_keys::seal(keys, PASSPHRASE, &mut OpensslEntropy).unwrap();
    secrets.assert_absent_from(&sealed);
    secrets.assert_silent(&sealed_keys::open(&sealed, &PASSPHRASE.repeat(20), "@a:x", "A").unwrap_err());
    secrets.assert_silent(&sealed_keys::open(&sealed[1..], PASSPHRASE, "@a:x", "A").unwrap_err());
    let vault = Vault::new(keys).unwrap();
    secrets.assert_silent(&vault.open("other", &[1; 40]).unwrap_err());
    secrets.assert_silent(&ResourceKey::from_hex(&key.to_hex()[1..]).unwrap_err());
}
