//! One request, from the queue to the end of its record.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use bytes::Bytes;
use glasshouse_execution::{Engine, ExecutionBackend, ExecutionSpec, OutputTap, StdStreams, StopSignal};
use glasshouse_nats::{ClaimOutcome, Claims, Controls, Delivery, Error, OutputWriter, Spool, SpoolOptions};
use glasshouse_runner::bus::BusSink;
use glasshouse_runner::files::Patterns;
use glasshouse_runner::gate::PolicyGate;
use glasshouse_runner::sink::RunSink;
use glasshouse_schema::dead::{DeadKind, DeadLetter};
use glasshouse_schema::ids::ExecutionId;
use glasshouse_schema::lifecycle::{Failed, Isolation, PhaseName, RedactionRules, Step};
use glasshouse_schema::request::{Action, RequestError};
use glasshouse_schema::{Limits, Request};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::Instrument;

use crate::agent::{Phase, Shared};
use crate::settings::Settings;
use crate::workspace::Workspace;

/// How long the end of a record may take before its request is kept alive and it is tried again.
const SETTLE_WITHIN: Duration = Duration::from_secs(5);
/// Time that never comes.
const NEVER: Duration = Duration::from_secs(365 * 24 * 3600);
/// What every command finds in its environment, unless its request says otherwise.
const ENVIRONMENT: [(&str, &str); 3] = [
    ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
    ("HOME", "/"),
    ("LANG", "C.UTF-8"),
];

impl Shared {
    /// Sees to a request. An error leaves it unacknowledged, and it comes again.
    pub(crate) async fn take(&self, delivery: Delivery) -> Result<(), Error> {
        let request = match Request::decode(&delivery.message().payload) {
            Ok(request) => request,
            Err(error) => return self.refuse_unreadable(delivery, &error).await,
        };
        let execution = request.execution_id;
        let running = self.begin(execution);
        match Claims::new(&self.bus).take_for(execution, &self.heartbeat).await? {
            ClaimOutcome::Taken { epoch } => {
                let traceparent = glasshouse_nats::trace::traceparent(delivery.headers()).map(str::to_owned);
                let span = tracing::info_span!("request", execution_id = %execution, node_id = %self.node);
                if let Some(traceparent) = &traceparent {
                    glasshouse_telemetry::set_parent(&span, traceparent);
                }
                self.execute(delivery, request, epoch, traceparent).instrument(span).await
            }
            ClaimOutcome::Held { claim, .. } => {
                // Not ours to run, so not running.
                drop(running);
                self.settle(delivery, &request, claim).await
            }
        }
    }

    /// A request that nobody can read is set aside, and whoever waits for it is told.
    async fn refuse_unreadable(&self, delivery: Delivery, error: &RequestError) -> Result<(), Error> {
        let message = delivery.message();
        let reason = error.to_string();
        let letter = DeadLetter::new(
            DeadKind::Request,
            reason.clone(),
            &message.subject,
            (&message.stream, message.stream_seq),
            &message.payload,
            self.node.as_str(),
        );
        let publisher =
            glasshouse_nats::Publisher::new(&self.bus, glasshouse_nats::PublisherOptions::default());
        publisher.publish_dead(&letter, None).await?;
        publisher.flush().await?;
        if let Some(execution) = Request::execution_of(&message.payload) {
            let claimed = Claims::new(&self.bus).take_for(execution, &self.heartbeat).await?;
            if matches!(claimed, ClaimOutcome::Taken { .. }) {
                self.refuse(execution, Step::Validate, &reason).await?;
            }
        }
        delivery.term(&reason).await
    }

    async fn execute(
        &self,
        delivery: Delivery,
        request: Request,
        epoch: u64,
        traceparent: Option<String>,
    ) -> Result<(), Error> {
        let execution = request.execution_id;
        let settings = self.settings();
        let name = request.backend.as_ref().unwrap_or(&settings.backend);
        let limits = request.limits.strictest(settings.limits);
        let registry = self.registry();
        let profile = request.profile.unwrap_or(settings.profile);
        let Some(made) = registry.make(name, profile, limits).await else {
            let reason = match registry.unusable().get(name) {
                Some(reason) => format!("node {} cannot use its backend `{name}`: {reason}", self.node),
                None => {
                    let backends = registry.names().join(", ");
                    format!("node {} has no backend `{name}`, only {backends}", self.node)
                }
            };
            self.refuse(execution, Step::Validate, &reason).await?;
            return delivery.ack().await;
        };
        let output = Arc::new(OutputWriter::new(&self.bus, &self.node, execution));
        let isolation = made.backend.isolation();
        let prepared = self.workspace(&request, made.backend.clone()).and_then(|(backend, workdir)| {
            let spec = self.spec(&request, &settings, (workdir, limits), &output)?;
            spec.validate_in(isolation).map_err(|error| error.to_string())?;
            Ok((backend, spec))
        });
        let (backend, spec) = match prepared {
            Ok(prepared) => prepared,
            Err(reason) => {
                self.refuse(execution, Step::Validate, &reason).await?;
                return delivery.ack().await;
            }
        };
        // Before anything tells that the execution runs: whoever hears of it can cancel it.
        let controls = self.bus.controls(execution, &self.node).await?;
        let options = SpoolOptions { max_bytes: settings.spool_bytes, ..SpoolOptions::default() };
        let spool = Spool::open(self.state.spool_of(execution), options)?;
        let sink = Arc::new(RunSink {
            local: None,
            bus: Some(BusSink::claimed(&self.bus, spool, epoch, traceparent.as_deref())),
        });
        let controllers = made.controllers(spec.profile, || self.probe.clone());
        let enforcement = Arc::new(PolicyGate {
            policies: settings.policies.clone(),
            backend: name.clone(),
            isolation: backend.isolation(),
            files: request.files.clone(),
            artifacts: request.artifacts.clone(),
        });
        let engine = Engine { controllers, enforcement, ..Engine::new(backend.clone(), sink.clone()) };
        let ended_because = Arc::clone(&engine.ended_because);
        let ending = Ending { backend, ended_because, kill_grace: settings.kill_grace };

        let report = {
            let run = engine.run(spec, traceparent);
            let mut run = std::pin::pin!(run);
            tokio::select! {
                biased;
                report = &mut run => report,
                never = self.attend(execution, &delivery, controls, ending) => match never {},
            }
        };
        for error in report.sink_errors.iter().map(ToString::to_string).chain(report.cleanup_errors) {
            tracing::warn!(execution_id = %execution, error, "an execution did not end as it should");
        }
        let unseen = output.end().await;
        if unseen > 0 {
            tracing::warn!(execution_id = %execution, bytes = unseen, "output that the bus did not take was not shown live");
        }
        if let Some(Failed { step: step @ (Step::Validate | Step::Admit), error, .. }) = &report.failed {
            // The engine says nothing of what was not admitted, because it may be somebody else's. This one is ours.
            self.refuse(execution, *step, error).await?;
        }
        // Without the end of its record a request would be acknowledged that nobody hears of again.
        let Some(bus) = &sink.bus else { return Ok(()) };
        while !bus.settle(SETTLE_WITHIN).await {
            if self.phase() == Phase::Killing {
                break;
            }
            self.keep(&delivery).await;
        }
        let flushed = bus.flush(std::future::ready(())).await;
        if let Some(lost) = flushed.lost {
            tracing::error!(execution_id = %execution, error = %lost, "events were lost");
        }
        match flushed.left {
            None => delivery.ack().await,
            Some((left, reason)) => {
                tracing::warn!(
                    execution_id = %execution, messages = left.messages, reason,
                    "events wait in the spool, and are sent at the next start"
                );
                delivery.leave();
                Ok(())
            }
        }
    }

    /// Keeps the request ours and does what is asked meanwhile; ends with the execution, by being dropped.
    async fn attend(
        &self,
        execution: ExecutionId,
        delivery: &Delivery,
        mut controls: Controls,
        ending: Ending,
    ) -> std::convert::Infallible {
        let mut progress = tokio::time::interval(self.queue.ack_wait() / 3);
        progress.reset();
        let mut phase = self.phase.subscribe();
        let mut killing = std::pin::pin!(tokio::time::sleep(NEVER));
        let mut is_killed = false;
        let mut is_open = true;
        let mut kept = Instant::now();
        loop {
            tokio::select! {
                asked = controls.next(), if is_open => match asked {
                    Some(asked) => {
                        match asked.action {
                            Action::Cancel => {
                                ending.end("it was cancelled", StopSignal::Terminate).await;
                                killing.as_mut().reset(Instant::now() + ending.kill_grace);
                            }
                            Action::Kill => ending.end("it was killed on request", StopSignal::Kill).await,
                        }
                        controls.answer(asked).await;
                    }
                    None => is_open = false,
                },
                _ = progress.tick() => {
                    // Whoever did not say so in time was frozen: others may have ended the record meanwhile.
                    let was_frozen = kept.elapsed() > self.queue.ack_wait();
                    kept = Instant::now();
                    if was_frozen && self.is_ended_elsewhere(execution).await {
                        ending.end("it was given up while this agent was frozen", StopSignal::Kill).await;
                    }
                    self.keep(delivery).await;
                }
                () = &mut killing => {
                    ending.end("", StopSignal::Kill).await;
                    killing.as_mut().reset(Instant::now() + NEVER);
                }
                () = reached(&mut phase, Phase::Killing), if !is_killed => {
                    is_killed = true;
                    ending.end("the node agent was stopped", StopSignal::Kill).await;
                }
            }
        }
    }

    /// Whether somebody else has ended the record of an execution that we run.
    async fn is_ended_elsewhere(&self, execution: ExecutionId) -> bool {
        match self.bus.lifecycle_of(execution).await {
            Ok(record) => record
                .iter()
                .any(|event| matches!(event.phase.name(), PhaseName::Cleaned | PhaseName::Closed)),
            Err(error) => {
                tracing::warn!(%error, "whether an execution was given up is not known");
                false
            }
        }
    }

    async fn keep(&self, delivery: &Delivery) {
        if let Err(error) = delivery.progress().await {
            tracing::debug!(%error, "a request was not kept");
        }
    }

    /// Where the command is to run, and the backend that makes and removes the directory if it is one of its own.
    fn workspace(
        &self,
        request: &Request,
        inner: Arc<dyn ExecutionBackend>,
    ) -> Result<(Arc<dyn ExecutionBackend>, Option<PathBuf>), String> {
        // Others do not see the node's directories.
        let is_of_node = matches!(inner.isolation(), Isolation::None | Isolation::Process);
        if request.has_files() && !is_of_node {
            return Err(format!("the backend `{}` takes no files and gives none", inner.name()));
        }
        if !request.has_own_workdir() || !is_of_node {
            // What is not of the node has a working directory of its own where nobody names one; the node's is the agent's.
            let default = is_of_node.then_some("/");
            return Ok((inner, request.workdir.as_deref().or(default).map(PathBuf::from)));
        }
        let dir = self.state.work_of(request.execution_id);
        let workspace = Workspace {
            inner,
            bus: self.bus.clone(),
            dir: dir.clone(),
            inputs: request.files.clone(),
            artifacts: Patterns::new(&request.artifacts).map_err(|error| error.to_string())?,
            phase: self.phase.subscribe(),
            has_run: AtomicBool::new(false),
        };
        Ok((Arc::new(workspace), Some(dir)))
    }

    fn spec(
        &self,
        request: &Request,
        settings: &Settings,
        (workdir, limits): (Option<PathBuf>, Limits),
        output: &Arc<OutputWriter>,
    ) -> Result<ExecutionSpec, String> {
        let mut env: BTreeMap<OsString, OsString> =
            ENVIRONMENT.iter().map(|(name, value)| (name.into(), value.into())).collect();
        env.extend(request.env.iter().map(|(name, value)| (name.into(), value.into())));
        let mut labels = settings.labels.clone();
        labels.extend(request.labels.clone());
        if let Some(first) = request.retry_of {
            labels.insert("retry_of".into(), first.to_string());
        }
        let (runtime, output) = (tokio::runtime::Handle::current(), Arc::clone(output));
        let tap = OutputTap::new(move |stream, bytes| {
            runtime.block_on(output.write(stream, Bytes::copy_from_slice(bytes)));
        });
        let random = || glasshouse_runner::random().map_err(|error| error.to_string());
        let spec = ExecutionSpec {
            id: request.execution_id,
            node: self.node.clone(),
            argv: request.argv.iter().map(OsString::from).collect(),
            env: Some(env.into_iter().collect()),
            workdir,
            streams: StdStreams::Handed { stdin: request.stdin_base64.0.as_slice().into(), output: tap },
            run_as: None,
            profile: request.profile.unwrap_or(settings.profile),
            profile_required: request.profile_required,
            lossless: false,
            guest_prep: false,
            wait_for_descendants: false,
            sandbox: request.sandbox.clone(),
            limits,
            labels,
            policies: settings.policies.references(),
            redaction: RedactionRules { path_prefixes: Vec::new(), tokens: true },
            redaction_key: random()?,
        };
        Ok(spec)
    }
}

/// Returns once the agent is so far in its life; the sender lives as long as we do.
async fn reached(phase: &mut watch::Receiver<Phase>, wanted: Phase) {
    let _ = phase.wait_for(|phase| *phase == wanted).await;
}

/// How an execution is ended before its time.
struct Ending {
    backend: Arc<dyn ExecutionBackend>,
    ended_because: Arc<std::sync::OnceLock<String>>,
    kill_grace: Duration,
}

impl Ending {
    /// The first reason counts.
    async fn end(&self, reason: &str, signal: StopSignal) {
        self.ended_because.get_or_init(|| reason.to_owned());
        if let Err(error) = self.backend.kill(signal).await {
            tracing::warn!(%error, "the command could not be signalled");
        }
    }
}
