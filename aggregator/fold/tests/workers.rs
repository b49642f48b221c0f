//! Workers that come, go, and take over from each other make the receipts that one undisturbed fold makes.
//!
//! A model of what `aggregator/worker` does with a range of partitions: it reads a stream in order, writes from time to time
//! where it stands and which executions are open, and whoever takes the range folds these again from their first event on.
//! What a checkpoint is on the bus, and how workers agree on who has a range, is tested there (`tests/chaos.rs`).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::collections::{BTreeMap, BTreeSet};

use common::{Delivery, Scenario, config, deliver, events, frames, lifecycle, seal};
use glasshouse_fold::ExecutionFold;
use glasshouse_schema::frame::FrameWriterConfig;
use glasshouse_schema::lifecycle::{Closed, Phase};
use glasshouse_schema::{ExecutionId, Frame};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

type Receipts = BTreeMap<ExecutionId, Vec<u8>>;

fn id(number: usize) -> ExecutionId {
    ExecutionId::from_parts(1_767_323_045_000, [number as u8; 10])
}

/// What one execution publishes, all but its `closed`.
fn execution(number: usize, per_frame: usize) -> Vec<Delivery> {
    let config = FrameWriterConfig { execution: id(number), ..config() };
    let mut deliveries = Scenario::profiled(frames(config, &events(), per_frame, seal())).deliveries;
    for delivery in &mut deliveries {
        if let Delivery::Lifecycle(event) = delivery {
            event.execution_id = id(number);
        }
    }
    deliveries
}

fn execution_of(delivery: &Delivery) -> ExecutionId {
    match delivery {
        Delivery::Lifecycle(event) => event.execution_id,
        Delivery::Frame(frame) => frame.execution,
    }
}

fn closed(fold: &ExecutionFold) -> Option<Delivery> {
    let mut event = lifecycle(Phase::Closed(Closed { reason: fold.closing()? }));
    event.execution_id = fold.execution();
    Some(Delivery::Lifecycle(Box::new(event)))
}

/// The stream, and what is created once.
#[derive(Default)]
struct Bus {
    stream: Vec<Delivery>,
    closed: BTreeSet<ExecutionId>,
    receipts: Receipts,
}

/// Where a range is begun: before `handled` nothing is read but what `open` still needs, from `restart` on.
#[derive(Clone, Default)]
struct Checkpoint {
    handled: usize,
    restart: usize,
    open: BTreeSet<ExecutionId>,
}

struct Worker {
    from: Checkpoint,
    position: usize,
    /// With the first event of each.
    open: BTreeMap<ExecutionId, (usize, ExecutionFold)>,
}

impl Worker {
    fn begin(from: Checkpoint) -> Self {
        Self { position: from.restart, from, open: BTreeMap::new() }
    }

    fn checkpoint(&self) -> Option<Checkpoint> {
        let restart = self.open.values().map(|(first, _)| *first).min().unwrap_or(self.position);
        let open = self.open.keys().copied().collect();
        // Until it stands where the one before stood, that one's checkpoint is the better one.
        (self.position >= self.from.handled).then_some(Checkpoint { handled: self.position, restart, open })
    }

    /// Reads one event; false at the end of the stream.
    fn read(&mut self, bus: &mut Bus) -> bool {
        let Some(delivery) = bus.stream.get(self.position).cloned() else { return false };
        let (at, execution) = (self.position, execution_of(&delivery));
        self.position += 1;
        let was_handled = at < self.from.handled && !self.from.open.contains(&execution);
        // What is late: its `closed` stands further ahead.
        let is_over = bus.receipts.contains_key(&execution) && !self.open.contains_key(&execution);
        if was_handled || is_over {
            return true;
        }
        let (_, fold) = self.open.entry(execution).or_insert_with(|| (at, ExecutionFold::new(execution)));
        deliver(fold, &delivery);
        if fold.is_closed() {
            let receipt = fold.receipt().unwrap().encode().unwrap();
            let stored = bus.receipts.entry(execution).or_insert_with(|| receipt.clone());
            assert!(*stored == receipt, "two receipts of one execution");
            self.open.remove(&execution);
        } else if let Some(event) = closed(fold)
            && bus.closed.insert(execution)
        {
            bus.stream.push(event);
        }
        true
    }
}

/// Each execution alone, in order.
fn undisturbed(stream: &[Delivery]) -> Receipts {
    let mut folds: BTreeMap<ExecutionId, ExecutionFold> = BTreeMap::new();
    for delivery in stream {
        let execution = execution_of(delivery);
        let fold = folds.entry(execution).or_insert_with(|| ExecutionFold::new(execution));
        deliver(fold, delivery);
        if let Some(event) = closed(fold) {
            deliver(fold, &event);
        }
    }
    folds.into_iter().map(|(id, fold)| (id, fold.receipt().unwrap().encode().unwrap())).collect()
}

/// The executions' events, each in its own order, mixed; some come twice.
fn mixed(executions: &[Vec<Delivery>], order: &[Index], again: &[(Index, Index)]) -> Vec<Delivery> {
    let mut waiting: Vec<_> = executions.iter().map(|deliveries| deliveries.iter().peekable()).collect();
    let mut stream = Vec::new();
    for turn in 0.. {
        waiting.retain_mut(|deliveries| deliveries.peek().is_some());
        if waiting.is_empty() {
            break;
        }
        let which = order[turn % order.len()].index(waiting.len());
        stream.extend(waiting[which].next().cloned());
    }
    for (which, to) in again {
        let which = which.index(stream.len());
        // After the first time, as a redelivery is.
        let to = which + 1 + to.index(stream.len() - which);
        stream.insert(to, stream[which].clone());
    }
    stream
}

proptest! {
    #![proptest_config(common::proptest_config(48))]

    #[test]
    fn workers_that_take_over_make_the_same_receipts(
        per_frame in vec(1usize..12, 1..5),
        order in vec(any::<Index>(), 1..80),
        again in vec(any::<(Index, Index)>(), 0..20),
        // After how many events a worker goes, and how many events old the checkpoint is that the next one finds.
        ends in vec((1usize..60, 0usize..30), 0..12),
    ) {
        let executions: Vec<_> = per_frame.iter().enumerate().map(|(n, per)| execution(n, *per)).collect();
        let stream = mixed(&executions, &order, &again);
        let expected = undisturbed(&executions.concat());
        prop_assert_eq!(expected.len(), executions.len());

        let mut bus = Bus { stream, ..Bus::default() };
        let mut written = vec![Checkpoint::default()];
        for (after, stale) in ends {
            let from = written[written.len() - 1 - stale.min(written.len() - 1)].clone();
            let mut worker = Worker::begin(from);
            for _ in 0..after {
                worker.read(&mut bus);
                written.extend(worker.checkpoint());
            }
        }
        let mut last = Worker::begin(written.pop().unwrap());
        while last.read(&mut bus) {}
        prop_assert!(bus.receipts == expected);
        prop_assert!(last.open.is_empty());
    }

    /// Executions are shared by any number of workers; who has which changes nothing.
    #[test]
    fn the_number_of_workers_changes_nothing(
        per_frame in vec(1usize..12, 1..6),
        order in vec(any::<Index>(), 1..80),
        workers in 1usize..5,
    ) {
        let executions: Vec<_> = per_frame.iter().enumerate().map(|(n, per)| execution(n, *per)).collect();
        let stream = mixed(&executions, &order, &[]);
        let mut receipts = Receipts::new();
        for worker in 0..workers {
            let is_its = |delivery: &&Delivery| {
                let number = (0..executions.len()).find(|n| id(*n) == execution_of(delivery));
                number.unwrap() % workers == worker
            };
            let mut bus = Bus { stream: stream.iter().filter(is_its).cloned().collect(), ..Bus::default() };
            let mut reads = Worker::begin(Checkpoint::default());
            while reads.read(&mut bus) {}
            receipts.extend(bus.receipts);
        }
        prop_assert!(receipts == undisturbed(&executions.concat()));
    }
}

/// The recordings of real workloads: what is folded does not depend on the order or on redelivery either, a frame that was
/// read writes as it was, and an event takes no more bytes than it may.
#[test]
fn recordings_fold_the_same_in_any_order() {
    for name in ["compile", "git", "tar", "tests"] {
        let path = format!("{}/../../schema/recordings/{name}.frames", env!("CARGO_MANIFEST_DIR"));
        let bytes = std::fs::read(path).unwrap();
        let (mut recorded, mut rest) = (Vec::new(), &bytes[..]);
        while let Some((length, after)) = rest.split_first_chunk() {
            let (frame, after) = after.split_at(u32::from_le_bytes(*length) as usize);
            recorded.push(frame);
            rest = after;
        }
        let decoded: Vec<_> = recorded.iter().map(|frame| Frame::decode(frame).unwrap()).collect();
        let events: usize = decoded.iter().map(|frame| frame.body.events()).sum();
        assert!(recorded.iter().zip(&decoded).all(|(bytes, frame)| frame.encode().unwrap() == *bytes));
        assert!(bytes.len() <= 24 * events, "{name}: {} bytes of {events} events", bytes.len());

        let execution = decoded[0].header.execution;
        let receipt = |frames: &mut dyn Iterator<Item = &&[u8]>| {
            let mut fold = ExecutionFold::new(execution);
            let told = Scenario::profiled(frames_of_nothing()).deliveries;
            for delivery in told {
                let Delivery::Lifecycle(mut event) = delivery else { continue };
                event.execution_id = execution;
                // Of the node that recorded, and sealed as the chain is.
                match &mut event.phase {
                    Phase::Claimed(claimed) => {
                        (claimed.node, claimed.epoch) = (decoded[0].header.node.clone(), 1);
                    }
                    Phase::Sealed(sealed) => {
                        sealed.vantages[0].frames = recorded.len() as u64;
                        sealed.vantages[0].head = glasshouse_schema::Digest::of(recorded[recorded.len() - 1]);
                    }
                    Phase::Started(started) => started.root_pid = None,
                    _ => {}
                }
                fold.lifecycle(&event).unwrap();
            }
            frames.for_each(|frame| fold.frame(frame, None).unwrap());
            let event = closed(&fold).unwrap();
            deliver(&mut fold, &event);
            fold.receipt().unwrap()
        };
        let straight = receipt(&mut recorded.iter());
        assert!(common::reasons(&straight).is_empty(), "{name}: {:?}", straight.coverage.incomplete);
        let straight = straight.encode().unwrap();
        assert!(receipt(&mut recorded.iter().rev()).encode().unwrap() == straight);
        let (even, odd) = (recorded.iter().step_by(2), recorded.iter().skip(1).step_by(2));
        assert!(receipt(&mut odd.chain(even).chain(&recorded)).encode().unwrap() == straight);
    }
}

fn frames_of_nothing() -> Vec<glasshouse_schema::EncodedFrame> {
    frames(config(), &[], 1, seal())
}
