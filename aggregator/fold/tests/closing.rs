//! When an execution may be closed, and with which reason.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use PhaseName::*;
use common::{
    Delivery, Scenario, at, close, config, deliver, events, execution, failed, frames, lifecycle, open,
    phase, reasons, scenario, seal, sealed,
};
use glasshouse_fold::{ExecutionFold, Rejected};
use glasshouse_schema::lifecycle::{ClosedReason, Phase, PhaseName, SealedVantage, Step, Unavailable};
use glasshouse_schema::{Digest, Vantage, lifecycle as wire};

const TO_RELEASE: [PhaseName; 6] = [Requested, Admitted, Claimed, Prepared, Started, Profiled];

fn vantage_missing() -> Phase {
    let missing = vec![Unavailable { vantage: Vantage::Host, reason: "it died".into() }];
    Phase::Sealed(wire::Sealed { vantages: Vec::new(), missing })
}

/// Delivers one by one and says at which delivery `closing` first answers, with what.
fn closes(scenario: &Scenario) -> Option<(String, ClosedReason)> {
    let mut fold = ExecutionFold::new(execution());
    scenario.deliveries.iter().find_map(|delivery| {
        deliver(&mut fold, delivery);
        let at = match delivery {
            Delivery::Lifecycle(event) => event.phase.name().as_str().to_owned(),
            Delivery::Frame(frame) => format!("frame {}", frame.seq),
        };
        fold.closing().map(|reason| (at, reason))
    })
}

fn is(at: &str, reason: ClosedReason) -> Option<(String, ClosedReason)> {
    Some((at.to_owned(), reason))
}

#[test]
fn a_sealed_execution_closes_without_waiting_for_its_cleaning() {
    assert_eq!(closes(&scenario(4)), is("sealed", ClosedReason::Sealed));
}

#[test]
fn it_waits_for_the_last_of_whatever_comes_late() {
    let straight = scenario(4).deliveries;
    for late in 0..straight.len() {
        let mut deliveries = straight.clone();
        let last = deliveries.remove(late);
        let name = match &last {
            Delivery::Lifecycle(event) => event.phase.name().as_str().to_owned(),
            Delivery::Frame(frame) => format!("frame {}", frame.seq),
        };
        deliveries.push(last);
        let expected = match name.as_str() {
            // Neither says anything that the receipt needs.
            "started" | "cleaned" => is("sealed", ClosedReason::Sealed),
            // What ends with a clean node and without a seal has none. A producer publishes in order.
            "sealed" => is("cleaned", ClosedReason::SealMissing),
            // Until it is known that something is attached there is nothing that is waited for.
            other => is(other, ClosedReason::Sealed),
        };
        assert_eq!(closes(&Scenario { deliveries }), expected, "{name} comes last");
    }
}

#[test]
fn frames_beside_the_chain_do_not_stand_in_for_those_in_it() {
    // Three frames are told of; numbers 0, 1 and 7 are three too.
    let told = frames(config(), &events(), events().len().div_ceil(2), seal());
    assert_eq!(told.len(), 3);
    let mut early = Scenario::of(&TO_RELEASE);
    early.add(phase(Exited)).add(sealed(&told)).add_frames(told[..2].to_vec());
    let many: Vec<_> = (0..8).map(|n| at(n, 1, open(b"/x", 0, 0))).collect();
    early.add_frames(frames(config(), &many, 1, seal()).into_iter().skip(7));
    assert_eq!(closes(&early), None);
    early.add_frames(told[2..].to_vec());
    assert_eq!(closes(&early), is("frame 2", ClosedReason::Sealed));
}

#[test]
fn an_unprofiled_execution_closes_when_it_ends() {
    let unprofiled = [Requested, Admitted, Claimed, Prepared, Started, Unprofiled];
    assert_eq!(closes(&Scenario::of(&unprofiled)), None);
    assert_eq!(closes(Scenario::of(&unprofiled).add(phase(Exited))), is("exited", ClosedReason::Sealed));
    for step in [Step::Release, Step::Wait, Step::Seal] {
        assert_eq!(closes(Scenario::of(&unprofiled).add(failed(step))), is("failed", ClosedReason::Sealed));
    }
    // The end may overtake the word that nothing was attached.
    assert_eq!(
        closes(&Scenario::of(&[Requested, Exited, Unprofiled])),
        is("unprofiled", ClosedReason::Sealed)
    );
    assert_eq!(closes(&Scenario::of(&[Requested, Exited, Cleaned])), None);
}

#[test]
fn what_failed_before_or_at_the_attach_closes_when_it_is_cleaned() {
    for step in [Step::Validate, Step::Admit, Step::Claim, Step::Prepare, Step::Start, Step::Attach] {
        let mut early = Scenario::of(&[Requested]);
        early.add(failed(step));
        assert_eq!(closes(&early), None);
        assert_eq!(closes(early.add(phase(Cleaned))), is("cleaned", ClosedReason::Sealed), "{step:?}");
        assert!(close(early.fold()).receipt().is_none());
    }
    // After the attach something may be attached: whether it is has to be known.
    for step in [Step::Release, Step::Wait, Step::Seal, Step::Cleanup] {
        let mut later = Scenario::of(&[Requested]);
        later.add(failed(step)).add(phase(Cleaned));
        assert_eq!(closes(&later), None, "{step:?}");
    }
}

#[test]
fn what_failed_at_the_release_still_has_a_receipt() {
    let frames = frames(config(), &[], 1, seal());
    let mut stopped = Scenario::of(&TO_RELEASE);
    stopped.add(failed(Step::Release));
    assert_eq!(closes(&stopped), None, "its seal is expected");
    stopped.add_frames(frames.clone()).add(sealed(&frames)).add(phase(Cleaned));
    assert_eq!(closes(&stopped), is("sealed", ClosedReason::Sealed));
    let receipt = stopped.receipt();
    assert!(reasons(&receipt).is_empty());
    assert_eq!((receipt.exit_code, receipt.artifacts.stdout_hash), (125, None));
}

#[test]
fn a_seal_that_is_given_up_closes_as_missing() {
    let mut unsealed = Scenario::of(&TO_RELEASE);
    unsealed.add(phase(Exited));
    assert_eq!(closes(&unsealed), None);
    assert_eq!(closes(unsealed.clone().add(vantage_missing())), is("sealed", ClosedReason::SealMissing));
    // An engine that could not even say so, and cleaned up.
    assert_eq!(closes(unsealed.add(phase(Cleaned))), is("cleaned", ClosedReason::SealMissing));
    // A vantage point of which `sealed` says nothing at all.
    let mut silent = Scenario::of(&TO_RELEASE);
    silent.add(phase(Exited)).add(Phase::Sealed(wire::Sealed::default()));
    assert_eq!(closes(&silent), is("sealed", ClosedReason::SealMissing));
}

#[test]
fn a_dead_producer_is_not_the_folds_to_find() {
    for keep in 0..scenario(4).deliveries.len() - 2 {
        let cut = Scenario { deliveries: scenario(4).deliveries[..keep].to_vec() };
        assert_eq!(closes(&cut), None, "{keep} deliveries");
    }
    // Frames that `sealed` tells of and that never come.
    let mut absurd = scenario(4);
    let vantage = SealedVantage { vantage: Vantage::Host, frames: u64::MAX, head: Digest::ZERO };
    absurd.with(Phase::Sealed(wire::Sealed { vantages: vec![vantage], missing: Vec::new() }));
    assert_eq!(closes(&absurd), None);
}

#[test]
fn nothing_is_taken_after_the_end() {
    let frame = frames(config(), &[at(0, 1, open(b"/late", 0, 0))], 1, seal()).remove(0);
    let mut fold = close(scenario(4).fold());
    let receipt = fold.receipt();
    assert!(matches!(fold.frame(&frame.bytes, None), Err(Rejected::AfterClose)));
    for name in PhaseName::ALL.into_iter().filter(|name| *name != Sealed) {
        assert!(matches!(fold.lifecycle(&lifecycle(phase(name))), Err(Rejected::AfterClose)));
    }
    assert_eq!(fold.closing(), None);
    assert_eq!(fold.receipt(), receipt);
}
