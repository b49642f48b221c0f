//! The first process of a pid namespace: it does nothing but be there, and reap.
//!
//! The command's root is not its child but ours, so that nothing stands between it and us: its exit code and its
//! resources come from the kernel, and signals go to it. What the command leaves without a parent falls to the init,
//! which ignores SIGCHLD, so that the kernel takes it away.
//!
//! The init holds the read end of a pipe whose write end is ours alone. When we end, however we end, it does, and with the
//! first process of a pid namespace ends every other.

#![allow(unsafe_code, reason = "clone3 and what a forked child may call")]

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use nix::fcntl::OFlag;

use super::step::Ids;
use crate::fd::owned;
use crate::process::guest::Root;

const CLONE_PIDFD: u64 = 0x1000;
const CLONE_CLEAR_SIGHAND: u64 = 1 << 32;

/// A running init. Dropped, it ends, and with it all of its namespace.
#[derive(Debug)]
pub(in crate::process) struct Init {
    pidfd: OwnedFd,
    _lifeline: OwnedFd,
    _root: Root,
}

impl Init {
    /// Starts one, in a user namespace of its own if asked to, which then holds our ids as they are, and the user's.
    pub(super) fn start(in_user_namespace: bool, user: Option<Ids>) -> io::Result<Self> {
        let (read, lifeline) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
        let mut pidfd: RawFd = -1;
        // SAFETY: clone_args is plain data, for which all zeroes is valid and means "nothing asked for".
        let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
        let new_user = if in_user_namespace { libc::CLONE_NEWUSER } else { 0 };
        args.flags = CLONE_PIDFD | CLONE_CLEAR_SIGHAND | (libc::CLONE_NEWPID | new_user) as u64;
        args.pidfd = &raw mut pidfd as u64;
        args.exit_signal = libc::SIGCHLD as u64;
        // SAFETY: without CLONE_VM this is a fork; the child goes on into `run` and never returns from it.
        let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<libc::clone_args>()) };
        match pid {
            0 => run(read.as_raw_fd()),
            1.. => {
                let init = Self { pidfd: owned(pidfd)?, _lifeline: lifeline, _root: Root::new(pid as i32) };
                if in_user_namespace {
                    map_ids(pid as i32, user)?;
                }
                Ok(init)
            }
            _ => Err(io::Error::last_os_error()),
        }
    }

    pub(in crate::process) fn pidfd(&self) -> RawFd {
        self.pidfd.as_raw_fd()
    }

    /// Children of this thread will be in the init's namespace.
    pub(super) fn adopt(&self) -> io::Result<()> {
        // SAFETY: plain system call.
        match unsafe { libc::setns(self.pidfd.as_raw_fd(), libc::CLONE_NEWPID) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Ends it and waits until nobody of its namespace is left. The command's root must have been waited for: the init
    /// ends after it.
    pub(in crate::process) fn end(self) {
        // SAFETY: plain system calls on a descriptor that we own; neither reads nor writes memory of ours.
        unsafe {
            let none = std::ptr::null::<libc::siginfo_t>();
            let pidfd = self.pidfd.as_raw_fd();
            libc::syscall(libc::SYS_pidfd_send_signal, pidfd, libc::SIGKILL, none, 0);
            while libc::waitid(libc::P_PIDFD, pidfd as libc::id_t, std::ptr::null_mut(), libc::WEXITED) < 0
                && *libc::__errno_location() == libc::EINTR
            {}
        }
    }
}

/// Our user and group as themselves, and those that the command runs as.
fn map_ids(pid: i32, user: Option<Ids>) -> io::Result<()> {
    let map = |own: u32, other: Option<u32>| {
        let mut ids = vec![own];
        ids.extend(other.filter(|other| *other != own));
        ids.iter().map(|id| format!("{id} {id} 1\n")).collect::<String>()
    };
    let (uid, gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    fs::write(format!("/proc/{pid}/uid_map"), map(uid, user.map(|user| user.uid)))?;
    fs::write(format!("/proc/{pid}/gid_map"), map(gid, user.map(|user| user.gid)))
}

/// The init's life. It is a copy of us, so that nobody else may look into it: it is not dumpable, which closes its
/// memory, its environment and its descriptors to the sandbox.
fn run(lifeline: RawFd) -> ! {
    // SAFETY: plain system calls in a forked child, whose single thread this is.
    unsafe {
        libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0);
        libc::prctl(libc::PR_SET_NAME, c"glasshouse-init".as_ptr(), 0, 0, 0);
        libc::setsid();
        libc::signal(libc::SIGCHLD, libc::SIG_IGN);
        if lifeline > 0 {
            libc::syscall(libc::SYS_close_range, 0, lifeline - 1, 0);
        }
        libc::syscall(libc::SYS_close_range, lifeline + 1, libc::c_uint::MAX, 0);
        let mut byte = 0_u8;
        while libc::read(lifeline, (&raw mut byte).cast(), 1) < 0 && *libc::__errno_location() == libc::EINTR
        {
        }
        libc::_exit(0)
    }
}
