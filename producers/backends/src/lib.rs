//! The backends: what runs a command, and the conformance suite that holds all of them to one contract.
//!
//! - [`process`]: a process of this node in its own cgroup v2 (Linux; elsewhere it says so).
//! - [`fake`]: scripted, for tests of everything above a backend.
//! - [`mod@conformance`]: `conformance!`, run on both here and usable by any other crate's backend.
//! - [`signals`]: forwards the caller's signals to the command while it runs.

#![cfg_attr(
    test,
    allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")
)]

pub mod conformance;
pub mod fake;
#[cfg(target_os = "linux")]
mod fd;
#[cfg(target_os = "linux")]
pub mod process;
#[cfg(not(target_os = "linux"))]
#[path = "process_stub.rs"]
pub mod process;
#[cfg(target_os = "linux")]
mod runner;
#[cfg(target_os = "linux")]
pub mod signals;
#[cfg(not(target_os = "linux"))]
#[path = "signals_stub.rs"]
pub mod signals;

pub use fake::FakeBackend;
#[cfg(target_os = "linux")]
pub use process::LentStreams;
pub use process::ProcessBackend;
#[cfg(target_os = "linux")]
pub use runner::Runner;
