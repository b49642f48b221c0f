//! What `--backend qemu` and `firecracker` make machines of: the VMM, a guest kernel, the guest probe.

use glasshouse_vm::firecracker::{self, FIRECRACKER_VARIABLE, kvm};
use glasshouse_vm::{Parts, qemu};

use super::super::report::{Finding, Group, Status};

const QEMU: &str = "backend qemu";
const FIRECRACKER: &str = "backend firecracker";

pub(super) fn qemu() -> Finding {
    let vmm = qemu::program().map(|qemu| qemu.display().to_string());
    of_machines(QEMU, vmm, Parts::find().map_err(|error| error.to_string()))
}

/// Whether Firecracker boots the guest's kernel is tried, where there is one.
pub(super) async fn firecracker() -> Finding {
    if std::env::var_os(FIRECRACKER_VARIABLE).is_none() && firecracker::program().is_err() {
        let found =
            format!("no Firecracker: {FIRECRACKER_VARIABLE} names none, and there is none on the PATH");
        return finding(FIRECRACKER, Status::Skipped, found);
    }
    let parts = Parts::find().map_err(|error| error.to_string());
    let vmm = match (firecracker::program(), firecracker::jailer(), &parts) {
        (Ok(program), Ok(jailer), Ok(parts)) => boots(&program, parts).await.map(|()| match jailer {
            Some(jailer) => format!("{} in jails of {}", program.display(), jailer.display()),
            None => format!("{} without a jailer", program.display()),
        }),
        (program, jailer, _) => program.and_then(|program| jailer.map(|_| program.display().to_string())),
    };
    of_machines(FIRECRACKER, vmm, parts)
}

async fn boots(program: &std::path::Path, parts: &Parts) -> Result<(), String> {
    let vmlinux = parts.vmlinux().map_err(|error| error.to_string())?;
    kvm::boots(program, &vmlinux, &parts.cache).await
}

fn of_machines(name: &'static str, vmm: Result<String, String>, parts: Result<Parts, String>) -> Finding {
    match (vmm, parts) {
        (Ok(vmm), Ok(parts)) => {
            let (kernel, probe) = (parts.kernel.release, parts.probe.display());
            finding(name, Status::Ok, format!("{vmm}, kernel {kernel}, guest probe {probe}"))
        }
        (vmm, parts) => {
            let missing: Vec<String> = vmm.err().into_iter().chain(parts.err()).collect();
            finding(name, Status::Warn, missing.join("; ")).action("docs/vm.md says what it needs")
        }
    }
}

fn finding(name: &'static str, status: Status, found: String) -> Finding {
    let needed_for = match name {
        QEMU => "running a command in a virtual machine and watching it from inside (--backend qemu)",
        _ => "the same in a microVM of Firecracker (--backend firecracker)",
    };
    Finding::new(Group::VirtualMachines, name, status, found, needed_for)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_is_missing_is_said() {
        let both = of_machines(FIRECRACKER, Err("no KVM".into()), Err("no kernel".into()));
        assert_eq!((both.status, both.found.as_str()), (Status::Warn, "no KVM; no kernel"));
        let one = of_machines(QEMU, Ok("/usr/bin/qemu".into()), Err("no kernel".into()));
        assert_eq!((one.status, one.found.as_str()), (Status::Warn, "no kernel"));
    }
}
