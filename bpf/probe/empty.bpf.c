// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * An empty program per hook: what a hook costs whatever a program does there. The bench `cost` attaches those of the
 * hooks that the probe attaches and compares the probe with them.
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

char LICENSE[] SEC("license") = "Dual BSD/GPL";
