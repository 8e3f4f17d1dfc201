//! Any file name, media type and range: headers are whole, and a part lies within the file.
#![no_main]
#![allow(missing_docs, dead_code)]

use libfuzzer_sys::fuzz_target;

#[path = "../../server/src/media/headers.rs"]
mod headers;
#[path = "../../server/src/media/range.rs"]
mod range;

use range::Wanted;

fn check(name: &str, content_type: &str, range: &str, size: u64) {
    let clean = headers::clean_file_name(name);
    assert!(clean.as_deref().is_none_or(|name| !name.contains(['/', '\\', '\0', '\n'])), "{clean:?}");
    let content_type = headers::clean_content_type(Some(content_type));
    let all = headers::of(&content_type, clean.as_deref(), "etag");
    let disposition = all["content-disposition"].as_bytes();
    assert!(disposition.starts_with(b"inline") || disposition.starts_with(b"attachment"));
    if let Wanted::Part(part) = range::wanted(Some(range), size) {
        assert!(part.start < part.end && part.end <= size, "{part:?} of {size}");
    }
}

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let mut lines = text.splitn(3, '\n');
    let mut line = || lines.next().unwrap_or_default();
    let (name, content_type, range) = (line(), line(), line());
    check(name, content_type, range, name.len() as u64);
    check(name, content_type, range, u64::MAX);
});
