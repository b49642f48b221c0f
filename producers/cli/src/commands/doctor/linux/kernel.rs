//! The kernel and its type information.

use std::ffi::CStr;
use std::io::{self, Read as _};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};

use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;

use super::super::report::{Finding, Group, Status};
use super::read;

/// The release the probe is made for: bpf_loop came with 5.17.
const WANTED: (u32, u32) = (5, 17);
const BTF: &str = "/sys/kernel/btf/vmlinux";

pub(in super::super) fn release() -> String {
    read("/proc/sys/kernel/osrelease").unwrap_or_else(|| "of unknown release".to_owned())
}

pub(super) fn finding(release: &str) -> Finding {
    let lockdown = read("/sys/kernel/security/lockdown").or_else(|| securityfs_file(c"lockdown").ok());
    let lockdown = match lockdown {
        Some(modes) => Lockdown::parse(&modes),
        None if is_securityfs_mounted() => Lockdown::Mode("absent".to_owned()),
        None => Lockdown::Unknown,
    };
    judge(release, std::env::consts::ARCH, &lockdown)
}

#[derive(Debug, PartialEq, Eq)]
enum Lockdown {
    Mode(String),
    Unknown,
}

impl Lockdown {
    /// `none [integrity] confidentiality`: the mode is in brackets.
    fn parse(modes: &str) -> Self {
        let mode = modes.split_whitespace().find_map(|word| word.strip_prefix('[')?.strip_suffix(']'));
        mode.map_or(Self::Unknown, |mode| Self::Mode(mode.to_owned()))
    }
}

/// A file of securityfs where that is not mounted: read from a mount that is attached nowhere, so nobody else sees it
/// and it is gone with its descriptor. Takes CAP_SYS_ADMIN.
#[allow(unsafe_code, reason = "there is no safe API for fsopen(2) and what follows it")]
fn securityfs_file(name: &CStr) -> io::Result<String> {
    // linux/mount.h
    const CLOSE_ON_EXEC: libc::c_uint = 1;
    const CMD_CREATE: libc::c_uint = 6;
    const NO_STRING: *const libc::c_char = std::ptr::null();
    let checked = |result: libc::c_long| match RawFd::try_from(result) {
        Ok(fd @ 0..) => Ok(fd),
        _ => Err(io::Error::last_os_error()),
    };
    // SAFETY: fsopen reads a string that ends in NUL, and what it returns is a descriptor that nobody else owns.
    let context = unsafe {
        let fd = checked(libc::syscall(libc::SYS_fsopen, c"securityfs".as_ptr(), CLOSE_ON_EXEC))?;
        OwnedFd::from_raw_fd(fd)
    };
    // SAFETY: this command takes neither key nor value.
    let created = unsafe {
        libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), CMD_CREATE, NO_STRING, NO_STRING, 0)
    };
    checked(created)?;
    // SAFETY: fsmount takes numbers only, and what it returns is a descriptor that nobody else owns.
    let mount = unsafe {
        OwnedFd::from_raw_fd(checked(libc::syscall(
            libc::SYS_fsmount,
            context.as_raw_fd(),
            CLOSE_ON_EXEC,
            0,
        ))?)
    };
    let file = openat(&mount, name, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    let mut text = String::new();
    std::fs::File::from(file).read_to_string(&mut text)?;
    Ok(text)
}

fn is_securityfs_mounted() -> bool {
    read("/proc/self/mounts")
        .is_some_and(|mounts| mounts.lines().any(|line| line.split(' ').nth(2) == Some("securityfs")))
}

fn judge(release: &str, arch: &str, lockdown: &Lockdown) -> Finding {
    let said = match lockdown {
        Lockdown::Mode(mode) => format!("lockdown {mode}"),
        Lockdown::Unknown => "lockdown unknown (securityfs is not mounted)".to_owned(),
    };
    let found = format!("Linux {release}, {arch}, {said}");
    let finding = |status| {
        Finding::new(Group::HostProfiling, "kernel", status, found.clone(), "the hooks of the host probe")
    };
    if *lockdown == Lockdown::Mode("confidentiality".to_owned()) {
        return finding(Status::Warn).action(
            "in this mode the kernel lets no BPF program read its memory: boot with lockdown=integrity",
        );
    }
    match numbers(release) {
        Some(version) if version < WANTED => finding(Status::Warn).action(format!(
            "use Linux {}.{} or newer; whether the probe loads on this one is seen below",
            WANTED.0, WANTED.1
        )),
        _ => finding(Status::Ok),
    }
}

/// Major and minor.
pub(super) fn numbers(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

pub(super) fn btf() -> Finding {
    let finding = |status, found: String| {
        Finding::new(
            Group::HostProfiling,
            "BTF",
            status,
            found,
            "fitting the programs to this kernel's types",
        )
    };
    match std::fs::metadata(BTF).and_then(|file| std::fs::File::open(BTF).map(|_| file.len())) {
        Ok(bytes) => finding(Status::Ok, format!("{BTF}, {} KiB", bytes / 1024)),
        Err(error) => finding(Status::Fail, format!("{BTF}: {error}")).action(
            "mount /sys, or use a kernel built with CONFIG_DEBUG_INFO_BTF=y (distributions' are since 2020)",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lockdown_modes_are_read() {
        assert_eq!(Lockdown::parse("none [integrity] confidentiality"), Lockdown::Mode("integrity".into()));
        assert_eq!(Lockdown::parse(""), Lockdown::Unknown);
    }

    #[test]
    fn releases_are_judged() {
        let status = |release: &str, lockdown: Lockdown| judge(release, "x86_64", &lockdown).status;
        assert_eq!(status("6.18.44-fc", Lockdown::Unknown), Status::Ok);
        assert_eq!(status("5.10.0-9-amd64", Lockdown::Unknown), Status::Warn);
        assert_eq!(status("no number", Lockdown::Unknown), Status::Ok);
        assert_eq!(status("6.1.0", Lockdown::Mode("confidentiality".into())), Status::Warn);
        assert_eq!(numbers("6.18+"), Some((6, 18)));
        assert_eq!(numbers("x"), None);
    }
}
