//! The loop: one event after the other, in the stream's order.

use std::future::Future;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use glasshouse_fold::Rejected;
use glasshouse_nats::{
    Bus, Claims, ClosedOutcome, ErrorKind, Outcome, Publisher, PublisherOptions, StoredMessage,
};
use glasshouse_schema::dead::{DeadKind, DeadLetter};
use glasshouse_schema::ids::{Digest, ExecutionId};
use glasshouse_schema::lifecycle::{Claimed, Closed, ClosedReason, Phase, PhaseName};
use glasshouse_schema::subject::{self, EventSubject, EventSubjectKind};
use glasshouse_schema::{LifecycleEvent, headers, version};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::Instrument;

use crate::Error;
use crate::checkpoint::Restart;
use crate::dead::DeadLetters;
use crate::feed::Feed;
use crate::open::Executions;
use crate::retry::{rest, retry};

/// How often the checkpoint is written while events come.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(1);
/// How long what is in hand may take once the worker is to stop; the next one does it again.
const STOP_WITHIN: Duration = Duration::from_secs(5);
/// How many executions are closed for a dead producer between two events.
const DEAD_AT_ONCE: usize = 64;

/// One aggregator.
pub struct Worker {
    bus: Bus,
    name: String,
    producer_grace: Duration,
    publisher: Publisher,
    letters: DeadLetters,
    claims: Claims,
    feed: Feed,
    restart: Restart,
    executions: Executions,
    /// The last event that was handled.
    handled: Option<StoredMessage>,
    /// Since when the bus has been there without a break: what producers could not say before does not count as silence.
    connected_since: Instant,
}

impl Worker {
    /// Opens the stream at the worker's checkpoint. An execution of which nothing comes for `producer_grace` is closed.
    pub async fn start(bus: &Bus, name: String, producer_grace: Duration) -> Result<Self, Error> {
        let (restart, feed) = open(bus, &name).await?;
        Ok(Self {
            bus: bus.clone(),
            claims: Claims::new(bus),
            publisher: Publisher::new(bus, PublisherOptions::default()),
            letters: DeadLetters::new(bus),
            feed,
            restart,
            executions: Executions::default(),
            handled: None,
            connected_since: Instant::now(),
            name,
            producer_grace,
        })
    }

    /// Works until `shutdown` resolves; what is in hand is finished and checkpointed first, unless the bus does not take
    /// it within five seconds: then the next worker begins at the checkpoint before.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<(), Error> {
        let (stop, stopping) = watch::channel(false);
        let name = self.name.clone();
        let mut work = std::pin::pin!(self.work(stopping));
        tokio::select! {
            biased;
            result = &mut work => return result,
            () = shutdown => stop.send_replace(true),
        };
        match tokio::time::timeout(STOP_WITHIN, work).await {
            Ok(result) => result,
            Err(_) => {
                tracing::warn!(
                    worker = name,
                    "aggregator stopped without a checkpoint: the bus does not take it"
                );
                Ok(())
            }
        }
    }

    async fn work(mut self, mut stopping: watch::Receiver<bool>) -> Result<(), Error> {
        loop {
            match self.read_until(&mut stopping).await {
                Err(Error::Bus(error @ glasshouse_nats::Error::Rewound { .. })) => {
                    tracing::warn!(worker = self.name, %error, "beginning anew at the checkpoint");
                    self.reopen().await?;
                }
                Err(error) => return Err(error),
                Ok(()) => break,
            }
        }
        tracing::info!(worker = self.name, open = self.executions.len(), "aggregator stopped");
        Ok(())
    }

    async fn read_until(&mut self, stopping: &mut watch::Receiver<bool>) -> Result<(), Error> {
        let mut tick = tokio::time::interval(CHECKPOINT_EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = stopped(stopping) => break,
                _ = tick.tick() => {
                    self.checkpoint().await?;
                    self.close_of_dead_producers().await?;
                }
                message = self.feed.next() => self.handle(message?).await?,
            }
        }
        self.checkpoint().await
    }

    /// Begins at what the checkpoint and the stream say now, as a new worker would.
    async fn reopen(&mut self) -> Result<(), Error> {
        (self.restart, self.feed) = loop {
            match open(&self.bus, &self.name).await {
                Err(Error::Bus(error)) if can_pass(&error) => {
                    tracing::warn!(%error, "stream not opened, trying again");
                    rest().await;
                }
                result => break result?,
            }
        };
        self.executions = Executions::default();
        self.handled = None;
        Ok(())
    }

    fn handled_seq(&self) -> u64 {
        self.handled.as_ref().map_or(0, |handled| handled.stream_seq)
    }

    async fn checkpoint(&mut self) -> Result<(), Error> {
        let Some(handled) = &self.handled else { return Ok(()) };
        // A dead letter that is not stored must not be passed by: a restart would not write it again.
        self.letters.flush().await?;
        match self.restart.write(handled, self.executions.first_seqs()).await {
            Err(Error::Bus(error)) if error.kind() == ErrorKind::Retryable => {
                tracing::warn!(%error, "checkpoint postponed");
                Ok(())
            }
            result => result,
        }
    }

    /// Closes executions of which nothing has come for the grace: their producers are dead.
    async fn close_of_dead_producers(&mut self) -> Result<(), Error> {
        if !self.bus.is_connected() {
            self.connected_since = Instant::now();
            return Ok(());
        }
        for execution in self.executions.silent(self.producer_grace, self.connected_since, DEAD_AT_ONCE) {
            // A worker that is behind its stream must not take its own lag for the producer's silence.
            match self.bus.last_event_of(execution).await {
                Ok(last) if last.is_some_and(|last| last > self.handled_seq()) => {
                    self.executions.is_alive(execution);
                }
                Ok(_) => {
                    tracing::warn!(execution_id = %execution, grace = ?self.producer_grace, "nothing comes of the execution any more, closing it");
                    self.close(execution, ClosedReason::ProducerDead).await?;
                }
                Err(error) if can_pass(&error) => {
                    tracing::debug!(execution_id = %execution, %error, "execution not closed now");
                    return Ok(());
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    async fn handle(&mut self, message: StoredMessage) -> Result<(), Error> {
        let seq = message.stream_seq;
        let subject = match EventSubject::parse(&message.subject) {
            Ok(subject) => subject,
            Err(error) => {
                self.dead(&message, DeadKind::Subject, error.to_string()).await?;
                self.handled = Some(message);
                return Ok(());
            }
        };
        if !self.restart.is_handled(seq, subject.execution) {
            match subject.kind {
                EventSubjectKind::Frame(vantage) => self.frame(&message, &subject, vantage).await?,
                EventSubjectKind::Lifecycle(phase) => self.lifecycle(&message, &subject, phase).await?,
            }
        }
        self.handled = Some(message);
        Ok(())
    }

    async fn frame(
        &mut self,
        message: &StoredMessage,
        subject: &EventSubject,
        vantage: glasshouse_schema::Vantage,
    ) -> Result<(), Error> {
        let Some(node) = &subject.node else {
            return self.dead(message, DeadKind::Frame, "a frame under no node".into()).await;
        };
        if self.ended_before(subject.execution, message.stream_seq).await? {
            return self.dead(message, DeadKind::Frame, Rejected::AfterClose.to_string()).await;
        }
        // Decoded before an execution is opened for it: bytes that are no frame open nothing.
        let was_open = self.executions.is_open(subject.execution);
        let open = self.executions.open(subject.execution, message.stream_seq);
        if let Err(error) = open.fold.frame(&message.payload, Some((node, vantage))) {
            if !was_open {
                self.executions.drop_unused(subject.execution);
            }
            return self.dead(message, DeadKind::Frame, error.to_string()).await;
        }
        remember_trace(open, message);
        self.close_if_complete(subject.execution).await
    }

    async fn lifecycle(
        &mut self,
        message: &StoredMessage,
        subject: &EventSubject,
        phase: PhaseName,
    ) -> Result<(), Error> {
        let event = match LifecycleEvent::decode(&message.payload) {
            Ok(event) => event,
            Err(error) => return self.dead(message, DeadKind::Lifecycle, error.to_string()).await,
        };
        let names_node = phase == PhaseName::Closed || event.node == subject.node;
        if event.phase.name() != phase || event.execution_id != subject.execution || !names_node {
            let reason = "the event is about something else than its subject says".to_owned();
            return self.dead(message, DeadKind::Lifecycle, reason).await;
        }
        if self.ended_before(subject.execution, message.stream_seq).await? {
            // `cleaned` comes after the end by nature: it says that the node is tidy and changes no receipt.
            return match phase {
                PhaseName::Cleaned => Ok(()),
                _ => self.dead(message, DeadKind::Lifecycle, Rejected::AfterClose.to_string()).await,
            };
        }
        if let Phase::Claimed(claimed) = &event.phase
            && let Some(reason) = self.claim_problem(subject.execution, claimed).await?
        {
            return self.dead(message, DeadKind::Lifecycle, reason).await;
        }
        let open = self.executions.open(subject.execution, message.stream_seq);
        remember_trace(open, message);
        if let Err(error) = open.fold.lifecycle(&event) {
            return self.dead(message, DeadKind::Lifecycle, error.to_string()).await;
        }
        match phase {
            PhaseName::Closed => self.finish(subject.execution, message.stream_seq).await,
            _ => self.close_if_complete(subject.execution).await,
        }
    }

    /// What the bucket of claims says against it: anybody may publish a `claimed` event, but only one node holds the claim, and
    /// the fold takes frames only from that one.
    async fn claim_problem(
        &mut self,
        execution: ExecutionId,
        claimed: &Claimed,
    ) -> Result<Option<String>, Error> {
        let claims = self.claims.clone();
        let held = match retry(|| claims.get(execution)).await {
            Err(Error::Bus(error)) if error.kind() == ErrorKind::Poison => {
                return Ok(Some(format!("the claim that the event speaks of is not usable: {error}")));
            }
            held => held?,
        };
        let is_held = held.is_some_and(|(claim, epoch)| {
            epoch == claimed.epoch && claim.is_none_or(|claim| claim.node == claimed.node)
        });
        Ok((!is_held).then(|| "the node does not hold the claim that the event speaks of".to_owned()))
    }

    /// Whether the execution's `closed` event stands before `seq` in the stream.
    async fn ended_before(&mut self, execution: ExecutionId, seq: u64) -> Result<bool, Error> {
        if let Some(closed_at) = self.executions.closed_at(execution) {
            return Ok(closed_at < seq);
        }
        // Only an event that would open an execution late in its life calls for a look-up.
        if self.executions.is_open(execution) {
            return Ok(false);
        }
        let bus = self.bus.clone();
        match retry(|| bus.closed_at(execution)).await? {
            Some(closed_at) if closed_at < seq => {
                self.executions.remember_closed(execution, closed_at);
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// Publishes `closed`, once nothing more is expected. The fold ends when the event comes back.
    async fn close_if_complete(&mut self, execution: ExecutionId) -> Result<(), Error> {
        let Some(open) = self.executions.get_mut(execution).filter(|open| !open.is_closing) else {
            return Ok(());
        };
        match open.fold.closing() {
            Some(reason) => self.close(execution, reason).await,
            None => Ok(()),
        }
    }

    async fn close(&mut self, execution: ExecutionId, reason: ClosedReason) -> Result<(), Error> {
        let Some(open) = self.executions.get_mut(execution) else { return Ok(()) };
        open.is_closing = true;
        let traceparent = open.traceparent.clone();
        let event = closed(execution, reason);
        let publisher = self.publisher.clone();
        let unusable = match retry(|| publisher.publish_closed(&event, traceparent.as_deref())).await {
            Ok(ClosedOutcome::AlreadyClosed(stored))
                if stored.execution_id != execution || stored.phase.name() != PhaseName::Closed =>
            {
                "it is about something else than its subject says".to_owned()
            }
            Err(Error::Bus(error)) if error.kind() == ErrorKind::Poison => error.to_string(),
            outcome => {
                tracing::debug!(execution_id = %execution, ?reason, is_first = outcome? == ClosedOutcome::Stored, "execution closed");
                return Ok(());
            }
        };
        // Its place is taken for ever: the execution can have no end and so no receipt, and must not hold up the others.
        tracing::error!(execution_id = %execution, unusable, "the stored `closed` event cannot end the execution, giving it up");
        let seq = self.handled_seq();
        self.executions.close(execution, seq);
        Ok(())
    }

    /// Publishes the receipt of an execution whose `closed` event was just folded.
    async fn finish(&mut self, execution: ExecutionId, seq: u64) -> Result<(), Error> {
        let Some(open) = self.executions.close(execution, seq) else { return Ok(()) };
        let span = tracing::info_span!("aggregate", execution_id = %execution, worker = self.name, first_seq = open.first_seq, closed_seq = seq);
        if let Some(traceparent) = &open.traceparent {
            glasshouse_telemetry::set_parent(&span, traceparent);
        }
        async {
            let receipt = tracing::info_span!("fold").in_scope(|| open.fold.receipt());
            let Some(receipt) = receipt else {
                tracing::debug!("unprofiled execution ended, no receipt");
                return Ok(());
            };
            let bytes = receipt.encode()?;
            let traceparent = glasshouse_telemetry::current_traceparent().or(open.traceparent);
            let (publisher, name) = (self.publisher.clone(), self.name.clone());
            let publish = || publisher.publish_receipt(execution, &bytes, &name, traceparent.as_deref());
            match retry(publish).await? {
                Outcome::Stored => tracing::info!(completeness = ?receipt.completeness, bytes = bytes.len(), "receipt published"),
                Outcome::AlreadyThere { same: true, .. } => tracing::debug!("receipt was published before"),
                Outcome::AlreadyThere { same: false, stored_digest } => {
                    let ours = Digest::of(&bytes);
                    tracing::error!(%ours, stored = %stored_digest, "another receipt of this execution is stored");
                    let reason = format!("the stored receipt has digest {stored_digest}, this fold gives {ours}");
                    let subject = subject::receipt(execution);
                    let letter = DeadLetter::new(
                        DeadKind::Receipt,
                        reason,
                        &subject,
                        (glasshouse_nats::EVENTS, seq),
                        &bytes,
                        &name,
                    );
                    self.letters.push(letter, traceparent.clone()).await?;
                }
            }
            Ok(())
        }
        .instrument(span)
        .await
    }

    async fn dead(&mut self, message: &StoredMessage, kind: DeadKind, reason: String) -> Result<(), Error> {
        tracing::warn!(
            subject = message.subject,
            stream_seq = message.stream_seq,
            reason,
            "event set aside as a dead letter"
        );
        let position = (message.stream.as_str(), message.stream_seq);
        let letter = DeadLetter::new(kind, reason, &message.subject, position, &message.payload, &self.name);
        self.letters.push(letter, message.header(headers::TRACEPARENT).map(str::to_owned)).await
    }
}

async fn stopped(stopping: &mut watch::Receiver<bool>) {
    // An error says that whoever could ask to stop is gone.
    let _ = stopping.wait_for(|stop| *stop).await;
}

/// What the worker begins with: where its checkpoint and the stream say, see [`Restart::read`].
async fn open(bus: &Bus, name: &str) -> Result<(Restart, Feed), Error> {
    let position = bus.position(glasshouse_nats::EVENTS).await?;
    let (restart, start) = Restart::read(bus, name, &position).await?;
    tracing::info!(worker = name, ?start, last_seq = position.last_seq, "aggregator begins");
    Ok((restart, Feed::new(bus.events(start, Vec::new()).await?)))
}

/// Whether it passes by itself; a stream that was restored meanwhile is looked at again.
fn can_pass(error: &glasshouse_nats::Error) -> bool {
    error.kind() == ErrorKind::Retryable || matches!(error, glasshouse_nats::Error::Rewound { .. })
}

/// The trace of an execution is the one of its first event that has any.
fn remember_trace(open: &mut crate::open::Open, message: &StoredMessage) {
    if open.traceparent.is_none() {
        open.traceparent = message.header(headers::TRACEPARENT).map(str::to_owned);
    }
}

fn closed(execution: ExecutionId, reason: ClosedReason) -> LifecycleEvent {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    LifecycleEvent {
        schema_version: version::LIFECYCLE,
        execution_id: execution,
        node: None,
        // Outside of every receipt: when a worker closed it is not a fact about the execution.
        unix_ns: i64::try_from(now.as_nanos()).unwrap_or(i64::MAX),
        phase: Phase::Closed(Closed { reason }),
    }
}
