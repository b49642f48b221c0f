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
/*
 * Steps of one call of bpf_loop(): where returns are guarded against speculation (`spec_rstack_overflow: Safe RET`), each
 * costs more than the step. Few paths take more than one.
 */
#define STEPS_AT_ONCE 8

static __inline __u64 mix(__u64 hash, __u64 value)
{
	hash = (hash ^ value) * 0x9e3779b97f4a7c15;
	return hash ^ hash >> 29;
}

/*
 * What tells this directory, under this name, from any other. Names of one hash can be made without knowing its salt
 * (hash_name() is not meant to withstand that), and a freed dentry had again for the second: it leads to another inode
 * then.
 */
static __inline __u64 value_of(__u64 address, struct dentry *dentry, __u64 hash_len)
{
	struct inode *inode = CAST(FIELD(dentry, d_inode));
	__u64 inode_id = FIELD(inode, i_ino) ^ (__u64)FIELD(inode, i_generation) << 32;
	__u64 dentry_id = address + FIELD(dentry, d_seq.seqcount.sequence);

	/* Multiplied side by side: a chain of three takes longer than what is read here. */
	return dentry_id ^ hash_len * 0xff51afd7ed558ccd ^ inode_id * 0xc4ceb9fe1a85ec53;
}

static __inline bool is_root(const struct scratch *s, struct dentry *dentry)
{
	return dentry == s->root_dentry && s->mnt == s->root_mnt;
}

/*
 * The last name of a path is looked at apart: what is before it, a directory, is often that of the path before. A path has
 * none when it ends at a root, at the top of a mount, or in what has no directory (a pipe).
 */
static __inline void begin_at(struct scratch *s, struct path *path)
{
	struct path *from = CAST(path);
	struct vfsmount *mnt = FIELD(from, mnt);
	struct dentry *dentry = KREAD(from, dentry);
	struct dentry *known = CAST(dentry);
	struct dentry *parent;

	s->dentry = dentry;
	s->mnt = mnt;
	s->mnt_root = FIELD(CAST(mnt), mnt_root);
	s->identity = s->other_root + 1;
	s->last = NULL;
	if (dentry == s->mnt_root || is_root(s, dentry))
		return;
	parent = FIELD(known, d_parent);
	if (parent == dentry || !parent)
		return;
	s->last_value = value_of((__u64)dentry, known, FIELD(known, d_name.hash_len));
	s->last = dentry;
	s->dentry = parent;
}

/* From the top of a mount to what it is mounted on. 1 at the top of a namespace. */
static __inline long step_up(struct scratch *s)
{
	struct mount *address = (void *)s->mnt - KOFFSET(struct mount, mnt);
	struct mount *mount = CAST(address);
	struct mount *up = FIELD(mount, mnt_parent);

	s->identity = mix(s->identity, (__u64)address);
	if (up == address || !up)
		return 1;
	s->dentry = FIELD(mount, mnt_mountpoint);
	s->mnt = (void *)up + KOFFSET(struct mount, mnt);
	s->mnt_root = FIELD(CAST(s->mnt), mnt_root);
	return 0;
}

static __inline long identify_step(struct scratch *s)
{
	struct dentry *dentry = s->dentry;
	struct dentry *known;
	struct dentry *parent;

	if (is_root(s, dentry))
		return 1;
	if (dentry == s->mnt_root)
		return step_up(s);
	known = CAST(dentry);
	parent = FIELD(known, d_parent);
	s->identity = mix(s->identity, value_of((__u64)dentry, known, FIELD(known, d_name.hash_len)));
	if (parent == dentry)
		return 1;
	s->dentry = parent;
	return 0;
}

static long identify_steps(__u32 round, struct walk *walk)
{
	for (int i = 0; i < STEPS_AT_ONCE; i++) {
		if (identify_step(walk->s))
			return 1;
	}
	return 0;
}

/*
 * A number for the path as it is now: another one as soon as any directory of it is renamed, removed or mounted over
 * (rename moves d_seq on; a dentry that was freed and used again has another parent, name or inode). 0 when it has none.
 * Far cheaper than the path itself.
 */
static __inline void identify_now(struct scratch *s, __u64 path_address)
{
	struct walk walk = { .s = s };
	long rounds;

	begin_at(s, (void *)path_address);
	rounds = bpf_loop(WALK_STEPS / STEPS_AT_ONCE, identify_steps, &walk, 0);
	s->directory = s->identity;
	if (s->last)
		s->identity = mix(s->identity, s->last_value);
	if (rounds < 0 || rounds >= WALK_STEPS / STEPS_AT_ONCE)
		s->identity = 0;
}

__noinline int identify(struct scratch *s, __u64 path_address)
{
	if (s)
		identify_now(s, path_address);
	return 0;
}

/*
 * Appends the name of a dentry. Its value is taken after that: as long as it is what it was before, the name was this all
 * the time. Not 0 when there is nothing to go on from.
 */
static __inline long add_name(struct scratch *s, struct dentry *dentry, struct dentry *known, __u64 *value)
{
	__u64 hash_len = FIELD(known, d_name.hash_len);
	__u32 used = s->used;
	__u32 bytes;

	if (used > PAYLOAD_BYTES - NAME_BYTES || used - s->path_start > GH_PATH_BYTES) {
		s->path_flags |= GH_PATH_TRUNCATED;
		return 1;
	}
	/* The length is above the hash; NAME_MAX is all that a file system may have. With the NUL. */
	bytes = (hash_len >> 32 & (NAME_BYTES - 1)) + 1;
	if (bpf_probe_read_kernel(s->payload + used, bytes, FIELD(known, d_name.name))) {
		s->failed = 1;
		return 1;
	}
	s->used = used + bytes;
	*value = value_of((__u64)dentry, known, hash_len);
	return 0;
}

/* As identify_step(), and appends the name. */
static __inline long walk_step(struct scratch *s)
{
	struct dentry *dentry = s->dentry;
	struct dentry *known;
	struct dentry *parent;
	__u64 value;

	if (is_root(s, dentry))
		return 1;
	if (dentry == s->mnt_root) {
		if (step_up(s)) {
			/* Without having met the root of the execution. */
			s->path_flags |= GH_PATH_UNREACHABLE;
			s->other_root_paths = 1;
			return 1;
		}
		return 0;
	}
	known = CAST(dentry);
	parent = FIELD(known, d_parent);
	if (!parent) {
		s->failed = 1;
		return 1;
	}
	if (add_name(s, dentry, known, &value))
		return 1;
	s->identity = mix(s->identity, value);
	if (parent == dentry) {
		s->path_flags |= GH_PATH_PSEUDO;
		return 1;
	}
	s->dentry = parent;
	return 0;
}

static long walk_steps(__u32 round, struct walk *walk)
{
	for (int i = 0; i < STEPS_AT_ONCE; i++) {
		if (walk_step(walk->s))
			return 1;
	}
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

static __inline bool is_unlinked(struct dentry *dentry)
{
	return !KREAD(dentry, d_hash.pprev) && KREAD(dentry, d_parent) != dentry;
}

static __inline void walk_names(struct scratch *s, __u64 path_address)
{
	struct walk walk = { .s = s };
	struct path *path = (void *)path_address;
	struct dentry *last;
	__u64 value;
	long rounds;

	s->path_flags = is_unlinked(KREAD(path, dentry)) ? GH_PATH_UNLINKED : 0;
	begin_at(s, path);
	last = s->last;
	if (last && add_name(s, last, CAST(last), &value)) {
		identify(s, path_address);
		return;
	}
	s->last_bytes = s->used - s->path_start;
	rounds = bpf_loop(WALK_STEPS / STEPS_AT_ONCE, walk_steps, &walk, 0);
	if (rounds < 0)
		s->failed = 1;
	/* Mounts are steps as well, so that a path can need more of them than it has names. */
	if (rounds >= WALK_STEPS / STEPS_AT_ONCE)
		s->path_flags |= GH_PATH_TRUNCATED;
	s->directory = s->identity;
	if (last)
		s->identity = mix(s->identity, value);
	/* What was not walked belongs to the identity too. */
	if (s->path_flags & GH_PATH_TRUNCATED)
		identify(s, path_address);
}

/* Kernels before 6.4 forget a bound when the compiler puts the number on the stack: it is set where it is used. */
#define BOUND_TO_DIRECTORY(bytes) asm volatile("%0 &= 0x1ff" : "+r"(bytes))

/* Keeps the names of the directory that was walked. */
static __inline void keep_directory(struct scratch *s)
{
	__u32 start = s->path_start + s->last_bytes;
	__u64 bytes = s->used - start;

	if (start > PAYLOAD_BYTES - DIRECTORY_BYTES || bytes >= DIRECTORY_BYTES)
		return;
	s->known_directory = 0;
	BOUND_TO_DIRECTORY(bytes);
	if (bpf_probe_read_kernel(s->known_names, bytes, s->payload + start))
		return;
	s->known_bytes = bytes;
	s->known_directory = s->directory;
}

/*
 * Appends the last name of the path that was identified, and those of its directory, which were read when that had the same
 * identity. False when either can't be had so.
 */
static __inline bool add_known(struct scratch *s)
{
	struct dentry *last = s->last;
	__u64 bytes;
	__u64 value;
	__u32 used;

	s->path_flags = 0;
	if (is_unlinked(last) || add_name(s, last, CAST(last), &value) || value != s->last_value)
		return false;
	used = s->used;
	bytes = s->known_bytes;
	BOUND_TO_DIRECTORY(bytes);
	if (used > PAYLOAD_BYTES - DIRECTORY_BYTES ||
	    bpf_probe_read_kernel(s->payload + used, bytes, s->known_names))
		return false;
	s->used = used + bytes;
	return true;
}

/*
 * Appends the names of a path that was identified just now, the last first. The result is `/` when there are none. All that
 * identify() read held at its end: every name was read later, and each is looked at again after that.
 */
__noinline int add_walked(struct scratch *s, __u64 path_address, struct gh_path *out)
{
	__u64 before;
	__u32 failed;

	if (!s || !out)
		return 0;
	s->path_start = s->used;
	before = s->identity;
	if (before && s->last && s->directory && s->directory == s->known_directory) {
		failed = s->failed;
		if (add_known(s))
			goto added;
		s->used = s->path_start;
		s->failed = failed;
	}
	walk_names(s, path_address);
	if (before && s->identity != before) {
		/* Renamed meanwhile: what was walked may be a path that never was. */
		identify(s, path_address);
		before = s->identity;
		s->used = s->path_start;
		walk_names(s, path_address);
		if (s->identity != before)
			s->path_flags |= GH_PATH_UNSTABLE;
	}
	/* Cut before it could be known where it ends. */
	if (s->other_root && s->path_flags & GH_PATH_TRUNCATED)
		s->other_root_paths = 1;
	if (s->last && before && !s->path_flags && !s->failed)
		keep_directory(s);
added:
	out->walked_bytes = s->used - s->path_start;
	out->user_bytes = 0;
	out->flags = s->path_flags;
	out->reserved = 0;
	return 0;
}

static __inline void add_path(struct scratch *s, __u64 path_address, struct gh_path *out)
{
	identify(s, path_address);
	add_walked(s, path_address, out);
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
			add_path(s, pwd(), out);
		} else {
			struct file *file = file_of(dirfd);

			if (file)
				add_path(s, (__u64)&file->f_path, out);
			else
				out->flags = GH_PATH_NO_BASE;
		}
	}
	if (s->other_root) {
		/* A string that leads up stops at a root that is not known here. */
		if (first == '/')
			add_path(s, own_root(), out);
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
