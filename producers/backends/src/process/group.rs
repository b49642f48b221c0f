//! Finds what a command left behind where no cgroup v2 can be made: by process group and session.
//!
//! A process that leaves both is not found; the backend says so when it falls back to this.

#![allow(unsafe_code, reason = "pidfd_open has no safe API, nor has kill with any number")]

use std::fs;
use std::io;
use std::os::fd::RawFd;

use nix::sys::signal::{SIGKILL, kill};
use nix::unistd::Pid;
use tokio::io::Interest;

use crate::fd::{owned, watch};

/// Returns once no process of the group or session `leader` is left; kills those that are there when asked to. The
/// leader itself has to be a zombie still, so that its id names nothing else.
pub(super) async fn empty(leader: i32, kill_them: bool) -> io::Result<()> {
    loop {
        let members = members(leader);
        if members.is_empty() {
            return Ok(());
        }
        for member in members {
            // SAFETY: pidfd_open takes two integers and gives a descriptor or an error.
            let pidfd = unsafe { libc::syscall(libc::SYS_pidfd_open, member, 0) };
            // One that is gone already has none.
            let Ok(pidfd) = owned(pidfd as RawFd) else { continue };
            let pidfd = watch(pidfd, Interest::READABLE)?;
            if kill_them {
                let _ = kill(Pid::from_raw(member), SIGKILL);
            }
            let _ = pidfd.readable().await?;
        }
    }
}

/// A signal to every living process of the group or session, the leader excepted.
pub(super) fn signal(leader: i32, number: i32) {
    for member in members(leader) {
        send(member, number);
    }
}

/// A signal to a process that may be gone, or be another's.
pub(super) fn send(pid: i32, number: i32) {
    // SAFETY: plain system call with two integers.
    unsafe {
        libc::kill(pid, number);
    }
}

/// Living processes of the group or session, the leader excepted.
fn members(leader: i32) -> Vec<i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| {
        *pid != leader && fs::read(format!("/proc/{pid}/stat")).is_ok_and(|stat| belongs(&stat, leader))
    })
    .collect()
}

/// proc_pid_stat(5): `pid (comm) state ppid pgrp session …`; comm may hold anything, so it is read from its end.
fn belongs(stat: &[u8], leader: i32) -> bool {
    let Some(end) = stat.iter().rposition(|byte| *byte == b')') else { return false };
    let rest = String::from_utf8_lossy(&stat[end + 1..]);
    let fields: Vec<&str> = rest.split_whitespace().take(4).collect();
    match fields[..] {
        [state, _, group, session] => {
            state != "Z" && state != "X" && [group, session].iter().any(|id| id.parse() == Ok(leader))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_is_read_whatever_the_name() {
        assert!(belongs(b"12 (a) b) S 1 7 9 0", 7));
        assert!(belongs(b"12 (a) S 1 8 7 0", 7));
        assert!(!belongs(b"12 (a) Z 1 7 7 0", 7));
        assert!(!belongs(b"12 (7 7 7", 7));
        assert!(!belongs(b"", 7));
    }
}
