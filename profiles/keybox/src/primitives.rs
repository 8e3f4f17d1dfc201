//! The primitives, each one call into OpenSSL. Nothing outside this crate touches a cipher.

mod cipher;
mod hash;

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

pub(crate) use cipher::{Gcm, Ofb};
pub use hash::sha256;
pub(crate) use hash::{HmacKey, hkdf_expand, hkdf_extract, hkdf_sha256};

/// A call into the cryptographic library that failed.
#[derive(Debug, thiserror::Error)]
#[error("the cryptographic library failed")]
pub struct CryptoError(#[from] ErrorStack);

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

/// AES-256 in cipher block chaining mode with PKCS#7 padding.
pub(crate) fn aes_256_cbc(key: &[u8; 32], iv: &[u8; 16], data: &[u8]) -> Result<Vec<u8>, CryptoError> {
    Ok(symm::encrypt(symm::Cipher::aes_256_cbc(), key, Some(iv), data)?)
}

/// Bytes of a modulus of 2048 bits.
const RSA_BYTES: usize = 256;

/// RSA-OAEP (RFC 8017, section 7.1.1) for a modulus of 2048 bits, with SHA-256 as both hashes, a label, and a random seed
/// that is used for nothing else. An error if the modulus or `data` is too long.
///
/// The encoding is done here, since OpenSSL's own way to it costs more than the RSA operation.
pub(crate) fn rsa_oaep_encrypt(
    key: &RsaRef<Public>,
    label: &[u8],
    data: &[u8],
    seed: &[u8; 32],
) -> Result<Vec<u8>, CryptoError> {
    let encoded = oaep_encode(label, data, seed).ok_or_else(ErrorStack::get)?;
    let mut wrapped = vec![0; RSA_BYTES.max(usize::try_from(key.size()).unwrap_or(RSA_BYTES))];
    let length = key.public_encrypt(encoded.as_slice(), &mut wrapped, Padding::NONE)?;
    wrapped.truncate(length);
    Ok(wrapped)
}

/// EM = 0x00 || maskedSeed || maskedDB, with DB = lHash || PS || 0x01 || M. `None` if the message is too long.
fn oaep_encode(label: &[u8], data: &[u8], seed: &[u8; 32]) -> Option<Zeroizing<[u8; RSA_BYTES]>> {
    let mut encoded = Zeroizing::new([0; RSA_BYTES]);
    let (_, rest) = encoded.split_first_mut()?;
    let (masked_seed, block) = rest.split_first_chunk_mut::<32>()?;
    let (label_hash, rest) = block.split_first_chunk_mut::<32>()?;
    let (padding, message) = rest.split_at_mut(rest.len().checked_sub(data.len())?);
    *label_hash = sha256(label);
    *padding.last_mut()? = 1;
    message.copy_from_slice(data);
    mgf1_xor(seed, block);
    *masked_seed = *seed;
    mgf1_xor(block, masked_seed);
    Some(encoded)
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
            let wrapped = rsa_oaep_encrypt(&public, b"label", &data, &[1; 32]).unwrap();
            assert_eq!(*rsa_oaep_decrypt(&private, b"label", &wrapped).unwrap(), data);
            assert!(rsa_oaep_decrypt(&private, b"lapel", &wrapped).is_err());
            let again = rsa_oaep_encrypt(&public, b"label", &data, &[2; 32]).unwrap();
            assert_ne!(wrapped, again);
        }
        rsa_oaep_encrypt(&public, b"label", &[7; 191], &[1; 32]).unwrap_err();
        let long = openssl::rsa::Rsa::generate(3072).unwrap();
        let long = openssl::rsa::Rsa::public_key_from_der(&long.public_key_to_der().unwrap()).unwrap();
        rsa_oaep_encrypt(&long, b"label", &[7; 32], &[1; 32]).unwrap_err();
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
