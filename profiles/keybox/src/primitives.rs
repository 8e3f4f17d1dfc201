//! The primitives, each one call into OpenSSL. Nothing outside this crate touches a cipher.

use openssl::error::ErrorStack;
use openssl::hash::MessageDigest;
use openssl::md::Md;
use openssl::pkey::{Id, PKey, PKeyRef, Private, Public};
use openssl::pkey_ctx::PkeyCtx;
use openssl::rsa::Padding;
use openssl::sign::{Signer, Verifier};
use openssl::symm::{self, Cipher};
use zeroize::Zeroizing;

/// A call into the cryptographic library that failed.
#[derive(Debug, thiserror::Error)]
#[error("the cryptographic library failed")]
pub struct CryptoError(#[from] ErrorStack);

/// SHA-256 of `data`.
pub fn sha256(data: &[u8]) -> [u8; 32] {
    openssl::sha::sha256(data)
}

/// HMAC-SHA-256 of `data` under `key`.
pub(crate) fn hmac_sha256(key: &[u8], data: &[u8]) -> Result<Vec<u8>, CryptoError> {
    let key = PKey::hmac(key)?;
    let mut signer = Signer::new(MessageDigest::sha256(), &key)?;
    Ok(signer.sign_oneshot_to_vec(data)?)
}

/// HKDF-SHA-256 (RFC 5869) without a salt: 32 bytes from `secret` for the use named by `info`.
pub(crate) fn hkdf_sha256(secret: &[u8], info: &str) -> Result<Zeroizing<[u8; 32]>, CryptoError> {
    let mut derivation = PkeyCtx::new_id(Id::HKDF)?;
    derivation.derive_init()?;
    derivation.set_hkdf_md(Md::sha256())?;
    derivation.set_hkdf_key(secret)?;
    derivation.add_hkdf_info(info.as_bytes())?;
    let mut output = Zeroizing::new([0; 32]);
    derivation.derive(Some(output.as_mut_slice()))?;
    Ok(output)
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

/// AES-256 in output feedback mode. Encryption and decryption are the same operation.
pub(crate) fn aes_256_ofb(key: &[u8; 32], iv: &[u8; 16], data: &[u8]) -> Result<Vec<u8>, CryptoError> {
    Ok(symm::encrypt(Cipher::aes_256_ofb(), key, Some(iv), data)?)
}

/// AES-256 in cipher block chaining mode with PKCS#7 padding.
pub(crate) fn aes_256_cbc(key: &[u8; 32], iv: &[u8; 16], data: &[u8]) -> Result<Vec<u8>, CryptoError> {
    Ok(symm::encrypt(Cipher::aes_256_cbc(), key, Some(iv), data)?)
}

/// AES-256-GCM: ciphertext and 16-byte tag.
pub(crate) fn aes_256_gcm_seal(
    key: &[u8; 32],
    nonce: &[u8; 12],
    associated: &[u8],
    data: &[u8],
) -> Result<(Vec<u8>, [u8; 16]), CryptoError> {
    let mut tag = [0; 16];
    let sealed = symm::encrypt_aead(Cipher::aes_256_gcm(), key, Some(nonce), associated, data, &mut tag)?;
    Ok((sealed, tag))
}

/// Opens AES-256-GCM; an error if key, nonce, associated data, ciphertext and tag do not belong together.
pub(crate) fn aes_256_gcm_open(
    key: &[u8; 32],
    nonce: &[u8],
    associated: &[u8],
    sealed: &[u8],
    tag: &[u8],
) -> Result<Zeroizing<Vec<u8>>, CryptoError> {
    let opened = symm::decrypt_aead(Cipher::aes_256_gcm(), key, Some(nonce), associated, sealed, tag)?;
    Ok(Zeroizing::new(opened))
}

/// RSA-OAEP with SHA-256 as both hashes and a label; OpenSSL draws the seed.
pub(crate) fn rsa_oaep_encrypt(
    key: &PKeyRef<Public>,
    label: &[u8],
    data: &[u8],
) -> Result<Vec<u8>, CryptoError> {
    let mut encryption = PkeyCtx::new(key)?;
    encryption.encrypt_init()?;
    oaep_sha256(&mut encryption, label)?;
    let mut wrapped = Vec::new();
    encryption.encrypt_to_vec(data, &mut wrapped)?;
    Ok(wrapped)
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
    use crate::encoding::hex;

    #[test]
    fn hkdf_matches_rfc_5869_test_case_3() {
        let output = hkdf_sha256(&[0x0b; 22], "").unwrap();
        assert_eq!(hex(&*output), "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d");
    }

    #[test]
    fn hmac_matches_rfc_4231_test_case_2() {
        let mac = hmac_sha256(b"Jefe", b"what do ya want for nothing?").unwrap();
        assert_eq!(hex(&mac), "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
    }

    #[test]
    fn ofb_matches_sp_800_38a_f_4_5() {
        let key =
            crate::encoding::from_hex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
                .unwrap();
        let iv = crate::encoding::from_hex("000102030405060708090a0b0c0d0e0f").unwrap();
        let block = crate::encoding::from_hex::<16>("6bc1bee22e409f96e93d7e117393172a").unwrap();
        let sealed = aes_256_ofb(&key, &iv, &*block).unwrap();
        assert_eq!(hex(&sealed), "dc7e84bfda79164b7ecd8486985d3860");
        assert_eq!(aes_256_ofb(&key, &iv, &sealed).unwrap(), *block);
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
