#!/bin/sh
# What scripts/demo.sh runs under Glasshouse: file work, a compile, and a child that tries the network and deletes a file.
# It is an ordinary script: it knows nothing of Glasshouse, and it talks to loopback only.
set -eu

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"

echo "workload: writing, reading and renaming files in $dir"
echo "a draft" >draft.txt
cat draft.txt /etc/hostname >report.tmp
mv report.tmp report.txt
ln -s report.txt latest
cat latest >/dev/null

echo "workload: compiling a C program"
cat >visitor.c <<'C'
/* Tries the network, then deletes the file that it is told to. */
#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

int main(int argc, char **argv) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(9), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(fd, (struct sockaddr *)&to, sizeof to) < 0)
        printf("workload: connect to 127.0.0.1:9 failed: %s\n", strerror(errno));
    return argc == 2 ? unlink(argv[1]) : 2;
}
C
cc -O1 -o visitor visitor.c

echo "workload: running it: a child tries the network and deletes a file"
./visitor draft.txt

echo "workload: done"
