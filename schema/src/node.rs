//! What a process of a node says of itself with every heartbeat.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::canonical::decimal;
use crate::ids::{NodeId, PoolName};
use crate::lifecycle::ProfilingMode;

/// Largest status that is read, in bytes: what the bucket takes at most.
pub const MAX_NODE_STATUS_BYTES: usize = 64 * 1024;

/// The value of a heartbeat.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NodeStatus {
    /// The node the process runs on.
    pub node: NodeId,
    /// What it offers, if it is a node agent; a single run offers nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<AgentStatus>,
}

/// What a node agent offers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AgentStatus {
    /// The agent's version.
    pub version: String,
    /// The pool whose requests it takes.
    pub pool: PoolName,
    /// How many executions it runs at a time.
    pub slots: u32,
    /// How many more it would take now.
    pub free_slots: u32,
    /// It takes nothing more and is about to end.
    #[serde(default)]
    pub draining: bool,
    /// The backends it has, and which can run here.
    pub backends: Vec<String>,
    /// Why those that it was to have besides cannot, by name; absent if all can.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub unavailable_backends: BTreeMap<String, String>,
    /// Which vantage points watch a request that does not say.
    pub profile: ProfilingMode,
    /// Why nothing can be watched from the host; absent if it can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_profiling_error: Option<String>,
    /// The operator's labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// The machine.
    pub machine: Machine,
}

/// What an agent runs on.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Machine {
    /// The operating system.
    pub os: String,
    /// The architecture, as `uname -m` names it.
    pub arch: String,
    /// The kernel release.
    pub kernel: String,
    /// Processors that the agent may use.
    pub cpus: u32,
    /// Memory in bytes, decimal.
    #[serde(with = "decimal")]
    #[schemars(with = "String")]
    pub memory_bytes: u64,
}
