//! Clocks and namespaces of this process.

#[cfg(target_os = "linux")]
mod system {
    use std::os::unix::fs::MetadataExt;
    use std::time::Duration;

    use nix::time::{ClockId, clock_gettime};

    fn clock_ns(clock: ClockId) -> u64 {
        clock_gettime(clock)
            .map_or(0, |time| u64::try_from(Duration::from(time).as_nanos()).unwrap_or(u64::MAX))
    }

    /// CLOCK_BOOTTIME.
    pub(crate) fn boot_ns() -> u64 {
        clock_ns(ClockId::CLOCK_BOOTTIME)
    }

    /// CPU time of the calling thread.
    pub(crate) fn thread_cpu_ns() -> u64 {
        clock_ns(ClockId::CLOCK_THREAD_CPUTIME_ID)
    }

    /// Unix time minus CLOCK_BOOTTIME: of a few readings the one that took least.
    pub(crate) fn unix_minus_boot_ns() -> i64 {
        let reading = |_| {
            let before = boot_ns();
            let unix = clock_ns(ClockId::CLOCK_REALTIME);
            let took = boot_ns().saturating_sub(before);
            let offset = i128::from(unix) - i128::from(before) - i128::from(took / 2);
            (took, i64::try_from(offset).unwrap_or(0))
        };
        (0..5).map(reading).min_by_key(|(took, _)| *took).map_or(0, |(_, offset)| offset)
    }

    /// Lets the calling thread run before others that want a CPU: it empties what all of them fill. Best effort.
    #[allow(unsafe_code, reason = "no wrapper has it: one call without pointers")]
    pub(crate) fn hurry() {
        // SAFETY: no pointers; 0 is the calling thread, as Linux takes it.
        if unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -15) } < 0 {
            tracing::debug!(error = %std::io::Error::last_os_error(), "the drain thread keeps its priority");
        }
    }

    /// Whether process ids here are those the kernel's programs see.
    pub(crate) fn is_initial_pid_namespace() -> bool {
        // PROC_PID_INIT_INO of include/uapi/linux/nsfs.h (PID_NS_INIT_INO): the same on every kernel since 3.8.
        const INITIAL: u64 = 0xEFFF_FFFC;
        std::fs::metadata("/proc/self/ns/pid").is_ok_and(|namespace| namespace.ino() == INITIAL)
    }
}

#[cfg(not(target_os = "linux"))]
mod system {
    /// Never used: there is no probe.
    pub(crate) fn unix_minus_boot_ns() -> i64 {
        0
    }

    /// Never used: there is no probe.
    pub(crate) fn is_initial_pid_namespace() -> bool {
        false
    }
}

pub(crate) use system::*;
