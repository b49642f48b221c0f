//! The node agent: takes requests from its pool's queue, runs them, and survives what happens meanwhile.
//!
//! ```text
//! GH_REQUESTS --one per free slot--> claim --taken--> engine: lifecycle, frames -> GH_EVENTS, output -> GH_OUTPUT
//!      ^                               |                 |          ^-- control: cancel, kill
//!      |                               held              cleaned, and stored
//!      |                               v                 v
//!      +--- not yet, its runner lives  settle            acknowledge
//!                                      \-- its runner is dead: `failed`, the outcome is unknown --> acknowledge
//! ```
//!
//! Invariants:
//! - no more requests are in hand than slots are free;
//! - nothing runs without the claim, and a claim is given once, for ever: no execution runs twice, however often its request
//!   is delivered, to however many agents;
//! - a request is acknowledged only once the claim and the end of its record are stored;
//! - what a killed agent left running is ended when the next one with its state directory starts, before it takes requests.

#![cfg_attr(
    test,
    allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")
)]

mod agent;
mod execution;
mod local;
mod machine;
mod registry;
mod settings;
mod settle;
mod single;
mod state;
mod systemd;
mod warm;
mod workspace;

pub use agent::run;
pub use registry::{Registry, RegistryError};
pub use settings::{Layer, Settings, SettingsError};
pub use single::run_one;
pub use state::{StateDir, StateError};

/// Why an agent ended without being asked to, or did not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The settings cannot be used.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// The state directory cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// A backend is not there.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The bus said something that trying again does not help.
    #[error(transparent)]
    Bus(#[from] glasshouse_nats::Error),
    /// The system said no.
    #[error("cannot {what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: std::io::Error,
    },
}
