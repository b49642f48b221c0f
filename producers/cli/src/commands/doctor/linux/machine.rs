//! What `--backend qemu` makes machines of: QEMU, a guest kernel, the guest probe.

use glasshouse_vm::{Parts, qemu};

use super::super::report::{Finding, Group, Status};

const NAME: &str = "backend qemu";
const FOR: &str = "running a command in a virtual machine and watching it from inside (--backend qemu)";

pub(super) fn finding() -> Finding {
    let finding = |status, found: String| Finding::new(Group::VirtualMachines, NAME, status, found, FOR);
    match (qemu::program(), Parts::find()) {
        (Ok(qemu), Ok(parts)) => finding(
            Status::Ok,
            format!(
                "{}, kernel {}, guest probe {}",
                qemu.display(),
                parts.kernel.release,
                parts.probe.display()
            ),
        ),
        (qemu, parts) => {
            let missing: Vec<String> =
                qemu.err().into_iter().chain(parts.err().map(|error| error.to_string())).collect();
            finding(Status::Warn, missing.join("; ")).action("docs/vm.md says what it needs")
        }
    }
}
