//! The frame writer: chain, flushing, collapsing, and an account in which every fact turns up once.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::time::Duration;

use common::{config, open, process, seal, writer};
use glasshouse_schema::event::ClassCounters;
use glasshouse_schema::frame::{FrameWriterConfig, MAX_FLUSH_BYTES, MAX_FRAME_BYTES, Seal, SealTotals};
use glasshouse_schema::{
    Address, Class, Digest, EncodedFrame, Event, ExecFlags, Fact, FileChange, Frame, FrameWriter, Operation,
    PathRef, SocketOperation, Usage,
};

fn counters(observed: u64, delivered: u64, collapsed: u64, lost: u64) -> ClassCounters {
    ClassCounters { observed, delivered, collapsed, lost }
}

fn last_counters(frames: &[EncodedFrame]) -> [ClassCounters; 5] {
    let counters = Frame::decode(&frames.last().unwrap().bytes).unwrap().header.counters;
    Class::ALL.map(|class| *counters.class(class))
}

#[test]
fn frames_are_one_chain() {
    let mut writer = FrameWriter::new(FrameWriterConfig { flush_bytes: 1, ..config() });
    let mut frames: Vec<_> = (0..5).filter_map(|n| writer.push(&open(n, 1, b"/a"))).collect();
    assert_eq!(writer.head(), (frames[4].digest, 5));
    let bytes_so_far: usize = frames.iter().map(|frame| frame.bytes.len()).sum();
    assert_eq!(writer.frame_bytes(), bytes_so_far as u64);
    frames.extend(writer.seal(SealTotals::default(), Seal::default()));
    assert_eq!(frames.len(), 6);
    let mut before = Digest::ZERO;
    for (seq, frame) in (0..).zip(&frames) {
        let header = Frame::decode(&frame.bytes).unwrap().header;
        assert_eq!((header.seq, header.prev, frame.seq), (seq, before, seq));
        assert_eq!(
            (header.execution, &header.node, header.vantage),
            (frame.execution, &frame.node, frame.vantage)
        );
        assert_eq!((header.epoch, header.unix_minus_boot_ns), (3, config().unix_minus_boot_ns));
        assert_eq!(frame.is_seal, seq == 5);
        before = frame.digest;
    }
    let seal = Frame::decode(&frames[5].bytes).unwrap().seal.unwrap();
    assert_eq!(seal.cost.frame_bytes, bytes_so_far as u64);
}

#[test]
fn a_frame_is_flushed_by_size() {
    let mut writer = FrameWriter::new(FrameWriterConfig { flush_bytes: 4096, ..config() });
    // Dense at first, then not: whatever events shrink to, it is the frames that have the size.
    let dense = (0..3_000u64).map(|n| format!("/some/where/file-{n:04}"));
    let sparse = (0..500u64).map(|n| Digest::of(&n.to_le_bytes()).to_string());
    let paths: Vec<String> = dense.chain(sparse).collect();
    let frames: Vec<_> =
        paths.iter().zip(0..).filter_map(|(p, n)| writer.push(&open(n, 1, p.as_bytes()))).collect();
    let sizes: Vec<usize> = frames.iter().map(|frame| frame.bytes.len()).collect();
    let is_near = |size: &usize| (3072..4608).contains(size);
    // Only the one in which it changes is larger, and the one after it, which knows half of it.
    assert!(sizes.len() > 5, "{sizes:?}");
    assert!(sizes.iter().filter(|size| !is_near(size)).count() <= 2, "{sizes:?}");
}

/// However few bytes the estimate sees, and whatever is asked for, a frame can be read.
#[test]
fn no_frame_grows_beyond_what_is_read() {
    let mut writer = FrameWriter::new(FrameWriterConfig { flush_bytes: usize::MAX, ..config() });
    let mut frames = Vec::new();
    for n in 0..60_000 {
        // Distinct, with every number about as wide as it gets.
        let wide = u32::MAX - n as u32;
        let fact = Fact::Exec {
            ppid: wide,
            exe: PathRef::resolved(b"/x"),
            cwd: PathRef::resolved(b"/"),
            argv: &[],
            argv_truncated: true,
            uid: wide,
            gid: wide,
            env: &[],
            env_truncated: true,
            flags: ExecFlags(u16::MAX),
        };
        frames.extend(writer.push(&Event { boot_ns: n << 40, process: process(1), fact }));
    }
    frames.extend(writer.seal(SealTotals::default(), Seal::default()));
    let largest = frames.iter().map(|frame| frame.bytes.len()).max().unwrap();
    assert!(largest > MAX_FLUSH_BYTES / 2 && largest < MAX_FRAME_BYTES, "{largest} bytes");
    assert_eq!(last_counters(&frames)[0], counters(60_000, 60_000, 0, 0));
}

#[test]
fn a_frame_is_flushed_by_age() {
    let mut writer = FrameWriter::new(FrameWriterConfig { flush_age: Duration::from_nanos(100), ..config() });
    assert!(writer.flush_if_older(u64::MAX).is_none(), "nothing to flush");
    writer.push(&open(1000, 1, b"/a"));
    writer.push(&open(1090, 1, b"/b"));
    assert!(writer.flush_if_older(1099).is_none());
    assert!(writer.flush_if_older(900).is_none(), "a clock reading from before the event");
    let frame = writer.flush_if_older(1100).unwrap();
    assert_eq!(Frame::decode(&frame.bytes).unwrap().body.opens.len(), 2);
    assert!(writer.flush_if_older(u64::MAX).is_none());
    assert!(writer.flush().is_none());
}

#[test]
fn equal_opens_collapse_within_a_frame() {
    let mut writer = writer();
    for n in 0..1000 {
        writer.push(&open(n, 1, b"/a"));
    }
    writer.push(&open(5, 2, b"/a"));
    let different = Fact::Open { path: PathRef::resolved(b"/a"), flags: 1, result: 0, created: false };
    writer.push(&Event { boot_ns: 6, process: process(1), fact: different });
    let frame = writer.flush().unwrap();
    let body = Frame::decode(&frame.bytes).unwrap().body;
    assert_eq!(body.opens.iter().map(|open| open.count).collect::<Vec<_>>(), [1000, 1, 1]);
    assert_eq!(*writer.counters().class(Class::File), counters(1002, 3, 999, 0));
    // The next frame begins anew: a frame can be read alone.
    writer.push(&open(7, 1, b"/a"));
    assert_eq!(*writer.counters().class(Class::File), counters(1003, 4, 999, 0));
}

#[test]
fn the_same_open_again_and_again_fills_no_frame() {
    let mut writer = FrameWriter::new(FrameWriterConfig { flush_bytes: 1024, ..config() });
    for n in 0..100_000 {
        assert!(writer.push(&open(n, 1, b"/a")).is_none());
    }
    assert_eq!(*writer.counters().class(Class::File), counters(100_000, 1, 99_999, 0));
}

#[test]
fn what_the_kernel_saw_and_no_frame_has_is_lost() {
    let mut writer = writer();
    (0..4).for_each(|n| assert!(writer.push(&open(n, 1, b"/a")).is_none()));
    writer.push(&open(4, 1, b"/b"));
    writer.count_lost(Class::File, 2);
    writer.count_lost(Class::Network, 1);
    // File: 11 seen; 2 events, 3 collapsed, 2 lost in user space, 1 in the kernel; so 3 more are nowhere.
    // Process: the kernel knows of 5, and of the loss of all. Network: the kernel counted nothing.
    let totals = SealTotals { observed: [5, 11, 0, 0, 0], lost: [5, 1, 0, 0, 0] };
    let frames = writer.seal(totals, Seal::default());
    assert_eq!(
        last_counters(&frames),
        [
            counters(5, 0, 0, 5),
            counters(11, 2, 3, 6),
            counters(1, 0, 0, 1),
            counters(0, 0, 0, 0),
            counters(0, 0, 0, 0),
        ]
    );
}

#[test]
fn a_kernel_that_counted_too_few_is_not_believed() {
    let mut writer = writer();
    writer.push(&open(1, 1, b"/a"));
    writer.push(&open(1, 1, b"/b"));
    let frames =
        writer.seal(SealTotals { observed: [0, 1, 0, 0, 0], lost: [0, 3, 0, 0, 0] }, Seal::default());
    assert_eq!(last_counters(&frames)[1], counters(5, 2, 0, 3));
}

/// Syscalls and escaped tasks have no events: the seal's counts are their account.
#[test]
fn what_the_seal_counts_is_collapsed() {
    let calls = 4 + (1 << 40);
    let all = |observed: [u64; 5], lost| last_counters(&writer().seal(SealTotals { observed, lost }, seal()));
    let exact = all([0, 0, 0, calls, 2], [0; 5]);
    assert_eq!(exact[3..], [counters(calls, 0, calls, 0), counters(2, 0, 2, 0)]);
    let failed_inserts = all([0, 0, 0, calls + 7, 2], [0, 0, 0, 7, 0]);
    assert_eq!(failed_inserts[3], counters(calls + 7, 0, calls, 7));
    let unexplained = all([0, 0, 0, calls + 7, 5], [0; 5]);
    assert_eq!(unexplained[3..], [counters(calls + 7, 0, calls, 7), counters(5, 0, 2, 3)]);
    // Nobody counted: what is in the seal was seen all the same.
    assert_eq!(all([0; 5], [0; 5]), exact);
    let absurd = Seal { syscalls: vec![("a".into(), u64::MAX), ("b".into(), 2)], ..Seal::default() };
    let frames = writer().seal(SealTotals::default(), absurd);
    assert_eq!(last_counters(&frames)[3], counters(u64::MAX, 0, u64::MAX, 0));
}

#[test]
fn events_too_large_for_any_frame_are_lost_and_counted() {
    let mut writer = writer();
    let argument = vec![b'x'; MAX_FRAME_BYTES];
    let argv: [&[u8]; 1] = [&argument];
    let (exe, cwd) = (PathRef::resolved(b"/x"), PathRef::resolved(b"/"));
    let fact = Fact::Exec {
        ppid: 1,
        exe,
        cwd,
        argv: &argv,
        argv_truncated: false,
        uid: 0,
        gid: 0,
        env: &[],
        env_truncated: false,
        flags: ExecFlags(0),
    };
    writer.push(&open(1, 1, b"/a"));
    writer.push(&open(2, 1, b"/a"));
    assert!(writer.push(&Event { boot_ns: 3, process: process(1), fact }).is_none());
    assert_eq!(*writer.counters().class(Class::Process), counters(1, 0, 0, 1));
    assert_eq!(*writer.counters().class(Class::File), counters(2, 0, 0, 2));
    // The chain goes on without a gap.
    writer.push(&open(4, 1, b"/b"));
    let frames = writer.seal(SealTotals { observed: [1, 3, 0, 0, 0], lost: [0; 5] }, Seal::default());
    assert_eq!(frames.iter().map(|frame| frame.seq).collect::<Vec<_>>(), [0, 1]);
    assert_eq!(last_counters(&frames)[..2], [counters(1, 0, 0, 1), counters(3, 1, 0, 2)]);
    assert!(last_counters(&frames).iter().all(ClassCounters::adds_up));
}

/// Every kind that may collapse does, alone and counted, in the sums of its class.
#[test]
fn equal_facts_of_every_kind_collapse() {
    let path = PathRef::resolved(b"/a");
    let address = Address::V4([1, 2, 3, 4], 5);
    let facts = [
        Fact::Open { path, flags: 0, result: 0, created: false },
        Fact::Delete { path, directory: false, result: 0 },
        Fact::Rename { from: path, to: path, exchange: false, result: 0 },
        Fact::Change { change: FileChange::Mode, path, other: None, value: 0, result: 0 },
        Fact::Socket { operation: SocketOperation::Send, address, protocol: 17, result: 0 },
        Fact::Dns { server: address, name: b"a", query_type: 1, answers: &[], response_code: None },
        Fact::Operation { operation: Operation::Ptrace, value: 0, target_tgid: 0, result: 0 },
    ];
    for fact in facts {
        let mut writer = FrameWriter::new(FrameWriterConfig { flush_bytes: 1024, ..config() });
        let event = |boot_ns| Event { boot_ns, process: process(1), fact };
        assert!(writer.push_counted(&event(2), 5).is_none());
        for n in 3..1000 {
            assert!(writer.push_counted(&event(n), 2).is_none(), "{fact:?} fills a frame");
        }
        assert_eq!(*writer.counters().class(fact.class()), counters(1999, 1, 1998, 0), "{fact:?}");
        let frame = writer.flush().unwrap();
        let body = Frame::decode(&frame.bytes).unwrap().body;
        assert_eq!((body.events(), body.base_boot_ns), (1, 2));
        assert!(body.facts().contains(&(fact.class(), 1, 1998)));
        // Another one differs in its process.
        let mut other = event(1);
        writer.push(&event(0));
        other.process = process(2);
        writer.push(&other);
        assert_eq!(Frame::decode(&writer.flush().unwrap().bytes).unwrap().body.events(), 2);
    }
}

#[test]
fn calls_and_bytes_add_up() {
    let path = PathRef::resolved(b"/a");
    let io = |reads, writes| {
        let fact = Fact::Io { path, reads, writes, read_bytes: 10, written_bytes: u64::MAX - 2 };
        Event { boot_ns: 1, process: process(1), fact }
    };
    let mut writer = writer();
    // Of no calls there is one fact, and no other event may hide it.
    for (reads, writes) in [(0, 0), (2, 3), (0, 0), (1, 0), (0, 4)] {
        writer.push(&io(reads, writes));
    }
    assert_eq!(*writer.counters().class(Class::File), counters(12, 3, 9, 0));
    let frame = writer.flush().unwrap();
    let body = Frame::decode(&frame.bytes).unwrap().body;
    let sums: Vec<_> =
        body.ios.iter().map(|io| (io.reads, io.writes, io.read_bytes, io.written_bytes)).collect();
    assert_eq!(sums, [(0, 0, 10, u64::MAX - 2), (3, 7, 30, u64::MAX), (0, 0, 10, u64::MAX - 2)]);
    assert_eq!(body.facts()[Class::File as usize], (Class::File, 3, 9));
    // Counts that no machine reaches stay what they say in both accounts.
    writer.push(&io(u64::MAX, 5));
    writer.push(&io(7, u64::MAX));
    let body = writer.flush().unwrap();
    assert_eq!(Frame::decode(&body.bytes).unwrap().body.facts()[1], (Class::File, 1, u64::MAX - 1));
    assert_eq!(writer.counters().class(Class::File).collapsed, u64::MAX);
}

#[test]
fn long_names_and_answers_are_cut_and_say_so() {
    let answers: Vec<std::net::IpAddr> = (0..70u8).map(|n| std::net::IpAddr::from([10, 0, 0, n])).collect();
    let mut writer = writer();
    for (name, answers) in [(&[b'x'; 300][..], &answers[..1]), (b"a", &answers), (b"a", &answers[..64])] {
        let server = Address::Unix(b"/s");
        let fact = Fact::Dns { server, name, query_type: 1, answers, response_code: Some(0) };
        writer.push(&Event { boot_ns: 1, process: process(1), fact });
    }
    let frame = writer.flush().unwrap();
    let body = Frame::decode(&frame.bytes).unwrap().body;
    let kept: Vec<_> =
        body.dns.iter().map(|dns| (dns.name.len(), dns.answers.len(), dns.truncated)).collect();
    assert_eq!(kept, [(255, 1, true), (1, 64, true), (1, 64, false)]);
}

/// With every number as wide as it gets, the kind whose estimate is the furthest off.
#[test]
fn no_frame_of_the_widest_events_grows_beyond_what_is_read() {
    let mut writer = FrameWriter::new(FrameWriterConfig { flush_bytes: usize::MAX, ..config() });
    let event = |n: u64| {
        let wide = u64::MAX - n;
        let usage = Usage {
            user_ns: wide,
            system_ns: wide,
            max_rss_kib: wide,
            minor_faults: wide,
            major_faults: wide,
        };
        let (code, signal) = (u8::MAX - n as u8 % 2, u8::MAX - n as u8 % 2);
        let fact = Fact::Exit { code, signal, core_dumped: n.is_multiple_of(2), usage };
        // Times that jump to and fro are the longest steps.
        Event { boot_ns: ((n % 2) << 63) | n, process: process(1), fact }
    };
    let mut frames: Vec<_> = (0..30_000).filter_map(|n| writer.push(&event(n))).collect();
    frames.extend(writer.seal(SealTotals::default(), Seal::default()));
    let largest = frames.iter().map(|frame| frame.bytes.len()).max().unwrap();
    assert!(largest > MAX_FLUSH_BYTES && largest < MAX_FRAME_BYTES, "{largest} bytes");
    assert_eq!(last_counters(&frames)[0], counters(30_000, 30_000, 0, 0));
}
