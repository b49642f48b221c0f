//! Times as text: RFC 3339 in UTC with nine digits of nanoseconds.

/// `unix_ns` as RFC 3339 text such as `2026-01-02T03:04:05.000000006Z`; a time no calendar has is clamped to the
/// nearest one that does.
pub fn rfc3339(unix_ns: i128) -> String {
    let time = jiff::Timestamp::from_nanosecond(unix_ns).unwrap_or(if unix_ns < 0 {
        jiff::Timestamp::MIN
    } else {
        jiff::Timestamp::MAX
    });
    format!("{time:.9}")
}

/// Reads what [`rfc3339`] wrote (or any RFC 3339 time) as nanoseconds since the Unix epoch.
pub fn parse_rfc3339(text: &str) -> Option<i128> {
    text.parse::<jiff::Timestamp>().ok().map(|time| time.as_nanosecond())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nine_digits_always() {
        assert_eq!(rfc3339(1_700_000_000_000_000_006), "2023-11-14T22:13:20.000000006Z");
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(parse_rfc3339(&rfc3339(42)), Some(42));
        assert!(rfc3339(i128::MAX).ends_with('Z'));
    }
}
