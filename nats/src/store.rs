//! The one primitive behind everything that may be written only once or only by compare-and-set: store a message if the
//! subject's last sequence is the expected one, else say what is there.

use async_nats::HeaderMap;
use async_nats::jetstream::context::PublishErrorKind;
use async_nats::jetstream::message::{PublishMessage, StreamMessage};
use async_nats::jetstream::stream::LastRawMessageErrorKind;
use bytes::Bytes;
use glasshouse_schema::{Digest, headers};
use std::time::Duration;

use crate::connect::Bus;
use crate::error::{self, Error, ErrorKind};
use crate::retry::Backoff;

/// A message as a stream holds it.
#[derive(Debug, Clone)]
pub struct StoredMessage {
    /// The stream.
    pub stream: String,
    /// Its sequence there.
    pub stream_seq: u64,
    /// The subject under which it is stored.
    pub subject: String,
    /// When the stream took it, nanoseconds since the Unix epoch.
    pub stored_unix_ns: i128,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub payload: Bytes,
}

impl StoredMessage {
    pub(crate) fn from_stream(stream: &str, message: StreamMessage) -> Self {
        Self {
            stream: stream.to_owned(),
            stream_seq: message.sequence,
            subject: message.subject.to_string(),
            stored_unix_ns: message.time.unix_timestamp_nanos(),
            headers: message.headers,
            payload: message.payload,
        }
    }

    /// The text of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(async_nats::HeaderValue::as_str)
    }

    /// Tells this message from any other that the stream may hold at its sequence after it was restored from a copy.
    pub fn fingerprint(&self) -> Digest {
        let id = self.header(headers::MSG_ID).unwrap_or_default();
        let text = format!("{}\n{}\n{id}\n{}", self.stored_unix_ns, self.subject, Digest::of(&self.payload));
        Digest::of(text.as_bytes())
    }

    pub(crate) fn bad(&self, problem: impl ToString) -> Error {
        Error::BadMessage {
            stream: self.stream.clone(),
            stream_seq: self.stream_seq,
            problem: problem.to_string(),
        }
    }
}

/// What became of a conditional write.
#[derive(Debug)]
pub(crate) enum Put {
    /// It is stored under this sequence.
    Stored(u64),
    /// Something else is the subject's last message, or nothing is where something was expected. It may be this very
    /// message, whose acknowledgement was lost: compare.
    Conflict(Option<StoredMessage>),
}

/// A conditional write.
pub(crate) struct Write<'a> {
    /// The stream that takes the subject.
    pub(crate) stream: &'a str,
    /// Where to publish.
    pub(crate) subject: &'a str,
    /// Under which subject (wildcards allowed) the stream stores it.
    pub(crate) stored_as: &'a str,
    /// The subject's last sequence; 0 for none.
    pub(crate) expected: u64,
    pub(crate) headers: HeaderMap,
    pub(crate) payload: Bytes,
}

impl Bus {
    /// Stores a message if the subject's last sequence is the expected one, trying again up to the deadline.
    pub(crate) async fn put(&self, write: Write<'_>, deadline: Duration) -> Result<Put, Error> {
        let mut backoff = Backoff::until(deadline);
        loop {
            let message = PublishMessage::build()
                .headers(write.headers.clone())
                .payload(write.payload.clone())
                .expected_last_subject_sequence(write.expected);
            let answer = match self.jetstream().send_publish(write.subject.to_owned(), message).await {
                Ok(ack) => ack.await,
                Err(error) => Err(error),
            };
            let error = match answer {
                Ok(ack) => return Ok(Put::Stored(ack.sequence)),
                Err(error) => error,
            };
            if error.kind() == PublishErrorKind::WrongLastSequence {
                return Ok(Put::Conflict(self.last(write.stream, write.stored_as, deadline).await?));
            }
            let kind = error::publish_kind(&error);
            tracing::debug!(subject = write.subject, %error, "publish refused");
            if kind != ErrorKind::Retryable || !backoff.wait().await {
                return Err(Error::NotStored {
                    messages: 1,
                    subject: write.subject.to_owned(),
                    reason: error::publish_reason(&error),
                    kind,
                });
            }
        }
    }

    /// The last message of a subject as the stream's leader knows it, trying again up to the deadline.
    pub(crate) async fn last(
        &self,
        stream: &str,
        subject: &str,
        deadline: Duration,
    ) -> Result<Option<StoredMessage>, Error> {
        let mut backoff = Backoff::until(deadline);
        loop {
            let error = match self.try_last(stream, subject).await {
                Ok(found) => return Ok(found),
                Err(error) => error,
            };
            if error.kind() != ErrorKind::Retryable || !backoff.wait().await {
                return Err(error);
            }
        }
    }

    /// The message at a sequence; `None` if it is not there (any more).
    pub async fn message(&self, name: &str, stream_seq: u64) -> Result<Option<StoredMessage>, Error> {
        let stream = self.stream_called(name).await?;
        match stream.get_raw_message(stream_seq).await {
            Ok(message) => Ok(Some(StoredMessage::from_stream(name, message))),
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) => Err(Error::broker("read a message of", name, error)),
        }
    }

    /// Every message of a subject (wildcards allowed), oldest first, without a consumer.
    pub(crate) async fn messages_of(&self, name: &str, subject: &str) -> Result<Vec<StoredMessage>, Error> {
        let stream = self.stream_called(name).await?;
        let mut messages: Vec<StoredMessage> = Vec::new();
        loop {
            let from = messages.last().map_or(1, |last| last.stream_seq + 1);
            match stream.get_first_raw_message_by_subject(subject, from).await {
                Ok(message) => messages.push(StoredMessage::from_stream(name, message)),
                Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => return Ok(messages),
                Err(error) => return Err(Error::broker("read", name, error)),
            }
        }
    }

    async fn try_last(&self, name: &str, subject: &str) -> Result<Option<StoredMessage>, Error> {
        let stream = self.stream_called(name).await?;
        match stream.get_last_raw_message_by_subject(subject).await {
            Ok(message) => Ok(Some(StoredMessage::from_stream(name, message))),
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) => Err(Error::broker("read the last message of", subject, error)),
        }
    }
}
