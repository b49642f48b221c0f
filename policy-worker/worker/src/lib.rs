//! The policy worker: judges every receipt by every policy and publishes the verdicts.
//!
//! ```text
//! GH_RECEIPTS -> digest verified -> decoded -> every policy -> verdict (created once) -> GH_VERDICTS -> ack
//!                   \-> what cannot be judged: GH_DEAD, with the reason -> term
//! ```
//!
//! Any number of workers share one durable consumer. A receipt is acknowledged when all its verdicts are stored; a worker
//! that dies before leaves it to another, which finds the verdicts that are there already: same digest, nothing to do. Two
//! verdicts of one policy over one receipt that differ are an alarm and a dead letter, never an overwrite.

#![cfg_attr(
    test,
    allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")
)]

mod policies;
mod worker;

use std::future::Future;
use std::path::PathBuf;

use glasshouse_eval::Policy;
use glasshouse_nats::{Bus, ConnectOptions};

pub use policies::{PoliciesError, load};
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
    /// The policies that judge.
    pub policies: Vec<Policy>,
}

impl Config {
    /// A worker without credentials.
    pub fn new(url: impl Into<String>, name: impl Into<String>, policies: Vec<Policy>) -> Self {
        Self { url: url.into(), credentials: None, name: name.into(), policies }
    }
}

/// Why a worker ended without being asked to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The bus said something that trying again does not help.
    #[error(transparent)]
    Bus(#[from] glasshouse_nats::Error),
    /// A verdict could not be written.
    #[error(transparent)]
    Canonical(#[from] glasshouse_schema::canonical::CanonicalError),
    /// Two policies would publish under one subject.
    #[error("policy `{0}` is there twice with the same content: its verdicts would be the same message")]
    PolicyTwice(glasshouse_schema::PolicyName),
}

/// Connects and judges until `shutdown` resolves; the receipt in hand is finished first.
///
/// Without policies nothing is taken from the queue: receipts wait for a worker that can judge them. A policy of which every rule
/// is for before a run gives no verdict.
pub async fn run(mut config: Config, shutdown: impl Future<Output = ()>) -> Result<(), Error> {
    worker::check(&config.policies)?;
    config.policies.retain(|policy| {
        if !policy.judges_receipts() {
            tracing::info!(policy = %policy.reference().name, "the policy has no rule over receipts, only before runs");
        }
        policy.judges_receipts()
    });
    let mut shutdown = std::pin::pin!(shutdown);
    let options = ConnectOptions::new(&config.url, format!("policy worker {}", config.name));
    let connect = glasshouse_nats::connect(options.credentials(config.credentials));
    let bus: Bus = tokio::select! {
        biased;
        () = &mut shutdown => return Ok(()),
        bus = connect => bus?,
    };
    if config.policies.is_empty() {
        tracing::warn!("no policies: receipts stay in the queue");
        shutdown.await;
        return Ok(());
    }
    Worker::start(&bus, config.name, config.policies).await?.run(shutdown).await
}
