//! What several tests of this crate use: fixed ids, a writer, one event of every kind, and golden files.

#![allow(dead_code, reason = "each test uses its part")]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use glasshouse_schema::frame::{Cost, FrameWriterConfig, Seal};
use glasshouse_schema::{
    Address, EncodedFrame, Event, ExecFlags, ExecutionId, Fact, FileChange, FrameWriter, NodeId, Operation,
    PathFlags, PathRef, ProcessKey, SocketOperation, Usage, Vantage,
};

pub(crate) fn execution() -> ExecutionId {
    ExecutionId::from_parts(1_767_323_045_000, [7; 10])
}

pub(crate) fn node() -> NodeId {
    NodeId::new("node-1.example").unwrap()
}

pub(crate) fn config() -> FrameWriterConfig {
    FrameWriterConfig::new(execution(), node(), Vantage::Host, 3, 1_767_323_000_000_000_000)
}

pub(crate) fn writer() -> FrameWriter {
    FrameWriter::new(config())
}

pub(crate) fn process(tgid: u32) -> ProcessKey {
    ProcessKey { tgid, start_boot_ns: 1_000_000_000 * u64::from(tgid) }
}

pub(crate) fn open(boot_ns: u64, tgid: u32, path: &[u8]) -> Event<'_> {
    let fact = Fact::Open { path: PathRef::resolved(path), flags: 0, result: 0, created: false };
    Event { boot_ns, process: process(tgid), fact }
}

/// What frames of version 1 could say: an event of each of its kinds, of every kind of address and path flag.
pub(crate) fn first_events() -> Vec<Event<'static>> {
    const ARGV: &[&[u8]] = &[b"sh", b"-c", b"echo \xff", b""];
    let flagged = |bytes, flags| PathRef { bytes, flags };
    let facts = [
        Fact::Fork { child: process(11) },
        Fact::Exec {
            ppid: 10,
            exe: PathRef::resolved(b"/usr/bin/dash"),
            cwd: PathRef::resolved(b"/srv"),
            argv: ARGV,
            argv_truncated: false,
            uid: 0,
            gid: 1000,
            env: &[],
            env_truncated: false,
            flags: ExecFlags(0),
        },
        Fact::Open { path: PathRef::resolved(b"/etc/passwd"), flags: 0o2_000_000, result: 0, created: false },
        Fact::Open { path: PathRef::resolved(b"/etc/passwd"), flags: 0o2_000_000, result: 0, created: false },
        Fact::Open {
            path: flagged(b"/srv/\xffile", PathFlags::UNRESOLVED),
            flags: 0o101,
            result: -2,
            created: false,
        },
        Fact::Open {
            path: flagged(b"/l", PathFlags::TRUNCATED.with(PathFlags::MASKED)),
            flags: 2,
            result: 0,
            created: false,
        },
        Fact::Delete { path: PathRef::resolved(b"/srv/old"), directory: false, result: 0 },
        Fact::Delete { path: PathRef::resolved(b"/srv/dir"), directory: true, result: -39 },
        Fact::Rename {
            from: PathRef::resolved(b"/srv/a"),
            to: PathRef::resolved(b"/srv/b"),
            exchange: false,
            result: 0,
        },
        connect(Address::V4([127, 0, 0, 1], 80), 6, -111),
        connect(Address::V6([0x20; 16], 53), 17, 0),
        connect(Address::Unix(b"\0abstract"), 0, 0),
        Fact::Exit { code: 0, signal: 9, core_dumped: true, usage: Usage::default() },
        Fact::Exec {
            ppid: 10,
            exe: flagged(b"memfd:payload", PathFlags::UNLINKED),
            cwd: PathRef::resolved(b"/"),
            argv: &[],
            argv_truncated: true,
            uid: u32::MAX,
            gid: 0,
            env: &[],
            env_truncated: false,
            flags: ExecFlags(0),
        },
    ];
    at_process_10(&facts, 1)
}

/// One event of every kind, and of every kind of address and flag.
pub(crate) fn every_event() -> Vec<Event<'static>> {
    const ENV: &[&[u8]] = &[b"LD_PRELOAD", b"\xff"];
    const ANSWERS: &[IpAddr] =
        &[IpAddr::V6(Ipv6Addr::LOCALHOST), IpAddr::V4(Ipv4Addr::new(93, 184, 216, 34))];
    let server = Address::V4([10, 0, 0, 1], 53);
    let path = PathRef::resolved(b"/srv/made");
    let usage = Usage { user_ns: 1, system_ns: u64::MAX, max_rss_kib: 3, minor_faults: 4, major_faults: 5 };
    let mut facts = vec![
        Fact::Exec {
            ppid: 10,
            exe: PathRef { bytes: b"memfd:x", flags: PathFlags::UNLINKED },
            cwd: PathRef::resolved(b"/"),
            argv: &[],
            argv_truncated: false,
            uid: 0,
            gid: 0,
            env: ENV,
            env_truncated: true,
            flags: ExecFlags::ANONYMOUS.with(ExecFlags::CGROUP),
        },
        Fact::Exit { code: 1, signal: 0, core_dumped: false, usage },
        Fact::Credentials { uid: 1, euid: 0, gid: 3, egid: 4, capabilities: u64::MAX, gained: true },
        Fact::Open { path, flags: 0o101, result: 0, created: true },
        Fact::Rename { from: path, to: PathRef::resolved(b"/srv/other"), exchange: true, result: 0 },
        Fact::Io { path, reads: 3, writes: 0, read_bytes: 1 << 40, written_bytes: 0 },
        Fact::Io { path, reads: 0, writes: 2, read_bytes: 0, written_bytes: 7 },
        Fact::Io { path, reads: 0, writes: 0, read_bytes: 0, written_bytes: 0 },
        Fact::Traffic {
            address: server,
            protocol: 17,
            sends: 1,
            receives: 1,
            sent_bytes: 30,
            received_bytes: 90,
        },
        Fact::Dns { server, name: b"example.org", query_type: 28, answers: &[], response_code: None },
        Fact::Dns { server, name: b"example.org", query_type: 28, answers: ANSWERS, response_code: Some(0) },
    ];
    facts.extend(FileChange::ALL.iter().map(|change| Fact::Change {
        change: *change,
        path,
        other: (*change != FileChange::Mode).then_some(PathRef::resolved(b"/srv/b")),
        value: 0o755,
        result: -1,
    }));
    facts.extend(SocketOperation::ALL.iter().map(|operation| Fact::Socket {
        operation: *operation,
        address: Address::V4([127, 0, 0, 1], 80),
        protocol: 6,
        result: 0,
    }));
    facts.extend(Operation::ALL.iter().map(|operation| Fact::Operation {
        operation: *operation,
        value: 9,
        target_tgid: 11,
        result: -1,
    }));
    let first = first_events();
    let next = first.len() as u64 + 1;
    first.into_iter().chain(at_process_10(&facts, next)).collect()
}

pub(crate) const fn connect(address: Address<'_>, protocol: u8, result: i32) -> Fact<'_> {
    Fact::Socket { operation: SocketOperation::Connect, address, protocol, result }
}

fn at_process_10(facts: &[Fact<'static>], first: u64) -> Vec<Event<'static>> {
    let at = |(fact, n): (&Fact<'static>, u64)| Event {
        boot_ns: 20_000_000_000 + n * 1_000_003,
        process: process(10),
        fact: *fact,
    };
    facts.iter().zip(first..).map(at).collect()
}

pub(crate) fn seal() -> Seal {
    Seal {
        syscalls: vec![("openat".into(), 4), ("read".into(), 1 << 40)],
        denied: vec![("openat".into(), 1)],
        escaped_tasks: 2,
        blind_spots: vec!["compat syscalls: 3".into()],
        redactions: vec![("/home/ana/".into(), 2), ("tokens".into(), 1)],
        cost: Cost { user_cpu_ns: 1_234_567, ..Cost::default() },
    }
}

/// A chain of two: every event, then the seal.
pub(crate) fn chain() -> Vec<EncodedFrame> {
    let mut seal = seal();
    seal.cost.kernel_ns = 89_000;
    seal.cost.kernel_samples = 7;
    chain_of(&every_event(), seal)
}

pub(crate) fn chain_of(events: &[Event<'_>], seal: Seal) -> Vec<EncodedFrame> {
    let mut writer = writer();
    for event in events {
        assert!(writer.push(event).is_none());
    }
    let totals = glasshouse_schema::frame::SealTotals { observed: [4, 7, 3, 5, 0], lost: [0; 5] };
    writer.seal(totals, seal)
}

pub(crate) fn blesses() -> bool {
    std::env::var_os("GLASSHOUSE_BLESS").is_some()
}

pub(crate) fn path(relative: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(relative)
}

/// Compares `bytes` with a committed file, or writes it with `GLASSHOUSE_BLESS=1`.
pub(crate) fn assert_committed(relative: &str, bytes: &[u8]) {
    let path = path(relative);
    if blesses() {
        std::fs::write(&path, bytes).unwrap();
    }
    let committed = std::fs::read(&path)
        .unwrap_or_else(|error| panic!("{}: {error}; GLASSHOUSE_BLESS=1 writes it", path.display()));
    assert!(
        committed == bytes,
        "{} differs from what the code writes now. If the wire format was meant to change, it needs a new version; \
         GLASSHOUSE_BLESS=1 writes the file anew. Now: {}",
        path.display(),
        String::from_utf8_lossy(bytes),
    );
}

/// Failures that were found are kept beside the test and committed.
pub(crate) fn proptest_config() -> proptest::test_runner::Config {
    use proptest::test_runner::{Config, FileFailurePersistence};
    let persistence = FileFailurePersistence::WithSource("regressions");
    Config { failure_persistence: Some(Box::new(persistence)), ..Config::default() }
}
