//! Publishing many messages in order with a bounded number of outstanding acknowledgements.
//!
//! ```text
//! enqueue -> queue (bounded) -> send -> window (bounded, in order) -- ack of the first --> stored
//!                                         ^                        \
//!                                         +-- send all again <-- backoff -- refused or timed out
//!                                                                   \-- deadline: NotStored, and so is all after it
//! ```
//!
//! A refused message holds up those behind it: they are sent again after it, and the server dedupes by message id. Around a
//! refusal or a lost connection the stored order can differ from the order of publishing (what was sent behind the refused
//! message may be there first); frames carry a sequence and a chain for that.

use std::collections::VecDeque;
use std::future::{Future, IntoFuture};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use async_nats::HeaderMap;
use async_nats::jetstream::context::{PublishError, PublishErrorKind};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::publish::PublishAck;
use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use crate::connect::Bus;
use crate::error::{self, Error, ErrorKind};
use crate::publisher::PublisherOptions;
use crate::retry::Backoff;

/// A message on its way.
#[derive(Debug, Clone)]
pub(crate) struct Outgoing {
    pub(crate) subject: String,
    pub(crate) headers: HeaderMap,
    pub(crate) payload: Bytes,
}

enum Command {
    Publish(Outgoing),
    Flush(oneshot::Sender<()>),
}

/// Why the pipeline ended, and what it did not store.
#[derive(Debug, Clone)]
struct Failure {
    messages: u64,
    subject: String,
    reason: String,
    kind: ErrorKind,
}

type Shared = Arc<Mutex<Option<Failure>>>;

/// The caller's end.
#[derive(Debug, Clone)]
pub(crate) struct Pipeline {
    queue: mpsc::Sender<Command>,
    failure: Shared,
}

impl Pipeline {
    pub(crate) fn start(bus: Bus, options: PublisherOptions) -> Self {
        let (queue, commands) = mpsc::channel(options.max_in_flight.max(1));
        let failure = Shared::default();
        let task = Task {
            bus,
            options,
            window: VecDeque::new(),
            flushes: VecDeque::new(),
            accepted: 0,
            stored: 0,
            failure: failure.clone(),
        };
        tokio::spawn(task.run(commands));
        Self { queue, failure }
    }

    /// Takes a message; waits while too many are outstanding.
    pub(crate) async fn enqueue(&self, message: Outgoing) -> Result<(), Error> {
        match self.queue.send(Command::Publish(message)).await {
            Ok(()) => Ok(()),
            Err(mpsc::error::SendError(Command::Publish(message))) => Err(self.failed(Some(message))),
            Err(_) => Err(self.failed(None)),
        }
    }

    /// Waits until everything taken so far is stored.
    pub(crate) async fn flush(&self) -> Result<(), Error> {
        let (done, stored) = oneshot::channel();
        if self.queue.send(Command::Flush(done)).await.is_err() {
            return Err(self.failed(None));
        }
        stored.await.map_err(|_| self.failed(None))
    }

    /// The pipeline's failure; `refused` is one more message that it did not store.
    fn failed(&self, refused: Option<Outgoing>) -> Error {
        let mut shared = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        let failure = shared.get_or_insert_with(|| Failure {
            messages: 0,
            subject: refused.as_ref().map(|message| message.subject.clone()).unwrap_or_default(),
            reason: "the runtime that published is shutting down".into(),
            kind: ErrorKind::Retryable,
        });
        failure.messages += u64::from(refused.is_some());
        let Failure { messages, subject, reason, kind } = failure.clone();
        Error::NotStored { messages, subject, reason, kind }
    }
}

pub(crate) type Ack = Pin<Box<dyn Future<Output = Result<PublishAck, PublishError>> + Send>>;

struct InFlight {
    message: Outgoing,
    ack: Ack,
}

struct Task {
    bus: Bus,
    options: PublisherOptions,
    window: VecDeque<InFlight>,
    /// Who waits, and for how many stored messages.
    flushes: VecDeque<(u64, oneshot::Sender<()>)>,
    accepted: u64,
    stored: u64,
    failure: Shared,
}

impl Task {
    async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        let mut open = true;
        let mut connections = self.bus.connections();
        connections.mark_unchanged();
        while open || !self.window.is_empty() {
            let room = self.window.len() < self.options.max_in_flight.max(1);
            let refused = tokio::select! {
                answer = first_ack(&mut self.window) => match answer {
                    Ok(_) => {
                        self.first_is_stored();
                        None
                    }
                    Err(error) => Some(error),
                },
                // The acknowledgements that were under way are lost with the connection.
                Ok(()) = connections.changed() => {
                    (!self.window.is_empty()).then(|| PublishError::new(PublishErrorKind::BrokenPipe))
                }
                command = commands.recv(), if open && room => {
                    match command {
                        Some(Command::Publish(message)) => self.send(message).await,
                        Some(Command::Flush(done)) => self.flush(done),
                        None => open = false,
                    }
                    None
                }
            };
            if let Some(error) = refused
                && let Err(failure) = self.recover(error).await
            {
                return self.fail(failure, commands).await;
            }
        }
    }

    async fn send(&mut self, message: Outgoing) {
        self.accepted += 1;
        let ack = publish(&self.bus, &message).await;
        self.window.push_back(InFlight { message, ack });
    }

    fn flush(&mut self, done: oneshot::Sender<()>) {
        self.flushes.push_back((self.accepted, done));
        self.wake();
    }

    fn first_is_stored(&mut self) {
        self.window.pop_front();
        self.stored += 1;
        self.wake();
    }

    /// Answers everybody whose messages are all stored.
    fn wake(&mut self) {
        while self.flushes.front().is_some_and(|(upto, _)| *upto <= self.stored) {
            if let Some((_, done)) = self.flushes.pop_front() {
                // Nobody may be waiting any more.
                let _ = done.send(());
            }
        }
    }

    /// The first message was refused: sends the whole window again until the first is stored or the deadline passes.
    async fn recover(&mut self, mut error: PublishError) -> Result<(), Failure> {
        let mut backoff = Backoff::until(self.options.deadline);
        loop {
            let kind = error::publish_kind(&error);
            if kind != ErrorKind::Retryable || !backoff.wait().await {
                return Err(Failure {
                    messages: 0,
                    subject: self
                        .window
                        .front()
                        .map(|first| first.message.subject.clone())
                        .unwrap_or_default(),
                    reason: error::publish_reason(&error),
                    kind,
                });
            }
            // While the connection is down the client would only queue what is sent, once more with each attempt.
            if !self.bus.is_connected() {
                continue;
            }
            tracing::debug!(messages = self.window.len(), %error, "publish refused, sending again");
            for sent in &mut self.window {
                sent.ack = publish(&self.bus, &sent.message).await;
            }
            match first_ack(&mut self.window).await {
                Ok(_) => {
                    self.first_is_stored();
                    return Ok(());
                }
                Err(next) => error = next,
            }
        }
    }

    /// Counts everything that was taken and is not stored, and ends.
    async fn fail(self, mut failure: Failure, mut commands: mpsc::Receiver<Command>) {
        let shared = || self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        failure.messages = self.window.len() as u64;
        // Known before the queue closes, so that whoever is refused finds the reason.
        *shared() = Some(failure);
        commands.close();
        // Dropped last, so that whoever waits finds the whole count.
        let mut waiting = Vec::new();
        while let Some(command) = commands.recv().await {
            match command {
                Command::Publish(_) => {
                    if let Some(failure) = shared().as_mut() {
                        failure.messages += 1;
                    }
                }
                Command::Flush(done) => waiting.push(done),
            }
        }
        if let Some(Failure { messages, subject, reason, .. }) = shared().clone() {
            tracing::warn!(messages, subject, reason, "messages not stored");
        }
    }
}

pub(crate) async fn publish(bus: &Bus, message: &Outgoing) -> Ack {
    let publish = PublishMessage::build().headers(message.headers.clone()).payload(message.payload.clone());
    match bus.jetstream().send_publish(message.subject.clone(), publish).await {
        Ok(ack) => ack.into_future(),
        Err(error) => Box::pin(std::future::ready(Err(error))),
    }
}

/// The acknowledgement of the oldest outstanding message; never ready while there is none.
async fn first_ack(window: &mut VecDeque<InFlight>) -> Result<PublishAck, PublishError> {
    match window.front_mut() {
        Some(first) => (&mut first.ack).await,
        None => std::future::pending().await,
    }
}
