//! Where there is no Linux: a backend that says so.

use async_trait::async_trait;
use glasshouse_execution::backend::{
    BackendError, ExecutionBackend, ExitReport, OutputReport, StartedProcess, StopSignal,
};
use glasshouse_execution::spec::ExecutionSpec;
use glasshouse_schema::lifecycle::{Environment, Isolation};

/// The process backend of a system that is not Linux: every execution fails with the reason.
#[derive(Debug, Default)]
pub struct ProcessBackend;

impl ProcessBackend {
    /// A backend for one execution.
    pub fn new() -> Self {
        Self
    }

    /// There are none.
    pub fn end_orphans() -> Result<Vec<String>, String> {
        Ok(Vec::new())
    }
}

fn unsupported() -> BackendError {
    BackendError::failed(
        "running a command here",
        "the backend `process` needs Linux; submit the execution to a node with --nats",
    )
}

#[async_trait]
impl ExecutionBackend for ProcessBackend {
    fn name(&self) -> &'static str {
        "process"
    }
    fn isolation(&self) -> Isolation {
        Isolation::Process
    }
    fn environment(&self) -> Environment {
        Environment {
            runtime: "process".into(),
            os: std::env::consts::OS.into(),
            arch: std::env::consts::ARCH.into(),
            ..Environment::default()
        }
    }
    async fn prepare(&self, _: &ExecutionSpec) -> Result<(), BackendError> {
        Err(unsupported())
    }
    async fn start(&self, _: &ExecutionSpec) -> Result<StartedProcess, BackendError> {
        Err(unsupported())
    }
    async fn release(&self) -> Result<(), BackendError> {
        Err(unsupported())
    }
    async fn wait(&self) -> Result<ExitReport, BackendError> {
        Err(unsupported())
    }
    async fn drain(&self, _: bool) -> Result<OutputReport, BackendError> {
        Err(unsupported())
    }
    async fn kill(&self, _: StopSignal) -> Result<(), BackendError> {
        Ok(())
    }
    async fn cleanup(&self) -> Vec<String> {
        Vec::new()
    }
}
