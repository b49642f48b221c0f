//! What the engine adds to a spawn with profiling disabled: `cargo bench -p glasshouse-backends`.
//!
//! Prints medians of interleaved rounds, so that what else the host does hits all of them alike.

use std::process::ExitCode;

#[cfg(target_os = "linux")]
fn main() -> ExitCode {
    match linux::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn main() -> ExitCode {
    eprintln!("the backend `process` needs Linux");
    ExitCode::SUCCESS
}

#[cfg(target_os = "linux")]
mod linux {
    use std::error::Error;
    use std::process::{Command, Stdio};
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use glasshouse_backends::ProcessBackend;
    use glasshouse_backends::conformance::spec;
    use glasshouse_backends::fake::{FakeBackend, RecordingSink, Script};
    use glasshouse_execution::Engine;
    use glasshouse_execution::spec::StdStreams;

    const ROUNDS: usize = 301;
    const PROGRAM: &str = "/bin/true";

    pub(super) fn run() -> Result<(), Box<dyn Error>> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let one_thread = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let mut plain = Vec::new();
        let mut on_one_thread = Vec::new();
        let mut inherited = Vec::new();
        let mut captured = Vec::new();
        let mut engine_alone = Vec::new();
        for _ in 0..ROUNDS {
            let begin = Instant::now();
            Command::new(PROGRAM).stdin(Stdio::null()).status()?;
            plain.push(begin.elapsed());
            inherited.push(runtime.block_on(execute(StdStreams::Proxy))?);
            on_one_thread.push(one_thread.block_on(execute(StdStreams::Proxy))?);
            captured.push(runtime.block_on(execute(StdStreams::Capture))?);
            engine_alone.push(runtime.block_on(scripted())?);
        }
        println!("medians of {ROUNDS} interleaved rounds of {PROGRAM}, profiling disabled");
        let base = report("plain spawn and wait", &mut plain, None);
        report("engine + process, streams inherited", &mut inherited, Some(base));
        report("the same on a current-thread runtime", &mut on_one_thread, Some(base));
        report("engine + process, output captured", &mut captured, Some(base));
        report("engine alone (fake backend)", &mut engine_alone, None);
        Ok(())
    }

    async fn execute(streams: StdStreams) -> Result<Duration, Box<dyn Error>> {
        let mut spec = spec([PROGRAM]);
        spec.streams = streams;
        let begin = Instant::now();
        let engine = Engine::new(Arc::new(ProcessBackend::new()), Arc::new(RecordingSink::new()));
        let report = engine.run(spec, None).await;
        let took = begin.elapsed();
        match report.outcome.exit_code {
            0 => Ok(took),
            _ => Err(format!("{:?}", report.outcome).into()),
        }
    }

    async fn scripted() -> Result<Duration, Box<dyn Error>> {
        let spec = spec([PROGRAM]);
        let begin = Instant::now();
        let engine =
            Engine::new(Arc::new(FakeBackend::new(Script::default())), Arc::new(RecordingSink::new()));
        engine.run(spec, None).await;
        Ok(begin.elapsed())
    }

    fn report(name: &str, times: &mut [Duration], base: Option<Duration>) -> Duration {
        times.sort_unstable();
        let median = times[times.len() / 2];
        match base {
            None => println!("{name:<40} {median:>10.1?}"),
            Some(base) => println!("{name:<40} {median:>10.1?}  +{:.1?}", median.saturating_sub(base)),
        }
        median
    }
}
