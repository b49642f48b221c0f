//! One command, without a queue and without a bus.

use std::ffi::OsString;
use std::path::Path;
use std::sync::Arc;

use glasshouse_backends::signals::SignalForwarder;
use glasshouse_execution::{Engine, ExecutionSpec, StdStreams};
use glasshouse_host_probe::{EbpfController, LoadOptions};
use glasshouse_runner::gate::PolicyGate;
use glasshouse_runner::receipt_file::ReceiptFile;
use glasshouse_runner::sink::{LocalFold, RunSink};
use glasshouse_schema::SandboxRequest;
use glasshouse_schema::lifecycle::{Outcome, ProfilingMode, RedactionRules};

use crate::{Error, Registry, Settings};

/// Runs one command as a request would be run, on the caller's standard streams, and writes its receipt to `receipt` if it
/// was watched. Gives how it ended, with what went wrong beside it.
pub async fn run_one(
    settings: &Settings,
    command: Vec<OsString>,
    receipt: &Path,
) -> Result<(Outcome, Vec<String>), Error> {
    let system = |what| move |source| Error::System { what, source };
    let only = Settings { backends: vec![settings.backend.clone()], warm_machines: 0, ..settings.clone() };
    let registry = Registry::new(&only).await?;
    let Some(made) = registry.make(&settings.backend, settings.profile, settings.limits).await else {
        return Ok((failed("the backend is gone"), Vec::new()));
    };
    let spec = ExecutionSpec {
        id: glasshouse_runner::new_execution_id().map_err(system("make an id"))?,
        node: settings.node.clone(),
        argv: command,
        env: None,
        workdir: None,
        streams: StdStreams::Proxy,
        run_as: None,
        profile: settings.profile,
        profile_required: false,
        lossless: false,
        guest_prep: false,
        wait_for_descendants: false,
        sandbox: SandboxRequest::default(),
        limits: settings.limits,
        labels: settings.labels.clone(),
        policies: settings.policies.references(),
        redaction: RedactionRules { path_prefixes: Vec::new(), tokens: true },
        redaction_key: glasshouse_runner::random().map_err(system("make a key"))?,
    };
    let watches = spec.profile != ProfilingMode::Disabled;
    let mut problems = Vec::new();
    // Found out now and not after the command ran: that the receipt can be written.
    let file = match watches.then(|| ReceiptFile::open(receipt)).transpose() {
        Ok(file) => file,
        Err(error) => return Ok((failed(&error.to_string()), problems)),
    };
    let sink = Arc::new(RunSink { local: watches.then(|| LocalFold::new(spec.id)), bus: None });
    let signals = SignalForwarder::install(Arc::clone(&made.backend)).map_err(system("forward signals"))?;
    let controllers = made.controllers(spec.profile, || {
        let options = LoadOptions { object_dir: settings.bpf_dir.clone(), ..LoadOptions::default() };
        Arc::new(EbpfController::new(options))
    });
    let enforcement =
        Arc::new(PolicyGate::new(settings.policies.clone(), &settings.backend, made.backend.isolation()));
    let engine = Engine { controllers, enforcement, ..Engine::new(made.backend, sink.clone()) };
    let report = engine.run(spec, glasshouse_telemetry::current_traceparent()).await;
    drop(signals);
    match sink.local.as_ref().map(LocalFold::close).transpose() {
        Ok(made) => {
            if let (Some(made), Some(file)) = (made.flatten(), file) {
                problems.extend(file.write(&made.bytes).err().map(|error| error.to_string()));
            }
        }
        Err(error) => problems.push(format!("the receipt cannot be made: {error}")),
    }
    if let Some(unprofiled) = report.unprofiled.filter(|_| watches) {
        problems.push(format!("the command ran unwatched: {}", unprofiled.reason));
    }
    problems.extend(report.cleanup_errors);
    Ok((report.outcome, problems))
}

fn failed(reason: &str) -> Outcome {
    Outcome { exit_code: 125, error: Some(reason.to_owned()), ..Outcome::default() }
}
