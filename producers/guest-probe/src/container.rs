//! What the probe does first where its machine is a container that others made (`--user`, `--capabilities`).
//!
//! It has rights there that a command is not to have, and what it needs of the system is not for a command to see:
//!
//! - Of its capabilities the command gets those that are named: all others are out of the bounding set before anything is started, so no
//!   exec brings them back (capabilities(7)). The probe, which has executed already, keeps its own.
//! - The cgroup filesystem is covered by what was there before: it is reached by a descriptor that is closed when a command is
//!   executed. So the command cannot leave its cgroup.
//! - The program's own file is gone from the container, as far as it was mounted there.

#![allow(unsafe_code, reason = "fork(2), before there is a second thread")]

use std::ffi::OsStr;
use std::fs;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;

use anyhow::Context as _;
use caps::{CapSet, Capability};
use glasshouse_execution::spec::RunAs;
use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use nix::sys::wait::{WaitStatus, wait};
use nix::unistd::{ForkResult, Pid, fork};
use rustix::fs::CWD;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create, fsmount,
    fsopen, move_mount, open_tree,
};

/// The probe's own cgroup, below the container's: one with limits for what is below has no process in it (cgroups(7)).
const OWN_CGROUP: &str = "glasshouse-probe";
/// Where the filesystem belongs.
const CGROUPS: &str = "/sys/fs/cgroup";
/// What a container's processes are made with, usually.
const UMASK: u32 = 0o022;

/// Who the command is there, and what it may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rights {
    uid: u32,
    gid: u32,
    capabilities: Vec<Capability>,
}

/// The container, entered.
pub(crate) struct Container {
    rights: Rights,
    /// Cgroups of commands are made below; without it there are none.
    pub(crate) cgroups: Option<PathBuf>,
    /// Holds what the path goes through.
    _mount: Option<OwnedFd>,
}

impl Rights {
    /// Of what the probe was told: `UID:GID`, and names as capabilities(7) has them, with commas between.
    pub(crate) fn parse(user: &str, capabilities: &str) -> anyhow::Result<Self> {
        let ids = user.split_once(':').and_then(|(uid, gid)| Some((uid.parse().ok()?, gid.parse().ok()?)));
        let (uid, gid) = ids.with_context(|| format!("--user is UID:GID, and `{user}` is not"))?;
        anyhow::ensure!(uid != 0 || gid == 0, "--user: root is in its own group only");
        let names = capabilities.split(',').filter(|name| !name.is_empty());
        let parsed = names.map(|name| {
            Capability::from_str(name).map_err(|_| anyhow::anyhow!("--capabilities: there is no `{name}`"))
        });
        Ok(Self { uid, gid, capabilities: parsed.collect::<anyhow::Result<_>>()? })
    }

    /// Prepares the container for a command with these rights. Only for a process of one thread. What did not work is put to `problems`,
    /// save what the command could do too much with, which is an error.
    pub(crate) fn enter(&self, problems: &mut Vec<String>) -> anyhow::Result<Container> {
        if let Err(error) = hide_program() {
            problems.push(format!("hiding the probe's program: {error:#}"));
        }
        let (cgroups, mount) = match cgroups() {
            Ok((cgroups, mount)) => (Some(cgroups), Some(mount)),
            Err(error) => {
                problems.push(format!("a cgroup filesystem of its own: {error:#}"));
                (None, None)
            }
        };
        stay_as_init()?;
        for capability in caps::read(None, CapSet::Bounding).context("reading the bounding set")? {
            if !self.capabilities.contains(&capability) {
                caps::drop(None, CapSet::Bounding, capability)
                    .with_context(|| format!("taking {capability} from commands"))?;
            }
        }
        for set in [CapSet::Ambient, CapSet::Inheritable] {
            caps::clear(None, set).with_context(|| format!("clearing the set {set:?} of capabilities"))?;
        }
        Ok(Container { rights: self.clone(), cgroups, _mount: mount })
    }
}

impl Container {
    /// Who a command runs as, if not as root.
    pub(crate) fn user(&self) -> Option<RunAs> {
        let Rights { uid, gid, .. } = self.rights;
        let user = RunAs { uid, gid, groups: Vec::new(), umask: UMASK, resources: Vec::new() };
        (uid != 0).then_some(user)
    }
}

/// Unmounts our own file, which then is an empty one, and removes that.
fn hide_program() -> anyhow::Result<()> {
    let program = fs::read_link("/proc/self/exe")?;
    match umount2(&program, MntFlags::MNT_DETACH) {
        // It is part of the image.
        Err(Errno::EINVAL) => Ok(()),
        unmounted => {
            unmounted.context("unmounting it")?;
            fs::remove_file(&program).context("removing where it was mounted")
        }
    }
}

/// Mounts the cgroup filesystem, for us alone, and leaves the container's cgroup for one below. Gives the path of the container's.
fn cgroups() -> anyhow::Result<(PathBuf, OwnedFd)> {
    let context = fsopen("cgroup2", FsOpenFlags::FSOPEN_CLOEXEC).context("fsopen")?;
    fsconfig_create(&context).context("fsconfig")?;
    let nothing_else = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let mount = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, nothing_else).context("fsmount")?;
    if let Err(error) = attach_covered(&mount) {
        // It does as it is. Whoever watches us from outside cannot name its files then.
        eprintln!("glasshouse-guest-probe: {CGROUPS} is not used: {error:#}");
    }
    let table = fs::read("/proc/self/cgroup").context("/proc/self/cgroup")?;
    let container = below(&table).context("our own cgroup is in no hierarchy of version 2 that we see")?;
    let container = Path::new("/proc/self/fd").join(mount.as_raw_fd().to_string()).join(container);
    let own = container.join(OWN_CGROUP);
    fs::create_dir_all(&own).with_context(|| format!("making the cgroup {OWN_CGROUP}"))?;
    fs::write(own.join("cgroup.procs"), "0").context("entering it")?;
    Ok((container, mount))
}

/// Gives a mount its usual place, so that its files have paths, with what was there before on top of it.
fn attach_covered(mount: &OwnedFd) -> anyhow::Result<()> {
    let clone = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let cover = open_tree(CWD, CGROUPS, clone).context("open_tree")?;
    let put = |what: &OwnedFd| move_mount(what, "", CWD, CGROUPS, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH);
    put(mount).context("move_mount")?;
    if let Err(error) = put(&cover) {
        // A command is not to find it.
        umount2(CGROUPS, MntFlags::MNT_DETACH).context("unmounting it again")?;
        return Err(error).context("covering it");
    }
    Ok(())
}

/// Our own cgroup, from the root of what we see (proc_pid_cgroup(5)).
fn below(table: &[u8]) -> Option<&Path> {
    let path = table.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"0::/"))?;
    let path = Path::new(OsStr::from_bytes(path));
    (!path.components().any(|part| part == Component::ParentDir)).then_some(path)
}

/// Leaves PID 1 to a process that does nothing but reap orphans, where we are that: it would be deaf to signals, and a probe that reaped
/// them would take the status of its own commands. That process ends as we do.
fn stay_as_init() -> anyhow::Result<()> {
    if std::process::id() != 1 {
        return Ok(());
    }
    // SAFETY: this process has one thread.
    match unsafe { fork() }.context("making a process that is not PID 1")? {
        ForkResult::Child => Ok(()),
        ForkResult::Parent { child } => std::process::exit(reap_until_end_of(child)),
    }
}

fn reap_until_end_of(probe: Pid) -> i32 {
    loop {
        match wait() {
            Ok(WaitStatus::Exited(pid, code)) if pid == probe => return code,
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == probe => return 128 + signal as i32,
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return 125,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn rights_are_a_user_and_names() {
        let rights = Rights::parse("65534:7", "CAP_CHOWN,CAP_KILL").unwrap();
        assert_eq!((rights.uid, rights.gid), (65534, 7));
        assert_eq!(rights.capabilities, [Capability::CAP_CHOWN, Capability::CAP_KILL]);
        assert!(Rights::parse("0:0", "").unwrap().capabilities.is_empty());
        for (user, capabilities) in
            [("0", ""), ("root:root", ""), ("0:5", ""), ("0:0", "CHOWN"), ("0:0", "CAP_CHOWN CAP_KILL")]
        {
            assert!(Rights::parse(user, capabilities).is_err(), "{user} {capabilities}");
        }
    }

    #[test]
    fn our_own_cgroup_is_found_below_what_we_see() {
        assert_eq!(below(b"0::/\n"), Some(Path::new("")));
        assert_eq!(below(b"5:memory:/x\n0::/a/b c\n"), Some(Path::new("a/b c")));
        assert_eq!(below(b"0::/../elsewhere\n"), None);
        assert_eq!(below(b"5:memory:/x\n"), None);
    }
}
