//! A watched command's receipt holds what it did, and nothing else.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::os::unix::fs::symlink;
use std::path::Path;

use glasshouse_e2e::{command, file, output, skip_unless_watching_works, stderr, strings, watched};
use serde_json::Value;

fn assert_closed(receipt: &Value) {
    assert_eq!(receipt["completeness"], "closed", "{:#}", receipt["coverage"]);
    for vantage in receipt["coverage"]["vantages"].as_array().unwrap() {
        for (class, counters) in vantage["classes"].as_object().unwrap() {
            let count = |name: &str| counters[name].as_str().unwrap().parse::<u64>().unwrap();
            let sum = count("delivered") + count("collapsed") + count("lost");
            assert_eq!(count("observed"), sum, "{class}: {counters}");
            assert_eq!(count("lost"), 0, "{class}");
        }
    }
}

const PYTHON: &str = r#"
import os, socket, subprocess, sys
root = sys.argv[1]
os.chdir(root)
open("relative.txt", "w").write("x")                    # relative
open("link.txt").read()                                 # through a symlink
fd = os.open("sub", os.O_RDONLY | os.O_DIRECTORY)
os.close(os.open("at.txt", os.O_WRONLY | os.O_CREAT, 0o644, dir_fd=fd))   # dirfd-relative
os.rename("relative.txt", "renamed.txt")
os.unlink("gone.txt")
os.rename("a.txt", "b.txt", src_dir_fd=fd, dst_dir_fd=fd)
try: open("missing/none.txt")
except FileNotFoundError: pass
pid = os.fork()
if pid == 0:
    open("child.txt", "w").close()
    os._exit(7)
os.waitpid(pid, 0)
subprocess.run(["/bin/sh", "-c", "cat renamed.txt > copied.txt; exit 3"])
listener = socket.socket(); listener.bind(("127.0.0.1", 0)); listener.listen()
client = socket.create_connection(listener.getsockname())
print(listener.getsockname()[1])
refused = socket.socket(socket.AF_INET6)
try: refused.connect(("::1", 9))
except OSError: pass
unix = socket.socket(socket.AF_UNIX)
try: unix.connect("no.sock")
except OSError: pass
"#;

#[test]
fn every_fact_of_a_program_is_in_its_receipt() {
    skip_unless_watching_works!();
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().canonicalize().unwrap();
    std::fs::create_dir(root.join("sub")).unwrap();
    std::fs::write(root.join("target.txt"), "x").unwrap();
    std::fs::write(root.join("gone.txt"), "x").unwrap();
    std::fs::write(root.join("sub/a.txt"), "x").unwrap();
    symlink("target.txt", root.join("link.txt")).unwrap();

    let (receipt, output) = watched(&root, &[], &["/usr/bin/python3", "-c", PYTHON, root.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_closed(&receipt);
    let port = String::from_utf8(output.stdout).unwrap().trim().to_owned();

    assert_eq!(file(&receipt, &root.join("relative.txt"))["writes"], 1);
    assert_eq!(file(&receipt, &root.join("target.txt"))["reads"], 1, "symlinks are resolved");
    assert_eq!(file(&receipt, &root.join("sub/at.txt"))["creates"], 1);
    assert_eq!(file(&receipt, &root.join("gone.txt"))["deletes"], 1);
    assert_eq!(file(&receipt, &root.join("missing/none.txt"))["errors"]["open ENOENT"], 1);
    let renamed = root.join("renamed.txt");
    assert_eq!(file(&receipt, &root.join("relative.txt"))["renamed_to"][0], renamed.to_str().unwrap());
    let moved = root.join("sub/b.txt");
    assert_eq!(file(&receipt, &root.join("sub/a.txt"))["renamed_to"][0], moved.to_str().unwrap());
    for (list, path) in
        [("reads", "renamed.txt"), ("writes", "child.txt"), ("writes", "copied.txt"), ("deletes", "gone.txt")]
    {
        let path = root.join(path).to_str().unwrap().to_owned();
        assert!(strings(&receipt, &format!("/filesystem/{list}")).contains(&path), "{path} is not in {list}");
    }

    let processes = receipt["process_tree"].as_array().unwrap();
    let root_process = &processes[0];
    assert_eq!(root_process["argv"][0], "/usr/bin/python3");
    assert_eq!(root_process["exit_code"], 0);
    let child = processes.iter().find(|process| process["exit_code"] == 7).expect("the forked child");
    assert_eq!(child["ppid"], root_process["pid"]);
    assert_eq!(child["forked_only"], true);
    let shell = processes.iter().find(|process| process["exit_code"] == 3).expect("the shell");
    assert_eq!(shell["working_dir"], root.to_str().unwrap());
    let cat = processes.iter().find(|process| process["argv"][0] == "cat").expect("cat");
    assert_eq!(cat["ppid"], shell["pid"]);
    assert!(Path::new(cat["exe"].as_str().unwrap()).is_absolute());

    let attempts = receipt["network"]["attempts"].as_array().unwrap();
    let attempt = |dst: &str, protocol: &str| {
        let found = attempts.iter().find(|attempt| attempt["dst"] == dst && attempt["protocol"] == protocol);
        found.unwrap_or_else(|| panic!("no attempt at {dst} in {attempts:?}"))["result"].clone()
    };
    assert_eq!(attempt(&format!("127.0.0.1:{port}"), "tcp"), "ok");
    assert_eq!(attempt("[::1]:9", "tcp"), "ECONNREFUSED");
    assert!(attempts.iter().any(|attempt| attempt["protocol"] == "unix"
        && attempt["dst"].as_str().unwrap().ends_with("no.sock")
        && attempt["result"] == "ENOENT"));
    assert!(receipt["syscalls"]["counts"]["openat"].as_u64().unwrap() > 10);
    assert_eq!(receipt["artifacts"]["stdout_hash"].as_str().unwrap().len(), 64);
}

/// What strace says of the same command: (opened, executed, connected).
fn strace(root: &Path, argv: &[&str]) -> [BTreeSet<String>; 3] {
    let log = root.join("strace.log");
    let mut command = std::process::Command::new("strace");
    command.args(["-f", "-y", "-s", "4096", "-e", "trace=open,openat,openat2,creat,execve,connect", "-o"]);
    command.arg(&log).args(argv);
    let output = output(command);
    assert!(output.status.success(), "strace: {}", stderr(&output));
    let mut sets: [BTreeSet<String>; 3] = Default::default();
    let log = std::fs::read_to_string(&log).unwrap();
    let mut halves: std::collections::HashMap<&str, &str> = Default::default();
    for line in log.lines() {
        let Some((task, call)) = line.split_once(' ') else { continue };
        // A call that another task's interrupts is written in two halves: the arguments, then the result.
        let call = call.trim_start();
        if let Some(begun) = call.strip_suffix("<unfinished ...>") {
            halves.insert(task, begun);
            continue;
        }
        let whole;
        let call = match call.starts_with("<... ") {
            true => {
                whole = format!("{}{call}", halves.remove(task).unwrap_or_default());
                whole.as_str()
            }
            false => call,
        };
        let Some((_, result)) = call.rsplit_once(" = ") else { continue };
        if call.starts_with("open") || call.starts_with("creat") {
            // With -y a successful result is `3</the/path>`.
            if let Some((_, path)) = result.split_once('<') {
                sets[0].insert(path.trim_end_matches('>').to_owned());
            }
        } else if call.starts_with("execve") && result == "0" {
            let program = call.split('"').nth(1).unwrap();
            sets[1].insert(std::fs::canonicalize(program).unwrap().to_str().unwrap().to_owned());
        } else if call.starts_with("connect") && call.contains("AF_INET") {
            let port = call.split("htons(").nth(1).unwrap().split(')').next().unwrap();
            let address = call.split("inet_addr(\"").nth(1).unwrap().split('"').next().unwrap();
            sets[2].insert(format!("{address}:{port}"));
        }
    }
    sets
}

fn assert_same(what: &str, ours: &BTreeSet<String>, theirs: &BTreeSet<String>) {
    let only_ours: Vec<_> = ours.difference(theirs).collect();
    let only_theirs: Vec<_> = theirs.difference(ours).collect();
    assert!(
        only_ours.is_empty() && only_theirs.is_empty(),
        "{what}: only ours {only_ours:?}, only strace's {only_theirs:?}"
    );
    assert!(!ours.is_empty(), "{what}: nothing to compare");
}

#[test]
fn opens_execs_and_connects_are_those_that_strace_sees() {
    skip_unless_watching_works!();
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().canonicalize().unwrap();
    let script = format!(
        "cd {} && echo x > a && cat a > b && ls -l . | sort > c && \
         /usr/bin/python3 -c 'import json, socket; s = socket.socket(); s.connect_ex((\"127.0.0.1\", 9))' && git --version",
        root.display()
    );
    // Once unwatched, so that caches such as __pycache__ are there for both.
    let argv = ["/bin/sh", "-c", &script];
    assert!(
        output({
            let mut plain = std::process::Command::new(argv[0]);
            plain.args(&argv[1..]);
            plain
        })
        .status
        .success()
    );
    let [opened, executed, connected] = strace(&root, &argv);
    let (receipt, run) = watched(&root, &[], &argv);
    assert_eq!(run.status.code(), Some(0), "{}", stderr(&run));
    assert_closed(&receipt);

    let files = receipt["files"].as_array().unwrap();
    let seen = |file: &&Value| {
        ["reads", "writes", "path_only"].iter().any(|kind| file[kind].as_u64().unwrap_or(0) > 0)
    };
    let ours: BTreeSet<String> =
        files.iter().filter(seen).map(|file| file["path"].as_str().unwrap().to_owned()).collect();
    // A process's own /proc files carry its pid, which differs between two runs; pipes have no path.
    let comparable = |set: BTreeSet<String>| -> BTreeSet<String> {
        set.into_iter().filter(|path| path.starts_with('/') && !path.starts_with("/proc/")).collect()
    };
    assert_same("opens", &comparable(ours), &comparable(opened));

    let mut ours = BTreeSet::new();
    for process in receipt["process_tree"].as_array().unwrap() {
        let execs = process["execs"].as_array().map(Vec::as_slice).unwrap_or_default();
        ours.extend(execs.iter().map(|exec| exec["exe"].as_str().unwrap().to_owned()));
        if process["forked_only"] != true {
            ours.insert(process["exe"].as_str().unwrap().to_owned());
        }
    }
    assert_same("execs", &ours, &executed);

    let attempts = receipt["network"]["attempts"].as_array().unwrap();
    let tcp = attempts.iter().filter(|attempt| attempt["protocol"] == "tcp");
    let ours: BTreeSet<String> = tcp.map(|attempt| attempt["dst"].as_str().unwrap().to_owned()).collect();
    assert_same("connects", &ours, &connected);
}

#[test]
fn fifty_at_once_hold_only_their_own_facts() {
    skip_unless_watching_works!();
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().canonicalize().unwrap();
    let runs: Vec<_> = (0..50)
        .map(|number| {
            let root = root.clone();
            std::thread::spawn(move || {
                let own = root.join(format!("own-{number}"));
                let receipt = root.join(format!("receipt-{number}.json"));
                let script = format!("echo {number} > {0} && cat {0} && rm {0}", own.display());
                let mut run = command("glasshouse");
                run.args(["run", "--profile", "host", "--receipt"])
                    .arg(&receipt)
                    .args(["--", "sh", "-c", &script]);
                let output = output(run);
                assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
                assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), number.to_string());
                serde_json::from_slice::<Value>(&std::fs::read(receipt).unwrap()).unwrap()
            })
        })
        .collect();
    for (number, run) in runs.into_iter().enumerate() {
        let receipt = run.join().unwrap();
        assert_closed(&receipt);
        let own = root.join(format!("own-{number}")).to_str().unwrap().to_owned();
        let prefix = root.to_str().unwrap();
        for list in ["reads", "writes", "deletes"] {
            let paths = strings(&receipt, &format!("/filesystem/{list}"));
            let foreign: Vec<_> =
                paths.iter().filter(|path| path.starts_with(prefix) && **path != own).collect();
            assert!(paths.contains(&own), "{own} is not in {list}");
            assert_eq!(foreign, Vec::<&String>::new(), "facts of others in {list}");
        }
        // sh, cat, rm: nothing of the runner itself.
        let programs = receipt["process_tree"].as_array().unwrap();
        assert_eq!(programs.len(), 3, "{programs:#?}");
        assert!(programs.iter().all(|process| !process["exe"].as_str().unwrap().contains("glasshouse")));
        let cgroups = receipt["files"].as_array().unwrap();
        assert!(cgroups.iter().all(|file| !file["path"].as_str().unwrap().starts_with("/sys/fs/")));
    }
}

#[test]
fn tokens_and_masked_paths_do_not_reach_the_receipt() {
    skip_unless_watching_works!();
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().canonicalize().unwrap();
    let secret = root.join("secret");
    std::fs::create_dir(&secret).unwrap();
    let script = format!("echo x > {}/hidden-name", secret.display());
    let mask = secret.to_str().unwrap();
    let options = ["--mask", mask];
    let (receipt, _) = watched(&root, &options, &["sh", "-c", &script, "--token=hunter2hunter2"]);
    let text = receipt.to_string();
    assert!(!text.contains("hunter2hunter2"), "a token reached the receipt");
    let written = strings(&receipt, "/filesystem/writes");
    assert!(written.iter().any(|path| path.starts_with(&format!("{mask}/<masked:"))), "{written:?}");
    assert!(!written.iter().any(|path| path.contains("hidden-name")));
    let rules: BTreeSet<&str> =
        receipt["redactions"].as_array().unwrap().iter().filter_map(|entry| entry["rule"].as_str()).collect();
    assert_eq!(rules, BTreeSet::from(["tokens", mask]));
}

#[test]
fn a_daemon_left_behind_is_ended_and_the_receipt_is_closed() {
    skip_unless_watching_works!();
    let dir = tempfile::tempdir().unwrap();
    let (receipt, output) =
        watched(dir.path(), &[], &["sh", "-c", "setsid sh -c 'trap \"\" TERM; sleep 1000' & exec true"]);
    assert_eq!(output.status.code(), Some(0));
    assert_closed(&receipt);
    let processes = receipt["process_tree"].as_array().unwrap();
    assert!(processes.iter().any(|process| process["signal"] == 9), "{processes:#?}");
}
