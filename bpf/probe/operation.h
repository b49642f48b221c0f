/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What reaches beyond files and sockets: other processes, the kernel, namespaces. */
#ifndef GLASSHOUSE_OPERATION_H
#define GLASSHOUSE_OPERATION_H

#include "task.h"

static __inline void tell_operation(struct gh_record *record, __u32 operation, __u64 value, __u32 target, long result)
{
	record->body.operation.result = result;
	record->body.operation.value = value;
	record->body.operation.operation = operation;
	record->body.operation.target = target;
}

__noinline int on_operation(struct task *t, struct scratch *s, struct gh_counters *count, struct call *call)
{
	if (!t || !s || !count || !call)
		return 0;
	ADD(count->observed[GH_CLASS_OTHER], 1);
	begin(&s->record, &t->watch, bpf_get_current_task_btf(), GH_KIND_OPERATION);
	tell_operation(&s->record, call->kind, call->value ? s->args[call->value & 7] : 0,
		       call->other ? s->args[call->other & 7] : 0, s->result);
	return finish_activity(s, count, GH_CLASS_OTHER);
}

#define SI_USER 0
#define SI_TKILL (-6)

/*
 * Whether this is the signal that the task's system call sends. A timer's, say, comes in whatever task it interrupts, within
 * a call that sends another one too.
 */
static __inline bool is_sent_by(struct pt_regs *regs, __u32 signal, int code)
{
	switch (SYSCALL_NR(regs)) {
	case NR_kill:
		return code == SI_USER && (__u32)ARG2(regs) == signal;
	case NR_tkill:
		return code == SI_TKILL && (__u32)ARG2(regs) == signal;
	case NR_tgkill:
		return code == SI_TKILL && (__u32)ARG3(regs) == signal;
	/* The code is what the caller says. */
	case NR_rt_sigqueueinfo:
	case NR_pidfd_send_signal:
		return (__u32)ARG2(regs) == signal;
	case NR_rt_tgsigqueueinfo:
		return (__u32)ARG3(regs) == signal;
	default:
		return false;
	}
}

/*
 * Signals that a watched process sends to a process outside of its execution. Told by the target itself, so that process
 * groups and pid namespaces need no thought. The kernel's own (SIGCHLD, SIGPIPE) are nobody's deed.
 */
SEC("tp_btf/signal_generate")
int glasshouse_signal(__u64 *ctx)
{
	struct kernel_siginfo *info = (void *)ctx[1];
	struct task_struct *target = (void *)ctx[2];
	struct gh_watch *watch = watched_cgroup(bpf_get_current_cgroup_id());
	struct gh_execution *execution;
	struct gh_record record = {};
	struct gh_counters *count;
	struct task_struct *task = bpf_get_current_task_btf();
	struct gh_watch *at;
	__u32 tgid;
	int code;

	/* SEND_SIG_NOINFO and SEND_SIG_PRIV. */
	if (!watch || ctx[1] <= 1)
		return 0;
	code = KREAD(info, si_code);
	if (code > 0 || (!IS_COMPAT(task) && !is_sent_by((void *)bpf_task_pt_regs(task), ctx[0], code)))
		return 0;
	execution = execution_of(watch);
	count = counters_of(watch);
	if (!execution || execution->state != GH_STATE_RECORDING || !count)
		return 0;
	/* Stopped by its own: nobody else lets it go on. */
	if (execution->lossless && ctx[0] >= SIGSTOP && ctx[0] <= SIGTTOU) {
		tgid = target->tgid;
		bpf_map_delete_elem(&stopped, &tgid);
	}
	at = watched_cgroup(target->cgroups->dfl_cgrp->kn->id);
	if (at && at->slot == watch->slot && at->generation == watch->generation)
		return 0;
	ADD(count->observed[GH_CLASS_OTHER], 1);
	begin(&record, watch, task, GH_KIND_OPERATION);
	tell_operation(&record, GH_OPERATION_SIGNAL, (int)ctx[0], target->tgid, 0);
	/* TRACE_SIGNAL_DELIVERED is 0, IGNORED 1, ALREADY_PENDING 2; what was refused does not come by here. */
	/* Interrupts are off here, and stopping would come later than it should. */
	emit(&activity_ring, &record, 0, false, count, GH_CLASS_OTHER, 1);
	return 0;
}

#endif
