//! Attachments: files that lie on the homeserver as ciphertext, while their key travels inside an encrypted message.
//!
//! This is Matrix's own format, `EncryptedFile` of version `v2`: AES-256 in counter mode under a key of its own, and the
//! SHA-256 of the ciphertext. Both pass through [`Encryptor`] and [`Decryptor`] in parts of any size, so that nobody has to hold
//! a whole file in memory.
//!
//! Counter mode alone can be altered at will: whoever decrypts compares the hash of the whole ciphertext first ([`Verifier`]).
//! The hash is as trustworthy as the message that it came in.
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#sending-encrypted-attachments>

use openssl::sha::Sha256;
use openssl::symm::{Cipher, Crypter, Mode};
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq as _;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::encoding::{base64, base64_url, from_base64, from_base64_url};
use crate::entropy::{Entropy, random};
use crate::primitives::CryptoError;

const VERSION: &str = "v2";
const ALGORITHM: &str = "A256CTR";
const KEY_TYPE: &str = "oct";
/// The rest is the counter, which begins at zero, so that it cannot overflow into the random part.
const RANDOM_IV_BYTES: usize = 8;

/// The description of an encrypted file, as it stands under `file` in the content of a message.
///
/// It holds the key: it belongs into encrypted messages only.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct EncryptedFile {
    /// Where the ciphertext is: an `mxc://` address.
    pub url: String,
    key: JsonWebKey,
    iv: String,
    hashes: Hashes,
    v: String,
}

#[derive(Clone, PartialEq, Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
struct JsonWebKey {
    kty: String,
    key_ops: Vec<String>,
    alg: String,
    k: String,
    ext: bool,
}

#[derive(Clone, PartialEq, Serialize, Deserialize)]
struct Hashes {
    /// Others may be named; this one must be.
    sha256: String,
}

/// A description of a file that cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AttachmentError {
    /// Another version, algorithm or kind of key.
    #[error("the file is encrypted in a way that is not known here")]
    Unknown,
    /// The key, the IV or the hash is not in its encoding, or has another length.
    #[error("the key of the file is malformed")]
    Malformed,
}

/// Encrypts a file, part by part, under a key that is used for nothing else.
pub struct Encryptor {
    cipher: Crypter,
    hash: Sha256,
    key: Zeroizing<[u8; 32]>,
    iv: [u8; 16],
}

/// Decrypts a file, part by part. What comes out must not be released before a [`Verifier`] has seen the whole ciphertext.
pub struct Decryptor(Crypter);

/// Compares a ciphertext with the hash in its description, part by part.
pub struct Verifier {
    hash: Sha256,
    expected: [u8; 32],
}

impl EncryptedFile {
    /// Checks the description and prepares to decrypt from the beginning of the file.
    pub fn decryptor(&self) -> Result<Decryptor, DecryptorError> {
        let (key, iv) = self.check()?;
        let cipher = Crypter::new(Cipher::aes_256_ctr(), Mode::Decrypt, key.as_slice(), Some(&iv));
        Ok(Decryptor(cipher.map_err(CryptoError::from)?))
    }

    /// Checks the description and prepares to compare the ciphertext with its hash.
    pub fn verifier(&self) -> Result<Verifier, AttachmentError> {
        self.check()?;
        Ok(Verifier { hash: Sha256::new(), expected: self.sha256()? })
    }

    /// The SHA-256 of the ciphertext, which is also a name for it that no other file has.
    pub fn sha256(&self) -> Result<[u8; 32], AttachmentError> {
        from_base64(&self.hashes.sha256)
            .ok()
            .and_then(|hash| hash.try_into().ok())
            .ok_or(AttachmentError::Malformed)
    }

    fn check(&self) -> Result<(Zeroizing<[u8; 32]>, [u8; 16]), AttachmentError> {
        if self.v != VERSION || self.key.alg != ALGORITHM || self.key.kty != KEY_TYPE {
            return Err(AttachmentError::Unknown);
        }
        let key = from_base64_url(&self.key.k).map(Zeroizing::new).map_err(|_| AttachmentError::Malformed)?;
        let key = <[u8; 32]>::try_from(key.as_slice()).map_err(|_| AttachmentError::Malformed)?;
        let iv = from_base64(&self.iv).ok().and_then(|iv| iv.try_into().ok());
        self.sha256()?;
        Ok((Zeroizing::new(key), iv.ok_or(AttachmentError::Malformed)?))
    }
}

/// The key never shows.
impl std::fmt::Debug for EncryptedFile {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("EncryptedFile").field("url", &self.url).finish_non_exhaustive()
    }
}

/// Why a file cannot be decrypted.
#[derive(Debug, thiserror::Error)]
pub enum DecryptorError {
    /// The description cannot be used.
    #[error(transparent)]
    Description(#[from] AttachmentError),
    /// OpenSSL failed.
    #[error(transparent)]
    Crypto(#[from] CryptoError),
}

impl Encryptor {
    /// Draws a new key and IV.
    pub fn new(entropy: &mut dyn Entropy) -> Result<Self, CryptoError> {
        let key = Zeroizing::new(random::<32>(entropy)?);
        let mut iv = [0; 16];
        let begin: [u8; RANDOM_IV_BYTES] = random(entropy)?;
        for (byte, random) in iv.iter_mut().zip(begin) {
            *byte = random;
        }
        Self::with(key, iv)
    }

    fn with(key: Zeroizing<[u8; 32]>, iv: [u8; 16]) -> Result<Self, CryptoError> {
        let cipher = Crypter::new(Cipher::aes_256_ctr(), Mode::Encrypt, key.as_slice(), Some(&iv))?;
        Ok(Self { cipher, hash: Sha256::new(), key, iv })
    }

    /// Encrypts the next part: as many bytes come out as go in.
    pub fn update(&mut self, plaintext: &[u8]) -> Result<Vec<u8>, CryptoError> {
        let ciphertext = update(&mut self.cipher, plaintext)?;
        self.hash.update(&ciphertext);
        Ok(ciphertext)
    }

    /// Describes the file, whose whole ciphertext lies at `url`.
    pub fn finish(self, url: String) -> EncryptedFile {
        EncryptedFile {
            url,
            key: JsonWebKey {
                kty: KEY_TYPE.to_owned(),
                key_ops: vec!["encrypt".to_owned(), "decrypt".to_owned()],
                alg: ALGORITHM.to_owned(),
                k: base64_url(self.key.as_slice()),
                ext: true,
            },
            iv: base64(&self.iv),
            hashes: Hashes { sha256: base64(&self.hash.finish()) },
            v: VERSION.to_owned(),
        }
    }
}

impl Decryptor {
    /// Decrypts the next part: as many bytes come out as go in.
    pub fn update(&mut self, ciphertext: &[u8]) -> Result<Zeroizing<Vec<u8>>, CryptoError> {
        update(&mut self.0, ciphertext).map(Zeroizing::new)
    }
}

impl Verifier {
    /// Takes in the next part of the ciphertext.
    pub fn update(&mut self, ciphertext: &[u8]) {
        self.hash.update(ciphertext);
    }

    /// Whether what was taken in is the ciphertext that was described.
    #[must_use]
    pub fn is_right(self) -> bool {
        self.hash.finish().ct_eq(&self.expected).into()
    }
}

fn update(cipher: &mut Crypter, input: &[u8]) -> Result<Vec<u8>, CryptoError> {
    // OpenSSL wants room for one more block, whatever the mode.
    let mut output = vec![0; input.len() + 16];
    let length = cipher.update(input, &mut output)?;
    output.truncate(length);
    Ok(output)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::encoding::{from_hex, hex};
    use crate::entropy::tests::SeededEntropy;

    fn file(parts: &[&[u8]]) -> (EncryptedFile, Vec<u8>) {
        let mut encryptor = Encryptor::new(&mut SeededEntropy::new("attachment")).unwrap();
        let ciphertext = parts.iter().flat_map(|part| encryptor.update(part).unwrap()).collect();
        (encryptor.finish("mxc://x/y".to_owned()), ciphertext)
    }

    fn altered(change: impl FnOnce(&mut Value)) -> EncryptedFile {
        let mut value = json!(file(&[b"text"]).0);
        change(&mut value);
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn counter_mode_matches_sp_800_38a_f_5_5() {
        let key = from_hex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4").unwrap();
        let iv = *from_hex("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff").unwrap();
        let mut encryptor = Encryptor::with(key, iv).unwrap();
        let plaintext = from_hex::<16>("6bc1bee22e409f96e93d7e117393172a").unwrap();
        let (begin, end) = plaintext.split_at(5);
        let ciphertext = [encryptor.update(begin).unwrap(), encryptor.update(end).unwrap()].concat();
        assert_eq!(hex(&ciphertext), "601ec313775789a5b7a7f504bbf3d228");
    }

    #[test]
    fn a_file_has_the_form_of_the_matrix_specification() {
        let (described, ciphertext) = file(&[b"text"]);
        let value = json!(described);
        assert_eq!(value["v"], "v2");
        assert_eq!(value["url"], "mxc://x/y");
        let key = &value["key"];
        assert_eq!((&key["kty"], &key["alg"], &key["ext"]), (&json!("oct"), &json!("A256CTR"), &json!(true)));
        assert_eq!(key["key_ops"], json!(["encrypt", "decrypt"]));
        assert_eq!(key["k"].as_str().unwrap().len(), 43);
        let iv = from_base64(value["iv"].as_str().unwrap()).unwrap();
        assert!(iv[..8] != [0; 8] && iv[8..] == [0; 8]);
        assert_eq!(value["hashes"]["sha256"], base64(&crate::sha256(&ciphertext)));
    }

    #[test]
    fn parts_of_any_size_give_the_same_file_back() {
        let text: Vec<u8> = (0..1000_u32).flat_map(u32::to_le_bytes).collect();
        let (_, whole) = file(&[&text]);
        let (described, ciphertext) = file(&[&text[..1], &[], &text[1..18], &text[18..3000], &text[3000..]]);
        assert_eq!(ciphertext, whole);
        let mut verifier = described.verifier().unwrap();
        let mut decryptor = described.decryptor().unwrap();
        let mut opened = Vec::new();
        for part in ciphertext.chunks(77) {
            verifier.update(part);
            opened.extend_from_slice(&decryptor.update(part).unwrap());
        }
        assert!(verifier.is_right());
        assert_eq!(opened, text);
    }

    #[test]
    fn a_file_that_was_altered_cut_or_prolonged_is_not_right() {
        let (described, ciphertext) = file(&[b"some text"]);
        let is_right = |ciphertext: &[u8]| {
            let mut verifier = described.verifier().unwrap();
            verifier.update(ciphertext);
            verifier.is_right()
        };
        assert!(is_right(&ciphertext));
        for bit in 0..ciphertext.len() * 8 {
            let mut altered = ciphertext.clone();
            altered[bit / 8] ^= 1 << (bit % 8);
            assert!(!is_right(&altered));
        }
        assert!(!is_right(&ciphertext[1..]) && !is_right(&[&*ciphertext, b"x"].concat()) && !is_right(b""));
    }

    #[test]
    fn what_is_described_otherwise_is_refused() {
        for (pointer, value, error) in [
            ("/v", json!("v1"), AttachmentError::Unknown),
            ("/key/alg", json!("A128CTR"), AttachmentError::Unknown),
            ("/key/kty", json!("RSA"), AttachmentError::Unknown),
            ("/key/k", json!("AAAA"), AttachmentError::Malformed),
            ("/key/k", json!("+".repeat(43)), AttachmentError::Malformed),
            ("/iv", json!("AAAA"), AttachmentError::Malformed),
            ("/hashes/sha256", json!("AAAA"), AttachmentError::Malformed),
        ] {
            let described = altered(|file| *file.pointer_mut(pointer).unwrap() = value);
            assert_eq!(described.verifier().err(), Some(error), "{pointer}");
            assert!(described.decryptor().is_err(), "{pointer}");
        }
    }

    #[test]
    fn the_key_does_not_show() {
        let (described, _) = file(&[b"text"]);
        let key = json!(described)["key"]["k"].as_str().unwrap().to_owned();
        assert!(!format!("{described:?}").contains(&key));
    }
}
