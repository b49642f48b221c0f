//! Frames and lifecycle events that nobody checked, folded: the receipt is the same whatever the order of delivery
//! and however often each comes, it fits its limit, and it reads as it was written.
//!
//! Input: one frame, or `[phases u16 LE] ([flags u8] [length u16 LE] [frame or lifecycle document])*`. `phases` says
//! which events of the golden lifecycle are delivered first, the flags what is fitted to it.

#![no_main]

use std::sync::LazyLock;

use glasshouse_fold::ExecutionFold;
use glasshouse_schema::ids::Digest;
use glasshouse_schema::lifecycle::{Closed, ClosedReason, LifecycleEvent, Phase, PhaseName};
use glasshouse_schema::receipt::{MAX_RECEIPT_BYTES, Receipt, ReceiptV03};
use glasshouse_schema::{Frame, canonical};
use libfuzzer_sys::fuzz_target;

/// The event is given the golden execution, node, vantage point and epoch.
const FITTED: u8 = 1;
/// The frame follows the last one that did.
const LINKED: u8 = 2;

enum Delivery {
    Lifecycle(Box<LifecycleEvent>),
    Frame(Vec<u8>),
}

static GOLDEN: LazyLock<Vec<LifecycleEvent>> = LazyLock::new(glasshouse_schema_fuzz::golden_lifecycle);

fuzz_target!(|input: &[u8]| {
    let deliveries = deliveries(input);
    let forward = Folded::of(deliveries.iter());
    let backward = Folded::of(deliveries.iter().rev().flat_map(|delivery| [delivery, delivery]));
    assert_eq!(forward.closing, backward.closing, "closing depends on order or redelivery");
    assert!(forward.receipt == backward.receipt, "the receipt depends on order or redelivery");

    let Some(bytes) = forward.receipt else { return };
    assert!(bytes.len() <= MAX_RECEIPT_BYTES);
    let read = Receipt::decode(&bytes).expect("a receipt reads");
    assert!(read.encode().expect("a receipt writes") == bytes);
    canonical::to_vec(&ReceiptV03::from(&read)).expect("a receipt exports");
});

fn deliveries(input: &[u8]) -> Vec<Delivery> {
    let golden = |phases: u16| {
        let told = GOLDEN.iter().enumerate().filter(move |(bit, _)| phases >> bit & 1 == 1);
        told.map(|(_, event)| Delivery::Lifecycle(Box::new(event.clone())))
    };
    let mut chain = (0, Digest::ZERO);
    if let Some(frame) = delivery(input, FITTED | LINKED, &mut chain) {
        return golden(!0).chain([frame]).collect();
    }
    let Some((phases, mut rest)) = input.split_first_chunk::<2>() else { return Vec::new() };
    let mut deliveries: Vec<Delivery> = golden(u16::from_le_bytes(*phases)).collect();
    while let Some(([flags, low, high], tail)) = rest.split_first_chunk::<3>() {
        let length = usize::from(u16::from_le_bytes([*low, *high])).min(tail.len());
        let (bytes, tail) = tail.split_at(length);
        deliveries.extend(delivery(bytes, *flags, &mut chain));
        rest = tail;
    }
    deliveries
}

fn delivery(bytes: &[u8], flags: u8, chain: &mut (u64, Digest)) -> Option<Delivery> {
    let (golden, node) = GOLDEN
        .iter()
        .find_map(|event| match &event.phase {
            Phase::Claimed(claimed) => Some((event, claimed)),
            _ => None,
        })
        .expect("the golden execution is claimed");
    if let Ok(mut event) = LifecycleEvent::decode(bytes) {
        // The fold ends at `closed`, so that what comes after it depends on the order by design.
        if event.phase.name() == PhaseName::Closed {
            return None;
        }
        if flags & FITTED != 0 {
            event.execution_id = golden.execution_id;
        }
        return Some(Delivery::Lifecycle(Box::new(event)));
    }
    let mut frame = Frame::decode(bytes).ok()?;
    if flags & FITTED != 0 {
        frame.header.execution = golden.execution_id;
        frame.header.node = node.node.clone();
        frame.header.epoch = node.epoch;
    }
    if flags & LINKED != 0 {
        (frame.header.seq, frame.header.prev) = *chain;
    }
    // Frames of older versions hold more events than are written now.
    let bytes = frame.encode().ok()?;
    if flags & LINKED != 0 {
        *chain = (chain.0 + 1, Digest::of(&bytes));
    }
    Some(Delivery::Frame(bytes))
}

struct Folded {
    closing: Option<ClosedReason>,
    receipt: Option<Vec<u8>>,
}

impl Folded {
    fn of<'d>(deliveries: impl Iterator<Item = &'d Delivery>) -> Self {
        let execution = GOLDEN[0].execution_id;
        let mut fold = ExecutionFold::new(execution);
        for delivery in deliveries {
            let _ = match delivery {
                Delivery::Lifecycle(event) => fold.lifecycle(event),
                Delivery::Frame(bytes) => fold.frame(bytes, None),
            };
        }
        let closing = fold.closing();
        let reason = closing.unwrap_or(ClosedReason::ProducerDead);
        let closed =
            LifecycleEvent { node: None, phase: Phase::Closed(Closed { reason }), ..GOLDEN[0].clone() };
        fold.lifecycle(&closed).expect("an open fold closes");
        let receipt = fold.receipt().map(|receipt| receipt.encode().expect("a receipt writes"));
        Self { closing, receipt }
    }
}
