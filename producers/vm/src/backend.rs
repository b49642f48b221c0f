//! The backend around a [`Vmm`]: its process, its session, and the steps of an execution carried over both.
//!
//! ```text
//!   prepare   the VMM's files, a private directory, the socket
//!   start     the VMM's process, in the execution's cgroup, held before its first instruction
//!   attach    the host watches the VMM; the guest's controller boots it (so the VMM's exec is seen) and attaches inside
//!   release   boots it if nobody has, and lets the command go
//!   drain     the command's rest inside; a machine that is not watched from inside powers off
//!   seal      the guest's chain, then it powers off; after that the host's
//! ```
//! - A machine can be booted ahead of its execution, up to where its guest waits for a command; the steps then go on from there.
//! - The VMM is run by the backend `process`: in a cgroup of its own, ended whatever happens, swept by the next run if ours
//!   was killed. A guest whose host is gone powers itself off.
//! - Only the guest's word that the root exited is an exit. A VMM that ends before is an error, whatever its exit code says.

mod launch;
mod listener;

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use glasshouse_backends::process::OutputBudget;
use glasshouse_backends::process::streams::{Prepared, Running};
use glasshouse_execution::backend::{
    BackendError, ExecutionBackend, ExitReport, ExitStatus, OutputReport, StartedProcess, StopSignal,
};
use glasshouse_execution::spec::ExecutionSpec;
use glasshouse_guest_link::message::Bytes;
use glasshouse_guest_link::shared::SharedMemory;
use glasshouse_guest_link::{ENTROPY_BYTES, Failure, Spec, Status, ToGuest};
use glasshouse_schema::ids::{Digest, Vantage};
use glasshouse_schema::lifecycle::{Environment, Image, Isolation};
use glasshouse_schema::limits::{Limit, Limits};
use glasshouse_schema::sandbox::NetworkAccess;
use tempfile::TempDir;
use tokio::sync::{OnceCell, oneshot, watch};

use crate::guest::GuestController;
use crate::session::{Delivered, Outputs, Session};
use crate::vmm::{Surroundings, Vmm};

use self::listener::Listener;

/// Most that is kept of a machine's console, from its end.
const CONSOLE_BYTES: usize = 64 * 1024;
/// Lines of it that an error shows.
const CONSOLE_LINES: usize = 6;
/// How long a machine may take to power off when it is asked to, or to end its command when it is told to.
const OFF_WITHIN: Duration = Duration::from_secs(10);
/// How long the end of a command may make no progress while nothing is in its way.
const STUCK_AFTER: Duration = Duration::from_secs(60);
/// How long to wait for the word of a VMM's end once its guest is gone.
const END_TOLD_WITHIN: Duration = Duration::from_secs(2);
const DOING: &str = "running the command in its virtual machine";

/// Whether a machine is kept for later executions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// From now on, as a template with this SHA-256.
    Now(Digest),
    /// It was already.
    Before(Digest),
    /// Its VMM keeps none, or something was wrong, which the log says.
    Not,
}

/// Runs a command in a virtual machine of its own.
pub struct VmBackend(pub(crate) Arc<Machine>);

/// One machine.
pub(crate) struct Machine {
    vmm: Box<dyn Vmm>,
    process: Arc<dyn ExecutionBackend>,
    console: Arc<Mutex<VecDeque<u8>>>,
    booted: OnceCell<Result<Session, BackendError>>,
    /// How the VMM ended.
    gone: watch::Sender<Option<String>>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    dir: Option<Arc<TempDir>>,
    listener: Option<Listener>,
    /// The VMM as a process, until that is started.
    vmm: Option<ExecutionSpec>,
    /// Of a machine that was booted ahead, until its command is known.
    started: Option<StartedProcess>,
    socket: Option<UnixStream>,
    /// Why what carries the link broke, where the socket does not tell.
    broken: Option<oneshot::Receiver<String>>,
    /// What the guest's messages come through, if not through the socket.
    shared: Option<SharedMemory>,
    limits: Limits,
    image: Option<Image>,
    /// It has one with an allow-list.
    has_network: bool,
    spec: Option<ExecutionSpec>,
    prepared: Option<Prepared>,
    running: Option<Running>,
    delivered: Option<Delivered>,
    budget: Option<Arc<OutputBudget>>,
    session: Option<Session>,
    /// The command's process is in the guest, and signals can go there.
    is_held: bool,
    /// Signals that came before.
    pending: Vec<StopSignal>,
    is_killed: bool,
    abort: watch::Sender<bool>,
}

impl VmBackend {
    /// A backend for one execution.
    pub fn new(vmm: impl Vmm) -> Self {
        Self(Arc::new(Machine {
            process: vmm.process(),
            vmm: Box::new(vmm),
            console: Arc::default(),
            booted: OnceCell::new(),
            gone: watch::Sender::new(None),
            state: Mutex::default(),
        }))
    }

    /// Boots the machine ahead of its execution: its guest then waits for the command. `spec` is of the VMM alone, whose cgroup has its
    /// id; `cleanup` has to follow, whatever comes of it.
    pub(crate) async fn boot_ahead(&self, spec: &ExecutionSpec) -> Result<(), BackendError> {
        let machine = &self.0;
        machine.vmm.check(spec)?;
        machine.prepare_vmm(spec).await?;
        let started = machine.start_vmm().await?;
        let socket = machine.boot_vmm().await?;
        let mut state = machine.state();
        (state.started, state.socket) = (Some(started), Some(socket));
        Ok(())
    }

    /// Boots the machine up to where its guest waits for a command, so that its VMM keeps it, and ends it: later executions like this
    /// one restore it. `spec` names the VMM's cgroup and what watches; nothing of its command is run. For one execution's worth of a value.
    pub async fn keep(&self, spec: &ExecutionSpec) -> Result<Kept, BackendError> {
        let kept = self.boot_and_keep(spec).await;
        match self.cleanup().await.into_iter().next() {
            Some(left) => kept.and(Err(BackendError::failed("ending the machine", left))),
            None => kept,
        }
    }

    async fn boot_and_keep(&self, spec: &ExecutionSpec) -> Result<Kept, BackendError> {
        let machine = &self.0;
        self.boot_ahead(spec).await?;
        if let Some(snapshot) = machine.vmm.environment().snapshot {
            return Ok(Kept::Before(snapshot));
        }
        let socket = self.take_waiting();
        let socket = socket.ok_or_else(|| BackendError::failed(DOING, "it was not started"))?;
        let shared = machine.state().shared.take();
        let nowhere = Outputs { stdout: None, stderr: None };
        let (session, _) =
            Session::begin(socket, shared, nowhere, true).map_err(failed("speaking to the guest"))?;
        machine.state().session = Some(session.clone());
        let hello = machine.told(&session, |state| state.hello.clone()).await?;
        let kept = if hello.problems.is_empty() { machine.vmm.waits().await? } else { None };
        Ok(kept.map_or(Kept::Not, Kept::Now))
    }

    /// The connection of a guest that waits for its command.
    pub(crate) fn take_waiting(&self) -> Option<UnixStream> {
        self.0.state().socket.take()
    }

    /// Whether the VMM has ended.
    pub(crate) fn is_gone(&self) -> bool {
        self.0.gone.borrow().is_some()
    }

    /// The controller of the vantage point inside this machine.
    pub fn controller(&self) -> GuestController {
        GuestController(Arc::clone(&self.0))
    }

    /// What the guest's console said last, for tests and for whoever asks why it failed.
    pub fn console(&self) -> String {
        self.0.console_text()
    }
}

fn failed(action: &str) -> impl FnOnce(std::io::Error) -> BackendError + '_ {
    move |error| BackendError::failed(action, error)
}

impl Machine {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn session(&self) -> Result<Session, BackendError> {
        let session = self.state().session.clone();
        session.ok_or_else(|| BackendError::failed(DOING, "it was not started"))
    }

    fn console_text(&self) -> String {
        let console = self.console.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&console.iter().copied().collect::<Vec<u8>>()).into_owned()
    }

    /// Boots the guest, once: later callers get what came of it.
    pub(crate) async fn boot(&self) -> Result<Session, BackendError> {
        self.booted.get_or_init(|| self.boot_once()).await.clone()
    }

    async fn boot_once(&self) -> Result<Session, BackendError> {
        let (spec, prepared) = {
            let mut state = self.state();
            (state.spec.take(), state.prepared.take())
        };
        let (Some(spec), Some(mut prepared)) = (spec, prepared) else {
            return Err(BackendError::failed(DOING, "it was not started"));
        };
        let waiting = self.state().socket.take();
        let socket = match waiting {
            Some(socket) => socket,
            None => self.boot_vmm().await?,
        };
        let [stdin, stdout, stderr] = prepared.take_child();
        let running = prepared.run().map_err(failed("connecting the standard streams"))?;
        let shared = self.state().shared.take();
        let outputs = Outputs { stdout, stderr };
        let (session, delivered) = Session::begin(socket, shared, outputs, self.vmm.greets())
            .map_err(failed("speaking to the guest"))?;
        {
            let mut state = self.state();
            (state.running, state.delivered) = (Some(running), Some(delivered));
            state.session = Some(session.clone());
        }
        self.watch_link(&session);
        self.end_with(&session);
        if self.vmm.greets() {
            let hello = self.told(&session, |state| state.hello.clone()).await?;
            tracing::debug!(kernel = hello.kernel, probe = hello.probe, "the guest speaks");
            // One that lacks something is nothing that others should begin with.
            if hello.problems.is_empty() {
                self.vmm.waits().await?;
            }
        }
        session.specify(told_to_guest(&spec, self.vmm.surroundings())?);
        let is_held =
            |state: &crate::session::State| state.failed.clone().map(Err).or(state.is_held.then_some(Ok(())));
        self.told(&session, is_held).await?.map_err(of_failure)?;
        let stdin = match stdin {
            Some(stdin) => stdin,
            None => own_stdin().map_err(failed("connecting the standard streams"))?,
        };
        session.send_stdin(stdin).map_err(failed("connecting the standard streams"))?;
        let pending = {
            let mut state = self.state();
            state.is_held = true;
            std::mem::take(&mut state.pending)
        };
        for signal in pending {
            session.ask(signal_message(signal));
        }
        Ok(session)
    }

    /// How the VMM ended, once it has.
    async fn vmm_ended(&self) -> String {
        let mut gone = self.gone.subscribe();
        let how = gone.wait_for(Option::is_some).await.map(|how| how.clone());
        match how {
            Ok(how) => how.unwrap_or_default(),
            Err(_) => std::future::pending().await,
        }
    }

    /// What the guest says, or why it does not.
    pub(crate) async fn told<T>(
        &self,
        session: &Session,
        pick: impl Fn(&crate::session::State) -> Option<T>,
    ) -> Result<T, BackendError> {
        match session.until(pick).await {
            Ok(found) => Ok(found),
            Err(reason) => Err(self.explained(&reason).await),
        }
    }

    /// A reason with what is known of the machine.
    async fn explained(&self, reason: &str) -> BackendError {
        let mut text = reason.to_owned();
        if !self.vmm.is_elsewhere()
            && let Ok(how) = tokio::time::timeout(END_TOLD_WITHIN, self.vmm_ended()).await
        {
            text.push_str(&format!("; its VMM ended with {how}"));
            text.extend(self.vmm.troubles().map(|troubles| format!("; {troubles}")));
        }
        let console = self.console_text();
        let lines: Vec<&str> = console.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        let last = lines.get(lines.len().saturating_sub(CONSOLE_LINES)..).unwrap_or_default();
        if !last.is_empty() {
            let plain: String = last.join(" | ").chars().filter(|letter| !letter.is_control()).collect();
            text.push_str(&format!("; its console ends with: {plain}"));
        }
        BackendError::failed(DOING, text)
    }

    /// Powers the machine off, or ends it when it does not do that soon.
    pub(crate) async fn power_off(&self) -> Result<(), BackendError> {
        let session = self.state().session.clone();
        if let Some(session) = &session {
            session.ask(ToGuest::Shutdown);
        }
        if session.is_none() || tokio::time::timeout(OFF_WITHIN, self.vmm_ended()).await.is_err() {
            self.process.kill(StopSignal::Kill).await?;
        }
        self.process.drain(false).await.map(drop)
    }
}

/// What the guest is told of the spec. Memory is the machine's, wall time the engine's, output counted here.
fn told_to_guest(spec: &ExecutionSpec, surroundings: Surroundings) -> Result<Spec, BackendError> {
    let mut entropy = vec![0; ENTROPY_BYTES];
    getrandom::fill(&mut entropy).map_err(|error| BackendError::failed("taking random bytes", error))?;
    let bytes = |text: &std::ffi::OsStr| Bytes(text.as_bytes().to_vec());
    // The caller's own are of another machine.
    let env = spec.env.as_ref().unwrap_or(&surroundings.env);
    let workdir = spec.workdir.as_ref().unwrap_or(&surroundings.workdir);
    Ok(Spec {
        execution: spec.id,
        argv: spec.argv.iter().map(|argument| bytes(argument)).collect(),
        env: env.iter().map(|(name, value)| (bytes(name), bytes(value))).collect(),
        workdir: bytes(workdir.as_os_str()),
        watch: spec.profile.vantages().contains(&Vantage::Guest),
        limits: Limits { wall_ms: None, output_bytes: None, ..spec.limits },
        redaction: spec.redaction.clone(),
        redaction_key: Bytes(spec.redaction_key.to_vec()),
        unix_ns: glasshouse_execution::engine::system_unix_ns(),
        entropy: Bytes(entropy),
    })
}

/// A VMM that cannot be run is not a command that was not found.
fn not_the_command(error: BackendError) -> BackendError {
    match error {
        BackendError::Failed { .. } => error,
        error => BackendError::failed("running the VMM", error),
    }
}

fn of_failure(failure: Failure) -> BackendError {
    match failure {
        Failure::NotFound { program } => BackendError::NotFound { program },
        Failure::CannotExecute { program, reason } => BackendError::CannotExecute { program, reason },
        Failure::Failed { action, reason } => {
            BackendError::Failed { action: format!("in the guest, {action}"), reason }
        }
    }
}

fn own_stdin() -> std::io::Result<OwnedFd> {
    use std::os::fd::AsFd;
    std::io::stdin().as_fd().try_clone_to_owned()
}

fn signal_message(signal: StopSignal) -> ToGuest {
    match signal {
        StopSignal::Kill => ToGuest::Kill,
        StopSignal::Terminate => ToGuest::Signal(libc::SIGTERM),
        StopSignal::Number(number) => ToGuest::Signal(number),
    }
}

#[async_trait]
impl ExecutionBackend for VmBackend {
    fn name(&self) -> &'static str {
        self.0.vmm.name()
    }

    fn isolation(&self) -> Isolation {
        self.0.vmm.isolation()
    }

    fn environment(&self) -> Environment {
        let state = self.0.state();
        let bounds = |dir: &Arc<TempDir>| self.0.vmm.bounds(dir.path(), state.has_network);
        let vmm = state.dir.as_ref().and_then(bounds);
        let mut environment = Environment { vmm, ..self.0.vmm.environment() };
        environment.sandbox.limits = state.limits;
        if state.image.is_some() {
            environment.image.clone_from(&state.image);
        }
        if state.has_network {
            // What the VMM's process can reach, its machine can.
            let of_vmm = self.0.process.environment().sandbox;
            (environment.sandbox.network, environment.sandbox.connect) = (of_vmm.network, of_vmm.connect);
        }
        environment
    }

    fn guest_profiling(&self) -> Result<(), String> {
        Ok(())
    }

    async fn prepare(&self, spec: &ExecutionSpec) -> Result<(), BackendError> {
        let machine = &self.0;
        if !spec.sandbox.level.is_none() || spec.guest_prep {
            return Err(BackendError::failed(
                "preparing the virtual machine",
                "the machine is the sandbox: leave out --sandbox and --guest",
            ));
        }
        if spec.sandbox.network == Some(NetworkAccess::Host) {
            return Err(BackendError::failed(
                "preparing the virtual machine",
                "a machine does not have the node's network: name what it may reach with --allow-connect",
            ));
        }
        machine.vmm.check(spec)?;
        let budget = spec.limits.output_bytes.map(|limit| Arc::new(OutputBudget::new(limit)));
        let prepared =
            Prepared::piped(spec, budget.clone()).map_err(failed("connecting the standard streams"))?;
        let is_there = {
            let mut state = machine.state();
            (state.prepared, state.budget, state.limits) = (Some(prepared), budget, spec.limits);
            state.has_network = !spec.sandbox.connect.is_empty() || machine.vmm.nats().is_some();
            state.dir.is_some()
        };
        // Else it was booted ahead.
        if !is_there {
            machine.prepare_vmm(spec).await?;
        }
        Ok(())
    }

    async fn start(&self, spec: &ExecutionSpec) -> Result<StartedProcess, BackendError> {
        let machine = &self.0;
        let ahead = machine.state().started.take();
        let started = match ahead {
            Some(started) => started,
            None => machine.start_vmm().await?,
        };
        machine.state().spec = Some(spec.clone());
        // Whoever watches the VMM has to see its exec; if nobody will, the machine boots before the clock runs.
        if !spec.profile.vantages().contains(&Vantage::Host) {
            machine.boot().await?;
        }
        Ok(started)
    }

    async fn release(&self) -> Result<(), BackendError> {
        let machine = &self.0;
        let session = machine.boot().await?;
        session.ask(ToGuest::Release);
        let released = |state: &crate::session::State| {
            state.failed.clone().map(Err).or(state.is_running.then_some(Ok(())))
        };
        machine.told(&session, released).await?.map_err(of_failure)
    }

    async fn wait(&self) -> Result<ExitReport, BackendError> {
        let machine = &self.0;
        let session = machine.session()?;
        let ended =
            |state: &crate::session::State| state.exit.map(Ok).or_else(|| state.failed.clone().map(Err));
        match machine.told(&session, ended).await {
            Ok(exit) => {
                let exit = exit.map_err(of_failure)?;
                let status = match exit.status {
                    Status::Code(code) => ExitStatus::Code(code),
                    Status::Signal(number) => ExitStatus::Signal(number),
                };
                Ok(ExitReport { status, rusage: exit.rusage })
            }
            // The machine did not end its command when it was told to, so it was ended with it.
            Err(_) if machine.state().is_killed => {
                Ok(ExitReport { status: ExitStatus::Signal(libc::SIGKILL), rusage: None })
            }
            Err(error) => Err(error),
        }
    }

    async fn drain(&self, wait_for_descendants: bool) -> Result<OutputReport, BackendError> {
        let machine = &self.0;
        let session = machine.session()?;
        session.ask(ToGuest::Drain(wait_for_descendants));
        let drained = tokio::select! {
            drained = machine.told(&session, |state| state.drained.clone()) => drained,
            () = stuck(&session, wait_for_descendants) => {
                session.end("the guest does not end its command");
                Err(BackendError::failed(DOING, "the guest does not end its command"))
            }
        };
        let has_exited = session.now(|state| state.exit.is_some());
        let ended = match drained {
            Ok(drained) => drained.error.map_or(Ok(()), |error| Err(BackendError::failed(DOING, error))),
            Err(error) => {
                // With the machine everything in it has ended; what it printed may be cut.
                machine.power_off().await?;
                if has_exited && !machine.state().is_killed { Err(error) } else { Ok(()) }
            }
        };
        let (running, delivered, abort, mut killed) = {
            let mut state = machine.state();
            (state.running.take(), state.delivered.take(), state.abort.subscribe(), state.abort.subscribe())
        };
        if let Some([stdout, stderr]) = delivered {
            let all = async { (stdout.await.is_ok(), stderr.await.is_ok()) };
            tokio::select! {
                _ = all => {}
                _ = killed.wait_for(|killed| *killed) => {}
            }
        }
        let output = match running {
            Some(mut running) => running.finish(abort).await?,
            None => OutputReport::default(),
        };
        if !session.now(|state| matches!(state.attached, Some(Ok(_)))) {
            machine.power_off().await?;
        }
        let is_whole = session.now(|state| state.drained.is_some());
        ended.map(|()| match is_whole {
            true => output,
            false => OutputReport { stdout_hash: None, stderr_hash: None, ..output },
        })
    }

    async fn kill(&self, signal: StopSignal) -> Result<(), BackendError> {
        let machine = &self.0;
        let (session, is_waiting) = {
            let mut state = machine.state();
            let has_exited =
                state.session.as_ref().is_some_and(|session| session.now(|state| state.exit.is_some()));
            if signal == StopSignal::Kill || has_exited {
                state.abort.send_replace(true);
            }
            if !state.is_held {
                state.pending.push(signal);
            }
            (state.session.clone().filter(|_| state.is_held), state.session.is_none())
        };
        if is_waiting && machine.vmm.is_elsewhere() {
            // Nobody has to wait for a guest that may never come.
            return machine.process.kill(signal).await;
        }
        if let Some(session) = &session {
            session.ask(signal_message(signal));
        }
        if signal == StopSignal::Kill {
            // A guest is not trusted to end anything.
            let machine = Arc::clone(machine);
            tokio::spawn(async move {
                let ended = async {
                    match session {
                        Some(session) => session.until(|state| state.exit.map(drop)).await.is_ok(),
                        None => false,
                    }
                };
                if !tokio::time::timeout(OFF_WITHIN, ended).await.unwrap_or(false) {
                    machine.state().is_killed = true;
                    let _ = machine.process.kill(StopSignal::Kill).await;
                }
            });
        }
        Ok(())
    }

    async fn cleanup(&self) -> Vec<String> {
        let machine = &self.0;
        let (session, dir) = {
            let mut state = machine.state();
            (state.prepared, state.running, state.delivered) = (None, None, None);
            (state.listener, state.socket, state.broken) = (None, None, None);
            (state.session.take(), state.dir.take())
        };
        if let Some(session) = session {
            session.end("the execution is over");
        }
        let mut left = machine.process.cleanup().await;
        tracing::debug!(console = machine.console_text(), "what the guest's console said");
        // Others may hold it for a moment; then the last of them removes it.
        if let Some(dir) = dir.and_then(Arc::into_inner) {
            let path = dir.path().to_owned();
            if let Err(error) = dir.close() {
                left.push(format!("the directory {} is left: {error}", path.display()));
            }
        }
        left
    }

    async fn exceeded(&self) -> Limit {
        let (budget, session) = {
            let state = self.0.state();
            (state.budget.clone(), state.session.clone())
        };
        let told = async {
            match session {
                Some(session) => match session.until(|state| state.exceeded).await {
                    Ok(limit) => limit,
                    Err(_) => std::future::pending().await,
                },
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            limit = OutputBudget::exceeded(budget) => limit,
            limit = told => limit,
        }
    }

    fn ran_into(&self) -> Option<Limit> {
        let session = self.0.state().session.clone()?;
        let told = session.now(|state| state.drained.as_ref().and_then(|drained| drained.ran_into));
        told.or_else(|| self.0.process.ran_into())
    }
}

/// Returns once the end of the command makes no progress though the caller takes what is printed; never, if it is to be
/// waited for.
async fn stuck(session: &Session, may_take_its_time: bool) {
    if may_take_its_time {
        std::future::pending::<()>().await;
    }
    let mut before = session.delivered();
    loop {
        tokio::time::sleep(STUCK_AFTER).await;
        let now = session.delivered();
        if now == before && !session.is_held_up() {
            return;
        }
        before = now;
    }
}
