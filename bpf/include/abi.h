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
#define GH_ABI_VERSION 2

/* Longest path that is carried whole, in bytes, without a terminating NUL. */
#define GH_PATH_BYTES 4096
/* Longest argv that is carried whole, in bytes, with the NULs between the arguments. */
#define GH_ARGV_BYTES 8192
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
	GH_KIND_OPEN = 4,
	GH_KIND_DELETE = 5,
	GH_KIND_RENAME = 6,
	GH_KIND_CONNECT = 7,
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

struct gh_exec {
	struct gh_path exe;
	struct gh_path cwd;
	/* Bytes of argv in the payload, after the two paths. */
	__u32 argv_bytes;
	__u32 parent_tgid;
	/* Bytes of argv in the process; more than argv_bytes when it was cut. */
	__u64 argv_total_bytes;
	__u64 parent_start_boot_ns;
	__u32 uid;
	__u32 gid;
};

struct gh_exit {
	/* As wait(2) gives it: exit code in bits 8-15, signal in bits 0-6, core dumped in bit 7. */
	__u32 wait_status;
	__u32 reserved;
};

enum gh_open_flags {
	/* This call created the file. */
	GH_OPEN_CREATED = 1 << 0,
};

struct gh_open {
	/* File descriptor, or -errno. */
	__s64 result;
	/* O_* as the caller passed them. */
	__u64 open_flags;
	struct gh_path path;
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

struct gh_connect {
	__s64 result;
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
	/* AF_UNIX: the path; for an abstract address the payload is the name with its leading NUL. */
	struct gh_path path;
	/* Interface index of a link-local IPv6 address. */
	__u32 scope_id;
	__u32 reserved;
};

union gh_body {
	struct gh_fork fork;
	struct gh_exec exec;
	struct gh_exit exit;
	struct gh_open open;
	struct gh_delete del;
	struct gh_rename rename;
	struct gh_connect connect;
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
	__u32 reserved;
	/* The root directory (addresses of dentry and vfsmount) that the root had when it began: paths are seen from it. */
	__u64 root_dentry;
	__u64 root_mnt;
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
	/* A send with MSG_FASTOPEN connects. */
	GH_BYPASS_FASTOPEN = 7,
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
	/* A map insert failed: a nested cgroup or a member that is not followed. */
	__u64 lost_map[5];
	/* Processes moved out of the execution's cgroups, the root before its exec included. */
	__u64 escaped;
	/* Processes moved or born into the execution's cgroups from outside. */
	__u64 joined;
	/* Blind spots, counted so that coverage can name them. */
	__u64 compat_syscalls;
	/* By enum gh_bypass. */
	__u64 bypasses[8];
	/* connect() to another address family than IPv4, IPv6 and unix. */
	__u64 other_family_connects;
	/* System calls with a number of GH_SYSCALLS or more, or a negative one: no kernel knows them. */
	__u64 unnumbered_syscalls;
	/* Facts with a path that was seen from another root or mount namespace. */
	__u64 other_root_paths;
};

/* Map `syscalls`, by slot. */
struct gh_syscalls {
	__u64 count[GH_SYSCALLS];
	/* Those that returned EPERM or EACCES. */
	__u64 denied[GH_SYSCALLS];
};

#endif
