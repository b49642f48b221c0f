//! What becomes of real machines that end before their command, and of much output. Skipped, with the reason, where none can
//! be made.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

pub(crate) mod support;
pub(crate) mod watched;

use std::sync::{Arc, Mutex};

use glasshouse_backends::conformance::{report_skipped, spec};
use glasshouse_execution::backend::{ExecutionBackend as _, ExitStatus};
use glasshouse_execution::{ExecutionSpec, OutputTap, StartedProcess, StdStreams};
use glasshouse_schema::ids::Digest;
use glasshouse_vm::VmBackend;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

fn shell(script: &str) -> ExecutionSpec {
    spec(["/bin/sh", "-c", script])
}

async fn running(backend: &VmBackend, spec: &ExecutionSpec) -> StartedProcess {
    backend.prepare(spec).await.unwrap();
    let started = backend.start(spec).await.unwrap();
    backend.release().await.unwrap();
    started
}

async fn clean(backend: &VmBackend, spec: &ExecutionSpec) {
    assert_eq!(backend.cleanup().await, Vec::<String>::new());
    assert_eq!(support::left_of(&spec.id.to_string()), Vec::<String>::new());
}

macro_rules! backend_or_skip {
    ($name:literal) => {
        match support::backend() {
            Ok(backend) => backend,
            Err(reason) => return report_skipped($name, &reason),
        }
    };
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vmm_that_is_killed_is_an_error() {
    let backend = backend_or_skip!("a_vmm_that_is_killed_is_an_error");
    let spec = shell("sleep 1000");
    let started = running(&backend, &spec).await;
    kill(Pid::from_raw(started.identity.root_pid.unwrap() as i32), Signal::SIGKILL).unwrap();
    let error = backend.wait().await.unwrap_err().to_string();
    assert!(error.contains("its VMM ended with SIGKILL"), "{error}");
    backend.drain(false).await.unwrap();
    clean(&backend, &spec).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_that_panics_is_an_error_though_its_vmm_ends_well() {
    let backend = backend_or_skip!("a_guest_that_panics_is_an_error_though_its_vmm_ends_well");
    let spec = shell("echo c > /proc/sysrq-trigger");
    running(&backend, &spec).await;
    let error = backend.wait().await.unwrap_err().to_string();
    assert!(error.contains("its VMM ended with exit code 0"), "{error}");
    assert!(backend.console().contains("Kernel panic"), "{}", backend.console());
    backend.drain(false).await.unwrap();
    clean(&backend, &spec).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn much_output_arrives_byte_for_byte() {
    const BYTES: usize = 64 << 20;
    let backend = backend_or_skip!("much_output_arrives_byte_for_byte");
    let taken = Arc::new(Mutex::new(Vec::new()));
    let output = OutputTap::new({
        let taken = Arc::clone(&taken);
        move |_, bytes| taken.lock().unwrap().extend_from_slice(bytes)
    });
    let mut spec = shell(&format!("yes glasshouse | head -c {BYTES}"));
    spec.streams = StdStreams::Handed { stdin: Arc::from([]), output };
    running(&backend, &spec).await;
    assert_eq!(backend.wait().await.unwrap().status, ExitStatus::Code(0));
    let report = backend.drain(false).await.unwrap();
    let taken = std::mem::take(&mut *taken.lock().unwrap());
    let expected: Vec<u8> = b"glasshouse\n".iter().copied().cycle().take(BYTES).collect();
    assert!(taken == expected, "{} of {BYTES} bytes came, or others", taken.len());
    assert_eq!(report.stdout_hash, Some(Digest::of(&expected)));
    clean(&backend, &spec).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn standard_input_reaches_the_command_to_its_end() {
    let backend = backend_or_skip!("standard_input_reaches_the_command_to_its_end");
    let stdin: Arc<[u8]> = b"glasshouse\n".repeat(100_000).into();
    let mut spec = spec(["/bin/cat"]);
    spec.streams = StdStreams::Handed { stdin: Arc::clone(&stdin), output: OutputTap::new(|_, _| {}) };
    running(&backend, &spec).await;
    assert_eq!(backend.wait().await.unwrap().status, ExitStatus::Code(0));
    assert_eq!(backend.drain(false).await.unwrap().stdout_hash, Some(Digest::of(&stdin)));
    clean(&backend, &spec).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_is_not_released_does_nothing() {
    let backend = backend_or_skip!("a_command_that_is_not_released_does_nothing");
    let taken = Arc::new(Mutex::new(Vec::new()));
    let output = OutputTap::new({
        let taken = Arc::clone(&taken);
        move |_, bytes| taken.lock().unwrap().extend_from_slice(bytes)
    });
    let mut spec = shell("echo ran");
    spec.streams = StdStreams::Handed { stdin: Arc::from([]), output };
    backend.prepare(&spec).await.unwrap();
    backend.start(&spec).await.unwrap();
    // Held in the guest by now; a signal has been there and back when it has ended, without an instruction of the command.
    backend.kill(glasshouse_execution::StopSignal::Number(15)).await.unwrap();
    backend.release().await.unwrap();
    assert_eq!(backend.wait().await.unwrap().status, ExitStatus::Signal(15));
    backend.drain(false).await.unwrap();
    assert_eq!(*taken.lock().unwrap(), b"");
    clean(&backend, &spec).await;
}
