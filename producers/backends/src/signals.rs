//! Forwards the signals that end or interrupt to the command while it runs.
//!
//! SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1 and SIGUSR2 to us go to the command's root, and we live on to see its end
//! and seal. One exception: when the command is in our own process group (streams inherited, no pty), the terminal
//! sends ^C and ^\ to the whole group by itself, so what the kernel sent is not sent a second time. What somebody sent
//! with kill(2) always is.
//!
//! Once the root has ended, what is left of an execution is ours to shorten: the backend ends it ([`ExecutionBackend::kill`]
//! again), and [`SignalForwarder::stop`] tells whoever waits for something else.
//!
//! A signal that comes before the command exists is kept by the backend and ends the held process before its first
//! instruction; see [`ExecutionBackend::kill`].

#![allow(unsafe_code, reason = "only a handler with siginfo tells the terminal's ^C from kill(2)")]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, OnceLock};

use glasshouse_execution::backend::{ExecutionBackend, StopSignal};
use nix::fcntl::OFlag;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::Instrument;

use crate::fd::watch;

const FORWARDED: [i32; 6] =
    [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT, libc::SIGUSR1, libc::SIGUSR2];

/// From the handler to the task. Never closed once made, because a handler may be about to write.
static PIPE: OnceLock<(OwnedFd, OwnedFd)> = OnceLock::new();
/// Its writing end, for the handler; -1 before it is made.
static WAKE: AtomicI32 = AtomicI32::new(-1);
/// Somebody forwards.
static ACTIVE: AtomicBool = AtomicBool::new(false);

/// Forwards signals until it is dropped, which restores what the signals did before.
#[derive(Debug)]
pub struct SignalForwarder {
    task: JoinHandle<()>,
    before: Vec<(i32, libc::sigaction)>,
    /// How many came that ask for an end.
    stops: watch::Receiver<u64>,
}

impl SignalForwarder {
    /// Returns at the next signal that asks for an end: SIGINT, SIGTERM, SIGHUP or SIGQUIT. Those that came before the
    /// call were for the command.
    pub fn stop(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut stops = self.stops.clone();
        stops.mark_unchanged();
        async move {
            if stops.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Begins to forward to the backend's command. One at a time: a second while the first lives is refused. Has to be
    /// called in a tokio runtime.
    pub fn install(backend: Arc<dyn ExecutionBackend>) -> io::Result<Self> {
        if ACTIVE.swap(true, Ordering::SeqCst) {
            return Err(io::Error::other("signals are being forwarded to another execution already"));
        }
        let pipe = pipe().inspect_err(|_| ACTIVE.store(false, Ordering::SeqCst))?;
        let (stopped, stops) = watch::channel(0);
        let task = tokio::spawn(forward(pipe, backend, stopped).in_current_span());
        let mut forwarder = Self { task, before: Vec::new(), stops };
        for signal in FORWARDED {
            // SAFETY: sigaction with valid pointers; the handler is async-signal-safe.
            unsafe {
                let mut before: libc::sigaction = std::mem::zeroed();
                if libc::sigaction(signal, std::ptr::null(), &mut before) < 0 {
                    return Err(io::Error::last_os_error());
                }
                // What the caller ignores (nohup) stays ignored, for us and for the command.
                if before.sa_sigaction == libc::SIG_IGN {
                    continue;
                }
                let mut action: libc::sigaction = std::mem::zeroed();
                action.sa_sigaction = handler as *const () as usize;
                action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
                if libc::sigaction(signal, &action, std::ptr::null_mut()) < 0 {
                    return Err(io::Error::last_os_error());
                }
                forwarder.before.push((signal, before));
            }
        }
        Ok(forwarder)
    }
}

impl Drop for SignalForwarder {
    fn drop(&mut self) {
        for (signal, before) in &self.before {
            // SAFETY: puts back what sigaction gave.
            unsafe {
                libc::sigaction(*signal, before, std::ptr::null_mut());
            }
        }
        self.task.abort();
        ACTIVE.store(false, Ordering::SeqCst);
    }
}

/// The reading end, empty.
fn pipe() -> io::Result<AsyncFd<OwnedFd>> {
    let (read, write) = match PIPE.get() {
        Some(pipe) => pipe,
        None => {
            let pipe = nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
            PIPE.get_or_init(|| pipe)
        }
    };
    // What came for an execution before is not for the next one.
    while nix::unistd::read(read, &mut [0; 64]).is_ok_and(|read| read > 0) {}
    WAKE.store(write.as_raw_fd(), Ordering::SeqCst);
    watch(read.try_clone()?, Interest::READABLE)
}

/// Writes the signal and whether the kernel sent it. A full pipe loses the signal: 32,768 are waiting already.
extern "C" fn handler(signal: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel gives a valid siginfo; errno is restored; write is async-signal-safe.
    unsafe {
        let errno = *libc::__errno_location();
        let from_kernel = !info.is_null() && (*info).si_code == libc::SI_KERNEL;
        let record = [signal as u8, u8::from(from_kernel)];
        libc::write(WAKE.load(Ordering::SeqCst), record.as_ptr().cast(), record.len());
        *libc::__errno_location() = errno;
    }
}

async fn forward(pipe: AsyncFd<OwnedFd>, backend: Arc<dyn ExecutionBackend>, stopped: watch::Sender<u64>) {
    let mut records = [0; 64];
    loop {
        let Ok(mut ready) = pipe.readable().await else { return };
        let read =
            ready.try_io(|pipe| nix::unistd::read(pipe.get_ref(), &mut records).map_err(io::Error::from));
        let read = match read {
            Ok(Ok(read @ 1..)) => read,
            Ok(_) => return,
            Err(_would_block) => continue,
        };
        for record in records[..read].chunks_exact(2) {
            let (signal, from_kernel) = (i32::from(record[0]), record[1] == 1);
            if matches!(signal, libc::SIGINT | libc::SIGTERM | libc::SIGHUP | libc::SIGQUIT) {
                stopped.send_modify(|stops| *stops += 1);
            }
            if from_kernel && backend.shares_process_group() {
                continue;
            }
            tracing::debug!(signal, "forwarding a signal to the command");
            if let Err(error) = backend.kill(StopSignal::Number(signal)).await {
                tracing::warn!(signal, error = %error, "the signal could not be forwarded");
            }
        }
    }
}
