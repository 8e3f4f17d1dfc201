//! Names of files, which come from others, and what they say about the content.

/// The longest name in bytes that every usual file system takes.
const MAX_BYTES: usize = 200;

/// The last part of a name, without anything that means more than itself to a file system, a shell or a terminal.
pub fn harmless(name: &str) -> String {
    let last = name.rsplit(['/', '\\']).next().unwrap_or_default();
    let mut clean: String = last
        .chars()
        .filter(|c| !c.is_control() && !turns_direction(*c))
        .map(|c| if "<>:\"|?*".contains(c) { '_' } else { c })
        .collect();
    clean = clean.trim().to_owned();
    clean.truncate(clean.floor_char_boundary(MAX_BYTES));
    // Windows drops dots and spaces at the end; a leading dot hides a file, a leading dash is an option.
    clean.truncate(clean.trim_end_matches(|c: char| c == '.' || c.is_whitespace()).len());
    if clean.starts_with(['.', '-']) {
        clean.replace_range(..1, "_");
    }
    if clean.is_empty() { "attachment".to_owned() } else { clean }
}

/// Characters that turn the direction of text, with which `exe.txt` can be made of `txt.exe`.
fn turns_direction(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// The type of message and the media type that the end of a name stands for.
pub(super) fn types_of(name: &str) -> (&'static str, &'static str) {
    let end = name.rsplit_once('.').map_or("", |(_, end)| end).to_ascii_lowercase();
    match &*end {
        "avif" => ("m.image", "image/avif"),
        "gif" => ("m.image", "image/gif"),
        "jpeg" | "jpg" => ("m.image", "image/jpeg"),
        "png" => ("m.image", "image/png"),
        "webp" => ("m.image", "image/webp"),
        "flac" => ("m.audio", "audio/flac"),
        "m4a" => ("m.audio", "audio/mp4"),
        "mp3" => ("m.audio", "audio/mpeg"),
        "oga" | "ogg" | "opus" => ("m.audio", "audio/ogg"),
        "wav" => ("m.audio", "audio/wav"),
        "mov" => ("m.video", "video/quicktime"),
        "mp4" => ("m.video", "video/mp4"),
        "webm" => ("m.video", "video/webm"),
        "csv" => ("m.file", "text/csv"),
        "json" => ("m.file", "application/json"),
        "md" | "txt" => ("m.file", "text/plain"),
        "pdf" => ("m.file", "application/pdf"),
        "zip" => ("m.file", "application/zip"),
        _ => ("m.file", "application/octet-stream"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_in_their_folder() {
        for (name, expected) in [
            ("a b.txt", "a b.txt"),
            ("../../etc/passwd", "passwd"),
            ("C:\\Windows\\system.ini", "system.ini"),
            ("..", "attachment"),
            (".", "attachment"),
            ("", "attachment"),
            ("a/", "attachment"),
            (".bashrc", "_bashrc"),
            ("-rf", "_rf"),
            ("a:b|c?.txt", "a_b_c_.txt"),
            ("a\u{1b}[31m\u{0}\r\n.txt", "a[31m.txt"),
            ("fdp\u{202e}exe", "fdpexe"),
            ("end. ", "end"),
            ("日本.png", "日本.png"),
        ] {
            assert_eq!(harmless(name), expected, "{name:?}");
        }
        let long = harmless(&"日".repeat(500));
        assert_eq!(long.len(), 198);
        assert_eq!(harmless(&format!("{}. b", "a".repeat(198))), "a".repeat(198), "cut at a dot");
    }

    #[test]
    fn the_end_of_a_name_tells_its_type() {
        assert_eq!(types_of("a.b.JPG"), ("m.image", "image/jpeg"));
        assert_eq!(types_of("png"), ("m.file", "application/octet-stream"));
        assert_eq!(types_of("x.html"), ("m.file", "application/octet-stream"));
    }
}
