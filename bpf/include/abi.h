/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The one ABI file: what the programs write and user space reads.
 *
 * src/abi.rs mirrors every struct here; tests/alignment.rs compares the two field by field through the BTF of the
 * compiled object, so a change on one side only is a failing test, never a mis-decoded fact.
 *
 * Rules: only fixed-width types, no implicit padding, native byte order (both sides are the same host).
 */
#ifndef GLASSHOUSE_ABI_H
#define GLASSHOUSE_ABI_H

typedef unsigned char __u8;
typedef unsigned short __u16;
typedef unsigned int __u32;
typedef unsigned long long __u64;
typedef int __s32;
typedef long long __s64;

/* Bumped on every change of a struct or constant; the loader refuses an object with another number. */
#define GH_ABI_VERSION 3

/* Longest path that is carried whole, in bytes, without a terminating NUL. */
#define GH_PATH_BYTES 4096
/* Longest argv that is carried whole, in bytes, with the NULs between the arguments. */
#define GH_ARGV_BYTES 8192
/* Longest environment that is looked at, in bytes, with the NULs between the variables. */
#define GH_ENV_BYTES 4096
/* Longest DNS message that is looked at, in bytes. */
#define GH_DNS_BYTES 1500
/* Files that a task's own table holds, see gh_tally. */
#define GH_SEEN 32
/* System calls from this number on share one counter, see gh_counters. */
#define GH_SYSCALLS 512

enum gh_class {
	GH_CLASS_PROCESS = 0,
	GH_CLASS_FILE = 1,
	GH_CLASS_NETWORK = 2,
	GH_CLASS_SYSCALL = 3,
	GH_CLASS_OTHER = 4,
	GH_CLASSES = 5,
};

enum gh_kind {
	GH_KIND_FORK = 1,
	GH_KIND_EXEC = 2,
	GH_KIND_EXIT = 3,
	GH_KIND_CREDENTIALS = 4,
	GH_KIND_OPEN = 5,
	GH_KIND_DELETE = 6,
	GH_KIND_RENAME = 7,
	/* Another change of the file system, or an executable mapping. */
	GH_KIND_CHANGE = 8,
	/* A file that is read or written without having been opened by this task. Not a fact; tallies refer to it. */
	GH_KIND_FILE = 9,
	/* What was folded in the kernel since the task's last record of this kind. */
	GH_KIND_TALLIES = 10,
	GH_KIND_SOCKET = 11,
	GH_KIND_TRAFFIC = 12,
	GH_KIND_DNS = 13,
	GH_KIND_OPERATION = 14,
};

/* The life of one execution. User space writes ARMED and SEALED; the kernel alone writes RECORDING. */
enum gh_state {
	GH_STATE_FREE = 0,
	/* Registered; the runner is still setting up. Nothing is recorded or counted. */
	GH_STATE_ARMED = 1,
	/* The root has called execve. */
	GH_STATE_RECORDING = 2,
	/* Being read out: no new fact is recorded. */
	GH_STATE_SEALED = 3,
};

enum gh_path_flags {
	/* Longer than GH_PATH_BYTES: the part nearest the root is missing from what was walked, the end from a string. */
	GH_PATH_TRUNCATED = 1 << 0,
	/* Not below the root of the execution: another mount namespace, a detached mount, or outside a chroot. */
	GH_PATH_UNREACHABLE = 1 << 1,
	/* Has no directory at all (pipe, socket, memfd): the name is all there is. */
	GH_PATH_PSEUDO = 1 << 2,
	/* Unlinked at the time: the name no longer leads to the file. */
	GH_PATH_UNLINKED = 1 << 3,
	/* The last part is the caller's own string: symlinks in it are not resolved. */
	GH_PATH_USER = 1 << 4,
	/* The caller's string could not be read. */
	GH_PATH_UNREADABLE = 1 << 5,
	/* The directory that a relative string starts from could not be found (a bad descriptor). */
	GH_PATH_NO_BASE = 1 << 6,
	/* The caller's string starts from another root than the execution's; an absolute one from what was walked. */
	GH_PATH_OTHER_ROOT = 1 << 7,
	/* Directories above it were renamed again and again while it was walked. */
	GH_PATH_UNSTABLE = 1 << 8,
};

/*
 * A path in a record's payload: first what the kernel walked, each name followed by NUL, the last name first; then the
 * caller's string without its NUL. The absolute path is the walked names in reverse order, then the string.
 */
struct gh_path {
	__u16 walked_bytes;
	__u16 user_bytes;
	__u16 flags;
	__u16 reserved;
};

struct gh_header {
	/* The whole record with its payload. */
	__u32 record_bytes;
	__u16 kind;
	__u16 version;
	__u32 slot;
	__u32 generation;
	/* CLOCK_BOOTTIME. */
	__u64 boot_ns;
	/* The acting process: (tgid, start_boot_ns), and the thread that acted. */
	__u64 start_boot_ns;
	__u32 tgid;
	__u32 tid;
};

/* The actor is the parent. */
struct gh_fork {
	__u64 child_start_boot_ns;
	__u32 child_tgid;
	__u32 reserved;
};

enum gh_exec_flags {
	/* The effective ids differ from the real ones, or the exec added capabilities. */
	GH_EXEC_PRIVILEGED = 1 << 0,
	/* In another namespace than the execution's root had when it began. */
	GH_EXEC_PID_NAMESPACE = 1 << 1,
	GH_EXEC_MOUNT_NAMESPACE = 1 << 2,
	GH_EXEC_NET_NAMESPACE = 1 << 3,
	GH_EXEC_USER_NAMESPACE = 1 << 4,
	GH_EXEC_IPC_NAMESPACE = 1 << 5,
	GH_EXEC_UTS_NAMESPACE = 1 << 6,
	GH_EXEC_CGROUP_NAMESPACE = 1 << 7,
};

struct gh_exec {
	struct gh_path exe;
	struct gh_path cwd;
	/* Bytes of argv in the payload, after the two paths, and of the environment after that. */
	__u32 argv_bytes;
	__u32 env_bytes;
	/* Bytes of both in the process; more than above when they were cut. */
	__u64 argv_total_bytes;
	__u64 env_total_bytes;
	__u32 parent_tgid;
	__u32 uid;
	__u32 gid;
	/* enum gh_exec_flags */
	__u32 flags;
};

struct gh_exit {
	/* As wait(2) gives it: exit code in bits 8-15, signal in bits 0-6, core dumped in bit 7. */
	__u32 wait_status;
	__u32 reserved;
	/* Of all threads. */
	__u64 user_ns;
	__u64 system_ns;
	__u64 max_rss_pages;
	__u64 minor_faults;
	__u64 major_faults;
};

/* The credentials of a task are others than at its last system call. */
struct gh_credentials {
	__u32 uid;
	__u32 euid;
	__u32 gid;
	__u32 egid;
	/* The effective capabilities, by their bits. */
	__u64 capabilities;
	/* Capabilities, or user 0, that the task did not have before. */
	__u32 gained;
	__u32 syscall;
};

enum gh_open_flags {
	/* This call created the file. */
	GH_OPEN_CREATED = 1 << 0,
};

/* Which entry of which task's table a record fills; tallies name them. */
struct gh_entry {
	/* Number of the task within its execution, from 1. */
	__u32 task;
	/* Index of the entry and 1; 0 when the table has none for it. */
	__u32 index;
};

struct gh_open {
	/* File descriptor, or -errno. */
	__s64 result;
	/* O_* as the caller passed them; of openat2 as the kernel has them. */
	__u64 open_flags;
	struct gh_path path;
	struct gh_entry entry;
	/* enum gh_open_flags */
	__u32 flags;
	__u32 syscall;
};

struct gh_delete {
	__s64 result;
	struct gh_path path;
	/* Of a directory (rmdir, unlinkat with AT_REMOVEDIR). */
	__u32 directory;
	__u32 syscall;
};

struct gh_rename {
	__s64 result;
	struct gh_path from;
	struct gh_path to;
	/* RENAME_* of renameat2. */
	__u32 rename_flags;
	__u32 syscall;
};

enum gh_change_kind {
	GH_CHANGE_LINK = 0,
	GH_CHANGE_SYMLINK = 1,
	GH_CHANGE_MKDIR = 2,
	GH_CHANGE_MKNOD = 3,
	GH_CHANGE_MODE = 4,
	GH_CHANGE_OWNER = 5,
	GH_CHANGE_TRUNCATE = 6,
	GH_CHANGE_MOUNT = 7,
	GH_CHANGE_UNMOUNT = 8,
	GH_CHANGE_MOVE_MOUNT = 9,
	GH_CHANGE_PIVOT_ROOT = 10,
	/* A file mapped with PROT_EXEC. */
	GH_CHANGE_MAP_EXECUTABLE = 11,
};

struct gh_change {
	__s64 result;
	/* Mode, length, flags; of an owner the user id in the upper half and the group id in the lower. */
	__u64 value;
	struct gh_path path;
	/* Link: the file there was. Symlink: its text, as it is. Mount: the source. Move: from where. Pivot: the old root. */
	struct gh_path other;
	struct gh_entry entry;
	/* enum gh_change_kind */
	__u32 change;
	__u32 syscall;
};

struct gh_file {
	struct gh_path path;
	struct gh_entry entry;
};

/* Facts about one entry of a task's table that were not told one by one. */
struct gh_tally {
	__u64 read_bytes;
	__u64 written_bytes;
	/* Identical to what filled the entry. */
	__u32 again;
	__u32 reads;
	__u32 writes;
	/* As in gh_entry. */
	__u32 index;
};

/* The payload: `tallies` times a gh_tally. */
struct gh_tallies {
	__u32 task;
	__u32 tallies;
	/* The task ends: its table is gone. */
	__u32 is_last;
	__u32 reserved;
};

enum gh_socket_operation {
	GH_SOCKET_CONNECT = 0,
	GH_SOCKET_BIND = 1,
	GH_SOCKET_LISTEN = 2,
	/* The address is the peer's. */
	GH_SOCKET_ACCEPT = 3,
	/* The first datagram of a task from a socket to an address that it named. */
	GH_SOCKET_SEND = 4,
};

struct gh_address {
	/* AF_INET, AF_INET6 or AF_UNIX. */
	__u16 family;
	/* Host byte order. */
	__u16 port;
	/* IPPROTO_*, 0 when unknown. */
	__u16 protocol;
	/* SOCK_*, 0 when unknown. */
	__u16 socket_type;
	/* Network byte order; IPv4 uses the first four bytes. */
	__u8 address[16];
	/* Interface index of a link-local IPv6 address. */
	__u32 scope_id;
	__u32 reserved;
};

struct gh_socket {
	__s64 result;
	struct gh_address address;
	/* AF_UNIX: the path; for an abstract address the payload is the name with its leading NUL. */
	struct gh_path path;
	/* enum gh_socket_operation */
	__u32 operation;
	__u32 syscall;
};

/* Calls and bytes between a task and a peer. */
struct gh_traffic {
	struct gh_address address;
	__u64 sent_bytes;
	__u64 received_bytes;
	__u32 sends;
	__u32 receives;
};

/* A message from or to UDP port 53: the payload is its beginning. */
struct gh_dns {
	struct gh_address server;
	__u32 message_bytes;
	__u32 is_answer;
	/* Bytes of it in the process; more than above when it was cut. */
	__u64 message_total_bytes;
};

enum gh_operation_kind {
	GH_OPERATION_PTRACE = 0,
	GH_OPERATION_BPF = 1,
	GH_OPERATION_LOAD_MODULE = 2,
	GH_OPERATION_UNLOAD_MODULE = 3,
	GH_OPERATION_SET_NAMESPACE = 4,
	GH_OPERATION_UNSHARE = 5,
	GH_OPERATION_IO_URING = 6,
	/* To a process outside of the execution. */
	GH_OPERATION_SIGNAL = 7,
	GH_OPERATION_MEMFD = 8,
	GH_OPERATION_KEYRING = 9,
	GH_OPERATION_PROCESS_READ = 10,
	GH_OPERATION_PROCESS_WRITE = 11,
	GH_OPERATION_PIDFD_GETFD = 12,
	GH_OPERATION_PERF_EVENT = 13,
	GH_OPERATION_USERFAULT = 14,
	GH_OPERATION_KEXEC = 15,
	GH_OPERATION_REBOOT = 16,
	GH_OPERATION_CHROOT = 17,
	GH_OPERATION_OPEN_BY_HANDLE = 18,
};

struct gh_operation {
	__s64 result;
	/* Request, command, flags or signal. */
	__u64 value;
	/* enum gh_operation_kind */
	__u32 operation;
	/* The other process, as the caller named it; of a signal in the initial pid namespace. */
	__u32 target;
};

union gh_body {
	struct gh_fork fork;
	struct gh_exec exec;
	struct gh_exit exit;
	struct gh_credentials credentials;
	struct gh_open open;
	struct gh_delete del;
	struct gh_rename rename;
	struct gh_change change;
	struct gh_file file;
	struct gh_tallies tallies;
	/* In a payload only. */
	struct gh_tally tally;
	struct gh_socket socket;
	struct gh_traffic traffic;
	struct gh_dns dns;
	struct gh_operation operation;
};

/* Every record starts with this; the payload (paths, argv) follows. */
struct gh_record {
	struct gh_header header;
	union gh_body body;
};

/* Map `watched`: cgroup id -> execution. The generation tells a reused slot from its former tenant. */
struct gh_watch {
	__u32 slot;
	__u32 generation;
};

/* Map `executions`, by slot. */
struct gh_execution {
	__u64 root_cgroup_id;
	__u32 root_tgid;
	__u32 generation;
	/* enum gh_state */
	__u32 state;
	/* Stop the tasks of this execution, by SIGSTOP, rather than lose a fact: see gh_stopped. */
	__u32 lossless;
	/* The root directory (addresses of dentry and vfsmount) that the root had when it began: paths are seen from it. */
	__u64 root_dentry;
	__u64 root_mnt;
	/* Addresses of the namespaces that the root had then, in the order of enum gh_exec_flags. */
	__u64 namespaces[7];
};

/* Map `stopped`: thread group -> execution, stopped because a ring was nearly full. User space lets it go on. */
struct gh_stopped {
	__u32 slot;
	__u32 generation;
	__u64 start_boot_ns;
};

/* What passes beside the hooks and shows in a call that worked. */
enum gh_bypass {
	GH_BYPASS_IO_URING_SETUP = 0,
	GH_BYPASS_IO_URING_ENTER = 1,
	GH_BYPASS_IO_URING_REGISTER = 2,
	GH_BYPASS_OPEN_BY_HANDLE_AT = 3,
	GH_BYPASS_PIDFD_GETFD = 4,
	GH_BYPASS_PROCESS_VM_WRITEV = 5,
	GH_BYPASS_PTRACE = 6,
	/* Bytes of asynchronous I/O. */
	GH_BYPASS_IO_SUBMIT = 7,
	GH_BYPASSES = 8,
};

/*
 * Map `counters`, by slot. Facts are counted before the ring is asked for room, so
 * observed = delivered (counted by user space) + lost_ring + lost_read, whatever the rings do.
 */
struct gh_counters {
	__u64 observed[5];
	/* No room in the ring. */
	__u64 lost_ring[5];
	/* The fact could not be read (path, address). */
	__u64 lost_read[5];
	/* A map insert failed: a nested cgroup, a member or a task that is not followed. */
	__u64 lost_map[5];
	/* Processes moved out of the execution's cgroups, the root before its exec included. */
	__u64 escaped;
	/* Processes moved or born into the execution's cgroups from outside. */
	__u64 joined;
	/* Blind spots, counted so that coverage can name them. */
	__u64 compat_syscalls;
	/* By enum gh_bypass. */
	__u64 bypasses[8];
	/* connect() and the like with another address family than IPv4, IPv6 and unix. */
	__u64 other_family_connects;
	/* System calls with a number of GH_SYSCALLS or more, or a negative one: no kernel knows them. */
	__u64 unnumbered_syscalls;
	/* Facts with a path that was seen from another root or mount namespace. */
	__u64 other_root_paths;
	/* Tasks that have a table: the number of the next is one more. */
	__u64 tasks;
	/* Nanoseconds in the system call program, of one call in GH_SAMPLING, and how many were measured. */
	__u64 sampled_ns;
	__u64 samples;
	/* Times that a task was stopped for want of room. */
	__u64 stops;
};

#define GH_SAMPLING 1024

/* Map `syscalls`, by slot. */
struct gh_syscalls {
	__u64 count[GH_SYSCALLS];
	/* Those that returned EPERM or EACCES. */
	__u64 denied[GH_SYSCALLS];
};

#endif
