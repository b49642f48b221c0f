//! Removing from GH_EVENTS what nobody needs any more. Only who has the first range does it, and nobody else ever removes an
//! event: the stream refuses new ones rather than lose old ones.

use std::time::Duration;

use glasshouse_nats::{Bus, EVENTS, StreamPosition};
use glasshouse_schema::subject::{self, EventSubject};
use tokio::time::Instant;

use crate::Error;
use crate::assignment::{RANGES, range_of};
use crate::checkpoint::Needed;

/// The range whose worker trims.
pub(crate) const TRIMMER: u16 = 0;
const OFTEN: Duration = Duration::from_secs(1);
const SELDOM: Duration = Duration::from_secs(60);
/// How many executions are removed one by one before the worker goes on.
const AT_ONCE: u32 = 128;
/// A stream with less room than this refuses some messages: no message with its headers takes more.
const FULL_WITH: u64 = (1 << 20) + (64 << 10);
/// How long a full stream that nobody writes to and nothing can be removed from is looked at before room is lent.
const STUCK_AFTER: Duration = Duration::from_secs(3);

pub(crate) struct Trimmer {
    window: Duration,
    every: Duration,
    next: Instant,
    /// Where the full stream stood, and since when it stands there.
    standing: Option<(StreamPosition, Instant)>,
}

impl Trimmer {
    /// Keeps what was stored within `window`.
    pub(crate) fn new(window: Duration) -> Self {
        let every = (window / 60).clamp(OFTEN, SELDOM);
        Self { window, every, next: Instant::now() + every, standing: None }
    }

    pub(crate) fn is_due(&self) -> bool {
        self.next <= Instant::now()
    }

    /// Removes what was stored before the window and lies before every event that an open execution needs, as the
    /// checkpoints say. `now_ns` is the server's time.
    pub(crate) async fn trim(&mut self, bus: &Bus, now_ns: i128) -> Result<(), Error> {
        self.next = Instant::now() + self.every;
        let stream = bus.position(EVENTS).await?;
        let has_at_most =
            |share: fn(u64) -> u64| stream.max_bytes.is_none_or(|max| stream.bytes <= share(max));
        let is_crowded = !has_at_most(|max| max / 4 * 3);
        if stream.limit_now != stream.max_bytes
            && has_at_most(|max| max / 8 * 7)
            && bus.take_room_back(EVENTS).await?
        {
            tracing::info!(limit = stream.max_bytes, "the stream of events has its own limit again");
        }
        let mut needed = Vec::new();
        for range in 0..RANGES {
            let next = Needed::read(bus, range, &stream).await?;
            // Nothing to be removed from the front, whatever the others say.
            if next.from <= stream.first_seq && !is_crowded {
                return Ok(());
            }
            needed.push(next);
        }
        let window = i128::try_from(self.window.as_nanos()).unwrap_or(i128::MAX);
        let since = bus.first_since(EVENTS, &stream, now_ns.saturating_sub(window)).await?;
        let needed_from = needed.iter().map(|needed| needed.from).min().unwrap_or(0);
        let before = needed_from.min(since).min(stream.last_seq + 1);
        let removed = if before > stream.first_seq {
            let removed = bus.remove_before(EVENTS, before).await?;
            tracing::info!(before, removed, "events removed that no open execution needs");
            removed
        } else if is_crowded {
            thin(bus, &needed, since).await?
        } else {
            0
        };
        let is_full = stream.limit_now.is_some_and(|limit| stream.bytes + FULL_WITH > limit);
        let holds_open = needed.iter().any(|needed| !needed.open.is_empty());
        match is_full && holds_open && removed == 0 {
            true => self.lend_if_stuck(bus, stream).await,
            false => {
                self.standing = None;
                Ok(())
            }
        }
    }

    /// A full stream of open executions refuses the events that end them, and so keeps them all: it is lent some room.
    async fn lend_if_stuck(&mut self, bus: &Bus, stream: StreamPosition) -> Result<(), Error> {
        self.next = Instant::now() + OFTEN;
        let since = match &self.standing {
            Some((standing, since)) if *standing == stream => *since,
            _ => {
                self.standing = Some((stream, Instant::now()));
                return Ok(());
            }
        };
        if since.elapsed() < STUCK_AFTER {
            return Ok(());
        }
        self.standing = None;
        let lent = bus.lend_room(EVENTS).await;
        if !matches!(lent, Ok(Some(_))) {
            self.next = Instant::now() + SELDOM;
        }
        match lent {
            Ok(Some(limit)) => {
                tracing::warn!(
                    limit,
                    "the stream of events is full of open executions: room is lent for their ends"
                );
            }
            Ok(None) => tracing::error!(
                bytes = stream.bytes,
                "the stream of events is full of open executions, and all that may be lent is: raise its max_bytes"
            ),
            Err(error) => tracing::error!(
                %error,
                "the stream of events is full of open executions and cannot be lent room: raise its max_bytes"
            ),
        }
        Ok(())
    }
}

/// Where an open execution keeps everything behind it, removes those that are over one by one. Else one that stays open would fill
/// the stream, and could not even end: its producer, and who would close it, need room there. The message where a checkpoint ends
/// stays, by which a stream is known.
async fn thin(bus: &Bus, needed: &[Needed], since: u64) -> Result<u64, Error> {
    let handled = needed.iter().map(|needed| needed.handled_seq).min().unwrap_or(0);
    let mut all_closed = bus.snapshot(EVENTS, vec![subject::stored_closed()]).await?;
    let (mut executions, mut removed) = (0, 0);
    while let Some(closed) = all_closed.next().await?
        && closed.stream_seq < handled.min(since)
        && executions < AT_ONCE
    {
        let Ok(EventSubject { execution, .. }) = EventSubject::parse(&closed.subject) else { continue };
        let is_open = |needed: &Needed| needed.open.contains(&execution);
        if needed.get(usize::from(range_of(execution))).is_some_and(|needed| !is_open(needed)) {
            removed += bus.remove_events_of(execution, handled).await?;
            executions += 1;
        }
    }
    if executions > 0 {
        tracing::info!(
            executions,
            removed,
            "executions removed from between open ones: the stream is nearly full"
        );
    }
    Ok(removed)
}
