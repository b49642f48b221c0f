//! What executions say, and what their producers report of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use glasshouse_schema::frame::{FrameWriterConfig, Seal, SealTotals};
use glasshouse_schema::lifecycle::{PhaseName, Sealed, SealedVantage};
use glasshouse_schema::{
    Digest, EncodedFrame, Event, ExecutionId, Fact, FrameWriter, LifecycleEvent, PathRef, Phase, ProcessKey,
    Usage, Vantage, headers, subject, version,
};
use serde::{Deserialize, Serialize};

use crate::common::{self, exec, node};

/// How much each command of a round does.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Shape {
    /// Files that it opens.
    pub(crate) files: u64,
    /// How long their paths are, at least.
    pub(crate) path_bytes: usize,
}

impl Shape {
    pub(crate) const SMALL: Self = Self { files: 20, path_bytes: 0 };
}

/// A message of an execution.
#[allow(clippy::large_enum_variant, reason = "few are held at a time")]
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Said {
    Event(LifecycleEvent),
    Frame { bytes: Vec<u8>, is_seal: bool },
}

impl Said {
    pub(crate) fn payload(&self) -> Vec<u8> {
        match self {
            Self::Event(event) => event.encode().unwrap(),
            Self::Frame { bytes, .. } => bytes.clone(),
        }
    }

    pub(crate) fn digest(&self) -> Digest {
        Digest::of(&self.payload())
    }

    pub(crate) fn phase(&self) -> Option<PhaseName> {
        match self {
            Self::Event(event) => Some(event.phase.name()),
            Self::Frame { .. } => None,
        }
    }

    /// The subject and the message id under which our publishers send it.
    pub(crate) fn address(&self, id: ExecutionId) -> (String, String) {
        let digest = self.digest();
        match self {
            Self::Event(event) => {
                let (node, phase) = (event.node.as_ref(), event.phase.name());
                let msg_id = headers::lifecycle_msg_id(node, id, phase, digest);
                (subject::lifecycle(node, id, phase), msg_id)
            }
            Self::Frame { .. } => {
                (subject::frames(&node(), id, Vantage::Host), headers::frame_msg_id(&node(), digest))
            }
        }
    }

    /// Whether the receipt would be another one without it.
    pub(crate) fn is_evidence(&self) -> bool {
        !matches!(self.phase(), Some(PhaseName::Cleaned | PhaseName::Started))
    }
}

fn at(number: u64, fact: Fact<'_>) -> Event<'_> {
    let process = ProcessKey { tgid: 1, start_boot_ns: 1_000 };
    Event { boot_ns: 2_000 + number, process, fact }
}

/// The frames of a command that opens files, in one chain.
fn frames(id: ExecutionId, epoch: u64, shape: Shape) -> Vec<EncodedFrame> {
    let config = FrameWriterConfig::new(id, node(), Vantage::Host, epoch, 1_700_000_000_000_000_000);
    let mut writer = FrameWriter::new(config);
    let exec = exec("/usr/bin/true", &[b"true"]);
    let mut frames: Vec<EncodedFrame> = writer.push(&at(0, exec)).into_iter().collect();
    for file in 1..=shape.files {
        let path = format!("/srv/{id}/{file}/{}", "x".repeat(shape.path_bytes));
        let fact =
            Fact::Open { path: PathRef::resolved(path.as_bytes()), flags: 0, result: 3, created: false };
        frames.extend(writer.push(&at(file, fact)));
        if file % (shape.files / 4).max(1) == 0 {
            frames.extend(writer.flush());
        }
    }
    let exit = Fact::Exit { code: 0, signal: 0, core_dumped: false, usage: Usage::default() };
    frames.extend(writer.push(&at(shape.files + 1, exit)));
    frames.extend(writer.seal(SealTotals::default(), Seal::default()));
    frames
}

pub(crate) fn event(id: ExecutionId, phase: Phase) -> LifecycleEvent {
    LifecycleEvent {
        schema_version: version::LIFECYCLE,
        execution_id: id,
        node: Some(node()),
        unix_ns: 1_700_000_000_000_000_000,
        phase,
    }
}

/// All that a whole execution says, in order. The same execution under the same epoch says the same.
pub(crate) fn script(id: ExecutionId, epoch: u64, shape: Shape) -> Vec<Said> {
    let said = |phase| Said::Event(event(id, phase));
    let mut script: Vec<Said> = common::beginning(epoch).into_iter().map(said).collect();
    let frames = frames(id, epoch, shape);
    let vantages = vec![SealedVantage {
        vantage: Vantage::Host,
        frames: frames.len() as u64,
        head: frames.last().unwrap().digest,
    }];
    script.extend(frames.into_iter().map(|frame| Said::Frame { bytes: frame.bytes, is_seal: frame.is_seal }));
    script.push(said(common::exited()));
    script.push(said(Phase::Sealed(Sealed { vantages, missing: Vec::new() })));
    script.push(said(Phase::Cleaned(Default::default())));
    script
}

/// What a producer reports.
#[derive(Debug, Serialize, Deserialize)]
#[allow(clippy::large_enum_variant, reason = "nearly all of them are the large one")]
pub(crate) enum Report {
    /// It holds the claim.
    Claimed(ExecutionId, u64),
    Accepted(ExecutionId, Said),
    /// Neither the bus nor the spool took it.
    Refused(ExecutionId),
}

/// What was reported of an execution.
#[derive(Debug, Default)]
pub(crate) struct Account {
    pub(crate) epoch: u64,
    pub(crate) accepted: Vec<Said>,
    pub(crate) refused: u64,
}

impl Account {
    pub(crate) fn digests(&self) -> BTreeSet<Digest> {
        self.accepted.iter().map(Said::digest).collect()
    }
}

/// The reports of all producers of a round.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ledger(Arc<Mutex<BTreeMap<ExecutionId, Account>>>);

impl Ledger {
    pub(crate) fn note(&self, report: Report) {
        let mut accounts = self.0.lock().unwrap();
        match report {
            Report::Claimed(id, epoch) => accounts.entry(id).or_default().epoch = epoch,
            Report::Accepted(id, said) => accounts.entry(id).or_default().accepted.push(said),
            Report::Refused(id) => accounts.entry(id).or_default().refused += 1,
        }
    }

    /// Whether a producer claimed it.
    pub(crate) fn knows(&self, id: ExecutionId) -> bool {
        self.0.lock().unwrap().contains_key(&id)
    }

    pub(crate) fn take(self) -> BTreeMap<ExecutionId, Account> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}
