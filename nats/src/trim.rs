//! Removing what is old from a stream.

use async_nats::jetstream::stream::LastRawMessageErrorKind;
use glasshouse_schema::{ExecutionId, subject};

use crate::connect::Bus;
use crate::error::Error;
use crate::reader::StreamPosition;
use crate::store::StoredMessage;

impl Bus {
    /// The sequence of the first message that was not stored before `unix_ns`, by the server's clock, or one before it that is
    /// missing.
    pub async fn first_since(
        &self,
        stream: &str,
        position: &StreamPosition,
        unix_ns: i128,
    ) -> Result<u64, Error> {
        let (mut old, mut end) = (position.first_seq, position.last_seq + 1);
        while old < end {
            let middle = old + (end - old) / 2;
            match self.message_from(stream, middle).await? {
                Some(message) if message.stored_unix_ns < unix_ns => old = message.stream_seq + 1,
                _ => end = middle,
            }
        }
        Ok(old)
    }

    /// Removes every message before a sequence and gives how many there were.
    pub async fn remove_before(&self, stream: &str, seq: u64) -> Result<u64, Error> {
        let found = self.stream(stream).await?;
        let purged = found.purge().sequence(seq).await;
        purged.map(|purged| purged.purged).map_err(|error| Error::broker("trim", stream, error))
    }
    /// Removes the events of one execution that stand before a sequence, all at once, and gives how many there were.
    pub async fn remove_events_of(&self, execution: ExecutionId, before: u64) -> Result<u64, Error> {
        let events = self.stream(crate::EVENTS).await?;
        let purged = events.purge().sequence(before).filter(subject::stored_of(execution)).await;
        purged.map(|purged| purged.purged).map_err(|error| Error::broker("trim", crate::EVENTS, error))
    }

    /// The message at a sequence, or the first behind it.
    async fn message_from(&self, name: &str, seq: u64) -> Result<Option<StoredMessage>, Error> {
        let stream = self.stream(name).await?;
        match stream.get_first_raw_message_by_subject(">", seq).await {
            Ok(message) => Ok(Some(StoredMessage::from_stream(name, message))),
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) => Err(Error::broker("read a message of", name, error)),
        }
    }
}
