//! Reading what a stream held at one moment, to its end: for whoever must come to one, where a reader waits for more.

use std::time::Duration;

use async_nats::jetstream::stream::LastRawMessageErrorKind;

use crate::connect::Bus;
use crate::error::Error;
use crate::reader::{EventReader, StreamPosition, StreamStart};
use crate::store::StoredMessage;

/// How long nothing may come before it is asked whether there is more: what was waiting may be deleted meanwhile, and the
/// server may be away.
const PATIENCE: Duration = Duration::from_secs(3);

/// The messages that a stream held when this was made, in order.
#[derive(Debug)]
pub struct Snapshot {
    bus: Bus,
    reader: EventReader,
    stream: String,
    filters: Vec<String>,
    position: StreamPosition,
    is_over: bool,
}

impl Snapshot {
    /// Where the stream stood.
    pub fn position(&self) -> &StreamPosition {
        &self.position
    }

    /// The next message, or `None` after the last. Fails when the server does not answer. Not safe to cancel.
    pub async fn next(&mut self) -> Result<Option<StoredMessage>, Error> {
        while !self.is_over {
            let is_read = self.reader.next_seq() > self.position.last_seq;
            if is_read || self.reader.pending() == Some(0) {
                break;
            }
            match tokio::time::timeout(PATIENCE, self.reader.next()).await {
                Ok(message) => {
                    let message = message?;
                    if message.stream_seq > self.position.last_seq {
                        break;
                    }
                    return Ok(Some(message));
                }
                Err(_) if self.has_more().await? => {}
                Err(_) => break,
            }
        }
        self.is_over = true;
        Ok(None)
    }

    async fn has_more(&mut self) -> Result<bool, Error> {
        let stream = self.bus.stream(&self.stream).await?;
        let filters = self.filters.iter().map(String::as_str);
        let everything = self.filters.is_empty().then_some(">");
        for filter in filters.chain(everything) {
            match stream.get_first_raw_message_by_subject(filter, self.reader.next_seq()).await {
                Ok(message) if message.sequence <= self.position.last_seq => return Ok(true),
                Ok(_) => {}
                Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => {}
                Err(error) => return Err(Error::broker("read", &self.stream, error)),
            }
        }
        Ok(false)
    }
}

impl Bus {
    /// What a stream holds now under the subjects of `filters`.
    pub async fn snapshot(&self, stream: &str, filters: Vec<String>) -> Result<Snapshot, Error> {
        let position = self.position(stream).await?;
        self.snapshot_from(stream, position, position.first_seq, filters).await
    }

    /// The last `newest` messages that a stream holds now under the subjects of `filters`, and perhaps some before them.
    pub async fn snapshot_of_newest(
        &self,
        stream: &str,
        newest: u64,
        filters: Vec<String>,
    ) -> Result<Snapshot, Error> {
        let position = self.position(stream).await?;
        // Further and further back, because nobody can tell how many of the messages have these subjects.
        let mut width = newest.max(1);
        loop {
            let first_seq = (position.last_seq + 1).saturating_sub(width).max(position.first_seq);
            let snapshot = self.snapshot_from(stream, position, first_seq, filters.clone()).await?;
            if first_seq <= position.first_seq
                || snapshot.reader.pending().is_some_and(|found| found >= newest)
            {
                return Ok(snapshot);
            }
            width = width.saturating_mul(4);
        }
    }

    async fn snapshot_from(
        &self,
        stream: &str,
        position: StreamPosition,
        first_seq: u64,
        filters: Vec<String>,
    ) -> Result<Snapshot, Error> {
        let reader = self.read(stream, StreamStart::Sequence(first_seq), filters.clone()).await?;
        Ok(Snapshot {
            bus: self.clone(),
            reader,
            stream: stream.to_owned(),
            filters,
            position,
            is_over: position.messages == 0,
        })
    }
}
