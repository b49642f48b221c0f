//! Executions to publish: whole ones, in one chain of frames each, that fold to a closed receipt.

use futures::{StreamExt, TryStreamExt, stream};
use glasshouse_nats::{Bus, ClaimOutcome, Claims, Publisher};
use glasshouse_schema::frame::{FrameWriterConfig, Seal, SealTotals};
use glasshouse_schema::lifecycle::{
    Admitted, Attached, Claimed, Cleaned, Environment, Exited, Isolation, Outcome, Prepared, Profiled,
    ProfilingMode, Requested, Sandbox, Sealed, SealedVantage, Started,
};
use glasshouse_schema::{
    EncodedFrame, Event, ExecFlags, ExecutionId, Fact, FrameWriter, LifecycleEvent, NodeId, PathRef, Phase,
    ProcessKey, Usage, Vantage, version,
};

const UNIX_NS: i64 = 1_700_000_000_000_000_000;
/// How many claims are taken at a time.
const AT_ONCE: usize = 128;

/// What an execution did.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    /// How many frames its events fill, besides the one with its end.
    pub(crate) frames: usize,
    /// How large each is, about.
    pub(crate) frame_bytes: usize,
    /// How many different files it opens, again and again.
    pub(crate) files: usize,
}

/// An execution that holds its claim, as its node publishes it.
pub(crate) struct Script {
    pub(crate) id: ExecutionId,
    node: NodeId,
    begin: Vec<LifecycleEvent>,
    pub(crate) frames: Vec<EncodedFrame>,
    exited: LifecycleEvent,
    sealed: LifecycleEvent,
    cleaned: LifecycleEvent,
}

pub(crate) fn execution(number: u32) -> ExecutionId {
    let [a, b, c, d] = number.to_be_bytes();
    // Where a UUID keeps no bits for its version and variant.
    ExecutionId::from_parts(1_700_000_000_000, [0, 0, 0, a, b, c, d, 0, 0, 0])
}

pub(crate) fn node(number: usize) -> NodeId {
    NodeId::new(format!("node-{number}")).unwrap()
}

/// Executions of a node, their claims taken.
pub(crate) async fn scripts(
    bus: &Bus,
    node: &NodeId,
    numbers: impl Iterator<Item = u32>,
    shape: Shape,
) -> Vec<Script> {
    let claims = Claims::new(bus);
    let taken = stream::iter(numbers.map(|number| {
        let claims = claims.clone();
        async move {
            match claims.take(execution(number), node).await {
                Ok(ClaimOutcome::Taken { epoch } | ClaimOutcome::Held { epoch, .. }) => Ok((number, epoch)),
                Err(error) => Err(error),
            }
        }
    }))
    .buffered(AT_ONCE);
    let taken: Vec<(u32, u64)> = taken.try_collect().await.unwrap();
    taken.into_iter().map(|(number, epoch)| Script::new(execution(number), node, epoch, shape)).collect()
}

impl Script {
    fn new(id: ExecutionId, node: &NodeId, epoch: u64, shape: Shape) -> Self {
        let frames = frames(id, node, epoch, shape);
        let event = |phase| LifecycleEvent {
            schema_version: version::LIFECYCLE,
            execution_id: id,
            node: Some(node.clone()),
            unix_ns: UNIX_NS,
            phase,
        };
        let begin = begin(node, epoch).into_iter().map(event).collect();
        let outcome = Outcome::default();
        let exited = Phase::Exited(Exited {
            outcome,
            start_unix_ns: UNIX_NS,
            end_unix_ns: UNIX_NS + 1_000_000_000,
            rusage: None,
            stdout_hash: None,
            stderr_hash: None,
        });
        let head = frames.last().unwrap().digest;
        let vantages = vec![SealedVantage { vantage: Vantage::Host, frames: frames.len() as u64, head }];
        let sealed = Phase::Sealed(Sealed { vantages, missing: Vec::new() });
        Self {
            id,
            node: node.clone(),
            begin,
            exited: event(exited),
            sealed: event(sealed),
            cleaned: event(Phase::Cleaned(Cleaned::default())),
            frames,
        }
    }

    /// How many bytes its frames have.
    pub(crate) fn frame_bytes(&self) -> usize {
        self.frames.iter().map(|frame| frame.bytes.len()).sum()
    }

    /// Everything up to the first frames, of which `upto` are published.
    pub(crate) async fn begin(&self, publisher: &Publisher, upto: usize) {
        self.lifecycle(publisher, &self.begin).await;
        self.frames(publisher, &self.frames[..upto]).await;
    }

    /// The frames from `from` on, and that the command exited: all that comes before the end.
    pub(crate) async fn go_on(&self, publisher: &Publisher, from: usize) {
        self.frames(publisher, &self.frames[from..]).await;
        self.lifecycle(publisher, std::slice::from_ref(&self.exited)).await;
    }

    /// The event with which everything is told that a receipt needs.
    pub(crate) async fn seal(&self, publisher: &Publisher) {
        self.lifecycle(publisher, std::slice::from_ref(&self.sealed)).await;
    }

    pub(crate) async fn clean(&self, publisher: &Publisher) {
        self.lifecycle(publisher, std::slice::from_ref(&self.cleaned)).await;
    }

    /// All of it.
    pub(crate) async fn publish(&self, publisher: &Publisher) {
        self.begin(publisher, 0).await;
        self.go_on(publisher, 0).await;
        self.seal(publisher).await;
        self.clean(publisher).await;
    }

    async fn frames(&self, publisher: &Publisher, frames: &[EncodedFrame]) {
        for frame in frames {
            let EncodedFrame { vantage, bytes, digest, .. } = frame.clone();
            publisher.publish_frame(&self.node, self.id, vantage, bytes, digest, None).await.unwrap();
        }
    }

    async fn lifecycle(&self, publisher: &Publisher, events: &[LifecycleEvent]) {
        for event in events {
            publisher.publish_lifecycle(event, None).await.unwrap();
        }
    }
}

fn begin(node: &NodeId, epoch: u64) -> Vec<Phase> {
    let environment = Environment {
        runtime: "process".into(),
        os: "linux".into(),
        arch: "x86_64".into(),
        kernel: "6.12.0".into(),
        sandbox: Sandbox { network: "host".into(), ..Sandbox::default() },
    };
    vec![
        Phase::Requested(Requested {
            argv: ["cc", "-O2", "-c", "src/main.c"].map(Into::into).to_vec(),
            workdir: "/srv/build".into(),
            backend: "process".into(),
            profile: ProfilingMode::Host,
            profile_required: false,
            labels: Default::default(),
            trace_id: None,
        }),
        Phase::Admitted(Admitted::default()),
        Phase::Claimed(Claimed { node: node.clone(), epoch }),
        Phase::Prepared(Prepared { backend: "process".into(), isolation: Isolation::Process, environment }),
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

/// A command that opens files, some of them again and again, as a build does.
fn frames(id: ExecutionId, node: &NodeId, epoch: u64, shape: Shape) -> Vec<EncodedFrame> {
    let process = ProcessKey { tgid: 1, start_boot_ns: 1_000 };
    let mut config = FrameWriterConfig::new(id, node.clone(), Vantage::Host, epoch, UNIX_NS);
    config.flush_bytes = shape.frame_bytes;
    let mut writer = FrameWriter::new(config);
    let mut boot_ns = 2_000;
    let mut push = |writer: &mut FrameWriter, fact: Fact<'_>| {
        boot_ns += 1_000;
        writer.push(&Event { boot_ns, process, fact })
    };
    let exec = Fact::Exec {
        ppid: 0,
        exe: PathRef::resolved(b"/usr/bin/cc"),
        cwd: PathRef::resolved(b"/srv/build"),
        argv: &[b"cc", b"-O2", b"-c", b"src/main.c"],
        argv_truncated: false,
        uid: 0,
        gid: 0,
        env: &[],
        env_truncated: false,
        flags: ExecFlags::default(),
    };
    let mut frames: Vec<EncodedFrame> = push(&mut writer, exec).into_iter().collect();
    let paths: Vec<String> = (0..shape.files)
        .map(|n| format!("/usr/lib/python3.12/site-packages/package_{}/module_{n}.py", n / 16))
        .collect();
    // A step that meets every file before it meets one again, in no sorted order.
    let mut opens = (0..).map(|n: usize| &paths[n * 7919 % paths.len()]);
    let mut open = |writer: &mut FrameWriter| {
        let path = PathRef::resolved(opens.next().unwrap().as_bytes());
        push(writer, Fact::Open { path, flags: 0o2_000_000, result: 3, created: false })
    };
    // Of an execution without full frames each file is opened once.
    match shape.frames {
        0 => frames.extend((0..shape.files).filter_map(|_| open(&mut writer))),
        wanted => {
            while frames.len() < wanted {
                frames.extend(open(&mut writer));
            }
        }
    }
    frames.extend(writer.flush());
    let exit = Fact::Exit { code: 0, signal: 0, core_dumped: false, usage: Usage::default() };
    frames.extend(push(&mut writer, exit));
    frames.extend(writer.seal(SealTotals::default(), Seal::default()));
    frames
}
