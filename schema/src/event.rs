//! What a probe saw: one [`Event`] per fact, borrowed from the buffer it was decoded from.
//!
//! Facts fall into five classes. Loss is counted per class, because a policy over the network may still be
//! answered when file events were lost.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ids::ProcessKey;

/// A class of facts that is counted on its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// fork, exec, exit.
    Process,
    /// open, delete, rename.
    File,
    /// connect.
    Network,
    /// The per-execution syscall histogram.
    Syscall,
    /// Everything else a probe watches, such as a task leaving the execution's cgroup.
    Other,
}

impl Class {
    /// Every class, in the order of its number in the kernel's counters.
    pub const ALL: [Self; 5] = [Self::Process, Self::File, Self::Network, Self::Syscall, Self::Other];

    /// The name of the class in a receipt.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Process => "process",
            Self::File => "file",
            Self::Network => "network",
            Self::Syscall => "syscall",
            Self::Other => "other",
        }
    }
}

/// Counters of one class: `observed = delivered + collapsed + lost`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ClassCounters {
    /// Facts that happened, counted in the kernel before anything can fail.
    pub observed: u64,
    /// Facts that stand in a frame as an event of their own.
    pub delivered: u64,
    /// Facts folded into an identical event's count.
    pub collapsed: u64,
    /// Facts known to have happened, of which nothing else is known.
    pub lost: u64,
}

impl ClassCounters {
    /// Whether every observed fact is accounted for.
    pub fn adds_up(&self) -> bool {
        u128::from(self.observed)
            == u128::from(self.delivered) + u128::from(self.collapsed) + u128::from(self.lost)
    }
}

/// Counters of every class, cumulative since the probe began to record the execution.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Counters([ClassCounters; 5]);

impl Counters {
    /// The counters of one class.
    pub fn class(&self, class: Class) -> &ClassCounters {
        &self.0[class as usize]
    }

    /// The counters of one class, to be changed.
    pub fn class_mut(&mut self, class: Class) -> &mut ClassCounters {
        &mut self.0[class as usize]
    }

    /// Facts lost in all classes.
    pub fn lost(&self) -> u64 {
        self.0.iter().fold(0, |sum, class| sum.saturating_add(class.lost))
    }
}

/// What is known about how a path was learnt, as bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PathFlags(pub u8);

impl PathFlags {
    /// Longer than the probe carries: what is there is a part. Never satisfies an allow rule.
    pub const TRUNCATED: Self = Self(1);
    /// The caller's string made absolute lexically; symlinks in it were not resolved by the kernel.
    pub const UNRESOLVED: Self = Self(1 << 1);
    /// The file had no name any more, or never had one (unlinked, memfd).
    pub const UNLINKED: Self = Self(1 << 2);
    /// A part was removed by a redaction rule.
    pub const MASKED: Self = Self(1 << 3);

    /// Whether all bits of `other` are set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Both sets of bits.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// A path: bytes (Linux paths are not UTF-8) and how they were learnt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PathRef<'a> {
    /// The path, absolute unless the object has none (`memfd:name`).
    #[serde(with = "serde_bytes", borrow)]
    pub bytes: &'a [u8],
    /// How it was learnt.
    pub flags: PathFlags,
}

impl<'a> PathRef<'a> {
    /// A path that the kernel resolved.
    pub const fn resolved(bytes: &'a [u8]) -> Self {
        Self { bytes, flags: PathFlags(0) }
    }
}

/// Where a socket was connected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Address<'a> {
    /// IPv4 address and port.
    V4([u8; 4], u16),
    /// IPv6 address and port.
    V6([u8; 16], u16),
    /// A unix socket's path; an abstract one begins with a NUL byte.
    Unix(&'a [u8]),
}

/// One fact about a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fact<'a> {
    /// The process made `child` (a new thread group).
    Fork {
        /// The new process.
        child: ProcessKey,
    },
    /// The process now runs another program.
    Exec {
        /// Parent's thread group id at that time.
        ppid: u32,
        /// The program's file, as the kernel resolved it.
        exe: PathRef<'a>,
        /// The working directory.
        cwd: PathRef<'a>,
        /// The arguments.
        argv: &'a [&'a [u8]],
        /// The arguments were longer than the probe carries.
        argv_truncated: bool,
        /// Effective user id after the exec.
        uid: u32,
        /// Effective group id after the exec.
        gid: u32,
    },
    /// The last thread of the process ended.
    Exit {
        /// The code it gave to exit, 0 when a signal ended it.
        code: u8,
        /// The signal that ended it, 0 for none.
        signal: u8,
        /// The kernel wrote a core dump.
        core_dumped: bool,
    },
    /// The process opened a file, or tried to.
    Open {
        /// The file.
        path: PathRef<'a>,
        /// The `O_*` flags of open(2), in the numbering of the probe's architecture (x86-64 and arm64 agree on
        /// the access mode and `O_CREAT`, which is what a receipt uses).
        flags: u32,
        /// 0, or a negated errno.
        result: i32,
    },
    /// The process removed a name, or tried to.
    Delete {
        /// The name.
        path: PathRef<'a>,
        /// It was a directory.
        directory: bool,
        /// 0, or a negated errno.
        result: i32,
    },
    /// The process renamed a file, or tried to.
    Rename {
        /// The old name.
        from: PathRef<'a>,
        /// The new name.
        to: PathRef<'a>,
        /// 0, or a negated errno.
        result: i32,
    },
    /// The process connected a socket, or tried to.
    Connect {
        /// Where to.
        address: Address<'a>,
        /// `IPPROTO_*`, 0 for unix sockets.
        protocol: u8,
        /// 0, or a negated errno. `-EINPROGRESS` is a connect whose end was not waited for.
        result: i32,
    },
}

impl Fact<'_> {
    /// The class the fact is counted in.
    pub const fn class(&self) -> Class {
        match self {
            Self::Fork { .. } | Self::Exec { .. } | Self::Exit { .. } => Class::Process,
            Self::Open { .. } | Self::Delete { .. } | Self::Rename { .. } => Class::File,
            Self::Connect { .. } => Class::Network,
        }
    }
}

/// A fact with the process it is about and its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event<'a> {
    /// When, in nanoseconds of CLOCK_BOOTTIME.
    pub boot_ns: u64,
    /// Whose.
    pub process: ProcessKey,
    /// What.
    pub fact: Fact<'a>,
}
