//! The command's standard streams.
//!
//! | asked for | standard input | standard output and error |
//! |---|---|---|
//! | proxy, profiling disabled, no sandbox, no limit | the caller's | the caller's: there is no receipt that would need a hash |
//! | proxy, caller on a terminal in the foreground | one pty for all that are terminals | the same pty, copied and hashed |
//! | proxy, else | the caller's | a pipe each, copied and hashed; a pty of its own in place of a terminal |
//! | capture | /dev/null | a pipe each, hashed and kept up to [`CAPTURE_BYTES`] |
//! | given | somebody else's | likewise: nothing is copied, nothing has a hash |
//! | handed | a file in memory with the given bytes | a pipe each, hashed and handed to the caller's tap |
//! | connected | the given descriptor | a pipe each, handed to the caller's tap, who hashes it if anybody does |
//!
//! On one pty both outputs are one stream: it is hashed as standard output and standard error has no hash.
//!
//! A copy is a thread with blocking writes: the caller's streams may be shared with others, so they are never made
//! non-blocking, and a caller that does not read holds the command up as it would without us. A caller that stops
//! reading (EPIPE) makes us close our end, and the command gets its SIGPIPE; what was then copied has no hash.
//!
//! A caller that neither reads nor leaves would hold us up for ever once the command has ended, and its signals find
//! nobody any more. So a signal then gives up the copies that do not end within `GIVEN_UP_AFTER`: their threads stay
//! in their writes until the process ends, and what they copied has no hash.

use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use glasshouse_execution::backend::{BackendError, OutputReport};
use glasshouse_execution::spec::{ExecutionSpec, OutputTap, StdStreams};
use glasshouse_schema::ids::Digest;
use glasshouse_schema::lifecycle::ProfilingMode;
use glasshouse_schema::subject::OutputStream;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::memfd::{MFdFlags, memfd_create};
use sha2::{Digest as _, Sha256};
use tokio::sync::{oneshot, watch};

use super::limits::OutputBudget;
use super::pty::{self, Proxy, Pty};

/// Most that is kept of each captured stream; the hash covers all of it.
pub const CAPTURE_BYTES: usize = 16 * 1024 * 1024;
/// What a copy moves at once: a pipe's capacity.
const CHUNK_BYTES: usize = 64 * 1024;
/// How long a pty may take to hand on what was written to it, once nobody is left to write.
const PTY_GRACE: Duration = Duration::from_millis(200);

/// How long the copies may go on once somebody asked for an end: a caller that reads takes what is left by then.
const GIVEN_UP_AFTER: Duration = Duration::from_secs(1);

/// Where a copy goes.
enum Target {
    /// The caller's stream of this number.
    Caller(RawFd),
    /// Memory, up to so many bytes.
    Keep(usize),
    /// Whoever wants to see it now.
    Tap(OutputTap, OutputStream),
    /// Likewise, but for the hash: that takes an emulated guest longer than all else it does with a byte.
    Relay(OutputTap, OutputStream),
}

/// A stream of the command that we read.
struct Source {
    fd: OwnedFd,
    is_pty: bool,
    target: Target,
    /// What both streams may print together.
    budget: Option<Arc<OutputBudget>>,
}

/// Streams before the process exists.
pub struct Prepared {
    /// The child's ends; `None` leaves the caller's.
    child: [Option<OwnedFd>; 3],
    sources: [Option<Source>; 2],
    proxy: Option<Proxy>,
    /// The first is a terminal that was given to the command.
    is_given_terminal: bool,
    resized: Vec<OwnedFd>,
    budget: Option<Arc<OutputBudget>>,
}

/// Streams while the command runs.
pub struct Running {
    copies: [Option<oneshot::Receiver<Copied>>; 2],
    finish: Arc<EventFd>,
    /// Restores the caller's terminal when it goes.
    _terminal: Option<pty::Session>,
}

/// What a copy saw.
struct Copied {
    hash: Option<Digest>,
    kept: Vec<u8>,
}

/// The caller's streams for a command that somebody else starts for it: its terminal by way of a pty, the rest as they are.
pub struct LentStreams(Running);

impl LentStreams {
    /// What to give to the command, and whether the first is a terminal for it to lead a session on. Has to be called in a
    /// tokio runtime.
    pub fn new() -> io::Result<(Self, [OwnedFd; 3], bool)> {
        let mut prepared = Prepared::lent()?;
        let is_terminal = prepared.has_own_terminal();
        let child = std::mem::take(&mut prepared.child).map(|fd| fd.ok_or(Errno::EBADF));
        let [stdin, stdout, stderr] = child;
        Ok((Self(prepared.run()?), [stdin?, stdout?, stderr?], is_terminal))
    }

    /// Shows what the command left in its terminal, once it has ended; gives up soon after `abort` is true.
    pub async fn finish(mut self, abort: watch::Receiver<bool>) -> Result<(), BackendError> {
        self.0.finish(abort).await.map(drop)
    }
}

impl Prepared {
    fn empty(budget: Option<Arc<OutputBudget>>) -> Self {
        Self {
            child: [None, None, None],
            sources: [None, None],
            proxy: None,
            is_given_terminal: false,
            resized: Vec::new(),
            budget,
        }
    }

    /// For a command that is elsewhere, so that no terminal here can be its: whoever speaks for it takes the child's ends.
    /// Standard input is the caller's own where there is no end for it.
    pub fn piped(spec: &ExecutionSpec, budget: Option<Arc<OutputBudget>>) -> io::Result<Self> {
        if !matches!(spec.streams, StdStreams::Proxy) {
            return Self::new(spec, budget);
        }
        let mut prepared = Self::empty(budget);
        for stream in [1, 2] {
            prepared.pipe(stream, Target::Caller(stream as RawFd))?;
        }
        Ok(prepared)
    }

    /// The child's ends, which are to be closed when the command has ended.
    pub fn take_child(&mut self) -> [Option<OwnedFd>; 3] {
        std::mem::take(&mut self.child)
    }

    pub(super) fn new(spec: &ExecutionSpec, budget: Option<Arc<OutputBudget>>) -> io::Result<Self> {
        let mut prepared = Self::empty(budget);
        match &spec.streams {
            StdStreams::Capture => {
                prepared.child[0] = Some(File::open("/dev/null")?.into());
                for stream in [1, 2] {
                    prepared.pipe(stream, Target::Keep(CAPTURE_BYTES))?;
                }
            }
            StdStreams::Handed { stdin, output } => {
                prepared.child[0] = Some(file_with(stdin)?);
                prepared.tapped(output, Target::Tap)?;
            }
            StdStreams::Connected { stdin, output } => {
                prepared.child[0] = Some(stdin.try_clone()?);
                prepared.tapped(output, Target::Relay)?;
            }
            StdStreams::Given { streams, is_terminal } => {
                let streams =
                    streams.take().ok_or_else(|| io::Error::other("they were given away before"))?;
                prepared.child = streams.map(Some);
                prepared.is_given_terminal = *is_terminal;
            }
            // Nothing is to be counted, and no terminal of ours to be kept from a sandbox.
            StdStreams::Proxy
                if spec.profile == ProfilingMode::Disabled
                    && prepared.budget.is_none()
                    && spec.sandbox.level.is_none() => {}
            StdStreams::Proxy => prepared.proxied()?,
        }
        Ok(prepared)
    }

    fn proxied(&mut self) -> io::Result<()> {
        let is_terminal: [bool; 3] = [0, 1, 2].map(pty::is_terminal);
        let whole = is_terminal[0] && is_terminal[1] && pty::is_foreground();
        if whole {
            self.own_terminal(is_terminal[2])?;
        }
        for stream in [1, 2] {
            if self.child[stream].is_some() {
                continue;
            }
            match is_terminal[stream] {
                true => self.output_terminal(stream)?,
                false => self.pipe(stream, Target::Caller(stream as RawFd))?,
            }
        }
        Ok(())
    }

    /// The streams for a command that somebody else starts: what is no terminal is the caller's own.
    fn lent() -> io::Result<Self> {
        let mut lent = Self::empty(None);
        let is_terminal: [bool; 3] = [0, 1, 2].map(pty::is_terminal);
        let is_foreground = pty::is_foreground();
        if is_terminal[0] && is_terminal[1] && is_foreground {
            lent.own_terminal(is_terminal[2])?;
        }
        for (stream, is_terminal) in is_terminal.into_iter().enumerate() {
            if lent.child[stream].is_some() {
                continue;
            }
            lent.child[stream] = Some(match (stream, is_terminal) {
                // Nobody would stop it from reading what is typed for others.
                (0, true) if !is_foreground => File::open("/dev/null")?.into(),
                (0, _) | (_, false) => own(stream as RawFd)?,
                (_, true) => {
                    lent.output_terminal(stream)?;
                    continue;
                }
            });
        }
        Ok(lent)
    }

    /// A pty for all of the caller's streams that are terminals; the first two are.
    fn own_terminal(&mut self, is_error_too: bool) -> io::Result<()> {
        let pty = Pty::like(0)?;
        self.child[0] = Some(pty.slave.try_clone()?);
        self.child[1] = Some(pty.slave.try_clone()?);
        if is_error_too {
            self.child[2] = Some(pty.slave);
        }
        self.proxy = Some(Proxy::new(pty.master.try_clone()?));
        self.resized.push(pty.master.try_clone()?);
        self.source(1, pty.master, true, Target::Caller(1))
    }

    /// A pty in place of a terminal that is printed to.
    fn output_terminal(&mut self, stream: usize) -> io::Result<()> {
        let pty = Pty::plain(stream as RawFd)?;
        self.child[stream] = Some(pty.slave);
        self.resized.push(pty.master.try_clone()?);
        self.source(stream, pty.master, true, Target::Caller(stream as RawFd))
    }

    fn tapped(
        &mut self,
        output: &OutputTap,
        target: fn(OutputTap, OutputStream) -> Target,
    ) -> io::Result<()> {
        self.pipe(1, target(output.clone(), OutputStream::Stdout))?;
        self.pipe(2, target(output.clone(), OutputStream::Stderr))
    }

    fn pipe(&mut self, stream: usize, target: Target) -> io::Result<()> {
        let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
        self.child[stream] = Some(write);
        self.source(stream, read, false, target)
    }

    fn source(&mut self, stream: usize, fd: OwnedFd, is_pty: bool, target: Target) -> io::Result<()> {
        // Our end has an open file description of its own: nobody else sees that it does not block.
        let flags = OFlag::from_bits_truncate(fcntl(&fd, FcntlArg::F_GETFL)?);
        fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        let budget = self.budget.clone();
        self.sources[stream - 1] = Some(Source { fd, is_pty, target, budget });
        Ok(())
    }

    /// The child's ends.
    pub(super) fn fds(&self) -> [Option<RawFd>; 3] {
        [0, 1, 2].map(|stream: usize| self.child[stream].as_ref().map(AsRawFd::as_raw_fd))
    }

    /// Whether the command gets a terminal, and so a session, of its own.
    pub(super) fn has_own_terminal(&self) -> bool {
        self.proxy.is_some() || self.is_given_terminal
    }

    /// Closes the child's ends on our side and starts to copy.
    pub fn run(self) -> io::Result<Running> {
        let Self { child, sources, proxy, resized, is_given_terminal: _, budget: _ } = self;
        drop(child);
        let finish = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?);
        let terminal = match (proxy, resized.is_empty()) {
            (None, true) => None,
            (proxy, _) => Some(pty::Session::begin(proxy, resized, Arc::clone(&finish))?),
        };
        let mut copies = [None, None];
        for (copy, source) in copies.iter_mut().zip(sources) {
            *copy = source.map(|source| source.copy(Arc::clone(&finish))).transpose()?;
        }
        Ok(Running { copies, finish, _terminal: terminal })
    }
}

impl Running {
    /// Reads what the command left in its streams. To be called when nobody is left to write: then all of it is there,
    /// and a descriptor that somebody outside of the execution still holds does not matter.
    ///
    /// Once `abort` is true, what cannot be copied soon is given up.
    pub async fn finish(&mut self, mut abort: watch::Receiver<bool>) -> Result<OutputReport, BackendError> {
        self.no_more();
        let mut report = OutputReport::default();
        let given_up = async {
            if abort.wait_for(|abort| *abort).await.is_err() {
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(GIVEN_UP_AFTER).await;
        };
        let mut given_up = std::pin::pin!(given_up);
        let mut is_given_up = false;
        for (stream, copy) in self.copies.iter_mut().enumerate() {
            let Some(copy) = copy.take() else { continue };
            if is_given_up {
                continue;
            }
            let copied = tokio::select! {
                biased;
                copied = copy => copied,
                () = &mut given_up => {
                    tracing::warn!("the caller does not read: what is left of the output is given up");
                    is_given_up = true;
                    continue;
                }
            };
            let copied = copied.map_err(|_| {
                BackendError::failed("reading the command's output", "the thread that copies it is gone")
            })?;
            match stream {
                0 => (report.stdout, report.stdout_hash) = (copied.kept, copied.hash),
                _ => (report.stderr, report.stderr_hash) = (copied.kept, copied.hash),
            }
        }
        Ok(report)
    }

    fn no_more(&self) {
        if let Err(error) = self.finish.write(1) {
            tracing::debug!(error = %error, "the copies could not be told to end");
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.no_more();
    }
}

impl Source {
    /// Copies in a thread of its own until the stream ends.
    fn copy(self, finish: Arc<EventFd>) -> io::Result<oneshot::Receiver<Copied>> {
        let (sender, receiver) = oneshot::channel();
        std::thread::Builder::new().name("glasshouse-copy".into()).stack_size(256 * 1024).spawn(
            move || {
                // Nobody waits for a copy whose execution was dropped.
                let _ = sender.send(self.run(&finish));
            },
        )?;
        Ok(receiver)
    }

    fn run(self, finish: &EventFd) -> Copied {
        let mut hasher = (!matches!(self.target, Target::Relay(..))).then(Sha256::new);
        let mut copied = Copied { hash: None, kept: Vec::new() };
        let mut buffer = vec![0; CHUNK_BYTES];
        let mut deadline = None;
        // What is over the limit is read and thrown away, so that nobody waits for room.
        let mut is_cut = false;
        loop {
            match nix::unistd::read(&self.fd, &mut buffer) {
                // EIO: every holder of the pty's other side is gone.
                Ok(0) | Err(Errno::EIO) => break,
                Ok(read) => {
                    let room = self.budget.as_ref().map_or(read, |budget| budget.take(read));
                    if room < read {
                        is_cut = true;
                    }
                    let read = room;
                    if let Some(hasher) = &mut hasher {
                        hasher.update(&buffer[..read]);
                    }
                    if let Err(error) = self.deliver(&buffer[..read], &mut copied.kept) {
                        tracing::debug!(error = %error, "the caller takes no more output");
                        return copied;
                    }
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => {
                    match wait_readable(self.fd.as_fd(), finish, &mut deadline, self.is_pty) {
                        true => {}
                        false => break,
                    }
                }
                Err(error) => {
                    tracing::warn!(error = %error, "the command's output could not be read");
                    return copied;
                }
            }
        }
        if !is_cut {
            copied.hash = hasher.map(|hasher| Digest::from_bytes(hasher.finalize().into()));
        }
        copied
    }

    fn deliver(&self, bytes: &[u8], kept: &mut Vec<u8>) -> nix::Result<()> {
        match &self.target {
            Target::Caller(fd) => write_all(*fd, bytes),
            Target::Tap(tap, stream) | Target::Relay(tap, stream) => {
                tap.take(*stream, bytes);
                Ok(())
            }
            Target::Keep(limit) => {
                let room = limit.saturating_sub(kept.len()).min(bytes.len());
                kept.extend_from_slice(&bytes[..room]);
                Ok(())
            }
        }
    }
}

/// One of the caller's streams, or nothing in place of one that is closed.
fn own(stream: RawFd) -> io::Result<OwnedFd> {
    #[allow(unsafe_code, reason = "the caller's streams have numbers, not owners")]
    // SAFETY: it is copied at once; a closed one answers EBADF.
    let own = unsafe { BorrowedFd::borrow_raw(stream) };
    match own.try_clone_to_owned() {
        Err(error) if error.raw_os_error() == Some(libc::EBADF) => {
            Ok(File::options().read(true).write(true).open("/dev/null")?.into())
        }
        own => own,
    }
}

/// A file that holds the bytes, to be read from its beginning. Nobody has to be there to write them.
fn file_with(bytes: &[u8]) -> io::Result<OwnedFd> {
    if bytes.is_empty() {
        return Ok(File::open("/dev/null")?.into());
    }
    let mut file = File::from(memfd_create(c"stdin", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(bytes)?;
    file.rewind()?;
    Ok(file.into())
}

/// Waits until there is something to read; `false` when there is nothing and nobody left to write.
fn wait_readable(
    from: BorrowedFd<'_>,
    finish: &EventFd,
    deadline: &mut Option<Instant>,
    is_pty: bool,
) -> bool {
    let timeout = match deadline {
        None => PollTimeout::NONE,
        Some(deadline) => {
            let left = deadline.saturating_duration_since(Instant::now());
            PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO)
        }
    };
    let mut fds = [PollFd::new(from, PollFlags::POLLIN), PollFd::new(finish.as_fd(), PollFlags::POLLIN)];
    let watched = if deadline.is_some() { 1 } else { 2 };
    match poll(&mut fds[..watched], timeout) {
        Err(Errno::EINTR) => true,
        Err(_) => false,
        Ok(0) => false,
        Ok(_) => {
            let is_readable = fds[0].any().unwrap_or(true);
            if !is_readable {
                // What the execution wrote to a pipe is in it by now; a pty hands it on from a kernel thread.
                let grace = if is_pty { PTY_GRACE } else { Duration::ZERO };
                *deadline = Some(Instant::now() + grace);
            }
            true
        }
    }
}

/// Writes to one of the caller's streams, which may be shared and non-blocking.
pub(super) fn write_all(fd: RawFd, mut bytes: &[u8]) -> nix::Result<()> {
    #[allow(unsafe_code, reason = "the caller's streams have numbers, not owners")]
    // SAFETY: the standard streams stay open as long as the process lives; a closed one answers EBADF.
    let to = unsafe { BorrowedFd::borrow_raw(fd) };
    while !bytes.is_empty() {
        match nix::unistd::write(to, bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => {
                let _ = poll(&mut [PollFd::new(to, PollFlags::POLLOUT)], PollTimeout::NONE);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
