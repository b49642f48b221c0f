//! The conformance suite: what [`glasshouse_execution::backend`] promises, checked on any backend.
//!
//! ```ignore
//! glasshouse_backends::conformance!(process, super::ProcessFactory);
//! ```
//! makes a module `process` with one test per promise. A [`Factory`] turns a [`Scenario`] into a backend and the spec
//! that plays it; what a host cannot run it refuses with a reason, which is printed as `SKIPPED` past the test harness's
//! capture. Every check has a deadline instead of a sleep.

#![allow(clippy::panic, reason = "a check fails by panicking, wherever its test lives")]

mod checks;

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use glasshouse_execution::backend::ExecutionBackend;
use glasshouse_execution::spec::ExecutionSpec;
use glasshouse_schema::ids::{ExecutionId, NodeId};

pub use checks::*;

/// No check takes this long, on the slowest host.
const DEADLINE: Duration = Duration::from_secs(60);

/// What a command is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scenario {
    /// Exit with this code.
    Exits(i32),
    /// Send itself this signal.
    DiesOf(i32),
    /// Run until it is killed; SIGTERM kills it.
    RunsUntilKilled,
    /// Print `stdout` and `stderr` and exit with 0.
    Prints {
        /// On standard output.
        stdout: Vec<u8>,
        /// On standard error.
        stderr: Vec<u8>,
    },
    /// A program that does not exist.
    NotFound,
    /// A file that is no program.
    CannotExecute,
    /// Make this file.
    Touches(PathBuf),
    /// Exit with 0 and leave a process behind that runs for ever.
    LeavesAProcess,
    /// Exit with 0 and leave a process behind that prints this a little later.
    PrintsLater(Vec<u8>),
}

/// A backend with what it is to run.
pub struct Subject {
    /// One execution's backend.
    pub backend: Arc<dyn ExecutionBackend>,
    /// Its spec; streams are captured.
    pub spec: ExecutionSpec,
    /// Gives what of the execution is left on the host (cgroups, processes, files), in words.
    pub left: Box<dyn Fn() -> Vec<String> + Send + Sync>,
}

/// Makes backends of one kind.
pub trait Factory: Sync {
    /// A backend that plays the scenario; `Err` says why this host cannot.
    fn make(&self, scenario: &Scenario) -> Result<Subject, String>;
}

/// A spec that runs `argv` with its output captured, unobserved, under a fresh id.
pub fn spec<Argument: Into<std::ffi::OsString>>(argv: impl IntoIterator<Item = Argument>) -> ExecutionSpec {
    let node = match NodeId::new("conformance") {
        Ok(node) => node,
        Err(error) => panic!("{error}"),
    };
    let argv = argv.into_iter().map(Into::into).collect();
    ExecutionSpec { redaction_key: [7; 32], ..ExecutionSpec::new(fresh_id(), node, argv) }
}

/// An id that no other test of this host has.
pub fn fresh_id() -> ExecutionId {
    static COUNTER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut random = [0; 10];
    random[..4].copy_from_slice(&COUNTER.fetch_add(1, std::sync::atomic::Ordering::Relaxed).to_be_bytes());
    random[4..8].copy_from_slice(&std::process::id().to_be_bytes());
    random[8..].copy_from_slice(&since.subsec_nanos().to_be_bytes()[2..]);
    ExecutionId::from_parts(since.as_millis() as u64, random)
}

/// Says past the harness's capture that a check did not run.
pub fn report_skipped(check: &str, reason: &str) {
    // Nothing is to be done about a standard error that is gone.
    let _ = writeln!(std::io::stderr(), "SKIPPED {check}: {reason}");
}

/// Makes one test per promise, in a module of this name. The caller's crate needs `tokio` with `macros`, `rt-multi-thread`.
#[macro_export]
macro_rules! conformance {
    ($name:ident, $factory:expr) => {
        mod $name {
            $crate::conformance!(@tests $factory;
                exit_codes_are_kept
                signal_deaths_are_told
                a_running_command_can_be_killed
                a_signal_before_the_start_is_kept
                a_program_that_does_not_exist_is_not_found
                a_file_that_is_no_program_cannot_be_executed
                nothing_runs_before_release
                the_command_runs_after_release
                output_is_captured_and_hashed
                large_output_is_read_to_its_end
                cleanup_is_idempotent
                cleanup_works_after_any_step
                a_dropped_wait_leaves_kill_and_cleanup_working
                steps_before_the_start_are_errors
                what_the_command_leaves_behind_is_killed
                what_the_command_leaves_behind_is_waited_for_on_request
                kill_after_the_end_is_no_error
                executions_do_not_hold_each_other_up
            );
        }
    };
    (@tests $factory:expr; $($check:ident)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $check() {
                $crate::conformance::$check(&$factory).await;
            }
        )*
    };
}
