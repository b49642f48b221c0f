//! The scripted backend.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use glasshouse_execution::backend::{
    BackendError, ExecutionBackend, ExitReport, ExitStatus, OutputReport, StartedProcess, StopSignal,
};
use glasshouse_execution::profiling::TargetIdentity;
use glasshouse_execution::spec::ExecutionSpec;
use glasshouse_schema::ids::Digest;
use glasshouse_schema::lifecycle::{Environment, Isolation, Rusage, Sandbox};
use tokio::sync::{Notify, watch};

/// A call that a backend gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs, reason = "each is the trait's method of that name")]
pub enum Call {
    Prepare,
    Start,
    Release,
    Wait,
    Drain,
    Kill,
    Cleanup,
}

/// Holds a step until it is opened, and says when the step got there.
#[derive(Debug, Clone, Default)]
pub struct Gate(Arc<(Notify, Notify)>);

impl Gate {
    /// Lets the step go on.
    pub fn open(&self) {
        self.0.1.notify_one();
    }

    /// Returns once the step waits at the gate.
    pub async fn reached(&self) {
        self.0.0.notified().await;
    }

    async fn pass(&self) {
        self.0.0.notify_one();
        self.0.1.notified().await;
    }
}

/// What the fake does. The default is a command that prints nothing and exits with 0.
#[derive(Debug, Clone)]
pub struct Script {
    /// How the command ends; `None` runs until it is killed.
    pub exit: Option<ExitStatus>,
    /// What it prints on standard output.
    pub stdout: Vec<u8>,
    /// What it prints on standard error.
    pub stderr: Vec<u8>,
    /// What it used.
    pub rusage: Option<Rusage>,
    /// How profiling would find it.
    pub identity: TargetIdentity,
    /// Steps that fail, with their error.
    pub fail: BTreeMap<Call, BackendError>,
    /// Steps that panic.
    pub panic: Vec<Call>,
    /// Steps that wait at a gate first.
    pub gates: BTreeMap<Call, Gate>,
    /// What the first cleanup could not remove.
    pub leftovers: Vec<String>,
    /// Whether it has a guest; `None` gives the trait's default reason.
    pub guest: Option<Result<(), String>>,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            exit: Some(ExitStatus::Code(0)),
            stdout: Vec::new(),
            stderr: Vec::new(),
            rusage: Some(Rusage { cpu_time_ms: 7, max_rss_kb: 1024 }),
            identity: TargetIdentity { root_pid: Some(4242), cgroup_id: Some(77) },
            fail: BTreeMap::new(),
            panic: Vec::new(),
            gates: BTreeMap::new(),
            leftovers: Vec::new(),
            guest: None,
        }
    }
}

impl Script {
    /// A command that ends so.
    pub fn exits(status: ExitStatus) -> Self {
        Self { exit: Some(status), ..Self::default() }
    }

    /// Makes a step fail.
    #[must_use]
    pub fn failing(mut self, call: Call, error: BackendError) -> Self {
        self.fail.insert(call, error);
        self
    }

    /// Makes a step wait at the gate.
    #[must_use]
    pub fn gated(mut self, call: Call, gate: &Gate) -> Self {
        self.gates.insert(call, gate.clone());
        self
    }
}

/// A backend that runs nothing and does what its script says.
pub struct FakeBackend {
    script: Script,
    calls: Mutex<Vec<Call>>,
    /// The last step that was taken in order.
    reached: Mutex<Option<Call>>,
    /// The signal that ended the command.
    killed: watch::Sender<Option<i32>>,
}

impl FakeBackend {
    /// A backend with its script.
    pub fn new(script: Script) -> Self {
        Self { script, calls: Mutex::default(), reached: Mutex::default(), killed: watch::Sender::new(None) }
    }

    /// The calls it got, in order.
    pub fn calls(&self) -> Vec<Call> {
        self.locked().clone()
    }

    fn locked(&self) -> MutexGuard<'_, Vec<Call>> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes the call, checks the order that the contract promises and does what the script says.
    async fn call(&self, call: Call) -> Result<(), BackendError> {
        let in_order = {
            let mut calls = self.locked();
            let any_time = |call: &Call| matches!(call, Call::Kill | Call::Cleanup);
            let cleaned = calls.contains(&Call::Cleanup);
            calls.push(call);
            let mut reached = self.reached.lock().unwrap_or_else(PoisonError::into_inner);
            // `drain` may follow a step that failed, so steps may be left out, but none before the start.
            let is_next = match call {
                Call::Prepare => reached.is_none(),
                Call::Start => *reached == Some(Call::Prepare),
                Call::Kill | Call::Cleanup => false,
                _ => *reached >= Some(Call::Start) && *reached < Some(call),
            };
            if is_next {
                *reached = Some(call);
            }
            any_time(&call) || (is_next && !cleaned)
        };
        if !in_order {
            return Err(BackendError::failed(format!("the step {call:?}"), "it was called out of order"));
        }
        if let Some(gate) = self.script.gates.get(&call) {
            gate.pass().await;
        }
        #[allow(clippy::panic, reason = "the script asks for it")]
        if self.script.panic.contains(&call) {
            panic!("scripted panic at {call:?}");
        }
        self.script.fail.get(&call).cloned().map_or(Ok(()), Err)
    }

    fn has_started(&self) -> bool {
        self.locked().contains(&Call::Start)
    }
}

#[async_trait]
impl ExecutionBackend for FakeBackend {
    fn name(&self) -> &'static str {
        "fake"
    }

    fn isolation(&self) -> Isolation {
        Isolation::None
    }

    fn environment(&self) -> Environment {
        Environment {
            runtime: "fake".into(),
            os: "none".into(),
            arch: "none".into(),
            sandbox: Sandbox { network: "none".into(), ..Sandbox::default() },
            ..Environment::default()
        }
    }

    fn guest_profiling(&self) -> Result<(), String> {
        self.script.guest.clone().unwrap_or_else(|| Err("the backend `fake` has no guest".into()))
    }

    async fn prepare(&self, _spec: &ExecutionSpec) -> Result<(), BackendError> {
        self.call(Call::Prepare).await
    }

    async fn start(&self, _spec: &ExecutionSpec) -> Result<StartedProcess, BackendError> {
        self.call(Call::Start).await?;
        Ok(StartedProcess { identity: self.script.identity })
    }

    async fn release(&self) -> Result<(), BackendError> {
        self.call(Call::Release).await
    }

    async fn wait(&self) -> Result<ExitReport, BackendError> {
        self.call(Call::Wait).await?;
        let mut killed = self.killed.subscribe();
        let rusage = self.script.rusage;
        if let (None, Some(status)) = (*killed.borrow(), self.script.exit) {
            return Ok(ExitReport { status, rusage });
        }
        let ended = killed.wait_for(Option::is_some).await;
        match ended.ok().and_then(|signal| *signal) {
            Some(signal) => Ok(ExitReport { status: ExitStatus::Signal(signal), rusage }),
            None => Err(BackendError::failed("waiting for the command", "the fake is gone")),
        }
    }

    async fn drain(&self, _wait_for_descendants: bool) -> Result<OutputReport, BackendError> {
        self.call(Call::Drain).await?;
        Ok(OutputReport {
            stdout_hash: Some(Digest::of(&self.script.stdout)),
            stderr_hash: Some(Digest::of(&self.script.stderr)),
            stdout: self.script.stdout.clone(),
            stderr: self.script.stderr.clone(),
            ..OutputReport::default()
        })
    }

    async fn kill(&self, signal: StopSignal) -> Result<(), BackendError> {
        let number = match signal {
            StopSignal::Terminate => 15,
            StopSignal::Kill => 9,
            StopSignal::Number(number) => number,
        };
        self.killed.send_if_modified(|killed| killed.replace(killed.unwrap_or(number)).is_none());
        self.call(Call::Kill).await
    }

    async fn cleanup(&self) -> Vec<String> {
        let first = !self.locked().contains(&Call::Cleanup);
        if self.has_started() {
            self.killed.send_if_modified(|killed| killed.replace(killed.unwrap_or(9)).is_none());
        }
        match self.call(Call::Cleanup).await {
            Err(error) => vec![error.to_string()],
            Ok(()) if first => self.script.leftovers.clone(),
            Ok(()) => Vec::new(),
        }
    }
}
