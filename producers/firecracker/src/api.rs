//! What goes over the API, by the names and types of its definitions. Only what is used here.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// `BootSource`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BootSource {
    /// An uncompressed vmlinux.
    pub kernel_image_path: PathBuf,
    /// The initramfs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initrd_path: Option<PathBuf>,
    /// The kernel's command line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub boot_args: Option<String>,
}

/// `MachineConfiguration`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct MachineConfiguration {
    /// One, or an even number up to 32.
    pub vcpu_count: u8,
    /// Memory.
    pub mem_size_mib: u32,
    /// Whether later snapshots can hold only what changed.
    pub track_dirty_pages: bool,
}

/// `Drive`, by virtio-blk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Drive {
    /// Its name in the API; `/dev/vda` and so on follow the order in which drives are added.
    pub drive_id: String,
    /// The image.
    pub path_on_host: PathBuf,
    /// Whether Firecracker adds `root=` to the command line.
    pub is_root_device: bool,
    /// Whether the guest cannot write to it.
    pub is_read_only: bool,
}

/// `NetworkInterface`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NetworkInterface {
    /// Its name in the API.
    pub iface_id: String,
    /// The tap device.
    pub host_dev_name: String,
    /// Firecracker chooses where there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guest_mac: Option<String>,
}

/// `Vsock`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Vsock {
    /// The guest's address, at least 3.
    pub guest_cid: u32,
    /// The Unix socket that Firecracker makes.
    pub uds_path: PathBuf,
}

/// `EntropyDevice`: virtio-rng, from which a restored guest gets fresh entropy.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct EntropyDevice {}

/// `SerialDevice`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SerialDevice {
    /// Where the console is written; standard output without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serial_out_path: Option<PathBuf>,
}

/// `Logger`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Logger {
    /// A file or a pipe that is there.
    pub log_path: PathBuf,
    /// How much.
    pub level: LogLevel,
}

/// `Logger.level`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[allow(missing_docs, reason = "they are their names")]
pub enum LogLevel {
    Error,
    Warning,
    Info,
    Debug,
}

/// `Metrics`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Metrics {
    /// A file or a pipe that is there; a line of JSON each minute, at `FlushMetrics` and at the end.
    pub metrics_path: PathBuf,
}

/// `InstanceActionInfo`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(tag = "action_type")]
#[allow(missing_docs, reason = "they are their names")]
pub enum Action {
    InstanceStart,
    FlushMetrics,
    SendCtrlAltDel,
}

/// `Vm`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(tag = "state")]
#[allow(missing_docs, reason = "they are their names")]
pub enum Vm {
    Paused,
    Resumed,
}

/// `SnapshotCreateParams`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SnapshotCreate {
    /// Where the machine's state goes.
    pub snapshot_path: PathBuf,
    /// Where its memory goes.
    pub mem_file_path: PathBuf,
    /// All memory, or what changed since the last snapshot.
    pub snapshot_type: SnapshotType,
}

/// `SnapshotCreateParams.snapshot_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[allow(missing_docs, reason = "they are their names")]
pub enum SnapshotType {
    Full,
    Diff,
}

/// `SnapshotLoadParams`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SnapshotLoad {
    /// The machine's state.
    pub snapshot_path: PathBuf,
    /// Its memory.
    pub mem_backend: MemoryBackend,
    /// Whether it runs at once.
    pub resume_vm: bool,
    /// Whether the guest's clock is set forward by the time that passed; x86 only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clock_realtime: Option<bool>,
    /// Another socket than the one that the snapshot was made with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vsock_override: Option<VsockOverride>,
}

/// `MemoryBackend`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MemoryBackend {
    /// What the path is.
    pub backend_type: MemoryBackendType,
    /// The file: pages are read from it when they are needed, and never written back.
    pub backend_path: PathBuf,
}

/// `MemoryBackend.backend_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[allow(missing_docs, reason = "it is its name")]
pub enum MemoryBackendType {
    File,
}

/// `VsockOverride`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VsockOverride {
    /// The Unix socket that Firecracker makes.
    pub uds_path: PathBuf,
}

/// `InstanceInfo`, the answer to `GET /`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct InstanceInfo {
    /// What `--id` said.
    pub id: String,
    /// What it does now.
    pub state: InstanceState,
    /// Firecracker's version.
    pub vmm_version: String,
}

/// `InstanceInfo.state`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[allow(missing_docs, reason = "they are their names")]
pub enum InstanceState {
    #[serde(rename = "Not started")]
    NotStarted,
    Running,
    Paused,
}

/// `Error`.
#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct Fault {
    #[serde(default)]
    pub(crate) fault_message: String,
}
