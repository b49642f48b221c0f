//! Where a range is begun after a restart, by this worker or another.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{BuildHasher, Hasher, RandomState};

use glasshouse_nats::{Bus, Checkpoint, CheckpointPut, Checkpoints, StoredMessage, StreamPosition};
use glasshouse_schema::ids::{Digest, ExecutionId};
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::retry::retry;

const VERSION: u32 = 4;

/// The key of a range in the bucket of checkpoints.
fn key_of(range: u16) -> String {
    format!("aggregator.{range}")
}

/// What is stored of a range, as MessagePack with names. Nothing of the fold itself: the events are still there, so an open
/// execution is folded again from its first one. An entry is the sixteen bytes of an id and a number, whatever the execution did
/// and for however long; ids are random, so compressing them gains nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Stored {
    version: u32,
    /// Who wrote it: one run of one worker.
    writer: String,
    /// When the stream was made: the sequences of another stream mean nothing.
    stream_created_unix_ns: String,
    /// Everything up to this sequence was handled, but for what the open executions still need.
    handled_seq: u64,
    /// Tells the message there from another that came under its sequence after the stream was restored.
    handled_fingerprint: Digest,
    /// The first event of the oldest open execution, or what comes after `handled_seq`.
    restart_seq: u64,
    /// Executions that are open, or of which something was still asked: of the events between the two sequences only theirs are
    /// folded again. With each, which event claimed it, as the bucket of claims confirmed; 0 if none did.
    open: BTreeMap<Id, u64>,
}

/// An execution as sixteen bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Id(#[serde(with = "serde_bytes")] [u8; 16]);

/// The executions of a checkpoint, and which event claimed each.
fn ids(open: BTreeMap<Id, u64>) -> impl Iterator<Item = (ExecutionId, u64)> {
    open.into_iter().filter_map(|(id, claimed)| Some((ExecutionId::from_bytes(id.0).ok()?, claimed)))
}

impl Stored {
    fn read(bytes: &[u8]) -> Result<Self, String> {
        // An older one was JSON.
        match rmp_serde::from_slice::<Self>(bytes) {
            Ok(stored) if stored.version == VERSION => Ok(stored),
            Ok(stored) => Err(format!("its version is {}, not {VERSION}", stored.version)),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// An execution that a restart folds again.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Unfinished {
    pub(crate) execution: ExecutionId,
    /// Its first event.
    pub(crate) first_seq: u64,
    /// The event that claimed it, once that was confirmed; else 0.
    pub(crate) claimed_seq: u64,
}

/// The checkpoint of a range. Written by compare-and-set on the one that was read or written last: whoever has the range now
/// has written it since, so that a worker which lost the range without noticing is refused.
pub(crate) struct Restart {
    store: Checkpoints,
    key: String,
    writer: String,
    stored: Checkpoint,
    stream_created_unix_ns: i128,
    handled_seq: u64,
    /// Each with the event that claimed it.
    open: HashMap<ExecutionId, u64>,
    /// The last bytes written, so that an unchanged state is not written again.
    written: Vec<u8>,
}

impl Restart {
    /// Reads the checkpoint of a range and gives the sequence with which to begin.
    pub(crate) async fn read(
        bus: &Bus,
        name: &str,
        range: u16,
        stream: &StreamPosition,
    ) -> Result<(Self, u64), Error> {
        let (store, key) = (Checkpoints::new(bus), key_of(range));
        let stored = retry(|| store.get(&key)).await?;
        let parsed = stored.bytes.as_ref().and_then(|bytes| match Stored::read(bytes) {
            Ok(parsed) => Some(parsed),
            Err(error) => {
                tracing::warn!(error, "checkpoint unreadable, beginning anew");
                None
            }
        });
        let fits = match parsed {
            None => None,
            Some(parsed) => match misfit(bus, &parsed, stream).await? {
                None => Some(parsed),
                Some(why) => {
                    tracing::warn!(
                        handled_seq = parsed.handled_seq,
                        why,
                        "stream is not the checkpoint's, beginning anew"
                    );
                    None
                }
            },
        };
        let start = fits.as_ref().map_or(1, |fits| fits.restart_seq);
        let handled_seq = fits.as_ref().map_or(0, |fits| fits.handled_seq);
        let open = fits.map_or_else(HashMap::new, |fits| ids(fits.open).collect());
        let created = stream.created_unix_ns;
        let writer = format!("{name} {:016x}", RandomState::new().build_hasher().finish());
        let restart = Self {
            store,
            key,
            writer,
            stored,
            stream_created_unix_ns: created,
            handled_seq,
            open,
            written: Vec::new(),
        };
        Ok((restart, start))
    }

    /// Whether an event was handled in an earlier life and no open execution needs it.
    pub(crate) fn is_handled(&self, seq: u64, execution: ExecutionId) -> bool {
        seq <= self.handled_seq && !self.open.contains_key(&execution)
    }

    /// Whether an event is of an execution that was surely open in an earlier life, and one of those that are read again. Where no claim
    /// was confirmed, the checkpoint may speak of events that waited for the answer whether it was closed before.
    pub(crate) fn was_open(&self, seq: u64, execution: ExecutionId) -> bool {
        seq <= self.handled_seq && self.open.get(&execution).is_some_and(|claimed| *claimed > 0)
    }

    /// Whether an earlier life asked the bucket of claims about this `claimed` event and found it right: a claim never changes.
    pub(crate) fn is_confirmed(&self, seq: u64, execution: ExecutionId) -> bool {
        self.open.get(&execution).is_some_and(|claimed| *claimed == seq)
    }

    /// Writes where to begin next time; of `open`, an execution may come twice.
    pub(crate) async fn write(
        &mut self,
        handled: &StoredMessage,
        open: impl Iterator<Item = Unfinished>,
    ) -> Result<(), Error> {
        // Until the events of the last life are read again, the executions among them that are still to come count as
        // open too.
        let handled_seq = handled.stream_seq;
        if handled_seq < self.handled_seq {
            return Ok(());
        }
        let mut executions = BTreeMap::new();
        let mut restart_seq = handled_seq + 1;
        for Unfinished { execution, first_seq, claimed_seq } in open {
            let claimed: &mut u64 = executions.entry(Id(*execution.as_bytes())).or_default();
            *claimed = claimed_seq.max(*claimed);
            restart_seq = restart_seq.min(first_seq);
        }
        let stored = Stored {
            version: VERSION,
            writer: self.writer.clone(),
            stream_created_unix_ns: self.stream_created_unix_ns.to_string(),
            handled_seq,
            handled_fingerprint: handled.fingerprint(),
            restart_seq,
            open: executions,
        };
        let bytes = rmp_serde::to_vec_named(&stored)?;
        if bytes == self.written {
            return Ok(());
        }
        loop {
            match self.store.put(&self.key, &bytes, &self.stored).await? {
                CheckpointPut::Stored(stored) => {
                    self.stored = stored;
                    self.written = bytes;
                    return Ok(());
                }
                // Ours, and only its acknowledgement was lost.
                CheckpointPut::Conflict(found)
                    if found.revision > self.stored.revision && self.is_ours(&found) =>
                {
                    self.stored = found;
                }
                // Somebody removed it, or the bucket was restored from an older copy: nobody else wrote.
                CheckpointPut::Conflict(found)
                    if found.revision <= self.stored.revision || found.bytes.is_none() =>
                {
                    let found = format!(
                        "its revision is {}, and {} was written",
                        found.revision, self.stored.revision
                    );
                    let stream = format!("{}/{}", glasshouse_nats::CHECKPOINTS, self.key);
                    return Err(glasshouse_nats::Error::Rewound { stream, found }.into());
                }
                CheckpointPut::Conflict(_) => return Err(Error::Fenced),
            }
        }
    }

    fn is_ours(&self, found: &Checkpoint) -> bool {
        let parsed = found.bytes.as_ref().and_then(|bytes| Stored::read(bytes).ok());
        parsed.is_some_and(|parsed| parsed.writer == self.writer)
    }
}

/// What a range may still need.
pub(crate) struct Needed {
    /// Everything from this event on: all of it, if the checkpoint does not say.
    pub(crate) from: u64,
    /// Everything up to this event was handled.
    pub(crate) handled_seq: u64,
    /// Of the events before, those of these executions are needed too.
    pub(crate) open: HashSet<ExecutionId>,
}

impl Needed {
    pub(crate) async fn read(bus: &Bus, range: u16, stream: &StreamPosition) -> Result<Self, Error> {
        let stored = Checkpoints::new(bus).get(&key_of(range)).await?;
        let parsed = stored.bytes.and_then(|bytes| Stored::read(&bytes).ok());
        let fits = parsed.filter(|parsed| {
            parsed.stream_created_unix_ns == stream.created_unix_ns.to_string()
                && parsed.handled_seq <= stream.last_seq
        });
        Ok(match fits {
            None => Self { from: 0, handled_seq: 0, open: HashSet::new() },
            Some(Stored { restart_seq, handled_seq, open, .. }) => {
                Self { from: restart_seq, handled_seq, open: ids(open).map(|(id, _)| id).collect() }
            }
        })
    }
}

/// Why the stream is not the one that the checkpoint is about. One that was restored from an older copy may have grown past
/// the checkpoint again: what came later came anew, under sequences that look handled.
async fn misfit(bus: &Bus, stored: &Stored, stream: &StreamPosition) -> Result<Option<String>, Error> {
    if stored.stream_created_unix_ns != stream.created_unix_ns.to_string() {
        return Ok(Some("it was created at another time".into()));
    }
    if stored.handled_seq > stream.last_seq {
        return Ok(Some(format!("its last message is {}", stream.last_seq)));
    }
    // Trimmed: no restore makes the oldest sequence grow.
    if stored.handled_seq < stream.first_seq {
        return Ok(None);
    }
    let found = retry(|| bus.message(glasshouse_nats::EVENTS, stored.handled_seq)).await?;
    Ok(match found {
        Some(found) if found.fingerprint() == stored.handled_fingerprint => None,
        Some(_) => Some("another message stands where the checkpoint ends".into()),
        None => Some("the message where the checkpoint ends is missing".into()),
    })
}
