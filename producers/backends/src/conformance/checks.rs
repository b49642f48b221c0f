//! The promises, one function each.

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;

use glasshouse_execution::backend::{BackendError, ExitReport, ExitStatus, OutputReport, StopSignal};
use glasshouse_schema::ids::Digest;

use super::{DEADLINE, Factory, Scenario, Subject, fresh_id, report_skipped};

type Result<T> = std::result::Result<T, BackendError>;

/// Runs a check in time, or says why this host cannot.
async fn with<F: Future<Output = ()>>(
    check: &str,
    factory: &dyn Factory,
    scenario: Scenario,
    body: impl FnOnce(Subject) -> F,
) {
    // Some print megabytes.
    let check = format!("{check} ({:.60})", format!("{scenario:?}"));
    match factory.make(&scenario) {
        Err(reason) => report_skipped(&check, &reason),
        Ok(subject) => assert!(
            tokio::time::timeout(DEADLINE, body(subject)).await.is_ok(),
            "{check} did not end within {DEADLINE:?}"
        ),
    }
}

fn fine<T>(what: &str, result: Result<T>) -> T {
    result.unwrap_or_else(|error| panic!("{what}: {error}"))
}

impl Subject {
    /// From nothing to a running command.
    async fn run(&self) -> Result<()> {
        self.backend.prepare(&self.spec).await?;
        self.backend.start(&self.spec).await?;
        self.backend.release().await
    }

    async fn to_end(&self) -> (ExitReport, OutputReport) {
        fine("running", self.run().await);
        let exit = fine("waiting", self.backend.wait().await);
        (exit, fine("draining", self.backend.drain(self.spec.wait_for_descendants).await))
    }

    async fn clean(&self) {
        assert_eq!(self.backend.cleanup().await, Vec::<String>::new(), "cleanup left something");
        assert_eq!((self.left)(), Vec::<String>::new(), "something is left after cleanup");
    }
}

/// The exit code is the command's own.
pub async fn exit_codes_are_kept(factory: &dyn Factory) {
    for code in [0, 1, 125, 255] {
        with("exit_codes_are_kept", factory, Scenario::Exits(code), async |subject| {
            assert_eq!(subject.to_end().await.0.status, ExitStatus::Code(code));
            subject.clean().await;
        })
        .await;
    }
}

/// A death by signal is no exit code.
pub async fn signal_deaths_are_told(factory: &dyn Factory) {
    for signal in [9, 15] {
        with("signal_deaths_are_told", factory, Scenario::DiesOf(signal), async |subject| {
            assert_eq!(subject.to_end().await.0.status, ExitStatus::Signal(signal));
            subject.clean().await;
        })
        .await;
    }
}

/// `kill` ends a command that another task waits for.
pub async fn a_running_command_can_be_killed(factory: &dyn Factory) {
    for (stop, signal) in [(StopSignal::Kill, 9), (StopSignal::Terminate, 15), (StopSignal::Number(15), 15)] {
        with("a_running_command_can_be_killed", factory, Scenario::RunsUntilKilled, async |subject| {
            fine("running", subject.run().await);
            let backend = Arc::clone(&subject.backend);
            let waiting = tokio::spawn(async move { backend.wait().await });
            fine("killing", subject.backend.kill(stop).await);
            let exit = fine("waiting", waiting.await.unwrap_or_else(|error| panic!("{error}")));
            assert_eq!(exit.status, ExitStatus::Signal(signal));
            fine("draining", subject.backend.drain(false).await);
            subject.clean().await;
        })
        .await;
    }
}

/// A caller that is interrupted while the command is being made does not run it.
pub async fn a_signal_before_the_start_is_kept(factory: &dyn Factory) {
    with("a_signal_before_the_start_is_kept", factory, Scenario::RunsUntilKilled, async |subject| {
        fine("preparing", subject.backend.prepare(&subject.spec).await);
        fine("killing", subject.backend.kill(StopSignal::Number(2)).await);
        fine("starting", subject.backend.start(&subject.spec).await);
        fine("releasing", subject.backend.release().await);
        assert_eq!(fine("waiting", subject.backend.wait().await).status, ExitStatus::Signal(2));
        fine("draining", subject.backend.drain(false).await);
        subject.clean().await;
    })
    .await;
}

/// 127.
pub async fn a_program_that_does_not_exist_is_not_found(factory: &dyn Factory) {
    with("a_program_that_does_not_exist_is_not_found", factory, Scenario::NotFound, async |subject| {
        match subject.run().await {
            Err(error @ BackendError::NotFound { .. }) => assert_eq!(error.exit_code(), 127),
            other => panic!("expected not found, got {other:?}"),
        }
        subject.clean().await;
    })
    .await;
}

/// 126.
pub async fn a_file_that_is_no_program_cannot_be_executed(factory: &dyn Factory) {
    with("a_file_that_is_no_program_cannot_be_executed", factory, Scenario::CannotExecute, async |subject| {
        match subject.run().await {
            Err(error @ BackendError::CannotExecute { .. }) => assert_eq!(error.exit_code(), 126),
            other => panic!("expected cannot execute, got {other:?}"),
        }
        subject.clean().await;
    })
    .await;
}

fn unused_path() -> PathBuf {
    std::env::temp_dir().join(format!("glasshouse-conformance-{}", fresh_id()))
}

/// A command that is started, never released and cleaned up has done nothing.
pub async fn nothing_runs_before_release(factory: &dyn Factory) {
    let path = unused_path();
    with("nothing_runs_before_release", factory, Scenario::Touches(path.clone()), async |subject| {
        fine("preparing", subject.backend.prepare(&subject.spec).await);
        fine("starting", subject.backend.start(&subject.spec).await);
        assert!(!path.exists(), "the command ran before it was released");
        subject.clean().await;
        assert!(!path.exists(), "the command ran though it was never released");
    })
    .await;
}

/// The same command does it once it is released.
pub async fn the_command_runs_after_release(factory: &dyn Factory) {
    let path = unused_path();
    with("the_command_runs_after_release", factory, Scenario::Touches(path.clone()), async |subject| {
        assert_eq!(subject.to_end().await.0.status, ExitStatus::Code(0));
        assert!(path.exists(), "the command was released and did nothing");
        let _ = std::fs::remove_file(&path);
        subject.clean().await;
    })
    .await;
}

/// What is printed is kept, apart, and hashed.
pub async fn output_is_captured_and_hashed(factory: &dyn Factory) {
    let (stdout, stderr) = (b"out\x00\xff\n".to_vec(), b"err".to_vec());
    let scenario = Scenario::Prints { stdout: stdout.clone(), stderr: stderr.clone() };
    with("output_is_captured_and_hashed", factory, scenario, async |subject| {
        let (_, output) = subject.to_end().await;
        assert_eq!(
            (output.stdout_hash, output.stderr_hash),
            (Some(Digest::of(&stdout)), Some(Digest::of(&stderr)))
        );
        assert_eq!((output.stdout, output.stderr), (stdout, stderr));
        subject.clean().await;
    })
    .await;
}

/// More than a pipe holds, read to its end though the writer is gone.
pub async fn large_output_is_read_to_its_end(factory: &dyn Factory) {
    let stdout = b"glasshouse\n".repeat(200_000);
    let scenario = Scenario::Prints { stdout: stdout.clone(), stderr: Vec::new() };
    with("large_output_is_read_to_its_end", factory, scenario, async |subject| {
        let (exit, output) = subject.to_end().await;
        assert_eq!(exit.status, ExitStatus::Code(0));
        assert_eq!(output.stdout_hash, Some(Digest::of(&stdout)));
        assert_eq!(output.stderr_hash, Some(Digest::of(b"")));
        subject.clean().await;
    })
    .await;
}

/// Twice is as good as once.
pub async fn cleanup_is_idempotent(factory: &dyn Factory) {
    with("cleanup_is_idempotent", factory, Scenario::Exits(0), async |subject| {
        subject.to_end().await;
        subject.clean().await;
        subject.clean().await;
    })
    .await;
}

/// Whatever failed before, cleanup is all that has to come.
pub async fn cleanup_works_after_any_step(factory: &dyn Factory) {
    for steps in 0..=4 {
        with("cleanup_works_after_any_step", factory, Scenario::RunsUntilKilled, async |subject| {
            let (backend, spec) = (&subject.backend, &subject.spec);
            if steps >= 1 {
                fine("preparing", backend.prepare(spec).await);
            }
            if steps >= 2 {
                fine("starting", backend.start(spec).await);
            }
            if steps >= 3 {
                fine("releasing", backend.release().await);
            }
            if steps >= 4 {
                fine("killing", backend.kill(StopSignal::Kill).await);
                fine("waiting", backend.wait().await);
            }
            subject.clean().await;
        })
        .await;
    }
}

/// A future that is dropped breaks nothing.
pub async fn a_dropped_wait_leaves_kill_and_cleanup_working(factory: &dyn Factory) {
    with(
        "a_dropped_wait_leaves_kill_and_cleanup_working",
        factory,
        Scenario::RunsUntilKilled,
        async |subject| {
            fine("running", subject.run().await);
            {
                let wait = std::pin::pin!(subject.backend.wait());
                assert!(futures_pending(wait).await, "the command ended before it was killed");
            }
            fine("killing", subject.backend.kill(StopSignal::Kill).await);
            subject.clean().await;
        },
    )
    .await;
}

/// Polls once; whether the future waits.
async fn futures_pending<T>(mut future: std::pin::Pin<&mut impl Future<Output = T>>) -> bool {
    std::future::poll_fn(|context| std::task::Poll::Ready(future.as_mut().poll(context).is_pending())).await
}

/// Out of order is an error, neither a panic nor a wait for ever.
pub async fn steps_before_the_start_are_errors(factory: &dyn Factory) {
    with("steps_before_the_start_are_errors", factory, Scenario::Exits(0), async |subject| {
        assert!(subject.backend.release().await.is_err(), "release before start");
        assert!(subject.backend.wait().await.is_err(), "wait before start");
        assert!(subject.backend.drain(false).await.is_err(), "drain before start");
        subject.clean().await;
    })
    .await;
}

/// The root's end is the execution's.
pub async fn what_the_command_leaves_behind_is_killed(factory: &dyn Factory) {
    with("what_the_command_leaves_behind_is_killed", factory, Scenario::LeavesAProcess, async |subject| {
        let (exit, _) = subject.to_end().await;
        assert_eq!(exit.status, ExitStatus::Code(0));
        subject.clean().await;
    })
    .await;
}

/// With `wait_for_descendants` it is not.
pub async fn what_the_command_leaves_behind_is_waited_for_on_request(factory: &dyn Factory) {
    let text = b"late\n".to_vec();
    let scenario = Scenario::PrintsLater(text.clone());
    with(
        "what_the_command_leaves_behind_is_waited_for_on_request",
        factory,
        scenario,
        async |mut subject| {
            subject.spec.wait_for_descendants = true;
            let (exit, output) = subject.to_end().await;
            assert_eq!((exit.status, output.stdout), (ExitStatus::Code(0), text));
            subject.clean().await;
        },
    )
    .await;
}

/// It is too late, and nobody else's process is hit.
pub async fn kill_after_the_end_is_no_error(factory: &dyn Factory) {
    with("kill_after_the_end_is_no_error", factory, Scenario::Exits(0), async |subject| {
        subject.to_end().await;
        for stop in [StopSignal::Kill, StopSignal::Terminate] {
            fine("killing", subject.backend.kill(stop).await);
        }
        subject.clean().await;
        fine("killing", subject.backend.kill(StopSignal::Kill).await);
    })
    .await;
}

/// One that is held keeps nothing of another's open: all end while the first is still at its barrier.
pub async fn executions_do_not_hold_each_other_up(factory: &dyn Factory) {
    let name = "executions_do_not_hold_each_other_up";
    let scenario = Scenario::Prints { stdout: b"x".to_vec(), stderr: Vec::new() };
    with(name, factory, scenario.clone(), async |first| {
        fine("preparing", first.backend.prepare(&first.spec).await);
        fine("starting", first.backend.start(&first.spec).await);
        // Started after it, so that a descriptor of either could be in the other.
        let mut held = vec![first];
        for _ in 0..3 {
            let Ok(subject) = factory.make(&scenario) else { break };
            fine("preparing", subject.backend.prepare(&subject.spec).await);
            fine("starting", subject.backend.start(&subject.spec).await);
            held.push(subject);
        }
        for subject in &held {
            fine("releasing", subject.backend.release().await);
            assert_eq!(fine("waiting", subject.backend.wait().await).status, ExitStatus::Code(0));
            // Waiting for descendants means waiting for the end of the output too.
            assert_eq!(fine("draining", subject.backend.drain(true).await).stdout, b"x");
        }
        for subject in &held {
            subject.clean().await;
        }
    })
    .await;
}
