//! Control groups: one is made, entered, killed and removed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use super::super::report::{Finding, Group, Status};
use super::read;
use super::step::Step;

const FOR_CGROUP: &str = "telling what belongs to an execution, and ending all of it";
const PATIENCE: Duration = Duration::from_secs(1);
/// CPU time is counted without a controller.
const LIMITS: [&str; 2] = ["memory", "pids"];

pub(super) fn findings() -> Vec<Finding> {
    let mount = match glasshouse_host_probe::cgroup::mount_point() {
        Ok(mount) => mount,
        Err(error) => {
            let found = error.to_string();
            return vec![
                Finding::new(Group::HostProfiling, "cgroup v2", Status::Fail, found, FOR_CGROUP).action(
                    "mkdir -p /sys/fs/cgroup/unified && mount -t cgroup2 none /sys/fs/cgroup/unified",
                ),
            ];
        }
    };
    let memberships = read("/proc/self/cgroup").unwrap_or_default();
    let own = own(&memberships, &mount);
    let controllers = read(&format!("{}/cgroup.controllers", mount.display())).unwrap_or_default();
    vec![of_trial(&mount, try_out(&[&own, &mount])), of_controllers(&controllers, &memberships)]
}

/// Our own cgroup's directory; `/../…` is outside of our cgroup namespace.
fn own(memberships: &str, mount: &Path) -> PathBuf {
    let path = memberships.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
    if path.split('/').any(|part| part == "..") { mount.to_owned() } else { mount.join(path) }
}

/// What worked, or the step that did not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Tried {
    has_kill: bool,
}

/// Our own cgroup first and then the root of the mount, as the process backend does.
fn try_out(bases: &[&Path]) -> Result<Tried, String> {
    let mut first_error = None;
    for base in bases {
        let path = base.join(format!("glasshouse-doctor-{}", std::process::id()));
        match fs::create_dir(&path) {
            Ok(()) => {
                let tried = use_it(&path);
                let removed = remove(&path).map_err(|error| format!("{} is left: {error}", path.display()));
                return tried.and_then(|tried| removed.map(|()| tried));
            }
            Err(error) => {
                let _ = first_error.get_or_insert(format!("cannot make {}: {error}", path.display()));
            }
        }
    }
    Err(first_error.unwrap_or_default())
}

/// Puts a process in and ends it by the cgroup.
fn use_it(path: &Path) -> Result<Tried, String> {
    let mut child = Step::Wait
        .command()
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| format!("cannot start a process to put in: {error}"))?;
    let entered = fs::write(path.join("cgroup.procs"), child.id().to_string())
        .map_err(|error| format!("no process can be put in: {error}"));
    let kill = path.join("cgroup.kill");
    let killed = match (&entered, kill.exists()) {
        (Ok(()), true) => fs::write(&kill, "1").map_err(|error| format!("cgroup.kill: {error}")),
        _ => child.kill().map_err(|error| format!("cannot end the process: {error}")),
    };
    let ended = until(|| matches!(child.try_wait(), Ok(Some(_))));
    if !ended {
        let _ = child.kill();
        let _ = child.wait();
    }
    entered.and(killed)?;
    if ended {
        Ok(Tried { has_kill: kill.exists() })
    } else {
        Err("cgroup.kill did not end the process".to_owned())
    }
}

/// A cgroup can be removed a moment after its last process has ended.
fn remove(path: &Path) -> io::Result<()> {
    let mut result = Ok(());
    until(|| {
        result = fs::remove_dir(path);
        !matches!(&result, Err(error) if error.kind() == io::ErrorKind::ResourceBusy)
    });
    result
}

fn until(mut holds: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if holds() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn of_trial(mount: &Path, tried: Result<Tried, String>) -> Finding {
    let finding = |status, found: String| {
        let found = format!("{}: {found}", mount.display());
        Finding::new(Group::HostProfiling, "cgroup v2", status, found, FOR_CGROUP)
    };
    match tried {
        Ok(Tried { has_kill: true }) => {
            finding(Status::Ok, "one was made, entered, killed (cgroup.kill) and removed".to_owned())
        }
        Ok(Tried { has_kill: false }) => {
            finding(Status::Warn, "one was made, entered and removed; there is no cgroup.kill".to_owned())
                .action("use Linux 5.14 or newer; without it processes are ended one by one")
        }
        Err(reason) => finding(Status::Fail, reason).action(
            "run as root, in a cgroup that is delegated to you (systemd: Delegate=yes), or in a container with a \
             writable cgroup mount",
        ),
    }
}

/// `list`: the controllers of version 2. `memberships`: proc_pid_cgroup(5), which names those of version 1 too.
fn of_controllers(list: &str, memberships: &str) -> Finding {
    let missing: Vec<&str> =
        LIMITS.into_iter().filter(|limit| !list.split_whitespace().any(|name| name == *limit)).collect();
    let of_version_1 = |limit: &&str| {
        memberships
            .lines()
            .filter_map(|line| line.split(':').nth(1))
            .any(|names| names.split(',').any(|n| n == *limit))
    };
    let finding = |status, found: String| {
        Finding::new(
            Group::Sandbox,
            "cgroup controllers",
            status,
            found,
            "limits on memory and processes (--limit memory=…, pids=…)",
        )
    };
    if missing.is_empty() {
        return finding(Status::Ok, list.to_owned());
    }
    let without = missing.join(", ");
    match missing.iter().all(of_version_1) {
        true => finding(Status::Ok, format!("{without} of cgroup version 1, which limits are held by")),
        false => finding(Status::Warn, format!("no {without}"))
            .action("enable them in cgroup.subtree_control of the parent (systemd: Delegate=yes)"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_cgroup_is_found() {
        let mount = Path::new("/sys/fs/cgroup");
        assert_eq!(own("4:memory:/a\n0::/user.slice/x\n", mount), mount.join("user.slice/x"));
        assert_eq!(own("0::/\n", mount), mount.join(""));
        assert_eq!(own("0::/../elsewhere\n", mount), mount);
        assert_eq!(own("", mount), mount.join(""));
    }

    #[test]
    fn trials_are_judged() {
        let status = |tried| of_trial(Path::new("/sys/fs/cgroup"), tried).status;
        assert_eq!(status(Ok(Tried { has_kill: true })), Status::Ok);
        assert_eq!(status(Ok(Tried { has_kill: false })), Status::Warn);
        assert_eq!(status(Err("no".into())), Status::Fail);
    }

    #[test]
    fn controllers_are_judged() {
        assert_eq!(of_controllers("cpuset cpu io memory pids", "0::/\n").status, Status::Ok);
        let some = of_controllers("cpuset cpu", "0::/\n");
        assert_eq!((some.status, some.found.as_str()), (Status::Warn, "no memory, pids"));
        let hybrid = of_controllers("", "4:cpu,cpuacct:/\n3:memory:/\n0::/\n");
        assert_eq!(hybrid.status, Status::Warn);
        let hybrid = of_controllers("", "4:memory:/\n3:pids:/\n0::/\n");
        assert_eq!(hybrid.found, "memory, pids of cgroup version 1, which limits are held by");
    }

    #[test]
    fn a_directory_that_is_no_cgroup_fails_and_is_removed() {
        let base = std::env::temp_dir().join(format!("glasshouse-doctor-test-{}", std::process::id()));
        assert!(try_out(&[&base]).unwrap_err().starts_with("cannot make "));
    }
}
