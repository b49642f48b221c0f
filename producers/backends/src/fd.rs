//! The two things about descriptors that have no safe API.

#![allow(
    unsafe_code,
    reason = "takes ownership of raw descriptors and registers owned ones with the runtime"
)]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};

use nix::fcntl::{FcntlArg, fcntl};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Waits for a descriptor with the runtime's reactor.
pub(crate) fn watch(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd is open until it is dropped, which the AsyncFd does after it has deregistered it, and its
    // number never changes.
    unsafe { AsyncFd::register_with_interest(fd, interest) }.map_err(io::Error::from)
}

/// A descriptor that a plain system call has just given us, or the call's error.
pub(crate) fn owned(fd: RawFd) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the callers hand in what the kernel has just given them.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // A descriptor among the standard streams would be overwritten in a child.
    match fd.as_raw_fd() {
        0..=2 => {
            let moved = fcntl(&fd, FcntlArg::F_DUPFD_CLOEXEC(3))?;
            // The number stays taken, as a standard stream should be.
            let _ = fd.into_raw_fd();
            owned(moved)
        }
        _ => Ok(fd),
    }
}
