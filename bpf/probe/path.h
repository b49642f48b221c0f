/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Paths: walked from dentry and mount to the root of the execution, or read from the caller.
 *
 * The functions that are not static are verified once and not once per call, which is most of the time that loading
 * takes. The verifier knows nothing of their arguments but the sizes behind the pointers: addresses of the kernel and
 * of the caller come as numbers.
 */
#ifndef GLASSHOUSE_PATH_H
#define GLASSHOUSE_PATH_H

#include "common.h"

struct walk {
	struct scratch *s;
};

/* More names than fit GH_PATH_BYTES even if each has one letter. */
#define WALK_STEPS 2200

static long walk_step(__u32 step, struct walk *walk)
{
	struct scratch *s = walk->s;
	struct dentry *dentry = s->dentry;
	struct dentry *parent;
	__u32 used = s->used;
	long bytes;

	if (dentry == s->root_dentry && s->mnt == s->root_mnt)
		return 1;
	if (dentry == s->mnt_root) {
		struct mount *mount = (void *)s->mnt - KOFFSET(struct mount, mnt);
		struct mount *up = KREAD(mount, mnt_parent);

		if (up == mount || !up) {
			/* The top of a namespace, without having met the root of the execution. */
			s->path_flags |= GH_PATH_UNREACHABLE;
			s->other_root_paths = 1;
			return 1;
		}
		s->dentry = KREAD(mount, mnt_mountpoint);
		s->mnt = (void *)up + KOFFSET(struct mount, mnt);
		s->mnt_root = KREAD(s->mnt, mnt_root);
		return 0;
	}
	parent = KREAD(dentry, d_parent);
	if (!parent) {
		s->failed = 1;
		return 1;
	}
	if (used > PAYLOAD_BYTES - NAME_BYTES || used - s->path_start > GH_PATH_BYTES) {
		s->path_flags |= GH_PATH_TRUNCATED;
		return 1;
	}
	bytes = bpf_probe_read_kernel_str(s->payload + used, NAME_BYTES, KREAD(dentry, d_name.name));
	if (bytes <= 0) {
		s->failed = 1;
		return 1;
	}
	s->used = used + bytes;
	if (parent == dentry) {
		s->path_flags |= GH_PATH_PSEUDO;
		return 1;
	}
	s->dentry = parent;
	return 0;
}

static __inline __u64 mix(__u64 hash, __u64 value)
{
	hash = (hash ^ value) * 0x9e3779b97f4a7c15;
	return hash ^ hash >> 29;
}

static long identify_step(__u32 step, struct walk *walk)
{
	struct scratch *s = walk->s;
	struct dentry *dentry = s->dentry;
	struct dentry *parent;
	struct inode *inode;

	if (dentry == s->root_dentry && s->mnt == s->root_mnt)
		return 1;
	if (dentry == s->mnt_root) {
		struct mount *mount = (void *)s->mnt - KOFFSET(struct mount, mnt);
		struct mount *up = KREAD(mount, mnt_parent);

		s->identity = mix(s->identity, (__u64)mount);
		if (up == mount || !up)
			return 1;
		s->dentry = KREAD(mount, mnt_mountpoint);
		s->mnt = (void *)up + KOFFSET(struct mount, mnt);
		s->mnt_root = KREAD(s->mnt, mnt_root);
		return 0;
	}
	parent = KREAD(dentry, d_parent);
	s->identity = mix(s->identity, (__u64)dentry + KREAD(dentry, d_seq.seqcount.sequence));
	s->identity = mix(s->identity, KREAD(dentry, d_name.hash_len));
	/*
	 * Names of one hash can be made without knowing its salt (hash_name() is not meant to withstand that), and a freed
	 * dentry had again for the second: it leads to another inode then.
	 */
	inode = KREAD(dentry, d_inode);
	s->identity = mix(s->identity, KREAD(inode, i_ino) ^ (__u64)KREAD(inode, i_generation) << 32);
	if (parent == dentry)
		return 1;
	s->dentry = parent;
	return 0;
}

/*
 * A number for the path as it is now: another one as soon as any directory of it is renamed, removed or mounted over
 * (rename moves d_seq on; a dentry that was freed and used again has another parent, name or inode). 0 when it has none.
 * Far cheaper than the path itself.
 */
__noinline int identify(struct scratch *s, __u64 path_address)
{
	struct path *path = (void *)path_address;
	struct walk walk = { .s = s };
	struct vfsmount *mnt;
	long steps;

	if (!s)
		return 0;
	mnt = KREAD(path, mnt);
	s->dentry = KREAD(path, dentry);
	s->mnt = mnt;
	s->mnt_root = KREAD(mnt, mnt_root);
	s->identity = s->other_root + 1;
	steps = bpf_loop(WALK_STEPS, identify_step, &walk, 0);
	if (steps < 0 || steps >= WALK_STEPS)
		s->identity = 0;
	return 0;
}

/* From now on paths of `s` are those of this task, as the execution sees them. */
static __inline void see_from(struct scratch *s, const struct gh_execution *execution, struct task_struct *task)
{
	struct fs_struct *fs = KREAD(task, fs);

	s->root_dentry = (void *)execution->root_dentry;
	s->root_mnt = (void *)execution->root_mnt;
	s->other_root = KREAD(fs, root.dentry) != s->root_dentry || KREAD(fs, root.mnt) != s->root_mnt;
}

static __inline void walk_names(struct scratch *s, struct path *path)
{
	struct walk walk = { .s = s };
	struct dentry *dentry = KREAD(path, dentry);
	struct vfsmount *mnt = KREAD(path, mnt);
	long steps;

	s->path_flags = 0;
	s->dentry = dentry;
	s->mnt = mnt;
	s->mnt_root = KREAD(mnt, mnt_root);
	if (!KREAD(dentry, d_hash.pprev) && KREAD(dentry, d_parent) != dentry)
		s->path_flags |= GH_PATH_UNLINKED;
	steps = bpf_loop(WALK_STEPS, walk_step, &walk, 0);
	if (steps < 0)
		s->failed = 1;
	/* Mounts are steps as well, so that a path can need more of them than it has names. */
	if (steps >= WALK_STEPS)
		s->path_flags |= GH_PATH_TRUNCATED;
}

/* Appends the names of a path, the last first. The result is `/` when there are none. */
__noinline int add_walked(struct scratch *s, __u64 path_address, struct gh_path *out)
{
	__u64 before;

	if (!s || !out)
		return 0;
	s->path_start = s->used;
	identify(s, path_address);
	before = s->identity;
	walk_names(s, (void *)path_address);
	if (before) {
		identify(s, path_address);
		if (s->identity != before) {
			/* Renamed meanwhile: what was walked may be a path that never was. */
			before = s->identity;
			s->used = s->path_start;
			walk_names(s, (void *)path_address);
			identify(s, path_address);
			if (s->identity != before)
				s->path_flags |= GH_PATH_UNSTABLE;
		}
	}
	/* Cut before it could be known where it ends. */
	if (s->other_root && s->path_flags & GH_PATH_TRUNCATED)
		s->other_root_paths = 1;
	out->walked_bytes = s->used - s->path_start;
	out->user_bytes = 0;
	out->flags = s->path_flags;
	out->reserved = 0;
	return 0;
}

/* The address of the working directory's path, as a number. */
static __inline __u64 pwd(void)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct fs_struct *fs = KREAD(task, fs);

	return (__u64)&fs->pwd;
}

/* The same of the task's root directory. */
static __inline __u64 own_root(void)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct fs_struct *fs = KREAD(task, fs);

	return (__u64)&fs->root;
}

static __inline struct file *file_in(struct task_struct *task, int fd)
{
	struct fdtable *table = task->files->fdt;
	struct hlist_head *files = (void *)table->fd;

	if ((__u32)fd >= table->max_fds)
		return NULL;
	return KREAD(files + (__u32)fd, first);
}

static __inline struct file *file_of(int fd)
{
	return file_in(bpf_get_current_task_btf(), fd);
}

/*
 * Appends the caller's string, after the walked directory it is relative to. A string that can't be read is part of the
 * fact when the call failed (nothing was done); when it succeeded the fact is lost.
 */
__noinline int add_user(struct scratch *s, int dirfd, __u64 address, long result, struct gh_path *out)
{
	const char *string = (void *)address;
	char first = 0;
	__u32 used;
	long bytes;

	if (!s || !out)
		return 0;
	out->walked_bytes = 0;
	out->user_bytes = 0;
	out->flags = 0;
	out->reserved = 0;
	if (bpf_probe_read_user(&first, sizeof(first), string))
		goto unreadable;
	if (first != '/') {
		if (dirfd == AT_FDCWD) {
			add_walked(s, pwd(), out);
		} else {
			struct file *file = file_of(dirfd);

			if (file)
				add_walked(s, (__u64)&file->f_path, out);
			else
				out->flags = GH_PATH_NO_BASE;
		}
	}
	if (s->other_root) {
		/* A string that leads up stops at a root that is not known here. */
		if (first == '/')
			add_walked(s, own_root(), out);
		out->flags |= GH_PATH_OTHER_ROOT;
		s->other_root_paths = 1;
	}
	used = s->used;
	if (used > PAYLOAD_BYTES - (GH_PATH_BYTES + 2))
		goto unreadable;
	bytes = bpf_probe_read_user_str(s->payload + used, GH_PATH_BYTES + 2, string);
	if (bytes <= 0)
		goto unreadable;
	bytes -= 1;
	out->flags |= GH_PATH_USER;
	if (bytes > GH_PATH_BYTES) {
		bytes = GH_PATH_BYTES;
		out->flags |= GH_PATH_TRUNCATED;
	}
	out->user_bytes = bytes;
	s->used = used + bytes;
	return 0;
unreadable:
	out->flags |= GH_PATH_USER | GH_PATH_UNREADABLE;
	if (result >= 0)
		s->failed = 1;
	return 0;
}

#endif
