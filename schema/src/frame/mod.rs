//! A frame: one NATS message with a batch of a probe's events.
//!
//! On the wire it is one MessagePack array, `["ghf", version, header, body, seal | nil]`. Its first six bytes are
//! fixed, so a reader knows magic and version before it parses. Header and seal are arrays (a newer reader accepts a
//! shorter one). The body is bytes: columns of numbers, a list per kind of event (`packed.rs`; up to version 2 it was arrays,
//! too). Paths and processes are interned per frame, and paths share their beginnings.
//!
//! Frames of one (execution, node, vantage, epoch) form a chain: `seq` counts from 0 without gaps and `prev` is the
//! SHA-256 of the bytes of the frame before (zero for the first). The last frame carries the [`Seal`]. Both numbers
//! are assigned when the frame enters the producer's queue, so loss before that point raises a counter and loss or
//! alteration after it breaks the chain.

mod batch;
mod codec;
mod columns;
mod packed;
mod paths;
mod writer;

pub use codec::{DecodeError, EncodeError, MAX_DNS_ANSWERS, MAX_DNS_NAME_BYTES, MAX_FRAME_BYTES, version_of};
pub use paths::Paths;
pub use writer::{EncodedFrame, FrameWriter, FrameWriterConfig, MAX_FLUSH_BYTES, SealTotals};

use serde::{Deserialize, Serialize};

use crate::event::{Class, Counters, ExecFlags, FileChange, SocketOperation, Usage};
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
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
pub struct Body<'a> {
    /// Times in the lists are nanoseconds after this one (CLOCK_BOOTTIME).
    pub base_boot_ns: u64,
    /// Processes named in this frame.
    pub processes: Vec<ProcessKey>,
    /// Paths named in this frame.
    pub paths: Paths,
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
    /// What was done with sockets.
    #[serde(borrow)]
    pub sockets: Vec<Socket<'a>>,
    /// Changes of credentials. From here on lists are absent in version 1.
    #[serde(default)]
    pub credentials: Vec<Credentials>,
    /// Other changes of files and mounts.
    #[serde(default)]
    pub changes: Vec<Change>,
    /// Calls and bytes per file.
    #[serde(default)]
    pub ios: Vec<Io>,
    /// Calls and bytes per peer.
    #[serde(default, borrow)]
    pub traffic: Vec<Traffic<'a>>,
    /// Questions to name servers, and answers.
    #[serde(default, borrow)]
    pub dns: Vec<Dns<'a>>,
    /// What is told one by one.
    #[serde(default)]
    pub operations: Vec<Operation>,
}

/// Frames of version 1 counted opens only.
const fn one() -> u64 {
    1
}

/// See [`crate::Fact::Fork`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
pub struct Fork {
    /// Nanoseconds after the base.
    pub after_ns: u64,
    /// The parent.
    pub process: u32,
    /// The child.
    pub child: u32,
}

/// See [`crate::Fact::Exec`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
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
    /// Names of watched environment variables.
    #[serde(default, borrow)]
    pub env: Vec<&'a serde_bytes::Bytes>,
    /// The environment was longer.
    #[serde(default)]
    pub env_truncated: bool,
    /// What is special about it.
    #[serde(default)]
    pub flags: ExecFlags,
}

/// See [`crate::Fact::Exit`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
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
    /// What it used.
    #[serde(default)]
    pub usage: Usage,
}

/// See [`crate::Fact::Credentials`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
pub struct Credentials {
    /// Nanoseconds after the base.
    pub after_ns: u64,
    /// The process.
    pub process: u32,
    /// Real user id.
    pub uid: u32,
    /// Effective user id.
    pub euid: u32,
    /// Real group id.
    pub gid: u32,
    /// Effective group id.
    pub egid: u32,
    /// Effective capabilities.
    pub capabilities: u64,
    /// More than before.
    pub gained: bool,
}

/// See [`crate::Fact::Open`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
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
    pub count: u64,
    /// It made the file.
    #[serde(default)]
    pub created: bool,
}

/// See [`crate::Fact::Delete`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
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
    /// How many identical ones this stands for; at least 1.
    #[serde(default = "one")]
    pub count: u64,
}

/// See [`crate::Fact::Rename`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
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
    /// The names changed places.
    #[serde(default)]
    pub exchange: bool,
    /// How many identical ones this stands for; at least 1.
    #[serde(default = "one")]
    pub count: u64,
}

/// See [`crate::Fact::Change`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
pub struct Change {
    /// Nanoseconds after the base.
    pub after_ns: u64,
    /// The process.
    pub process: u32,
    /// How.
    pub change: FileChange,
    /// What.
    pub path: u32,
    /// The other path of the change, where it has one.
    pub other: Option<u32>,
    /// Mode, owner, length or flags.
    pub value: u64,
    /// 0 or a negated errno.
    pub result: i32,
    /// How many identical ones this stands for; at least 1.
    pub count: u64,
}

/// See [`crate::Fact::Io`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
pub struct Io {
    /// Nanoseconds after the base.
    pub after_ns: u64,
    /// The process.
    pub process: u32,
    /// The file.
    pub path: u32,
    /// Calls that read.
    pub reads: u64,
    /// Calls that wrote.
    pub writes: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
}

/// See [`crate::Fact::Socket`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
pub struct Socket<'a> {
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
    /// What was done. Frames of version 1 have connects only.
    #[serde(default = "connect")]
    pub operation: SocketOperation,
    /// How many identical ones this stands for; at least 1.
    #[serde(default = "one")]
    pub count: u64,
}

const fn connect() -> SocketOperation {
    SocketOperation::Connect
}

/// See [`crate::Fact::Traffic`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
pub struct Traffic<'a> {
    /// Nanoseconds after the base.
    pub after_ns: u64,
    /// The process.
    pub process: u32,
    /// The peer, as in [`Socket::address`].
    #[serde(with = "serde_bytes", borrow)]
    pub address: &'a [u8],
    /// The port of an IP address.
    pub port: Option<u16>,
    /// `IPPROTO_*`.
    pub protocol: u8,
    /// Calls that sent.
    pub sends: u64,
    /// Calls that received.
    pub receives: u64,
    /// Bytes sent.
    pub sent_bytes: u64,
    /// Bytes received.
    pub received_bytes: u64,
}

/// See [`crate::Fact::Dns`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
pub struct Dns<'a> {
    /// Nanoseconds after the base.
    pub after_ns: u64,
    /// The process.
    pub process: u32,
    /// The server, as in [`Socket::address`].
    #[serde(with = "serde_bytes", borrow)]
    pub server: &'a [u8],
    /// The port of an IP address.
    pub port: Option<u16>,
    /// The name, at most [`MAX_DNS_NAME_BYTES`].
    #[serde(with = "serde_bytes", borrow)]
    pub name: &'a [u8],
    /// The type asked for.
    pub query_type: u16,
    /// Addresses of 4 or 16 bytes, at most [`MAX_DNS_ANSWERS`].
    #[serde(borrow)]
    pub answers: Vec<&'a serde_bytes::Bytes>,
    /// `RCODE`, absent in a question.
    pub response_code: Option<u8>,
    /// The name was longer or the answers were more.
    pub truncated: bool,
    /// How many identical ones this stands for; at least 1.
    pub count: u64,
}

/// See [`crate::Fact::Operation`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
pub struct Operation {
    /// Nanoseconds after the base.
    pub after_ns: u64,
    /// The process.
    pub process: u32,
    /// What.
    pub operation: crate::event::Operation,
    /// Its detail.
    pub value: u64,
    /// Thread group id of the process it was done to, 0 for none.
    pub target_tgid: u32,
    /// 0 or a negated errno.
    pub result: i32,
    /// How many identical ones this stands for; at least 1.
    pub count: u64,
}

/// An entry of one of a body's lists.
pub trait Entry {
    /// Its time, nanoseconds after the base.
    fn after_ns(&mut self) -> &mut u64;

    /// How many observed facts it stands for, at least 1.
    fn facts(&self) -> u64;
}

macro_rules! entries {
    ($($entry:ty: |$of:ident| $facts:expr;)+) => {$(
        impl Entry for $entry {
            fn after_ns(&mut self) -> &mut u64 {
                &mut self.after_ns
            }

            fn facts(&self) -> u64 {
                let $of = self;
                $facts
            }
        }
    )+};
}

entries! {
    Fork: |_fork| 1;
    Exec<'_>: |_exec| 1;
    Exit: |_exit| 1;
    Credentials: |_credentials| 1;
    Open: |open| open.count;
    Delete: |delete| delete.count;
    Rename: |rename| rename.count;
    Change: |change| change.count;
    Io: |io| io.reads.saturating_add(io.writes).max(1);
    Socket<'_>: |socket| socket.count;
    Traffic<'_>: |traffic| traffic.sends.saturating_add(traffic.receives).max(1);
    Dns<'_>: |dns| dns.count;
    Operation: |operation| operation.count;
}

/// Does the same with every list of a body, borrowed as told, and its class.
macro_rules! each_list {
    ([$($borrow:tt)+] $body:ident, |$class:ident, $list:ident| $then:expr) => {
        each_list!(@ $class $list $then;
            Process $($borrow)+ $body.forks,
            Process $($borrow)+ $body.execs,
            Process $($borrow)+ $body.exits,
            Process $($borrow)+ $body.credentials,
            File $($borrow)+ $body.opens,
            File $($borrow)+ $body.deletes,
            File $($borrow)+ $body.renames,
            File $($borrow)+ $body.changes,
            File $($borrow)+ $body.ios,
            Network $($borrow)+ $body.sockets,
            Network $($borrow)+ $body.traffic,
            Network $($borrow)+ $body.dns,
            Other $($borrow)+ $body.operations,
        )
    };
    (@ $class:ident $list:ident $then:expr; $($name:ident $of:expr,)+) => {
        $({
            let ($class, $list) = ($crate::event::Class::$name, $of);
            $then
        })+
    };
}
use each_list;

impl Body<'_> {
    /// How many events the body holds.
    pub fn events(&self) -> usize {
        let mut events = 0;
        each_list!([&] self, |_class, list| events += list.len());
        events
    }

    /// How many events of each kind the body holds, those of none left out.
    pub fn kinds(&self) -> Vec<(&'static str, usize)> {
        let kinds = [
            ("forks", self.forks.len()),
            ("execs", self.execs.len()),
            ("exits", self.exits.len()),
            ("credentials", self.credentials.len()),
            ("opens", self.opens.len()),
            ("deletes", self.deletes.len()),
            ("renames", self.renames.len()),
            ("changes", self.changes.len()),
            ("ios", self.ios.len()),
            ("sockets", self.sockets.len()),
            ("traffic", self.traffic.len()),
            ("dns", self.dns.len()),
            ("operations", self.operations.len()),
        ];
        kinds.into_iter().filter(|(_, events)| *events > 0).collect()
    }

    /// The facts that the events stand for: delivered and collapsed ones per class.
    pub fn facts(&self) -> [(Class, u64, u64); 5] {
        fn collapsed(list: &[impl Entry]) -> u64 {
            list.iter().fold(0, |sum, entry| sum.saturating_add(entry.facts().saturating_sub(1)))
        }
        let mut facts = Class::ALL.map(|class| (class, 0, 0u64));
        each_list!([&] self, |class, list| {
            let (_, of_delivered, of_collapsed) = &mut facts[class as usize];
            *of_delivered += list.len() as u64;
            *of_collapsed = of_collapsed.saturating_add(collapsed(list));
        });
        facts
    }

    /// Moves every time so that the first becomes the base.
    fn rebase(&mut self) {
        // Records of two rings (and of two CPUs) come slightly out of order: the earliest of a frame is not always
        // its first.
        let mut first = u64::MAX;
        each_list!([&mut] self, |_class, list| {
            first = list.iter_mut().fold(first, |first, entry| first.min(*entry.after_ns()));
        });
        if self.events() > 0 {
            each_list!([&mut] self, |_class, list| list.iter_mut().for_each(|entry| *entry.after_ns() -= first));
            self.base_boot_ns = first;
        }
    }
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
    /// CPU time of the probe's kernel programs, nanoseconds. An estimate from samples.
    #[serde(default)]
    pub kernel_ns: u64,
    /// How many runs of the programs were measured for it.
    #[serde(default)]
    pub kernel_samples: u64,
}

impl Seal {
    /// The facts that the seal itself holds, folded into counts: calls of class `syscall`, escaped tasks of class
    /// `other`. The header's counters of these classes name as many as collapsed.
    pub fn folded(&self) -> [(Class, u64); 2] {
        let calls = self.syscalls.iter().fold(0u64, |sum, (_, count)| sum.saturating_add(*count));
        [(Class::Syscall, calls), (Class::Other, self.escaped_tasks)]
    }
}
