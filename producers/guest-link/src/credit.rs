//! Credit: how much of a standard stream may be on its way.
//!
//! The sender of a stream begins with [`WINDOW_BYTES`] and stops when they are used up; the receiver gives back what its
//! own reader has taken. A message costs no less than [`LEAST_COST`], so that single bytes take no more memory than long
//! messages do.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::codec::MAX_CHUNK_BYTES;

/// What may be on its way of one stream.
pub const WINDOW_BYTES: u32 = 1024 * 1024;
/// The least that a message costs.
pub const LEAST_COST: u32 = 1024;
/// A receiver gives credit back once it has this much to give.
const GIVE_BACK: u32 = WINDOW_BYTES / 4;

/// What a message with so many bytes costs.
pub fn cost(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX).max(LEAST_COST)
}

/// The other end does not keep to the credit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("more of a stream was sent, or more credit was given, than there was")]
pub struct Overrun;

/// The sender's side of one stream.
#[derive(Debug)]
pub struct Gate {
    state: Mutex<GateState>,
    changed: Condvar,
}

#[derive(Debug)]
struct GateState {
    credit: u32,
    is_closed: bool,
}

impl Default for Gate {
    fn default() -> Self {
        Self {
            state: Mutex::new(GateState { credit: WINDOW_BYTES, is_closed: false }),
            changed: Condvar::new(),
        }
    }
}

impl Gate {
    /// Waits for credit for a message and takes it: gives how many of `wanted` bytes the message may have; `None` once the
    /// gate is closed.
    pub fn take(&self, wanted: usize) -> Option<usize> {
        let wanted = wanted.min(MAX_CHUNK_BYTES);
        let mut state = self.state();
        while state.credit < LEAST_COST && !state.is_closed {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.is_closed {
            return None;
        }
        let taken = wanted.min(state.credit as usize);
        state.credit -= cost(taken);
        Some(taken)
    }

    /// The receiver gave some back.
    pub fn give(&self, bytes: u32) -> Result<(), Overrun> {
        let mut state = self.state();
        state.credit =
            state.credit.checked_add(bytes).filter(|credit| *credit <= WINDOW_BYTES).ok_or(Overrun)?;
        self.changed.notify_all();
        Ok(())
    }

    /// Nothing more can be sent: whoever waits is told so.
    pub fn close(&self) {
        self.state().is_closed = true;
        self.changed.notify_all();
    }

    fn state(&self) -> MutexGuard<'_, GateState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The receiver's side of one stream.
#[derive(Debug, Default)]
pub struct Meter {
    state: Mutex<MeterState>,
}

#[derive(Debug, Default)]
struct MeterState {
    /// Sent and not given back.
    used: u32,
    /// Of it, what the reader has taken.
    taken: u32,
}

impl Meter {
    /// A message with so many bytes came.
    pub fn receive(&self, bytes: usize) -> Result<(), Overrun> {
        let mut state = self.state();
        state.used =
            state.used.checked_add(cost(bytes)).filter(|used| *used <= WINDOW_BYTES).ok_or(Overrun)?;
        Ok(())
    }

    /// The reader has taken that message; gives the credit that is to be given back now.
    pub fn take(&self, bytes: usize) -> Option<u32> {
        let mut state = self.state();
        state.taken = state.taken.saturating_add(cost(bytes)).min(state.used);
        if state.taken < GIVE_BACK {
            return None;
        }
        let back = std::mem::take(&mut state.taken);
        state.used -= back;
        Some(back)
    }

    fn state(&self) -> MutexGuard<'_, MeterState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_on_its_way_than_the_window() {
        let (gate, meter) = (Gate::default(), Meter::default());
        let mut sent = Vec::new();
        for _ in 0..WINDOW_BYTES as usize / MAX_CHUNK_BYTES {
            let bytes = gate.take(usize::MAX).unwrap();
            meter.receive(bytes).unwrap();
            sent.push(bytes);
        }
        assert_eq!(sent.iter().sum::<usize>(), WINDOW_BYTES as usize);
        assert_eq!(meter.receive(1), Err(Overrun));
        let back: u32 = sent.iter().filter_map(|bytes| meter.take(*bytes)).sum();
        assert_eq!(back, WINDOW_BYTES);
        gate.give(back).unwrap();
        assert_eq!(gate.give(1), Err(Overrun));
        assert_eq!(gate.take(1), Some(1));
    }

    #[test]
    fn single_bytes_use_the_window_up_too() {
        let meter = Meter::default();
        let taken = (0..).take_while(|_| meter.receive(1).is_ok()).count();
        assert_eq!(taken, (WINDOW_BYTES / LEAST_COST) as usize);
    }

    #[test]
    fn whoever_waits_for_credit_is_told_of_the_end() {
        let gate = std::sync::Arc::new(Gate::default());
        while gate.state().credit >= LEAST_COST {
            gate.take(MAX_CHUNK_BYTES).unwrap();
        }
        let waiting = std::thread::spawn({
            let gate = std::sync::Arc::clone(&gate);
            move || gate.take(1)
        });
        gate.close();
        assert_eq!(waiting.join().unwrap(), None);
    }
}
