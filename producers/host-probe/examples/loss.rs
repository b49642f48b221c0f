//! Whether anything is lost, or lost without a count: at the highest event rate, with the probe starved and stopped.
//!
//! `cargo run --release -p glasshouse-host-probe --example loss -- [--runs 20] [--seconds 60] [--seed S] [--lossless]
//! [--scenario NAME] [--json]`
//!
//! A run goes through every scenario once, with a seed of its own; each lasts `--seconds`, `watch-1000` as long as it
//! takes. So 20 runs of 60 s take 100 minutes. Exit status 1 when anything failed; a line shows the seed to repeat it
//! with: `--runs 1 --seed S --scenario NAME`. Needs root.
//!
//! - `writers`: 2 to 4 executions of 2 to 3 processes each create, write, rename and delete files at full speed
//! - `forks`: they fork, and execute a tiny program
//! - `mixed`: half of them this, half of them that
//! - `hogs`: as `mixed`, beside four processes that burn CPU
//! - `stopped`: as `mixed`, the process that holds the probe stopped (SIGSTOP) for 50 to 500 ms at a time
//! - `watch-1000`: 1,000 executions watched at once, each of a few commands
//!
//! Of each execution every class has to add up, and agree with what its processes counted themselves; every frame
//! decodes and follows the one before. Process events are never lost but while the probe is stopped; with `--lossless`
//! nothing is.

#[cfg(target_os = "linux")]
#[path = "../tests/support/held.rs"]
mod held;
#[cfg(target_os = "linux")]
#[path = "../tests/support/loss/mod.rs"]
mod loss;

use std::process::ExitCode;

#[cfg(not(target_os = "linux"))]
fn main() -> ExitCode {
    eprintln!("skipped: the host probe needs Linux");
    ExitCode::SUCCESS
}

#[cfg(target_os = "linux")]
fn main() -> ExitCode {
    match loss::role().and_then(|was_another| if was_another { Ok(true) } else { linux::run() }) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(2)
        }
    }
}

#[cfg(target_os = "linux")]
mod linux {
    use std::error::Error;
    use std::time::Duration;

    use super::loss::{LOSSLESS, Run, Scenario, cannot_run, run as run_one};

    const MANY: usize = 1000;

    struct Options {
        runs: u64,
        seconds: f64,
        seed: u64,
        lossless: bool,
        only: Option<Scenario>,
        json: bool,
    }

    fn options() -> Result<Options, String> {
        let mut arguments = std::env::args().skip(1);
        let mut options =
            Options { runs: 20, seconds: 60.0, seed: 1, lossless: false, only: None, json: false };
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or(format!("{argument} wants a value"));
            let number = |_| format!("{argument} wants a number");
            match argument.as_str() {
                "--runs" => options.runs = value()?.parse().map_err(number)?,
                "--seconds" => {
                    options.seconds = value()?.parse().map_err(|_| "--seconds wants a number")?;
                }
                "--seed" => options.seed = value()?.parse().map_err(number)?,
                "--lossless" => options.lossless = true,
                "--scenario" => {
                    let name = value()?;
                    let found = Scenario::ALL.into_iter().find(|scenario| scenario.name() == name);
                    options.only = Some(found.ok_or_else(|| {
                        format!("--scenario wants one of {}", Scenario::ALL.map(Scenario::name).join(", "))
                    })?);
                }
                "--json" => options.json = true,
                other => return Err(format!("unknown argument {other}")),
            }
        }
        if options.lossless && !LOSSLESS {
            return Err("--lossless: this build's probe has no such mode".to_owned());
        }
        Ok(options)
    }

    /// Whether all was well.
    pub(super) fn run() -> Result<bool, Box<dyn Error>> {
        let options = options()?;
        if let Some(reason) = cannot_run() {
            eprintln!("skipped: {reason}");
            return Ok(true);
        }
        let (mut ran, mut failed) = (0, 0);
        for index in 0..options.runs {
            for scenario in Scenario::ALL {
                if options.only.is_some_and(|only| only != scenario) {
                    continue;
                }
                let outcome = run_one(&Run {
                    scenario,
                    seed: options.seed.wrapping_add(index),
                    lasts: Duration::from_secs_f64(options.seconds),
                    lossless: options.lossless,
                    many: MANY,
                })?;
                ran += 1;
                failed += u64::from(!outcome.problems.is_empty());
                match options.json {
                    true => println!("{}", serde_json::to_string(&outcome)?),
                    false => println!("run {:<2} {outcome}", index + 1),
                }
            }
        }
        if !options.json {
            println!("{ran} scenarios run, {failed} failed");
        }
        Ok(failed == 0)
    }
}
