//! Signed keys as an encrypting client publishes them. Only their signatures are real: nothing is encrypted here.

use ruma::{
    CanonicalJsonObject,
    signatures::{Ed25519KeyPair, sign_json},
};
use serde_json::{Value, json};

use crate::User;

/// An Ed25519 key pair named by `id` (`ed25519:ID`).
pub struct SigningKey {
    pair: Ed25519KeyPair,
    /// The public key, or the device id.
    pub id: String,
}

impl SigningKey {
    /// A key known by an id of the caller's, as a device's is.
    pub fn named(id: &str) -> Self {
        let document = Ed25519KeyPair::generate();
        let pair = Ed25519KeyPair::from_der(&document, id.to_owned()).expect("a key");
        Self { pair, id: id.to_owned() }
    }

    /// A key known by its public part, as cross-signing keys are.
    pub fn anonymous() -> Self {
        let document = Ed25519KeyPair::generate();
        let unnamed = Ed25519KeyPair::from_der(&document, String::from("x")).expect("a key");
        let id = base64(&unnamed.public_key());
        let pair = Ed25519KeyPair::from_der(&document, id.clone()).expect("a key");
        Self { pair, id }
    }

    /// The public key in unpadded base64.
    pub fn public(&self) -> String {
        base64(&self.pair.public_key())
    }

    /// The object with this key's signature for `user` added.
    pub fn sign(&self, user: &str, object: Value) -> Value {
        let mut canonical: CanonicalJsonObject = serde_json::from_value(object).expect("canonical JSON");
        sign_json(user, &self.pair, &mut canonical).expect("signed");
        serde_json::to_value(canonical).expect("JSON")
    }
}

/// The signed `device_keys` of a user's device.
pub fn device_keys(user: &User, key: &SigningKey) -> Value {
    let device = &user.device;
    let curve = base64(&[7; 32]);
    let keys = json!({
        "user_id": user.id,
        "device_id": device,
        "algorithms": ["m.olm.v1.curve25519-aes-sha2", "m.megolm.v1.aes-sha2"],
        "keys": { format!("ed25519:{device}"): key.public(), format!("curve25519:{device}"): curve },
    });
    key.sign(&user.id, keys)
}

/// `count` signed one-time keys, numbered from `first`.
pub fn one_time_keys(user: &User, key: &SigningKey, first: usize, count: usize) -> Value {
    let one = |number: usize| {
        let name = format!("signed_curve25519:AAA{number:03}");
        (
            name,
            key.sign(&user.id, json!({ "key": base64(&[u8::try_from(number % 250).expect("small"); 32]) })),
        )
    };
    Value::Object((first..first + count).map(one).collect())
}

/// A signed fallback key.
pub fn fallback_key(user: &User, key: &SigningKey) -> Value {
    let signed = key.sign(&user.id, json!({ "key": base64(&[251; 32]), "fallback": true }));
    json!({ "signed_curve25519:AAAFB": signed })
}

/// A cross-signing key for `usage`, signed by each of `signers`.
pub fn cross_signing_key(user: &User, usage: &str, key: &SigningKey, signers: &[&SigningKey]) -> Value {
    let public = key.public();
    let object = json!({
        "user_id": user.id, "usage": [usage], "keys": { format!("ed25519:{public}"): public },
    });
    signers.iter().fold(object, |object, signer| signer.sign(&user.id, object))
}

fn base64(bytes: &[u8]) -> String {
    ruma::serde::Base64::<ruma::serde::base64::Standard, _>::new(bytes).encode()
}
