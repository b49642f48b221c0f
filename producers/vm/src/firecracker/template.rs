//! A machine that stands where its guest waits for a command, and the machines that are cloned from it.
//!
//! A snapshot resets the connections of its machine, so the guest, told that it is a template, connects again wherever it is restored.

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;

use glasshouse_execution::backend::{BackendError, ExecutionBackend as _};
use glasshouse_execution::spec::ExecutionSpec;
use glasshouse_firecracker::{Client, GuestClock, Snapshot, SnapshotError};
use glasshouse_guest_link::{Receiver as _, StreamReceiver, ToHost};
use glasshouse_schema::ids::Digest;
use glasshouse_schema::limits::Limits;
use tempfile::TempDir;

use super::place::Place;
use super::{Config, Firecracker, Plan, UDS};
use crate::backend::VmBackend;
use crate::dirs;
use crate::origin::Origin;
use crate::session::BOOTED_WITHIN;
use crate::vmm::memory_mib;

const MAKING: &str = "making a snapshot of a virtual machine";
const STATE: &str = "state";
const MEMORY: &str = "memory";

/// A snapshot with what its machine was made of. Its files are removed with it.
#[derive(Debug)]
pub struct Template {
    config: Config,
    limits: Limits,
    snapshot: Snapshot,
    digest: Digest,
    dir: TempDir,
}

fn failed(error: impl std::fmt::Display) -> BackendError {
    BackendError::failed(MAKING, error)
}

impl Template {
    /// Boots a machine for commands with at most the memory of these limits, and keeps it where its guest waits for one. `spec` is
    /// of that machine's VMM: its cgroup has its id.
    ///
    /// # Errors
    /// Why there is no such machine, or no snapshot of it. Nothing is left then.
    pub async fn make(
        config: Config,
        limits: Limits,
        spec: &ExecutionSpec,
    ) -> Result<Arc<Self>, BackendError> {
        let vmm = Firecracker::of(config.clone(), limits, Origin::Template);
        let plan = Arc::clone(&vmm.plan);
        let backend = VmBackend::new(vmm);
        let made = async {
            backend.boot_ahead(spec).await?;
            let waiting = backend.take_waiting().ok_or_else(|| failed("its guest is gone"))?;
            greeted(&waiting).await?;
            let plan = plan.get().ok_or_else(|| failed("it was not prepared"))?;
            let dir = dirs::make(dirs::Kind::Snapshot).map_err(failed)?;
            let snapshot = kept(plan, dir.path()).await?;
            drop(waiting);
            Ok((snapshot, dir))
        };
        let made = made.await;
        for left in backend.cleanup().await {
            tracing::warn!(left, "of a machine that a snapshot was made of");
        }
        let (snapshot, dir) = made?;
        let digest = snapshot.digest.parse().map_err(failed)?;
        tracing::info!(snapshot = %digest, "machines are cloned from now on");
        Ok(Arc::new(Self { config, limits, snapshot, digest, dir }))
    }

    /// A machine that is restored when it is to boot.
    pub fn clone_machine(self: &Arc<Self>) -> Firecracker {
        Firecracker::of(self.config.clone(), self.limits, Origin::Clone(Arc::clone(self)))
    }

    /// What clones descend from.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Whether a command with these limits has room in a clone.
    pub fn fits(&self, limits: &Limits) -> bool {
        limits.memory_bytes.is_none() || memory_mib(limits) <= memory_mib(&self.limits)
    }

    /// Where state and memory are.
    pub(super) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Where a clone's Firecracker finds it.
    pub(super) fn bring(&self, place: &Place) -> io::Result<()> {
        place.bring(&self.snapshot.state, STATE)?;
        place.bring(&self.snapshot.memory, MEMORY)
    }

    /// Makes a Firecracker that was told nothing a running clone.
    pub(super) async fn load(&self, client: &Client, plan: &Plan) -> Result<(), SnapshotError> {
        if let Some(metrics) = &plan.machine.metrics {
            client.metrics(metrics).await?;
        }
        let place = &plan.place;
        let seen = Snapshot {
            state: place.brought(&self.snapshot.state, STATE),
            memory: place.brought(&self.snapshot.memory, MEMORY),
            digest: self.snapshot.digest.clone(),
        };
        // The guest's clock is set when it gets its command, which works under every KVM.
        seen.load(client, &place.inside(UDS), GuestClock::Kept).await
    }
}

/// Keeps a machine in a folder.
async fn kept(plan: &Plan, dir: &Path) -> Result<Snapshot, BackendError> {
    let client = plan.client().await.map_err(failed)?;
    let made = Snapshot::create(&client, &plan.place.root(), &plan.place.inside("")).await.map_err(failed)?;
    let snapshot = made.seen_in(dir);
    for (from, to) in [(&made.state, &snapshot.state), (&made.memory, &snapshot.memory)] {
        std::fs::rename(from, to).map_err(failed)?;
        // Every clone may be another user, and the folder is nobody's but ours.
        std::fs::set_permissions(to, Permissions::from_mode(0o644)).map_err(failed)?;
        if nix::unistd::geteuid().is_root() {
            chown(to, Some(0), Some(0)).map_err(failed)?;
        }
    }
    Ok(snapshot)
}

/// Waits until the guest has said that it is up.
async fn greeted(guest: &UnixStream) -> Result<(), BackendError> {
    let guest = guest.try_clone().map_err(failed)?;
    guest.set_nonblocking(false).map_err(failed)?;
    guest.set_read_timeout(Some(BOOTED_WITHIN)).map_err(failed)?;
    let heard = tokio::task::spawn_blocking(move || StreamReceiver::<_, ToHost>::new(guest).receive());
    match heard.await.map_err(failed)?.map_err(failed)? {
        Some(ToHost::Hello(hello)) => {
            tracing::debug!(kernel = hello.kernel, "the guest of a template waits");
            Ok(())
        }
        _ => Err(failed("its guest does not greet")),
    }
}
