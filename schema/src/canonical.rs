//! Canonical JSON (RFC 8785): the same value has the same bytes everywhere, so a digest can stand for it.
//!
//! RFC 8785 writes numbers as IEEE 754 doubles: an integer beyond 2^53 would be rounded silently. So every integer
//! that can pass 2^53 (nanoseconds, 64-bit counters) is a decimal string in our documents, see [`decimal`].

mod writer;

use std::io;

use serde::Serialize;

use crate::ids::Digest;
use writer::Writer;

/// The largest integer that a JSON number of ours holds (RFC 7493 §2.2). A count that could pass it and is not a
/// decimal string is clamped to it where it is made.
pub const MAX_INTEGER: u64 = (1 << 53) - 1;

/// A value that has no canonical form.
#[derive(Debug, thiserror::Error)]
#[error("cannot write canonical JSON: {0}")]
pub struct CanonicalError(#[from] serde_json::Error);

/// The canonical JSON bytes of `value`. A float that is not a number, which no document of ours has, is `null`.
pub fn to_vec<T: Serialize>(value: &T) -> Result<Vec<u8>, CanonicalError> {
    let mut bytes = Vec::new();
    value.serialize(&mut serde_json::Serializer::with_formatter(io::sink(), Writer::new(&mut bytes)))?;
    Ok(bytes)
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
    use proptest::prelude::*;
    use serde_json::{Value, json};

    #[test]
    fn keys_are_sorted_and_space_is_gone() {
        let value = json!({"b": 1, "a": [1.0, "é"]});
        assert_eq!(super::to_vec(&value).unwrap(), r#"{"a":[1,"é"],"b":1}"#.as_bytes());
    }

    /// RFC 8785, section 3.2.3.
    #[test]
    fn keys_sort_by_utf_16() {
        let value = json!({
            "\u{20ac}": "Euro Sign", "\r": "Carriage Return", "\u{fb33}": "Hebrew Letter Dalet With Dagesh", "1": "One",
            "\u{1f600}": "Emoji: Grinning Face", "\u{80}": "Control", "\u{f6}": "Latin Small Letter O With Diaeresis"
        });
        // A struct writes its fields in its own order.
        #[derive(serde::Serialize)]
        struct Outer(Value);
        let text = String::from_utf8(super::to_vec(&Outer(value)).unwrap()).unwrap();
        let words = ["Carriage", "One", "Control", "Latin", "Euro", "Emoji", "Hebrew"];
        let places: Vec<usize> = words.iter().map(|word| text.find(word).unwrap()).collect();
        assert!(places.is_sorted(), "{text}");
    }

    /// A space sorts before the quote that ends the other key.
    #[test]
    fn a_key_comes_before_those_that_it_begins() {
        let value = Unsorted(vec![("a b".into(), json!(1)), ("a!".into(), json!(2)), ("a".into(), json!(3))]);
        assert_eq!(super::to_vec(&value).unwrap(), br#"{"a":3,"a b":1,"a!":2}"#);
    }

    fn number() -> impl Strategy<Value = Value> {
        prop_oneof![
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            (-1000i64..1000).prop_map(Value::from),
            (prop::num::f64::NORMAL | prop::num::f64::ZERO | prop::num::f64::SUBNORMAL).prop_map(Value::from),
        ]
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            number(),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 40, 6, |inner| {
            let key = prop_oneof!["[a-c_]{0,3}", any::<String>()];
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                prop::collection::vec((key, inner), 0..6).prop_map(|members| members.into_iter().collect()),
            ]
        })
    }

    /// A map that keeps the order in which it was made.
    struct Unsorted(Vec<(String, Value)>);

    impl serde::Serialize for Unsorted {
        fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            serializer.collect_map(self.0.iter().map(|(key, value)| (key, value)))
        }
    }

    proptest! {
        #[test]
        fn another_implementation_writes_the_same(members in prop::collection::vec((any::<String>(), value()), 0..8)) {
            let value = Unsorted(members);
            // Neither writes two members under one key.
            prop_assert_eq!(super::to_vec(&value).ok(), serde_json_canonicalizer::to_vec(&value).ok());
        }
    }
}
