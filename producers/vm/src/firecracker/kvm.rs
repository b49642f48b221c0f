//! Whether Firecracker boots a kernel under this machine's KVM, which the device alone does not prove.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde_json::json;
use tokio::io::AsyncReadExt as _;

use crate::kept::Kept;

/// A kernel is at its first process within a second under KVM; under one that is emulated itself, on a busy host, in many.
const BOOTS_WITHIN: Duration = Duration::from_secs(30);
/// Where a kernel ends that has nothing to run.
const AT_ITS_END: &str = "Kernel panic - not syncing: VFS";
/// What is kept of the console.
const CONSOLE_BYTES: u64 = 1 << 20;

/// Tried where nothing is kept of it in `cache`.
///
/// # Errors
/// Why this machine cannot run Firecracker, in words.
pub async fn boots(firecracker: &Path, vmlinux: &Path, cache: &Path) -> Result<(), String> {
    if let Err(error) = std::fs::File::options().read(true).write(true).open("/dev/kvm") {
        return Err(format!("Firecracker needs KVM, and /dev/kvm cannot be opened: {error}"));
    }
    let kept = Kept::at(cache, "firecracker", firecracker, vmlinux);
    if let Some(boots) = kept.get() {
        return boots;
    }
    let boots = tried(firecracker, vmlinux).await?;
    tracing::info!(boots = boots.is_ok(), "a guest kernel was tried with Firecracker");
    kept.put(&boots);
    boots
}

/// Whether it boots, or why not; the outer error is why that is not known.
async fn tried(firecracker: &Path, vmlinux: &Path) -> Result<Result<(), String>, String> {
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
        return Ok(Ok(()));
    }
    let last = console.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or("nothing");
    Ok(Err(format!(
        "KVM boots no kernel here, though /dev/kvm is there: Firecracker came to no end of one within {} s; last seen: {last}",
        BOOTS_WITHIN.as_secs()
    )))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// Programs that are no Firecracker: what is tested is how often one is run.
    #[tokio::test]
    async fn what_came_of_it_is_kept_until_the_program_is_another() {
        if std::fs::File::options().read(true).write(true).open("/dev/kvm").is_err() {
            return eprintln!("skipped: /dev/kvm cannot be opened here");
        }
        let dir = tempfile::tempdir().unwrap();
        let (program, runs) = (dir.path().join("program"), dir.path().join("runs"));
        let prints = |line: &str| {
            let script = format!("#!/bin/sh\necho run >> {}\necho '{line}'\n", runs.display());
            std::fs::write(&program, script).unwrap();
            std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        };
        let count = || std::fs::read_to_string(&runs).unwrap().lines().count();
        let boots = || boots(&program, Path::new("vmlinux"), dir.path());
        prints("KVM: entry failed");
        for _ in 0..2 {
            let reason = boots().await.unwrap_err();
            assert!(reason.contains("last seen: KVM: entry failed"), "{reason}");
        }
        assert_eq!(count(), 1);
        prints(&format!("[0.1] {AT_ITS_END}: unable to mount"));
        for _ in 0..2 {
            assert_eq!(boots().await, Ok(()));
        }
        assert_eq!(count(), 2);
        // What could not be run was not tried.
        std::fs::remove_file(&program).unwrap();
        assert!(boots().await.unwrap_err().contains("could not be tried"));
        prints("KVM: entry failed again");
        boots().await.unwrap_err();
        assert_eq!(count(), 3);
    }
}
