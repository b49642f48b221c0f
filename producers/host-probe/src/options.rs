//! Options of [`crate::HostProbe::load`].

use std::path::PathBuf;
use std::time::Duration;

use crate::ProbeError;

/// Sizes and places. The defaults grow with the machine's memory see docs/probe.md.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// Where to read the BPF objects from instead of the embedded ones (`GLASSHOUSE_BPF_DIR`).
    pub object_dir: Option<PathBuf>,
    /// Read kernel fields by one instruction each where the kernel has what that takes (Linux 6.2), and not by a helper
    /// call each.
    pub direct_reads: bool,
    /// Room for process lifecycle records, a power of two of at least a page.
    pub process_ring_bytes: u32,
    /// Room for file and network records, a power of two of at least a page.
    pub activity_ring_bytes: u32,
    /// How many executions can be watched at once. Each takes 8.5 KiB of kernel memory.
    pub max_executions: u32,
    /// How many cgroups, nested ones included, can be watched at once.
    pub max_cgroups: u32,
    /// How many live threads of watched executions can be told of at once. Each takes 3.7 KiB of kernel memory.
    pub max_tasks: u32,
    /// How many live processes of watched executions are followed for escapes.
    pub max_processes: u32,
    /// The kernel wakes the drain thread once this much waits in a ring.
    pub wakeup_bytes: u32,
    /// The drain thread comes by at least this often while anything is watched.
    pub drain_interval: Duration,
}

/// The machine's memory, or 1 GiB when it does not tell.
fn memory_bytes() -> u64 {
    let total = |text: String| {
        let kib = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?.trim().strip_suffix("kB")?;
        kib.trim().parse::<u64>().ok()?.checked_mul(1024)
    };
    std::fs::read_to_string("/proc/meminfo").ok().and_then(total).unwrap_or(1 << 30)
}

/// The largest power of two that is no more than `bytes`, within these limits (powers of two themselves).
fn ring(bytes: u64, least: u32, most: u32) -> u32 {
    let bytes = u32::try_from(bytes).unwrap_or(most).clamp(least, most);
    1 << bytes.ilog2()
}

/// Kernel memory of one thread's table, about (`struct task` in `bpf/probe/common.h`).
const TASK_BYTES: u64 = 3_700;

impl Default for LoadOptions {
    fn default() -> Self {
        Self::for_memory(memory_bytes())
    }
}

impl LoadOptions {
    /// Of a machine with so much memory, or of a part of one.
    pub fn for_memory(memory: u64) -> Self {
        Self {
            object_dir: None,
            direct_reads: true,
            process_ring_bytes: ring(memory / 1024, 4 << 20, 32 << 20),
            activity_ring_bytes: ring(memory / 1024, 8 << 20, 128 << 20),
            max_executions: 1024,
            max_cgroups: 8192,
            max_processes: 65536,
            max_tasks: (memory / 1024 / TASK_BYTES).clamp(2_048, 32_768) as u32,
            wakeup_bytes: 64 * 1024,
            drain_interval: Duration::from_millis(10),
        }
    }

    /// The defaults, with `object_dir` from `GLASSHOUSE_BPF_DIR` when that is set and not empty.
    pub fn from_env() -> Self {
        let object_dir =
            std::env::var_os("GLASSHOUSE_BPF_DIR").filter(|dir| !dir.is_empty()).map(PathBuf::from);
        Self { object_dir, ..Self::default() }
    }

    /// Checks every range.
    pub fn check(&self) -> Result<(), ProbeError> {
        let bad = |option, value: u32, expected| {
            Err(ProbeError::BadOption { option, value: u64::from(value), expected })
        };
        for (option, bytes) in [
            ("process_ring_bytes", self.process_ring_bytes),
            ("activity_ring_bytes", self.activity_ring_bytes),
        ] {
            if !bytes.is_power_of_two() || !(64 * 1024..=1 << 30).contains(&bytes) {
                return bad(option, bytes, "a power of two from 64 KiB to 1 GiB");
            }
        }
        for (option, count) in [
            ("max_executions", self.max_executions),
            ("max_cgroups", self.max_cgroups),
            ("max_processes", self.max_processes),
        ] {
            if !(1..=1 << 20).contains(&count) {
                return bad(option, count, "from 1 to 1048576");
            }
        }
        if !(1..=65_535).contains(&self.max_tasks) {
            return bad("max_tasks", self.max_tasks, "from 1 to 65535");
        }
        if self.wakeup_bytes == 0
            || self.wakeup_bytes > self.process_ring_bytes.min(self.activity_ring_bytes) / 2
        {
            return bad("wakeup_bytes", self.wakeup_bytes, "from 1 to half of the smaller ring");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rings_are_powers_of_two_within_their_limits() {
        assert_eq!(ring(24 << 20, 4 << 20, 32 << 20), 16 << 20);
        assert_eq!(ring(1, 4 << 20, 32 << 20), 4 << 20);
        assert_eq!(ring(u64::MAX, 4 << 20, 32 << 20), 32 << 20);
    }

    #[test]
    fn ranges_are_checked() {
        assert!(LoadOptions::default().check().is_ok());
        for options in [
            LoadOptions { process_ring_bytes: 100_000, ..LoadOptions::default() },
            LoadOptions { max_executions: 0, ..LoadOptions::default() },
            LoadOptions { max_tasks: 65_536, ..LoadOptions::default() },
            LoadOptions { wakeup_bytes: 1 << 30, ..LoadOptions::default() },
        ] {
            assert!(matches!(options.check(), Err(ProbeError::BadOption { .. })));
        }
    }
}
