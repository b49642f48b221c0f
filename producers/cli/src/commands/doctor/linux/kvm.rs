//! A KVM that runs a guest, which the existence of `/dev/kvm` does not prove.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::super::report::{Finding, Group, Status};
use super::step::Step;

const DEADLINE: Duration = Duration::from_secs(1);
const NAME: &str = "KVM guest";
const FOR: &str = "running virtual machines at hardware speed; without it QEMU emulates (TCG)";

pub(super) async fn finding() -> Finding {
    if !cfg!(target_arch = "x86_64") {
        let found = format!("not tried: the tiny guest is x86_64, this machine {}", std::env::consts::ARCH);
        return Finding::new(Group::VirtualMachines, NAME, Status::Skipped, found, FOR);
    }
    let began = Instant::now();
    match boot(Step::Guest.command(), DEADLINE).await {
        Ok((lines, ended)) => judge(&lines, ended, began.elapsed()),
        Err(error) => {
            let found = format!("the guest could not be tried: {error}");
            Finding::new(Group::VirtualMachines, NAME, Status::Warn, found, FOR)
        }
    }
}

/// How the child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    ByItself,
    AtTheDeadline,
}

/// In a child, which can be killed when the guest hangs; even one that cannot be killed does not hold us up.
async fn boot(command: Command, deadline: Duration) -> std::io::Result<(String, Ended)> {
    let mut command = tokio::process::Command::from(command);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
    let mut child = command.spawn()?;
    let mut said = Vec::new();
    let ended = match child.stdout.take() {
        Some(mut stdout) => {
            let read = tokio::io::AsyncReadExt::read_to_end(&mut stdout, &mut said);
            tokio::time::timeout(deadline, read).await
        }
        None => Ok(Ok(0)),
    };
    let ended = match ended {
        Ok(read) => read.map(|_| Ended::ByItself)?,
        Err(_) => Ended::AtTheDeadline,
    };
    super::step::end(&mut child).await;
    Ok((String::from_utf8_lossy(&said).into_owned(), ended))
}

/// What the steps of the guest are called, in their order.
const STEPS: [(&str, &str); 8] = [
    ("run", "its first instruction"),
    ("step r", "real mode"),
    ("step p", "protected mode"),
    ("step l", "long mode with paging"),
    ("step c", "CPUID"),
    ("step x", "an exception"),
    ("step d", "a reload of CR3"),
    ("halt", "its halt"),
];
const EFER_LMA: u32 = 1 << 10;

fn judge(lines: &str, ended: Ended, took: Duration) -> Finding {
    let finding = |status, found: String| Finding::new(Group::VirtualMachines, NAME, status, found, FOR);
    let said = |wanted: &str| lines.lines().any(|line| line == wanted);
    let missing = STEPS.iter().position(|(line, _)| !said(line));
    let efer = lines.lines().find_map(|line| u32::from_str_radix(line.strip_prefix("efer ")?, 16).ok());
    let is_long_mode = efer.is_some_and(|efer| efer & EFER_LMA != 0);
    let failed = lines.lines().find_map(|line| line.strip_prefix("failed ")?.split_once(' '));
    match (missing, failed) {
        (Some(0), Some((errno, reason))) => match errno.parse::<i32>() {
            Ok(libc::ENOENT) => finding(Status::Warn, "no /dev/kvm".to_owned())
                .action("modprobe kvm_intel or kvm_amd; in a virtual machine, enable nested virtualisation"),
            Ok(libc::EACCES | libc::EPERM) => finding(Status::Warn, reason.to_owned())
                .action("run as root, or as a member of the group kvm"),
            _ => finding(Status::Warn, reason.to_owned())
                .action("see dmesg for why KVM refuses; QEMU without KVM works meanwhile"),
        },
        (None, None) if is_long_mode && said("devices") => finding(
            Status::Ok,
            format!(
                "a 64-bit guest ran: real, protected and long mode, paging, CPUID, an exception, halt; {} ms",
                took.as_millis()
            ),
        ),
        (missing, failed) => {
            let at = missing.map_or("its halt", |missing| STEPS[missing.saturating_sub(1)].1);
            let why = match (failed, lines.lines().find_map(|line| line.strip_prefix("exit "))) {
                (Some((_, reason)), _) => reason.to_owned(),
                (None, Some(exit)) => format!("KVM ended it with {exit}"),
                (None, None) if missing.is_none() && !is_long_mode => {
                    "EFER did not show long mode".to_owned()
                }
                (None, None) if ended == Ended::AtTheDeadline => format!("then it hung for {DEADLINE:?}"),
                (None, None) => "then its process ended".to_owned(),
            };
            finding(Status::Warn, format!("/dev/kvm is there, but the guest only came to {at}: {why}"))
                .action("do not use KVM on this machine; QEMU without KVM works")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &str = "run\nstep r\nstep p\nstep l\nstep c\nefer 500\nstep x\nstep d\nhalt\ndevices\n";

    fn of(lines: &str, ended: Ended) -> Finding {
        judge(lines, ended, Duration::from_millis(12))
    }

    #[tokio::test]
    async fn a_guest_that_hangs_is_ended_and_what_it_said_is_kept() {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "echo run; exec sleep 60"]);
        let began = Instant::now();
        let (lines, ended) = boot(command, Duration::from_millis(300)).await.unwrap();
        assert_eq!((lines.as_str(), ended), ("run\n", Ended::AtTheDeadline));
        assert!(began.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn a_whole_boot_is_ok() {
        let finding = of(WHOLE, Ended::ByItself);
        assert_eq!(finding.status, Status::Ok);
        assert!(finding.found.ends_with("12 ms"), "{}", finding.found);
    }

    #[test]
    fn what_does_not_boot_says_how_far_it_came() {
        for (lines, ended, expected) in [
            ("failed 2 opening /dev/kvm: No such file", Ended::ByItself, "no /dev/kvm"),
            (
                "failed 13 opening /dev/kvm: Permission denied (os error 13)",
                Ended::ByItself,
                "opening /dev/kvm: Permission denied (os error 13)",
            ),
            ("failed 16 KVM_CREATE_VM: busy", Ended::ByItself, "KVM_CREATE_VM: busy"),
            (
                "run\nstep r\nstep p\n",
                Ended::AtTheDeadline,
                "/dev/kvm is there, but the guest only came to protected mode: then it hung for 1s",
            ),
            (
                "run\nexit FailEntry(1, 0)\n",
                Ended::ByItself,
                "/dev/kvm is there, but the guest only came to its first instruction: KVM ended it with FailEntry(1, 0)",
            ),
            (
                &WHOLE.replace("devices", "failed 22 KVM_CREATE_PIT2: Invalid argument"),
                Ended::ByItself,
                "/dev/kvm is there, but the guest only came to its halt: KVM_CREATE_PIT2: Invalid argument",
            ),
            (
                &WHOLE.replace("efer 500", "efer 100"),
                Ended::ByItself,
                "/dev/kvm is there, but the guest only came to its halt: EFER did not show long mode",
            ),
            (
                &WHOLE.replace("devices\n", ""),
                Ended::AtTheDeadline,
                "/dev/kvm is there, but the guest only came to its halt: then it hung for 1s",
            ),
        ] {
            let finding = of(lines, ended);
            assert_eq!((finding.status, finding.found.as_str()), (Status::Warn, expected));
            assert!(finding.action.is_some());
        }
    }
}
