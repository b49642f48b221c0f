//! A working directory of an execution's own: made before it starts, with the files that it is given; read after its end for
//! the files that are asked for; removed.
//!
//! - What is in it when the command starts is what the request says, digest by digest, or the command does not start.
//! - What the command leaves in it may be anything. Nothing in there is followed: no link, no mount (`collect`, `remove`).
//! - It is there for the backend as any working directory is, so a sandbox shows it and the limit `disk` counts in it.

mod collect;
mod remove;

use std::fs::DirBuilder;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use glasshouse_execution::ExecutionSpec;
use glasshouse_execution::backend::{
    BackendError, ExecutionBackend, ExitReport, OutputReport, StartedProcess, StopSignal,
};
use glasshouse_nats::Bus;
use glasshouse_runner::files::Patterns;
use glasshouse_schema::files::{Files, StoredFile};
use glasshouse_schema::lifecycle::{Environment, Isolation};
use glasshouse_schema::limits::Limit;
use tokio::fs::OpenOptions;
use tokio::sync::watch;

use crate::agent::Phase;

pub(crate) use self::remove::{remove, remove_all_below};

/// A backend whose command has a working directory of its own.
pub(crate) struct Workspace {
    pub(crate) inner: Arc<dyn ExecutionBackend>,
    pub(crate) bus: Bus,
    pub(crate) dir: PathBuf,
    pub(crate) inputs: Vec<StoredFile>,
    pub(crate) artifacts: Patterns,
    /// Where the agent is in its life: killed, it stops taking files out.
    pub(crate) phase: watch::Receiver<Phase>,
    /// The command ran, and so may have left something.
    pub(crate) has_run: AtomicBool,
}

impl Workspace {
    /// Makes the directory and puts the files into it.
    async fn fill(&self) -> Result<(), BackendError> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(above(&self.dir));
        made.and_then(|()| DirBuilder::new().mode(0o700).create(&self.dir))
            .map_err(|error| BackendError::failed(format!("making {}", self.dir.display()), error))?;
        for file in &self.inputs {
            self.put(file)
                .await
                .map_err(|error| BackendError::failed(format!("bringing the file `{}`", file.path), error))?;
        }
        Ok(())
    }

    /// Nobody else writes here yet, so a path leads where it says.
    async fn put(&self, file: &StoredFile) -> Result<(), String> {
        let path = self.dir.join(&file.path);
        let said = |error: io::Error| error.to_string();
        DirBuilder::new().recursive(true).mode(0o755).create(above(&path)).map_err(said)?;
        let mut options = OpenOptions::new();
        let into = options.write(true).create_new(true).mode(0o600).open(&path).await;
        let mut into = into.map_err(said)?;
        self.bus.fetch_file(file, &mut into).await.map_err(|error| error.to_string())?;
        into.set_permissions(PermissionsExt::from_mode(file.mode)).await.map_err(said)
    }

    async fn collect(&self) -> Files {
        let mut phase = self.phase.clone();
        let killed = async move {
            // Errors say that the agent is gone.
            let _ = phase.wait_for(|phase| *phase == Phase::Killing).await;
        };
        let mut files = collect::collect(&self.bus, &self.dir, &self.artifacts, killed).await;
        files.inputs.clone_from(&self.inputs);
        files.sorted()
    }
}

fn above(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}

#[async_trait]
impl ExecutionBackend for Workspace {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn isolation(&self) -> Isolation {
        self.inner.isolation()
    }

    fn environment(&self) -> Environment {
        self.inner.environment()
    }

    fn guest_profiling(&self) -> Result<(), String> {
        self.inner.guest_profiling()
    }

    async fn prepare(&self, spec: &ExecutionSpec) -> Result<(), BackendError> {
        self.fill().await?;
        self.inner.prepare(spec).await
    }

    async fn start(&self, spec: &ExecutionSpec) -> Result<StartedProcess, BackendError> {
        self.inner.start(spec).await
    }

    async fn release(&self) -> Result<(), BackendError> {
        self.inner.release().await?;
        self.has_run.store(true, Ordering::Relaxed);
        Ok(())
    }

    async fn wait(&self) -> Result<ExitReport, BackendError> {
        self.inner.wait().await
    }

    async fn drain(&self, wait_for_descendants: bool) -> Result<OutputReport, BackendError> {
        let output = self.inner.drain(wait_for_descendants).await?;
        match self.has_run.load(Ordering::Relaxed) {
            true => Ok(OutputReport { files: self.collect().await, ..output }),
            false => Ok(output),
        }
    }

    async fn kill(&self, signal: StopSignal) -> Result<(), BackendError> {
        self.inner.kill(signal).await
    }

    async fn cleanup(&self) -> Vec<String> {
        let mut left = self.inner.cleanup().await;
        let dir = self.dir.clone();
        match tokio::task::spawn_blocking(move || remove(&dir)).await {
            Ok(kept) => left.extend(kept),
            Err(error) => left.push(format!("removing {}: {error}", self.dir.display())),
        }
        left
    }

    async fn exceeded(&self) -> Limit {
        self.inner.exceeded().await
    }

    fn ran_into(&self) -> Option<Limit> {
        self.inner.ran_into()
    }

    fn shares_process_group(&self) -> bool {
        self.inner.shares_process_group()
    }

    fn pidfd(&self) -> Option<OwnedFd> {
        self.inner.pidfd()
    }
}
