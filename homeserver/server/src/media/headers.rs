//! What a browser may do with a file: never run it in the name of this server.

use http::{HeaderMap, HeaderName, HeaderValue, header};
use ruma::http_headers::{
    APPLICATION_OCTET_STREAM, CROSS_ORIGIN_RESOURCE_POLICY, ContentDisposition, ContentDispositionType,
};

/// The types that may be shown in place; all others are offered as a download.
///
/// <https://spec.matrix.org/v1.19/client-server-api/#serving-inline-content>
const INLINE: [&str; 26] = [
    "application/json",
    "application/ld+json",
    "audio/aac",
    "audio/flac",
    "audio/mp4",
    "audio/mpeg",
    "audio/ogg",
    "audio/wav",
    "audio/wave",
    "audio/webm",
    "audio/x-flac",
    "audio/x-pn-wav",
    "audio/x-wav",
    "image/apng",
    "image/avif",
    "image/gif",
    "image/jpeg",
    "image/png",
    "image/webp",
    "text/css",
    "text/csv",
    "text/plain",
    "video/mp4",
    "video/ogg",
    "video/quicktime",
    "video/webm",
];

/// The policy that the specification recommends.
const CONTENT_SECURITY_POLICY: &str = "sandbox; default-src 'none'; script-src 'none'; plugin-types application/pdf; \
                                       style-src 'unsafe-inline'; object-src 'self';";
/// The longest name that is kept, in characters: that of most file systems.
const MAX_FILE_NAME: usize = 255;

const FIXED: [(HeaderName, HeaderValue); 5] = [
    (header::ACCEPT_RANGES, HeaderValue::from_static("bytes")),
    // Media never change, and only this user's own cache may keep them.
    (header::CACHE_CONTROL, HeaderValue::from_static("private, max-age=86400, immutable")),
    (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(CONTENT_SECURITY_POLICY)),
    (CROSS_ORIGIN_RESOURCE_POLICY, HeaderValue::from_static("cross-origin")),
    (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
];

/// The headers of a file of this type and name.
pub(super) fn of(content_type: &str, file_name: Option<&str>, etag: &str) -> HeaderMap {
    let mut headers = HeaderMap::from_iter(FIXED);
    let value = HeaderValue::try_from(content_type).unwrap_or(APPLICATION_OCTET_STREAM);
    headers.insert(header::CONTENT_TYPE, value);
    if let Ok(value) = HeaderValue::try_from(disposition(content_type, file_name).to_string()) {
        headers.insert(header::CONTENT_DISPOSITION, value);
    }
    if let Ok(value) = HeaderValue::try_from(etag) {
        headers.insert(header::ETAG, value);
    }
    headers
}

/// `inline` for what is harmless, `attachment` for all else, with the file's name where there is one.
fn disposition(content_type: &str, file_name: Option<&str>) -> ContentDisposition {
    // "text/plain; charset=utf-8" is a text, too.
    let essence = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let is_inline = INLINE.contains(&&*essence);
    let kind = if is_inline { ContentDispositionType::Inline } else { ContentDispositionType::Attachment };
    ContentDisposition::new(kind).with_filename(file_name.and_then(clean_file_name))
}

/// The name of a file without what has a meaning to file systems and terminals; none if nothing is left.
pub(super) fn clean_file_name(name: &str) -> Option<String> {
    let name: String = name
        .chars()
        .map(|c| if c == '/' || c == '\\' { '_' } else { c })
        .filter(|c| !c.is_control() && !is_direction(*c))
        .take(MAX_FILE_NAME)
        .collect();
    Some(name.trim().to_owned()).filter(|name| !name.is_empty() && name != "." && name != "..")
}

/// Characters that turn the direction of text, with which `exe.txt` can be made of `txt.exe`.
fn is_direction(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// The media type that an uploader named, if it can be one.
pub(super) fn clean_content_type(content_type: Option<&str>) -> String {
    let named = content_type.map(str::trim).filter(|named| {
        let essence = named.split(';').next().unwrap_or_default().trim();
        let is_type = essence.split_once('/').is_some_and(|(kind, rest)| {
            [kind, rest].iter().all(|part| !part.is_empty() && ruma::http_headers::is_token_string(part))
        });
        is_type && named.len() <= 255 && HeaderValue::try_from(*named).is_ok()
    });
    named.unwrap_or("application/octet-stream").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disposition_of(content_type: &str, name: Option<&str>) -> String {
        of(content_type, name, "\"e\"")[header::CONTENT_DISPOSITION].to_str().unwrap().to_owned()
    }

    #[test]
    fn only_harmless_types_are_shown_in_place() {
        for (content_type, expected) in [
            ("image/png", "inline"),
            ("IMAGE/PNG", "inline"),
            ("text/plain; charset=utf-8", "inline"),
            ("video/mp4", "inline"),
            ("text/html", "attachment"),
            ("image/svg+xml", "attachment"),
            ("application/pdf", "attachment"),
            ("application/javascript", "attachment"),
            ("", "attachment"),
        ] {
            assert_eq!(disposition_of(content_type, None), expected, "{content_type}");
        }
    }

    #[test]
    fn odd_names_cannot_leave_the_header_or_the_folder() {
        for (name, expected) in [
            ("a.txt", "inline; filename=a.txt"),
            ("two words.txt", "inline; filename=\"two words.txt\""),
            ("q\"uo\\te", "inline; filename=\"q\\\"uo_te\""),
            ("../../etc/passwd", "inline; filename=.._.._etc_passwd"),
            ("line\r\nSet-Cookie: x=y", "inline; filename=\"lineSet-Cookie: x=y\""),
            ("ä€.txt", "inline; filename*=utf-8''%C3%A4%E2%82%AC.txt"),
            ("a\u{202e}txt.exe", "inline; filename=atxt.exe"),
            ("..", "inline"),
            (" ", "inline"),
        ] {
            assert_eq!(disposition_of("text/plain", Some(name)), expected, "{name:?}");
        }
        let long = "ä".repeat(1_000);
        assert_eq!(clean_file_name(&long).unwrap().chars().count(), 255);
    }

    #[test]
    fn what_is_no_media_type_becomes_bytes() {
        assert_eq!(clean_content_type(Some("image/png")), "image/png");
        assert_eq!(clean_content_type(Some(" text/plain; charset=utf-8 ")), "text/plain; charset=utf-8");
        for odd in [None, Some(""), Some("image"), Some("image/"), Some("a b/c"), Some("text/plain\u{1}")] {
            assert_eq!(clean_content_type(odd), "application/octet-stream", "{odd:?}");
        }
    }
}
