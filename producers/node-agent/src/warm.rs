//! Machines of Firecracker that wait for a request, restored from one snapshot.
//!
//! The snapshot is made when the agent starts. A machine that a request took is replaced beside it; a request that needs more memory than
//! they have boots a machine of its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use glasshouse_execution::ExecutionSpec;
use glasshouse_execution::backend::BackendError;
use glasshouse_schema::ids::{ExecutionId, NodeId};
use glasshouse_schema::lifecycle::ProfilingMode;
use glasshouse_schema::{Digest, Limits};
use glasshouse_vm::VmBackend;
use glasshouse_vm::firecracker::{Config, Pool, Template};
use tokio::sync::Mutex;

/// A pool that is kept at its size.
pub(crate) struct Warm {
    template: Arc<Template>,
    pool: Pool,
    size: usize,
    /// Held while machines are added.
    filling: Mutex<()>,
    is_closed: AtomicBool,
}

impl std::fmt::Debug for Warm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Warm")
            .field("size", &self.size)
            .field("ready", &self.pool.ready())
            .finish_non_exhaustive()
    }
}

/// Of a machine that is made before there is a command.
pub(crate) fn spec(node: &NodeId) -> Result<ExecutionSpec, BackendError> {
    Ok(ExecutionSpec::new(new_id()?, node.clone(), vec!["machine".into()]))
}

fn new_id() -> Result<ExecutionId, BackendError> {
    glasshouse_runner::new_execution_id().map_err(|error| BackendError::failed("making an id", error))
}

impl Warm {
    /// Makes the snapshot, of a machine for commands with this much memory, and begins to restore so many machines from it.
    pub(crate) async fn start(
        config: Config,
        limits: Limits,
        size: usize,
        node: &NodeId,
    ) -> Result<Arc<Self>, BackendError> {
        let limits = Limits { memory_bytes: limits.memory_bytes, ..Limits::default() };
        let spec = spec(node)?;
        let template = Template::make(config, limits, &spec).await?;
        let pool = Pool::new(Arc::clone(&template), spec);
        let (filling, is_closed) = (Mutex::default(), AtomicBool::default());
        let warm = Arc::new(Self { template, pool, size, filling, is_closed });
        warm.fill();
        Ok(warm)
    }

    /// What its machines descend from.
    pub(crate) fn digest(&self) -> Digest {
        self.template.digest()
    }

    /// A machine for a command that is watched so; `None` if it may use more memory than these have.
    pub(crate) async fn take(self: &Arc<Self>, profile: ProfilingMode, limits: &Limits) -> Option<VmBackend> {
        if !self.template.fits(limits) {
            return None;
        }
        let machine = self.pool.take(profile).await;
        self.fill();
        Some(machine)
    }

    /// Restores what is missing, beside whoever asks.
    fn fill(self: &Arc<Self>) {
        let warm = Arc::clone(self);
        tokio::spawn(async move {
            let _filling = warm.filling.lock().await;
            while !warm.is_closed.load(Ordering::Relaxed) && warm.pool.ready() < warm.size {
                let added = async { warm.pool.add(new_id()?).await };
                if let Err(error) = added.await {
                    // The next request tries it again.
                    return tracing::warn!(%error, "a machine was not restored ahead");
                }
            }
        });
    }

    /// Ends the machines that wait; gives what is left of them, in words.
    pub(crate) async fn close(&self) -> Vec<String> {
        self.is_closed.store(true, Ordering::Relaxed);
        let _filling = self.filling.lock().await;
        self.pool.close().await
    }
}
