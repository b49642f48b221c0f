//! The receipt: one deterministic, versioned, verifiable record of one execution.
//!
//! Grammar v0.4 keeps every field of v0.3.0 with its name and type and sets richer facts beside them. A receipt is
//! canonical JSON (RFC 8785) and its digest is the SHA-256 of those bytes: `sha256sum receipt.json` prints it. It
//! holds only what lifecycle and frames determine. Which worker folded it, from which stream, and who signed it stand
//! outside, in message headers or an envelope.
//!
//! Integers that can pass 2^53 are decimal strings; all others are JSON numbers. Paths and arguments that are not
//! UTF-8 are written with U+FFFD for what is not; `files[].path_hex` then holds the bytes.

mod compat;
mod facts;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use compat::{ReceiptError, ReceiptV03};
pub use facts::{CredentialChange, Dns, Exec, File, Operation, Process, Socket, Usage};

use crate::canonical::{CanonicalError, decimal};
use crate::files::Files;
use crate::ids::{Digest, NodeId, Vantage};
use crate::lifecycle::{Attached, Environment, Outcome, PolicyRef, Unavailable};

/// Largest receipt that is read, in bytes.
pub const MAX_RECEIPT_BYTES: usize = 64 * 1024 * 1024;

/// Where a receipt's facts come from, or what was watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Provenance {
    /// The node's kernel.
    #[serde(rename = "host")]
    Host,
    /// The kernel inside the virtual machine.
    #[serde(rename = "guest")]
    Guest,
    /// Both.
    #[serde(rename = "host+guest")]
    HostAndGuest,
}

impl Provenance {
    /// The provenance that the given vantage points add up to; `None` for none.
    pub fn of(vantages: impl IntoIterator<Item = Vantage>) -> Option<Self> {
        vantages.into_iter().fold(None, |sum, vantage| match (sum, vantage) {
            (sum, Vantage::Runner) => sum,
            (None | Some(Self::Host), Vantage::Host) => Some(Self::Host),
            (None | Some(Self::Guest), Vantage::Guest) => Some(Self::Guest),
            _ => Some(Self::HostAndGuest),
        })
    }
}

/// Whether anything is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Completeness {
    /// Shown: every expected vantage point sealed, every chain whole, nothing lost, nobody left.
    Closed,
    /// Something is or may be missing; `coverage.incomplete` says what.
    Partial,
}

/// The record of one execution.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Receipt {
    /// The grammar, `v0.4.0`.
    pub version: String,
    /// The execution. A UUIDv7; records of older grammars hold `cgroup:<id>` or `pid:<pid>:start:<start>`.
    pub execution_id: String,
    /// Where the facts come from.
    pub provenance: Provenance,
    /// Start of the execution, RFC 3339 with nanoseconds.
    pub timestamp: String,
    /// The same as `timestamp`.
    pub start_time: String,
    /// End of the execution.
    pub end_time: String,
    /// What was watched.
    pub observation_mode: Provenance,
    /// Whether anything is missing.
    pub completeness: Completeness,
    /// How the command ended.
    pub outcome: Outcome,
    /// How long it took.
    pub timing: Timing,
    /// Every process seen, parents first.
    pub process_tree: Vec<Process>,
    /// The older, flat form of the process tree.
    pub processes: Vec<FlatProcess>,
    /// Paths, the established summary.
    pub filesystem: Filesystem,
    /// Sockets, the established summary.
    pub network: Network,
    /// System calls.
    pub syscalls: Syscalls,
    /// The machine it ran on.
    pub environment: Environment,
    /// What ran it.
    pub execution: Execution,
    /// Hashes of what it printed, and its files.
    pub artifacts: Artifacts,
    /// The same as `outcome.exit_code`.
    pub exit_code: i32,
    /// The same as `timing.duration_ms`.
    pub duration_ms: u64,
    /// What it used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
    /// What was masked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub redactions: Vec<Redaction>,
    /// What enforcement on the node did; absent when there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<Policy>,

    /// What was watched, what was not, and what is missing.
    pub coverage: Coverage,
    /// What two vantage points say that cannot both be so. Each makes the receipt partial.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub contradictions: Vec<Contradiction>,
    /// Every file, with all that is known of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<File>,
    /// Every socket address, with all that is known of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sockets: Vec<Socket>,
    /// Every name asked of a name server, with the answers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dns: Vec<Dns>,
    /// What the kernel was asked for that few programs need: ptrace, bpf, namespaces, modules and the like.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub operations: Vec<Operation>,
    /// The frame chains that the facts were folded from.
    pub chain: Vec<ChainHead>,
    /// The submitter's labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// W3C trace id of the submitter's trace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace_id: Option<String>,
    /// The policies in force when it was admitted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub policies: Vec<PolicyRef>,
    /// What watching cost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe_cost: Option<ProbeCost>,
}

/// How long an execution took.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Timing {
    /// Wall time in milliseconds.
    pub duration_ms: u64,
    /// User and system CPU time in milliseconds.
    pub cpu_time_ms: u64,
}

/// A process in the older, flat form.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FlatProcess {
    /// Thread group id.
    pub pid: u32,
    /// Parent's thread group id.
    pub ppid: u32,
    /// The arguments, joined with spaces.
    pub cmd: String,
}

/// Paths, sorted and unique. Only what succeeded stands here; `files` has the attempts.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Filesystem {
    /// Opened for reading, or read through a descriptor that was there before.
    pub reads: Vec<String>,
    /// Opened for writing, written, created, made (directory, link, node), the new name of a rename, one of two names that
    /// changed places, or with another mode, owner or length than before.
    pub writes: Vec<String>,
    /// Removed, or the old name of a rename.
    pub deletes: Vec<String>,
    /// Paths that enforcement refused.
    pub policy_violations: Vec<String>,
}

/// Sockets in the established form.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Network {
    /// Where a connect succeeded or was begun, and where datagrams were sent to without one.
    pub connections: Vec<Connection>,
    /// Every connect, and every datagram sent without one, with its result.
    pub attempts: Vec<Attempt>,
    /// Bytes sent; absent where no hook counts them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_sent: Option<u64>,
    /// Bytes received; absent where no hook counts them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_received: Option<u64>,
}

/// A connection.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub struct Connection {
    /// `address:port`, or a unix socket's path.
    pub dst: String,
    /// `tcp`, `udp`, `unix`, or the protocol's number.
    pub protocol: String,
    /// A connect was attempted (always, in this grammar).
    pub attempted: bool,
}

/// A connect with its result.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub struct Attempt {
    /// `address:port`, or a unix socket's path.
    pub dst: String,
    /// `tcp`, `udp`, `unix`, or the protocol's number.
    pub protocol: String,
    /// `ok`, or the errno's name such as `ECONNREFUSED`.
    pub result: String,
    /// What enforcement said, empty for nothing.
    #[serde(default)]
    pub policy: String,
}

/// System calls of the whole execution.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Syscalls {
    /// Calls per name.
    pub counts: BTreeMap<String, u64>,
    /// Names of calls that were refused with EPERM or EACCES.
    pub denied: Vec<String>,
    /// How often each of those was refused.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub denied_counts: BTreeMap<String, u64>,
}

/// What ran the command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Execution {
    /// The backend.
    pub backend: String,
    /// How far it isolates.
    pub isolation: String,
    /// The node it ran on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeId>,
}

/// What went into the command and came out of it: hashes of what it printed, absent where it printed past Glasshouse (to a
/// terminal), and files that Glasshouse put into its working directory and took out of it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Artifacts {
    /// SHA-256 of standard output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdout_hash: Option<Digest>,
    /// SHA-256 of standard error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stderr_hash: Option<Digest>,
    /// The files.
    #[serde(flatten)]
    pub files: Files,
}

/// What the command used.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Resources {
    /// User and system CPU time in milliseconds.
    pub cpu_time_ms: u64,
    /// Largest resident set in KiB.
    pub max_rss_kb: u64,
}

/// What one redaction rule removed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub struct Redaction {
    /// The rule: a path prefix, or `tokens`.
    pub rule: String,
    /// How many values it masked.
    pub count: u64,
}

/// What enforcement on the node did.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Policy {
    /// Rules that were violated.
    pub violations: Vec<Violation>,
    /// What was done about it.
    pub enforcements: Vec<Enforcement>,
    /// Whether the policy's evaluation can be relied on.
    pub trusted: bool,
    /// Whether the policy failed.
    pub failed: bool,
}

/// A violated rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs, reason = "the established fields, named for what they hold")]
pub struct Violation {
    pub phase: String,
    pub rule: String,
    pub action: String,
    pub message: String,
}

/// An act of enforcement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs, reason = "the established fields, named for what they hold")]
pub struct Enforcement {
    pub action: String,
    pub target: String,
    pub rule: String,
    pub message: String,
}

/// What was watched, what was not, and what is missing.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Coverage {
    /// What each vantage point watched and counted.
    pub vantages: Vec<VantageCoverage>,
    /// Vantage points that were asked for and were not there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unavailable: Vec<Unavailable>,
    /// Why the receipt is not closed; empty when it is.
    pub incomplete: Vec<Incomplete>,
    /// Limits that left facts out of the lists above. The counters still have them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub caps: Vec<Cap>,
}

/// What one vantage point watched and counted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VantageCoverage {
    /// What it is and which hooks it has.
    #[serde(flatten)]
    pub attached: Attached,
    /// Whether it gave its seal.
    pub sealed: bool,
    /// Counters per class.
    pub classes: BTreeMap<String, ClassCoverage>,
    /// Tasks that left the execution's cgroup.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub escaped_tasks: u64,
    /// What was seen to pass beside the hooks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bypassed: Vec<String>,
    /// Paths that are longer than the probe carries.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub truncated_paths: u64,
}

/// `observed = delivered + collapsed + lost`, as decimal strings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct ClassCoverage {
    /// Facts that happened.
    #[serde(with = "decimal")]
    #[schemars(with = "String")]
    pub observed: u64,
    /// Facts with an event of their own.
    #[serde(with = "decimal")]
    #[schemars(with = "String")]
    pub delivered: u64,
    /// Facts folded into an identical event's count.
    #[serde(with = "decimal")]
    #[schemars(with = "String")]
    pub collapsed: u64,
    /// Facts of which nothing else is known.
    #[serde(with = "decimal")]
    #[schemars(with = "String")]
    pub lost: u64,
}

/// A reason why a receipt is not closed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub struct Incomplete {
    /// The vantage point it is about, where it is about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vantage: Option<Vantage>,
    /// A stable word: `exec_missing`, `seal_missing`, `lost_events`, `chain_broken`, `frames_missing`, `counters_differ`,
    /// `tasks_escaped`, `vantage_unavailable`, `producer_dead`, `lifecycle_missing`, `lifecycle_conflict`,
    /// `several_epochs`, `bypassed`, `contradiction`; `counters_unknown` in a receipt of an older grammar.
    pub reason: String,
    /// The class it is about, where it is about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<crate::Class>,
    /// For a person.
    pub detail: String,
}

/// What two vantage points say that cannot both be so. Which of them is right it does not say: a guest's root owns the
/// guest's kernel, and the process that carries a machine is no longer only that once somebody has come out of it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub struct Contradiction {
    /// A stable word:
    /// `exit` (the command ended otherwise than the guest's kernel tells), `nothing_ran` (the command ended, and the guest's
    /// kernel saw no program start), `guest_network` (the guest reached beyond its machine, and the host saw no way out),
    /// `vmm_network` (the machine's process used the network, of which nobody else knows), `vmm_program` (it ran another
    /// program), `vmm_file` (it opened or changed a file that is not its own).
    pub kind: String,
    /// Who says what.
    pub said: Vec<Statement>,
}

/// What a vantage point says.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub struct Statement {
    /// Who.
    pub vantage: Vantage,
    /// What, for a person.
    pub says: String,
}

/// A limit that left facts out of a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Cap {
    /// The list.
    pub list: String,
    /// How many entries it may have, or bytes of text where the list is named `… (bytes)`. Those that sort first stay.
    pub limit: u64,
    /// How many events are about entries that were left out; for a list inside an entry (`files[].by`), how many
    /// entries have it cut.
    #[serde(with = "decimal")]
    #[schemars(with = "String")]
    pub events_left_out: u64,
}

/// Where one frame chain ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ChainHead {
    /// The vantage point.
    pub vantage: Vantage,
    /// The node.
    pub node: NodeId,
    /// The epoch of the node's claim, decimal.
    #[serde(with = "decimal")]
    #[schemars(with = "String")]
    pub epoch: u64,
    /// Frames of the part of the chain that is whole from its beginning, decimal.
    #[serde(with = "decimal")]
    #[schemars(with = "String")]
    pub frames: u64,
    /// Digest of the last frame of that part.
    pub head: Digest,
}

/// What watching cost.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct ProbeCost {
    /// User-space CPU time of the probe, microseconds. An estimate: the probe serves all executions of its node.
    pub user_cpu_us: u64,
    /// CPU time of the probe's kernel programs, microseconds. An estimate from `kernel_samples`.
    #[serde(default)]
    pub kernel_cpu_us: u64,
    /// How many runs of the kernel programs were measured.
    #[serde(default)]
    pub kernel_samples: u64,
    /// Bytes of frames.
    pub frame_bytes: u64,
    /// Always true: see `user_cpu_us` and `kernel_cpu_us`.
    pub estimated: bool,
}

impl Receipt {
    /// The canonical JSON bytes, whose SHA-256 is the receipt's digest.
    pub fn encode(&self) -> Result<Vec<u8>, CanonicalError> {
        crate::canonical::to_vec(self)
    }
}

fn is_false(value: &bool) -> bool {
    !value
}

fn is_zero(value: &u64) -> bool {
    *value == 0
}
