/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* fork, exec, exit: thread groups, never threads. */
#ifndef GLASSHOUSE_PROCESS_H
#define GLASSHOUSE_PROCESS_H

#include "path.h"

static struct pt_regs *(*bpf_task_pt_regs)(struct task_struct *task) = (void *)175;

/* After the child has its cgroup and before it first runs. CLONE_INTO_CGROUP makes parent and child differ. */
SEC("tp_btf/sched_process_fork")
int glasshouse_fork(__u64 *ctx)
{
	struct task_struct *parent = (void *)ctx[0];
	struct task_struct *child = (void *)ctx[1];
	__u64 cgroup_id = child->cgroups->dfl_cgrp->kn->id;
	struct gh_watch *watch = watched_cgroup(cgroup_id);
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
	if (child->pid != child->tgid || !is_recording(watch))
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
	emit(&process_ring, &record, 0, count, GH_CLASS_PROCESS);
	return 0;
}

static __inline void add_argv(struct scratch *s, struct task_struct *task)
{
	unsigned long start = task->mm->arg_start;
	unsigned long end = task->mm->arg_end;
	__u64 total = end > start ? end - start : 0;
	__u32 bytes = total > GH_ARGV_BYTES ? GH_ARGV_BYTES : total;
	__u32 used = s->used;

	s->record.body.exec.argv_total_bytes = total;
	s->record.body.exec.argv_bytes = 0;
	if (!bytes || used > PAYLOAD_BYTES - GH_ARGV_BYTES)
		return;
	/* Tells the verifier the bound again, whatever the compiler made of the one above. */
	asm volatile("%0 &= 0x3fff" : "+r"(bytes));
	if (bytes > GH_ARGV_BYTES)
		return;
	if (bpf_probe_read_user(s->payload + used, bytes, (void *)start)) {
		s->failed = 1;
		return;
	}
	s->record.body.exec.argv_bytes = bytes;
	s->used = used + bytes;
}

/* After the new image is in place: the executable and the arguments are those of the new program. */
SEC("tp_btf/sched_process_exec")
int glasshouse_exec(__u64 *ctx)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct gh_watch *watch = watched_cgroup(bpf_get_current_cgroup_id());
	struct gh_execution *execution;
	struct gh_counters *count;
	struct scratch *s;
	struct cred *cred;
	struct fs_struct *fs;
	struct file *exe;

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
		execution->state = GH_STATE_RECORDING;
	}
	if (execution->state != GH_STATE_RECORDING)
		return 0;
	count = counters_of(watch);
	if (!count)
		return 0;
	ADD(count->observed[GH_CLASS_PROCESS], 1);
	join(watch, count, task->tgid);
	s = scratch(SCRATCH_EXEC);
	if (!s) {
		ADD(count->lost_read[GH_CLASS_PROCESS], 1);
		return 0;
	}
	begin(&s->record, watch, task, GH_KIND_EXEC);
	see_from(s, execution, task);
	/* The effective ones, in the initial user namespace. */
	cred = KREAD(task, cred);
	s->record.body.exec.uid = KREAD(cred, euid.val);
	s->record.body.exec.gid = KREAD(cred, egid.val);
	s->record.body.exec.parent_tgid = task->real_parent->tgid;
	s->record.body.exec.parent_start_boot_ns = task->real_parent->group_leader->start_boottime;
	exe = KREAD(task->mm, exe_file);
	add_walked(s, (__u64)&exe->f_path, &s->record.body.exec.exe);
	add_walked(s, pwd(), &s->record.body.exec.cwd);
	add_argv(s, task);
	finish(&process_ring, s, count, GH_CLASS_PROCESS);
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
	struct gh_record record = {};
	struct gh_counters *count;
	struct gh_syscalls *numbers;
	__u32 tgid = task->tgid;
	bool last;
	long nr;

	if (!watch)
		return 0;
	/* Also of a root that ends without an exec. */
	last = task->signal->live.counter == 0;
	if (last)
		bpf_map_delete_elem(&members, &tgid);
	if (!is_recording(watch))
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
	if (!last)
		return 0;
	ADD(count->observed[GH_CLASS_PROCESS], 1);
	begin(&record, watch, task, GH_KIND_EXIT);
	/* As wait_task_zombie() chooses. */
	record.body.exit.wait_status = task->signal->flags & SIGNAL_GROUP_EXIT ? task->signal->group_exit_code :
										 task->group_leader->exit_code;
	emit(&process_ring, &record, 0, count, GH_CLASS_PROCESS);
	return 0;
}

#endif
