/* Programs run by descriptor, by a directory's descriptor, from memory; scripts by path, by descriptor, and in a chain. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

static char *arguments[] = { "x", NULL };

static int failed;

static void run(const char *what, int dir, const char *path, int flags)
{
	int status = -1;

	if (fork() == 0) {
		syscall(SYS_execveat, dir, path, arguments, environ, flags);
		_exit(9);
	}
	wait(&status);
	if (status) {
		printf("%s: %x\n", what, status);
		failed = 1;
	}
}

int main(void)
{
	int program = open("/bin/true", O_PATH);
	int dir = open("sub", O_RDONLY | O_DIRECTORY);
	int script = open("sub/script", O_RDONLY);
	int memory = memfd_create("in memory", 0);
	int file = open("/bin/true", O_RDONLY);
	struct stat stat;

	fstat(file, &stat);
	if (sendfile(memory, file, NULL, stat.st_size) != stat.st_size)
		return 1;
	run("descriptor", program, "", AT_EMPTY_PATH);
	run("in a directory", dir, "program", 0);
	run("a symlink in a directory", dir, "link", 0);
	run("memory", memory, "", AT_EMPTY_PATH);
	run("here", AT_FDCWD, "sub/../sub/program", 0);
	run("script", AT_FDCWD, "sub/script", 0);
	run("chain", dir, "chain", 0);
	run("script by descriptor", script, "", AT_EMPTY_PATH);
	run("absolute", dir, "/bin/true", 0);
	program = open("sub/doomed", O_PATH);
	if (unlink("sub/doomed"))
		return 1;
	run("deleted", program, "", AT_EMPTY_PATH);
	if (fork() == 0) {
		fexecve(memory, arguments, environ);
		_exit(9);
	}
	wait(NULL);
	return failed;
}
