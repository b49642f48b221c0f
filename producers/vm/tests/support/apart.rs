//! What machines of one template do not share.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use glasshouse_backends::conformance::spec;
use glasshouse_execution::backend::{ExecutionBackend as _, ExitStatus};
use glasshouse_execution::{ExecutionSpec, OutputReport};
use glasshouse_schema::ids::Digest;
use glasshouse_vm::VmBackend;

use super::left_of;

async fn start(backend: &VmBackend, spec: &ExecutionSpec) {
    backend.prepare(spec).await.unwrap();
    backend.start(spec).await.unwrap();
}

async fn end(backend: &VmBackend, spec: &ExecutionSpec) -> OutputReport {
    backend.release().await.unwrap();
    assert_eq!(backend.wait().await.unwrap().status, ExitStatus::Code(0));
    let output = backend.drain(false).await.unwrap();
    assert_eq!(backend.cleanup().await, Vec::<String>::new());
    assert_eq!(left_of(&spec.id.to_string()), Vec::<String>::new());
    output
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap()
}

/// Two machines at once that descend from this snapshot have random bytes of their own, and the host's clock.
pub(crate) async fn apart(clone: impl Fn() -> VmBackend, snapshot: Digest) {
    let made = now();
    let script = "head -c 16 /dev/urandom; head -c 16 /dev/urandom >&2";
    let of_each = [(); 2].map(|()| (clone(), spec(["/bin/sh", "-c", script])));
    for (backend, spec) in &of_each {
        start(backend, spec).await;
        assert_eq!(backend.environment().snapshot, Some(snapshot));
    }
    let mut seen = Vec::new();
    for (backend, spec) in &of_each {
        let output = end(backend, spec).await;
        seen.extend([output.stdout, output.stderr]);
    }
    seen.sort();
    seen.dedup();
    assert_eq!(seen.iter().map(Vec::len).collect::<Vec<_>>(), [16; 4], "random bytes came twice");

    // By now the snapshot is older than a run takes: a clock that went on from it would be behind the begin of this run.
    let clock = spec(["/bin/date", "+%s%N"]);
    let backend = clone();
    let began = now();
    start(&backend, &clock).await;
    let output = end(&backend, &clock).await;
    let ended = now();
    assert!(began - made > ended - began, "{:?} is too short to tell", began - made);
    let guest: u64 = String::from_utf8(output.stdout).unwrap().trim().parse().unwrap();
    let guest = Duration::from_nanos(guest);
    assert!(began <= guest && guest <= ended, "{guest:?} is not within {began:?} and {ended:?}");
}
