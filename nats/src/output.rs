//! What commands print, live: GH_OUTPUT.
//!
//! A message says where its bytes begin in their stream, so a reader knows what it missed; one without bytes ends the stream.
//! Nothing here is acknowledged and nothing waits for a server that is away: all of the output is hashed into the record, and
//! a command must not stand still because nobody watches it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_nats::HeaderMap;
use bytes::Bytes;
use glasshouse_schema::subject::OutputStream;
use glasshouse_schema::{ExecutionId, NodeId, headers, subject};

use crate::connect::Bus;
use crate::error::Error;
use crate::reader::{EventReader, StreamStart};
use crate::store::StoredMessage;

/// How long a chunk may wait for a connection that is behind.
const PATIENCE: Duration = Duration::from_secs(2);

/// Publishes what one execution prints.
#[derive(Debug)]
pub struct OutputWriter {
    bus: Bus,
    subjects: [String; 2],
    offsets: [AtomicU64; 2],
    dropped: AtomicU64,
}

fn index(stream: OutputStream) -> usize {
    match stream {
        OutputStream::Stdout => 0,
        OutputStream::Stderr => 1,
    }
}

impl OutputWriter {
    /// For one execution on its node.
    pub fn new(bus: &Bus, node: &NodeId, execution: ExecutionId) -> Self {
        let of = |stream| subject::output(node, execution, stream);
        Self {
            bus: bus.clone(),
            subjects: [of(OutputStream::Stdout), of(OutputStream::Stderr)],
            offsets: Default::default(),
            dropped: AtomicU64::new(0),
        }
    }

    /// Publishes the next bytes of a stream, or drops and counts them. One caller per stream.
    pub async fn write(&self, stream: OutputStream, bytes: Bytes) {
        let length = bytes.len() as u64;
        let offset = self.offsets[index(stream)].fetch_add(length, Ordering::Relaxed);
        if !self.publish(stream, offset, bytes).await {
            self.dropped.fetch_add(length, Ordering::Relaxed);
        }
    }

    /// Says that both streams are over. Gives how many bytes nobody was shown.
    pub async fn end(&self) -> u64 {
        for stream in [OutputStream::Stdout, OutputStream::Stderr] {
            let length = self.offsets[index(stream)].load(Ordering::Relaxed);
            self.publish(stream, length, Bytes::new()).await;
        }
        self.dropped.load(Ordering::Relaxed)
    }

    async fn publish(&self, stream: OutputStream, offset: u64, bytes: Bytes) -> bool {
        if !self.bus.is_connected() {
            return false;
        }
        let mut headers = HeaderMap::new();
        headers.insert(headers::CONTENT_TYPE, headers::OUTPUT_TYPE);
        headers.insert(headers::OUTPUT_OFFSET, offset.to_string());
        let to = self.subjects[index(stream)].clone();
        let published = self.bus.client().publish_with_headers(to, headers, bytes);
        matches!(tokio::time::timeout(PATIENCE, published).await, Ok(Ok(())))
    }
}

/// What was printed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutputChunk {
    /// On which stream.
    pub stream: OutputStream,
    /// Where the bytes begin in it.
    pub offset: u64,
    /// The bytes; none at its end.
    pub bytes: Bytes,
}

impl OutputChunk {
    /// Reads a message of GH_OUTPUT; `None` for one that is none of ours.
    pub fn of(message: StoredMessage) -> Option<Self> {
        let offset = message.header(headers::OUTPUT_OFFSET).and_then(|text| text.parse().ok());
        match (subject::output_stream(&message.subject), offset) {
            (Some(stream), Some(offset)) => Some(Self { stream, offset, bytes: message.payload }),
            _ => {
                tracing::warn!(subject = message.subject, "output message refused");
                None
            }
        }
    }

    /// Whether the stream is over.
    pub fn is_end(&self) -> bool {
        self.bytes.is_empty()
    }
}

/// Reads what one execution prints.
#[derive(Debug)]
pub struct OutputReader {
    messages: EventReader,
}

impl OutputReader {
    /// The next chunk. Waits for ever if none comes. Safe to cancel.
    pub async fn next(&mut self) -> Result<OutputChunk, Error> {
        loop {
            if let Some(chunk) = OutputChunk::of(self.messages.next().await?) {
                return Ok(chunk);
            }
        }
    }
}

impl Bus {
    /// Reads what an execution prints, from the oldest that is stored.
    pub async fn output(&self, execution: ExecutionId) -> Result<OutputReader, Error> {
        let filters = vec![subject::output_of(execution)];
        Ok(OutputReader { messages: self.read(crate::OUTPUT, StreamStart::Oldest, filters).await? })
    }
}
