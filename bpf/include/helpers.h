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
	BPF_MAP_TYPE_RINGBUF = 27,
	BPF_MAP_TYPE_TASK_STORAGE = 29,
};

enum { BPF_ANY = 0, BPF_NOEXIST = 1 };
enum { BPF_F_NO_PREALLOC = 1 };
enum { BPF_LOCAL_STORAGE_GET_F_CREATE = 1 };
enum { BPF_RB_NO_WAKEUP = 1, BPF_RB_FORCE_WAKEUP = 2 };
enum { BPF_RB_AVAIL_DATA = 0, BPF_RB_RING_SIZE = 1 };

static void *(*bpf_map_lookup_elem)(void *map, const void *key) = (void *)1;
static long (*bpf_map_update_elem)(void *map, const void *key, const void *value, __u64 flags) = (void *)2;
static long (*bpf_map_delete_elem)(void *map, const void *key) = (void *)3;
static __u64 (*bpf_get_current_pid_tgid)(void) = (void *)14;
static __u64 (*bpf_get_current_cgroup_id)(void) = (void *)80;
static long (*bpf_probe_read_user)(void *dst, __u32 size, const void *src) = (void *)112;
static long (*bpf_probe_read_kernel)(void *dst, __u32 size, const void *src) = (void *)113;
static long (*bpf_probe_read_user_str)(void *dst, __u32 size, const void *src) = (void *)114;
static long (*bpf_probe_read_kernel_str)(void *dst, __u32 size, const void *src) = (void *)115;
static long (*bpf_send_signal)(__u32 signal) = (void *)109;
static __u64 (*bpf_jiffies64)(void) = (void *)118;
static __u64 (*bpf_ktime_get_boot_ns)(void) = (void *)125;
static long (*bpf_ringbuf_output)(void *ring, void *data, __u64 size, __u64 flags) = (void *)130;
static __u64 (*bpf_ringbuf_query)(void *ring, __u64 flags) = (void *)134;
static void *(*bpf_task_storage_get)(void *map, struct task_struct *task, void *value, __u64 flags) = (void *)156;
static long (*bpf_task_storage_delete)(void *map, struct task_struct *task) = (void *)157;
static struct task_struct *(*bpf_get_current_task_btf)(void) = (void *)158;
static struct pt_regs *(*bpf_task_pt_regs)(struct task_struct *task) = (void *)175;
static long (*bpf_loop)(__u32 iterations, void *callback, void *ctx, __u64 flags) = (void *)181;

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

/* The offset of a field in the running kernel (BPF_FIELD_BYTE_OFFSET). */
#define KOFFSET(type, field) __builtin_preserve_field_info(((type *)0)->field, 0)

#define ADD(counter, n) __sync_fetch_and_add(&(counter), (n))

#endif
