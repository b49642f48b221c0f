/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* open, delete, rename, as they return. */
#ifndef GLASSHOUSE_FILE_H
#define GLASSHOUSE_FILE_H

#include "path.h"

static __inline void finish(void *ring, struct scratch *s, struct gh_counters *count, int class)
{
	if (s->failed)
		ADD(count->lost_read[class], 1);
	else
		emit(ring, &s->record, s->used, count, class);
}

static __noinline int on_open(struct scratch *s, struct gh_counters *count, int dirfd,
			      const char *string)
{
	struct gh_open *open = &s->record.body.open;
	struct file *file = NULL;

	open->flags = 0;
	if (open->result >= 0)
		file = file_of(open->result);
	if (file) {
		if (KREAD(file, f_mode) & FMODE_CREATED)
			open->flags |= GH_OPEN_CREATED;
		add_walked(s, KREAD(file, f_path.dentry), KREAD(file, f_path.mnt), &open->path);
	} else {
		/* It failed, or another thread closed the descriptor already. */
		add_user(s, dirfd, string, open->result, &open->path);
	}
	finish(&activity_ring, s, count, GH_CLASS_FILE);
	return 0;
}

static __noinline int on_delete(struct scratch *s, struct gh_counters *count, int dirfd,
				const char *string)
{
	struct gh_delete *del = &s->record.body.del;

	add_user(s, dirfd, string, del->result, &del->path);
	finish(&activity_ring, s, count, GH_CLASS_FILE);
	return 0;
}

struct rename_args {
	const char *from;
	const char *to;
	int from_dirfd;
	int to_dirfd;
};

static __noinline int on_rename(struct scratch *s, struct gh_counters *count, struct rename_args *args)
{
	struct gh_rename *rename = &s->record.body.rename;

	add_user(s, args->from_dirfd, args->from, rename->result, &rename->from);
	add_user(s, args->to_dirfd, args->to, rename->result, &rename->to);
	finish(&activity_ring, s, count, GH_CLASS_FILE);
	return 0;
}

#endif
