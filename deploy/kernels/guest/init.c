/*
 * PID 1 of the test machine: prepares it, runs `glasshouse doctor` and `glasshouse run`, and hands what they printed and the
 * receipt to the second serial port. Static, and all there is in the machine beside glasshouse and the workload.
 *
 * On the port: `@ NAME LENGTH\n`, LENGTH bytes, `\n`, for each part; `@ end 0\n\n` last. Without the end nothing counts: a
 * panic ends QEMU just as a power-off does.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#define DIR "/tmp/work"
#define GLASSHOUSE_RUN(receipt, dir, ...)                                                                              \
	(char *[]){"/glasshouse", "run", "--profile", "host", "--profile-required", "--receipt", receipt, "--json",    \
		   "--workdir", "/", "--", "/workload", dir, ##__VA_ARGS__, NULL}

static int port = -1;

static void put(const char *bytes, size_t length)
{
	while (length > 0) {
		ssize_t wrote = write(port, bytes, length);
		if (wrote < 0 && errno == EINTR)
			continue;
		if (wrote <= 0)
			return;
		bytes += wrote;
		length -= (size_t)wrote;
	}
}

static void part(const char *name, const char *bytes, size_t length)
{
	char head[128];
	int size = snprintf(head, sizeof(head), "@ %s %zu\n", name, length);

	put(head, (size_t)size);
	put(bytes, length);
	put("\n", 1);
	tcdrain(port);
}

static void part_of_file(const char *name, const char *path)
{
	struct stat about;
	char *bytes;
	ssize_t got;
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0 || fstat(fd, &about) != 0)
		return;
	bytes = malloc((size_t)about.st_size + 1);
	got = bytes ? read(fd, bytes, (size_t)about.st_size) : -1;
	if (got >= 0)
		part(name, bytes, (size_t)got);
	free(bytes);
	close(fd);
}

static void note(const char *what, int ok)
{
	char line[256];

	if (ok)
		return;
	snprintf(line, sizeof(line), "%s: %s", what, strerror(errno));
	part("problem", line, strlen(line));
}

/* Runs a program to its end and hands over what it printed and how it ended. */
static void run(const char *name, char *const argv[])
{
	char out[64], err[64], label[64], status_text[32];
	int status = -1;
	pid_t pid;

	snprintf(out, sizeof(out), "/tmp/%s.out", name);
	snprintf(err, sizeof(err), "/tmp/%s.err", name);
	pid = fork();
	if (pid == 0) {
		int to_out = open(out, O_WRONLY | O_CREAT | O_TRUNC, 0644);
		int to_err = open(err, O_WRONLY | O_CREAT | O_TRUNC, 0644);

		dup2(open("/dev/null", O_RDONLY), 0);
		dup2(to_out, 1);
		dup2(to_err, 2);
		execv(argv[0], argv);
		_exit(127);
	}
	note(name, pid > 0 && waitpid(pid, &status, 0) == pid);
	snprintf(label, sizeof(label), "%s.out", name);
	part_of_file(label, out);
	snprintf(label, sizeof(label), "%s.err", name);
	part_of_file(label, err);
	snprintf(label, sizeof(label), "%s.status", name);
	snprintf(status_text, sizeof(status_text), "%d", WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status));
	part(label, status_text, strlen(status_text));
}

static void loopback_up(void)
{
	struct ifreq request = {.ifr_name = "lo"};
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	note("lo", fd >= 0 && ioctl(fd, SIOCGIFFLAGS, &request) == 0);
	request.ifr_flags |= IFF_UP | IFF_RUNNING;
	note("lo up", ioctl(fd, SIOCSIFFLAGS, &request) == 0);
	close(fd);
}

int main(void)
{
	struct utsname about;
	struct termios raw;

	mkdir("/dev", 0755);
	mkdir("/proc", 0755);
	mkdir("/sys", 0755);
	mkdir("/tmp", 0755);
	mount("dev", "/dev", "devtmpfs", 0, NULL);
	port = open("/dev/ttyS1", O_RDWR | O_NOCTTY | O_CLOEXEC);
	if (port >= 0 && tcgetattr(port, &raw) == 0) {
		cfmakeraw(&raw);
		cfsetspeed(&raw, B115200);
		tcsetattr(port, TCSANOW, &raw);
	}
	note("proc", mount("proc", "/proc", "proc", 0, NULL) == 0);
	note("sys", mount("sys", "/sys", "sysfs", 0, NULL) == 0);
	note("tmp", mount("tmp", "/tmp", "tmpfs", 0, NULL) == 0);
	note("cgroup2", mount("cgroup2", "/sys/fs/cgroup", "cgroup2", 0, NULL) == 0);
	note("bpf", mount("bpf", "/sys/fs/bpf", "bpf", 0, NULL) == 0);
	note("tracefs", mount("tracefs", "/sys/kernel/tracing", "tracefs", 0, NULL) == 0);
	note("securityfs", mount("security", "/sys/kernel/security", "securityfs", 0, NULL) == 0);
	note("hostname", sethostname("guest", 5) == 0);
	loopback_up();

	uname(&about);
	part("release", about.release, strlen(about.release));
	part("version", about.version, strlen(about.version));
	if (access("/sys/kernel/btf/vmlinux", R_OK) == 0)
		part("btf", "yes", 3);
	part_of_file("lsm", "/sys/kernel/security/lsm");

	run("doctor", (char *[]){"/glasshouse", "doctor", "--json", NULL});
	run("run", GLASSHOUSE_RUN("/tmp/receipt.json", DIR));
	part_of_file("receipt", "/tmp/receipt.json");
	run("bypass", GLASSHOUSE_RUN("/tmp/bypass.json", DIR "-bypass", "bypass"));
	part_of_file("bypass-receipt", "/tmp/bypass.json");
	part("end", "", 0);
	reboot(RB_POWER_OFF);
	return 1;
}
