/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The kernel types the programs touch: only the fields used, in any order. CO-RE relocates every access against the
 * running kernel's BTF, so offsets here mean nothing. Kernel drift is handled here and cites the commit or version.
 */
#ifndef GLASSHOUSE_KERNEL_H
#define GLASSHOUSE_KERNEL_H

#include "abi.h"

#define NULL ((void *)0)
typedef _Bool bool;
#define true 1
#define false 0

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

typedef struct {
	int counter;
} atomic_t;

struct qstr {
	/* In an anonymous union with the hash (which is salted with the parent's address) and the length apart. */
	__u64 hash_len;
	const unsigned char *name;
};

struct seqcount {
	unsigned int sequence;
};

struct seqcount_spinlock {
	struct seqcount seqcount;
};

struct hlist_bl_node {
	struct hlist_bl_node **pprev;
};

/* One pointer: what any element of an array of pointers can be read as. */
struct hlist_head {
	void *first;
};

/* d_name is inside an anonymous union since 6.16; CO-RE looks through it. */
struct inode;

struct dentry {
	struct inode *d_inode;
	/* Moves on when the dentry is renamed, unhashed, or gets an inode (fs/dcache.c). */
	struct seqcount_spinlock d_seq;
	struct hlist_bl_node d_hash;
	struct dentry *d_parent;
	struct qstr d_name;
};

struct vfsmount {
	struct dentry *mnt_root;
};

struct mount {
	struct mount *mnt_parent;
	struct dentry *mnt_mountpoint;
	struct vfsmount mnt;
};

struct path {
	struct vfsmount *mnt;
	struct dentry *dentry;
};

struct fs_struct {
	struct path root;
	struct path pwd;
};

struct inode {
	__u16 i_mode;
	unsigned long i_ino;
	__u32 i_generation;
};

struct file {
	unsigned int f_mode;
	unsigned int f_flags;
	void *private_data;
	struct inode *f_inode;
	struct path f_path;
};

struct fdtable {
	unsigned int max_fds;
	struct file **fd;
};

struct files_struct {
	struct fdtable *fdt;
};

struct kernfs_node {
	/* A plain u64 since 5.5 (67c0496e87d1). */
	__u64 id;
};

struct cgroup;

struct cgroup_subsys_state {
	struct cgroup *cgroup;
	struct cgroup_subsys_state *parent;
};

struct cgroup_root {
	int hierarchy_id;
};

struct cgroup {
	struct cgroup_subsys_state self;
	struct kernfs_node *kn;
	struct cgroup_root *root;
};

struct css_set {
	struct cgroup *dfl_cgrp;
};

struct list_head {
	struct list_head *next;
};

/* Of the threads that have been released; maxrss is the group's. */
struct signal_struct {
	struct list_head thread_head;
	atomic_t live;
	int group_exit_code;
	unsigned int flags;
	__u64 utime;
	__u64 stime;
	unsigned long min_flt;
	unsigned long maj_flt;
	unsigned long maxrss;
};

struct vm_area_struct {
	struct file *vm_file;
};

struct mm_struct {
	struct file *exe_file;
	unsigned long arg_start;
	unsigned long arg_end;
	unsigned long env_start;
	unsigned long env_end;
};

#if defined(__TARGET_ARCH_x86)
struct thread_info {
	__u32 status;
};
#else
struct thread_info {
	unsigned long flags;
};
#endif

typedef struct {
	__u32 val;
} kuid_t;

typedef struct {
	__u32 val;
} kgid_t;

/* A struct of two __u32 before 6.3 (f122a08b197d): the same bits on a little-endian machine. */
typedef struct {
	__u64 val;
} kernel_cap_t;

struct user_namespace;

struct cred {
	kuid_t uid;
	kgid_t gid;
	kuid_t euid;
	kgid_t egid;
	kernel_cap_t cap_effective;
	struct user_namespace *user_ns;
};

struct nsproxy {
	void *uts_ns;
	void *ipc_ns;
	void *mnt_ns;
	void *pid_ns_for_children;
	void *net_ns;
	void *cgroup_ns;
};

typedef struct {
	unsigned long sig[1];
} sigset_t;

struct sigpending {
	sigset_t signal;
};

struct task_struct {
	struct list_head thread_node;
	struct sigpending pending;
	struct thread_info thread_info;
	__u32 flags;
	struct cred *cred;
	struct mm_struct *mm;
	struct fs_struct *fs;
	struct files_struct *files;
	struct nsproxy *nsproxy;
	struct signal_struct *signal;
	struct task_struct *group_leader;
	struct task_struct *real_parent;
	struct css_set *cgroups;
	/* real_start_time before 5.5 (cf25e24db61c). */
	__u64 start_boottime;
	__u64 utime;
	__u64 stime;
	unsigned long min_flt;
	unsigned long maj_flt;
	int pid;
	int tgid;
	int exit_code;
};

struct in6_addr {
	__u8 bytes[16];
};

struct sock_common {
	__u16 skc_family;
	unsigned char skc_state;
	int skc_bound_dev_if;
	__u32 skc_daddr;
	__u32 skc_rcv_saddr;
	__u16 skc_dport;
	/* The local port, in host byte order. */
	__u16 skc_num;
	struct in6_addr skc_v6_daddr;
	struct in6_addr skc_v6_rcv_saddr;
};

struct sock {
	struct sock_common __sk_common;
	__u16 sk_type;
	/* A bit-field before 5.6 (bf9765145b85). */
	__u16 sk_protocol;
};

struct unix_address {
	/* A sockaddr_un of this length follows. */
	int len;
};

struct unix_sock {
	struct sock *peer;
	struct unix_address *addr;
};

struct kernel_siginfo {
	int si_code;
};

struct socket {
	struct file *file;
	struct sock *sk;
};

#if defined(__TARGET_ARCH_x86)
struct pt_regs {
	unsigned long r10;
	unsigned long r9;
	unsigned long r8;
	unsigned long dx;
	unsigned long si;
	unsigned long di;
	unsigned long orig_ax;
};
#elif defined(__TARGET_ARCH_arm64)
struct pt_regs {
	__u64 regs[31];
	__u64 orig_x0;
	__s32 syscallno;
};
#else
#error "unsupported architecture"
#endif

#pragma clang attribute pop

/* What callers pass (include/uapi/linux/{uio,socket}.h): the same on every kernel. */
struct iovec {
	__u64 base;
	__u64 bytes;
};

struct user_msghdr {
	__u64 name;
	__u32 name_bytes;
	__u32 padding;
	__u64 vectors;
	__u64 vector_count;
	__u64 control;
	__u64 control_bytes;
	__u32 flags;
	__u32 padding2;
};

struct mmsghdr {
	struct user_msghdr header;
	/* What was sent or received. */
	__u32 message_bytes;
	__u32 padding;
};

#define SIGNAL_GROUP_EXIT 0x00000004
/* The open created the file (since 4.19, 73a09dd94377). */
#define FMODE_CREATED 0x100000
#define S_IFMT 0170000
#define S_IFSOCK 0140000
#define S_IFREG 0100000
#define S_IFBLK 0060000
#define S_IFDIR 0040000
#define S_IFCHR 0020000
#define PROT_WRITE 2
#define PROT_EXEC 4
#define MAP_ANONYMOUS 0x20
#define AT_FDCWD -100
#define AT_REMOVEDIR 0x200
#define O_CREAT 00000100
#define O_CREAT_WRONLY_TRUNC (00000100 | 00000001 | 00001000)
#define SIGSTOP 19
#define SIGSYS 31
#define SIGCONT 18
/* SIGSTOP, SIGTSTP and SIGTTIN are below it. */
#define SIGTTOU 22
#define PF_EXITING 0x00000004
#define PF_KTHREAD 0x00200000

#define EPERM 1
#define EINTR 4
#define EBADF 9
#define EACCES 13
#define EFAULT 14
#define EINVAL 22
#define ENOSYS 38
#define ENOTSOCK 88
#define EAFNOSUPPORT 97
#define EALREADY 114
#define EINPROGRESS 115
/* What the kernel returns inside for "interrupted, perhaps to be restarted": the caller sees EINTR or a restart. */
#define ERESTARTSYS 512
#define ERESTART_RESTARTBLOCK 516

#define AF_UNSPEC 0
#define AF_UNIX 1
#define AF_INET 2
#define AF_INET6 10

/* Of a datagram socket: it has a peer. */
#define TCP_ESTABLISHED 1
#define IPPROTO_UDP 17
#define SOCK_STREAM 1
#define DNS_PORT 53
#define MSG_FASTOPEN 0x20000000

#endif
