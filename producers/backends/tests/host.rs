//! The process backend against a real host: terminals, signals, namespaces, missing cgroups, leaks.
//!
//! Has a harness of its own, because it runs itself: as `host run …` it is a minimal runner around engine and backend,
//! which the checks start under a pty, in namespaces, and send signals to. What the host cannot do is printed as
//! skipped with the reason.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[cfg(not(target_os = "linux"))]
fn main() {
    println!("SKIPPED all: the backend `process` needs Linux");
}

#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    match arguments.next() {
        Some(first) if first == "run" => runner::run(arguments),
        _ => checks::run(),
    }
}

#[cfg(target_os = "linux")]
#[path = "host/runner.rs"]
mod runner;

#[cfg(target_os = "linux")]
#[path = "host/checks.rs"]
mod checks;

#[cfg(target_os = "linux")]
#[path = "host/terminal.rs"]
mod terminal;
