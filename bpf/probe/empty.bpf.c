// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * An empty program per hook: what a hook costs whatever a program does there. The bench `cost` attaches those of the
 * hooks that the probe attaches and compares the probe with them; the bench `hooks` compares hooks with each other.
 */
#include "helpers.h"

#define EMPTY(hook)             \
	SEC("tp_btf/" #hook)        \
	int empty_##hook(__u64 *ctx) \
	{                           \
		return 0;               \
	}

EMPTY(cgroup_mkdir)
EMPTY(cgroup_rmdir)
EMPTY(cgroup_attach_task)
EMPTY(io_uring_submit_req)
EMPTY(sched_process_exec)
EMPTY(sched_process_exit)
EMPTY(sched_process_fork)
EMPTY(sched_process_free)
EMPTY(signal_generate)
EMPTY(sys_enter)
EMPTY(sys_exit)
EMPTY(task_newtask)

/* Hooks that the probe does not use. */
#define TRACEPOINT(call)                      \
	SEC("tracepoint/syscalls/sys_exit_" #call) \
	int exit_of_##call(void *ctx)              \
	{                                          \
		return 0;                              \
	}

TRACEPOINT(openat)
TRACEPOINT(close)
TRACEPOINT(pread64)
TRACEPOINT(pwrite64)
TRACEPOINT(chdir)

#define FEXIT(function)        \
	SEC("fexit/" #function)    \
	int after_##function(__u64 *ctx) \
	{                          \
		return 0;              \
	}

FEXIT(do_sys_openat2)
FEXIT(ksys_pread64)
FEXIT(ksys_pwrite64)

char LICENSE[] SEC("license") = "Dual BSD/GPL";
