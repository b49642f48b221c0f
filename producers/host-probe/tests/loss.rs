//! A second of each scenario of `examples/loss.rs`: nothing is lost without a count.

#[cfg(target_os = "linux")]
#[path = "support/held.rs"]
mod held;
#[cfg(target_os = "linux")]
#[path = "support/loss/mod.rs"]
mod loss;

use std::process::ExitCode;

#[cfg(not(target_os = "linux"))]
fn main() -> ExitCode {
    eprintln!("skipped: the host probe needs Linux");
    ExitCode::SUCCESS
}

#[cfg(target_os = "linux")]
fn main() -> ExitCode {
    use std::time::Duration;

    use libtest_mimic::{Arguments, Failed, Trial};

    use crate::loss::{LOSSLESS, Run, Scenario};

    // This binary is the watched processes and the one that holds the probe, too.
    match loss::role() {
        Ok(false) => {}
        Ok(true) => return ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    }
    let mut arguments = Arguments::from_args();
    // Each of them wants the whole host.
    arguments.test_threads = Some(1);
    let modes = if LOSSLESS { [false, true].as_slice() } else { &[false] };
    let trial = |scenario: Scenario, lossless: bool| {
        let name = format!("{}{}", scenario.name(), if lossless { "_lossless" } else { "" });
        Trial::test(name, move || {
            if let Some(reason) = loss::cannot_run() {
                eprintln!("skipped: {reason}");
                return Ok(());
            }
            let run = Run { scenario, seed: 1, lasts: Duration::from_secs(1), lossless, many: 100 };
            let outcome = loss::run(&run).map_err(|error| error.to_string())?;
            eprintln!("{outcome}");
            if outcome.problems.is_empty() { Ok(()) } else { Err(Failed::from(outcome.to_string())) }
        })
    };
    let both = modes.iter().flat_map(|lossless| Scenario::ALL.map(|scenario| trial(scenario, *lossless)));
    libtest_mimic::run(&arguments, both.collect()).exit_code()
}
