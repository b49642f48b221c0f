/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Maps, tunables, and what every program does: find the execution, count, emit. */
#ifndef GLASSHOUSE_COMMON_H
#define GLASSHOUSE_COMMON_H

#include "arch.h"

/* Readers are woken once this much is waiting; below it they come by on their own timer. */
const volatile __u32 gh_wakeup_bytes = 64 * 1024;
/* The loader sets it by its name, which holds the ABI's version, and so refuses an object of another. */
#define ABI_SYMBOL_(version) gh_abi_##version
#define ABI_SYMBOL(version) ABI_SYMBOL_(version)
const volatile __u32 ABI_SYMBOL(GH_ABI_VERSION) = GH_ABI_VERSION;

/* Sizes are defaults; the loader overrides them. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8192);
	__type(key, __u64);
	__type(value, struct gh_watch);
} watched SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1024);
	__type(key, __u32);
	__type(value, struct gh_execution);
} executions SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1024);
	__type(key, __u32);
	__type(value, struct gh_counters);
} counters SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1024);
	__type(key, __u32);
	__type(value, struct gh_syscalls);
} syscalls SEC(".maps");

/*
 * tgid -> execution, for live thread groups of watched cgroups. cgroup_attach_task names only the destination, after
 * the move; this is what tells where the process came from.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, struct gh_watch);
} members SEC(".maps");

/* Process lifecycle alone, so that a storm of file events can't evict an exec or an exit. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4 * 1024 * 1024);
} process_ring SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 16 * 1024 * 1024);
} activity_ring SEC(".maps");

/* Two paths of a rename, each with its walked base and its string, or exe, cwd and argv of an exec; with slack. */
#define PAYLOAD_BYTES 20480
/* NAME_MAX and a NUL. */
#define NAME_BYTES 256

/* Too large for the stack. A program can't interrupt itself on one CPU, so each has its own entry. */
struct scratch {
	struct dentry *dentry;
	struct vfsmount *mnt;
	struct dentry *mnt_root;
	/* Where walks end: the root of the execution. */
	struct dentry *root_dentry;
	struct vfsmount *root_mnt;
	/* The task has another root, and whether a path of this fact was affected by that or not below the root at all. */
	__u32 other_root;
	__u32 other_root_paths;
	/* Payload bytes in use, and where the present path began. */
	__u32 used;
	__u32 path_start;
	__u32 path_flags;
	/* A read failed: the fact is lost. */
	__u32 failed;
	struct gh_record record;
	__u8 payload[PAYLOAD_BYTES];
};

enum { SCRATCH_SYS_EXIT = 0, SCRATCH_EXEC = 1, SCRATCHES = 2 };

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, SCRATCHES);
	__type(key, __u32);
	__type(value, struct scratch);
} scratches SEC(".maps");

static __inline struct scratch *scratch(__u32 which)
{
	struct scratch *s = bpf_map_lookup_elem(&scratches, &which);

	if (s) {
		s->used = 0;
		s->failed = 0;
	}
	return s;
}

static __inline struct gh_watch *watched_cgroup(__u64 cgroup_id)
{
	return bpf_map_lookup_elem(&watched, &cgroup_id);
}

/* The execution that a watch points to, unless its slot has a new tenant. */
static __inline struct gh_execution *execution_of(const struct gh_watch *watch)
{
	__u32 slot = watch->slot;
	struct gh_execution *execution = bpf_map_lookup_elem(&executions, &slot);

	if (!execution || execution->generation != watch->generation)
		return NULL;
	return execution;
}

static __inline bool is_recording(const struct gh_watch *watch)
{
	struct gh_execution *execution = execution_of(watch);

	return execution && execution->state == GH_STATE_RECORDING;
}

static __inline struct gh_counters *counters_of(const struct gh_watch *watch)
{
	__u32 slot = watch->slot;

	return bpf_map_lookup_elem(&counters, &slot);
}

static __inline struct gh_syscalls *syscalls_of(const struct gh_watch *watch)
{
	__u32 slot = watch->slot;

	return bpf_map_lookup_elem(&syscalls, &slot);
}

static __inline void begin(struct gh_record *record, const struct gh_watch *watch, struct task_struct *task, __u16 kind)
{
	record->header.kind = kind;
	record->header.version = GH_ABI_VERSION;
	record->header.slot = watch->slot;
	record->header.generation = watch->generation;
	record->header.boot_ns = bpf_ktime_get_boot_ns();
	record->header.start_boot_ns = task->group_leader->start_boottime;
	record->header.tgid = task->tgid;
	record->header.tid = task->pid;
}

/* The class was counted as observed before anything could fail. */
static __inline void emit(void *ring, struct gh_record *record, __u32 payload_bytes, struct gh_counters *count, int class)
{
	__u64 bytes = sizeof(*record) + payload_bytes;
	__u64 wake;

	if (bytes > sizeof(*record) + PAYLOAD_BYTES)
		bytes = sizeof(*record) + PAYLOAD_BYTES;
	record->header.record_bytes = bytes;
	wake = bpf_ringbuf_query(ring, BPF_RB_AVAIL_DATA) >= gh_wakeup_bytes ? BPF_RB_FORCE_WAKEUP : BPF_RB_NO_WAKEUP;
	if (bpf_ringbuf_output(ring, record, bytes, wake))
		ADD(count->lost_ring[class], 1);
}

static __inline void finish(void *ring, struct scratch *s, struct gh_counters *count, int class)
{
	if (s->other_root_paths)
		ADD(count->other_root_paths, 1);
	if (s->failed)
		ADD(count->lost_read[class], 1);
	else
		emit(ring, &s->record, s->used, count, class);
}

static __inline void join(const struct gh_watch *watch, struct gh_counters *count, __u32 tgid)
{
	struct gh_watch member = *watch;

	if (bpf_map_update_elem(&members, &tgid, &member, BPF_ANY))
		ADD(count->lost_map[GH_CLASS_PROCESS], 1);
}

#endif
