//! What a watch is asked for and what it gives.

use glasshouse_bpf::abi;
use glasshouse_schema::event::Counters;
use glasshouse_schema::frame::Seal;
use glasshouse_schema::redact::Redactor;
use glasshouse_schema::{Digest, EncodedFrame, FrameWriter};

/// Takes the frames of one execution, in order. Called on the probe's drain thread, which serves every execution: while
/// it waits, the kernel's rings fill for all of them, and what no longer fits is counted as lost. So nothing is lost
/// without a count, but a sink should have room for a burst.
pub trait FrameSink: Send {
    /// Takes the next frame.
    fn frame(&mut self, frame: EncodedFrame);
}

impl<F: FnMut(EncodedFrame) + Send> FrameSink for F {
    fn frame(&mut self, frame: EncodedFrame) {
        self(frame);
    }
}

/// What to watch, and where the frames go.
pub struct WatchRequest {
    /// The execution's cgroup v2: the inode number of its directory, see `cgroup::id`.
    pub cgroup_id: u64,
    /// Thread group id of the root, in the initial pid namespace. Its exec starts the recording. With 0 the first exec
    /// inside the cgroup does.
    pub root_tgid: u32,
    /// Builds the frames. Its configuration names execution, node, vantage and epoch.
    pub writer: FrameWriter,
    /// Masks paths and arguments before frames are built.
    pub redactor: Redactor,
    /// Takes the frames.
    pub sink: Box<dyn FrameSink>,
    /// When a ring is half full, stop the execution's processes (SIGSTOP) until there is room again (SIGCONT), rather
    /// than lose a fact. Their parents can see that. Only in the initial pid namespace.
    pub lossless: bool,
}

impl std::fmt::Debug for WatchRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WatchRequest")
            .field("cgroup_id", &self.cgroup_id)
            .field("root_tgid", &self.root_tgid)
            .finish_non_exhaustive()
    }
}

/// What the kernel counted for one execution, per class in the order of [`glasshouse_schema::Class::ALL`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KernelCounts {
    /// As the programs kept them.
    pub raw: abi::Counters,
    /// Times that a program could not run because it was running already on that CPU, while this execution was watched;
    /// of process, system call, cgroup and signal programs. Whose fact it was is not known. `None` when the kernel did not tell.
    pub missed_runs: Option<[u64; 4]>,
}

/// The end of a watch.
#[derive(Debug, Clone)]
pub struct SealReport {
    /// Counters as the seal carries them: they add up for every class.
    pub counters: Counters,
    /// The content of the last frame.
    pub seal: Seal,
    /// Frames sent, the seal included.
    pub frames: u64,
    /// Digest of the last frame: the head of the chain.
    pub head: Digest,
    /// The root's exec was seen; without it nothing was recorded.
    pub recorded: bool,
    /// Facts that nothing explains: observed, yet neither delivered nor known to be lost. They count as lost.
    pub unexplained: u64,
    /// Processes whose exit was not seen.
    pub still_alive: u64,
    /// What the kernel counted.
    pub kernel: KernelCounts,
}
