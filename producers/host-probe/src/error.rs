//! What can go wrong, and what to do about it.

use std::io;
use std::path::PathBuf;

/// Why the probe can't be loaded or can't watch.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The system has no BPF.
    #[error(
        "the host probe needs Linux; this build is for {os}. Run the command with profiling disabled, or on a Linux node"
    )]
    Unsupported {
        /// The system of this build.
        os: &'static str,
    },
    /// The kernel refused for want of a privilege.
    #[error("the kernel does not let this process {action}: {missing}")]
    NotPermitted {
        /// What was tried.
        action: &'static str,
        /// What is missing, and how to get it.
        missing: String,
        /// The refusal.
        #[source]
        source: io::Error,
    },
    /// The kernel does not describe its types.
    #[error(
        "no kernel type information (BTF) at /sys/kernel/btf/vmlinux: {reason}. The kernel must be built with \
         CONFIG_DEBUG_INFO_BTF=y (distribution kernels are since 2020), and /sys must be mounted"
    )]
    NoBtf {
        /// What failed.
        reason: String,
    },
    /// A directory was named for the objects and one is not in it.
    #[error(
        "cannot read the BPF object {path}: {source}. GLASSHOUSE_BPF_DIR must name a directory that bpf/build.sh has \
         written to; unset it to use the embedded objects"
    )]
    ObjectMissing {
        /// The file.
        path: PathBuf,
        /// Why it can't be read.
        #[source]
        source: io::Error,
    },
    /// An object is not what it should be.
    #[error("the BPF object {object} is unusable: {reason}. Rebuild it with bpf/build.sh of this version")]
    ObjectBroken {
        /// File name, or path when it was not embedded.
        object: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The kernel lacks what the programs are made of.
    #[error(
        "the host probe needs Linux 5.17 or newer, and this is {release}. Run the command with profiling disabled, or on a \
         newer kernel"
    )]
    KernelTooOld {
        /// As `uname -r` has it.
        release: String,
    },
    /// The kernel lacks a hook.
    #[error(
        "this kernel has no tracepoint {hook}, which program {program} needs: Linux 5.17 or newer is required ({reason})"
    )]
    HookMissing {
        /// The program.
        program: &'static str,
        /// The tracepoint.
        hook: &'static str,
        /// What the loader said.
        reason: String,
    },
    /// The verifier refused a program.
    #[error(
        "the kernel refused BPF program {program}: {source}. The verifier's last words:\n{log_tail}\nPlease report this \
         with the kernel's version (uname -r)"
    )]
    ProgramRejected {
        /// The program.
        program: &'static str,
        /// The last lines of the verifier's log.
        log_tail: String,
        /// The refusal.
        #[source]
        source: io::Error,
    },
    /// A map could not be made, read or written.
    #[error("BPF map {map}: {action} failed: {reason}")]
    Map {
        /// The map.
        map: &'static str,
        /// What was tried.
        action: &'static str,
        /// What the kernel said.
        reason: String,
    },
    /// A ring buffer, or what waits for it, could not be set up.
    #[error("cannot set up the ring buffer reader ({step}): {source}")]
    Ring {
        /// What was tried.
        step: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// An option is out of its range.
    #[error("probe option {option} is {value}: it must be {expected}")]
    BadOption {
        /// The option.
        option: &'static str,
        /// Its value.
        value: u64,
        /// What it must be.
        expected: &'static str,
    },
    /// All slots are taken.
    #[error(
        "the probe watches {max} executions already, its configured maximum; raise max_executions or wait for one to end"
    )]
    TooManyExecutions {
        /// The maximum.
        max: u32,
    },
    /// The cgroup is watched already.
    #[error("cgroup {cgroup_id} is being watched already: each execution needs a cgroup of its own")]
    AlreadyWatched {
        /// Its id.
        cgroup_id: u64,
    },
    /// Stopping and continuing needs process ids that mean the same here and in the kernel.
    #[error(
        "lossless profiling needs the initial pid namespace: run Glasshouse outside of a container, or without it"
    )]
    LosslessElsewhere,
    /// The drain thread has ended.
    #[error("the probe's drain thread has ended; load the probe again")]
    Stopped,
}
