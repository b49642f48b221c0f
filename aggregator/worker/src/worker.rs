//! The loop: one event after the other, in the stream's order.

use std::future::Future;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use glasshouse_fold::Rejected;
use glasshouse_nats::{
    Bus, Checkpoints, Claims, ClosedOutcome, ErrorKind, EventReader, Outcome, Publisher, PublisherOptions,
    StoredMessage,
};
use glasshouse_schema::dead::{DeadKind, DeadLetter};
use glasshouse_schema::ids::{Digest, ExecutionId};
use glasshouse_schema::lifecycle::{Claimed, Closed, ClosedReason, Phase, PhaseName};
use glasshouse_schema::subject::{self, EventSubject, EventSubjectKind};
use glasshouse_schema::{LifecycleEvent, headers, version};
use tracing::Instrument;

use crate::Error;
use crate::checkpoint::Restart;
use crate::open::Executions;

/// How often the checkpoint is written while events come.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(1);
/// How long a call that can succeed later rests before it is tried again.
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// One aggregator.
pub struct Worker {
    bus: Bus,
    name: String,
    publisher: Publisher,
    claims: Claims,
    reader: EventReader,
    restart: Restart,
    executions: Executions,
    handled_seq: u64,
}

impl Worker {
    /// Opens the stream at the worker's checkpoint.
    pub async fn start(bus: &Bus, name: String) -> Result<Self, Error> {
        let position = bus.position(glasshouse_nats::EVENTS).await?;
        let (restart, start) = Restart::read(Checkpoints::new(bus), &position).await?;
        tracing::info!(worker = name, ?start, last_seq = position.last_seq, "aggregator started");
        Ok(Self {
            bus: bus.clone(),
            claims: Claims::new(bus),
            publisher: Publisher::new(bus, PublisherOptions::default()),
            reader: bus.events(start, Vec::new()).await?,
            restart,
            executions: Executions::default(),
            handled_seq: 0,
            name,
        })
    }

    /// Works until `shutdown` resolves; what is in hand is finished and checkpointed first.
    pub async fn run(mut self, shutdown: impl Future<Output = ()>) -> Result<(), Error> {
        let mut shutdown = std::pin::pin!(shutdown);
        let mut tick = tokio::time::interval(CHECKPOINT_EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = &mut shutdown => break,
                _ = tick.tick() => self.checkpoint().await?,
                message = self.reader.next() => self.handle(message?).await?,
            }
        }
        self.checkpoint().await?;
        tracing::info!(worker = self.name, open = self.executions.len(), "aggregator stopped");
        Ok(())
    }

    async fn checkpoint(&mut self) -> Result<(), Error> {
        if self.handled_seq == 0 {
            return Ok(());
        }
        // A dead letter that is not stored must not be passed by: a restart would not write it again.
        self.publisher.flush().await?;
        match self.restart.write(self.handled_seq, self.executions.first_seqs()).await {
            Err(Error::Bus(error)) if error.kind() == ErrorKind::Retryable => {
                tracing::warn!(%error, "checkpoint postponed");
                Ok(())
            }
            result => result,
        }
    }

    async fn handle(&mut self, message: StoredMessage) -> Result<(), Error> {
        let seq = message.stream_seq;
        let subject = match EventSubject::parse(&message.subject) {
            Ok(subject) => subject,
            Err(error) => {
                self.dead(&message, DeadKind::Subject, error.to_string()).await?;
                self.handled_seq = seq;
                return Ok(());
            }
        };
        if !self.restart.is_handled(seq, subject.execution) {
            match subject.kind {
                EventSubjectKind::Frame(vantage) => self.frame(&message, &subject, vantage).await?,
                EventSubjectKind::Lifecycle(phase) => self.lifecycle(&message, &subject, phase).await?,
            }
        }
        self.handled_seq = seq;
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
            && !self.holds_claim(subject.execution, claimed).await?
        {
            let reason = "the node does not hold the claim that the event speaks of".to_owned();
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

    /// Whether the bucket of claims agrees: anybody may publish a `claimed` event, but only one node holds the claim, and
    /// the fold takes frames only from that one.
    async fn holds_claim(&mut self, execution: ExecutionId, claimed: &Claimed) -> Result<bool, Error> {
        let claims = self.claims.clone();
        let held = retry(|| claims.get(execution)).await?;
        Ok(held.is_some_and(|(claim, epoch)| {
            epoch == claimed.epoch && claim.is_none_or(|claim| claim.node == claimed.node)
        }))
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
        let open = self.executions.open(execution, self.handled_seq);
        let Some(reason) = (!open.is_closing).then(|| open.fold.closing()).flatten() else { return Ok(()) };
        open.is_closing = true;
        let traceparent = open.traceparent.clone();
        let event = closed(execution, reason);
        let publisher = self.publisher.clone();
        let outcome = retry(|| publisher.publish_closed(&event, traceparent.as_deref())).await?;
        match outcome {
            ClosedOutcome::Stored => tracing::debug!(execution_id = %execution, ?reason, "execution closed"),
            ClosedOutcome::AlreadyClosed(_) => {
                tracing::debug!(execution_id = %execution, "execution was closed before")
            }
        }
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
            let outcome = retry(publish).await?;
            match outcome {
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
                    publisher.publish_dead(&letter, traceparent.as_deref()).await?;
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
        Ok(self.publisher.publish_dead(&letter, message.header(headers::TRACEPARENT)).await?)
    }
}

/// Tries until it succeeds or cannot: the events stay where they are meanwhile.
async fn retry<T, F>(mut attempt: impl FnMut() -> F) -> Result<T, Error>
where
    F: Future<Output = Result<T, glasshouse_nats::Error>>,
{
    loop {
        match attempt().await {
            Err(error) if error.kind() == ErrorKind::Retryable => {
                tracing::warn!(%error, "the bus cannot take it now, trying again");
                tokio::time::sleep(RETRY_AFTER).await;
            }
            result => return Ok(result?),
        }
    }
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
