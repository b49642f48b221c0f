//! What a sandbox can be made of.

#![allow(unsafe_code, reason = "no safe API asks the kernel for these")]

use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};

use nix::sched::{CloneFlags, unshare};

use super::super::report::{Finding, Group, Status};
use super::read;

pub(super) fn findings() -> Vec<Finding> {
    let allow_list = glasshouse_runner::new_execution_id()
        .map_err(|error| error.to_string())
        .and_then(glasshouse_backends::ProcessBackend::try_allow_list);
    vec![
        of_namespaces(try_namespaces()),
        of_landlock(landlock()),
        of_seccomp(read(SECCOMP).as_deref()),
        of_allow_list(allow_list),
    ]
}

const SECCOMP: &str = "/proc/sys/kernel/seccomp/actions_avail";

/// Makes a child that enters namespaces of its own: first a user namespace, then what only its root may make.
fn try_namespaces() -> io::Result<()> {
    // Something that starts no thread: after the second call the kernel allows none.
    let mut command = Command::new("/proc/self/exe");
    command.arg("--version").env_clear();
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let enter = || {
        unshare(CloneFlags::CLONE_NEWUSER)?;
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWPID)?;
        Ok(())
    };
    // SAFETY: the closure runs in the forked child and makes two system calls, which are async-signal-safe; it neither
    // allocates nor takes locks.
    unsafe { command.pre_exec(enter) };
    command.spawn()?.wait().map(|_| ())
}

fn of_namespaces(tried: io::Result<()>) -> Finding {
    let finding = |status, found: String| {
        let needed_for = "a private view of files, network and processes without root";
        Finding::new(Group::Sandbox, "user namespaces", status, found, needed_for)
    };
    match tried {
        Ok(()) => {
            finding(Status::Ok, "entered, with mount, network and pid namespaces of their own".to_owned())
        }
        Err(error) => finding(Status::Warn, format!("refused: {error}")).action(
            "sysctl user.max_user_namespaces (0 forbids them), kernel.unprivileged_userns_clone (Debian), \
             kernel.apparmor_restrict_unprivileged_userns (Ubuntu); a container's seccomp profile may refuse them too",
        ),
    }
}

/// The ABI version of landlock_create_ruleset(2).
fn landlock() -> io::Result<i64> {
    const VERSION: libc::c_uint = 1;
    // SAFETY: with this flag, no attributes and size 0 the call reads no memory and only returns a number.
    let abi = unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<libc::c_void>(), 0_usize, VERSION)
    };
    if abi >= 0 { Ok(abi) } else { Err(io::Error::last_os_error()) }
}

fn of_landlock(abi: io::Result<i64>) -> Finding {
    let finding = |status, found: String| {
        Finding::new(
            Group::Sandbox,
            "Landlock",
            status,
            found,
            "confining a command to directories and ports",
        )
    };
    match abi {
        Ok(abi) if abi >= 4 => finding(Status::Ok, format!("ABI {abi}: files and TCP")),
        Ok(abi) => finding(Status::Ok, format!("ABI {abi}: files")),
        Err(error) => finding(Status::Warn, format!("not there: {error}"))
            .action("use Linux 5.13 or newer, with landlock in lsm= on the kernel's command line"),
    }
}

fn of_allow_list(tried: Result<(), String>) -> Finding {
    let finding = |status, found: String| {
        let needed_for = "letting a sandboxed command connect to some addresses only (--allow-connect)";
        Finding::new(Group::Sandbox, "network allow-list", status, found, needed_for)
    };
    match tried {
        Ok(()) => finding(Status::Ok, "programs attach to a cgroup".to_owned()),
        Err(reason) => finding(Status::Warn, reason).action(
            "run as root (CAP_BPF, CAP_NET_ADMIN), with a cgroup v2 that can be written and CONFIG_CGROUP_BPF=y",
        ),
    }
}

fn of_seccomp(actions: Option<&str>) -> Finding {
    let finding = |status, found: String| {
        Finding::new(Group::Sandbox, "seccomp", status, found, "refusing system calls to a command")
    };
    let has = |action| actions.is_some_and(|list| list.split_whitespace().any(|word| word == action));
    match (has("errno"), has("user_notif")) {
        (true, true) => finding(Status::Ok, "filters, with user notification".to_owned()),
        (true, false) => finding(Status::Ok, "filters, without user notification".to_owned()),
        _ => {
            finding(Status::Warn, "no filters".to_owned()).action("use a kernel with CONFIG_SECCOMP_FILTER=y")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_judged() {
        assert_eq!(of_landlock(Ok(7)).found, "ABI 7: files and TCP");
        assert_eq!(of_landlock(Ok(1)).found, "ABI 1: files");
        assert_eq!(of_landlock(Err(io::Error::from_raw_os_error(libc::ENOSYS))).status, Status::Warn);
        assert_eq!(of_seccomp(Some("kill_process errno user_notif allow")).status, Status::Ok);
        assert_eq!(of_seccomp(Some("kill allow")).status, Status::Warn);
        assert_eq!(of_seccomp(None).status, Status::Warn);
        assert_eq!(of_allow_list(Err("there is no cgroup v2".into())).status, Status::Warn);
        assert_eq!(of_namespaces(Err(io::Error::from_raw_os_error(libc::EPERM))).status, Status::Warn);
    }

    #[test]
    fn landlock_answers() {
        assert!(landlock().map_or(true, |abi| abi >= 1));
    }
}
