//! The Rust mirror of `include/abi.h`, field by field. Meanings and units stand in the C header.
//!
//! Each struct reads itself from bytes with [`Abi::read`]; no reference into a ring buffer is ever formed, so alignment
//! and lifetime need no care. `tests/alignment.rs` compares [`Abi::FIELDS`] with the BTF of the compiled object.

#![allow(missing_docs, reason = "every field is documented where it is defined, in include/abi.h")]

/// Of records and maps; an object with another number is refused.
pub const ABI_VERSION: u32 = 3;
/// A read-only variable of every object, named after the version.
pub const ABI_SYMBOL: &str = "gh_abi_3";
pub const PATH_BYTES: usize = 4096;
pub const ARGV_BYTES: usize = 8192;
pub const SYSCALLS: usize = 512;
pub const CLASSES: usize = 5;
pub const BYPASSES: usize = 8;
/// Entries of a task's table of files.
pub const SEEN: usize = 32;
/// One system call in this many is measured.
pub const SAMPLING: u64 = 1024;

pub const KIND_FORK: u16 = 1;
pub const KIND_EXEC: u16 = 2;
pub const KIND_EXIT: u16 = 3;
pub const KIND_CREDENTIALS: u16 = 4;
pub const KIND_OPEN: u16 = 5;
pub const KIND_DELETE: u16 = 6;
pub const KIND_RENAME: u16 = 7;
pub const KIND_CHANGE: u16 = 8;
pub const KIND_FILE: u16 = 9;
pub const KIND_TALLIES: u16 = 10;
pub const KIND_SOCKET: u16 = 11;
pub const KIND_TRAFFIC: u16 = 12;
pub const KIND_DNS: u16 = 13;
pub const KIND_OPERATION: u16 = 14;

pub const STATE_FREE: u32 = 0;
pub const STATE_ARMED: u32 = 1;
pub const STATE_RECORDING: u32 = 2;
pub const STATE_SEALED: u32 = 3;

pub const PATH_TRUNCATED: u16 = 1 << 0;
pub const PATH_UNREACHABLE: u16 = 1 << 1;
pub const PATH_PSEUDO: u16 = 1 << 2;
pub const PATH_UNLINKED: u16 = 1 << 3;
pub const PATH_USER: u16 = 1 << 4;
pub const PATH_UNREADABLE: u16 = 1 << 5;
pub const PATH_NO_BASE: u16 = 1 << 6;
pub const PATH_OTHER_ROOT: u16 = 1 << 7;
pub const PATH_UNSTABLE: u16 = 1 << 8;

pub const OPEN_CREATED: u32 = 1 << 0;

pub const EXEC_PRIVILEGED: u32 = 1 << 0;
pub const EXEC_PID_NAMESPACE: u32 = 1 << 1;
pub const EXEC_MOUNT_NAMESPACE: u32 = 1 << 2;
pub const EXEC_NET_NAMESPACE: u32 = 1 << 3;
pub const EXEC_USER_NAMESPACE: u32 = 1 << 4;
pub const EXEC_IPC_NAMESPACE: u32 = 1 << 5;
pub const EXEC_UTS_NAMESPACE: u32 = 1 << 6;
pub const EXEC_CGROUP_NAMESPACE: u32 = 1 << 7;

pub const CHANGE_LINK: u32 = 0;
pub const CHANGE_SYMLINK: u32 = 1;
pub const CHANGE_MKDIR: u32 = 2;
pub const CHANGE_MKNOD: u32 = 3;
pub const CHANGE_MODE: u32 = 4;
pub const CHANGE_OWNER: u32 = 5;
pub const CHANGE_TRUNCATE: u32 = 6;
pub const CHANGE_MOUNT: u32 = 7;
pub const CHANGE_UNMOUNT: u32 = 8;
pub const CHANGE_MOVE_MOUNT: u32 = 9;
pub const CHANGE_PIVOT_ROOT: u32 = 10;
pub const CHANGE_MAP_EXECUTABLE: u32 = 11;

pub const SOCKET_CONNECT: u32 = 0;
pub const SOCKET_BIND: u32 = 1;
pub const SOCKET_LISTEN: u32 = 2;
pub const SOCKET_ACCEPT: u32 = 3;
pub const SOCKET_SEND: u32 = 4;

pub const OPERATION_PTRACE: u32 = 0;
pub const OPERATION_BPF: u32 = 1;
pub const OPERATION_LOAD_MODULE: u32 = 2;
pub const OPERATION_UNLOAD_MODULE: u32 = 3;
pub const OPERATION_SET_NAMESPACE: u32 = 4;
pub const OPERATION_UNSHARE: u32 = 5;
pub const OPERATION_IO_URING: u32 = 6;
pub const OPERATION_SIGNAL: u32 = 7;
pub const OPERATION_MEMFD: u32 = 8;
pub const OPERATION_KEYRING: u32 = 9;
pub const OPERATION_PROCESS_READ: u32 = 10;
pub const OPERATION_PROCESS_WRITE: u32 = 11;
pub const OPERATION_PIDFD_GETFD: u32 = 12;
pub const OPERATION_PERF_EVENT: u32 = 13;
pub const OPERATION_USERFAULT: u32 = 14;
pub const OPERATION_KEXEC: u32 = 15;
pub const OPERATION_REBOOT: u32 = 16;
pub const OPERATION_CHROOT: u32 = 17;
pub const OPERATION_OPEN_BY_HANDLE: u32 = 18;

/// Offset and size of a field, under its C name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field {
    pub name: &'static str,
    pub offset: usize,
    pub size: usize,
}

mod sealed {
    /// Implemented by this module's macro only: `repr(C)`, integers all the way down, no padding.
    pub trait Plain: Copy + 'static {}
}

/// A struct that both sides share.
pub trait Abi: sealed::Plain {
    /// The C name.
    const C_NAME: &'static str;
    /// Every field in order.
    const FIELDS: &'static [Field];

    /// Reads the struct from the beginning of `bytes`; `None` when they are too few.
    #[allow(unsafe_code, reason = "the one place where bytes of the kernel become a struct")]
    fn read(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.get(..size_of::<Self>())?;
        // SAFETY: `bytes` holds size_of::<Self>() readable bytes, read_unaligned asks for no alignment, and `Plain`
        // types are made of integers without padding, so that every bit pattern is a value.
        Some(unsafe { bytes.as_ptr().cast::<Self>().read_unaligned() })
    }

    /// The bytes of the struct, as a map value.
    #[allow(unsafe_code, reason = "the one place where a struct becomes bytes for the kernel")]
    fn as_bytes(&self) -> &[u8] {
        // SAFETY: `Plain` types have no padding, so all size_of::<Self>() bytes are initialised; the slice borrows self.
        unsafe { std::slice::from_raw_parts(std::ptr::from_ref(self).cast::<u8>(), size_of::<Self>()) }
    }
}

macro_rules! mirror {
    ($($c_name:literal $name:ident { $($field:ident: $type:ty,)* })*) => {$(
        #[repr(C)]
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub struct $name {
            $(pub $field: $type,)*
        }

        impl sealed::Plain for $name {}

        // No padding: the fields fill the struct.
        const _: () = assert!(size_of::<$name>() == 0 $(+ size_of::<$type>())*);

        impl Abi for $name {
            const C_NAME: &'static str = $c_name;
            const FIELDS: &'static [Field] = &[$(Field {
                name: stringify!($field),
                offset: std::mem::offset_of!($name, $field),
                size: size_of::<$type>(),
            },)*];
        }
    )*};
}

mirror! {
    "gh_path" Path {
        walked_bytes: u16,
        user_bytes: u16,
        flags: u16,
        reserved: u16,
    }
    "gh_header" Header {
        record_bytes: u32,
        kind: u16,
        version: u16,
        slot: u32,
        generation: u32,
        boot_ns: u64,
        start_boot_ns: u64,
        tgid: u32,
        tid: u32,
    }
    "gh_fork" Fork {
        child_start_boot_ns: u64,
        child_tgid: u32,
        reserved: u32,
    }
    "gh_exec" Exec {
        exe: Path,
        cwd: Path,
        argv_bytes: u32,
        env_bytes: u32,
        argv_total_bytes: u64,
        env_total_bytes: u64,
        parent_tgid: u32,
        uid: u32,
        gid: u32,
        flags: u32,
    }
    "gh_exit" Exit {
        wait_status: u32,
        reserved: u32,
        user_ns: u64,
        system_ns: u64,
        max_rss_pages: u64,
        minor_faults: u64,
        major_faults: u64,
    }
    "gh_credentials" Credentials {
        uid: u32,
        euid: u32,
        gid: u32,
        egid: u32,
        capabilities: u64,
        gained: u32,
        syscall: u32,
    }
    "gh_entry" Entry {
        task: u32,
        index: u32,
    }
    "gh_open" Open {
        result: i64,
        open_flags: u64,
        path: Path,
        entry: Entry,
        flags: u32,
        syscall: u32,
    }
    "gh_delete" Delete {
        result: i64,
        path: Path,
        directory: u32,
        syscall: u32,
    }
    "gh_rename" Rename {
        result: i64,
        from: Path,
        to: Path,
        rename_flags: u32,
        syscall: u32,
    }
    "gh_change" Change {
        result: i64,
        value: u64,
        path: Path,
        other: Path,
        entry: Entry,
        change: u32,
        syscall: u32,
    }
    "gh_file" File {
        path: Path,
        entry: Entry,
    }
    "gh_tally" Tally {
        read_bytes: u64,
        written_bytes: u64,
        again: u32,
        reads: u32,
        writes: u32,
        index: u32,
    }
    "gh_tallies" Tallies {
        task: u32,
        tallies: u32,
        is_last: u32,
        reserved: u32,
    }
    "gh_address" Address {
        family: u16,
        port: u16,
        protocol: u16,
        socket_type: u16,
        address: [u8; 16],
        scope_id: u32,
        reserved: u32,
    }
    "gh_socket" Socket {
        result: i64,
        address: Address,
        path: Path,
        operation: u32,
        syscall: u32,
    }
    "gh_traffic" Traffic {
        address: Address,
        sent_bytes: u64,
        received_bytes: u64,
        sends: u32,
        receives: u32,
    }
    "gh_dns" Dns {
        server: Address,
        message_bytes: u32,
        is_answer: u32,
        message_total_bytes: u64,
    }
    "gh_operation" Operation {
        result: i64,
        value: u64,
        operation: u32,
        target: u32,
    }
    "gh_watch" Watch {
        slot: u32,
        generation: u32,
    }
    "gh_execution" Execution {
        root_cgroup_id: u64,
        root_tgid: u32,
        generation: u32,
        state: u32,
        lossless: u32,
        root_dentry: u64,
        root_mnt: u64,
        namespaces: [u64; 7],
    }
    "gh_stopped" Stopped {
        slot: u32,
        generation: u32,
        start_boot_ns: u64,
    }
    "gh_counters" Counters {
        observed: [u64; CLASSES],
        lost_ring: [u64; CLASSES],
        lost_read: [u64; CLASSES],
        lost_map: [u64; CLASSES],
        escaped: u64,
        joined: u64,
        compat_syscalls: u64,
        bypasses: [u64; BYPASSES],
        other_family_connects: u64,
        unnumbered_syscalls: u64,
        other_root_paths: u64,
        tasks: u64,
        sampled_ns: u64,
        samples: u64,
        stops: u64,
    }
    "gh_syscalls" Syscalls {
        count: [u64; SYSCALLS],
        denied: [u64; SYSCALLS],
    }
}

/// Size of the body union: that of its largest member.
pub const BODY_BYTES: usize = size_of::<Socket>();
const _: () = assert!(
    size_of::<Exec>() <= BODY_BYTES
        && size_of::<Traffic>() <= BODY_BYTES
        && size_of::<Change>() <= BODY_BYTES
);
/// Where the payload of every record begins.
pub const PAYLOAD_OFFSET: usize = size_of::<Header>() + BODY_BYTES;
/// No record is longer: the fixed part and the largest payload (`PAYLOAD_BYTES` in `probe/common.h`).
pub const MAX_RECORD_BYTES: usize = PAYLOAD_OFFSET + 24576;
