//! `glasshouse run --lossless`: nothing is lost, and the command ends as it would without.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::os::unix::process::ExitStatusExt;

use glasshouse_e2e::{command, output, skip_unless_watching_works, stderr, watched};

/// More facts than the rings hold at once, from threads and from processes.
const STORM: &str = r#"
import os, threading
def work(of):
    for i in range(20000):
        try: os.stat(b"x"); os.open(b"absent-%d-%d-" % (of, i) + b"x" * 200, os.O_RDONLY)
        except OSError: pass
        try: os.open(b"absent-%d-%d-" % (of, i) + b"y" * 200, os.O_RDONLY)
        except OSError: pass
threads = [threading.Thread(target=work, args=(of,)) for of in range(3)]
for thread in threads: thread.start()
for _ in range(200):
    if os.fork() == 0: os._exit(3)
    assert os.wait()[1] == 3 << 8
child = os.fork()
if child == 0:
    work(9)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
for thread in threads: thread.join()
raise SystemExit(7)
"#;

#[test]
fn a_storm_is_told_of_whole() {
    skip_unless_watching_works!();
    let dir = tempfile::tempdir().unwrap();
    let (receipt, output) = watched(dir.path(), &["--lossless"], &["/usr/bin/python3", "-c", STORM]);
    assert_eq!(output.status.code(), Some(7), "{}", stderr(&output));
    assert_eq!(receipt["completeness"], "closed", "{:#}", receipt["coverage"]);
    for vantage in receipt["coverage"]["vantages"].as_array().unwrap() {
        for (class, counters) in vantage["classes"].as_object().unwrap() {
            assert_eq!(counters["lost"], "0", "{class}: {counters}");
        }
    }
}

#[test]
fn signals_of_the_commands_own_are_left_to_it() {
    skip_unless_watching_works!();
    let dir = tempfile::tempdir().unwrap();
    // Stops its child, sees that it is, and lets it go on; then ends by a signal itself.
    let script = "import os, signal
child = os.fork()
if child == 0:
    signal.pause()
    os._exit(1)
os.kill(child, signal.SIGSTOP)
assert os.WIFSTOPPED(os.waitpid(child, os.WUNTRACED)[1])
os.kill(child, signal.SIGCONT)
assert os.WIFCONTINUED(os.waitpid(child, os.WCONTINUED)[1])
os.kill(child, signal.SIGTERM)
assert os.waitpid(child, 0)[1] == signal.SIGTERM
os.kill(os.getpid(), signal.SIGUSR1)";
    let (receipt, output) = watched(dir.path(), &["--lossless"], &["/usr/bin/python3", "-c", script]);
    assert_eq!(receipt["completeness"], "closed", "{:#}", receipt["coverage"]);
    let ended = output.status.code().or(output.status.signal().map(|signal| 128 + signal));
    assert_eq!(ended, Some(128 + 10), "{}", stderr(&output));
}

#[test]
fn help_says_what_it_does() {
    let mut help = command("glasshouse");
    help.args(["run", "--help"]);
    let text = String::from_utf8(output(help).stdout).unwrap();
    let (_, of) = text.split_once("--lossless").unwrap();
    assert!(of.contains("SIGSTOP"), "{text}");
}

#[test]
fn what_cannot_be_had_is_not_passed_over() {
    skip_unless_watching_works!();
    let dir = tempfile::tempdir().unwrap();
    // In another pid namespace, nobody could be let go on by its number.
    let glasshouse = glasshouse_e2e::program("glasshouse");
    let mut elsewhere = std::process::Command::new("unshare");
    elsewhere.args(["--pid", "--fork", "--mount-proc"]).arg(&glasshouse).current_dir(dir.path());
    elsewhere.args(["run", "--profile", "host", "--profile-required", "--lossless", "--", "true"]);
    let refused = output(elsewhere);
    assert_eq!(refused.status.code(), Some(125), "{}", stderr(&refused));
    assert!(stderr(&refused).contains("initial pid namespace"), "{}", stderr(&refused));
    // Where nothing watches, nothing could be lost: that can't be meant.
    let mut unwatched = command("glasshouse");
    unwatched.args(["run", "--lossless", "--", "true"]);
    let refused = output(unwatched);
    assert!(!refused.status.success());
    assert!(stderr(&refused).contains("choose a profile"), "{}", stderr(&refused));
}
