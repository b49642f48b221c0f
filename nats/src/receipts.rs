//! The policy workers' queue: one durable consumer of GH_RECEIPTS that any number of workers share.

use std::time::Duration;

use async_nats::jetstream::consumer::pull::{Config, Stream};
use async_nats::jetstream::consumer::{AckPolicy, Consumer};
use async_nats::jetstream::message::Acker;
use async_nats::jetstream::{self, AckKind};
use async_nats::{HeaderMap, Subject};
use bytes::Bytes;
use futures::StreamExt;

use crate::body::Document;
use crate::connect::Bus;
use crate::error::{Error, ErrorKind};
use crate::retry::Backoff;
use crate::store::StoredMessage;

/// The durable consumer that policy workers share.
pub const POLICY_WORKERS: &str = "policy-workers";

/// How long a worker may keep a receipt without a word; [`Delivery::progress`] starts it anew.
const ACK_WAIT: Duration = Duration::from_secs(30);
/// Small, so that one worker does not hoard what others could do.
const BATCH: usize = 16;
/// How long a receipt that was given back rests, so that one which nobody can handle now does not spin.
const NAK_DELAY: Duration = Duration::from_secs(1);

/// Receipts for this worker.
pub struct ReceiptConsumer {
    bus: Bus,
    durable: String,
    messages: Option<Stream>,
    backoff: Backoff,
}

impl std::fmt::Debug for ReceiptConsumer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReceiptConsumer").field("durable", &self.durable).finish()
    }
}

impl ReceiptConsumer {
    /// Joins the workers of a durable consumer ([`POLICY_WORKERS`], or a subscriber's own name), which is created if it is
    /// missing and used as it is if it is there.
    pub async fn join(bus: &Bus, durable: &str) -> Result<Self, Error> {
        let mut consumer = Self {
            bus: bus.clone(),
            durable: durable.to_owned(),
            messages: None,
            backoff: Backoff::forever(),
        };
        // Opened here, so that what is wrong now is said now.
        consumer.open().await?;
        Ok(consumer)
    }

    /// The next receipt. Waits for ever if none comes, also while the server is away. Safe to cancel.
    pub async fn next(&mut self) -> Result<Delivery, Error> {
        loop {
            let Some(messages) = self.messages.as_mut() else {
                match self.open().await {
                    Ok(()) => {}
                    Err(error) if error.kind() == ErrorKind::Retryable => self.pause(&error).await,
                    Err(error) => return Err(error),
                }
                continue;
            };
            match messages.next().await {
                Some(Ok(message)) => {
                    self.backoff.reset();
                    return Delivery::new(&self.bus, message);
                }
                Some(Err(error)) => {
                    self.messages = None;
                    let error = Error::broker("receive from", &self.durable, error);
                    self.pause(&error).await;
                }
                None => self.messages = None,
            }
        }
    }

    async fn pause(&mut self, error: &Error) {
        tracing::warn!(consumer = self.durable, %error, "receiving interrupted, trying again");
        self.backoff.wait().await;
    }

    async fn open(&mut self) -> Result<(), Error> {
        let config = Config {
            durable_name: Some(self.durable.clone()),
            ack_policy: AckPolicy::Explicit,
            ack_wait: ACK_WAIT,
            // No limit: a receipt that cannot be handled is set aside by the worker, with a reason, not dropped in silence here.
            max_deliver: -1,
            max_ack_pending: 1024,
            ..Config::default()
        };
        let stream = self.bus.stream(crate::RECEIPTS).await?;
        let failed = |error: async_nats::Error| Error::broker("open consumer", &self.durable, error);
        let consumer: Consumer<Config> = stream
            .get_or_create_consumer(&self.durable, config)
            .await
            .map_err(|error| failed(error.into()))?;
        let messages = consumer
            .stream()
            .max_messages_per_batch(BATCH)
            .expires(Duration::from_secs(20))
            .heartbeat(Duration::from_secs(5))
            .messages()
            .await
            .map_err(|error| failed(error.into()))?;
        self.messages = Some(messages);
        Ok(())
    }
}

/// A receipt in hand: acknowledge it, or it goes back to the workers when this is dropped.
#[must_use = "a delivery that is dropped is delivered again"]
pub struct Delivery {
    bus: Bus,
    message: StoredMessage,
    delivered: u64,
    /// Where acknowledgements go, for the one that the client has no words for.
    reply: Option<Subject>,
    acker: Option<Acker>,
}

impl std::fmt::Debug for Delivery {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Delivery")
            .field("subject", &self.message.subject)
            .field("stream_seq", &self.message.stream_seq)
            .field("delivered", &self.delivered)
            .finish()
    }
}

impl Delivery {
    fn new(bus: &Bus, message: jetstream::Message) -> Result<Self, Error> {
        let (stream, stream_seq, delivered, published) = match message.info() {
            Ok(info) => (info.stream.to_owned(), info.stream_sequence, info.delivered, info.published),
            Err(error) => return Err(Error::broker("receive from", crate::RECEIPTS, error)),
        };
        let reply = message.reply.clone();
        let (message, acker) = message.split();
        Ok(Self {
            bus: bus.clone(),
            message: StoredMessage {
                stream,
                stream_seq,
                subject: message.subject.to_string(),
                stored_unix_ns: published.unix_timestamp_nanos(),
                headers: message.headers.unwrap_or_default(),
                payload: message.payload,
            },
            delivered: u64::try_from(delivered).unwrap_or(0),
            reply,
            acker: Some(acker),
        })
    }

    /// The message as the stream holds it.
    pub fn message(&self) -> &StoredMessage {
        &self.message
    }

    /// Its headers, for [`crate::trace::extract`].
    pub fn headers(&self) -> &HeaderMap {
        &self.message.headers
    }

    /// How often it was delivered, this time included.
    pub fn delivered(&self) -> u64 {
        self.delivered
    }

    /// The receipt, its digest verified. [`ErrorKind::Poison`] calls for a dead letter and [`Self::term`].
    pub async fn document(&self) -> Result<Document, Error> {
        self.bus.resolve(self.message.clone()).await
    }

    /// Done: it will not come again. Waits for the server to confirm; without that it comes again.
    pub async fn ack(mut self) -> Result<(), Error> {
        match self.acker.take() {
            Some(acker) => acker.double_ack().await.map_err(|error| self.failed("acknowledge", error)),
            None => Ok(()),
        }
    }

    /// Never again, for this reason, which the server passes on in its advisory. Publish a dead letter first.
    pub async fn term(mut self, reason: &str) -> Result<(), Error> {
        self.acker = None;
        let Some(reply) = self.reply.take() else { return Ok(()) };
        // The reason ends the line, so it is one (nats-server, `AckTerm`).
        let reason: String = reason.chars().map(|c| if c.is_control() { ' ' } else { c }).take(256).collect();
        let confirmed = self.bus.client().request(reply, Bytes::from(format!("+TERM {reason}"))).await;
        confirmed.map(|_| ()).map_err(|error| self.failed("terminate", error.into()))
    }

    /// Not now: it comes again after `delay`.
    pub async fn nak(mut self, delay: Duration) -> Result<(), Error> {
        match self.acker.take() {
            Some(acker) => acker
                .ack_with(AckKind::Nak(Some(delay)))
                .await
                .map_err(|error| self.failed("give back", error)),
            None => Ok(()),
        }
    }

    /// Still at work: the time to acknowledge starts anew.
    pub async fn progress(&self) -> Result<(), Error> {
        match &self.acker {
            Some(acker) => {
                acker.ack_with(AckKind::Progress).await.map_err(|error| self.failed("keep", error))
            }
            None => Ok(()),
        }
    }

    fn failed(&self, operation: &'static str, error: async_nats::Error) -> Error {
        Error::broker(operation, &self.message.subject, error)
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        // Without a runtime nobody can send the NAK; the server then waits for ACK_WAIT instead.
        if let Some(acker) = self.acker.take()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            let stream_seq = self.message.stream_seq;
            runtime.spawn(async move {
                if let Err(error) = acker.ack_with(AckKind::Nak(Some(NAK_DELAY))).await {
                    tracing::debug!(stream_seq, %error, "receipt not given back");
                }
            });
        }
    }
}
