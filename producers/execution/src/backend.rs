//! What a backend is.
//!
//! ```text
//! prepare -> start -> release -> wait -> drain -> cleanup
//!    |         |                  ^ kill any time after start, from another task
//!    \---------\---- an error goes straight to cleanup
//! ```
//! - One backend value serves one execution.
//! - `prepare`, `start`, `release`, `wait` and `drain` are called once each, in this order.
//! - `cleanup` is always called, last, whatever failed before; it is idempotent and removes what is left.
//! - A dropped future leaves the backend in a state in which `kill` and `cleanup` still work.

use std::os::fd::OwnedFd;

use async_trait::async_trait;
use glasshouse_schema::files::Files;
use glasshouse_schema::ids::Digest;
use glasshouse_schema::lifecycle::{Environment, Isolation, Rusage};
use glasshouse_schema::limits::Limit;

use crate::profiling::TargetIdentity;
use crate::spec::ExecutionSpec;

/// What went wrong in a backend.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BackendError {
    /// The command's program does not exist (exit code 127).
    #[error("{program}: command not found")]
    NotFound {
        /// As the caller wrote it.
        program: String,
    },
    /// The program exists and cannot be executed (exit code 126).
    #[error("{program}: cannot execute: {reason}")]
    CannotExecute {
        /// As the caller wrote it.
        program: String,
        /// The kernel's reason.
        reason: String,
    },
    /// Anything else (exit code 125).
    #[error("{action}: {reason}")]
    Failed {
        /// What was being done, such as `making the cgroup /sys/fs/cgroup/glasshouse/…`.
        action: String,
        /// Why it failed, and what to do where that is known.
        reason: String,
    },
}

impl BackendError {
    /// An error at an action.
    pub fn failed(action: impl Into<String>, reason: impl std::fmt::Display) -> Self {
        Self::Failed { action: action.into(), reason: reason.to_string() }
    }

    /// The exit code that the caller sees.
    pub const fn exit_code(&self) -> i32 {
        match self {
            Self::NotFound { .. } => 127,
            Self::CannotExecute { .. } => 126,
            Self::Failed { .. } => 125,
        }
    }
}

/// A command whose process exists, held behind the start barrier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StartedProcess {
    /// How profiling tells it from everything else.
    pub identity: TargetIdentity,
}

/// How the root ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExitReport {
    /// The exit code, or the signal's number.
    pub status: ExitStatus,
    /// What it used, where the backend knows.
    pub rusage: Option<Rusage>,
}

/// Exit code or signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitStatus {
    /// It exited with this code.
    Code(i32),
    /// This signal ended it.
    Signal(i32),
}

/// What the command printed, once every writer is gone.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OutputReport {
    /// SHA-256 of standard output, where it went through the backend.
    pub stdout_hash: Option<Digest>,
    /// SHA-256 of standard error, likewise.
    pub stderr_hash: Option<Digest>,
    /// Files that were put into the working directory and taken out of it.
    pub files: Files,
    /// What was captured of standard output ([`crate::spec::StdStreams::Capture`] only).
    pub stdout: Vec<u8>,
    /// What was captured of standard error, likewise.
    pub stderr: Vec<u8>,
}

/// How a running command is ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopSignal {
    /// SIGTERM to the root.
    Terminate,
    /// SIGKILL to everything.
    Kill,
    /// This signal number to the root.
    Number(i32),
}

/// Runs one execution. See the module for order, idempotence and cancellation.
#[async_trait]
pub trait ExecutionBackend: Send + Sync {
    /// Its name in requests and receipts.
    fn name(&self) -> &'static str;

    /// How far it isolates.
    fn isolation(&self) -> Isolation;

    /// What the command runs on.
    fn environment(&self) -> Environment;

    /// Whether a guest vantage point exists; `Err` says why not.
    fn guest_profiling(&self) -> Result<(), String> {
        Err(format!("the backend `{}` has no guest: its commands run on the node's own kernel", self.name()))
    }

    /// Makes what the execution needs (cgroup, namespaces, image).
    async fn prepare(&self, spec: &ExecutionSpec) -> Result<(), BackendError>;

    /// Makes the command's process, held behind the barrier: no instruction of the command has run.
    async fn start(&self, spec: &ExecutionSpec) -> Result<StartedProcess, BackendError>;

    /// Lets the command go. Returns when its program runs, or with why it cannot.
    async fn release(&self) -> Result<(), BackendError>;

    /// Waits for the root's end.
    async fn wait(&self) -> Result<ExitReport, BackendError>;

    /// After the root's end: kills the rest of the execution (or waits for it, if `wait_for_descendants`), returns
    /// when no task is left and the output is read to its end.
    async fn drain(&self, wait_for_descendants: bool) -> Result<OutputReport, BackendError>;

    /// Ends a started command, from any task. Fine to call at any time, any number of times: before `start` the
    /// signal is kept and given to the command while it is held. After the root's end a signal is for what `drain` still
    /// waits for: the rest of the execution first, the copying of its output when there is no rest.
    async fn kill(&self, signal: StopSignal) -> Result<(), BackendError>;

    /// Removes what is left; gives what could not be removed, in words.
    async fn cleanup(&self) -> Vec<String>;

    /// Returns once a limit of the spec is exceeded for which the execution has to be ended, from another task while
    /// the command runs; never, if the kernel or nobody holds it to its limits. Wall time is the engine's.
    async fn exceeded(&self) -> Limit {
        std::future::pending().await
    }

    /// After `drain`: the limit that the execution ran into, as far as the backend knows.
    fn ran_into(&self) -> Option<Limit> {
        None
    }

    /// Whether the command runs in the caller's own process group, so that the caller's terminal gives it ^C by
    /// itself. False before `start` and after the root's end.
    fn shares_process_group(&self) -> bool {
        false
    }

    /// A file descriptor that is readable once the root has ended, for backends that have one.
    fn pidfd(&self) -> Option<OwnedFd> {
        None
    }
}
