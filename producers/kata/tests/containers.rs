//! What the conformance suite does not ask: where a container's process is, what it sees, and what holds it. Made by the runc shim, not
//! by Kata's own (docs/kata.md).

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[allow(dead_code, reason = "each test takes what it needs")]
mod support;

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use glasshouse_backends::conformance::{report_skipped, spec};
use glasshouse_execution::backend::{ExecutionBackend, ExitReport, ExitStatus, OutputReport};
use glasshouse_execution::spec::{ExecutionSpec, OutputTap, StdStreams};
use glasshouse_kata::{Config, KataBackend};
use glasshouse_schema::ids::Digest;
use glasshouse_schema::limits::Limit;
use support::Containerd;

/// A backend, or nothing where this host has no containerd.
fn backend(test: &str) -> Option<(Arc<Containerd>, KataBackend)> {
    match Containerd::shared() {
        Ok(containerd) => {
            let backend = KataBackend::new(support::config(&containerd, Vec::new()));
            Some((containerd, backend))
        }
        Err(reason) => {
            report_skipped(test, &reason);
            None
        }
    }
}

fn shell(script: &str) -> ExecutionSpec {
    spec(["sh", "-c", script])
}

async fn run(backend: &KataBackend, spec: &ExecutionSpec) -> (ExitReport, OutputReport) {
    backend.prepare(spec).await.unwrap();
    backend.start(spec).await.unwrap();
    backend.release().await.unwrap();
    let exit = backend.wait().await.unwrap();
    (exit, backend.drain(false).await.unwrap())
}

async fn clean(containerd: &Containerd, backend: &KataBackend, spec: &ExecutionSpec) {
    assert_eq!(backend.cleanup().await, Vec::<String>::new());
    assert_eq!(containerd.left(&spec.id.to_string()), Vec::<String>::new());
}

/// What a host's probe needs to tell the command from everything else.
#[tokio::test(flavor = "multi_thread")]
async fn the_held_process_and_its_cgroup_are_told() {
    let Some((containerd, backend)) = backend("the_held_process_and_its_cgroup_are_told") else { return };
    let spec = shell("exit 3");
    backend.prepare(&spec).await.unwrap();
    let identity = backend.start(&spec).await.unwrap().identity;
    let pid = identity.root_pid.unwrap();
    let table = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let path = table.lines().find_map(|line| line.strip_prefix("0::/")).unwrap();
    assert!(path.ends_with(&spec.id.to_string()), "{path}");
    let ids: Vec<u64> = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"]
        .into_iter()
        .filter_map(|root| std::fs::metadata(Path::new(root).join(path)).ok())
        .map(|dir| dir.ino())
        .collect();
    assert_eq!(identity.cgroup_id, ids.first().copied());
    let held = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap();
    assert!(!held.starts_with(b"sh\0"), "the command runs before it is released");
    backend.release().await.unwrap();
    assert_eq!(backend.wait().await.unwrap().status, ExitStatus::Code(3));
    backend.drain(false).await.unwrap();
    clean(&containerd, &backend, &spec).await;
}

/// Byte by byte, to its end, and its end is seen.
#[tokio::test(flavor = "multi_thread")]
async fn standard_input_reaches_the_command() {
    let Some((containerd, backend)) = backend("standard_input_reaches_the_command") else { return };
    let stdin = b"\x00\xffglasshouse\n".repeat(20_000);
    let mut spec = spec(["cat"]);
    let output = OutputTap::new(|_, _| {});
    spec.streams = StdStreams::Handed { stdin: stdin.clone().into(), output };
    let (exit, output) = run(&backend, &spec).await;
    assert_eq!((exit.status, output.stdout_hash), (ExitStatus::Code(0), Some(Digest::of(&stdin))));
    clean(&containerd, &backend, &spec).await;
}

/// Environment and working directory are the image's; the command is not PID 1, and has no way out.
#[tokio::test(flavor = "multi_thread")]
async fn the_command_is_in_its_image() {
    let Some((containerd, backend)) = backend("the_command_is_in_its_image") else { return };
    let spec = shell(
        "echo $FROM_IMAGE; pwd; ls /; [ $$ != 1 ] && echo not 1; ls /sys/class/net; [ -e /proc/1/root/etc ] || echo inside",
    );
    let (_, output) = run(&backend, &spec).await;
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(said, "yes\n/tmp\nbin\ndev\nproc\nsys\ntmp\nnot 1\nlo\ninside\n");
    clean(&containerd, &backend, &spec).await;
}

/// The kernel holds it to its memory, and it is said which limit that was.
#[tokio::test(flavor = "multi_thread")]
async fn memory_is_limited() {
    let Some((containerd, backend)) = backend("memory_is_limited") else { return };
    // A shell keeps what it substitutes.
    let mut spec = shell("x=$(cat /dev/zero | tr '\\000' x); exit 0");
    spec.limits.memory_bytes = Some(16 << 20);
    run(&backend, &spec).await;
    assert_eq!(backend.ran_into(), Some(Limit::Memory));
    clean(&containerd, &backend, &spec).await;
}

/// What cannot be held is not run.
#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_kept_is_refused() {
    let Some((containerd, backend)) = backend("what_cannot_be_kept_is_refused") else { return };
    let mut cpu = shell(":");
    cpu.limits.cpu_ms = Some(1);
    let mut waits = shell(":");
    waits.wait_for_descendants = true;
    for spec in [cpu, waits] {
        assert_eq!(backend.prepare(&spec).await.unwrap_err().exit_code(), 125);
        clean(&containerd, &backend, &spec).await;
    }
}

/// What `doctor` and an agent ask before anything is run.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_node_lacks_is_said_beforehand() {
    let Some((containerd, _)) = backend("what_a_node_lacks_is_said_beforehand") else { return };
    let config = support::config(&containerd, Vec::new());
    let version = glasshouse_kata::ready(&config).await.unwrap();
    assert!(version.contains('.'), "{version}");
    glasshouse_kata::has_image(&config).await.unwrap();
    let other = Config { image: "glasshouse.test/nothing:latest".into(), ..config.clone() };
    assert!(glasshouse_kata::has_image(&other).await.unwrap_err().contains("ctr images import"));
    let other = Config { runtime: "io.containerd.nothing.v9".into(), ..config.clone() };
    assert!(glasshouse_kata::ready(&other).await.unwrap_err().contains("containerd-shim-nothing-v9"));
    let other = Config { address: "/nonexistent".into(), ..config };
    assert!(glasshouse_kata::ready(&other).await.unwrap_err().contains("is containerd running"));
}
