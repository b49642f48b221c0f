//! An execution that follows a script: what its producer says, event by event. The end-to-end tests play it too.
#![allow(dead_code, reason = "each test file uses a part")]

use std::time::Duration;

use glasshouse_nats::{Bus, ClaimOutcome, Claims, ErrorKind, Publisher};
use glasshouse_schema::lifecycle::{
    Admitted, Attached, Claimed, Cleaned, Environment, Exited, Isolation, Outcome, Prepared, Profiled,
    ProfilingMode, Requested, Sandbox, Started,
};
use glasshouse_schema::{
    ExecFlags, ExecutionId, Fact, LifecycleEvent, NodeId, PathRef, Phase, Vantage, version,
};

pub(crate) fn node() -> NodeId {
    NodeId::new("node-1").unwrap()
}

pub(crate) async fn publish(publisher: &Publisher, execution: ExecutionId, phases: Vec<Phase>) {
    for phase in phases {
        let event = LifecycleEvent {
            schema_version: version::LIFECYCLE,
            execution_id: execution,
            node: Some(node()),
            unix_ns: 1_700_000_000_000_000_000,
            phase,
        };
        publisher.publish_lifecycle(&event, None).await.unwrap();
    }
    publisher.flush().await.unwrap();
}

/// The events of an execution up to `profiled`, its claim taken.
pub(crate) async fn begun(bus: &Bus, execution: ExecutionId) -> Vec<Phase> {
    beginning(claim(bus, execution).await)
}

/// Takes the claim, and gives its epoch.
pub(crate) async fn claim(bus: &Bus, execution: ExecutionId) -> u64 {
    loop {
        match Claims::new(bus).take(execution, &node()).await {
            Ok(ClaimOutcome::Taken { epoch } | ClaimOutcome::Held { epoch, .. }) => return epoch,
            Err(error) if error.kind() == ErrorKind::Retryable => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Err(error) => panic!("{error}"),
        }
    }
}

/// The events of an execution up to `profiled`.
pub(crate) fn beginning(epoch: u64) -> Vec<Phase> {
    beginning_on(node(), epoch)
}

/// The same, of an execution on some node. The benches play it too.
pub(crate) fn beginning_on(node: NodeId, epoch: u64) -> Vec<Phase> {
    vec![
        Phase::Requested(Requested {
            argv: vec!["true".into()],
            workdir: "/".into(),
            backend: "process".into(),
            profile: ProfilingMode::Host,
            profile_required: false,
            labels: Default::default(),
            trace_id: None,
        }),
        Phase::Admitted(Admitted::default()),
        Phase::Claimed(Claimed { node, epoch }),
        Phase::Prepared(Prepared {
            backend: "process".into(),
            isolation: Isolation::Process,
            environment: Box::new(Environment {
                runtime: "process".into(),
                os: "linux".into(),
                arch: "x86_64".into(),
                kernel: String::new(),
                snapshot: None,
                image: None,
                sandbox: Sandbox { network: "host".into(), ..Sandbox::default() },
                vmm: None,
            }),
        }),
        Phase::Started(Started { root_pid: Some(1) }),
        Phase::Profiled(Profiled {
            attached: vec![Attached {
                vantage: Vantage::Host,
                controller: "ebpf".into(),
                hooks: Vec::new(),
                blind_spots: Vec::new(),
            }],
            unavailable: Vec::new(),
        }),
    ]
}

/// The command's program, as the probe tells of it.
pub(crate) fn exec<'a>(exe: &'a str, argv: &'a [&'a [u8]]) -> Fact<'a> {
    Fact::Exec {
        ppid: 0,
        exe: PathRef::resolved(exe.as_bytes()),
        cwd: PathRef::resolved(b"/"),
        argv,
        argv_truncated: false,
        uid: 0,
        gid: 0,
        env: &[],
        env_truncated: false,
        flags: ExecFlags::default(),
    }
}

/// The events after them of an execution whose seal is missing: it is closed at once and its receipt is partial.
pub(crate) fn ended() -> Vec<Phase> {
    vec![exited(), Phase::Cleaned(Cleaned::default())]
}

pub(crate) fn exited() -> Phase {
    Phase::Exited(Exited {
        outcome: Outcome::default(),
        start_unix_ns: 1_700_000_000_000_000_000,
        end_unix_ns: 1_700_000_001_000_000_000,
        rusage: None,
        stdout_hash: None,
        stderr_hash: None,
        files: Default::default(),
    })
}
