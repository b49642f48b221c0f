/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What each system call means here, by its number: one load in the common case that it means nothing. */
#ifndef GLASSHOUSE_CALLS_H
#define GLASSHOUSE_CALLS_H

#include "common.h"

enum action {
	ACTION_NONE = 0,
	/* A new child comes by as well, returning 0 from its parent's call. */
	ACTION_CLONE,
	/* Bytes from or to the descriptor `dirfd`. */
	ACTION_READ,
	ACTION_WRITE,
	/* Bytes from the descriptor `dirfd` to the descriptor `other_dirfd`. */
	ACTION_TRANSFER,
	ACTION_OPEN,
	ACTION_MAP,
	ACTION_PROTECT,
	ACTION_DELETE,
	ACTION_RENAME,
	ACTION_CHANGE,
	ACTION_SOCKET,
	ACTION_SEND,
	ACTION_RECEIVE,
	ACTION_OPERATION,
	/* Only counted, see gh_bypass. */
	ACTION_BYPASS,
};

enum message_form { MESSAGE_BUFFER = 0, MESSAGE_HEADER = 1, MESSAGE_HEADERS = 2 };

/* As `other_dirfd`: the string is text, not a path. */
#define TEXT 0xff

/* Fields name arguments by their number, from 1; 0 is none. */
struct call {
	__u8 action;
	/* Change, operation, socket operation or form of message, by the action. */
	__u8 kind;
	/* A path, relative to the descriptor; without a path the descriptor itself, without both the working directory. */
	__u8 path;
	__u8 dirfd;
	__u8 other;
	__u8 other_dirfd;
	__u8 value;
	/* 1 more than enum gh_bypass. */
	__u8 bypass;
	/* Loaded in one. */
} __attribute__((aligned(8)));

#define READS(fd) { .action = ACTION_READ, .dirfd = fd }
#define WRITES(fd) { .action = ACTION_WRITE, .dirfd = fd }
#define TRANSFERS(in, out) { .action = ACTION_TRANSFER, .dirfd = in, .other_dirfd = out }
#define OPENS(at, string, flags) { .action = ACTION_OPEN, .dirfd = at, .path = string, .value = flags }
#define DELETES(at, string, flags) { .action = ACTION_DELETE, .dirfd = at, .path = string, .value = flags }
#define RENAMES(at, string, to_at, to_string, flags)                                                                   \
	{ .action = ACTION_RENAME, .dirfd = at, .path = string, .other_dirfd = to_at, .other = to_string, .value = flags }
#define CHANGES(what, at, string, number) { .action = ACTION_CHANGE, .kind = what, .dirfd = at, .path = string, .value = number }
#define CHANGES_FROM(what, at, string, from_at, from_string, number)                                                   \
	{ .action = ACTION_CHANGE, .kind = what, .dirfd = at, .path = string, .other_dirfd = from_at, .other = from_string, .value = number }
#define OPERATES(what, number, who) { .action = ACTION_OPERATION, .kind = what, .value = number, .other = who }
#define OPERATES_PAST(what, number, who, past)                                                                         \
	{ .action = ACTION_OPERATION, .kind = what, .value = number, .other = who, .bypass = past + 1 }
#define PASSES(past) { .action = ACTION_BYPASS, .bypass = past + 1 }

static const struct call calls[GH_SYSCALLS] = {
	[NR_clone] = { .action = ACTION_CLONE },
	[NR_clone3] = { .action = ACTION_CLONE },
	[NR_read] = READS(1),
	[NR_pread64] = READS(1),
	[NR_readv] = READS(1),
	[NR_preadv] = READS(1),
	[NR_preadv2] = READS(1),
	[NR_write] = WRITES(1),
	[NR_pwrite64] = WRITES(1),
	[NR_writev] = WRITES(1),
	[NR_pwritev] = WRITES(1),
	[NR_pwritev2] = WRITES(1),
	[NR_sendfile] = TRANSFERS(2, 1),
	[NR_copy_file_range] = TRANSFERS(1, 3),
	[NR_splice] = TRANSFERS(1, 3),
	[NR_openat] = OPENS(1, 2, 3),
	[NR_openat2] = OPENS(1, 2, 0),
	[NR_mmap] = { .action = ACTION_MAP },
	[NR_mprotect] = { .action = ACTION_PROTECT },
	[NR_pkey_mprotect] = { .action = ACTION_PROTECT },
	[NR_unlinkat] = DELETES(1, 2, 3),
	[NR_renameat2] = RENAMES(1, 2, 3, 4, 5),
	[NR_renameat] = RENAMES(1, 2, 3, 4, 0),
	[NR_linkat] = CHANGES_FROM(GH_CHANGE_LINK, 3, 4, 1, 2, 0),
	[NR_symlinkat] = CHANGES_FROM(GH_CHANGE_SYMLINK, 2, 3, TEXT, 1, 0),
	[NR_mkdirat] = CHANGES(GH_CHANGE_MKDIR, 1, 2, 3),
	[NR_mknodat] = CHANGES(GH_CHANGE_MKNOD, 1, 2, 3),
	[NR_fchmod] = CHANGES(GH_CHANGE_MODE, 1, 0, 2),
	[NR_fchmodat] = CHANGES(GH_CHANGE_MODE, 1, 2, 3),
	[NR_fchmodat2] = CHANGES(GH_CHANGE_MODE, 1, 2, 3),
	[NR_fchown] = CHANGES(GH_CHANGE_OWNER, 1, 0, 2),
	[NR_fchownat] = CHANGES(GH_CHANGE_OWNER, 1, 2, 3),
	[NR_truncate] = CHANGES(GH_CHANGE_TRUNCATE, 0, 1, 2),
	[NR_ftruncate] = CHANGES(GH_CHANGE_TRUNCATE, 1, 0, 2),
	[NR_mount] = CHANGES_FROM(GH_CHANGE_MOUNT, 0, 2, TEXT, 1, 4),
	[NR_umount2] = CHANGES(GH_CHANGE_UNMOUNT, 0, 1, 2),
	[NR_move_mount] = CHANGES_FROM(GH_CHANGE_MOVE_MOUNT, 3, 4, 1, 2, 5),
	[NR_pivot_root] = CHANGES_FROM(GH_CHANGE_PIVOT_ROOT, 0, 1, 0, 2, 0),
	[NR_connect] = { .action = ACTION_SOCKET, .kind = GH_SOCKET_CONNECT },
	[NR_bind] = { .action = ACTION_SOCKET, .kind = GH_SOCKET_BIND },
	[NR_listen] = { .action = ACTION_SOCKET, .kind = GH_SOCKET_LISTEN },
	[NR_accept] = { .action = ACTION_SOCKET, .kind = GH_SOCKET_ACCEPT },
	[NR_accept4] = { .action = ACTION_SOCKET, .kind = GH_SOCKET_ACCEPT },
	[NR_sendto] = { .action = ACTION_SEND, .kind = MESSAGE_BUFFER, .value = 4 },
	[NR_sendmsg] = { .action = ACTION_SEND, .kind = MESSAGE_HEADER, .value = 3 },
	[NR_sendmmsg] = { .action = ACTION_SEND, .kind = MESSAGE_HEADERS, .value = 4 },
	[NR_recvfrom] = { .action = ACTION_RECEIVE, .kind = MESSAGE_BUFFER },
	[NR_recvmsg] = { .action = ACTION_RECEIVE, .kind = MESSAGE_HEADER },
	[NR_recvmmsg] = { .action = ACTION_RECEIVE, .kind = MESSAGE_HEADERS },
	[NR_ptrace] = OPERATES_PAST(GH_OPERATION_PTRACE, 1, 2, GH_BYPASS_PTRACE),
	[NR_bpf] = OPERATES(GH_OPERATION_BPF, 1, 0),
	[NR_init_module] = OPERATES(GH_OPERATION_LOAD_MODULE, 0, 0),
	[NR_finit_module] = OPERATES(GH_OPERATION_LOAD_MODULE, 3, 0),
	[NR_delete_module] = OPERATES(GH_OPERATION_UNLOAD_MODULE, 2, 0),
	[NR_setns] = OPERATES(GH_OPERATION_SET_NAMESPACE, 2, 0),
	[NR_unshare] = OPERATES(GH_OPERATION_UNSHARE, 1, 0),
	[NR_io_uring_setup] = OPERATES_PAST(GH_OPERATION_IO_URING, 1, 0, GH_BYPASS_IO_URING_SETUP),
	[NR_io_uring_enter] = PASSES(GH_BYPASS_IO_URING_ENTER),
	[NR_io_uring_register] = PASSES(GH_BYPASS_IO_URING_REGISTER),
	[NR_io_submit] = PASSES(GH_BYPASS_IO_SUBMIT),
	[NR_memfd_create] = OPERATES(GH_OPERATION_MEMFD, 2, 0),
	[NR_add_key] = OPERATES(GH_OPERATION_KEYRING, 0, 0),
	[NR_request_key] = OPERATES(GH_OPERATION_KEYRING, 0, 0),
	[NR_keyctl] = OPERATES(GH_OPERATION_KEYRING, 1, 0),
	[NR_process_vm_readv] = OPERATES(GH_OPERATION_PROCESS_READ, 0, 1),
	[NR_process_vm_writev] = OPERATES_PAST(GH_OPERATION_PROCESS_WRITE, 0, 1, GH_BYPASS_PROCESS_VM_WRITEV),
	[NR_pidfd_getfd] = OPERATES_PAST(GH_OPERATION_PIDFD_GETFD, 2, 0, GH_BYPASS_PIDFD_GETFD),
	[NR_perf_event_open] = OPERATES(GH_OPERATION_PERF_EVENT, 0, 2),
	[NR_userfaultfd] = OPERATES(GH_OPERATION_USERFAULT, 1, 0),
	[NR_kexec_load] = OPERATES(GH_OPERATION_KEXEC, 4, 0),
	[NR_kexec_file_load] = OPERATES(GH_OPERATION_KEXEC, 5, 0),
	[NR_reboot] = OPERATES(GH_OPERATION_REBOOT, 3, 0),
	[NR_chroot] = OPERATES(GH_OPERATION_CHROOT, 0, 0),
	[NR_open_by_handle_at] =
		OPERATES_PAST(GH_OPERATION_OPEN_BY_HANDLE, 3, 0, GH_BYPASS_OPEN_BY_HANDLE_AT),
#if defined(__TARGET_ARCH_x86)
	[NR_fork] = { .action = ACTION_CLONE },
	[NR_vfork] = { .action = ACTION_CLONE },
	[NR_open] = OPENS(0, 1, 2),
	[NR_creat] = OPENS(0, 1, 0),
	[NR_unlink] = DELETES(0, 1, 0),
	[NR_rmdir] = DELETES(0, 1, 0),
	[NR_rename] = RENAMES(0, 1, 0, 2, 0),
	[NR_link] = CHANGES_FROM(GH_CHANGE_LINK, 0, 2, 0, 1, 0),
	[NR_symlink] = CHANGES_FROM(GH_CHANGE_SYMLINK, 0, 2, TEXT, 1, 0),
	[NR_mkdir] = CHANGES(GH_CHANGE_MKDIR, 0, 1, 2),
	[NR_mknod] = CHANGES(GH_CHANGE_MKNOD, 0, 1, 2),
	[NR_chmod] = CHANGES(GH_CHANGE_MODE, 0, 1, 2),
	[NR_chown] = CHANGES(GH_CHANGE_OWNER, 0, 1, 2),
	[NR_lchown] = CHANGES(GH_CHANGE_OWNER, 0, 1, 2),
#endif
};

static __inline bool is_rmdir(__u32 nr)
{
#if defined(NR_rmdir)
	return nr == NR_rmdir;
#else
	return false;
#endif
}

/* The class that a call's facts are counted in; GH_CLASSES when it has none. */
static __inline int class_of(__u8 action)
{
	switch (action) {
	case ACTION_OPEN:
	case ACTION_MAP:
	case ACTION_PROTECT:
	case ACTION_DELETE:
	case ACTION_RENAME:
	case ACTION_CHANGE:
	case ACTION_READ:
	case ACTION_WRITE:
	case ACTION_TRANSFER:
		return GH_CLASS_FILE;
	case ACTION_SOCKET:
	case ACTION_SEND:
	case ACTION_RECEIVE:
		return GH_CLASS_NETWORK;
	case ACTION_OPERATION:
		return GH_CLASS_OTHER;
	default:
		return GH_CLASSES;
	}
}

#endif
