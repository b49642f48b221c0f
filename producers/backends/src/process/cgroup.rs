//! The cgroup v2 of one execution: `<our own cgroup>/glasshouse/<execution id>`.
//!
//! Whoever runs an execution holds a lock (flock(2)) on its cgroup's directory, which the kernel lets go of when that
//! process ends, however it ends. A process's first execution looks through the siblings: one that is named as an
//! execution and that nobody holds was left by a process that was killed, and what runs in it is ended. The folder itself
//! is locked while cgroups are made (shared) and looked through (exclusively), so that none is taken for left before its
//! lock is held.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use glasshouse_schema::ids::ExecutionId;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use tokio::io::Interest;

use super::{GONE_WITHIN, group};
use crate::fd::watch;

/// The folder of all executions below our own cgroup. It stays: it is empty and others may be about to use it.
pub(super) const PARENT: &str = "glasshouse";
/// How long to wait for the folder's lock, which anybody who can read the folder can hold.
const LOCK_WITHIN: Duration = Duration::from_millis(500);
/// How long killed processes may take until their cgroup can be removed; longer ones are left to the next start.
const LEFT_WITHIN: Duration = Duration::from_millis(200);
/// Between two tries of either.
const RETRY_AFTER: Duration = Duration::from_millis(2);

/// A cgroup that exists until [`Cgroup::remove`].
#[derive(Debug)]
pub(super) struct Cgroup {
    path: PathBuf,
    dir: Dir,
    id: u64,
}

/// The cgroup's directory.
#[derive(Debug)]
enum Dir {
    /// Says that the execution has a runner.
    Locked(Flock<File>),
    /// Where the kernel takes no locks on it; then nobody else gets one either.
    Open(File),
}

impl Dir {
    fn new(dir: File) -> io::Result<Self> {
        match Flock::lock(dir, FlockArg::LockExclusiveNonblock) {
            Ok(locked) => Ok(Self::Locked(locked)),
            Err((_, Errno::EWOULDBLOCK)) => Err(Errno::EWOULDBLOCK.into()),
            Err((dir, errno)) => {
                tracing::debug!(error = %errno, "the execution's cgroup is not locked");
                Ok(Self::Open(dir))
            }
        }
    }

    fn file(&self) -> &File {
        match self {
            Self::Locked(dir) => dir,
            Self::Open(dir) => dir,
        }
    }
}

impl Cgroup {
    /// Makes the execution's cgroup under our own or, where that is not ours to write, under the root of the mount.
    pub(super) fn make(execution: ExecutionId) -> Result<Self, String> {
        let mount = mount_point()?;
        let own = own_cgroup(mount)?;
        let mut first_error = None;
        for base in [&own, &mount.path] {
            match Self::make_under(base, execution) {
                Ok(cgroup) => return Ok(cgroup),
                Err(error) => first_error = first_error.or(Some(error)),
            }
        }
        Err(first_error.unwrap_or_default())
    }

    /// Makes it under this one.
    pub(super) fn make_under(base: &Path, execution: ExecutionId) -> Result<Self, String> {
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
        match fs::create_dir(&parent) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(explain(error)),
            _ => {}
        }
        sweep(&parent);
        let _making = lock_folder(&parent, FlockArg::LockSharedNonblock, LOCK_WITHIN);
        fs::create_dir(&path).map_err(explain)?;
        let dir = File::open(&path).and_then(Dir::new).map_err(|error| {
            let _ = fs::remove_dir(&path);
            explain(error)
        })?;
        // The inode of the directory is what the kernel calls the cgroup's id.
        let id = dir.file().metadata().map_err(explain)?.ino();
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
        self.dir.file().as_fd()
    }

    /// Moves a process in.
    pub(super) fn add(&self, pid: i32) -> io::Result<()> {
        fs::write(self.path.join("cgroup.procs"), pid.to_string())
    }

    /// SIGKILL to every process in it and below.
    pub(super) fn kill(&self) -> io::Result<()> {
        kill(&self.path)
    }

    /// A signal to every process in it and below.
    pub(super) fn signal(&self, number: i32) {
        signal(&self.path, number);
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
        remove(&self.path)
    }
}

/// The lock on the folder of all executions, or none when it could not be had in time.
fn lock_folder(parent: &Path, how: FlockArg, within: Duration) -> Option<Flock<File>> {
    let mut folder = File::open(parent).ok()?;
    let end = Instant::now() + within;
    loop {
        match Flock::lock(folder, how) {
            Ok(lock) => return Some(lock),
            Err((back, Errno::EWOULDBLOCK | Errno::EINTR)) if Instant::now() < end => folder = back,
            Err((_, errno)) => {
                tracing::debug!(folder = %parent.display(), error = %errno, "the folder of executions is not locked");
                return None;
            }
        }
        std::thread::sleep(RETRY_AFTER);
    }
}

/// Ends what executions of killed processes left wherever [`Cgroup::make`] makes their cgroups; gives what is left.
pub(super) fn sweep_all() -> Result<Vec<String>, String> {
    let mount = mount_point()?;
    let bases = [own_cgroup(mount)?, mount.path.clone()];
    Ok(bases.iter().flat_map(|base| sweep_now(&base.join(PARENT), LOCK_WITHIN, GONE_WITHIN)).collect())
}

/// Ends what executions of killed processes left in `parent`; once per process, and only if nobody is busy there.
fn sweep(parent: &Path) {
    static DONE: AtomicBool = AtomicBool::new(false);
    if !DONE.swap(true, Ordering::Relaxed) {
        sweep_now(parent, Duration::ZERO, LEFT_WITHIN);
    }
}

fn sweep_now(parent: &Path, lock_within: Duration, gone_within: Duration) -> Vec<String> {
    let Some(_looking) = lock_folder(parent, FlockArg::LockExclusiveNonblock, lock_within) else {
        return Vec::new();
    };
    let mut left = Vec::new();
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let is_execution = entry.file_name().to_str().is_some_and(|name| name.parse::<ExecutionId>().is_ok());
        let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if !is_execution || !is_dir {
            continue;
        }
        let path = entry.path();
        let Ok(dir) = File::open(&path) else { continue };
        if let Ok(lock) = Flock::lock(dir, FlockArg::LockExclusiveNonblock) {
            tracing::warn!(cgroup = %path.display(), "an execution has lost its runner: it is ended");
            match kill(&path) {
                Ok(()) => left.push((path, lock)),
                Err(error) => {
                    tracing::warn!(cgroup = %path.display(), %error, "it cannot be ended");
                }
            }
        }
    }
    let end = Instant::now() + gone_within;
    loop {
        let mut problems = Vec::new();
        left.retain(|(path, _)| {
            let kept = remove(path);
            let is_left = !kept.is_empty();
            problems.extend(kept);
            is_left
        });
        if left.is_empty() || Instant::now() >= end {
            return problems;
        }
        std::thread::sleep(RETRY_AFTER);
    }
}

/// SIGKILL to every process in a cgroup and below.
fn kill(path: &Path) -> io::Result<()> {
    match File::options().write(true).open(path.join("cgroup.kill")) {
        Ok(mut kill) => kill.write_all(b"1"),
        // Older than Linux 5.14. A process that forks meanwhile is caught by the next round of `empty`.
        Err(error) if error.kind() == ErrorKind::NotFound && path.exists() => {
            signal(path, libc::SIGKILL);
            Ok(())
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// A signal to every process in a cgroup and below.
fn signal(path: &Path, number: i32) {
    for dir in below(path) {
        for pid in fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default().lines() {
            // 0 is a process of another pid namespace, and to kill(2) our own group.
            if let Some(pid) = pid.parse::<i32>().ok().filter(|pid| *pid > 0) {
                group::send(pid, number);
            }
        }
    }
}

fn remove(path: &Path) -> Vec<String> {
    // Few commands make any below it.
    if fs::remove_dir(path).is_ok() {
        return Vec::new();
    }
    // Children come before their parents.
    let removed = below(path).into_iter().rev().map(|dir| match fs::remove_dir(&dir) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Some(format!("the cgroup {} is left: {error}", dir.display()))
        }
        _ => None,
    });
    removed.flatten().collect()
}

/// The directory and every one below it, parents first.
fn below(path: &Path) -> Vec<PathBuf> {
    let mut found = vec![path.to_owned()];
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

/// Looked for until it is found.
fn mount_point() -> Result<&'static Mount, String> {
    static FOUND: OnceLock<Mount> = OnceLock::new();
    if let Some(found) = FOUND.get() {
        return Ok(found);
    }
    let table = read("/proc/self/mountinfo")?;
    let found = find_mount(&table)
        .ok_or_else(|| "cgroup v2 is not mounted: mount -t cgroup2 none /sys/fs/cgroup".to_owned())?;
    Ok(FOUND.get_or_init(|| found))
}

/// A file of /proc in one go: it does not say how long it is, and would be asked for in small pieces.
fn read(path: &str) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::with_capacity(4096);
    let read = File::open(path).and_then(|mut file| file.read_to_end(&mut bytes));
    read.map(|_| bytes).map_err(|error| format!("reading {path}: {error}"))
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
    let table = read("/proc/self/cgroup")?;
    let own = table.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"0::")).unwrap_or(b"/");
    let below = Path::new(OsStr::from_bytes(own)).strip_prefix(&mount.root).unwrap_or(Path::new(""));
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
