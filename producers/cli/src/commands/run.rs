//! `run`: one command, its receipt, its verdicts.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use clap::ValueEnum;
use glasshouse_backends::signals::SignalForwarder;
use glasshouse_eval::Policy;
use glasshouse_execution::{Engine, EngineReport, ExecutionSpec, ProfilingController, StdStreams};
use glasshouse_host_probe::{EbpfController, LoadOptions};
use glasshouse_nats::{Leftover, Spool, StreamPosition};
use glasshouse_runner::bus::{BusSink, Flushed, connect_to_publish};
use glasshouse_runner::gate::{Policies, PolicyGate};
use glasshouse_runner::receipt_file::ReceiptFile;
use glasshouse_runner::sink::{LocalFold, LocalReceipt, RunSink};
use glasshouse_runner::{new_execution_id, random};
use glasshouse_schema::ids::{Digest, ExecutionId, NodeId, Vantage};
use glasshouse_schema::lifecycle::{ProfilingMode, RedactionRules};
use glasshouse_schema::verdict::Decision;
use glasshouse_schema::{Receipt, Verdict};
use tracing::Instrument;

use crate::args::{FailOn, LogArgs, RunArgs};
use crate::leftovers::Leftovers;
use crate::machine::Chosen;
use crate::spool::human;
use crate::{EXIT_GLASSHOUSE_FAILED, EXIT_VERDICT, render, say};

pub(crate) fn main(args: Box<RunArgs>, log: &LogArgs) -> anyhow::Result<ExitCode> {
    // What is wrong with the request is said before anything is started.
    let policies = super::read_policies(&args.policy)?;
    // One thread is all that a command without a bus needs, and it starts fastest.
    let runtime = match args.bus.nats.is_some() || glasshouse_telemetry::is_enabled() {
        true => tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?,
        false => tokio::runtime::Builder::new_current_thread().enable_all().build()?,
    };
    let code = runtime.block_on(async {
        let telemetry = super::telemetry("glasshouse", log)?;
        // The trace of whoever calls goes on here.
        let span = tracing::info_span!("glasshouse run");
        if let Ok(parent) = std::env::var("TRACEPARENT") {
            glasshouse_telemetry::set_parent(&span, &parent);
        }
        let code = run(*args, policies).instrument(span).await;
        telemetry.shutdown();
        code
    });
    // The process ends here. Taking the runtime down first would only make the bus's client complain of every message
    // that was given up.
    std::mem::forget(runtime);
    code
}

async fn run(args: RunArgs, policies: Vec<Policy>) -> anyhow::Result<ExitCode> {
    let spec = spec(&args, &policies)?;
    if args.keep_only {
        return keep(&args, &spec).await;
    }
    match super::local::is_wanted(&args)? {
        true => by_agent(&args, &policies, &spec).await,
        // Boxed, because it is many times larger, and would be moved about for the other too.
        false => Box::pin(here(args, policies, spec)).await,
    }
}

/// Keeps the machine of such a run.
async fn keep(args: &RunArgs, spec: &ExecutionSpec) -> anyhow::Result<ExitCode> {
    let began = std::time::Instant::now();
    let (snapshot, was_kept) = args.machine.keep(args.backend, spec).await?;
    let took = began.elapsed();
    match args.json {
        true => {
            let duration_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
            say(serde_json::json!({"snapshot": snapshot, "was_kept": was_kept, "duration_ms": duration_ms}));
        }
        false if was_kept => say(format_args!("glasshouse: the machine {snapshot} was kept already")),
        false => {
            say(format_args!(
                "glasshouse: the machine {snapshot} is kept, after {:.1} s",
                took.as_secs_f64()
            ));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The node agent of this machine runs it.
async fn by_agent(args: &RunArgs, policies: &[Policy], spec: &ExecutionSpec) -> anyhow::Result<ExitCode> {
    let file = watches(args).then(|| ReceiptFile::open(&args.receipt)).transpose()?;
    let (report, receipt) = super::local::run(args, spec, &gate(args, policies)).await?;
    let mut end = End::default();
    end.write(file, receipt.as_deref());
    // Only who judges it or tells of it has to understand it.
    let is_read = args.json || !policies.is_empty();
    let receipt = receipt.filter(|_| is_read).map(received).transpose();
    end.receipt = receipt.context("the node agent's receipt")?;
    for error in &report.cleanup_errors {
        say(format_args!("glasshouse: error: {error}"));
    }
    Ok(conclude(args, policies, &report, end))
}

async fn here(args: RunArgs, policies: Vec<Policy>, spec: ExecutionSpec) -> anyhow::Result<ExitCode> {
    let Chosen { backend, inside } = args.machine.choose(args.backend, &spec)?;
    let execution = spec.id;
    let mut leftovers = None;
    let bus = match &args.bus.nats {
        None => None,
        Some(url) => match connect_to_publish(url, args.bus.creds.as_deref(), args.frame_encoding).await {
            Ok((bus, events)) => {
                let spool = spool(&args, execution, &events);
                if spool.is_some() {
                    leftovers = Some(Leftovers::send(&bus, &events, args.spool.dir.path()?));
                }
                Some(BusSink::new(&bus, spool))
            }
            // Fail-open: the command still runs and its receipt is still written here.
            Err(error) => {
                say(format_args!("glasshouse: error: {error:#}"));
                say(format_args!("glasshouse: nothing is published; the receipt of this run stays local"));
                None
            }
        },
    };
    let bus_failed = args.bus.nats.is_some() && bus.is_none();
    // Found out now and not after the command ran: that the receipt can be written.
    let watches = watches(&args);
    let file = watches.then(|| ReceiptFile::open(&args.receipt)).transpose()?;
    let local = watches.then(|| LocalFold::new(execution));
    let sink = Arc::new(RunSink { local, bus });
    let signals = SignalForwarder::install(Arc::clone(&backend)).context("cannot forward signals")?;
    let enforcement = Arc::new(gate(&args, &policies));
    let controllers = controllers(&args, inside);
    let engine = Engine { controllers, enforcement, ..Engine::new(backend, sink.clone()) };
    let trace = glasshouse_telemetry::current_traceparent();
    let report = engine.run(spec, trace).await;
    // From here on: whoever sees the receipt may end the wait for the bus.
    let interrupted = signals.stop();
    // Done by the time that our own events are.
    if let Some(leftovers) = leftovers {
        leftovers.stop();
    }

    // The receipt first: nothing that the bus does can cost or delay it. From here on no error hides how the command
    // ended.
    let mut end = End { published: args.bus.nats.is_some() && !bus_failed, ..End::default() };
    match sink.local.as_ref().map(LocalFold::close).transpose() {
        Ok(receipt) => end.receipt = receipt.flatten(),
        Err(error) => end.receipt_error = Some(format!("the receipt cannot be made: {error:#}")),
    }
    let receipt = end.receipt.take();
    end.write(file, receipt.as_ref().map(|receipt| receipt.bytes.as_slice()));
    end.receipt = receipt;
    for error in &report.sink_errors {
        say(format_args!("glasshouse: error: {error}"));
        end.published = false;
    }
    if let Some(bus) = &sink.bus {
        let flushed = bus.flush(interrupted).await;
        end.published &= flushed.left.is_none() && flushed.lost.is_none();
        say_what_is_not_published(&args, &flushed);
        end.spooled = flushed.left.map(|(left, _)| left);
    }
    drop(signals);
    Ok(conclude(&args, &policies, &report, end))
}

fn received(bytes: Vec<u8>) -> anyhow::Result<LocalReceipt> {
    Ok(LocalReceipt { receipt: Receipt::decode(&bytes)?, digest: Digest::of(&bytes), bytes })
}

pub(crate) fn watches(args: &RunArgs) -> bool {
    ProfilingMode::from(args.profile) != ProfilingMode::Disabled
}

/// Says what became of the execution; gives the exit code.
fn conclude(args: &RunArgs, policies: &[Policy], report: &EngineReport, mut end: End) -> ExitCode {
    say_what_went_unwatched(args, report);
    match verdicts(policies, report.id, end.receipt.as_ref(), report) {
        Ok(verdicts) => end.verdicts = verdicts,
        Err(error) => end.verdict_error = Some(format!("no verdict: {error:#}")),
    }
    match args.json {
        true => say(summary(args, report, &end)),
        false => end.verdicts.iter().for_each(|verdict| {
            let text = render::verdict(verdict);
            say(text.strip_suffix('\n').unwrap_or(&text));
        }),
    }
    if let Some(error) = &report.outcome.error {
        say(format_args!("glasshouse: error: {error}"));
    }
    let failed: Vec<&String> = end.receipt_error.iter().chain(&end.verdict_error).collect();
    for error in &failed {
        say(format_args!("glasshouse: error: {error}"));
    }
    if !failed.is_empty() {
        say(format_args!("glasshouse: the command ended with {}", report.outcome.exit_code));
        return ExitCode::from(EXIT_GLASSHOUSE_FAILED);
    }
    exit_code(args, report, &end.verdicts)
}

/// What is there once the command has ended.
#[derive(Default)]
struct End {
    receipt: Option<LocalReceipt>,
    /// Why it could not be written.
    receipt_error: Option<String>,
    verdicts: Vec<Verdict>,
    verdict_error: Option<String>,
    /// All of it is on the bus.
    published: bool,
    /// What waits on disk for the bus.
    spooled: Option<Leftover>,
}

impl End {
    /// Writes the receipt, if there is one and there is to be one.
    fn write(&mut self, file: Option<ReceiptFile>, receipt: Option<&[u8]>) {
        if let (Some(receipt), Some(file)) = (receipt, file) {
            let failed = file.write(receipt).err();
            self.receipt_error = failed.map(|error| format!("{error:#}")).or(self.receipt_error.take());
        }
    }
}

/// The spool of this run. Fail-open, as with the bus: the command runs without one.
fn spool(args: &RunArgs, execution: ExecutionId, events: &StreamPosition) -> Option<Spool> {
    args.spool.open(execution, events).unwrap_or_else(|error| {
        say(format_args!("glasshouse: error: {error}"));
        say(format_args!("glasshouse: there is no spool: what the NATS server does not take is lost"));
        None
    })
}

fn say_what_is_not_published(args: &RunArgs, flushed: &Flushed) {
    if let Some((left, reason)) = &flushed.left {
        let (dir, size) = (left.dir.display(), human(left.bytes));
        if left.messages > 0 {
            say(format_args!(
                "glasshouse: error: {} events ({size}) are not published yet: {reason}; they wait in {dir}, and \
                 `{}` sends them",
                left.messages,
                args.spool.dir.send_command()
            ));
        }
        if left.rejected > 0 {
            say(format_args!(
                "glasshouse: error: {} events are set aside in {dir}: the server can never take them: {reason}",
                left.rejected
            ));
        }
    }
    if let Some(error) = &flushed.lost {
        say(format_args!("glasshouse: error: {error}"));
    }
}

fn node_name() -> anyhow::Result<NodeId> {
    let name = nix::unistd::gethostname().context("cannot read the host's name")?;
    NodeId::new(name.to_string_lossy()).context("the host's name cannot be a node name: give one with --node")
}

fn spec(args: &RunArgs, policies: &[Policy]) -> anyhow::Result<ExecutionSpec> {
    let id = match args.id {
        Some(id) => id,
        None => new_execution_id()?,
    };
    let spec = ExecutionSpec {
        id,
        node: args.node.clone().map_or_else(node_name, Ok)?,
        argv: if args.keep_only { vec!["true".into()] } else { args.command.clone() },
        env: None,
        workdir: args.workdir.clone(),
        streams: StdStreams::Proxy,
        run_as: None,
        profile: args.profile.into(),
        profile_required: args.profile_required,
        lossless: args.lossless,
        guest_prep: args.guest,
        wait_for_descendants: args.wait_descendants,
        sandbox: args.sandbox.here()?,
        limits: args.sandbox.limits()?,
        labels: args.label.iter().cloned().collect(),
        policies: policies.iter().map(Policy::reference).collect(),
        redaction: RedactionRules { path_prefixes: args.mask.clone(), tokens: !args.no_mask_tokens },
        redaction_key: random()?,
    };
    spec.validate_in(args.backend.isolation())?;
    Ok(spec)
}

/// The `pre` rules of the policies; the others are for the receipt.
fn gate(args: &RunArgs, policies: &[Policy]) -> PolicyGate {
    let backend = args.backend.to_possible_value();
    let name = backend.as_ref().map(|value| value.get_name()).unwrap_or_default();
    PolicyGate::new(Policies::new(policies.to_vec()), name, args.backend.isolation())
}

fn controllers(
    args: &RunArgs,
    inside: Option<Arc<dyn ProfilingController>>,
) -> Vec<Arc<dyn ProfilingController>> {
    let vantages = ProfilingMode::from(args.profile).vantages();
    let host = || -> Arc<dyn ProfilingController> {
        let options = LoadOptions { object_dir: args.bpf_dir.clone(), ..LoadOptions::default() };
        Arc::new(EbpfController::new(options))
    };
    let host = vantages.contains(&Vantage::Host).then(host);
    host.into_iter().chain(inside.filter(|_| vantages.contains(&Vantage::Guest))).collect()
}

/// A command that was to be watched and was not says so on stderr; so does a vantage point that is missing.
fn say_what_went_unwatched(args: &RunArgs, report: &EngineReport) {
    if !watches(args) {
        return;
    }
    if let Some(unprofiled) = &report.unprofiled {
        say(format_args!("glasshouse: the command ran unwatched: {}", unprofiled.reason));
        say(format_args!(
            "glasshouse: there is no receipt; `glasshouse doctor` says what this machine lacks"
        ));
    }
    for unavailable in report.profiled.iter().flat_map(|profiled| &profiled.unavailable) {
        say(format_args!("glasshouse: no {} vantage point: {}", unavailable.vantage, unavailable.reason));
    }
}

fn verdicts(
    policies: &[Policy],
    execution: ExecutionId,
    receipt: Option<&LocalReceipt>,
    report: &EngineReport,
) -> anyhow::Result<Vec<Verdict>> {
    let why = || match &report.unprofiled {
        Some(unprofiled) => format!("there is no receipt: {}", unprofiled.reason),
        None => "there is no receipt".to_owned(),
    };
    policies
        .iter()
        .filter(|policy| policy.judges_receipts())
        .map(|policy| match receipt {
            Some(local) => Ok(policy.evaluate_post(&local.receipt, local.digest)?),
            None => Ok(policy.without_receipt(execution, &why())),
        })
        .collect()
}

fn exit_code(args: &RunArgs, report: &EngineReport, verdicts: &[Verdict]) -> ExitCode {
    let code = u8::try_from(report.outcome.exit_code).unwrap_or(EXIT_GLASSHOUSE_FAILED);
    let fails = |verdict: &Verdict| {
        matches!(
            (args.fail_on, verdict.decision),
            (Some(_), Decision::Denied) | (Some(FailOn::Unknown), Decision::Unknown)
        )
    };
    match code == 0 && verdicts.iter().any(fails) {
        true => ExitCode::from(EXIT_VERDICT),
        false => ExitCode::from(code),
    }
}

fn summary(args: &RunArgs, report: &EngineReport, end: &End) -> serde_json::Value {
    let receipt = end.receipt.as_ref();
    let written = receipt.filter(|_| end.receipt_error.is_none());
    serde_json::json!({
        "execution_id": report.id,
        "outcome": report.outcome,
        "receipt": written.map(|_| args.receipt.display().to_string()),
        "receipt_digest": receipt.map(|receipt| receipt.digest),
        "receipt_error": end.receipt_error,
        "completeness": receipt.map(|receipt| receipt.receipt.completeness),
        "unprofiled": report.unprofiled.as_ref().map(|unprofiled| &unprofiled.reason),
        "published": end.published,
        "spooled": end.spooled.as_ref().map(|left| serde_json::json!({
            "dir": left.dir.display().to_string(),
            "messages": left.messages,
            "bytes": left.bytes,
            "rejected": left.rejected,
        })),
        "verdicts": end.verdicts,
        "verdict_error": end.verdict_error,
    })
}
