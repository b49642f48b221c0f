//! What a real machine's command does, watched from inside, from outside, and from both: the receipt is closed.

use std::sync::Arc;

use glasshouse_backends::conformance::{report_skipped, spec};
use glasshouse_backends::fake::RecordingSink;
use glasshouse_execution::{Engine, EngineReport, ExecutionSpec, ProfilingController};
use glasshouse_host_probe::{EbpfController, LoadOptions};
use glasshouse_schema::Receipt;
use glasshouse_schema::ids::Vantage;
use glasshouse_schema::lifecycle::ProfilingMode;
use glasshouse_schema::receipt::Completeness;
use glasshouse_vm::VmBackend;

use super::support;

/// Runs the spec with the controllers that its profile asks for.
pub(crate) async fn run(backend: VmBackend, spec: ExecutionSpec) -> (EngineReport, Receipt) {
    let mut controllers: Vec<Arc<dyn ProfilingController>> = Vec::new();
    if spec.profile.vantages().contains(&Vantage::Host) {
        controllers.push(Arc::new(EbpfController::new(LoadOptions::default())));
    }
    if spec.profile.vantages().contains(&Vantage::Guest) {
        controllers.push(Arc::new(backend.controller()));
    }
    let execution_id = spec.id;
    let sink = Arc::new(RecordingSink::new());
    let engine = Engine { controllers, ..Engine::new(Arc::new(backend), sink.clone()) };
    let report = engine.run(spec, None).await;
    assert_eq!(report.outcome.error, None);
    assert_eq!(report.cleanup_errors, Vec::<String>::new());
    assert_eq!(support::left_of(&execution_id.to_string()), Vec::<String>::new());
    let receipt = glasshouse_fold::receipt_of(execution_id, &sink.events(), &sink.frames()).unwrap();
    (report, receipt.expect("it was profiled"))
}

/// Whether the receipt is whole and tells what `cat /etc/no-program` did, as far as its vantage points see it.
pub(crate) fn tells(receipt: &Receipt, profile: ProfilingMode) {
    let missing: Vec<&str> = receipt.coverage.incomplete.iter().map(|what| what.detail.as_str()).collect();
    match profile != ProfilingMode::Guest && support::is_jailed() {
        // Its paths are those of a root that the probe did not see it begin with, and are told as such.
        true => assert!(
            missing.iter().all(|what| what.starts_with("paths seen from another root")),
            "{missing:?}"
        ),
        false => assert_eq!((receipt.completeness, missing), (Completeness::Closed, Vec::new())),
    }
    // What the VMM may do is told where it can be held to it; that it did more would be a contradiction.
    assert_eq!(receipt.environment.vmm.is_none(), support::is_jailed());
    assert_eq!(receipt.contradictions, Vec::new());
    let vantages: Vec<Vantage> = receipt.chain.iter().map(|chain| chain.vantage).collect();
    assert_eq!(vantages, profile.vantages());
    let read = receipt.filesystem.reads.iter().any(|path| path == "/etc/no-program");
    assert_eq!(read, profile != ProfilingMode::Host, "{:?}", receipt.filesystem.reads);
    // The kernel of a guest is loaded by its VMM.
    let vmm = receipt.process_tree.iter().any(|process| process.exe.contains(&receipt.environment.runtime));
    assert_eq!(vmm, profile != ProfilingMode::Guest, "{:?}", receipt.process_tree);
}

pub(crate) fn cat(profile: ProfilingMode) -> ExecutionSpec {
    let mut spec = spec(["/bin/cat", "/etc/no-program"]);
    spec.profile = profile;
    spec
}

async fn is_closed(name: &str, profile: ProfilingMode) {
    if !nix::unistd::geteuid().is_root() {
        return report_skipped(name, "watching this kernel takes root");
    }
    match support::backend() {
        Ok(backend) => tells(&run(backend, cat(profile)).await.1, profile),
        Err(reason) => report_skipped(name, &reason),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn from_inside() {
    is_closed("from_inside", ProfilingMode::Guest).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn from_outside() {
    is_closed("from_outside", ProfilingMode::Host).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn from_both() {
    is_closed("from_both", ProfilingMode::Combined).await;
}
