//! Removing from GH_EVENTS what nobody needs any more. Only who has the first range does it, and nobody else ever removes an
//! event: the stream refuses new ones rather than lose old ones.

use std::time::Duration;

use glasshouse_nats::{Bus, EVENTS};
use tokio::time::Instant;

use crate::Error;
use crate::assignment::RANGES;
use crate::checkpoint::needed_from;

/// The range whose worker trims.
pub(crate) const TRIMMER: u16 = 0;
const OFTEN: Duration = Duration::from_secs(1);
const SELDOM: Duration = Duration::from_secs(60);

pub(crate) struct Trimmer {
    window: Duration,
    every: Duration,
    next: Instant,
}

impl Trimmer {
    /// Keeps what was stored within `window`.
    pub(crate) fn new(window: Duration) -> Self {
        let every = (window / 60).clamp(OFTEN, SELDOM);
        Self { window, every, next: Instant::now() + every }
    }

    pub(crate) fn is_due(&self) -> bool {
        self.next <= Instant::now()
    }

    /// Removes what was stored before the window and lies before every event that an open execution needs, as the
    /// checkpoints say. `now_ns` is the server's time.
    pub(crate) async fn trim(&mut self, bus: &Bus, now_ns: i128) -> Result<(), Error> {
        self.next = Instant::now() + self.every;
        let stream = bus.position(EVENTS).await?;
        let mut needed = stream.last_seq + 1;
        for range in 0..RANGES {
            needed = needed.min(needed_from(bus, range, &stream).await?);
            // Nothing to be removed, whatever the others say.
            if needed <= stream.first_seq {
                return Ok(());
            }
        }
        let window = i128::try_from(self.window.as_nanos()).unwrap_or(i128::MAX);
        let since = bus.first_since(EVENTS, &stream, now_ns.saturating_sub(window)).await?;
        let before = needed.min(since);
        if before > stream.first_seq {
            let removed = bus.remove_before(EVENTS, before).await?;
            tracing::info!(before, removed, "events removed that no open execution needs");
        }
        Ok(())
    }
}
