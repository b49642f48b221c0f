//! A minimal runner: `run disabled|host plain|guest|hold|wait -- COMMAND…`. Its exit code is the outcome's; what else the
//! report says goes to the file named by `REPORT`, one `name=value` a line.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::process::ExitCode;
use std::sync::Arc;

use glasshouse_backends::ProcessBackend;
use glasshouse_backends::conformance::spec;
use glasshouse_backends::fake::{FakeController, RecordingSink};
use glasshouse_backends::signals::SignalForwarder;
use glasshouse_execution::spec::StdStreams;
use glasshouse_execution::{Engine, EngineReport, ExecutionBackend};
use glasshouse_schema::ids::Vantage;
use glasshouse_schema::lifecycle::{Phase, PhaseName, ProfilingMode};

pub(crate) fn run(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = arguments.collect();
    let (profile, kind, argv) = (&arguments[0], arguments[1].to_str().unwrap().to_owned(), &arguments[3..]);
    let mut spec = spec(argv.to_vec());
    spec.streams = StdStreams::Proxy;
    spec.profile = if profile == "host" { ProfilingMode::Host } else { ProfilingMode::Disabled };
    spec.guest_prep = kind == "guest";
    spec.wait_for_descendants = kind == "wait";
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(
        async {
            let backend = Arc::new(ProcessBackend::new());
            if kind == "hold" {
                backend.prepare(&spec).await.unwrap();
                let started = backend.start(&spec).await.unwrap();
                println!("{} {}", started.identity.root_pid.unwrap(), spec.id);
                return std::future::pending().await;
            }
            let sink = Arc::new(RecordingSink::new());
            let mut engine = Engine::new(Arc::clone(&backend) as _, Arc::clone(&sink) as _);
            engine.controllers = vec![Arc::new(FakeController::new(Vantage::Host))];
            let forwarder = SignalForwarder::install(backend).unwrap();
            let report = engine.run(spec, None).await;
            drop(forwarder);
            write_report(&report, &sink);
            if let Some(error) = &report.outcome.error {
                eprintln!("runner: {error}");
            }
            ExitCode::from(report.outcome.exit_code as u8)
        },
    )
}

fn write_report(report: &EngineReport, sink: &RecordingSink) {
    let Some(path) = std::env::var_os("REPORT") else { return };
    let mut text = String::new();
    let phases: Vec<&str> = sink.phases().into_iter().map(PhaseName::as_str).collect();
    writeln!(text, "phases={}", phases.join(" ")).unwrap();
    writeln!(text, "signal={}", report.outcome.signal.as_deref().unwrap_or_default()).unwrap();
    writeln!(text, "left={}", report.cleanup_errors.join("; ")).unwrap();
    if let Some(Phase::Exited(exited)) = sink.phase(PhaseName::Exited) {
        let hash =
            |hash: Option<glasshouse_schema::Digest>| hash.map(|hash| hash.to_string()).unwrap_or_default();
        writeln!(text, "stdout={}\nstderr={}", hash(exited.stdout_hash), hash(exited.stderr_hash)).unwrap();
    }
    std::fs::write(path, text).unwrap();
}
