//! Every sequence of lifecycle events that the engine can publish, exactly, on the scripted backend.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use glasshouse_backends::conformance::spec;
use glasshouse_backends::fake::{Call, FakeBackend, FakeController, Gate, RecordingSink, Script};
use glasshouse_execution::backend::{BackendError, ExitStatus, StopSignal};
use glasshouse_execution::engine::{DISABLED, Engine, EngineReport};
use glasshouse_execution::spec::ExecutionSpec;
use glasshouse_execution::{Enforcement, NoopController, ProfilingController};
use glasshouse_schema::event::{Event, Fact, PathRef};
use glasshouse_schema::frame::Frame;
use glasshouse_schema::ids::{Digest, ProcessKey, Vantage};
use glasshouse_schema::lifecycle::{
    Outcome, Phase, PhaseName, ProfilingMode, RedactionRules, Step, Unavailable,
};

use PhaseName::{
    Admitted, Claimed, Cleaned, Exited, Failed, Prepared, Profiled, Requested, Sealed, Started, Unprofiled,
};

const BEFORE_ATTACH: [PhaseName; 5] = [Requested, Admitted, Claimed, Prepared, Started];

struct Case {
    backend: Arc<FakeBackend>,
    sink: Arc<RecordingSink>,
    engine: Engine,
    spec: ExecutionSpec,
}

impl Case {
    fn new(script: Script) -> Self {
        let backend = Arc::new(FakeBackend::new(script));
        let sink = Arc::new(RecordingSink::new());
        let engine = Engine::new(Arc::clone(&backend) as _, Arc::clone(&sink) as _);
        Self { backend, sink, engine, spec: spec(["command"]) }
    }

    fn profiled(
        mut self,
        mode: ProfilingMode,
        controllers: impl IntoIterator<Item = FakeController>,
    ) -> Self {
        self.spec.profile = mode;
        let controllers = controllers.into_iter().map(|of| Arc::new(of) as Arc<dyn ProfilingController>);
        self.engine.controllers = controllers.collect();
        self
    }

    fn with_sink(mut self, sink: RecordingSink) -> Self {
        self.sink = Arc::new(sink);
        self.engine.sink = Arc::clone(&self.sink) as _;
        self
    }

    async fn run(&self) -> EngineReport {
        tokio::time::timeout(Duration::from_secs(30), self.engine.run(self.spec.clone(), None)).await.unwrap()
    }

    #[track_caller]
    fn published(&self, after_start: &[PhaseName]) {
        assert_eq!(self.sink.phases(), [&BEFORE_ATTACH[..], after_start].concat());
    }
}

fn host() -> FakeController {
    FakeController::new(Vantage::Host)
}

fn guest() -> FakeController {
    FakeController::new(Vantage::Guest)
}

fn ok() -> Outcome {
    Outcome::default()
}

fn broken(action: &str) -> BackendError {
    BackendError::failed(action, "scripted")
}

fn missing(vantage: Vantage, reason: &str) -> Unavailable {
    Unavailable { vantage, reason: reason.into() }
}

#[tokio::test]
async fn happy_and_profiled() {
    let process = ProcessKey { tgid: 4242, start_boot_ns: 5 };
    let open = |path: &'static [u8]| Event {
        boot_ns: 9,
        process,
        fact: Fact::Open { path: PathRef::resolved(path), flags: 0, result: 0, created: false },
    };
    let controller = host().reporting([open(b"/etc/hosts"), open(b"/etc/hosts"), open(b"/etc/passwd")]);
    let script = Script { stdout: b"hello".to_vec(), ..Script::default() };
    let case = Case::new(script).profiled(ProfilingMode::Host, [controller]);
    let report = case.run().await;

    case.published(&[Profiled, Exited, Sealed, Cleaned]);
    assert_eq!(
        case.backend.calls(),
        [Call::Prepare, Call::Start, Call::Release, Call::Wait, Call::Drain, Call::Cleanup]
    );
    assert_eq!(report.outcome, ok());
    assert_eq!((report.failed, report.unprofiled), (None, None));
    assert_eq!(report.output.stdout, b"hello");
    assert!(report.sink_errors.is_empty() && report.cleanup_errors.is_empty());
    assert_eq!(report.profiled.unwrap().attached[0].vantage, Vantage::Host);

    let Some(Phase::Exited(exited)) = case.sink.phase(Exited) else { panic!("exited") };
    assert_eq!(exited.outcome, ok());
    assert_eq!(exited.stdout_hash, Some(Digest::of(b"hello")));
    assert_eq!(
        (exited.start_unix_ns, exited.end_unix_ns),
        (report.start_unix_ns.unwrap(), report.end_unix_ns.unwrap())
    );
    assert!(exited.start_unix_ns > 0 && exited.start_unix_ns <= exited.end_unix_ns);
    let Some(Phase::Started(started)) = case.sink.phase(Started) else { panic!("started") };
    assert_eq!(started.root_pid, Some(4242));

    let frames = case.sink.frames();
    let sealed = report.sealed.unwrap();
    assert_eq!(sealed.missing, []);
    assert_eq!(sealed.vantages[0].frames, frames.len() as u64);
    assert_eq!(sealed.vantages[0].head, frames.last().unwrap().digest);
    let bytes: Vec<&[u8]> = frames.iter().map(|frame| &*frame.bytes).collect();
    let last = Frame::decode(bytes.last().unwrap()).unwrap();
    let files = last.header.counters.class(glasshouse_schema::Class::File);
    assert_eq!((files.observed, files.delivered, files.collapsed, files.lost), (3, 2, 1, 0));

    for event in case.sink.events() {
        assert_eq!((event.execution_id, event.node.as_ref()), (case.spec.id, Some(&case.spec.node)));
    }
}

#[tokio::test]
async fn disabled_is_unprofiled_with_nothing_loaded() {
    // A controller that is there is not even asked.
    let case = Case::new(Script::default())
        .profiled(ProfilingMode::Disabled, [FakeController { panics: true, ..host() }]);
    let report = case.run().await;
    case.published(&[Unprofiled, Exited, Cleaned]);
    let unprofiled = report.unprofiled.unwrap();
    assert_eq!((unprofiled.reason.as_str(), unprofiled.unavailable.len()), (DISABLED, 0));
    assert_eq!((report.profiled, report.sealed, report.outcome), (None, None, ok()));
}

#[tokio::test]
async fn profiling_fails_open() {
    let why = Some("no BTF".to_owned());
    let panics = "host: the controller `fake` failed: it panicked: scripted panic at attach";
    for (controllers, reason) in [
        (vec![FakeController { not_ready: why.clone(), ..host() }], "host: no BTF"),
        (vec![FakeController { not_attachable: why.clone(), ..host() }], "host: no BTF"),
        (vec![FakeController { panics: true, ..host() }], panics),
        (vec![], "host: nothing here watches from the vantage point `host`"),
        (vec![guest()], "host: nothing here watches from the vantage point `host`"),
    ] {
        let case = Case::new(Script::exits(ExitStatus::Code(3))).profiled(ProfilingMode::Host, controllers);
        let report = case.run().await;
        case.published(&[Unprofiled, Exited, Cleaned]);
        assert_eq!(report.unprofiled.unwrap().reason, reason);
        assert_eq!(report.outcome.exit_code, 3);
        assert!(case.sink.frames().is_empty());
    }
}

#[tokio::test]
async fn the_noop_controller_serves_nothing() {
    let mut case = Case::new(Script::default()).profiled(ProfilingMode::Host, []);
    case.engine.controllers = vec![Arc::new(NoopController)];
    let report = case.run().await;
    assert!(report.unprofiled.unwrap().reason.starts_with("host: nothing here"));
}

#[tokio::test]
async fn the_second_controller_serves_when_the_first_cannot() {
    let first = FakeController { not_attachable: Some("busy".into()), ..host() };
    let case = Case::new(Script::default()).profiled(ProfilingMode::Host, [first, host()]);
    let report = case.run().await;
    case.published(&[Profiled, Exited, Sealed, Cleaned]);
    assert_eq!(report.profiled.unwrap().unavailable, []);
}

#[tokio::test]
async fn required_fails_closed_and_the_command_never_runs() {
    let unready = FakeController { not_ready: Some("no BTF".into()), ..host() };
    for (mode, controllers, reason) in [
        (ProfilingMode::Host, vec![unready], "host: no BTF"),
        (ProfilingMode::Guest, vec![guest()], "guest: the backend `fake` has no guest"),
        (ProfilingMode::Combined, vec![host(), guest()], "guest: the backend `fake` has no guest"),
    ] {
        let mut case = Case::new(Script::default()).profiled(mode, controllers);
        case.spec.profile_required = true;
        let report = case.run().await;
        case.published(&[Failed, Cleaned]);
        assert_eq!(case.backend.calls(), [Call::Prepare, Call::Start, Call::Kill, Call::Cleanup]);
        let failed = report.failed.unwrap();
        assert_eq!(failed.step, Step::Attach);
        assert_eq!(failed.error, format!("profiling is required and not available: {reason}"));
        assert_eq!((report.outcome.exit_code, report.outcome.error), (125, Some(failed.error)));
        assert_eq!((report.profiled, report.start_unix_ns), (None, None));
    }
}

#[tokio::test]
async fn combined_with_one_vantage_is_profiled_in_part() {
    let case = Case::new(Script::default()).profiled(ProfilingMode::Combined, [host(), guest()]);
    let report = case.run().await;
    case.published(&[Profiled, Exited, Sealed, Cleaned]);
    let profiled = report.profiled.unwrap();
    assert_eq!(profiled.attached.len(), 1);
    assert_eq!(profiled.unavailable, [missing(Vantage::Guest, "the backend `fake` has no guest")]);
    assert_eq!(report.sealed.unwrap().vantages.len(), 1);

    let script = Script { guest: Some(Ok(())), ..Script::default() };
    let case = Case::new(script).profiled(ProfilingMode::Combined, [host(), guest()]);
    let report = case.run().await;
    assert_eq!(report.profiled.unwrap().unavailable, []);
    let sealed: Vec<Vantage> = report.sealed.unwrap().vantages.iter().map(|of| of.vantage).collect();
    assert_eq!(sealed, [Vantage::Host, Vantage::Guest]);
}

#[tokio::test]
async fn a_seal_that_fails_is_missing_with_its_reason() {
    let controller = FakeController { not_sealable: Some("the ring is gone".into()), ..host() };
    let case = Case::new(Script::default()).profiled(ProfilingMode::Host, [controller]);
    let report = case.run().await;
    case.published(&[Profiled, Exited, Sealed, Cleaned]);
    let sealed = report.sealed.unwrap();
    assert_eq!(
        (sealed.vantages.len(), sealed.missing),
        (0, vec![missing(Vantage::Host, "the ring is gone")])
    );
    assert_eq!(report.outcome, ok());
}

#[tokio::test]
async fn a_command_that_a_signal_ended() {
    let case = Case::new(Script::exits(ExitStatus::Signal(9)));
    let report = case.run().await;
    let outcome = Outcome { exit_code: 137, signal: Some("SIGKILL".into()), ..Outcome::default() };
    assert_eq!(report.outcome, outcome);
    let Some(Phase::Exited(exited)) = case.sink.phase(Exited) else { panic!("exited") };
    assert_eq!(exited.outcome, outcome);
}

#[tokio::test]
async fn a_request_that_is_not_valid() {
    let mut case = Case::new(Script::default());
    case.spec.profile_required = true;
    let report = case.run().await;
    assert_eq!(case.sink.phases(), [], "nobody who has no claim speaks");
    let failed = report.failed.unwrap();
    assert_eq!((failed.step, failed.outcome.exit_code), (Step::Validate, 125));
    assert_eq!(case.backend.calls(), [Call::Cleanup]);
}

struct Refuses;

#[async_trait]
impl Enforcement for Refuses {
    fn name(&self) -> &'static str {
        "refuses"
    }
    async fn admit(&self, _: &ExecutionSpec) -> Result<(), String> {
        Err("not on Fridays".into())
    }
}

#[tokio::test]
async fn enforcement_refuses() {
    let mut case = Case::new(Script::default());
    case.engine.enforcement = Arc::new(Refuses);
    let report = case.run().await;
    assert_eq!(case.sink.phases(), [], "nobody who has no claim speaks");
    let failed = report.failed.unwrap();
    assert_eq!(
        (failed.step, failed.error.as_str()),
        (Step::Admit, "enforcement `refuses` refused it: not on Fridays")
    );
}

#[tokio::test]
async fn a_claim_that_is_taken() {
    let sink = RecordingSink::claimed_by_another("node b has it");
    let case = Case::new(Script::default()).with_sink(sink);
    let report = case.run().await;
    assert_eq!(case.sink.phases(), [], "the record is its holder's");
    assert!(report.sink_errors.is_empty());
    assert_eq!((report.failed.unwrap().step, report.outcome.exit_code), (Step::Claim, 125));
    assert_eq!(case.backend.calls(), [Call::Cleanup]);
}

#[tokio::test]
async fn what_came_before_the_claim_keeps_its_time() {
    let case = Case::new(Script::default());
    case.run().await;
    let times: Vec<i64> = case.sink.events().iter().map(|event| event.unix_ns).collect();
    assert!(times.is_sorted(), "{times:?}");
}

#[tokio::test]
async fn each_step_that_fails_unprofiled() {
    let not_found = BackendError::NotFound { program: "command".into() };
    let denied =
        BackendError::CannotExecute { program: "command".into(), reason: "permission denied".into() };
    let claimed = &BEFORE_ATTACH[..3];
    let prepared = &BEFORE_ATTACH[..4];
    let attached = &[&BEFORE_ATTACH[..], &[Unprofiled]].concat()[..];
    for (call, error, step, code, before) in [
        (Call::Prepare, broken("preparing"), Step::Prepare, 125, claimed),
        (Call::Start, not_found.clone(), Step::Start, 127, prepared),
        (Call::Release, not_found, Step::Release, 127, attached),
        (Call::Release, denied, Step::Release, 126, attached),
        (Call::Wait, broken("waiting"), Step::Wait, 125, attached),
    ] {
        let case = Case::new(Script::default().failing(call, error.clone()));
        let report = case.run().await;
        assert_eq!(case.sink.phases(), [before, &[Failed, Cleaned]].concat());
        let failed = report.failed.unwrap();
        assert_eq!((failed.step, failed.error, failed.outcome.exit_code), (step, error.to_string(), code));
        assert_eq!(report.outcome.error, Some(error.to_string()));
        assert_eq!(case.backend.calls().last(), Some(&Call::Cleanup));
    }
}

#[tokio::test]
async fn a_step_that_fails_after_the_attach_still_seals() {
    for call in [Call::Release, Call::Wait] {
        let script = Script::default().failing(call, broken("scripted"));
        let case = Case::new(script).profiled(ProfilingMode::Host, [host()]);
        let report = case.run().await;
        case.published(&[Profiled, Failed, Sealed, Cleaned]);
        assert_eq!(report.sealed.unwrap().vantages.len(), 1);
        assert_eq!(report.outcome.exit_code, 125);
        assert!(case.sink.frames().last().unwrap().is_seal);
        assert_eq!(
            case.backend.calls()[case.backend.calls().len() - 3..],
            [Call::Kill, Call::Drain, Call::Cleanup]
        );
    }
}

#[tokio::test]
async fn a_drain_that_fails_keeps_the_commands_end_and_seals_nothing() {
    let script = Script::exits(ExitStatus::Code(4)).failing(Call::Drain, broken("ending the rest"));
    let case = Case::new(script).profiled(ProfilingMode::Host, [host()]);
    let report = case.run().await;
    case.published(&[Profiled, Exited, Failed, Sealed, Cleaned]);
    assert_eq!((report.outcome.exit_code, report.outcome.error), (4, None));
    assert_eq!(report.failed.unwrap().step, Step::Seal);
    let sealed = report.sealed.unwrap();
    let reason = "tasks of the execution may be left: ending the rest: scripted";
    assert_eq!((sealed.vantages.len(), sealed.missing), (0, vec![missing(Vantage::Host, reason)]));
}

#[tokio::test]
async fn a_backend_that_panics_is_a_backend_that_failed() {
    for (call, step) in [(Call::Prepare, Step::Prepare), (Call::Start, Step::Start), (Call::Wait, Step::Wait)]
    {
        let case = Case::new(Script { panic: vec![call], ..Script::default() });
        let report = case.run().await;
        assert_eq!(case.sink.phases().last(), Some(&Cleaned));
        let failed = report.failed.unwrap();
        assert_eq!((failed.step, failed.outcome.exit_code), (step, 125));
        assert!(failed.error.contains("scripted panic"), "{}", failed.error);
    }
    let case = Case::new(Script { panic: vec![Call::Cleanup], ..Script::default() });
    let report = case.run().await;
    case.published(&[Unprofiled, Exited, Cleaned]);
    assert_eq!((report.cleanup_errors.len(), report.outcome), (1, ok()));
}

#[tokio::test]
async fn what_cleanup_leaves_is_told() {
    let script = Script { leftovers: vec!["the cgroup x is left".into()], ..Script::default() };
    let case = Case::new(script);
    let report = case.run().await;
    assert_eq!(report.cleanup_errors, ["the cgroup x is left"]);
    let Some(Phase::Cleaned(cleaned)) = case.sink.phase(Cleaned) else { panic!("cleaned") };
    assert_eq!(cleaned.errors, report.cleanup_errors);
}

#[tokio::test]
async fn a_sink_that_refuses_stops_nothing() {
    let sink = RecordingSink::refusing();
    let case = Case::new(Script::default()).profiled(ProfilingMode::Host, [host()]).with_sink(sink);
    let report = case.run().await;
    case.published(&[Profiled, Exited, Sealed, Cleaned]);
    assert_eq!(report.outcome, ok());
    // Every event and the flush.
    assert_eq!(report.sink_errors.len(), case.sink.phases().len() + 1);
}

#[tokio::test]
async fn a_kill_from_another_task_ends_the_command() {
    let gate = Gate::default();
    let script = Script { exit: None, ..Script::default() }.gated(Call::Wait, &gate);
    let case = Case::new(script);
    let kill = async {
        gate.reached().await;
        glasshouse_execution::ExecutionBackend::kill(&*case.backend, StopSignal::Terminate).await.unwrap();
        gate.open();
    };
    let (report, ()) = tokio::join!(case.run(), kill);
    assert_eq!(report.outcome.signal.as_deref(), Some("SIGTERM"));
    case.published(&[Unprofiled, Exited, Cleaned]);
}

#[tokio::test]
async fn a_dropped_run_kills_cleans_and_tells() {
    for (call, mode, step, expected) in [
        (
            Call::Prepare,
            ProfilingMode::Disabled,
            Step::Prepare,
            vec![Requested, Admitted, Claimed, Failed, Cleaned],
        ),
        (
            Call::Wait,
            ProfilingMode::Host,
            Step::Wait,
            [&BEFORE_ATTACH[..], &[Profiled, Failed, Sealed, Cleaned]].concat(),
        ),
    ] {
        let gate = Gate::default();
        let script = Script { exit: None, ..Script::default() }.gated(call, &gate);
        let case = Case::new(script).profiled(mode, [host()]);
        {
            let run = std::pin::pin!(case.engine.run(case.spec.clone(), None));
            tokio::select! {
                _ = run => panic!("it ended"),
                () = gate.reached() => {}
            }
        }
        tokio::time::timeout(Duration::from_secs(30), case.sink.flushed()).await.unwrap();
        assert_eq!(case.sink.phases(), expected);
        let Some(Phase::Failed(failed)) = case.sink.phase(Failed) else { panic!("failed") };
        assert_eq!(failed.step, step);
        assert!(failed.error.contains("abandoned"), "{}", failed.error);
        let calls = case.backend.calls();
        assert_eq!(calls[calls.len() - 2..], [Call::Kill, Call::Cleanup]);
        if mode == ProfilingMode::Host {
            let Some(Phase::Sealed(sealed)) = case.sink.phase(Sealed) else { panic!("sealed") };
            assert_eq!((sealed.vantages.len(), sealed.missing.len()), (0, 1));
        }
    }
}

#[tokio::test]
async fn nothing_secret_is_published() {
    let secret = "hunter2secret";
    let mut case = Case::new(Script::default().failing(
        Call::Start,
        BackendError::CannotExecute {
            program: format!("/home/ana/{secret}"),
            reason: format!("`TOKEN={secret}`"),
        },
    ));
    case.spec.redaction = RedactionRules { path_prefixes: vec!["/home/ana".into()], tokens: true };
    case.spec.argv =
        [format!("/home/ana/{secret}"), "--password".into(), secret.into(), format!("--token={secret}")]
            .map(Into::into)
            .into();
    case.spec.workdir = Some(format!("/home/ana/{secret}").into());
    case.spec.labels = [("api_key".to_owned(), secret.to_owned())].into();
    let report = case.run().await;
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let again = Case::new(Script::default());
    again.engine.run(case.spec.clone(), Some(trace.into())).await;
    let Some(Phase::Requested(requested)) = again.sink.phase(Requested) else { panic!("requested") };
    assert_eq!(requested.trace_id.as_deref(), Some("4bf92f3577b34da6a3ce929d0e0e4736"));
    assert_eq!(requested.argv.len(), 4);

    assert_eq!(report.outcome.exit_code, 126);
    for event in case.sink.events().into_iter().chain(again.sink.events()) {
        let bytes = event.encode().unwrap();
        let text = String::from_utf8(bytes).unwrap();
        assert!(!text.contains(secret), "{text}");
    }
}
