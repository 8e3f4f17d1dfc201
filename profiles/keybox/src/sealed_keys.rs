//! Private keys at rest: PKCS#8, encrypted with a passphrase (PBES2, scrypt, AES-256-CBC), as PEM.
//!
//! One text holds all keys of a KeyBox, so that replacing one file replaces them all. `openssl pkey` opens each block.

mod der;

use openssl::pkey::{Id, PKey, PKeyRef, Private};
use zeroize::Zeroizing;

use crate::encoding::base64_url;
use crate::entropy::{Entropy, random};
use crate::key_set::{PrivateKeySet, RSA_BITS};
use crate::primitives::{CryptoError, aes_256_cbc, scrypt};

/// scrypt's cost: 16 MiB, which is what `openssl pkey` accepts without asking for more (RFC 7914, section 2).
const SCRYPT_N: u64 = 1 << 14;
const SCRYPT_R: u64 = 8;
/// Five passes, as OWASP advises for 16 MiB.
const SCRYPT_P: u64 = 5;
/// Bytes of a passphrase: OpenSSL's own buffer holds 1,024.
const MAX_PASSPHRASE: usize = 512;

const BEGIN: &str = "-----BEGIN ENCRYPTED PRIVATE KEY-----";
const END: &str = "-----END ENCRYPTED PRIVATE KEY-----";

/// Why private keys could not be sealed or opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SealedKeysError {
    /// The cryptographic library failed.
    #[error("the private keys could not be sealed")]
    Crypto(#[from] CryptoError),
    /// Not three encrypted private keys of the right types.
    #[error("the file does not hold the encrypted private keys of a KeyBox")]
    Malformed,
    /// The passphrase is empty, or longer than 512 bytes.
    #[error("a passphrase has 1 to 512 bytes")]
    PassphraseLength,
    /// The passphrase does not open the keys (or they are damaged, which cannot be told apart).
    #[error("the passphrase does not open the private keys")]
    WrongPassphrase,
}

/// Seals the private keys with a passphrase: three PEM blocks, Ed25519, RSA, X25519. Takes about half a second.
pub fn seal(
    keys: &PrivateKeySet,
    passphrase: &str,
    entropy: &mut dyn Entropy,
) -> Result<String, SealedKeysError> {
    check_length(passphrase)?;
    let mut text = String::new();
    for key in [&keys.ed25519, &keys.rsa, &keys.x25519] {
        let sealed = seal_key(key, passphrase, entropy)?;
        text.push_str(&pem(&sealed));
    }
    Ok(text)
}

/// Opens what [`seal`] made. The file does not say whose keys they are; the caller knows.
pub fn open(
    text: &str,
    passphrase: &str,
    user_id: &str,
    keybox_id: &str,
) -> Result<PrivateKeySet, SealedKeysError> {
    check_length(passphrase)?;
    let blocks: Vec<&str> = blocks(text).collect();
    let [ed25519, rsa, x25519] = blocks.as_slice() else { return Err(SealedKeysError::Malformed) };
    let open = |block: &str, id: Id| {
        let key = PKey::private_key_from_pem_passphrase(block.as_bytes(), passphrase.as_bytes())
            .map_err(|_| SealedKeysError::WrongPassphrase)?;
        if key.id() == id { Ok(key) } else { Err(SealedKeysError::Malformed) }
    };
    let rsa = open(rsa, Id::RSA)?;
    if rsa.bits() != RSA_BITS {
        return Err(SealedKeysError::Malformed);
    }
    let (ed25519, x25519) = (open(ed25519, Id::ED25519)?, open(x25519, Id::X25519)?);
    Ok(PrivateKeySet::from_keys(user_id, keybox_id, ed25519, rsa, x25519))
}

/// Whether the passphrase opens what [`seal`] made: looks at the first block only, since all are sealed with one passphrase.
pub fn opens(text: &str, passphrase: &str) -> bool {
    let block = blocks(text).next().unwrap_or_default();
    check_length(passphrase).is_ok()
        && PKey::private_key_from_pem_passphrase(block.as_bytes(), passphrase.as_bytes()).is_ok()
}

/// The encrypted blocks of a text, each by itself. OpenSSL would take the first private key that it finds, and one that stands before a block need not
/// be encrypted: whoever can write to the disk must not be able to put a key of theirs in place of ours.
fn blocks(text: &str) -> impl Iterator<Item = &str> {
    text.split_inclusive(END).filter_map(|part| part.get(part.find(BEGIN)?..))
}

/// A passphrase of 256 random bits, as 43 characters of unpadded URL-safe base64: for private keys whose passphrase a server keeps, so that
/// nobody has to type it (SPEC, section 22).
pub fn random_passphrase(entropy: &mut dyn Entropy) -> Result<Zeroizing<String>, CryptoError> {
    Ok(Zeroizing::new(base64_url(&*Zeroizing::new(random::<32>(entropy)?))))
}

fn check_length(passphrase: &str) -> Result<(), SealedKeysError> {
    let allowed = (1..=MAX_PASSPHRASE).contains(&passphrase.len());
    if allowed { Ok(()) } else { Err(SealedKeysError::PassphraseLength) }
}

/// One EncryptedPrivateKeyInfo (RFC 5958), DER. OpenSSL's Rust binding offers PBKDF2 only, so it is put together here.
fn seal_key(
    key: &PKeyRef<Private>,
    passphrase: &str,
    entropy: &mut dyn Entropy,
) -> Result<Vec<u8>, CryptoError> {
    let salt: [u8; 16] = random(entropy)?;
    let iv: [u8; 16] = random(entropy)?;
    let wrapping = scrypt(passphrase.as_bytes(), &salt, SCRYPT_N, SCRYPT_R, SCRYPT_P)?;
    let open = Zeroizing::new(key.private_key_to_pkcs8()?);
    let sealed = aes_256_cbc(&wrapping, &iv, &open)?;
    let kdf = der::ScryptParameters { salt: &salt, n: SCRYPT_N, r: SCRYPT_R, p: SCRYPT_P };
    Ok(der::encrypted_private_key_info(kdf, &iv, &sealed))
}

fn pem(der: &[u8]) -> String {
    let text = openssl::base64::encode_block(der);
    let mut pem = format!("{BEGIN}\n");
    let mut rest = text.as_str();
    while let Some((line, tail)) = rest.split_at_checked(64) {
        pem.push_str(line);
        pem.push('\n');
        rest = tail;
    }
    if !rest.is_empty() {
        pem.push_str(rest);
        pem.push('\n');
    }
    pem.push_str(END);
    pem.push('\n');
    pem
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::OpensslEntropy;

    fn keys() -> PrivateKeySet {
        PrivateKeySet::generate("@a:x", "A", &mut OpensslEntropy).unwrap()
    }

    #[test]
    fn keys_come_back_with_the_passphrase_only() {
        let keys = keys();
        let sealed = seal(&keys, "correct horse", &mut OpensslEntropy).unwrap();
        let opened = open(&sealed, "correct horse", "@a:x", "A").unwrap();
        assert_eq!(opened.public().unwrap(), keys.public().unwrap());
        assert!(opens(&sealed, "correct horse") && opens(&format!("a line\n{sealed}"), "correct horse"));
        assert!(!opens(&sealed, "Correct horse") && !opens(&sealed, "") && !opens("", "correct horse"));
        assert!(matches!(open(&sealed, "Correct horse", "@a:x", "A"), Err(SealedKeysError::WrongPassphrase)));
        assert!(matches!(open("", "correct horse", "@a:x", "A"), Err(SealedKeysError::Malformed)));
        let cut = sealed.rsplit_once(BEGIN).unwrap().0;
        assert!(matches!(open(cut, "correct horse", "@a:x", "A"), Err(SealedKeysError::Malformed)));
        assert!(matches!(seal(&keys, "", &mut OpensslEntropy), Err(SealedKeysError::PassphraseLength)));
        let long = "x".repeat(MAX_PASSPHRASE + 1);
        assert!(matches!(open(&sealed, &long, "@a:x", "A"), Err(SealedKeysError::PassphraseLength)));
    }

    #[test]
    fn a_random_passphrase_has_256_bits() {
        let draw = || random_passphrase(&mut OpensslEntropy).unwrap();
        assert_eq!(crate::encoding::from_base64_url(&draw()).unwrap().len(), 32);
        assert_ne!(*draw(), *draw());
        check_length(&draw()).unwrap();
    }

    #[test]
    fn an_open_key_in_the_file_is_not_accepted() {
        let plain = String::from_utf8(keys().ed25519.private_key_to_pem_pkcs8().unwrap()).unwrap();
        assert!(matches!(open(&plain.repeat(3), "any", "@a:x", "A"), Err(SealedKeysError::Malformed)));
    }

    #[test]
    fn an_open_key_before_a_block_does_not_take_its_place() {
        let (keys, other) = (keys(), keys());
        let sealed = seal(&keys, "correct horse", &mut OpensslEntropy).unwrap();
        let pem =
            |key: &PKeyRef<Private>| String::from_utf8(key.private_key_to_pem_pkcs8().unwrap()).unwrap();
        let planted: String = sealed
            .split_inclusive(END)
            .zip([&other.ed25519, &other.rsa, &other.x25519])
            .map(|(block, key)| format!("{}{block}\n", pem(key)))
            .collect();
        let opened = open(&planted, "correct horse", "@a:x", "A").unwrap();
        assert_eq!(opened.public().unwrap().hash(), keys.public().unwrap().hash());
        assert!(opens(&planted, "correct horse") && !opens(&planted, "other"));
    }

    #[test]
    fn the_openssl_command_line_opens_every_block() {
        let keys = keys();
        let sealed = seal(&keys, "pass phrase", &mut OpensslEntropy).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("key.pem");
        let public = [&keys.ed25519, &keys.rsa, &keys.x25519].map(|key| key.public_key_to_pem().unwrap());
        for (block, public) in sealed.split_inclusive(END).zip(public) {
            std::fs::write(&file, block).unwrap();
            let pkey = |passphrase: &str| {
                Command::new("openssl")
                    .args(["pkey", "-pubout", "-passin", passphrase, "-in"])
                    .arg(&file)
                    .output()
                    .unwrap()
            };
            let output = pkey("pass:pass phrase");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            assert_eq!(output.stdout, public);
            assert!(!pkey("pass:other").status.success());
        }
    }
}
