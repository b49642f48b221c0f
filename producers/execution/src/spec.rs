//! What is to be run, and how.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::{Component, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use glasshouse_schema::ids::{ExecutionId, NodeId};
use glasshouse_schema::lifecycle::{Isolation, PolicyRef, ProfilingMode, RedactionRules};
use glasshouse_schema::limits::{LimitError, Limits};
use glasshouse_schema::sandbox::{NetworkAccess, SandboxLevel, SandboxRequest};
use glasshouse_schema::subject::OutputStream;

/// Most bytes of label names and values together.
pub const MAX_LABEL_BYTES: usize = 16 * 1024;
/// Most targets that a sandboxed command can be allowed to connect to.
pub const MAX_CONNECT_TARGETS: usize = 256;

/// How the command's standard streams are connected.
#[derive(Debug, Clone, Default)]
pub enum StdStreams {
    /// A stream that is a terminal is handed through a pty proxy; any other is teed through a pipe to the caller's
    /// stream and a hash.
    #[default]
    Proxy,
    /// Standard input is /dev/null; output is hashed and kept (bounded) for the caller.
    Capture,
    /// Standard input is the given bytes; output is hashed and handed over as it comes.
    Handed {
        /// All of standard input.
        stdin: Arc<[u8]>,
        /// Takes the output.
        output: OutputTap,
    },
    /// Standard input is read from a descriptor; output is handed over as it comes, and not hashed.
    Connected {
        /// Standard input. Who else holds it keeps its writer from being told that nobody reads.
        stdin: Arc<OwnedFd>,
        /// Takes the output.
        output: OutputTap,
    },
    /// Somebody else's streams, given to the command as they are: nothing is copied, and nothing is hashed.
    Given {
        /// The streams.
        streams: GivenStreams,
        /// Standard input is a terminal that nobody controls yet: the command leads a session on it.
        is_terminal: bool,
    },
}

/// Three streams of somebody else, for one execution. Once the command has them nobody here does, so that whoever reads
/// them sees their end.
#[derive(Debug, Clone)]
pub struct GivenStreams(Arc<Mutex<Option<[OwnedFd; 3]>>>);

impl GivenStreams {
    /// Standard input, output and error.
    pub fn new(streams: [OwnedFd; 3]) -> Self {
        Self(Arc::new(Mutex::new(Some(streams))))
    }

    /// Takes them; `None` the second time.
    pub fn take(&self) -> Option<[OwnedFd; 3]> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// The user that a command runs as, where that is not the one of this process. Root is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunAs {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// File mode creation mask.
    pub umask: u32,
    /// Resource limits, of which none may exceed this process's: number (RLIMIT_*), soft and hard value.
    pub resources: Vec<(u32, u64, u64)>,
}

/// Takes what a command prints, from a plain thread per stream. While it blocks, the command can print no more than a pipe
/// holds.
#[derive(Clone)]
pub struct OutputTap(Arc<Take>);

type Take = dyn Fn(OutputStream, &[u8]) + Send + Sync;

impl OutputTap {
    /// Hands every chunk to `take`.
    pub fn new(take: impl Fn(OutputStream, &[u8]) + Send + Sync + 'static) -> Self {
        Self(Arc::new(take))
    }

    /// Hands over a chunk.
    pub fn take(&self, stream: OutputStream, bytes: &[u8]) {
        (self.0)(stream, bytes);
    }
}

impl std::fmt::Debug for OutputTap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OutputTap")
    }
}

/// One execution, as the engine takes it. [`ExecutionSpec::validate`] says what is wrong with it.
#[derive(Debug, Clone)]
pub struct ExecutionSpec {
    /// Its identity.
    pub id: ExecutionId,
    /// The node that runs it.
    pub node: NodeId,
    /// The program and its arguments; never empty.
    pub argv: Vec<OsString>,
    /// The environment; `None` inherits the caller's.
    pub env: Option<Vec<(OsString, OsString)>>,
    /// The working directory; `None` inherits the caller's.
    pub workdir: Option<PathBuf>,
    /// Standard streams.
    pub streams: StdStreams,
    /// Who runs it; `None` for the user of this process. Another user's command gains no privileges by what it executes, as
    /// under a tracer: what is watched is that user's alone.
    pub run_as: Option<RunAs>,
    /// Which vantage points to watch from.
    pub profile: ProfilingMode,
    /// Refuse to run unobserved (fail closed).
    pub profile_required: bool,
    /// Hold the command up rather than lose a fact about it, where the controller can.
    pub lossless: bool,
    /// Prepare the machine first, as PID 1 of a VM or container must.
    pub guest_prep: bool,
    /// Wait for every process of the command instead of killing those that outlive its root.
    pub wait_for_descendants: bool,
    /// How far the command is kept from the node.
    pub sandbox: SandboxRequest,
    /// What it may use.
    pub limits: Limits,
    /// The submitter's labels.
    pub labels: BTreeMap<String, String>,
    /// The policies in force, pinned.
    pub policies: Vec<PolicyRef>,
    /// What is masked before it leaves the node.
    pub redaction: RedactionRules,
    /// Key of the redaction marks; random, never published.
    pub redaction_key: [u8; 32],
}

/// Why a spec cannot be run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// No program.
    #[error("there is no command to run")]
    NoCommand,
    /// A NUL byte where the kernel takes none.
    #[error("the {0} holds a NUL byte")]
    NulByte(&'static str),
    /// An environment name that is empty or holds `=`.
    #[error("`{0}` is not an environment variable's name")]
    BadEnvName(String),
    /// More than a lifecycle event may carry.
    #[error("the labels have {0} bytes in all, more than the {MAX_LABEL_BYTES} that are taken")]
    LabelsTooLarge(usize),
    /// Failing closed needs something to fail.
    #[error("profiling is required but disabled: choose a profile of host, guest or combined")]
    RequiredButDisabled,
    /// Nothing watches, so nothing can be lost.
    #[error(
        "lossless profiling is asked for but profiling is disabled: choose a profile of host, guest or combined"
    )]
    LosslessButDisabled,
    /// A limit that cannot be one.
    #[error(transparent)]
    BadLimit(#[from] LimitError),
    /// Paths or a network for a sandbox that there is none of.
    #[error("allowed paths and networks are for a sandbox: choose the level standard or strict")]
    SandboxWithoutLevel,
    /// The level promises that there is none.
    #[error(
        "the sandbox level strict has no network, or what is allowed: choose the level standard, or leave the network out"
    )]
    StrictWithNetwork,
    /// Two answers to one question.
    #[error("what can be connected to is a list, or no list: leave the network out where there is a list")]
    NetworkAndList,
    /// More than the node looks up.
    #[error("{0} targets are more than the {MAX_CONNECT_TARGETS} that can be allowed")]
    TooManyTargets(usize),
    /// Relative to what would not be clear.
    #[error("the allowed path `{0}` is not absolute, or goes through `..`")]
    BadPath(String),
    /// A command that prepares the machine is not kept from it.
    #[error("a command that prepares the machine (guest) cannot be in a sandbox")]
    GuestInSandbox,
    /// What this process has is not another user's.
    #[error(
        "a command of another user needs an environment, an absolute working directory and streams of its own, and is not root's"
    )]
    InheritedByAnother,
}

impl ExecutionSpec {
    /// A command of which nothing is asked: it is not watched, has no limits, and its output is kept.
    pub fn new(id: ExecutionId, node: NodeId, argv: Vec<OsString>) -> Self {
        Self {
            id,
            node,
            argv,
            env: None,
            workdir: None,
            streams: StdStreams::Capture,
            run_as: None,
            profile: ProfilingMode::Disabled,
            profile_required: false,
            lossless: false,
            guest_prep: false,
            wait_for_descendants: false,
            sandbox: SandboxRequest::default(),
            limits: Limits::default(),
            labels: BTreeMap::new(),
            policies: Vec::new(),
            redaction: RedactionRules::default(),
            redaction_key: [0; 32],
        }
    }

    /// Checks what can be checked before anything is touched, of a command on the node itself.
    pub fn validate(&self) -> Result<(), SpecError> {
        self.validate_in(Isolation::Process)
    }

    /// The same of a command that is so far from the node: a machine of its own has a network without a sandbox around it.
    pub fn validate_in(&self, isolation: Isolation) -> Result<(), SpecError> {
        use std::os::unix::ffi::OsStrExt;
        let has_nul = |text: &std::ffi::OsStr| text.as_bytes().contains(&0);
        match self.argv.first() {
            None => return Err(SpecError::NoCommand),
            Some(program) if program.is_empty() => return Err(SpecError::NoCommand),
            Some(_) => {}
        }
        if self.argv.iter().any(|argument| has_nul(argument)) {
            return Err(SpecError::NulByte("command"));
        }
        if self.workdir.as_ref().is_some_and(|dir| has_nul(dir.as_os_str())) {
            return Err(SpecError::NulByte("working directory"));
        }
        for (name, value) in self.env.iter().flatten() {
            if name.is_empty() || name.as_bytes().contains(&b'=') {
                return Err(SpecError::BadEnvName(name.to_string_lossy().into_owned()));
            }
            if has_nul(name) || has_nul(value) {
                return Err(SpecError::NulByte("environment"));
            }
        }
        let label_bytes = self.labels.iter().map(|(name, value)| name.len() + value.len()).sum();
        if label_bytes > MAX_LABEL_BYTES {
            return Err(SpecError::LabelsTooLarge(label_bytes));
        }
        if self.profile_required && self.profile == ProfilingMode::Disabled {
            return Err(SpecError::RequiredButDisabled);
        }
        if self.lossless && self.profile == ProfilingMode::Disabled {
            return Err(SpecError::LosslessButDisabled);
        }
        if let Some(user) = &self.run_as {
            let has_own = self.env.is_some()
                && self.workdir.as_ref().is_some_and(|dir| dir.is_absolute())
                && !matches!(self.streams, StdStreams::Proxy)
                && !self.guest_prep;
            if !has_own || user.uid == 0 {
                return Err(SpecError::InheritedByAnother);
            }
        }
        self.limits.validate()?;
        self.validate_sandbox(isolation)
    }

    fn validate_sandbox(&self, isolation: Isolation) -> Result<(), SpecError> {
        let SandboxRequest { level, network, read, write, connect } = &self.sandbox;
        if *level == SandboxLevel::None {
            let asks_network = network.is_some() || !connect.is_empty();
            if !(read.is_empty() && write.is_empty()) || (asks_network && isolation != Isolation::Vm) {
                return Err(SpecError::SandboxWithoutLevel);
            }
        } else if self.guest_prep {
            return Err(SpecError::GuestInSandbox);
        }
        if *level == SandboxLevel::Strict && *network == Some(NetworkAccess::Host) {
            return Err(SpecError::StrictWithNetwork);
        }
        if network.is_some_and(|network| (network == NetworkAccess::AllowList) == connect.is_empty()) {
            return Err(SpecError::NetworkAndList);
        }
        if connect.len() > MAX_CONNECT_TARGETS {
            return Err(SpecError::TooManyTargets(connect.len()));
        }
        for path in read.iter().chain(write) {
            let is_plain = path.is_absolute() && !path.components().any(|part| part == Component::ParentDir);
            if !is_plain {
                return Err(SpecError::BadPath(path.to_string_lossy().into_owned()));
            }
            if path.as_os_str().as_encoded_bytes().contains(&0) {
                return Err(SpecError::NulByte("allowed path"));
            }
        }
        Ok(())
    }
}
