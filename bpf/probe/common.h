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

/*
 * By the low bits of a cgroup id: whether one with them was ever put into `watched`. Nearly every system call of a task
 * that is not watched leaves here, by a few loads where a lookup in the hash is a call.
 */
#define HINTS 65536

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, HINTS);
	__type(key, __u32);
	__type(value, __u64);
} hints SEC(".maps");

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

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, struct gh_stopped);
} stopped SEC(".maps");

/* Process lifecycle alone, so that a storm of file events can't evict an exec or an exit. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4 * 1024 * 1024);
} process_ring SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 16 * 1024 * 1024);
} activity_ring SEC(".maps");

/* Files of a task that were told of: what is identical is counted here. The last of those with one index stays. */
struct seen {
	/* Identity of the path, and of how it was opened; 0 when the entry is free. */
	__u64 key;
	__u64 read_bytes;
	__u64 written_bytes;
	__u32 again;
	__u32 reads;
	__u32 writes;
	/* When its tally was last sent, in jiffies. */
	__u32 since;
};

enum descriptor_kind { DESCRIPTOR_FREE = 0, DESCRIPTOR_FILE, DESCRIPTOR_SOCKET, DESCRIPTOR_OTHER };

/* What a descriptor was when it was last used. Valid as long as the addresses are the same. */
struct descriptor {
	__u64 file;
	/* Number and generation of its inode. */
	__u64 inode;
	/* Key of the entry of `seen` or `peers`. */
	__u64 key;
	__s32 fd;
	__u16 entry;
	/* enum descriptor_kind */
	__u16 kind;
};

struct peer {
	__u64 key;
	__u64 sent_bytes;
	__u64 received_bytes;
	__u32 sends;
	__u32 receives;
	struct gh_address address;
	__u32 since;
	__u32 reserved;
};

#define DESCRIPTORS 16
#define PEERS 8

/* What is known of a task. Only the task itself works on it, so that nothing here needs an atomic operation. */
struct task {
	/* Its task_struct: a stale index leads nowhere. */
	__u64 self;
	struct gh_watch watch;
	__u32 number;
	__u32 runs;
	/* Addresses of its credentials and its cgroups: when either is another, see on_attention(). */
	__u64 cred;
	__u64 cgroups;
	struct gh_credentials credentials;
	/* Has filled an entry of `seen`. */
	__u32 has_entries;
	/* Where this is in `tasks`. */
	__u32 index;
	/* Calls by number, since the last flush. */
	__u16 calls[GH_SYSCALLS];
	struct descriptor descriptors[DESCRIPTORS];
	struct seen seen[GH_SEEN];
	struct peer peers[PEERS];
};

/*
 * A task of a watched cgroup gets its own at its first system call: `tids` has its index in `tasks`, by thread id. Arrays,
 * because every system call of the machine looks here first, and an array is read without a call (local storage of tasks
 * costs some 40 ns more).
 */
#define TIDS_PER_CHUNK 4096

struct tids {
	__u16 index[TIDS_PER_CHUNK];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 8);
	__type(key, __u32);
	__type(value, struct tids);
} tids SEC(".maps");

/* The first is nobody's. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 4096);
	__type(key, __u32);
	__type(value, struct task);
} tasks SEC(".maps");

/* Indexes that were used before, and how many were. */
struct {
	__uint(type, BPF_MAP_TYPE_STACK);
	__uint(max_entries, 4096);
	__type(value, __u32);
} free_tasks SEC(".maps");

__u32 tasks_used;

/* Two paths of a rename, each with its walked base and its string, or exe, cwd, argv and environment; with slack. */
#define PAYLOAD_BYTES 24576
/* NAME_MAX and a NUL. */
#define NAME_BYTES 256
/* Paths of directories that are as long or longer are walked each time. A power of two. */
#define DIRECTORY_BYTES 512

/* One message of a send or a receive: where to or from, as the caller says, and the beginning of its text. */
struct message {
	__u64 name;
	__u64 name_bytes;
	/* Where its text is: one buffer, or vectors of the caller. */
	struct iovec buffer;
	__u64 vectors;
	__u64 vector_count;
	__u64 bytes;
	__u32 sends;
	/* The socket was not connected before, and is by this. */
	__u32 connects;
};

/* Too large for the stack. A program can't interrupt itself on one CPU, so each has its own entry. */
struct scratch {
	struct dentry *dentry;
	struct vfsmount *mnt;
	struct dentry *mnt_root;
	/* Where walks end: the root of the execution. */
	struct dentry *root_dentry;
	struct vfsmount *root_mnt;
	/* Of the path identified last, and of the directory that it is in. */
	__u64 identity;
	__u64 directory;
	/* Its last name, see begin_at(). */
	struct dentry *last;
	__u64 last_value;
	/* The task has another root, and whether a path of this fact was affected by that or not below the root at all. */
	__u32 other_root;
	__u32 other_root_paths;
	/* Payload bytes in use, and where the present path began. */
	__u32 used;
	__u32 path_start;
	__u32 path_flags;
	/* Of the last name. */
	__u32 last_bytes;
	/* Names of a directory, the last first, and its identity when they were read. 0 when there are none. */
	__u32 known_bytes;
	__u64 known_directory;
	__u8 known_names[DIRECTORY_BYTES];
	/* A read failed: the fact is lost. */
	__u32 failed;
	/* Stop the task rather than lose a fact. */
	__u32 lossless;
	__u32 nr;
	/* The system call: its result and its arguments, counted from 1. */
	long result;
	__u64 args[7];
	struct message message;
	/* Too large for the stacks of kernels before 6.13, which are 512 bytes for all functions called. */
	struct mmsghdr header;
	struct gh_address address;
	struct gh_record record;
	__u8 payload[PAYLOAD_BYTES];
};

enum { SCRATCH_SYS_EXIT = 0, SCRATCH_EXEC = 1, SCRATCH_EXIT = 2, SCRATCHES = 3 };

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, SCRATCHES);
	__type(key, __u32);
	__type(value, struct scratch);
} scratches SEC(".maps");

static __inline struct scratch *scratch(__u32 which, const struct gh_execution *execution)
{
	struct scratch *s = bpf_map_lookup_elem(&scratches, &which);

	if (s) {
		s->used = 0;
		s->failed = 0;
		s->other_root_paths = 0;
		s->lossless = execution->lossless;
	}
	return s;
}

static __inline struct gh_watch *watched_cgroup(__u64 cgroup_id)
{
	return bpf_map_lookup_elem(&watched, &cgroup_id);
}

static __inline __u64 *hint_of(__u64 cgroup_id)
{
	__u32 index = cgroup_id & (HINTS - 1);

	return bpf_map_lookup_elem(&hints, &index);
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

/* Stops the thread group before its next instruction. User space lets it go on once there is room again. */
static __inline void stop(const struct gh_record *record, struct gh_counters *count)
{
	__u32 tgid = record->header.tgid;
	/* Without a start time it is not stopped yet: going on must not overtake stopping. */
	struct gh_stopped entry = { .slot = record->header.slot, .generation = record->header.generation };

	/* It can't be stopped, and the entry may be that of its group's other threads, which are. */
	if (bpf_get_current_task_btf()->flags & PF_EXITING)
		return;
	if (bpf_map_update_elem(&stopped, &tgid, &entry, BPF_ANY))
		return;
	/* Refused or not, the entry stays: to go on without having been stopped does nothing. */
	if (!bpf_send_signal_thread(SIGSTOP))
		ADD(count->stops, 1);
	entry.start_boot_ns = record->header.start_boot_ns;
	if (bpf_map_update_elem(&stopped, &tgid, &entry, BPF_ANY))
		/* Nobody would let it go on. */
		bpf_send_signal(SIGCONT);
}

/*
 * Emits a record that stands for `facts` of a class, which were counted as observed before anything could fail. 0 when it
 * was sent.
 */
static __inline int emit(void *ring, struct gh_record *record, __u32 payload_bytes, bool lossless,
			 struct gh_counters *count, int class, __u64 facts)
{
	__u64 bytes = sizeof(*record) + payload_bytes;
	__u64 waiting = bpf_ringbuf_query(ring, BPF_RB_AVAIL_DATA);
	int lost;

	if (bytes > sizeof(*record) + PAYLOAD_BYTES)
		bytes = sizeof(*record) + PAYLOAD_BYTES;
	record->header.record_bytes = bytes;
	lost = bpf_ringbuf_output(ring, record, bytes,
				  waiting >= gh_wakeup_bytes ? BPF_RB_FORCE_WAKEUP : BPF_RB_NO_WAKEUP) != 0;
	if (lost)
		ADD(count->lost_ring[class], facts);
	/* Half of the ring is left for what other threads are about to tell, and for exits. */
	if (lossless && waiting >= bpf_ringbuf_query(ring, BPF_RB_RING_SIZE) / 2)
		stop(record, count);
	return lost;
}

/* As emit(), of the scratch and one fact. */
static __inline int finish(void *ring, struct scratch *s, struct gh_counters *count, int class)
{
	if (s->other_root_paths)
		ADD(count->other_root_paths, 1);
	if (s->failed) {
		ADD(count->lost_read[class], 1);
		return 1;
	}
	return emit(ring, &s->record, s->used, s->lossless, count, class, 1);
}

/* Into the ring of files and sockets. */
__noinline int finish_activity(struct scratch *s, struct gh_counters *count, int class)
{
	if (!s || !count || class < 0 || class >= GH_CLASSES)
		return 1;
	return finish(&activity_ring, s, count, class);
}

/* A fact that happened, and of which nothing could be read. */
static __inline int lose(struct gh_counters *count, int class)
{
	ADD(count->observed[class], 1);
	ADD(count->lost_read[class], 1);
	return 0;
}

static __inline void join(const struct gh_watch *watch, struct gh_counters *count, __u32 tgid)
{
	struct gh_watch member = *watch;

	if (bpf_map_update_elem(&members, &tgid, &member, BPF_ANY))
		ADD(count->lost_map[GH_CLASS_PROCESS], 1);
}

#endif
