//! The executions that are open, and those that were closed lately.

use std::collections::{HashMap, VecDeque};

use glasshouse_fold::ExecutionFold;
use glasshouse_schema::ids::ExecutionId;

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

    /// The execution, opened by the event `seq` if it was not.
    pub(crate) fn open(&mut self, execution: ExecutionId, seq: u64) -> &mut Open {
        self.open.entry(execution).or_insert_with(|| Open {
            fold: ExecutionFold::new(execution),
            first_seq: seq,
            traceparent: None,
            is_closing: false,
        })
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
