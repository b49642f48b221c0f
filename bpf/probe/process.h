/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* fork, exec, exit: thread groups, never threads. */
#ifndef GLASSHOUSE_PROCESS_H
#define GLASSHOUSE_PROCESS_H

#include "task.h"

/* After the child has its cgroup and before it first runs. CLONE_INTO_CGROUP makes parent and child differ. */
SEC("tp_btf/sched_process_fork")
int glasshouse_fork(__u64 *ctx)
{
	struct task_struct *parent = (void *)ctx[0];
	struct task_struct *child = (void *)ctx[1];
	__u64 cgroup_id = child->cgroups->dfl_cgrp->kn->id;
	struct gh_watch *watch = watched_cgroup(cgroup_id);
	struct gh_execution *execution;
	struct gh_record record = {};
	struct gh_counters *count;
	struct gh_watch *from;

	if (!watch) {
		__u64 parent_cgroup_id = bpf_get_current_cgroup_id();

		if (parent_cgroup_id == cgroup_id)
			return 0;
		watch = watched_cgroup(parent_cgroup_id);
		if (!watch || !is_recording(watch))
			return 0;
		count = counters_of(watch);
		if (count && child->pid == child->tgid)
			ADD(count->escaped, 1);
		return 0;
	}
	execution = execution_of(watch);
	if (child->pid != child->tgid || !execution || execution->state != GH_STATE_RECORDING)
		return 0;
	count = counters_of(watch);
	if (!count)
		return 0;
	ADD(count->observed[GH_CLASS_PROCESS], 1);
	from = watched_cgroup(bpf_get_current_cgroup_id());
	if (!from || from->slot != watch->slot || from->generation != watch->generation)
		ADD(count->joined, 1);
	join(watch, count, child->tgid);
	begin(&record, watch, parent, GH_KIND_FORK);
	record.body.fork.child_start_boot_ns = child->start_boottime;
	record.body.fork.child_tgid = child->tgid;
	emit(&process_ring, &record, 0, execution->lossless, count, GH_CLASS_PROCESS, 1);
	return 0;
}

/* Appends memory of the caller between two addresses, at most `limit` bytes, and gives how many. */
static __inline __u32 add_area(struct scratch *s, unsigned long start, unsigned long end, __u32 limit, __u64 *total)
{
	__u32 used = s->used;
	__u32 bytes;

	*total = end > start ? end - start : 0;
	bytes = *total > limit ? limit : *total;
	if (!bytes || used > PAYLOAD_BYTES - GH_ARGV_BYTES)
		return 0;
	/* Tells the verifier the bound again, whatever the compiler made of the one above. */
	asm volatile("%0 &= 0x3fff" : "+r"(bytes));
	if (bytes > GH_ARGV_BYTES)
		return 0;
	if (bpf_probe_read_user(s->payload + used, bytes, (void *)start)) {
		s->failed = 1;
		return 0;
	}
	s->used = used + bytes;
	return bytes;
}

/* Addresses of the task's namespaces, in the order of enum gh_exec_flags. */
static __inline void read_namespaces(__u64 *out, struct task_struct *task)
{
	struct nsproxy *proxy = KREAD(task, nsproxy);
	struct cred *cred = KREAD(task, cred);

	out[0] = (__u64)KREAD(proxy, pid_ns_for_children);
	out[1] = (__u64)KREAD(proxy, mnt_ns);
	out[2] = (__u64)KREAD(proxy, net_ns);
	out[3] = (__u64)KREAD(cred, user_ns);
	out[4] = (__u64)KREAD(proxy, ipc_ns);
	out[5] = (__u64)KREAD(proxy, uts_ns);
	out[6] = (__u64)KREAD(proxy, cgroup_ns);
}

/* After the new image is in place: the executable and the arguments are those of the new program. */
SEC("tp_btf/sched_process_exec")
int glasshouse_exec(__u64 *ctx)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct gh_watch *watch = watched_cgroup(bpf_get_current_cgroup_id());
	__u32 old_tid = ctx[1];
	struct gh_execution *execution;
	struct gh_counters *count;
	__u16 *old_index;
	__u16 *index;
	struct gh_credentials credentials;
	__u64 namespaces[7];
	struct scratch *s;
	struct gh_exec *exec;
	struct fs_struct *fs;
	struct file *exe;
	struct task *t;

	/* A thread that executes becomes its group's leader, whose id it takes. */
	if (old_tid != task->pid) {
		old_index = index_of(old_tid);
		index = index_of(task->pid);
		if (old_index && index) {
			*index = *old_index;
			*old_index = 0;
		}
	}
	if (!watch)
		return 0;
	execution = execution_of(watch);
	if (!execution)
		return 0;
	/* The barrier is open: from the root's exec on everything counts. A root of 0 is whoever execs first. */
	if (execution->state == GH_STATE_ARMED && (!execution->root_tgid || execution->root_tgid == task->tgid)) {
		fs = KREAD(task, fs);
		execution->root_dentry = (__u64)KREAD(fs, root.dentry);
		execution->root_mnt = (__u64)KREAD(fs, root.mnt);
		read_namespaces(execution->namespaces, task);
		execution->state = GH_STATE_RECORDING;
	}
	if (execution->state != GH_STATE_RECORDING)
		return 0;
	count = counters_of(watch);
	if (!count)
		return 0;
	ADD(count->observed[GH_CLASS_PROCESS], 1);
	join(watch, count, task->tgid);
	s = scratch(SCRATCH_EXEC, execution);
	if (!s) {
		ADD(count->lost_read[GH_CLASS_PROCESS], 1);
		return 0;
	}
	begin(&s->record, watch, task, GH_KIND_EXEC);
	see_from(s, execution, task);
	exec = &s->record.body.exec;
	/* The ids are those of the initial user namespace. */
	read_credentials(&credentials, task);
	exec->uid = credentials.euid;
	exec->gid = credentials.egid;
	exec->parent_tgid = task->real_parent->tgid;
	exec->flags = 0;
	t = task_of(task);
	if (credentials.euid != credentials.uid || credentials.egid != credentials.gid ||
	    (t && gains(&t->credentials, &credentials)))
		exec->flags |= GH_EXEC_PRIVILEGED;
	read_namespaces(namespaces, task);
	for (int i = 0; i < 7; i++)
		if (namespaces[i] != execution->namespaces[i])
			exec->flags |= GH_EXEC_PID_NAMESPACE << i;
	exe = KREAD(task->mm, exe_file);
	add_path(s, (__u64)&exe->f_path, &exec->exe);
	add_path(s, pwd(), &exec->cwd);
	exec->argv_bytes =
		add_area(s, task->mm->arg_start, task->mm->arg_end, GH_ARGV_BYTES, &exec->argv_total_bytes);
	exec->env_bytes = add_area(s, task->mm->env_start, task->mm->env_end, GH_ENV_BYTES, &exec->env_total_bytes);
	finish(&process_ring, s, count, GH_CLASS_PROCESS);
	return 0;
}

struct threads {
	struct gh_exit *exit;
	__u64 node;
	__u64 head;
};

#define MOST_THREADS 4096

/*
 * The group's sums are those of the threads that have been released. Those that end at the same time, and a leader that
 * ended first, have not been: they are in the group's list (as thread_group_cputime() has it).
 */
static long add_thread(__u32 step, struct threads *threads)
{
	struct task_struct *task = (void *)(threads->node - KOFFSET(struct task_struct, thread_node));
	struct gh_exit *exit = threads->exit;

	if (threads->node == threads->head)
		return 1;
	exit->user_ns += KREAD(task, utime);
	exit->system_ns += KREAD(task, stime);
	exit->minor_faults += KREAD(task, min_flt);
	exit->major_faults += KREAD(task, maj_flt);
	threads->node = (__u64)KREAD(task, thread_node.next);
	return 0;
}

/*
 * Every thread comes by; the thread group ends with the last. Two threads that exit at once can both see none alive:
 * user space collapses the second record.
 */
SEC("tp_btf/sched_process_exit")
int glasshouse_exit(__u64 *ctx)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct gh_watch *watch = watched_cgroup(bpf_get_current_cgroup_id());
	struct signal_struct *group = task->signal;
	struct task *t = task_of(task);
	struct gh_execution *execution;
	struct gh_counters *count;
	struct gh_syscalls *numbers;
	struct gh_exit *exit;
	struct scratch *s;
	struct threads threads;
	__u32 tgid = task->tgid;
	bool last;
	long nr;

	if (t) {
		execution = execution_of(&t->watch);
		count = counters_of(&t->watch);
		s = execution ? scratch(SCRATCH_EXIT, execution) : NULL;
		if (s && count && execution->state == GH_STATE_RECORDING)
			flush(t, s, count);
		part(task, t);
	}
	if (!watch)
		return 0;
	/* Also of a root that ends without an exec. */
	last = group->live.counter == 0;
	if (last)
		bpf_map_delete_elem(&members, &tgid);
	execution = execution_of(watch);
	if (!execution || execution->state != GH_STATE_RECORDING)
		return 0;
	count = counters_of(watch);
	numbers = syscalls_of(watch);
	if (!count || !numbers)
		return 0;
	/* exit and exit_group never return, so sys_exit does not see them. */
	nr = SYSCALL_NR(bpf_task_pt_regs(task));
	if (IS_COMPAT(task)) {
		ADD(count->compat_syscalls, 1);
	} else if (nr == NR_exit) {
		ADD(count->observed[GH_CLASS_SYSCALL], 1);
		ADD(numbers->count[NR_exit], 1);
	} else if (nr == NR_exit_group) {
		ADD(count->observed[GH_CLASS_SYSCALL], 1);
		ADD(numbers->count[NR_exit_group], 1);
	}
	s = scratch(SCRATCH_EXIT, execution);
	if (!s) {
		if (last)
			lose(count, GH_CLASS_PROCESS);
		return 0;
	}
	if (!last)
		return 0;
	ADD(count->observed[GH_CLASS_PROCESS], 1);
	s->used = 0;
	begin(&s->record, watch, task, GH_KIND_EXIT);
	exit = &s->record.body.exit;
	/* As wait_task_zombie() chooses. */
	exit->wait_status = group->flags & SIGNAL_GROUP_EXIT ? group->group_exit_code : task->group_leader->exit_code;
	exit->reserved = 0;
	exit->user_ns = group->utime;
	exit->system_ns = group->stime;
	exit->max_rss_pages = group->maxrss;
	exit->minor_faults = group->min_flt;
	exit->major_faults = group->maj_flt;
	threads.exit = exit;
	threads.node = (__u64)group->thread_head.next;
	threads.head = (__u64)group + KOFFSET(struct signal_struct, thread_head);
	bpf_loop(MOST_THREADS, add_thread, &threads, 0);
	finish(&process_ring, s, count, GH_CLASS_PROCESS);
	return 0;
}

#endif
