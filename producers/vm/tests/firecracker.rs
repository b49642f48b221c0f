//! The conformance suite of backends and the tests of machines, on real ones of the Firecracker that `GLASSHOUSE_FIRECRACKER` names,
//! in the jail of `GLASSHOUSE_JAILER` if there is one. `scripts/firecracker.sh` runs all of it also where KVM boots no kernel.
//!
//! Where there is none it is printed as skipped and *unverified*, with the reason; with `GLASSHOUSE_CONFORMANCE=firecracker` it fails.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod clones;
#[path = "machines.rs"]
mod machines;

glasshouse_backends::conformance!(firecracker, super::machines::support::InMachine);
