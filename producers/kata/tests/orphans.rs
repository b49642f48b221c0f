//! What is left of a run that was killed, and what the next one makes of it. Made by the runc shim, not by Kata's own.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[allow(dead_code, reason = "each test takes what it needs")]
mod support;

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, ChildStdin, Command, Stdio};

use glasshouse_backends::conformance::{report_skipped, spec};
use glasshouse_execution::backend::{ExecutionBackend, ExitStatus, StopSignal};
use glasshouse_kata::KataBackend;
use support::Containerd;

/// To a child that is to run a command in that containerd.
const ADDRESS: &str = "GLASSHOUSE_TEST_CONTAINERD";
const UP: &str = "up ";

/// A run in a process of its own.
struct Run {
    process: Child,
    /// The run ends its command when this is closed.
    stdin: Option<ChildStdin>,
    id: String,
}

impl Run {
    /// Returns once its command runs.
    fn start(containerd: &Containerd) -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "a_run_in_a_process_of_its_own", "--ignored", "--nocapture"])
            .env(ADDRESS, containerd.address())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let id =
            lines.find_map(|line| Some(line.unwrap().split_once(UP)?.1.to_owned())).expect("the run fails");
        // What it says afterwards is not looked at, and must not stop it.
        std::thread::spawn(move || lines.for_each(drop));
        Self { stdin: process.stdin.take(), process, id }
    }

    fn ends(mut self) -> bool {
        drop(self.stdin.take());
        self.process.wait().unwrap().success()
    }
}

/// The other side of [`Run`].
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a part of the test of this file"]
async fn a_run_in_a_process_of_its_own() {
    let address = std::env::var_os(ADDRESS).expect("only as a part of the other test");
    let backend = KataBackend::new(support::config_at(address.into(), Vec::new()));
    let spec = spec(["sleep", "1000"]);
    backend.prepare(&spec).await.unwrap();
    backend.start(&spec).await.unwrap();
    backend.release().await.unwrap();
    println!("\n{UP}{}", spec.id);
    tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new())).await.unwrap().unwrap();
    backend.kill(StopSignal::Kill).await.unwrap();
    assert_eq!(backend.wait().await.unwrap().status, ExitStatus::Signal(9));
    backend.drain(false).await.unwrap();
    assert_eq!(backend.cleanup().await, Vec::<String>::new());
}

/// The next run removes it, or whoever asks for that as an agent does at its start; and nothing of a run that lives.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_run_left_goes_with_the_next_run() {
    let containerd = match Containerd::shared() {
        Ok(containerd) => containerd,
        Err(reason) => return report_skipped("what_a_killed_run_left_goes_with_the_next_run", &reason),
    };
    let (mut killed, other) = (Run::start(&containerd), Run::start(&containerd));
    killed.process.kill().unwrap();
    killed.process.wait().unwrap();
    let left = containerd.left(&killed.id);
    for what in ["containers", "snapshots", "/sys/fs/cgroup", "pipes"] {
        assert!(left.iter().any(|left| left.starts_with(what)), "no {what}, so this tests nothing: {left:?}");
    }

    let mut next = Run::start(&containerd);
    assert_eq!(containerd.left(&killed.id), Vec::<String>::new());
    let tasks = containerd.ctr(&["tasks", "ls"]);
    let tasks = String::from_utf8_lossy(&tasks.stdout).into_owned();
    let runs = |id: &str| tasks.lines().any(|line| line.contains(id) && line.contains("RUNNING"));
    assert!(runs(&other.id) && runs(&next.id), "{tasks}");
    next.process.kill().unwrap();
    next.process.wait().unwrap();
    let config = support::config(&containerd, Vec::new());
    assert_eq!(KataBackend::end_orphans(&config).await, Ok(Vec::new()));
    assert_eq!(containerd.left(&next.id), Vec::<String>::new());
    let nobody = support::config_at("/nonexistent".into(), Vec::new());
    assert!(KataBackend::end_orphans(&nobody).await.unwrap_err().contains("is containerd running"));

    let id = other.id.clone();
    assert!(other.ends());
    assert_eq!(containerd.left(&id), Vec::<String>::new());
}
