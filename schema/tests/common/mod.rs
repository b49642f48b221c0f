//! What several tests of this crate use: fixed ids, a writer, one event of every kind, and golden files.

#![allow(dead_code, reason = "each test uses its part")]

use std::path::{Path, PathBuf};

use glasshouse_schema::frame::{Cost, FrameWriterConfig, Seal};
use glasshouse_schema::{
    Address, EncodedFrame, Event, ExecutionId, Fact, FrameWriter, NodeId, PathFlags, PathRef, ProcessKey,
    Vantage,
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
    let fact = Fact::Open { path: PathRef::resolved(path), flags: 0, result: 0 };
    Event { boot_ns, process: process(tgid), fact }
}

/// One event of every kind, and of every kind of address and path flag.
pub(crate) fn every_event() -> Vec<Event<'static>> {
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
        },
        Fact::Open { path: PathRef::resolved(b"/etc/passwd"), flags: 0o2_000_000, result: 0 },
        Fact::Open { path: PathRef::resolved(b"/etc/passwd"), flags: 0o2_000_000, result: 0 },
        Fact::Open { path: flagged(b"/srv/\xffile", PathFlags::UNRESOLVED), flags: 0o101, result: -2 },
        Fact::Open {
            path: flagged(b"/l", PathFlags::TRUNCATED.with(PathFlags::MASKED)),
            flags: 2,
            result: 0,
        },
        Fact::Delete { path: PathRef::resolved(b"/srv/old"), directory: false, result: 0 },
        Fact::Delete { path: PathRef::resolved(b"/srv/dir"), directory: true, result: -39 },
        Fact::Rename { from: PathRef::resolved(b"/srv/a"), to: PathRef::resolved(b"/srv/b"), result: 0 },
        Fact::Connect { address: Address::V4([127, 0, 0, 1], 80), protocol: 6, result: -111 },
        Fact::Connect { address: Address::V6([0x20; 16], 53), protocol: 17, result: 0 },
        Fact::Connect { address: Address::Unix(b"\0abstract"), protocol: 0, result: 0 },
        Fact::Exit { code: 0, signal: 9, core_dumped: true },
        Fact::Exec {
            ppid: 10,
            exe: flagged(b"memfd:payload", PathFlags::UNLINKED),
            cwd: PathRef::resolved(b"/"),
            argv: &[],
            argv_truncated: true,
            uid: u32::MAX,
            gid: 0,
        },
    ];
    facts
        .into_iter()
        .zip(1u64..)
        .map(|(fact, n)| Event { boot_ns: 20_000_000_000 + n * 1_000_003, process: process(10), fact })
        .collect()
}

pub(crate) fn seal() -> Seal {
    Seal {
        syscalls: vec![("openat".into(), 4), ("read".into(), 1 << 40)],
        denied: vec![("openat".into(), 1)],
        escaped_tasks: 2,
        blind_spots: vec!["compat syscalls: 3".into()],
        redactions: vec![("/home/ana/".into(), 2), ("tokens".into(), 1)],
        cost: Cost { user_cpu_ns: 1_234_567, frame_bytes: 0 },
    }
}

/// A chain of two: every event, then the seal.
pub(crate) fn chain() -> Vec<EncodedFrame> {
    let mut writer = writer();
    for event in every_event() {
        assert!(writer.push(&event).is_none());
    }
    let totals = glasshouse_schema::frame::SealTotals { observed: [4, 7, 3, 5, 0], lost: [0; 5] };
    writer.seal(totals, seal())
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
