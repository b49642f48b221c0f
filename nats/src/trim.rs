//! Removing what is old from the front of a stream.

use crate::connect::Bus;
use crate::error::Error;
use crate::reader::StreamPosition;

impl Bus {
    /// A sequence before which every message was stored before `unix_ns`, by the server's clock: the first that was not, or one
    /// before it where messages are missing in between.
    pub async fn first_since(
        &self,
        stream: &str,
        position: &StreamPosition,
        unix_ns: i128,
    ) -> Result<u64, Error> {
        let (mut old, mut end) = (position.first_seq, position.last_seq + 1);
        while old < end {
            let middle = old + (end - old) / 2;
            match self.message(stream, middle).await? {
                Some(message) if message.stored_unix_ns < unix_ns => old = middle + 1,
                // One that was deleted says nothing, so nothing behind it counts as old.
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
}
