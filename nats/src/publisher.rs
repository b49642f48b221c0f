//! Publishing: frames and lifecycle events pipelined in order; receipts, verdicts and `closed` created once.

use std::time::Duration;

use async_nats::{HeaderMap, HeaderValue};
use bytes::Bytes;
use glasshouse_schema::dead::DeadLetter;
use glasshouse_schema::lifecycle::PhaseName;
use glasshouse_schema::{
    Digest, ExecutionId, LifecycleEvent, NodeId, PolicyName, Vantage, headers, subject, version,
};

use crate::connect::Bus;
use crate::encoding::Encoding;
use crate::error::Error;
use crate::pipeline::{Outgoing, Pipeline};
use crate::store::{Put, StoredMessage, Write};
use crate::trace;

/// How a [`Publisher`] goes about it.
#[derive(Debug, Clone)]
pub struct PublisherOptions {
    /// How many messages may be unacknowledged at a time.
    pub max_in_flight: usize,
    /// How long one message is sent again before it is given up.
    pub deadline: Duration,
}

impl Default for PublisherOptions {
    fn default() -> Self {
        Self { max_in_flight: 256, deadline: Duration::from_secs(30) }
    }
}

/// What became of a document that exists only once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is stored.
    Stored,
    /// There is one already, perhaps from an earlier attempt whose acknowledgement was lost.
    AlreadyThere {
        /// Whether it is the same document. If not, two workers disagree: an alarm, never an overwrite.
        same: bool,
        /// SHA-256 of the one that is stored.
        stored_digest: Digest,
    },
}

/// What became of a `closed` event.
#[derive(Debug, Clone, PartialEq)]
pub enum ClosedOutcome {
    /// It is stored: the record ends here.
    Stored,
    /// The record was closed before, by this event.
    AlreadyClosed(Box<LifecycleEvent>),
}

/// Publishes everything that Glasshouse says. Cheap to clone; clones share one pipeline, and so one order.
///
/// `publish_frame`, `publish_lifecycle` and `publish_dead` return when the message is taken; [`Publisher::flush`] says that
/// all are stored. Once a message is given up, so is everything behind it, and every later call returns
/// [`Error::NotStored`] with the count: make a new publisher to try again. One publisher per execution keeps failures apart.
#[derive(Debug, Clone)]
pub struct Publisher {
    bus: Bus,
    options: PublisherOptions,
    pipeline: Pipeline,
}

impl Publisher {
    /// A publisher on `bus`. Call it inside a tokio runtime.
    pub fn new(bus: &Bus, options: PublisherOptions) -> Self {
        Self { bus: bus.clone(), pipeline: Pipeline::start(bus.clone(), options.clone()), options }
    }

    /// Takes an encoded frame; `digest` is the SHA-256 of `bytes`. `traceparent` is the execution's trace; without one
    /// the current OpenTelemetry context is used, here and below.
    pub async fn publish_frame(
        &self,
        node: &NodeId,
        execution: ExecutionId,
        vantage: Vantage,
        bytes: impl Into<Bytes>,
        digest: Digest,
        traceparent: Option<&str>,
    ) -> Result<(), Error> {
        let message = frame_message(
            (node, execution, vantage),
            (bytes.into(), self.bus.frame_encoding()),
            digest,
            traceparent,
        )?;
        self.enqueue(message).await
    }

    /// Takes a lifecycle event, behind the frames taken before. A `closed` event belongs to [`Self::publish_closed`].
    pub async fn publish_lifecycle(
        &self,
        event: &LifecycleEvent,
        traceparent: Option<&str>,
    ) -> Result<(), Error> {
        self.enqueue(lifecycle_message(event, traceparent)?).await
    }

    /// Takes a dead letter. The same letter is stored once within the stream's duplicate window.
    pub async fn publish_dead(&self, letter: &DeadLetter, traceparent: Option<&str>) -> Result<(), Error> {
        let subject = subject::dead(letter.kind);
        let bytes: Bytes = glasshouse_schema::canonical::to_vec(letter)
            .map_err(|source| Error::Encode { subject: subject.clone(), source })?
            .into();
        let mut headers = stamped(headers::JSON_TYPE, version::DEAD_LETTER, traceparent)?;
        set(&mut headers, headers::MSG_ID, &dead_msg_id(letter))?;
        headers.insert(headers::DIGEST, Digest::of(&bytes).to_string());
        self.enqueue(Outgoing { subject, headers, payload: bytes }).await
    }

    /// Waits until everything taken so far is stored.
    pub async fn flush(&self) -> Result<(), Error> {
        self.pipeline.flush().await
    }

    /// Stores the one receipt of an execution: `bytes` is its canonical JSON, `worker` who folded it.
    pub async fn publish_receipt(
        &self,
        execution: ExecutionId,
        bytes: &[u8],
        worker: &str,
        traceparent: Option<&str>,
    ) -> Result<Outcome, Error> {
        let headers = stamped(headers::JSON_TYPE, version::RECEIPT, traceparent)?;
        self.create_once(crate::RECEIPTS, &subject::receipt(execution), headers, bytes, worker).await
    }

    /// Stores the one verdict of a policy over an execution's receipt: `bytes` is its canonical JSON.
    pub async fn publish_verdict(
        &self,
        execution: ExecutionId,
        (policy, policy_digest): (&PolicyName, Digest),
        bytes: &[u8],
        worker: &str,
        traceparent: Option<&str>,
    ) -> Result<Outcome, Error> {
        let headers = stamped(headers::JSON_TYPE, version::VERDICT, traceparent)?;
        let subject = subject::verdict(execution, policy, policy_digest);
        self.create_once(crate::VERDICTS, &subject, headers, bytes, worker).await
    }

    /// Ends the record of an execution, once: whoever comes second gets the event that ended it.
    pub async fn publish_closed(
        &self,
        event: &LifecycleEvent,
        traceparent: Option<&str>,
    ) -> Result<ClosedOutcome, Error> {
        let (subject, payload) = encode_lifecycle(event)?;
        let stored_as = subject::stored(partition_of(event.execution_id), &subject).unwrap_or_default();
        let mut headers = stamped(headers::JSON_TYPE, version::LIFECYCLE, traceparent)?;
        headers.insert(headers::DIGEST, Digest::of(&payload).to_string());
        let write = Write {
            stream: crate::EVENTS,
            subject: &subject,
            stored_as: &stored_as,
            expected: 0,
            headers,
            payload,
        };
        match self.bus.put(write, self.options.deadline).await? {
            Put::Stored(_) => Ok(ClosedOutcome::Stored),
            Put::Conflict(stored) => {
                let stored = stored.ok_or_else(|| vanished(crate::EVENTS, &subject))?;
                let event = LifecycleEvent::decode(&stored.payload).map_err(|error| stored.bad(error))?;
                Ok(ClosedOutcome::AlreadyClosed(Box::new(event)))
            }
        }
    }

    async fn create_once(
        &self,
        stream: &str,
        subject: &str,
        mut headers: HeaderMap,
        body: &[u8],
        worker: &str,
    ) -> Result<Outcome, Error> {
        set(&mut headers, headers::WORKER, worker)?;
        let (digest, payload) = self.bus.wrap("", body, headers::JSON_TYPE, &mut headers).await?;
        let write = Write { stream, subject, stored_as: subject, expected: 0, headers, payload };
        match self.bus.put(write, self.options.deadline).await? {
            Put::Stored(_) => Ok(Outcome::Stored),
            Put::Conflict(stored) => {
                let stored = stored.ok_or_else(|| vanished(stream, subject))?;
                // Not the header's word: what is compared is the body that readers get.
                let stored_digest = self.digest_of(stored).await?;
                Ok(Outcome::AlreadyThere { same: stored_digest == digest, stored_digest })
            }
        }
    }

    async fn digest_of(&self, stored: StoredMessage) -> Result<Digest, Error> {
        match self.bus.resolve(stored.clone()).await {
            Ok(document) => Ok(document.digest),
            // A body that does not fit its header is still another document than ours.
            Err(Error::BadMessage { problem, .. }) => {
                tracing::warn!(
                    stream = stored.stream,
                    stream_seq = stored.stream_seq,
                    problem,
                    "stored document damaged"
                );
                Ok(Digest::of(&stored.payload))
            }
            Err(error) => Err(error),
        }
    }

    async fn enqueue(&self, message: Outgoing) -> Result<(), Error> {
        check_size(&self.bus, &message)?;
        self.pipeline.enqueue(message).await
    }
}

/// A frame as it is published; `digest` is the SHA-256 of `body`.
pub(crate) fn frame_message(
    (node, execution, vantage): (&NodeId, ExecutionId, Vantage),
    (body, encoding): (Bytes, Encoding),
    digest: Digest,
    traceparent: Option<&str>,
) -> Result<Outgoing, Error> {
    let mut headers = stamped(headers::FRAME_TYPE, version::FRAME, traceparent)?;
    let payload = encoding.encode(body, &mut headers);
    set(&mut headers, headers::MSG_ID, &headers::frame_msg_id(node, digest))?;
    headers.insert(headers::DIGEST, digest.to_string());
    Ok(Outgoing { subject: subject::frames(node, execution, vantage), headers, payload })
}

/// A lifecycle event as it is published.
pub(crate) fn lifecycle_message(
    event: &LifecycleEvent,
    traceparent: Option<&str>,
) -> Result<Outgoing, Error> {
    let (phase, node, execution) = (event.phase.name(), event.node.as_ref(), event.execution_id);
    let (subject, payload) = encode_lifecycle(event)?;
    let digest = Digest::of(&payload);
    let mut headers = stamped(headers::JSON_TYPE, version::LIFECYCLE, traceparent)?;
    set(&mut headers, headers::MSG_ID, &headers::lifecycle_msg_id(node, execution, phase, digest))?;
    headers.insert(headers::DIGEST, digest.to_string());
    Ok(Outgoing { subject, headers, payload })
}

/// Refuses what the server would end the connection for.
pub(crate) fn check_size(bus: &Bus, Outgoing { subject, headers, payload }: &Outgoing) -> Result<(), Error> {
    let header_bytes: usize = headers
        .iter()
        .flat_map(|(name, values)| {
            values.iter().map(move |value| AsRef::<str>::as_ref(name).len() + value.as_str().len() + 4)
        })
        .sum();
    // 12: the line `NATS/1.0` and the empty line that ends the headers.
    let (bytes, limit) = (payload.len() + header_bytes + 12, bus.client().max_payload());
    match bytes > limit {
        true => Err(Error::TooLarge { subject: subject.clone(), bytes, limit }),
        false => Ok(()),
    }
}

/// The partition of GH_EVENTS in which an execution's messages lie: the server's `partition(256, <execution>)`, which is
/// FNV-1a over the token (nats-server, `server/subject_transform.go`).
pub fn partition_of(execution: ExecutionId) -> u16 {
    let hash = execution
        .to_string()
        .bytes()
        .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    (hash % u32::from(subject::PARTITIONS)) as u16
}

fn encode_lifecycle(event: &LifecycleEvent) -> Result<(String, Bytes), Error> {
    let phase: PhaseName = event.phase.name();
    let subject = subject::lifecycle(event.node.as_ref(), event.execution_id, phase);
    match event.encode() {
        Ok(bytes) => Ok((subject, bytes.into())),
        Err(source) => Err(Error::Encode { subject, source }),
    }
}

/// One letter per message, kind and reason, whoever writes it.
fn dead_msg_id(letter: &DeadLetter) -> String {
    let reason = Digest::of(letter.reason.as_bytes()).short();
    format!("d:{}:{}:{}:{reason}", letter.kind.as_str(), letter.stream, letter.stream_seq)
}

fn stamped(
    content_type: &str,
    version: impl ToString,
    traceparent: Option<&str>,
) -> Result<HeaderMap, Error> {
    let mut headers = HeaderMap::new();
    headers.insert(headers::CONTENT_TYPE, content_type);
    set(&mut headers, headers::SCHEMA_VERSION, &version.to_string())?;
    trace::stamp(&mut headers, traceparent);
    Ok(headers)
}

/// Sets a header whose value comes from outside of this crate.
pub(crate) fn set(headers: &mut HeaderMap, name: &'static str, value: &str) -> Result<(), Error> {
    let bad = |_| Error::BadHeader { name, value: value.escape_default().to_string() };
    headers.insert(name, value.parse::<HeaderValue>().map_err(bad)?);
    Ok(())
}

/// A conflict whose cause is gone again: the admin role deleted it in between.
fn vanished(stream: &str, subject: &str) -> Error {
    Error::Broker {
        operation: "compare with what is stored under",
        target: subject.to_owned(),
        kind: crate::ErrorKind::Retryable,
        source: format!("it was deleted from {stream} meanwhile").into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_values_from_outside_cannot_add_headers() {
        let mut headers = HeaderMap::new();
        assert!(set(&mut headers, headers::WORKER, "a\r\nNats-Rollup: all").is_err());
        assert!(headers.is_empty());
    }
}
