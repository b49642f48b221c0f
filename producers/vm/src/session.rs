//! The host's end of the link to one guest, whatever VMM carries it.
//!
//! - A thread reads what the guest says, and takes nothing that is not due: the order is that of `glasshouse-guest-link`.
//!   The first thing out of order, malformed, too large or not its own ends the session for good ([`Session::until`] gives
//!   the reason), and nothing is read any more.
//! - A guest that is silent for [`SILENT_FOR`] has ended too: it sends heartbeats.
//! - Threads that a guest or a caller can hold up are never those of the runtime.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

use glasshouse_guest_link::credit::{Gate, Meter};
use glasshouse_guest_link::message::Bytes;
use glasshouse_guest_link::shared::SharedMemory;
use glasshouse_guest_link::{
    Attach, Drained, Exit, Failure, Hello, LinkError, Receiver, Sealed, Sender, Spec, Stream, StreamReceiver,
    StreamSender, ToGuest, ToHost,
};
use glasshouse_schema::lifecycle::Attached;
use glasshouse_schema::limits::Limit;
use tokio::sync::{oneshot, watch};

use crate::bridge::Bridge;

/// How long a guest may take from its VMM's start to its first word.
pub(crate) const BOOTED_WITHIN: Duration = Duration::from_secs(60);
/// How long a guest may say nothing at all. It sends a heartbeat a second, which an emulated one on a busy host is late with.
pub(crate) const SILENT_FOR: Duration = Duration::from_secs(30);
/// How long a guest may take to read what it is told. Standard input waits for its credit, not here.
const READ_WITHIN: Duration = Duration::from_secs(10);
/// Messages that may wait to be sent; more than any guest that reads leaves.
const MAX_WAITING: usize = 1024;

/// What a guest has said so far, and what it was asked for.
#[derive(Debug, Clone, Default)]
pub(crate) struct State {
    asked: Asked,
    has_greeted: bool,
    /// Of one that did so here.
    pub(crate) hello: Option<Hello>,
    pub(crate) is_held: bool,
    pub(crate) attached: Option<Result<Attached, String>>,
    pub(crate) is_running: bool,
    pub(crate) failed: Option<Failure>,
    pub(crate) exceeded: Option<Limit>,
    pub(crate) exit: Option<Exit>,
    pub(crate) drained: Option<Drained>,
    pub(crate) sealed: Option<Result<Sealed, String>>,
    /// Why the session is over.
    pub(crate) ended: Option<String>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Asked {
    spec: bool,
    attach: bool,
    release: bool,
    drain: bool,
    seal: bool,
}

impl State {
    fn ask(&mut self, message: &ToGuest) {
        match message {
            ToGuest::Spec(_) => self.asked.spec = true,
            ToGuest::Attach(_) => self.asked.attach = true,
            ToGuest::Release => self.asked.release = true,
            ToGuest::Drain(_) => self.asked.drain = true,
            ToGuest::Seal => self.asked.seal = true,
            ToGuest::Credit(_)
            | ToGuest::Signal(_)
            | ToGuest::Stdin(_)
            | ToGuest::StdinEnd
            | ToGuest::Kill
            | ToGuest::Shutdown => {}
        }
    }

    /// Whether a message is due. What it says is not judged here.
    fn is_due(&self, message: &ToHost) -> bool {
        let is_running = self.is_running && self.drained.is_none();
        match message {
            ToHost::Hello(_) => !self.has_greeted,
            _ if !self.has_greeted => false,
            ToHost::Heartbeat(_) | ToHost::Credit(_) => true,
            ToHost::Held => self.asked.spec && !self.is_held && self.failed.is_none(),
            ToHost::Failed(_) => self.asked.spec && self.exit.is_none() && self.failed.is_none(),
            ToHost::Attached(_) => self.asked.attach && self.attached.is_none(),
            ToHost::Running => self.asked.release && !self.is_running && self.failed.is_none(),
            // The command may print before we hear that it runs.
            ToHost::Stdout(_) | ToHost::Stderr(_) => {
                (self.asked.release && self.failed.is_none() && self.drained.is_none()) || is_running
            }
            ToHost::Frame(_) => self.asked.attach && self.sealed.is_none(),
            ToHost::Exceeded(_) => is_running,
            ToHost::Exit(_) => is_running && self.exit.is_none(),
            // A command that never ran has no end of its own.
            ToHost::Drained(_) => {
                self.asked.drain && self.drained.is_none() && (self.exit.is_some() || !self.is_running)
            }
            ToHost::Sealed(_) => self.asked.seal && self.sealed.is_none(),
        }
    }
}

/// One guest, from its first word to its last.
#[derive(Clone)]
pub(crate) struct Session(Arc<Shared>);

struct Shared {
    socket: UnixStream,
    state: watch::Sender<State>,
    to_guest: Mutex<Option<mpsc::SyncSender<ToGuest>>>,
    stdin: Gate,
    bridge: Mutex<Option<Bridge>>,
    /// Bytes of output that were handed to the caller, for whoever waits for progress.
    delivered: AtomicU64,
    /// Bytes that it has not taken yet.
    waiting: AtomicU64,
}

/// Where the command's output goes; `None` throws it away.
pub(crate) struct Outputs {
    pub(crate) stdout: Option<OwnedFd>,
    pub(crate) stderr: Option<OwnedFd>,
}

/// Ends when all output was handed to the caller.
pub(crate) type Delivered = [oneshot::Receiver<()>; 2];

impl Session {
    /// Speaks with the guest at the other end of a socket, or through memory that it shares, with the socket as the bell. The guest `greets`
    /// first, or did so before it was kept.
    pub(crate) fn begin(
        socket: UnixStream,
        shared: Option<SharedMemory>,
        outputs: Outputs,
        greets: bool,
    ) -> std::io::Result<(Self, Delivered)> {
        socket.set_nonblocking(false)?;
        socket.set_write_timeout(Some(READ_WITHIN))?;
        socket.set_read_timeout(Some(if greets { BOOTED_WITHIN } else { SILENT_FOR }))?;
        let (reads, writes) = halves(socket.try_clone()?, socket.try_clone()?, shared);
        let (to_guest, messages) = mpsc::sync_channel(MAX_WAITING);
        let session = Self(Arc::new(Shared {
            socket,
            state: watch::Sender::new(State { has_greeted: !greets, ..State::default() }),
            to_guest: Mutex::new(Some(to_guest)),
            stdin: Gate::default(),
            bridge: Mutex::new(None),
            delivered: AtomicU64::new(0),
            waiting: AtomicU64::new(0),
        }));
        let (stdout, stdout_end) = session.output(Stream::Stdout, outputs.stdout)?;
        let (stderr, stderr_end) = session.output(Stream::Stderr, outputs.stderr)?;
        spawn("guest-writer", {
            let session = session.clone();
            move || session.write(StreamSender::new(writes), &messages)
        })?;
        spawn("guest-reader", {
            let session = session.clone();
            move || session.read(StreamReceiver::new(reads), [Some(stdout), Some(stderr)])
        })?;
        Ok((session, [stdout_end, stderr_end]))
    }

    /// Asks for something. What cannot be sent ends the session, which whoever waits for the answer hears.
    pub(crate) fn ask(&self, message: ToGuest) {
        self.0.state.send_modify(|state| state.ask(&message));
        let sent = self.to_guest().as_ref().map(|to_guest| to_guest.try_send(message));
        if matches!(sent, Some(Err(mpsc::TrySendError::Full(_)))) {
            self.end("it does not read what it is told");
        }
    }

    /// What is to be run.
    pub(crate) fn specify(&self, spec: Spec) {
        self.ask(ToGuest::Spec(Box::new(spec)));
    }

    /// Frames are wanted from now on, and go to the bridge.
    pub(crate) fn attach(&self, attach: Attach, bridge: Bridge) {
        *self.bridge() = Some(bridge);
        self.ask(ToGuest::Attach(attach));
    }

    /// Waits until the guest has said what `pick` finds, or gives the reason for which it never will.
    pub(crate) async fn until<T>(&self, pick: impl Fn(&State) -> Option<T>) -> Result<T, String> {
        let mut states = self.0.state.subscribe();
        loop {
            {
                let state = states.borrow_and_update();
                if let Some(found) = pick(&state) {
                    return Ok(found);
                }
                if let Some(reason) = &state.ended {
                    return Err(reason.clone());
                }
            }
            if states.changed().await.is_err() {
                return Err("the session is gone".to_owned());
            }
        }
    }

    /// What is known by now.
    pub(crate) fn now<T>(&self, pick: impl Fn(&State) -> T) -> T {
        pick(&self.0.state.borrow())
    }

    /// Whether output waits for the caller.
    pub(crate) fn is_held_up(&self) -> bool {
        self.0.waiting.load(Ordering::Relaxed) > 0
    }

    /// Bytes of output that the caller has taken.
    pub(crate) fn delivered(&self) -> u64 {
        self.0.delivered.load(Ordering::Relaxed)
    }

    /// Ends the session with a reason; the first one stays.
    pub(crate) fn end(&self, reason: &str) {
        self.0.state.send_modify(|state| {
            state.ended.get_or_insert_with(|| reason.to_owned());
        });
        self.to_guest().take();
        self.0.stdin.close();
        // Its threads hear of it; a socket that is closed already is as good.
        let _ = self.0.socket.shutdown(Shutdown::Both);
    }

    fn to_guest(&self) -> MutexGuard<'_, Option<mpsc::SyncSender<ToGuest>>> {
        self.0.to_guest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn bridge(&self) -> MutexGuard<'_, Option<Bridge>> {
        self.0.bridge.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, mut sender: StreamSender<Writes>, messages: &mpsc::Receiver<ToGuest>) {
        for message in messages {
            match sender.send(&message) {
                Ok(()) => {}
                // Whoever reads finds what it said last, which tells more, and then its end.
                Err(error) if is_gone(&error) => return,
                Err(error) if timed_out(&error) => return self.end("it does not read what it is told"),
                Err(error) => return self.end(&format!("it cannot be told anything: {error}")),
            }
        }
    }

    fn read(&self, mut receiver: StreamReceiver<Reads, ToHost>, mut outputs: [Option<Output>; 2]) {
        let reason = loop {
            match receiver.receive() {
                Ok(Some(message)) => {
                    if matches!(message, ToHost::Hello(_)) {
                        // Fails for a socket that is gone, which the next read tells.
                        let _ = self.0.socket.set_read_timeout(Some(SILENT_FOR));
                    }
                    if let Err(reason) = self.take(message, &mut outputs) {
                        tracing::warn!(reason, "the guest does not keep to the protocol");
                        break format!("the guest does not keep to the protocol: {reason}");
                    }
                }
                Ok(None) => break "the guest is gone".to_owned(),
                Err(error) if timed_out(&error) => {
                    let silent = if self.now(|state| state.has_greeted) { SILENT_FOR } else { BOOTED_WITHIN };
                    break format!("the guest has been silent for {silent:?}");
                }
                Err(error) => break format!("the guest cannot be understood: {error}"),
            }
        };
        self.end(&reason);
    }

    fn take(&self, message: ToHost, outputs: &mut [Option<Output>; 2]) -> Result<(), String> {
        if !self.now(|state| state.is_due(&message)) {
            return Err(format!("a message was not due: {}", kind(&message)));
        }
        let set = |change: &dyn Fn(&mut State)| {
            self.0.state.send_modify(change);
            Ok(())
        };
        let [stdout, stderr] = outputs;
        match message {
            ToHost::Stdout(bytes) => self.hand_over(stdout, bytes),
            ToHost::Stderr(bytes) => self.hand_over(stderr, bytes),
            ToHost::Frame(bytes) => {
                let may_seal = self.now(|state| state.asked.seal);
                match &mut *self.bridge() {
                    Some(bridge) => bridge.take(bytes.0, may_seal).map_err(|lie| lie.to_string()),
                    None => Err("a frame that nobody asked for".to_owned()),
                }
            }
            ToHost::Credit(bytes) => self.0.stdin.give(bytes).map_err(|overrun| overrun.to_string()),
            ToHost::Heartbeat(clock) => {
                tracing::trace!(boot_ns = clock.boot_ns, "heartbeat");
                Ok(())
            }
            ToHost::Hello(hello) => {
                for problem in &hello.problems {
                    tracing::warn!(problem, "the guest is not wholly prepared");
                }
                set(&|state| (state.has_greeted, state.hello) = (true, Some(hello.clone())))
            }
            ToHost::Held => set(&|state| state.is_held = true),
            ToHost::Attached(attached) => set(&|state| state.attached = Some(attached.clone())),
            ToHost::Running => set(&|state| state.is_running = true),
            ToHost::Failed(failure) => set(&|state| state.failed = Some(failure.clone())),
            ToHost::Exceeded(limit) => set(&|state| state.exceeded = Some(limit)),
            ToHost::Exit(exit) => set(&|state| state.exit = Some(exit)),
            ToHost::Drained(drained) => {
                // Their ends are what the caller's copies wait for.
                (*stdout, *stderr) = (None, None);
                set(&|state| state.drained = Some(drained.clone()))
            }
            ToHost::Sealed(sealed) => {
                if let (Ok(sealed), Some(bridge)) = (&sealed, &*self.bridge()) {
                    bridge.check(sealed).map_err(|lie| lie.to_string())?;
                }
                set(&|state| state.sealed = Some(sealed.clone()))
            }
        }
    }

    fn hand_over(&self, output: &Option<Output>, bytes: Bytes) -> Result<(), String> {
        let Some(output) = output else { return Err("output behind its end".to_owned()) };
        output.meter.receive(bytes.0.len()).map_err(|overrun| overrun.to_string())?;
        self.0.waiting.fetch_add(bytes.0.len() as u64, Ordering::Relaxed);
        // The thread ends after us.
        let _ = output.chunks.send(bytes.0);
        Ok(())
    }

    /// A thread that writes one stream to the caller, and gives credit back for what the caller took.
    fn output(
        &self,
        stream: Stream,
        to: Option<OwnedFd>,
    ) -> std::io::Result<(Output, oneshot::Receiver<()>)> {
        let (chunks, coming) = mpsc::channel::<Vec<u8>>();
        let meter = Arc::new(Meter::default());
        let (ended, end) = oneshot::channel();
        spawn("guest-output", {
            let (session, meter) = (self.clone(), Arc::clone(&meter));
            move || {
                let mut to = to.map(std::fs::File::from);
                for chunk in coming {
                    if let Some(file) = &mut to
                        && file.write_all(&chunk).is_err()
                    {
                        to = None;
                        // As a pipe would have told it. What comes all the same is thrown away.
                        session.ask(ToGuest::Signal(libc::SIGPIPE));
                    }
                    session.0.delivered.fetch_add(chunk.len() as u64, Ordering::Relaxed);
                    session.0.waiting.fetch_sub(chunk.len() as u64, Ordering::Relaxed);
                    if let Some(credit) = meter.take(chunk.len()) {
                        session.ask(ToGuest::Credit((stream, credit)));
                    }
                }
                drop(to);
                // Nobody waits for an execution that was dropped.
                let _ = ended.send(());
            }
        })?;
        Ok((Output { chunks, meter }, end))
    }

    /// Sends standard input as fast as the command reads it, in a thread of its own. Ends with the session at the latest
    /// once there is something to read.
    pub(crate) fn send_stdin(&self, from: OwnedFd) -> std::io::Result<()> {
        let session = self.clone();
        spawn("guest-stdin", move || {
            let mut from = std::fs::File::from(from);
            let mut buffer = vec![0; glasshouse_guest_link::MAX_CHUNK_BYTES];
            loop {
                let read = match from.read(&mut buffer) {
                    Ok(0) => break,
                    Ok(read) => read,
                    Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                    Err(error) => {
                        tracing::debug!(%error, "standard input cannot be read");
                        break;
                    }
                };
                let mut left = &buffer[..read];
                while !left.is_empty() {
                    let Some(room) = session.0.stdin.take(left.len()) else { return };
                    let (now, rest) = left.split_at(room);
                    session.ask(ToGuest::Stdin(Bytes(now.to_vec())));
                    left = rest;
                }
            }
            session.ask(ToGuest::StdinEnd);
        })
    }
}

/// The reader's side of an output thread.
struct Output {
    chunks: mpsc::Sender<Vec<u8>>,
    meter: Arc<Meter>,
}

type Reads = Box<dyn Read + Send>;
type Writes = Box<dyn Write + Send>;

fn halves(reads: UnixStream, writes: UnixStream, shared: Option<SharedMemory>) -> (Reads, Writes) {
    match shared {
        None => (Box::new(reads), Box::new(writes)),
        Some(shared) => {
            let (reader, writer) = shared.host(reads, writes);
            (Box::new(reader), Box::new(writer))
        }
    }
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
    std::thread::Builder::new().name(name.to_owned()).spawn(body).map(drop)
}

fn is_gone(error: &LinkError) -> bool {
    matches!(error, LinkError::Io(error) if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset))
}

fn timed_out(error: &LinkError) -> bool {
    matches!(error, LinkError::Io(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut))
}

fn kind(message: &ToHost) -> &'static str {
    match message {
        ToHost::Hello(_) => "hello",
        ToHost::Held => "held",
        ToHost::Attached(_) => "attached",
        ToHost::Running => "running",
        ToHost::Failed(_) => "failed",
        ToHost::Stdout(_) => "stdout",
        ToHost::Stderr(_) => "stderr",
        ToHost::Frame(_) => "frame",
        ToHost::Credit(_) => "credit",
        ToHost::Exceeded(_) => "exceeded",
        ToHost::Exit(_) => "exit",
        ToHost::Drained(_) => "drained",
        ToHost::Sealed(_) => "sealed",
        ToHost::Heartbeat(_) => "heartbeat",
    }
}
