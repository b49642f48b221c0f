//! The executions that are open, and those that were closed lately.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use glasshouse_fold::ExecutionFold;
use glasshouse_schema::ids::ExecutionId;
use tokio::time::Instant;

/// Closed executions that are remembered, so that a late event of theirs costs no look-up.
const REMEMBERED: usize = 100_000;

/// An open execution.
#[derive(Debug)]
pub(crate) struct Open {
    pub(crate) fold: ExecutionFold,
    /// Its first event: a restart must begin there.
    pub(crate) first_seq: u64,
    /// The trace of whoever submitted it.
    pub(crate) traceparent: Option<String>,
    /// The `closed` event was published; it ends the fold once it comes back in the stream's order.
    pub(crate) is_closing: bool,
    /// When its last event came, by this worker's clock.
    last_event: Instant,
}

#[derive(Debug, Default)]
pub(crate) struct Executions {
    open: HashMap<ExecutionId, Open>,
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

    /// Some of the executions of which nothing has come for `grace`, not counting the time before `since`.
    pub(crate) fn silent(&self, grace: Duration, since: Instant, at_most: usize) -> Vec<ExecutionId> {
        let is_silent = |open: &Open| !open.is_closing && open.last_event.max(since).elapsed() >= grace;
        let silent = self.open.iter().filter(|(_, open)| is_silent(open));
        silent.map(|(execution, _)| *execution).take(at_most).collect()
    }

    /// Something of the execution is on its way.
    pub(crate) fn is_alive(&mut self, execution: ExecutionId) {
        if let Some(open) = self.open.get_mut(&execution) {
            open.last_event = Instant::now();
        }
    }

    /// Forgets an execution that ended with the event `seq`, but for that it ended.
    pub(crate) fn close(&mut self, execution: ExecutionId, seq: u64) -> Option<Open> {
        self.remember_closed(execution, seq);
        self.open.remove(&execution)
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

    /// Every open execution with its first event.
    pub(crate) fn first_seqs(&self) -> impl Iterator<Item = (ExecutionId, u64)> {
        self.open.iter().map(|(execution, open)| (*execution, open.first_seq))
    }

    pub(crate) fn len(&self) -> usize {
        self.open.len()
    }
}
