//! Firecracker by its REST API on a Unix socket (src/firecracker/swagger/firecracker.yaml of its source, version 1.17).
//!
//! ```text
//!   Machine ── check ──► Client ── PUT /machine-config /boot-source /drives … ──► InstanceStart
//!                          │                                                        │
//!                          └── pause, PUT /snapshot/create ──► Snapshot ── PUT /snapshot/load ──► a clone
//! ```
//!
//! - [`Machine::check`] names everything that is wrong with a machine at once, before any process starts.
//! - [`Jailer`] makes the arguments of Firecracker's jailer: a user, a root and a cgroup of its own.
//! - A guest speaks first: it connects to port N of CID 2, and that arrives at the Unix socket [`guest_link`] names.
//!
//! Nothing here knows of executions. The contract tests hold every request against the published rules; what ran against
//! a real Firecracker docs/firecracker.md says.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test fails by panicking"))]

pub mod api;
mod client;
mod jailer;
mod machine;
pub mod metrics;
mod snapshot;

pub use client::{Client, ClientError};
pub use jailer::{Jailer, JailerError};
pub use machine::{ConfigErrors, Machine, guest_link};
pub use snapshot::{GuestClock, Snapshot, SnapshotError};
