//! Executions to publish: whole ones, in one chain of frames each, that fold to a closed receipt.

use futures::{StreamExt, TryStreamExt, stream};
use glasshouse_fold::ExecutionFold;
use glasshouse_nats::{Bus, ClaimOutcome, Claims, Publisher};
use glasshouse_schema::frame::{Body, FrameWriterConfig, Header, Io, Open, Seal, SealTotals};
use glasshouse_schema::lifecycle::{Cleaned, Sealed, SealedVantage};
use glasshouse_schema::{
    Digest, EncodedFrame, Event, ExecutionId, Fact, Frame, FrameWriter, LifecycleEvent, NodeId, PathRef,
    Phase, ProcessKey, Usage, Vantage, version,
};

use crate::script::{beginning_on, exec, exited};

/// The recorded workloads.
const RECORDINGS: [&str; 4] = ["compile", "git", "tar", "tests"];
const UNIX_NS: i64 = 1_700_000_000_000_000_000;
/// How many claims are taken at a time.
const AT_ONCE: usize = 128;

/// What an execution did.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Shape {
    /// One of the recorded workloads, each in its turn, in the frames that its probe published.
    Recorded,
    /// A recorded compile, again and again, each time as another process, until it fills these frames.
    Compile {
        /// How many, besides the one with its end.
        frames: usize,
        /// How large each is, about.
        frame_bytes: usize,
    },
    /// Opens so many files, each once: one frame besides the one with its end.
    Opens(usize),
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
        let begin = beginning_on(node.clone(), epoch).into_iter().map(event).collect();
        let head = frames.last().unwrap().digest;
        let vantages = vec![SealedVantage { vantage: Vantage::Host, frames: frames.len() as u64, head }];
        let sealed = Phase::Sealed(Sealed { vantages, missing: Vec::new() });
        Self {
            id,
            node: node.clone(),
            begin,
            exited: event(exited()),
            sealed: event(sealed),
            cleaned: event(Phase::Cleaned(Cleaned::default())),
            frames,
        }
    }

    /// How many bytes its frames have.
    pub(crate) fn frame_bytes(&self) -> usize {
        self.frames.iter().map(|frame| frame.bytes.len()).sum()
    }

    /// How many entries its frames have.
    pub(crate) fn events(&self) -> usize {
        self.frames.iter().map(|frame| Frame::decode(&frame.bytes).unwrap().body.events()).sum()
    }

    /// Its receipt's bytes, folded here.
    pub(crate) fn receipt(&self) -> Vec<u8> {
        let mut fold = ExecutionFold::new(self.id);
        for event in &self.begin {
            fold.lifecycle(event).unwrap();
        }
        for frame in &self.frames {
            fold.frame(&frame.bytes, Some((&self.node, frame.vantage))).unwrap();
        }
        for event in [&self.exited, &self.sealed] {
            fold.lifecycle(event).unwrap();
        }
        assert!(fold.close().unwrap(), "nothing is missing");
        fold.receipt().unwrap().encode().unwrap()
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

/// The frames of a recording, told of another execution.
fn retold(id: ExecutionId, node: &NodeId, epoch: u64, recording: &str) -> Vec<EncodedFrame> {
    let mut prev = Digest::ZERO;
    recorded(recording)
        .iter()
        .map(|bytes| {
            let mut frame = Frame::decode(bytes).unwrap();
            frame.header = Header { execution: id, node: node.clone(), epoch, prev, ..frame.header };
            let (seq, vantage, is_seal) = (frame.header.seq, frame.header.vantage, frame.seal.is_some());
            let bytes = frame.encode().unwrap();
            let digest = Digest::of(&bytes);
            prev = digest;
            EncodedFrame { execution: id, node: node.clone(), vantage, seq, bytes, digest, is_seal }
        })
        .collect()
}

fn frames(id: ExecutionId, node: &NodeId, epoch: u64, shape: Shape) -> Vec<EncodedFrame> {
    if let Shape::Recorded = shape {
        // Where its number ends; a producer has every fourth, and is to have some of each.
        let recording = RECORDINGS[id.as_bytes()[12] as usize / 4 % RECORDINGS.len()];
        return retold(id, node, epoch, recording);
    }
    let process = ProcessKey { tgid: 1, start_boot_ns: 1_000 };
    let mut config = FrameWriterConfig::new(id, node.clone(), Vantage::Host, epoch, UNIX_NS);
    if let Shape::Compile { frame_bytes, .. } = shape {
        config.flush_bytes = frame_bytes;
    }
    let mut writer = FrameWriter::new(config);
    let mut boot_ns = 2_000;
    let mut push = |writer: &mut FrameWriter, process, fact: Fact<'_>| {
        boot_ns += 1_000;
        writer.push(&Event { boot_ns, process, fact })
    };
    let argv: [&[u8]; 4] = [b"cc", b"-O2", b"-c", b"src/main.c"];
    let mut frames: Vec<EncodedFrame> =
        push(&mut writer, process, exec("/usr/bin/cc", &argv)).into_iter().collect();
    match shape {
        Shape::Recorded => {}
        Shape::Opens(files) => {
            for n in 0..files {
                let path = format!("/usr/lib/python3.12/site-packages/package_{}/module_{n}.py", n / 16);
                let path = PathRef::resolved(path.as_bytes());
                let open = Fact::Open { path, flags: 0o2_000_000, result: 3, created: false };
                frames.extend(push(&mut writer, process, open));
            }
        }
        Shape::Compile { frames: wanted, .. } => {
            let recorded = recorded("compile");
            let recorded: Vec<Frame<'_>> =
                recorded.iter().map(|frame| Frame::decode(frame).unwrap()).collect();
            'full: for pass in 0.. {
                for (process, fact) in recorded.iter().flat_map(|frame| facts(&frame.body)) {
                    let process = ProcessKey { tgid: process.tgid + 4_096 * pass, ..process };
                    frames.extend(push(&mut writer, process, fact));
                    if frames.len() == wanted {
                        break 'full;
                    }
                }
            }
        }
    }
    frames.extend(writer.flush());
    let exit = Fact::Exit { code: 0, signal: 0, core_dumped: false, usage: Usage::default() };
    frames.extend(push(&mut writer, process, exit));
    frames.extend(writer.seal(SealTotals::default(), Seal::default()));
    frames
}

/// The frames of a workload, as they were recorded (`schema/recordings`).
fn recorded(name: &str) -> Vec<Vec<u8>> {
    let path = format!("{}/../../schema/recordings/{name}.frames", env!("CARGO_MANIFEST_DIR"));
    let bytes = std::fs::read(path).unwrap();
    let (mut frames, mut rest) = (Vec::new(), &bytes[..]);
    while let Some((length, after)) = rest.split_first_chunk() {
        let (frame, after) = after.split_at(u32::from_le_bytes(*length) as usize);
        frames.push(frame.to_vec());
        rest = after;
    }
    frames
}

/// What files a frame says were opened, read and written, in the order of time: most of what a compile does.
fn facts<'f>(body: &'f Body<'_>) -> Vec<(ProcessKey, Fact<'f>)> {
    let opens = body.opens.iter().map(|open| {
        let Open { flags, result, created, .. } = *open;
        (open.after_ns, open.process, Fact::Open { path: body.paths.at(open.path), flags, result, created })
    });
    let ios = body.ios.iter().map(|io| {
        let Io { reads, writes, read_bytes, written_bytes, .. } = *io;
        let path = body.paths.at(io.path);
        (io.after_ns, io.process, Fact::Io { path, reads, writes, read_bytes, written_bytes })
    });
    let mut facts: Vec<_> = opens.chain(ios).collect();
    facts.sort_by_key(|(after_ns, ..)| *after_ns);
    facts.into_iter().map(|(_, process, fact)| (body.processes[process as usize], fact)).collect()
}

/// What an event of the compile takes as the array that one would send without a thought: MessagePack, its path in full.
pub(crate) fn plain_bytes_per_event() -> f64 {
    let (mut bytes, mut events) = (0, 0);
    for frame in recorded("compile") {
        for (process, fact) in facts(&Frame::decode(&frame).unwrap().body) {
            let (path, numbers) = match fact {
                Fact::Open { path, flags, result, created } => {
                    (path, [flags.into(), result.unsigned_abs().into(), 1, created.into()])
                }
                Fact::Io { path, reads, writes, read_bytes, written_bytes } => {
                    (path, [reads, writes, read_bytes, written_bytes])
                }
                _ => continue,
            };
            let path_bytes = serde_bytes::Bytes::new(path.bytes);
            let row: (u8, u64, u32, u64, _, u8, [u64; 4]) =
                (0, UNIX_NS as u64, process.tgid, process.start_boot_ns, path_bytes, path.flags.0, numbers);
            bytes += rmp_serde::to_vec(&row).unwrap().len();
            events += 1;
        }
    }
    bytes as f64 / events as f64
}
