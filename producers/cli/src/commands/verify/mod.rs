//! `verify --replay`: a receipt held against the stored events that it was made from.

mod chain;
mod difference;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::process::ExitCode;

use glasshouse_fold::ExecutionFold;
use glasshouse_nats::{Bus, Claims, ErrorKind, RECEIPTS, StoredMessage};
use glasshouse_schema::lifecycle::{Claimed, LifecycleEvent, Phase, PhaseName, Sealed, SealedVantage};
use glasshouse_schema::receipt::{ChainHead, Completeness, MAX_RECEIPT_BYTES};
use glasshouse_schema::subject::{EventSubject, EventSubjectKind};
use glasshouse_schema::{Digest, ExecutionId, Frame, NodeId, Receipt, Vantage, subject};
use serde::Serialize;

use self::chain::{ChainId, Fault, Problem, StoredChain};
use self::difference::{Difference, differences};
use crate::args::{Replay, VerifyArgs};
use crate::bus;

/// Chains that are walked. The fold keeps fewer of one node; more come only from nodes that are broken or hostile.
const MAX_CHAINS: usize = 256;

/// What the comparison came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Outcome {
    Same,
    Different,
    Expired,
}

impl Outcome {
    fn exit_code(self) -> ExitCode {
        ExitCode::from(match self {
            Self::Same => 0,
            Self::Different => 1,
            // Not 2: that is a wrong command line.
            Self::Expired => 3,
        })
    }
}

/// The receipt that is held against its evidence.
struct Given {
    receipt: Receipt,
    bytes: Vec<u8>,
    execution: ExecutionId,
    /// Where it comes from, for a person.
    from: String,
    /// It is the one that GH_RECEIPTS holds, so its execution is closed.
    is_stored: bool,
}

pub(crate) async fn main(args: VerifyArgs) -> anyhow::Result<ExitCode> {
    let connect = async || bus::connect(&args.bus.nats, args.bus.creds.as_deref()).await;
    let (bus, given) = match &args.replay {
        // A file that cannot be read is said before anything is asked of a server.
        Replay::File(path) => {
            let given = from_file(path)?;
            (connect().await?, given)
        }
        Replay::Execution(execution) => {
            let bus = connect().await?;
            let given = from_bus(&bus, *execution).await?;
            (bus, given)
        }
    };
    let evidence = Evidence::read(&bus, &given).await?;
    let report = evidence.compare(given)?;
    match args.json {
        true => super::print_json(&report)?,
        false => super::print(report.text())?,
    }
    Ok(report.result.exit_code())
}

fn from_file(path: &std::path::Path) -> anyhow::Result<Given> {
    let bytes = super::read_bounded(path, MAX_RECEIPT_BYTES, "receipt")?;
    let receipt = Receipt::decode(&bytes)?;
    let execution = receipt.execution_id.parse()?;
    Ok(Given { receipt, bytes, execution, from: path.display().to_string(), is_stored: false })
}

async fn from_bus(bus: &Bus, execution: ExecutionId) -> anyhow::Result<Given> {
    let Some(document) = bus.get_receipt(execution).await? else {
        anyhow::bail!(
            "there is no receipt of {execution} in {RECEIPTS} to compare with (an unprofiled execution has none); a receipt \
             that was kept as a file can be compared with --replay FILE"
        );
    };
    let receipt = Receipt::decode(&document.body)?;
    let from = format!("message {} of {RECEIPTS}", document.message.stream_seq);
    Ok(Given { receipt, bytes: document.body.to_vec(), execution, from, is_stored: true })
}

/// Who held the claim that the events speak of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum ClaimSource {
    /// The bucket of claims.
    Bucket,
    /// It is not in the bucket any more: what the receipt says of it is taken.
    Receipt,
    /// No event speaks of a claim that was held.
    Nobody,
}

/// What the stream has of an execution, read up to its `closed` event.
struct Evidence {
    fold: ExecutionFold,
    chains: BTreeMap<ChainId, StoredChain>,
    sealed: Option<Sealed>,
    claim: ClaimSource,
    events: u64,
    frames: u64,
    /// Events that an aggregator does not fold either.
    set_aside: u64,
    /// The first event is there.
    has_first: bool,
    closed_seq: Option<u64>,
    last_seq: u64,
}

impl Evidence {
    async fn read(bus: &Bus, given: &Given) -> anyhow::Result<Self> {
        let filters = subject::stored_events_of(given.execution).into();
        let mut messages = bus.snapshot(glasshouse_nats::EVENTS, filters).await?;
        let mut evidence = Self {
            fold: ExecutionFold::new(given.execution),
            chains: BTreeMap::new(),
            sealed: None,
            claim: ClaimSource::Nobody,
            events: 0,
            frames: 0,
            set_aside: 0,
            has_first: false,
            closed_seq: None,
            last_seq: messages.position().last_seq,
        };
        while let Some(message) = messages.next().await? {
            evidence.events += 1;
            let is_folded = match EventSubject::parse(&message.subject) {
                Ok(EventSubject { node: Some(node), kind: EventSubjectKind::Frame(vantage), .. }) => {
                    evidence.frame(&message, &node, vantage)?
                }
                Ok(EventSubject { node, kind: EventSubjectKind::Lifecycle(phase), .. }) => {
                    evidence.lifecycle(bus, given, &message, node.as_ref(), phase).await?
                }
                // A frame under no node, or a subject that is none of ours.
                _ => false,
            };
            evidence.set_aside += u64::from(!is_folded);
            // The fold of the execution ends here, whatever comes later.
            if evidence.closed_seq.is_some() {
                break;
            }
        }
        Ok(evidence)
    }

    /// Whether the frame was folded.
    fn frame(&mut self, message: &StoredMessage, node: &NodeId, vantage: Vantage) -> anyhow::Result<bool> {
        let Ok(message) = message.decoded() else { return Ok(false) };
        if self.fold.frame(&message.payload, Some((node, vantage))).is_err() {
            return Ok(false);
        }
        let Ok(frame) = Frame::decode(&message.payload) else { return Ok(false) };
        self.frames += 1;
        let id = ChainId { vantage, node: node.clone(), epoch: frame.header.epoch };
        anyhow::ensure!(
            self.chains.len() < MAX_CHAINS || self.chains.contains_key(&id),
            "the execution has frames of more than {MAX_CHAINS} chains, which no honest node publishes"
        );
        let chain = self.chains.entry(id).or_default();
        chain.add(&frame.header, Digest::of(&message.payload), message.stream_seq);
        Ok(true)
    }

    /// Whether the event was folded. The rules are those of an aggregator.
    async fn lifecycle(
        &mut self,
        bus: &Bus,
        given: &Given,
        message: &StoredMessage,
        node: Option<&NodeId>,
        phase: PhaseName,
    ) -> anyhow::Result<bool> {
        let Ok(event) = LifecycleEvent::decode(&message.payload) else { return Ok(false) };
        let names_node = phase == PhaseName::Closed || event.node.as_ref() == node;
        if event.phase.name() != phase || event.execution_id != given.execution || !names_node {
            return Ok(false);
        }
        if let Phase::Claimed(claimed) = &event.phase
            && !self.is_held(bus, given, claimed).await?
        {
            return Ok(false);
        }
        if self.fold.lifecycle(&event).is_err() {
            return Ok(false);
        }
        match event.phase {
            Phase::Requested(_) => self.has_first = true,
            Phase::Sealed(sealed) if self.sealed.is_none() => self.sealed = Some(sealed),
            Phase::Closed(_) => self.closed_seq = Some(message.stream_seq),
            _ => {}
        }
        Ok(true)
    }

    /// Whether the node holds the claim that its event speaks of.
    async fn is_held(&mut self, bus: &Bus, given: &Given, claimed: &Claimed) -> anyhow::Result<bool> {
        let (is_held, source) = match Claims::new(bus).get(given.execution).await {
            Ok(Some((claim, epoch))) => {
                let is_held = epoch == claimed.epoch && claim.is_none_or(|claim| claim.node == claimed.node);
                (is_held, ClaimSource::Bucket)
            }
            // The bucket was cleared since. Who claims to have held it must at least be whom the receipt names.
            Ok(None) => (given.receipt.execution.node.as_ref() == Some(&claimed.node), ClaimSource::Receipt),
            Err(error) if error.kind() == ErrorKind::Poison => (false, ClaimSource::Bucket),
            Err(error) => return Err(error.into()),
        };
        if is_held {
            self.claim = source;
        }
        Ok(is_held)
    }

    fn compare(mut self, given: Given) -> anyhow::Result<Report> {
        let mut reasons = Vec::new();
        if self.closed_seq.is_none() && self.events > 0 {
            // Who keeps a receipt of its own may ask before an aggregator came to close the execution.
            if !self.fold.close()? {
                reasons.push("the stored events do not end the execution".to_owned());
            }
            if given.is_stored {
                reasons.push("the `closed` event is not stored, and a receipt is made after it".to_owned());
            }
        }
        let mut fields = Vec::new();
        let mut more_fields = false;
        let mut replayed_digest = None;
        match self.fold.receipt() {
            Some(replayed) => {
                let bytes = replayed.encode()?;
                replayed_digest = Some(Digest::of(&bytes));
                if bytes != given.bytes {
                    let of_given = serde_json::from_slice(&given.bytes)?;
                    (fields, more_fields) = differences(&of_given, &serde_json::from_slice(&bytes)?);
                    reasons.push(match fields.is_empty() {
                        true => "every field is the same, and the bytes are not canonical JSON (was the file written anew \
                                 by another program?)"
                            .to_owned(),
                        false => "the receipt says something else than its evidence".to_owned(),
                    });
                }
            }
            None if self.events > 0 => {
                reasons
                    .push("no receipt follows from the stored events: nothing says what was profiled".into());
            }
            None => {}
        }
        let chains = self.walk(&given);
        let is_same =
            reasons.is_empty() && replayed_digest.is_some() && chains.iter().all(ChainReport::is_whole);
        let result = match is_same {
            true => Outcome::Same,
            // The oldest events go first: without the one that asked for the execution the others are a remainder.
            false if !self.has_first => Outcome::Expired,
            false => Outcome::Different,
        };
        Ok(Report {
            result,
            execution: given.execution,
            receipt_from: given.from,
            receipt_digest: Digest::of(&given.bytes),
            replayed_digest,
            events: self.events,
            frames: self.frames,
            set_aside: self.set_aside,
            closed_seq: self.closed_seq,
            last_seq: self.last_seq,
            claim: self.claim,
            reasons,
            chains,
            fields,
            more_fields,
        })
    }

    /// Walks every chain that the receipt or the `sealed` event names.
    fn walk(&self, given: &Given) -> Vec<ChainReport> {
        let receipt = &given.receipt;
        let mut reports: Vec<ChainReport> = receipt
            .chain
            .iter()
            .map(|ChainHead { vantage, node, epoch, frames, head }| {
                let id = ChainId { vantage: *vantage, node: node.clone(), epoch: *epoch };
                self.report(id, *frames, *head)
            })
            .collect();
        // A partial receipt says itself that its chain and the seal do not fit.
        let sealed = self.sealed.iter().flat_map(|sealed| &sealed.vantages);
        for SealedVantage { vantage, frames, head } in
            sealed.filter(|_| receipt.completeness == Completeness::Closed)
        {
            match reports.iter_mut().find(|report| report.chain.vantage == *vantage) {
                Some(report) if (report.frames, report.head) == (*frames, *head) => {}
                Some(report) => {
                    report.note = Some(format!("`sealed` names {frames} frames and the head {head}"));
                }
                None => {
                    let Some(id) = self.chains.keys().find(|id| id.vantage == *vantage).cloned() else {
                        continue;
                    };
                    let mut report = self.report(id, *frames, *head);
                    report.note = Some("`sealed` names the chain, and the receipt does not".to_owned());
                    reports.push(report);
                }
            }
        }
        reports
    }

    fn report(&self, chain: ChainId, frames: u64, head: Digest) -> ChainReport {
        let none = StoredChain::default();
        let stored = self.chains.get(&chain).unwrap_or(&none);
        let walk = stored.walk(frames, head);
        let stored = stored.stored(frames);
        ChainReport { chain, frames, head, stored, faults: walk.faults, first_fault: walk.first, note: None }
    }
}

/// One chain as the receipt names it, and what is stored of it.
#[derive(Debug, Serialize)]
struct ChainReport {
    #[serde(flatten)]
    chain: ChainId,
    frames: u64,
    head: Digest,
    stored: u64,
    /// Frames with which something is wrong.
    faults: u64,
    first_fault: Option<Fault>,
    /// What the `sealed` event says against it.
    note: Option<String>,
}

impl ChainReport {
    fn is_whole(&self) -> bool {
        self.faults == 0 && self.note.is_none()
    }
}

/// The result, as `--json` prints it.
#[derive(Debug, Serialize)]
struct Report {
    result: Outcome,
    execution: ExecutionId,
    receipt_from: String,
    receipt_digest: Digest,
    /// Digest of what the stored events fold to.
    replayed_digest: Option<Digest>,
    events: u64,
    frames: u64,
    set_aside: u64,
    closed_seq: Option<u64>,
    last_seq: u64,
    claim: ClaimSource,
    reasons: Vec<String>,
    chains: Vec<ChainReport>,
    fields: Vec<Difference>,
    more_fields: bool,
}

impl Report {
    fn text(&self) -> String {
        let mut out = match self.result {
            Outcome::Same => "same: the receipt follows from its evidence, byte for byte\n".to_owned(),
            Outcome::Different => "different: the receipt does not follow from its evidence\n".to_owned(),
            Outcome::Expired if self.events == 0 => {
                "evidence expired: GH_EVENTS holds no event of the execution any more\n".to_owned()
            }
            Outcome::Expired => {
                "evidence expired: the first events of the execution are not in GH_EVENTS any more\n"
                    .to_owned()
            }
        };
        let _ = writeln!(out, "  execution  {}", self.execution);
        let _ = writeln!(out, "  receipt    {} ({})", self.receipt_digest, self.receipt_from);
        let closed = match self.closed_seq {
            Some(seq) => format!("closed by message {seq}"),
            None => format!("not closed up to message {}", self.last_seq),
        };
        let (events, frames) = (self.events, self.frames);
        let _ = writeln!(out, "  evidence   {events} events, {frames} of them frames, {closed}");
        if self.set_aside > 0 {
            let _ = writeln!(
                out,
                "             {} of them no aggregator folds: see `glasshouse dead list`",
                self.set_aside
            );
        }
        if self.claim == ClaimSource::Receipt {
            out.push_str("             the claim is not in GH_CLAIMS any more: the node that the receipt names is taken\n");
        }
        self.chains.iter().for_each(|chain| chain.write(&mut out, self.result));
        if self.result == Outcome::Expired {
            out.push_str("  a receipt whose events were removed can only be checked by its digest\n");
            return out;
        }
        for reason in &self.reasons {
            let _ = writeln!(out, "  {reason}");
        }
        for Difference { pointer, receipt, evidence } in &self.fields {
            let said = |value: &Option<String>| value.clone().unwrap_or_else(|| "nothing".into());
            let _ = writeln!(
                out,
                "    {pointer}: the receipt says {}, its evidence {}",
                said(receipt),
                said(evidence)
            );
        }
        if self.more_fields {
            out.push_str("    and more fields\n");
        }
        out
    }
}

impl ChainReport {
    fn write(&self, out: &mut String, result: Outcome) {
        let ChainReport { chain: ChainId { vantage, node, epoch }, frames, stored, faults, .. } = self;
        let state = match faults {
            0 => "whole".to_owned(),
            _ => format!("{stored} of them stored"),
        };
        let _ = writeln!(
            out,
            "  chain      {vantage} of {node}, epoch {epoch}: {frames} frames, {state}, head {}",
            self.head
        );
        if let Some(fault) = self.first_fault.as_ref().filter(|_| result != Outcome::Expired) {
            let place = format!("frame {} of {vantage}, epoch {epoch},", fault.seq);
            let said =
                |digest: Option<Digest>| digest.map_or_else(|| "unknown".into(), |digest| digest.to_string());
            let (expected, found) = (said(fault.expected), said(fault.found));
            let at = fault.stream_seq.map(|seq| format!(" (message {seq})")).unwrap_or_default();
            let what = match fault.problem {
                Problem::Missing => format!("is missing: expected digest {expected}, found none"),
                Problem::Altered => format!("is altered: expected digest {expected}, found {found}{at}"),
                Problem::Doubled => {
                    format!("is there twice: expected digest {expected}, found {found} too{at}")
                }
                Problem::Unrooted => {
                    format!("does not begin the chain: it names {found} as the frame before it")
                }
            };
            let more = if *faults > 1 {
                format!("; {} more are missing or altered", faults - 1)
            } else {
                String::new()
            };
            let _ = writeln!(out, "             {place} {what}{more}");
        }
        if let Some(note) = &self.note {
            let _ = writeln!(out, "             {note}");
        }
    }
}
