//! Who and what: execution ids, node and policy names, process identity, vantage points, digests.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

/// What is wrong with an id that was read from outside.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// The text is no UUID.
    #[error("`{0}` is not an execution id: expected a UUIDv7 such as 0198c0de-0000-7000-8000-000000000000")]
    NotAnExecutionId(String),
    /// The UUID has another version than 7.
    #[error("execution id {0} is not a UUID of version 7")]
    NotVersion7(Uuid),
    /// A name is empty, too long or holds control characters.
    #[error("`{name}` is not a valid {what}: {problem}")]
    BadName {
        /// Which kind of name.
        what: &'static str,
        /// The name, as it came.
        name: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The text is not a digest.
    #[error("`{0}` is not a digest: expected 64 lower-case hexadecimal digits")]
    NotADigest(String),
    /// The text is not a vantage point.
    #[error("`{0}` is not a vantage point: expected host, guest or runner")]
    NotAVantage(String),
}

/// The identity of one execution: a UUIDv7 (RFC 9562), chosen by whoever submits it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExecutionId(Uuid);

impl ExecutionId {
    /// A new id. `unix_ms` and `random` are inputs, because this crate reads no clock.
    pub fn from_parts(unix_ms: u64, random: [u8; 10]) -> Self {
        Self(uuid::Builder::from_unix_timestamp_millis(unix_ms, &random).into_uuid())
    }

    /// The milliseconds since the Unix epoch that the id carries.
    pub fn unix_ms(&self) -> u64 {
        let bytes = self.0.as_bytes();
        bytes[..6].iter().fold(0, |ms, byte| ms << 8 | u64::from(*byte))
    }

    /// The sixteen bytes of the UUID, as frames carry them.
    pub fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }

    /// Reads the sixteen bytes of a UUIDv7.
    pub fn from_bytes(bytes: [u8; 16]) -> Result<Self, IdError> {
        Self::from_uuid(Uuid::from_bytes(bytes))
    }

    fn from_uuid(uuid: Uuid) -> Result<Self, IdError> {
        match uuid.get_version_num() {
            7 => Ok(Self(uuid)),
            _ => Err(IdError::NotVersion7(uuid)),
        }
    }
}

impl FromStr for ExecutionId {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        // Only the hyphenated lower-case form: an id has one spelling, because it is a subject token.
        match Uuid::try_parse(text) {
            Ok(uuid) if uuid.as_hyphenated().to_string() == text => Self::from_uuid(uuid),
            _ => Err(IdError::NotAnExecutionId(text.chars().take(64).collect())),
        }
    }
}

impl fmt::Display for ExecutionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_hyphenated().fmt(f)
    }
}

impl fmt::Debug for ExecutionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Serialised as text by the readable formats and as 16 bytes by MessagePack.
impl Serialize for ExecutionId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match serializer.is_human_readable() {
            true => serializer.collect_str(self),
            false => serializer.serialize_bytes(self.as_bytes()),
        }
    }
}

impl<'de> Deserialize<'de> for ExecutionId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
        } else {
            let bytes = serde_bytes::ByteArray::<16>::deserialize(deserializer)?;
            Self::from_bytes(bytes.into_array()).map_err(serde::de::Error::custom)
        }
    }
}

impl JsonSchema for ExecutionId {
    fn schema_name() -> Cow<'static, str> {
        "ExecutionId".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({"type": "string", "format": "uuid", "description": "UUIDv7, hyphenated, lower case"})
    }
}

/// A name that becomes a subject token: 1 to 253 bytes of UTF-8 without control characters.
macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, JsonSchema)]
        #[serde(transparent)]
        pub struct $type(String);

        impl $type {
            /// Checks the name's length and characters.
            pub fn new(name: impl Into<String>) -> Result<Self, IdError> {
                let name = name.into();
                let problem = match () {
                    () if name.is_empty() => "it is empty",
                    () if name.len() > 253 => "it is longer than 253 bytes",
                    () if name.chars().any(char::is_control) => "it holds control characters",
                    () => return Ok(Self(name)),
                };
                let name = name.chars().take(64).filter(|c| !c.is_control()).collect();
                Err(IdError::BadName { what: $what, name, problem })
            }

            /// The name as it was given.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $type {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                Self::new(text)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                Self::new(String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
            }
        }
    };
}

name!(
    /// The name of a node: its host name unless configured.
    NodeId,
    "node name"
);
name!(
    /// The name of a policy, as its document says it.
    PolicyName,
    "policy name"
);
name!(
    /// The name of a pool of node agents.
    PoolName,
    "pool name"
);

/// A process: its thread group id together with its start time, because ids are reused.
///
/// `start_boot_ns` is the group leader's `start_boottime`: nanoseconds of CLOCK_BOOTTIME.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Hash, Serialize, Deserialize)]
pub struct ProcessKey {
    /// Thread group id in the initial pid namespace of the vantage point.
    pub tgid: u32,
    /// Start of the group leader, nanoseconds of CLOCK_BOOTTIME.
    pub start_boot_ns: u64,
}

/// Where a fact was seen from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Vantage {
    /// The kernel of the node.
    Host,
    /// The kernel inside a virtual machine. Its root owns it: it can prove presence, not absence.
    Guest,
    /// The engine itself.
    Runner,
}

impl Vantage {
    /// The vantage point as a subject token.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Guest => "guest",
            Self::Runner => "runner",
        }
    }
}

impl fmt::Display for Vantage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Vantage {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        match text {
            "host" => Ok(Self::Host),
            "guest" => Ok(Self::Guest),
            "runner" => Ok(Self::Runner),
            _ => Err(IdError::NotAVantage(text.chars().take(64).collect())),
        }
    }
}

/// A SHA-256 digest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Digest([u8; 32]);

impl Digest {
    /// What stands before the first frame of a chain.
    pub const ZERO: Self = Self([0; 32]);

    /// The SHA-256 digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// Takes the 32 bytes of a digest that was computed elsewhere.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The first 16 hexadecimal digits: enough to tell policies apart in a subject token.
    pub fn short(&self) -> String {
        let mut text = self.to_string();
        text.truncate(16);
        text
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let bad = || IdError::NotADigest(text.chars().take(80).collect());
        let digits = text.as_bytes();
        if digits.len() != 64 || !digits.iter().all(|d| matches!(d, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(bad());
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_| bad())?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| bad())?;
        }
        Ok(Self(bytes))
    }
}

/// Serialised as hexadecimal text by the readable formats and as 32 bytes by MessagePack.
impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match serializer.is_human_readable() {
            true => serializer.collect_str(self),
            false => serializer.serialize_bytes(&self.0),
        }
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
        } else {
            Ok(Self(serde_bytes::ByteArray::<32>::deserialize(deserializer)?.into_array()))
        }
    }
}

impl JsonSchema for Digest {
    fn schema_name() -> Cow<'static, str> {
        "Digest".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({"type": "string", "pattern": "^[0-9a-f]{64}$", "description": "SHA-256, lower-case hexadecimal"})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn execution_id_has_one_spelling() {
        let id = ExecutionId::from_parts(1_700_000_000_123, [7; 10]);
        assert_eq!(id.unix_ms(), 1_700_000_000_123);
        assert_eq!(id.to_string().parse::<ExecutionId>().unwrap(), id);
        assert!(id.to_string().to_uppercase().parse::<ExecutionId>().is_err());
        assert!("00000000-0000-4000-8000-000000000000".parse::<ExecutionId>().is_err());
    }

    #[test]
    fn names_refuse_what_cannot_be_a_name() {
        assert!(NodeId::new("").is_err());
        assert!(NodeId::new("a\nb").is_err());
        assert!(NodeId::new("a".repeat(254)).is_err());
        assert!(serde_json::from_str::<NodeId>("\"\"").is_err());
        assert_eq!(NodeId::new("host.example").unwrap().as_str(), "host.example");
    }

    #[test]
    fn digest_round_trips_as_text() {
        let digest = Digest::of(b"glasshouse");
        assert_eq!(digest.to_string().parse::<Digest>().unwrap(), digest);
        assert!("é".repeat(32).parse::<Digest>().is_err());
        assert_eq!(digest.short().len(), 16);
    }
}
