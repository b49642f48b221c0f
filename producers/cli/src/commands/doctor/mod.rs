//! `doctor`: what this machine can do, found out by doing it, and what to do about the rest.
//!
//! A file that exists or a version that is new enough proves little, so what can be tried is tried: programs are loaded
//! and attached, a cgroup is made and emptied, a guest is booted. Everything that is made is removed again.

mod bus;
#[cfg(target_os = "linux")]
mod linux;
mod report;

use std::process::ExitCode;

use crate::args::DoctorArgs;
use report::{Finding, Report};

pub(crate) async fn main(args: DoctorArgs) -> anyhow::Result<ExitCode> {
    #[cfg(target_os = "linux")]
    if let Some(step) = linux::step::requested() {
        return Ok(linux::step::run(step));
    }
    let mut findings = machine().await;
    findings.extend(bus::findings(&args.bus).await);
    let report = Report::new(system(), findings);
    match args.json {
        true => super::print_json(&report)?,
        false => super::print(report.text())?,
    }
    Ok(ExitCode::from(report.exit_code()))
}

#[cfg(target_os = "linux")]
async fn machine() -> Vec<Finding> {
    linux::findings().await
}

#[cfg(not(target_os = "linux"))]
async fn machine() -> Vec<Finding> {
    use report::{Group, Status};
    let name = std::env::consts::OS;
    vec![
        Finding::new(
            Group::HostProfiling,
            "operating system",
            Status::Fail,
            format!("{name}: the probe needs Linux"),
            "watching a command from the kernel",
        )
        .action(
            "use this machine as a client (receipt, verdict, policy and nats work here), and run watched commands on a \
             Linux node",
        ),
    ]
}

#[cfg(target_os = "linux")]
fn system() -> String {
    format!("Linux {} {}", linux::kernel::release(), std::env::consts::ARCH)
}

#[cfg(not(target_os = "linux"))]
fn system() -> String {
    format!("{} {}", std::env::consts::OS, std::env::consts::ARCH)
}
