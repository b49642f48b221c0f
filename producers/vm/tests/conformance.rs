//! The conformance suite of backends, on real machines of QEMU. What this host cannot run is printed as skipped, with the reason.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

glasshouse_backends::conformance!(qemu, super::support::InMachine);
