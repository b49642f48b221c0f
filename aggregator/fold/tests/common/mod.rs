//! An execution to fold: its lifecycle, its events, and its frames.

#![allow(dead_code, reason = "each test uses its part")]

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use glasshouse_fold::ExecutionFold;
use glasshouse_schema::frame::{Cost, FrameWriterConfig, Seal, SealTotals};
use glasshouse_schema::ids::Digest;
use glasshouse_schema::lifecycle::{
    Admitted, Attached, Claimed, Cleaned, Closed, ClosedReason, Environment, Exited, Failed, Isolation,
    LifecycleEvent, Outcome, Phase, PhaseName, Prepared, Profiled, ProfilingMode, RedactionRules, Requested,
    Rusage, Sandbox, Sealed, SealedVantage, Started, Step, Unprofiled,
};
use glasshouse_schema::receipt::Completeness;
use glasshouse_schema::{
    Address, EncodedFrame, Event, ExecFlags, ExecutionId, Fact, FileChange, FrameWriter, NodeId, Operation,
    PathFlags, PathRef, ProcessKey, Receipt, SocketOperation, Usage, Vantage, version,
};

pub(crate) const EPOCH: u64 = 4;
pub(crate) const SECOND: u64 = 1_000_000_000;
/// Unix time minus CLOCK_BOOTTIME.
pub(crate) const OFFSET_NS: i64 = 1_767_323_000_000_000_000;

pub(crate) fn execution() -> ExecutionId {
    ExecutionId::from_parts(1_767_323_045_000, [7; 10])
}

pub(crate) fn node(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

pub(crate) fn process(tgid: u32) -> ProcessKey {
    ProcessKey { tgid, start_boot_ns: 40 * SECOND + u64::from(tgid) * 1_000_000 }
}

/// At `ms` milliseconds into the execution.
pub(crate) fn at(ms: u64, tgid: u32, fact: Fact<'_>) -> Event<'_> {
    Event { boot_ns: 45 * SECOND + ms * 1_000_000, process: process(tgid), fact }
}

pub(crate) fn open(path: &[u8], flags: u32, result: i32) -> Fact<'_> {
    Fact::Open { path: PathRef::resolved(path), flags, result, created: false }
}

pub(crate) fn exec<'a>(ppid: u32, exe: &'a [u8], argv: &'a [&'a [u8]]) -> Fact<'a> {
    let (exe, cwd) = (PathRef::resolved(exe), PathRef::resolved(b"/srv"));
    let flags = ExecFlags::default();
    Fact::Exec {
        ppid,
        exe,
        cwd,
        argv,
        argv_truncated: false,
        uid: 1000,
        gid: 100,
        env: &[],
        env_truncated: false,
        flags,
    }
}

pub(crate) fn exit(code: u8, signal: u8) -> Fact<'static> {
    let usage = Usage {
        user_ns: 4_000_000,
        system_ns: 1_500,
        max_rss_kib: 5_120,
        minor_faults: 300,
        major_faults: 2,
    };
    Fact::Exit { code, signal, core_dumped: false, usage }
}

pub(crate) const fn socket(
    operation: SocketOperation,
    address: Address<'_>,
    protocol: u8,
    result: i32,
) -> Fact<'_> {
    Fact::Socket { operation, address, protocol, result }
}

pub(crate) const fn connect(address: Address<'_>, protocol: u8, result: i32) -> Fact<'_> {
    socket(SocketOperation::Connect, address, protocol, result)
}

pub(crate) fn config() -> FrameWriterConfig {
    FrameWriterConfig::new(execution(), node("node-1"), Vantage::Host, EPOCH, OFFSET_NS)
}

/// The frames of one chain that holds `events`, at most `per_frame` in each.
pub(crate) fn frames(
    config: FrameWriterConfig,
    events: &[Event<'_>],
    per_frame: usize,
    seal: Seal,
) -> Vec<EncodedFrame> {
    let mut writer = FrameWriter::new(config);
    let mut frames = Vec::new();
    for chunk in events.chunks(per_frame.max(1)) {
        frames.extend(chunk.iter().filter_map(|event| writer.push(event)));
        frames.extend(writer.flush());
    }
    frames.extend(writer.seal(SealTotals::default(), seal));
    frames
}

pub(crate) fn seal() -> Seal {
    Seal {
        syscalls: vec![("openat".into(), 120), ("connect".into(), 3)],
        denied: vec![("connect".into(), 1)],
        redactions: vec![("tokens".into(), 1)],
        cost: Cost { user_cpu_ns: 250_000, kernel_ns: 91_000, kernel_samples: 12, ..Cost::default() },
        ..Seal::default()
    }
}

/// What a real probe says of `python3 build.py`, which starts a shell, works on files and tries the network.
pub(crate) fn events() -> Vec<Event<'static>> {
    const PYTHON: &[&[u8]] = &[b"python3", b"build.py", b"--token=<masked:0011223344556677>"];
    const SHELL: &[&[u8]] = &[b"sh", b"-c", b"cat input > copy; exec cat copy"];
    const CAT: &[&[u8]] = &[b"cat", b"copy"];
    let unresolved = PathRef { bytes: b"/srv/missing/../x", flags: PathFlags::UNRESOLVED };
    let rename = |from, to, result| Fact::Rename {
        from: PathRef::resolved(from),
        to: PathRef::resolved(to),
        exchange: false,
        result,
    };
    let delete = |path, directory, result| Fact::Delete { path: PathRef::resolved(path), directory, result };
    let mut events = vec![
        at(0, 100, exec(1, b"/usr/bin/python3.12", PYTHON)),
        at(1, 100, open(b"/etc/ld.so.cache", 0o2_000_000, 0)),
        at(2, 100, open(b"/usr/lib/libc.so.6", 0o2_000_000, 0)),
        at(3, 100, open(b"/usr/lib/libc.so.6", 0o2_000_000, 0)),
        at(4, 100, open(b"/srv/build.py", 0o2_000_000, 0)),
        at(5, 100, Fact::Open { path: unresolved, flags: 0, result: -2, created: false }),
        at(6, 100, open(b"/etc/shadow", 0, -13)),
        at(7, 100, open(b"/srv", 0o10_200_000, 0)),
        at(8, 100, open(b"/srv/out.tmp", 0o2_001_101, 0)),
        at(9, 100, rename(b"/srv/out.tmp", b"/srv/out", 0)),
        at(10, 100, rename(b"/srv/none", b"/srv/out", -2)),
        at(11, 100, delete(b"/srv/old", false, 0)),
        at(12, 100, delete(b"/srv/dir", true, -39)),
        at(20, 100, Fact::Fork { child: process(101) }),
        at(21, 101, open(b"/dev/null", 0o2, 0)),
        at(22, 101, exec(100, b"/usr/bin/dash", SHELL)),
        at(23, 101, Fact::Fork { child: process(102) }),
        at(24, 102, open(b"/srv/input", 0, 0)),
        at(25, 102, open(b"/srv/copy", 0o1_101, 0)),
        at(26, 102, exit(0, 0)),
        at(27, 101, exec(100, b"/usr/bin/cat", CAT)),
        at(28, 101, open(b"/srv/copy", 0, 0)),
        at(29, 101, exit(0, 9)),
        at(40, 100, connect(Address::V4([127, 0, 0, 1], 8080), 6, -111)),
        at(41, 100, connect(Address::V4([93, 184, 216, 34], 443), 6, -115)),
        at(
            42,
            100,
            connect(Address::V6([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1], 53), 17, 0),
        ),
        at(43, 100, connect(Address::Unix(b"/run/dbus/socket"), 0, 0)),
        at(44, 100, connect(Address::Unix(b"\0abstract"), 0, -111)),
    ];
    events.extend(later_events());
    events.push(at(60, 100, exit(3, 0)));
    events
}

/// Links, modes, mounts, bytes, credentials, names asked of DNS, and what else the same program does.
fn later_events() -> Vec<Event<'static>> {
    const ENV: &[&[u8]] = &[b"LD_PRELOAD"];
    const ANSWERS: &[IpAddr] = &[
        IpAddr::V6(Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0x5db8, 0xd822)),
        IpAddr::V4(Ipv4Addr::new(10, 9, 8, 7)),
    ];
    let path = PathRef::resolved;
    let change = |change, at, other: Option<&'static [u8]>, value, result| Fact::Change {
        change,
        path: path(at),
        other: other.map(path),
        value,
        result,
    };
    let io = |at, reads, writes, read_bytes, written_bytes| Fact::Io {
        path: path(at),
        reads,
        writes,
        read_bytes,
        written_bytes,
    };
    let traffic = |address, sends, receives, sent_bytes, received_bytes| Fact::Traffic {
        address,
        protocol: 6,
        sends,
        receives,
        sent_bytes,
        received_bytes,
    };
    let server = Address::V4([10, 0, 0, 53], 53);
    let dns = |name, query_type, answers, response_code| Fact::Dns {
        server,
        name,
        query_type,
        answers,
        response_code,
    };
    let operation =
        |operation, value, target_tgid, result| Fact::Operation { operation, value, target_tgid, result };
    let web = Address::V4([93, 184, 216, 34], 443);
    vec![
        at(45, 100, Fact::Open { path: path(b"/srv/new"), flags: 0o101, result: 0, created: true }),
        at(
            45,
            100,
            Fact::Rename { from: path(b"/srv/one"), to: path(b"/srv/two"), exchange: true, result: 0 },
        ),
        at(45, 100, change(FileChange::Link, b"/srv/hard", Some(b"/srv/new"), 0, 0)),
        at(45, 100, change(FileChange::Symlink, b"/srv/soft", Some(b"../new"), 0, 0)),
        at(45, 100, change(FileChange::MakeDirectory, b"/srv/made", None, 0o755, 0)),
        at(46, 100, change(FileChange::Mode, b"/srv/new", None, 0o104_755, 0)),
        at(46, 100, change(FileChange::Owner, b"/srv/new", None, 0xffff_ffff, -1)),
        at(46, 100, change(FileChange::Mount, b"/srv/made", Some(b"tmpfs"), 6, 0)),
        at(46, 100, change(FileChange::MapExecutable, b"/usr/lib/libc.so.6", None, 0, 0)),
        at(47, 100, io(b"/srv/build.py", 3, 0, 8_000, 0)),
        at(47, 100, io(b"/srv/new", 0, 2, 0, 70_000)),
        at(
            48,
            100,
            Fact::Credentials {
                uid: 1000,
                euid: 0,
                gid: 100,
                egid: 100,
                capabilities: 1 << 21,
                gained: true,
            },
        ),
        at(49, 100, dns(b"example.org", 1, &[], None)),
        at(49, 100, dns(b"example.org", 1, ANSWERS, Some(0))),
        at(49, 100, dns(b"nowhere.example", 28, &[], Some(3))),
        at(50, 100, traffic(web, 4, 9, 600, 90_000)),
        at(50, 100, traffic(Address::V4([10, 0, 0, 9], 9000), 1, 0, 11, 0)),
        at(51, 100, socket(SocketOperation::Bind, Address::V4([0, 0, 0, 0], 8000), 6, 0)),
        at(51, 100, socket(SocketOperation::Listen, Address::V4([0, 0, 0, 0], 8000), 6, 0)),
        at(51, 100, socket(SocketOperation::Accept, Address::V4([10, 0, 0, 2], 50_000), 6, 0)),
        at(51, 100, socket(SocketOperation::Send, server, 17, 0)),
        at(52, 100, operation(Operation::Ptrace, 16, 101, -1)),
        at(52, 100, operation(Operation::Signal, 9, 4_000, -3)),
        at(52, 100, operation(Operation::Unshare, 0x2002_0000, 0, 0)),
        at(53, 100, Fact::Fork { child: process(103) }),
        at(
            54,
            103,
            Fact::Exec {
                ppid: 100,
                exe: PathRef { bytes: b"memfd:tool", flags: PathFlags::UNLINKED },
                cwd: path(b"/srv"),
                argv: &[b"tool"],
                argv_truncated: false,
                uid: 0,
                gid: 100,
                env: ENV,
                env_truncated: true,
                flags: ExecFlags::ANONYMOUS.with(ExecFlags::PRIVILEGED).with(ExecFlags::MOUNT),
            },
        ),
        at(55, 103, exit(0, 0)),
    ]
}

pub(crate) fn attached(vantage: Vantage) -> Attached {
    Attached {
        vantage,
        controller: "ebpf".into(),
        hooks: vec!["sched_process_exec".into(), "sys_exit_openat".into()],
        blind_spots: vec!["io_uring".into()],
    }
}

pub(crate) fn outcome(exit_code: i32) -> Outcome {
    Outcome { exit_code, ..Outcome::default() }
}

/// One event of a phase with what a real engine says.
pub(crate) fn phase(name: PhaseName) -> Phase {
    let base = OFFSET_NS + 45 * SECOND as i64;
    match name {
        PhaseName::Requested => Phase::Requested(Requested {
            argv: vec!["python3".into(), "build.py".into()],
            workdir: "/srv".into(),
            backend: "process".into(),
            profile: ProfilingMode::Host,
            profile_required: false,
            labels: BTreeMap::from([("team".into(), "build".into())]),
            trace_id: Some("0af7651916cd43dd8448eb211c80319c".into()),
        }),
        PhaseName::Admitted => Phase::Admitted(Admitted {
            policies: Vec::new(),
            redaction: RedactionRules { path_prefixes: Vec::new(), tokens: true },
            ..Admitted::default()
        }),
        PhaseName::Claimed => Phase::Claimed(Claimed { node: node("node-1"), epoch: EPOCH }),
        PhaseName::Prepared => Phase::Prepared(Prepared {
            backend: "process".into(),
            isolation: Isolation::Process,
            environment: Box::new(Environment {
                runtime: "process".into(),
                os: "linux".into(),
                arch: "x86_64".into(),
                kernel: "6.12.0".into(),
                snapshot: None,
                image: None,
                sandbox: Sandbox { network: "host".into(), ..Sandbox::default() },
                vmm: None,
            }),
        }),
        PhaseName::Started => Phase::Started(Started { root_pid: Some(100) }),
        PhaseName::Profiled => {
            Phase::Profiled(Profiled { attached: vec![attached(Vantage::Host)], unavailable: Vec::new() })
        }
        PhaseName::Unprofiled => {
            Phase::Unprofiled(Unprofiled { reason: "no BTF".into(), unavailable: Vec::new() })
        }
        PhaseName::Exited => Phase::Exited(Exited {
            outcome: outcome(3),
            start_unix_ns: base,
            end_unix_ns: base + 60_500_000,
            rusage: Some(Rusage { cpu_time_ms: 31, max_rss_kb: 9216 }),
            stdout_hash: Some(Digest::of(b"out")),
            stderr_hash: Some(Digest::of(b"")),
            files: Default::default(),
        }),
        PhaseName::Sealed => panic!("`sealed` is made from the frames"),
        PhaseName::Failed => failed(Step::Release),
        PhaseName::Cleaned => Phase::Cleaned(Cleaned::default()),
        PhaseName::Closed => Phase::Closed(Closed { reason: ClosedReason::Sealed }),
    }
}

pub(crate) fn failed(step: Step) -> Phase {
    Phase::Failed(Failed { step, error: "it broke".into(), outcome: outcome(125) })
}

pub(crate) fn lifecycle(phase: Phase) -> LifecycleEvent {
    let name = phase.name();
    let order = PhaseName::ALL.iter().position(|other| *other == name).unwrap() as i64;
    LifecycleEvent {
        schema_version: version::LIFECYCLE,
        execution_id: execution(),
        node: (name != PhaseName::Closed).then(|| node("node-1")),
        unix_ns: OFFSET_NS + 45 * SECOND as i64 + order * 7_000_000,
        phase,
    }
}

pub(crate) fn sealed(frames: &[EncodedFrame]) -> Phase {
    let last = frames.last().unwrap();
    let vantage = SealedVantage { vantage: last.vantage, frames: last.seq + 1, head: last.digest };
    Phase::Sealed(Sealed { vantages: vec![vantage], missing: Vec::new() })
}

/// Something that is delivered to a fold.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Delivery {
    Lifecycle(Box<LifecycleEvent>),
    Frame(EncodedFrame),
}

/// Everything of one execution but its `closed` event, in the order in which it happens.
#[derive(Debug, Clone)]
pub(crate) struct Scenario {
    pub(crate) deliveries: Vec<Delivery>,
}

impl Scenario {
    /// A profiled execution that goes well.
    pub(crate) fn profiled(frames: Vec<EncodedFrame>) -> Self {
        use PhaseName::*;
        let sealed = sealed(&frames);
        let mut scenario = Self::of(&[Requested, Admitted, Claimed, Prepared, Started, Profiled]);
        scenario.deliveries.extend(frames.into_iter().map(Delivery::Frame));
        scenario.add(phase(Exited)).add(sealed).add(phase(Cleaned));
        scenario
    }

    pub(crate) fn of(phases: &[PhaseName]) -> Self {
        let mut scenario = Self { deliveries: Vec::new() };
        for name in phases {
            scenario.add(phase(*name));
        }
        scenario
    }

    pub(crate) fn add(&mut self, phase: Phase) -> &mut Self {
        self.deliveries.push(Delivery::Lifecycle(Box::new(lifecycle(phase))));
        self
    }

    pub(crate) fn add_frames(&mut self, frames: impl IntoIterator<Item = EncodedFrame>) -> &mut Self {
        self.deliveries.extend(frames.into_iter().map(Delivery::Frame));
        self
    }

    /// Takes the event of a phase out.
    pub(crate) fn without(&mut self, name: PhaseName) -> &mut Self {
        self.deliveries.retain(|delivery| match delivery {
            Delivery::Lifecycle(event) => event.phase.name() != name,
            Delivery::Frame(_) => true,
        });
        self
    }

    /// Says something else of a phase.
    pub(crate) fn with(&mut self, phase: Phase) -> &mut Self {
        for delivery in &mut self.deliveries {
            if let Delivery::Lifecycle(event) = delivery
                && event.phase.name() == phase.name()
            {
                event.phase = phase.clone();
            }
        }
        self
    }

    pub(crate) fn fold(&self) -> ExecutionFold {
        let mut fold = ExecutionFold::new(execution());
        self.deliveries.iter().for_each(|delivery| deliver(&mut fold, delivery));
        fold
    }

    /// The receipt, closed as the fold itself says, or as a worker does that finds the producer dead.
    pub(crate) fn receipt(&self) -> Receipt {
        close(self.fold()).receipt().unwrap()
    }
}

/// Delivers, whatever the fold says to it.
pub(crate) fn deliver(fold: &mut ExecutionFold, delivery: &Delivery) {
    let _ = match delivery {
        Delivery::Lifecycle(event) => fold.lifecycle(event),
        Delivery::Frame(frame) => fold.frame(&frame.bytes, Some((&frame.node, frame.vantage))),
    };
}

pub(crate) fn close(mut fold: ExecutionFold) -> ExecutionFold {
    let reason = fold.closing().unwrap_or(ClosedReason::ProducerDead);
    fold.lifecycle(&lifecycle(Phase::Closed(Closed { reason }))).unwrap();
    assert!(fold.is_closed());
    fold
}

/// The scenario of [`events`] with so many events in each frame.
pub(crate) fn scenario(per_frame: usize) -> Scenario {
    Scenario::profiled(frames(config(), &events(), per_frame, seal()))
}

/// The stable words of why a receipt is not closed, and that it says it is not.
pub(crate) fn reasons(receipt: &Receipt) -> Vec<&str> {
    let mut reasons: Vec<&str> = receipt.coverage.incomplete.iter().map(|why| why.reason.as_str()).collect();
    reasons.dedup();
    reasons.sort();
    reasons.dedup();
    assert_eq!(receipt.completeness == Completeness::Closed, reasons.is_empty());
    reasons
}

/// Failures that were found are kept beside the test and committed.
pub(crate) fn proptest_config(cases: u32) -> proptest::test_runner::Config {
    use proptest::test_runner::{Config, FileFailurePersistence};
    let persistence = FileFailurePersistence::WithSource("regressions");
    Config { cases, failure_persistence: Some(Box::new(persistence)), ..Config::default() }
}
