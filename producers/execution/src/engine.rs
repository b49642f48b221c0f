//! The engine: drives one execution through its steps and publishes each.
//!
//! ```text
//! validate ─ admit ─ claim ─ prepare ─ start ─ attach ─ release ─ wait ─ seal ─ cleanup
//! requested admitted claimed prepared started  profiled               exited sealed cleaned
//!                                              unprofiled
//!      any step but cleanup ─► failed ─► [sealed, if profiled] ─► cleaned
//! ```
//!
//! Invariants:
//! - `requested` comes first and `cleaned` last, whatever happens in between; the backend's `cleanup` always runs.
//! - Nothing is published before the claim is held: `requested` and `admitted` wait for it and go out ahead of
//!   `claimed`. An execution that is not valid, not admitted or not ours to run publishes nothing at all, because
//!   whoever holds the claim under the same id would find its record ended by us; the report alone says what failed.
//! - Profiling fails open: whatever goes wrong with it, the command runs and the record says why it ran unobserved.
//!   Only [`ExecutionSpec::profile_required`] turns that into `failed` at `attach`, and then the command never runs.
//! - The command's first instruction comes after `profiled` or `unprofiled` was handed to the sink.
//! - `sealed` follows every `profiled`, a failed execution's too. A vantage point is sealed only once no task of the
//!   execution is left; when that cannot be shown it is `missing`, with the reason.
//! - `exited` comes after the output was read to its end and says how the root ended, also when what follows fails.
//! - A limit that is exceeded ends all of the execution, and its outcome names the limit.
//! - A sink that fails stops nothing but the claim; its errors are in the report.
//!
//! Cancellation: a future of [`Engine::run`] that is dropped (or unwound by a panic) before its end kills the command
//! and cleans up in a task of its own, and that task publishes what is missing of the record: `failed` at the step it
//! was in, `sealed` with every vantage point missing, `cleaned`; nothing without the claim. Dropped outside of a tokio
//! runtime, nothing can be awaited: then only the backend's own `Drop` ends the command.

mod mask;
mod record;

use std::sync::{Arc, Mutex, OnceLock};

use glasshouse_schema::Limit;
use glasshouse_schema::ids::{ExecutionId, Vantage};
use glasshouse_schema::lifecycle::{
    Admitted, Claimed, Cleaned, Exited, Failed, Outcome, Phase, PhaseName, Prepared, Profiled, ProfilingMode,
    Sealed, SealedVantage, Started, Step, Unavailable, Unprofiled,
};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::{Instrument, Span, field};

use self::mask::Masker;
use self::record::{Record, Told, caught};
use crate::backend::{BackendError, ExecutionBackend, ExitReport, OutputReport, StartedProcess, StopSignal};
use crate::enforcement::{Enforcement, NoEnforcement};
use crate::outcome;
use crate::profiling::{Attachment, ProfilingController, ProfilingError, ProfilingSession, ProfilingTarget};
use crate::sink::{EventSink, SinkError};
use crate::spec::ExecutionSpec;

/// Nanoseconds since the Unix epoch.
pub type UnixClock = fn() -> i64;

/// The reason of `unprofiled` when nobody asked for profiling.
pub const DISABLED: &str = "profiling is disabled";

/// The system's clock.
pub fn system_unix_ns() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// Runs one execution: a backend value serves one.
pub struct Engine {
    /// Runs the command.
    pub backend: Arc<dyn ExecutionBackend>,
    /// What can watch it. The first of a vantage point that is ready and attaches serves it.
    pub controllers: Vec<Arc<dyn ProfilingController>>,
    /// Takes the events.
    pub sink: Arc<dyn EventSink>,
    /// Acts on them.
    pub enforcement: Arc<dyn Enforcement>,
    /// The clock of the events.
    pub unix_ns: UnixClock,
    /// Why the command is ended before its time, told by whoever ends it before it does: the outcome says it.
    pub ended_because: Arc<OnceLock<String>>,
}

/// What became of an execution.
#[derive(Debug)]
pub struct EngineReport {
    /// The execution.
    pub id: ExecutionId,
    /// What the caller sees: the command's own end, or ours with `error` set.
    pub outcome: Outcome,
    /// What was published as `profiled`.
    pub profiled: Option<Profiled>,
    /// What was published as `unprofiled`.
    pub unprofiled: Option<Unprofiled>,
    /// What was published as `sealed`.
    pub sealed: Option<Sealed>,
    /// What was published as `failed`; without the claim it is told here only.
    pub failed: Option<Failed>,
    /// What the command printed, as far as it went through the backend.
    pub output: OutputReport,
    /// Events that the sink could not take.
    pub sink_errors: Vec<SinkError>,
    /// What could not be removed.
    pub cleanup_errors: Vec<String>,
    /// When the start barrier was released, nanoseconds since the Unix epoch; `None` if it never was.
    pub start_unix_ns: Option<i64>,
    /// When the root ended, likewise.
    pub end_unix_ns: Option<i64>,
}

impl Engine {
    /// An engine without controllers and enforcement, on the system's clock.
    pub fn new(backend: Arc<dyn ExecutionBackend>, sink: Arc<dyn EventSink>) -> Self {
        Self {
            backend,
            controllers: Vec::new(),
            sink,
            enforcement: Arc::new(NoEnforcement),
            unix_ns: system_unix_ns,
            ended_because: Arc::default(),
        }
    }

    /// Runs `spec` to its end. Never fails: what went wrong is in the report and in the record. See the module for
    /// what happens when the future is dropped.
    ///
    /// `trace` is the submitter's W3C trace id, or a whole `traceparent`, of which the trace id is taken. The span
    /// `execution` is a child of the current one.
    pub async fn run(&self, spec: ExecutionSpec, trace: Option<String>) -> EngineReport {
        let span = tracing::info_span!(
            "execution",
            execution_id = %spec.id,
            backend = self.backend.name(),
            profile = spec.profile.as_str(),
            exit_code = field::Empty,
            error = field::Empty,
            otel.status_code = field::Empty,
        );
        let run = Run {
            backend: &self.backend,
            controllers: &self.controllers,
            masker: Masker::new(&spec),
            ended_because: &self.ended_because,
            guard: Guard {
                backend: Arc::clone(&self.backend),
                record: Arc::new(Record {
                    execution: spec.id,
                    node: spec.node.clone(),
                    sink: Arc::clone(&self.sink),
                    enforcement: Arc::clone(&self.enforcement),
                    unix_ns: self.unix_ns,
                    told: Mutex::new(Told::default()),
                }),
                step: Step::Validate,
                done: false,
            },
            spec: &spec,
            sessions: Vec::new(),
            output: OutputReport::default(),
            start_unix_ns: None,
            end_unix_ns: None,
            deadline: None,
            limit: None,
        };
        run.drive(trace).instrument(span).await
    }
}

/// Where an execution stopped, and why.
struct Stop {
    step: Step,
    error: BackendError,
}

/// A controller that is getting ready while the backend prepares.
struct Candidate {
    vantage: Vantage,
    controller: Arc<dyn ProfilingController>,
    ready: JoinHandle<Result<(), ProfilingError>>,
}

impl Drop for Candidate {
    fn drop(&mut self) {
        self.ready.abort();
    }
}

struct Run<'a> {
    backend: &'a Arc<dyn ExecutionBackend>,
    controllers: &'a [Arc<dyn ProfilingController>],
    spec: &'a ExecutionSpec,
    masker: Masker,
    ended_because: &'a OnceLock<String>,
    guard: Guard,
    sessions: Vec<(Vantage, Box<dyn ProfilingSession>)>,
    output: OutputReport,
    start_unix_ns: Option<i64>,
    end_unix_ns: Option<i64>,
    /// When the wall time is used up.
    deadline: Option<Instant>,
    limit: Option<Limit>,
}

impl Run<'_> {
    async fn drive(mut self, trace: Option<String>) -> EngineReport {
        let record = Arc::clone(&self.guard.record);
        let requested = self.masker.requested(self.spec, self.backend.name(), trace.and_then(trace_id));
        record.publish(Phase::Requested(requested)).await;
        let outcome = match self.launch().await {
            Ok(()) => self.conclude().await,
            Err(stop) => self.stop(stop).await,
        };
        let cleanup_errors = self.cleanup().await;
        record.flush().await;
        self.guard.done = true;

        let span = Span::current();
        span.record("exit_code", outcome.exit_code);
        if let Some(error) = &outcome.error {
            span.record("error", error.as_str()).record("otel.status_code", "ERROR");
        }
        let mut report = EngineReport {
            id: self.spec.id,
            outcome,
            profiled: None,
            unprofiled: None,
            sealed: None,
            failed: None,
            output: std::mem::take(&mut self.output),
            sink_errors: Vec::new(),
            cleanup_errors,
            start_unix_ns: self.start_unix_ns,
            end_unix_ns: self.end_unix_ns,
        };
        let mut told = record.told();
        report.sink_errors = std::mem::take(&mut told.sink_errors);
        for phase in told.phases.drain(..) {
            match phase {
                Phase::Profiled(profiled) => report.profiled = Some(profiled),
                Phase::Unprofiled(unprofiled) => report.unprofiled = Some(unprofiled),
                Phase::Sealed(sealed) => report.sealed = Some(sealed),
                Phase::Failed(failed) => report.failed = Some(failed),
                _ => {}
            }
        }
        report
    }

    /// From `validate` to a running command.
    async fn launch(&mut self) -> Result<(), Stop> {
        let record = Arc::clone(&self.guard.record);
        let spec = self.spec;

        let span = self.enter(Step::Validate);
        span.in_scope(|| spec.validate_in(self.backend.isolation()))
            .map_err(|error| self.fails(&span, BackendError::failed("the request is not valid", error)))?;

        let span = self.enter(Step::Admit);
        let enforcement = Arc::clone(&record.enforcement);
        let admitted = caught(enforcement.admit(spec)).instrument(span.clone()).await.unwrap_or_else(Err);
        admitted.map_err(|reason| {
            self.fails(
                &span,
                BackendError::failed(format!("enforcement `{}` refused it", enforcement.name()), reason),
            )
        })?;
        let admitted = Admitted {
            policies: spec.policies.clone(),
            redaction: spec.redaction.clone(),
            sandbox: spec.sandbox.level,
            limits: spec.limits,
        };
        record.publish(Phase::Admitted(admitted)).await;

        // Loading programs takes far longer than anything before the attach, so it begins here; but a machine that is
        // prepared first may lack what loading needs.
        let mut candidates = if spec.guest_prep { Vec::new() } else { self.candidates() };

        let span = self.enter(Step::Claim);
        let epoch = caught(record.sink.claim(spec.id, &spec.node)).instrument(span.clone()).await;
        let epoch = match epoch {
            Ok(Ok(epoch)) => epoch,
            Ok(Err(error)) => {
                return Err(self.fails(&span, BackendError::failed("claiming the execution", error)));
            }
            Err(panic) => {
                return Err(self.fails(&span, BackendError::failed("claiming the execution", panic)));
            }
        };
        record.claimed();
        record.publish(Phase::Claimed(Claimed { node: spec.node.clone(), epoch })).await;

        let backend = self.backend;
        self.step(Step::Prepare, backend.prepare(spec)).await?;
        if spec.guest_prep {
            candidates = self.candidates();
        }
        let prepared = Prepared {
            backend: backend.name().to_owned(),
            isolation: backend.isolation(),
            environment: Box::new(backend.environment()),
        };
        record.publish(Phase::Prepared(prepared)).await;

        let started = self.step(Step::Start, backend.start(spec)).await?;
        record.publish(Phase::Started(Started { root_pid: started.identity.root_pid })).await;

        let span = self.enter(Step::Attach);
        self.attach(started, epoch, candidates, &span).instrument(span.clone()).await?;

        self.start_unix_ns = Some((record.unix_ns)());
        self.deadline = spec.limits.wall().map(|wall| Instant::now() + wall);
        let released = self.step(Step::Release, backend.release()).await;
        if released.is_err() {
            self.start_unix_ns = None;
        }
        released
    }

    /// From a running command to its sealed record.
    async fn conclude(&mut self) -> Outcome {
        let record = Arc::clone(&self.guard.record);
        let backend = self.backend;
        let waiting = within_limits(backend, self.deadline, backend.wait());
        let mut limit = None;
        let waited = self.step(Step::Wait, async {
            let (exit, exceeded) = waiting.await;
            limit = exceeded;
            exit
        });
        let waited = waited.await;
        self.limit = limit;
        let exit = match waited {
            Ok(exit) => exit,
            Err(stop) => return self.stop(stop).await,
        };
        self.end_unix_ns = Some((record.unix_ns)());
        let span = self.enter(Step::Seal);
        let drained = self.drain(self.spec.wait_for_descendants).instrument(span.clone()).await;
        let limit = self.limit.or_else(|| backend.ran_into());
        let mut outcome = outcome::within(outcome::of_status(exit.status), limit, &self.spec.limits);
        if outcome.exit_code != 0 && outcome.error.is_none() {
            outcome.error = self.ended_because.get().cloned();
        }
        self.publish_exited(&exit, &outcome).instrument(span.clone()).await;
        let undrained = match drained {
            Ok(()) => None,
            Err(error) => {
                let Stop { step, error } = self.fails(&span, error);
                let error = error.to_string();
                // The command's own end stands: that we could not end what it left behind does not change it.
                let failed = Failed { step, error: error.clone(), outcome: outcome.clone() };
                record.publish(Phase::Failed(failed)).await;
                Some(error)
            }
        };
        self.seal(undrained).instrument(span).await;
        outcome
    }

    /// Publishes why Glasshouse stopped; ends what may run and seals what is attached.
    async fn stop(&mut self, Stop { step, error }: Stop) -> Outcome {
        let record = Arc::clone(&self.guard.record);
        let outcome = outcome::of_error(&error);
        let failed = Failed { step, error: error.to_string(), outcome: outcome.clone() };
        record.publish(Phase::Failed(failed)).await;
        if matches!(step, Step::Validate | Step::Admit | Step::Claim | Step::Prepare) {
            return outcome;
        }
        if !record.has(PhaseName::Profiled) {
            // Held processes end before anything lets go of them.
            self.sessions.clear();
        }
        let killed = caught(self.backend.kill(StopSignal::Kill))
            .await
            .unwrap_or_else(|panic| Err(BackendError::failed("killing the command", panic)));
        if let Err(error) = killed {
            tracing::warn!(error = %error, "the command could not be killed");
        }
        if record.has(PhaseName::Profiled) {
            let span = self.enter(Step::Seal);
            let undrained = self.drain(false).instrument(span.clone()).await.err();
            let undrained = undrained.map(|error| self.masker.error(error).to_string());
            self.seal(undrained).instrument(span).await;
        }
        outcome
    }

    fn candidates(&self) -> Vec<Candidate> {
        let vantages = self.spec.profile.vantages().iter();
        let mut candidates = Vec::new();
        for &vantage in vantages.filter(|vantage| self.guest(**vantage).is_ok()) {
            for controller in self.controllers.iter().filter(|of| of.capabilities().vantage == Some(vantage))
            {
                let span = tracing::info_span!(
                    "engine.ready",
                    execution_id = %self.spec.id,
                    controller = controller.name(),
                    vantage = vantage.as_str(),
                );
                let waited = Arc::clone(controller);
                let ready = tokio::spawn(async move { waited.ready().await }.instrument(span));
                candidates.push(Candidate { vantage, controller: Arc::clone(controller), ready });
            }
        }
        candidates
    }

    /// `Err` says why the vantage point cannot exist with this backend.
    fn guest(&self, vantage: Vantage) -> Result<(), String> {
        match vantage {
            Vantage::Guest => self.backend.guest_profiling(),
            Vantage::Host | Vantage::Runner => Ok(()),
        }
    }

    /// Attaches what was asked for and publishes `profiled` or `unprofiled`.
    async fn attach(
        &mut self,
        started: StartedProcess,
        epoch: u64,
        mut candidates: Vec<Candidate>,
        span: &Span,
    ) -> Result<(), Stop> {
        let record = Arc::clone(&self.guard.record);
        if self.spec.profile == ProfilingMode::Disabled {
            let unprofiled = Unprofiled { reason: DISABLED.to_owned(), unavailable: Vec::new() };
            record.publish(Phase::Unprofiled(unprofiled)).await;
            return Ok(());
        }
        let mut attached = Vec::new();
        let mut unavailable = Vec::new();
        for &vantage in self.spec.profile.vantages() {
            let mut reasons: Vec<String> = self.guest(vantage).err().into_iter().collect();
            let mut session = None;
            for candidate in candidates.iter_mut().filter(|of| of.vantage == vantage) {
                match self.attach_one(candidate, started, epoch).await {
                    Ok(attachment) => {
                        session = Some(attachment);
                        break;
                    }
                    Err(reason) => reasons.push(reason),
                }
            }
            match session {
                Some(attachment) => {
                    attached.push(attachment.attached);
                    self.sessions.push((vantage, attachment.session));
                }
                None if reasons.is_empty() => {
                    let reason = format!("nothing here watches from the vantage point `{vantage}`");
                    unavailable.push(Unavailable { vantage, reason });
                }
                None => {
                    let reason = self.masker.text(&reasons.join("; "));
                    unavailable.push(Unavailable { vantage, reason });
                }
            }
        }
        if !unavailable.is_empty() {
            let reason = joined(&unavailable);
            tracing::info!(execution_id = %self.spec.id, reason, "profiling is not available");
            if self.spec.profile_required {
                return Err(
                    self.fails(span, BackendError::failed("profiling is required and not available", reason))
                );
            }
        }
        record
            .publish(match attached.is_empty() {
                true => Phase::Unprofiled(Unprofiled { reason: joined(&unavailable), unavailable }),
                false => Phase::Profiled(Profiled { attached, unavailable }),
            })
            .await;
        Ok(())
    }

    async fn attach_one(
        &mut self,
        candidate: &mut Candidate,
        started: StartedProcess,
        epoch: u64,
    ) -> Result<Attachment, String> {
        match (&mut candidate.ready).await {
            Ok(ready) => ready.map_err(|error| error.reason)?,
            Err(error) => {
                return Err(format!("the controller `{}` failed: {error}", candidate.controller.name()));
            }
        }
        let target = ProfilingTarget {
            execution: self.spec.id,
            node: self.spec.node.clone(),
            epoch,
            identity: started.identity,
            redactor: self.masker.redactor(),
            lossless: self.spec.lossless,
        };
        let sink = Arc::clone(&self.guard.record.sink);
        match caught(candidate.controller.attach(target, sink)).await {
            Ok(attachment) => attachment.map_err(|error| error.reason),
            Err(panic) => Err(format!("the controller `{}` failed: {panic}", candidate.controller.name())),
        }
    }

    /// Returns when no task of the execution is left and its output is read.
    async fn drain(&mut self, wait_for_descendants: bool) -> Result<(), BackendError> {
        let deadline = self.deadline.filter(|_| wait_for_descendants);
        let draining = within_limits(self.backend, deadline, self.backend.drain(wait_for_descendants));
        let drained = caught(draining).await.map(|(drained, limit)| {
            self.limit = self.limit.or(limit);
            drained
        });
        self.output =
            drained.unwrap_or_else(|panic| Err(BackendError::failed("ending the execution", panic)))?;
        Ok(())
    }

    async fn publish_exited(&mut self, exit: &ExitReport, outcome: &Outcome) {
        let exited = Exited {
            outcome: outcome.clone(),
            start_unix_ns: self.start_unix_ns.unwrap_or_default(),
            end_unix_ns: self.end_unix_ns.unwrap_or_default(),
            rusage: exit.rusage,
            stdout_hash: self.output.stdout_hash,
            stderr_hash: self.output.stderr_hash,
            files: Box::new(self.output.files.clone()),
        };
        self.guard.record.publish(Phase::Exited(exited)).await;
    }

    /// Seals what is attached, or says why it is not: `undrained` is why tasks may still be left.
    async fn seal(&mut self, undrained: Option<String>) {
        if !self.guard.record.has(PhaseName::Profiled) {
            return;
        }
        let mut sealed = Sealed::default();
        // A guest is sealed before its machine ends, the host after: the last that was attached comes first.
        for (vantage, session) in self.sessions.drain(..).rev() {
            let chain = match &undrained {
                Some(error) => Err(format!("tasks of the execution may be left: {error}")),
                None => match caught(session.seal()).await {
                    Ok(chain) => chain.map_err(|error| error.reason),
                    Err(panic) => Err(format!("sealing failed: {panic}")),
                },
            };
            match chain {
                Ok(chain) => {
                    sealed.vantages.push(SealedVantage { vantage, frames: chain.frames, head: chain.head });
                }
                Err(reason) => {
                    let reason = self.masker.text(&reason);
                    tracing::warn!(execution_id = %self.spec.id, vantage = vantage.as_str(), reason, "not sealed");
                    sealed.missing.push(Unavailable { vantage, reason });
                }
            }
        }
        sealed.vantages.reverse();
        sealed.missing.reverse();
        self.guard.record.publish(Phase::Sealed(sealed)).await;
    }

    async fn cleanup(&mut self) -> Vec<String> {
        let span = self.enter(Step::Cleanup);
        self.sessions.clear();
        let errors = clean(&**self.backend).instrument(span.clone()).await;
        let errors: Vec<String> = errors.iter().map(|error| self.masker.text(error)).collect();
        if !errors.is_empty() {
            span.record("error", errors.join("; ")).record("otel.status_code", "ERROR");
        }
        self.guard.record.publish(Phase::Cleaned(Cleaned { errors: errors.clone() })).instrument(span).await;
        errors
    }

    /// Runs a step of the backend in its span.
    async fn step<T>(
        &mut self,
        step: Step,
        future: impl Future<Output = Result<T, BackendError>>,
    ) -> Result<T, Stop> {
        let span = self.enter(step);
        let result = caught(future).instrument(span.clone()).await;
        result
            .unwrap_or_else(|panic| {
                let action =
                    format!("the backend `{}` failed at the step {}", self.backend.name(), step.as_str());
                Err(BackendError::failed(action, panic))
            })
            .map_err(|error| self.fails(&span, error))
    }

    /// An error at the current step.
    fn fails(&self, span: &Span, error: BackendError) -> Stop {
        let error = self.masker.error(error);
        span.record("error", field::display(&error)).record("otel.status_code", "ERROR");
        Stop { step: self.guard.step, error }
    }

    fn enter(&mut self, step: Step) -> Span {
        macro_rules! span {
            ($name:literal) => {
                tracing::info_span!(
                    $name,
                    execution_id = %self.spec.id,
                    node_id = %self.spec.node,
                    backend = self.backend.name(),
                    error = field::Empty,
                    otel.status_code = field::Empty,
                )
            };
        }
        self.guard.step = step;
        match step {
            Step::Validate => span!("engine.validate"),
            Step::Admit => span!("engine.admit"),
            Step::Claim => span!("engine.claim"),
            Step::Prepare => span!("engine.prepare"),
            Step::Start => span!("engine.start"),
            Step::Attach => span!("engine.attach"),
            Step::Release => span!("engine.release"),
            Step::Wait => span!("engine.wait"),
            Step::Seal => span!("engine.seal"),
            Step::Cleanup => span!("engine.cleanup"),
        }
    }
}

/// Waits for `future`; once a limit is exceeded the execution is killed, which ends the wait. Gives that limit too.
async fn within_limits<T>(
    backend: &Arc<dyn ExecutionBackend>,
    deadline: Option<Instant>,
    future: impl Future<Output = Result<T, BackendError>>,
) -> (Result<T, BackendError>, Option<Limit>) {
    let wall = async {
        match deadline {
            Some(deadline) => tokio::time::sleep_until(deadline).await,
            None => std::future::pending().await,
        }
    };
    let mut future = std::pin::pin!(future);
    let limit = tokio::select! {
        biased;
        result = &mut future => return (result, None),
        () = wall => Limit::Wall,
        limit = backend.exceeded() => limit,
    };
    tracing::info!(limit = limit.as_str(), "a limit is exceeded: the execution is ended");
    match backend.kill(StopSignal::Kill).await {
        Ok(()) => (future.await, Some(limit)),
        Err(error) => (Err(error), Some(limit)),
    }
}

async fn clean(backend: &dyn ExecutionBackend) -> Vec<String> {
    caught(backend.cleanup()).await.unwrap_or_else(|panic| vec![format!("cleaning up: {panic}")])
}

fn joined(unavailable: &[Unavailable]) -> String {
    let reasons: Vec<String> =
        unavailable.iter().map(|missing| format!("{}: {}", missing.vantage, missing.reason)).collect();
    reasons.join("; ")
}

/// The trace id of a `traceparent` (W3C Trace Context: `00-<trace id>-<span id>-<flags>`), or the text itself when it
/// is one; `None` for anything else, because what is published is what a reader may look up.
fn trace_id(text: String) -> Option<String> {
    let id = text.split('-').nth(1).unwrap_or(&text);
    let is_id = id.len() == 32
        && id.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'))
        && id.bytes().any(|digit| digit != b'0');
    is_id.then(|| id.to_owned())
}

/// Ends and cleans up an execution whose future is gone.
struct Guard {
    backend: Arc<dyn ExecutionBackend>,
    record: Arc<Record>,
    step: Step,
    done: bool,
}

impl Drop for Guard {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        let (record, backend, step) = (Arc::clone(&self.record), Arc::clone(&self.backend), self.step);
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            tracing::error!(execution_id = %record.execution, "an execution was dropped outside of a runtime");
            return;
        };
        let span =
            tracing::info_span!("engine.abandoned", execution_id = %record.execution, step = step.as_str());
        runtime.spawn(abandon(record, backend, step).instrument(span));
    }
}

async fn abandon(record: Arc<Record>, backend: Arc<dyn ExecutionBackend>, step: Step) {
    let reason = format!("the execution was abandoned at the step {}", step.as_str());
    if let Ok(Err(error)) = caught(backend.kill(StopSignal::Kill)).await {
        tracing::warn!(error = %error, "the command could not be killed");
    }
    if !record.has(PhaseName::Failed) {
        let outcome = Outcome { exit_code: 125, error: Some(reason.clone()), ..Outcome::default() };
        record.publish(Phase::Failed(Failed { step, error: reason.clone(), outcome })).await;
    }
    let attached = record.told().phases.iter().find_map(|phase| match phase {
        Phase::Profiled(profiled) => {
            Some(profiled.attached.iter().map(|attached| attached.vantage).collect())
        }
        _ => None,
    });
    let attached: Option<Vec<Vantage>> = attached;
    if let Some(attached) = attached.filter(|_| !record.has(PhaseName::Sealed)) {
        let missing = attached.into_iter().map(|vantage| Unavailable { vantage, reason: reason.clone() });
        record.publish(Phase::Sealed(Sealed { vantages: Vec::new(), missing: missing.collect() })).await;
    }
    let errors = clean(&*backend).await;
    if !record.has(PhaseName::Cleaned) {
        record.publish(Phase::Cleaned(Cleaned { errors })).await;
    }
    record.flush().await;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Node agents run executions in tasks of their own.
    #[allow(dead_code, reason = "only has to compile")]
    fn run_can_be_spawned(engine: Arc<Engine>, spec: ExecutionSpec) {
        tokio::spawn(async move { engine.run(spec, None).await });
    }

    #[test]
    fn a_trace_id_is_taken_from_what_carries_one() {
        let id = "4bf92f3577b34da6a3ce929d0e0e4736";
        assert_eq!(trace_id(id.into()).as_deref(), Some(id));
        assert_eq!(trace_id(format!("00-{id}-00f067aa0ba902b7-01")).as_deref(), Some(id));
        for bad in ["", "00", "-", &"0".repeat(32), &format!("00-{}-x", &id[1..]), "secret-value"] {
            assert_eq!(trace_id(bad.into()), None, "{bad}");
        }
    }
}
