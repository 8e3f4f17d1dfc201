//! Any text as an interchange file, up to where the passphrase is needed, and any JSON as what is in one.
#![no_main]

use keystead_keybox::interchange::{Entry, InterchangeError, check};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let file: Option<Value> = serde_json::from_str(text).ok();
    let version = file.as_ref().map(|file| &file["version"]);
    match check(text) {
        Ok(()) => {
            let file = file.unwrap();
            assert_eq!(
                (&file["format"], &file["version"]),
                (&"com.trustner.keybox.interchange".into(), &1.into())
            );
        }
        Err(InterchangeError::Version(other)) => assert_eq!(version, Some(&other.into())),
        Err(InterchangeError::Malformed(_)) => {}
        Err(other) => panic!("{other} before there was a passphrase"),
    }
    // What is inside comes from who knows the passphrase, who may be anybody.
    let Ok(entries) = serde_json::from_str::<Vec<Entry>>(text) else { return };
    for entry in entries {
        let again: Entry = serde_json::from_value(serde_json::to_value(&entry).unwrap()).unwrap();
        assert_eq!(again, entry);
        if let Some(key) = entry.open() {
            assert_eq!(key.id(&entry.room_id), entry.key_id);
            assert_eq!(*key.to_hex(), entry.key);
            let shown = format!("{entry:?}");
            assert!(!shown.contains(&entry.key) || entry.room_id.contains(&entry.key), "the key shows");
        }
    }
});
