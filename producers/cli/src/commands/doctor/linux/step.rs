//! What `doctor` does in a child of itself: steps that may hang, or that need a process to be put somewhere.

use std::ffi::OsString;
use std::io::Read as _;
use std::process::{Command, ExitCode};
use std::time::Duration;

const VARIABLE: &str = "GLASSHOUSE_DOCTOR_STEP";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Step {
    /// Boots the tiny guest and tells on standard output how far it got.
    Guest,
    /// Does nothing until standard input ends.
    Wait,
}

impl Step {
    const ALL: [Self; 2] = [Self::Guest, Self::Wait];

    fn as_str(self) -> &'static str {
        match self {
            Self::Guest => "guest",
            Self::Wait => "wait",
        }
    }

    /// What tells this program to do that step only.
    pub(super) fn variable(self) -> (OsString, OsString) {
        (VARIABLE.into(), self.as_str().into())
    }

    /// This program, doing that step only. It inherits nothing that could make it do more.
    pub(super) fn command(self) -> Command {
        let mut command = Command::new("/proc/self/exe");
        command.arg("doctor").env_clear().env(VARIABLE, self.as_str());
        command
    }
}

/// Kills it if it still runs and waits for its end, but not for long: a process that is stuck in the kernel stays.
pub(super) async fn end(child: &mut tokio::process::Child) {
    let _ = child.start_kill();
    let _ = tokio::time::timeout(Duration::from_secs(1), child.wait()).await;
}

/// The step that this process is to do, if it is such a child.
pub(in super::super) fn requested() -> Option<Step> {
    let name = std::env::var_os(VARIABLE)?;
    Step::ALL.into_iter().find(|step| name == step.as_str())
}

pub(in super::super) fn run(step: Step) -> ExitCode {
    match step {
        Step::Wait => {
            let _ = std::io::stdin().read(&mut [0]);
        }
        #[cfg(target_arch = "x86_64")]
        Step::Guest => super::guest::run(),
        #[cfg(not(target_arch = "x86_64"))]
        Step::Guest => {}
    }
    ExitCode::SUCCESS
}
