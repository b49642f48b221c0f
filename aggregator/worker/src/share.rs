//! Which ranges this worker works on: it says that it is alive, takes what is its, lets go of what is another's, and writes
//! the checkpoints at which the next one begins.

use std::collections::BTreeMap;

use futures::future::join_all;
use glasshouse_nats::ErrorKind;
use glasshouse_schema::canonical;
use tokio::time::Instant;

use crate::Error;
use crate::board::{Board, Heartbeat, Step};
use crate::checkpoint::Restart;
use crate::range::Range;
use crate::retry::retry;
use crate::worker::{Worker, can_pass};

/// How often a lease is written again, well before the server forgets it.
const RENEW_EVERY: std::time::Duration = std::time::Duration::from_secs(20);

impl Worker {
    pub(crate) async fn beat(&mut self) -> Result<(), Error> {
        if !self.bus.is_connected() {
            return Ok(());
        }
        let bytes = canonical::to_vec(&Heartbeat { name: self.name.clone() })?;
        match self.leases.put(&self.board.worker_key(), bytes.into(), self.board.own_revision()).await {
            Ok(Some(revision)) => self.board.wrote(revision),
            // The server removed it because of its age; the board will say under which revision.
            Ok(None) => tracing::debug!(worker = self.name, "heartbeat not stored, trying again"),
            Err(error) if can_pass(&error) => {
                tracing::debug!(worker = self.name, %error, "heartbeat not stored")
            }
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// Says that the ranges are free. Without it the others find out by the missing heartbeats.
    pub(crate) async fn leave(&mut self) -> Result<(), Error> {
        match self.leases.remove(&self.board.worker_key(), self.board.own_revision()).await {
            Err(error) if !can_pass(&error) => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Leases are written again before they are so old that the server removes them.
    pub(crate) async fn renew(&mut self) -> Result<(), Error> {
        if !self.bus.is_connected() {
            return Ok(());
        }
        let (leases, lease) = (&self.leases, self.board.lease()?);
        let old = self.ranges.iter_mut().filter(|(_, range)| range.leased.elapsed() >= RENEW_EVERY);
        let renewed = join_all(old.map(async |(number, range)| {
            if let Some(revision) = leases.put(&Board::range_key(*number), lease.clone(), range.lease).await?
            {
                range.lease = revision;
            }
            // Refused: somebody took it, and the board is about to say so.
            range.leased = Instant::now();
            Ok::<_, glasshouse_nats::Error>(())
        }))
        .await;
        for result in renewed {
            match result {
                Err(error) if can_pass(&error) => tracing::debug!(%error, "lease not renewed now"),
                result => result?,
            }
        }
        Ok(())
    }

    /// Takes and lets go of ranges until the board has nothing more to say.
    pub(crate) async fn rebalance(&mut self) -> Result<(), Error> {
        let mine = self.ranges.iter().map(|(number, range)| (*number, range.lease)).collect();
        let (mut takes, mut releases, mut frees) = (Vec::new(), Vec::new(), Vec::new());
        for step in self.board.steps(&mine) {
            match step {
                Step::Lost(range) => {
                    tracing::warn!(worker = self.name, range, "another worker took the range");
                    self.forget(range);
                }
                Step::Release(range) => releases.push(range),
                Step::Take(range, revision) => takes.push((range, revision)),
                Step::Free(range, revision) => frees.push((range, revision)),
            }
        }
        frees.extend(self.release(releases).await?);
        self.free(frees).await?;
        self.take(takes).await
    }

    async fn take(&mut self, ranges: Vec<(u16, u64)>) -> Result<(), Error> {
        if ranges.is_empty() {
            return Ok(());
        }
        let (leases, lease) = (&self.leases, self.board.lease()?);
        let written = join_all(ranges.into_iter().map(async |(range, expected)| {
            Ok::<_, glasshouse_nats::Error>(
                leases
                    .put(&Board::range_key(range), lease.clone(), expected)
                    .await?
                    .map(|revision| (range, revision)),
            )
        }))
        .await;
        let mut taken = BTreeMap::new();
        for result in written {
            match result {
                // Refused: somebody was faster, and the board will say who.
                Ok(lease) => taken.extend(lease),
                // Taken or not, the board will say so, and after the next heartbeat it is tried again.
                Err(error) if can_pass(&error) => tracing::warn!(%error, "range not taken now"),
                Err(error) => return Err(error.into()),
            }
        }
        if taken.is_empty() {
            return Ok(());
        }
        tracing::info!(
            worker = self.name,
            taken = taken.len(),
            workers = self.board.workers(),
            "ranges taken"
        );
        self.open(taken).await
    }

    /// Checkpoints ranges, so that their next worker can begin at once, and stops to work on them. Gives what is to be freed.
    async fn release(&mut self, ranges: Vec<u16>) -> Result<Vec<(u16, u64)>, Error> {
        if ranges.is_empty() {
            return Ok(Vec::new());
        }
        let mut written = self.write_checkpoints(|number| ranges.contains(&number)).await?;
        let mut freed = Vec::new();
        for range in ranges {
            let Some(lease) = self.ranges.get(&range).map(|range| range.lease) else { continue };
            self.forget(range);
            freed.push((range, lease));
            match written.remove(&range) {
                // Somebody who had it before was late; whoever takes it next begins at his checkpoint.
                Some(Err(Error::Fenced)) => {
                    tracing::warn!(worker = self.name, range, "another worker wrote the checkpoint")
                }
                Some(Err(Error::Bus(error))) if error.kind() == ErrorKind::Retryable => {
                    tracing::warn!(range, %error, "range freed without a checkpoint");
                }
                Some(written) => written?,
                None => {}
            }
        }
        Ok(freed)
    }

    /// Removes the keys of ranges that this worker does not work on.
    async fn free(&mut self, ranges: Vec<(u16, u64)>) -> Result<(), Error> {
        let leases = &self.leases;
        let removed = join_all(
            ranges
                .into_iter()
                .map(async |(range, lease)| (range, leases.remove(&Board::range_key(range), lease).await)),
        )
        .await;
        for (range, result) in removed {
            match result {
                // The board goes on to show it as ours, and it is freed again.
                Err(error) if can_pass(&error) => tracing::warn!(range, %error, "range not freed now"),
                result => drop(result?),
            }
            tracing::info!(worker = self.name, range, "range freed");
        }
        Ok(())
    }

    pub(crate) fn forget(&mut self, range: u16) {
        self.ranges.remove(&range);
        for feed in &mut self.feeds {
            feed.is_wide |= feed.ranges.remove(&range);
        }
        self.feeds.retain(|feed| !feed.ranges.is_empty());
    }

    /// Begins to work on ranges whose leases were taken under these revisions, at their checkpoints.
    pub(crate) async fn open(&mut self, leases: BTreeMap<u16, u64>) -> Result<(), Error> {
        if leases.is_empty() {
            return Ok(());
        }
        let bus = self.bus.clone();
        let stream = retry(|| bus.position(glasshouse_nats::EVENTS)).await?;
        let (bus, name) = (&self.bus, &self.name);
        let read = join_all(leases.iter().map(async |(number, lease)| {
            let (restart, start) = Restart::read(bus, name, *number, &stream).await?;
            Ok::<_, Error>((*number, Range::new(*lease, restart), start))
        }))
        .await;
        let mut position = u64::MAX;
        for result in read {
            let (number, range, start) = result?;
            position = position.min(start);
            self.ranges.insert(number, range);
        }
        let feed = self.feed(leases.into_keys().collect(), position, None).await?;
        self.feeds.push(feed);
        Ok(())
    }

    pub(crate) async fn checkpoint(&mut self) -> Result<(), Error> {
        for (range, result) in self.write_checkpoints(|_| true).await? {
            match result {
                Err(Error::Bus(error)) if error.kind() == ErrorKind::Retryable => {
                    tracing::warn!(range, %error, "checkpoint postponed");
                }
                // This worker was stopped or cut off, and the board is about to say so. Should it still be the one to have the
                // range, it takes it again and begins at the other's checkpoint.
                Err(Error::Fenced) => {
                    tracing::warn!(worker = self.name, range, "another worker has the range");
                    self.forget(range);
                }
                result => result?,
            }
        }
        Ok(())
    }

    async fn write_checkpoints(
        &mut self,
        is_wanted: impl Fn(u16) -> bool,
    ) -> Result<BTreeMap<u16, Result<(), Error>>, Error> {
        // A dead letter that is not stored must not be passed by: a restart would not write it again.
        self.letters.flush().await?;
        let feeds = &self.feeds;
        let wanted = self.ranges.iter_mut().filter(|(number, _)| is_wanted(**number));
        let written = join_all(wanted.filter_map(|(number, range)| {
            let last = feeds.iter().find(|feed| feed.ranges.contains(number))?.last.as_ref()?;
            Some(async move { (*number, range.checkpoint(last).await) })
        }));
        Ok(written.await.into_iter().collect())
    }
}
