//! The loop: one message after the other. Events of a range come in the stream's order; messages of the bucket of leases say
//! which ranges these are.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::future::join_all;
use glasshouse_fold::Rejected;
use glasshouse_nats::{
    Bus, Claims, ClosedOutcome, ErrorKind, LeaseChange, Leases, Outcome, Publisher, PublisherOptions,
    StoredMessage,
};
use glasshouse_schema::canonical;
use glasshouse_schema::dead::{DeadKind, DeadLetter};
use glasshouse_schema::ids::{Digest, ExecutionId};
use glasshouse_schema::lifecycle::{Claimed, Closed, ClosedReason, Phase, PhaseName};
use glasshouse_schema::subject::{self, EventSubject, EventSubjectKind};
use glasshouse_schema::{LifecycleEvent, headers, version};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::Instrument;

use crate::assignment::{filters, range_of};
use crate::board::{Board, Heartbeat, Step};
use crate::checkpoint::Restart;
use crate::dead::DeadLetters;
use crate::feed::{Arrival, Feed, Inbox, Reader};
use crate::open::{Executions, Open};
use crate::range::Range;
use crate::retry::{rest, retry};
use crate::trim::{TRIMMER, Trimmer};
use crate::{Config, Error};

/// How often checkpoints are written while events come.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(1);
/// How often a lease is written again, well before the server forgets it.
const RENEW_EVERY: Duration = Duration::from_secs(20);
/// A reader to which nothing came for this long is asked how far the stream is.
const IDLE: Duration = Duration::from_secs(5);
/// How far apart two readers may be to become one: so much is read twice then.
const NEAR: u64 = 4_096;
/// How long what is in hand may take once the worker is to stop; the next one does it again.
const STOP_WITHIN: Duration = Duration::from_secs(5);
/// How many executions of a range are closed for a dead producer between two events.
const DEAD_AT_ONCE: usize = 64;

/// One aggregator.
pub struct Worker {
    bus: Bus,
    name: String,
    producer_grace: Duration,
    failover: Duration,
    publisher: Publisher,
    letters: DeadLetters,
    claims: Claims,
    leases: Leases,
    inbox: Inbox,
    board: Board,
    board_reader: Reader,
    feeds: Vec<Feed>,
    ranges: BTreeMap<u16, Range>,
    trimmer: Trimmer,
    /// Since when the bus has been there without a break: what producers could not say before does not count as silence.
    connected_since: Instant,
}

impl Worker {
    /// Joins the workers of the bus.
    pub async fn start(bus: &Bus, config: &Config) -> Result<Self, Error> {
        let Config { name, producer_grace, failover, replay_window, .. } = config.clone();
        // Found out now: that the streams are there.
        let position = bus.position(glasshouse_nats::EVENTS).await?;
        let leases = Leases::new(bus);
        let mut inbox = Inbox::new();
        let me = format!("{:016x}{:016x}", random_u64(), random_u64());
        let (board, board_reader) = join(&leases, &mut inbox, me, failover).await?;
        tracing::info!(worker = name, last_seq = position.last_seq, "aggregator begins");
        Ok(Self {
            bus: bus.clone(),
            claims: Claims::new(bus),
            publisher: Publisher::new(bus, PublisherOptions::default()),
            letters: DeadLetters::new(bus),
            leases,
            inbox,
            board,
            board_reader,
            feeds: Vec::new(),
            ranges: BTreeMap::new(),
            trimmer: Trimmer::new(replay_window),
            connected_since: Instant::now(),
            name,
            producer_grace,
            failover,
        })
    }

    /// Works until `shutdown` resolves; what is in hand is finished and checkpointed first, unless the bus does not take
    /// it within five seconds: then the next worker begins at the checkpoint before.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<(), Error> {
        let (stop, stopping) = watch::channel(false);
        let name = self.name.clone();
        let mut work = std::pin::pin!(self.work(stopping));
        tokio::select! {
            biased;
            result = &mut work => return result,
            () = shutdown => stop.send_replace(true),
        };
        match tokio::time::timeout(STOP_WITHIN, work).await {
            Ok(result) => result,
            Err(_) => {
                tracing::warn!(
                    worker = name,
                    "aggregator stopped without a checkpoint: the bus does not take it"
                );
                Ok(())
            }
        }
    }

    async fn work(mut self, mut stopping: watch::Receiver<bool>) -> Result<(), Error> {
        loop {
            match self.read_until(&mut stopping).await {
                Err(Error::Bus(error @ glasshouse_nats::Error::Rewound { .. })) => {
                    tracing::warn!(worker = self.name, %error, "beginning anew at the checkpoints");
                    self.rejoin().await?;
                }
                Err(error) => return Err(error),
                Ok(()) => break,
            }
        }
        let open: usize = self.ranges.values().map(|range| range.executions.len()).sum();
        tracing::info!(worker = self.name, open, "aggregator stopped");
        Ok(())
    }

    async fn read_until(&mut self, stopping: &mut watch::Receiver<bool>) -> Result<(), Error> {
        let mut tick = ticks(CHECKPOINT_EVERY);
        let mut beat = ticks(self.failover / 4);
        loop {
            tokio::select! {
                biased;
                () = stopped(stopping) => break,
                _ = beat.tick() => self.beat().await?,
                _ = tick.tick() => {
                    self.checkpoint().await?;
                    self.close_of_dead_producers().await?;
                    self.renew().await?;
                    self.tend_feeds().await?;
                    self.trim().await?;
                }
                next = self.inbox.next() => {
                    let (reader, arrival) = next?;
                    self.take_in(reader, arrival).await?;
                }
            }
        }
        self.checkpoint().await?;
        self.leave().await
    }

    /// Begins at what the buckets and the stream say now, as a new worker would, but under the name that the leases bear.
    async fn rejoin(&mut self) -> Result<(), Error> {
        self.feeds.clear();
        self.ranges.clear();
        (self.board, self.board_reader) = loop {
            match join(&self.leases, &mut self.inbox, self.board.me().to_owned(), self.failover).await {
                Err(Error::Bus(error)) if can_pass(&error) => {
                    tracing::warn!(%error, "the other workers cannot be seen, trying again");
                    rest().await;
                }
                result => break result?,
            }
        };
        self.beat().await
    }

    async fn beat(&mut self) -> Result<(), Error> {
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
    async fn leave(&mut self) -> Result<(), Error> {
        match self.leases.remove(&self.board.worker_key(), self.board.own_revision()).await {
            Err(error) if !can_pass(&error) => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Leases are written again before they are so old that the server removes them.
    async fn renew(&mut self) -> Result<(), Error> {
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

    async fn take_in(
        &mut self,
        reader: u64,
        arrival: Result<Arrival, glasshouse_nats::Error>,
    ) -> Result<(), Error> {
        if reader == self.board_reader.id {
            if let Some(change) = LeaseChange::of(&arrival?.message) {
                self.board.apply(&change);
                self.rebalance().await?;
            }
            return Ok(());
        }
        // What a reader read ahead that is not needed any more.
        let Some(index) = self.feeds.iter().position(|feed| feed.reader.id == reader) else { return Ok(()) };
        match arrival {
            Ok(Arrival { message, pending }) => {
                self.handle(index, &message).await?;
                if let Some(feed) = self.feeds.get_mut(index) {
                    feed.position = message.stream_seq + 1;
                    feed.is_caught_up = pending == Some(0);
                    feed.heard = Instant::now();
                    feed.last = Some(message);
                }
                Ok(())
            }
            Err(error @ glasshouse_nats::Error::Rewound { .. }) => {
                tracing::warn!(worker = self.name, %error, "beginning anew at the checkpoints");
                let feed = self.feeds.swap_remove(index);
                let leases =
                    feed.ranges.iter().filter_map(|range| Some((*range, self.ranges.remove(range)?.lease)));
                let leases = leases.collect();
                self.open(leases).await
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Takes and lets go of ranges until the board has nothing more to say.
    async fn rebalance(&mut self) -> Result<(), Error> {
        let mine = self.ranges.iter().map(|(number, range)| (*number, range.lease)).collect();
        let mut takes = Vec::new();
        for step in self.board.steps(&mine) {
            match step {
                Step::Lost(range) => {
                    tracing::warn!(worker = self.name, range, "another worker took the range");
                    self.forget(range);
                }
                Step::Release(range) => self.release(range).await?,
                Step::Take(range, revision) => takes.push((range, revision)),
                Step::Free(range, revision) => self.free(range, revision).await?,
            }
        }
        if takes.is_empty() {
            return Ok(());
        }
        let (leases, lease) = (&self.leases, self.board.lease()?);
        let written = join_all(takes.into_iter().map(async |(range, expected)| {
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

    /// Checkpoints a range and frees it, so that its next worker can begin at once.
    async fn release(&mut self, number: u16) -> Result<(), Error> {
        self.letters.flush().await?;
        let last =
            self.feeds.iter().find(|feed| feed.ranges.contains(&number)).and_then(|feed| feed.last.clone());
        let Some(range) = self.ranges.get_mut(&number) else { return Ok(()) };
        let written = match &last {
            Some(last) => range.checkpoint(last).await,
            None => Ok(()),
        };
        let lease = range.lease;
        self.forget(number);
        match written {
            // Somebody who had it before was late; whoever takes it next begins at his checkpoint.
            Err(Error::Fenced) => {
                tracing::warn!(worker = self.name, range = number, "another worker wrote the checkpoint")
            }
            Err(Error::Bus(error)) if error.kind() == ErrorKind::Retryable => {
                tracing::warn!(range = number, %error, "range freed without a checkpoint");
            }
            written => written?,
        }
        self.free(number, lease).await
    }

    /// Removes the key of a range that this worker does not work on.
    async fn free(&mut self, range: u16, lease: u64) -> Result<(), Error> {
        match self.leases.remove(&Board::range_key(range), lease).await {
            // The board goes on to show it as ours, and it is freed again.
            Err(error) if can_pass(&error) => tracing::warn!(range, %error, "range not freed now"),
            result => drop(result?),
        }
        tracing::info!(worker = self.name, range, "range freed");
        Ok(())
    }

    fn forget(&mut self, range: u16) {
        self.ranges.remove(&range);
        for feed in &mut self.feeds {
            feed.is_wide |= feed.ranges.remove(&range);
        }
        self.feeds.retain(|feed| !feed.ranges.is_empty());
    }

    /// Begins to work on ranges whose leases were taken under these revisions, at their checkpoints.
    async fn open(&mut self, leases: BTreeMap<u16, u64>) -> Result<(), Error> {
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

    /// A reader of these ranges from a sequence on. `last` was handled before it: a server that was killed can have delivered what
    /// it had not stored, and other events come under these sequences then.
    async fn feed(
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
    async fn tend_feeds(&mut self) -> Result<(), Error> {
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

    /// One worker at a time does it, and two at once do no harm: what nobody needs is removed once.
    async fn trim(&mut self) -> Result<(), Error> {
        if !(self.trimmer.is_due() && self.ranges.contains_key(&TRIMMER) && self.bus.is_connected()) {
            return Ok(());
        }
        match self.trimmer.trim(&self.bus, self.board.now_ns()).await {
            Err(Error::Bus(error)) if can_pass(&error) => tracing::debug!(%error, "events not trimmed now"),
            result => result?,
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
    fn handled_seq(&self, execution: ExecutionId) -> u64 {
        let range = range_of(execution);
        let feed = self.feeds.iter().find(|feed| feed.ranges.contains(&range));
        feed.map_or(0, |feed| feed.position.saturating_sub(1))
    }

    fn executions(&mut self, execution: ExecutionId) -> Option<&mut Executions> {
        self.ranges.get_mut(&range_of(execution)).map(|range| &mut range.executions)
    }

    fn open_mut(&mut self, execution: ExecutionId) -> Option<&mut Open> {
        self.executions(execution)?.get_mut(execution)
    }

    async fn checkpoint(&mut self) -> Result<(), Error> {
        // A dead letter that is not stored must not be passed by: a restart would not write it again.
        self.letters.flush().await?;
        let feeds = &self.feeds;
        let written = join_all(self.ranges.iter_mut().filter_map(|(number, range)| {
            let last = feeds.iter().find(|feed| feed.ranges.contains(number))?.last.as_ref()?;
            Some(async move { (*number, range.checkpoint(last).await) })
        }))
        .await;
        for (range, result) in written {
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

    /// Closes executions of which nothing has come for the grace: their producers are dead.
    async fn close_of_dead_producers(&mut self) -> Result<(), Error> {
        if !self.bus.is_connected() {
            self.connected_since = Instant::now();
            return Ok(());
        }
        let (grace, since) = (self.producer_grace, self.connected_since);
        let silent: Vec<ExecutionId> = self
            .ranges
            .values()
            .flat_map(|range| range.executions.silent(grace, since, DEAD_AT_ONCE))
            .collect();
        for execution in silent {
            // A worker that is behind its stream must not take its own lag for the producer's silence.
            match self.bus.last_event_of(execution).await {
                Ok(last) if last.is_some_and(|last| last > self.handled_seq(execution)) => {
                    if let Some(executions) = self.executions(execution) {
                        executions.is_alive(execution);
                    }
                }
                Ok(_) => {
                    tracing::warn!(execution_id = %execution, ?grace, "nothing comes of the execution any more, closing it");
                    self.close(execution, ClosedReason::ProducerDead).await?;
                }
                Err(error) if can_pass(&error) => {
                    tracing::debug!(execution_id = %execution, %error, "execution not closed now");
                    return Ok(());
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    async fn handle(&mut self, feed: usize, message: &StoredMessage) -> Result<(), Error> {
        let seq = message.stream_seq;
        let subject = match EventSubject::parse(&message.subject) {
            Ok(subject) => subject,
            Err(error) => return self.dead(message, DeadKind::Subject, error.to_string()).await,
        };
        let number = range_of(subject.execution);
        // One that still asks for a range that was lost, and perhaps taken again since: another reader brings its events then, and
        // brings the earlier ones first.
        if !self.feeds.get(feed).is_some_and(|feed| feed.ranges.contains(&number)) {
            return Ok(());
        }
        let Some(range) = self.ranges.get_mut(&number) else { return Ok(()) };
        // A reader that began further back, for another range or to become one of two, comes by here again.
        if seq <= range.position {
            return Ok(());
        }
        if !range.restart.is_handled(seq, subject.execution) {
            match subject.kind {
                EventSubjectKind::Frame(vantage) => self.frame(message, &subject, vantage).await?,
                EventSubjectKind::Lifecycle(phase) => self.lifecycle(message, &subject, phase).await?,
            }
        }
        if let Some(range) = self.ranges.get_mut(&number) {
            range.position = seq;
        }
        Ok(())
    }

    async fn frame(
        &mut self,
        message: &StoredMessage,
        subject: &EventSubject,
        vantage: glasshouse_schema::Vantage,
    ) -> Result<(), Error> {
        let Some(node) = &subject.node else {
            return self.dead(message, DeadKind::Frame, "a frame under no node".into()).await;
        };
        if self.ended_before(subject.execution, message.stream_seq, false).await? {
            return self.dead(message, DeadKind::Frame, Rejected::AfterClose.to_string()).await;
        }
        // Decoded before an execution is opened for it: bytes that are no frame open nothing.
        let Some(executions) = self.executions(subject.execution) else { return Ok(()) };
        let was_open = executions.is_open(subject.execution);
        let open = executions.open(subject.execution, message.stream_seq);
        if let Err(error) = open.fold.frame(&message.payload, Some((node, vantage))) {
            if !was_open {
                executions.drop_unused(subject.execution);
            }
            return self.dead(message, DeadKind::Frame, error.to_string()).await;
        }
        remember_trace(open, message);
        self.close_if_complete(subject.execution).await
    }

    async fn lifecycle(
        &mut self,
        message: &StoredMessage,
        subject: &EventSubject,
        phase: PhaseName,
    ) -> Result<(), Error> {
        let event = match LifecycleEvent::decode(&message.payload) {
            Ok(event) => event,
            Err(error) => return self.dead(message, DeadKind::Lifecycle, error.to_string()).await,
        };
        let names_node = phase == PhaseName::Closed || event.node == subject.node;
        if event.phase.name() != phase || event.execution_id != subject.execution || !names_node {
            let reason = "the event is about something else than its subject says".to_owned();
            return self.dead(message, DeadKind::Lifecycle, reason).await;
        }
        if self.ended_before(subject.execution, message.stream_seq, phase == PhaseName::Requested).await? {
            // `cleaned` comes after the end by nature: it says that the node is tidy and changes no receipt.
            return match phase {
                PhaseName::Cleaned => Ok(()),
                _ => self.dead(message, DeadKind::Lifecycle, Rejected::AfterClose.to_string()).await,
            };
        }
        if let Phase::Claimed(claimed) = &event.phase
            && let Some(reason) = self.claim_problem(subject.execution, claimed).await?
        {
            return self.dead(message, DeadKind::Lifecycle, reason).await;
        }
        let Some(executions) = self.executions(subject.execution) else { return Ok(()) };
        let open = executions.open(subject.execution, message.stream_seq);
        remember_trace(open, message);
        if let Err(error) = open.fold.lifecycle(&event) {
            return self.dead(message, DeadKind::Lifecycle, error.to_string()).await;
        }
        match phase {
            PhaseName::Closed => self.finish(subject.execution, message.stream_seq).await,
            _ => self.close_if_complete(subject.execution).await,
        }
    }

    /// What the bucket of claims says against it: anybody may publish a `claimed` event, but only one node holds the claim, and
    /// the fold takes frames only from that one.
    async fn claim_problem(
        &mut self,
        execution: ExecutionId,
        claimed: &Claimed,
    ) -> Result<Option<String>, Error> {
        let claims = self.claims.clone();
        let held = match retry(|| claims.get(execution)).await {
            Err(Error::Bus(error)) if error.kind() == ErrorKind::Poison => {
                return Ok(Some(format!("the claim that the event speaks of is not usable: {error}")));
            }
            held => held?,
        };
        let is_held = held.is_some_and(|(claim, epoch)| {
            epoch == claimed.epoch && claim.is_none_or(|claim| claim.node == claimed.node)
        });
        Ok((!is_held).then(|| "the node does not hold the claim that the event speaks of".to_owned()))
    }

    /// Whether the execution's `closed` event stands before `seq` in the stream, or stood there: when it was trimmed, the receipt
    /// tells, unless `seq` is what an execution begins with.
    async fn ended_before(
        &mut self,
        execution: ExecutionId,
        seq: u64,
        is_beginning: bool,
    ) -> Result<bool, Error> {
        let Some(executions) = self.executions(execution) else { return Ok(false) };
        if let Some(closed_at) = executions.closed_at(execution) {
            return Ok(closed_at < seq);
        }
        // Only an event that would open an execution late in its life calls for a look-up.
        if executions.is_open(execution) {
            return Ok(false);
        }
        let bus = self.bus.clone();
        let closed_at = match retry(|| bus.closed_at(execution)).await? {
            None if !is_beginning && retry(|| bus.has_receipt(execution)).await? => Some(0),
            closed_at => closed_at,
        };
        match closed_at {
            Some(closed_at) if closed_at < seq => {
                if let Some(executions) = self.executions(execution) {
                    executions.remember_closed(execution, closed_at);
                }
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// Publishes `closed`, once nothing more is expected. The fold ends when the event comes back.
    async fn close_if_complete(&mut self, execution: ExecutionId) -> Result<(), Error> {
        let Some(open) = self.open_mut(execution).filter(|open| !open.is_closing) else {
            return Ok(());
        };
        match open.fold.closing() {
            Some(reason) => self.close(execution, reason).await,
            None => Ok(()),
        }
    }

    async fn close(&mut self, execution: ExecutionId, reason: ClosedReason) -> Result<(), Error> {
        let Some(open) = self.open_mut(execution) else { return Ok(()) };
        open.is_closing = true;
        let traceparent = open.traceparent.clone();
        let event = closed(execution, reason);
        let publisher = self.publisher.clone();
        let unusable = match retry(|| publisher.publish_closed(&event, traceparent.as_deref())).await {
            Ok(ClosedOutcome::AlreadyClosed(stored))
                if stored.execution_id != execution || stored.phase.name() != PhaseName::Closed =>
            {
                "it is about something else than its subject says".to_owned()
            }
            Err(Error::Bus(error)) if error.kind() == ErrorKind::Poison => error.to_string(),
            outcome => {
                tracing::debug!(execution_id = %execution, ?reason, is_first = outcome? == ClosedOutcome::Stored, "execution closed");
                return Ok(());
            }
        };
        // Its place is taken for ever: the execution can have no end and so no receipt, and must not hold up the others.
        tracing::error!(execution_id = %execution, unusable, "the stored `closed` event cannot end the execution, giving it up");
        let seq = self.handled_seq(execution);
        if let Some(executions) = self.executions(execution) {
            executions.close(execution, seq);
        }
        Ok(())
    }

    /// Publishes the receipt of an execution whose `closed` event was just folded.
    async fn finish(&mut self, execution: ExecutionId, seq: u64) -> Result<(), Error> {
        let closed = self.executions(execution).and_then(|executions| executions.close(execution, seq));
        let Some(open) = closed else { return Ok(()) };
        let span = tracing::info_span!("aggregate", execution_id = %execution, worker = self.name, first_seq = open.first_seq, closed_seq = seq);
        if let Some(traceparent) = &open.traceparent {
            glasshouse_telemetry::set_parent(&span, traceparent);
        }
        async {
            let receipt = tracing::info_span!("fold").in_scope(|| open.fold.receipt());
            let Some(receipt) = receipt else {
                tracing::debug!("unprofiled execution ended, no receipt");
                return Ok(());
            };
            let bytes = receipt.encode()?;
            let traceparent = glasshouse_telemetry::current_traceparent().or(open.traceparent);
            let (publisher, name) = (self.publisher.clone(), self.name.clone());
            let publish = || publisher.publish_receipt(execution, &bytes, &name, traceparent.as_deref());
            match retry(publish).await? {
                Outcome::Stored => tracing::info!(completeness = ?receipt.completeness, bytes = bytes.len(), "receipt published"),
                Outcome::AlreadyThere { same: true, .. } => tracing::debug!("receipt was published before"),
                Outcome::AlreadyThere { same: false, stored_digest } => {
                    let ours = Digest::of(&bytes);
                    tracing::error!(%ours, stored = %stored_digest, "another receipt of this execution is stored");
                    let reason = format!("the stored receipt has digest {stored_digest}, this fold gives {ours}");
                    let subject = subject::receipt(execution);
                    let letter = DeadLetter::new(
                        DeadKind::Receipt,
                        reason,
                        &subject,
                        (glasshouse_nats::EVENTS, seq),
                        &bytes,
                        &name,
                    );
                    self.letters.push(letter, traceparent.clone()).await?;
                }
            }
            Ok(())
        }
        .instrument(span)
        .await
    }

    async fn dead(&mut self, message: &StoredMessage, kind: DeadKind, reason: String) -> Result<(), Error> {
        tracing::warn!(
            subject = message.subject,
            stream_seq = message.stream_seq,
            reason,
            "event set aside as a dead letter"
        );
        let position = (message.stream.as_str(), message.stream_seq);
        let letter = DeadLetter::new(kind, reason, &message.subject, position, &message.payload, &self.name);
        self.letters.push(letter, message.header(headers::TRACEPARENT).map(str::to_owned)).await
    }
}

async fn stopped(stopping: &mut watch::Receiver<bool>) {
    // An error says that whoever could ask to stop is gone.
    let _ = stopping.wait_for(|stop| *stop).await;
}

fn ticks(every: Duration) -> tokio::time::Interval {
    let mut ticks = tokio::time::interval(every);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    ticks
}

/// A board that hears of every change from the beginning.
async fn join(
    leases: &Leases,
    inbox: &mut Inbox,
    me: String,
    failover: Duration,
) -> Result<(Board, Reader), Error> {
    let reader = leases.watch().await?;
    Ok((Board::new(me, failover), inbox.read(reader)))
}

fn random_u64() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// Whether it passes by itself; a stream that was restored meanwhile is looked at again.
fn can_pass(error: &glasshouse_nats::Error) -> bool {
    error.kind() == ErrorKind::Retryable || matches!(error, glasshouse_nats::Error::Rewound { .. })
}

/// The trace of an execution is the one of its first event that has any.
fn remember_trace(open: &mut crate::open::Open, message: &StoredMessage) {
    if open.traceparent.is_none() {
        open.traceparent = message.header(headers::TRACEPARENT).map(str::to_owned);
    }
}

fn closed(execution: ExecutionId, reason: ClosedReason) -> LifecycleEvent {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    LifecycleEvent {
        schema_version: version::LIFECYCLE,
        execution_id: execution,
        node: None,
        // Outside of every receipt: when a worker closed it is not a fact about the execution.
        unix_ns: i64::try_from(now.as_nanos()).unwrap_or(i64::MAX),
        phase: Phase::Closed(Closed { reason }),
    }
}
