//! What a VMM is to a [`crate::VmBackend`]: a program that boots a guest whose probe connects to a socket.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use glasshouse_execution::backend::BackendError;
use glasshouse_execution::spec::ExecutionSpec;
use glasshouse_schema::lifecycle::Environment;
use glasshouse_schema::sandbox::SandboxRequest;

/// How a VMM is run.
#[derive(Debug, Clone)]
pub struct Launch {
    /// The program and its arguments.
    pub argv: Vec<OsString>,
    /// How far it is kept from the node, beside what it does itself.
    pub sandbox: SandboxRequest,
}

/// One kind of VMM, with what one machine of it needs. A value serves one execution.
#[async_trait]
pub trait Vmm: Send + Sync + 'static {
    /// The backend's name.
    fn name(&self) -> &'static str;

    /// What the guest will be, known before it boots.
    fn environment(&self) -> Environment;

    /// Whether the spec asks for what this VMM does not do.
    fn check(&self, spec: &ExecutionSpec) -> Result<(), BackendError>;

    /// Makes the machine's files in `dir`, which only the caller can read and which is removed in the end, and gives the
    /// command line of its VMM.
    async fn command(&self, spec: &ExecutionSpec, dir: &Path) -> Result<Launch, BackendError>;

    /// The Unix socket on which the guest's connection arrives; the backend listens there before the VMM runs.
    fn link(&self, dir: &Path) -> PathBuf {
        dir.join("link")
    }

    /// Boots the guest of a VMM that runs and has yet to be told to.
    async fn boot(&self, _dir: &Path) -> Result<(), BackendError> {
        Ok(())
    }
}
