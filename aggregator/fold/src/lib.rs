//! The fold: lifecycle events and frames of one execution become its receipt.
//!
//! Pure and deterministic: the same lifecycle events and frames give the same bytes whatever the order of delivery,
//! the batches, the redeliveries or the number of workers. It reads no clock and does no I/O. That holds because
//! every piece of state is a set or a sum: a frame is applied once (by its digest), and a list with a limit keeps
//! the entries that sort first, whichever came first.
//!
//! An execution ends at its `closed` event. [`ExecutionFold::closing`] says when a worker may publish it;
//! [`ExecutionFold::receipt`] is what the execution folds to.

#![cfg_attr(
    test,
    allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")
)]

mod capped;
mod chain;
mod facts;
mod receipt;

use std::collections::BTreeMap;

use glasshouse_schema::frame::DecodeError;
use glasshouse_schema::ids::{Digest, ExecutionId, NodeId, Vantage};
use glasshouse_schema::lifecycle::{Claimed, ClosedReason, LifecycleEvent, Phase, PhaseName, Profiled, Sealed};
use glasshouse_schema::{Frame, Receipt};

use chain::{Chain, ChainKey};

/// Chains of one execution that are kept; more come only from a node that is broken or hostile.
const MAX_CHAINS: usize = 16;

/// Why an event was not folded. The worker sends it to the dead letters with this reason.
#[derive(Debug, thiserror::Error)]
pub enum Rejected {
    /// The bytes are no frame.
    #[error(transparent)]
    NotAFrame(#[from] DecodeError),
    /// The event is about another execution than its subject says.
    #[error("the event is about execution {found}, not {expected}")]
    OtherExecution {
        /// The execution being folded.
        expected: ExecutionId,
        /// The execution that the event names.
        found: ExecutionId,
    },
    /// The frame names another node or vantage point than its subject.
    #[error("the frame says it is of {found}, its subject says {expected}")]
    OtherSource {
        /// Node and vantage point of the subject.
        expected: String,
        /// Node and vantage point of the frame.
        found: String,
    },
    /// The frame comes from a node that does not hold the claim.
    #[error("the frame is of node {0}, which does not hold the claim on the execution")]
    NotTheClaimant(NodeId),
    /// The execution is closed.
    #[error("the execution is closed")]
    AfterClose,
    /// The execution has more chains than any honest producer makes.
    #[error("the execution has more than {MAX_CHAINS} frame chains")]
    TooManyChains,
}

/// The state of one execution.
#[derive(Debug, Clone)]
pub struct ExecutionFold {
    execution: ExecutionId,
    /// One event per phase. Two that differ cannot both be true: the one whose digest sorts first is kept and the
    /// receipt says that there was another.
    phases: BTreeMap<PhaseName, (Digest, LifecycleEvent)>,
    conflicting_phases: BTreeMap<PhaseName, u64>,
    chains: BTreeMap<ChainKey, Chain>,
}

impl ExecutionFold {
    /// An execution of which nothing is known yet.
    pub fn new(execution: ExecutionId) -> Self {
        Self { execution, phases: BTreeMap::new(), conflicting_phases: BTreeMap::new(), chains: BTreeMap::new() }
    }

    /// Takes a lifecycle event.
    pub fn lifecycle(&mut self, event: &LifecycleEvent) -> Result<(), Rejected> {
        self.check_open(event.execution_id)?;
        // An event came from JSON or goes to it, so it always has canonical bytes; without them it would still be
        // one fixed digest.
        let digest = event.encode().map_or(Digest::ZERO, |bytes| Digest::of(&bytes));
        let name = event.phase.name();
        match self.phases.get(&name) {
            None => {
                self.phases.insert(name, (digest, event.clone()));
            }
            Some((known, _)) if *known == digest => {}
            Some((known, _)) => {
                *self.conflicting_phases.entry(name).or_default() += 1;
                if digest < *known {
                    self.phases.insert(name, (digest, event.clone()));
                }
            }
        }
        Ok(())
    }

    /// Takes a frame's bytes. `source` is what its subject says, where it came with one.
    pub fn frame(&mut self, bytes: &[u8], source: Option<(&NodeId, Vantage)>) -> Result<(), Rejected> {
        let frame = Frame::decode(bytes)?;
        self.check_open(frame.header.execution)?;
        let found = (&frame.header.node, frame.header.vantage);
        if let Some(expected) = source.filter(|expected| *expected != found) {
            let text = |(node, vantage): (&NodeId, Vantage)| format!("{vantage} of {node}");
            return Err(Rejected::OtherSource { expected: text(expected), found: text(found) });
        }
        if self.claimed().is_some_and(|claimed| claimed.node != frame.header.node) {
            return Err(Rejected::NotTheClaimant(frame.header.node));
        }
        let key = ChainKey::of(&frame.header);
        if !self.chains.contains_key(&key) && self.chains.len() >= MAX_CHAINS {
            return Err(Rejected::TooManyChains);
        }
        self.chains.entry(key).or_default().apply(&frame, Digest::of(bytes));
        Ok(())
    }

    fn check_open(&self, found: ExecutionId) -> Result<(), Rejected> {
        if found != self.execution {
            return Err(Rejected::OtherExecution { expected: self.execution, found });
        }
        match self.phases.contains_key(&PhaseName::Closed) {
            true => Err(Rejected::AfterClose),
            false => Ok(()),
        }
    }

    /// The execution.
    pub fn execution(&self) -> ExecutionId {
        self.execution
    }

    /// The reason to close the execution with, once nothing more is expected.
    pub fn closing(&self) -> Option<ClosedReason> {
        if self.has(PhaseName::Closed) {
            return None;
        }
        let ended = self.has(PhaseName::Exited) || self.has(PhaseName::Failed);
        let Some(sealed) = self.sealed() else {
            // Nothing was attached, so there is nothing to wait for but the end.
            let done = ended && (self.has(PhaseName::Unprofiled) || self.has(PhaseName::Cleaned));
            return match (done, self.profiled()) {
                (true, None) => Some(ClosedReason::Sealed),
                (true, Some(_)) if self.has(PhaseName::Cleaned) => Some(ClosedReason::SealMissing),
                _ => None,
            };
        };
        let told = [PhaseName::Requested, PhaseName::Admitted, PhaseName::Claimed, PhaseName::Prepared];
        let complete = ended && self.profiled().is_some() && told.into_iter().all(|phase| self.has(phase));
        let claimed = self.claimed()?;
        let arrived = sealed.vantages.iter().all(|vantage| {
            let key = ChainKey { node: claimed.node.clone(), vantage: vantage.vantage, epoch: claimed.epoch };
            self.chains.get(&key).is_some_and(|chain| chain.frames() >= vantage.frames)
        });
        (complete && arrived).then_some(match sealed.missing.is_empty() {
            true => ClosedReason::Sealed,
            false => ClosedReason::SealMissing,
        })
    }

    /// Whether the `closed` event was taken.
    pub fn is_closed(&self) -> bool {
        self.has(PhaseName::Closed)
    }

    /// What the execution folds to: its receipt, or `None` when nothing was profiled.
    pub fn receipt(&self) -> Option<Receipt> {
        receipt::build(self)
    }

    fn has(&self, phase: PhaseName) -> bool {
        self.phases.contains_key(&phase)
    }

    fn event(&self, phase: PhaseName) -> Option<&LifecycleEvent> {
        self.phases.get(&phase).map(|(_, event)| event)
    }

    fn claimed(&self) -> Option<&Claimed> {
        match &self.event(PhaseName::Claimed)?.phase {
            Phase::Claimed(claimed) => Some(claimed),
            _ => None,
        }
    }

    fn profiled(&self) -> Option<&Profiled> {
        match &self.event(PhaseName::Profiled)?.phase {
            Phase::Profiled(profiled) => Some(profiled),
            _ => None,
        }
    }

    fn sealed(&self) -> Option<&Sealed> {
        match &self.event(PhaseName::Sealed)?.phase {
            Phase::Sealed(sealed) => Some(sealed),
            _ => None,
        }
    }
}
