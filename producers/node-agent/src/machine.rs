//! What this machine is, for whoever chooses where to run.

use glasshouse_schema::node::Machine;

/// The facts. What cannot be read is left empty.
pub(crate) fn machine() -> Machine {
    let uname = nix::sys::utsname::uname().ok();
    let text = |text: &std::ffi::OsStr| text.to_string_lossy().into_owned();
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    Machine {
        os: std::env::consts::OS.to_owned(),
        arch: uname.as_ref().map(|uname| text(uname.machine())).unwrap_or_default(),
        kernel: uname.as_ref().map(|uname| text(uname.release())).unwrap_or_default(),
        cpus: u32::try_from(cpus).unwrap_or(u32::MAX),
        memory_bytes: std::fs::read_to_string("/proc/meminfo")
            .ok()
            .and_then(|info| total(&info))
            .unwrap_or(0),
    }
}

/// proc_meminfo(5): `MemTotal:   2040000 kB`.
fn total(info: &str) -> Option<u64> {
    let line = info.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    #[test]
    fn memory_is_read_as_the_kernel_writes_it() {
        assert_eq!(super::total("MemTotal:        2048 kB\nMemFree: 1 kB\n"), Some(2 << 20));
        assert_eq!(super::total("MemTotal: many kB"), None);
        assert_eq!(super::total(""), None);
    }
}
