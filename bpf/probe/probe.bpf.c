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

/* What the caller sees: an interrupted call is EINTR, or is started again and comes by a second time. */
static __inline long result_of(long ret)
{
	return ret <= -ERESTARTSYS && ret >= -ERESTART_RESTARTBLOCK ? -EINTR : ret;
}

static __inline void bypassed(struct gh_counters *count, int which, long result)
{
	if (result >= 0)
		ADD(count->bypasses[which], 1);
}

/* Arguments and result of every system call, at its return. */
SEC("tp_btf/sys_exit")
int glasshouse_sys_exit(__u64 *ctx)
{
	struct gh_watch *watch = watched_cgroup(bpf_get_current_cgroup_id());
	struct gh_execution *execution;
	struct task_struct *task;
	struct gh_counters *count;
	struct gh_syscalls *numbers;
	struct pt_regs *regs;
	struct scratch *s;
	long result;
	long nr;

	if (!watch)
		return 0;
	execution = execution_of(watch);
	if (!execution || execution->state != GH_STATE_RECORDING)
		return 0;
	regs = (void *)ctx[0];
	result = result_of(ctx[1]);
	task = bpf_get_current_task_btf();
	count = counters_of(watch);
	if (!count)
		return 0;
	nr = SYSCALL_NR(regs);
	/* rt_sigreturn restores the interrupted context and forgets its own number; only a call of -1 says ENOSYS. */
	if (nr == -1 && result != -ENOSYS)
		nr = NR_rt_sigreturn;
	if (IS_COMPAT(task) || (nr >= 0 && nr & X32_BIT)) {
		ADD(count->compat_syscalls, 1);
		return 0;
	}
	/* A new child comes by here too, returning 0 from its parent's call. */
	if (result == 0 && (nr == NR_clone || nr == NR_clone3 || nr == NR_fork || nr == NR_vfork))
		return 0;
	ADD(count->observed[GH_CLASS_SYSCALL], 1);
	if (nr < 0 || nr >= GH_SYSCALLS) {
		ADD(count->unnumbered_syscalls, 1);
		return 0;
	}
	numbers = syscalls_of(watch);
	if (numbers) {
		ADD(numbers->count[nr], 1);
		if (result == -EPERM || result == -EACCES)
			ADD(numbers->denied[nr], 1);
	} else {
		ADD(count->lost_read[GH_CLASS_SYSCALL], 1);
	}

	switch (nr) {
	case NR_io_uring_setup:
		bypassed(count, GH_BYPASS_IO_URING_SETUP, result);
		return 0;
	case NR_io_uring_enter:
		bypassed(count, GH_BYPASS_IO_URING_ENTER, result);
		return 0;
	case NR_io_uring_register:
		bypassed(count, GH_BYPASS_IO_URING_REGISTER, result);
		return 0;
	case NR_open_by_handle_at:
		bypassed(count, GH_BYPASS_OPEN_BY_HANDLE_AT, result);
		return 0;
	case NR_pidfd_getfd:
		bypassed(count, GH_BYPASS_PIDFD_GETFD, result);
		return 0;
	case NR_process_vm_writev:
		bypassed(count, GH_BYPASS_PROCESS_VM_WRITEV, result);
		return 0;
	case NR_ptrace:
		bypassed(count, GH_BYPASS_PTRACE, result);
		return 0;
	case NR_sendto:
	case NR_sendmmsg:
		if (ARG4(regs) & MSG_FASTOPEN)
			bypassed(count, GH_BYPASS_FASTOPEN, result == -EINPROGRESS ? 0 : result);
		return 0;
	case NR_sendmsg:
		if (ARG3(regs) & MSG_FASTOPEN)
			bypassed(count, GH_BYPASS_FASTOPEN, result == -EINPROGRESS ? 0 : result);
		return 0;
	case NR_open:
	case NR_openat:
	case NR_openat2:
	case NR_creat:
	case NR_unlink:
	case NR_unlinkat:
	case NR_rmdir:
	case NR_rename:
	case NR_renameat:
	case NR_renameat2:
		ADD(count->observed[GH_CLASS_FILE], 1);
		break;
	case NR_connect:
		/* Counted once it is known to have been an attempt. */
		break;
	default:
		return 0;
	}

	s = scratch(SCRATCH_SYS_EXIT);
	if (!s) {
		if (nr == NR_connect)
			ADD(count->observed[GH_CLASS_NETWORK], 1);
		ADD(count->lost_read[nr == NR_connect ? GH_CLASS_NETWORK : GH_CLASS_FILE], 1);
		return 0;
	}
	see_from(s, execution, task);

	switch (nr) {
	case NR_open:
	case NR_openat:
	case NR_openat2:
	case NR_creat: {
		bool at = nr == NR_openat || nr == NR_openat2;
		__u64 string = at ? ARG2(regs) : ARG1(regs);
		int dirfd = at ? (int)ARG1(regs) : AT_FDCWD;
		__u64 flags = 0;

		if (nr == NR_openat2) {
			/* The first field of struct open_how. */
			if (bpf_probe_read_user(&flags, sizeof(flags), (void *)ARG3(regs)) && result >= 0)
				s->failed = 1;
		} else if (nr == NR_creat) {
			flags = O_CREAT_WRONLY_TRUNC;
		} else {
			/* An int: whatever stands above it in the register is not the caller's. */
			flags = (__u32)(at ? ARG3(regs) : ARG2(regs));
		}
		begin(&s->record, watch, task, GH_KIND_OPEN);
		s->record.body.open.result = result;
		s->record.body.open.open_flags = flags;
		s->record.body.open.syscall = nr;
		on_open(s, count, dirfd, string);
		return 0;
	}
	case NR_unlink:
	case NR_rmdir:
	case NR_unlinkat: {
		bool at = nr == NR_unlinkat;
		__u64 string = at ? ARG2(regs) : ARG1(regs);
		int dirfd = at ? (int)ARG1(regs) : AT_FDCWD;

		begin(&s->record, watch, task, GH_KIND_DELETE);
		s->record.body.del.result = result;
		s->record.body.del.directory = nr == NR_rmdir || (at && ARG3(regs) & AT_REMOVEDIR);
		s->record.body.del.syscall = nr;
		on_delete(s, count, dirfd, string);
		return 0;
	}
	case NR_connect:
		begin(&s->record, watch, task, GH_KIND_CONNECT);
		s->record.body.connect.result = result;
		on_connect(s, count, (int)ARG1(regs), ARG2(regs), (__u32)ARG3(regs));
		return 0;
	default: {
		/* The renames. */
		struct rename_args args = { .from_dirfd = AT_FDCWD, .to_dirfd = AT_FDCWD };
		__u32 flags = 0;

		if (nr == NR_rename) {
			args.from = ARG1(regs);
			args.to = ARG2(regs);
		} else {
			args.from_dirfd = (int)ARG1(regs);
			args.from = ARG2(regs);
			args.to_dirfd = (int)ARG3(regs);
			args.to = ARG4(regs);
		}
		if (nr == NR_renameat2)
			flags = ARG5(regs);
		begin(&s->record, watch, task, GH_KIND_RENAME);
		s->record.body.rename.result = result;
		s->record.body.rename.rename_flags = flags;
		s->record.body.rename.syscall = nr;
		on_rename(s, count, &args);
		return 0;
	}
	}
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
