//! SHA-256, and what is made of it: HMAC and HKDF.
//!
//! Put together from OpenSSL's SHA-256: its own one-call hash, HMAC and HKDF look up and set up so much at each call that
//! short messages would take ten times as long.

use std::hint::black_box;

use openssl::sha::Sha256;
use zeroize::Zeroizing;

/// SHA-256 of `data`.
pub fn sha256(data: &[u8]) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(data);
    hash.finish()
}

/// HMAC-SHA-256 (RFC 2104) under one key, for many messages: both of its hashes have taken in their block of key.
pub(crate) struct HmacKey {
    inner: Sha256,
    outer: Sha256,
}

impl HmacKey {
    pub(crate) fn new(key: &[u8]) -> Self {
        const BLOCK: usize = 64;
        let mut padded = Zeroizing::new([0_u8; BLOCK]);
        if key.len() > BLOCK {
            let hashed = Zeroizing::new(sha256(key));
            padded.iter_mut().zip(hashed.iter()).for_each(|(byte, of_key)| *byte = *of_key);
        } else {
            padded.iter_mut().zip(key).for_each(|(byte, of_key)| *byte = *of_key);
        }
        let (mut inner, mut outer) = (Sha256::new(), Sha256::new());
        padded.iter_mut().for_each(|byte| *byte ^= 0x36);
        inner.update(padded.as_slice());
        padded.iter_mut().for_each(|byte| *byte ^= 0x36 ^ 0x5c);
        outer.update(padded.as_slice());
        Self { inner, outer }
    }

    /// The MAC of all `parts`, one after the other.
    pub(crate) fn mac(&self, parts: &[&[u8]]) -> [u8; 32] {
        let (mut inner, mut outer) = (self.inner.clone(), self.outer.clone());
        parts.iter().for_each(|part| inner.update(part));
        outer.update(Zeroizing::new(inner.finish()).as_slice());
        outer.finish()
    }
}

/// The states are as good as the key: they are overwritten, and `black_box` makes the compiler believe that somebody looks.
impl Drop for HmacKey {
    fn drop(&mut self) {
        (self.inner, self.outer) = (Sha256::new(), Sha256::new());
        black_box(self);
    }
}

/// HMAC-SHA-256 of all `parts`, one after the other, under a key that is used once.
pub(crate) fn hmac_sha256(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    HmacKey::new(key).mac(parts)
}

/// HKDF-SHA-256 (RFC 5869) without a salt: 32 bytes from `secret` for the use named by `info`.
pub(crate) fn hkdf_sha256(secret: &[u8], info: &str) -> Zeroizing<[u8; 32]> {
    hkdf_expand(&hkdf_extract(&[], &[secret]), &[info.as_bytes()])
}

/// The first step of HKDF-SHA-256: a key from a secret, in parts, and a salt, which may be empty.
pub(crate) fn hkdf_extract(salt: &[u8], secret: &[&[u8]]) -> Zeroizing<[u8; 32]> {
    Zeroizing::new(hmac_sha256(salt, secret))
}

/// The second step of HKDF-SHA-256: `N` bytes, up to 32, from the key that [`hkdf_extract`] made, for the use named by
/// `info`, in parts.
pub(crate) fn hkdf_expand<const N: usize>(key: &[u8; 32], info: &[&[u8]]) -> Zeroizing<[u8; N]> {
    const { assert!(N <= 32, "one block of the expansion is all that is here") };
    let mut parts = info.to_vec();
    parts.push(&[1]);
    let block = Zeroizing::new(hmac_sha256(key, &parts));
    let mut output = Zeroizing::new([0; N]);
    output.iter_mut().zip(block.iter()).for_each(|(byte, of_block)| *byte = *of_block);
    output
}

#[cfg(test)]
mod tests {
    use openssl::pkey::PKey;
    use openssl::sign::Signer;

    use super::*;
    use crate::encoding::{from_hex, hex};

    #[test]
    fn hkdf_matches_rfc_5869_test_case_3() {
        let output = hkdf_sha256(&[0x0b; 22], "");
        assert_eq!(hex(&*output), "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d");
    }

    #[test]
    fn the_steps_of_hkdf_match_rfc_5869_test_case_1() {
        let salt = from_hex::<13>("000102030405060708090a0b0c").unwrap();
        let key = hkdf_extract(&*salt, &[&[0x0b; 10], &[0x0b; 12]]);
        assert_eq!(hex(&*key), "077709362c2e32df0ddc3f0dc47bba6390b6c73bb50f9c3122ec844ad7c2b3e5");
        let info = from_hex::<10>("f0f1f2f3f4f5f6f7f8f9").unwrap();
        let output = hkdf_expand::<32>(&key, &[&info[..4], &info[4..]]);
        assert_eq!(hex(&*output), "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf");
        assert_eq!(hkdf_expand::<12>(&key, &[&*info])[..], output[..12]);
    }

    #[test]
    fn hmac_matches_rfc_4231() {
        let expected = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843";
        let key = HmacKey::new(b"Jefe");
        for _ in 0..2 {
            assert_eq!(hex(&key.mac(&[b"what do ya want ", b"", b"for nothing?"])), expected, "2");
        }
        let expected = "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54";
        let text = b"Test Using Larger Than Block-Size Key - Hash Key First";
        assert_eq!(hex(&hmac_sha256(&[0xaa; 131], &[text])), expected, "6");
    }

    #[test]
    fn hmac_and_hash_are_those_of_openssl_for_every_length() {
        for length in 1..200 {
            let key = vec![0x5a; length];
            let pkey = PKey::hmac(&key).unwrap();
            let mut signer = Signer::new(openssl::hash::MessageDigest::sha256(), &pkey).unwrap();
            assert_eq!(hmac_sha256(&key, &[&key]).to_vec(), signer.sign_oneshot_to_vec(&key).unwrap());
            assert_eq!(sha256(&key), openssl::sha::sha256(&key));
        }
    }
}
