//! The steps of an execution, carried over containerd's services.
//!
//! ```text
//!   prepare   the image, a pid namespace, the container, a snapshot of its own
//!   start     the task: its process exists and waits
//!   release   it is started
//!   drain     the streams' ends; the shim ends what outlives the root
//!   cleanup   task, container, snapshot, pid namespace, pipes
//! ```

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::{io, sync::Arc};

use async_trait::async_trait;
use glasshouse_backends::process::OutputBudget;
use glasshouse_backends::process::streams::{Prepared, Running};
use glasshouse_execution::backend::{
    BackendError, ExecutionBackend, ExitReport, ExitStatus, OutputReport, StartedProcess, StopSignal,
};
use glasshouse_execution::profiling::TargetIdentity;
use glasshouse_execution::spec::ExecutionSpec;
use glasshouse_schema::lifecycle::{self, Environment, Isolation, Sandbox};
use glasshouse_schema::limits::{Limit, Limits};
use glasshouse_schema::sandbox::SandboxRequest;
use glasshouse_vm::{PROBE_VARIABLE, Surroundings};
use tokio::sync::watch;
use tonic::Status;

use crate::api::{
    Any, CloseIo, Container, CreateContainer, CreateTask, KillTask, Mount, PrepareSnapshot, Runtime,
    StartTask, WaitTask,
};
use crate::cgroup::Cgroup;
use crate::client::Client;
use crate::holder::Holder;
use crate::pump::{Copied, Pipes};
use crate::records::{self, SNAPSHOTTER};
use crate::{image, oci};

/// Where containerd listens.
pub const DEFAULT_ADDRESS: &str = "/run/containerd/containerd.sock";
/// The namespace of containerd that `ctr` takes when it is told none.
pub const DEFAULT_NAMESPACE: &str = "default";
/// Kata's own shim.
pub const DEFAULT_RUNTIME: &str = "io.containerd.kata.v2";

/// What a shim adds to a signal's number to say that it ended a command, as a shell does.
const SIGNALLED: u32 = 128;
/// The highest signal.
const MAX_SIGNAL: u32 = 64;
const DOING: &str = "running the command in its container";

/// What containers are made of.
#[derive(Debug, Clone)]
pub struct Config {
    /// containerd's socket.
    pub address: PathBuf,
    /// containerd's namespace, where the image is.
    pub namespace: String,
    /// The shim, as containerd names it.
    pub runtime: String,
    /// The image, by its name in containerd. It has to be unpacked, as it is after a pull or an import.
    pub image: String,
    /// Files and folders of the node that the container sees at the same path, writable.
    pub binds: Vec<PathBuf>,
}

/// Runs a command in a container of its own.
pub struct KataBackend {
    config: Config,
    /// What its containers run is this guest probe, which runs the command.
    probe: Option<PathBuf>,
    state: Mutex<State>,
    /// How the task ended, or why that cannot be told.
    exit: watch::Sender<Option<Result<u32, String>>>,
    /// Somebody does not want to wait for output any more.
    abort: watch::Sender<bool>,
}

#[derive(Default)]
struct State {
    client: Option<Client>,
    /// Containerd was asked for a container, whether or not it came about.
    has_container: bool,
    id: String,
    rootfs: Vec<Mount>,
    surroundings: Surroundings,
    image: Option<lifecycle::Image>,
    holder: Option<Holder>,
    prepared: Option<Prepared>,
    running: Option<Running>,
    pipes: Option<Pipes>,
    copied: Option<[Copied; 2]>,
    budget: Option<Arc<OutputBudget>>,
    limits: Limits,
    cgroup: Cgroup,
    ran_into: Option<Limit>,
    /// The task exists, and signals can go there.
    is_held: bool,
    is_released: bool,
    /// Signals that came before it was released.
    pending: Vec<StopSignal>,
    /// Signals that the shim was given.
    sent: Vec<u32>,
}

impl KataBackend {
    /// A backend for one execution.
    pub fn new(config: Config) -> Self {
        Self::of(config, None)
    }

    /// The same, or one whose command is a guest probe.
    pub(crate) fn of(config: Config, probe: Option<PathBuf>) -> Self {
        Self {
            config,
            probe,
            state: Mutex::default(),
            exit: watch::Sender::new(None),
            abort: watch::Sender::new(false),
        }
    }

    /// Ends what executions of killed processes left in containerd's namespace; gives what is left. A process's first execution does
    /// the same.
    ///
    /// # Errors
    /// Why containerd cannot be asked.
    pub async fn end_orphans(config: &Config) -> Result<Vec<String>, String> {
        Ok(records::sweep(&Client::connect(&config.address, &config.namespace).await?).await)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection, and what containerd knows the execution by.
    fn connected(&self) -> Result<(Client, String), BackendError> {
        let state = self.state();
        let client =
            state.client.clone().ok_or_else(|| BackendError::failed(DOING, "it was not prepared"))?;
        Ok((client, state.id.clone()))
    }

    /// What a command of the image has that was given none, once the container was made.
    pub(crate) fn surroundings(&self) -> Surroundings {
        self.state().surroundings.clone()
    }

    /// What no container here is asked for.
    pub(crate) fn check(spec: &ExecutionSpec) -> Result<(), &'static str> {
        if spec.sandbox != SandboxRequest::default() || spec.guest_prep {
            return Err(
                "the container is the sandbox: leave out --sandbox, --network, --allow-connect and --guest",
            );
        }
        if spec.run_as.is_some() {
            return Err("it runs as the image's user, not as another user of this node");
        }
        Ok(())
    }

    fn is_kata(&self) -> bool {
        self.config.runtime.contains("kata")
    }

    /// What it takes a probe inside to do.
    fn check_alone(&self, spec: &ExecutionSpec) -> Result<(), &'static str> {
        if self.is_kata() && self.probe.is_none() && spec.limits.pids.is_some() {
            return Err(
                "Kata drops the limit of processes: leave it out, or have the command watched from inside (--profile guest)",
            );
        }
        if spec.wait_for_descendants {
            return Err("a shim ends what outlives the command: leave out --wait-descendants");
        }
        if spec.limits.cpu_ms.is_some() || spec.limits.disk_bytes.is_some() {
            return Err("CPU time and disk are not limited here: leave these limits out");
        }
        Ok(())
    }

    /// Asks for the container, and for a snapshot that the container keeps from being collected.
    async fn make(&self, client: &Client, spec: &ExecutionSpec) -> Result<(), BackendError> {
        let id = spec.id.to_string();
        let finding = || format!("finding the image {} in containerd", self.config.image);
        let image = image::find(client, &self.config.image)
            .await
            .map_err(|reason| BackendError::failed(finding(), reason))?;
        let holder = Holder::new().map_err(|error| BackendError::failed("making a pid namespace", error))?;
        let document = oci::document(&oci::Parts {
            spec,
            image: &image.config,
            binds: &self.config.binds,
            pid_namespace: &holder.namespace(),
            probe: self.probe.as_deref(),
        })
        .map_err(|reason| BackendError::failed("describing the container", reason))?;
        {
            let mut state = self.state();
            (state.holder, state.has_container) = (Some(holder), true);
            state.surroundings = oci::surroundings(&image.config);
            state.image =
                image.digest.map(|digest| lifecycle::Image { name: self.config.image.clone(), digest });
        }
        let container = Container {
            id: id.clone(),
            labels: records::labels(&id),
            image: self.config.image.clone(),
            runtime: Some(Runtime { name: self.config.runtime.clone() }),
            spec: Some(Any { type_url: oci::TYPE_URL.to_owned(), value: document.to_string().into_bytes() }),
            snapshotter: SNAPSHOTTER.to_owned(),
            snapshot_key: id.clone(),
        };
        client
            .call(CreateContainer { container: Some(container) })
            .await
            .map_err(at("making the container"))?;
        let snapshot =
            PrepareSnapshot { snapshotter: SNAPSHOTTER.to_owned(), key: id, parent: image.snapshot };
        let mounts = client.call(snapshot).await.map_err(at("making the container's root filesystem"))?;
        self.state().rootfs = mounts.mounts;
        Ok(())
    }

    /// Tells how the task ended, once it has.
    fn wait_for_the_end(&self, client: Client, id: String) {
        let exit = self.exit.clone();
        tokio::spawn(async move {
            let ended = client.call(WaitTask { container_id: id }).await;
            let told = ended.map(|exited| exited.exit_status).map_err(|status| status.message().to_owned());
            exit.send_replace(Some(told));
        });
    }

    /// How the task ended.
    async fn ended(&self) -> Result<u32, BackendError> {
        let mut exit = self.exit.subscribe();
        let told = exit.wait_for(Option::is_some).await.map(|told| told.clone());
        match told {
            Ok(Some(told)) => told.map_err(|reason| BackendError::failed(DOING, reason)),
            _ => Err(BackendError::failed(DOING, "nobody waits for its end")),
        }
    }

    async fn send(&self, client: &Client, id: &str, signal: StopSignal) -> Result<(), BackendError> {
        let (number, all) = match signal {
            StopSignal::Terminate => (libc::SIGTERM, false),
            StopSignal::Kill => (libc::SIGKILL, true),
            StopSignal::Number(number) => (number, false),
        };
        let signal =
            u32::try_from(number).map_err(|error| BackendError::failed("sending a signal", error))?;
        self.state().sent.push(signal);
        client
            .remove(KillTask { container_id: id.to_owned(), signal, all })
            .await
            .map_err(at("sending a signal"))
    }
}

fn at(action: &'static str) -> impl FnOnce(Status) -> BackendError {
    move |status| BackendError::failed(action, status.message())
}

fn failed(action: &'static str) -> impl FnOnce(io::Error) -> BackendError {
    move |error| BackendError::failed(action, error)
}

/// Why a task could not be made or started. A runtime says it in words only.
fn of_start(program: &str, status: &Status) -> BackendError {
    let message = status.message();
    let is_about_the_program = message.contains("exec: ") || message.contains("exec ");
    let says = |text: &str| message.contains(text);
    if says("executable file not found in $PATH")
        || says(&format!("the file {program} was not found"))
        || (is_about_the_program && says("no such file or directory"))
    {
        return BackendError::NotFound { program: program.to_owned() };
    }
    for reason in ["permission denied", "is a directory", "exec format error"] {
        if is_about_the_program && says(reason) {
            return BackendError::CannotExecute { program: program.to_owned(), reason: reason.to_owned() };
        }
    }
    BackendError::failed(DOING, message)
}

/// A shim gives the code, or 128 and the signal's number; a command that exits with such a code by itself looks the same. Kata's gives
/// the signal's bare number, which is a code but for those that were `sent`: its agent makes SIGKILL of a SIGTERM without a handler.
fn status(told: u32, sent: &[u32]) -> ExitStatus {
    if sent.contains(&told) || (told == libc::SIGKILL as u32 && !sent.is_empty()) {
        return ExitStatus::Signal(told as i32);
    }
    match told.checked_sub(SIGNALLED) {
        Some(signal @ 1..=MAX_SIGNAL) => ExitStatus::Signal(signal as i32),
        _ => ExitStatus::Code(told as i32),
    }
}

#[async_trait]
impl ExecutionBackend for KataBackend {
    fn name(&self) -> &'static str {
        "kata"
    }

    fn isolation(&self) -> Isolation {
        // Of another runtime, no more is believed than what every one of them does.
        if self.is_kata() { Isolation::Vm } else { Isolation::Container }
    }

    fn environment(&self) -> Environment {
        let uname = nix::sys::utsname::uname().ok();
        let of = |text: Option<&std::ffi::OsStr>| text.map(|text| text.to_string_lossy().into_owned());
        let arch = of(uname.as_ref().map(|uname| uname.machine()));
        // The kernel of a virtual machine is not this one, and nobody says which it is.
        let kernel = of(uname.as_ref().map(|uname| uname.release()))
            .filter(|_| self.isolation() == Isolation::Container);
        let (image, limits) = {
            let state = self.state();
            (state.image.clone(), state.limits)
        };
        Environment {
            runtime: self.config.runtime.clone(),
            os: std::env::consts::OS.into(),
            arch: arch.unwrap_or_else(|| std::env::consts::ARCH.into()),
            kernel: kernel.unwrap_or_default(),
            snapshot: None,
            image,
            sandbox: Sandbox { network: "none".to_owned(), limits, ..Sandbox::default() },
            vmm: None,
        }
    }

    fn guest_profiling(&self) -> Result<(), String> {
        Err(format!(
            "there is no guest probe to bring into its container: build it with scripts/guest-probe.sh, or name it in {PROBE_VARIABLE}"
        ))
    }

    async fn prepare(&self, spec: &ExecutionSpec) -> Result<(), BackendError> {
        Self::check(spec)
            .and_then(|()| self.check_alone(spec))
            .map_err(|reason| BackendError::failed("preparing the container", reason))?;
        let budget = spec.limits.output_bytes.map(|limit| Arc::new(OutputBudget::new(limit)));
        let prepared =
            Prepared::piped(spec, budget.clone()).map_err(failed("connecting the standard streams"))?;
        let client = Client::connect(&self.config.address, &self.config.namespace)
            .await
            .map_err(|reason| BackendError::failed("connecting to containerd", reason))?;
        {
            let mut state = self.state();
            (state.id, state.client, state.limits) = (spec.id.to_string(), Some(client.clone()), spec.limits);
            (state.prepared, state.budget) = (Some(prepared), budget);
        }
        sweep_once(&client).await;
        self.make(&client, spec).await
    }

    async fn start(&self, spec: &ExecutionSpec) -> Result<StartedProcess, BackendError> {
        const STREAMS: &str = "connecting the standard streams";
        let (client, id) = self.connected()?;
        let task = {
            let mut state = self.state();
            let mut prepared =
                state.prepared.take().ok_or_else(|| BackendError::failed(DOING, "it was not prepared"))?;
            let [stdin, stdout, stderr] = prepared.take_child();
            state.running = Some(prepared.run().map_err(failed(STREAMS))?);
            let (Some(stdout), Some(stderr)) = (stdout, stderr) else {
                return Err(BackendError::failed(STREAMS, "there is nowhere to print to"));
            };
            let stdin = stdin.map_or_else(own_stdin, Ok).map_err(failed(STREAMS))?;
            let (pipes, copied) = Pipes::new(&id, stdin, stdout, stderr).map_err(failed(STREAMS))?;
            let [stdin, stdout, stderr] = pipes.paths().map(|path| path.to_string_lossy().into_owned());
            (state.pipes, state.copied) = (Some(pipes), Some(copied));
            CreateTask {
                container_id: id.clone(),
                rootfs: std::mem::take(&mut state.rootfs),
                stdin,
                stdout,
                stderr,
            }
        };
        let program = spec.argv.first().map(|program| program.to_string_lossy()).unwrap_or_default();
        let created = client.call(task).await.map_err(|status| of_start(&program, &status))?;
        self.wait_for_the_end(client.clone(), id.clone());
        let cgroup = Cgroup::of(created.pid);
        let identity = TargetIdentity { root_pid: Some(created.pid), cgroup_id: cgroup.id() };
        let pending = {
            let mut state = self.state();
            (state.is_held, state.cgroup) = (true, cgroup);
            state.pending.clone()
        };
        for signal in pending {
            self.send(&client, &id, signal).await?;
        }
        Ok(StartedProcess { identity })
    }

    async fn release(&self) -> Result<(), BackendError> {
        let (client, id) = self.connected()?;
        if !self.state().is_held {
            return Err(BackendError::failed(DOING, "it was not started"));
        }
        let started = client.call(StartTask { container_id: id.clone() }).await;
        let stdin = {
            let mut state = self.state();
            let was_signalled = !state.pending.is_empty();
            match &started {
                // A signal that came before ended it where it was held, and `wait` tells of that.
                Err(_) if was_signalled => {}
                Err(status) => return Err(of_start("the command", status)),
                Ok(_) => {}
            }
            state.is_released = true;
            let begun = state.pipes.as_mut().map(Pipes::begin).transpose();
            begun.map_err(failed("connecting the standard streams"))?.flatten()
        };
        // A probe in Kata's machine is told in its own words when the session ends.
        let is_kata = self.is_kata();
        if let Some(stdin) = stdin.filter(|_| !is_kata || self.probe.is_none()) {
            let exit = self.exit.subscribe();
            tokio::spawn(async move {
                let fed = stdin.await.unwrap_or(0);
                // Of a task that has ended, Kata's shim would keep everybody waiting while it looks for its machine.
                if exit.borrow().is_some() || (is_kata && fed == 0) {
                    return;
                }
                if is_kata {
                    tracing::warn!(
                        "standard input has ended: Kata's shim may lose what the command prints from now on"
                    );
                }
                // The shim keeps the pipe open for others until it is told that nobody comes. One that has ended is as good.
                let _ = client.remove(CloseIo { container_id: id, stdin: true }).await;
            });
        }
        Ok(())
    }

    async fn wait(&self) -> Result<ExitReport, BackendError> {
        if !self.state().is_released {
            return Err(BackendError::failed(DOING, "it was not started"));
        }
        let told = self.ended().await?;
        let ended_by = if self.is_kata() { self.state().sent.clone() } else { Vec::new() };
        Ok(ExitReport { status: status(told, &ended_by), rusage: None })
    }

    async fn drain(&self, _wait_for_descendants: bool) -> Result<OutputReport, BackendError> {
        if !self.state().is_released {
            return Err(BackendError::failed(DOING, "it was not started"));
        }
        self.ended().await?;
        let (copied, running) = {
            let mut state = self.state();
            state.ran_into = (state.cgroup.oom_kills() > 0).then_some(Limit::Memory);
            (state.copied.take(), state.running.take())
        };
        if let Some([stdout, stderr]) = copied {
            let mut aborted = self.abort.subscribe();
            let all = async { (stdout.await.is_ok(), stderr.await.is_ok()) };
            tokio::select! {
                _ = all => {}
                _ = aborted.wait_for(|aborted| *aborted) => {}
            }
        }
        match running {
            Some(mut running) => running.finish(self.abort.subscribe()).await,
            None => Ok(OutputReport::default()),
        }
    }

    async fn kill(&self, signal: StopSignal) -> Result<(), BackendError> {
        let has_ended = self.exit.borrow().is_some();
        if signal == StopSignal::Kill || has_ended {
            self.abort.send_replace(true);
        }
        let is_held = {
            let mut state = self.state();
            if !state.is_released {
                state.pending.push(signal);
            }
            state.is_held
        };
        if !is_held || has_ended {
            return Ok(());
        }
        let (client, id) = self.connected()?;
        self.send(&client, &id, signal).await
    }

    async fn cleanup(&self) -> Vec<String> {
        let (client, id) = {
            let mut state = self.state();
            (state.prepared, state.running, state.copied, state.is_held) = (None, None, None, false);
            let has_container = std::mem::take(&mut state.has_container);
            (state.client.clone().filter(|_| has_container), state.id.clone())
        };
        let mut left = Vec::new();
        if let Some(client) = &client {
            left.extend(records::end(client, &id).await);
        }
        let (holder, pipes) = {
            let mut state = self.state();
            (state.holder.take(), state.pipes.take())
        };
        if let Some(holder) = holder {
            // It waits for what is killed with it.
            let _ = tokio::task::spawn_blocking(move || drop(holder)).await;
        }
        if let Some(Err(error)) = pipes.map(Pipes::close) {
            left.push(format!("the pipes of {id} are left: {error}"));
        }
        match client {
            // What is left is found by the record, when the next process looks.
            Some(client) if left.is_empty() => records::forget(&client, &id).await,
            _ => left,
        }
    }

    async fn exceeded(&self) -> Limit {
        let budget = self.state().budget.clone();
        OutputBudget::exceeded(budget).await
    }

    fn ran_into(&self) -> Option<Limit> {
        self.state().ran_into
    }
}

/// Once per process, as the backend `process` does it.
async fn sweep_once(client: &Client) {
    static DONE: AtomicBool = AtomicBool::new(false);
    if !DONE.swap(true, Ordering::Relaxed) {
        for left in records::sweep(client).await {
            tracing::warn!(left, "left of an earlier run");
        }
    }
}

fn own_stdin() -> io::Result<OwnedFd> {
    io::stdin().as_fd().try_clone_to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shim_tells_codes_and_signals_in_one_number() {
        for (told, meant) in [
            (0, ExitStatus::Code(0)),
            (127, ExitStatus::Code(127)),
            (128, ExitStatus::Code(128)),
            (137, ExitStatus::Signal(9)),
            (192, ExitStatus::Signal(64)),
            (193, ExitStatus::Code(193)),
            (255, ExitStatus::Code(255)),
        ] {
            assert_eq!(status(told, &[]), meant);
        }
        assert_eq!(status(9, &[]), ExitStatus::Code(9));
        assert_eq!(status(9, &[15]), ExitStatus::Signal(9));
        assert_eq!(status(2, &[2]), ExitStatus::Signal(2));
        assert_eq!(status(2, &[15]), ExitStatus::Code(2));
    }

    #[test]
    fn words_of_a_runtime_are_told_apart() {
        let of = |message: &str| of_start("x", &Status::unknown(message));
        let missing = "runc create failed: unable to start container process: exec: \"x\": executable file not found in $PATH";
        assert_eq!(of(missing).exit_code(), 127);
        assert_eq!(of("exec: \"/x\": stat /x: no such file or directory").exit_code(), 127);
        assert_eq!(of("exec: \"/x\": permission denied").exit_code(), 126);
        let of_kata = "failed to create shim task: the file x was not found\n\nStack backtrace:\n   0: <unknown>: unknown";
        assert_eq!(of(of_kata).exit_code(), 127);
        assert_eq!(of("mount: /x: no such file or directory").exit_code(), 125);
    }
}
