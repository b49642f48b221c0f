//! How these benches begin: the same program is the bench, the workload that it measures, and what holds that back.

use std::process::ExitCode;

/// Does what this process was started for; `run` is the bench itself.
#[cfg(target_os = "linux")]
pub(super) fn main(run: impl FnOnce() -> Result<(), Box<dyn std::error::Error>>) -> ExitCode {
    let result = super::held::role().map_err(Into::into).and_then(|()| super::work::role());
    match result.and_then(|was_work| if was_work { Ok(()) } else { run() }) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(not(target_os = "linux"))]
pub(super) fn main() -> ExitCode {
    eprintln!("skipped: the host probe needs Linux");
    ExitCode::SUCCESS
}
