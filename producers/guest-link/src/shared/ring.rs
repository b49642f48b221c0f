//! One ring: bytes from a writer to a reader.

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use super::RING_BYTES;
use super::bell::Bell;
use super::memory::Memory;

/// How long a writer waits before it looks for room again: at first, and at most.
const PAUSES: [Duration; 2] = [Duration::from_millis(1), Duration::from_millis(16)];

/// Where the parts of a ring are in the shared memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    /// How much was ever written; the writer's.
    pub(super) head: usize,
    /// How much of it was taken; the reader's.
    pub(super) tail: usize,
    /// 1 while the reader waits for the bell, or is about to.
    pub(super) sleep: usize,
    /// The bytes.
    pub(super) bytes: usize,
}

/// What one end of a ring knows.
#[derive(Debug)]
struct Ring<B> {
    memory: Arc<Memory>,
    place: Place,
    bell: B,
    /// Head and tail: one's own, and the other's when it was read last. It is never behind, nor further ahead than the ring is long.
    head: u64,
    tail: u64,
}

impl<B: Bell> Ring<B> {
    /// Bytes that were written and not taken.
    fn filled(&self) -> usize {
        // Both were held against each other when they were read.
        (self.head - self.tail) as usize
    }

    /// Takes what the other end says that it has come to.
    fn check(before: u64, now: u64, least: u64, most: u64) -> io::Result<u64> {
        match now >= before && (least..=most).contains(&now) {
            true => Ok(now),
            false => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!(
                    "a counter of the shared memory went from {before} to {now}, outside of {least} to {most}"
                ),
            )),
        }
    }

    /// The bytes that begin with the count `from`, as two places: the ring's end is between them.
    fn pieces(&self, from: u64, length: usize) -> [(usize, usize); 2] {
        let at = (from % RING_BYTES as u64) as usize;
        let first = length.min(RING_BYTES - at);
        [(self.place.bytes + at, first), (self.place.bytes, length - first)]
    }
}

/// Reads what comes through a ring. Ends when the other end is gone and what it left was read.
#[derive(Debug)]
pub struct Reader<B> {
    ring: Ring<B>,
    /// Bytes taken since it was last looked whether the other end is gone.
    unlooked: usize,
    /// It is gone, and this much is to be read yet. Whoever can write to the memory still may go on, and is not heard.
    left: Option<usize>,
}

impl<B: Bell> Reader<B> {
    pub(super) fn new(memory: Arc<Memory>, place: Place, bell: B) -> Self {
        let ring = Ring { memory, place, bell, head: 0, tail: 0 };
        Self { ring, unlooked: 0, left: None }
    }

    /// Looks how much there is.
    fn look(&mut self) -> io::Result<usize> {
        let ring = &mut self.ring;
        let head = ring.memory.load(ring.place.head)?;
        let most = ring.tail.saturating_add(RING_BYTES as u64);
        ring.head = Ring::<B>::check(ring.head, head, ring.tail, most)?;
        Ok(ring.filled())
    }

    /// Looks for the last time.
    fn end(&mut self) -> io::Result<usize> {
        let left = self.look()?;
        self.left = Some(left);
        Ok(left)
    }

    /// Waits until there is something; 0 when nothing will come.
    fn wait(&mut self) -> io::Result<usize> {
        if let Some(left) = self.left {
            return Ok(left);
        }
        // A ring that is never empty would hide it.
        if self.unlooked >= RING_BYTES {
            self.unlooked = 0;
            if self.ring.bell.is_gone_within(Duration::ZERO)? {
                return self.end();
            }
        }
        match self.look()? {
            0 => self.sleep(),
            there => Ok(there),
        }
    }

    /// Waits for the bell, until there is something.
    fn sleep(&mut self) -> io::Result<usize> {
        let (sleep, mut woken) = (self.ring.place.sleep, None);
        loop {
            self.ring.memory.store(sleep, 1)?;
            // The writer has the same fence between its head and this.
            fence(Ordering::SeqCst);
            let mut there = self.look()?;
            if there == 0 {
                if !self.ring.bell.hear()? {
                    return self.end();
                }
                there = self.look()?;
            }
            self.ring.memory.store(sleep, 0)?;
            if there > 0 {
                return Ok(there);
            }
            // One that rings and writes nothing is as silent as one that does neither.
            let since = *woken.get_or_insert_with(Instant::now);
            let [patience, _] = self.ring.bell.patience()?;
            if patience.is_some_and(|patience| since.elapsed() > patience) {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
    }
}

impl<B: Bell> Read for Reader<B> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if into.is_empty() {
            return Ok(0);
        }
        let length = self.wait()?.min(into.len());
        let ring = &mut self.ring;
        let mut rest = &mut into[..length];
        for (at, piece) in ring.pieces(ring.tail, length) {
            let (now, after) = rest.split_at_mut(piece);
            ring.memory.read(at, now)?;
            rest = after;
        }
        ring.tail += length as u64;
        ring.memory.store(ring.place.tail, ring.tail)?;
        self.unlooked = self.unlooked.saturating_add(length);
        self.left = self.left.map(|left| left - length);
        Ok(length)
    }
}

/// Writes to a ring, and rings if the other end sleeps.
#[derive(Debug)]
pub struct Writer<B> {
    ring: Ring<B>,
}

impl<B: Bell> Writer<B> {
    pub(super) fn new(memory: Arc<Memory>, place: Place, bell: B) -> Self {
        Self { ring: Ring { memory, place, bell, head: 0, tail: 0 } }
    }

    /// Looks how much room there is.
    fn look(&mut self) -> io::Result<usize> {
        let ring = &mut self.ring;
        let tail = ring.memory.load(ring.place.tail)?;
        let least = ring.head.saturating_sub(RING_BYTES as u64);
        ring.tail = Ring::<B>::check(ring.tail, tail, least, ring.head)?;
        Ok(RING_BYTES - ring.filled())
    }

    /// Waits until there is room.
    fn wait(&mut self) -> io::Result<usize> {
        let mut room = self.look()?;
        if room > 0 {
            return Ok(room);
        }
        let [_, patience] = self.ring.bell.patience()?;
        let (began, [mut pause, most]) = (Instant::now(), PAUSES);
        while room == 0 {
            if self.ring.bell.is_gone_within(pause)? {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            room = self.look()?;
            if room == 0 && patience.is_some_and(|patience| began.elapsed() > patience) {
                return Err(io::ErrorKind::TimedOut.into());
            }
            pause = (pause * 2).min(most);
        }
        Ok(room)
    }
}

impl<B: Bell> Write for Writer<B> {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        if from.is_empty() {
            return Ok(0);
        }
        let length = self.wait()?.min(from.len());
        let ring = &mut self.ring;
        let mut rest = &from[..length];
        for (at, piece) in ring.pieces(ring.head, length) {
            let (now, after) = rest.split_at(piece);
            ring.memory.write(at, now)?;
            rest = after;
        }
        ring.head += length as u64;
        ring.memory.store(ring.place.head, ring.head)?;
        // The reader has the same fence between its sleep and this.
        fence(Ordering::SeqCst);
        if ring.memory.load(ring.place.sleep)? != 0 && ring.memory.swap(ring.place.sleep, 0)? != 0 {
            ring.bell.ring()?;
        }
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
