//! Small texts that a client takes from outside: pins, lists of released programs, names of files.
#![no_main]

use keystead_client::api::{normal_pin, with_pin};
use keystead_client::parsers::{parse_releases, safe_file_name};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(pin) = normal_pin(text) {
        assert!(is_digest(&pin));
        assert_eq!(normal_pin(&pin).unwrap(), pin);
    }
    let (server, pin) = text.split_once('\n').unwrap_or((text, ""));
    if let Ok(pinned) = with_pin(server, pin) {
        assert_eq!(with_pin(&pinned, pin).unwrap(), pinned, "one pin at a time");
        assert!(pinned.ends_with(&format!("#sha256={}", normal_pin(pin).unwrap())));
    }
    for release in parse_releases(text) {
        assert!(is_digest(&release.sha256));
        let again = parse_releases(&format!("{}  {}", release.sha256, release.name));
        assert!(release.name.is_empty() || again == [release], "one release for each line");
    }
    let name = safe_file_name(text);
    assert!(!name.is_empty() && name.len() <= 200 && !name.starts_with(['.', '-']), "{name:?}");
    assert!(!name.chars().any(|c| c.is_control() || "/\\<>:\"|?*".contains(c)), "{name:?}");
    assert_eq!(safe_file_name(&name), name);
});

fn is_digest(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}
