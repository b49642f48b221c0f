//! The drain thread: empties the rings, builds the frames, seals.
//!
//! It sleeps on an edge-triggered epoll: the kernel wakes it when much is waiting (`wakeup_bytes`), a timer when little
//! is, and an event descriptor when a command comes. With nothing to watch it sleeps until a command comes.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::mpsc::{Receiver, Sender, TryRecvError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use glasshouse_bpf::abi;
use glasshouse_schema::frame::{Cost, Seal, SealTotals};
use glasshouse_schema::redact::Redactor;
use glasshouse_schema::{Class, Digest, EncodedFrame, Event, Fact, FrameWriter, ProcessKey};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::time::{ClockId, clock_gettime};

use crate::decode::{Decoder, Record};
use crate::maps::{Maps, Slot};
use crate::probe::MissedRuns;
use crate::ring::Ring;
use crate::watch::{FrameSink, KernelCounts, SealReport};
use crate::ProbeError;

/// How long a seal waits for programs that were under way in other CPUs when it was called. They take microseconds.
const SETTLE: Duration = Duration::from_millis(20);
/// Exits remembered to tell a second record of the same exit, see `glasshouse_exit`.
const RECENT_EXITS: usize = 128;

/// What the owner asks of the thread.
pub(crate) enum Command {
    /// Records of this slot are on their way. Sent before the kernel can make any.
    Watch(Box<Watched>),
    /// Send the last frame and answer.
    Seal(Slot, Sender<Result<SealReport, ProbeError>>),
    /// Forget it, without a seal.
    Drop(Slot),
    /// End.
    Stop,
}

/// An execution, as the drain thread keeps it.
pub(crate) struct Watched {
    pub(crate) slot: Slot,
    pub(crate) cgroup_id: u64,
    pub(crate) writer: FrameWriter,
    pub(crate) redactor: Redactor,
    pub(crate) sink: Box<dyn FrameSink>,
    pub(crate) missed_before: MissedRuns,
    pub(crate) tally: Tally,
}

/// What the thread counts per execution.
#[derive(Default)]
pub(crate) struct Tally {
    frames: u64,
    head: Option<Digest>,
    /// Records taken from the rings, per class.
    taken: [u64; 5],
    /// Second records of one exit.
    duplicates: u64,
    alive: HashSet<ProcessKey>,
    recent_exits: VecDeque<ProcessKey>,
    user_cpu_ns: u64,
    batch_records: u64,
}

impl Watched {
    fn send(&mut self, frame: EncodedFrame) {
        self.tally.frames += 1;
        self.tally.head = Some(frame.digest);
        self.sink.frame(frame);
    }

    /// Whether this is the second record of one exit; keeps track of who lives.
    fn is_duplicate(&mut self, event: &Event<'_>) -> bool {
        match event.fact {
            Fact::Fork { child } => {
                self.tally.alive.insert(child);
            }
            Fact::Exec { .. } => {
                self.tally.alive.insert(event.process);
            }
            Fact::Exit { .. } => {
                if !self.tally.alive.remove(&event.process)
                    && self.tally.recent_exits.contains(&event.process)
                {
                    return true;
                }
                if self.tally.recent_exits.len() == RECENT_EXITS {
                    self.tally.recent_exits.pop_front();
                }
                self.tally.recent_exits.push_back(event.process);
            }
            _ => {}
        }
        false
    }

    fn record(&mut self, decoder: &mut Decoder, record: &Record<'_>) {
        let class = record.class();
        self.tally.taken[class as usize] += 1;
        self.tally.batch_records += 1;
        // The redactor is used while the event is built and the rest of self when it is handed on.
        let mut redactor = std::mem::replace(&mut self.redactor, Redactor::clone(&NO_REDACTOR.with(Clone::clone)));
        let full = decoder.decode(record, &mut redactor, |event| {
            if self.is_duplicate(event) {
                self.tally.duplicates += 1;
                None
            } else {
                self.writer.push(event)
            }
        });
        self.redactor = redactor;
        match full {
            Some(Some(frame)) => self.send(frame),
            Some(None) => {}
            None => self.writer.count_lost(class, 1),
        }
    }
}

/// The thread's state.
pub(crate) struct Drain {
    pub(crate) process_ring: Ring,
    pub(crate) activity_ring: Ring,
    pub(crate) maps: Arc<Mutex<Maps>>,
    pub(crate) missed: Arc<dyn Fn() -> MissedRuns + Send + Sync>,
    pub(crate) commands: Receiver<Command>,
    pub(crate) interval: Duration,
    pub(crate) epoll: Epoll,
    pub(crate) wake: Arc<EventFd>,
    watched: HashMap<u32, Box<Watched>>,
    decoder: Decoder,
    /// Records of slots that nobody watches any more.
    strays: u64,
}
