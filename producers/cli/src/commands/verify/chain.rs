//! The frame chains as they are stored, walked without the fold: two programs that agree are worth more than one.
//!
//! A chain hangs on its head. From there every frame names the digest of the one before it, so that the walk goes backwards
//! and knows of each frame which digest it must have, until a frame is missing or is not the one that was named.

use std::collections::BTreeMap;

use glasshouse_schema::frame::Header;
use glasshouse_schema::{Digest, NodeId, Vantage};
use serde::Serialize;

/// What makes a chain one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(super) struct ChainId {
    pub(super) vantage: Vantage,
    pub(super) node: NodeId,
    pub(super) epoch: u64,
}

#[derive(Debug, Clone, Copy)]
struct Link {
    digest: Digest,
    prev: Digest,
    stream_seq: u64,
}

/// The frames of one chain: what is needed to walk it, and not their bytes.
#[derive(Debug, Default)]
pub(super) struct StoredChain {
    /// Every different frame of each number, in the order in which they are stored.
    links: BTreeMap<u64, Vec<Link>>,
}

/// What is wrong with a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Problem {
    /// It is not stored.
    Missing,
    /// It is not the one that the chain names.
    Altered,
    /// Another one with its number is stored too.
    Doubled,
    /// It does not begin a chain, and is the first.
    Unrooted,
}

/// The first frame with which something is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Fault {
    pub(super) seq: u64,
    pub(super) problem: Problem,
    /// The digest it must have; `None` where only a frame that is missing too could say.
    pub(super) expected: Option<Digest>,
    pub(super) found: Option<Digest>,
    /// Where the frame that was found is stored.
    pub(super) stream_seq: Option<u64>,
}

/// What a walk found.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Walk {
    /// Frames with which something is wrong.
    pub(super) faults: u64,
    /// The first of them in the order of the chain.
    pub(super) first: Option<Fault>,
}

impl Walk {
    /// Notes a fault; the walk goes backwards, so the last one noted is the first of the chain.
    fn note(&mut self, faults: u64, first: Fault) {
        self.faults = self.faults.saturating_add(faults);
        self.first = Some(first);
    }
}

impl StoredChain {
    /// Takes a frame; the same one once more changes nothing.
    pub(super) fn add(&mut self, header: &Header, digest: Digest, stream_seq: u64) {
        let links = self.links.entry(header.seq).or_default();
        if links.iter().all(|link| link.digest != digest) {
            links.push(Link { digest, prev: header.prev, stream_seq });
        }
    }

    /// How many of the first `frames` numbers have a frame.
    pub(super) fn stored(&self, frames: u64) -> u64 {
        self.links.range(..frames).count() as u64
    }

    /// Walks the first `frames` frames backwards from `head`, the digest of the last of them.
    pub(super) fn walk(&self, frames: u64, head: Digest) -> Walk {
        let mut walk = Walk::default();
        // The digest that the frame before `next` must have, as far as frames that can be trusted say.
        let (mut next, mut expected) = (frames, Some(head));
        for (&seq, links) in self.links.range(..frames).rev() {
            if seq + 1 < next {
                walk.gap(seq + 1, next, expected);
                expected = None;
            }
            next = seq;
            let named = match expected {
                Some(expected) => links.iter().find(|link| link.digest == expected),
                None => links.first(),
            };
            let other = links.iter().find(|link| named.is_none_or(|named| named.digest != link.digest));
            let problem = if named.is_none() { Problem::Altered } else { Problem::Doubled };
            if let Some(other) = other {
                let (found, stream_seq) = (Some(other.digest), Some(other.stream_seq));
                walk.note(1, Fault { seq, problem, expected, found, stream_seq });
            }
            // What an altered frame says of the one before it is not evidence against that one.
            expected = named.filter(|_| expected.is_some() || other.is_none()).map(|named| named.prev);
        }
        if next > 0 {
            walk.gap(0, next, expected);
        } else if let Some(root) = expected.filter(|root| *root != Digest::ZERO) {
            let (expected, found) = (Some(Digest::ZERO), Some(root));
            walk.note(1, Fault { seq: 0, problem: Problem::Unrooted, expected, found, stream_seq: None });
        }
        walk
    }
}

impl Walk {
    /// The frames from `first` up to `next` are not stored; `last` is the digest that the last of them must have.
    fn gap(&mut self, first: u64, next: u64, last: Option<Digest>) {
        let expected = last.filter(|_| first + 1 == next);
        let fault = Fault { seq: first, problem: Problem::Missing, expected, found: None, stream_seq: None };
        self.note(next - first, fault);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(number: u64) -> Digest {
        Digest::of(&number.to_le_bytes())
    }

    /// Frame `n` has digest(n) and hangs on digest(n - 1).
    fn chain(numbers: impl IntoIterator<Item = u64>) -> StoredChain {
        let mut chain = StoredChain::default();
        for seq in numbers {
            add(&mut chain, seq, digest(seq), if seq == 0 { Digest::ZERO } else { digest(seq - 1) });
        }
        chain
    }

    fn add(chain: &mut StoredChain, seq: u64, digest: Digest, prev: Digest) {
        let stream_seq = 100 + seq;
        chain.links.entry(seq).or_default().push(Link { digest, prev, stream_seq });
    }

    fn first(walk: Walk) -> (u64, u64, Problem, Option<Digest>, Option<Digest>) {
        let first = walk.first.expect("a fault");
        (walk.faults, first.seq, first.problem, first.expected, first.found)
    }

    #[test]
    fn a_whole_chain_has_no_fault() {
        assert_eq!(chain(0..5).walk(5, digest(4)), Walk::default());
        // Of what comes behind its end a receipt says nothing.
        assert_eq!(chain(0..9).walk(5, digest(4)), Walk::default());
        assert_eq!(chain(0..0).walk(0, Digest::ZERO), Walk::default());
    }

    #[test]
    fn a_missing_frame_is_named_with_the_digest_that_its_successor_tells() {
        let without = |gone: &[u64]| chain((0..5).filter(|seq| !gone.contains(seq))).walk(5, digest(4));
        for gone in 0..5 {
            assert_eq!(first(without(&[gone])), (1, gone, Problem::Missing, Some(digest(gone)), None));
        }
        assert_eq!(first(without(&[1, 3])), (2, 1, Problem::Missing, Some(digest(1)), None));
        assert_eq!(first(without(&[1, 2])), (2, 1, Problem::Missing, None, None));
        assert_eq!(first(without(&[0, 1, 2, 3, 4])), (5, 0, Problem::Missing, None, None));
        let endless = chain(0..2).walk(u64::MAX, digest(9));
        assert_eq!(first(endless), (u64::MAX - 2, 2, Problem::Missing, None, None));
    }

    #[test]
    fn an_altered_frame_is_named_and_not_its_neighbours() {
        let forged = digest(77);
        for at in 0..5_u64 {
            for prev in [digest(at.wrapping_sub(1)), digest(55)] {
                let mut chain = chain((0..5).filter(|seq| *seq != at));
                add(&mut chain, at, forged, prev);
                let found = first(chain.walk(5, digest(4)));
                assert_eq!(found, (1, at, Problem::Altered, Some(digest(at)), Some(forged)));
            }
        }
    }

    #[test]
    fn a_second_frame_of_one_number_and_a_chain_without_a_root_are_named() {
        let mut doubled = chain(0..5);
        add(&mut doubled, 2, digest(77), digest(1));
        let found = first(doubled.walk(5, digest(4)));
        assert_eq!(found, (1, 2, Problem::Doubled, Some(digest(2)), Some(digest(77))));
        let mut unrooted = StoredChain::default();
        add(&mut unrooted, 0, digest(0), digest(9));
        let found = first(unrooted.walk(1, digest(0)));
        assert_eq!(found, (1, 0, Problem::Unrooted, Some(Digest::ZERO), Some(digest(9))));
    }
}
