//! What the bucket of leases says: which workers are alive and who holds which range. Pure but for what it is told.
//!
//! ```text
//! workers.<id>    a heartbeat, again and again; removed when the worker stops
//! ranges.<range>  {"worker": "<id>"}; its revision is the epoch under which the range is held
//! ```
//! Who is alive is decided by the server's clock alone: a worker whose last heartbeat lies longer before the newest message
//! than the failover time is dead. So every worker that has read the same messages comes to the same result, and a heartbeat
//! that was stored long ago does not look fresh to who reads it for the first time.
//!
//! A lease says who works on a range, so that nothing is done twice. It is not what makes the result right: a worker that
//! lost a lease without noticing (it was stopped, or cut off) can publish only what is created once, and its next
//! checkpoint is refused.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use glasshouse_nats::LeaseChange;
use glasshouse_schema::canonical::{self, CanonicalError};
use serde::{Deserialize, Serialize};

use crate::assignment::{RANGES, owners};

const WORKERS: &str = "workers.";
const HELD: &str = "ranges.";

/// The value of a worker's key.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Heartbeat {
    /// For people: the name it was started with.
    pub(crate) name: String,
}

/// The value of a range's key.
#[derive(Debug, Serialize, Deserialize)]
struct Lease {
    worker: String,
}

/// Who holds a range, and the revision of its key.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Holding {
    revision: u64,
    worker: Option<String>,
}

/// What to do next about a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Another worker took it: forget it.
    Lost(u16),
    /// It is another worker's turn: say how far it is and let it go.
    Release(u16),
    /// It is ours to take, if its key is still at this revision.
    Take(u16, u64),
    /// Its key says that this worker has it, which it has not, and it is another's turn: remove the key at this revision.
    Free(u16, u64),
}

#[derive(Debug)]
pub(crate) struct Board {
    me: String,
    failover_ns: i128,
    /// When each worker's last heartbeat was stored.
    heartbeats: BTreeMap<String, i128>,
    holdings: Vec<Holding>,
    /// The time of the newest message.
    now_ns: i128,
    /// The last revision of this worker's own key.
    own_revision: u64,
    /// Who is alive, and which of them is to have each range: only a death or a birth changes it.
    live: BTreeSet<String>,
    owners: Vec<Option<String>>,
}

impl Board {
    pub(crate) fn new(me: String, failover: Duration) -> Self {
        Self {
            me,
            failover_ns: i128::try_from(failover.as_nanos()).unwrap_or(i128::MAX),
            heartbeats: BTreeMap::new(),
            holdings: vec![Holding::default(); usize::from(RANGES)],
            now_ns: 0,
            own_revision: 0,
            live: BTreeSet::new(),
            owners: vec![None; usize::from(RANGES)],
        }
    }

    pub(crate) fn me(&self) -> &str {
        &self.me
    }

    pub(crate) fn own_revision(&self) -> u64 {
        self.own_revision
    }

    /// This worker's own key was written.
    pub(crate) fn wrote(&mut self, revision: u64) {
        self.own_revision = self.own_revision.max(revision);
    }

    pub(crate) fn worker_key(&self) -> String {
        format!("{WORKERS}{}", self.me)
    }

    pub(crate) fn range_key(range: u16) -> String {
        format!("{HELD}{range}")
    }

    /// The value that says that this worker holds a range.
    pub(crate) fn lease(&self) -> Result<Bytes, CanonicalError> {
        canonical::to_vec(&Lease { worker: self.me.clone() }).map(Bytes::from)
    }

    pub(crate) fn apply(&mut self, change: &LeaseChange) {
        self.now_ns = self.now_ns.max(change.stored_unix_ns);
        if let Some(worker) = change.key.strip_prefix(WORKERS) {
            if worker == self.me {
                self.wrote(change.revision);
            }
            match change.bytes {
                Some(_) => self.heartbeats.insert(worker.to_owned(), change.stored_unix_ns),
                None => self.heartbeats.remove(worker),
            };
        } else if let Some(range) = change.key.strip_prefix(HELD)
            && let Ok(range) = range.parse::<usize>()
            && let Some(holding) = self.holdings.get_mut(range)
        {
            // Bytes that are no lease hold nothing.
            let lease = change.bytes.as_ref().and_then(|bytes| serde_json::from_slice::<Lease>(bytes).ok());
            *holding = Holding { revision: change.revision, worker: lease.map(|lease| lease.worker) };
        }
        // The dead of yesterday are not remembered.
        let oldest = self.now_ns.saturating_sub(self.failover_ns.saturating_mul(64));
        self.heartbeats.retain(|_, stored| *stored >= oldest);
        self.see_who_is_alive();
    }

    fn see_who_is_alive(&mut self) {
        let oldest = self.now_ns.saturating_sub(self.failover_ns);
        let live =
            || self.heartbeats.iter().filter(|(_, stored)| **stored >= oldest).map(|(worker, _)| worker);
        if live().eq(&self.live) {
            return;
        }
        self.live = live().cloned().collect();
        self.owners = owners(&self.live.iter().map(String::as_str).collect())
            .into_iter()
            .map(|owner| owner.map(str::to_owned))
            .collect();
    }

    /// The server's time, not older than a heartbeat, nanoseconds since the Unix epoch.
    pub(crate) fn now_ns(&self) -> i128 {
        self.now_ns
    }

    /// How many workers are alive.
    pub(crate) fn workers(&self) -> usize {
        self.live.len()
    }

    /// What to do, given the ranges that this worker works on and the revision under which it took each. Nothing before its own
    /// heartbeat has come by: what stands before it was not all read then.
    pub(crate) fn steps(&self, mine: &BTreeMap<u16, u64>) -> Vec<Step> {
        let mut steps: Vec<Step> = self.lost(mine).collect();
        if !self.live.contains(&self.me) {
            return steps;
        }
        for (range, owner) in (0..RANGES).zip(&self.owners) {
            let is_wanted = owner.as_ref() == Some(&self.me);
            let holding = self.holding(range);
            if mine.contains_key(&range) {
                if !is_wanted && !steps.contains(&Step::Lost(range)) {
                    steps.push(Step::Release(range));
                }
                continue;
            }
            let is_free = holding
                .worker
                .as_ref()
                .is_none_or(|worker| *worker == self.me || !self.live.contains(worker));
            if is_wanted && is_free {
                steps.push(Step::Take(range, holding.revision));
            } else if holding.worker.as_ref() == Some(&self.me) {
                // Nobody would touch it as long as this worker lives.
                steps.push(Step::Free(range, holding.revision));
            }
        }
        steps
    }

    fn lost<'a>(&'a self, mine: &'a BTreeMap<u16, u64>) -> impl Iterator<Item = Step> + 'a {
        // Messages from before this worker's own write are still to come sometimes.
        let is_lost = |range: u16, revision: u64| {
            let holding = self.holding(range);
            holding.revision > revision && holding.worker.as_deref() != Some(self.me.as_str())
        };
        mine.iter()
            .filter(move |(range, revision)| is_lost(**range, **revision))
            .map(|(range, _)| Step::Lost(*range))
    }

    fn holding(&self, range: u16) -> &Holding {
        static NOBODY: Holding = Holding { revision: 0, worker: None };
        self.holdings.get(usize::from(range)).unwrap_or(&NOBODY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i128 = 1_000_000_000;

    struct Bucket {
        revision: u64,
        board: Board,
    }

    impl Bucket {
        fn new(me: &str) -> Self {
            Self { revision: 0, board: Board::new(me.into(), Duration::from_secs(4)) }
        }

        fn says(&mut self, key: &str, value: Option<&str>, second: i128) {
            self.revision += 1;
            self.board.apply(&LeaseChange {
                key: key.into(),
                revision: self.revision,
                stored_unix_ns: second * SECOND,
                bytes: value.map(|value| Bytes::copy_from_slice(value.as_bytes())),
            });
        }

        fn beats(&mut self, worker: &str, second: i128) {
            self.says(&format!("workers.{worker}"), Some("{\"name\":\"x\"}"), second);
        }

        fn holds(&mut self, worker: &str, range: u16, second: i128) {
            self.says(&format!("ranges.{range}"), Some(&format!("{{\"worker\":\"{worker}\"}}")), second);
        }

        /// Takes what can be taken, as a worker does whose every write succeeds.
        fn take_all(&mut self, mine: &mut BTreeMap<u16, u64>, second: i128) {
            let me = self.board.me.clone();
            for step in self.board.steps(mine) {
                if let Step::Take(range, _) = step {
                    self.holds(&me, range, second);
                    mine.insert(range, self.revision);
                }
            }
        }
    }

    #[test]
    fn alone_it_takes_everything_but_not_before_its_own_heartbeat() {
        let mut bucket = Bucket::new("a");
        assert!(bucket.board.steps(&BTreeMap::new()).is_empty());
        bucket.beats("a", 100);
        let mut mine = BTreeMap::new();
        bucket.take_all(&mut mine, 100);
        assert_eq!(mine.len(), usize::from(RANGES));
        assert!(bucket.board.steps(&mine).is_empty());
    }

    #[test]
    fn who_joins_waits_until_the_holder_lets_go() {
        let mut bucket = Bucket::new("a");
        bucket.beats("a", 100);
        let mut mine = BTreeMap::new();
        bucket.take_all(&mut mine, 100);
        bucket.beats("b", 101);
        let steps = bucket.board.steps(&mine);
        assert_eq!(steps.len(), usize::from(RANGES) / 2, "{steps:?}");
        let Step::Release(range) = steps[0] else { panic!("{steps:?}") };

        bucket.board.me = "b".into();
        assert!(bucket.board.steps(&BTreeMap::new()).is_empty(), "they are held by a live worker");
        bucket.says(&format!("ranges.{range}"), None, 102);
        assert_eq!(bucket.board.steps(&BTreeMap::new()), [Step::Take(range, bucket.revision)]);
    }

    #[test]
    fn the_ranges_of_the_dead_are_taken_and_of_those_who_said_goodbye_at_once() {
        let mut bucket = Bucket::new("a");
        bucket.beats("a", 100);
        let mut mine = BTreeMap::new();
        bucket.take_all(&mut mine, 100);
        bucket.board.me = "b".into();
        bucket.beats("b", 104);
        assert!(bucket.board.steps(&BTreeMap::new()).is_empty(), "four seconds are not too long");
        bucket.beats("b", 105);
        assert_eq!(bucket.board.steps(&BTreeMap::new()).len(), usize::from(RANGES));

        bucket.beats("a", 105);
        assert!(bucket.board.steps(&BTreeMap::new()).is_empty());
        bucket.says("workers.a", None, 105);
        assert_eq!(bucket.board.steps(&BTreeMap::new()).len(), usize::from(RANGES));
    }

    #[test]
    fn a_range_that_another_took_is_lost_and_one_whose_own_message_is_still_to_come_is_not() {
        let mut bucket = Bucket::new("a");
        bucket.beats("a", 100);
        bucket.holds("b", 3, 100);
        let mine: BTreeMap<u16, u64> = (0..RANGES).map(|range| (range, bucket.revision + 1)).collect();
        assert!(bucket.board.steps(&mine).is_empty());
        bucket.revision += 10;
        bucket.holds("b", 3, 101);
        assert_eq!(bucket.board.steps(&mine), [Step::Lost(3)]);
    }

    #[test]
    fn a_range_that_only_its_key_says_is_ours_is_freed_or_taken_again() {
        let mut bucket = Bucket::new("a");
        bucket.beats("a", 100);
        let mut mine = BTreeMap::new();
        bucket.take_all(&mut mine, 100);
        bucket.beats("b", 101);
        let [Step::Release(range), ..] = bucket.board.steps(&mine)[..] else { panic!() };
        // Forgotten without its key being removed: the checkpoint was refused, or the bus did not take it.
        let revision = mine.remove(&range).unwrap();
        assert!(bucket.board.steps(&mine).contains(&Step::Free(range, revision)));
        bucket.says("workers.b", None, 101);
        assert_eq!(bucket.board.steps(&mine), [Step::Take(range, revision)]);
    }

    #[test]
    fn garbage_in_the_bucket_is_nobodys_lease() {
        let mut bucket = Bucket::new("a");
        for key in ["ranges.999", "ranges.-1", "ranges.", "workers", "other.1", ""] {
            bucket.says(key, Some("\u{0}"), 100);
        }
        bucket.says("ranges.1", Some("[]"), 100);
        bucket.beats("a", 100);
        assert_eq!(bucket.board.steps(&BTreeMap::new()).len(), usize::from(RANGES));
    }
}
