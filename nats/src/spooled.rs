//! Publishing with a disk behind: what the bus does not take now is taken all the same, and sent later.
//!
//! ```text
//!            direct                                        spooling
//!   publish -> send -> window -- ack --> stored            publish -> spool -> window -- ack --> stored
//!                        |                                              ^        |
//!                        | refused, late, or not connected              +--------+ refused: all of the window again,
//!                        v                                                         after a while
//!              the window goes to the spool, what comes is behind it
//!
//!   spool empty and everything acknowledged: direct again
//! ```
//!
//! One task does everything, so there is one order: what was published first is in front, in the window or on disk. **A
//! lifecycle event is sent once everything before it is stored**, and not earlier, so that none is ever stored before what it
//! speaks of: `cleaned` before `sealed` would read as a seal that is missing. Among frames, as in the pipeline, the stored order
//! can differ around a refusal or a lost connection: what was sent behind the frame that was lost may be there first. Frames
//! carry a sequence and a chain for that. After such a loss one message is sent at a time until one is acknowledged, so that
//! what comes from the disk is in order even if it is refused again and again.
//!
//! **When the spool is full too**, a message first waits ([`SpooledOptions::full_patience`]) and is then refused, and so is
//! all that follows until there is room again. Either is counted in a receipt. While it waits, the probe's thread stands
//! still, its rings fill, and the kernel counts what it loses: the chain stays whole. But that loss is then in the local
//! receipt too, with `--lossless` the command stands still, and the bus may be away for hours. A refused frame costs only
//! those who read from the bus: its number is missing in the chain, so their receipt is partial, and the seal, for which
//! room is kept, has the totals. So waiting is for moments and refusing is for what lasts.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::Duration;

use async_nats::jetstream::context::PublishError;
use async_nats::jetstream::publish::PublishAck;
use bytes::Bytes;
use glasshouse_schema::{Digest, ExecutionId, LifecycleEvent, NodeId, Vantage};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use crate::connect::Bus;
use crate::error::{self, Error, ErrorKind};
use crate::pipeline::{Ack, Outgoing, publish};
use crate::publisher::{check_size, frame_message, lifecycle_message};
use crate::retry::Backoff;
use crate::spool::{Leftover, Position, Spool, SpoolError};

/// How often what was written is made to outlive the machine.
const SYNC_EVERY: Duration = Duration::from_secs(1);
/// Most that may be sent and not acknowledged, in bytes: it is kept in memory.
const WINDOW_BYTES: usize = 16 << 20;

/// What the subjects of lifecycle events begin with.
const LIFECYCLE: &str = "glasshouse.v1.lifecycle.";

/// How a [`SpooledPublisher`] goes about it.
#[derive(Debug, Clone)]
pub struct SpooledOptions {
    /// How many messages may be unacknowledged at a time.
    pub max_in_flight: usize,
    /// A bus that has not acknowledged a message after this time does not take it.
    pub slow_after: Duration,
    /// How long a message waits for room in a full spool before it is refused.
    pub full_patience: Duration,
}

impl Default for SpooledOptions {
    fn default() -> Self {
        Self {
            max_in_flight: 256,
            slow_after: Duration::from_millis(250),
            full_patience: Duration::from_secs(2),
        }
    }
}

/// Where a [`SpooledPublisher`] stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpoolState {
    /// Whether messages go through the spool; if not, the bus takes them directly.
    pub spooling: bool,
    /// Messages on disk that are not acknowledged.
    pub messages: u64,
    /// What they take there.
    pub bytes: u64,
    /// Messages that were not taken: the spool was full, or the disk failed.
    pub refused: u64,
    /// Messages that the bus can never take, set aside in the spool's directory.
    pub rejected: u64,
    /// Records of the spool that could not be read.
    pub damaged: u64,
    /// Why the bus did not take a message, or the disk, the last time one did not.
    pub reason: Option<String>,
}

/// Publishes frames and lifecycle events, by way of a [`Spool`] while the bus does not take them. Cheap to clone; clones
/// share one order.
///
/// A publish that returns `Ok` is on its way or on disk. [`SpooledPublisher::close`] at the end, or what is on its way is
/// written to disk when the last clone is dropped, and nobody hears how that went.
#[derive(Debug, Clone)]
pub struct SpooledPublisher {
    bus: Bus,
    commands: mpsc::Sender<Command>,
    state: watch::Receiver<SpoolState>,
    dir: PathBuf,
}

#[derive(Debug)]
enum Command {
    Publish(Publish),
    /// Answered when nothing is outstanding.
    Flush(oneshot::Sender<()>),
    /// Answered when everything outstanding is on disk.
    Settle(oneshot::Sender<Result<Leftover, SpoolError>>),
    /// The same, and it is the end.
    Close(oneshot::Sender<Result<Leftover, SpoolError>>),
}

#[derive(Debug)]
struct Publish {
    message: Outgoing,
    /// May take the room that is kept.
    last: bool,
    taken: oneshot::Sender<Result<(), SpoolError>>,
}

impl SpooledPublisher {
    /// A publisher on `bus`, which first sends what is in `spool`. Call it inside a tokio runtime.
    pub fn new(bus: &Bus, spool: Spool, options: SpooledOptions) -> Self {
        let (commands, queue) = mpsc::channel(1);
        let (state, watched) = watch::channel(SpoolState::default());
        let dir = spool.dir().to_owned();
        let mut task = Task {
            bus: bus.clone(),
            direct: spool.is_empty(),
            spool,
            limit: 1,
            options,
            window: VecDeque::new(),
            sent: 0,
            window_bytes: 0,
            waiting: None,
            retry_at: None,
            sync_at: None,
            backoff: Backoff::forever(),
            flushes: Vec::new(),
            refused: 0,
            refusing: false,
            reason: None,
            state,
        };
        task.tell();
        tokio::spawn(task.run(queue));
        Self { bus: bus.clone(), commands, state: watched, dir }
    }

    /// Takes an encoded frame; see [`crate::Publisher::publish_frame`]. `is_seal` is for the last of its chain, which is
    /// taken when the spool is too full for others.
    pub async fn publish_frame(
        &self,
        of: (&NodeId, ExecutionId, Vantage),
        bytes: impl Into<Bytes>,
        digest: Digest,
        is_seal: bool,
        traceparent: Option<&str>,
    ) -> Result<(), Error> {
        self.publish(
            frame_message(of, (bytes.into(), self.bus.frame_encoding()), digest, traceparent)?,
            is_seal,
        )
        .await
    }

    /// Takes a lifecycle event, behind the frames taken before. A `closed` event belongs to
    /// [`crate::Publisher::publish_closed`].
    pub async fn publish_lifecycle(
        &self,
        event: &LifecycleEvent,
        traceparent: Option<&str>,
    ) -> Result<(), Error> {
        self.publish(lifecycle_message(event, traceparent)?, true).await
    }

    async fn publish(&self, message: Outgoing, last: bool) -> Result<(), Error> {
        check_size(&self.bus, &message)?;
        let (taken, answer) = oneshot::channel();
        Ok(self.ask(Command::Publish(Publish { message, last, taken }), answer).await??)
    }

    /// Waits until everything taken is stored, at most for `deadline`, and gives what is on disk then: no messages if all
    /// are stored. What was on its way is on disk too, and the disk has it.
    pub async fn flush(&self, deadline: Duration) -> Result<Leftover, Error> {
        let (done, stored) = oneshot::channel();
        // That time is up shows in what is left.
        let _ = tokio::time::timeout(deadline, self.ask(Command::Flush(done), stored)).await;
        let (done, settled) = oneshot::channel();
        Ok(self.ask(Command::Settle(done), settled).await??)
    }

    /// Ends the publisher: what is not stored stays on disk, and the directory is removed if that is nothing.
    pub async fn close(&self) -> Result<Leftover, Error> {
        let (done, closed) = oneshot::channel();
        Ok(self.ask(Command::Close(done), closed).await??)
    }

    /// Where it stands.
    pub fn state(&self) -> SpoolState {
        self.state.borrow().clone()
    }

    /// What is on disk now; `None` while the bus takes everything.
    pub fn leftover(&self) -> Option<Leftover> {
        let SpoolState { spooling, messages, bytes, rejected, .. } = self.state();
        (spooling || rejected > 0).then(|| Leftover { dir: self.dir.clone(), messages, bytes, rejected })
    }

    async fn ask<T>(&self, command: Command, answer: oneshot::Receiver<T>) -> Result<T, Error> {
        let ended = || Error::NotStored {
            messages: 1,
            subject: String::new(),
            reason: "the publisher was closed, or its runtime is shutting down".into(),
            kind: ErrorKind::Fatal,
        };
        self.commands.send(command).await.map_err(|_| ended())?;
        answer.await.map_err(|_| ended())
    }
}

struct InFlight {
    message: Outgoing,
    /// `None` until it may be sent.
    ack: Option<Ack>,
    /// When it was sent, or taken into the window.
    sent_at: Instant,
    /// The place behind it in the spool, if it is there.
    spooled: Option<Position>,
}

struct Waiting {
    publish: Publish,
    until: Instant,
}

struct Task {
    bus: Bus,
    spool: Spool,
    options: SpooledOptions,
    direct: bool,
    window: VecDeque<InFlight>,
    /// How many of it are sent: those in front.
    sent: usize,
    window_bytes: usize,
    /// How many the window may have while spooling: one after a refusal, twice as many with each acknowledgement.
    limit: usize,
    waiting: Option<Waiting>,
    retry_at: Option<Instant>,
    sync_at: Option<Instant>,
    backoff: Backoff,
    flushes: Vec<oneshot::Sender<()>>,
    refused: u64,
    refusing: bool,
    reason: Option<String>,
    state: watch::Sender<SpoolState>,
}

impl Task {
    async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        let mut connections = self.bus.connections();
        connections.mark_unchanged();
        let closing = loop {
            self.fill();
            self.send().await;
            self.tell();
            let timer = self.next_timer();
            tokio::select! {
                answer = first_ack(&mut self.window) => self.answered(answer),
                Ok(()) = connections.changed() => self.reconnected(),
                command = commands.recv(), if self.takes() => match command {
                    Some(Command::Publish(publish)) => self.publish(publish),
                    Some(Command::Flush(done)) => self.flushes.push(done),
                    Some(Command::Settle(done)) => {
                        let settled = self.settle().await;
                        self.tell();
                        // Nobody may be waiting any more.
                        let _ = done.send(settled);
                    }
                    Some(Command::Close(done)) => break Some(done),
                    None => break None,
                },
                () = tokio::time::sleep_until(timer.unwrap_or_else(Instant::now)), if timer.is_some() => {
                    self.on_time().await;
                }
            }
        };
        let settled = self.settle().await;
        self.refused += self.unkept();
        self.tell();
        let closed = match settled {
            Ok(_) => self.spool.finish(),
            Err(error) => Err(error),
        };
        match (closing, closed) {
            (Some(done), closed) => {
                let _ = done.send(closed);
            }
            (None, Err(error)) => tracing::error!(%error, "the spool was not closed"),
            (None, Ok(_)) => {}
        }
    }

    /// Whether the next command can be taken. A full window is one that [`SpooledOptions::slow_after`] will spool.
    fn takes(&self) -> bool {
        // Half of the spool, because all of the window has to fit into it.
        let most = WINDOW_BYTES.min(usize::try_from(self.spool.max_bytes() / 2).unwrap_or(usize::MAX));
        let room = self.window.len() < self.options.max_in_flight.max(1) && self.window_bytes < most;
        self.waiting.is_none() && (!self.direct || room)
    }

    fn publish(&mut self, publish: Publish) {
        if self.direct && self.bus.is_connected() {
            self.queue(publish.message, None);
            let _ = publish.taken.send(Ok(()));
            return;
        }
        if self.direct {
            self.spool_window("the connection is down".into());
        }
        self.append(publish);
    }

    fn queue(&mut self, message: Outgoing, spooled: Option<Position>) {
        self.window_bytes += message.payload.len();
        self.window.push_back(InFlight { message, ack: None, sent_at: Instant::now(), spooled });
    }

    /// Sends what may be sent: everything up to a lifecycle event, and that when it is the first.
    async fn send(&mut self) {
        while let Some(next) = self.window.get_mut(self.sent) {
            if self.sent > 0 && is_lifecycle(&next.message) {
                return;
            }
            if !self.bus.is_connected() {
                // What the client queued would come once more with each attempt.
                return self.disturbed("the connection is down".into());
            }
            next.ack = Some(publish(&self.bus, &next.message).await);
            next.sent_at = Instant::now();
            self.sent += 1;
        }
    }

    /// From the caller to the disk.
    fn append(&mut self, publish: Publish) {
        match self.spool.append(&publish.message, publish.last) {
            Ok(_) => {
                self.refusing = false;
                let _ = publish.taken.send(Ok(()));
            }
            Err(error) if error.is_full() && !self.refusing => {
                let until = Instant::now() + self.options.full_patience;
                self.waiting = Some(Waiting { publish, until });
            }
            Err(error) => self.refuse(publish, error),
        }
    }

    fn refuse(&mut self, publish: Publish, error: SpoolError) {
        self.refused += 1;
        self.refusing = error.is_full();
        self.reason = Some(error.to_string());
        // Whoever is told finds it counted.
        self.tell();
        let _ = publish.taken.send(Err(error));
    }

    /// From the window to the disk, and everything from now on. What was sent may still be acknowledged.
    fn spool_window(&mut self, reason: String) {
        if !self.direct {
            return;
        }
        tracing::info!(reason, messages = self.window.len(), "the bus does not take events: they go to disk");
        self.direct = false;
        self.limit = self.window.len().max(1);
        self.reason = Some(reason);
        for sent in &mut self.window {
            match self.spool.append(&sent.message, true) {
                Ok(position) => {
                    sent.spooled = Some(position);
                    self.spool.read_up_to(position);
                }
                Err(error) => {
                    tracing::error!(%error, "an event that the bus did not take cannot be kept");
                    self.reason = Some(error.to_string());
                }
            }
        }
    }

    /// The bus did not take what was sent: all of it is sent again, after a while.
    fn disturbed(&mut self, reason: String) {
        self.spool_window(reason.clone());
        self.refused += self.unkept();
        self.window.clear();
        self.sent = 0;
        self.window_bytes = 0;
        self.spool.rewind();
        self.limit = 1;
        self.reason = Some(reason);
        self.retry_at = Some(Instant::now() + self.backoff.delay());
    }

    /// How many of the window the disk did not take either.
    fn unkept(&self) -> u64 {
        self.window.iter().filter(|sent| !self.direct && sent.spooled.is_none()).count() as u64
    }

    fn reconnected(&mut self) {
        self.backoff.reset();
        if !self.window.is_empty() {
            // The acknowledgements that were under way are lost with the connection.
            self.disturbed("the connection was lost".into());
        } else if self.retry_at.is_some() {
            self.retry_at = Some(Instant::now());
        }
    }

    /// The answer for the first message of the window.
    fn answered(&mut self, answer: Result<PublishAck, PublishError>) {
        match answer {
            Ok(_) => self.first_is_done(),
            Err(error) if error::publish_kind(&error) == ErrorKind::Poison => {
                // It would never be taken, and nothing behind it either.
                let reason = error::publish_reason(&error);
                let aside = self.window.front().map_or(Ok(()), |first| self.spool.set_aside(&first.message));
                match aside {
                    Ok(()) => {
                        tracing::error!(reason, dir = %self.spool.dir().display(), "an event was set aside");
                        self.reason = Some(reason);
                        self.first_is_done();
                    }
                    Err(error) => self.disturbed(error.to_string()),
                }
            }
            Err(error) => self.disturbed(error::publish_reason(&error)),
        }
    }

    fn first_is_done(&mut self) {
        let Some(first) = self.window.pop_front() else { return };
        self.sent = self.sent.saturating_sub(1);
        self.window_bytes -= first.message.payload.len();
        self.backoff.reset();
        self.limit = self.limit.saturating_mul(2).min(self.options.max_in_flight.max(1));
        if let Some(position) = first.spooled {
            self.done_to(position);
        }
    }

    fn done_to(&mut self, position: Position) {
        match self.spool.ack(position) {
            Ok(true) => self.retry_waiting(),
            Ok(false) => {}
            // It is tried again with the next one.
            Err(error) => tracing::error!(%error, "a part of the spool that was sent cannot be removed"),
        }
    }

    fn retry_waiting(&mut self) {
        if let Some(Waiting { publish, until }) = self.waiting.take() {
            self.append(publish);
            // As long as it waits, its time runs.
            if let Some(waiting) = &mut self.waiting {
                waiting.until = until;
            }
        }
    }

    /// From the disk to the bus, as far as the window goes; and back to direct once that is all.
    fn fill(&mut self) {
        while !self.direct
            && self.retry_at.is_none()
            && self.window.len() < self.limit
            && self.window_bytes < WINDOW_BYTES
        {
            match self.spool.read() {
                Ok(Some((position, message))) => self.queue(message, Some(position)),
                Ok(None) if !self.window.is_empty() => return,
                Ok(None) => {
                    // Behind what could not be read, too.
                    self.done_to(self.spool.position());
                    self.retry_waiting();
                    if self.waiting.is_none() && self.spool.is_empty() {
                        tracing::info!("the spool is empty: events go to the bus directly");
                        self.direct = true;
                        self.backoff.reset();
                    } else if self.waiting.is_some() {
                        return;
                    }
                }
                Err(error) => {
                    tracing::error!(%error, "the spool cannot be read");
                    self.disturbed(error.to_string());
                }
            }
        }
    }

    fn next_timer(&mut self) -> Option<Instant> {
        if self.sync_at.is_none() && !self.direct {
            self.sync_at = Some(Instant::now() + SYNC_EVERY);
        }
        let slow = self.window.front().filter(|_| self.direct);
        let slow = slow.map(|first| first.sent_at + self.options.slow_after);
        let waits = self.waiting.as_ref().map(|waiting| waiting.until);
        [self.retry_at, self.sync_at, slow, waits].into_iter().flatten().min()
    }

    async fn on_time(&mut self) {
        let now = Instant::now();
        let is_due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        if is_due(self.retry_at) {
            self.retry_at = None;
        }
        let sent_at = self.window.front().filter(|_| self.direct).map(|first| first.sent_at);
        if is_due(sent_at.map(|at| at + self.options.slow_after)) {
            self.spool_window(format!("the bus acknowledged nothing for {:?}", self.options.slow_after));
        }
        if let Some(Waiting { publish, .. }) = self.waiting.take_if(|waiting| waiting.until <= now) {
            self.refusing = true;
            self.append(publish);
        }
        if is_due(self.sync_at) {
            self.sync_at = None;
            if let Err(error) = self.sync().await {
                tracing::error!(%error, "the spool may not outlive this machine");
                self.reason = Some(error.to_string());
            }
        }
    }

    async fn sync(&mut self) -> Result<(), SpoolError> {
        let Some(unsynced) = self.spool.unsynced() else { return Ok(()) };
        match tokio::task::spawn_blocking(move || unsynced.run()).await {
            Ok(synced) => synced,
            // The runtime is shutting down, and with it everything that could wait.
            Err(_) => Ok(()),
        }
    }

    /// Everything that is not stored is on disk when this returns.
    async fn settle(&mut self) -> Result<Leftover, SpoolError> {
        if let Some(Waiting { publish, .. }) = self.waiting.take() {
            self.refusing = true;
            self.append(publish);
        }
        if !self.window.is_empty() {
            self.spool_window("it did not acknowledge everything in time".into());
        }
        self.sync().await?;
        Ok(self.spool.leftover())
    }

    /// Tells who watches, and who waits for the end of what is outstanding.
    fn tell(&mut self) {
        if self.direct && self.window.is_empty() {
            for done in self.flushes.drain(..) {
                let _ = done.send(());
            }
        }
        let Leftover { messages, bytes, rejected, .. } = self.spool.leftover();
        let (refused, damaged, reason) = (self.refused, self.spool.damaged(), self.reason.clone());
        let now = SpoolState { spooling: !self.direct, messages, bytes, refused, rejected, damaged, reason };
        self.state.send_if_modified(|state| {
            let differs = *state != now;
            *state = now;
            differs
        });
    }
}

fn is_lifecycle(message: &Outgoing) -> bool {
    message.subject.starts_with(LIFECYCLE)
}

/// The acknowledgement of the oldest outstanding message; never ready while there is none.
async fn first_ack(window: &mut VecDeque<InFlight>) -> Result<PublishAck, PublishError> {
    match window.front_mut().and_then(|first| first.ack.as_mut()) {
        Some(ack) => ack.await,
        None => std::future::pending().await,
    }
}
