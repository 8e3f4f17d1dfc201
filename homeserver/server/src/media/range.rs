//! Which part of a file a request wants.
//!
//! <https://www.rfc-editor.org/rfc/rfc9110#name-range-requests>

use std::ops::Range;

/// What to answer with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// All of it: status 200.
    Whole,
    /// A part: status 206.
    Part(Range<u64>),
    /// A part that is not there: status 416.
    Nothing,
}

/// What a `Range` header wants of a file of `size` bytes, if it has one. What it cannot be read as, and a request for several
/// parts, means the whole, as servers may treat it.
pub(super) fn wanted(range: Option<&str>, size: u64) -> Wanted {
    let Some((first, last)) = range.and_then(parse) else { return Wanted::Whole };
    match (first, last) {
        // The last so many bytes.
        (None, Some(0)) => Wanted::Nothing,
        (None, Some(count)) if size > 0 => Wanted::Part(size.saturating_sub(count)..size),
        (Some(first), Some(last)) if last < first => Wanted::Whole,
        (Some(first), last) if first < size => {
            Wanted::Part(first..last.map_or(size, |last| last.saturating_add(1).min(size)))
        }
        (None, None) => Wanted::Whole,
        _ => Wanted::Nothing,
    }
}

/// `bytes=FIRST-LAST`, each of which may be absent.
fn parse(range: &str) -> Option<(Option<u64>, Option<u64>)> {
    let (unit, range) = range.split_once('=')?;
    let (first, last) = range.trim().split_once('-')?;
    let is_bytes = unit.trim().eq_ignore_ascii_case("bytes");
    is_bytes.then_some(())?;
    Some((number(first)?, number(last)?))
}

/// Digits, or nothing; none if it is neither. More digits than a file can have bytes mean the greatest number.
fn number(text: &str) -> Option<Option<u64>> {
    if text.is_empty() {
        return Some(None);
    }
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| Some(text.parse().unwrap_or(u64::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_rfc_9110_says() {
        for (range, expected) in [
            ("bytes=0-0", Wanted::Part(0..1)),
            ("bytes=0-499", Wanted::Part(0..10)),
            ("Bytes=3-5", Wanted::Part(3..6)),
            ("bytes=9-", Wanted::Part(9..10)),
            ("bytes=-3", Wanted::Part(7..10)),
            ("bytes=-30", Wanted::Part(0..10)),
            ("bytes=0-99999999999999999999999", Wanted::Part(0..10)),
            ("bytes=10-", Wanted::Nothing),
            ("bytes=10-20", Wanted::Nothing),
            ("bytes=-0", Wanted::Nothing),
            ("bytes=99999999999999999999999-", Wanted::Nothing),
            ("bytes=5-4", Wanted::Whole),
            ("bytes=-", Wanted::Whole),
            ("bytes=1-2,4-5", Wanted::Whole),
            ("bytes=+1-2", Wanted::Whole),
            ("bytes=a-b", Wanted::Whole),
            ("bytes 1-2", Wanted::Whole),
            ("lines=1-2", Wanted::Whole),
            ("", Wanted::Whole),
        ] {
            assert_eq!(wanted(Some(range), 10), expected, "{range}");
        }
        assert_eq!(wanted(None, 10), Wanted::Whole);
    }

    #[test]
    fn an_empty_file_has_no_parts() {
        assert_eq!(wanted(Some("bytes=0-"), 0), Wanted::Nothing);
        assert_eq!(wanted(Some("bytes=-5"), 0), Wanted::Nothing);
        assert_eq!(wanted(None, 0), Wanted::Whole);
    }
}
