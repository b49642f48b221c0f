/* A tree of 32 processes, each the child of the one before; every one makes a file and removes it, the last runs a program. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

enum { DEPTH = 32 };

static void level(int number)
{
	char name[32];
	int status = 0;

	snprintf(name, sizeof(name), "level-%d", number);
	close(open(name, O_CREAT | O_WRONLY | O_EXCL, 0600));
	if (number == DEPTH) {
		execl("/bin/true", "true", NULL);
		_exit(1);
	}
	if (fork() == 0)
		level(number + 1);
	if (wait(&status) < 0 || status || unlink(name))
		_exit(1);
	_exit(0);
}

int main(void)
{
	level(1);
}
