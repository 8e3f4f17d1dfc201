//! Any JSON as the description of an encrypted file, and any bytes as the file.
#![no_main]

use keystead_keybox::attachment::EncryptedFile;
use keystead_keybox::sha256;
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};

fuzz_target!(|data: &[u8]| {
    // A line of JSON, and behind it the ciphertext.
    let end = data.iter().position(|byte| *byte == b'\n').unwrap_or(data.len());
    let (description, ciphertext) = (&data[..end], data.get(end + 1..).unwrap_or_default());
    let Ok(file) = serde_json::from_slice::<EncryptedFile>(description) else { return };
    let written = serde_json::to_value(&file).unwrap();
    assert!(serde_json::from_value::<EncryptedFile>(written.clone()).unwrap() == file, "one text for each");
    if let Some(key) = written["key"]["k"].as_str().filter(|key| key.len() == 43) {
        assert!(file.url.contains(key) || !format!("{file:?}").contains(key), "the key shows");
    }
    let (verifier, decryptor) = (file.verifier(), file.decryptor());
    assert_eq!(verifier.is_ok(), decryptor.is_ok());
    let (Ok(mut verifier), Ok(mut decryptor)) = (verifier, decryptor) else { return };
    let form =
        ["/v", "/key/alg", "/key/kty"].map(|place| written.pointer(place).cloned().unwrap_or_default());
    assert_eq!(form, [json!("v2"), json!("A256CTR"), json!("oct")], "taken though of another form");

    // In parts as in one piece.
    let mut opened = Vec::new();
    for part in ciphertext.chunks(usize::from(data[0]) + 1) {
        verifier.update(part);
        opened.extend_from_slice(&decryptor.update(part).unwrap());
    }
    assert_eq!(verifier.is_right(), file.sha256().unwrap() == sha256(ciphertext));
    assert_eq!(opened, *file.decryptor().unwrap().update(ciphertext).unwrap());
    // A stream cipher: twice is nothing.
    assert_eq!(*file.decryptor().unwrap().update(&opened).unwrap(), ciphertext);
    // With the hash that belongs to it, the file is right; with a byte more it is not.
    let mut described: Value = written;
    described["hashes"]["sha256"] = keystead_keybox::encoding::base64(&sha256(ciphertext)).into();
    let file: EncryptedFile = serde_json::from_value(described).unwrap();
    let is_right = |more: &[u8]| {
        let mut verifier = file.verifier().unwrap();
        verifier.update(ciphertext);
        verifier.update(more);
        verifier.is_right()
    };
    assert!(is_right(b"") && !is_right(b"x"));
});
