/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* open, delete, rename, as they return. */
#ifndef GLASSHOUSE_FILE_H
#define GLASSHOUSE_FILE_H

#include "path.h"

__noinline int on_open(struct scratch *s, struct gh_counters *count, int dirfd, __u64 string)
{
	struct file *file = NULL;
	struct gh_open *open;

	if (!s || !count)
		return 0;
	open = &s->record.body.open;
	open->flags = 0;
	if (open->result >= 0)
		file = file_of(open->result);
	if (file) {
		if (KREAD(file, f_mode) & FMODE_CREATED)
			open->flags |= GH_OPEN_CREATED;
		add_walked(s, (__u64)&file->f_path, &open->path);
	} else {
		/* It failed, or another thread closed the descriptor already. */
		add_user(s, dirfd, string, open->result, &open->path);
	}
	finish(&activity_ring, s, count, GH_CLASS_FILE);
	return 0;
}

__noinline int on_delete(struct scratch *s, struct gh_counters *count, int dirfd, __u64 string)
{
	struct gh_delete *del;

	if (!s || !count)
		return 0;
	del = &s->record.body.del;
	add_user(s, dirfd, string, del->result, &del->path);
	finish(&activity_ring, s, count, GH_CLASS_FILE);
	return 0;
}

struct rename_args {
	__u64 from;
	__u64 to;
	int from_dirfd;
	int to_dirfd;
};

__noinline int on_rename(struct scratch *s, struct gh_counters *count, struct rename_args *args)
{
	struct gh_rename *rename;

	if (!s || !count || !args)
		return 0;
	rename = &s->record.body.rename;
	add_user(s, args->from_dirfd, args->from, rename->result, &rename->from);
	add_user(s, args->to_dirfd, args->to, rename->result, &rename->to);
	finish(&activity_ring, s, count, GH_CLASS_FILE);
	return 0;
}

#endif
