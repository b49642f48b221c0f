//! The host vantage point: loads the BPF programs of `glasshouse-bpf`, watches executions with them and turns what
//! they saw into frames.
//!
//! ```text
//!   HostProbe::load ──► watch(WatchRequest) ──► Watch ──► seal() ──► SealReport
//!        │ once a node        │ map inserts       │            │ rings drained, counters read, last frame sent
//!        ▼                    ▼                   ▼ dropped: unwatched without a seal
//!   programs attached    ARMED ─root's exec─► RECORDING ─► SEALED
//! ```
//!
//! Invariants:
//! - One probe serves every execution of the node. To watch one more is a few map inserts.
//! - Nothing is recorded or counted before the root's exec; the kernel makes that step, not this crate.
//! - Every fact the kernel counted as observed is delivered, collapsed or lost by the time of the seal. A difference
//!   that nothing explains is lost, never assumed away.
//! - Secrets in arguments are masked before a frame is built.
//!
//! The pure parts ([`decode`], [`paths`]) build everywhere. Elsewhere than on Linux [`HostProbe::load`] returns
//! [`ProbeError::Unsupported`].

#![cfg_attr(
    test,
    allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")
)]

mod clock;
pub mod controller;
pub mod decode;
mod dns;
pub mod doctor;
mod environment;
pub mod error;
pub mod options;
pub mod paths;
pub mod watch;

#[cfg(target_os = "linux")]
pub mod cgroup;
#[cfg(target_os = "linux")]
mod direct_reads;
#[cfg(target_os = "linux")]
mod drain;
#[cfg(target_os = "linux")]
mod kernel_types;
#[cfg(target_os = "linux")]
mod maps;
#[cfg(target_os = "linux")]
mod probe;
#[cfg(target_os = "linux")]
mod ring;

#[cfg(not(target_os = "linux"))]
mod stub;
#[cfg(not(target_os = "linux"))]
use stub as probe;

pub use controller::EbpfController;
pub use error::ProbeError;
pub use options::LoadOptions;
pub use probe::{HostProbe, Watch};
pub use watch::{FrameSink, KernelCounts, SealReport, WatchRequest};
