//! The first process of a container's pid namespace, as a pod's pause container is.
//!
//! A command that is PID 1 itself gets no signal that it has no handler for. So its namespace is made by a process of
//! ours, which does nothing but wait for our end: with it the kernel ends everything in the namespace.

#![allow(unsafe_code, reason = "makes a process that never returns to Rust")]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;

use nix::fcntl::OFlag;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

/// The process, until it is dropped.
#[derive(Debug)]
pub(crate) struct Holder {
    pid: Pid,
    /// It ends when nobody has this any more.
    alive: Option<OwnedFd>,
}

impl Holder {
    /// Makes a pid namespace and its first process.
    pub(crate) fn new() -> io::Result<Self> {
        let (told, alive) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
        let told_fd = told.as_raw_fd();
        // SAFETY: the arguments of clone(2) are plain numbers, and no stack means a copy of ours, as by fork(2).
        let pid = unsafe {
            libc::syscall(
                libc::SYS_clone,
                (libc::CLONE_NEWPID | libc::SIGCHLD) as libc::c_ulong,
                0_usize,
                0_usize,
                0_usize,
                0_usize,
            )
        };
        match pid {
            // SAFETY: nothing here allocates, locks or returns.
            0 => unsafe { hold(told_fd) },
            pid if pid > 0 => Ok(Self { pid: Pid::from_raw(pid as i32), alive: Some(alive) }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// The namespace, for who joins it.
    pub(crate) fn namespace(&self) -> PathBuf {
        format!("/proc/{}/ns/pid", self.pid).into()
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.alive = None;
        // What is in its namespace ends with it, so this waits for processes that are killed.
        if let Err(error) = waitpid(self.pid, Some(WaitPidFlag::__WALL)) {
            tracing::debug!(%error, "the holder of a pid namespace was waited for by somebody else");
        }
    }
}

/// # Safety
/// Only for the only thread of a new process.
unsafe fn hold(told: i32) -> ! {
    // SAFETY: plain system calls on numbers and on a byte of this function's own.
    unsafe {
        // Nobody else's descriptors are kept open here.
        libc::dup2(told, 0);
        libc::syscall(libc::SYS_close_range, 1_u32, u32::MAX, 0_u32);
        // Who is left by its parent is reaped by the kernel.
        libc::signal(libc::SIGCHLD, libc::SIG_IGN);
        let mut byte = 0_u8;
        while libc::read(0, (&raw mut byte).cast(), 1) < 0 {}
        libc::_exit(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_holds_a_namespace_and_ends_with_us() {
        if !nix::unistd::geteuid().is_root() {
            return eprintln!("skipped: only root makes pid namespaces");
        }
        let holder = Holder::new().unwrap();
        let own = std::fs::read_link("/proc/self/ns/pid").unwrap();
        let held = holder.namespace();
        assert_ne!(std::fs::read_link(&held).unwrap(), own);
        drop(holder);
        assert!(!held.exists());
    }
}
