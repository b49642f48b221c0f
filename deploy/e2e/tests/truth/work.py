"""Subprocesses in several ways, a forked pool, and threads that all touch files."""

import concurrent.futures
import glob
import importlib
import os
import shutil
import subprocess
import sys
import threading

os.makedirs("tree/a/b")
os.mkdir("own")


def touch(name):
    with open(name, "w", encoding="utf-8") as file:
        file.write(name)
    with open(name, encoding="utf-8") as file:
        assert file.read() == name


def in_thread(number):
    touch(f"own/thread-{number}")
    ran = subprocess.run(["cat", f"own/thread-{number}"], check=True, capture_output=True)
    assert ran.stdout.decode() == f"own/thread-{number}"
    os.replace(f"own/thread-{number}", f"own/renamed-{number}")


threads = [threading.Thread(target=in_thread, args=(number,)) for number in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()

with concurrent.futures.ThreadPoolExecutor(3) as pool:
    list(pool.map(touch, [f"tree/a/pool-{number}" for number in range(6)]))

print(subprocess.run("cat own/renamed-0 | tr a-z A-Z; exit 3", shell=True, capture_output=True).stdout.decode())
subprocess.run(["sort"], input=b"b\na\n", cwd="tree", check=True, stdout=subprocess.DEVNULL, env={"PATH": "/usr/bin"})
subprocess.run([sys.executable, "-c", "open('from-child', 'w').close()"], check=True, close_fds=False)
try:
    subprocess.run(["no-such-program"], check=True)
except FileNotFoundError:
    pass

children = []
for number in range(3):
    pid = os.fork()
    if pid == 0:
        touch(f"tree/a/b/fork-{number}")
        os._exit(0)
    children.append(pid)
for pid in children:
    os.waitpid(pid, 0)

for failing in ("missing", "tree", "own/renamed-1/below"):
    try:
        open(failing, encoding="utf-8")
    except OSError:
        pass
open("with space", "w").close()
open(b"not-utf-8-\xff\xfe", "w").close()
open("ümläut <angles> \"quotes\" \\ and\nlines", "w").close()
os.remove(b"not-utf-8-\xff\xfe")
importlib.import_module("json.tool")
print(sorted(glob.glob("own/*")))
shutil.copytree("tree", "copied")
shutil.move("copied", "moved")
shutil.rmtree("moved")
