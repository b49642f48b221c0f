//! What a profiling controller is: it attaches to a started execution and gives frames until it is sealed.
//!
//! ```text
//! controller.attach(target) -> Attachment { coverage, session }      armed: nothing is recorded yet
//!            barrier released, root execs                            recording
//! session.seal()                                                     last frame out, nothing more comes
//! drop(session) without seal                                         watching stops, the chain has no seal
//! ```
//! Attaching may fail: profiling is fail-open, so the engine publishes why and runs the command all the same, unless
//! profiling is required.

use std::sync::Arc;

use async_trait::async_trait;
use glasshouse_schema::ids::{Digest, ExecutionId, NodeId, Vantage};
use glasshouse_schema::lifecycle::{Attached, ProfilingMode};
use glasshouse_schema::redact::Redactor;

use crate::sink::EventSink;

/// What a controller is to watch.
#[derive(Debug, Clone)]
pub struct ProfilingTarget {
    /// The execution.
    pub execution: ExecutionId,
    /// The node.
    pub node: NodeId,
    /// The epoch of the node's claim.
    pub epoch: u64,
    /// What the backend says of the started command.
    pub identity: TargetIdentity,
    /// Masks values before frames are built.
    pub redactor: Redactor,
    /// Hold the command up rather than lose a fact, where the controller can.
    pub lossless: bool,
}

/// How the watched command is told from everything else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TargetIdentity {
    /// Thread group id of the command's root in the node's pid namespace; recording begins at its exec.
    pub root_pid: Option<u32>,
    /// Id of the execution's cgroup v2 (the inode of its directory).
    pub cgroup_id: Option<u64>,
}

/// What a controller can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// The vantage point it serves; `None` for one that serves nothing.
    pub vantage: Option<Vantage>,
    /// Whether one controller watches several executions at once.
    pub concurrent: bool,
}

/// Why profiling could not attach or seal.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{reason}")]
pub struct ProfilingError {
    /// For a person: what happened, why, and what to do.
    pub reason: String,
}

impl ProfilingError {
    /// An error with its reason.
    pub fn new(reason: impl Into<String>) -> Self {
        Self { reason: reason.into() }
    }
}

/// A controller's answer to [`ProfilingController::attach`].
pub struct Attachment {
    /// What is watched, for the `profiled` event.
    pub attached: Attached,
    /// Seals it.
    pub session: Box<dyn ProfilingSession>,
}

/// A source of frames from one vantage point.
#[async_trait]
pub trait ProfilingController: Send + Sync {
    /// Its name, such as `ebpf`.
    fn name(&self) -> &'static str;

    /// What it can do.
    fn capabilities(&self) -> Capabilities;

    /// Whether it would attach, found out before the command's process exists (programs are loaded here, so that
    /// attaching itself is quick).
    async fn ready(&self) -> Result<(), ProfilingError>;

    /// Watches `target` and hands its frames to `sink`, armed until the root's exec. Once per execution.
    async fn attach(
        &self,
        target: ProfilingTarget,
        sink: Arc<dyn EventSink>,
    ) -> Result<Attachment, ProfilingError>;
}

/// Where a sealed chain ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SealedChain {
    /// Frames in the chain, the seal included.
    pub frames: u64,
    /// Digest of the last.
    pub head: Digest,
}

/// One attached execution. Dropping it without a seal stops watching and leaves the chain unsealed.
#[async_trait]
pub trait ProfilingSession: Send {
    /// Drains what the kernel still holds, reads the counters, and hands the seal to the sink. Called once, when no
    /// task of the execution is left.
    async fn seal(self: Box<Self>) -> Result<SealedChain, ProfilingError>;
}

/// The controller of the mode `disabled`: attaches to nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoopController;

#[async_trait]
impl ProfilingController for NoopController {
    fn name(&self) -> &'static str {
        "noop"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { vantage: None, concurrent: true }
    }

    async fn ready(&self) -> Result<(), ProfilingError> {
        Err(ProfilingError::new(format!("profiling is {}", ProfilingMode::Disabled.as_str())))
    }

    async fn attach(&self, _: ProfilingTarget, _: Arc<dyn EventSink>) -> Result<Attachment, ProfilingError> {
        Err(ProfilingError::new(format!("profiling is {}", ProfilingMode::Disabled.as_str())))
    }
}
