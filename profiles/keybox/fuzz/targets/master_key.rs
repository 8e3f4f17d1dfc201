//! Any text as a server's master keys, and as a passphrase that was sealed under one.
#![no_main]

use keystead_keybox::OpensslEntropy;
use keystead_keybox::master_key::{MasterKeyError, MasterKeys};
use libfuzzer_sys::fuzz_target;

const PLACE: (&str, &str) = ("@a:x", "A");

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    // A line with the keys, and one with what is sealed.
    let (keys, sealed) = text.split_once('\n').unwrap_or((text, text));
    let named = format!("own:{}", "A".repeat(43));
    read(keys, sealed);
    read(&format!("{named} {keys}"), &format!("own:{sealed}"));
    read(&named, sealed);
});

fn read(text: &str, sealed: &str) {
    let items = text.split(|c: char| c == ',' || c.is_whitespace()).filter(|item| !item.is_empty());
    let names: Vec<_> = items.map(|item| item.split(':').next().unwrap_or_default()).collect();
    let keys = match MasterKeys::parse(text) {
        Ok(keys) => keys,
        Err(MasterKeyError::None) => return assert!(names.is_empty()),
        Err(_) => return assert!(!names.is_empty()),
    };
    let shown = format!("{keys:?}");
    assert!(text.split(':').skip(1).all(|key| !shown.contains(&key.chars().take(43).collect::<String>())));
    assert!(keys.open(PLACE, sealed).is_err(), "opens what nobody sealed");
    let own = keys.seal(PLACE, sealed, &mut OpensslEntropy).unwrap();
    assert!(keys.is_current(&own) && own.starts_with(&format!("{}:", names[0])));
    assert_eq!(*keys.open(PLACE, &own).unwrap(), *sealed);
    assert!(keys.open(("@a:x", "B"), &own).is_err() && keys.open(("@b:x", "A"), &own).is_err());
}
