// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * The host probe. Only BTF raw tracepoints, so it loads under lockdown and without kprobes. A task of an unwatched
 * cgroup leaves every program at its first map lookup.
 */
#include "arch.h"
#include "common.h"
#include "path.h"
#include "process.h"
#include "cgroup.h"
#include "file.h"
#include "network.h"
#include "operation.h"

/* What the caller sees: an interrupted call is EINTR, or is started again and comes by a second time. */
static __inline long result_of(long ret)
{
	return ret <= -ERESTARTSYS && ret >= -ERESTART_RESTARTBLOCK ? -EINTR : ret;
}

/* CLONE_NEWTIME and the other CLONE_NEW* of include/uapi/linux/sched.h. */
#define NEW_NAMESPACES 0x7e020080

/* Flags of a clone; those of clone3 are the first field of its struct. */
static __inline __u64 clone_flags(long nr, __u64 argument)
{
	__u64 flags = 0;

	if (nr == NR_clone3)
		bpf_probe_read_user(&flags, sizeof(flags), (void *)argument);
	else if (nr == NR_clone)
		/* The lowest byte is the signal at the child's end. */
		flags = argument & ~0xffULL;
	return flags & NEW_NAMESPACES;
}

static __inline bool makes_namespaces(long nr, __u64 argument)
{
	return (nr == NR_clone || nr == NR_clone3) && clone_flags(nr, argument);
}

/* What a call that means something did. */
static __noinline int on_call(struct task *t, struct pt_regs *regs, __u32 nr, long result)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct gh_execution *execution = execution_of(&t->watch);
	struct gh_counters *count = counters_of(&t->watch);
	struct scratch *s;
	struct call call;
	__u32 past;

	if (!count)
		return 0;
	if (!execution || execution->state != GH_STATE_RECORDING) {
		/* The execution is over; should its cgroup be watched again, the task is met anew. */
		part(task, t);
		return 0;
	}
	call = calls[nr & (GH_SYSCALLS - 1)];
	past = call.bypass - 1;
	/* The compiler shall not put the bound on anything but this register. */
	asm volatile("" : "+r"(past));
	if (past < GH_BYPASSES && result >= 0)
		ADD(count->bypasses[past], 1);
	if (call.action == ACTION_BYPASS)
		return 0;
	s = scratch(SCRATCH_SYS_EXIT, execution);
	if (!s)
		return lose(count, class_of(call.action));
	see_from(s, execution, task);
	s->nr = nr;
	s->result = result;
	s->args[1] = ARG1(regs);
	s->args[2] = ARG2(regs);
	s->args[3] = ARG3(regs);
	s->args[4] = ARG4(regs);
	s->args[5] = ARG5(regs);
	s->args[6] = ARG6(regs);
	switch (call.action) {
	case ACTION_READ:
		return on_bytes(t, s, count, s->args[1], 0);
	case ACTION_WRITE:
		return on_bytes(t, s, count, s->args[1], 1);
	case ACTION_TRANSFER:
		if (!is_counted(t, task, s->args[call.dirfd & 7], result, false))
			on_bytes(t, s, count, s->args[call.dirfd & 7], 0);
		if (!is_counted(t, task, s->args[call.other_dirfd & 7], result, true))
			on_bytes(t, s, count, s->args[call.other_dirfd & 7], 1);
		return 0;
	case ACTION_OPEN:
		return on_open(t, s, count, &call);
	case ACTION_MAP:
		return on_map(t, s, count, 0);
	case ACTION_PROTECT:
		return on_map(t, s, count, 1);
	case ACTION_DELETE:
		return on_delete(t, s, count, &call);
	case ACTION_RENAME:
		return on_rename(t, s, count, &call);
	case ACTION_CHANGE:
		return on_change(t, s, count, &call);
	case ACTION_SOCKET:
		return call.kind == GH_SOCKET_CONNECT ? on_connect(t, s, count) : on_socket(t, s, count, call.kind);
	case ACTION_SEND:
	case ACTION_RECEIVE:
		return on_messages(t, s, count, &call);
	case ACTION_CLONE:
		/* An unshare of the child's. */
		s->args[1] = clone_flags(nr, s->args[1]);
		call.kind = GH_OPERATION_UNSHARE;
		call.value = 1;
		return on_operation(t, s, count, &call);
	case ACTION_OPERATION:
		return on_operation(t, s, count, &call);
	}
	return 0;
}

/* A call without a number of this architecture: 32-bit, of x32, or of no kernel. */
static __noinline int on_odd_call(struct task *t, long nr, long result)
{
	struct gh_counters *count = counters_of(&t->watch);

	if (!count || !is_recording(&t->watch))
		return 0;
	if (IS_COMPAT(bpf_get_current_task_btf()) || (nr >= 0 && nr & X32_BIT)) {
		ADD(count->compat_syscalls, 1);
		return 0;
	}
	/* rt_sigreturn restores the interrupted context and forgets its own number; only a call of -1 says ENOSYS. */
	if (nr == -1 && result != -ENOSYS) {
		if (!++t->calls[NR_rt_sigreturn])
			add_wrapped(t, NR_rt_sigreturn);
		return 0;
	}
	ADD(count->observed[GH_CLASS_SYSCALL], 1);
	ADD(count->unnumbered_syscalls, 1);
	return 0;
}

/*
 * Seccomp refused the call by a signal (SECCOMP_RET_TRAP, SECCOMP_RET_KILL_PROCESS) and put the registers back as they
 * were (syscall_rollback()), so that the result is what the call began with: the signal is pending still.
 */
static __inline bool is_trapped(struct task_struct *task, struct pt_regs *regs, long ret)
{
	return ret == ROLLED_BACK(regs) && task->pending.signal.sig[0] & 1ul << (SIGSYS - 1);
}

static __inline int on_return(struct task *t, struct task_struct *task, struct pt_regs *regs, long ret)
{
	long nr = SYSCALL_NR(regs);
	long result = is_trapped(task, regs, ret) ? -EPERM : result_of(ret);
	__u64 number;
	__u8 action;

	if (t->cred != (__u64)task->cred || t->cgroups != (__u64)task->cgroups) {
		if (on_attention(t, nr))
			return 0;
	}
	if (nr < 0 || nr >= GH_SYSCALLS || IS_COMPAT(task))
		return on_odd_call(t, nr, result);
	number = nr;
	/* Kernels before 6.4 forget the bound above when the compiler puts the number on the stack. */
	asm volatile("%0 &= 0x1ff" : "+r"(number));
	action = calls[number].action;
	/* A new child comes by here too, returning 0 from its parent's call. */
	if (action == ACTION_CLONE && result == 0)
		return 0;
	if (!++t->calls[number])
		add_wrapped(t, number);
	if (result == -EPERM || result == -EACCES)
		on_denied(t, nr);
	switch (action) {
	case ACTION_NONE:
		return 0;
	case ACTION_CLONE:
		if (!makes_namespaces(nr, ARG1(regs)))
			return 0;
		break;
	case ACTION_READ:
		if (result < 0 || is_counted(t, task, ARG1(regs), result, false))
			return 0;
		break;
	case ACTION_WRITE:
		if (result < 0 || is_counted(t, task, ARG1(regs), result, true))
			return 0;
		break;
	case ACTION_TRANSFER:
		if (result < 0)
			return 0;
		break;
	case ACTION_MAP:
		/* Not of a file, not executable, or refused. */
		if (!(ARG3(regs) & PROT_EXEC) || ARG4(regs) & MAP_ANONYMOUS || (result < 0 && result >= -4095))
			return 0;
		break;
	case ACTION_PROTECT:
		if (!(ARG3(regs) & PROT_EXEC) || result < 0)
			return 0;
		break;
	}
	return on_call(t, regs, nr, result);
}

/* The first call of a task of a watched cgroup, or one that has nothing to do with any: most leave here. */
static __noinline struct task *on_stranger(struct task_struct *task, long nr)
{
	struct gh_watch *watch = watched_cgroup(bpf_get_current_cgroup_id());
	struct gh_execution *execution;
	struct gh_counters *count;
	struct task *t;
	int class;

	if (!watch)
		return NULL;
	execution = execution_of(watch);
	count = counters_of(watch);
	if (!execution || execution->state != GH_STATE_RECORDING || !count)
		return NULL;
	t = meet(task, watch, count);
	if (t)
		return t;
	/* No memory: what it did is not known, only that it did. */
	ADD(count->lost_map[GH_CLASS_SYSCALL], 1);
	class = class_of(calls[nr & (GH_SYSCALLS - 1)].action);
	if (class < GH_CLASSES)
		ADD(count->lost_map[class], 1);
	return NULL;
}

/* Arguments and result of every system call, at its return. */
SEC("tp_btf/sys_exit")
int glasshouse_sys_exit(__u64 *ctx)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct task *t = task_of(task);
	struct pt_regs *regs = (void *)ctx[0];
	struct gh_counters *count;
	__u64 began;

	if (!t) {
		__u64 *hint = hint_of(task->cgroups->dfl_cgrp->kn->id);

		if (!hint || !*hint)
			return 0;
		t = on_stranger(task, SYSCALL_NR(regs));
		if (!t)
			return 0;
	}
	if (++t->runs % GH_SAMPLING)
		return on_return(t, task, regs, ctx[1]);
	began = bpf_ktime_get_boot_ns();
	on_return(t, task, regs, ctx[1]);
	count = counters_of(&t->watch);
	if (count && is_recording(&t->watch)) {
		ADD(count->sampled_ns, bpf_ktime_get_boot_ns() - began);
		ADD(count->samples, 1);
	}
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
