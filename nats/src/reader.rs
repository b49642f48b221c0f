//! Reading streams in order, without acknowledgements: the reader remembers where it is, the server does not.

use std::time::Duration;

use tokio::time::Instant;

use async_nats::jetstream::consumer::pull::{Ordered, OrderedConfig};
use async_nats::jetstream::consumer::{Consumer, DeliverPolicy};
use futures::{FutureExt, StreamExt};
use glasshouse_schema::lifecycle::PhaseName;
use glasshouse_schema::{ExecutionId, LifecycleEvent, subject};
use tokio::sync::watch;

use crate::body::Document;
use crate::connect::Bus;
use crate::error::{Error, ErrorKind};
use crate::reserve::own_limit;
use crate::retry::Backoff;
use crate::store::StoredMessage;

/// How often it is looked whether the stream is still the one that was read: it can be deleted and restored while the
/// connection stays up.
const VERIFY_EVERY: Duration = Duration::from_secs(5);

/// Where to begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamStart {
    /// With the oldest message that is still there.
    Oldest,
    /// With what comes after this moment.
    New,
    /// With this sequence, or the first one after it that is still there.
    Sequence(u64),
}

/// What a stream is and where it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamPosition {
    /// When it was created, nanoseconds since the Unix epoch: a stream made anew has another identity, whatever its name.
    pub created_unix_ns: i128,
    /// The oldest sequence still there.
    pub first_seq: u64,
    /// The newest sequence ever given.
    pub last_seq: u64,
    /// How many messages it holds.
    pub messages: u64,
    /// How many bytes these have.
    pub bytes: u64,
    /// How many it may have, if it has a limit.
    pub max_bytes: Option<u64>,
    /// How many it may have now: more while room is [lent](Bus::lend_room).
    pub limit_now: Option<u64>,
}

/// Reads a stream in order from a sequence on, over reconnects and server restarts.
///
/// The underlying ordered consumer starts again from the stream's beginning if its server restarts before it delivered
/// anything, so the sequence that comes next is kept here and what lies before it is never yielded twice.
pub struct EventReader {
    bus: Bus,
    stream: String,
    filters: Vec<String>,
    next_seq: u64,
    messages: Option<Ordered>,
    /// The server's name for what it delivers by.
    consumer: String,
    connections: watch::Receiver<u64>,
    /// When the stream was created that is read.
    created_unix_ns: Option<i128>,
    /// Sequence and time of the last message read: another message there says that the stream was restored.
    last_read: Option<(u64, i128)>,
    verify_at: Instant,
    pending: Option<u64>,
    backoff: Backoff,
}

impl std::fmt::Debug for EventReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EventReader").field("stream", &self.stream).field("next_seq", &self.next_seq).finish()
    }
}

impl EventReader {
    /// The sequence from which on nothing has been read.
    pub fn next_seq(&self) -> u64 {
        self.next_seq
    }

    /// How many messages were waiting when the reader (re)connected or delivered last; `None` before it knows.
    pub fn pending(&self) -> Option<u64> {
        self.pending
    }

    /// The next message. Waits for ever if none comes, also while the server is away; fails only if reading on cannot
    /// succeed without somebody's help, or with [`Error::Rewound`] if the stream was restored from an older copy or made anew.
    /// Safe to cancel, but a reader that is always cancelled before it could connect never connects.
    pub async fn next(&mut self) -> Result<StoredMessage, Error> {
        loop {
            let Some(messages) = self.messages.as_mut() else {
                match self.open().await {
                    Ok(()) => continue,
                    Err(error) if error.kind() == ErrorKind::Retryable => self.pause(&error).await,
                    Err(error) => return Err(error),
                }
                continue;
            };
            // What has arrived is taken without the price of waiting for anything.
            let is_due = self.connections.has_changed().unwrap_or(false) || self.verify_at <= Instant::now();
            let arrived = if is_due { None } else { messages.next().now_or_never() };
            let next = match arrived {
                Some(next) => next,
                None => tokio::select! {
                    biased;
                    // The consumer may be gone with the server; asking for it anew is quicker than missing its heartbeats.
                    Ok(()) = self.connections.changed() => {
                        self.messages = None;
                        continue;
                    }
                    () = tokio::time::sleep_until(self.verify_at) => {
                        self.verify_at = Instant::now() + VERIFY_EVERY;
                        // Without a connection nothing answers, and with the next one it is compared anyway.
                        if !self.bus.is_connected() {
                            continue;
                        }
                        match self.verify().await {
                            Err(error @ Error::Rewound { .. }) => return Err(error),
                            // Reading itself says what is wrong.
                            Err(error) => tracing::debug!(stream = self.stream, %error, "stream not compared"),
                            Ok(()) if self.is_served().await => {}
                            Ok(()) => self.messages = None,
                        }
                        continue;
                    }
                    next = messages.next() => next,
                },
            };
            match next {
                Some(Ok(message)) => {
                    let info = match message.info() {
                        Ok(info) => info,
                        Err(error) => return Err(Error::broker("read", &self.stream, error)),
                    };
                    let (stream_seq, pending) = (info.stream_sequence, info.pending);
                    let stored_unix_ns = info.published.unix_timestamp_nanos();
                    if stream_seq < self.next_seq {
                        self.messages = None;
                        continue;
                    }
                    self.backoff.reset();
                    self.next_seq = stream_seq + 1;
                    self.last_read = Some((stream_seq, stored_unix_ns));
                    self.pending = Some(pending);
                    let (message, _) = message.split();
                    return Ok(StoredMessage {
                        stream: self.stream.clone(),
                        stream_seq,
                        subject: message.subject.to_string(),
                        stored_unix_ns,
                        headers: message.headers.unwrap_or_default(),
                        payload: message.payload,
                    });
                }
                Some(Err(error)) => {
                    self.messages = None;
                    let error = Error::broker("read", &self.stream, error);
                    self.pause(&error).await;
                }
                None => self.messages = None,
            }
        }
    }

    async fn pause(&mut self, error: &Error) {
        tracing::warn!(stream = self.stream, next_seq = self.next_seq, %error, "reading interrupted, trying again");
        self.backoff.wait().await;
    }

    /// Compares the stream with what was read of it.
    async fn verify(&mut self) -> Result<(), Error> {
        let position = self.bus.position(&self.stream).await?;
        let rewound = |found: String| Error::Rewound { stream: self.stream.clone(), found };
        if self.created_unix_ns.is_some_and(|created| created != position.created_unix_ns) {
            return Err(rewound("it was created at another time".into()));
        }
        if position.last_seq + 1 < self.next_seq {
            let (next, last) = (self.next_seq, position.last_seq);
            return Err(rewound(format!("{next} is to be read next, and its last message is {last}")));
        }
        // It may have grown again. A message that is missing was removed.
        if let Some((seq, time)) = self.last_read
            && seq >= position.first_seq
            && let Some(found) = self.bus.message(&self.stream, seq).await?
            && found.stored_unix_ns != time
        {
            return Err(rewound(format!("message {seq} is another one than the one that was read")));
        }
        self.created_unix_ns = Some(position.created_unix_ns);
        Ok(())
    }

    /// Whether the server still has the consumer. In a cluster it is gone with the member that had it; that its heartbeats are
    /// missing would show after half a minute only.
    async fn is_served(&mut self) -> bool {
        match self.bus.stream(&self.stream).await {
            Ok(stream) => stream.consumer_info(&self.consumer).await.is_ok(),
            Err(_) => true,
        }
    }

    async fn open(&mut self) -> Result<(), Error> {
        self.connections.mark_unchanged();
        self.verify().await?;
        self.verify_at = Instant::now() + VERIFY_EVERY;
        let config = OrderedConfig {
            filter_subjects: self.filters.clone(),
            // Sequences start at 1.
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: self.next_seq.max(1) },
            ..OrderedConfig::default()
        };
        let failed = |error: async_nats::Error| Error::broker("read", &self.stream, error);
        let consumer: Consumer<OrderedConfig> = self
            .bus
            .jetstream()
            .create_consumer_on_stream(config, self.stream.as_str())
            .await
            .map_err(|error| failed(error.into()))?;
        self.pending = Some(consumer.cached_info().num_pending);
        self.consumer.clone_from(&consumer.cached_info().name);
        self.messages = Some(consumer.messages().await.map_err(|error| failed(error.into()))?);
        Ok(())
    }
}

/// Documents of a stream as they come, their bodies resolved and verified.
#[derive(Debug)]
pub struct Tail {
    bus: Bus,
    reader: EventReader,
}

impl Tail {
    /// The next document. After [`ErrorKind::Poison`] the one after it can be asked for. Safe to cancel, except that what
    /// was cancelled while its large body was being read is not yielded again.
    pub async fn next(&mut self) -> Result<Document, Error> {
        let message = self.reader.next().await?;
        self.bus.resolve(message).await
    }
}

impl Bus {
    /// What a stream is and where it stands.
    pub async fn position(&self, stream: &str) -> Result<StreamPosition, Error> {
        let stream = self.stream(stream).await?;
        let info = stream.cached_info();
        Ok(StreamPosition {
            created_unix_ns: info.created.unix_timestamp_nanos(),
            first_seq: info.state.first_sequence,
            last_seq: info.state.last_sequence,
            messages: info.state.messages,
            bytes: info.state.bytes,
            max_bytes: u64::try_from(own_limit(&info.config)).ok(),
            limit_now: u64::try_from(info.config.max_bytes).ok(),
        })
    }

    /// Reads GH_EVENTS from `start` on; `filters` are subjects from [`subject::stored_partition`] or
    /// [`subject::stored_events_of`], none for everything.
    pub async fn events(&self, start: StreamStart, filters: Vec<String>) -> Result<EventReader, Error> {
        self.read(crate::EVENTS, start, filters).await
    }

    /// Reads GH_EVENTS from a sequence on, as one who has read `last` before: if another message stands there now, the stream
    /// was restored, and this fails with [`Error::Rewound`] instead of passing by what came in its place.
    pub async fn events_after(
        &self,
        last: Option<&StoredMessage>,
        next_seq: u64,
        filters: Vec<String>,
    ) -> Result<EventReader, Error> {
        let last_read = last.map(|last| (last.stream_seq, last.stored_unix_ns));
        self.read_from(crate::EVENTS, next_seq, last_read, filters).await
    }

    /// Reads any stream.
    pub async fn read(
        &self,
        stream: &str,
        start: StreamStart,
        filters: Vec<String>,
    ) -> Result<EventReader, Error> {
        let next_seq = match start {
            StreamStart::Oldest => 1,
            StreamStart::Sequence(seq) => seq,
            StreamStart::New => self.position(stream).await?.last_seq + 1,
        };
        self.read_from(stream, next_seq, None, filters).await
    }

    async fn read_from(
        &self,
        stream: &str,
        next_seq: u64,
        last_read: Option<(u64, i128)>,
        filters: Vec<String>,
    ) -> Result<EventReader, Error> {
        let mut reader = EventReader {
            bus: self.clone(),
            stream: stream.to_owned(),
            filters,
            next_seq,
            messages: None,
            consumer: String::new(),
            connections: self.connections(),
            created_unix_ns: None,
            last_read,
            verify_at: Instant::now(),
            pending: None,
            backoff: Backoff::forever(),
        };
        // Opened here, so that what is wrong now is said now.
        reader.open().await?;
        Ok(reader)
    }

    /// Receipts as they come.
    pub async fn tail_receipts(&self, start: StreamStart) -> Result<Tail, Error> {
        self.tail(crate::RECEIPTS, start, Vec::new()).await
    }

    /// Verdicts as they come.
    pub async fn tail_verdicts(&self, start: StreamStart) -> Result<Tail, Error> {
        self.tail(crate::VERDICTS, start, Vec::new()).await
    }

    async fn tail(&self, stream: &str, start: StreamStart, filters: Vec<String>) -> Result<Tail, Error> {
        Ok(Tail { bus: self.clone(), reader: self.read(stream, start, filters).await? })
    }

    /// The sequence of the event that closed an execution, if it is closed.
    pub async fn closed_at(&self, execution: ExecutionId) -> Result<Option<u64>, Error> {
        let published = subject::lifecycle(None, execution, PhaseName::Closed);
        let stored = subject::stored(crate::partition_of(execution), &published).unwrap_or_default();
        let closed = self.last(crate::EVENTS, &stored, self.timeout()).await?;
        Ok(closed.map(|closed| closed.stream_seq))
    }

    /// The sequence of the last event of an execution that GH_EVENTS holds.
    pub async fn last_event_of(&self, execution: ExecutionId) -> Result<Option<u64>, Error> {
        let mut last = None;
        for subject in subject::stored_events_of(execution) {
            let found = self.last(crate::EVENTS, &subject, self.timeout()).await?;
            last = last.max(found.map(|message| message.stream_seq));
        }
        Ok(last)
    }

    /// What GH_EVENTS holds of an execution's lifecycle, in the order in which it was stored. What cannot be read is left out:
    /// the aggregators set it aside.
    pub async fn lifecycle_of(&self, execution: ExecutionId) -> Result<Vec<LifecycleEvent>, Error> {
        let stored = subject::stored_lifecycle_of(crate::partition_of(execution), execution);
        let messages = self.messages_of(crate::EVENTS, &stored).await?;
        Ok(messages.iter().filter_map(|message| LifecycleEvent::decode(&message.payload).ok()).collect())
    }

    /// Whether an execution has its receipt.
    pub async fn has_receipt(&self, execution: ExecutionId) -> Result<bool, Error> {
        Ok(self.last(crate::RECEIPTS, &subject::receipt(execution), self.timeout()).await?.is_some())
    }

    /// The receipt of an execution, if there is one.
    pub async fn get_receipt(&self, execution: ExecutionId) -> Result<Option<Document>, Error> {
        match self.last(crate::RECEIPTS, &subject::receipt(execution), self.timeout()).await? {
            Some(message) => Ok(Some(self.resolve(message).await?)),
            None => Ok(None),
        }
    }

    /// The receipt of an execution, waiting for it; `None` if there is none when the time is over.
    pub async fn wait_receipt(
        &self,
        execution: ExecutionId,
        timeout: Duration,
    ) -> Result<Option<Document>, Error> {
        let filters = vec![subject::receipt(execution)];
        let first = async {
            let mut tail = self.tail(crate::RECEIPTS, StreamStart::Oldest, filters).await?;
            tail.next().await
        };
        match tokio::time::timeout(timeout, first).await {
            Ok(result) => result.map(Some),
            Err(_) => Ok(None),
        }
    }

    /// Every verdict over an execution's receipt so far, oldest first.
    pub async fn get_verdicts(&self, execution: ExecutionId) -> Result<Vec<Document>, Error> {
        let mut verdicts = Vec::new();
        for message in self.messages_of(crate::VERDICTS, &subject::verdicts_of(execution)).await? {
            verdicts.push(self.resolve(message).await?);
        }
        Ok(verdicts)
    }

    /// Every verdict over an execution's receipt, waiting for the first; none if there is none when the time is over.
    pub async fn wait_verdicts(
        &self,
        execution: ExecutionId,
        timeout: Duration,
    ) -> Result<Vec<Document>, Error> {
        let filters = vec![subject::verdicts_of(execution)];
        let first = async {
            let mut reader = self.read(crate::VERDICTS, StreamStart::Oldest, filters).await?;
            reader.next().await
        };
        match tokio::time::timeout(timeout, first).await {
            Ok(result) => result.map(|_| ())?,
            Err(_) => return Ok(Vec::new()),
        }
        self.get_verdicts(execution).await
    }
}
