/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The BPF helpers used, by the numbers of include/uapi/linux/bpf.h, and the macros around them. */
#ifndef GLASSHOUSE_HELPERS_H
#define GLASSHOUSE_HELPERS_H

#include "kernel.h"

#define SEC(name) __attribute__((section(name), used))
#define __inline inline __attribute__((always_inline))
#define __noinline __attribute__((noinline))
#define __uint(name, val) int(*name)[val]
#define __type(name, val) typeof(val) *name

enum {
	BPF_MAP_TYPE_HASH = 1,
	BPF_MAP_TYPE_ARRAY = 2,
	BPF_MAP_TYPE_PERCPU_ARRAY = 6,
	BPF_MAP_TYPE_STACK = 23,
	BPF_MAP_TYPE_RINGBUF = 27,
};

enum { BPF_ANY = 0, BPF_NOEXIST = 1 };
enum { BPF_F_NO_PREALLOC = 1 };
enum { BPF_RB_NO_WAKEUP = 1, BPF_RB_FORCE_WAKEUP = 2 };
enum { BPF_RB_AVAIL_DATA = 0, BPF_RB_RING_SIZE = 1 };

static void *(*bpf_map_lookup_elem)(void *map, const void *key) = (void *)1;
static long (*bpf_map_update_elem)(void *map, const void *key, const void *value, __u64 flags) = (void *)2;
static long (*bpf_map_delete_elem)(void *map, const void *key) = (void *)3;
static __u32 (*bpf_get_prandom_u32)(void) = (void *)7;
static long (*bpf_map_push_elem)(void *map, const void *value, __u64 flags) = (void *)87;
static long (*bpf_map_pop_elem)(void *map, void *value) = (void *)88;
static __u64 (*bpf_get_current_pid_tgid)(void) = (void *)14;
static __u64 (*bpf_get_current_cgroup_id)(void) = (void *)80;
static long (*bpf_probe_read_user)(void *dst, __u32 size, const void *src) = (void *)112;
static long (*bpf_probe_read_kernel)(void *dst, __u32 size, const void *src) = (void *)113;
static long (*bpf_probe_read_user_str)(void *dst, __u32 size, const void *src) = (void *)114;
static long (*bpf_probe_read_kernel_str)(void *dst, __u32 size, const void *src) = (void *)115;
static long (*bpf_send_signal)(__u32 signal) = (void *)109;
/* To the calling thread alone (since 5.6, 8482941f0906). */
static long (*bpf_send_signal_thread)(__u32 signal) = (void *)117;
static __u64 (*bpf_jiffies64)(void) = (void *)118;
static __u64 (*bpf_ktime_get_boot_ns)(void) = (void *)125;
static long (*bpf_ringbuf_output)(void *ring, void *data, __u64 size, __u64 flags) = (void *)130;
static __u64 (*bpf_ringbuf_query)(void *ring, __u64 flags) = (void *)134;
static struct task_struct *(*bpf_get_current_task_btf)(void) = (void *)158;
static long (*bpf_find_vma)(struct task_struct *task, __u64 address, void *callback, void *ctx,
			    __u64 flags) = (void *)180;
static struct pt_regs *(*bpf_task_pt_regs)(struct task_struct *task) = (void *)175;
static long (*bpf_loop)(__u32 iterations, void *callback, void *ctx, __u64 flags) = (void *)181;

#if defined(GH_DIRECT_READS)
/*
 * bpf_rdonly_cast() (since 6.2, a35b9af4ec2c) makes an address a pointer of which the verifier knows the type: fields are
 * then loaded by one instruction, where bpf_probe_read_kernel() is a call of some 25 ns. It is a function of the kernel's,
 * so its number is known to the running kernel only. The loader puts it, and that of the type, into the two instructions
 * that stand here for them: see `direct_reads.rs` of the host probe, which knows the types by their index.
 */
enum gh_cast_type {
	GH_CAST_DENTRY = 0,
	GH_CAST_VFSMOUNT = 1,
	GH_CAST_MOUNT = 2,
	GH_CAST_PATH = 3,
	GH_CAST_FILE = 4,
	GH_CAST_INODE = 5,
	GH_CAST_FS_STRUCT = 6,
	GH_CAST_CRED = 7,
	GH_CAST_NSPROXY = 8,
	GH_CAST_SOCKET = 9,
	GH_CAST_SOCK = 10,
	GH_CAST_UNIX_SOCK = 11,
	GH_CAST_UNIX_ADDRESS = 12,
	GH_CAST_TASK_STRUCT = 13,
	GH_CAST_MM_STRUCT = 14,
	GH_CAST_KERNEL_SIGINFO = 15,
	GH_CAST_HLIST_HEAD = 16,
	GH_CAST_VM_AREA_STRUCT = 17,
};

#define CAST_TYPE(ptr)                                                                                                 \
	_Generic((ptr),                                                                                                \
		struct dentry *: GH_CAST_DENTRY,                                                                       \
		struct vfsmount *: GH_CAST_VFSMOUNT,                                                                   \
		struct mount *: GH_CAST_MOUNT,                                                                         \
		struct path *: GH_CAST_PATH,                                                                           \
		struct file *: GH_CAST_FILE,                                                                           \
		struct inode *: GH_CAST_INODE,                                                                         \
		struct fs_struct *: GH_CAST_FS_STRUCT,                                                                 \
		struct cred *: GH_CAST_CRED,                                                                           \
		struct nsproxy *: GH_CAST_NSPROXY,                                                                     \
		struct socket *: GH_CAST_SOCKET,                                                                       \
		struct sock *: GH_CAST_SOCK,                                                                           \
		struct unix_sock *: GH_CAST_UNIX_SOCK,                                                                 \
		struct unix_address *: GH_CAST_UNIX_ADDRESS,                                                           \
		struct task_struct *: GH_CAST_TASK_STRUCT,                                                             \
		struct mm_struct *: GH_CAST_MM_STRUCT,                                                                 \
		struct kernel_siginfo *: GH_CAST_KERNEL_SIGINFO,                                                       \
		struct hlist_head *: GH_CAST_HLIST_HEAD,                                                               \
		struct vm_area_struct *: GH_CAST_VM_AREA_STRUCT)

/* `r2 = type; call 0x67686361` of the kernel's (BPF_PSEUDO_KFUNC_CALL). */
#define CAST_AS(address, of_type)                                                                                      \
	({                                                                                                             \
		void *cast_;                                                                                           \
		asm volatile("r1 = %[from]\n\t"                                                                        \
			     ".quad (%c[type] << 32) | 0x02b7\n\t"                                                     \
			     ".quad 0x6768636100002085\n\t"                                                            \
			     "%[out] = r0"                                                                             \
			     : [out] "=r"(cast_)                                                                       \
			     : [from] "r"((__u64)(address)), [type] "i"(of_type)                                       \
			     : "r0", "r1", "r2", "r3", "r4", "r5");                                                    \
		cast_;                                                                                                 \
	})
#define CAST(ptr) ((typeof(ptr))CAST_AS(ptr, CAST_TYPE(ptr)))

/*
 * A pointer that was loaded is a number from here on, as functions of their own take it: the difference of two pointers
 * is one, and the second is zero.
 */
#define AS_NUMBER(pointer)                                                                                             \
	({                                                                                                             \
		__u64 number_ = (__u64)(pointer);                                                                      \
		asm volatile("%0 -= %1" : "+r"(number_) : "r"(CAST_AS(0, GH_CAST_HLIST_HEAD)));                        \
		number_;                                                                                               \
	})
/* What __builtin_classify_type() says of a pointer. */
#define POINTER_CLASS 5

/* Reads one field through a pointer that the verifier does not know. Zero when there is nothing to be read. */
/* Several fields of one struct: CAST() it once, then FIELD() of what that gave. For pointers that are stored or compared. */
#define FIELD(cast, field) ((cast)->field)
#define KREAD(ptr, field)                                                                                              \
	((typeof((ptr)->field))__builtin_choose_expr(                                                                  \
		__builtin_classify_type((ptr)->field) == POINTER_CLASS, AS_NUMBER(CAST(ptr)->field), CAST(ptr)->field))
#else
/*
 * Reads one field through a pointer that the verifier does not know. Zero when the read fails. The field must be a
 * scalar (`d_name.name`, never `d_name`): a struct would be copied in its size here and not in the kernel's.
 */
#define KREAD(ptr, field)                                                                                              \
	({                                                                                                             \
		typeof((ptr)->field) value_ = {};                                                                      \
		bpf_probe_read_kernel(&value_, sizeof(value_), &(ptr)->field);                                         \
		value_;                                                                                                \
	})
#define CAST(ptr) (ptr)
#define FIELD(cast, field) KREAD(cast, field)
#endif

/* The offset of a field in the running kernel (BPF_FIELD_BYTE_OFFSET). */
#define KOFFSET(type, field) __builtin_preserve_field_info(((type *)0)->field, 0)

#define ADD(counter, n) __sync_fetch_and_add(&(counter), (n))

#endif
