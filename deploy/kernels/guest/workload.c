/*
 * What is watched on every kernel: `workload DIR` and `workload DIR bypass`, where DIR is not there yet. It does each kind of
 * thing once, one after the other, so that two receipts of it can only differ by the kernel.
 * It says on stderr which step went otherwise than expected, because then the receipts may differ for a good reason.
 *
 * All of the first is within sight of the probe: its receipt must be closed. What `bypass` does changes what paths and
 * processes mean: its receipt must be partial, and say why in the same words.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

static char *self;
static char *dir;

#define EXPECT(what)                                                                                                   \
	do {                                                                                                           \
		if (!(what))                                                                                           \
			fprintf(stderr, "line %d: %s: %s\n", __LINE__, #what, strerror(errno));                        \
	} while (0)

static void touch(const char *path)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644);

	EXPECT(fd >= 0);
	EXPECT(write(fd, "x", 1) == 1);
	EXPECT(close(fd) == 0);
}

/* Runs `step` in a child; returns how that ended. */
static int in_child(void (*step)(void))
{
	int status = 0;
	pid_t pid = fork();

	if (pid == 0) {
		step();
		_exit(0);
	}
	EXPECT(waitpid(pid, &status, 0) == pid);
	return status;
}

static void files(void)
{
	struct open_how how = {.flags = O_RDONLY, .resolve = RESOLVE_BENEATH};
	char buffer[8];
	int fd, at;

	touch("relative");
	EXPECT(mkdir("sub", 0755) == 0);
	at = open("sub", O_RDONLY | O_DIRECTORY);
	fd = openat(at, "at", O_WRONLY | O_CREAT, 0600);
	EXPECT(fd >= 0 && close(fd) == 0);
	fd = (int)syscall(SYS_openat2, at, "at", &how, sizeof(how));
	EXPECT(fd >= 0 && close(fd) == 0);
	fd = openat(at, "../relative", O_RDONLY);
	EXPECT(fd >= 0 && read(fd, buffer, sizeof(buffer)) == 1 && close(fd) == 0);
	EXPECT(open("none/such", O_RDONLY) < 0);
	EXPECT(openat(at, "at", O_WRONLY | O_CREAT | O_EXCL, 0600) < 0);

	touch("renamed-from");
	EXPECT(rename("renamed-from", "renamed-to") == 0);
	EXPECT(renameat(at, "at", at, "at-renamed") == 0);
	touch("a");
	touch("b");
	EXPECT(renameat2(AT_FDCWD, "a", AT_FDCWD, "b", RENAME_EXCHANGE) == 0);
	EXPECT(renameat2(AT_FDCWD, "a", AT_FDCWD, "b", RENAME_NOREPLACE) < 0);
	EXPECT(rename("none", "nowhere") < 0);

	touch("gone");
	EXPECT(unlink("gone") == 0);
	EXPECT(unlink("gone") < 0);
	EXPECT(unlinkat(at, "at-renamed", 0) == 0);
	EXPECT(mkdirat(at, "deep", 0700) == 0);
	EXPECT(unlinkat(at, "deep", AT_REMOVEDIR) == 0);
	EXPECT(mkdir("empty", 0755) == 0);
	EXPECT(rmdir("empty") == 0);

	EXPECT(symlink("relative", "symbolic") == 0);
	EXPECT(link("relative", "hard") == 0);
	EXPECT(mknod("fifo", S_IFIFO | 0600, 0) == 0);
	fd = open("symbolic", O_RDONLY);
	EXPECT(fd >= 0 && close(fd) == 0);
	EXPECT(chmod("relative", 0600) == 0);
	EXPECT(fchmodat(at, "../b", 0640, 0) == 0);
	EXPECT(chown("relative", 1, 1) == 0);
	EXPECT(truncate("relative", 3) == 0);
	fd = open("b", O_RDWR | O_APPEND);
	EXPECT(fd >= 0 && ftruncate(fd, 5) == 0 && fchmod(fd, 0600) == 0 && fchown(fd, 2, 2) == 0 && close(fd) == 0);
	EXPECT(utimensat(AT_FDCWD, "relative", NULL, 0) == 0);
	fd = open(".", O_TMPFILE | O_RDWR, 0600);
	EXPECT(fd >= 0 && close(fd) == 0);
	fd = memfd_create("memory", MFD_CLOEXEC);
	EXPECT(fd >= 0 && close(fd) == 0);
	fd = open("/proc/self/comm", O_RDONLY);
	EXPECT(fd >= 0 && close(fd) == 0);
	fd = open("/dev/null", O_WRONLY);
	EXPECT(fd >= 0 && close(fd) == 0);
	close(at);

	/* A path that is longer than any buffer of a probe's, in components and in bytes. */
	for (int depth = 0; depth < 40; depth++) {
		EXPECT(mkdir("a-directory-with-a-rather-long-name-so-that-the-path-grows", 0755) == 0);
		EXPECT(chdir("a-directory-with-a-rather-long-name-so-that-the-path-grows") == 0);
	}
	touch("deep-file");
	EXPECT(chdir(dir) == 0);
}

static void *a_thread(void *unused)
{
	touch("by-a-thread");
	return unused;
}

static void exec_self(void)
{
	execl(self, self, dir, "child", "an argument with spaces", (char *)NULL);
	_exit(127);
}

static void exec_nothing(void)
{
	execl("./no-such-program", "no-such-program", (char *)NULL);
	_exit(5);
}

static void as_nobody(void)
{
	EXPECT(setgid(65534) == 0);
	EXPECT(setuid(65534) == 0);
	EXPECT(open("by-nobody", O_WRONLY | O_CREAT, 0600) < 0);
}

static void mount_and_write(void)
{
	EXPECT(unshare(CLONE_NEWNS) == 0);
	EXPECT(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0);
	EXPECT(mkdir("mounted", 0755) == 0);
	EXPECT(mount("inner", "mounted", "tmpfs", 0, NULL) == 0);
	touch("mounted/inside");
	EXPECT(umount("mounted") == 0);
}

static void in_a_root(void)
{
	EXPECT(chroot("jail") == 0);
	EXPECT(chdir("/") == 0);
	touch("/in-the-root");
}

static void traced(void)
{
	EXPECT(ptrace(PTRACE_TRACEME, 0, NULL, NULL) == 0);
}

static void processes(void)
{
	pthread_t thread;
	pid_t pid;
	int status;

	EXPECT(WEXITSTATUS(in_child(exec_self)) == 3);
	EXPECT(WEXITSTATUS(in_child(exec_nothing)) == 5);
	EXPECT(pthread_create(&thread, NULL, a_thread, NULL) == 0 && pthread_join(thread, NULL) == 0);
	pid = fork();
	if (pid == 0) {
		/* Stopped before it is killed, so that it always dies at the same place. */
		raise(SIGSTOP);
		_exit(6);
	}
	EXPECT(waitpid(pid, &status, WUNTRACED) == pid && WIFSTOPPED(status));
	EXPECT(kill(pid, SIGKILL) == 0);
	EXPECT(waitpid(pid, &status, 0) == pid && WTERMSIG(status) == SIGKILL);
	pid = vfork();
	if (pid == 0) {
		execl(self, self, dir, "child", "after vfork", (char *)NULL);
		_exit(127);
	}
	EXPECT(waitpid(pid, &status, 0) == pid && WEXITSTATUS(status) == 3);
	in_child(as_nobody);
}

static int bypass(void)
{
	EXPECT(mkdir("jail", 0755) == 0);
	in_child(mount_and_write);
	in_child(in_a_root);
	in_child(traced);
	return 0;
}

static void sockets(void)
{
	/* A query for example.test, type A. */
	static const char query[] = "\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x07" "example\x04" "test\x00\x00\x01\x00\x01";
	struct sockaddr_in four = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	struct sockaddr_in6 six = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT, .sin6_port = htons(9)};
	struct sockaddr_un local = {.sun_family = AF_UNIX};
	socklen_t length = sizeof(four);
	int listener, client, server, pair[2];

	/* Nobody is there. */
	four.sin_port = htons(9);
	client = socket(AF_INET, SOCK_STREAM, 0);
	EXPECT(connect(client, (void *)&four, sizeof(four)) < 0 && errno == ECONNREFUSED);
	close(client);
	client = socket(AF_INET6, SOCK_STREAM, 0);
	EXPECT(connect(client, (void *)&six, sizeof(six)) < 0);
	close(client);

	/* Somebody is. */
	listener = socket(AF_INET, SOCK_STREAM, 0);
	four.sin_port = 0;
	EXPECT(bind(listener, (void *)&four, sizeof(four)) == 0 && listen(listener, 1) == 0);
	EXPECT(getsockname(listener, (void *)&four, &length) == 0);
	client = socket(AF_INET, SOCK_STREAM, 0);
	EXPECT(connect(client, (void *)&four, sizeof(four)) == 0);
	server = accept(listener, NULL, NULL);
	EXPECT(server >= 0 && send(client, "x", 1, 0) == 1);
	close(server);
	close(client);
	close(listener);

	/* Datagrams: connected, and with an address each; a DNS query. */
	four.sin_port = htons(9);
	client = socket(AF_INET, SOCK_DGRAM, 0);
	EXPECT(connect(client, (void *)&four, sizeof(four)) == 0 && send(client, "x", 1, 0) == 1);
	close(client);
	four.sin_port = htons(53);
	client = socket(AF_INET, SOCK_DGRAM, 0);
	EXPECT(sendto(client, query, sizeof(query) - 1, 0, (void *)&four, sizeof(four)) == sizeof(query) - 1);
	close(client);

	strcpy(local.sun_path, "socket");
	client = socket(AF_UNIX, SOCK_STREAM, 0);
	EXPECT(connect(client, (void *)&local, sizeof(local)) < 0);
	close(client);
	listener = socket(AF_UNIX, SOCK_STREAM, 0);
	EXPECT(bind(listener, (void *)&local, sizeof(local)) == 0 && listen(listener, 1) == 0);
	client = socket(AF_UNIX, SOCK_STREAM, 0);
	EXPECT(connect(client, (void *)&local, sizeof(local)) == 0);
	server = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
	EXPECT(server >= 0);
	close(server);
	close(client);
	close(listener);
	EXPECT(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0 && close(pair[0]) == 0 && close(pair[1]) == 0);
}

int main(int argc, char *argv[])
{
	self = argv[0];
	if (argc < 2)
		return 2;
	dir = argv[1];
	umask(022);
	if (argc > 2 && strcmp(argv[2], "child") == 0) {
		EXPECT(chdir(dir) == 0);
		touch("by-the-child");
		return 3;
	}
	EXPECT(mkdir(dir, 0755) == 0);
	EXPECT(chdir(dir) == 0);
	if (argc > 2)
		return bypass();
	files();
	processes();
	sockets();
	return 0;
}
