//! Where a worker begins after a restart.

use std::collections::HashSet;

use glasshouse_nats::{Checkpoint, CheckpointPut, Checkpoints, StreamPosition, StreamStart};
use glasshouse_schema::ids::ExecutionId;
use serde::{Deserialize, Serialize};

use crate::Error;

/// The key in the bucket of checkpoints.
const KEY: &str = "aggregator";
const VERSION: u32 = 1;

/// What is stored. Nothing of the fold itself: the events are still there, so an open execution is folded again from
/// its first one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Stored {
    version: u32,
    /// When the stream was made: the sequences of another stream mean nothing.
    stream_created_unix_ns: String,
    /// Everything up to this sequence was handled, but for what the open executions still need.
    handled_seq: u64,
    /// The first event of the oldest open execution, or what comes after `handled_seq`.
    restart_seq: u64,
    /// Executions that are open: of the events between the two sequences only theirs are folded again.
    open: Vec<ExecutionId>,
}

/// The checkpoint of this worker.
pub(crate) struct Restart {
    store: Checkpoints,
    stored: Checkpoint,
    stream_created_unix_ns: i128,
    handled_seq: u64,
    open: HashSet<ExecutionId>,
    /// The last bytes written, so that an unchanged state is not written again.
    written: Vec<u8>,
}

impl Restart {
    /// Reads the checkpoint and gives where to begin.
    pub(crate) async fn read(
        store: Checkpoints,
        stream: &StreamPosition,
    ) -> Result<(Self, StreamStart), Error> {
        let stored = store.get(KEY).await?;
        let parsed = stored.bytes.as_ref().and_then(|bytes| match serde_json::from_slice::<Stored>(bytes) {
            Ok(parsed) if parsed.version == VERSION => Some(parsed),
            Ok(parsed) => {
                tracing::warn!(version = parsed.version, "checkpoint of another version, beginning anew");
                None
            }
            Err(error) => {
                tracing::warn!(%error, "checkpoint unreadable, beginning anew");
                None
            }
        });
        let fits = parsed.filter(|parsed| {
            let is_same = parsed.stream_created_unix_ns == stream.created_unix_ns.to_string();
            // A stream that is behind its checkpoint was restored from an older copy: what came later came anew.
            let fits = is_same && parsed.handled_seq <= stream.last_seq;
            if !fits {
                tracing::warn!(
                    is_same,
                    handled_seq = parsed.handled_seq,
                    "stream is not the checkpoint's, beginning anew"
                );
            }
            fits
        });
        let start = fits.as_ref().map_or(StreamStart::Oldest, |fits| StreamStart::Sequence(fits.restart_seq));
        let (handled_seq, open) =
            fits.map_or((0, HashSet::new()), |fits| (fits.handled_seq, fits.open.into_iter().collect()));
        let created = stream.created_unix_ns;
        let restart =
            Self { store, stored, stream_created_unix_ns: created, handled_seq, open, written: Vec::new() };
        Ok((restart, start))
    }

    /// Whether an event was handled in an earlier life and no open execution needs it.
    pub(crate) fn is_handled(&self, seq: u64, execution: ExecutionId) -> bool {
        seq <= self.handled_seq && !self.open.contains(&execution)
    }

    /// Writes where to begin next time: `open` gives each open execution with its first sequence.
    pub(crate) async fn write(
        &mut self,
        handled_seq: u64,
        open: impl Iterator<Item = (ExecutionId, u64)>,
    ) -> Result<(), Error> {
        // Until the events of the last life are read again, the executions among them that are still to come count as
        // open too.
        if handled_seq < self.handled_seq {
            return Ok(());
        }
        let mut executions = Vec::new();
        let mut restart_seq = handled_seq + 1;
        for (execution, first_seq) in open {
            executions.push(execution);
            restart_seq = restart_seq.min(first_seq);
        }
        executions.sort();
        let stored = Stored {
            version: VERSION,
            stream_created_unix_ns: self.stream_created_unix_ns.to_string(),
            handled_seq,
            restart_seq,
            open: executions,
        };
        let bytes = glasshouse_schema::canonical::to_vec(&stored)?;
        if bytes == self.written {
            return Ok(());
        }
        match self.store.put(KEY, &bytes, &self.stored).await? {
            CheckpointPut::Stored(stored) => self.stored = stored,
            CheckpointPut::Conflict(_) => return Err(Error::NotAlone),
        }
        self.written = bytes;
        Ok(())
    }
}
