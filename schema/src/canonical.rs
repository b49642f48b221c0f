//! Canonical JSON (RFC 8785): the same value has the same bytes everywhere, so a digest can stand for it.
//!
//! RFC 8785 writes numbers as IEEE 754 doubles: an integer beyond 2^53 would be rounded silently. So every integer
//! that can pass 2^53 (nanoseconds, 64-bit counters) is a decimal string in our documents, see [`decimal`].

use serde::Serialize;

use crate::ids::Digest;

/// The largest integer that a JSON number of ours holds (RFC 7493 §2.2). A count that could pass it and is not a
/// decimal string is clamped to it where it is made.
pub const MAX_INTEGER: u64 = (1 << 53) - 1;

/// A value that has no canonical form.
#[derive(Debug, thiserror::Error)]
#[error("cannot write canonical JSON: {0}")]
pub struct CanonicalError(#[from] serde_json::Error);

/// The canonical JSON bytes of `value`.
pub fn to_vec<T: Serialize>(value: &T) -> Result<Vec<u8>, CanonicalError> {
    Ok(serde_json_canonicalizer::to_vec(value)?)
}

/// The SHA-256 digest of the canonical JSON bytes of `value`.
pub fn digest<T: Serialize>(value: &T) -> Result<Digest, CanonicalError> {
    Ok(Digest::of(&to_vec(value)?))
}

/// A 64-bit integer as a decimal string, for `#[serde(with = "canonical::decimal")]`.
pub mod decimal {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::{Deserialize, Deserializer, Serializer};

    /// Writes the integer as a string.
    pub fn serialize<T: Display, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    /// Reads the integer from a string.
    pub fn deserialize<'de, T, D>(deserializer: D) -> Result<T, D::Error>
    where
        T: FromStr,
        T::Err: Display,
        D: Deserializer<'de>,
    {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn keys_are_sorted_and_space_is_gone() {
        let value = serde_json::json!({"b": 1, "a": [1.0, "é"]});
        assert_eq!(super::to_vec(&value).unwrap(), r#"{"a":[1,"é"],"b":1}"#.as_bytes());
    }
}
