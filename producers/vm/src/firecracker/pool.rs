//! Clones that are restored before they are needed.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use glasshouse_execution::backend::{BackendError, ExecutionBackend as _};
use glasshouse_execution::spec::ExecutionSpec;
use glasshouse_schema::ids::{ExecutionId, Vantage};
use glasshouse_schema::lifecycle::ProfilingMode;

use super::Template;
use crate::backend::VmBackend;

/// Machines of one template whose guests wait for a command. One serves one execution and is gone with it.
///
/// The VMM of such a machine ran before anybody watched: where a host has to see its exec, [`Pool::take`] gives one that is
/// restored by then. [`Pool::close`] has to be called in the end.
pub struct Pool {
    template: Arc<Template>,
    /// Of what machines are made that have no execution yet.
    spec: ExecutionSpec,
    waiting: Mutex<VecDeque<VmBackend>>,
}

impl Pool {
    /// A pool without machines. `spec` is of their VMMs, but for the id.
    pub fn new(template: Arc<Template>, spec: ExecutionSpec) -> Self {
        Self { template, spec, waiting: Mutex::default() }
    }

    fn waiting(&self) -> MutexGuard<'_, VecDeque<VmBackend>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many machines wait.
    pub fn ready(&self) -> usize {
        self.waiting().len()
    }

    /// Restores one more machine. Its VMM's cgroup has this id, which no execution has.
    ///
    /// # Errors
    /// Why it was not restored. Nothing is left of it then.
    pub async fn add(&self, id: ExecutionId) -> Result<(), BackendError> {
        let backend = VmBackend::new(self.template.clone_machine());
        let restored = backend.boot_ahead(&ExecutionSpec { id, ..self.spec.clone() }).await;
        match restored {
            Ok(()) => self.waiting().push_back(backend),
            Err(_) => report(backend.cleanup().await),
        }
        restored
    }

    /// A machine for an execution that is watched so: one that waits, else one that is restored when it starts.
    pub async fn take(&self, profile: ProfilingMode) -> VmBackend {
        if !profile.vantages().contains(&Vantage::Host) {
            loop {
                let Some(backend) = self.waiting().pop_front() else { break };
                if !backend.is_gone() {
                    return backend;
                }
                tracing::warn!("a machine ended while it waited");
                report(backend.cleanup().await);
            }
        }
        VmBackend::new(self.template.clone_machine())
    }

    /// Ends the machines that wait; gives what is left of them, in words.
    pub async fn close(&self) -> Vec<String> {
        let mut left = Vec::new();
        let waiting = std::mem::take(&mut *self.waiting());
        for backend in waiting {
            left.extend(backend.cleanup().await);
        }
        left
    }
}

fn report(left: Vec<String>) {
    for left in left {
        tracing::warn!(left, "of a machine that ended before its execution");
    }
}
