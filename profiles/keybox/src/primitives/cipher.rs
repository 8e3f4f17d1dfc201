//! AES-256 under one key for many messages: looked up, set up and keyed once, given a fresh IV for each message.
//!
//! Setting a cipher up costs as much as a message of a kilobyte, so that who has many messages for a key keeps one of these
//! beside it. OpenSSL wipes the key schedule when it is dropped.

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use openssl::cipher::{Cipher, CipherRef};
use openssl::cipher_ctx::CipherCtx;
use openssl::error::ErrorStack;

use super::CryptoError;

/// What OpenSSL is given at once: it counts bytes in a C `int`.
const CHUNK: usize = 1 << 30;

/// AES-256 in output feedback mode.
pub(crate) struct Ofb(Keyed);

/// AES-256-GCM.
pub(crate) struct Gcm(Keyed);

/// A cipher with its key. Each message begins by setting an IV, so that nothing of the message before matters.
struct Keyed(Mutex<CipherCtx>);

impl Ofb {
    pub(crate) fn new(key: &[u8; 32]) -> Result<Self, CryptoError> {
        static OFB: OnceLock<Cipher> = OnceLock::new();
        Ok(Self(Keyed::new(fetched(&OFB, "AES-256-OFB")?, key)?))
    }

    /// Encrypts or decrypts in place; the two are the same operation.
    pub(crate) fn apply(&self, iv: &[u8; 16], data: &mut [u8]) -> Result<(), CryptoError> {
        let mut cipher = self.0.lock();
        cipher.encrypt_init(None, None, Some(iv))?;
        Ok(update(&mut cipher, data)?)
    }
}

impl Gcm {
    pub(crate) fn new(key: &[u8; 32]) -> Result<Self, CryptoError> {
        static GCM: OnceLock<Cipher> = OnceLock::new();
        Ok(Self(Keyed::new(fetched(&GCM, "AES-256-GCM")?, key)?))
    }

    /// Encrypts `data` in place. Returns the tag.
    pub(crate) fn seal(
        &self,
        nonce: &[u8; 12],
        associated: &[u8],
        data: &mut [u8],
    ) -> Result<[u8; 16], CryptoError> {
        let mut cipher = self.0.lock();
        cipher.encrypt_init(None, None, Some(nonce))?;
        cipher.cipher_update(associated, None)?;
        update(&mut cipher, data)?;
        cipher.cipher_final(&mut [])?;
        let mut tag = [0; 16];
        cipher.tag(&mut tag)?;
        Ok(tag)
    }

    /// Decrypts `data` in place. An error, with `data` zeroed, if key, nonce, associated data, ciphertext and tag do not
    /// belong together. OpenSSL compares the tag in constant time.
    pub(crate) fn open(
        &self,
        nonce: &[u8; 12],
        associated: &[u8],
        data: &mut [u8],
        tag: &[u8; 16],
    ) -> Result<(), CryptoError> {
        let mut cipher = self.0.lock();
        let mut open = || -> Result<(), ErrorStack> {
            cipher.decrypt_init(None, None, Some(nonce))?;
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
}

impl Keyed {
    fn new(cipher: &CipherRef, key: &[u8; 32]) -> Result<Self, ErrorStack> {
        let mut context = CipherCtx::new()?;
        context.encrypt_init(Some(cipher), Some(key), None)?;
        Ok(Self(Mutex::new(context)))
    }

    /// A thread that panicked in the middle of a message leaves nothing that the next IV would not replace.
    fn lock(&self) -> MutexGuard<'_, CipherCtx> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encoding::{from_hex, hex};

    #[test]
    fn ofb_matches_sp_800_38a_f_4_5() {
        let key = from_hex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4").unwrap();
        let iv = from_hex("000102030405060708090a0b0c0d0e0f").unwrap();
        let block = from_hex::<16>("6bc1bee22e409f96e93d7e117393172a").unwrap();
        let mut data = *block;
        let cipher = Ofb::new(&key).unwrap();
        cipher.apply(&iv, &mut data).unwrap();
        assert_eq!(hex(&data), "dc7e84bfda79164b7ecd8486985d3860");
        cipher.apply(&iv, &mut data).unwrap();
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
        let cipher = Gcm::new(&key).unwrap();
        let tag = cipher.seal(&nonce, &*associated, &mut data).unwrap();
        assert_eq!(hex(&tag), "76fc6ece0f4e1768cddf8853bb2d551b");
        assert_eq!(
            hex(&data),
            "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa8cb08e48590dbb3da7b08b1056828838\
             c5f61e6393ba7a0abcc9f662"
        );
        let sealed = data;
        cipher.open(&nonce, &*associated, &mut data, &tag).unwrap();
        assert_eq!(data, *plaintext);
        data = sealed;
        cipher.open(&nonce, &associated[1..], &mut data, &tag).unwrap_err();
        assert_eq!(data, [0; 60]);
    }

    /// One that is used over and over gives what a new one does, whatever came before: other lengths, other directions,
    /// messages that were refused, and a thread that died with it.
    #[test]
    fn nothing_is_left_of_the_message_before() {
        let key = [7; 32];
        let (ofb, gcm) = (Ofb::new(&key).unwrap(), Gcm::new(&key).unwrap());
        for (number, length) in [0, 1, 15, 16, 17, 1000, 3, 64, 0, 33].into_iter().enumerate() {
            let byte = u8::try_from(number).unwrap();
            let text = vec![byte; length];
            let (mut kept, mut new) = (text.clone(), text.clone());
            ofb.apply(&[byte; 16], &mut kept).unwrap();
            Ofb::new(&key).unwrap().apply(&[byte; 16], &mut new).unwrap();
            assert_eq!(kept, new);

            let (mut kept, mut new) = (text.clone(), text.clone());
            let tag = gcm.seal(&[byte; 12], &text, &mut kept).unwrap();
            assert_eq!(tag, Gcm::new(&key).unwrap().seal(&[byte; 12], &text, &mut new).unwrap());
            assert_eq!(kept, new);
            gcm.open(&[byte; 12], &text, &mut new, &[0; 16]).unwrap_err();
            gcm.open(&[byte; 12], &text, &mut kept, &tag).unwrap();
            assert_eq!(kept, text);
            let killed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                let _held = gcm.0.lock();
                panic!("with the cipher in its hands");
            }));
            assert!(killed.is_err());
        }
    }

    #[test]
    fn threads_that_share_a_cipher_do_not_disturb_each_other() {
        let gcm = Gcm::new(&[7; 32]).unwrap();
        std::thread::scope(|scope| {
            for byte in 0..4 {
                let gcm = &gcm;
                scope.spawn(move || {
                    for _ in 0..200 {
                        let mut data = [byte; 100];
                        let tag = gcm.seal(&[byte; 12], b"", &mut data).unwrap();
                        gcm.open(&[byte; 12], b"", &mut data, &tag).unwrap();
                        assert_eq!(data, [byte; 100]);
                    }
                });
            }
        });
    }
}
