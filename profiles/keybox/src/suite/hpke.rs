//! HPKE (RFC 9180): base mode, one message, DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM.
//!
//! Names are those of the RFC. What is not needed is not here: other modes, other algorithms, export, a second message
//! of one context. The sequence number is therefore always 0, and the nonce of the message is `base_nonce` itself.

use openssl::pkey::{Id, PKey, PKeyRef, Private};
use zeroize::Zeroizing;

use super::OpenError;
use crate::primitives::{CryptoError, Gcm, hkdf_expand, hkdf_extract, x25519, x25519_public};

/// Section 4.1: "KEM" and the id of DHKEM(X25519, HKDF-SHA256), 0x0020.
const KEM_SUITE_ID: &[u8] = b"KEM\x00\x20";
/// Section 5.1: "HPKE" and the ids 0x0020, HKDF-SHA256 0x0001, AES-256-GCM 0x0002.
const HPKE_SUITE_ID: &[u8] = b"HPKE\x00\x20\x00\x01\x00\x02";
const MODE_BASE: u8 = 0;

/// `SealBase` of section 6.1 with an empty `aad`: `enc || ct`. The private key `ephemeral` is drawn for this message alone.
pub(crate) fn seal(
    ephemeral: &[u8; 32],
    recipient: &[u8; 32],
    info: &[u8],
    plaintext: &[u8],
) -> Result<Vec<u8>, CryptoError> {
    seal_with(ephemeral, recipient, info, &[], plaintext)
}

/// `OpenBase` of section 6.1 with an empty `aad`, for `sealed` = `enc || ct`.
pub(crate) fn open(
    recipient: &PKeyRef<Private>,
    info: &[u8],
    sealed: &[u8],
) -> Result<Zeroizing<Vec<u8>>, OpenError> {
    open_with(recipient, info, &[], sealed)
}

fn seal_with(
    ephemeral: &[u8; 32],
    recipient: &[u8; 32],
    info: &[u8],
    aad: &[u8],
    plaintext: &[u8],
) -> Result<Vec<u8>, CryptoError> {
    let ephemeral = PKey::private_key_from_raw_bytes(ephemeral, Id::X25519)?;
    let enc = x25519_public(&ephemeral)?;
    let dh = x25519(&ephemeral, recipient)?;
    let context = key_schedule(&shared_secret(&dh, &enc, recipient), info);
    let mut ciphertext = Zeroizing::new(plaintext.to_vec());
    let tag = Gcm::new(&context.key)?.seal(&context.base_nonce, aad, &mut ciphertext)?;
    Ok([&enc[..], &ciphertext, &tag].concat())
}

fn open_with(
    recipient: &PKeyRef<Private>,
    info: &[u8],
    aad: &[u8],
    sealed: &[u8],
) -> Result<Zeroizing<Vec<u8>>, OpenError> {
    let (enc, rest) = sealed.split_first_chunk::<32>().ok_or(OpenError::NotAuthentic)?;
    let (ciphertext, tag) = rest.split_last_chunk::<16>().ok_or(OpenError::NotAuthentic)?;
    // Fails for an `enc` of low order, as section 7.1.4 demands.
    let dh = x25519(recipient, enc).map_err(|_| OpenError::NotAuthentic)?;
    let own = x25519_public(recipient)?;
    let context = key_schedule(&shared_secret(&dh, enc, &own), info);
    let mut plaintext = Zeroizing::new(ciphertext.to_vec());
    Gcm::new(&context.key)?
        .open(&context.base_nonce, aad, &mut plaintext, tag)
        .map_err(|_| OpenError::NotAuthentic)?;
    Ok(plaintext)
}

/// `ExtractAndExpand` of section 4.1, with `kem_context` = `enc || pkRm`.
pub(crate) fn shared_secret(dh: &[u8; 32], enc: &[u8; 32], recipient: &[u8; 32]) -> Zeroizing<[u8; 32]> {
    let eae_prk = labeled_extract(&[], KEM_SUITE_ID, "eae_prk", dh);
    labeled_expand(&eae_prk, KEM_SUITE_ID, "shared_secret", &[&enc[..], recipient].concat())
}

/// What section 5.1 calls the context, as far as one message needs it.
pub(crate) struct Context {
    pub(crate) key: Zeroizing<[u8; 32]>,
    pub(crate) base_nonce: Zeroizing<[u8; 12]>,
}

/// `KeySchedule` of section 5.1 in base mode: `psk` and `psk_id` are empty.
pub(crate) fn key_schedule(shared_secret: &[u8; 32], info: &[u8]) -> Context {
    let secret = labeled_extract(shared_secret, HPKE_SUITE_ID, "secret", &[]);
    let key_schedule_context = key_schedule_context(info);
    Context {
        key: labeled_expand(&secret, HPKE_SUITE_ID, "key", &key_schedule_context),
        base_nonce: labeled_expand(&secret, HPKE_SUITE_ID, "base_nonce", &key_schedule_context),
    }
}

/// `concat(mode, psk_id_hash, info_hash)`
pub(crate) fn key_schedule_context(info: &[u8]) -> Vec<u8> {
    let psk_id_hash = labeled_extract(&[], HPKE_SUITE_ID, "psk_id_hash", &[]);
    let info_hash = labeled_extract(&[], HPKE_SUITE_ID, "info_hash", info);
    [&[MODE_BASE], &psk_id_hash[..], &info_hash[..]].concat()
}

/// `LabeledExtract` of section 4.
fn labeled_extract(salt: &[u8], suite_id: &[u8], label: &str, ikm: &[u8]) -> Zeroizing<[u8; 32]> {
    hkdf_extract(salt, &[b"HPKE-v1", suite_id, label.as_bytes(), ikm])
}

/// `LabeledExpand` of section 4, `L` = `N` bytes.
fn labeled_expand<const N: usize>(
    prk: &[u8; 32],
    suite_id: &[u8],
    label: &str,
    info: &[u8],
) -> Zeroizing<[u8; N]> {
    let length = u16::try_from(N).unwrap_or(u16::MAX).to_be_bytes();
    hkdf_expand(prk, &[&length, b"HPKE-v1", suite_id, label.as_bytes(), info])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encoding::{from_hex, hex};

    /// The vector of the RFC's authors for mode 0x00, KEM 0x0020, KDF 0x0001, AEAD 0x0002, first message
    /// (<https://github.com/cfrg/draft-irtf-cfrg-hpke/blob/5f503c5/test-vectors.json>; the RFC's appendix prints
    /// other AEADs only).
    const SK_EM: &str = "179d4b53b6365c45b600c4163b61d95cbc2f4d9e36f1695558dce265ab8bab11";
    const ENC: &str = "6c93e09869df3402d7bf231bf540fadd35cd56be14f97178f0954db94b7fc256";
    const SK_RM: &str = "497b4502664cfea5d5af0b39934dac72242a74f8480451e1aee7d6a53320333d";
    const PK_RM: &str = "430f4b9859665145a6b1ba274024487bd66f03a2dd577d7753c68d7d7d00c00c";
    const INFO: &[u8] = b"Ode on a Grecian Urn";
    const AAD: &[u8] = b"Count-0";
    const PT: &[u8] = b"Beauty is truth, truth beauty";
    const CT: &str =
        "e5d84cd531cfb583096e7cfa9641bd3079cf3a91cda813c52deb5f512be9931980a41de125a925cdad859d5b7a";

    /// Bytes that a message is longer than its plaintext: the encapsulated key and the tag.
    const OVERHEAD: usize = 32 + 16;

    fn key(private: &str) -> PKey<Private> {
        PKey::private_key_from_raw_bytes(&*from_hex::<32>(private).unwrap(), Id::X25519).unwrap()
    }

    #[test]
    fn the_schedule_matches_the_vector_step_by_step() {
        let public = from_hex::<32>(PK_RM).unwrap();
        assert_eq!(x25519_public(&key(SK_RM)).unwrap(), *public);
        let enc = x25519_public(&key(SK_EM)).unwrap();
        assert_eq!(hex(&enc), ENC);
        let dh = x25519(&key(SK_EM), &public).unwrap();
        assert_eq!(dh, x25519(&key(SK_RM), &enc).unwrap());
        let shared = shared_secret(&dh, &enc, &public);
        assert_eq!(hex(&*shared), "3101c54c3a4f87439eaac080699ed9bbcc726ffe44e860c0424ccb7e3e2ead7b");
        assert_eq!(
            hex(&key_schedule_context(INFO)),
            "004ce5472ecdd5093ba0aecb8f871ff13f1fbc90ee76f0e18ace1a1b7e565bafa3\
             06f6ef962c9ee7cea40407b5d60f0f26990472faae3ac44c78366f1cac1ecde1"
        );
        let secret = labeled_extract(&*shared, HPKE_SUITE_ID, "secret", &[]);
        assert_eq!(hex(&*secret), "2058ac9b02c1f52c1aaf08bedbec9198219751a94ef67b7d5f0c8b6e2b54ebfb");
        let context = key_schedule(&shared, INFO);
        assert_eq!(hex(&*context.key), "f50b0609186798729ed0564b36ef2ef8044f1f9d05636874d1f46c819c7a669f");
        assert_eq!(hex(&*context.base_nonce), "151d9929e2449747889bc923");
    }

    #[test]
    fn the_message_of_the_vector_is_sealed_and_opened() {
        let sealed = seal_with(&from_hex(SK_EM).unwrap(), &from_hex(PK_RM).unwrap(), INFO, AAD, PT).unwrap();
        assert_eq!(hex(&sealed), [ENC, CT].concat());
        assert_eq!(sealed.len(), PT.len() + OVERHEAD);
        assert_eq!(*open_with(&key(SK_RM), INFO, AAD, &sealed).unwrap(), PT);
        for (info, aad) in [(&INFO[1..], AAD), (INFO, &AAD[1..])] {
            assert!(matches!(open_with(&key(SK_RM), info, aad, &sealed), Err(OpenError::NotAuthentic)));
        }
        assert!(matches!(open_with(&key(SK_EM), INFO, AAD, &sealed), Err(OpenError::NotAuthentic)));
    }

    #[test]
    fn a_short_message_or_an_encapsulated_key_of_low_order_does_not_open() {
        let recipient = key(SK_RM);
        let sealed = seal(&from_hex(SK_EM).unwrap(), &from_hex(PK_RM).unwrap(), INFO, b"").unwrap();
        assert_eq!(*open(&recipient, INFO, &sealed).unwrap(), b"");
        for length in 0..OVERHEAD {
            assert!(matches!(open(&recipient, INFO, &sealed[..length]), Err(OpenError::NotAuthentic)));
        }
        assert!(matches!(open(&recipient, INFO, &[0; OVERHEAD]), Err(OpenError::NotAuthentic)));
        assert!(seal(&from_hex(SK_EM).unwrap(), &[0; 32], INFO, b"").is_err());
    }
}
