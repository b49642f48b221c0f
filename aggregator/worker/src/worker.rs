//! The loop: events of a range come in the stream's order, answers to what was asked aside as they come, and messages of the
//! bucket of leases say which ranges these are.

use std::collections::BTreeMap;
use std::future::Future;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

use glasshouse_nats::{Bus, Claims, ErrorKind, LeaseChange, Leases, Publisher, PublisherOptions};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::board::Board;
use crate::dead::DeadLetters;
use crate::feed::{Arrival, Feed, Inbox, Reader};
use crate::jobs::Jobs;
use crate::producers::Producers;
use crate::range::Range;
use crate::retry::rest;
use crate::trim::{TRIMMER, Trimmer};
use crate::{Config, Error};

/// How often checkpoints are written while events come.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(1);
/// How long what is in hand may take once the worker is to stop; the next one does it again.
const STOP_WITHIN: Duration = Duration::from_secs(5);
/// After a change of the board, how long others are waited for: ranges that are freed together are taken together, and read by one
/// reader.
const SETTLE: Duration = Duration::from_millis(30);
/// How many bytes of events may wait for answers before no more events are taken.
const MAX_WAITING_BYTES: usize = 32 << 20;

/// One aggregator.
pub struct Worker {
    pub(crate) bus: Bus,
    pub(crate) name: String,
    pub(crate) failover: Duration,
    pub(crate) publisher: Publisher,
    pub(crate) letters: DeadLetters,
    pub(crate) claims: Claims,
    pub(crate) leases: Leases,
    pub(crate) inbox: Inbox,
    pub(crate) board: Board,
    pub(crate) board_reader: Reader,
    pub(crate) feeds: Vec<Feed>,
    /// Calls whose answers are still to come.
    pub(crate) jobs: Jobs,
    pub(crate) ranges: BTreeMap<u16, Range>,
    pub(crate) trimmer: Trimmer,
    pub(crate) producers: Producers,
    /// When to do what the board says.
    pub(crate) rebalance_at: Option<Instant>,
    /// Since when the bus has been there without a break: what producers could not say before does not count as silence.
    pub(crate) connected_since: Instant,
}

impl Worker {
    /// Joins the workers of the bus.
    pub async fn start(bus: &Bus, config: &Config) -> Result<Self, Error> {
        let Config { name, producer_grace, heartbeat_grace, failover, replay_window, .. } = config.clone();
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
            jobs: Jobs::default(),
            ranges: BTreeMap::new(),
            rebalance_at: None,
            trimmer: Trimmer::new(replay_window),
            producers: Producers::new(bus, producer_grace, heartbeat_grace),
            connected_since: Instant::now(),
            name,
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
            let has_room = self.has_room();
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
                () = at(self.rebalance_at) => {
                    self.rebalance_at = None;
                    self.rebalance().await?;
                }
                Some(done) = self.jobs.next() => self.answered(done?).await?,
                () = self.inbox.arrives(), if has_room => self.take_in_some().await?,
            }
        }
        while let Some(done) = self.jobs.next().await {
            self.answered(done?).await?;
        }
        self.checkpoint().await?;
        self.leave().await
    }

    /// Whether one more event may be taken.
    fn has_room(&self) -> bool {
        let waiting = || self.ranges.values().map(|range| range.executions.waiting_bytes()).sum::<usize>();
        self.jobs.is_empty() || !self.jobs.is_full() && waiting() < MAX_WAITING_BYTES
    }

    /// Handles what has arrived, and looks for nothing else in between.
    async fn take_in_some(&mut self) -> Result<(), Error> {
        while self.has_room()
            && let Some((reader, arrival)) = self.inbox.pop()
        {
            self.take_in(reader, arrival).await?;
        }
        Ok(())
    }

    /// Begins at what the buckets and the stream say now, as a new worker would, but under the name that the leases bear.
    async fn rejoin(&mut self) -> Result<(), Error> {
        self.feeds.clear();
        self.ranges.clear();
        self.jobs = Jobs::default();
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

    async fn take_in(
        &mut self,
        reader: u64,
        arrival: Result<Arrival, glasshouse_nats::Error>,
    ) -> Result<(), Error> {
        if reader == self.board_reader.id {
            if let Some(change) = LeaseChange::of(&arrival?.message) {
                self.board.apply(&change);
                self.rebalance_at.get_or_insert_with(|| Instant::now() + SETTLE);
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
}

/// Never, if there is no moment.
async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
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
pub(crate) fn can_pass(error: &glasshouse_nats::Error) -> bool {
    error.kind() == ErrorKind::Retryable || matches!(error, glasshouse_nats::Error::Rewound { .. })
}
