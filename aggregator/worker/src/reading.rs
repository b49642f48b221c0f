//! The readers of the stream: as few as can be. What reads too much is narrowed, what lies idle is brought forward, and those that
//! are near each other become one.

use std::collections::BTreeSet;
use std::time::Duration;

use glasshouse_nats::StoredMessage;
use glasshouse_schema::ids::ExecutionId;
use tokio::time::Instant;

use crate::Error;
use crate::assignment::{filters, range_of};
use crate::feed::Feed;
use crate::retry::retry;
use crate::worker::{Worker, can_pass};

/// A reader to which nothing came for this long is asked how far the stream is.
const IDLE: Duration = Duration::from_secs(5);
/// How far apart two readers may be to become one: so much is read twice then.
const NEAR: u64 = 4_096;

impl Worker {
    /// A reader of these ranges from a sequence on. `last` was handled before it: a server that was killed can have delivered what
    /// it had not stored, and other events come under these sequences then.
    pub(crate) async fn feed(
        &mut self,
        ranges: BTreeSet<u16>,
        position: u64,
        last: Option<StoredMessage>,
    ) -> Result<Feed, Error> {
        let (bus, subjects) = (self.bus.clone(), filters(&ranges));
        let reader = retry(|| bus.events_after(last.as_ref(), position, subjects.clone())).await?;
        tracing::debug!(
            ?ranges,
            position,
            pending = reader.pending(),
            last_seq = last.as_ref().map(|last| last.stream_seq),
            "reading"
        );
        Ok(Feed {
            is_caught_up: reader.pending() == Some(0),
            reader: self.inbox.read(reader),
            ranges,
            is_wide: false,
            position,
            last,
            heard: Instant::now(),
        })
    }

    /// Brings forward what lies idle, narrows what reads too much, and makes one reader of those that are near each other.
    pub(crate) async fn tend_feeds(&mut self) -> Result<(), Error> {
        if !self.bus.is_connected() {
            return Ok(());
        }
        let is_split = self.feeds.len() > 1;
        for index in 0..self.feeds.len() {
            if let Err(error) = self.bring_forward(index, is_split).await {
                match error {
                    Error::Bus(error) if can_pass(&error) => tracing::debug!(%error, "stream not asked now"),
                    error => return Err(error),
                }
            }
        }
        let positions = || self.feeds.iter().map(|feed| feed.position);
        let (first, last) = (positions().min().unwrap_or(0), positions().max().unwrap_or(0));
        if is_split && last - first <= NEAR {
            let feeds = std::mem::take(&mut self.feeds);
            let furthest_back =
                feeds.iter().min_by_key(|feed| feed.position).and_then(|feed| feed.last.clone());
            let ranges = feeds.iter().flat_map(|feed| feed.ranges.iter().copied()).collect();
            drop(feeds);
            let merged = self.feed(ranges, first, furthest_back).await?;
            self.feeds.push(merged);
            return Ok(());
        }
        for index in 0..self.feeds.len() {
            if let Some(Feed { is_wide: true, ranges, position, last, .. }) = self.feeds.get(index) {
                let (ranges, position, last) = (ranges.clone(), *position, last.clone());
                let narrow = self.feed(ranges, position, last).await?;
                if let Some(feed) = self.feeds.get_mut(index) {
                    *feed = narrow;
                }
            }
        }
        Ok(())
    }

    /// A reader without events does not learn how far the stream is: if nothing of its ranges is waiting up to where the
    /// stream is now, it is there.
    async fn bring_forward(&mut self, index: usize, is_split: bool) -> Result<(), Error> {
        let Some(feed) = self.feeds.get_mut(index) else { return Ok(()) };
        if !(feed.is_caught_up && is_split || feed.heard.elapsed() >= IDLE) {
            return Ok(());
        }
        feed.heard = Instant::now();
        let head = self.bus.position(glasshouse_nats::EVENTS).await?.last_seq;
        if head < feed.position {
            return Ok(());
        }
        let subjects = filters(&feed.ranges);
        let reader = self.bus.events_after(feed.last.as_ref(), feed.position, subjects).await?;
        if reader.pending() != Some(0) {
            tracing::debug!(ranges = ?feed.ranges, position = feed.position, head, pending = reader.pending(), "not there yet");
            return Ok(());
        }
        if let Some(message) = self.bus.message(glasshouse_nats::EVENTS, head).await? {
            feed.position = head + 1;
            feed.last = Some(message);
        }
        Ok(())
    }

    /// Of which event everything up to it was handled, as far as an execution is concerned.
    pub(crate) fn handled_seq(&self, execution: ExecutionId) -> u64 {
        let range = range_of(execution);
        let feed = self.feeds.iter().find(|feed| feed.ranges.contains(&range));
        feed.map_or(0, |feed| feed.position.saturating_sub(1))
    }
}
