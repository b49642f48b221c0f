//! One frame chain: which frames came, whether they link, and the facts in them.

use std::collections::{BTreeMap, BTreeSet};

use glasshouse_schema::Frame;
use glasshouse_schema::event::{Class, Counters};
use glasshouse_schema::frame::{Header, Seal};
use glasshouse_schema::ids::{Digest, NodeId, Vantage};

use crate::facts::Facts;
use crate::few::Few;

/// What makes a chain one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ChainKey {
    pub(crate) node: NodeId,
    pub(crate) vantage: Vantage,
    pub(crate) epoch: u64,
}

impl ChainKey {
    pub(crate) fn of(header: &Header) -> Self {
        Self { node: header.node.clone(), vantage: header.vantage, epoch: header.epoch }
    }
}

/// The frames of one chain. A frame is applied once, known by its digest; two frames of one number are both applied
/// and the chain counts as broken, so that the order of their arrival does not matter.
#[derive(Debug, Clone, Default)]
pub(crate) struct Chain {
    /// Number -> digest -> digest of the frame before.
    links: BTreeMap<u64, Box<Few<Digest, Digest>>>,
    /// Every number below this one has a frame.
    contiguous: u64,
    /// Counters and clock offset of the frame with the highest (number, digest).
    latest: Option<(u64, Digest, Counters)>,
    /// Clock offset of the frame with the lowest (number, digest).
    clock: Option<(u64, Digest, i64)>,
    seals: BTreeMap<(u64, Digest), Box<Seal>>,
    pub(crate) facts: Facts,
    /// Delivered and collapsed facts that the frames really hold, per class.
    held: [(u64, u64); 5],
}

impl Chain {
    pub(crate) fn apply(&mut self, frame: &Frame<'_>, digest: Digest) {
        let header = &frame.header;
        if self.links.entry(header.seq).or_default().insert(digest, header.prev).is_some() {
            return;
        }
        while self.links.contains_key(&self.contiguous) {
            self.contiguous += 1;
        }
        let at = (header.seq, digest);
        if self.latest.is_none_or(|(seq, latest, _)| at > (seq, latest)) {
            self.latest = Some((header.seq, digest, header.counters));
        }
        if self.clock.is_none_or(|(seq, first, _)| at < (seq, first)) {
            self.clock = Some((header.seq, digest, header.unix_minus_boot_ns));
        }
        if let Some(seal) = &frame.seal {
            self.seals.insert(at, Box::new(seal.clone()));
        }
        self.facts.apply(&frame.body);
        for (class, delivered, collapsed) in frame.body.facts() {
            self.hold(class, delivered, collapsed);
        }
        for (class, folded) in frame.seal.iter().flat_map(Seal::folded) {
            self.hold(class, 0, folded);
        }
    }

    fn hold(&mut self, class: Class, delivered: u64, collapsed: u64) {
        let held = &mut self.held[class as usize];
        held.0 = held.0.saturating_add(delivered);
        held.1 = held.1.saturating_add(collapsed);
    }

    /// Whether the first `frames` frames are there.
    pub(crate) fn has_first(&self, frames: u64) -> bool {
        self.contiguous >= frames
    }

    /// Counters as of the last frame.
    pub(crate) fn counters(&self) -> Counters {
        self.latest.map(|(_, _, counters)| counters).unwrap_or_default()
    }

    /// Unix time of a CLOCK_BOOTTIME reading of this chain.
    pub(crate) fn unix_ns(&self, boot_ns: u64) -> i128 {
        i128::from(boot_ns) + i128::from(self.clock.map_or(0, |(_, _, offset)| offset))
    }

    /// The seal, if the last frame carries one.
    pub(crate) fn seal(&self) -> Option<&Seal> {
        let (seq, digest, _) = self.latest?;
        self.seals.get(&(seq, digest)).map(Box::as_ref)
    }

    /// Digest of the last frame of the part that links without a gap from the first, and that part's length.
    pub(crate) fn head(&self) -> (Digest, u64) {
        let mut head = Digest::ZERO;
        for (expected, (seq, frames)) in self.links.iter().enumerate() {
            match frames.iter().next() {
                Some((digest, prev)) if *seq == expected as u64 && *prev == head && frames.len() == 1 => {
                    head = *digest;
                }
                _ => return (head, expected as u64),
            }
        }
        (head, self.links.len() as u64)
    }

    /// What is wrong with the chain, as (reason, detail); empty when it is whole.
    pub(crate) fn faults(&self) -> Vec<(&'static str, String)> {
        let mut faults = Vec::new();
        let last = self.links.last_key_value().map_or(0, |(seq, _)| *seq);
        let missing = (u128::from(last) + 1).saturating_sub(self.links.len() as u128);
        if !self.links.is_empty() && missing > 0 {
            let first = self.contiguous;
            faults.push((
                "frames_missing",
                format!("{missing} frames of the chain, the first with number {first}"),
            ));
        }
        if let Some((seq, _)) = self.links.iter().find(|(_, frames)| frames.len() > 1) {
            faults.push(("chain_broken", format!("there are several frames with number {seq}")));
        }
        let mut before: Option<(u64, &Few<Digest, Digest>)> = None;
        for (seq, frames) in &self.links {
            let prevs: BTreeSet<&Digest> = frames.iter().map(|(_, prev)| prev).collect();
            let links = match before {
                _ if *seq == 0 => prevs.iter().all(|prev| **prev == Digest::ZERO),
                Some((number, digests)) if number + 1 == *seq => {
                    prevs.iter().all(|prev| digests.contains_key(*prev))
                }
                // A gap: that frames are missing is said above.
                _ => true,
            };
            if !links {
                faults
                    .push(("chain_broken", format!("frame {seq} does not follow from the frame before it")));
                break;
            }
            before = Some((*seq, frames));
        }
        if self.seals.len() > 1 || (!self.seals.is_empty() && self.seal().is_none()) {
            faults.push(("chain_broken", "a frame follows the seal".into()));
        }
        faults
    }

    /// The classes in which the frames do not hold what the last one says they hold.
    pub(crate) fn differing_classes(&self) -> Vec<(Class, String)> {
        let counters = self.counters();
        let differs = |class: Class| {
            let counters = counters.class(class);
            if !counters.adds_up() {
                return Some((class, format!("{counters:?} does not add up")));
            }
            let (delivered, collapsed) = self.held[class as usize];
            let differs = (delivered, collapsed) != (counters.delivered, counters.collapsed);
            differs.then(|| {
                let said = format!("{} delivered and {} collapsed", counters.delivered, counters.collapsed);
                (class, format!("the last frame says {said}; the frames hold {delivered} and {collapsed}"))
            })
        };
        Class::ALL.into_iter().filter_map(differs).collect()
    }
}
