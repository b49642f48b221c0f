/* Opens and reads the file that it is given through io_uring, without a library. 77: the kernel or a sandbox refuses. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

static struct io_uring_params params;
static int ring;
static char *submissions;
static char *completions;
static struct io_uring_sqe *entries;

static int submit(const struct io_uring_sqe *entry)
{
	unsigned *tail = (unsigned *)(submissions + params.sq_off.tail);
	unsigned *mask = (unsigned *)(submissions + params.sq_off.ring_mask);
	unsigned *array = (unsigned *)(submissions + params.sq_off.array);
	unsigned *head = (unsigned *)(completions + params.cq_off.head);
	unsigned *completion_mask = (unsigned *)(completions + params.cq_off.ring_mask);
	struct io_uring_cqe *done = (struct io_uring_cqe *)(completions + params.cq_off.cqes);
	int result;

	entries[*tail & *mask] = *entry;
	array[*tail & *mask] = *tail & *mask;
	__atomic_store_n(tail, *tail + 1, __ATOMIC_RELEASE);
	if (syscall(SYS_io_uring_enter, ring, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) != 1)
		return -errno;
	result = done[*head & *completion_mask].res;
	__atomic_store_n(head, *head + 1, __ATOMIC_RELEASE);
	return result;
}

int main(int count, char **arguments)
{
	struct io_uring_sqe open_it = { .opcode = IORING_OP_OPENAT, .fd = AT_FDCWD, .open_flags = O_RDONLY };
	struct io_uring_sqe read_it = { .opcode = IORING_OP_READ };
	char text[64] = "";

	if (count != 2)
		return 1;
	ring = syscall(SYS_io_uring_setup, 4, &params);
	if (ring < 0) {
		fprintf(stderr, "io_uring_setup: %s\n", strerror(errno));
		return 77;
	}
	submissions = mmap(NULL, params.sq_off.array + params.sq_entries * sizeof(unsigned), PROT_READ | PROT_WRITE,
			   MAP_SHARED, ring, IORING_OFF_SQ_RING);
	completions = mmap(NULL, params.cq_off.cqes + params.cq_entries * sizeof(struct io_uring_cqe),
			   PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_CQ_RING);
	entries = mmap(NULL, params.sq_entries * sizeof(struct io_uring_sqe), PROT_READ | PROT_WRITE, MAP_SHARED, ring,
		       IORING_OFF_SQES);
	if (submissions == MAP_FAILED || completions == MAP_FAILED || entries == MAP_FAILED)
		return 1;
	open_it.addr = (unsigned long)arguments[1];
	read_it.fd = submit(&open_it);
	if (read_it.fd < 0)
		return 2;
	read_it.addr = (unsigned long)text;
	read_it.len = sizeof(text) - 1;
	if (submit(&read_it) <= 0)
		return 3;
	printf("%s", text);
	return 0;
}
