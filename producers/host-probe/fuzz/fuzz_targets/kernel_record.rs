//! Any records of the kernel become events or are counted as lost, fact by fact; what the redaction rules mask is in no event, every
//! frame made of them reads, the counters add up, and a fold finds nothing wrong with the chain.

#![no_main]

use std::sync::LazyLock;

use glasshouse_bpf::abi;
use glasshouse_fold::ExecutionFold;
use glasshouse_host_probe::decode::{Decoder, Record};
use glasshouse_host_probe_fuzz::records;
use glasshouse_schema::frame::{FrameWriterConfig, Seal, SealTotals};
use glasshouse_schema::ids::Digest;
use glasshouse_schema::lifecycle::{Claimed, Phase, PhaseName};
use glasshouse_schema::redact::Redactor;
use glasshouse_schema::{
    Address, Class, Counters, EncodedFrame, Event, ExecutionId, Fact, Frame, FrameWriter, NodeId, Vantage,
};
use glasshouse_schema_fuzz::{check_argument, check_path, golden_lifecycle, rules};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let mut probe = Probe::new();
    probe.take(input);
    records(input).for_each(|record| probe.take(&record));
    probe.seal();
});

/// What the drain thread does with the records of one execution, and what is checked on the way.
struct Probe {
    decoder: Decoder,
    redactor: Redactor,
    writer: FrameWriter,
    /// What the kernel counted, per class.
    counted: [u64; 5],
    /// What of it could not be told, per class.
    lost: [u64; 5],
    chain: Chain,
}

impl Probe {
    fn new() -> Self {
        let chain = Chain::new();
        let (node, epoch) = (chain.claimed.node.clone(), chain.claimed.epoch);
        let config = FrameWriterConfig::new(chain.execution, node, Vantage::Host, epoch, 1);
        Self {
            decoder: Decoder::default(),
            redactor: Redactor::new([7; 32], chain.execution, rules()),
            // Small, so that an input fills more than one frame.
            writer: FrameWriter::new(FrameWriterConfig { flush_bytes: 2048, ..config }),
            counted: [0; 5],
            lost: [0; 5],
            chain,
        }
    }

    fn take(&mut self, bytes: &[u8]) {
        let Some(record) = Record::parse(bytes) else { return };
        let (class, facts) = (record.class(), record.facts());
        let observed = self.observed();
        let Self { decoder, redactor, writer, chain, .. } = self;
        let untold = decoder.decode(&record, redactor, |event, count| {
            assert_eq!(event.fact.class(), class, "counted in another class than it is delivered in");
            assert_eq!(event.process, record.process());
            check_masked(event);
            if let Some(frame) = writer.push_counted(event, count) {
                chain.frame(&frame);
            }
        });
        if untold.is_none() {
            assert_eq!(self.observed(), observed, "a record that is lost was delivered");
        }
        let lost = untold.unwrap_or(facts);
        self.writer.count_lost(class, lost);
        self.lost[class as usize] += lost;
        // No kernel tells of traffic without a call; a frame would count it as one.
        let is_idle_traffic = untold.is_some() && record.header.kind == abi::KIND_TRAFFIC && facts == 0;
        self.counted[class as usize] += facts + u64::from(is_idle_traffic);
        assert_eq!(self.observed(), self.counted, "told and lost is not what the kernel counted");
        if let Some(frame) = self.writer.flush_if_older(record.header.boot_ns) {
            self.chain.frame(&frame);
        }
        assert_add_up(self.writer.counters());
        check_lost(self.writer.counters(), &self.lost);
    }

    fn observed(&self) -> [u64; 5] {
        Class::ALL.map(|class| self.writer.counters().class(class).observed)
    }

    fn seal(self) {
        let observed = self.observed();
        let Self { redactor, writer, lost, mut chain, .. } = self;
        let totals = SealTotals { observed, lost: [0; 5] };
        let seal = Seal { redactions: redactor.counts(), ..Seal::default() };
        let frames = writer.seal(totals, seal);
        let (last, before) = frames.split_last().expect("a chain ends with a seal");
        assert!(last.is_seal && before.iter().all(|frame| !frame.is_seal));
        frames.iter().for_each(|frame| chain.frame(frame));
        assert_eq!(Class::ALL.map(|class| chain.counters.class(class).observed), observed);
        check_lost(&chain.counters, &lost);
        chain.check();
    }
}

/// The reader's side: every frame, read and folded.
struct Chain {
    execution: ExecutionId,
    claimed: Claimed,
    fold: ExecutionFold,
    frames: u64,
    head: Digest,
    counters: Counters,
    events: u64,
}

/// A fold that knows who may speak and what is attached, and the claim.
static CLAIMED: LazyLock<(ExecutionFold, Claimed)> = LazyLock::new(|| {
    let mut lifecycle = golden_lifecycle();
    lifecycle.retain(|event| [PhaseName::Claimed, PhaseName::Profiled].contains(&event.phase.name()));
    let mut fold = ExecutionFold::new(lifecycle[0].execution_id);
    lifecycle.iter().for_each(|event| fold.lifecycle(event).expect("the golden events are of one execution"));
    let claimed = lifecycle.iter().find_map(|event| match &event.phase {
        Phase::Claimed(claimed) => Some(claimed.clone()),
        _ => None,
    });
    (fold, claimed.expect("the golden execution is claimed"))
});

impl Chain {
    fn new() -> Self {
        let (fold, claimed) = &*CLAIMED;
        Self {
            execution: fold.execution(),
            claimed: claimed.clone(),
            fold: fold.clone(),
            frames: 0,
            head: Digest::ZERO,
            counters: Counters::default(),
            events: 0,
        }
    }

    fn frame(&mut self, sent: &EncodedFrame) {
        let frame = Frame::decode(&sent.bytes).expect("a written frame reads");
        assert_eq!((frame.header.seq, frame.header.prev), (self.frames, self.head));
        assert_eq!((sent.seq, sent.digest), (self.frames, Digest::of(&sent.bytes)));
        assert_eq!(sent.is_seal, frame.seal.is_some());
        assert!(frame.encode().expect("a frame writes") == sent.bytes);
        assert_add_up(&frame.header.counters);
        self.events += frame.body.events() as u64;
        let delivered: u64 =
            Class::ALL.iter().map(|class| frame.header.counters.class(*class).delivered).sum();
        assert_eq!(delivered, self.events, "the frames hold other events than their counters say");
        let node: &NodeId = &self.claimed.node;
        self.fold.frame(&sent.bytes, Some((node, Vantage::Host))).expect("the claimant's frame is folded");
        (self.frames, self.head, self.counters) = (self.frames + 1, sent.digest, frame.header.counters);
    }

    fn check(&self) {
        let receipt = self.fold.receipt().expect("a profiled execution has a receipt");
        for why in &receipt.coverage.incomplete {
            let about_the_chain =
                ["chain_broken", "frames_missing", "counters_differ"].contains(&why.reason.as_str());
            assert!(!about_the_chain, "{}: {}", why.reason, why.detail);
        }
        receipt.encode().expect("a receipt writes");
    }
}

fn check_lost(counters: &Counters, undecoded: &[u64; 5]) {
    let lost = Class::ALL.map(|class| counters.class(class).lost);
    assert_eq!(&lost, undecoded, "what was lost is not what could not be decoded");
}

fn assert_add_up(counters: &Counters) {
    for class in Class::ALL {
        assert!(counters.class(class).adds_up(), "{class:?}: {:?}", counters.class(class));
    }
}

fn check_masked(event: &Event<'_>) {
    match event.fact {
        Fact::Exec { exe, cwd, argv, env, .. } => {
            check_path(exe.bytes);
            check_path(cwd.bytes);
            argv.iter().for_each(|argument| check_argument(argument));
            assert!(env.iter().all(|name| !name.contains(&b'=')), "the value of a variable leaks");
        }
        Fact::Open { path, .. } | Fact::Delete { path, .. } | Fact::Io { path, .. } => check_path(path.bytes),
        Fact::Rename { from, to, .. } => {
            check_path(from.bytes);
            check_path(to.bytes);
        }
        Fact::Change { path, other, .. } => {
            check_path(path.bytes);
            other.iter().for_each(|other| check_path(other.bytes));
        }
        Fact::Socket { address, .. } | Fact::Traffic { address, .. } | Fact::Dns { server: address, .. } => {
            if let Address::Unix(path) = address {
                check_path(path);
            }
        }
        Fact::Fork { .. } | Fact::Exit { .. } | Fact::Credentials { .. } | Fact::Operation { .. } => {}
    }
}
