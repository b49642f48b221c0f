//! The backend `process`: a process of this node in its own cgroup v2.
//!
//! - The command starts in its cgroup (clone3), so profiling sees it from its first instruction and nothing of it
//!   escapes the end: `cgroup.kill`, then `populated 0`.
//! - Where no cgroup v2 can be made the command runs all the same, unobserved. What it leaves behind is then found by
//!   process group and session; a command on the caller's own terminal shares ours, and then only the root is ended.
//! - `max_rss_kb` is the kernel's figure for the process, which counts this process's pages up to the exec.
//! - Dropped without `cleanup`, it kills what runs and removes what it can without waiting.

#![allow(unsafe_code, reason = "pidfd_send_signal and waitid with rusage have no safe API")]

mod cgroup;
mod group;
mod guest;
mod limits;
mod pty;
mod resolve;
mod sandbox;
mod shared;
mod spawn;
pub mod streams;
mod user;

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use glasshouse_execution::backend::{
    BackendError, ExecutionBackend, ExitReport, ExitStatus, OutputReport, StartedProcess, StopSignal,
};
use glasshouse_execution::profiling::TargetIdentity;
use glasshouse_execution::spec::{ExecutionSpec, RunAs, StdStreams};
use glasshouse_schema::ids::ExecutionId;
use glasshouse_schema::lifecycle::{self, Environment, Isolation, Rusage};
use glasshouse_schema::limits::Limit;
use glasshouse_schema::sandbox::SandboxLevel;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, Interest};
use tokio::net::unix::pipe;
use tokio::sync::watch;

use self::cgroup::Cgroup;
use self::limits::Enforced;
pub use self::limits::OutputBudget;
use self::resolve::Program;
use self::sandbox::{AllowList, Init, Peers, Sandbox};
use self::spawn::{Failure, Held, Placement, Plan, Stage};
use self::streams::{Prepared, Running};

pub use self::streams::{CAPTURE_BYTES, LentStreams};
use crate::fd::watch;

/// How long cleanup waits for killed processes to be gone before it reports them.
const GONE_WITHIN: Duration = Duration::from_secs(10);
/// The inode of the initial pid namespace (PROC_PID_INIT_INO, include/linux/proc_ns.h).
const INITIAL_PID_NAMESPACE: &str = "pid:[4026531836]";

/// Runs a command as a process of this node.
#[derive(Default)]
pub struct ProcessBackend {
    state: Mutex<State>,
    /// The command leads a process group of its own, so that no terminal's ^C reaches it.
    own_group: bool,
    /// The cgroup that the command's is made in, where that is not our own.
    below: Option<PathBuf>,
}

#[derive(Default)]
struct State {
    cgroup: Option<Arc<Cgroup>>,
    child: Option<Arc<Child>>,
    streams: Option<Running>,
    sandbox: Arc<Sandbox>,
    /// Of its network; it goes before the cgroup does.
    allow_list: Option<AllowList>,
    /// What the receipt says of it.
    told: lifecycle::Sandbox,
    limits: Arc<Enforced>,
    /// Ends after the root was waited for.
    init: Option<Init>,
    user: Option<RunAs>,
    /// A signal that came before there was a process.
    pending: Option<i32>,
    rest: Rest,
    /// True once somebody asked for an end and nothing of the command is left to be asked.
    abort: watch::Sender<bool>,
}

/// What a signal means once the root has ended.
enum Rest {
    /// Nobody has asked for the end of the rest yet: these signals wait for that.
    NotYet(Vec<i32>),
    /// What the root left behind is being waited for, and so many signals have asked it to end.
    Waiting(usize),
    /// Nobody is left, or all that is left is being killed.
    Over,
}

impl Default for Rest {
    fn default() -> Self {
        Self::NotYet(Vec::new())
    }
}

/// The command's root.
#[derive(Debug)]
struct Child {
    pid: i32,
    pidfd: AsyncFd<OwnedFd>,
    program: Program,
    shares_group: bool,
    /// What a terminal would send goes to its whole group.
    is_given: bool,
    /// Where there is no cgroup: its group or session is its own, so that its descendants can be found by it. It stays
    /// a zombie until they are gone, so that its id stays its.
    leads: bool,
    gate: Mutex<Gate>,
}

#[derive(Debug)]
struct Gate {
    barrier: Option<OwnedFd>,
    report: Option<OwnedFd>,
    exit: Option<ExitReport>,
    /// Until it is reaped.
    root: Option<guest::Root>,
}

impl ProcessBackend {
    /// A backend for one execution.
    pub fn new() -> Self {
        Self::default()
    }

    /// The same for a command whose cgroup is made below this one.
    pub fn below(cgroup: PathBuf) -> Self {
        Self { state: Mutex::default(), own_group: false, below: Some(cgroup) }
    }

    /// The same for a command that is part of ourselves and no child of the caller's terminal: ^C there is not for it.
    pub fn detached() -> Self {
        Self { state: Mutex::default(), own_group: true, below: None }
    }

    /// Whether the network of a sandbox can have an allow-list here, found out by making one for `execution`, which is to be new.
    pub fn try_allow_list(execution: ExecutionId) -> Result<(), String> {
        let cgroup = Cgroup::make(execution)?;
        let attached = AllowList::attach(cgroup.fd(), &Peers::default()).map(drop);
        let left = cgroup.remove();
        attached.and_then(|()| if left.is_empty() { Ok(()) } else { Err(left.join("; ")) })
    }

    /// Ends what executions left behind whose runner was killed, and removes it; gives what is left. A runner that lives keeps
    /// a lock on its execution, so nothing else is touched. It may take seconds and blocks.
    pub fn end_orphans() -> Result<Vec<String>, String> {
        cgroup::sweep_all()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn child(&self) -> Result<Arc<Child>, BackendError> {
        self.state()
            .child
            .clone()
            .ok_or_else(|| BackendError::failed("using the command's process", "it was not started"))
    }

    fn hold(
        &self,
        spec: &ExecutionSpec,
        streams: &Prepared,
        cgroup: &mut Option<Arc<Cgroup>>,
        sandbox: &Arc<Sandbox>,
    ) -> Result<(Held, Child), BackendError> {
        let program = match Program::named(spec) {
            Some(program) => program,
            None => user::with_rights_of(spec.run_as.as_ref(), || Program::search(spec))??,
        };
        let failed = |error: io::Error| BackendError::failed("making the command's process", error);
        let plan = Arc::new(Plan::new(spec, program.path(), Arc::clone(sandbox)).map_err(failed)?);
        let own_terminal = streams.has_own_terminal();
        let is_given = matches!(spec.streams, StdStreams::Given { .. });
        let own_session = is_given && !own_terminal;
        let own_group = self.own_group;
        let placement = Placement {
            streams: streams.fds(),
            own_terminal,
            own_session,
            own_group,
            ..Placement::default()
        };
        if let Some(found) = cgroup.clone() {
            let placed = spawn::spawn(&plan, Placement { cgroup: Some(found.fd().as_raw_fd()), ..placement })
                .and_then(|held| match if held.is_in_cgroup { Ok(()) } else { found.add(held.pid) } {
                    Ok(()) => Ok(held),
                    Err(error) => {
                        held.give_up();
                        Err(error)
                    }
                });
            match placed {
                Ok(held) => {
                    let shares_group = !own_terminal && !is_given && !own_group;
                    let child = Child::new(&held, program, shares_group, false, is_given).map_err(failed)?;
                    return Ok((held, child));
                }
                // Outside of it nothing would keep to the list.
                Err(error) if !spec.sandbox.connect.is_empty() => return Err(failed(error)),
                Err(error) => {
                    tracing::warn!(cgroup = %found.path().display(), error = %error, "no process can be put into the cgroup");
                    found.remove();
                    *cgroup = None;
                }
            }
        }
        let own_group = own_group || (!own_terminal && !is_given && !pty::is_terminal(0));
        let held = spawn::spawn(&plan, Placement { own_group, ..placement }).map_err(failed)?;
        let leads = own_group || own_terminal || is_given;
        if !leads {
            tracing::warn!(
                "without a cgroup v2, processes that outlive the command on this terminal are not found"
            );
        }
        let child = Child::new(&held, program, !leads, leads, is_given).map_err(failed)?;
        Ok((held, child))
    }

    /// Ends the init, the root having been waited for.
    async fn end_init(&self) {
        let init = self.state().init.take();
        if let Some(init) = init {
            // It can take a moment: namespaces are taken down.
            let _ = tokio::task::spawn_blocking(move || init.end()).await;
        }
    }

    /// SIGKILL to all that can be found.
    fn kill_all(cgroup: Option<&Cgroup>, child: Option<&Child>) -> io::Result<()> {
        if let Some(child) = child {
            child.signal(libc::SIGKILL)?;
            if child.leads && child.gate().root.is_some() {
                let _ = nix::sys::signal::killpg(
                    nix::unistd::Pid::from_raw(child.pid),
                    nix::sys::signal::SIGKILL,
                );
            }
        }
        cgroup.map_or(Ok(()), Cgroup::kill)
    }

    /// Returns when nothing of the execution is left but what could not be found.
    async fn empty(cgroup: Option<&Cgroup>, child: Option<&Child>, kill: bool) -> io::Result<()> {
        if let Some(child) = child.filter(|child| child.leads && child.gate().root.is_some()) {
            group::empty(child.pid, kill).await?;
        }
        match cgroup {
            Some(cgroup) => cgroup.empty(kill).await,
            None => Ok(()),
        }
    }
}

impl State {
    /// A signal that comes when the root has ended: the rest of the command gets it, and from the second on it is
    /// killed. With nobody left to get it, it ends what is done with the output.
    fn end_rest(&mut self, child: &Child, number: i32) -> io::Result<()> {
        let asks_to_end = matches!(number, libc::SIGINT | libc::SIGTERM | libc::SIGHUP | libc::SIGQUIT);
        match &mut self.rest {
            Rest::NotYet(signals) => signals.push(number),
            Rest::Waiting(asked) if *asked > 0 && asks_to_end => {
                self.abort.send_replace(true);
                ProcessBackend::kill_all(self.cgroup.as_deref(), Some(child))?;
            }
            Rest::Waiting(asked) => {
                *asked += usize::from(asks_to_end);
                match &self.cgroup {
                    Some(cgroup) => cgroup.signal(number),
                    None if child.leads && child.gate().root.is_some() => group::signal(child.pid, number),
                    None => {}
                }
            }
            Rest::Over if asks_to_end => {
                self.abort.send_replace(true);
            }
            Rest::Over => {}
        }
        Ok(())
    }
}

/// Puts a cgroup's network under the list that was asked for. Without one that works nothing is run, at any level: the command
/// would have all of the node's network.
async fn allow_list(
    spec: &ExecutionSpec,
    cgroup: Option<&Cgroup>,
) -> Result<(Option<AllowList>, Vec<String>), BackendError> {
    if spec.sandbox.connect.is_empty() {
        return Ok((None, Vec::new()));
    }
    let failed = |reason: String| BackendError::failed("allowing connections", reason);
    let cgroup = cgroup.ok_or_else(|| failed("there is no cgroup v2 to keep within them".into()))?;
    let peers = Peers::find(&spec.sandbox.connect).await.map_err(failed)?;
    let attached = AllowList::attach(cgroup.fd(), &peers).map_err(failed)?;
    Ok((Some(attached), peers.told))
}

fn still_there() -> io::Error {
    io::Error::other(format!("processes of the command are there {} s after SIGKILL", GONE_WITHIN.as_secs()))
}

impl Child {
    fn new(
        held: &Held,
        program: Program,
        shares_group: bool,
        leads: bool,
        is_given: bool,
    ) -> io::Result<Self> {
        let gate = Gate { barrier: None, report: None, exit: None, root: Some(guest::Root::new(held.pid)) };
        let pidfd = watch(held.pidfd.try_clone()?, Interest::READABLE)?;
        Ok(Self { pid: held.pid, pidfd, program, shares_group, is_given, leads, gate: Mutex::new(gate) })
    }

    fn gate(&self) -> MutexGuard<'_, Gate> {
        self.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the root has ended, noticed by `wait` or not: a signal to a zombie is lost without a word.
    fn has_ended(&self) -> bool {
        matches!(self.exit(false), Ok(Some(_)))
    }

    /// A signal that somebody's key would send: to the root's group where the terminal is not ours to do it.
    fn interrupt(&self, number: i32) -> io::Result<()> {
        let is_key = matches!(number, libc::SIGINT | libc::SIGQUIT);
        if self.is_given && is_key && self.gate().root.is_some() {
            group::send(-self.pid, number);
            return Ok(());
        }
        self.signal(number)
    }

    /// A signal to the root. One that has ended takes none, which is no error.
    fn signal(&self, number: i32) -> io::Result<()> {
        let pidfd = self.pidfd.as_raw_fd();
        // SAFETY: plain system call with a descriptor we own; no siginfo.
        let sent = unsafe {
            libc::syscall(libc::SYS_pidfd_send_signal, pidfd, number, std::ptr::null::<libc::siginfo_t>(), 0)
        };
        match io::Error::last_os_error() {
            error if sent < 0 && error.raw_os_error() != Some(libc::ESRCH) => Err(error),
            _ => Ok(()),
        }
    }

    /// Waits for the root's end.
    async fn ended(&self) -> io::Result<ExitReport> {
        loop {
            let mut ready = self.pidfd.readable().await?;
            match self.exit(!self.leads)? {
                Some(exit) => return Ok(exit),
                None => ready.clear_ready(),
            }
        }
    }

    /// How the root ended, if it did; takes its zombie away when asked to.
    fn exit(&self, reap: bool) -> io::Result<Option<ExitReport>> {
        let mut gate = self.gate();
        if gate.root.is_none() || (gate.exit.is_some() && !reap) {
            return Ok(gate.exit.clone());
        }
        let mut options = libc::WEXITED | libc::WNOHANG;
        if !reap {
            options |= libc::WNOWAIT;
        }
        // SAFETY: both are plain data that the kernel fills; si_status is read for a child that has ended only.
        let (pid, code, status, rusage) = unsafe {
            let mut info: libc::siginfo_t = std::mem::zeroed();
            let mut rusage: libc::rusage = std::mem::zeroed();
            let pidfd = self.pidfd.as_raw_fd();
            // The C library's waitid has no rusage, the kernel's has.
            let waited = libc::syscall(
                libc::SYS_waitid,
                libc::P_PIDFD,
                pidfd,
                &raw mut info,
                options,
                &raw mut rusage,
            );
            if waited < 0 {
                return Err(io::Error::last_os_error());
            }
            (info.si_pid(), info.si_code, info.si_status(), rusage)
        };
        if pid == 0 {
            return Ok(None);
        }
        let status = match code {
            libc::CLD_EXITED => ExitStatus::Code(status),
            _ => ExitStatus::Signal(status),
        };
        if reap {
            gate.root = None;
        }
        gate.exit = Some(ExitReport { status, rusage: Some(used(&rusage)) });
        Ok(gate.exit.clone())
    }
}

fn used(rusage: &libc::rusage) -> Rusage {
    let micros = |time: libc::timeval| time.tv_sec as u64 * 1_000_000 + time.tv_usec as u64;
    Rusage {
        cpu_time_ms: (micros(rusage.ru_utime) + micros(rusage.ru_stime)) / 1000,
        max_rss_kb: u64::try_from(rusage.ru_maxrss).unwrap_or(0),
    }
}

/// The root's id as the node's kernel knows it: inside of a pid namespace ours is another number, and a wrong one would
/// make a probe wait for the wrong process.
fn node_pid(pid: i32) -> Option<u32> {
    let namespace = std::fs::read_link("/proc/self/ns/pid").ok()?;
    (namespace == std::path::Path::new(INITIAL_PID_NAMESPACE)).then(|| u32::try_from(pid).ok()).flatten()
}

#[async_trait]
impl ExecutionBackend for ProcessBackend {
    fn name(&self) -> &'static str {
        "process"
    }

    fn isolation(&self) -> Isolation {
        Isolation::Process
    }

    fn environment(&self) -> Environment {
        let uname = nix::sys::utsname::uname().ok();
        let kernel = uname.as_ref().map(|uname| uname.release().to_string_lossy().into_owned());
        let arch = uname.as_ref().map(|uname| uname.machine().to_string_lossy().into_owned());
        Environment {
            runtime: "process".into(),
            os: std::env::consts::OS.into(),
            arch: arch.unwrap_or_else(|| std::env::consts::ARCH.into()),
            kernel: kernel.unwrap_or_default(),
            snapshot: None,
            image: None,
            sandbox: self.state().told.clone(),
            vmm: None,
        }
    }

    async fn prepare(&self, spec: &ExecutionSpec) -> Result<(), BackendError> {
        if spec.guest_prep {
            guest::prepare()?;
            guest::reap_orphans()?;
        }
        let made = match &self.below {
            Some(below) => Cgroup::make_under(below, spec.id),
            None => Cgroup::make(spec.id),
        };
        let cgroup = match made {
            Ok(cgroup) => Some(Arc::new(cgroup)),
            // Not an error: the command runs, and attaching says what it lacks.
            Err(reason) => {
                tracing::warn!(reason, "the command runs without a cgroup of its own");
                None
            }
        };
        self.state().cgroup.clone_from(&cgroup);
        // Without a sandbox no path is looked up.
        let user = spec.run_as.as_ref();
        let of_paths = user.filter(|_| spec.sandbox.level > SandboxLevel::None);
        let sandbox = user::with_rights_of(of_paths, || Sandbox::plan(spec))??;
        let (allow_list, connect) = allow_list(spec, cgroup.as_deref()).await?;
        let workdir = sandbox.workdir().or(spec.workdir.as_deref()).unwrap_or(Path::new("."));
        let mut limits = Enforced::prepare(spec.id, &spec.limits, cgroup.as_deref(), workdir, user);
        if matches!(spec.streams, StdStreams::Given { .. }) && limits.output.take().is_some() {
            limits.not_applied.push("the limit `output`: the command has its caller's own streams".into());
        }
        let not_applied = [sandbox.not_applied(), &limits.not_applied].concat();
        let mut state = self.state();
        // From here on `cleanup` removes what the limits are held by.
        state.limits = Arc::new(limits);
        if spec.sandbox.level == SandboxLevel::Strict && !not_applied.is_empty() {
            return Err(BackendError::failed(
                "the sandbox level strict holds all it promises or runs nothing",
                not_applied.join("; "),
            ));
        }
        for what in &not_applied {
            tracing::warn!(what, "not applied");
        }
        state.told = lifecycle::Sandbox {
            network: spec.sandbox.network().as_str().to_owned(),
            connect,
            level: spec.sandbox.level,
            limits: spec.limits,
            not_applied,
        };
        state.sandbox = Arc::new(sandbox);
        state.allow_list = allow_list;
        state.user.clone_from(&spec.run_as);
        Ok(())
    }

    async fn start(&self, spec: &ExecutionSpec) -> Result<StartedProcess, BackendError> {
        let connecting = |error: io::Error| BackendError::failed("connecting the standard streams", error);
        let mut state = self.state();
        let state = &mut *state;
        let streams = Prepared::new(spec, state.limits.output.clone()).map_err(connecting)?;
        let (held, child) = self.hold(spec, &streams, &mut state.cgroup, &state.sandbox)?;
        let placed = state.limits.join(held.pid).and_then(|()| held.set_up());
        let Held { pid, barrier, report, init, .. } = held;
        state.init = init;
        {
            let mut gate = child.gate();
            (gate.barrier, gate.report) = (Some(barrier), Some(report));
        }
        let child = Arc::new(child);
        state.child = Some(Arc::clone(&child));
        placed.map_err(|error| BackendError::failed("putting the command under its limits", error))?;
        state.streams = Some(streams.run().map_err(connecting)?);
        if let Some(signal) = state.pending.take() {
            child.signal(signal).map_err(|error| BackendError::failed("interrupting the command", error))?;
        }
        let cgroup_id = state.cgroup.as_ref().map(|cgroup| cgroup.id());
        Ok(StartedProcess { identity: TargetIdentity { root_pid: node_pid(pid), cgroup_id } })
    }

    async fn release(&self) -> Result<(), BackendError> {
        let failed = |error: io::Error| BackendError::failed("letting the command go", error);
        let child = self.child()?;
        let (barrier, report) = {
            let mut gate = child.gate();
            (gate.barrier.take(), gate.report.take())
        };
        let (Some(barrier), Some(report)) = (barrier, report) else {
            return Err(BackendError::failed("letting the command go", "it was let go already"));
        };
        match nix::unistd::write(&barrier, b"g") {
            // The held process was killed: waiting says by what.
            Ok(_) | Err(nix::errno::Errno::EPIPE) => {}
            Err(error) => return Err(failed(error.into())),
        }
        drop(barrier);
        let mut bytes = Vec::new();
        pipe::Receiver::from_owned_fd(report)
            .map_err(failed)?
            .read_to_end(&mut bytes)
            .await
            .map_err(failed)?;
        match spawn::read_report(&bytes) {
            None => Ok(()),
            Some(Failure { stage: Stage::Exec, errno, .. }) => {
                let (level, user) = {
                    let state = self.state();
                    (state.told.level, state.user.clone())
                };
                Err(user::with_rights_of(user.as_ref(), || child.program.exec_error(errno, level))?)
            }
            Some(Failure { stage: Stage::Sandbox, errno, step }) => {
                Err(self.state().sandbox.step_error(step, errno))
            }
            Some(Failure { stage, errno, .. }) => {
                let action = match stage {
                    Stage::Workdir => "entering the working directory",
                    Stage::Terminal => "giving the command a terminal",
                    Stage::Streams | Stage::Sandbox | Stage::Exec => "connecting the standard streams",
                };
                Err(BackendError::failed(action, io::Error::from_raw_os_error(errno)))
            }
        }
    }

    async fn wait(&self) -> Result<ExitReport, BackendError> {
        let child = self.child()?;
        child.ended().await.map_err(|error| BackendError::failed("waiting for the command", error))
    }

    async fn drain(&self, wait_for_descendants: bool) -> Result<OutputReport, BackendError> {
        let child = self.child()?;
        let ending = |error: io::Error| BackendError::failed("ending what the command left running", error);
        let (cgroup, abort, mut killed) = {
            let mut state = self.state();
            let rest = if wait_for_descendants { Rest::Waiting(0) } else { Rest::Over };
            if let Rest::NotYet(signals) = std::mem::replace(&mut state.rest, rest) {
                for signal in signals {
                    state.end_rest(&child, signal).map_err(ending)?;
                }
            }
            (state.cgroup.clone(), state.abort.subscribe(), state.abort.subscribe())
        };
        let empty = Self::empty(cgroup.as_deref(), Some(&child), !wait_for_descendants);
        let too_late = async {
            if wait_for_descendants && killed.wait_for(|killed| *killed).await.is_err() {
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(GONE_WITHIN).await;
        };
        let emptied = tokio::select! {
            biased;
            emptied = empty => emptied,
            // One in an uninterruptible sleep does not die.
            () = too_late => Err(still_there()),
        };
        let emptied = emptied.and_then(|()| child.exit(true)).map_err(ending);
        if emptied.is_ok() {
            self.end_init().await;
        }
        let streams = {
            let mut state = self.state();
            state.rest = Rest::Over;
            state.streams.take()
        };
        let output = match streams {
            Some(mut streams) => streams.finish(abort).await,
            None => Ok(OutputReport::default()),
        };
        emptied.and(output)
    }

    async fn kill(&self, signal: StopSignal) -> Result<(), BackendError> {
        let mut state = self.state();
        let number = match signal {
            StopSignal::Kill => libc::SIGKILL,
            StopSignal::Terminate => libc::SIGTERM,
            StopSignal::Number(number) => number,
        };
        let Some(child) = state.child.clone() else {
            state.pending = Some(number);
            return Ok(());
        };
        let killed = match signal {
            StopSignal::Kill => Self::kill_all(state.cgroup.as_deref(), Some(&child)),
            StopSignal::Terminate | StopSignal::Number(_) if child.has_ended() => {
                state.end_rest(&child, number)
            }
            StopSignal::Terminate | StopSignal::Number(_) => child.interrupt(number),
        };
        killed.map_err(|error| BackendError::failed(format!("sending signal {number} to the command"), error))
    }

    async fn cleanup(&self) -> Vec<String> {
        let (child, cgroup, streams) = {
            let mut state = self.state();
            (state.child.clone(), state.cgroup.clone(), state.streams.take())
        };
        // Gives the caller's terminal back first, whatever takes time below.
        drop(streams);
        let mut left = Vec::new();
        let gone = async {
            Self::kill_all(cgroup.as_deref(), child.as_deref())?;
            if let Some(child) = &child {
                drop(child.gate().barrier.take());
                child.ended().await?;
            }
            Self::empty(cgroup.as_deref(), child.as_deref(), true).await?;
            if let Some(child) = &child {
                child.exit(true)?;
            }
            Ok::<(), io::Error>(())
        };
        match tokio::time::timeout(GONE_WITHIN, gone).await {
            Ok(Ok(())) => self.end_init().await,
            Ok(Err(error)) => left.push(format!("ending the command's processes: {error}")),
            Err(_) => left.push(still_there().to_string()),
        }
        {
            let mut state = self.state();
            state.allow_list = None;
            left.extend(state.limits.remove());
        }
        if let Some(cgroup) = &cgroup {
            let kept = cgroup.remove();
            if kept.is_empty() {
                self.state().cgroup = None;
            }
            left.extend(kept);
        }
        left
    }

    async fn exceeded(&self) -> Limit {
        let limits = Arc::clone(&self.state().limits);
        limits.exceeded().await
    }

    fn ran_into(&self) -> Option<Limit> {
        self.state().limits.ran_into()
    }

    fn shares_process_group(&self) -> bool {
        self.state().child.as_ref().is_some_and(|child| child.shares_group && !child.has_ended())
    }

    fn pidfd(&self) -> Option<OwnedFd> {
        self.state().child.as_ref().and_then(|child| child.pidfd.get_ref().try_clone().ok())
    }
}

impl Drop for ProcessBackend {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(child) = state.child.as_ref().filter(|child| child.gate().root.is_some()) {
            let _ = Self::kill_all(state.cgroup.as_deref(), Some(child));
            let _ = child.exit(true);
        }
        if let Some(init) = state.init.take() {
            // It ends after the root, whose zombie is taken away by now or never.
            std::thread::spawn(move || init.end());
        }
        state.limits.remove();
        if let Some(cgroup) = &state.cgroup {
            cgroup.remove();
        }
    }
}
