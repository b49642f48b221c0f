//! Guest prep: what PID 1 of a virtual machine or container does before it runs a command.
//!
//! - Mounts proc, sysfs, the BPF filesystem, cgroup2 and (where there is none) a /dev, whichever is missing.
//! - Reaps orphans, which the kernel gives to PID 1, and never the status of a command's root.
//!
//! Signals need nothing here: PID 1 gets only those that it handles, and [`crate::signals`] handles and forwards them.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

use glasshouse_execution::backend::BackendError;
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{FsType, statfs};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use tokio::signal::unix::{SignalKind, signal};

use super::cgroup;

/// Roots that their backends wait for.
static ROOTS: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());
/// The reaper runs: only then does anybody look at [`ROOTS`].
static REAPER: Once = Once::new();

/// linux/magic.h.
const PROC_MAGIC: FsType = FsType(0x9fa0);
const SYSFS_MAGIC: FsType = FsType(0x6265_6572);
const BPF_MAGIC: FsType = FsType(0xcafe_4a11);

/// Prepares the machine. Changes nothing that is there already.
pub(super) fn prepare() -> Result<(), BackendError> {
    if !may_mount() {
        return Err(BackendError::failed(
            "preparing the guest",
            "this is for PID 1 of a virtual machine or container, or a mount namespace of its own \
             (unshare --pid --fork --mount): leave out --guest here",
        ));
    }
    // What is mounted here is nobody else's. Fails where / is no mount point (chroot), which is fine.
    let _ = mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>);
    if !is_own_proc() {
        mount_new("proc", "/proc")?;
    }
    if !is_of("/sys", SYSFS_MAGIC) {
        mount_new("sysfs", "/sys")?;
    }
    if Path::new("/sys/fs/bpf").is_dir() && !is_of("/sys/fs/bpf", BPF_MAGIC) {
        optional("bpf", "/sys/fs/bpf");
    }
    if !Path::new("/dev/null").exists() {
        mount_new("devtmpfs", "/dev")?;
    }
    if Path::new("/sys/fs/cgroup").is_dir() && !cgroup::is_mounted() {
        optional("cgroup2", "/sys/fs/cgroup");
    }
    Ok(())
}

fn may_mount() -> bool {
    if nix::unistd::getpid().as_raw() == 1 {
        return true;
    }
    // Without a /proc to compare by there is no telling whose namespace it is.
    let namespace = |process: &str| fs::read_link(format!("/proc/{process}/ns/mnt")).ok();
    matches!((namespace("self"), namespace("1")), (Some(own), Some(first)) if own != first)
}

/// A /proc of another pid namespace is there under `unshare --pid --fork --mount`, and knows us by another id.
fn is_own_proc() -> bool {
    let own = nix::unistd::getpid().to_string();
    is_of("/proc", PROC_MAGIC) && fs::read_link("/proc/self").is_ok_and(|link| link == Path::new(&own))
}

fn is_of(path: &str, kind: FsType) -> bool {
    statfs(path).is_ok_and(|found| found.filesystem_type() == kind)
}

fn mount_new(kind: &str, at: &str) -> Result<(), BackendError> {
    let _ = fs::create_dir(at);
    let flags = match kind {
        "devtmpfs" => MsFlags::MS_NOSUID,
        _ => MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
    };
    mount(Some(kind), at, Some(kind), flags, None::<&str>)
        .map_err(|error| BackendError::failed(format!("preparing the guest: mounting {kind} at {at}"), error))
}

/// What only profiling needs: without it the command runs, and attaching says what is missing.
fn optional(kind: &str, at: &str) {
    if let Err(error) = mount_new(kind, at) {
        tracing::warn!(error = %error, "guest prep is incomplete");
    }
}

/// Keeps the reaper away from a root until [`Root`] is dropped.
#[derive(Debug)]
pub(super) struct Root(i32);

impl Root {
    pub(super) fn new(pid: i32) -> Self {
        roots().insert(pid);
        Self(pid)
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        roots().remove(&self.0);
        // Orphans may have queued up behind it.
        if REAPER.is_completed() {
            reap();
        }
    }
}

fn roots() -> MutexGuard<'static, BTreeSet<i32>> {
    ROOTS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reaps orphans from now on, if this is PID 1. Any other child of this process is reaped too, so PID 1 starts its
/// children through this backend.
pub(super) fn reap_orphans() -> Result<(), BackendError> {
    if nix::unistd::getpid().as_raw() != 1 {
        return Ok(());
    }
    let mut failed = None;
    REAPER.call_once(|| match signal(SignalKind::child()) {
        Ok(mut children) => {
            tokio::spawn(async move {
                while children.recv().await.is_some() {
                    reap();
                }
            });
        }
        Err(error) => failed = Some(error),
    });
    failed.map_or(Ok(()), |error| Err(BackendError::failed("preparing the guest: reaping orphans", error)))
}

/// Looks at each dead child without taking it, and takes those that are nobody's. A root at the head of the queue ends
/// the round: its backend takes it and calls again.
pub(super) fn reap() {
    let peek = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    while let Ok(status) = waitid(Id::All, peek) {
        let Some(pid) = status.pid().filter(|_| status != WaitStatus::StillAlive) else { return };
        // Held over the wait: a root cannot come in between under this id, which is taken.
        let roots = roots();
        if roots.contains(&pid.as_raw())
            || waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG).is_err()
        {
            return;
        }
    }
}
