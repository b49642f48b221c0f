//! What a container's command does, watched from the node's kernel: the receipt is closed. Made by the runc shim, not by Kata's own
//! (docs/kata.md).

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[allow(dead_code, reason = "each test takes what it needs")]
mod support;

use std::sync::Arc;

use glasshouse_backends::conformance::{report_skipped, spec};
use glasshouse_backends::fake::RecordingSink;
use glasshouse_execution::{Engine, ProfilingController as _};
use glasshouse_host_probe::{EbpfController, LoadOptions};
use glasshouse_kata::KataBackend;
use glasshouse_schema::lifecycle::ProfilingMode;
use glasshouse_schema::receipt::Completeness;
use support::Containerd;

#[tokio::test(flavor = "multi_thread")]
async fn a_container_is_watched_from_its_first_exec_to_its_end() {
    const NAME: &str = "a_container_is_watched_from_its_first_exec_to_its_end";
    let containerd = match Containerd::shared() {
        Ok(containerd) => containerd,
        Err(reason) => return report_skipped(NAME, &reason),
    };
    let controller = EbpfController::new(LoadOptions::default());
    if let Err(error) = controller.ready().await {
        return report_skipped(NAME, &error.reason);
    }
    let mut spec = spec(["sh", "-c", "echo x > /tmp/made; cat /tmp/made; exit 4"]);
    spec.profile = ProfilingMode::Host;
    let execution_id = spec.id;
    let sink = Arc::new(RecordingSink::new());
    let backend = Arc::new(KataBackend::new(support::config(&containerd, Vec::new())));
    let engine = Engine { controllers: vec![Arc::new(controller)], ..Engine::new(backend, sink.clone()) };
    let report = engine.run(spec, None).await;
    assert_eq!((report.outcome.exit_code, report.outcome.error), (4, None));
    assert_eq!(report.cleanup_errors, Vec::<String>::new());
    assert_eq!(containerd.left(&execution_id.to_string()), Vec::<String>::new());

    let receipt = glasshouse_fold::receipt_of(execution_id, &sink.events(), &sink.frames()).unwrap();
    let receipt = receipt.expect("it was profiled");
    assert_eq!(receipt.completeness, Completeness::Closed, "{:?}", receipt.coverage.incomplete);
    assert_eq!(receipt.environment.runtime, support::RUNTIME);
    assert_eq!(receipt.environment.image, Some(containerd.image()));
    // Paths are those inside; neither the shim nor the runtime is in it.
    assert_eq!(receipt.filesystem.writes, ["/tmp/made"]);
    assert!(
        receipt.filesystem.reads.iter().any(|path| path == "/tmp/made"),
        "{:?}",
        receipt.filesystem.reads
    );
    let programs: Vec<(&str, &str)> = receipt
        .process_tree
        .iter()
        .map(|process| (process.exe.as_str(), process.argv.first().map_or("", String::as_str)))
        .collect();
    assert_eq!(programs, [("/bin/busybox", "sh"), ("/bin/busybox", "cat")]);
}
