//! Whether machines run under KVM, and what emulated ones have to be told of the host's clock.

use std::path::Path;
use std::process::Stdio;
use std::sync::OnceLock;
use std::time::Duration;

use tokio::io::AsyncReadExt as _;

use crate::kept::Kept;
use crate::parts::Parts;

/// `kvm` or `tcg`: takes the decision away from the probe.
pub const ACCEL_VARIABLE: &str = "GLASSHOUSE_QEMU_ACCEL";
/// A kernel is at its first process within a second under KVM.
const BOOTS_WITHIN: Duration = Duration::from_secs(8);
/// How long the TSC is measured.
const MEASURED_FOR: Duration = Duration::from_millis(20);

/// What runs the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accel {
    /// The processor.
    Kvm,
    /// QEMU's translator.
    Tcg,
}

impl Accel {
    /// QEMU's name for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }
}

/// KVM if this very kernel was seen to boot under it; that a device is there proves nothing. What came of trying
/// it is kept. `qemu` is a path.
pub async fn choose(qemu: &Path, vmlinux: &Path, parts: &Parts) -> Accel {
    match std::env::var(ACCEL_VARIABLE).as_deref() {
        Ok("kvm") => return Accel::Kvm,
        Ok("tcg") => return Accel::Tcg,
        _ => {}
    }
    if std::fs::File::options().read(true).write(true).open("/dev/kvm").is_err() {
        return Accel::Tcg;
    }
    let kept = Kept::at(&parts.cache, "qemu", qemu, vmlinux);
    let boots = match kept.get() {
        Some(boots) => boots.is_ok(),
        None => {
            let tried = boots(qemu, vmlinux).await;
            tracing::info!(boots = tried, "a guest kernel was tried under KVM");
            kept.put(&if tried { Ok(()) } else { Err("it does not boot under KVM".to_owned()) });
            tried
        }
    };
    if boots { Accel::Kvm } else { Accel::Tcg }
}

/// Boots the kernel with nothing to run: it has booted when it panics for want of a root filesystem.
async fn boots(qemu: &Path, vmlinux: &Path) -> bool {
    let mut command = tokio::process::Command::new(qemu);
    command
        .args(["-M", "microvm", "-accel", "kvm", "-cpu", "host", "-m", "256M", "-nodefaults"])
        .args(["-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio"])
        .args(["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"])
        .args(["-append", "console=ttyS0 panic=-1", "-kernel"])
        .arg(vmlinux)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    let Ok(mut child) = command.spawn() else { return false };
    let mut console = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        // QEMU ends with the panic.
        let read = stdout.take(1 << 20);
        let _ = tokio::time::timeout(BOOTS_WITHIN, { read }.read_to_end(&mut console)).await;
    }
    let _ = child.kill().await;
    String::from_utf8_lossy(&console).contains("Kernel panic - not syncing: VFS")
}

/// The frequency of this host's TSC, measured once; blocks for a moment the first time. An emulated guest's runs at the same.
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code, reason = "reading the counter has no safe API")]
pub fn tsc_khz() -> u64 {
    use nix::time::{ClockId, clock_gettime};
    static KHZ: OnceLock<u64> = OnceLock::new();
    *KHZ.get_or_init(|| {
        let read = || {
            let time = clock_gettime(ClockId::CLOCK_MONOTONIC_RAW).map_or(Duration::ZERO, Duration::from);
            // SAFETY: every x86-64 processor has the instruction, and Linux lets programs use it.
            (time, unsafe { std::arch::x86_64::_rdtsc() })
        };
        let (begin, first) = read();
        std::thread::sleep(MEASURED_FOR);
        let (end, last) = read();
        let ns = end.saturating_sub(begin).as_nanos().max(1);
        u64::try_from(u128::from(last.wrapping_sub(first)) * 1_000_000 / ns).unwrap_or(0)
    })
}

/// Other machines have no TSC, and no machine of this kind.
#[cfg(not(target_arch = "x86_64"))]
pub fn tsc_khz() -> u64 {
    0
}
