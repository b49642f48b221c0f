/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What is kept of a task, and sent when it ends, when an entry is needed for something else, or about once a second. */
#ifndef GLASSHOUSE_TASK_H
#define GLASSHOUSE_TASK_H

#include "calls.h"
#include "path.h"

static __inline void read_credentials(struct gh_credentials *out, struct task_struct *task)
{
	struct cred *cred = KREAD(task, cred);

	out->uid = KREAD(cred, uid.val);
	out->euid = KREAD(cred, euid.val);
	out->gid = KREAD(cred, gid.val);
	out->egid = KREAD(cred, egid.val);
	out->capabilities = 0;
	bpf_probe_read_kernel(&out->capabilities, sizeof(out->capabilities), &cred->cap_effective);
	out->gained = 0;
	out->syscall = 0;
}

static __inline bool gains(const struct gh_credentials *from, const struct gh_credentials *to)
{
	return (from->euid && !to->euid) || (to->capabilities & ~from->capabilities);
}

/* Where the index of a thread is kept. NULL when there are more thread ids than when the probe was loaded. */
static __inline __u16 *index_of(__u32 tid)
{
	__u32 chunk = tid / TIDS_PER_CHUNK;
	struct tids *of = bpf_map_lookup_elem(&tids, &chunk);

	return of ? &of->index[tid % TIDS_PER_CHUNK] : NULL;
}

/* What is known of a task; NULL for one that is not watched, or was not met yet. */
static __inline struct task *task_of(struct task_struct *task)
{
	__u16 *at = index_of(task->pid);
	struct task *t;
	__u32 index;

	if (!at || !*at)
		return NULL;
	index = *at;
	t = bpf_map_lookup_elem(&tasks, &index);
	return t && t->self == (__u64)task ? t : NULL;
}

/* Makes room for what is known of a task, at its first system call within a watched cgroup. NULL when there is none. */
static __inline struct task *meet(struct task_struct *task, const struct gh_watch *watch, struct gh_counters *count)
{
	__u16 *at = index_of(task->pid);
	struct task *t;
	__u32 index;

	if (!at)
		return NULL;
	if (bpf_map_pop_elem(&free_tasks, &index))
		index = ADD(tasks_used, 1) + 1;
	t = bpf_map_lookup_elem(&tasks, &index);
	if (!t || index > 0xffff) {
		/* So that it does not come round. */
		__sync_fetch_and_sub(&tasks_used, 1);
		return NULL;
	}
	/* All of it: whoever had the index before may have gone without telling, and it was another's. */
	/* In words: there is no memset() of this size. */
	for (int i = 0; i < sizeof(t->seen) / 8; i++)
		((volatile __u64 *)t->seen)[i] = 0;
	for (int i = 0; i < DESCRIPTORS; i++)
		t->descriptors[i].kind = DESCRIPTOR_FREE;
	for (int i = 0; i < sizeof(t->peers) / 8; i++)
		((volatile __u64 *)t->peers)[i] = 0;
	for (int i = 0; i < sizeof(t->calls) / 8; i++)
		((volatile __u64 *)t->calls)[i] = 0;
	t->has_entries = 0;
	/* Somewhere between two samples: also the calls of tasks with few of them are measured as often as others. */
	t->runs = bpf_get_prandom_u32();
	t->index = index;
	t->self = (__u64)task;
	*at = index;
	t->watch = *watch;
	t->number = ADD(count->tasks, 1) + 1;
	t->cred = (__u64)task->cred;
	t->cgroups = (__u64)task->cgroups;
	read_credentials(&t->credentials, task);
	return t;
}

/* Forgets a task. What was not flushed is gone. */
static __inline void part(struct task_struct *task, struct task *t)
{
	__u16 *at = index_of(task->pid);
	__u32 index = t->index;

	if (at)
		*at = 0;
	t->self = 0;
	bpf_map_push_elem(&free_tasks, &index, BPF_ANY);
}

/* Adds the calls to those of the execution. */
__noinline int flush_calls(struct task *t)
{
	struct gh_syscalls *numbers;
	struct gh_counters *count;
	__u64 sum = 0;

	if (!t)
		return 0;
	count = counters_of(&t->watch);
	numbers = syscalls_of(&t->watch);
	if (!count || !numbers || !is_recording(&t->watch))
		return 0;
	for (__u32 nr = 0; nr < GH_SYSCALLS; nr += 4) {
		/* Most are none: four at a time. */
		if (!*(__u64 *)&t->calls[nr])
			continue;
		for (__u32 i = nr; i < nr + 4; i++) {
			if (!t->calls[i])
				continue;
			ADD(numbers->count[i], t->calls[i]);
			sum += t->calls[i];
			t->calls[i] = 0;
		}
	}
	ADD(count->observed[GH_CLASS_SYSCALL], sum);
	return 0;
}

/* A task's counter has come round. */
__noinline int add_wrapped(struct task *t, __u32 nr)
{
	struct gh_syscalls *numbers = t ? syscalls_of(&t->watch) : NULL;
	struct gh_counters *count = t ? counters_of(&t->watch) : NULL;

	/* The slot may have a new tenant. */
	if (numbers && count && is_recording(&t->watch)) {
		ADD(numbers->count[nr & (GH_SYSCALLS - 1)], 1 << 16);
		ADD(count->observed[GH_CLASS_SYSCALL], 1 << 16);
	}
	return 0;
}

__noinline int on_denied(struct task *t, __u32 nr)
{
	struct gh_syscalls *numbers = t ? syscalls_of(&t->watch) : NULL;

	if (numbers && is_recording(&t->watch))
		ADD(numbers->denied[nr & (GH_SYSCALLS - 1)], 1);
	return 0;
}

static __inline __u64 facts_of(const struct seen *e)
{
	return (__u64)e->again + e->reads + e->writes;
}

/* Appends the tally of an entry and begins it anew. */
static __inline void add_tally(struct scratch *s, struct seen *e, __u32 index)
{
	struct gh_tally tally = {
		.read_bytes = e->read_bytes,
		.written_bytes = e->written_bytes,
		.again = e->again,
		.reads = e->reads,
		.writes = e->writes,
		.index = index + 1,
	};
	__u32 used = s->used;

	if (used > PAYLOAD_BYTES - sizeof(tally))
		return;
	__builtin_memcpy(s->payload + used, &tally, sizeof(tally));
	s->used = used + sizeof(tally);
	e->read_bytes = 0;
	e->written_bytes = 0;
	e->again = 0;
	e->reads = 0;
	e->writes = 0;
	e->since = bpf_jiffies64();
}

/* Sends what add_tally() appended. */
static __inline void send_tallies(struct task *t, struct scratch *s, struct gh_counters *count, __u64 facts, __u32 last)
{
	begin(&s->record, &t->watch, bpf_get_current_task_btf(), GH_KIND_TALLIES);
	s->record.body.tallies.task = t->number;
	s->record.body.tallies.tallies = s->used / sizeof(struct gh_tally);
	s->record.body.tallies.is_last = last;
	s->record.body.tallies.reserved = 0;
	ADD(count->observed[GH_CLASS_FILE], facts);
	emit(&activity_ring, &s->record, s->used, s->lossless, count, GH_CLASS_FILE, facts);
	s->used = 0;
}

/* Sends the tally of one entry, if there is anything to say. */
__noinline int flush_entry(struct task *t, struct scratch *s, struct gh_counters *count, __u32 index)
{
	struct seen *e;
	__u64 facts;

	if (!t || !s || !count)
		return 0;
	e = &t->seen[index & (GH_SEEN - 1)];
	facts = facts_of(e);
	if (!facts)
		return 0;
	s->used = 0;
	add_tally(s, e, index & (GH_SEEN - 1));
	send_tallies(t, s, count, facts, 0);
	return 0;
}

__noinline int flush_peer(struct task *t, struct scratch *s, struct gh_counters *count, __u32 index)
{
	struct peer *peer;
	struct gh_traffic *traffic;
	__u64 facts;

	if (!t || !s || !count)
		return 0;
	peer = &t->peers[index & (PEERS - 1)];
	facts = (__u64)peer->sends + peer->receives;
	if (!facts)
		return 0;
	begin(&s->record, &t->watch, bpf_get_current_task_btf(), GH_KIND_TRAFFIC);
	traffic = &s->record.body.traffic;
	traffic->address = peer->address;
	traffic->sent_bytes = peer->sent_bytes;
	traffic->received_bytes = peer->received_bytes;
	traffic->sends = peer->sends;
	traffic->receives = peer->receives;
	peer->sent_bytes = 0;
	peer->received_bytes = 0;
	peer->sends = 0;
	peer->receives = 0;
	ADD(count->observed[GH_CLASS_NETWORK], facts);
	emit(&activity_ring, &s->record, 0, s->lossless, count, GH_CLASS_NETWORK, facts);
	return 0;
}

/* Sends all there is: the task ends, or is no longer watched. */
__noinline int flush(struct task *t, struct scratch *s, struct gh_counters *count)
{
	__u64 facts = 0;

	if (!t || !s || !count)
		return 0;
	flush_calls(t);
	for (__u32 i = 0; i < PEERS; i++)
		flush_peer(t, s, count, i);
	if (!t->has_entries)
		return 0;
	s->used = 0;
	for (__u32 i = 0; i < GH_SEEN; i++) {
		struct seen *e = &t->seen[i];

		if (facts_of(e)) {
			facts += facts_of(e);
			add_tally(s, e, i);
		}
	}
	send_tallies(t, s, count, facts, 1);
	return 0;
}

/* About once a second, so that a long run is not told of at its end only. No clock of the kernel is cheaper. */
#define TALLY_JIFFIES 250

static __inline bool is_old(const struct seen *e)
{
	return (__u32)bpf_jiffies64() - e->since > TALLY_JIFFIES;
}

/*
 * The entry of `key`, which the caller is about to tell of, made empty. What was in it is told of first: the scratch is
 * used for that.
 */
static __inline struct seen *claim(struct task *t, struct scratch *s, struct gh_counters *count, __u64 key)
{
	struct seen *e = &t->seen[key & (GH_SEEN - 1)];

	/* Most have nothing to say, and a call costs more than to ask. */
	if (facts_of(e))
		flush_entry(t, s, count, key & (GH_SEEN - 1));
	e->key = 0;
	return e;
}

static __inline void fill(struct task *t, struct seen *e, __u64 key)
{
	e->key = key;
	e->since = bpf_jiffies64();
	t->has_entries = 1;
}

/*
 * The task's credentials or cgroups are not what they were. Not 0 when it is not to be watched any more: it has left the
 * execution's cgroups, or the execution is over.
 */
__noinline int on_attention(struct task *t, __u32 nr)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct gh_execution *execution;
	struct gh_credentials now;
	struct gh_credentials *was;
	struct gh_watch *watch;
	struct gh_counters *count;
	struct scratch *s;

	if (!t)
		return 1;
	execution = execution_of(&t->watch);
	count = counters_of(&t->watch);
	if (!execution || execution->state != GH_STATE_RECORDING || !count)
		goto gone;
	s = scratch(SCRATCH_SYS_EXIT, execution);
	if (!s)
		return 0;
	if (t->cgroups != (__u64)task->cgroups) {
		t->cgroups = (__u64)task->cgroups;
		watch = watched_cgroup(bpf_get_current_cgroup_id());
		if (!watch || watch->slot != t->watch.slot || watch->generation != t->watch.generation) {
			flush(t, s, count);
			goto gone;
		}
	}
	t->cred = (__u64)task->cred;
	read_credentials(&now, task);
	was = &t->credentials;
	/* Every exec has new ones, and most are the same. */
	if (now.uid == was->uid && now.euid == was->euid && now.gid == was->gid && now.egid == was->egid &&
	    now.capabilities == was->capabilities)
		return 0;
	now.gained = gains(was, &now);
	now.syscall = nr;
	*was = now;
	ADD(count->observed[GH_CLASS_PROCESS], 1);
	begin(&s->record, &t->watch, task, GH_KIND_CREDENTIALS);
	s->record.body.credentials = now;
	finish(&process_ring, s, count, GH_CLASS_PROCESS);
	return 0;
gone:
	part(task, t);
	return 1;
}

#endif
