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

echo "workload: compiling and running a C program"
cat >hello.c <<'C'
#include <stdio.h>
int main(void) { return puts("hello from a program that did not exist a second ago") == EOF; }
C
cc -O1 -o hello hello.c
./hello

echo "workload: a child tries the network and deletes a file"
python3 - <<'PY'
import os
import socket

try:
    socket.create_connection(("127.0.0.1", 9), timeout=2).close()
    print("workload: connected to 127.0.0.1:9")
except OSError as error:
    print(f"workload: connect to 127.0.0.1:9 failed: {error.strerror or error}")
os.remove("draft.txt")
PY

echo "workload: done"
