//! A message of a work queue in the hands of a worker.

use std::time::Duration;

use async_nats::jetstream::message::Acker;
use async_nats::jetstream::{self, AckKind};
use async_nats::{HeaderMap, Subject};
use bytes::Bytes;

use crate::body::Document;
use crate::connect::Bus;
use crate::error::Error;
use crate::store::StoredMessage;

/// How long a message that was given back rests, so that one which nobody can handle now does not spin.
const NAK_DELAY: Duration = Duration::from_secs(1);

/// A message in hand: acknowledge it, or it goes back to the others when this is dropped.
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
    pub(crate) fn new(bus: &Bus, message: jetstream::Message) -> Result<Self, Error> {
        let (stream, stream_seq, delivered, published) = match message.info() {
            Ok(info) => (info.stream.to_owned(), info.stream_sequence, info.delivered, info.published),
            Err(error) => return Err(Error::broker("receive from", &message.subject, error)),
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

    /// The document in it, its digest verified. [`crate::ErrorKind::Poison`] calls for a dead letter and [`Self::term`].
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

    /// Says nothing: the time to acknowledge runs on.
    pub fn leave(mut self) {
        self.acker = None;
    }

    fn failed(&self, operation: &'static str, error: async_nats::Error) -> Error {
        Error::broker(operation, &self.message.subject, error)
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        // Without a runtime nobody can send the NAK; the server then waits for the time to acknowledge instead.
        if let Some(acker) = self.acker.take()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            let stream_seq = self.message.stream_seq;
            runtime.spawn(async move {
                if let Err(error) = acker.ack_with(AckKind::Nak(Some(NAK_DELAY))).await {
                    tracing::debug!(stream_seq, %error, "message not given back");
                }
            });
        }
    }
}
