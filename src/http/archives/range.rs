//! `Range` and `If-Range` (RFC 9110): one range of bytes. Anything else is answered with the whole, as the standard allows, so that no list of ranges
//! makes work.

use std::ops::Range;

use axum::http::{HeaderMap, header};

/// What a client asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    /// All of it.
    Whole,
    /// A part of it.
    Part(Range<u64>),
    /// A part that does not exist.
    Nothing,
}

/// What is asked for of `length` bytes with this `ETag`.
pub fn asked(headers: &HeaderMap, etag: &str, length: u64) -> Asked {
    let mut all = headers.get_all(header::RANGE).iter();
    let (Some(range), None) = (all.next(), all.next()) else { return Asked::Whole };
    // A date never matches: only the tag says that the bytes are the same.
    if headers.get(header::IF_RANGE).is_some_and(|tag| tag != etag) {
        return Asked::Whole;
    }
    range.to_str().ok().and_then(|range| parse(range, length)).unwrap_or(Asked::Whole)
}

/// `None`: it is not one range of bytes.
fn parse(text: &str, length: u64) -> Option<Asked> {
    let (unit, range) = text.split_once('=')?;
    let (first, last) = range.split_once('-').filter(|_| unit.trim().eq_ignore_ascii_case("bytes"))?;
    let (first, last) = (first.trim(), last.trim());
    let part = if first.is_empty() {
        length.saturating_sub(number(last)?)..length
    } else {
        let first = number(first)?;
        let last = if last.is_empty() { u64::MAX } else { number(last)? };
        if last < first {
            return None;
        }
        first..last.saturating_add(1).min(length)
    };
    Some(if part.start < part.end { Asked::Part(part) } else { Asked::Nothing })
}

/// A number of digits only; one that is too large is larger than anything.
fn number(text: &str) -> Option<u64> {
    let digits = (1..=40).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| text.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(range: &str, tag: Option<&str>) -> Asked {
        let mut headers = HeaderMap::new();
        headers.insert(header::RANGE, range.parse().unwrap());
        if let Some(tag) = tag {
            headers.insert(header::IF_RANGE, tag.parse().unwrap());
        }
        asked(&headers, "\"a\"", 100)
    }

    #[test]
    fn one_range_of_bytes_is_answered_and_nothing_else() {
        for (range, part) in [("bytes=0-", 0..100), ("bytes=10-19", 10..20), ("bytes=99-", 99..100), ("BYTES=90-4000", 90..100)] {
            assert_eq!(of(range, None), Asked::Part(part), "{range}");
        }
        for (range, part) in [("bytes=-1", 99..100), ("bytes=-4000", 0..100), ("bytes=5-99999999999999999999999", 5..100)] {
            assert_eq!(of(range, None), Asked::Part(part), "{range}");
        }
        for range in ["bytes=100-", "bytes=-0", "bytes=18446744073709551615-", "bytes=99999999999999999999999-"] {
            assert_eq!(of(range, None), Asked::Nothing, "{range}");
        }
        let many = format!("bytes={}", ["0-1"; 1000].join(","));
        for range in
            ["bytes=2-1", "bytes=-", "bytes=", "bytes", "items=0-1", "bytes=0-1,3-4", "bytes=+1-2", "bytes=0x1-2", "bytes=1--2", &many]
        {
            assert_eq!(of(range, None), Asked::Whole, "{range}");
        }
    }

    /// A part of another archive would be joined to what a client has.
    #[test]
    fn a_part_of_other_bytes_is_never_sent() {
        assert_eq!(of("bytes=10-", Some("\"a\"")), Asked::Part(10..100));
        for tag in ["\"b\"", "W/\"a\"", "Wed, 21 Oct 2026 07:28:00 GMT", ""] {
            assert_eq!(of("bytes=10-", Some(tag)), Asked::Whole, "{tag}");
        }
    }

    proptest! {
        #[test]
        fn a_part_lies_within_the_whole(range in "(bytes=)?[-0-9, ]{0,30}", length: u64) {
            let mut headers = HeaderMap::new();
            headers.insert(header::RANGE, range.parse().unwrap());
            if let Asked::Part(part) = asked(&headers, "", length) {
                prop_assert!(part.start < part.end && part.end <= length);
            }
        }
    }
}
