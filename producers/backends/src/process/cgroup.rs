//! The cgroup v2 of one execution: `<our own cgroup>/glasshouse/<execution id>`.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use glasshouse_schema::ids::ExecutionId;
use tokio::io::Interest;

use crate::fd::watch;

/// The folder of all executions below our own cgroup. It stays: it is empty and others may be about to use it.
const PARENT: &str = "glasshouse";

/// A cgroup that exists until [`Cgroup::remove`].
#[derive(Debug)]
pub(super) struct Cgroup {
    path: PathBuf,
    dir: File,
    id: u64,
}

impl Cgroup {
    /// Makes the execution's cgroup under our own or, where that is not ours to write, under the root of the mount.
    pub(super) fn make(execution: ExecutionId) -> Result<Self, String> {
        let mount = mount_point()?;
        let own = own_cgroup(&mount)?;
        let mut first_error = None;
        for base in [&own, &mount.path] {
            match Self::make_under(base, execution) {
                Ok(cgroup) => return Ok(cgroup),
                Err(error) => first_error = first_error.or(Some(error)),
            }
        }
        Err(first_error.unwrap_or_default())
    }

    fn make_under(base: &Path, execution: ExecutionId) -> Result<Self, String> {
        let parent = base.join(PARENT);
        let path = parent.join(execution.to_string());
        let explain = |error: io::Error| {
            let hint = match error.kind() {
                ErrorKind::PermissionDenied => ": run as root, or in a cgroup that is delegated to you",
                ErrorKind::ReadOnlyFilesystem => ": mount cgroup2 writable",
                _ => "",
            };
            format!("making the cgroup {}: {error}{hint}", path.display())
        };
        match fs::create_dir(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                match fs::create_dir(&parent) {
                    Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(explain(error)),
                    _ => {}
                }
                fs::create_dir(&path).map_err(explain)?;
            }
            made => made.map_err(explain)?,
        }
        let dir = File::open(&path).map_err(explain)?;
        // The inode of the directory is what the kernel calls the cgroup's id.
        let id = dir.metadata().map_err(explain)?.ino();
        Ok(Self { path, dir, id })
    }

    pub(super) fn id(&self) -> u64 {
        self.id
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The directory, to start a process in.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// Moves a process in.
    pub(super) fn add(&self, pid: i32) -> io::Result<()> {
        fs::write(self.path.join("cgroup.procs"), pid.to_string())
    }

    /// SIGKILL to every process in it and below.
    pub(super) fn kill(&self) -> io::Result<()> {
        match File::options().write(true).open(self.path.join("cgroup.kill")) {
            Ok(mut kill) => kill.write_all(b"1"),
            // Older than Linux 5.14. A process that forks meanwhile is caught by the next round of `empty`.
            Err(error) if error.kind() == ErrorKind::NotFound && self.path.exists() => self.kill_one_by_one(),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn kill_one_by_one(&self) -> io::Result<()> {
        for dir in self.below() {
            for pid in fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default().lines() {
                if let Ok(pid) = pid.parse::<i32>() {
                    let _ =
                        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL);
                }
            }
        }
        Ok(())
    }

    /// Returns once no process is left in it and below; kills those that are there when asked to.
    pub(super) async fn empty(&self, kill: bool) -> io::Result<()> {
        let events = match File::open(self.path.join("cgroup.events")) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            events => events?,
        };
        if !populated(&events)? {
            return Ok(());
        }
        // kernfs reports a change as a priority event. It is registered before the value is read again, so that a
        // change in between is not missed.
        let events = watch(events.into(), Interest::PRIORITY)?;
        loop {
            if kill {
                self.kill()?;
            }
            if !populated(events.get_ref())? {
                return Ok(());
            }
            events.ready(Interest::PRIORITY).await?.clear_ready();
        }
    }

    /// Removes it and what the command made below it; gives what is left.
    pub(super) fn remove(&self) -> Vec<String> {
        // Children come before their parents.
        let removed = self.below().into_iter().rev().map(|dir| match fs::remove_dir(&dir) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Some(format!("the cgroup {} is left: {error}", dir.display()))
            }
            _ => None,
        });
        removed.flatten().collect()
    }

    /// The directory and every one below it, parents first.
    fn below(&self) -> Vec<PathBuf> {
        let mut found = vec![self.path.clone()];
        let mut next = 0;
        while let Some(dir) = found.get(next) {
            let entries = fs::read_dir(dir).into_iter().flatten().flatten();
            let dirs = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
            let dirs: Vec<PathBuf> = dirs.map(|entry| entry.path()).collect();
            found.extend(dirs);
            next += 1;
        }
        found
    }
}

fn populated(events: impl AsFd) -> io::Result<bool> {
    let mut buffer = [0; 256];
    match nix::sys::uio::pread(events, &mut buffer, 0) {
        Ok(read) => Ok(buffer[..read].split(|byte| *byte == b'\n').any(|line| line == b"populated 1")),
        // The cgroup was removed.
        Err(nix::errno::Errno::ENODEV) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Where cgroup2 is mounted, and which cgroup is at that place.
#[derive(Debug, PartialEq, Eq)]
struct Mount {
    path: PathBuf,
    root: PathBuf,
}

fn mount_point() -> Result<Mount, String> {
    let table =
        fs::read("/proc/self/mountinfo").map_err(|error| format!("reading /proc/self/mountinfo: {error}"))?;
    find_mount(&table)
        .ok_or_else(|| "cgroup v2 is not mounted: mount -t cgroup2 none /sys/fs/cgroup".to_owned())
}

/// Whether a cgroup v2 is mounted here at all.
pub(super) fn is_mounted() -> bool {
    mount_point().is_ok()
}

/// proc_pid_mountinfo(5): `id parent major:minor root mount-point options [fields] - type source super-options`.
fn find_mount(table: &[u8]) -> Option<Mount> {
    table.split(|byte| *byte == b'\n').find_map(|line| {
        let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
        let separator = fields.iter().position(|field| *field == b"-").filter(|at| *at >= 6)?;
        let is_cgroup2 = fields.get(separator + 1) == Some(&&b"cgroup2"[..]);
        let path = |index: usize| fields.get(index).map(|field| PathBuf::from(unescape(field)));
        is_cgroup2.then(|| Some(Mount { root: path(3)?, path: path(4)? })).flatten()
    })
}

/// Space, tab, newline and backslash are written as three octal digits.
fn unescape(field: &[u8]) -> std::ffi::OsString {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        let octal = tail
            .get(..3)
            .filter(|digits| first == b'\\' && digits.iter().all(|digit| (b'0'..=b'7').contains(digit)));
        match octal {
            Some(digits) => {
                let value = digits.iter().fold(0_u32, |value, digit| value * 8 + u32::from(digit - b'0'));
                bytes.push(value as u8);
                rest = &tail[3..];
            }
            None => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    std::ffi::OsString::from_vec(bytes)
}

/// Our own cgroup's directory.
fn own_cgroup(mount: &Mount) -> Result<PathBuf, String> {
    let text = fs::read_to_string("/proc/self/cgroup")
        .map_err(|error| format!("reading /proc/self/cgroup: {error}"))?;
    let own = text.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/");
    let below = Path::new(own).strip_prefix(&mount.root).unwrap_or(Path::new(""));
    // `/../…` is a cgroup outside of our cgroup namespace.
    let inside = !below.components().any(|part| part == std::path::Component::ParentDir);
    Ok(if inside { mount.path.join(below) } else { mount.path.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_is_found_on_hybrid_and_odd_hosts() {
        let table = b"31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
            32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n\
            41 31 0:38 /a\\040b /sys/fs/cgroup/uni\\134fied rw shared:9 master:2 - cgroup2 cgroup2 rw\n";
        let mount = find_mount(table).unwrap();
        assert_eq!(mount.path, Path::new("/sys/fs/cgroup/uni\\fied"));
        assert_eq!(mount.root, Path::new("/a b"));
        for bad in [&b""[..], b"\n", b"1 2 3 - cgroup2", b"- cgroup2", b"a b c d e f g"] {
            assert_eq!(find_mount(bad), None);
        }
    }
}
