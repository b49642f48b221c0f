//! Who is at the other end of the socket: what the kernel says, and nothing that the peer does.

#![allow(unsafe_code, reason = "SO_PEERGROUPS and SO_PEERPIDFD have no safe API")]

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use glasshouse_execution::RunAs;
use glasshouse_schema::ExecutionId;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{getsockopt, sockopt};

/// Of linux/socket.h, since Linux 6.5.
const SO_PEERPIDFD: libc::c_int = 77;
/// Resource limits have numbers from 0 to 15 (asm-generic/resource.h).
const RESOURCES: usize = 16;
/// Most groups of one user (NGROUPS_MAX).
const MAX_GROUPS: usize = 65_536;

/// A process of a user.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) uid: u32,
    pub(super) gid: u32,
    groups: Vec<u32>,
    resources: Vec<(u32, u64, u64)>,
}

impl Peer {
    /// Whoever connected. `Err` says why nothing is run for it.
    pub(super) fn of(stream: &impl AsFd) -> Result<Self, String> {
        let said = |what: &str, error: io::Error| format!("{what}: {error}");
        let who = getsockopt(stream, sockopt::PeerCredentials).map_err(|errno| errno.to_string())?;
        if who.uid() == 0 {
            return Err("root runs commands itself: call `glasshouse run` with --agent never".into());
        }
        // Of another pid namespace, which is not below ours.
        if who.pid() <= 0 {
            return Err("the process that asks cannot be seen from here".into());
        }
        let pidfd = pidfd(stream, who.pid()).map_err(|error| said("the process that asks is gone", error))?;
        let cgroups = read(&format!("/proc/{}/cgroup", who.pid()))
            .map_err(|error| said("the cgroup of the process that asks", error))?;
        let resources =
            resources(who.pid()).map_err(|error| said("the limits of the process that asks", error))?;
        // Only while it was there all the time did the number mean it.
        if has_ended(&pidfd) {
            return Err("the process that asks has ended".into());
        }
        if let Some(execution) = execution_of(&cgroups) {
            return Err(format!(
                "a command that runs as execution {execution} cannot get out of it through the agent"
            ));
        }
        let groups = groups(stream).map_err(|error| said("the groups of the process that asks", error))?;
        Ok(Self { uid: who.uid(), gid: who.gid(), groups, resources })
    }

    /// The user that its command runs as.
    pub(super) fn run_as(&self, umask: u32) -> RunAs {
        RunAs {
            uid: self.uid,
            gid: self.gid,
            groups: self.groups.clone(),
            umask: umask & 0o777,
            resources: self.resources.clone(),
        }
    }
}

/// The execution that a process belongs to (cgroups(7): `number:controllers:path` a line).
fn execution_of(cgroups: &str) -> Option<ExecutionId> {
    cgroups.lines().find_map(|line| {
        let path = line.splitn(3, ':').nth(2)?;
        let mut parts = path.split('/').skip_while(|part| *part != "glasshouse").skip(1);
        parts.find_map(|part| part.parse().ok())
    })
}

fn pidfd(stream: &impl AsFd, pid: i32) -> io::Result<OwnedFd> {
    let mut pidfd: libc::c_int = -1;
    let mut length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the kernel writes one descriptor, which nobody else knows of.
    unsafe {
        let socket = stream.as_fd().as_raw_fd();
        let got = libc::getsockopt(
            socket,
            libc::SOL_SOCKET,
            SO_PEERPIDFD,
            (&raw mut pidfd).cast(),
            &raw mut length,
        );
        if got < 0 {
            let error = io::Error::last_os_error();
            if error.raw_os_error() != Some(libc::ENOPROTOOPT) {
                return Err(error);
            }
            // Older: whoever has the number now. It has just connected.
            pidfd = libc::syscall(libc::SYS_pidfd_open, pid, 0) as libc::c_int;
        }
        if pidfd < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(OwnedFd::from_raw_fd(pidfd))
    }
}

fn has_ended(pidfd: &OwnedFd) -> bool {
    let mut ended = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    !matches!(poll(&mut ended, PollTimeout::ZERO), Ok(0))
}

fn groups(stream: &impl AsFd) -> io::Result<Vec<u32>> {
    let mut groups: Vec<libc::gid_t> = vec![0; 64];
    loop {
        let mut length = (groups.len() * size_of::<libc::gid_t>()) as libc::socklen_t;
        // SAFETY: the kernel writes at most `length` bytes into the list, and says how many it wrote or wants.
        let got = unsafe {
            let socket = stream.as_fd().as_raw_fd();
            let list = groups.as_mut_ptr().cast();
            libc::getsockopt(socket, libc::SOL_SOCKET, libc::SO_PEERGROUPS, list, &raw mut length)
        };
        let count = length as usize / size_of::<libc::gid_t>();
        match io::Error::last_os_error() {
            error if got < 0 && (error.raw_os_error() != Some(libc::ERANGE) || count > MAX_GROUPS) => {
                return Err(error);
            }
            _ => groups.resize(count, 0),
        }
        if got == 0 {
            return Ok(groups);
        }
    }
}

/// A file of /proc in one go: it does not say how long it is, and would be asked for in small pieces.
fn read(path: &str) -> io::Result<String> {
    let mut text = String::with_capacity(4096);
    File::open(path)?.read_to_string(&mut text)?;
    Ok(text)
}

/// The limits of a process (proc_pid_limits(5)), none above our own: ours may be all that we can give. Read and not asked for
/// by prlimit(2), for which one needs CAP_SYS_RESOURCE.
fn resources(pid: i32) -> io::Result<Vec<(u32, u64, u64)>> {
    let text = read(&format!("/proc/{pid}/limits"))?;
    let theirs: Vec<(u64, u64)> = text.lines().skip(1).filter_map(limits).collect();
    if theirs.len() != RESOURCES {
        return Err(io::Error::other("the kernel writes them in another way"));
    }
    (0..)
        .zip(theirs)
        .map(|(resource, (soft, hard))| {
            let hard = hard.min(own_hard(resource)?);
            Ok((resource, soft.min(hard), hard))
        })
        .collect()
}

fn own_hard(resource: u32) -> io::Result<u64> {
    let mut own = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel writes one rlimit64; no process but us is asked for, and nothing is set.
    let got = unsafe { libc::prlimit64(0, resource, std::ptr::null(), &raw mut own) };
    if got < 0 { Err(io::Error::last_os_error()) } else { Ok(own.rlim_max) }
}

/// Soft and hard value of a line; the lines come in the order of the resources' numbers, the name has 25 places.
fn limits(line: &str) -> Option<(u64, u64)> {
    let mut values = line.get(25..)?.split_whitespace().map(|value| match value {
        "unlimited" => Some(libc::RLIM64_INFINITY),
        number => number.parse().ok(),
    });
    Some((values.next()??, values.next()??))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_execution_is_known_by_its_cgroup() {
        let id = "0198c0de-0000-7000-8000-000000000000";
        let nested = format!("4:memory:/\n0::/system.slice/agent/glasshouse/{id}/below\n");
        assert_eq!(execution_of(&nested).map(|id| id.to_string()).as_deref(), Some(id));
        for outside in ["0::/user.slice\n", "0::/glasshouse\n", &format!("0::/{id}\n"), "", "0:", "x"] {
            assert_eq!(execution_of(outside), None, "{outside}");
        }
    }

    #[test]
    fn limits_are_those_of_the_process() {
        let own = resources(i32::try_from(std::process::id()).unwrap()).unwrap();
        assert_eq!(own.len(), 16);
        assert!(own.iter().all(|(_, soft, hard)| soft <= hard));
        let (soft, hard) =
            nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).unwrap();
        assert_eq!(own[libc::RLIMIT_NOFILE as usize], (libc::RLIMIT_NOFILE, soft, hard));
    }

    #[test]
    fn root_and_the_dead_are_refused() {
        let (here, _there) = std::os::unix::net::UnixStream::pair().unwrap();
        let refused = Peer::of(&here).map(|peer| peer.uid);
        match nix::unistd::geteuid().is_root() {
            true => assert!(refused.unwrap_err().contains("root")),
            false => assert_eq!(refused.unwrap(), nix::unistd::geteuid().as_raw()),
        }
    }
}
