//! The bus as `run` uses it: claims, and events in order.

use std::path::Path;
use std::sync::{Mutex, OnceLock, PoisonError};

use glasshouse_execution::SinkError;
use glasshouse_nats::{Bus, ClaimOutcome, Claims, ConnectOptions, Publisher, PublisherOptions};
use glasshouse_schema::ids::{ExecutionId, NodeId};
use glasshouse_schema::{EncodedFrame, LifecycleEvent};

/// Connects, or says within five seconds why not.
pub(crate) async fn connect(url: &str, creds: Option<&Path>) -> Result<Bus, glasshouse_nats::Error> {
    let options = ConnectOptions::new(url, "glasshouse").credentials(creds.map(Path::to_owned));
    glasshouse_nats::connect(options).await
}

/// Publishes one execution's events. Once a message was given up, nothing behind it is published.
pub(crate) struct BusSink {
    claims: Claims,
    publisher: Publisher,
    runtime: tokio::runtime::Handle,
    /// The trace of the execution, for frames: their thread has no span.
    traceparent: OnceLock<String>,
    /// What the first refused frame said.
    refused: Mutex<Option<String>>,
}

impl BusSink {
    pub(crate) async fn connect(url: &str, creds: Option<&Path>) -> Result<Self, glasshouse_nats::Error> {
        let bus = connect(url, creds).await?;
        // Found out now and not after the command ran: that the streams are there.
        bus.position(glasshouse_nats::EVENTS).await?;
        Ok(Self {
            claims: Claims::new(&bus),
            publisher: Publisher::new(&bus, PublisherOptions::default()),
            runtime: tokio::runtime::Handle::current(),
            traceparent: OnceLock::new(),
            refused: Mutex::new(None),
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

    pub(crate) async fn lifecycle(&self, event: &LifecycleEvent) -> Result<(), SinkError> {
        if let Some(traceparent) = glasshouse_telemetry::current_traceparent() {
            self.traceparent.get_or_init(|| traceparent);
        }
        self.publisher.publish_lifecycle(event, None).await.map_err(|error| SinkError {
            what: format!("the `{}` event", event.phase.name().as_str()),
            reason: error.to_string(),
        })
    }

    /// Called from the probe's thread; waits while the bus is behind, so that the kernel's buffers fill and count.
    pub(crate) fn frame(&self, frame: EncodedFrame) {
        let traceparent = self.traceparent.get().map(String::as_str);
        let EncodedFrame { execution, node, vantage, bytes, digest, .. } = frame;
        let publish = self.publisher.publish_frame(&node, execution, vantage, bytes, digest, traceparent);
        if let Err(error) = self.runtime.block_on(publish) {
            let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
            refused.get_or_insert_with(|| error.to_string());
        }
    }

    pub(crate) async fn flush(&self) -> Result<(), SinkError> {
        let flushed = self.publisher.flush().await;
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner).take();
        let failed = |reason| SinkError { what: "what was published".into(), reason };
        match (refused, flushed) {
            (Some(reason), _) => Err(failed(reason)),
            (None, flushed) => flushed.map_err(|error| failed(error.to_string())),
        }
    }
}
