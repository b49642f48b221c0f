//! The bus as one execution uses it: its claim, and its events in order.

use std::path::Path;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use glasshouse_execution::SinkError;
use glasshouse_nats::{
    Bus, ClaimOutcome, Claims, ConnectOptions, Encoding, Error, Heartbeat, Leftover, Publisher,
    PublisherOptions, Spool, SpooledOptions, SpooledPublisher, StreamPosition,
};
use glasshouse_schema::ids::{ExecutionId, NodeId};
use glasshouse_schema::{EncodedFrame, LifecycleEvent};

/// How long the bus may take for one message while the command runs, when there is no spool: whoever waits here is the
/// probe's thread, and what it does not read meanwhile the local receipt loses too.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long the end of a run waits for what is not acknowledged.
const FLUSH_WITHIN: Duration = Duration::from_secs(5);

/// Connects, or says within five seconds why not.
pub async fn connect(url: &str, creds: Option<&Path>) -> Result<Bus, Error> {
    glasshouse_nats::connect(options(url, creds)).await
}

fn options(url: &str, creds: Option<&Path>) -> ConnectOptions {
    ConnectOptions::new(url, "glasshouse").credentials(creds.map(Path::to_owned))
}

/// Connects to a server that has the stream of events, and says which one: found out now and not after a command ran. Frames
/// will travel as `frame_encoding`.
pub async fn connect_to_publish(
    url: &str,
    creds: Option<&Path>,
    frame_encoding: Encoding,
) -> Result<(Bus, StreamPosition), Error> {
    let bus = glasshouse_nats::connect(options(url, creds).frame_encoding(frame_encoding)).await?;
    let events = bus.position(glasshouse_nats::EVENTS).await?;
    Ok((bus, events))
}

/// Publishes one execution's events. [`BusSink::flush`] says what became of all.
pub struct BusSink {
    bus: Bus,
    /// Of a claim that was taken before.
    epoch: Option<u64>,
    /// Says that this process lives, from the claim on.
    heartbeat: Mutex<Option<Heartbeat>>,
    way: Way,
    runtime: tokio::runtime::Handle,
    /// The trace of the execution, for frames: their thread has no span.
    traceparent: OnceLock<String>,
    refused: Mutex<Refused>,
}

enum Way {
    /// What the bus does not take waits on disk. A frame that does not fit there either is refused and counted, and those
    /// behind it are still taken: the aggregator sees the gap in the chain, and the end comes to it.
    Spooled(SpooledPublisher),
    /// Once a message was given up, nothing behind it is published: a record with an end and a hole looks whole.
    Direct(Publisher),
}

/// What the bus did not take.
#[derive(Default)]
struct Refused {
    /// Why the first was not taken.
    reason: Option<String>,
    events: u64,
}

/// What became of all events.
#[derive(Default)]
pub struct Flushed {
    /// What waits on disk, and why.
    pub left: Option<(Leftover, String)>,
    /// What is nowhere, and why.
    pub lost: Option<SinkError>,
}

impl Flushed {
    fn lost(reason: String) -> Self {
        Self { left: None, lost: Some(SinkError { what: "what was published".into(), reason }) }
    }
}

impl BusSink {
    /// A sink that takes the claim itself, and has a heartbeat of its own from then on. Call it inside a tokio runtime.
    pub fn new(bus: &Bus, spool: Option<Spool>) -> Self {
        let options = PublisherOptions { deadline: FLUSH_WITHIN, ..PublisherOptions::default() };
        Self {
            bus: bus.clone(),
            epoch: None,
            heartbeat: Mutex::default(),
            way: match spool {
                Some(spool) => Way::Spooled(SpooledPublisher::new(bus, spool, SpooledOptions::default())),
                None => Way::Direct(Publisher::new(bus, options)),
            },
            runtime: tokio::runtime::Handle::current(),
            traceparent: OnceLock::new(),
            refused: Mutex::default(),
        }
    }

    /// A sink of an execution that the caller has claimed, and for whose heartbeat the caller cares. `traceparent` is the
    /// submitter's trace, for where this process makes none of its own.
    pub fn claimed(bus: &Bus, spool: Spool, epoch: u64, traceparent: Option<&str>) -> Self {
        let sink = Self { epoch: Some(epoch), ..Self::new(bus, Some(spool)) };
        if let Some(traceparent) = traceparent {
            sink.traceparent.get_or_init(|| traceparent.to_owned());
        }
        sink
    }

    /// Takes the claim on the execution, and gives its epoch.
    pub async fn claim(&self, execution: ExecutionId, node: &NodeId) -> Result<u64, SinkError> {
        if let Some(epoch) = self.epoch {
            return Ok(epoch);
        }
        let failed = |reason: String| SinkError { what: "the claim on the execution".into(), reason };
        let claims = Claims::new(&self.bus);
        let (claimed, heartbeat) = match Heartbeat::start(&self.bus, node).await {
            Ok(heartbeat) => (claims.take_for(execution, &heartbeat).await, Some(heartbeat)),
            // Without one only silence tells when this process is dead, and that takes longer.
            Err(error) => {
                tracing::warn!(%error, "this process has no heartbeat");
                (claims.take(execution, node).await, None)
            }
        };
        match claimed {
            Ok(ClaimOutcome::Taken { epoch }) => {
                *self.heartbeat.lock().unwrap_or_else(PoisonError::into_inner) = heartbeat;
                Ok(epoch)
            }
            Ok(ClaimOutcome::Held { claim, .. }) => {
                let holder =
                    claim.map_or_else(|| "somebody".to_owned(), |claim| format!("node {}", claim.node));
                Err(failed(format!("{holder} claimed it before, and an execution never runs twice")))
            }
            Err(error) => Err(failed(error.to_string())),
        }
    }

    /// Publishes a lifecycle event, behind what was published before.
    pub async fn lifecycle(&self, event: &LifecycleEvent) {
        let current = glasshouse_telemetry::current_traceparent();
        if let Some(current) = &current {
            self.traceparent.get_or_init(|| current.clone());
        }
        let trace = current.as_deref().or(self.traceparent.get().map(String::as_str));
        match &self.way {
            Way::Spooled(publisher) => self.count(publisher.publish_lifecycle(event, trace).await),
            // Sent once everything before it is stored, as from a spool: what was sent behind a refused message may be stored
            // before it, and an event that ends the record must not be.
            Way::Direct(publisher) => {
                let behind = async {
                    publisher.flush().await?;
                    publisher.publish_lifecycle(event, trace).await
                };
                self.take(behind).await;
            }
        }
    }

    /// Waits until everything taken so far is stored, at most for `within`; whether it is. May be called again.
    pub async fn settle(&self, within: Duration) -> bool {
        match &self.way {
            Way::Spooled(publisher) => publisher.flush(within).await.is_ok_and(|left| left.messages == 0),
            Way::Direct(publisher) => {
                tokio::time::timeout(within, publisher.flush()).await.is_ok_and(|flushed| flushed.is_ok())
            }
        }
    }

    /// Called from the probe's thread; waits a while when the bus, and the disk, are behind.
    pub fn frame(&self, frame: EncodedFrame) {
        let trace = self.traceparent.get().map(String::as_str);
        let EncodedFrame { execution, node, vantage, bytes, digest, is_seal, .. } = frame;
        self.runtime.block_on(async {
            match &self.way {
                Way::Spooled(publisher) => {
                    let of = (&node, execution, vantage);
                    self.count(publisher.publish_frame(of, bytes, digest, is_seal, trace).await);
                }
                Way::Direct(publisher) => {
                    self.take(publisher.publish_frame(&node, execution, vantage, bytes, digest, trace)).await;
                }
            }
        });
    }

    async fn take(&self, publish: impl Future<Output = Result<(), Error>>) {
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

    /// Counts what a spool cannot know of; what it refused itself is in its state.
    fn count(&self, published: Result<(), Error>) {
        if let Err(error) = published
            && !matches!(error, Error::Spool(_))
        {
            let mut refused = self.refused();
            refused.events += 1;
            refused.reason.get_or_insert(error.to_string());
        }
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

    /// Returns when everything is stored, or what is not; `interrupted` ends the wait. The last call.
    pub async fn flush(&self, interrupted: impl Future<Output = ()>) -> Flushed {
        let flushed = match &self.way {
            Way::Spooled(publisher) => self.flush_spooled(publisher, interrupted).await,
            Way::Direct(publisher) => self.flush_direct(publisher, interrupted).await,
        };
        let heartbeat = self.heartbeat.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(heartbeat) = heartbeat {
            heartbeat.end().await;
        }
        flushed
    }

    async fn flush_spooled(
        &self,
        publisher: &SpooledPublisher,
        interrupted: impl Future<Output = ()>,
    ) -> Flushed {
        tokio::select! {
            biased;
            // What it says is said by `close`, too.
            _ = publisher.flush(FLUSH_WITHIN) => {}
            () = interrupted => {}
        }
        let closed = publisher.close().await;
        let state = publisher.state();
        let refused = self.refused();
        let events = refused.events + state.refused;
        let mut reason = refused.reason.clone().or(state.reason).unwrap_or_default();
        let left = closed.map(Some).unwrap_or_else(|error| {
            // What was there is said to be there, with the reason to doubt it.
            reason = error.to_string();
            publisher.leftover()
        });
        let mut flushed = Flushed::default();
        if events > 0 {
            flushed = Flushed::lost(format!("{reason}; {events} events were not published"));
        }
        let left = left.filter(|left| left.messages > 0 || left.rejected > 0);
        flushed.left = left.map(|left| (left, reason));
        flushed
    }

    async fn flush_direct(&self, publisher: &Publisher, interrupted: impl Future<Output = ()>) -> Flushed {
        let flushed = tokio::select! {
            biased;
            flushed = publisher.flush() => flushed.map_err(|error| error.to_string()),
            () = interrupted => Err("a signal ended the wait for the bus".to_owned()),
            () = tokio::time::sleep(FLUSH_WITHIN) => {
                Err(format!("the bus did not acknowledge everything within {} s", FLUSH_WITHIN.as_secs()))
            }
        };
        let refused = self.refused();
        match (&refused.reason, flushed) {
            (Some(reason), _) => {
                Flushed::lost(format!("{reason}; {} events were not published", refused.events))
            }
            (None, Err(reason)) => Flushed::lost(reason),
            (None, Ok(())) => Flushed::default(),
        }
    }
}
