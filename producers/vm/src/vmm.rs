//! What a VMM is to a [`crate::VmBackend`]: a program that boots a guest whose probe speaks to us.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use glasshouse_backends::ProcessBackend;
use glasshouse_execution::backend::{BackendError, ExecutionBackend};
use glasshouse_execution::spec::ExecutionSpec;
use glasshouse_guest_link::shared::SharedMemory;
use glasshouse_guest_nats::Issuer;
use glasshouse_schema::ids::Digest;
use glasshouse_schema::lifecycle::{Environment, Image, Isolation, VmmBounds};
use glasshouse_schema::limits::Limits;
use glasshouse_schema::sandbox::SandboxRequest;

use crate::session::BOOTED_WITHIN;

/// Memory of a machine whose command has no limit.
const DEFAULT_MEMORY_MIB: u64 = 512;
/// What kernel, probe and its maps take beside the command.
const OWN_MEMORY_MIB: u64 = 192;
/// What any program opens wherever it runs: programs' own files, what the dynamic loader and the C library look up, what the kernel
/// tells of the machine.
const PROGRAM_READS: [&str; 10] = [
    "/usr",
    "/bin",
    "/lib",
    "/lib64",
    "/nix/store",
    "/etc/ld.so.cache",
    "/etc/ld.so.preload",
    "/etc/localtime",
    "/proc",
    "/sys",
];
/// What a VMM writes to beside its own directory, and reads.
const DEVICES: [&str; 4] = ["/dev/null", "/dev/kvm", "/dev/urandom", "/dev/random"];
/// User ids of VMMs begin here, 2^24 of them; far above those of people and containers.
const FIRST_UID: u32 = 0x7000_0000;

/// How a VMM is run.
#[derive(Debug, Clone, Default)]
pub struct Launch {
    /// The program and its arguments.
    pub argv: Vec<OsString>,
    /// How far it is kept from the node, beside what it does itself.
    pub sandbox: SandboxRequest,
    /// What it may use, its guest and all.
    pub limits: Limits,
    /// Memory that its guest shares with us, as the link; then the guest's connection is its bell. The VMM has the memory's file as its
    /// standard input: it has no other name.
    pub shared: Option<SharedMemory>,
    /// Where the command's root filesystem comes from.
    pub image: Option<Image>,
}

/// Where a guest is waited for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GuestLink {
    /// Its connection arrives on this Unix socket, on which the backend listens before the VMM runs.
    Socket(PathBuf),
    /// The VMM's standard input and output are the link.
    Streams,
}

/// What a command has that was given none of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Surroundings {
    /// The whole environment.
    pub env: Vec<(OsString, OsString)>,
    /// The working directory.
    pub workdir: PathBuf,
}

impl Default for Surroundings {
    fn default() -> Self {
        let env = [("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"), ("HOME", "/")];
        Self { env: env.map(|(name, value)| (name.into(), value.into())).to_vec(), workdir: "/".into() }
    }
}

/// One kind of VMM, with what one machine of it needs. A value serves one execution.
#[async_trait]
pub trait Vmm: Send + Sync + 'static {
    /// The backend's name.
    fn name(&self) -> &'static str;

    /// How far its guest is from the node.
    fn isolation(&self) -> Isolation {
        Isolation::Vm
    }

    /// What the guest will be, known before it boots.
    fn environment(&self) -> Environment;

    /// What runs the VMM; asked for once. Else a process of this node, in a cgroup of its own.
    fn process(&self) -> Arc<dyn ExecutionBackend> {
        Arc::new(ProcessBackend::detached())
    }

    /// Whether nothing of it is on this node: then it ends, for us, with its guest's link, or when it is not waited for any more.
    fn is_elsewhere(&self) -> bool {
        false
    }

    /// How long its guest may take from the VMM's start to its first word.
    fn speaks_within(&self) -> Duration {
        BOOTED_WITHIN
    }

    /// What a command has that was given none; known once the VMM's process is there.
    fn surroundings(&self) -> Surroundings {
        Surroundings::default()
    }

    /// Whether the spec asks for what this VMM does not do.
    fn check(&self, spec: &ExecutionSpec) -> Result<(), BackendError>;

    /// Makes the machine's files in `dir`, which only the caller can read and which is removed in the end, and gives the
    /// command line of its VMM.
    async fn command(&self, spec: &ExecutionSpec, dir: &Path) -> Result<Launch, BackendError>;

    /// What the VMM's process needs of the node, with the machine's files in `dir` and with a network or without: what the host
    /// sees beyond that becomes a contradiction in the receipt. `None` where nobody knows.
    fn bounds(&self, _dir: &Path, _has_network: bool) -> Option<VmmBounds> {
        None
    }

    /// By which server its guest speaks, instead of a socket of the VMM's. The credential that it takes is in the machine's
    /// directory when the command line is made ([`crate::nats::CREDENTIALS`]).
    fn nats(&self) -> Option<&Issuer> {
        None
    }

    /// Whether its guest can know a server by its certificate. Else one that wants TLS is refused.
    fn has_certificates(&self) -> bool {
        true
    }

    /// Where the guest is waited for, with the machine's files in `dir`.
    fn link(&self, dir: &Path) -> GuestLink {
        GuestLink::Socket(dir.join("link"))
    }

    /// Boots the guest of a VMM that runs and has yet to be told to.
    async fn boot(&self, _dir: &Path) -> Result<(), BackendError> {
        Ok(())
    }

    /// Whether the guest greets when it connects. A clone whose link was kept with it has greeted already.
    fn greets(&self) -> bool {
        true
    }

    /// The guest has greeted and waits for its command: no execution was in this machine yet, and nothing is under way on its link. Gives
    /// what the machine is kept as, if it is kept now.
    async fn waits(&self) -> Result<Option<Digest>, BackendError> {
        Ok(None)
    }

    /// What the VMM itself found wrong, once it has ended, for whoever asks why a machine failed.
    fn troubles(&self) -> Option<String> {
        None
    }
}

/// The memory of a machine whose command has these limits.
pub(crate) fn memory_mib(limits: &Limits) -> u64 {
    limits.memory_bytes.map_or(DEFAULT_MEMORY_MIB, |bytes| bytes.div_ceil(1 << 20) + OWN_MEMORY_MIB)
}

/// The bounds of a VMM that is this program: `reads` beside what every program reads, and its machine's directory.
pub(crate) fn bounds<'p>(program: &Path, reads: impl IntoIterator<Item = &'p Path>, dir: &Path) -> VmmBounds {
    // The kernel tells of what it resolved.
    let text = |path: &Path| {
        let resolved = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        resolved.to_string_lossy().into_owned()
    };
    let known = |paths: &[&str]| paths.iter().map(|path| (*path).to_owned()).collect::<Vec<_>>();
    let (mut all_reads, mut writes) = (known(&PROGRAM_READS), known(&DEVICES));
    all_reads.extend(reads.into_iter().map(text));
    writes.push(text(dir));
    VmmBounds { programs: vec![text(program)], reads: all_reads, writes, loopback: None, link: None }
}

/// A user that no other execution of this node has at the time, but for a chance of one in many millions.
pub(crate) fn own_uid(spec: &ExecutionSpec) -> u32 {
    let [.., a, b, c] = *spec.id.as_bytes();
    FIRST_UID + u32::from_be_bytes([0, a, b, c])
}
