//! Whether each backend can run a command here: the process backend runs one, the others are asked for what they need.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use glasshouse_backends::ProcessBackend;
use glasshouse_execution::ExecutionSpec;
use glasshouse_execution::backend::{ExecutionBackend as _, ExitStatus};
use glasshouse_kata::{DEFAULT_ADDRESS, DEFAULT_NAMESPACE, DEFAULT_RUNTIME};
use glasshouse_schema::NodeId;
use glasshouse_vm::firecracker::{self, FIRECRACKER_VARIABLE, kvm};
use glasshouse_vm::{Parts, Templates, qemu};

use super::super::report::{Finding, Group, Status};
use super::step::Step;

const PROCESS: &str = "backend process";
const QEMU: &str = "backend qemu";
const FIRECRACKER: &str = "backend firecracker";
const KATA: &str = "backend kata";
/// What there is where Kata is not, and what was tried.
const RUNC: &str = "io.containerd.runc.v2";

pub(super) async fn findings() -> Vec<Finding> {
    vec![process().await, qemu(), firecracker().await, kata().await]
}

async fn process() -> Finding {
    match run_one().await {
        Ok(found) => finding(PROCESS, Status::Ok, found),
        Err(error) => finding(PROCESS, Status::Fail, format!("{error:#}"))
            .action("what is wrong stands under host profiling and sandbox; run as root to see whether rights are missing"),
    }
}

/// Runs a command that does nothing.
async fn run_one() -> anyhow::Result<&'static str> {
    let id = glasshouse_runner::new_execution_id()?;
    let program = std::env::current_exe().context("cannot find this program")?.into_os_string();
    let mut spec = ExecutionSpec::new(id, NodeId::new("doctor")?, vec![program, "doctor".into()]);
    spec.env = Some(vec![Step::Wait.variable()]);
    let backend = ProcessBackend::detached();
    let ran = async {
        backend.prepare(&spec).await?;
        let started = backend.start(&spec).await?;
        backend.release().await?;
        let exit = backend.wait().await?;
        backend.drain(false).await?;
        anyhow::ensure!(exit.status == ExitStatus::Code(0), "a command ended with {:?}", exit.status);
        Ok(match started.identity.cgroup_id {
            Some(_) => "a command ran in a cgroup of its own",
            None => "a command ran, without a cgroup of its own: only its processes tell what belongs to it",
        })
    };
    let ran = ran.await;
    let left = backend.cleanup().await;
    anyhow::ensure!(left.is_empty(), "{}", left.join("; "));
    ran
}

fn qemu() -> Finding {
    let vmm = qemu::program().map(|qemu| qemu.display().to_string());
    let parts = Parts::find().map_err(|error| error.to_string());
    let templates = parts.as_ref().ok().map(|parts| Templates::in_cache(&parts.cache));
    let kept = templates.and_then(|templates| kept(templates.usage(), templates.folder()));
    let mut finding = of_machines(QEMU, vmm, parts);
    finding.found.extend(kept);
    finding
}

/// What is kept of machines, if anything is.
fn kept((count, bytes): (usize, u64), folder: &Path) -> Option<String> {
    (count > 0).then(|| format!("; kept machines: {count} with {} MiB in {}", bytes >> 20, folder.display()))
}

/// Whether Firecracker boots the guest's kernel is tried, where there is one.
async fn firecracker() -> Finding {
    if std::env::var_os(FIRECRACKER_VARIABLE).is_none() && firecracker::program().is_err() {
        let found =
            format!("no Firecracker: {FIRECRACKER_VARIABLE} names none, and there is none on the PATH");
        return finding(FIRECRACKER, Status::Skipped, found)
            .action("docs/firecracker.md says what it needs; --backend qemu runs where it does not");
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

async fn boots(program: &Path, parts: &Parts) -> Result<(), String> {
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

async fn kata() -> Finding {
    let named = |variable: &str| std::env::var_os(variable).filter(|value| !value.is_empty());
    let text = |value: OsString| value.to_string_lossy().into_owned();
    let config = glasshouse_kata::Config {
        address: named("CONTAINERD_ADDRESS").map_or_else(|| DEFAULT_ADDRESS.into(), PathBuf::from),
        namespace: named("CONTAINERD_NAMESPACE").map_or_else(|| DEFAULT_NAMESPACE.to_owned(), text),
        runtime: named("GLASSHOUSE_RUNTIME").map_or_else(|| DEFAULT_RUNTIME.to_owned(), text),
        image: String::new(),
        binds: Vec::new(),
    };
    if !config.address.exists() {
        let found = format!("no containerd: nobody listens at {}", config.address.display());
        return finding(KATA, Status::Skipped, found).action(
            "apt-get install --no-install-recommends containerd runc, and start it; CONTAINERD_ADDRESS names another socket",
        );
    }
    let ready = glasshouse_kata::ready(&config).await;
    let runc = match ready.is_err() && config.runtime != RUNC {
        true => {
            glasshouse_kata::ready(&glasshouse_kata::Config { runtime: RUNC.to_owned(), ..config.clone() })
                .await
        }
        false => Err(String::new()),
    };
    of_containers(&config.runtime, ready, runc.is_ok())
}

/// What containerd's version is, or what is missing, and whether there is another runtime.
fn of_containers(runtime: &str, ready: Result<String, String>, has_runc: bool) -> Finding {
    match ready {
        Ok(version) if runtime.contains("kata") => {
            let found = format!("containerd {version}, runtime {runtime}, which was tried by hand only");
            finding(KATA, Status::Ok, found)
        }
        Ok(version) => finding(
            KATA,
            Status::Ok,
            format!("containerd {version}, runtime {runtime}: containers on this kernel, not machines"),
        ),
        Err(missing) => finding(KATA, Status::Warn, missing).action(match has_runc {
            true => "--runtime io.containerd.runc.v2 works here, for containers on this kernel; docs/kata.md says more",
            false => "docs/kata.md says what it needs",
        }),
    }
}

fn finding(name: &'static str, status: Status, found: impl Into<String>) -> Finding {
    let needed_for = match name {
        PROCESS => "running a command at all, unless another backend does (--backend process, the default)",
        QEMU => "running a command in a virtual machine and watching it from inside (--backend qemu)",
        FIRECRACKER => "the same in a microVM of Firecracker (--backend firecracker)",
        _ => "running a command in a container of containerd (--backend kata)",
    };
    Finding::new(Group::Backends, name, status, found, needed_for)
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

    #[test]
    fn kept_machines_are_counted() {
        assert_eq!(kept((0, 0), Path::new("/cache")), None);
        let found = kept((2, 170 << 20), Path::new("/cache"));
        assert_eq!(found.as_deref(), Some("; kept machines: 2 with 170 MiB in /cache"));
    }

    #[test]
    fn containers_of_another_runtime_are_not_called_machines() {
        let of = |runtime, ready: Result<&str, &str>, has_runc| {
            of_containers(runtime, ready.map(str::to_owned).map_err(str::to_owned), has_runc)
        };
        assert!(of(DEFAULT_RUNTIME, Ok("1.6"), false).found.contains("by hand only"));
        assert!(of(RUNC, Ok("1.6"), false).found.contains("not machines"));
        let lacks = of(DEFAULT_RUNTIME, Err("no shim"), true);
        assert_eq!((lacks.status, lacks.found.as_str()), (Status::Warn, "no shim"));
        assert!(lacks.action.unwrap().contains(RUNC));
        assert!(!of(DEFAULT_RUNTIME, Err("x"), false).action.unwrap().contains(RUNC));
    }
}
