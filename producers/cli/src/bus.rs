//! The bus as `run` uses it: claims, and events in order.

use std::path::Path;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use glasshouse_execution::SinkError;
use glasshouse_nats::{Bus, ClaimOutcome, Claims, ConnectOptions, Publisher, PublisherOptions};
use glasshouse_schema::ids::{ExecutionId, NodeId};
use glasshouse_schema::{EncodedFrame, LifecycleEvent};

/// How long the bus may take for one message while the command runs: whoever waits here is the probe's thread, and what
/// it does not read meanwhile the local receipt loses too.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long the end of a run waits for what is not acknowledged. While the command runs the publisher is more patient
/// (its default), so that a server may restart meanwhile.
const FLUSH_WITHIN: Duration = Duration::from_secs(5);

/// Connects, or says within five seconds why not.
pub(crate) async fn connect(url: &str, creds: Option<&Path>) -> Result<Bus, glasshouse_nats::Error> {
    let options = ConnectOptions::new(url, "glasshouse").credentials(creds.map(Path::to_owned));
    glasshouse_nats::connect(options).await
}

/// Publishes one execution's events. Once a message was given up, nothing behind it is published: a record with an end
/// and a hole looks whole. [`BusSink::flush`] says what became of all.
pub(crate) struct BusSink {
    claims: Claims,
    publisher: Publisher,
    runtime: tokio::runtime::Handle,
    /// The trace of the execution, for frames: their thread has no span.
    traceparent: OnceLock<String>,
    refused: Mutex<Refused>,
}

/// What the bus did not take.
#[derive(Default)]
struct Refused {
    /// Why the first was not taken.
    reason: Option<String>,
    events: u64,
}

impl BusSink {
    pub(crate) async fn connect(url: &str, creds: Option<&Path>) -> Result<Self, glasshouse_nats::Error> {
        let bus = connect(url, creds).await?;
        // Found out now and not after the command ran: that the streams are there.
        bus.position(glasshouse_nats::EVENTS).await?;
        Ok(Self {
            claims: Claims::new(&bus),
            publisher: Publisher::new(
                &bus,
                PublisherOptions { deadline: FLUSH_WITHIN, ..PublisherOptions::default() },
            ),
            runtime: tokio::runtime::Handle::current(),
            traceparent: OnceLock::new(),
            refused: Mutex::default(),
        })
    }

    pub(crate) async fn claim(&self, execution: ExecutionId, node: &NodeId) -> Result<u64, SinkError> {
        let failed = |reason: String| SinkError { what: "the claim on the execution".into(), reason };
        match self.claims.take(execution, node).await {
            Ok(ClaimOutcome::Taken { epoch }) => Ok(epoch),
            Ok(ClaimOutcome::Held { claim, .. }) => {
                let holder =
                    claim.map_or_else(|| "somebody".to_owned(), |claim| format!("node {}", claim.node));
                Err(failed(format!("{holder} claimed it before, and an execution never runs twice")))
            }
            Err(error) => Err(failed(error.to_string())),
        }
    }

    pub(crate) async fn lifecycle(&self, event: &LifecycleEvent) {
        if let Some(traceparent) = glasshouse_telemetry::current_traceparent() {
            self.traceparent.get_or_init(|| traceparent);
        }
        self.take(self.publisher.publish_lifecycle(event, None)).await;
    }

    /// Called from the probe's thread; waits a while when the bus is behind.
    pub(crate) fn frame(&self, frame: EncodedFrame) {
        let traceparent = self.traceparent.get().map(String::as_str);
        let EncodedFrame { execution, node, vantage, bytes, digest, .. } = frame;
        let publish = self.publisher.publish_frame(&node, execution, vantage, bytes, digest, traceparent);
        self.runtime.block_on(self.take(publish));
    }

    async fn take(&self, publish: impl Future<Output = Result<(), glasshouse_nats::Error>>) {
        if self.refuses() {
            return;
        }
        let reason = match tokio::time::timeout(PATIENCE, publish).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("the bus took nothing for {} s", PATIENCE.as_secs()),
        };
        let mut refused = self.refused();
        refused.events += 1;
        refused.reason.get_or_insert(reason);
    }

    /// Whether the bus failed already; then one more event was not published.
    fn refuses(&self) -> bool {
        let mut refused = self.refused();
        let refuses = refused.reason.is_some();
        refused.events += u64::from(refuses);
        refuses
    }

    fn refused(&self) -> MutexGuard<'_, Refused> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns when everything is stored, or says what is not; `interrupted` ends the wait.
    pub(crate) async fn flush(&self, interrupted: impl Future<Output = ()>) -> Result<(), SinkError> {
        let flushed = tokio::select! {
            biased;
            flushed = self.publisher.flush() => flushed.map_err(|error| error.to_string()),
            () = interrupted => Err("a signal ended the wait for the bus".to_owned()),
            () = tokio::time::sleep(FLUSH_WITHIN) => {
                Err(format!("the bus did not acknowledge everything within {} s", FLUSH_WITHIN.as_secs()))
            }
        };
        let refused = self.refused();
        let reason = match (&refused.reason, flushed) {
            (Some(reason), _) => format!("{reason}; {} events were not published", refused.events),
            (None, Err(reason)) => reason,
            (None, Ok(())) => return Ok(()),
        };
        Err(SinkError { what: "what was published".into(), reason })
    }
}
