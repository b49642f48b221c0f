/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Files: opened, mapped, changed, read and written. Called as the system call returns. */
#ifndef GLASSHOUSE_FILE_H
#define GLASSHOUSE_FILE_H

#include "task.h"

/* So that one file opened, mapped and inherited has three entries. */
enum { AS_OPENED = 1, AS_MAPPED = 2, AS_INHERITED = 3 };

static __inline __u64 key_of(const struct scratch *s, __u64 as, __u64 flags)
{
	__u64 key = s->identity ? mix(mix(s->identity, as), flags) : 0;

	/* The low bits choose the entry. */
	return key;
}

/* Which file it is, whatever the address: both are those of the next file only if it is the same. */
static __inline __u64 inode_of(struct file *file)
{
	struct inode *inode = CAST(FIELD(CAST(file), f_inode));

	return FIELD(inode, i_ino) ^ (__u64)FIELD(inode, i_generation) << 32;
}

/* From now on `fd` is known to be this file, told of in this entry. */
static __inline void remember(struct task *t, int fd, struct file *file, __u64 key)
{
	struct descriptor *d = &t->descriptors[fd & (DESCRIPTORS - 1)];

	d->fd = fd;
	d->file = (__u64)file;
	d->inode = inode_of(file);
	d->key = key;
	d->entry = key & (GH_SEEN - 1);
	d->kind = key ? DESCRIPTOR_FILE : DESCRIPTOR_FREE;
}

__noinline int on_open(struct task *t, struct scratch *s, struct gh_counters *count, struct call *call)
{
	struct gh_open *open = &s->record.body.open;
	struct seen *e = NULL;
	struct file *file = NULL;
	__u64 flags = 0;
	__u32 open_flags = 0;
	__u64 key = 0;
	int dirfd;

	if (!t || !s || !count || !call)
		return 0;
	dirfd = call->dirfd ? (int)s->args[call->dirfd & 7] : AT_FDCWD;
	if (s->nr == NR_openat2) {
		/* The first field of struct open_how. */
		bpf_probe_read_user(&flags, sizeof(flags), (void *)s->args[3]);
	} else if (!call->value) {
		flags = O_CREAT_WRONLY_TRUNC;
	} else {
		/* An int: whatever stands above it in the register is not the caller's. */
		flags = (__u32)s->args[call->value & 7];
	}
	if (s->result >= 0)
		file = file_of(s->result);
	if (file) {
		if (KREAD(file, f_mode) & FMODE_CREATED)
			open_flags |= GH_OPEN_CREATED;
		if (s->nr == NR_openat2)
			/* The caller's memory may have changed since the kernel read it. */
			flags = KREAD(file, f_flags) | (open_flags & GH_OPEN_CREATED ? O_CREAT : flags & O_CREAT);
		identify_now(s, (__u64)&file->f_path);
		key = key_of(s, AS_OPENED, flags << 1 | open_flags);
		if (key) {
			e = &t->seen[key & (GH_SEEN - 1)];
			if (e->key == key) {
				e->again++;
				if (is_old(e))
					flush_entry(t, s, count, key & (GH_SEEN - 1));
				remember(t, s->result, file, key);
				return 0;
			}
			e = claim(t, s, count, key);
		}
	}
	ADD(count->observed[GH_CLASS_FILE], 1);
	s->used = 0;
	begin(&s->record, &t->watch, bpf_get_current_task_btf(), GH_KIND_OPEN);
	open->result = s->result;
	open->open_flags = flags;
	open->flags = open_flags;
	open->syscall = s->nr;
	open->entry.task = t->number;
	open->entry.index = key ? (key & (GH_SEEN - 1)) + 1 : 0;
	if (file)
		add_walked(s, (__u64)&file->f_path, &open->path);
	else
		/* It failed, or another thread closed the descriptor already. */
		add_user(s, dirfd, s->args[call->path & 7], s->result, &open->path);
	if (!finish_activity(s, count, GH_CLASS_FILE) && e)
		fill(t, e, key);
	if (file)
		remember(t, s->result, file, e && e->key ? key : 0);
	return 0;
}

struct mapping {
	__u64 file;
};

static long vma_step(struct task_struct *task, struct vm_area_struct *vma, struct mapping *mapping)
{
	mapping->file = (__u64)KREAD(vma, vm_file);
	return 0;
}

/* An executable mapping of a file, by mmap or mprotect: a library, or code that came in otherwise. */
__noinline int on_map(struct task *t, struct scratch *s, struct gh_counters *count, __u32 protects)
{
	struct mapping mapping = {};
	struct gh_change *change = &s->record.body.change;
	struct file *file;
	struct seen *e;
	__u64 writable;
	__u64 key;

	if (!t || !s || !count)
		return 0;
	if (protects) {
		/* The kernel gives up when the address space is being changed. */
		if (bpf_find_vma(bpf_get_current_task_btf(), s->args[1], vma_step, &mapping, 0))
			return lose(count, GH_CLASS_FILE);
		file = (void *)mapping.file;
		/* Memory without a file. */
		if (!file)
			return 0;
	} else {
		file = file_of(s->args[5]);
		if (!file)
			return lose(count, GH_CLASS_FILE);
	}
	writable = s->args[3] & PROT_WRITE ? 1 : 0;
	identify(s, (__u64)&file->f_path);
	key = key_of(s, AS_MAPPED, writable);
	e = &t->seen[key & (GH_SEEN - 1)];
	if (key && e->key == key) {
		e->again++;
		if (is_old(e))
			flush_entry(t, s, count, key & (GH_SEEN - 1));
		return 0;
	}
	if (key)
		e = claim(t, s, count, key);
	ADD(count->observed[GH_CLASS_FILE], 1);
	s->used = 0;
	begin(&s->record, &t->watch, bpf_get_current_task_btf(), GH_KIND_CHANGE);
	change->result = 0;
	change->value = writable;
	change->change = GH_CHANGE_MAP_EXECUTABLE;
	change->syscall = s->nr;
	change->entry.task = t->number;
	change->entry.index = key ? (key & (GH_SEEN - 1)) + 1 : 0;
	__builtin_memset(&change->other, 0, sizeof(change->other));
	add_walked(s, (__u64)&file->f_path, &change->path);
	if (!finish_activity(s, count, GH_CLASS_FILE) && key)
		fill(t, e, key);
	return 0;
}

__noinline int on_delete(struct task *t, struct scratch *s, struct gh_counters *count, struct call *call)
{
	struct gh_delete *del = &s->record.body.del;
	int dirfd;

	if (!t || !s || !count || !call)
		return 0;
	ADD(count->observed[GH_CLASS_FILE], 1);
	begin(&s->record, &t->watch, bpf_get_current_task_btf(), GH_KIND_DELETE);
	dirfd = call->dirfd ? (int)s->args[call->dirfd & 7] : AT_FDCWD;
	del->result = s->result;
	del->directory = call->value ? !!(s->args[call->value & 7] & AT_REMOVEDIR) : is_rmdir(s->nr);
	del->syscall = s->nr;
	add_user(s, dirfd, s->args[call->path & 7], s->result, &del->path);
	return finish_activity(s, count, GH_CLASS_FILE);
}

__noinline int on_rename(struct task *t, struct scratch *s, struct gh_counters *count, struct call *call)
{
	struct gh_rename *rename = &s->record.body.rename;

	if (!t || !s || !count || !call)
		return 0;
	ADD(count->observed[GH_CLASS_FILE], 1);
	begin(&s->record, &t->watch, bpf_get_current_task_btf(), GH_KIND_RENAME);
	rename->result = s->result;
	rename->rename_flags = call->value ? s->args[call->value & 7] : 0;
	rename->syscall = s->nr;
	add_user(s, call->dirfd ? (int)s->args[call->dirfd & 7] : AT_FDCWD, s->args[call->path & 7], s->result,
		 &rename->from);
	add_user(s, call->other_dirfd ? (int)s->args[call->other_dirfd & 7] : AT_FDCWD, s->args[call->other & 7],
		 s->result, &rename->to);
	return finish_activity(s, count, GH_CLASS_FILE);
}

/* Appends text that the caller passed; what can't be read is left out. */
static __inline void add_text(struct scratch *s, __u64 address, struct gh_path *out)
{
	__u32 used = s->used;
	long bytes;

	__builtin_memset(out, 0, sizeof(*out));
	if (used > PAYLOAD_BYTES - (GH_PATH_BYTES + 2))
		return;
	bytes = bpf_probe_read_user_str(s->payload + used, GH_PATH_BYTES + 2, (void *)address);
	if (bytes <= 0)
		return;
	bytes -= 1;
	if (bytes > GH_PATH_BYTES) {
		bytes = GH_PATH_BYTES;
		out->flags |= GH_PATH_TRUNCATED;
	}
	out->user_bytes = bytes;
	s->used = used + bytes;
}

__noinline int on_change(struct task *t, struct scratch *s, struct gh_counters *count, struct call *call)
{
	struct gh_change *change = &s->record.body.change;
	struct file *file;
	int dirfd;

	if (!t || !s || !count || !call)
		return 0;
	ADD(count->observed[GH_CLASS_FILE], 1);
	begin(&s->record, &t->watch, bpf_get_current_task_btf(), GH_KIND_CHANGE);
	dirfd = call->dirfd ? (int)s->args[call->dirfd & 7] : AT_FDCWD;
	change->result = s->result;
	change->change = call->kind;
	change->syscall = s->nr;
	change->entry.task = 0;
	change->entry.index = 0;
	change->value = call->value ? s->args[call->value & 7] : 0;
	/* A mode is 16 bits and flags an int: what stands above in the register is not the caller's. */
	if (call->kind == GH_CHANGE_MODE || call->kind == GH_CHANGE_MKDIR || call->kind == GH_CHANGE_MKNOD)
		change->value = (__u16)change->value;
	else if (call->kind == GH_CHANGE_UNMOUNT || call->kind == GH_CHANGE_MOVE_MOUNT)
		change->value = (__u32)change->value;
	if (call->kind == GH_CHANGE_OWNER)
		change->value = change->value << 32 | (__u32)s->args[(call->value + 1) & 7];
	if (call->path) {
		add_user(s, dirfd, s->args[call->path & 7], s->result, &change->path);
	} else {
		file = file_of(dirfd);
		if (file) {
			add_path(s, (__u64)&file->f_path, &change->path);
		} else {
			__builtin_memset(&change->path, 0, sizeof(change->path));
			change->path.flags = GH_PATH_USER | GH_PATH_UNREADABLE;
			if (s->result >= 0)
				s->failed = 1;
		}
	}
	if (!call->other)
		__builtin_memset(&change->other, 0, sizeof(change->other));
	else if (call->other_dirfd == TEXT)
		add_text(s, s->args[call->other & 7], &change->other);
	else
		add_user(s, call->other_dirfd ? (int)s->args[call->other_dirfd & 7] : AT_FDCWD,
			 s->args[call->other & 7], s->result, &change->other);
	return finish_activity(s, count, GH_CLASS_FILE);
}

/*
 * The descriptor is this file, of which nothing was told to its task's table, or so long ago that the entry is another's.
 * Gives the entry, as a number from 1; 0 when the bytes can't be counted there.
 */
static __inline struct seen *introduce(struct task *t, struct scratch *s, struct gh_counters *count, int fd,
				       struct file *file)
{
	struct gh_file *body = &s->record.body.file;
	struct seen *e;
	__u64 key;

	identify(s, (__u64)&file->f_path);
	key = key_of(s, AS_INHERITED, 0);
	if (!key)
		return NULL;
	e = &t->seen[key & (GH_SEEN - 1)];
	if (e->key != key) {
		e = claim(t, s, count, key);
		s->used = 0;
		s->failed = 0;
		begin(&s->record, &t->watch, bpf_get_current_task_btf(), GH_KIND_FILE);
		body->entry.task = t->number;
		body->entry.index = (key & (GH_SEEN - 1)) + 1;
		add_walked(s, (__u64)&file->f_path, &body->path);
		if (s->failed || emit(&activity_ring, &s->record, s->used, s->lossless, count, GH_CLASS_FILE, 0))
			return NULL;
		fill(t, e, key);
	}
	remember(t, fd, file, key);
	return e;
}

static __inline void add_bytes(struct seen *e, long result, bool writes)
{
	if (writes) {
		e->writes++;
		e->written_bytes += result;
	} else {
		e->reads++;
		e->read_bytes += result;
	}
}

/* Sends the tally when it is old. Rarely called: it asks for the time. */
__noinline int age(struct task *t, __u32 index)
{
	struct gh_execution *execution;
	struct gh_counters *count;
	struct scratch *s;

	if (!t || !is_old(&t->seen[index & (GH_SEEN - 1)]))
		return 0;
	execution = execution_of(&t->watch);
	count = counters_of(&t->watch);
	if (!execution || execution->state != GH_STATE_RECORDING || !count)
		return 0;
	s = scratch(SCRATCH_SYS_EXIT, execution);
	if (s)
		flush_entry(t, s, count, index & (GH_SEEN - 1));
	return 0;
}

/* Whether bytes went from or to the file that the descriptor was known to be, and were counted. */
static __inline bool is_counted(struct task *t, struct task_struct *task, int fd, long result, bool writes)
{
	struct descriptor *d = &t->descriptors[fd & (DESCRIPTORS - 1)];
	struct file *file = file_in(task, fd);
	struct seen *e;

	/* The address may be that of another file by now. */
	if (d->kind != DESCRIPTOR_FILE || d->fd != fd || d->file != (__u64)file || d->inode != inode_of(file))
		return false;
	e = &t->seen[d->entry & (GH_SEEN - 1)];
	if (e->key != d->key)
		return false;
	add_bytes(e, result, writes);
	if (!((e->reads + e->writes) & 0xff))
		age(t, d->entry);
	return true;
}

static __inline __u16 type_of(struct file *file)
{
	struct inode *inode = KREAD(file, f_inode);

	return KREAD(inode, i_mode) & S_IFMT;
}

#endif
