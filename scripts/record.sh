#!/usr/bin/env bash
# Makes the committed recordings of real workloads anew: what the host probe tells of a C compile, of git, of tar and of a test
# run, as frames. Benches and tests of codec and fold use them. Needs root, gcc, make, git, tar and python3.
# Events differ a little from run to run and from system to system; figures in docs/benchmarks.md are of the committed ones.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$ROOT"
use_rust || die "Rust $(wanted_rust) or newer is needed" "scripts/setup.sh"

OUT=$ROOT/schema/recordings
# Stands in every path that is recorded.
WORK=/srv/recording
[ ! -e "$WORK" ] || die "$WORK is there already" "remove it"
cargo build -q --release -p glasshouse-host-probe --example record
RECORD=$(target_dir release)/examples/record
mkdir -p "$WORK" "$OUT"
trap 'rm -rf "$WORK"' EXIT

# record NAME COMMAND: a shell's command line, run in $WORK without the environment of whoever records.
record() {
    (cd "$WORK" && env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME="$WORK" LANG=C.UTF-8 \
        "$RECORD" "$OUT/$1.frames" -- /bin/sh -c "$2")
}

# 24 modules that include what C programs include, and a program of all of them.
headers='assert ctype dirent errno fcntl fnmatch glob grp inttypes limits locale math netdb poll pthread pwd regex semaphore
    setjmp signal stdio stdlib string syslog termios time unistd sys/epoll sys/mman sys/socket sys/stat sys/time sys/wait
    netinet/in netinet/tcp arpa/inet'
mkdir "$WORK/compile"
for n in $(seq 24); do
    {
        for header in $headers; do printf '#include <%s.h>\n' "$header"; done
        printf 'int f%d(const char *s) { char b[64]; return snprintf(b, sizeof b, "%%s %d", s) + (int)strlen(b); }\n' "$n" "$n"
    } > "$WORK/compile/m$n.c"
done
printf 'int main(int c, char **v) { return c > 99 ? v[0][0] : 0; }\n' > "$WORK/compile/main.c"
# shellcheck disable=SC2016 # make is to see the dollars.
printf 'program: $(patsubst %%.c,%%.o,$(wildcard *.c))\n\t$(CC) -o $@ $^\n' > "$WORK/compile/Makefile"
record compile 'cd compile && make -j2 CFLAGS=-O2 && ./program'

# The sources of this repository, added and committed.
mkdir "$WORK/git"
git archive HEAD -- . ':!schema/recordings' | tar -x -C "$WORK/git"
record git 'cd git && git init -q . && git add . && git -c user.name=a -c user.email=a@example.org commit -q -m one && git status -s'

# They packed with gzip, and unpacked.
mkdir "$WORK/unpacked"
record tar 'tar -czf git.tar.gz --exclude=.git git && tar -xzf git.tar.gz -C unpacked'

# A test suite that imports, writes files, starts processes, and talks on loopback.
mkdir "$WORK/suite"
for n in $(seq 12); do
    cat > "$WORK/suite/test_$n.py" << 'PYTHON'
import asyncio, csv, email, json, logging, os, socket, sqlite3, subprocess, sys, tempfile, threading, unittest, zipfile
from http.server import BaseHTTPRequestHandler, HTTPServer
from urllib.request import urlopen


class Tests(unittest.TestCase):
    def setUp(self):
        self.directory = tempfile.TemporaryDirectory()
        self.addCleanup(self.directory.cleanup)

    def path(self, name):
        return os.path.join(self.directory.name, name)

    def test_files(self):
        for n in range(20):
            with open(self.path(f"{n}.json"), "w") as file:
                json.dump({"n": n}, file)
        for n in range(20):
            with open(self.path(f"{n}.json")) as file:
                self.assertEqual(json.load(file)["n"], n)
            os.rename(self.path(f"{n}.json"), self.path(f"{n}.old"))
        self.assertRaises(FileNotFoundError, open, self.path("none"))

    def test_archive(self):
        with zipfile.ZipFile(self.path("a.zip"), "w") as archive:
            for n in range(10):
                archive.writestr(f"{n}.txt", "text" * n)
        with zipfile.ZipFile(self.path("a.zip")) as archive:
            archive.extractall(self.path("out"))

    def test_database(self):
        database = sqlite3.connect(self.path("data"))
        database.execute("create table t (n)")
        for n in range(5):
            with database:
                database.execute("insert into t values (?)", (n,))
        database.close()

    def test_process(self):
        for _ in range(3):
            done = subprocess.run([sys.executable, "-c", "import json; print(json.dumps(1))"], capture_output=True)
            self.assertEqual(done.stdout, b"1\n")

    def test_server(self):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200)
                self.end_headers()
                self.wfile.write(b"ok")

            def log_message(self, *_):
                pass

        server = HTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        for _ in range(5):
            self.assertEqual(urlopen(f"http://127.0.0.1:{server.server_port}/").read(), b"ok")
        server.shutdown()
        thread.join()
        server.server_close()
PYTHON
done
record tests 'cd suite && python3 -m unittest -q'
