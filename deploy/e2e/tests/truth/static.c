/* Linked statically: nothing but its own calls, each in the form that libc does not choose, and in odd cases. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <unistd.h>

/* The calls that newer architectures do without. */
#ifdef SYS_open
#define OLD(name, ...) syscall(SYS_##name, __VA_ARGS__)
#else
#define OLD(name, ...) name(__VA_ARGS__)
#endif

static int failed;

static void check(const char *what, long result, int expected)
{
	if (expected ? result != -1 || errno != expected : result < 0) {
		fprintf(stderr, "%s: %ld %s\n", what, result, strerror(errno));
		failed = 1;
	}
}

static void let_in(int signal)
{
	(void)signal;
	open("fifo", O_RDWR | O_NONBLOCK);
}

static void nothing(int signal)
{
	(void)signal;
}

/* An open that waits until a signal comes: it fails, or is started again and succeeds. */
static void interrupted(void (*handler)(int), int flags, int expected)
{
	struct sigaction action = { .sa_handler = handler, .sa_flags = flags };
	struct itimerval soon = { .it_value = { .tv_usec = 100000 } };

	sigaction(SIGALRM, &action, NULL);
	setitimer(ITIMER_REAL, &soon, NULL);
	check("interrupted", open("fifo", O_RDONLY), expected);
}

int main(void)
{
	char again[64];
	int file;
	struct open_how how = { .flags = O_RDWR | O_CREAT | O_CLOEXEC, .mode = 0600 };
	struct open_how beneath = { .flags = O_RDONLY, .resolve = RESOLVE_BENEATH };
	int dir;

	check("open", OLD(open, "old", O_CREAT | O_RDWR, 0600), 0);
	check("creat", OLD(creat, "created", 0600), 0);
	check("mkdir", mkdir("dir", 0700), 0);
	check("mkdir", mkdir("dir/deeper", 0700), 0);
	dir = open("dir/deeper/..", O_RDONLY | O_DIRECTORY);
	check("openat", openat(dir, "../old", O_WRONLY | O_TRUNC), 0);
	check("openat", openat(dir, "new", O_WRONLY | O_CREAT | O_APPEND, 0600), 0);
	check("openat2", syscall(SYS_openat2, dir, "two", &how, sizeof(how)), 0);
	check("openat2 beneath", syscall(SYS_openat2, dir, "../old", &beneath, sizeof(beneath)), EXDEV);
	check("path", open("old", O_PATH), 0);
	check("read but truncate", open("created", O_RDONLY | O_TRUNC), 0);
	check("unnamed", open(".", O_TMPFILE | O_RDWR, 0600), 0);
	check("itself", open("/proc/self/status", O_RDONLY), 0);
	check("symlink", symlink("dir/new", "link"), 0);
	check("through a symlink", open("link", O_RDONLY), 0);
	check("not through a symlink", open("link", O_RDONLY | O_NOFOLLOW), ELOOP);

	check("neither read nor write", open("old", O_ACCMODE), 0);
	check("once more", open("old", O_RDONLY), 0);
	check("once more", open("old", O_RDONLY), 0);
	check("mkfifo", mkfifo("fifo", 0600), 0);
	interrupted(nothing, 0, EINTR);
	interrupted(let_in, SA_RESTART, 0);
	file = open("unlinked", O_CREAT | O_RDWR, 0600);
	check("unlink", unlink("unlinked"), 0);
	snprintf(again, sizeof(again), "/proc/self/fd/%d", file);
	check("by descriptor", open(again, O_RDONLY), 0);
	check("symlink", symlink("made through a symlink", "dangling"), 0);
	check("dangling", open("dangling", O_RDONLY), ENOENT);
	check("dangling", open("dangling", O_RDWR | O_CREAT, 0600), 0);
	check("link", link("old", "hard"), 0);
	check("hard link", open("hard", O_RDONLY), 0);
	check("root", open("//", O_RDONLY | O_DIRECTORY), 0);
	check("by way of proc", open("/proc/self/root/dev/null", O_RDONLY), 0);
	check("by way of proc", open("/proc/self/cwd/old", O_RDONLY), 0);
	check("mkdir", mkdir("before", 0700), 0);
	file = open("before", O_RDONLY | O_DIRECTORY);
	check("rename", OLD(rename, "before/", "after/"), 0);
	check("in a renamed directory", openat(file, "x", O_CREAT | O_WRONLY, 0600), 0);
	check("in a renamed directory", openat(file, "y", O_RDONLY), ENOENT);
	check("in a renamed directory", unlinkat(file, "x", 0), 0);
	check("with a slash", OLD(unlink, "old/"), ENOTDIR);
	check("rmdir", OLD(rmdir, "after/"), 0);

	check("open", open("", O_RDONLY), ENOENT);
	check("open", open((char *)8, O_RDONLY), EFAULT);
	check("open", open("old/x", O_RDONLY), ENOTDIR);
	check("open", open("dir", O_WRONLY), EISDIR);
	check("open", open("old", O_CREAT | O_EXCL | O_RDWR, 0600), EEXIST);
	check("open", open("missing/../../x/./y//z", O_RDONLY), ENOENT);
	check("openat", openat(999, "relative", O_RDONLY), EBADF);
	check("openat", openat(999, "/absolute/missing", O_RDONLY), ENOENT);

	check("rename", OLD(rename, "old", "newer"), 0);
	check("renameat", syscall(SYS_renameat, dir, "new", AT_FDCWD, "new"), 0);
	check("renameat2", syscall(SYS_renameat2, dir, "two", dir, "deeper/two", RENAME_NOREPLACE), 0);
	check("renameat2", syscall(SYS_renameat2, AT_FDCWD, "newer", dir, "deeper/two", RENAME_NOREPLACE), EEXIST);
	check("renameat2", syscall(SYS_renameat2, AT_FDCWD, "newer", AT_FDCWD, "new", RENAME_EXCHANGE), 0);
	check("rename", OLD(rename, "missing", "nowhere"), ENOENT);

	check("chdir", chdir("dir/deeper"), 0);
	check("unlink", OLD(unlink, "two"), 0);
	check("unlink", OLD(unlink, "two"), ENOENT);
	check("unlink", OLD(unlink, "."), EISDIR);
	check("fchdir", fchdir(dir), 0);
	check("rmdir", OLD(rmdir, "deeper"), 0);
	check("rmdir", OLD(rmdir, "../link"), ENOTDIR);
	check("chdir", chdir(".."), 0);
	check("unlinkat", unlinkat(AT_FDCWD, "dir", AT_REMOVEDIR), 0);
	check("unlinkat", unlinkat(AT_FDCWD, "link", 0), 0);
	check("unlinkat", unlinkat(999, "link", 0), EBADF);
	check("mkdir", mkdir("gone", 0700), 0);
	check("chdir", chdir("gone"), 0);
	check("rmdir", OLD(rmdir, "../gone"), 0);
	check("nowhere", open("x", O_CREAT | O_RDWR, 0600), ENOENT);
	check("nowhere", OLD(unlink, "x"), ENOENT);
	check("up from nowhere", open("../missing", O_RDONLY), ENOENT);
	check("up from nowhere", open(".", O_RDONLY), 0);
	return failed;
}
