//! The pty between the caller's terminal and the command.
//!
//! The command leads a session of its own on the pty's other side: its line discipline makes ^C, ^\ and ^Z into signals
//! for the command's foreground group, and a shell in it has job control. The caller's terminal is raw meanwhile and
//! is restored when the session is dropped, by a panic too, and by exit(3). As under `ssh -t`, a single command (no
//! shell) cannot be stopped by ^Z: its process group is orphaned, and the kernel ignores the stop.

#![allow(unsafe_code, reason = "terminal ioctls and atexit have no safe API")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, Once, PoisonError};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::AbortHandle;

use super::streams::write_all;
use crate::fd::owned;

/// The caller's terminal settings while it is raw.
static RAW: Mutex<Option<Termios>> = Mutex::new(None);

fn standard(fd: RawFd) -> BorrowedFd<'static> {
    // SAFETY: the standard streams stay open as long as the process lives; a closed one answers EBADF.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

/// Whether the caller's stream is a terminal.
pub(super) fn is_terminal(fd: RawFd) -> bool {
    nix::unistd::isatty(standard(fd)).unwrap_or(false)
}

/// Whether our process group may read from the caller's terminal. In the background, changing its settings would
/// stop us.
pub(super) fn is_foreground() -> bool {
    nix::unistd::tcgetpgrp(standard(0)).is_ok_and(|group| group == nix::unistd::getpgrp())
}

/// A pty, its two sides.
pub(super) struct Pty {
    pub(super) master: OwnedFd,
    pub(super) slave: OwnedFd,
}

impl Pty {
    /// A pty with settings and size of the caller's terminal.
    pub(super) fn like(terminal: RawFd) -> io::Result<Self> {
        let pty = Self::open()?;
        tcsetattr(&pty.slave, SetArg::TCSANOW, &tcgetattr(standard(terminal))?)?;
        copy_size(terminal, pty.master.as_fd());
        Ok(pty)
    }

    /// A pty for output alone: it changes no byte, because the caller's terminal will.
    pub(super) fn plain(terminal: RawFd) -> io::Result<Self> {
        let pty = Self::open()?;
        let mut settings = tcgetattr(&pty.slave)?;
        cfmakeraw(&mut settings);
        tcsetattr(&pty.slave, SetArg::TCSANOW, &settings)?;
        copy_size(terminal, pty.master.as_fd());
        Ok(pty)
    }

    fn open() -> io::Result<Self> {
        // SAFETY: plain system calls. TIOCGPTPEER opens the other side without a path, so that /dev/pts of another
        // mount namespace cannot matter, and close-on-exec from the beginning.
        unsafe {
            let master = owned(libc::posix_openpt(libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC))?;
            if libc::grantpt(master.as_raw_fd()) < 0 || libc::unlockpt(master.as_raw_fd()) < 0 {
                return Err(io::Error::last_os_error());
            }
            let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
            let slave = owned(libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER as _, flags))?;
            Ok(Self { master, slave })
        }
    }
}

fn copy_size(terminal: RawFd, master: BorrowedFd<'_>) {
    // SAFETY: winsize is plain data that the first ioctl fills and the second reads.
    unsafe {
        let mut size: libc::winsize = std::mem::zeroed();
        if libc::ioctl(terminal, libc::TIOCGWINSZ, &mut size) == 0 {
            libc::ioctl(master.as_raw_fd(), libc::TIOCSWINSZ, &size);
        }
    }
}

/// The caller's keyboard on its way to the command's terminal.
pub(super) struct Proxy {
    master: OwnedFd,
}

impl Proxy {
    pub(super) fn new(master: OwnedFd) -> Self {
        Self { master }
    }

    /// Copies what is typed until the execution is over.
    fn copy_input(self, finish: Arc<EventFd>) -> io::Result<()> {
        std::thread::Builder::new().name("glasshouse-input".into()).stack_size(128 * 1024).spawn(
            move || {
                let mut buffer = [0; 4096];
                loop {
                    let mut fds = [
                        PollFd::new(standard(0), PollFlags::POLLIN),
                        PollFd::new(finish.as_fd(), PollFlags::POLLIN),
                    ];
                    match poll(&mut fds, PollTimeout::NONE) {
                        Ok(_) if fds[1].any().unwrap_or(true) => return,
                        Ok(_) | Err(Errno::EINTR) => {}
                        Err(_) => return,
                    }
                    match nix::unistd::read(standard(0), &mut buffer) {
                        Ok(0) => return,
                        Ok(read) => {
                            if write_all(self.master.as_raw_fd(), &buffer[..read]).is_err() {
                                return;
                            }
                        }
                        Err(Errno::EINTR | Errno::EAGAIN) => {}
                        Err(_) => return,
                    }
                }
            },
        )?;
        Ok(())
    }
}

/// Terminal proxying while a command runs. Dropping it restores the caller's terminal.
pub(super) struct Session {
    is_raw: bool,
    resize: Option<AbortHandle>,
}

impl Session {
    /// Makes the caller's terminal raw if the command has one of its own, and keeps the size of every pty in
    /// `resized` that of the caller's.
    pub(super) fn begin(
        proxy: Option<Proxy>,
        resized: Vec<OwnedFd>,
        finish: Arc<EventFd>,
    ) -> io::Result<Self> {
        let mut session = Self { is_raw: false, resize: None };
        if let Some(proxy) = proxy {
            make_raw()?;
            session.is_raw = true;
            proxy.copy_input(finish)?;
        }
        let mut changes = signal(SignalKind::window_change())?;
        let resize = tokio::spawn(async move {
            while changes.recv().await.is_some() {
                let terminal = (0..=2).find(|fd| is_terminal(*fd)).unwrap_or(0);
                resized.iter().for_each(|master| copy_size(terminal, master.as_fd()));
            }
        });
        session.resize = Some(resize.abort_handle());
        Ok(session)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Some(resize) = &self.resize {
            resize.abort();
        }
        if self.is_raw {
            restore();
        }
    }
}

fn make_raw() -> io::Result<()> {
    static AT_EXIT: Once = Once::new();
    // SAFETY: registers a function that lives as long as the program; it cannot unwind into C.
    AT_EXIT.call_once(|| unsafe {
        libc::atexit(restore_at_exit);
    });
    let settings = tcgetattr(standard(0))?;
    let mut raw = settings.clone();
    cfmakeraw(&mut raw);
    *RAW.lock().unwrap_or_else(PoisonError::into_inner) = Some(settings);
    tcsetattr(standard(0), SetArg::TCSADRAIN, &raw)?;
    Ok(())
}

extern "C" fn restore_at_exit() {
    restore();
}

fn restore() {
    // At exit another thread may hold the lock for good; then it is restoring itself.
    let Ok(mut raw) = RAW.try_lock() else { return };
    let Some(settings) = raw.take() else { return };
    // In the background the kernel would stop us for this.
    let mut stops = SigSet::empty();
    stops.add(Signal::SIGTTOU);
    let mut before = SigSet::empty();
    let blocked = pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&stops), Some(&mut before));
    let _ = tcsetattr(standard(0), SetArg::TCSADRAIN, &settings);
    if blocked.is_ok() {
        let _ = pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&before), None);
    }
}
