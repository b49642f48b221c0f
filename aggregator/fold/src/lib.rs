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
mod entries;
mod facts;
mod few;
mod files;
mod receipt;
mod reconcile;
mod sockets;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use glasshouse_schema::frame::DecodeError;
use glasshouse_schema::ids::{Digest, ExecutionId, NodeId, Vantage};
use glasshouse_schema::lifecycle::{
    Attached, Claimed, Closed, ClosedReason, LifecycleEvent, Phase, PhaseName, Profiled, Sealed, Step,
};
use glasshouse_schema::{EncodedFrame, Frame, Receipt, version};

use chain::{Chain, ChainKey};

/// Chains of one node that are kept, those that sort first; more come only from a node that is broken or hostile.
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
    /// Two nodes claim the execution, so no frame is known to be the claimant's.
    #[error("two nodes claim the execution")]
    ClaimDisputed,
    /// The node has more chains than any honest producer makes.
    #[error("the execution has more than {MAX_CHAINS} frame chains of one node")]
    TooManyChains,
}

/// The state of one execution.
#[derive(Debug, Clone)]
pub struct ExecutionFold {
    execution: ExecutionId,
    /// One event per phase. Two that differ cannot both be true: the one whose digest sorts first is kept and the
    /// receipt says that there was another.
    /// In boxes, as everything large in a map: a node of one has room for eleven entries, and most executions have one chain.
    phases: BTreeMap<PhaseName, Box<LifecycleEvent>>,
    conflicting_phases: BTreeSet<PhaseName>,
    /// Two `claimed` events name different nodes. No event can tell which is right, so neither node's frames count.
    claim_disputed: bool,
    /// Chains of every node until the claim is known, then the claimant's.
    chains: BTreeMap<Box<ChainKey>, Box<Chain>>,
}

impl ExecutionFold {
    /// An execution of which nothing is known yet.
    pub fn new(execution: ExecutionId) -> Self {
        Self {
            execution,
            phases: BTreeMap::new(),
            conflicting_phases: BTreeSet::new(),
            claim_disputed: false,
            chains: BTreeMap::new(),
        }
    }

    /// Takes a lifecycle event.
    pub fn lifecycle(&mut self, event: &LifecycleEvent) -> Result<(), Rejected> {
        self.check_open(event.execution_id)?;
        let name = event.phase.name();
        if let Phase::Claimed(claimed) = &event.phase {
            self.claim(claimed);
        }
        match self.phases.get(&name) {
            None => {
                self.phases.insert(name, Box::new(event.clone()));
            }
            Some(known) if **known == *event => {}
            Some(known) => {
                self.conflicting_phases.insert(name);
                if digest(event) < digest(known) {
                    self.phases.insert(name, Box::new(event.clone()));
                }
            }
        }
        Ok(())
    }

    /// Frames may come before the claim: those of other nodes go once it is known.
    fn claim(&mut self, claimed: &Claimed) {
        let before = match self.event(PhaseName::Claimed).map(|event| &event.phase) {
            Some(Phase::Claimed(before)) => Some(&before.node),
            _ => None,
        };
        self.claim_disputed |= before.is_some_and(|node| *node != claimed.node);
        match self.claim_disputed {
            true => self.chains.clear(),
            false => self.chains.retain(|key, _| key.node == claimed.node),
        }
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
        if self.claim_disputed {
            return Err(Rejected::ClaimDisputed);
        }
        if self.claimed().is_some_and(|claimed| claimed.node != frame.header.node) {
            return Err(Rejected::NotTheClaimant(frame.header.node));
        }
        let key = ChainKey::of(&frame.header);
        self.make_room(&key)?;
        self.chains.entry(Box::new(key)).or_default().apply(&frame, Digest::of(bytes));
        Ok(())
    }

    /// Sees to it that the chain of `key` may be kept: of a node with too many, those that sort first stay, so that
    /// the order of their arrival does not matter.
    fn make_room(&mut self, key: &ChainKey) -> Result<(), Rejected> {
        if self.chains.contains_key(key) {
            return Ok(());
        }
        let of_node = self.chains.keys().filter(|other| other.node == key.node);
        let (count, last) = of_node.fold((0, None), |(count, _), other| (count + 1, Some(other)));
        match last.cloned() {
            Some(last) if count >= MAX_CHAINS && *key < *last => {
                self.chains.remove(&last);
                Ok(())
            }
            Some(_) if count >= MAX_CHAINS => Err(Rejected::TooManyChains),
            _ => Ok(()),
        }
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

    /// The reason to close the execution with, once nothing more is expected:
    ///
    /// - unprofiled: it ended;
    /// - failed at or before the attach, and cleaned: nothing was attached;
    /// - profiled and sealed: it ended, everything the receipt is made of is told, and every frame that `sealed`
    ///   names is there;
    /// - profiled and cleaned without `sealed`: the seal is missing, and so it is when `sealed` says so.
    ///
    /// Anything else waits, and is closed by a worker that finds the producer dead.
    pub fn closing(&self) -> Option<ClosedReason> {
        let failed_at = self.event(PhaseName::Failed).and_then(|event| match &event.phase {
            Phase::Failed(failed) => Some(failed.step),
            _ => None,
        });
        let ended = self.has(PhaseName::Exited) || failed_at.is_some();
        let cleaned = self.has(PhaseName::Cleaned);
        if !ended || self.has(PhaseName::Closed) {
            return None;
        }
        let Some(profiled) = self.profiled() else {
            let attach_is_over =
                |step| matches!(step, Step::Release | Step::Wait | Step::Seal | Step::Cleanup);
            let attached_nothing = failed_at.is_some_and(|step| !attach_is_over(step)) && cleaned;
            return (self.has(PhaseName::Unprofiled) || attached_nothing).then_some(ClosedReason::Sealed);
        };
        let Some(sealed) = self.sealed() else {
            return cleaned.then_some(ClosedReason::SealMissing);
        };
        let told = [PhaseName::Requested, PhaseName::Admitted, PhaseName::Claimed, PhaseName::Prepared];
        let complete = told.into_iter().all(|phase| self.has(phase));
        let arrived = sealed.vantages.iter().all(|vantage| {
            self.chain_of(vantage.vantage).is_some_and(|chain| chain.has_first(vantage.frames))
        });
        // Of a disputed claim no frames are taken, so none can be waited for.
        let arrived = arrived || (self.claim_disputed && cleaned);
        let all_sealed = profiled
            .attached
            .iter()
            .all(|attached| sealed.vantages.iter().any(|told| told.vantage == attached.vantage));
        (complete && arrived).then_some(match all_sealed && sealed.missing.is_empty() {
            true => ClosedReason::Sealed,
            false => ClosedReason::SealMissing,
        })
    }

    /// Closes the execution as a worker would, where nothing more is expected; gives whether that is so. For whoever has all
    /// of its record, and no worker.
    pub fn close(&mut self) -> Result<bool, Rejected> {
        let Some(reason) = self.closing() else { return Ok(false) };
        self.lifecycle(&LifecycleEvent {
            schema_version: version::LIFECYCLE,
            execution_id: self.execution,
            node: None,
            unix_ns: 0,
            phase: Phase::Closed(Closed { reason }),
        })?;
        Ok(true)
    }

    /// Whether the `closed` event was taken.
    pub fn is_closed(&self) -> bool {
        self.has(PhaseName::Closed)
    }

    /// What the execution folds to: its receipt, or `None` when nothing was profiled.
    pub fn receipt(&self) -> Option<Receipt> {
        if self.chains.values().all(|chain| chain.facts.is_settled()) {
            return receipt::build(self);
        }
        let mut settled = self.clone();
        settled.chains.values_mut().for_each(|chain| chain.facts.settle());
        receipt::build(&settled)
    }

    fn has(&self, phase: PhaseName) -> bool {
        self.phases.contains_key(&phase)
    }

    fn event(&self, phase: PhaseName) -> Option<&LifecycleEvent> {
        self.phases.get(&phase).map(Box::as_ref)
    }

    /// The claim, unless it is disputed.
    fn claimed(&self) -> Option<&Claimed> {
        match &self.event(PhaseName::Claimed)?.phase {
            Phase::Claimed(claimed) if !self.claim_disputed => Some(claimed),
            _ => None,
        }
    }

    /// What the receipt's facts of a vantage point come from.
    fn chain_key(&self, vantage: Vantage) -> Option<ChainKey> {
        self.claimed().map(|claimed| ChainKey { node: claimed.node.clone(), vantage, epoch: claimed.epoch })
    }

    fn chain_of(&self, vantage: Vantage) -> Option<&Chain> {
        self.chains.get(&self.chain_key(vantage)?).map(Box::as_ref)
    }

    fn profiled(&self) -> Option<&Profiled> {
        match &self.event(PhaseName::Profiled)?.phase {
            Phase::Profiled(profiled) => Some(profiled),
            _ => None,
        }
    }

    /// The vantage points that are expected. Where the event that names them is missing, and none says that there are none, they
    /// are those that frames came from: what was watched has a receipt, and the receipt says what it lacks.
    fn expected(&self) -> Option<Cow<'_, Profiled>> {
        if let Some(profiled) = self.profiled() {
            return Some(Cow::Borrowed(profiled));
        }
        let vantages: BTreeSet<Vantage> = self.chains.keys().map(|key| key.vantage).collect();
        let unknown = |vantage| Attached {
            vantage,
            controller: "unknown".into(),
            hooks: Vec::new(),
            blind_spots: Vec::new(),
        };
        let attached = vantages.into_iter().map(unknown).collect();
        let is_watched = !self.chains.is_empty() && !self.has(PhaseName::Unprofiled);
        is_watched.then(|| Cow::Owned(Profiled { attached, unavailable: Vec::new() }))
    }

    fn sealed(&self) -> Option<&Sealed> {
        match &self.event(PhaseName::Sealed)?.phase {
            Phase::Sealed(sealed) => Some(sealed),
            _ => None,
        }
    }
}

/// The receipt of an execution that is over, from all that was said of it; `None` when nothing was profiled.
///
/// # Errors
/// The first event or frame that is refused.
pub fn receipt_of(
    execution: ExecutionId,
    events: &[LifecycleEvent],
    frames: &[EncodedFrame],
) -> Result<Option<Receipt>, Rejected> {
    let mut fold = ExecutionFold::new(execution);
    events.iter().try_for_each(|event| fold.lifecycle(event))?;
    frames.iter().try_for_each(|frame| fold.frame(&frame.bytes, Some((&frame.node, frame.vantage))))?;
    fold.close()?;
    Ok(fold.receipt())
}

/// An event came from JSON or goes to it, so it always has canonical bytes; without them it would still be one fixed digest.
fn digest(event: &LifecycleEvent) -> Digest {
    event.encode().map_or(Digest::ZERO, |bytes| Digest::of(&bytes))
}
