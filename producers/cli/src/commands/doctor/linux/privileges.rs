//! What this process may do.

use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};

use super::super::report::{Finding, Group, Status};
use super::{kernel, read};

/// Bit, name (linux/capability.h).
const SYS_ADMIN: u32 = 21;
const SYS_RESOURCE: u32 = 24;
const PERFMON: u32 = 38;
const BPF: u32 = 39;
const KNOWN: [(u32, &str); 6] = [
    (BPF, "CAP_BPF"),
    (PERFMON, "CAP_PERFMON"),
    (SYS_ADMIN, "CAP_SYS_ADMIN"),
    (12, "CAP_NET_ADMIN"),
    (SYS_RESOURCE, "CAP_SYS_RESOURCE"),
    (19, "CAP_SYS_PTRACE"),
];

/// Read once from `/proc`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Privileges {
    effective: u64,
    is_root: bool,
    /// User namespaces have capabilities of their own, over which the kernel's BPF has no say.
    is_in_user_namespace: bool,
}

impl Privileges {
    pub(super) fn of_this_process() -> Self {
        let status = read("/proc/self/status").unwrap_or_default();
        Self {
            effective: effective(&status).unwrap_or(0),
            is_root: nix::unistd::geteuid().is_root(),
            is_in_user_namespace: read("/proc/self/uid_map").is_some_and(|map| !is_initial(&map)),
        }
    }

    fn has(self, capability: u32) -> bool {
        self.effective >> capability & 1 == 1
    }

    /// What it takes to load the probe.
    pub(super) fn suffice(self) -> bool {
        !self.is_in_user_namespace && (self.has(SYS_ADMIN) || self.has(BPF) && self.has(PERFMON))
    }

    pub(super) fn finding(self) -> Finding {
        let names = |wanted: bool| -> String {
            let matching = KNOWN.iter().filter(|(bit, _)| self.has(*bit) == wanted).map(|(_, name)| *name);
            matching.collect::<Vec<_>>().join(" ")
        };
        let mut found = if self.is_root { "root".to_owned() } else { "not root".to_owned() };
        for (wanted, word) in [(true, "with"), (false, "without")] {
            let names = names(wanted);
            if !names.is_empty() {
                found = format!("{found}, {word} {names}");
            }
        }
        if self.is_in_user_namespace {
            found.push_str(", inside a user namespace");
        }
        let status = if self.suffice() { Status::Ok } else { Status::Fail };
        let finding = Finding::new(Group::HostProfiling, "privileges", status, found, "loading BPF programs");
        match (self.suffice(), self.is_in_user_namespace, self.is_root) {
            (true, ..) => finding,
            (_, true, _) => finding.action("run it outside of the (rootless) container"),
            (_, _, true) => {
                finding.action("give the container CAP_BPF and CAP_PERFMON, or run it privileged")
            }
            _ => finding.action("sudo glasshouse doctor, or grant CAP_BPF and CAP_PERFMON to the service"),
        }
    }
}

/// `CapEff: 000001ffffffffff` of proc_pid_status(5).
fn effective(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

/// The initial user namespace maps every id to itself.
fn is_initial(map: &str) -> bool {
    map.split_whitespace().eq(["0", "0", "4294967295"])
}

/// What else stands between a process and BPF.
pub(super) fn limits(privileges: &Privileges, release: &str) -> Finding {
    let unprivileged = match read("/proc/sys/kernel/unprivileged_bpf_disabled").as_deref() {
        Some("0") => "any user may load some BPF programs",
        Some(_) => "only privileged processes load BPF",
        None => "unprivileged_bpf_disabled is not readable",
    };
    let memlock = getrlimit(Resource::RLIMIT_MEMLOCK).map_or(0, |(soft, _)| soft);
    let memlock_text = match memlock {
        RLIM_INFINITY => "no RLIMIT_MEMLOCK".to_owned(),
        bytes => format!("RLIMIT_MEMLOCK {} KiB", bytes / 1024),
    };
    // Since 5.11 BPF memory is charged to the cgroup instead.
    let counts = kernel::numbers(release).is_some_and(|version| version < (5, 11));
    let too_low = counts && memlock != RLIM_INFINITY && !privileges.has(SYS_RESOURCE);
    let status = if too_low { Status::Warn } else { Status::Ok };
    let ignored = if counts || memlock == RLIM_INFINITY { "" } else { " (does not count since Linux 5.11)" };
    let found = format!("{unprivileged}; {memlock_text}{ignored}");
    let finding =
        Finding::new(Group::HostProfiling, "BPF limits", status, found, "memory of the probe's rings");
    if too_low {
        finding.action("ulimit -l unlimited, or LimitMEMLOCK=infinity in the unit")
    } else {
        finding
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_read() {
        assert_eq!(effective("Name:\tx\nCapEff:\t000001fffeffffff\n"), Some(0x1ff_feff_ffff));
        assert_eq!(effective("CapEff:\tzz"), None);
        assert!(is_initial("         0          0 4294967295"));
        assert!(!is_initial("0 1000 1"));
    }

    #[test]
    fn privileges_are_judged() {
        let of = |bits: &[u32], is_in_user_namespace| Privileges {
            effective: bits.iter().fold(0, |set, bit| set | 1 << bit),
            is_root: false,
            is_in_user_namespace,
        };
        assert!(of(&[BPF, PERFMON], false).suffice());
        assert!(of(&[SYS_ADMIN], false).suffice());
        assert!(!of(&[SYS_ADMIN], true).suffice());
        assert!(!of(&[BPF], false).suffice());
        let finding = of(&[BPF], false).finding();
        assert_eq!(finding.status, Status::Fail);
        assert!(
            finding.found.starts_with("not root, with CAP_BPF, without CAP_PERFMON"),
            "{}",
            finding.found
        );
        assert!(finding.action.is_some());
    }
}
