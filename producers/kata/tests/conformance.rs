//! The conformance suite on real containers, made by a containerd that the tests start for themselves, with the runtime
//! `io.containerd.runc.v2`. **This is not Kata**: its own shim is spoken to in the same way, and was tried by hand
//! (docs/kata.md).

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[allow(dead_code, reason = "each test takes what it needs")]
mod support;

glasshouse_backends::conformance!(kata_by_runc, super::support::InContainer::Alone);
glasshouse_backends::conformance!(kata_by_runc_with_a_probe, super::support::InContainer::Probed);
