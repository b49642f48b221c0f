//! Whether Firecracker boots a kernel under this machine's KVM, which the device alone does not prove.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde_json::json;
use tokio::io::AsyncReadExt as _;

use crate::qemu::accel::kept_at;

/// A kernel is at its first process within a second under KVM; under one that is emulated itself, on a busy host, in many.
const BOOTS_WITHIN: Duration = Duration::from_secs(30);
/// Where a kernel ends that has nothing to run.
const AT_ITS_END: &str = "Kernel panic - not syncing: VFS";
/// What is kept of the console.
const CONSOLE_BYTES: u64 = 1 << 20;

/// Tried once: that it works is kept in `cache`.
///
/// # Errors
/// Why this machine cannot run Firecracker, in words.
pub async fn boots(firecracker: &Path, vmlinux: &Path, cache: &Path) -> Result<(), String> {
    if let Err(error) = std::fs::File::options().read(true).write(true).open("/dev/kvm") {
        return Err(format!("Firecracker needs KVM, and /dev/kvm cannot be opened: {error}"));
    }
    let kept = kept_at(cache, "firecracker", vmlinux);
    if kept.is_file() {
        return Ok(());
    }
    tried(firecracker, vmlinux).await?;
    tracing::info!("a guest kernel was booted by Firecracker");
    if let Err(error) = std::fs::write(&kept, "") {
        tracing::debug!(%error, "that Firecracker boots a kernel is not kept");
    }
    Ok(())
}

async fn tried(firecracker: &Path, vmlinux: &Path) -> Result<(), String> {
    let words = |error: std::io::Error| format!("Firecracker could not be tried: {error}");
    let dir = tempfile::tempdir().map_err(words)?;
    let config = json!({
        "boot-source": { "kernel_image_path": vmlinux, "boot_args": "console=ttyS0 quiet panic=-1 reboot=k" },
        "machine-config": { "vcpu_count": 1, "mem_size_mib": 256 },
        "drives": [],
    });
    let file = dir.path().join("machine.json");
    std::fs::write(&file, config.to_string()).map_err(words)?;
    let mut command = tokio::process::Command::new(firecracker);
    command
        .args(["--no-api", "--config-file"])
        .arg(&file)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    let mut child = command.spawn().map_err(words)?;
    let mut console = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        // Firecracker ends with the panic.
        let _ = tokio::time::timeout(BOOTS_WITHIN, { stdout.take(CONSOLE_BYTES) }.read_to_end(&mut console))
            .await;
    }
    let _ = child.kill().await;
    let console = String::from_utf8_lossy(&console);
    if console.contains(AT_ITS_END) {
        return Ok(());
    }
    let last = console.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or("nothing");
    Err(format!(
        "KVM boots no kernel here, though /dev/kvm is there: Firecracker came to no end of one within {} s; last seen: {last}",
        BOOTS_WITHIN.as_secs()
    ))
}
