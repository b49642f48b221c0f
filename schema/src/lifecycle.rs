//! The lifecycle of an execution: one JSON document per phase, published by whoever carries the phase out.
//!
//! ```text
//! requested -> admitted -> claimed -> prepared -> started -> profiled | unprofiled -> exited -> sealed -> cleaned
//!                  \__________\___________\_________\___________\______________\-> failed ---------------^
//! closed: published once by an aggregator worker; the fold of the execution ends exactly there.
//! ```
//!
//! Only who holds the claim may speak for an execution: `requested` and `admitted` are published once it is held, in
//! their order, and nothing at all if it is refused. `failed` says that Glasshouse, not the command, stopped at a step;
//! `cleaned` always follows. `sealed` names the chain heads that every attached vantage point ended with and is published
//! only when profiling was attached.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::canonical::decimal;
use crate::files::Files;
use crate::ids::{Digest, ExecutionId, NodeId, PolicyName, Vantage};
use crate::limits::{Limit, Limits};
use crate::sandbox::SandboxLevel;

/// Largest lifecycle document that is read, in bytes.
pub const MAX_LIFECYCLE_BYTES: usize = 256 * 1024;

/// One lifecycle event.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LifecycleEvent {
    /// Version of this document.
    pub schema_version: u32,
    /// The execution it is about.
    pub execution_id: ExecutionId,
    /// The node that published it; absent where no node is assigned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeId>,
    /// When, nanoseconds since the Unix epoch, decimal.
    #[serde(with = "decimal")]
    #[schemars(with = "String")]
    pub unix_ns: i64,
    /// The phase and what belongs to it.
    #[serde(flatten)]
    pub phase: Phase,
}

/// A phase with its details.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "phase", content = "detail", rename_all = "lowercase")]
pub enum Phase {
    /// Somebody asked for the execution.
    Requested(Requested),
    /// Pre-execution policy let it pass.
    Admitted(Admitted),
    /// A node took it, for ever.
    Claimed(Claimed),
    /// The backend has all it needs.
    Prepared(Prepared),
    /// The command's process exists, held behind the start barrier.
    Started(Started),
    /// Profiling is attached; this freezes which vantage points are expected.
    Profiled(Profiled),
    /// The command runs unobserved, and why.
    Unprofiled(Unprofiled),
    /// The command ended.
    Exited(Exited),
    /// Every attached vantage point that could be sealed is.
    Sealed(Sealed),
    /// Glasshouse failed at a step.
    Failed(Failed),
    /// What the execution needed is gone from the node.
    Cleaned(Cleaned),
    /// The record ends here.
    Closed(Closed),
}

/// The name of a phase: the last token of its subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs, reason = "each is documented at the variant of Phase that it names")]
pub enum PhaseName {
    Requested,
    Admitted,
    Claimed,
    Prepared,
    Started,
    Profiled,
    Unprofiled,
    Exited,
    Sealed,
    Failed,
    Cleaned,
    Closed,
}

impl PhaseName {
    /// Every phase in the order of an execution's life.
    pub const ALL: [Self; 12] = [
        Self::Requested,
        Self::Admitted,
        Self::Claimed,
        Self::Prepared,
        Self::Started,
        Self::Profiled,
        Self::Unprofiled,
        Self::Exited,
        Self::Sealed,
        Self::Failed,
        Self::Cleaned,
        Self::Closed,
    ];

    /// The subject token.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Requested => "requested",
            Self::Admitted => "admitted",
            Self::Claimed => "claimed",
            Self::Prepared => "prepared",
            Self::Started => "started",
            Self::Profiled => "profiled",
            Self::Unprofiled => "unprofiled",
            Self::Exited => "exited",
            Self::Sealed => "sealed",
            Self::Failed => "failed",
            Self::Cleaned => "cleaned",
            Self::Closed => "closed",
        }
    }

    /// Reads a subject token.
    pub fn parse(token: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|phase| phase.as_str() == token)
    }
}

impl Phase {
    /// The name of the phase.
    pub const fn name(&self) -> PhaseName {
        match self {
            Self::Requested(_) => PhaseName::Requested,
            Self::Admitted(_) => PhaseName::Admitted,
            Self::Claimed(_) => PhaseName::Claimed,
            Self::Prepared(_) => PhaseName::Prepared,
            Self::Started(_) => PhaseName::Started,
            Self::Profiled(_) => PhaseName::Profiled,
            Self::Unprofiled(_) => PhaseName::Unprofiled,
            Self::Exited(_) => PhaseName::Exited,
            Self::Sealed(_) => PhaseName::Sealed,
            Self::Failed(_) => PhaseName::Failed,
            Self::Cleaned(_) => PhaseName::Cleaned,
            Self::Closed(_) => PhaseName::Closed,
        }
    }
}

/// Which vantage points are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ProfilingMode {
    /// None; nothing is loaded.
    #[default]
    Disabled,
    /// The node's kernel.
    Host,
    /// The kernel inside the virtual machine.
    Guest,
    /// Both, reconciled.
    Combined,
}

impl ProfilingMode {
    /// The vantage points the mode asks for.
    pub const fn vantages(self) -> &'static [Vantage] {
        match self {
            Self::Disabled => &[],
            Self::Host => &[Vantage::Host],
            Self::Guest => &[Vantage::Guest],
            Self::Combined => &[Vantage::Host, Vantage::Guest],
        }
    }

    /// The name of the mode on the command line and in documents.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Disabled => "disabled",
            Self::Host => "host",
            Self::Guest => "guest",
            Self::Combined => "combined",
        }
    }
}

/// Details of `requested`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Requested {
    /// The command and its arguments, masked by the redaction rules.
    pub argv: Vec<String>,
    /// The working directory.
    pub workdir: String,
    /// Which backend is to run it.
    pub backend: String,
    /// Which vantage points are asked for.
    pub profile: ProfilingMode,
    /// Whether to refuse to run unobserved.
    pub profile_required: bool,
    /// The submitter's labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// W3C trace id, 32 hexadecimal digits, of the submitter's trace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace_id: Option<String>,
}

/// A policy in force, pinned by its digest.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub struct PolicyRef {
    /// Its name.
    pub name: PolicyName,
    /// Its version, as its document says.
    pub version: String,
    /// SHA-256 of its canonical form.
    pub digest: Digest,
}

/// Which values are masked before they leave the node.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct RedactionRules {
    /// Paths under these prefixes are masked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub path_prefixes: Vec<String>,
    /// Token-like values in arguments are masked.
    pub tokens: bool,
}

/// Details of `admitted`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Admitted {
    /// The policies in force.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub policies: Vec<PolicyRef>,
    /// The redaction rules in force.
    #[serde(default)]
    pub redaction: RedactionRules,
    /// The sandbox that is asked for.
    #[serde(default, skip_serializing_if = "SandboxLevel::is_none")]
    pub sandbox: SandboxLevel,
    /// The limits that are asked for.
    #[serde(default, skip_serializing_if = "Limits::is_empty")]
    pub limits: Limits,
}

/// Details of `claimed`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Claimed {
    /// The node that took it.
    pub node: NodeId,
    /// The claim's epoch; frames of another epoch are not this attempt's. Decimal.
    #[serde(with = "decimal")]
    #[schemars(with = "String")]
    pub epoch: u64,
}

/// How far a backend keeps the command from the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Isolation {
    /// Not at all.
    None,
    /// A process of the node in its own cgroup.
    Process,
    /// Namespaces of the node's kernel.
    Container,
    /// A kernel of its own.
    Vm,
}

impl Isolation {
    /// The name in a receipt.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Process => "process",
            Self::Container => "container",
            Self::Vm => "vm",
        }
    }
}

/// The machine the command runs on, as a receipt's `environment` says it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Environment {
    /// The runtime, such as `process` or `firecracker`.
    pub runtime: String,
    /// The operating system.
    pub os: String,
    /// The architecture, as `uname -m` names it.
    pub arch: String,
    /// The kernel release.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub kernel: String,
    /// The snapshot that the machine was cloned from: the SHA-256 of its state and memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<Digest>,
    /// The image that the command's root filesystem comes from, where it is not the node's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<Image>,
    /// What the sandbox lets through.
    pub sandbox: Sandbox,
    /// What carries the virtual machine, where the command runs in one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vmm: Option<VmmBounds>,
}

/// An image of a root filesystem, as it was when its machine or container was prepared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Image {
    /// What it is called: a path of the node, or containerd's reference.
    pub name: String,
    /// Of a file the SHA-256 of its bytes. Of an image in containerd the SHA-256 by which registries know it: that of its index or manifest.
    pub digest: Digest,
}

/// What the process that carries a virtual machine needs of the node. When the host sees it do anything else, the guest
/// may have come out of its machine, and the receipt has a contradiction.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct VmmBounds {
    /// The programs that it is, by the path that the kernel resolves.
    pub programs: Vec<String>,
    /// Files and folders that it may open.
    pub reads: Vec<String>,
    /// Files and folders that it may change, too.
    pub writes: Vec<String>,
    /// Where the machine's network is sockets of this process (user-mode): the address at which the guest reaches what listens on
    /// the node's 127.0.0.1. Every other address is the same on both sides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loopback: Option<String>,
    /// The server by which the guest's probe speaks to its host over that network, ADDRESS:PORT as this process connects to it by
    /// TCP. The guest does not tell of that connection: it is not the command's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<String>,
}

/// What the sandbox lets through.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Sandbox {
    /// `host`, `none` or `allow-list`; `unknown` of a machine that is not the node's.
    pub network: String,
    /// All that can be connected to; names with the addresses that the node found for them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub connect: Vec<String>,
    /// How far the command is kept from the node.
    #[serde(default, skip_serializing_if = "SandboxLevel::is_none")]
    pub level: SandboxLevel,
    /// The limits that were asked for.
    #[serde(default, skip_serializing_if = "Limits::is_empty")]
    pub limits: Limits,
    /// What was asked for, or belongs to the level, and this node could not apply; each with its reason.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_applied: Vec<String>,
}

/// Details of `prepared`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Prepared {
    /// The backend.
    pub backend: String,
    /// How far it isolates.
    pub isolation: Isolation,
    /// What it runs on.
    pub environment: Box<Environment>,
}

/// Details of `started`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Started {
    /// The root process in the backend's pid namespace; absent where there is none (a VM).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root_pid: Option<u32>,
}

/// What a vantage point watches.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Attached {
    /// The vantage point.
    pub vantage: Vantage,
    /// The controller that serves it, such as `ebpf`.
    pub controller: String,
    /// The hooks that are attached.
    pub hooks: Vec<String>,
    /// What these hooks cannot see.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub blind_spots: Vec<String>,
}

/// A vantage point that was asked for and is not there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Unavailable {
    /// The vantage point.
    pub vantage: Vantage,
    /// Why, in words for a person.
    pub reason: String,
}

/// Details of `profiled`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Profiled {
    /// The vantage points whose seals are expected.
    pub attached: Vec<Attached>,
    /// Those that were asked for and are not there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unavailable: Vec<Unavailable>,
}

/// Details of `unprofiled`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Unprofiled {
    /// Why, in words for a person; `profiling is disabled` when nobody asked for it.
    pub reason: String,
    /// Each vantage point that was asked for, with its own reason.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unavailable: Vec<Unavailable>,
}

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Outcome {
    /// Its exit code; 128 + n for signal n; 126, 127 or 125 when it never ran.
    pub exit_code: i32,
    /// The signal that ended it, such as `SIGKILL`.
    pub signal: Option<String>,
    /// Why Glasshouse, not the command, ended it.
    pub error: Option<String>,
    /// The limit that the execution ran into. It ended for that, but for `pids`: then a fork was refused, and the rest
    /// is the command's own end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit_exceeded: Option<Limit>,
}

/// Details of `exited`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Exited {
    /// How it ended.
    pub outcome: Outcome,
    /// When the start barrier was released, nanoseconds since the Unix epoch, decimal.
    #[serde(with = "decimal")]
    #[schemars(with = "String")]
    pub start_unix_ns: i64,
    /// When the root ended, likewise.
    #[serde(with = "decimal")]
    #[schemars(with = "String")]
    pub end_unix_ns: i64,
    /// Resources, where the backend knows them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rusage: Option<Rusage>,
    /// SHA-256 of standard output, where it went through Glasshouse.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdout_hash: Option<Digest>,
    /// SHA-256 of standard error, likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stderr_hash: Option<Digest>,
    /// Files that were put into the working directory, and those that were taken out of it.
    #[serde(default, skip_serializing_if = "Files::is_empty")]
    pub files: Box<Files>,
}

/// What a command used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Rusage {
    /// User and system CPU time in milliseconds.
    pub cpu_time_ms: u64,
    /// Largest resident set in KiB.
    pub max_rss_kb: u64,
}

/// Where the chain of one vantage point ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SealedVantage {
    /// The vantage point.
    pub vantage: Vantage,
    /// Frames in the chain, the seal included; decimal.
    #[serde(with = "decimal")]
    #[schemars(with = "String")]
    pub frames: u64,
    /// Digest of the last frame.
    pub head: Digest,
}

/// Details of `sealed`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Sealed {
    /// The chains that ended with a seal.
    pub vantages: Vec<SealedVantage>,
    /// The expected vantage points that gave no seal, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<Unavailable>,
}

/// The engine's steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "each is the engine's step of that name")]
pub enum Step {
    Validate,
    Admit,
    Claim,
    Prepare,
    Start,
    Attach,
    Release,
    Wait,
    Seal,
    Cleanup,
}

impl Step {
    /// The name of the step in documents and spans.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Validate => "validate",
            Self::Admit => "admit",
            Self::Claim => "claim",
            Self::Prepare => "prepare",
            Self::Start => "start",
            Self::Attach => "attach",
            Self::Release => "release",
            Self::Wait => "wait",
            Self::Seal => "seal",
            Self::Cleanup => "cleanup",
        }
    }
}

/// Details of `failed`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Failed {
    /// The step at which Glasshouse failed.
    pub step: Step,
    /// Why.
    pub error: String,
    /// The outcome that the caller sees.
    pub outcome: Outcome,
}

/// Details of `cleaned`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Cleaned {
    /// What could not be removed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<String>,
}

/// Why a record ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ClosedReason {
    /// Every expected vantage point sealed, or there was none.
    Sealed,
    /// The engine ended without every expected seal.
    SealMissing,
    /// The producer is gone.
    ProducerDead,
}

/// Details of `closed`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Closed {
    /// Why.
    pub reason: ClosedReason,
}

/// Why a lifecycle document was refused.
#[derive(Debug, thiserror::Error)]
pub enum LifecycleError {
    /// It is larger than a reader takes.
    #[error("the document has {0} bytes, more than the {MAX_LIFECYCLE_BYTES} that are read")]
    TooLarge(usize),
    /// It is not JSON of this shape.
    #[error("the document is not a lifecycle event: {0}")]
    Malformed(#[from] serde_json::Error),
    /// It was written by something newer.
    #[error("the document has version {0}, newer than {supported}, the newest this reader knows", supported = crate::version::LIFECYCLE)]
    TooNew(u32),
}

#[derive(Deserialize)]
struct Versioned {
    schema_version: u32,
}

/// The version that a document says it has, whether this reader knows it or not.
pub fn version_of(bytes: &[u8]) -> Option<u32> {
    let fits = bytes.len() <= MAX_LIFECYCLE_BYTES;
    fits.then(|| serde_json::from_slice::<Versioned>(bytes).ok())
        .flatten()
        .map(|document| document.schema_version)
}

impl LifecycleEvent {
    /// Reads a document, its size checked first. That it is newer explains why it could not be read.
    pub fn decode(bytes: &[u8]) -> Result<Self, LifecycleError> {
        if bytes.len() > MAX_LIFECYCLE_BYTES {
            return Err(LifecycleError::TooLarge(bytes.len()));
        }
        let read = serde_json::from_slice::<Self>(bytes);
        let version = match &read {
            Ok(event) => event.schema_version,
            Err(_) => serde_json::from_slice::<Versioned>(bytes)?.schema_version,
        };
        match version > crate::version::LIFECYCLE {
            true => Err(LifecycleError::TooNew(version)),
            false => Ok(read?),
        }
    }

    /// The canonical JSON bytes, as they are published.
    pub fn encode(&self) -> Result<Vec<u8>, crate::canonical::CanonicalError> {
        crate::canonical::to_vec(self)
    }
}
