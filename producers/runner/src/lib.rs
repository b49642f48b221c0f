//! What everything that runs executions shares, a single run and a node agent alike: where their events go, the receipt that
//! is made in this process, and what a run left on disk.
//!
//! - [`bus`]: claims, and one execution's events in order, by way of a spool while the bus does not take them.
//! - [`files`]: files that executions are given, and those that are taken from them, on this machine.
//! - [`gate`]: policies that an execution must pass before it runs.
//! - [`sink`]: the fold in this process, the bus, or both.
//! - [`spool`]: the directories of what could not be published.
//! - [`local`]: what is said over a node agent's Unix socket.
//! - [`receipt_file`]: the file that a run writes its receipt to.

#![cfg_attr(
    test,
    allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")
)]

pub mod bus;
pub mod files;
pub mod gate;
#[cfg(target_os = "linux")]
pub mod local;
pub mod receipt_file;
pub mod sink;
pub mod spool;

use std::io;

use glasshouse_schema::ids::ExecutionId;

/// Random bytes of the kernel.
pub fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)
        .map_err(|error| io::Error::other(format!("the kernel gave no random bytes: {error}")))?;
    Ok(bytes)
}

/// A new id, of now.
pub fn new_execution_id() -> io::Result<ExecutionId> {
    let unix_ms = (glasshouse_execution::engine::system_unix_ns() / 1_000_000).unsigned_abs();
    Ok(ExecutionId::from_parts(unix_ms, random()?))
}
