//! What must hold after every round, whatever happened in it:
//!
//! - every execution that was watched has one receipt, with the bytes that an undisturbed fold gives of what the stream holds
//!   of it up to its `closed` event, or, of what is not in the stream any more, of what its producer reports as accepted;
//! - what a producer reports as accepted is in the receipt, unless the round may lose it (see [`Expect`]);
//! - a receipt is closed if and only if everything that the execution had to say is in it and its producer was not given up before; if
//!   not, it names what is missing;
//! - every receipt has one verdict, and every event that came after the end one dead letter.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use glasshouse_fold::ExecutionFold;
use glasshouse_nats::{Bus, DEAD, EVENTS, Error, ErrorKind, RECEIPTS, StoredMessage, VERDICTS};
use glasshouse_schema::dead::{DeadKind, DeadLetter};
use glasshouse_schema::lifecycle::{Closed, ClosedReason, PhaseName};
use glasshouse_schema::receipt::Completeness;
use glasshouse_schema::subject::{EventSubject, EventSubjectKind};
use glasshouse_schema::{Digest, ExecutionId, LifecycleEvent, Phase, Receipt, Vantage, Verdict};

use crate::common::{self, node};
use crate::script::{Account, Ledger, Said, Shape, event, script};

const COMPLETE_WITHIN: Duration = Duration::from_secs(90);

/// What a round may do to what was accepted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Expect {
    pub(crate) shape: Shape,
    /// Something that a producer took as accepted may be gone: it was killed with messages on their way, its disk was full,
    /// or the store was replaced by an older copy.
    pub(crate) may_lose: bool,
    /// The workers remove what they have folded.
    pub(crate) is_trimmed: bool,
    /// The store was replaced by an older copy: a receipt can be of events that are gone since, and dead letters can be gone.
    pub(crate) is_restored: bool,
}

impl Expect {
    /// Everything arrives.
    pub(crate) const ALL: Self =
        Self { shape: Shape::SMALL, may_lose: false, is_trimmed: false, is_restored: false };
}

/// What the stream holds of an execution.
#[derive(Default)]
struct Record {
    before: Vec<(u64, Said)>,
    closed: Option<LifecycleEvent>,
    after: Vec<(u64, Said)>,
}

impl Record {
    fn is_watched(&self) -> bool {
        self.before.iter().any(|(_, said)| matches!(said.phase(), Some(PhaseName::Profiled) | None))
    }
}

/// What the bus holds.
struct Found {
    records: BTreeMap<ExecutionId, Record>,
    receipts: BTreeSet<ExecutionId>,
    letters: Vec<DeadLetter>,
    verdicts: Vec<Verdict>,
}

/// How a round ended.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    receipts: usize,
    partial: usize,
    letters: usize,
    refused: u64,
    /// Accepted, and neither in the receipt nor a dead letter.
    lost: usize,
    /// Accepted, and a dead letter.
    late: usize,
    /// Executions of which the bus has nothing that could become a receipt.
    traceless: usize,
    settled_after: Duration,
}

impl Tally {
    /// Messages that producers accepted or refused and the bus never got.
    pub(crate) fn missed(&self) -> u64 {
        self.refused + self.lost as u64
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { receipts, partial, letters, refused, lost, late, traceless, settled_after } = self;
        write!(
            f,
            "{receipts} receipts and verdicts, {partial} partial, {traceless} executions without a trace; messages: {refused} \
             refused, {lost} lost, {late} late; {letters} dead letters; settled after {:.1} s",
            settled_after.as_secs_f64()
        )
    }
}

async fn messages(bus: &Bus, stream: &str) -> Result<Vec<StoredMessage>, Error> {
    let mut snapshot = bus.snapshot(stream, Vec::new()).await?;
    let mut messages = Vec::new();
    while let Some(message) = snapshot.next().await? {
        messages.push(message);
    }
    Ok(messages)
}

async fn found(bus: &Bus) -> Result<Found, Error> {
    let mut records = BTreeMap::<ExecutionId, Record>::new();
    for message in messages(bus, EVENTS).await? {
        let subject = EventSubject::parse(&message.subject).unwrap();
        let said = match subject.kind {
            EventSubjectKind::Frame(_) => Said::Frame { bytes: message.payload.to_vec(), is_seal: false },
            EventSubjectKind::Lifecycle(_) => Said::Event(LifecycleEvent::decode(&message.payload).unwrap()),
        };
        let record = records.entry(subject.execution).or_default();
        match (&record.closed, said) {
            (None, Said::Event(event)) if event.phase.name() == PhaseName::Closed => {
                record.closed = Some(event)
            }
            (None, said) => record.before.push((message.stream_seq, said)),
            (Some(_), said) => record.after.push((message.stream_seq, said)),
        }
    }
    let receipts = messages(bus, RECEIPTS).await?;
    let executions =
        receipts.iter().map(|receipt| receipt.subject.rsplit('.').next().unwrap().parse().unwrap());
    let letters = messages(bus, DEAD).await?;
    let verdicts = messages(bus, VERDICTS).await?;
    let found = Found {
        records,
        receipts: executions.collect(),
        letters: letters.iter().map(|letter| serde_json::from_slice(&letter.payload).unwrap()).collect(),
        verdicts: verdicts.iter().map(|verdict| serde_json::from_slice(&verdict.payload).unwrap()).collect(),
    };
    assert_eq!(found.receipts.len(), receipts.len(), "a receipt is there twice");
    Ok(found)
}

impl Found {
    /// What is still to come.
    fn missing(&self, accounts: &BTreeMap<ExecutionId, Account>, expect: Expect) -> Vec<String> {
        let mut missing = Vec::new();
        for (id, record) in &self.records {
            let has_receipt = self.receipts.contains(id);
            if record.closed.is_none() && !expect.is_trimmed {
                let said: Vec<_> = record.before.iter().map(|(seq, said)| (seq, said.phase())).collect();
                missing.push(format!("{id} is open: {said:?}"));
            } else if record.is_watched() && !has_receipt {
                missing.push(format!("{id} is closed and has no receipt"));
            }
        }
        let silent =
            accounts.keys().filter(|id| !self.records.contains_key(id) && !self.receipts.contains(id));
        // With a round that may lose there may be nothing that says that it was.
        missing.extend(silent.filter(|_| !expect.may_lose).map(|id| format!("nothing came of {id}")));
        let judged = self.judged();
        missing.extend(self.receipts.difference(&judged).map(|id| format!("{id} has no verdict")));
        if !expect.is_restored && self.letters.len() < self.late().len() {
            missing.push(format!("{} dead letters of {:?}", self.letters.len(), self.late()));
        }
        missing
    }

    fn judged(&self) -> BTreeSet<ExecutionId> {
        self.verdicts.iter().map(|verdict| verdict.execution_id).collect()
    }

    /// The events that came after the end of their execution. That the node is tidy may be said any time.
    fn late(&self) -> Vec<u64> {
        let after = self.records.values().flat_map(|record| &record.after);
        let late = after.filter(|(_, said)| said.phase() != Some(PhaseName::Cleaned));
        let mut late: Vec<u64> = late.map(|(seq, _)| *seq).collect();
        late.sort_unstable();
        late
    }
}

fn folded<'a>(
    id: ExecutionId,
    said: impl Iterator<Item = &'a Said>,
    closed: &LifecycleEvent,
) -> Option<Vec<u8>> {
    let mut fold = ExecutionFold::new(id);
    for said in said {
        match said {
            Said::Event(event) => fold.lifecycle(event).unwrap(),
            // Of a claim that was set aside no frame is refused: nobody else claims it.
            Said::Frame { bytes, .. } => fold.frame(bytes, Some((&node(), Vantage::Host))).unwrap(),
        }
    }
    fold.lifecycle(closed).unwrap();
    fold.receipt().map(|receipt| receipt.encode().unwrap())
}

/// Waits until everything has come and holds it against what was reported.
pub(crate) async fn verify(bus: &Bus, ledger: Ledger, expect: Expect) -> Tally {
    let accounts = ledger.take();
    let began = Instant::now();
    let found = loop {
        let missing = match found(bus).await {
            Ok(found) => match found.missing(&accounts, expect) {
                missing if missing.is_empty() => break found,
                missing => missing,
            },
            Err(error) if error.kind() == ErrorKind::Retryable => vec![error.to_string()],
            Err(error) => panic!("{error}"),
        };
        if began.elapsed() > COMPLETE_WITHIN {
            println!("ranges by holder: {:?}", common::holders(bus).await);
            panic!("this does not come: {missing:#?}");
        }
        common::pause(200).await;
    };
    let mut tally =
        Tally { receipts: found.receipts.len(), letters: found.letters.len(), ..Tally::default() };
    check_letters(&found, expect);
    let none = (Record::default(), Account::default());
    let executions: BTreeSet<&ExecutionId> = found.records.keys().chain(accounts.keys()).collect();
    for id in executions {
        let record = found.records.get(id).unwrap_or(&none.0);
        let account = accounts.get(id).unwrap_or(&none.1);
        tally.refused += account.refused;
        if let Some(receipt) = receipt(bus, *id).await {
            check_receipt(*id, (record, account), &receipt, &found.letters, expect, &mut tally);
            check_verdict(*id, &receipt, &found.verdicts, expect);
        } else {
            assert!(!record.is_watched() && expect.may_lose, "{id} has no receipt");
            tally.traceless += 1;
        }
    }
    let judged = found.judged();
    assert_eq!(judged.len(), found.verdicts.len(), "an execution has two verdicts");
    // What a policy worker had in hand when the store was replaced can be of a receipt that is gone.
    assert!(
        expect.is_restored || judged == found.receipts,
        "verdicts over {:?}",
        judged.difference(&found.receipts)
    );
    tally
}

async fn receipt(bus: &Bus, id: ExecutionId) -> Option<Vec<u8>> {
    loop {
        match bus.get_receipt(id).await {
            Ok(found) => return found.map(|found| found.body.to_vec()),
            Err(error) if error.kind() == ErrorKind::Retryable => common::pause(50).await,
            Err(error) => panic!("{error}"),
        }
    }
}

fn check_letters(found: &Found, expect: Expect) {
    if expect.is_restored {
        return;
    }
    let mut letters: Vec<u64> = found.letters.iter().map(|letter| letter.stream_seq).collect();
    letters.sort_unstable();
    let alarms = found.letters.iter().filter(|letter| letter.kind == DeadKind::Receipt).map(|letter| {
        let of = |(id, _): &(&ExecutionId, &Record)| letter.subject.ends_with(&id.to_string());
        let held = found.records.iter().find(of).map(|(_, record)| record);
        held.map(|held| held.before.iter().chain(&held.after).map(|(seq, _)| *seq).collect::<Vec<_>>())
    });
    assert_eq!(
        letters,
        found.late(),
        "late events (right) and dead letters: {:#?}; of executions with another receipt the stream holds {:?}",
        found.letters,
        alarms.collect::<Vec<_>>()
    );
}

fn check_receipt(
    id: ExecutionId,
    (record, account): (&Record, &Account),
    bytes: &[u8],
    letters: &[DeadLetter],
    expect: Expect,
    tally: &mut Tally,
) {
    let receipt = Receipt::decode(bytes).unwrap();
    let usual = event(id, Phase::Closed(Closed { reason: ClosedReason::Sealed }));
    // A claim that was taken back by an older copy is not believed. Everything else that is set aside came late.
    let is_aside = |said: &Said| {
        let digest = said.digest();
        expect.is_restored
            && letters.iter().any(|letter| letter.kind != DeadKind::Receipt && letter.body_digest == digest)
    };
    let stored: Vec<&Said> =
        record.before.iter().map(|(_, said)| said).filter(|said| !is_aside(said)).collect();
    let of_stored = folded(id, stored.iter().copied(), record.closed.as_ref().unwrap_or(&usual));
    let of_accepted = folded(id, account.accepted.iter(), &usual);
    let is_of_stored = of_stored.as_deref() == Some(bytes);
    let is_of_accepted = of_accepted.as_deref() == Some(bytes);
    let told: BTreeSet<Digest> = match is_of_stored {
        true => stored.iter().map(|said| said.digest()).collect(),
        false => account.digests(),
    };
    assert!(
        is_of_stored || is_of_accepted && (expect.is_trimmed || expect.is_restored),
        "the receipt of {id} is not that of an undisturbed fold"
    );
    let after: BTreeSet<Digest> = record.after.iter().map(|(_, said)| said.digest()).collect();
    let untold = account.accepted.iter().filter(|said| said.is_evidence() && !told.contains(&said.digest()));
    let (late, lost): (Vec<&Said>, Vec<&Said>) = untold.partition(|said| after.contains(&said.digest()));
    assert!(
        expect.may_lose || lost.is_empty() && late.is_empty(),
        "{id} lost {:?}, and late came {:?}",
        phases(&lost),
        phases(&late)
    );
    let is_sealed = record.closed.as_ref().is_some_and(|closed| closed.phase == usual.phase);
    assert!(
        late.is_empty() || !is_sealed,
        "{id} was closed too early: {:?}",
        late.iter().map(|said| said.phase())
    );
    tally.lost += lost.len();
    tally.late += late.len();
    // The order in which its events came is another one than that in which they were stored.
    let is_same = is_sealed && told == account.digests();
    assert!(!is_same || is_of_accepted, "{id}: what its producer reports gives another receipt");
    let script = script(id, account.epoch, expect.shape);
    let untold: Vec<Option<PhaseName>> = script
        .iter()
        .filter(|said| said.is_evidence() && !told.contains(&said.digest()))
        .map(Said::phase)
        .collect();
    let is_partial = receipt.completeness == Completeness::Partial;
    tally.partial += usize::from(is_partial);
    let reasons = &receipt.coverage.incomplete;
    // The last of it came when a worker had just given the producer up: all is there, and the receipt says that it was given up.
    let given_up = event(id, Phase::Closed(Closed { reason: ClosedReason::ProducerDead })).phase;
    let is_given_up = is_of_stored && record.closed.as_ref().is_some_and(|closed| closed.phase == given_up);
    assert_eq!(
        is_partial,
        is_given_up || !untold.is_empty(),
        "{id}: not told: {untold:?}; the receipt says {reasons:?}"
    );
    for phase in untold {
        let is_named = reasons.iter().any(|why| match phase {
            Some(phase) => why.reason == "lifecycle_missing" && why.detail.contains(phase.as_str()),
            None => ["frames_missing", "chain_broken", "seal_missing"].contains(&why.reason.as_str()),
        });
        assert!(is_named, "{id}: nothing says that {phase:?} is missing: {reasons:?}");
    }
}

fn phases(said: &[&Said]) -> Vec<Option<PhaseName>> {
    said.iter().map(|said| said.phase()).collect()
}

fn check_verdict(id: ExecutionId, receipt: &[u8], verdicts: &[Verdict], expect: Expect) {
    let verdicts: Vec<&Verdict> = verdicts.iter().filter(|verdict| verdict.execution_id == id).collect();
    assert_eq!(verdicts.len(), 1, "{id}: {verdicts:?}");
    let is_about_it = verdicts[0].receipt_digest == Some(Digest::of(receipt));
    assert!(is_about_it || expect.is_restored, "{id}: the verdict is about another receipt");
}
