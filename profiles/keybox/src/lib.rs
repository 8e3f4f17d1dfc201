//! The Trustner KeyBox profile: end-to-end encryption with resource keys that every KeyBox of a room holds.
//!
//! This crate is the protocol itself and does no I/O: key sets and their checks ([`key_set`]), resource keys
//! ([`resource_key`]), the suites that wrap keys and seal content ([`suite`]), what they are bound to ([`context`]),
//! content messages ([`envelope`]), replays ([`replay`]), key messages ([`key_message`]), and private keys at rest
//! ([`sealed_keys`], [`vault`]). `SPEC.md` beside it gives every byte layout; `vectors/` gives values to compare with.
//!
//! It is the only user of OpenSSL's ciphers in this product. Randomness comes in through [`Entropy`], except for
//! RSA key generation, which OpenSSL does with the same generator itself.

pub mod attachment;
pub mod audit_log;
pub mod canonical_json;
pub mod closing;
pub mod contact_code;
pub mod context;
pub mod encoding;
mod entropy;
pub mod envelope;
pub mod fingerprint;
pub mod identity;
pub mod interchange;
pub mod key_message;
pub mod key_set;
pub mod master_key;
pub mod parallel;
mod primitives;
pub mod recovery;
pub mod replay;
pub mod resource_key;
pub mod sealed_keys;
#[cfg(test)]
mod secrecy_tests;
pub mod suite;
pub mod vault;
#[cfg(test)]
mod vectors;

pub use entropy::{Entropy, OpensslEntropy};
pub use primitives::{CryptoError, sha256};
