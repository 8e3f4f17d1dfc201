//! The primitives, each one call into OpenSSL. Nothing outside this crate touches a cipher.

use std::sync::OnceLock;

use openssl::cipher::{Cipher, CipherRef};
use openssl::cipher_ctx::CipherCtx;
use openssl::derive::Deriver;
use openssl::error::ErrorStack;
use openssl::md::Md;
use openssl::pkey::{Id, PKey, PKeyRef, Private, Public};
use openssl::pkey_ctx::PkeyCtx;
use openssl::rsa::{Padding, RsaRef};
use openssl::sha::Sha256;
use openssl::sign::{Signer, Verifier};
use openssl::symm;
use zeroize::Zeroizing;

use crate::entropy::{Entropy, random};

/// What OpenSSL is given at once: it counts bytes in a C `int`.
const CHUNK: usize = 1 << 30;

/// A call into the cryptographic library that failed.
#[derive(Debug, thiserror::Error)]
#[error("the cryptographic library failed")]
pub struct CryptoError(#[from] ErrorStack);

/// SHA-256 of `data`.
pub fn sha256(data: &[u8]) -> [u8; 32] {
    openssl::sha::sha256(data)
}

/// HMAC-SHA-256 (RFC 2104) under `key` of all `parts`, one after the other.
///
/// Put together from OpenSSL's SHA-256: its own HMAC and HKDF look up and set up so much at each call that short messages would
/// take ten times as long.
pub(crate) fn hmac_sha256(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    const BLOCK: usize = 64;
    let mut padded = Zeroizing::new([0_u8; BLOCK]);
    let hashed = Zeroizing::new(sha256(key));
    let used = if key.len() > BLOCK { hashed.as_slice() } else { key };
    padded.iter_mut().zip(used).for_each(|(byte, of_key)| *byte = *of_key);

    let mut inner = Sha256::new();
    padded.iter_mut().for_each(|byte| *byte ^= 0x36);
    inner.update(padded.as_slice());
    parts.iter().for_each(|part| inner.update(part));
    let mut outer = Sha256::new();
    padded.iter_mut().for_each(|byte| *byte ^= 0x36 ^ 0x5c);
    outer.update(padded.as_slice());
    outer.update(Zeroizing::new(inner.finish()).as_slice());
    outer.finish()
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

/// X25519 (RFC 7748). An error if `public` is a point of low order: OpenSSL refuses a result of zeros (section 6.1).
pub(crate) fn x25519(
    private: &PKeyRef<Private>,
    public: &[u8; 32],
) -> Result<Zeroizing<[u8; 32]>, CryptoError> {
    let public = PKey::public_key_from_raw_bytes(public, Id::X25519)?;
    let mut derivation = Deriver::new(private)?;
    derivation.set_peer(&public)?;
    let mut shared = Zeroizing::new([0; 32]);
    derivation.derive(shared.as_mut_slice())?;
    Ok(shared)
}

/// The X25519 public key of a private one.
pub(crate) fn x25519_public(private: &PKeyRef<Private>) -> Result<[u8; 32], CryptoError> {
    let mut public = [0; 32];
    for (byte, read) in public.iter_mut().zip(private.raw_public_key()?) {
        *byte = read;
    }
    Ok(public)
}

/// Signs `message` with Ed25519 (RFC 8032): 64 bytes.
pub(crate) fn ed25519_sign(key: &PKeyRef<Private>, message: &[u8]) -> Result<Vec<u8>, CryptoError> {
    Ok(Signer::new_without_digest(key)?.sign_oneshot_to_vec(message)?)
}

/// Whether `signature` over `message` was made by the owner of the Ed25519 key.
pub(crate) fn ed25519_verify(
    public: &[u8; 32],
    message: &[u8],
    signature: &[u8],
) -> Result<bool, CryptoError> {
    let key = PKey::public_key_from_raw_bytes(public, Id::ED25519)?;
    // OpenSSL reports a malformed signature as an error; to a caller it is a signature that does not verify.
    Ok(Verifier::new_without_digest(&key)?.verify_oneshot(signature, message).unwrap_or(false))
}

/// AES-256 in output feedback mode, in place. Encryption and decryption are the same operation.
pub(crate) fn aes_256_ofb(key: &[u8; 32], iv: &[u8; 16], data: &mut [u8]) -> Result<(), CryptoError> {
    let mut cipher = CipherCtx::new()?;
    cipher.encrypt_init(Some(ofb()?), Some(key), Some(iv))?;
    Ok(update(&mut cipher, data)?)
}

/// AES-256 in cipher block chaining mode with PKCS#7 padding.
pub(crate) fn aes_256_cbc(key: &[u8; 32], iv: &[u8; 16], data: &[u8]) -> Result<Vec<u8>, CryptoError> {
    Ok(symm::encrypt(symm::Cipher::aes_256_cbc(), key, Some(iv), data)?)
}

/// Encrypts `data` with AES-256-GCM in place. Returns the tag.
pub(crate) fn aes_256_gcm_seal(
    key: &[u8; 32],
    nonce: &[u8; 12],
    associated: &[u8],
    data: &mut [u8],
) -> Result<[u8; 16], CryptoError> {
    let mut cipher = CipherCtx::new()?;
    cipher.encrypt_init(Some(gcm()?), Some(key), Some(nonce))?;
    cipher.cipher_update(associated, None)?;
    update(&mut cipher, data)?;
    cipher.cipher_final(&mut [])?;
    let mut tag = [0; 16];
    cipher.tag(&mut tag)?;
    Ok(tag)
}

/// Decrypts `data` with AES-256-GCM in place. An error, with `data` zeroed, if key, nonce, associated data, ciphertext
/// and tag do not belong together. OpenSSL compares the tag in constant time.
pub(crate) fn aes_256_gcm_open(
    key: &[u8; 32],
    nonce: &[u8; 12],
    associated: &[u8],
    data: &mut [u8],
    tag: &[u8; 16],
) -> Result<(), CryptoError> {
    let mut open = || -> Result<(), ErrorStack> {
        let mut cipher = CipherCtx::new()?;
        cipher.decrypt_init(Some(gcm()?), Some(key), Some(nonce))?;
        cipher.set_tag(tag)?;
        cipher.cipher_update(associated, None)?;
        update(&mut cipher, data)?;
        cipher.cipher_final(&mut [])?;
        Ok(())
    };
    // Plaintext that was not authenticated must not be seen by anybody, by whatever mistake of a caller.
    open().map_err(|error| {
        data.fill(0);
        error.into()
    })
}

fn gcm() -> Result<&'static CipherRef, ErrorStack> {
    static GCM: OnceLock<Cipher> = OnceLock::new();
    fetched(&GCM, "AES-256-GCM")
}

fn ofb() -> Result<&'static CipherRef, ErrorStack> {
    static OFB: OnceLock<Cipher> = OnceLock::new();
    fetched(&OFB, "AES-256-OFB")
}

/// A cipher that is looked up in OpenSSL's providers once, not at each use.
fn fetched(cell: &'static OnceLock<Cipher>, name: &str) -> Result<&'static CipherRef, ErrorStack> {
    match cell.get() {
        Some(cipher) => Ok(cipher),
        None => {
            let cipher = Cipher::fetch(None, name, None)?;
            Ok(cell.get_or_init(|| cipher))
        }
    }
}

/// Runs a stream cipher over `data` in place.
fn update(cipher: &mut CipherCtx, data: &mut [u8]) -> Result<(), ErrorStack> {
    for chunk in data.chunks_mut(CHUNK) {
        let length = chunk.len();
        cipher.cipher_update_inplace(chunk, length)?;
    }
    Ok(())
}

/// Bytes of a modulus of 2048 bits.
const RSA_BYTES: usize = 256;
/// Bytes of OAEP's data block: all but a zero and the seed.
const OAEP_BLOCK: usize = RSA_BYTES - 1 - 32;

/// RSA-OAEP (RFC 8017, section 7.1.1) for a modulus of 2048 bits, with SHA-256 as both hashes, a label, and a seed from
/// `entropy`. An error if the modulus or `data` is too long.
///
/// The encoding is done here, since OpenSSL's own way to it costs more than the RSA operation.
pub(crate) fn rsa_oaep_encrypt(
    key: &RsaRef<Public>,
    label: &[u8],
    data: &[u8],
    entropy: &mut dyn Entropy,
) -> Result<Vec<u8>, CryptoError> {
    let seed = Zeroizing::new(random::<32>(entropy)?);
    // EM = 0x00 || maskedSeed || maskedDB, DB = lHash || PS || 0x01 || M. With too long a message no RSA operation fits it.
    let padding = vec![0; OAEP_BLOCK.saturating_sub(32 + 1 + data.len())];
    let mut block = Zeroizing::new([&sha256(label)[..], &padding, &[1], data].concat());
    mgf1_xor(seed.as_slice(), &mut block);
    let mut masked_seed = seed;
    mgf1_xor(&block, masked_seed.as_mut_slice());
    let encoded = Zeroizing::new([&[0], masked_seed.as_slice(), &block].concat());
    let mut wrapped = vec![0; RSA_BYTES.max(usize::try_from(key.size()).unwrap_or(RSA_BYTES))];
    let length = key.public_encrypt(&encoded, &mut wrapped, Padding::NONE)?;
    wrapped.truncate(length);
    Ok(wrapped)
}

/// Adds the mask MGF1 with SHA-256 (RFC 8017, appendix B.2.1) to `data`.
fn mgf1_xor(seed: &[u8], data: &mut [u8]) {
    for (counter, part) in (0_u32..).zip(data.chunks_mut(32)) {
        let mut hash = Sha256::new();
        hash.update(seed);
        hash.update(&counter.to_be_bytes());
        let mask = Zeroizing::new(hash.finish());
        part.iter_mut().zip(mask.iter()).for_each(|(byte, of_mask)| *byte ^= of_mask);
    }
}

/// Opens [`rsa_oaep_encrypt`]; the error is the same whatever was wrong.
pub(crate) fn rsa_oaep_decrypt(
    key: &PKeyRef<Private>,
    label: &[u8],
    wrapped: &[u8],
) -> Result<Zeroizing<Vec<u8>>, CryptoError> {
    let mut decryption = PkeyCtx::new(key)?;
    decryption.decrypt_init()?;
    oaep_sha256(&mut decryption, label)?;
    let mut data = Zeroizing::new(Vec::new());
    decryption.decrypt_to_vec(wrapped, &mut data)?;
    Ok(data)
}

fn oaep_sha256<T>(operation: &mut PkeyCtx<T>, label: &[u8]) -> Result<(), CryptoError> {
    operation.set_rsa_padding(Padding::PKCS1_OAEP)?;
    operation.set_rsa_oaep_md(Md::sha256())?;
    operation.set_rsa_mgf1_md(Md::sha256())?;
    Ok(operation.set_rsa_oaep_label(label)?)
}

/// scrypt (RFC 7914): 32 bytes from a passphrase.
pub(crate) fn scrypt(
    passphrase: &[u8],
    salt: &[u8],
    n: u64,
    r: u64,
    p: u64,
) -> Result<Zeroizing<[u8; 32]>, CryptoError> {
    let mut key = Zeroizing::new([0; 32]);
    openssl::pkcs5::scrypt(passphrase, salt, n, r, p, 0, key.as_mut_slice())?;
    Ok(key)
}

#[cfg(test)]
mod tests {
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
        assert_eq!(hex(&hmac_sha256(b"Jefe", &[b"what do ya want ", b"", b"for nothing?"])), expected, "2");
        let expected = "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54";
        let text = b"Test Using Larger Than Block-Size Key - Hash Key First";
        assert_eq!(hex(&hmac_sha256(&[0xaa; 131], &[text])), expected, "6");
    }

    #[test]
    fn hmac_is_that_of_openssl_for_keys_of_every_length() {
        for length in 1..200 {
            let key = vec![0x5a; length];
            let pkey = PKey::hmac(&key).unwrap();
            let mut signer = Signer::new(openssl::hash::MessageDigest::sha256(), &pkey).unwrap();
            assert_eq!(hmac_sha256(&key, &[&key]).to_vec(), signer.sign_oneshot_to_vec(&key).unwrap());
        }
    }

    #[test]
    fn x25519_matches_rfc_7748_section_6_1() {
        let private =
            from_hex::<32>("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb").unwrap();
        let private = PKey::private_key_from_raw_bytes(&*private, Id::X25519).unwrap();
        assert_eq!(
            hex(&x25519_public(&private).unwrap()),
            "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"
        );
        let peer = from_hex("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a").unwrap();
        let shared = x25519(&private, &peer).unwrap();
        assert_eq!(hex(&*shared), "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742");
        assert!(x25519(&private, &[0; 32]).is_err());
    }

    #[test]
    fn openssl_opens_what_oaep_wraps_with_this_label_only() {
        let rsa = openssl::rsa::Rsa::generate(2048).unwrap();
        let public = openssl::rsa::Rsa::public_key_from_der(&rsa.public_key_to_der().unwrap()).unwrap();
        let private = PKey::from_rsa(rsa).unwrap();
        // RFC 8017: at most k - 2 hLen - 2 bytes.
        for length in [0, 1, 32, 190] {
            let data = vec![7; length];
            let wrapped = rsa_oaep_encrypt(&public, b"label", &data, &mut crate::OpensslEntropy).unwrap();
            assert_eq!(*rsa_oaep_decrypt(&private, b"label", &wrapped).unwrap(), data);
            assert!(rsa_oaep_decrypt(&private, b"lapel", &wrapped).is_err());
            let again = rsa_oaep_encrypt(&public, b"label", &data, &mut crate::OpensslEntropy).unwrap();
            assert_ne!(wrapped, again);
        }
        rsa_oaep_encrypt(&public, b"label", &[7; 191], &mut crate::OpensslEntropy).unwrap_err();
        let long = openssl::rsa::Rsa::generate(3072).unwrap();
        let long = openssl::rsa::Rsa::public_key_from_der(&long.public_key_to_der().unwrap()).unwrap();
        rsa_oaep_encrypt(&long, b"label", &[7; 32], &mut crate::OpensslEntropy).unwrap_err();
    }

    #[test]
    fn ofb_matches_sp_800_38a_f_4_5() {
        let key = from_hex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4").unwrap();
        let iv = from_hex("000102030405060708090a0b0c0d0e0f").unwrap();
        let block = from_hex::<16>("6bc1bee22e409f96e93d7e117393172a").unwrap();
        let mut data = *block;
        aes_256_ofb(&key, &iv, &mut data).unwrap();
        assert_eq!(hex(&data), "dc7e84bfda79164b7ecd8486985d3860");
        aes_256_ofb(&key, &iv, &mut data).unwrap();
        assert_eq!(data, *block);
    }

    #[test]
    fn gcm_matches_test_case_16_of_its_specification() {
        // McGrew and Viega, "The Galois/Counter Mode of Operation", appendix B.
        let key = from_hex("feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308").unwrap();
        let nonce = from_hex("cafebabefacedbaddecaf888").unwrap();
        let associated = from_hex::<20>("feedfacedeadbeeffeedfacedeadbeefabaddad2").unwrap();
        let plaintext = from_hex::<60>(
            "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a721c3c0c95956809532fcf0e2449a6b525\
             b16aedf5aa0de657ba637b39",
        )
        .unwrap();
        let mut data = *plaintext;
        let tag = aes_256_gcm_seal(&key, &nonce, &*associated, &mut data).unwrap();
        assert_eq!(hex(&tag), "76fc6ece0f4e1768cddf8853bb2d551b");
        assert_eq!(
            hex(&data),
            "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa8cb08e48590dbb3da7b08b1056828838\
             c5f61e6393ba7a0abcc9f662"
        );
        let sealed = data;
        aes_256_gcm_open(&key, &nonce, &*associated, &mut data, &tag).unwrap();
        assert_eq!(data, *plaintext);
        data = sealed;
        aes_256_gcm_open(&key, &nonce, &associated[1..], &mut data, &tag).unwrap_err();
        assert_eq!(data, [0; 60]);
    }

    #[test]
    fn a_malformed_signature_does_not_verify() {
        let key = PKey::generate_ed25519().unwrap();
        let public = key.raw_public_key().unwrap().try_into().unwrap();
        let signature = ed25519_sign(&key, b"text").unwrap();
        assert!(ed25519_verify(&public, b"text", &signature).unwrap());
        assert!(!ed25519_verify(&public, b"text", &signature[..63]).unwrap());
        assert!(!ed25519_verify(&public, b"other", &signature).unwrap());
    }
}
