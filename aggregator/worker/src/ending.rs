//! How an execution ends: `closed` is published once nothing more is expected, and the fold ends when that event comes back in
//! the stream's order; then the receipt is published. Both aside: the loop goes on, and a checkpoint counts the execution as open
//! until its receipt is stored.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use glasshouse_nats::{ClosedOutcome, ErrorKind, Outcome, Publisher};
use glasshouse_schema::dead::{DeadKind, DeadLetter};
use glasshouse_schema::ids::{Digest, ExecutionId};
use glasshouse_schema::lifecycle::{Closed, ClosedReason, Phase, PhaseName};
use glasshouse_schema::{LifecycleEvent, subject, version};
use tokio::time::Instant;
use tracing::Instrument;

use crate::Error;
use crate::jobs::Answer;
use crate::open::Open;
use crate::retry::retry;
use crate::worker::{Worker, can_pass};

/// How many executions are closed for a dead producer between two events.
const DEAD_AT_ONCE: usize = 1_024;

impl Worker {
    /// Publishes `closed`, once nothing more is expected.
    pub(crate) fn close_if_complete(&mut self, execution: ExecutionId) {
        let open = self.executions(execution).and_then(|executions| executions.get_mut(execution));
        if let Some(reason) = open.filter(|open| !open.is_closing).and_then(|open| open.fold.closing()) {
            self.close(execution, reason);
        }
    }

    fn close(&mut self, execution: ExecutionId, reason: ClosedReason) {
        let open = self.executions(execution).and_then(|executions| executions.get_mut(execution));
        let Some(open) = open else { return };
        open.is_closing = true;
        let traceparent = open.traceparent.clone();
        let publisher = self.publisher.clone();
        self.jobs.start(execution, async move {
            let event = closed(execution, reason);
            Ok(Answer::Closed(
                match retry(|| publisher.publish_closed(&event, traceparent.as_deref())).await {
                    Ok(ClosedOutcome::AlreadyClosed(stored))
                        if stored.execution_id != execution || stored.phase.name() != PhaseName::Closed =>
                    {
                        Err("it is about something else than its subject says".to_owned())
                    }
                    Err(Error::Bus(error)) if error.kind() == ErrorKind::Poison => Err(error.to_string()),
                    outcome => {
                        let is_first = outcome? == ClosedOutcome::Stored;
                        tracing::debug!(execution_id = %execution, ?reason, is_first, "execution closed");
                        Ok(())
                    }
                },
            ))
        });
    }

    /// The place of the `closed` event is taken for ever: the execution can have no end and so no receipt, and must not hold up
    /// the others.
    pub(crate) fn give_up(&mut self, execution: ExecutionId, unusable: &str) {
        tracing::error!(execution_id = %execution, unusable, "the stored `closed` event cannot end the execution, giving it up");
        let seq = self.handled_seq(execution);
        if let Some(executions) = self.executions(execution) {
            executions.close(execution, seq);
            executions.finished(execution);
        }
    }

    /// Publishes the receipt of an execution whose `closed` event was just folded.
    pub(crate) fn finish(&mut self, execution: ExecutionId, seq: u64) {
        let closed = self.executions(execution).and_then(|executions| executions.close(execution, seq));
        let Some(open) = closed else { return };
        let span = tracing::info_span!("aggregate", execution_id = %execution, worker = self.name, first_seq = open.first_seq, closed_seq = seq);
        if let Some(traceparent) = &open.traceparent {
            glasshouse_telemetry::set_parent(&span, traceparent);
        }
        let receipt = receipt(self.publisher.clone(), self.name.clone(), open, execution, seq);
        self.jobs.start(execution, receipt.instrument(span));
    }

    /// Closes executions whose producers are dead.
    pub(crate) async fn close_of_dead_producers(&mut self) -> Result<(), Error> {
        if !self.bus.is_connected() {
            self.connected_since = Instant::now();
            self.producers.forget();
            return Ok(());
        }
        if !self.producers.is_due() {
            return Ok(());
        }
        let (every, since) = (self.producers.every(), self.connected_since);
        let quiet = self.ranges.values().flat_map(|range| range.executions.quiet(every, since));
        let quiet: Vec<(ExecutionId, Duration)> = quiet.collect();
        for execution in self.producers.dead(&quiet).await.into_iter().take(DEAD_AT_ONCE) {
            // A worker that is behind its stream must not take its own lag for the producer's silence.
            match self.bus.last_event_of(execution).await {
                Ok(last) if last.is_some_and(|last| last > self.handled_seq(execution)) => {
                    if let Some(executions) = self.executions(execution) {
                        executions.is_alive(execution);
                    }
                }
                Ok(_) => {
                    tracing::warn!(execution_id = %execution, "the producer of the execution is dead, closing it");
                    self.close(execution, ClosedReason::ProducerDead);
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
}

/// Folds the receipt and publishes it, on whatever core is free.
async fn receipt(
    publisher: Publisher,
    worker: String,
    open: Open,
    execution: ExecutionId,
    seq: u64,
) -> Result<Answer, Error> {
    let Open { fold, traceparent, .. } = open;
    let receipt = tracing::info_span!("fold").in_scope(|| fold.receipt());
    // Its memory is needed no more, and publishing may take long.
    drop(fold);
    let Some(receipt) = receipt else {
        tracing::debug!("unprofiled execution ended, no receipt");
        return Ok(Answer::Finished(None));
    };
    let (bytes, completeness) = (receipt.encode()?, receipt.completeness);
    drop(receipt);
    let traceparent = glasshouse_telemetry::current_traceparent().or(traceparent);
    let publish = || publisher.publish_receipt(execution, &bytes, &worker, traceparent.as_deref());
    Ok(Answer::Finished(match retry(publish).await? {
        Outcome::Stored => {
            tracing::info!(?completeness, bytes = bytes.len(), "receipt published");
            None
        }
        Outcome::AlreadyThere { same: true, .. } => {
            tracing::debug!("receipt was published before");
            None
        }
        Outcome::AlreadyThere { same: false, stored_digest } => {
            let ours = Digest::of(&bytes);
            tracing::error!(%ours, stored = %stored_digest, "another receipt of this execution is stored");
            let reason = format!("the stored receipt has digest {stored_digest}, this fold gives {ours}");
            let (subject, position) = (subject::receipt(execution), (glasshouse_nats::EVENTS, seq));
            let letter = DeadLetter::new(DeadKind::Receipt, reason, &subject, position, &bytes, &worker);
            Some(Box::new((letter, traceparent)))
        }
    }))
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
