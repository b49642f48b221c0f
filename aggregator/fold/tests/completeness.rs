//! A receipt is `closed` only when it can show that nothing is missing; each stable word of why it is not has a test.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use common::{
    Delivery, Scenario, attached, config, events, frames, lifecycle, outcome, phase, reasons, scenario, seal,
};
use glasshouse_fold::ExecutionFold;
use glasshouse_schema::frame::{FrameWriterConfig, Seal, SealTotals};
use glasshouse_schema::ids::Digest;
use glasshouse_schema::lifecycle::{
    Closed, ClosedReason, Phase, PhaseName, Profiled, Sealed, SealedVantage, Unavailable,
};
use glasshouse_schema::receipt::Incomplete;
use glasshouse_schema::{Class, EncodedFrame, Frame, FrameWriter, Receipt, Vantage};

/// The scenario's frames, changed, with a `sealed` event that still tells of the unchanged ones.
fn with_frames(change: impl FnOnce(&mut Vec<EncodedFrame>)) -> Receipt {
    let mut scenario = scenario(4);
    let mut frames: Vec<EncodedFrame> = Vec::new();
    scenario.deliveries.retain(|delivery| match delivery {
        Delivery::Frame(frame) => {
            frames.push(frame.clone());
            false
        }
        Delivery::Lifecycle(_) => true,
    });
    change(&mut frames);
    scenario.add_frames(frames);
    scenario.receipt()
}

/// A frame's bytes after a change, and nothing after it changed.
fn forged(frame: &EncodedFrame, change: impl FnOnce(&mut Frame<'_>)) -> EncodedFrame {
    let mut decoded = Frame::decode(&frame.bytes).unwrap();
    change(&mut decoded);
    let bytes = decoded.encode().unwrap();
    EncodedFrame { seq: decoded.header.seq, digest: Digest::of(&bytes), bytes, ..frame.clone() }
}

fn why<'r>(receipt: &'r Receipt, reason: &str) -> Vec<&'r Incomplete> {
    receipt.coverage.incomplete.iter().filter(|why| why.reason == reason).collect()
}

fn missing(vantage: Vantage) -> Unavailable {
    Unavailable { vantage, reason: "the probe died".into() }
}

#[test]
fn closed_when_all_of_it_holds() {
    for per_frame in [1, 4, 99] {
        let receipt = scenario(per_frame).receipt();
        assert!(reasons(&receipt).is_empty());
        let vantage = &receipt.coverage.vantages[0];
        assert!(vantage.sealed);
        for class in vantage.classes.values() {
            assert_eq!(class.observed, class.delivered + class.collapsed + class.lost);
        }
    }
}

/// A record without the exec that let the command go has missed all that came after.
#[test]
fn exec_missing_of_a_command_that_ended() {
    let receipt = Scenario::profiled(frames(config(), &[], 1, Seal::default())).receipt();
    assert_eq!(reasons(&receipt), ["exec_missing"]);
}

#[test]
fn seal_missing_when_no_seal_came() {
    let mut unsealed = scenario(4);
    unsealed.deliveries.retain(|delivery| !matches!(delivery, Delivery::Frame(frame) if frame.is_seal));
    unsealed.with(Phase::Sealed(Sealed { vantages: Vec::new(), missing: vec![missing(Vantage::Host)] }));
    assert_eq!(unsealed.fold().closing(), Some(ClosedReason::SealMissing));
    let receipt = unsealed.receipt();
    assert_eq!(reasons(&receipt), ["seal_missing"]);
    assert_eq!(why(&receipt, "seal_missing")[0].detail, "the probe died");
    assert!(!receipt.coverage.vantages[0].sealed);
    // What came before is in it.
    assert!(!receipt.files.is_empty());
}

#[test]
fn seal_missing_when_no_frame_came() {
    let mut silent = scenario(4);
    silent.deliveries.retain(|delivery| matches!(delivery, Delivery::Lifecycle(_)));
    let receipt = silent.receipt();
    assert_eq!(reasons(&receipt), ["producer_dead", "seal_missing"]);
    assert!(receipt.chain.is_empty());
}

/// The engine says that the probe gave no seal, and a frame with a seal is there: the engine is believed.
#[test]
fn seal_missing_when_the_engine_does_not_name_the_seal() {
    for (missing, detail) in
        [(vec![missing(Vantage::Host)], "the probe died"), (Vec::new(), "the engine names no seal")]
    {
        let receipt = scenario(4).with(Phase::Sealed(Sealed { vantages: Vec::new(), missing })).receipt();
        assert_eq!(reasons(&receipt), ["seal_missing"]);
        assert_eq!(why(&receipt, "seal_missing")[0].detail, detail);
    }
}

#[test]
fn lost_events_are_named_by_their_class() {
    for class in Class::ALL {
        let mut writer = FrameWriter::new(config());
        writer.count_lost(class, 3);
        let receipt = Scenario::profiled(writer.seal(SealTotals::default(), Seal::default())).receipt();
        assert_eq!(reasons(&receipt), ["exec_missing", "lost_events"]);
        assert_eq!(why(&receipt, "lost_events")[0].class, Some(class));
        assert_eq!(receipt.coverage.vantages[0].classes[class.as_str()].lost, 3);
    }
}

#[test]
fn chain_broken_by_an_altered_frame() {
    let receipt = with_frames(|frames| {
        frames[2] = forged(&frames[2], |frame| frame.body.base_boot_ns += 1);
    });
    assert_eq!(reasons(&receipt), ["chain_broken"]);
    // The part before the next frame is whole, and says where it ends.
    assert_eq!(receipt.chain[0].frames, 3);
}

#[test]
fn chain_broken_by_another_chain_than_the_engine_sealed() {
    let other = SealedVantage { vantage: Vantage::Host, frames: 9, head: Digest::of(b"another") };
    let receipt =
        scenario(4).with(Phase::Sealed(Sealed { vantages: vec![other], missing: Vec::new() })).receipt();
    assert_eq!(reasons(&receipt), ["chain_broken"]);
    assert!(why(&receipt, "chain_broken")[0].detail.starts_with("the engine says 9 frames"));
}

#[test]
fn chain_broken_by_two_frames_of_one_number() {
    let receipt = with_frames(|frames| {
        let fork = forged(&frames[2], |frame| frame.body.base_boot_ns += 1);
        frames.push(fork);
    });
    // The facts are there twice, which the counters show.
    assert_eq!(reasons(&receipt), ["chain_broken", "counters_differ"]);
    assert!(
        why(&receipt, "chain_broken")
            .iter()
            .any(|why| why.detail == "there are several frames with number 2")
    );
}

#[test]
fn chain_broken_by_a_first_frame_that_follows_something() {
    let receipt = with_frames(|frames| {
        frames[0] = forged(&frames[0], |frame| frame.header.prev = Digest::of(b"before"));
    });
    assert_eq!(reasons(&receipt), ["chain_broken"]);
    assert_eq!((receipt.chain[0].frames, receipt.chain[0].head), (0, Digest::ZERO));
}

#[test]
fn chain_broken_by_a_frame_after_the_seal() {
    let receipt = with_frames(|frames| {
        let last = frames.last().unwrap();
        let after = forged(last, |frame| {
            frame.header.prev = last.digest;
            frame.header.seq += 1;
            frame.seal = None;
        });
        frames.push(after);
    });
    assert_eq!(reasons(&receipt), ["chain_broken", "seal_missing"]);
    assert!(why(&receipt, "chain_broken").iter().any(|why| why.detail == "a frame follows the seal"));
}

#[test]
fn frames_missing_at_each_place() {
    let count = scenario(4).deliveries.iter().filter(|of| matches!(of, Delivery::Frame(_))).count();
    for gone in 0..count - 1 {
        let receipt = with_frames(|frames| drop(frames.remove(gone)));
        let reasons = reasons(&receipt);
        assert!(
            reasons.contains(&"frames_missing") && reasons.contains(&"producer_dead"),
            "{gone}: {reasons:?}"
        );
        let detail = format!("1 frames of the chain, the first with number {gone}");
        assert_eq!(why(&receipt, "frames_missing")[0].detail, detail);
        assert_eq!(receipt.chain[0].frames, gone as u64);
    }
}

#[test]
fn counters_differ_from_what_the_frames_hold() {
    let seal_says = |change: &dyn Fn(&mut Frame<'_>)| {
        let mut sealed = frames(config(), &events(), 4, seal());
        let seal = sealed.pop().unwrap();
        let head = sealed.last().unwrap().digest;
        sealed.push(forged(&seal, |frame| {
            frame.header.prev = head;
            change(frame);
        }));
        Scenario::profiled(sealed).receipt()
    };
    for class in Class::ALL {
        let more = seal_says(&|frame| {
            let counters = frame.header.counters.class_mut(class);
            (counters.observed, counters.delivered) = (counters.observed + 1, counters.delivered + 1);
        });
        assert_eq!(reasons(&more), ["counters_differ"]);
        assert_eq!(why(&more, "counters_differ")[0].class, Some(class));
        let wrong_sum = seal_says(&|frame| frame.header.counters.class_mut(class).observed += 1);
        assert_eq!(reasons(&wrong_sum), ["counters_differ"]);
        assert!(why(&wrong_sum, "counters_differ")[0].detail.ends_with("does not add up"));
    }
    let fewer_calls = seal_says(&|frame| frame.seal.as_mut().unwrap().syscalls.clear());
    assert_eq!(why(&fewer_calls, "counters_differ")[0].class, Some(Class::Syscall));
}

#[test]
fn tasks_escaped_from_the_cgroup() {
    let seal = Seal { escaped_tasks: 2, ..seal() };
    let receipt = Scenario::profiled(frames(config(), &events(), 4, seal)).receipt();
    assert_eq!(reasons(&receipt), ["tasks_escaped"]);
    assert_eq!(receipt.coverage.vantages[0].escaped_tasks, 2);
    assert_eq!(receipt.coverage.vantages[0].classes["other"].collapsed, 2);
}

#[test]
fn bypassed_hooks() {
    let seal = Seal { blind_spots: vec!["compat syscalls: 3".into()], ..seal() };
    let receipt = Scenario::profiled(frames(config(), &events(), 4, seal)).receipt();
    assert_eq!(reasons(&receipt), ["bypassed"]);
    assert_eq!(receipt.coverage.vantages[0].bypassed, ["compat syscalls: 3"]);
}

#[test]
fn vantage_unavailable_that_was_asked_for() {
    let unavailable = vec![Unavailable { vantage: Vantage::Guest, reason: "no guest".into() }];
    let profiled = Profiled { attached: vec![attached(Vantage::Host)], unavailable };
    let receipt = scenario(4).with(Phase::Profiled(profiled)).receipt();
    assert_eq!(reasons(&receipt), ["vantage_unavailable"]);
    assert_eq!(why(&receipt, "vantage_unavailable")[0].vantage, Some(Vantage::Guest));
}

#[test]
fn producer_dead_as_its_closing_says() {
    let mut fold = scenario(4).fold();
    fold.lifecycle(&lifecycle(Phase::Closed(Closed { reason: ClosedReason::ProducerDead }))).unwrap();
    assert_eq!(reasons(&fold.receipt().unwrap()), ["producer_dead"]);
}

#[test]
fn lifecycle_missing_for_each_phase_that_the_receipt_needs() {
    use PhaseName::{Admitted, Claimed, Cleaned, Exited, Prepared, Profiled, Requested, Sealed};
    for (name, also) in [
        (Requested, ""),
        (Admitted, ""),
        (Prepared, ""),
        (Profiled, ""),
        (Claimed, "seal_missing"),
        (Exited, ""),
        (Sealed, "seal_missing"),
    ] {
        let receipt = scenario(4).without(name).receipt();
        let mut expected = vec!["lifecycle_missing"];
        // A sealed event that is missing is told of at the end of a producer that cleaned up: it is not dead.
        expected.extend((name != Sealed).then_some("producer_dead"));
        expected.extend((!also.is_empty()).then_some(also));
        expected.sort();
        assert_eq!(reasons(&receipt), expected, "without {name:?}");
        let named = why(&receipt, "lifecycle_missing")[0].detail.contains(name.as_str());
        assert!(named, "without {name:?}: {:?}", receipt.coverage.incomplete);
    }
    // Nobody said how it ended.
    let mut cut = scenario(4);
    cut.without(Exited).without(Sealed).without(Cleaned);
    let receipt = cut.receipt();
    assert_eq!(receipt.outcome.exit_code, 125);
    assert!(receipt.outcome.error.unwrap().contains("unknown"));
}

#[test]
fn lifecycle_conflict_of_two_events_of_one_phase() {
    let mut conflicting = scenario(4);
    let mut exited = phase(PhaseName::Exited);
    if let Phase::Exited(exited) = &mut exited {
        exited.outcome = outcome(0);
    }
    conflicting.add(exited);
    let receipt = conflicting.receipt();
    assert_eq!(reasons(&receipt), ["lifecycle_conflict"]);
    assert!(why(&receipt, "lifecycle_conflict")[0].detail.contains("`exited`"));
}

#[test]
fn several_epochs_of_the_claimant() {
    let mut resumed = scenario(4);
    let later = FrameWriterConfig { epoch: common::EPOCH + 1, ..config() };
    resumed.add_frames(frames(later, &events()[..3], 4, seal()));
    let receipt = resumed.receipt();
    assert_eq!(reasons(&receipt), ["several_epochs"]);
    // Only the claim's epoch is folded.
    assert_eq!(receipt.files, scenario(4).receipt().files);
    assert_eq!(receipt.chain.len(), 1);
}

#[test]
fn a_vantage_point_that_is_named_twice_is_one() {
    let profiled = Profiled { attached: vec![attached(Vantage::Host); 2], unavailable: Vec::new() };
    let receipt = scenario(4).with(Phase::Profiled(profiled)).receipt();
    assert!(reasons(&receipt).is_empty());
    assert_eq!(receipt, scenario(4).receipt());
}

/// Host and guest together: each has its chain, and one that is missing makes the whole partial.
#[test]
fn two_vantage_points_are_both_needed() {
    let profiled =
        Profiled { attached: vec![attached(Vantage::Host), attached(Vantage::Guest)], unavailable: vec![] };
    let guest = frames(FrameWriterConfig { vantage: Vantage::Guest, ..config() }, &events()[..3], 4, seal());
    let host = frames(config(), &events(), 4, seal());
    let told = |frames: &[EncodedFrame]| match common::sealed(frames) {
        Phase::Sealed(sealed) => sealed.vantages,
        _ => unreachable!(),
    };
    let both = [told(&host), told(&guest)].concat();
    let mut combined = scenario(4);
    combined
        .with(Phase::Profiled(profiled))
        .with(Phase::Sealed(Sealed { vantages: both, missing: Vec::new() }));
    assert_eq!(combined.fold().closing(), None, "the guest's frames are still to come");
    assert_eq!(reasons(&combined.receipt()), ["producer_dead", "seal_missing"]);
    combined.add_frames(guest);
    assert_eq!(combined.fold().closing(), Some(ClosedReason::Sealed));
    let receipt = combined.receipt();
    assert!(reasons(&receipt).is_empty());
    assert_eq!(receipt.provenance, glasshouse_schema::receipt::Provenance::HostAndGuest);
    assert_eq!(receipt.syscalls.counts["openat"], 240);
    assert!(receipt.process_tree.iter().any(|process| process.vantage == Vantage::Guest));
}

/// Every word that the schema names is one that the tests above brought about.
#[test]
fn the_words_are_those_that_are_documented() {
    let schema =
        glasshouse_schema::json_schema::all().into_iter().find(|(name, _)| name.starts_with("receipt"));
    let schema = schema.unwrap().1.to_value();
    let text = schema["$defs"]["Incomplete"]["properties"]["reason"]["description"].as_str().unwrap();
    let documented: Vec<&str> = text.split('`').skip(1).step_by(2).collect();
    let tested = [
        "exec_missing",
        "seal_missing",
        "lost_events",
        "chain_broken",
        "frames_missing",
        "counters_differ",
        "tasks_escaped",
        "vantage_unavailable",
        "producer_dead",
        "lifecycle_missing",
        "lifecycle_conflict",
        "several_epochs",
        "bypassed",
        "contradiction",
        "counters_unknown",
    ];
    assert_eq!(documented, tested);
}

#[test]
fn an_unprofiled_execution_has_no_receipt() {
    use PhaseName::{Admitted, Claimed, Exited, Prepared, Requested, Started, Unprofiled};
    let mut fold =
        Scenario::of(&[Requested, Admitted, Claimed, Prepared, Started, Unprofiled, Exited]).fold();
    assert!(fold.receipt().is_none());
    fold.lifecycle(&lifecycle(Phase::Closed(Closed { reason: ClosedReason::Sealed }))).unwrap();
    assert!(fold.receipt().is_none());
    assert!(ExecutionFold::new(common::execution()).receipt().is_none());
}
