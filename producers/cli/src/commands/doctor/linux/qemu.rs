//! A stock kernel under KVM: some hypervisors run small guests and no kernel that people use.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use tokio::io::AsyncReadExt as _;

use super::super::report::{Finding, Group, Status};

const DEADLINE: Duration = Duration::from_secs(8);
const MAX_OUTPUT_BYTES: usize = 1024 * 1024;
const NAME: &str = "KVM stock kernel";
const FOR: &str =
    "the qemu and firecracker backends with KVM; a small guest that runs does not prove that a kernel boots";
const PROGRAM: &str = "qemu-system-x86_64";
/// Shows itself early, and ends QEMU (`-no-reboot`) when it panics for want of a root file system.
const KERNEL_COMMAND_LINE: &str = "console=ttyS0 earlyprintk=ttyS0,115200 panic=-1";

/// `guest`: how the small guest fared.
pub(super) async fn finding(guest: Status) -> Finding {
    let skipped = |reason: &str| {
        Finding::new(Group::VirtualMachines, NAME, Status::Skipped, format!("not tried: {reason}"), FOR)
    };
    if !cfg!(target_arch = "x86_64") {
        return skipped("this build only knows how for x86_64");
    }
    if guest != Status::Ok {
        return skipped("the small guest does not run");
    }
    let Some(qemu) = on_path(PROGRAM) else {
        return skipped(&format!("no {PROGRAM} on the PATH"))
            .action("install it (Debian: qemu-system-x86) to know");
    };
    let Some(kernel) = newest_kernel(Path::new("/boot")) else {
        return skipped("no readable kernel image in /boot")
            .action("run as root, or install one (Debian: linux-image-cloud-amd64) to know");
    };
    if std::io::stderr().is_terminal() {
        crate::say(format_args!(
            "glasshouse: booting a stock kernel under KVM; this takes up to {} s",
            DEADLINE.as_secs()
        ));
    }
    let began = Instant::now();
    match boot(&qemu, &kernel).await {
        Ok(console) => judge(&kernel, &console, began.elapsed()),
        Err(error) => skipped(&format!("{}: {error}", qemu.display())),
    }
}

fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(|file| file.is_file())
}

fn newest_kernel(dir: &Path) -> Option<PathBuf> {
    let images = std::fs::read_dir(dir).ok()?.flatten().filter_map(|entry| {
        let path = entry.path();
        let is_image = entry.file_name().to_string_lossy().starts_with("vmlinuz-");
        // Some distributions let only root read it.
        let file = is_image.then(|| std::fs::File::open(&path).ok()).flatten()?;
        Some((file.metadata().and_then(|metadata| metadata.modified()).ok()?, path))
    });
    images.max().map(|(_, path)| path)
}

/// What it wrote to its console until it ended, said enough, or the deadline came.
async fn boot(qemu: &Path, kernel: &Path) -> std::io::Result<String> {
    let mut command = tokio::process::Command::new(qemu);
    command
        .args([
            "-accel",
            "kvm",
            "-M",
            "q35",
            "-m",
            "256",
            "-nodefaults",
            "-display",
            "none",
            "-serial",
            "stdio",
            "-no-reboot",
        ])
        .arg("-kernel")
        .arg(kernel)
        .args(["-append", KERNEL_COMMAND_LINE])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let mut child = command.spawn()?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let mut console = Vec::new();
    let mut complaints = Vec::new();
    let watch = async {
        let Some(mut stdout) = stdout else { return };
        let mut buffer = [0; 4096];
        while let Ok(read @ 1..) = stdout.read(&mut buffer).await {
            console.extend_from_slice(&buffer[..read]);
            if console.len() > MAX_OUTPUT_BYTES || says_enough(&String::from_utf8_lossy(&console)) {
                return;
            }
        }
        if let Some(stderr) = stderr {
            let _ = stderr.take(4096).read_to_end(&mut complaints).await;
        }
    };
    // Both ends are fine: what was written until then is judged.
    let _ = tokio::time::timeout(DEADLINE, watch).await;
    super::step::end(&mut child).await;
    console.extend_from_slice(&complaints);
    Ok(String::from_utf8_lossy(&console).into_owned())
}

const PANIC: &str = "Kernel panic - not syncing: ";

/// It has panicked, with the reason on a whole line.
fn says_enough(console: &str) -> bool {
    console.split_once(PANIC).is_some_and(|(_, reason)| reason.contains('\n'))
}

fn judge(kernel: &Path, console: &str, took: Duration) -> Finding {
    let finding = |status, found: String| Finding::new(Group::VirtualMachines, NAME, status, found, FOR);
    let kernel = kernel.file_name().unwrap_or_default().to_string_lossy();
    let seconds = took.as_secs_f64();
    let panic = console.split_once(PANIC).map(|(_, reason)| reason.lines().next().unwrap_or_default().trim());
    let advice =
        "use the qemu backend without KVM here (it emulates), or a machine with hardware virtualisation";
    match (console.contains("Linux version "), panic) {
        // It was given no root file system: this is where its boot ends.
        (true, Some(reason)) if reason.contains("VFS: Unable to mount root") || reason.contains("init") => {
            finding(Status::Ok, format!("{kernel} booted as far as looking for its root in {seconds:.1} s"))
        }
        (_, Some(reason)) => finding(Status::Warn, format!("{kernel} panicked: {reason}")).action(advice),
        (true, None) => finding(
            Status::Warn,
            format!("{kernel} started under KVM and did not finish booting within {seconds:.1} s"),
        )
        .action(advice),
        (false, None) => {
            let last = console.lines().map(str::trim).rfind(|line| !line.is_empty());
            let last = last.map(|line| format!("; last seen: {}", printable(line))).unwrap_or_default();
            finding(
                Status::Warn,
                format!("{kernel} does not boot under KVM: no line of it within {seconds:.1} s{last}"),
            )
            .action(advice)
        }
    }
}

/// Firmware writes escape sequences.
fn printable(line: &str) -> String {
    line.chars().filter(|c| !c.is_control()).take(120).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn consoles_are_judged() {
        let of = |console| judge(Path::new("/boot/vmlinuz-6.1"), console, Duration::from_millis(1500));
        let booted = of(
            "[0.0] Linux version 6.1\r\n[1.2] Kernel panic - not syncing: VFS: Unable to mount root fs on \
                         unknown-block(0,0)\r\n",
        );
        assert_eq!(booted.status, Status::Ok);
        assert_eq!(booted.found, "vmlinuz-6.1 booted as far as looking for its root in 1.5 s");
        for (console, expected) in [
            ("", "vmlinuz-6.1 does not boot under KVM: no line of it within 1.5 s"),
            (
                "\x1b[2JProbing EDD... ok\r\n\r\n",
                "vmlinuz-6.1 does not boot under KVM: no line of it within 1.5 s; last seen: [2JProbing EDD... ok",
            ),
            (
                "Linux version 6.1\r\n",
                "vmlinuz-6.1 started under KVM and did not finish booting within 1.5 s",
            ),
            (
                "Linux version 6.1\nKernel panic - not syncing: IO-APIC + timer doesn't work!\r\n",
                "vmlinuz-6.1 panicked: IO-APIC + timer doesn't work!",
            ),
        ] {
            let finding = of(console);
            assert_eq!((finding.status, finding.found.as_str()), (Status::Warn, expected));
        }
    }

    #[test]
    fn a_panic_is_enough_once_its_line_is_whole() {
        assert!(!says_enough("Linux version 6.1"));
        assert!(!says_enough("Kernel panic - not syncing: VFS"));
        assert!(says_enough("Kernel panic - not syncing: VFS\r\n"));
    }
}
