//! The drain thread: empties the rings, builds the frames, seals.
//!
//! It sleeps on an edge-triggered epoll: the kernel wakes it when much is waiting (`wakeup_bytes`), a timer when little
//! is, and an event descriptor when a command comes. With nothing to watch it sleeps until a command comes.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::mpsc::{Receiver, TryRecvError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use foldhash::fast::RandomState;
use glasshouse_bpf::abi;
use glasshouse_schema::frame::{Cost, Seal, SealTotals};
use glasshouse_schema::redact::Redactor;
use glasshouse_schema::{Class, Digest, EncodedFrame, Event, Fact, Frame, FrameWriter, ProcessKey};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::sync::oneshot;

use crate::ProbeError;
use crate::clock::{boot_ns, thread_cpu_ns};
use crate::decode::{Decoder, Record};
use crate::maps::{Maps, Slot};
use crate::probe::MissedRuns;
use crate::ring::Ring;
use crate::watch::{FrameSink, KernelCounts, SealReport};

/// How long a seal waits for programs that were under way in other CPUs when it was called. They take microseconds.
const SETTLE: Duration = Duration::from_millis(20);
/// Exits remembered to tell a second record of the same exit, see `glasshouse_exit`.
const RECENT_EXITS: usize = 128;

/// What the owner asks of the thread.
pub(crate) enum Command {
    /// Records of this slot are on their way. Sent before the kernel can make any.
    Watch(Box<Watched>),
    /// Send the last frame and answer.
    Seal(Slot, oneshot::Sender<Result<SealReport, ProbeError>>),
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
    pub(crate) decoder: Decoder,
    pub(crate) redactor: Redactor,
    pub(crate) sink: Box<dyn FrameSink>,
    /// The kernel stops its tasks rather than lose a fact.
    pub(crate) lossless: bool,
    pub(crate) missed_before: MissedRuns,
    pub(crate) tally: Tally,
}

/// What the thread counts per execution.
#[derive(Default)]
pub(crate) struct Tally {
    frames: u64,
    head: Option<Digest>,
    /// Facts taken from the rings, per class.
    taken: [u64; 5],
    /// Second records of one exit.
    duplicates: u64,
    alive: HashSet<ProcessKey>,
    recent_exits: VecDeque<ProcessKey>,
    user_cpu_ns: u64,
    batch_records: u64,
}

impl Tally {
    /// Whether this is the second record of one exit; keeps track of who lives.
    fn is_duplicate(&mut self, event: &Event<'_>) -> bool {
        match event.fact {
            Fact::Fork { child } => {
                self.alive.insert(child);
            }
            Fact::Exec { .. } => {
                self.alive.insert(event.process);
            }
            Fact::Exit { .. } => {
                if !self.alive.remove(&event.process) && self.recent_exits.contains(&event.process) {
                    return true;
                }
                if self.recent_exits.len() == RECENT_EXITS {
                    self.recent_exits.pop_front();
                }
                self.recent_exits.push_back(event.process);
            }
            _ => {}
        }
        false
    }

    /// Facts of a class that were taken, or that are in the histogram, or known to be lost.
    fn known(&self, class: usize, counters: &abi::Counters, syscalls: &[u64]) -> u64 {
        let in_histogram = match class == Class::Syscall as usize {
            true => counts_and_denied(syscalls).0.iter().sum::<u64>() + counters.unnumbered_syscalls,
            false => 0,
        };
        self.taken[class] + in_histogram + counters.lost_ring[class] + counters.lost_read[class]
    }

    /// Whether every fact that the kernel counted is known.
    fn accounts_for(&self, counters: &abi::Counters, syscalls: &[u64]) -> bool {
        (0..abi::CLASSES).all(|class| counters.observed[class] == self.known(class, counters, syscalls))
    }
}

/// The two halves of the map's value.
fn counts_and_denied(syscalls: &[u64]) -> (&[u64], &[u64]) {
    syscalls.split_at(syscalls.len() / 2)
}

/// Sends a frame and notes where the chain stands.
fn send(tally: &mut Tally, sink: &mut dyn FrameSink, frame: EncodedFrame) {
    tally.frames += 1;
    tally.head = Some(frame.digest);
    sink.frame(frame);
}

impl Watched {
    fn record(&mut self, record: &Record<'_>) {
        let (class, facts) = (record.class(), record.facts());
        let Self { writer, decoder, redactor, sink, tally, .. } = self;
        tally.taken[class as usize] += facts;
        tally.batch_records += 1;
        let untold = decoder.decode(record, redactor, |event, count| {
            if tally.is_duplicate(event) {
                tally.duplicates += 1;
            } else if let Some(frame) = writer.push_counted(event, count) {
                send(tally, sink.as_mut(), frame);
            }
        });
        writer.count_lost(class, untold.unwrap_or(facts));
    }

    /// Sends the last frames. `missed` is what [`MissedRuns`] grew by while this was watched.
    fn seal(
        self,
        counters: &abi::Counters,
        syscalls: &[u64],
        missed: MissedRuns,
        recorded: bool,
    ) -> SealReport {
        let (counts, denied) = counts_and_denied(syscalls);
        let mut named = by_name(counts);
        if counters.unnumbered_syscalls > 0 {
            named.push(("unknown".to_owned(), counters.unnumbered_syscalls));
        }
        let seal = Seal {
            syscalls: named,
            denied: by_name(denied),
            escaped_tasks: counters.escaped,
            blind_spots: blind_spots(counters, self.tally.alive.len() as u64, missed, recorded),
            redactions: self.redactor.counts(),
            cost: Cost {
                user_cpu_ns: self.tally.user_cpu_ns,
                frame_bytes: self.writer.frame_bytes(),
                kernel_ns: counters.sampled_ns.saturating_mul(abi::SAMPLING),
                kernel_samples: counters.samples,
            },
        };
        let totals = totals(counters, missed, self.tally.duplicates);
        let unexplained = (0..abi::CLASSES)
            .map(|class| counters.observed[class].saturating_sub(self.tally.known(class, counters, syscalls)))
            .sum();
        // The writer is consumed, and the rest is still needed to send what it gives.
        let Self { writer, mut sink, mut tally, .. } = self;
        let mut totals_in_seal = glasshouse_schema::Counters::default();
        let mut sealed = seal.clone();
        for frame in writer.seal(totals, seal) {
            if let (true, Ok(last)) = (frame.is_seal, Frame::decode(&frame.bytes)) {
                totals_in_seal = last.header.counters;
                sealed = last.seal.unwrap_or(sealed);
            }
            send(&mut tally, sink.as_mut(), frame);
        }
        SealReport {
            counters: totals_in_seal,
            seal: sealed,
            frames: tally.frames,
            head: tally.head.unwrap_or(Digest::ZERO),
            recorded,
            unexplained,
            still_alive: tally.alive.len() as u64,
            kernel: KernelCounts { raw: *counters, missed_runs: missed },
        }
    }
}

/// Per class: what happened and what of it the kernel side lost.
fn totals(counters: &abi::Counters, missed: MissedRuns, duplicates: u64) -> SealTotals {
    let [process, syscall, cgroup, signal] = missed.unwrap_or_default();
    // A system call program that could not run may have missed a fact of any of its classes.
    let missed = [process, syscall, syscall, syscall, syscall + cgroup + signal];
    let mut totals = SealTotals::default();
    for (class, missed) in missed.into_iter().enumerate() {
        // A cgroup or process that is not followed, and a run that was missed, stand for at least one fact each.
        let unseen = counters.lost_map[class] + missed;
        totals.observed[class] = counters.observed[class] + unseen;
        totals.lost[class] = counters.lost_ring[class] + counters.lost_read[class] + unseen;
    }
    // Not a fact of its own.
    totals.observed[Class::Process as usize] -= duplicates.min(totals.observed[Class::Process as usize]);
    totals
}

fn by_name(counts: &[u64]) -> Vec<(String, u64)> {
    counts
        .iter()
        .enumerate()
        .filter(|(_, count)| **count > 0)
        .map(|(number, count)| {
            let name = syscalls::Sysno::new(number)
                .map_or_else(|| format!("syscall_{number}"), |known| known.name().to_owned());
            (name, *count)
        })
        .collect()
}

/// Calls that pass beside the hooks, by `enum gh_bypass`.
const BYPASSES: [&str; abi::BYPASSES] = [
    "io_uring_setup calls",
    "io_uring_enter calls",
    "io_uring_register calls",
    "open_by_handle_at calls",
    "pidfd_getfd calls",
    "process_vm_writev calls",
    "ptrace calls",
    "io_submit calls",
];

/// What was seen to pass beside the hooks; any of it makes a receipt partial.
fn blind_spots(
    counters: &abi::Counters,
    still_alive: u64,
    missed: MissedRuns,
    recorded: bool,
) -> Vec<String> {
    let counted = [
        ("compat syscalls", counters.compat_syscalls),
        ("connects to other address families", counters.other_family_connects),
        ("paths seen from another root or mount namespace", counters.other_root_paths),
        ("processes that came into the cgroup from outside", counters.joined),
        ("processes alive at the seal", still_alive),
    ];
    let mut spots: Vec<String> = counted
        .into_iter()
        .chain(BYPASSES.into_iter().zip(counters.bypasses))
        .filter(|(_, count)| *count > 0)
        .map(|(what, count)| format!("{what}: {count}"))
        .collect();
    if missed.is_none() {
        spots.push("runs that the probe's programs missed are not known".to_owned());
    }
    // A root that stayed and never executed anything had nothing to record: its command could not be executed.
    if !recorded && counters.escaped + counters.joined > 0 {
        spots.push("the root's exec was not seen".to_owned());
    }
    spots
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
    watched: HashMap<u32, Box<Watched>, RandomState>,
    /// Records of slots that nobody watches any more.
    strays: u64,
}

impl Drain {
    /// Prepares the thread: the rings are registered to wake it.
    pub(crate) fn new(
        process: (Ring, BorrowedFd<'_>),
        activity: (Ring, BorrowedFd<'_>),
        maps: Arc<Mutex<Maps>>,
        missed: Arc<dyn Fn() -> MissedRuns + Send + Sync>,
        commands: Receiver<Command>,
        interval: Duration,
    ) -> Result<Self, ProbeError> {
        let failed =
            |step| move |errno: nix::Error| ProbeError::Ring { step, source: io::Error::from(errno) };
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(failed("epoll_create"))?;
        let wake =
            EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).map_err(failed("eventfd"))?;
        // Edge-triggered: a ring that merely holds something does not wake the thread, the kernel's wake-up does.
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
        for fd in [process.1, activity.1, wake.as_fd()] {
            epoll.add(fd, EpollEvent::new(flags, 0)).map_err(failed("epoll_ctl"))?;
        }
        Ok(Self {
            process_ring: process.0,
            activity_ring: activity.0,
            maps,
            missed,
            commands,
            interval,
            epoll,
            wake: Arc::new(wake),
            watched: HashMap::default(),
            strays: 0,
        })
    }

    /// What wakes the thread after a command was sent.
    pub(crate) fn waker(&self) -> Arc<EventFd> {
        Arc::clone(&self.wake)
    }

    /// Runs until [`Command::Stop`] or until nobody can send commands any more.
    pub(crate) fn run(mut self) {
        let mut pending = VecDeque::new();
        loop {
            let mut stop = self.receive(&mut pending);
            while let Some(command) = pending.pop_front() {
                match command {
                    Command::Watch(watched) => self.begin(watched),
                    Command::Seal(slot, reply) => {
                        // Nobody waits any more when the owner gave up: the execution is unwatched all the same.
                        let _ = reply.send(self.seal(slot, &mut pending));
                    }
                    Command::Drop(slot) => self.forget(slot),
                    Command::Stop => stop = true,
                }
            }
            if stop {
                break;
            }
            let until = self.producer_positions();
            self.drain(until, &mut pending);
            self.flush_old();
            if self.watched.values().any(|of| of.lossless) && self.has_room() {
                self.go_on(None);
            }
            if pending.is_empty() {
                self.wait();
            }
        }
        // The programs stay for as long as somebody holds a watch, and nobody would let their tasks go on.
        let slots: Vec<Slot> = self.watched.values().filter(|of| of.lossless).map(|of| of.slot).collect();
        for slot in slots {
            let _ = self.maps().stop(slot);
        }
        std::thread::sleep(SETTLE);
        self.go_on(None);
        if self.strays > 0 {
            tracing::debug!(records = self.strays, "records came after their execution was sealed");
        }
    }

    /// Takes all commands that were sent; true when the thread is to end.
    fn receive(&mut self, pending: &mut VecDeque<Command>) -> bool {
        loop {
            match self.commands.try_recv() {
                Ok(Command::Watch(watched)) => self.begin(watched),
                Ok(command) => pending.push_back(command),
                Err(TryRecvError::Empty) => return false,
                Err(TryRecvError::Disconnected) => return true,
            }
        }
    }

    fn begin(&mut self, watched: Box<Watched>) {
        self.watched.insert(watched.slot.index, watched);
    }

    fn wait(&self) {
        let timeout = match self.watched.is_empty() {
            true => EpollTimeout::NONE,
            false => EpollTimeout::try_from(self.interval).unwrap_or(EpollTimeout::from(10u8)),
        };
        let mut events = [EpollEvent::empty(); 3];
        // Interrupted or not, the loop looks at everything.
        let _ = self.epoll.wait(&mut events, timeout);
        let _ = self.wake.read();
    }

    fn producer_positions(&self) -> (u64, u64) {
        (self.process_ring.producer_position(), self.activity_ring.producer_position())
    }

    fn reached(&self, until: (u64, u64)) -> bool {
        self.process_ring.position() >= until.0 && self.activity_ring.position() >= until.1
    }

    /// Empties both rings up to these positions.
    fn drain(&mut self, until: (u64, u64), pending: &mut VecDeque<Command>) {
        let before = thread_cpu_ns();
        let mut records = 0;
        let Self { process_ring, activity_ring, watched, strays, commands, .. } = self;
        let mut take = |bytes: &[u8]| {
            let Some(record) = Record::parse(bytes) else {
                *strays += 1;
                return;
            };
            let slot = Slot { index: record.header.slot, generation: record.header.generation };
            if watched.get(&slot.index).is_none_or(|of| of.slot != slot) {
                // Its command was sent before its cgroup was armed, so it is here if there is one.
                while let Ok(command) = commands.try_recv() {
                    match command {
                        Command::Watch(new) => {
                            watched.insert(new.slot.index, new);
                        }
                        command => pending.push_back(command),
                    }
                }
            }
            match watched.get_mut(&slot.index).filter(|of| of.slot == slot) {
                Some(of) => {
                    records += 1;
                    of.record(&record);
                }
                None => *strays += 1,
            }
        };
        process_ring.drain(until.0, &mut take);
        activity_ring.drain(until.1, &mut take);
        if records == 0 {
            return;
        }
        let spent = thread_cpu_ns().saturating_sub(before);
        for of in self.watched.values_mut() {
            of.tally.user_cpu_ns += spent * std::mem::take(&mut of.tally.batch_records) / records;
        }
    }

    fn flush_old(&mut self) {
        let now = boot_ns();
        for of in self.watched.values_mut() {
            if let Some(frame) = of.writer.flush_if_older(now) {
                send(&mut of.tally, of.sink.as_mut(), frame);
            }
        }
    }

    /// Far from where the kernel stops tasks, see `emit()` in `bpf/probe/common.h`.
    fn has_room(&self) -> bool {
        self.process_ring.waiting() < self.process_ring.bytes() / 8
            && self.activity_ring.waiting() < self.activity_ring.bytes() / 8
    }

    /// Lets the tasks go on that were stopped for want of room.
    fn go_on(&self, of: Option<Slot>) {
        let stopped = self.maps().take_stopped(of);
        for tgid in stopped {
            if let Ok(tgid) = i32::try_from(tgid) {
                // One that is gone needs nothing.
                let _ = kill(Pid::from_raw(tgid), Signal::SIGCONT);
            }
        }
    }

    fn maps(&self) -> MutexGuard<'_, Maps> {
        // The maps hold no invariant that a panic elsewhere could have broken.
        self.maps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stops the recording, drains to where the producers stand then, and sends the last frame.
    fn seal(&mut self, slot: Slot, pending: &mut VecDeque<Command>) -> Result<SealReport, ProbeError> {
        let Some((cgroup_id, lossless)) =
            self.watched.get(&slot.index).filter(|of| of.slot == slot).map(|of| (of.cgroup_id, of.lossless))
        else {
            return Err(ProbeError::Stopped);
        };
        let recorded = self.maps().stop(slot);
        // Else nobody is stopped, and to look for them all takes as long as all the rest.
        let go_on = |drain: &Self| {
            if lossless {
                drain.go_on(Some(slot))
            }
        };
        go_on(self);
        let deadline = Instant::now() + SETTLE;
        let mut until = self.producer_positions();
        let (counters, syscalls) = loop {
            self.drain(until, pending);
            let counters = self.maps().counters(slot);
            let syscalls = self.maps().syscalls(slot);
            let settled = match (&counters, &syscalls, self.watched.get(&slot.index)) {
                (Ok(counters), Ok(syscalls), Some(of)) => {
                    self.reached(until) && of.tally.accounts_for(counters, syscalls.as_slice())
                }
                _ => true,
            };
            if settled || Instant::now() >= deadline {
                break (counters, syscalls);
            }
            // A program on another CPU had begun before the recording stopped: its record is about to come.
            std::thread::yield_now();
            until = self.producer_positions();
        };
        // Whoever was just telling may have been stopped since.
        go_on(self);
        let missed_now = (self.missed)();
        let Some(of) = self.watched.remove(&slot.index) else {
            return Err(ProbeError::Stopped);
        };
        // One that came from outside was never seen to begin.
        let joined = counters.as_ref().is_ok_and(|counters| counters.joined > 0);
        self.maps().remove(slot, cgroup_id, joined || !of.tally.alive.is_empty());
        let (recorded, counters, syscalls) = (recorded?, counters?, syscalls?);
        let missed = missed_now
            .zip(of.missed_before)
            .map(|(now, before)| std::array::from_fn(|of_kind| now[of_kind].saturating_sub(before[of_kind])));
        Ok(of.seal(&counters, syscalls.as_slice(), missed, recorded))
    }

    fn forget(&mut self, slot: Slot) {
        if self.watched.get(&slot.index).is_some_and(|of| of.slot == slot)
            && let Some(of) = self.watched.remove(&slot.index)
        {
            self.maps().remove(slot, of.cgroup_id, true);
            if of.lossless {
                self.go_on(Some(slot));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use glasshouse_bpf::abi::Abi;

    fn counters() -> abi::Counters {
        abi::Counters::read(&[0; size_of::<abi::Counters>()]).unwrap()
    }

    #[test]
    fn what_passed_beside_the_hooks_is_named() {
        let none = Some([0; 4]);
        assert!(blind_spots(&counters(), 0, none, true).is_empty());
        let mut counted = counters();
        counted.bypasses[abi::BYPASSES - 1] = 2;
        counted.other_root_paths = 3;
        assert_eq!(
            blind_spots(&counted, 1, none, true),
            [
                "paths seen from another root or mount namespace: 3",
                "processes alive at the seal: 1",
                "io_submit calls: 2"
            ]
        );
    }

    #[test]
    fn missed_runs_that_could_not_be_read_are_not_none() {
        assert_eq!(blind_spots(&counters(), 0, None, true).len(), 1);
        assert_eq!(totals(&counters(), Some([1, 2, 3, 4]), 0).lost, [1, 2, 2, 2, 9]);
    }

    #[test]
    fn a_root_that_never_executed_is_named_only_if_it_went_or_somebody_came() {
        let none = Some([0; 4]);
        assert!(blind_spots(&counters(), 0, none, false).is_empty());
        let escaped = abi::Counters { escaped: 1, ..counters() };
        assert_eq!(blind_spots(&escaped, 0, none, false), ["the root's exec was not seen"]);
    }

    #[test]
    fn calls_are_accounted_for_by_the_histogram() {
        let mut syscalls = [0; 2 * abi::SYSCALLS];
        (syscalls[0], syscalls[abi::SYSCALLS]) = (3, 1);
        let mut counted = counters();
        counted.observed[Class::Syscall as usize] = 5;
        counted.unnumbered_syscalls = 1;
        assert!(!Tally::default().accounts_for(&counted, &syscalls));
        counted.lost_read[Class::Syscall as usize] = 1;
        assert!(Tally::default().accounts_for(&counted, &syscalls));
    }
}
