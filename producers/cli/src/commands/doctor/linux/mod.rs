//! What is found out on Linux.

mod backends;
mod bpf;
mod cgroup;
#[cfg(target_arch = "x86_64")]
mod guest;
pub(super) mod kernel;
mod kvm;
mod privileges;
mod qemu;
mod sandbox;
pub(super) mod step;

use super::report::Finding;

pub(super) async fn findings() -> Vec<Finding> {
    let release = kernel::release();
    let privileges = privileges::Privileges::of_this_process();
    let mut findings = vec![kernel::finding(&release), kernel::btf(), privileges.finding()];
    findings.push(privileges::limits(&privileges, &release));
    findings.extend(bpf::findings(&privileges).await);
    let cgroups = tokio::task::spawn_blocking(cgroup::findings).await;
    findings.extend(cgroups.unwrap_or_default());
    findings.extend(sandbox::findings());
    let guest = kvm::finding().await;
    let stock_kernel = qemu::finding(guest.status).await;
    findings.extend([guest, stock_kernel]);
    findings.extend(backends::findings().await);
    findings
}

/// A file of the kernel's, trimmed.
fn read(path: &str) -> Option<String> {
    std::fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}
