//! Frames that no honest producer writes: refused or folded, never a panic, and no more memory or receipt than they
//! are worth.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::time::{Duration, Instant};

use common::{Scenario, at, config, events, execution, frames, node, open, phase, process, scenario, seal};
use glasshouse_fold::{ExecutionFold, Rejected};
use glasshouse_schema::canonical::MAX_INTEGER;
use glasshouse_schema::event::{ExecFlags, FileChange, Operation as Kind, SocketOperation, Usage};
use glasshouse_schema::frame::{
    Body, Change, Dns, Exit, Fork, FrameWriterConfig, Io, MAX_FRAME_BYTES, Open, Operation, Rename, Seal,
    Socket, Traffic,
};
use glasshouse_schema::ids::Digest;
use glasshouse_schema::lifecycle::{Exited, Phase, PhaseName, Rusage};
use glasshouse_schema::receipt::{MAX_RECEIPT_BYTES, Receipt};
use glasshouse_schema::{EncodedFrame, Event, ExecutionId, Frame, PathRef, ProcessKey, Vantage};
use proptest::prelude::*;

fn fold_of(phases: &[PhaseName]) -> ExecutionFold {
    Scenario::of(phases).fold()
}

/// A frame with a body that no writer would write.
fn forged<'f>(seq: u64, change: impl FnOnce(&mut Frame<'f>)) -> EncodedFrame {
    let frame = frames(config(), &[], 1, Seal::default()).remove(0);
    let Frame { header, seal, .. } = Frame::decode(&frame.bytes).unwrap();
    let mut decoded = Frame { header, body: Body::default(), seal };
    decoded.header.seq = seq;
    change(&mut decoded);
    let bytes = decoded.encode().unwrap();
    assert!(bytes.len() <= MAX_FRAME_BYTES, "{} bytes", bytes.len());
    EncodedFrame { seq, digest: Digest::of(&bytes), bytes, is_seal: false, ..frame }
}

#[test]
fn what_is_not_of_this_execution_is_refused() {
    let frame = frames(config(), &events()[..2], 9, seal()).remove(0);
    let mut fold = ExecutionFold::new(ExecutionId::from_parts(9, [9; 10]));
    assert!(matches!(fold.frame(&frame.bytes, None), Err(Rejected::OtherExecution { .. })));
    let requested = common::lifecycle(phase(PhaseName::Requested));
    assert!(matches!(fold.lifecycle(&requested), Err(Rejected::OtherExecution { .. })));

    let mut fold = ExecutionFold::new(execution());
    assert!(matches!(fold.frame(b"garbage", None), Err(Rejected::NotAFrame(_))));
    for (name, vantage) in [("node-2", Vantage::Host), ("node-1", Vantage::Guest)] {
        let source = node(name);
        let refused = fold.frame(&frame.bytes, Some((&source, vantage)));
        assert!(matches!(refused, Err(Rejected::OtherSource { .. })));
    }
    fold.frame(&frame.bytes, Some((&frame.node, frame.vantage))).unwrap();
}

#[test]
fn another_nodes_frames_never_count() {
    let other = frames(FrameWriterConfig { node: node("node-0"), ..config() }, &events(), 2, seal());
    let mut fold = fold_of(&[PhaseName::Claimed]);
    assert!(matches!(fold.frame(&other[0].bytes, None), Err(Rejected::NotTheClaimant(_))));
    // Before the claim nobody can say; however many they are, they push none of the claimant's out.
    let mut early = Scenario { deliveries: Vec::new() };
    for epoch in 0..40 {
        let of = |name| FrameWriterConfig { node: node(name), epoch, ..config() };
        early.add_frames(frames(of("node-0"), &events()[..2], 2, seal()));
        early.add_frames(frames(of("node-2"), &events()[..2], 2, seal()));
    }
    early.deliveries.extend(scenario(4).deliveries);
    assert_eq!(early.receipt().encode().unwrap(), scenario(4).receipt().encode().unwrap());
}

#[test]
fn a_node_with_too_many_chains_is_held_to_some() {
    let mut fold = fold_of(&[PhaseName::Claimed]);
    let frame = |epoch| frames(FrameWriterConfig { epoch, ..config() }, &[], 1, seal()).remove(0);
    for epoch in 100..116 {
        fold.frame(&frame(epoch).bytes, None).unwrap();
    }
    assert!(matches!(fold.frame(&frame(116).bytes, None), Err(Rejected::TooManyChains)));
    // One that sorts before them takes the place of the last.
    fold.frame(&frame(1).bytes, None).unwrap();
    assert!(matches!(fold.frame(&frame(115).bytes, None), Err(Rejected::TooManyChains)));
    fold.frame(&frame(100).bytes, None).unwrap();
}

fn open_of(path: u32, count: u32) -> Open {
    Open { after_ns: 0, process: 0, path, flags: 0o102, result: 0, count: count.into(), created: true }
}

fn one_process(frame: &mut Frame<'_>) {
    frame.body.processes = vec![process(1)];
}

#[test]
fn counts_and_times_at_their_limits_do_not_overflow() {
    let mut extreme = Scenario::of(&[PhaseName::Requested, PhaseName::Claimed, PhaseName::Profiled]);
    for seq in [0, 1, u64::MAX - 1, u64::MAX] {
        extreme.add_frames([forged(seq, |frame| {
            frame.header.unix_minus_boot_ns = if seq == 0 { i64::MIN } else { i64::MAX };
            for class in glasshouse_schema::Class::ALL {
                let counters = frame.header.counters.class_mut(class);
                counters.observed = u64::MAX;
                counters.delivered = u64::MAX;
                counters.collapsed = u64::MAX;
                counters.lost = u64::MAX;
            }
            frame.body.base_boot_ns = u64::MAX;
            frame.body.processes = vec![ProcessKey { tgid: u32::MAX, start_boot_ns: u64::MAX }];
            frame.body.paths = [PathRef::resolved(b"/x")].into_iter().collect();
            frame.body.opens = vec![Open { after_ns: u64::MAX, ..open_of(0, u32::MAX) }; 100_000 / 50];
            frame.body.forks = vec![Fork { after_ns: u64::MAX, process: 0, child: 0 }];
            let most = u64::MAX;
            let usage = Usage {
                user_ns: most,
                system_ns: most,
                max_rss_kib: most,
                minor_faults: most,
                major_faults: most,
            };
            frame.body.exits =
                vec![Exit { after_ns: most, process: 0, code: 1, signal: 0, core_dumped: false, usage }];
            let (after_ns, process, path, result, count) = (most, 0, 0, 0, most);
            let io = Io {
                after_ns,
                process,
                path,
                reads: most,
                writes: most,
                read_bytes: most,
                written_bytes: most,
            };
            frame.body.ios = vec![io; 3];
            let change = Change {
                after_ns,
                process,
                change: FileChange::Mode,
                path,
                other: None,
                value: most,
                result,
                count,
            };
            frame.body.changes = vec![change; 3];
            let (address, port, protocol) = (&b"1234"[..], Some(5), 6);
            let operation = SocketOperation::Connect;
            frame.body.sockets =
                vec![Socket { after_ns, process, address, port, protocol, result, operation, count }; 3];
            let traffic = Traffic {
                after_ns,
                process,
                address,
                port,
                protocol,
                sends: most,
                receives: most,
                sent_bytes: most,
                received_bytes: most,
            };
            frame.body.traffic = vec![traffic; 3];
            let operation = Operation {
                after_ns,
                process,
                operation: Kind::Reboot,
                value: most,
                target_tgid: 0,
                result,
                count,
            };
            frame.body.operations = vec![operation; 3];
            let dns = Dns {
                after_ns,
                process,
                server: address,
                port,
                name: b"\xff",
                query_type: u16::MAX,
                answers: Vec::new(),
                response_code: Some(u8::MAX),
                truncated: true,
                count,
            };
            frame.body.dns = vec![dns; 3];
            let seal = frame.seal.as_mut().unwrap();
            seal.syscalls = vec![("read".into(), u64::MAX); 3];
            seal.denied = vec![("read".into(), u64::MAX); 3];
            seal.escaped_tasks = u64::MAX;
            seal.redactions = vec![("tokens".into(), u64::MAX); 3];
            seal.cost.user_cpu_ns = u64::MAX;
            seal.cost.frame_bytes = u64::MAX;
            seal.cost.kernel_ns = u64::MAX;
            seal.cost.kernel_samples = u64::MAX;
        })]);
    }
    let exited = Exited {
        outcome: common::outcome(i32::MIN),
        start_unix_ns: i64::MIN,
        end_unix_ns: i64::MAX,
        rusage: Some(Rusage { cpu_time_ms: u64::MAX, max_rss_kb: u64::MAX }),
        stdout_hash: None,
        stderr_hash: None,
        files: Default::default(),
    };
    extreme.add(Phase::Exited(exited));
    let receipt = extreme.receipt();
    assert_eq!(receipt.syscalls.counts["read"], MAX_INTEGER);
    assert_eq!(receipt.resources.as_ref().unwrap().max_rss_kb, MAX_INTEGER);
    let file = &receipt.files[0];
    assert_eq!(
        (file.bytes_read, file.write_calls, file.changes["chmod"]),
        (MAX_INTEGER, MAX_INTEGER, MAX_INTEGER)
    );
    assert_eq!((file.modes[0].as_str(), receipt.network.bytes_sent), ("7777", Some(MAX_INTEGER)));
    assert_eq!(
        (receipt.sockets[0].sends, receipt.sockets[0].results["ok"]),
        (Some(MAX_INTEGER), MAX_INTEGER)
    );
    assert_eq!((receipt.operations[0].count, receipt.dns[0].results["255"]), (MAX_INTEGER, MAX_INTEGER));
    let usage = receipt.process_tree[0].usage.unwrap();
    assert_eq!((usage.max_rss_kb, usage.minor_faults), (MAX_INTEGER, MAX_INTEGER));
    assert_eq!(Receipt::decode(&receipt.encode().unwrap()).unwrap(), receipt);
}

/// Sums of sums that pass 2^53 in a few frames.
#[test]
fn no_count_passes_what_a_json_number_holds() {
    let mut scenario = Scenario::of(&[PhaseName::Claimed, PhaseName::Profiled]);
    for seq in 0..40 {
        scenario.add_frames([forged(seq, |frame| {
            one_process(frame);
            frame.body.paths = [PathRef::resolved(b"/x")].into_iter().collect();
            frame.body.opens = vec![open_of(0, u32::MAX); 60_000];
            frame.body.opens.push(Open { result: -2, ..open_of(0, u32::MAX) });
        })]);
    }
    let receipt = scenario.receipt();
    let file = &receipt.files[0];
    assert_eq!((file.reads, file.writes, file.creates), (MAX_INTEGER, MAX_INTEGER, MAX_INTEGER));
    assert_eq!(file.errors["open ENOENT"], 40 * u64::from(u32::MAX));
}

#[test]
fn results_that_are_no_errno_are_held_to_the_last() {
    let results = [i32::MIN, -4096, -4095, -2, 0, 1, i32::MAX];
    let address = glasshouse_schema::Address::V4([1, 2, 3, 4], 5);
    let mut events: Vec<Event<'_>> = results.iter().map(|result| at(0, 1, open(b"/x", 0, *result))).collect();
    events.extend(results.iter().map(|result| at(0, 1, common::connect(address, 6, *result))));
    let receipt = Scenario::profiled(frames(config(), &events, 99, Seal::default())).receipt();
    let errors: Vec<_> =
        receipt.files[0].errors.iter().map(|(name, count)| (name.as_str(), *count)).collect();
    assert_eq!(errors, [("open ENOENT", 1), ("open errno 4095", 3)]);
    let results: Vec<_> =
        receipt.sockets[0].results.iter().map(|(name, count)| (name.as_str(), *count)).collect();
    assert_eq!(results, [("ENOENT", 1), ("errno 4095", 3), ("ok", 3)]);
}

/// A long path or argument that ten bytes name again and again must not become gigabytes, in memory or in a receipt.
#[test]
fn what_is_named_often_is_not_copied_as_often() {
    let begun = Instant::now();
    let long = vec![b'x'; 400_000];
    let argument: &[&[u8]] = &[&long];
    let mut hostile = Scenario::of(&[PhaseName::Requested, PhaseName::Claimed, PhaseName::Profiled]);
    // 30 000 renames of different files to one long name.
    let names: Vec<String> = (0..30_000).map(|n| format!("/{n}")).collect();
    hostile.add_frames([forged(0, |frame| {
        one_process(frame);
        frame.body.paths = [PathRef::resolved(&long)].into_iter().collect();
        names.iter().for_each(|name| frame.body.paths.push(PathRef::resolved(name.as_bytes())));
        let rename =
            |from| Rename { after_ns: 0, process: 0, from, to: 0, result: 0, exchange: false, count: 1 };
        frame.body.renames = (1..=30_000).map(rename).collect();
    })]);
    // 10 000 processes that ran it in it.
    hostile.add_frames([forged(1, |frame| {
        frame.body.processes = (0..10_000).map(process).collect();
        frame.body.paths = [PathRef::resolved(&long)].into_iter().collect();
        let exec = |process| glasshouse_schema::frame::Exec {
            after_ns: 0,
            process,
            ppid: 1,
            exe: 0,
            cwd: 0,
            argv: Vec::new(),
            argv_truncated: false,
            uid: 0,
            gid: 0,
            env: Vec::new(),
            env_truncated: false,
            flags: ExecFlags::default(),
        };
        frame.body.execs = (0..10_000).map(exec).collect();
    })]);
    // And one long argument with 10 000 forks of it.
    let execs = frames(config(), &[at(0, 50_000, common::exec(1, b"/bin/x", argument))], 1, Seal::default());
    let decoded = Frame::decode(&execs[0].bytes).unwrap();
    hostile.add_frames([forged(2, |frame| {
        frame.body = decoded.body.clone();
        frame.body.processes.extend((50_001..60_000).map(process));
        frame.body.forks = (1..10_000).map(|child| Fork { after_ns: 1, process: 0, child }).collect();
    })]);
    let receipt = hostile.receipt();
    let caps: Vec<&str> = receipt.coverage.caps.iter().map(|cap| cap.list.as_str()).collect();
    assert_eq!(caps, ["files[].renamed_from", "process_tree (bytes)", "files (bytes)"]);
    let bytes = receipt.encode().unwrap();
    assert!(bytes.len() < MAX_RECEIPT_BYTES, "{} bytes", bytes.len());
    Receipt::decode(&bytes).unwrap();
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
}

/// More of everything else than a receipt holds, in lists and in bytes.
#[test]
fn more_sockets_names_and_operations_than_a_receipt_holds() {
    let names: Vec<Vec<u8>> = (0..12_000).map(|n| format!("{n:0>250}").into_bytes()).collect();
    let answer = serde_bytes::Bytes::new(b"1234567890123456");
    let mut chain: Vec<EncodedFrame> = Vec::new();
    for (seq, names) in (0..).zip(names.chunks(2_000)) {
        chain.push(forged(seq, |frame| {
            one_process(frame);
            let (after_ns, process, result, count) = (0, 0, 0, 3);
            let socket = |name| Socket {
                after_ns,
                process,
                address: name,
                port: None,
                protocol: 0,
                result,
                operation: SocketOperation::Bind,
                count,
            };
            let dns = |name| Dns {
                after_ns,
                process,
                server: b"1234",
                port: Some(53),
                name,
                query_type: 1,
                answers: vec![answer],
                response_code: None,
                truncated: false,
                count,
            };
            frame.body.sockets = names.iter().map(|name| socket(name)).collect();
            frame.body.dns = names.iter().take(1_700).map(|name| dns(name)).collect();
            let operation = |value| Operation {
                after_ns,
                process,
                operation: Kind::Ptrace,
                value,
                target_tgid: 0,
                result,
                count,
            };
            frame.body.operations = (seq * 2_000..(seq + 1) * 2_000).map(operation).collect();
        }));
    }
    let receipt = |chain: Vec<EncodedFrame>| {
        let mut scenario = Scenario::of(&[PhaseName::Claimed, PhaseName::Profiled]);
        scenario.add_frames(chain);
        scenario.receipt()
    };
    let forward = receipt(chain.clone());
    chain.reverse();
    assert_eq!(receipt(chain).encode().unwrap(), forward.encode().unwrap());
    let caps: Vec<&str> = forward.coverage.caps.iter().map(|cap| cap.list.as_str()).collect();
    let expected = ["sockets", "dns", "operations", "sockets (bytes)", "dns (bytes)", "operations (bytes)"];
    assert!(caps.iter().all(|cap| expected.contains(cap)) && caps.len() >= 5, "{caps:?}");
    assert!(forward.encode().unwrap().len() < MAX_RECEIPT_BYTES);
}

/// More files than a receipt holds: those that sort first stay, whichever came first.
#[test]
fn more_files_than_a_receipt_holds() {
    const FILES: usize = 100_300;
    let names: Vec<String> = (0..FILES).map(|n| format!("/{n:06}")).collect();
    let mut chain: Vec<EncodedFrame> = Vec::new();
    for (seq, names) in (0..).zip(names.chunks(20_000)) {
        chain.push(forged(seq, |frame| {
            one_process(frame);
            frame.body.paths = names.iter().map(|name| PathRef::resolved(name.as_bytes())).collect();
            frame.body.opens = (0..names.len() as u32).map(|path| open_of(path, 2)).collect();
        }));
    }
    let receipt = |chain: Vec<EncodedFrame>| {
        let mut scenario = Scenario::of(&[PhaseName::Claimed, PhaseName::Profiled]);
        scenario.add_frames(chain);
        scenario.receipt()
    };
    let forward = receipt(chain.clone());
    chain.reverse();
    let backward = receipt(chain);
    assert_eq!(forward.encode().unwrap(), backward.encode().unwrap());
    let cap = &forward.coverage.caps[0];
    assert_eq!((cap.list.as_str(), cap.limit, cap.events_left_out), ("files", 100_000, 600));
    assert!(forward.files.last().unwrap().path.as_str() < "/100000");
    // The counters still have them all.
    assert_eq!(
        forward.files.len() as u64
            + forward.coverage.caps.iter().map(|cap| cap.events_left_out / 2).sum::<u64>(),
        FILES as u64
    );
}

proptest! {
    #![proptest_config(common::proptest_config(128))]

    #[test]
    fn flipped_bits_are_folded_or_refused(flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), 0u8..8), 1..12)) {
        let mut scenario = scenario(4);
        for (which, at, bit) in flips {
            let which = which.index(scenario.deliveries.len());
            if let common::Delivery::Frame(frame) = &mut scenario.deliveries[which] {
                let at = at.index(frame.bytes.len());
                frame.bytes[at] ^= 1 << bit;
            }
        }
        let straight = scenario.receipt().encode().unwrap();
        prop_assert!(Receipt::decode(&straight).is_ok());
        scenario.deliveries.reverse();
        prop_assert_eq!(scenario.receipt().encode().unwrap(), straight);
    }
}
