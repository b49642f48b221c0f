//! A range of partitions that this worker works on.

use std::time::Duration;

use glasshouse_nats::StoredMessage;
use tokio::time::Instant;

use crate::Error;
use crate::checkpoint::Restart;
use crate::open::Executions;

/// How old the checkpoint of a range without events may get: nothing is folded again because of it, but where it begins
/// everything after it is kept.
const REFRESH_EVERY: Duration = Duration::from_secs(5);

pub(crate) struct Range {
    /// The revision under which its lease was taken or renewed last.
    pub(crate) lease: u64,
    /// When that was.
    pub(crate) leased: Instant,
    pub(crate) restart: Restart,
    pub(crate) executions: Executions,
    /// Its last event that was handled.
    pub(crate) position: u64,
    /// The checkpoint would say something else than the last one, though no event came since.
    pub(crate) is_changed: bool,
    written_position: u64,
    written: Instant,
}

impl Range {
    pub(crate) fn new(lease: u64, restart: Restart) -> Self {
        let now = Instant::now();
        Self {
            lease,
            leased: now,
            restart,
            executions: Executions::default(),
            position: 0,
            is_changed: false,
            written_position: 0,
            written: now,
        }
    }

    /// Writes the checkpoint if there is something new; everything of the range up to `last` was handled.
    pub(crate) async fn checkpoint(&mut self, last: &StoredMessage) -> Result<(), Error> {
        let is_new = self.position > self.written_position || self.is_changed;
        // A reader that began again for others has not come to where this range is.
        if last.stream_seq < self.position || !(is_new || self.written.elapsed() >= REFRESH_EVERY) {
            return Ok(());
        }
        self.restart.write(last, self.executions.unfinished()).await?;
        self.written_position = self.position;
        self.is_changed = false;
        self.written = Instant::now();
        Ok(())
    }
}
