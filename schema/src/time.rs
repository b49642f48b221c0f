//! Times and durations as text: RFC 3339 in UTC with nine digits of nanoseconds, and what people write on a command line.

use std::time::Duration;

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

/// Reads `250ms`, `10s`, `1.5m` or `1h`; a bare number is seconds. The error says what to write.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let bad = || format!("`{text}` is not a duration: write 250ms, 10s, 5m or 1h");
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let milliseconds: u64 = match unit {
        "ms" => 1,
        "" | "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(bad()),
    };
    // Whole numbers exactly: those of a fraction are not, beyond 2^53.
    if let Ok(number) = number.parse::<u64>() {
        return number.checked_mul(milliseconds).map(Duration::from_millis).ok_or_else(bad);
    }
    let number: f64 = number.parse().map_err(|_| bad())?;
    Duration::try_from_secs_f64(number * milliseconds as f64 / 1_000.0).map_err(|_| bad())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_exactly_or_refused() {
        for (text, milliseconds) in
            [("250ms", 250), ("10", 10_000), ("10s", 10_000), ("1.5m", 90_000), ("1h", 3_600_000)]
        {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
        assert_eq!(parse_duration("9007199254740991ms"), Ok(Duration::from_millis(9_007_199_254_740_991)));
        for bad in
            ["", "s", ".", "1.2.3s", "-1s", "1d", "1 s", "1e9s", "1e400s", "NaN", "999999999999999999999h"]
        {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn nine_digits_always() {
        assert_eq!(rfc3339(1_700_000_000_000_000_006), "2023-11-14T22:13:20.000000006Z");
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(parse_rfc3339(&rfc3339(42)), Some(42));
        assert!(rfc3339(i128::MAX).ends_with('Z'));
    }
}
