//! The executions that are open, and those that were closed lately.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use glasshouse_fold::ExecutionFold;
use glasshouse_nats::StoredMessage;
use glasshouse_schema::ids::ExecutionId;
use tokio::time::Instant;

use crate::assignment::RANGES;
use crate::checkpoint::Unfinished;

/// Closed executions of a range that are remembered, so that a late event of theirs costs no look-up: 100,000 in all.
const REMEMBERED: usize = 100_000 / RANGES as usize;
/// What an event that waits takes besides its body, about.
const EVENT_BYTES: usize = 1_024;

/// An open execution.
#[derive(Debug)]
pub(crate) struct Open {
    pub(crate) fold: ExecutionFold,
    /// Its first event: a restart must begin there.
    pub(crate) first_seq: u64,
    /// The event that claimed it, as the bucket of claims confirmed; 0 before.
    pub(crate) claimed_seq: u64,
    /// The trace of whoever submitted it.
    pub(crate) traceparent: Option<String>,
    /// The `closed` event was published; it ends the fold once it comes back in the stream's order.
    pub(crate) is_closing: bool,
    /// When its last event came, by this worker's clock.
    last_event: Instant,
}

impl Open {
    fn unfinished(&self, execution: ExecutionId) -> Unfinished {
        Unfinished { execution, first_seq: self.first_seq, claimed_seq: self.claimed_seq }
    }
}

/// What was asked about an event before it could be folded.
#[derive(Debug, Default)]
pub(crate) struct Known {
    /// Where the execution was closed, if it was.
    pub(crate) closed_at: Option<Option<u64>>,
    /// What speaks against the claim, if anything does.
    pub(crate) claim_problem: Option<Option<String>>,
}

/// Events of an execution about the first of which something is asked.
#[derive(Debug)]
pub(crate) struct Waiting {
    /// The call that asks.
    pub(crate) job: u64,
    /// What was asked about the first event before.
    pub(crate) known: Known,
    pub(crate) events: VecDeque<StoredMessage>,
}

/// Executions in every state that a restart must know of: open, waiting and finishing ones are folded again from their first
/// event.
#[derive(Debug, Default)]
pub(crate) struct Executions {
    open: HashMap<ExecutionId, Open>,
    waiting: HashMap<ExecutionId, Waiting>,
    waiting_bytes: usize,
    /// Ended ones of which a receipt is not known to be stored.
    finishing: HashMap<ExecutionId, Unfinished>,
    closed: HashMap<ExecutionId, u64>,
    closed_order: VecDeque<ExecutionId>,
}

impl Executions {
    pub(crate) fn is_open(&self, execution: ExecutionId) -> bool {
        self.open.contains_key(&execution)
    }

    /// The execution, opened by the event `seq` if it was not; its producer lives.
    pub(crate) fn open(&mut self, execution: ExecutionId, seq: u64) -> &mut Open {
        let now = Instant::now();
        let open = self.open.entry(execution).or_insert_with(|| Open {
            fold: ExecutionFold::new(execution),
            first_seq: seq,
            claimed_seq: 0,
            traceparent: None,
            is_closing: false,
            last_event: now,
        });
        open.last_event = now;
        open
    }

    pub(crate) fn get_mut(&mut self, execution: ExecutionId) -> Option<&mut Open> {
        self.open.get_mut(&execution)
    }

    /// The executions of which nothing has come for `at_least`, with the time since something did, not counting the time
    /// before `since`.
    pub(crate) fn quiet(
        &self,
        at_least: Duration,
        since: Instant,
    ) -> impl Iterator<Item = (ExecutionId, Duration)> {
        let open = self.open.iter().filter(|(_, open)| !open.is_closing);
        open.map(move |(execution, open)| (*execution, open.last_event.max(since).elapsed()))
            .filter(move |(_, silent)| *silent >= at_least)
    }

    /// Something of the execution is on its way.
    pub(crate) fn is_alive(&mut self, execution: ExecutionId) {
        if let Some(open) = self.open.get_mut(&execution) {
            open.last_event = Instant::now();
        }
    }

    /// Whether something is asked about an earlier event of the execution; this one waits behind it then.
    pub(crate) fn waits_behind(&mut self, execution: ExecutionId, event: &StoredMessage) -> bool {
        let Some(waiting) = self.waiting.get_mut(&execution) else { return false };
        self.waiting_bytes += bytes_of(event);
        waiting.events.push_back(event.clone());
        true
    }

    pub(crate) fn wait(&mut self, execution: ExecutionId, waiting: Waiting) {
        self.waiting_bytes += waiting.events.iter().map(bytes_of).sum::<usize>();
        self.waiting.insert(execution, waiting);
    }

    /// The events that waited for this call.
    pub(crate) fn answered(&mut self, execution: ExecutionId, job: u64) -> Option<Waiting> {
        if self.waiting.get(&execution)?.job != job {
            return None;
        }
        let waiting = self.waiting.remove(&execution)?;
        self.waiting_bytes -= waiting.events.iter().map(bytes_of).sum::<usize>();
        Some(waiting)
    }

    /// How much memory waiting events take, about.
    pub(crate) fn waiting_bytes(&self) -> usize {
        self.waiting_bytes
    }

    /// The execution ended with the event `seq`; until [`Self::finished`] a restart would fold it again.
    pub(crate) fn close(&mut self, execution: ExecutionId, seq: u64) -> Option<Open> {
        self.remember_closed(execution, seq);
        let open = self.open.remove(&execution)?;
        self.finishing.insert(execution, open.unfinished(execution));
        Some(open)
    }

    /// Nothing of the execution is needed any more.
    pub(crate) fn finished(&mut self, execution: ExecutionId) {
        self.finishing.remove(&execution);
    }

    /// Takes back an execution that an unusable event opened.
    pub(crate) fn drop_unused(&mut self, execution: ExecutionId) {
        self.open.remove(&execution);
    }

    pub(crate) fn remember_closed(&mut self, execution: ExecutionId, seq: u64) {
        if self.closed.insert(execution, seq).is_none() {
            self.closed_order.push_back(execution);
        }
        if self.closed_order.len() > REMEMBERED
            && let Some(oldest) = self.closed_order.pop_front()
        {
            self.closed.remove(&oldest);
        }
    }

    /// The sequence of the event that closed the execution, if that is remembered.
    pub(crate) fn closed_at(&self, execution: ExecutionId) -> Option<u64> {
        self.closed.get(&execution).copied()
    }

    /// Every execution that a restart folds again; one may come twice.
    pub(crate) fn unfinished(&self) -> impl Iterator<Item = Unfinished> {
        let open = self.open.iter().map(|(execution, open)| open.unfinished(*execution));
        let waiting = self.waiting.iter().filter_map(|(execution, waiting)| {
            let first_seq = waiting.events.front()?.stream_seq;
            Some(Unfinished { execution: *execution, first_seq, claimed_seq: 0 })
        });
        open.chain(waiting).chain(self.finishing.values().copied())
    }

    pub(crate) fn len(&self) -> usize {
        self.open.len()
    }
}

fn bytes_of(event: &StoredMessage) -> usize {
    event.payload.len() + EVENT_BYTES
}
