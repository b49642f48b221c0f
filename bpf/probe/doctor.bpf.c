// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* One minimal program per type: `doctor` loads and attaches each to say what this kernel really allows. */
#include "helpers.h"

SEC("tp_btf/sched_process_exec")
int doctor_tp_btf(__u64 *ctx)
{
	return 0;
}

SEC("raw_tp/sched_process_exec")
int doctor_raw_tp(__u64 *ctx)
{
	return 0;
}

SEC("tracepoint/sched/sched_process_exec")
int doctor_tracepoint(void *ctx)
{
	return 0;
}

SEC("fentry/do_exit")
int doctor_fentry(__u64 *ctx)
{
	return 0;
}

SEC("lsm/file_open")
int doctor_lsm(__u64 *ctx)
{
	return 0;
}

SEC("kprobe/do_exit")
int doctor_kprobe(void *ctx)
{
	return 0;
}

SEC("cgroup/connect4")
int doctor_cgroup_connect4(void *ctx)
{
	return 1;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
