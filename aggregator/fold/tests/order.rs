//! The same lifecycle and frames give the same bytes, however they arrive.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use common::{
    Delivery, Scenario, at, close, config, deliver, events, exec, execution, failed, frames, node, outcome,
    phase, process, scenario, seal,
};
use glasshouse_fold::ExecutionFold;
use glasshouse_schema::frame::{FrameWriterConfig, Seal};
use glasshouse_schema::lifecycle::{Claimed, Phase, PhaseName, Step};
use glasshouse_schema::{
    Event, ExecFlags, Fact, FileChange, Operation, PathFlags, PathRef, Receipt, SocketOperation, Usage,
    Vantage,
};
use proptest::collection::vec;
use proptest::prelude::*;

fn bytes(deliveries: &[Delivery]) -> Option<Vec<u8>> {
    let scenario = Scenario { deliveries: deliveries.to_vec() };
    close(scenario.fold()).receipt().map(|receipt| receipt.encode().unwrap())
}

/// A permutation of `0..len` from sort keys.
fn shuffled(deliveries: &[Delivery], keys: &[u32]) -> Vec<Delivery> {
    let mut order: Vec<usize> = (0..deliveries.len()).collect();
    order.sort_by_key(|index| keys[index % keys.len()].rotate_left(*index as u32));
    order.into_iter().map(|index| deliveries[index].clone()).collect()
}

/// Everything that can go wrong at once: conflicting events, chains of other epochs, nodes and vantage points, two
/// frames of one number, a frame after the seal, frames that are missing.
fn hostile() -> Vec<Delivery> {
    let mut scenario = scenario(3);
    let with_node = |name: &str| FrameWriterConfig { node: node(name), ..config() };
    for epoch in 0..40 {
        let epoch = FrameWriterConfig { epoch: (epoch * 7) % 40, ..config() };
        scenario.add_frames(frames(epoch, &events()[..4], 2, Seal::default()));
    }
    for name in ["a-node", "z-node"] {
        scenario.add_frames(frames(with_node(name), &events()[..4], 2, seal()));
    }
    scenario.add_frames(frames(config(), &events()[7..], 4, Seal::default()).into_iter().skip(1));
    scenario.add_frames(frames(
        FrameWriterConfig { vantage: Vantage::Guest, ..config() },
        &events(),
        4,
        seal(),
    ));
    scenario.add(failed(Step::Seal)).add(failed(Step::Wait));
    let mut exited = phase(PhaseName::Exited);
    if let Phase::Exited(exited) = &mut exited {
        exited.outcome = outcome(7);
    }
    scenario.add(exited);
    scenario.deliveries.remove(9);
    scenario.deliveries
}

/// Few names, so that facts meet: the same file from two processes, one process told of twice.
fn any_event() -> impl Strategy<Value = Event<'static>> {
    const PATHS: [&[u8]; 5] = [b"/a", b"/b", b"/c/\xff", b"/d", b""];
    const ANSWERS: [IpAddr; 3] = [
        IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(Ipv6Addr::LOCALHOST),
        IpAddr::V6(Ipv4Addr::LOCALHOST.to_ipv6_mapped()),
    ];
    const ARGV: [&[&[u8]]; 3] = [&[], &[b"a"], &[b"b", b"\xff"]];
    let path =
        || (0..5usize, 0u8..4).prop_map(|(at, flags)| PathRef { bytes: PATHS[at], flags: PathFlags(flags) });
    let few = || prop_oneof![0..3u64, Just(1 << 55)];
    let address = || (0..3u16).prop_map(|port| glasshouse_schema::Address::V4([10, 0, 0, 1], port));
    let result = || prop_oneof![Just(0), Just(-2), Just(-13), any::<i32>()];
    let fact = prop_oneof![
        (1..5u32).prop_map(|child| Fact::Fork { child: process(child) }),
        (path(), path(), 0..3usize, 0..3u32).prop_map(|(exe, cwd, argv, ppid)| {
            Fact::Exec {
                ppid,
                exe,
                cwd,
                argv: ARGV[argv],
                argv_truncated: ppid == 2,
                uid: ppid,
                gid: 0,
                env: ARGV[argv],
                env_truncated: ppid == 1,
                flags: ExecFlags(1 << argv | 1 << ppid),
            }
        }),
        (any::<(u8, u8)>(), few()).prop_map(|((code, signal), user_ns)| Fact::Exit {
            code,
            signal: signal % 3,
            core_dumped: false,
            usage: Usage { user_ns, ..Usage::default() },
        }),
        (0..3u32, any::<u64>(), any::<bool>()).prop_map(|(uid, capabilities, gained)| {
            Fact::Credentials { uid, euid: uid, gid: 0, egid: 0, capabilities, gained }
        }),
        (path(), 0..4u32, result(), any::<bool>()).prop_map(|(path, flags, result, created)| Fact::Open {
            path,
            flags,
            result,
            created
        }),
        (path(), any::<bool>(), result())
            .prop_map(|(path, directory, result)| { Fact::Delete { path, directory, result } }),
        (path(), path(), any::<bool>(), result()).prop_map(|(from, to, exchange, result)| Fact::Rename {
            from,
            to,
            exchange,
            result
        }),
        (0..12u8, path(), proptest::option::of(path()), few(), result()).prop_map(
            |(change, path, other, value, result)| Fact::Change {
                change: FileChange::try_from(change).unwrap(),
                path,
                other,
                value,
                result,
            }
        ),
        (path(), few(), few(), few(), few()).prop_map(|(path, reads, writes, read_bytes, written_bytes)| {
            Fact::Io { path, reads, writes, read_bytes, written_bytes }
        }),
        (0..5u8, address(), 5..8u8, result()).prop_map(|(operation, address, protocol, result)| {
            Fact::Socket {
                operation: SocketOperation::try_from(operation).unwrap(),
                address,
                protocol,
                result,
            }
        }),
        (address(), 5..8u8, few(), few(), few(), few()).prop_map(
            |(address, protocol, sends, receives, sent_bytes, received_bytes)| Fact::Traffic {
                address,
                protocol,
                sends,
                receives,
                sent_bytes,
                received_bytes,
            }
        ),
        (address(), 0..5usize, 0..3u16, 0..4usize, proptest::option::of(0..3u8)).prop_map(
            |(server, name, query_type, answers, response_code)| Fact::Dns {
                server,
                name: PATHS[name],
                query_type,
                answers: &ANSWERS[..answers],
                response_code,
            }
        ),
        (0..18u8, few(), 0..2u32, result()).prop_map(|(operation, value, target_tgid, result)| {
            Fact::Operation { operation: Operation::try_from(operation).unwrap(), value, target_tgid, result }
        }),
    ];
    (0..2_000u64, 1..5u32, fact).prop_map(|(ms, tgid, fact)| at(ms, tgid, fact))
}

/// What a receipt says without saying how its frames were cut.
fn facts(mut receipt: Receipt) -> Receipt {
    receipt.chain.clear();
    receipt.probe_cost = None;
    for class in receipt.coverage.vantages.iter_mut().flat_map(|vantage| vantage.classes.values_mut()) {
        // Opens collapse within a frame.
        class.delivered += std::mem::take(&mut class.collapsed);
    }
    receipt
}

proptest! {
    #![proptest_config(common::proptest_config(64))]

    #[test]
    fn any_order_gives_the_same_bytes(per_frame in 1usize..12, keys in vec(any::<u32>(), 1..60)) {
        let straight = scenario(per_frame).deliveries;
        prop_assert_eq!(bytes(&shuffled(&straight, &keys)), bytes(&straight));
    }

    #[test]
    fn any_order_of_anything_gives_the_same_bytes(keys in vec(any::<u32>(), 1..200)) {
        let straight = hostile();
        prop_assert_eq!(bytes(&shuffled(&straight, &keys)), bytes(&straight));
    }

    #[test]
    fn any_events_in_any_order_give_the_same_bytes(
        events in vec(any_event(), 0..40),
        per_frame in 1usize..12,
        keys in vec(any::<u32>(), 1..60),
    ) {
        let straight = Scenario::profiled(frames(config(), &events, per_frame, seal()));
        // Events at random may lack the exec that a command cannot end without.
        let receipt = straight.receipt();
        let reasons = common::reasons(&receipt);
        prop_assert!(reasons.iter().all(|reason| *reason == "exec_missing"), "{:?}", reasons);
        prop_assert_eq!(bytes(&shuffled(&straight.deliveries, &keys)), bytes(&straight.deliveries));
    }

    #[test]
    fn redelivery_changes_nothing(again in vec(any::<prop::sample::Index>(), 0..60), keys in vec(any::<u32>(), 1..99)) {
        for straight in [scenario(5).deliveries, hostile()] {
            let mut twice = straight.clone();
            twice.extend(again.iter().map(|index| straight[index.index(straight.len())].clone()));
            prop_assert_eq!(bytes(&shuffled(&twice, &keys)), bytes(&straight));
        }
    }

    #[test]
    fn however_frames_are_cut_the_facts_are_the_same(
        events in vec(any_event(), 0..40),
        (one, other) in (1usize..45, 1usize..45),
    ) {
        let receipt = |per_frame| {
            let scenario = Scenario::profiled(frames(config(), &events, per_frame, seal()));
            facts(scenario.receipt()).encode().unwrap()
        };
        prop_assert_eq!(receipt(one), receipt(other));
    }

    #[test]
    fn a_copy_taken_anywhere_goes_on_like_the_original(cut in any::<prop::sample::Index>(), keys in vec(any::<u32>(), 1..99)) {
        let deliveries = shuffled(&hostile(), &keys);
        let cut = cut.index(deliveries.len());
        let mut fold = ExecutionFold::new(execution());
        deliveries[..cut].iter().for_each(|delivery| deliver(&mut fold, delivery));
        let mut checkpoint = fold.clone();
        // What the original goes on to take is nothing to the copy.
        deliveries.iter().rev().for_each(|delivery| deliver(&mut fold, delivery));
        // After a restart some of what the checkpoint has comes again.
        deliveries[cut / 2..].iter().for_each(|delivery| deliver(&mut checkpoint, delivery));
        let receipt = |fold| close(fold).receipt().map(|receipt| receipt.encode().unwrap());
        prop_assert_eq!(receipt(checkpoint), bytes(&deliveries));
        prop_assert_eq!(receipt(fold), bytes(&deliveries));
    }
}

/// Two nodes that both claim the execution: whose claim comes first must not decide whose frames count.
#[test]
fn a_disputed_claim_takes_no_frames_in_any_order() {
    let mut disputed = scenario(4);
    disputed.add(Phase::Claimed(Claimed { node: node("node-2"), epoch: common::EPOCH }));
    disputed.add_frames(frames(FrameWriterConfig { node: node("node-2"), ..config() }, &events(), 4, seal()));
    let straight = bytes(&disputed.deliveries).unwrap();
    let mut rotated = disputed.deliveries.clone();
    for _ in 0..rotated.len() {
        rotated.rotate_left(1);
        assert_eq!(bytes(&rotated).unwrap(), straight);
    }
    rotated.reverse();
    assert_eq!(bytes(&rotated).unwrap(), straight);
    let receipt = disputed.receipt();
    assert!(receipt.files.is_empty() && receipt.process_tree.is_empty() && receipt.execution.node.is_none());
    assert_eq!(common::reasons(&receipt), ["lifecycle_conflict", "seal_missing"]);
}

/// More execs of one process, and more processes named at one file, than are kept.
#[test]
fn what_a_small_list_keeps_does_not_depend_on_the_order() {
    let argv: &[&[u8]] = &[b"a"];
    let mut events: Vec<Event<'static>> =
        (0..1_100).map(|n| at(n, 10, exec(1, b"/bin/again", argv))).collect();
    events.push(at(5_000, 10, exec(1, b"/bin/last", argv)));
    events.extend((0..100).map(|n| at(u64::from(n), 200 + n, common::open(b"/shared", 0, 0))));
    let forward = frames(config(), &events, 90, Seal::default());
    let straight = Scenario::profiled(forward);
    // The same execs again under another number, as a forked chain has them: an exec that is told of twice.
    let again = |mut scenario: Scenario| {
        scenario.add_frames(frames(config(), &events[..600], 70, Seal::default()));
        scenario
    };
    for scenario in [straight.clone(), again(straight)] {
        let mut reversed = scenario.clone();
        reversed.deliveries.reverse();
        assert_eq!(bytes(&reversed.deliveries), bytes(&scenario.deliveries));
        let receipt = scenario.receipt();
        let root = &receipt.process_tree[0];
        assert_eq!((root.execs.len(), root.exe.as_str()), (1_000, "/bin/last"));
        assert_eq!(receipt.files[0].by["read"], (200..264).collect::<Vec<_>>());
        let cap = |list: &str| receipt.coverage.caps.iter().find(|cap| cap.list == list).unwrap();
        assert_eq!((cap("files[].by").limit, cap("files[].by").events_left_out), (64, 1));
        assert_eq!(cap("process_tree[].execs").limit, 1_000);
        assert!(cap("process_tree[].execs").events_left_out >= 101);
    }
}
