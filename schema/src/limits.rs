//! What an execution may use, and the names of the limits that it can run into.
//!
//! Written on a command line as `memory=512MiB`, in JSON as one number per limit, with the unit in its name.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use schemars::JsonSchema;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use crate::canonical::MAX_INTEGER;
use crate::time::parse_duration;

/// Which limit: its name in documents and on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Limit {
    /// Time from the start of the command to the end of all of it.
    Wall,
    /// CPU time of all its processes.
    Cpu,
    /// Memory of all its processes, with what they keep in a tmpfs.
    Memory,
    /// Processes and threads at a time.
    Pids,
    /// Open descriptors of one process.
    Files,
    /// Bytes on standard output and standard error together.
    Output,
    /// Bytes that the working directory grows by.
    Disk,
}

impl Limit {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Wall, Self::Cpu, Self::Memory, Self::Pids, Self::Files, Self::Output, Self::Disk];

    /// The name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Wall => "wall",
            Self::Cpu => "cpu",
            Self::Memory => "memory",
            Self::Pids => "pids",
            Self::Files => "files",
            Self::Output => "output",
            Self::Disk => "disk",
        }
    }

    /// The reverse of [`Limit::as_str`].
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|limit| limit.as_str() == name)
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.as_str())
    }
}

/// The limits of one execution. What is absent is not limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// [`Limit::Wall`], milliseconds.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "in_range")]
    pub wall_ms: Option<u64>,
    /// [`Limit::Cpu`], milliseconds.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "in_range")]
    pub cpu_ms: Option<u64>,
    /// [`Limit::Memory`], bytes.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "in_range")]
    pub memory_bytes: Option<u64>,
    /// [`Limit::Pids`].
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "in_range")]
    pub pids: Option<u64>,
    /// [`Limit::Files`].
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "in_range")]
    pub open_files: Option<u64>,
    /// [`Limit::Output`], bytes.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "in_range")]
    pub output_bytes: Option<u64>,
    /// [`Limit::Disk`], bytes.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "in_range")]
    pub disk_bytes: Option<u64>,
}

/// A document that was written elsewhere holds no number that canonical JSON would round.
fn in_range<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    let value = Option::<u64>::deserialize(deserializer)?;
    match value {
        Some(value) if value == 0 || value > MAX_INTEGER => {
            Err(D::Error::custom(format!("a limit must be from 1 to 2^53 - 1, not {value}")))
        }
        value => Ok(value),
    }
}

/// Why a limit was not understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LimitError {
    /// It is not `NAME=VALUE`.
    #[error("`{0}` is not a limit: write NAME=VALUE, such as memory=512MiB or wall=10s")]
    NoValue(String),
    /// No limit has this name.
    #[error("there is no limit `{0}`: there are wall, cpu, memory, pids, files, output and disk")]
    UnknownName(String),
    /// Not a time.
    #[error("`{0}` is not a duration: write 250ms, 10s, 5m or 1h")]
    BadDuration(String),
    /// Not a size.
    #[error("`{0}` is not a size: write 4096, 64KiB, 512MiB or 2GiB")]
    BadSize(String),
    /// Not a number.
    #[error("`{0}` is not a number")]
    BadNumber(String),
    /// Zero, or more than a document carries.
    #[error("the limit `{0}` must be from 1 to 2^53 - 1")]
    OutOfRange(Limit),
}

impl Limits {
    /// Whether nothing is limited.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The stricter of both, limit by limit.
    pub fn strictest(self, other: Self) -> Self {
        let of = |a: Option<u64>, b: Option<u64>| match (a, b) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        Self {
            wall_ms: of(self.wall_ms, other.wall_ms),
            cpu_ms: of(self.cpu_ms, other.cpu_ms),
            memory_bytes: of(self.memory_bytes, other.memory_bytes),
            pids: of(self.pids, other.pids),
            open_files: of(self.open_files, other.open_files),
            output_bytes: of(self.output_bytes, other.output_bytes),
            disk_bytes: of(self.disk_bytes, other.disk_bytes),
        }
    }

    /// The value of a limit in its unit: milliseconds, bytes, or a count.
    pub const fn get(&self, limit: Limit) -> Option<u64> {
        match limit {
            Limit::Wall => self.wall_ms,
            Limit::Cpu => self.cpu_ms,
            Limit::Memory => self.memory_bytes,
            Limit::Pids => self.pids,
            Limit::Files => self.open_files,
            Limit::Output => self.output_bytes,
            Limit::Disk => self.disk_bytes,
        }
    }

    /// Sets a limit, in the same units. Zero and what passes 2^53 - 1 are errors.
    pub fn set(&mut self, limit: Limit, value: u64) -> Result<(), LimitError> {
        if value == 0 || value > MAX_INTEGER {
            return Err(LimitError::OutOfRange(limit));
        }
        *match limit {
            Limit::Wall => &mut self.wall_ms,
            Limit::Cpu => &mut self.cpu_ms,
            Limit::Memory => &mut self.memory_bytes,
            Limit::Pids => &mut self.pids,
            Limit::Files => &mut self.open_files,
            Limit::Output => &mut self.output_bytes,
            Limit::Disk => &mut self.disk_bytes,
        } = Some(value);
        Ok(())
    }

    /// Reads `memory=512MiB` and sets it. The last of a name counts.
    pub fn set_text(&mut self, text: &str) -> Result<(), LimitError> {
        let (name, value) = text.split_once('=').ok_or_else(|| LimitError::NoValue(text.to_owned()))?;
        let limit = Limit::parse(name).ok_or_else(|| LimitError::UnknownName(name.to_owned()))?;
        let value = match limit {
            Limit::Wall | Limit::Cpu => milliseconds(value)?,
            Limit::Memory | Limit::Output | Limit::Disk => parse_size(value)?,
            Limit::Pids | Limit::Files => {
                value.parse().map_err(|_| LimitError::BadNumber(value.to_owned()))?
            }
        };
        self.set(limit, value)
    }

    /// What is wrong with limits that were put together by hand.
    pub fn validate(&self) -> Result<(), LimitError> {
        let bad = Limit::ALL
            .into_iter()
            .find(|limit| self.get(*limit).is_some_and(|value| value == 0 || value > MAX_INTEGER));
        bad.map_or(Ok(()), |limit| Err(LimitError::OutOfRange(limit)))
    }

    /// [`Limits::wall_ms`].
    pub fn wall(&self) -> Option<Duration> {
        self.wall_ms.map(Duration::from_millis)
    }

    /// [`Limits::cpu_ms`].
    pub fn cpu(&self) -> Option<Duration> {
        self.cpu_ms.map(Duration::from_millis)
    }
}

/// Several limits: `memory=512MiB,wall=10s`.
impl FromStr for Limits {
    type Err = LimitError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut limits = Self::default();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            limits.set_text(part)?;
        }
        Ok(limits)
    }
}

/// The reverse of [`Limits::from_str`].
impl fmt::Display for Limits {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let set = Limit::ALL.into_iter().filter_map(|limit| Some((limit, self.get(limit)?)));
        for (index, (limit, value)) in set.enumerate() {
            let unit = if matches!(limit, Limit::Wall | Limit::Cpu) { "ms" } else { "" };
            let comma = if index == 0 { "" } else { "," };
            write!(out, "{comma}{limit}={value}{unit}")?;
        }
        Ok(())
    }
}

/// Digits with at most one point, and the unit behind them.
fn split(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    text.split_at(end)
}

/// `number * scale`, or `None` when it is no number or too large for a document.
fn scaled(number: &str, scale: u64) -> Option<u64> {
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(scale);
    }
    let value = number.parse::<f64>().ok()? * scale as f64;
    (value.is_finite() && value <= MAX_INTEGER as f64).then_some(value.round() as u64)
}

fn milliseconds(text: &str) -> Result<u64, LimitError> {
    let read = parse_duration(text).ok().and_then(|time| u64::try_from(time.as_millis()).ok());
    read.ok_or_else(|| LimitError::BadDuration(text.to_owned()))
}

/// Reads a size in bytes: `4096`, `64KiB`, `512MiB`, `2GiB`, with `K`, `M` and `G` for short, `kB`, `MB` and `GB` by the thousand.
pub fn parse_size(text: &str) -> Result<u64, LimitError> {
    let (number, unit) = split(text);
    let scale = match unit {
        "" | "B" => Some(1),
        "KiB" | "K" | "k" => Some(1 << 10),
        "MiB" | "M" => Some(1 << 20),
        "GiB" | "G" => Some(1 << 30),
        "TiB" | "T" => Some(1 << 40),
        "kB" | "KB" => Some(1_000),
        "MB" => Some(1_000_000),
        "GB" => Some(1_000_000_000),
        _ => None,
    };
    scale.and_then(|scale| scaled(number, scale)).ok_or_else(|| LimitError::BadSize(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_read_and_written() {
        let limits: Limits =
            "memory=512MiB,wall=10s, cpu=1.5s,pids=64,files=100,output=1MB,disk=4096".parse().unwrap();
        assert_eq!(limits.memory_bytes, Some(512 << 20));
        assert_eq!((limits.wall_ms, limits.cpu_ms), (Some(10_000), Some(1_500)));
        assert_eq!((limits.pids, limits.open_files), (Some(64), Some(100)));
        assert_eq!((limits.output_bytes, limits.disk_bytes), (Some(1_000_000), Some(4096)));
        assert_eq!(limits.to_string().parse::<Limits>().unwrap(), limits);
        assert!("".parse::<Limits>().unwrap().is_empty());
    }

    #[test]
    fn what_is_no_limit_says_what_is() {
        for bad in [
            "memory",
            "mem=1",
            "memory=",
            "memory=x",
            "memory=1XB",
            "memory=-1",
            "memory=0",
            "wall=0s",
            "wall=1d",
            "wall=1e9s",
            "pids=1.5",
            "pids=",
            "files=two",
            "memory=99999999999999999999",
            "disk=9000000TiB",
            "memory=1.2.3MiB",
        ] {
            assert!(bad.parse::<Limits>().is_err(), "{bad}");
        }
        let error = "ram=1".parse::<Limits>().unwrap_err().to_string();
        assert!(error.contains("memory"), "{error}");
    }

    #[test]
    fn documents_hold_what_is_set_and_nothing_unknown() {
        let limits: Limits = "memory=1MiB".parse().unwrap();
        assert_eq!(serde_json::to_string(&limits).unwrap(), r#"{"memory_bytes":1048576}"#);
        assert_eq!(serde_json::from_str::<Limits>(r#"{"memory_bytes":1048576}"#).unwrap(), limits);
        assert!(serde_json::from_str::<Limits>(r#"{"memory":1}"#).is_err());
        for bad in ["0", "9007199254740992"] {
            assert!(serde_json::from_str::<Limits>(&format!(r#"{{"pids":{bad}}}"#)).is_err());
        }
        let too_much = Limits { pids: Some(1 << 60), ..Limits::default() };
        assert_eq!(too_much.validate(), Err(LimitError::OutOfRange(Limit::Pids)));
        assert_eq!(limits.validate(), Ok(()));
    }
}
