//! The aggregator worker: reads its ranges of GH_EVENTS in order, folds, closes executions and publishes their receipts.
//!
//! ```text
//! GH_EVENTS -> fold per execution -> `closed` (created once) -> GH_EVENTS -> receipt (created once) -> GH_RECEIPTS
//!                   \-> what cannot be folded: GH_DEAD, with the reason
//! ```
//! Any number of workers share the 256 partitions: who is alive is seen in the bucket of leases (`board`), which of them has
//! which range follows from that alone (`assignment`), and each range has a lease and a checkpoint of its own.
//!
//! A worker may be killed or stopped anywhere: everything it publishes is created once, and whoever takes a range begins at
//! its checkpoint, which names the oldest event that an open execution still needs. What is then published again is already
//! there, with the same digest.

#![cfg_attr(
    test,
    allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")
)]

mod assignment;
mod board;
mod checkpoint;
mod dead;
mod ending;
mod events;
mod feed;
mod jobs;
mod open;
mod producers;
mod range;
mod reading;
mod retry;
mod share;
mod trim;
mod worker;

use std::future::Future;
use std::path::PathBuf;
use std::time::Duration;

use glasshouse_nats::{Bus, ConnectOptions};
use glasshouse_schema::time;

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
    /// An execution of which nothing comes for this long is closed, if its producer never had a heartbeat: it is dead.
    pub producer_grace: Duration,
    /// An execution is closed if the heartbeat of its producer is gone for this long and nothing came of it either.
    pub heartbeat_grace: Duration,
    /// A worker of which no heartbeat comes for this long is dead, and the others take its ranges.
    pub failover: Duration,
    /// Events are kept for this long after nobody needs them, so that a receipt can be made again from them.
    pub replay_window: Duration,
}

/// How long events are kept if nobody says otherwise.
pub const REPLAY_WINDOW: Duration = Duration::from_secs(24 * 3600);

/// How long a worker may be silent if nobody says otherwise: with four heartbeats in that time, its ranges are read again
/// within five seconds of its death.
pub const FAILOVER: Duration = Duration::from_secs(4);
/// Shorter than this, a busy machine would look like a dead worker.
pub const MIN_FAILOVER: Duration = Duration::from_millis(400);
/// Half of the time after which the server forgets a heartbeat (`nats/streams/buckets.toml`).
pub const MAX_FAILOVER: Duration = Duration::from_secs(30);

/// How long the producer of an open execution may be silent if nobody says otherwise and it has no heartbeat.
/// Longer than any command stays quiet, because silence is all that tells a dead producer from a quiet one then.
pub const PRODUCER_GRACE: Duration = Duration::from_secs(24 * 3600);
/// The environment variable that says otherwise.
pub const PRODUCER_GRACE_VARIABLE: &str = "GLASSHOUSE_PRODUCER_GRACE";

/// How long the heartbeat of a producer may be gone if nobody says otherwise. One that lives and is cut off from the bus looks
/// dead, and so does one that ended and left events in its spool: what comes of them after this comes too late, for good. A
/// receipt of a dead one that comes later costs little.
pub const HEARTBEAT_GRACE: Duration = Duration::from_secs(3600);
/// Shorter than this, a producer could not come back in time after the server was away.
pub const MIN_HEARTBEAT_GRACE: Duration = Duration::from_secs(10);
/// The environment variable that says otherwise.
pub const HEARTBEAT_GRACE_VARIABLE: &str = "GLASSHOUSE_HEARTBEAT_GRACE";

impl Config {
    /// A worker without credentials, with the usual grace.
    pub fn new(url: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            credentials: None,
            name: name.into(),
            producer_grace: PRODUCER_GRACE,
            heartbeat_grace: HEARTBEAT_GRACE,
            failover: FAILOVER,
            replay_window: REPLAY_WINDOW,
        }
    }
}

/// Reads `250ms`, `10s`, `5m`, `1h` or `2d`; a bare number is seconds.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let Some(days) = text.strip_suffix('d') else { return time::parse_duration(text) };
    let hours = time::parse_duration(&format!("{days}h"));
    let time = hours.ok().and_then(|hours| hours.checked_mul(24));
    time.ok_or_else(|| format!("`{text}` is not a duration: write 30s, 5m, 1h or 2d"))
}

/// Reads a grace: a duration that is not 0.
pub fn parse_grace(text: &str) -> Result<Duration, String> {
    match parse_duration(text)? {
        Duration::ZERO => Err("a grace of 0 would close every execution at once".into()),
        grace => Ok(grace),
    }
}

/// Reads the grace of a heartbeat, written as a grace.
pub fn parse_heartbeat_grace(text: &str) -> Result<Duration, String> {
    match parse_grace(text)? {
        short if short < MIN_HEARTBEAT_GRACE => {
            Err(format!("at least {MIN_HEARTBEAT_GRACE:?}: a producer needs some to come back to a server"))
        }
        grace => Ok(grace),
    }
}

/// Reads a failover time, written as a grace.
pub fn parse_failover(text: &str) -> Result<Duration, String> {
    match parse_grace(text)? {
        short if short < MIN_FAILOVER => {
            Err(format!("at least {MIN_FAILOVER:?}: a busy worker would look dead"))
        }
        long if long > MAX_FAILOVER => {
            Err(format!("at most {MAX_FAILOVER:?}: the server forgets heartbeats then"))
        }
        failover => Ok(failover),
    }
}

/// Why a worker ended without being asked to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The bus said something that trying again does not help.
    #[error(transparent)]
    Bus(#[from] glasshouse_nats::Error),
    /// Another worker has the range: it wrote its checkpoint meanwhile.
    #[error("another worker has the range: it wrote its checkpoint meanwhile")]
    Fenced,
    /// A task of the worker ended before its work.
    #[error("a task of the worker ended before its work")]
    TaskGone,
    /// A document could not be written.
    #[error(transparent)]
    Canonical(#[from] glasshouse_schema::canonical::CanonicalError),
    /// A checkpoint could not be written down.
    #[error("a checkpoint cannot be written down: {0}")]
    Checkpoint(#[from] rmp_serde::encode::Error),
}

/// Connects and works until `shutdown` resolves; what is in hand is finished and checkpointed first.
pub async fn run(config: Config, shutdown: impl Future<Output = ()>) -> Result<(), Error> {
    let mut shutdown = std::pin::pin!(shutdown);
    let options = ConnectOptions::new(&config.url, format!("aggregator {}", config.name))
        .credentials(config.credentials.clone());
    let start = async {
        let bus: Bus = glasshouse_nats::connect(options).await?;
        Worker::start(&bus, &config).await
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
        assert_eq!(parse_failover("2s"), Ok(Duration::from_secs(2)));
        for bad in ["1ms", "1h", "x"] {
            assert!(parse_failover(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_heartbeat_grace("1h"), Ok(HEARTBEAT_GRACE));
        for bad in ["0", "9s", "x"] {
            assert!(parse_heartbeat_grace(bad).is_err(), "{bad}");
        }
        for bad in ["", "0", "s", "-1s", "1y", "1e400s", "NaN"] {
            assert!(parse_grace(bad).is_err(), "{bad}");
        }
    }
}
