//! The local socket: users of this machine run commands through the agent, as themselves, watched by the probe that is
//! loaded already. `glasshouse_runner::local` has what is said.
//!
//! Invariants:
//! - a command runs as whoever connected, says the kernel, with that user's groups and limits, and never as root;
//! - what is looked up for a command is looked up with the rights of its user;
//! - nothing runs that the agent's policies do not let pass;
//! - the settings' sandbox and limits are the least that holds; a request can only ask for more of them;
//! - a command of an execution cannot ask, so nothing gets out of its sandbox, its limits, or its receipt through here;
//! - whoever connected and leaves has its command killed.

mod peer;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use glasshouse_backends::ProcessBackend;
use glasshouse_execution::{
    Engine, ExecutionBackend, ExecutionSpec, GivenStreams, ProfilingController, StdStreams, StopSignal,
};
use glasshouse_host_probe::EbpfController;
use glasshouse_runner::gate::PolicyGate;
use glasshouse_runner::local::{LocalAnswer, LocalRequest, read_request, write_answer};
use glasshouse_runner::sink::{LocalFold, RunSink};
use glasshouse_schema::lifecycle::ProfilingMode;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use nix::sys::stat::{Mode, umask};
use nix::unistd::Group;
use tokio::io::AsyncReadExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::Instrument;

use self::peer::Peer;
use crate::Error;
use crate::agent::Phase;
use crate::settings::Settings;

/// How long a caller may take to say what it wants, and to take the answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long to rest when no connection can be taken, for want of descriptors mostly.
const PAUSE: Duration = Duration::from_millis(100);
/// What a caller may have its command be sent.
const SIGNALS: [i32; 6] =
    [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT, libc::SIGUSR1, libc::SIGUSR2];

/// The socket, removed when this is dropped.
pub(crate) struct Socket {
    listener: UnixListener,
    path: PathBuf,
}

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Socket {
    /// Listens. One that a dead agent left is replaced, one that is answered is not.
    pub(crate) fn bind(path: &Path, settings: &Settings) -> Result<Self, Error> {
        let failed = |what| move |source| Error::System { what, source };
        if !nix::unistd::geteuid().is_root() {
            let source = io::Error::other("only root runs commands as other users");
            return Err(Error::System { what: "serve users of this machine", source });
        }
        if let Some(dir) = path.parent() {
            match std::fs::create_dir(dir) {
                Ok(()) => std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755))
                    .map_err(failed("open the socket's directory to users"))?,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(failed("make the socket's directory")(error)),
            }
        }
        let is_socket = std::fs::symlink_metadata(path).is_ok_and(|there| there.file_type().is_socket());
        if is_socket {
            if std::os::unix::net::UnixStream::connect(path).is_ok() {
                let source = io::Error::other(format!("another agent answers at {}", path.display()));
                return Err(Error::System { what: "listen for users of this machine", source });
            }
            std::fs::remove_file(path).map_err(failed("replace the socket of an agent that is gone"))?;
        }
        let group = match &settings.socket_group {
            None => None,
            Some(name) => match Group::from_name(name) {
                Ok(Some(group)) => Some(group.gid.as_raw()),
                _ => {
                    let source = io::Error::other(format!("there is no group `{name}`"));
                    return Err(Error::System { what: "give the socket to its group", source });
                }
            },
        };
        // Nobody connects before it is whose it is to be.
        let before = umask(Mode::from_bits_truncate(0o777));
        let listener = UnixListener::bind(path);
        umask(before);
        let socket = Self {
            listener: listener.map_err(failed("listen for users of this machine"))?,
            path: path.to_owned(),
        };
        chown(path, None, group).map_err(failed("give the socket to its group"))?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(settings.socket_mode))
            .map_err(failed("set who may use the socket"))?;
        Ok(socket)
    }
}

/// What all connections share.
pub(crate) struct Local {
    pub(crate) probe: Arc<EbpfController>,
    pub(crate) settings: watch::Receiver<Arc<Settings>>,
    pub(crate) phase: watch::Receiver<Phase>,
    /// Connections of each user.
    pub(crate) users: Mutex<HashMap<u32, u32>>,
}

/// A connection of a user, until this is dropped.
struct Connected<'a> {
    local: &'a Local,
    uid: u32,
}

impl Drop for Connected<'_> {
    fn drop(&mut self) {
        if let Entry::Occupied(mut entry) = self.local.users().entry(self.uid) {
            *entry.get_mut() -= 1;
            if *entry.get() == 0 {
                entry.remove();
            }
        }
    }
}

impl Local {
    /// Serves until the agent drains; returns once everything has ended.
    pub(crate) async fn serve(self: Arc<Self>, socket: Socket) {
        let mut phase = self.phase.clone();
        let mut running = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                biased;
                // Errors say that the agent is gone.
                _ = phase.wait_for(|phase| *phase != Phase::Serving) => break,
                Some(ended) = running.join_next() => {
                    if let Err(error) = ended {
                        tracing::error!(%error, "a connection failed");
                    }
                    continue;
                }
                accepted = socket.listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => drop(running.spawn(Arc::clone(&self).connection(stream))),
                Err(error) => {
                    tracing::warn!(%error, "no connection can be taken");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
        drop(socket);
        while running.join_next().await.is_some() {}
    }

    async fn connection(self: Arc<Self>, mut stream: UnixStream) {
        let answer = match Peer::of(&stream) {
            Err(reason) => {
                tracing::warn!(reason, "a connection is refused");
                LocalAnswer::refused(reason)
            }
            Ok(peer) => match self.enter(peer.uid) {
                None => {
                    let most = self.settings.borrow().socket_per_user;
                    LocalAnswer::refused(format!(
                        "{most} commands run for this user already (--socket-per-user)"
                    ))
                }
                Some(_connected) => match tokio::time::timeout(PATIENCE, read_request(&mut stream)).await {
                    Ok(Ok((request, streams))) => {
                        let span = tracing::info_span!("local", uid = peer.uid);
                        self.run(&mut stream, &peer, request, streams).instrument(span).await
                    }
                    Ok(Err(error)) => LocalAnswer::refused(format!("the request cannot be read: {error}")),
                    Err(_) => LocalAnswer::refused("the request took too long"),
                },
            },
        };
        match tokio::time::timeout(PATIENCE, write_answer(&mut stream, &answer)).await {
            Ok(Ok(())) => {}
            // It left, or it does not read.
            Ok(Err(error)) => tracing::debug!(%error, "an answer was not taken"),
            Err(_) => tracing::debug!("an answer was not taken in time"),
        }
    }

    fn users(&self) -> std::sync::MutexGuard<'_, HashMap<u32, u32>> {
        self.users.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a place of the user's; `None` if all are taken.
    fn enter(&self, uid: u32) -> Option<Connected<'_>> {
        let most = self.settings.borrow().socket_per_user;
        let mut users = self.users();
        let count = users.entry(uid).or_default();
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(Connected { local: self, uid })
    }

    async fn run(
        &self,
        stream: &mut UnixStream,
        peer: &Peer,
        request: LocalRequest,
        streams: [OwnedFd; 3],
    ) -> LocalAnswer {
        let settings = self.settings.borrow().clone();
        let trace = request.trace.clone();
        let spec = match spec(&settings, peer, request, streams) {
            Ok(spec) => spec,
            Err(reason) => return LocalAnswer::refused(reason),
        };
        let (execution, watches) = (spec.id, spec.profile != ProfilingMode::Disabled);
        let sink = Arc::new(RunSink { local: watches.then(|| LocalFold::new(execution)), bus: None });
        let controllers: Vec<Arc<dyn ProfilingController>> = match spec.profile {
            ProfilingMode::Disabled | ProfilingMode::Guest => Vec::new(),
            ProfilingMode::Host | ProfilingMode::Combined => vec![self.probe.clone()],
        };
        let backend: Arc<dyn ExecutionBackend> = Arc::new(ProcessBackend::new());
        let enforcement =
            Arc::new(PolicyGate::new(settings.policies.clone(), backend.name(), backend.isolation()));
        let engine = Engine { controllers, enforcement, ..Engine::new(Arc::clone(&backend), sink.clone()) };
        let ended_because = Arc::clone(&engine.ended_because);
        let end = |reason: &str| drop(ended_because.set(reason.to_owned()));
        let report = {
            // Of many kilobytes, which would be copied with the connection's own.
            let mut run = Box::pin(engine.run(spec, trace));
            tokio::select! {
                biased;
                report = &mut run => report,
                never = self.attend(stream, &*backend, end) => match never {},
            }
        };
        tracing::debug!(execution_id = %execution, exit_code = report.outcome.exit_code, "a user's command has ended");
        let mut problems: Vec<String> = report.sink_errors.iter().map(ToString::to_string).collect();
        problems.extend(report.cleanup_errors);
        let receipt = match sink.local.as_ref().map(LocalFold::close).transpose() {
            Ok(receipt) => receipt.flatten().map(|receipt| receipt.bytes),
            Err(error) => {
                problems.push(format!("the receipt cannot be made: {error}"));
                None
            }
        };
        LocalAnswer {
            execution: Some(execution),
            outcome: report.outcome,
            profiled: report.profiled,
            unprofiled: report.unprofiled,
            problems,
            receipt,
        }
    }

    /// Does what the caller asks while its command runs; ends with the execution, by being dropped.
    async fn attend(
        &self,
        stream: &mut UnixStream,
        backend: &dyn ExecutionBackend,
        end: impl Fn(&str),
    ) -> std::convert::Infallible {
        let mut phase = self.phase.clone();
        let mut signals = [0; 64];
        let kill = async |signal| {
            if let Err(error) = backend.kill(signal).await {
                tracing::warn!(%error, "the command could not be signalled");
            }
        };
        loop {
            let read = tokio::select! {
                read = stream.read(&mut signals) => read.unwrap_or(0),
                _ = phase.wait_for(|phase| *phase == Phase::Killing) => {
                    end("the node agent was stopped");
                    0
                }
            };
            if read == 0 {
                end("whoever asked for it is gone");
                kill(StopSignal::Kill).await;
                return std::future::pending().await;
            }
            for signal in signals[..read].iter().map(|signal| i32::from(*signal)) {
                if SIGNALS.contains(&signal) {
                    kill(StopSignal::Number(signal)).await;
                }
            }
        }
    }
}

fn spec(
    settings: &Settings,
    peer: &Peer,
    request: LocalRequest,
    streams: [OwnedFd; 3],
) -> Result<ExecutionSpec, String> {
    if request.is_terminal && !is_terminal(&streams[0]) {
        return Err("standard input is no terminal that can be read and written".into());
    }
    if request.limits.output_bytes.is_some() {
        return Err("the limit `output` is not for a command that has its caller's own streams".into());
    }
    let random = |error: io::Error| error.to_string();
    let mut sandbox = request.sandbox;
    sandbox.level = sandbox.level.max(settings.socket_sandbox);
    let mut labels = settings.labels.clone();
    labels.extend(request.labels);
    let mut policies = settings.policies.references();
    policies.extend(request.policies.into_iter().filter(|of| !settings.policies.references().contains(of)));
    let spec = ExecutionSpec {
        // Never the caller's choice: another execution may run under the id that it knows.
        id: glasshouse_runner::new_execution_id().map_err(random)?,
        node: settings.node.clone(),
        argv: request.argv,
        env: Some(request.env),
        workdir: Some(request.workdir.into()),
        streams: StdStreams::Given { streams: GivenStreams::new(streams), is_terminal: request.is_terminal },
        run_as: Some(peer.run_as(request.umask)),
        profile: request.profile,
        profile_required: request.profile_required,
        lossless: request.lossless,
        guest_prep: false,
        wait_for_descendants: request.wait_for_descendants,
        sandbox,
        limits: request.limits.strictest(settings.socket_limits),
        labels,
        policies,
        redaction: request.redaction,
        redaction_key: glasshouse_runner::random().map_err(random)?,
    };
    spec.validate().map_err(|error| error.to_string())?;
    Ok(spec)
}

/// Whether it is a terminal that its owner can read and write: it becomes the controlling one, through which it can be both.
fn is_terminal(stream: &OwnedFd) -> bool {
    let flags = fcntl(stream, FcntlArg::F_GETFL).map(OFlag::from_bits_retain);
    let is_both =
        flags.is_ok_and(|flags| flags & OFlag::O_ACCMODE == OFlag::O_RDWR && !flags.contains(OFlag::O_PATH));
    is_both && nix::unistd::isatty(stream).unwrap_or(false)
}
