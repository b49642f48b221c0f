/* vfork with an exec, with one that fails, and with none; posix_spawn with file actions; posix_spawnp along a PATH. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <spawn.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

static void wait_for(pid_t pid, int expected)
{
	int status = -1;

	if (pid <= 0 || waitpid(pid, &status, 0) != pid || WEXITSTATUS(status) != expected)
		exit(1);
}

int main(void)
{
	char *arguments[] = { "cat", "input", NULL };
	posix_spawn_file_actions_t actions;
	pid_t pid;

	pid = vfork();
	if (pid == 0) {
		execl("/bin/true", "true", NULL);
		_exit(1);
	}
	wait_for(pid, 0);

	pid = vfork();
	if (pid == 0) {
		execl("./missing", "missing", NULL);
		_exit(3);
	}
	wait_for(pid, 3);

	pid = vfork();
	if (pid == 0) {
		close(open("by-vfork", O_CREAT | O_WRONLY, 0600));
		_exit(0);
	}
	wait_for(pid, 0);

	posix_spawn_file_actions_init(&actions);
	posix_spawn_file_actions_addchdir_np(&actions, "sub");
	posix_spawn_file_actions_addopen(&actions, 1, "output", O_CREAT | O_WRONLY | O_TRUNC, 0600);
	if (posix_spawn(&pid, "/bin/cat", &actions, NULL, arguments, environ))
		return 1;
	wait_for(pid, 0);

	setenv("PATH", "/missing:/usr/bin", 1);
	if (posix_spawnp(&pid, "cat", NULL, NULL, arguments, environ))
		return 1;
	wait_for(pid, 0);
	return posix_spawn(&pid, "./missing", NULL, NULL, arguments, environ) == 0;
}
