//! Golden files of every wire type, and the committed JSON Schemas: both are what other readers rely on.
//!
//! `GLASSHOUSE_BLESS=1 cargo test -p glasshouse-schema` writes them anew.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeMap;

use common::{assert_committed, execution, node};
use glasshouse_schema::dead::{DeadKind, DeadLetter};
use glasshouse_schema::ids::{Digest, PolicyName};
use glasshouse_schema::lifecycle::{self, LifecycleEvent, Phase, PhaseName, PolicyRef, ProfilingMode};
use glasshouse_schema::node::{AgentStatus, Machine, NodeStatus};
use glasshouse_schema::receipt::{self, Receipt, ReceiptV03};
use glasshouse_schema::request::{Request, Stdin};
use glasshouse_schema::verdict::{self, Verdict};
use glasshouse_schema::{
    Class, Files, Frame, NodeId, PoolName, SkippedFile, StoredFile, Vantage, canonical, json_schema, version,
};

#[test]
fn frames_keep_their_bytes() {
    let chain = common::chain();
    assert_committed("tests/golden/frame-v3-events.bin", &chain[0].bytes);
    assert_committed("tests/golden/frame-v3-seal.bin", &chain[1].bytes);

    // The other direction, on the committed bytes: what every frame in a stream is read with.
    let (events, seal) = (golden("frame-v3-events.bin"), golden("frame-v3-seal.bin"));
    let (events, seal) = (Frame::decode(&events).unwrap(), Frame::decode(&seal).unwrap());
    assert_eq!((events.header.seq, seal.header.seq), (0, 1));
    assert_eq!((events.seal.is_some(), seal.seal.is_some()), (false, true));
    let body = &events.body;
    assert_eq!([body.forks.len(), body.execs.len(), body.exits.len(), body.credentials.len()], [1, 3, 2, 1]);
    assert_eq!([body.opens.len(), body.deletes.len(), body.renames.len(), body.changes.len()], [4, 2, 2, 12]);
    assert_eq!(
        [body.sockets.len(), body.traffic.len(), body.dns.len(), body.operations.len()],
        [8, 1, 2, 18]
    );
    assert_eq!((body.ios.len(), seal.body.events()), (2, 0));
    assert_eq!((body.opens[0].count, body.ios[0].reads, body.ios[0].writes), (2, 3, 2));
    let seal = seal.seal.unwrap();
    assert_eq!((seal.syscalls.len(), seal.escaped_tasks, seal.cost.kernel_samples), (2, 2, 7));
}

/// Frames of older versions are read as what they always said, and what they could not say is its default.
#[test]
fn frames_of_older_versions_read_the_same() {
    let mut seal_of_2 = common::seal();
    (seal_of_2.cost.kernel_ns, seal_of_2.cost.kernel_samples) = (89_000, 7);
    let of_version = [
        (1, common::chain_of(&common::first_events(), common::seal())),
        (2, common::chain_of(&common::every_event(), seal_of_2)),
    ];
    for (version, chain) in of_version {
        let (events, seal) =
            (golden(&format!("frame-v{version}-events.bin")), golden(&format!("frame-v{version}-seal.bin")));
        assert_eq!((events[5], seal[5]), (version, version));
        let (events, seal) = (Frame::decode(&events).unwrap(), Frame::decode(&seal).unwrap());
        let [events_now, seal_now] = &chain[..] else { unreachable!() };
        let (events_now, seal_now) =
            (Frame::decode(&events_now.bytes).unwrap(), Frame::decode(&seal_now.bytes).unwrap());
        assert_eq!(events, events_now);
        assert_eq!(seal.body, seal_now.body);
        let (mut seal, mut seal_now) = (seal.seal.unwrap(), seal_now.seal.unwrap());
        // Frames of older versions have other lengths.
        seal.cost.frame_bytes = 0;
        seal_now.cost.frame_bytes = 0;
        assert_eq!(seal, seal_now);
    }
}

fn golden(name: &str) -> Vec<u8> {
    std::fs::read(common::path(&format!("tests/golden/{name}"))).unwrap()
}

fn files() -> Files {
    let file = |path: &str, mode, content: &[u8]| StoredFile {
        path: path.into(),
        mode,
        bytes: content.len() as u64,
        sha256: Digest::of(content),
    };
    let skipped = SkippedFile { path: "out/link".into(), reason: "it is a symbolic link".into() };
    Files {
        inputs: vec![file("build.sh", 0o755, b"#!/bin/sh\n")],
        outputs: vec![file("out/a.txt", 0o644, b"a\n"), file("out/b", 0o600, b"")],
        skipped: vec![skipped],
        more_skipped: 3,
    }
}

fn policy() -> PolicyRef {
    PolicyRef {
        name: PolicyName::new("no network/strict").unwrap(),
        version: "1.2.0".into(),
        digest: Digest::of(b"policy"),
    }
}

fn environment() -> lifecycle::Environment {
    lifecycle::Environment {
        runtime: "process".into(),
        os: "linux".into(),
        arch: "x86_64".into(),
        kernel: "6.12.0".into(),
        snapshot: None,
        image: None,
        sandbox: lifecycle::Sandbox { network: "host".into(), ..Default::default() },
        vmm: Some(lifecycle::VmmBounds {
            programs: vec!["/usr/bin/vmm".into()],
            reads: vec!["/usr".into()],
            writes: vec!["/dev/kvm".into()],
            loopback: None,
            link: None,
        }),
    }
}

fn attached() -> lifecycle::Attached {
    lifecycle::Attached {
        vantage: Vantage::Host,
        controller: "ebpf".into(),
        hooks: vec!["sched_process_exec".into(), "sys_enter_openat".into()],
        blind_spots: vec!["io_uring".into()],
    }
}

fn unavailable() -> lifecycle::Unavailable {
    lifecycle::Unavailable { vantage: Vantage::Guest, reason: "the backend has no guest".into() }
}

fn outcome() -> lifecycle::Outcome {
    lifecycle::Outcome { exit_code: 137, signal: Some("SIGKILL".into()), ..Default::default() }
}

fn phase(name: PhaseName) -> Phase {
    match name {
        PhaseName::Requested => Phase::Requested(lifecycle::Requested {
            argv: vec!["sh".into(), "-c".into(), "true \u{fffd}".into()],
            workdir: "/srv".into(),
            backend: "process".into(),
            profile: lifecycle::ProfilingMode::Host,
            profile_required: true,
            labels: BTreeMap::from([("team".into(), "größe".into())]),
            trace_id: Some("0af7651916cd43dd8448eb211c80319c".into()),
        }),
        PhaseName::Admitted => Phase::Admitted(lifecycle::Admitted {
            policies: vec![policy()],
            redaction: lifecycle::RedactionRules { path_prefixes: vec!["/home/".into()], tokens: true },
            ..Default::default()
        }),
        PhaseName::Claimed => Phase::Claimed(lifecycle::Claimed { node: node(), epoch: u64::MAX }),
        PhaseName::Prepared => Phase::Prepared(lifecycle::Prepared {
            backend: "process".into(),
            isolation: lifecycle::Isolation::Process,
            environment: Box::new(environment()),
        }),
        PhaseName::Started => Phase::Started(lifecycle::Started { root_pid: Some(4242) }),
        PhaseName::Profiled => Phase::Profiled(lifecycle::Profiled {
            attached: vec![attached()],
            unavailable: vec![unavailable()],
        }),
        PhaseName::Unprofiled => Phase::Unprofiled(lifecycle::Unprofiled {
            reason: "no BTF".into(),
            unavailable: vec![unavailable()],
        }),
        PhaseName::Exited => Phase::Exited(lifecycle::Exited {
            outcome: outcome(),
            start_unix_ns: 1_767_323_045_000_000_001,
            end_unix_ns: 1_767_323_046_500_000_002,
            rusage: Some(lifecycle::Rusage { cpu_time_ms: 12, max_rss_kb: 3456 }),
            stdout_hash: Some(Digest::of(b"out")),
            stderr_hash: Some(Digest::of(b"")),
            files: Box::new(files()),
        }),
        PhaseName::Sealed => Phase::Sealed(lifecycle::Sealed {
            vantages: vec![lifecycle::SealedVantage {
                vantage: Vantage::Host,
                frames: 2,
                head: common::chain()[1].digest,
            }],
            missing: vec![unavailable()],
        }),
        PhaseName::Failed => Phase::Failed(lifecycle::Failed {
            step: lifecycle::Step::Release,
            error: "the barrier broke".into(),
            outcome: lifecycle::Outcome {
                exit_code: 125,
                signal: None,
                error: Some("the barrier broke".into()),
                limit_exceeded: None,
            },
        }),
        PhaseName::Cleaned => Phase::Cleaned(lifecycle::Cleaned { errors: vec!["cgroup busy".into()] }),
        PhaseName::Closed => {
            Phase::Closed(lifecycle::Closed { reason: lifecycle::ClosedReason::SealMissing })
        }
    }
}

fn lifecycle_event(name: PhaseName) -> LifecycleEvent {
    LifecycleEvent {
        schema_version: version::LIFECYCLE,
        execution_id: execution(),
        node: (name != PhaseName::Closed).then(node),
        unix_ns: 1_767_323_045_123_456_789,
        phase: phase(name),
    }
}

#[test]
fn lifecycle_events_keep_their_bytes() {
    for name in PhaseName::ALL {
        let event = lifecycle_event(name);
        let bytes = event.encode().unwrap();
        assert_committed(&format!("tests/golden/lifecycle-{}.json", name.as_str()), &bytes);
        assert_eq!(LifecycleEvent::decode(&bytes).unwrap(), event);
    }
}

/// A receipt in which every field is there.
fn full_receipt() -> Receipt {
    let process = receipt::Process {
        pid: 10,
        ppid: 1,
        exe: "/usr/bin/dash".into(),
        argv: vec!["sh".into(), "-c".into(), "true".into()],
        working_dir: "/srv".into(),
        start_time: "2026-01-02T03:04:05.000000001Z".into(),
        end_time: Some("2026-01-02T03:04:06.500000002Z".into()),
        exit_code: Some(3),
        signal: Some(9),
        execs: vec![receipt::Exec {
            time: "2026-01-02T03:04:05.000000009Z".into(),
            exe: "/usr/bin/dash".into(),
            argv: vec!["sh".into()],
            working_dir: "/srv".into(),
            exec_flags: vec!["deleted".into()],
            environment: vec!["LD_PRELOAD".into()],
        }],
        forked_only: true,
        argv_truncated: true,
        exe_flags: vec!["unlinked".into()],
        uid: Some(0),
        gid: Some(1000),
        exec_flags: vec!["deleted".into(), "namespace:pid".into()],
        environment: vec!["LD_PRELOAD".into()],
        environment_truncated: true,
        credentials: vec![receipt::CredentialChange {
            time: "2026-01-02T03:04:05.000000010Z".into(),
            uid: 1,
            euid: 2,
            gid: 3,
            egid: 4,
            capabilities: "000001ffffffffff".into(),
            gained: true,
        }],
        usage: Some(receipt::Usage {
            user_us: 1,
            system_us: 2,
            max_rss_kb: 3,
            minor_faults: 4,
            major_faults: 5,
        }),
        vantage: Vantage::Host,
    };
    let classes = Class::ALL.into_iter().map(|class| {
        let counters =
            receipt::ClassCoverage { observed: u64::MAX, delivered: 1, collapsed: 2, lost: u64::MAX - 3 };
        (class.as_str().to_owned(), counters)
    });
    Receipt {
        version: version::RECEIPT.into(),
        execution_id: execution().to_string(),
        provenance: receipt::Provenance::HostAndGuest,
        timestamp: "2026-01-02T03:04:05.000000001Z".into(),
        start_time: "2026-01-02T03:04:05.000000001Z".into(),
        end_time: "2026-01-02T03:04:06.500000002Z".into(),
        observation_mode: receipt::Provenance::Host,
        completeness: receipt::Completeness::Partial,
        outcome: outcome(),
        timing: receipt::Timing { duration_ms: 1500, cpu_time_ms: 12 },
        process_tree: vec![process],
        processes: vec![receipt::FlatProcess { pid: 10, ppid: 1, cmd: "sh -c true".into() }],
        filesystem: receipt::Filesystem {
            reads: vec!["/etc/passwd".into()],
            writes: vec!["/srv/b".into()],
            deletes: vec!["/srv/a".into()],
            policy_violations: vec!["/etc/shadow".into()],
        },
        network: receipt::Network {
            connections: vec![receipt::Connection {
                dst: "127.0.0.1:80".into(),
                protocol: "tcp".into(),
                attempted: true,
            }],
            attempts: vec![receipt::Attempt {
                dst: "127.0.0.1:80".into(),
                protocol: "tcp".into(),
                result: "ECONNREFUSED".into(),
                policy: String::new(),
            }],
            bytes_sent: Some(1),
            bytes_received: Some(2),
        },
        syscalls: receipt::Syscalls {
            counts: BTreeMap::from([("read".into(), canonical::MAX_INTEGER)]),
            denied: vec!["openat".into()],
            denied_counts: BTreeMap::from([("openat".into(), 1)]),
        },
        environment: environment(),
        execution: receipt::Execution {
            backend: "process".into(),
            isolation: "process".into(),
            node: Some(node()),
        },
        artifacts: receipt::Artifacts {
            stdout_hash: Some(Digest::of(b"out")),
            stderr_hash: Some(Digest::of(b"")),
            files: files(),
        },
        exit_code: 137,
        duration_ms: 1500,
        resources: Some(receipt::Resources { cpu_time_ms: 12, max_rss_kb: 3456 }),
        redactions: vec![receipt::Redaction { rule: "tokens".into(), count: 1 }],
        policy: Some(receipt::Policy {
            violations: vec![receipt::Violation {
                phase: "runtime".into(),
                rule: "no-shadow".into(),
                action: "deny".into(),
                message: "reads /etc/shadow".into(),
            }],
            enforcements: vec![receipt::Enforcement {
                action: "kill".into(),
                target: "10".into(),
                rule: "no-shadow".into(),
                message: "killed".into(),
            }],
            trusted: true,
            failed: false,
        }),
        coverage: receipt::Coverage {
            vantages: vec![receipt::VantageCoverage {
                attached: attached(),
                sealed: true,
                classes: classes.collect(),
                escaped_tasks: 2,
                bypassed: vec!["compat syscalls: 3".into()],
                truncated_paths: 1,
            }],
            unavailable: vec![unavailable()],
            incomplete: vec![receipt::Incomplete {
                vantage: Some(Vantage::Host),
                reason: "lost_events".into(),
                class: Some(Class::File),
                detail: "1 lost".into(),
            }],
            caps: vec![receipt::Cap { list: "files".into(), limit: 100_000, events_left_out: u64::MAX }],
        },
        contradictions: vec![receipt::Contradiction {
            kind: "exit".into(),
            said: vec![receipt::Statement { vantage: Vantage::Guest, says: "it exited with 1".into() }],
        }],
        files: vec![receipt::File {
            path: "/srv/\u{fffd}ile".into(),
            path_hex: Some("2f776f726b2fff696c65".into()),
            reads: 1,
            writes: 2,
            path_only: 3,
            creates: 4,
            created: 3,
            read_calls: 11,
            write_calls: 12,
            bytes_read: 13,
            bytes_written: 14,
            deletes: 5,
            renames: 6,
            exchanges: 7,
            changes: BTreeMap::from([("chmod".into(), 8)]),
            modes: vec!["755".into()],
            linked_to: vec!["/srv/c".into()],
            linked_from: vec!["/srv/d".into()],
            symlink_targets: vec!["../e".into()],
            mounted_from: vec!["tmpfs".into()],
            renamed_to: vec!["/srv/b".into()],
            renamed_from: vec!["/srv/a".into()],
            errors: BTreeMap::from([("open ENOENT".into(), 6)]),
            by: BTreeMap::from([("read".into(), vec![10])]),
            flags: vec!["truncated".into()],
            vantage: Vantage::Host,
        }],
        sockets: vec![receipt::Socket {
            dst: "127.0.0.1:80".into(),
            protocol: "tcp".into(),
            operation: "connect".into(),
            results: BTreeMap::from([("ECONNREFUSED".into(), 1)]),
            pids: vec![10],
            sends: Some(1),
            receives: Some(2),
            bytes_sent: Some(3),
            bytes_received: Some(4),
            vantage: Vantage::Host,
        }],
        dns: vec![receipt::Dns {
            server: "10.0.0.1:53".into(),
            name: "example.org".into(),
            query_type: "A".into(),
            answers: vec!["93.184.216.34".into()],
            results: BTreeMap::from([("NOERROR".into(), 1), ("asked".into(), 1)]),
            pids: vec![10],
            vantage: Vantage::Host,
        }],
        operations: vec![receipt::Operation {
            operation: "signal".into(),
            detail: "SIGTERM".into(),
            target: Some(99),
            count: 2,
            results: BTreeMap::from([("EPERM".into(), 2)]),
            pids: vec![10],
            vantage: Vantage::Host,
        }],
        chain: vec![receipt::ChainHead {
            vantage: Vantage::Host,
            node: node(),
            epoch: u64::MAX,
            frames: 2,
            head: common::chain()[1].digest,
        }],
        labels: BTreeMap::from([("team".into(), "größe".into())]),
        trace_id: Some("0af7651916cd43dd8448eb211c80319c".into()),
        policies: vec![policy()],
        probe_cost: Some(receipt::ProbeCost {
            user_cpu_us: 1234,
            kernel_cpu_us: 89,
            kernel_samples: 7,
            frame_bytes: 5678,
            estimated: true,
        }),
    }
}

#[test]
fn receipts_keep_their_bytes() {
    let receipt = full_receipt();
    let bytes = receipt.encode().unwrap();
    assert_committed("tests/golden/receipt-v0.4.json", &bytes);
    assert_eq!(Receipt::decode(&bytes).unwrap(), receipt);

    let exported = canonical::to_vec(&ReceiptV03::from(&receipt)).unwrap();
    assert_committed("tests/golden/receipt-v0.3-exported.json", &exported);
    // An export is read again, and exported again is the same.
    let read = Receipt::decode(&exported).unwrap();
    assert_eq!(canonical::to_vec(&ReceiptV03::from(&read)).unwrap(), exported);
}

/// The two inputs are written by hand, as older writers wrote them; what is committed beside them is what they are
/// read as.
#[test]
fn older_receipts_are_read() {
    for version in ["v0.2", "v0.3"] {
        let input =
            std::fs::read(common::path(&format!("tests/golden/receipt-{version}-input.json"))).unwrap();
        let receipt = Receipt::decode(&input).unwrap();
        assert!(receipt.version.starts_with(version));
        assert_eq!(receipt.coverage.incomplete[0].reason, "counters_unknown");
        assert_committed(&format!("tests/golden/receipt-{version}-read.json"), &receipt.encode().unwrap());
    }
}

fn full_verdict() -> Verdict {
    Verdict {
        version: version::VERDICT.into(),
        execution_id: execution(),
        policy: policy(),
        receipt_digest: Some(Digest::of(b"receipt")),
        decision: verdict::Decision::Unknown,
        rules: vec![
            verdict::RuleOutcome {
                rule: "no-network".into(),
                phase: verdict::RulePhase::Post,
                severity: verdict::Severity::High,
                action: verdict::RuleAction::Deny,
                result: verdict::RuleResult::Unknown,
                reason: "1 network event was lost".into(),
            },
            verdict::RuleOutcome {
                rule: "small".into(),
                phase: verdict::RulePhase::Pre,
                severity: verdict::Severity::Low,
                action: verdict::RuleAction::Warn,
                result: verdict::RuleResult::Passed,
                reason: String::new(),
            },
        ],
    }
}

#[test]
fn verdicts_keep_their_bytes() {
    let verdict = full_verdict();
    let bytes = verdict.encode().unwrap();
    assert_committed("tests/golden/verdict-v1.json", &bytes);
    assert_eq!(Verdict::decode(&bytes).unwrap(), verdict);
    let newer = String::from_utf8(bytes).unwrap().replace(r#""version":"v1""#, r#""version":"v2""#);
    assert!(matches!(Verdict::decode(newer.as_bytes()), Err(verdict::VerdictError::UnknownVersion(_))));
}

fn dead_letter() -> DeadLetter {
    let source = ("GH_EVENTS", u64::MAX);
    DeadLetter::new(
        DeadKind::Frame,
        "not a frame",
        "glasshouse.v1.events.7.x",
        source,
        b"\xffbody",
        "worker-1",
    )
}

#[test]
fn dead_letters_keep_their_bytes() {
    let bytes = canonical::to_vec(&dead_letter()).unwrap();
    assert_committed("tests/golden/dead-letter-v1.json", &bytes);
    assert_eq!(serde_json::from_slice::<DeadLetter>(&bytes).unwrap(), dead_letter());
}

fn request() -> Request {
    let mut request = Request::new(execution(), ["sh", "-c", "cat"]);
    request.env.insert("LANG".into(), "C".into());
    request.workdir = Some("/tmp".into());
    request.stdin_base64 = Stdin(b"hello\n".to_vec());
    request.backend = Some("process".into());
    request.profile = Some(ProfilingMode::Host);
    request.profile_required = true;
    request.labels.insert("job".into(), "42".into());
    request.sandbox.level = glasshouse_schema::SandboxLevel::Standard;
    request.limits.set_text("memory=512MiB").unwrap();
    request.retries = 1;
    request.retry_of = Some(execution());
    request
}

/// One that brings its files along, which it cannot into a directory of the node's.
fn request_with_files() -> Request {
    let artifacts = vec!["out/**".into(), "report.txt".into()];
    Request { workdir: None, files: files().inputs, artifacts, ..request() }
}

fn node_status() -> NodeStatus {
    let agent = AgentStatus {
        version: "0.1.0".into(),
        pool: PoolName::new("default").unwrap(),
        slots: 8,
        free_slots: 3,
        draining: false,
        backends: vec!["process".into()],
        unavailable_backends: [("kata".into(), "no containerd".into())].into(),
        profile: ProfilingMode::Host,
        host_profiling_error: Some("no BTF".into()),
        labels: request().labels,
        machine: Machine { os: "linux".into(), memory_bytes: u64::MAX, ..Machine::default() },
    };
    NodeStatus { node: NodeId::new("node-1").unwrap(), agent: Some(agent) }
}

#[test]
fn requests_and_statuses_keep_their_bytes() {
    let bytes = request().encode().unwrap();
    assert_committed("tests/golden/request-v1.json", &bytes);
    assert_eq!(Request::decode(&bytes).unwrap(), request());
    let bytes = request_with_files().encode().unwrap();
    assert_committed("tests/golden/request-v1-files.json", &bytes);
    assert_eq!(Request::decode(&bytes).unwrap(), request_with_files());
    let bytes = canonical::to_vec(&node_status()).unwrap();
    assert_committed("tests/golden/node-status-v1.json", &bytes);
    assert_eq!(serde_json::from_slice::<NodeStatus>(&bytes).unwrap(), node_status());
}

#[test]
fn json_schemas_are_committed() {
    for (name, schema) in json_schema::all() {
        let mut bytes = serde_json::to_vec_pretty(&schema).unwrap();
        bytes.push(b'\n');
        assert_committed(&format!("json/{name}"), &bytes);
    }
    let committed = std::fs::read_dir(common::path("json")).unwrap().count();
    assert_eq!(committed, json_schema::all().len(), "json/ holds a schema that no type makes");
}

#[test]
fn every_document_is_valid_by_its_schema() {
    let mut documents: Vec<(&str, Vec<u8>)> = vec![
        ("receipt.schema.json", full_receipt().encode().unwrap()),
        ("verdict.schema.json", full_verdict().encode().unwrap()),
        ("dead-letter.schema.json", canonical::to_vec(&dead_letter()).unwrap()),
        ("request.schema.json", request().encode().unwrap()),
        ("node-status.schema.json", canonical::to_vec(&node_status()).unwrap()),
    ];
    documents.extend(
        PhaseName::ALL.map(|name| ("lifecycle.schema.json", lifecycle_event(name).encode().unwrap())),
    );
    for (name, schema) in json_schema::all() {
        let url = format!("https://glasshouse.example/{name}");
        let mut schemas = boon::Schemas::new();
        let mut compiler = boon::Compiler::new();
        compiler.add_resource(&url, schema.clone().to_value()).unwrap();
        let index = compiler.compile(&url, &mut schemas).unwrap();
        for (_, document) in documents.iter().filter(|(of, _)| *of == name) {
            let document: serde_json::Value = serde_json::from_slice(document).unwrap();
            schemas
                .validate(&document, index)
                .unwrap_or_else(|error| panic!("{name}: {error:#}\n{document:#}"));
            // And the schema says something: without any one field that it requires, the document is not valid.
            let required = schema.get("required").and_then(|required| required.as_array()).unwrap();
            assert!(!required.is_empty());
            for field in required {
                let mut without = document.clone();
                without.as_object_mut().unwrap().remove(field.as_str().unwrap());
                assert!(schemas.validate(&without, index).is_err(), "{name} does not need {field}");
            }
        }
    }
}
