//! Dead letters from the other side: what they are about, and its way back onto the bus.

use async_nats::HeaderMap;
use async_nats::jetstream::message::PublishMessage;
use bytes::Bytes;
use glasshouse_schema::dead::{DeadKind, DeadLetter};
use glasshouse_schema::{Digest, frame, headers, lifecycle, version};

use crate::connect::Bus;
use crate::error::{self, Error, ErrorKind};
use crate::publisher::set;
use crate::retry::Backoff;
use crate::store::StoredMessage;
use crate::trace;

/// The body that a dead letter is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LetterBody {
    /// All of it, with the digest that the letter names.
    Whole(Bytes),
    /// It cannot be had any more, and why.
    Gone(String),
}

/// What became of a message that was published again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replayed {
    /// Its sequence in the stream that took it.
    pub stream_seq: u64,
    /// The stream took this very replay before.
    pub is_duplicate: bool,
}

impl Bus {
    /// The whole body that a letter is about: what the letter quotes, or else what its stream still holds.
    pub async fn letter_body(&self, letter: &DeadLetter) -> Result<LetterBody, Error> {
        if let Some(body) = letter.whole_body() {
            return Ok(LetterBody::Whole(body.into()));
        }
        let (stream, seq) = (letter.stream.as_str(), letter.stream_seq);
        // Whoever may write dead letters must not choose what else is read here.
        if ![crate::EVENTS, crate::RECEIPTS, crate::VERDICTS].contains(&stream) {
            return Ok(LetterBody::Gone(
                "the letter quotes a part of it and names a stream that is none of ours".into(),
            ));
        }
        let Some(message) = self.message(stream, seq).await? else {
            let bytes = letter.body_bytes;
            return Ok(LetterBody::Gone(format!(
                "the letter quotes only a part of its {bytes} bytes, and message {seq} is not in {stream} any more"
            )));
        };
        Ok(match self.body_with(message, letter.body_digest).await? {
            Some(body) => LetterBody::Whole(body),
            None => LetterBody::Gone(format!(
                "the letter quotes only a part of it, and message {seq} of {stream} has another digest"
            )),
        })
    }

    /// The message's body if it has this digest, also one that lies in the object store.
    async fn body_with(&self, message: StoredMessage, digest: Digest) -> Result<Option<Bytes>, Error> {
        if Digest::of(&message.payload) == digest {
            return Ok(Some(message.payload));
        }
        match self.resolve(message).await {
            Ok(document) => Ok((document.digest == digest).then_some(document.body)),
            Err(error) if error.kind() == ErrorKind::Poison => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Publishes the message of the letter `dead_seq` of GH_DEAD again. `subject` is its [`DeadLetter::replay_subject`], `body`
    /// its [`Bus::letter_body`]. Within the stream's duplicate window a letter is published again only once.
    pub async fn replay(
        &self,
        dead_seq: u64,
        letter: &DeadLetter,
        subject: &str,
        body: Bytes,
        traceparent: Option<&str>,
    ) -> Result<Replayed, Error> {
        let headers = replay_headers(dead_seq, letter, &body, traceparent)?;
        let mut backoff = Backoff::until(self.timeout() * 3);
        loop {
            let message = PublishMessage::build().headers(headers.clone()).payload(body.clone());
            let answer = match self.jetstream().send_publish(subject.to_owned(), message).await {
                Ok(ack) => ack.await,
                Err(error) => Err(error),
            };
            let error = match answer {
                Ok(ack) => return Ok(Replayed { stream_seq: ack.sequence, is_duplicate: ack.duplicate }),
                Err(error) => error,
            };
            let kind = error::publish_kind(&error);
            if kind != ErrorKind::Retryable || !backoff.wait().await {
                let reason = error::publish_reason(&error);
                return Err(Error::NotStored { messages: 1, subject: subject.to_owned(), reason, kind });
            }
        }
    }
}

/// The headers that a message of its kind has. The version is the one that the body says, which may be newer than ours.
fn replay_headers(
    dead_seq: u64,
    letter: &DeadLetter,
    body: &[u8],
    traceparent: Option<&str>,
) -> Result<HeaderMap, Error> {
    let (content_type, version) = match letter.kind {
        DeadKind::Frame => {
            (headers::FRAME_TYPE, u32::from(frame::version_of(body).unwrap_or(version::FRAME)))
        }
        _ => (headers::JSON_TYPE, lifecycle::version_of(body).unwrap_or(version::LIFECYCLE)),
    };
    let mut headers = HeaderMap::new();
    headers.insert(headers::CONTENT_TYPE, content_type);
    set(&mut headers, headers::SCHEMA_VERSION, &version.to_string())?;
    set(&mut headers, headers::MSG_ID, &headers::replay_msg_id(dead_seq, letter.body_digest))?;
    headers.insert(headers::DIGEST, letter.body_digest.to_string());
    trace::stamp(&mut headers, traceparent);
    Ok(headers)
}
