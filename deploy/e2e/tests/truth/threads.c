/* Threads that open files, two of them in a working directory of their own; then one of those runs this program again, while
 * the others wait; the same in a child; then the first thread runs another program. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static char *self;
static char *next;
static pthread_barrier_t all_there;

static void touch(const char *what, long number)
{
	char name[32];

	snprintf(name, sizeof(name), "%s-%ld", what, number);
	close(open(name, O_CREAT | O_WRONLY, 0600));
	unlink(name);
}

static void *work(void *number)
{
	touch("thread", (long)number);
	if ((long)number == 1 || (long)number == 3) {
		if (unshare(CLONE_FS) || chdir("sub"))
			exit(1);
		touch("own", (long)number);
	}
	pthread_barrier_wait(&all_there);
	if ((long)number == 3) {
		execl(self, self, next, NULL);
		exit(1);
	}
	for (;;)
		pause();
}

static void run_from_thread(char *step)
{
	pthread_t thread;

	next = step;
	pthread_barrier_init(&all_there, NULL, 5);
	for (long number = 0; number < 4; number++)
		pthread_create(&thread, NULL, work, (void *)number);
	pthread_barrier_wait(&all_there);
	for (;;)
		pause();
}

int main(int count, char **arguments)
{
	const char *step = count > 1 ? arguments[1] : "first";
	int status = 0;

	self = arguments[0];
	touch(step, count);
	if (!strcmp(step, "first"))
		run_from_thread("second");
	if (!strcmp(step, "second")) {
		if (fork() == 0)
			run_from_thread("third");
		if (wait(&status) < 0 || status)
			return 1;
		execl("/bin/true", "true", NULL);
	}
	return strcmp(step, "third") != 0;
}
