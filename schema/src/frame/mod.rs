//! A frame: one NATS message with a batch of a probe's events.
//!
//! On the wire it is one MessagePack array, `["ghf", version, header, body, seal | nil]`. Its first six bytes are
//! fixed, so a reader knows magic and version before it parses. Structures are arrays (a newer reader accepts a
//! shorter one); paths and processes are interned per frame.
//!
//! Frames of one (execution, node, vantage, epoch) form a chain: `seq` counts from 0 without gaps and `prev` is the
//! SHA-256 of the bytes of the frame before (zero for the first). The last frame carries the [`Seal`]. Both numbers
//! are assigned when the frame enters the producer's queue, so loss before that point raises a counter and loss or
//! alteration after it breaks the chain.

mod codec;
mod writer;

pub use codec::{DecodeError, MAX_FRAME_BYTES};
pub use writer::{EncodedFrame, FrameWriter, FrameWriterConfig, MAX_FLUSH_BYTES, SealTotals};

use serde::{Deserialize, Serialize};

use crate::event::{Class, Counters, PathRef};
use crate::ids::{Digest, ExecutionId, NodeId, ProcessKey, Vantage};

/// One decoded frame, borrowing from the bytes it was read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Whose frame it is and where it stands in the chain.
    pub header: Header,
    /// The events.
    pub body: Body<'a>,
    /// The totals, in the last frame of a chain only.
    pub seal: Option<Seal>,
}

/// Whose frame it is and where it stands in the chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// The execution.
    pub execution: ExecutionId,
    /// The node.
    pub node: NodeId,
    /// The vantage point.
    pub vantage: Vantage,
    /// The epoch of the node's claim.
    pub epoch: u64,
    /// Number in the chain, from 0.
    pub seq: u64,
    /// Digest of the frame before, zero for the first.
    pub prev: Digest,
    /// Counters as of this frame, cumulative. Until the seal `observed` is what user space knows of.
    pub counters: Counters,
    /// Unix time minus CLOCK_BOOTTIME in nanoseconds, measured once per execution.
    pub unix_minus_boot_ns: i64,
}

/// The events of a frame, one list per kind. `process` and path fields are indexes into the tables.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Body<'a> {
    /// Times in the lists are nanoseconds after this one (CLOCK_BOOTTIME).
    pub base_boot_ns: u64,
    /// Processes named in this frame.
    pub processes: Vec<ProcessKey>,
    /// Paths named in this frame.
    #[serde(borrow)]
    pub paths: Vec<PathRef<'a>>,
    /// Forks.
    pub forks: Vec<Fork>,
    /// Execs.
    #[serde(borrow)]
    pub execs: Vec<Exec<'a>>,
    /// Exits.
    pub exits: Vec<Exit>,
    /// Opens.
    pub opens: Vec<Open>,
    /// Deletes.
    pub deletes: Vec<Delete>,
    /// Renames.
    pub renames: Vec<Rename>,
    /// Connects.
    #[serde(borrow)]
    pub connects: Vec<Connect<'a>>,
}

/// See [`crate::Fact::Fork`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fork {
    /// Nanoseconds after the base.
    pub after_ns: u64,
    /// The parent.
    pub process: u32,
    /// The child.
    pub child: u32,
}

/// See [`crate::Fact::Exec`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exec<'a> {
    /// Nanoseconds after the base.
    pub after_ns: u64,
    /// The process.
    pub process: u32,
    /// Parent's thread group id.
    pub ppid: u32,
    /// The program.
    pub exe: u32,
    /// The working directory.
    pub cwd: u32,
    /// The arguments.
    #[serde(borrow)]
    pub argv: Vec<&'a serde_bytes::Bytes>,
    /// The arguments were longer.
    pub argv_truncated: bool,
    /// Effective user id.
    pub uid: u32,
    /// Effective group id.
    pub gid: u32,
}

/// See [`crate::Fact::Exit`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Nanoseconds after the base.
    pub after_ns: u64,
    /// The process.
    pub process: u32,
    /// Exit code.
    pub code: u8,
    /// Signal, 0 for none.
    pub signal: u8,
    /// A core was dumped.
    pub core_dumped: bool,
}

/// See [`crate::Fact::Open`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Open {
    /// Nanoseconds after the base, of the first of `count`.
    pub after_ns: u64,
    /// The process.
    pub process: u32,
    /// The file.
    pub path: u32,
    /// `O_*`.
    pub flags: u32,
    /// 0 or a negated errno.
    pub result: i32,
    /// How many identical opens this stands for; at least 1.
    pub count: u32,
}

/// See [`crate::Fact::Delete`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delete {
    /// Nanoseconds after the base.
    pub after_ns: u64,
    /// The process.
    pub process: u32,
    /// The name.
    pub path: u32,
    /// It was a directory.
    pub directory: bool,
    /// 0 or a negated errno.
    pub result: i32,
}

/// See [`crate::Fact::Rename`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rename {
    /// Nanoseconds after the base.
    pub after_ns: u64,
    /// The process.
    pub process: u32,
    /// The old name.
    pub from: u32,
    /// The new name.
    pub to: u32,
    /// 0 or a negated errno.
    pub result: i32,
}

/// See [`crate::Fact::Connect`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connect<'a> {
    /// Nanoseconds after the base.
    pub after_ns: u64,
    /// The process.
    pub process: u32,
    /// 4 or 16 bytes of an IP address, or a unix socket's path when `port` is absent.
    #[serde(with = "serde_bytes", borrow)]
    pub address: &'a [u8],
    /// The port of an IP address.
    pub port: Option<u16>,
    /// `IPPROTO_*`.
    pub protocol: u8,
    /// 0 or a negated errno.
    pub result: i32,
}

/// What the probe knows once the last task of the execution is gone.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Seal {
    /// Calls per syscall name.
    pub syscalls: Vec<(String, u64)>,
    /// Calls refused with EPERM or EACCES, per syscall name.
    pub denied: Vec<(String, u64)>,
    /// Tasks that left the execution's cgroup: what they did later is unknown.
    pub escaped_tasks: u64,
    /// What was seen to pass beside the hooks, such as `compat syscalls: 3`.
    pub blind_spots: Vec<String>,
    /// Values masked, per redaction rule.
    pub redactions: Vec<(String, u64)>,
    /// What watching cost.
    pub cost: Cost,
}

/// What watching an execution cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Cost {
    /// User-space CPU time of the probe spent on this execution's records, nanoseconds.
    pub user_cpu_ns: u64,
    /// Bytes of frames.
    pub frame_bytes: u64,
}

impl Seal {
    /// The facts that the seal itself holds, folded into counts: calls of class `syscall`, escaped tasks of class
    /// `other`. The header's counters of these classes name as many as collapsed.
    pub fn folded(&self) -> [(Class, u64); 2] {
        let calls = self.syscalls.iter().fold(0u64, |sum, (_, count)| sum.saturating_add(*count));
        [(Class::Syscall, calls), (Class::Other, self.escaped_tasks)]
    }
}
