//! The aggregator worker: reads GH_EVENTS in order, folds, closes executions and publishes their receipts.
//!
//! ```text
//! GH_EVENTS -> fold per execution -> `closed` (created once) -> GH_EVENTS -> receipt (created once) -> GH_RECEIPTS
//!                   \-> what cannot be folded: GH_DEAD, with the reason
//! ```
//! The worker may be killed anywhere: everything it publishes is created once, and it begins again at its checkpoint,
//! which names the oldest event that an open execution still needs. What it then publishes again is already there, with
//! the same digest.

#![cfg_attr(
    test,
    allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")
)]

mod checkpoint;
mod open;
mod worker;

use std::future::Future;
use std::path::PathBuf;

use glasshouse_nats::{Bus, ConnectOptions};

pub use worker::Worker;

/// How a worker runs.
#[derive(Debug, Clone)]
pub struct Config {
    /// The NATS server.
    pub url: String,
    /// A credentials file.
    pub credentials: Option<PathBuf>,
    /// The worker's name, in headers and dead letters.
    pub name: String,
}

/// Why a worker ended without being asked to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The bus said something that trying again does not help.
    #[error(transparent)]
    Bus(#[from] glasshouse_nats::Error),
    /// Another worker writes the same checkpoint.
    #[error(
        "another aggregator works on this server: it wrote the checkpoint meanwhile; stop one of the two"
    )]
    NotAlone,
    /// A document could not be written.
    #[error(transparent)]
    Canonical(#[from] glasshouse_schema::canonical::CanonicalError),
}

/// Connects and works until `shutdown` resolves; what is in hand is finished and checkpointed first.
pub async fn run(config: Config, shutdown: impl Future<Output = ()>) -> Result<(), Error> {
    let options = ConnectOptions::new(&config.url, format!("aggregator {}", config.name));
    let bus: Bus = glasshouse_nats::connect(options.credentials(config.credentials.clone())).await?;
    Worker::start(&bus, config.name).await?.run(shutdown).await
}
