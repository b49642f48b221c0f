//! What a probe saw: one [`Event`] per fact, borrowed from the buffer it was decoded from.
//!
//! Facts fall into five classes. Loss is counted per class, because a policy over the network may still be
//! answered when file events were lost.

use std::net::IpAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ids::ProcessKey;

/// A class of facts that is counted on its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// fork, exec, exit, credentials.
    Process,
    /// open, delete, rename, other changes, bytes read and written.
    File,
    /// Sockets, their traffic, names asked of DNS.
    Network,
    /// The per-execution syscall histogram.
    Syscall,
    /// Everything else a probe watches, such as ptrace or a task leaving the execution's cgroup.
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

/// One end of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Address<'a> {
    /// IPv4 address and port.
    V4([u8; 4], u16),
    /// IPv6 address and port.
    V6([u8; 16], u16),
    /// A unix socket's path; an abstract one begins with a NUL byte.
    Unix(&'a [u8]),
}

impl Address<'_> {
    /// The bytes of the address, and the port where it has one.
    pub const fn parts(&self) -> (&[u8], Option<u16>) {
        match self {
            Self::V4(address, port) => (address, Some(*port)),
            Self::V6(address, port) => (address, Some(*port)),
            Self::Unix(path) => (path, None),
        }
    }
}

/// What is special about an exec, as bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ExecFlags(pub u16);

impl ExecFlags {
    /// The program is a memfd, or its file never had a name.
    pub const ANONYMOUS: Self = Self(1);
    /// The program's file was deleted before the exec.
    pub const DELETED: Self = Self(1 << 1);
    /// The exec gained privileges: setuid, setgid or file capabilities.
    pub const PRIVILEGED: Self = Self(1 << 2);
    /// In another PID namespace than the execution's root.
    pub const PID: Self = Self(1 << 3);
    /// In another mount namespace than the execution's root.
    pub const MOUNT: Self = Self(1 << 4);
    /// In another network namespace than the execution's root.
    pub const NET: Self = Self(1 << 5);
    /// In another user namespace than the execution's root.
    pub const USER: Self = Self(1 << 6);
    /// In another IPC namespace than the execution's root.
    pub const IPC: Self = Self(1 << 7);
    /// In another UTS namespace than the execution's root.
    pub const UTS: Self = Self(1 << 8);
    /// In another cgroup namespace than the execution's root.
    pub const CGROUP: Self = Self(1 << 9);

    const NAMES: [(Self, &'static str); 10] = [
        (Self::ANONYMOUS, "anonymous"),
        (Self::DELETED, "deleted"),
        (Self::PRIVILEGED, "privileged"),
        (Self::PID, "namespace:pid"),
        (Self::MOUNT, "namespace:mount"),
        (Self::NET, "namespace:net"),
        (Self::USER, "namespace:user"),
        (Self::IPC, "namespace:ipc"),
        (Self::UTS, "namespace:uts"),
        (Self::CGROUP, "namespace:cgroup"),
    ];

    /// Whether all bits of `other` are set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Both sets of bits.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The words for the bits, as a receipt has them.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        Self::NAMES.into_iter().filter(move |(flag, _)| self.contains(*flag)).map(|(_, name)| name)
    }
}

/// What a process used from its beginning to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct Usage {
    /// CPU time in user space, nanoseconds.
    pub user_ns: u64,
    /// CPU time in the kernel, nanoseconds.
    pub system_ns: u64,
    /// Largest resident set, KiB.
    pub max_rss_kib: u64,
    /// Page faults served without I/O.
    pub minor_faults: u64,
    /// Page faults that had to be read in.
    pub major_faults: u64,
}

/// A number on the wire that this reader has no word for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{number} is no {what}")]
pub struct UnknownNumber {
    what: &'static str,
    number: u8,
}

/// An enum that is its number on the wire and a word in a receipt. Numbers are never used again for something else.
macro_rules! numbered {
    ($(#[$meta:meta])* $name:ident { $($(#[$of:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "u8", into = "u8")]
        #[repr(u8)]
        pub enum $name {
            $($(#[$of])* $variant,)+
        }

        impl $name {
            /// Every variant, in the order of its number.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// Its word in a receipt.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)+
                }
            }
        }

        /// The one whose number is 0.
        impl Default for $name {
            fn default() -> Self {
                Self::ALL[0]
            }
        }

        impl From<$name> for u8 {
            fn from(value: $name) -> Self {
                value as Self
            }
        }

        impl TryFrom<u8> for $name {
            type Error = UnknownNumber;

            fn try_from(number: u8) -> Result<Self, UnknownNumber> {
                let unknown = UnknownNumber { what: stringify!($name), number };
                Self::ALL.get(usize::from(number)).copied().ok_or(unknown)
            }
        }
    };
}

numbered! {
    /// How a [`Fact::Change`] changed a file or a mount.
    FileChange {
        /// A hard link was made.
        Link = "link",
        /// A symbolic link was made.
        Symlink = "symlink",
        /// A directory was made.
        MakeDirectory = "mkdir",
        /// A device, pipe or socket file was made.
        MakeNode = "mknod",
        /// The mode was changed.
        Mode = "chmod",
        /// Owner or group were changed.
        Owner = "chown",
        /// It was cut or grown to a length.
        Truncate = "truncate",
        /// Something was mounted on it.
        Mount = "mount",
        /// It was unmounted.
        Unmount = "umount",
        /// A mount was moved to it.
        MoveMount = "move_mount",
        /// It became the root.
        PivotRoot = "pivot_root",
        /// It was mapped executable.
        MapExecutable = "map_executable",
    }
}

numbered! {
    /// What a [`Fact::Socket`] did.
    SocketOperation {
        /// Connected; the address is the other end's.
        Connect = "connect",
        /// Took an address of its own.
        Bind = "bind",
        /// Began to listen at its own address.
        Listen = "listen",
        /// Accepted a connection; the address is the peer's.
        Accept = "accept",
        /// Sent a datagram to a named destination.
        Send = "send",
    }
}

numbered! {
    /// What a [`Fact::Operation`] was.
    Operation {
        /// ptrace(2); the value is the request.
        Ptrace = "ptrace",
        /// bpf(2); the value is the command.
        Bpf = "bpf",
        /// A kernel module was loaded.
        LoadModule = "load_module",
        /// A kernel module was removed.
        UnloadModule = "unload_module",
        /// setns(2); the value is the namespace type.
        SetNamespace = "set_namespace",
        /// unshare(2), or a clone into new namespaces; the value is the flags.
        Unshare = "unshare",
        /// io_uring_setup(2); the value is the number of entries.
        IoUring = "io_uring",
        /// A signal to a process outside of the execution; the value is the signal.
        Signal = "signal",
        /// memfd_create(2).
        MemoryFd = "memory_fd",
        /// keyctl(2); the value is the command.
        Keyring = "keyring",
        /// process_vm_readv(2), or process_vm_writev(2) when the value is 1.
        ProcessMemory = "process_memory",
        /// pidfd_getfd(2).
        StealDescriptor = "steal_descriptor",
        /// perf_event_open(2).
        PerfEvent = "perf_event",
        /// userfaultfd(2).
        UserFault = "user_fault",
        /// kexec_load(2) or kexec_file_load(2).
        Kexec = "kexec",
        /// reboot(2); the value is the command.
        Reboot = "reboot",
        /// chroot(2).
        Chroot = "chroot",
        /// open_by_handle_at(2).
        OpenByHandle = "open_by_handle",
    }
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
        /// Names (never values) of those of the watched environment variables that were set, such as `LD_PRELOAD`.
        env: &'a [&'a [u8]],
        /// The environment was longer than the probe looks through.
        env_truncated: bool,
        /// What is special about it.
        flags: ExecFlags,
    },
    /// The last thread of the process ended.
    Exit {
        /// The code it gave to exit, 0 when a signal ended it.
        code: u8,
        /// The signal that ended it, 0 for none.
        signal: u8,
        /// The kernel wrote a core dump.
        core_dumped: bool,
        /// What it used.
        usage: Usage,
    },
    /// The process's credentials changed.
    Credentials {
        /// Real user id.
        uid: u32,
        /// Effective user id.
        euid: u32,
        /// Real group id.
        gid: u32,
        /// Effective group id.
        egid: u32,
        /// Effective capabilities, as bits.
        capabilities: u64,
        /// It can do more than before.
        gained: bool,
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
        /// This open made the file.
        created: bool,
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
        /// The two names changed places (`RENAME_EXCHANGE`).
        exchange: bool,
        /// 0, or a negated errno.
        result: i32,
    },
    /// The process changed a file or a mount in another way, or tried to.
    Change {
        /// How.
        change: FileChange,
        /// What changed: for links the new name, for mounts the target directory.
        path: PathRef<'a>,
        /// The existing file of a link, the target string of a symbolic link, the source string of a mount, where a
        /// mount was moved from, where the old root goes.
        other: Option<PathRef<'a>>,
        /// Mode bits (`chmod`, `mkdir`, `mknod`), `uid << 32 | gid` (`chown`; 0xffffffff is unchanged), length
        /// (`truncate`), flags (`mount`, `umount`), 1 if also writable (`map_executable`); else 0.
        value: u64,
        /// 0, or a negated errno.
        result: i32,
    },
    /// What the process read from and wrote to a file since the last such event. It stands for `reads + writes` facts
    /// (for one, if both are 0).
    Io {
        /// The file.
        path: PathRef<'a>,
        /// Calls that read.
        reads: u64,
        /// Calls that wrote.
        writes: u64,
        /// Bytes read.
        read_bytes: u64,
        /// Bytes written.
        written_bytes: u64,
    },
    /// The process did something with a socket, or tried to.
    Socket {
        /// What.
        operation: SocketOperation,
        /// The other end; of a bind or listen its own.
        address: Address<'a>,
        /// `IPPROTO_*`, 0 for unix sockets.
        protocol: u8,
        /// 0, or a negated errno. `-EINPROGRESS` is a connect whose end was not waited for.
        result: i32,
    },
    /// What the process sent to and received from a peer since the last such event. It stands for `sends + receives`
    /// facts (for one, if both are 0).
    Traffic {
        /// The peer.
        address: Address<'a>,
        /// `IPPROTO_*`, 0 for unix sockets.
        protocol: u8,
        /// Calls that sent.
        sends: u64,
        /// Calls that received.
        receives: u64,
        /// Bytes sent.
        sent_bytes: u64,
        /// Bytes received.
        received_bytes: u64,
    },
    /// The process asked a name server, or got its answer.
    Dns {
        /// The server.
        server: Address<'a>,
        /// The name asked for, in presentation form without the trailing dot.
        name: &'a [u8],
        /// The type asked for (RFC 1035 `QTYPE`).
        query_type: u16,
        /// Addresses in the answer.
        answers: &'a [IpAddr],
        /// `RCODE` of an answer; `None` is a question.
        response_code: Option<u8>,
    },
    /// The process did one of the things that are told one by one, or tried to.
    Operation {
        /// What.
        operation: Operation,
        /// See [`Operation`].
        value: u64,
        /// Thread group id of the process it was done to, 0 for none.
        target_tgid: u32,
        /// 0, or a negated errno.
        result: i32,
    },
}

impl Fact<'_> {
    /// The class the fact is counted in.
    pub const fn class(&self) -> Class {
        match self {
            Self::Fork { .. } | Self::Exec { .. } | Self::Exit { .. } | Self::Credentials { .. } => {
                Class::Process
            }
            Self::Open { .. }
            | Self::Delete { .. }
            | Self::Rename { .. }
            | Self::Change { .. }
            | Self::Io { .. } => Class::File,
            Self::Socket { .. } | Self::Traffic { .. } | Self::Dns { .. } => Class::Network,
            Self::Operation { .. } => Class::Other,
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
