//! Snapshots and the machines that are cloned from them.
//!
//! Making one pauses the machine and resets its vsock connections, in the original too: so it is made before a guest is
//! in use. A clone starts with the clock and the random state of the original: [`GuestClock`] says who sets the first, and
//! its kernel sees a new generation of the machine (VMGenID, since Linux 5.18) and reseeds from the entropy
//! device. What a program in the guest kept of either is its own.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use crate::api::{
    MemoryBackend, MemoryBackendType, SnapshotCreate, SnapshotLoad, SnapshotType, Vm, VsockOverride,
};
use crate::client::{Client, ClientError};

/// File names.
const STATE: &str = "state";
const MEMORY: &str = "memory";

/// Why there is no snapshot, or no clone.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// Firecracker did not do it.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// A file cannot be read.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The files are not those that the snapshot was made of.
    #[error("the snapshot in {path} was altered: it was {expected} and is {found}")]
    Altered {
        /// Its state file.
        path: PathBuf,
        /// What it was.
        expected: String,
        /// What it is.
        found: String,
    },
}

/// What becomes of a clone's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuestClock {
    /// It goes on from when the snapshot was made; a program in the guest has to set it.
    Kept,
    /// KVM sets it forward by the time that passed. Firecracker refuses and ends where the snapshot holds no time of its
    /// host, as one does not that was made where KVM cannot base its clock on the TSC. Only on x86.
    SetForward,
}

/// A machine that stood still: its state and its memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Registers and devices, as Firecracker names it.
    pub state: PathBuf,
    /// All of its memory.
    pub memory: PathBuf,
    /// SHA-256 over both, in hex: what a clone descends from.
    pub digest: String,
}

impl Snapshot {
    /// Pauses a machine and keeps all of it in two files of a folder, which Firecracker sees as `inside`. The machine stays
    /// paused.
    ///
    /// # Errors
    /// [`SnapshotError`].
    pub async fn create(client: &Client, dir: &Path, inside: &Path) -> Result<Self, SnapshotError> {
        let (state, memory) = (dir.join(STATE), dir.join(MEMORY));
        client.vm(Vm::Paused).await?;
        let body = SnapshotCreate {
            snapshot_path: inside.join(STATE),
            mem_file_path: inside.join(MEMORY),
            snapshot_type: SnapshotType::Full,
        };
        client.snapshot_create(&body).await?;
        let digest = digest(&state, &memory).await?;
        Ok(Self { state, memory, digest })
    }

    /// The same in another folder, or by another view of it.
    #[must_use]
    pub fn seen_in(&self, dir: &Path) -> Self {
        Self { state: dir.join(STATE), memory: dir.join(MEMORY), digest: self.digest.clone() }
    }

    /// Whether the files are still those that were written.
    ///
    /// # Errors
    /// [`SnapshotError::Altered`].
    pub async fn verify(&self) -> Result<(), SnapshotError> {
        let found = digest(&self.state, &self.memory).await?;
        if found == self.digest {
            return Ok(());
        }
        Err(SnapshotError::Altered { path: self.state.clone(), expected: self.digest.clone(), found })
    }

    /// Makes a Firecracker that was told nothing yet a running clone, whose vsock is at `uds_path`. All paths are as that
    /// Firecracker sees them, and nothing may be at `uds_path`: what a dead one left there fails the load.
    ///
    /// # Errors
    /// [`SnapshotError`].
    pub async fn load(
        &self,
        client: &Client,
        uds_path: &Path,
        clock: GuestClock,
    ) -> Result<(), SnapshotError> {
        let body = SnapshotLoad {
            snapshot_path: self.state.clone(),
            mem_backend: MemoryBackend {
                backend_type: MemoryBackendType::File,
                backend_path: self.memory.clone(),
            },
            resume_vm: true,
            clock_realtime: (clock == GuestClock::SetForward).then_some(true),
            vsock_override: Some(VsockOverride { uds_path: uds_path.to_owned() }),
        };
        Ok(client.snapshot_load(&body).await?)
    }
}

async fn digest(state: &Path, memory: &Path) -> Result<String, SnapshotError> {
    let paths = [state.to_owned(), memory.to_owned()];
    let digest = tokio::task::spawn_blocking(move || {
        let mut whole = Sha256::new();
        for path in paths {
            let of_file = of_file(&path).map_err(|source| SnapshotError::File { path, source })?;
            whole.update(of_file);
        }
        Ok::<String, SnapshotError>(whole.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    });
    digest
        .await
        .map_err(|error| SnapshotError::File { path: state.to_owned(), source: io::Error::other(error) })?
}

fn of_file(path: &Path) -> io::Result<[u8; 32]> {
    let mut file = File::open(path)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hash.finalize().into()),
            read => hash.update(buffer.get(..read).unwrap_or_default()),
        }
    }
}
