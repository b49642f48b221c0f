//! A container whose process is the guest probe, which runs and watches the command in it.
//!
//! ```text
//!   VmBackend -- KataBackend -- containerd -- shim -- probe -- command
//!       \------- standard input and output ----------/
//! ```
//! The streams of its process are what every shim carries, so they are the link; its standard error is the console. Everything else is as in
//! a virtual machine of ours.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use glasshouse_execution::backend::{BackendError, ExecutionBackend};
use glasshouse_execution::spec::ExecutionSpec;
use glasshouse_schema::lifecycle::{Environment, Isolation};
use glasshouse_schema::limits::Limits;
use glasshouse_vm::{GuestLink, Launch, Surroundings, VmBackend, Vmm};

use crate::backend::{Config, KataBackend};
use crate::oci;

/// What the probe and its maps take beside the command.
const OWN_MEMORY_BYTES: u64 = 192 << 20;
/// Its threads, likewise.
const OWN_PIDS: u64 = 64;

impl KataBackend {
    /// A backend for one execution that is watched from inside its container, by this guest probe.
    pub fn with_probe(config: Config, probe: PathBuf) -> VmBackend {
        VmBackend::new(Probed(Arc::new(Self::of(config, Some(probe)))))
    }
}

struct Probed(Arc<KataBackend>);

#[async_trait]
impl Vmm for Probed {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn isolation(&self) -> Isolation {
        self.0.isolation()
    }

    fn environment(&self) -> Environment {
        self.0.environment()
    }

    fn process(&self) -> Arc<dyn ExecutionBackend> {
        Arc::clone(&self.0) as _
    }

    fn surroundings(&self) -> Surroundings {
        self.0.surroundings()
    }

    fn check(&self, spec: &ExecutionSpec) -> Result<(), BackendError> {
        KataBackend::check(spec).map_err(|reason| BackendError::failed("preparing the container", reason))
    }

    async fn command(&self, spec: &ExecutionSpec, _dir: &Path) -> Result<Launch, BackendError> {
        // The probe holds the command to its limits, where the kernel has what it takes; these hold both.
        let limits = Limits {
            memory_bytes: spec.limits.memory_bytes.map(|bytes| bytes.saturating_add(OWN_MEMORY_BYTES)),
            pids: spec.limits.pids.map(|pids| pids.saturating_add(OWN_PIDS)),
            ..Limits::default()
        };
        let argv = [oci::PROBE, "--transport", "stdio"].map(Into::into).to_vec();
        Ok(Launch { argv, limits, ..Launch::default() })
    }

    fn link(&self, _dir: &Path) -> GuestLink {
        GuestLink::Streams
    }
}
