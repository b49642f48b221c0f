//! How far a command is kept from the node by the backend that runs it there.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::connect::ConnectTarget;
use crate::lifecycle::Isolation;

/// How far. Each level promises all that the one before it does; docs/sandbox.md says what.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum SandboxLevel {
    /// Not at all: a process of the node.
    #[default]
    None,
    /// Namespaces of its own, no capabilities, a read-only system, fewer system calls.
    Standard,
    /// A user namespace, no network, and nothing but the paths it was given.
    Strict,
}

impl SandboxLevel {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::None, Self::Standard, Self::Strict];

    /// The name in documents and on the command line.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Standard => "standard",
            Self::Strict => "strict",
        }
    }

    /// Whether it is [`SandboxLevel::None`].
    pub fn is_none(&self) -> bool {
        *self == Self::None
    }
}

impl fmt::Display for SandboxLevel {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.as_str())
    }
}

/// No level has this name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no sandbox level `{0}`: there are none, standard and strict")]
pub struct UnknownLevel(String);

impl FromStr for SandboxLevel {
    type Err = UnknownLevel;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.into_iter().find(|level| level.as_str() == name);
        found.ok_or_else(|| UnknownLevel(name.to_owned()))
    }
}

/// Which network a command has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum NetworkAccess {
    /// A loopback interface of its own.
    None,
    /// The node's, of which what is on a list can be reached.
    AllowList,
    /// The node's.
    Host,
}

impl NetworkAccess {
    /// The name in documents and on the command line.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::AllowList => "allow-list",
            Self::Host => "host",
        }
    }
}

/// The sandbox that is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SandboxRequest {
    /// How far.
    pub level: SandboxLevel,
    /// Which network; absent for what the level has by itself: the node's, and none at `strict`. With a list in `connect` it
    /// is that of the list.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkAccess>,
    /// Absolute paths that can be read, and executed, beside what the level allows by itself.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub read: Vec<PathBuf>,
    /// Absolute paths that can be written too, beside the working directory.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub write: Vec<PathBuf>,
    /// All that can be connected to, by TCP and UDP: `HOST:PORT`, or an address or network with a port or without one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub connect: Vec<ConnectTarget>,
}

impl SandboxRequest {
    /// A level and nothing else.
    pub fn of(level: SandboxLevel) -> Self {
        Self { level, ..Self::default() }
    }

    /// The network of a command that is so far from the node: one in a machine or container has none but what is on its list.
    pub fn network_in(&self, isolation: Isolation) -> NetworkAccess {
        match isolation {
            Isolation::None | Isolation::Process => self.network(),
            Isolation::Container | Isolation::Vm if self.connect.is_empty() => NetworkAccess::None,
            Isolation::Container | Isolation::Vm => NetworkAccess::AllowList,
        }
    }

    /// The network that a command on the node gets.
    pub fn network(&self) -> NetworkAccess {
        let by_itself = match self.level {
            _ if !self.connect.is_empty() => NetworkAccess::AllowList,
            SandboxLevel::None | SandboxLevel::Standard => NetworkAccess::Host,
            SandboxLevel::Strict => NetworkAccess::None,
        };
        self.network.unwrap_or(by_itself)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_have_their_names() {
        for level in SandboxLevel::ALL {
            assert_eq!(level.as_str().parse(), Ok(level));
            assert_eq!(serde_json::to_value(level).unwrap(), level.as_str());
        }
        assert!("jail".parse::<SandboxLevel>().unwrap_err().to_string().contains("standard"));
        assert!(SandboxLevel::None < SandboxLevel::Strict);
    }

    #[test]
    fn strict_has_no_network_by_itself() {
        assert_eq!(SandboxRequest::of(SandboxLevel::Standard).network(), NetworkAccess::Host);
        assert_eq!(SandboxRequest::of(SandboxLevel::Strict).network(), NetworkAccess::None);
        assert_eq!(serde_json::to_string(&SandboxRequest::default()).unwrap(), r#"{"level":"none"}"#);
        let listed: SandboxRequest =
            serde_json::from_str(r#"{"level":"strict","connect":["[::1]:80"]}"#).unwrap();
        assert_eq!(listed.network(), NetworkAccess::AllowList);
        assert_eq!(serde_json::to_value(listed.network()).unwrap(), listed.network().as_str());
        let nearby = SandboxRequest::default();
        for (isolation, network) in [
            (Isolation::Process, NetworkAccess::Host),
            (Isolation::Container, NetworkAccess::None),
            (Isolation::Vm, NetworkAccess::None),
        ] {
            assert_eq!(nearby.network_in(isolation), network);
            assert_eq!(listed.network_in(isolation), NetworkAccess::AllowList);
        }
        assert!(serde_json::from_str::<SandboxRequest>(r#"{"levl":"strict"}"#).is_err());
    }
}
