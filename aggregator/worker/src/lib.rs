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
mod dead;
mod feed;
mod open;
mod retry;
mod worker;

use std::future::Future;
use std::path::PathBuf;
use std::time::Duration;

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
    /// An execution of which nothing comes for this long is closed: its producer is dead.
    pub producer_grace: Duration,
}

/// How long the producer of an open execution may be silent if nobody says otherwise.
/// Longer than any command stays quiet, because silence is all that tells a dead producer from a quiet one until nodes
/// send heartbeats.
pub const PRODUCER_GRACE: Duration = Duration::from_secs(24 * 3600);
/// The environment variable that says otherwise.
pub const PRODUCER_GRACE_VARIABLE: &str = "GLASSHOUSE_PRODUCER_GRACE";

impl Config {
    /// A worker without credentials, with the usual grace.
    pub fn new(url: impl Into<String>, name: impl Into<String>) -> Self {
        Self { url: url.into(), credentials: None, name: name.into(), producer_grace: PRODUCER_GRACE }
    }
}

/// Reads a grace: `250ms`, `10s`, `5m`, `1h`, `2d`; a bare number is seconds. Nothing and 0 are none.
pub fn parse_grace(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: f64 =
        digits.parse().map_err(|_| format!("`{text}` is not a duration: write 30s, 5m, 1h or 2d"))?;
    let seconds = match &text[digits.len()..] {
        "ms" => number / 1000.0,
        "" | "s" => number,
        "m" => number * 60.0,
        "h" => number * 3600.0,
        "d" => number * 86400.0,
        unit => return Err(format!("`{unit}` is not a unit of time: write ms, s, m, h or d")),
    };
    match Duration::try_from_secs_f64(seconds) {
        Ok(Duration::ZERO) => Err("a grace of 0 would close every execution at once".into()),
        Ok(grace) => Ok(grace),
        Err(error) => Err(format!("`{text}` is not a duration: {error}")),
    }
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
    /// The task that reads the stream ended.
    #[error("the reader of the stream ended by itself")]
    ReaderGone,
    /// A document could not be written.
    #[error(transparent)]
    Canonical(#[from] glasshouse_schema::canonical::CanonicalError),
}

/// Connects and works until `shutdown` resolves; what is in hand is finished and checkpointed first.
pub async fn run(config: Config, shutdown: impl Future<Output = ()>) -> Result<(), Error> {
    let mut shutdown = std::pin::pin!(shutdown);
    let options = ConnectOptions::new(&config.url, format!("aggregator {}", config.name));
    let start = async {
        let bus: Bus = glasshouse_nats::connect(options.credentials(config.credentials)).await?;
        Worker::start(&bus, config.name, config.producer_grace).await
    };
    let worker = tokio::select! {
        biased;
        () = &mut shutdown => return Ok(()),
        worker = start => worker?,
    };
    worker.run(shutdown).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grace_is_written_as_people_write_it() {
        assert_eq!(parse_grace("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse_grace("10"), Ok(Duration::from_secs(10)));
        assert_eq!(parse_grace("1d"), Ok(PRODUCER_GRACE));
        assert_eq!(parse_grace("2d"), Ok(Duration::from_secs(172_800)));
        for bad in ["", "0", "s", "-1s", "1y", "1e400s", "NaN"] {
            assert!(parse_grace(bad).is_err(), "{bad}");
        }
    }
}
