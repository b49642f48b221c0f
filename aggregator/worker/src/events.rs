//! What an event means: it is folded, opens or ends its execution, or is set aside. Nothing here waits for the bus but for dead
//! letters: what must be asked is asked aside, and the events of that execution wait for the answer, in their order.

use std::collections::VecDeque;

use glasshouse_fold::Rejected;
use glasshouse_nats::{ErrorKind, StoredMessage};
use glasshouse_schema::dead::{DeadKind, DeadLetter};
use glasshouse_schema::ids::ExecutionId;
use glasshouse_schema::lifecycle::{Claimed, Phase, PhaseName};
use glasshouse_schema::subject::{EventSubject, EventSubjectKind};
use glasshouse_schema::{LifecycleEvent, NodeId, Vantage, headers};

use crate::Error;
use crate::assignment::range_of;
use crate::jobs::{Answer, Done};
use crate::open::{Executions, Known, Open, Waiting};
use crate::retry::retry;
use crate::worker::Worker;

/// What must be known before an event can be folded.
enum Question {
    /// Whether the execution was closed before; `is_beginning` says that the event is what an execution begins with.
    ClosedAt { is_beginning: bool },
    /// Whether the claim is the one that the bucket holds.
    Claim(Claimed),
}

impl Worker {
    pub(crate) async fn handle(&mut self, feed: usize, message: &StoredMessage) -> Result<(), Error> {
        let seq = message.stream_seq;
        let subject = match EventSubject::parse(&message.subject) {
            Ok(subject) => subject,
            Err(error) => return self.dead(message, DeadKind::Subject, error.to_string()).await,
        };
        let number = range_of(subject.execution);
        // One that still asks for a range that was lost, and perhaps taken again since: another reader brings its events then, and
        // brings the earlier ones first.
        if !self.feeds.get(feed).is_some_and(|feed| feed.ranges.contains(&number)) {
            return Ok(());
        }
        let Some(range) = self.ranges.get_mut(&number) else { return Ok(()) };
        // A reader that began further back, for another range or to become one of two, comes by here again.
        if seq <= range.position {
            return Ok(());
        }
        range.position = seq;
        if range.restart.is_handled(seq, subject.execution)
            || range.executions.waits_behind(subject.execution, message)
        {
            return Ok(());
        }
        let known = Known::default();
        if let Some(question) = self.event(message, &subject, &known).await? {
            self.ask(subject.execution, question, VecDeque::from([message.clone()]), known);
        }
        Ok(())
    }

    /// Handles what waited for an answer, as far as it goes without another one.
    pub(crate) async fn answered(&mut self, done: Done) -> Result<(), Error> {
        let Done { job, execution, answer } = done;
        if let Some(range) = self.ranges.get_mut(&range_of(execution)) {
            range.is_changed = true;
        }
        match answer {
            Answer::ClosedAt(closed_at) => {
                self.resume(execution, job, |known| known.closed_at = Some(closed_at)).await
            }
            Answer::ClaimProblem(problem) => {
                self.resume(execution, job, |known| known.claim_problem = Some(problem)).await
            }
            Answer::Closed(stored) => {
                if let Err(unusable) = stored {
                    self.give_up(execution, &unusable);
                }
                Ok(())
            }
            Answer::Finished(alarm) => {
                if let Some(executions) = self.executions(execution) {
                    executions.finished(execution);
                }
                match alarm {
                    Some(alarm) => self.letters.push(alarm.0, alarm.1).await,
                    None => Ok(()),
                }
            }
        }
    }

    async fn resume(
        &mut self,
        execution: ExecutionId,
        job: u64,
        learn: impl FnOnce(&mut Known),
    ) -> Result<(), Error> {
        let waiting = self.executions(execution).and_then(|executions| executions.answered(execution, job));
        let Some(Waiting { mut known, mut events, .. }) = waiting else { return Ok(()) };
        learn(&mut known);
        while let Some(message) = events.pop_front() {
            // It was read once before.
            let Ok(subject) = EventSubject::parse(&message.subject) else { continue };
            if let Some(question) = self.event(&message, &subject, &known).await? {
                events.push_front(message);
                self.ask(execution, question, events, known);
                return Ok(());
            }
            known = Known::default();
        }
        Ok(())
    }

    /// Asks aside; `events` wait for the answer.
    fn ask(
        &mut self,
        execution: ExecutionId,
        question: Question,
        events: VecDeque<StoredMessage>,
        known: Known,
    ) {
        let job = match question {
            Question::ClosedAt { is_beginning } => {
                let bus = self.bus.clone();
                self.jobs.start(execution, async move {
                    // When the `closed` event was trimmed, the receipt tells, unless the event is what an execution begins with.
                    Ok(Answer::ClosedAt(match retry(|| bus.closed_at(execution)).await? {
                        None if !is_beginning && retry(|| bus.has_receipt(execution)).await? => Some(0),
                        closed_at => closed_at,
                    }))
                })
            }
            Question::Claim(claimed) => {
                let claims = self.claims.clone();
                self.jobs.start(execution, async move {
                    let held = match retry(|| claims.get(execution)).await {
                        Err(Error::Bus(error)) if error.kind() == ErrorKind::Poison => {
                            let problem =
                                format!("the claim that the event speaks of is not usable: {error}");
                            return Ok(Answer::ClaimProblem(Some(problem)));
                        }
                        held => held?,
                    };
                    let is_held = held.is_some_and(|(claim, epoch)| {
                        epoch == claimed.epoch && claim.is_none_or(|claim| claim.node == claimed.node)
                    });
                    let problem = "the node does not hold the claim that the event speaks of";
                    Ok(Answer::ClaimProblem((!is_held).then(|| problem.to_owned())))
                })
            }
        };
        if let Some(executions) = self.executions(execution) {
            executions.wait(execution, Waiting { job, known, events });
        }
    }

    async fn event(
        &mut self,
        message: &StoredMessage,
        subject: &EventSubject,
        known: &Known,
    ) -> Result<Option<Question>, Error> {
        let decoded = match message.decoded() {
            Ok(decoded) => decoded,
            Err(error) => return self.set_aside(message, DeadKind::Frame, error.to_string()).await,
        };
        let message = decoded.as_ref();
        match subject.kind {
            EventSubjectKind::Frame(vantage) => match &subject.node {
                Some(node) => self.frame(message, subject.execution, (node, vantage), known).await,
                None => self.set_aside(message, DeadKind::Frame, "a frame under no node".into()).await,
            },
            EventSubjectKind::Lifecycle(phase) => self.lifecycle(message, subject, phase, known).await,
        }
    }

    async fn frame(
        &mut self,
        message: &StoredMessage,
        execution: ExecutionId,
        source: (&NodeId, Vantage),
        known: &Known,
    ) -> Result<Option<Question>, Error> {
        match self.has_ended(execution, message.stream_seq, known) {
            None => return Ok(Some(Question::ClosedAt { is_beginning: false })),
            Some(true) => {
                return self.set_aside(message, DeadKind::Frame, Rejected::AfterClose.to_string()).await;
            }
            Some(false) => {}
        }
        // Decoded before an execution is opened for it: bytes that are no frame open nothing.
        let Some(executions) = self.executions(execution) else { return Ok(None) };
        let was_open = executions.is_open(execution);
        let open = executions.open(execution, message.stream_seq);
        if let Err(error) = open.fold.frame(&message.payload, Some(source)) {
            if !was_open {
                executions.drop_unused(execution);
            }
            return self.set_aside(message, DeadKind::Frame, error.to_string()).await;
        }
        remember_trace(open, message);
        self.close_if_complete(execution);
        Ok(None)
    }

    async fn lifecycle(
        &mut self,
        message: &StoredMessage,
        subject: &EventSubject,
        phase: PhaseName,
        known: &Known,
    ) -> Result<Option<Question>, Error> {
        let execution = subject.execution;
        let event = match LifecycleEvent::decode(&message.payload) {
            Ok(event) => event,
            Err(error) => return self.set_aside(message, DeadKind::Lifecycle, error.to_string()).await,
        };
        let names_node = phase == PhaseName::Closed || event.node == subject.node;
        if event.phase.name() != phase || event.execution_id != execution || !names_node {
            let reason = "the event is about something else than its subject says".to_owned();
            return self.set_aside(message, DeadKind::Lifecycle, reason).await;
        }
        match self.has_ended(execution, message.stream_seq, known) {
            None => {
                return Ok(Some(Question::ClosedAt { is_beginning: phase == PhaseName::Requested }));
            }
            // `cleaned` comes after the end by nature: it says that the node is tidy and changes no receipt.
            Some(true) if phase == PhaseName::Cleaned => return Ok(None),
            Some(true) => {
                let reason = Rejected::AfterClose.to_string();
                return self.set_aside(message, DeadKind::Lifecycle, reason).await;
            }
            Some(false) => {}
        }
        // Anybody may publish a `claimed` event, but only one node holds the claim, and the fold takes frames only from that one.
        let is_claim = matches!(event.phase, Phase::Claimed(_));
        if let Phase::Claimed(claimed) = &event.phase {
            match &known.claim_problem {
                None if self.is_confirmed(execution, message.stream_seq) => {}
                None => return Ok(Some(Question::Claim(claimed.clone()))),
                Some(Some(problem)) => {
                    return self.set_aside(message, DeadKind::Lifecycle, problem.clone()).await;
                }
                Some(None) => {}
            }
        }
        let Some(executions) = self.executions(execution) else { return Ok(None) };
        let open = executions.open(execution, message.stream_seq);
        remember_trace(open, message);
        if is_claim {
            open.claimed_seq = message.stream_seq;
        }
        if let Err(error) = open.fold.lifecycle(&event) {
            return self.set_aside(message, DeadKind::Lifecycle, error.to_string()).await;
        }
        match phase {
            PhaseName::Closed => self.finish(execution, message.stream_seq),
            _ => self.close_if_complete(execution),
        }
        Ok(None)
    }

    /// Whether the execution's `closed` event stands before `seq` in the stream, or stood there; `None` if that must be asked.
    fn has_ended(&mut self, execution: ExecutionId, seq: u64, known: &Known) -> Option<bool> {
        let range = self.ranges.get_mut(&range_of(execution))?;
        if let Some(closed_at) = range.executions.closed_at(execution) {
            return Some(closed_at < seq);
        }
        // Only an event that would open an execution late in its life calls for a look-up. What was open at the checkpoint is
        // read again from its first event on, its `closed` included.
        if range.executions.is_open(execution) || range.restart.was_open(seq, execution) {
            return Some(false);
        }
        let closed_at = known.closed_at?.filter(|closed_at| *closed_at < seq);
        if let Some(closed_at) = closed_at {
            range.executions.remember_closed(execution, closed_at);
        }
        Some(closed_at.is_some())
    }

    fn is_confirmed(&self, execution: ExecutionId, claimed_seq: u64) -> bool {
        let range = self.ranges.get(&range_of(execution));
        range.is_some_and(|range| range.restart.is_confirmed(claimed_seq, execution))
    }

    pub(crate) fn executions(&mut self, execution: ExecutionId) -> Option<&mut Executions> {
        self.ranges.get_mut(&range_of(execution)).map(|range| &mut range.executions)
    }

    async fn set_aside(
        &mut self,
        message: &StoredMessage,
        kind: DeadKind,
        reason: String,
    ) -> Result<Option<Question>, Error> {
        self.dead(message, kind, reason).await?;
        Ok(None)
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

/// The trace of an execution is the one of its first event that has any.
fn remember_trace(open: &mut Open, message: &StoredMessage) {
    if open.traceparent.is_none() {
        open.traceparent = message.header(headers::TRACEPARENT).map(str::to_owned);
    }
}
