//! The conformance suite of backends and the tests of machines, on real ones of QEMU that share memory with their host. What this host
//! cannot run is printed as skipped, with the reason.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "machines.rs"]
mod machines;

glasshouse_backends::conformance!(qemu_by_shared_memory, super::machines::support::InMachine);
