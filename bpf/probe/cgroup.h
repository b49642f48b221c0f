/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Nested cgroups inherit; a process that leaves is counted. */
#ifndef GLASSHOUSE_CGROUP_H
#define GLASSHOUSE_CGROUP_H

#include "common.h"

/* Each v1 hierarchy numbers its own cgroups, so ids mean something only in the default one (hierarchy 0). */
static __inline bool is_v2(struct cgroup *cgroup)
{
	return cgroup->root->hierarchy_id == 0;
}

SEC("tp_btf/cgroup_mkdir")
int glasshouse_cgroup_mkdir(__u64 *ctx)
{
	struct cgroup *cgroup = (void *)ctx[0];
	struct cgroup_subsys_state *above = cgroup->self.parent;
	struct gh_watch *watch;
	struct gh_watch inherited;
	struct gh_counters *count;
	__u64 *hint;
	__u64 id;

	if (!is_v2(cgroup) || !above)
		return 0;
	watch = watched_cgroup(above->cgroup->kn->id);
	if (!watch || !execution_of(watch))
		return 0;
	inherited = *watch;
	id = cgroup->kn->id;
	hint = hint_of(id);
	if (hint)
		*hint = 1;
	if (bpf_map_update_elem(&watched, &id, &inherited, BPF_ANY)) {
		/* What happens in there will not be seen. */
		count = counters_of(&inherited);
		if (count)
			ADD(count->lost_map[GH_CLASS_OTHER], 1);
	}
	return 0;
}

SEC("tp_btf/cgroup_rmdir")
int glasshouse_cgroup_rmdir(__u64 *ctx)
{
	struct cgroup *cgroup = (void *)ctx[0];
	struct gh_execution *execution;
	struct gh_watch *watch;
	__u64 id;

	if (!is_v2(cgroup))
		return 0;
	id = cgroup->kn->id;
	watch = watched_cgroup(id);
	if (!watch)
		return 0;
	execution = execution_of(watch);
	/* The root's entry goes with the seal, in user space. */
	if (!execution || execution->root_cgroup_id != id)
		bpf_map_delete_elem(&watched, &id);
	return 0;
}

SEC("tp_btf/cgroup_attach_task")
int glasshouse_cgroup_attach(__u64 *ctx)
{
	struct cgroup *to = (void *)ctx[0];
	struct task_struct *task = (void *)ctx[2];
	struct gh_watch *from;
	struct gh_watch *into;
	struct gh_execution *execution;
	struct gh_counters *count;
	__u32 tgid;

	/*
	 * A kernel thread is nobody's process. KVM moves one of its own to the cgroup of whoever makes a machine, and away at its
	 * end (kvm_vm_worker_thread in virt/kvm/kvm_main.c).
	 */
	if (!is_v2(to) || task->flags & PF_KTHREAD)
		return 0;
	tgid = task->tgid;
	from = bpf_map_lookup_elem(&members, &tgid);
	into = watched_cgroup(to->kn->id);
	if (from && into && from->slot == into->slot && from->generation == into->generation)
		return 0;
	if (from) {
		execution = execution_of(from);
		/* While it is armed its only member is the root: where that goes, nothing would be recorded. */
		if (execution && (execution->state == GH_STATE_RECORDING || execution->state == GH_STATE_ARMED)) {
			count = counters_of(from);
			if (count)
				ADD(count->escaped, 1);
		}
		bpf_map_delete_elem(&members, &tgid);
	}
	if (!into)
		return 0;
	execution = execution_of(into);
	if (!execution)
		return 0;
	count = counters_of(into);
	if (!count)
		return 0;
	if (execution->state == GH_STATE_RECORDING) {
		ADD(count->joined, 1);
		join(into, count, tgid);
	} else if (execution->state == GH_STATE_ARMED && execution->root_tgid && execution->root_tgid != tgid) {
		/* It will act beside the root. */
		ADD(count->joined, 1);
	} else if (execution->state == GH_STATE_ARMED && execution->root_tgid) {
		/* The root, brought (back) in. */
		join(into, count, tgid);
	}
	return 0;
}

#endif
