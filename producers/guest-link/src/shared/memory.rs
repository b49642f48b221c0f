//! Memory that somebody else may write to at any moment, in another machine even.
//!
//! Nothing here gives out a reference to it: counters are read and written whole, by atomic operations, and bytes are copied, each read
//! or written once. So whatever the other end does meanwhile, what was read is some value that stays what it is.

#![allow(unsafe_code, reason = "memory that others write to has no safe API")]

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicU64, Ordering};

use memmap2::{MmapOptions, MmapRaw};

/// Bytes of a word, in which bytes are copied where they lie so.
const WORD: usize = size_of::<u64>();

/// A mapping, for as long as this value is there.
#[derive(Debug)]
pub(super) struct Memory(MmapRaw);

impl Memory {
    /// Maps the first `bytes` of a file, which must have as many for as long as they are mapped.
    pub(super) fn map(file: &impl AsFd, bytes: usize) -> io::Result<Self> {
        Ok(Self(MmapOptions::new().len(bytes).map_raw(file.as_fd().as_raw_fd())?))
    }

    /// Where `bytes` from `at` on are, if they all are within.
    fn place(&self, at: usize, bytes: usize) -> io::Result<*mut u8> {
        match at.checked_add(bytes) {
            Some(end) if end <= self.0.len() => Ok(self.0.as_mut_ptr().wrapping_add(at)),
            _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "a place beyond the shared memory")),
        }
    }

    fn counter(&self, at: usize) -> io::Result<&AtomicU64> {
        let place = self.place(at, WORD)?.cast::<u64>();
        if !place.is_aligned() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a counter across words"));
        }
        // SAFETY: the eight bytes are within the mapping, which lives as long as `self`, and aligned. This process does
        // nothing to counters but by atomic operations of this size; what another does is no access of this program.
        Ok(unsafe { AtomicU64::from_ptr(place) })
    }

    /// A counter; what was written before it was stored can be read from now on.
    pub(super) fn load(&self, at: usize) -> io::Result<u64> {
        Ok(self.counter(at)?.load(Ordering::Acquire))
    }

    /// Stores a counter, behind all that was read and written before.
    pub(super) fn store(&self, at: usize, value: u64) -> io::Result<()> {
        self.counter(at)?.store(value, Ordering::Release);
        Ok(())
    }

    /// Stores a counter and gives what it was.
    pub(super) fn swap(&self, at: usize, value: u64) -> io::Result<u64> {
        Ok(self.counter(at)?.swap(value, Ordering::AcqRel))
    }

    /// Copies bytes out.
    pub(super) fn read(&self, at: usize, into: &mut [u8]) -> io::Result<()> {
        let from = self.place(at, into.len())?;
        let (before, rest) = into.split_at_mut(from.align_offset(WORD).min(into.len()));
        let words = from.wrapping_add(before.len());
        let (whole, after) = rest.split_at_mut(rest.len() - rest.len() % WORD);
        let behind = words.wrapping_add(whole.len());
        for (place, word) in (0..).zip(whole.chunks_exact_mut(WORD)) {
            // SAFETY: `place` found all bytes of `into` within the mapping, and these are whole words of it from an aligned
            // one on. It is a volatile read: the compiler neither repeats it nor takes it for what it read before.
            let read = unsafe { words.cast::<u64>().wrapping_add(place).read_volatile() };
            word.copy_from_slice(&read.to_ne_bytes());
        }
        for (from, bytes) in [(from, before), (behind, after)] {
            for (place, byte) in (0..).zip(bytes) {
                // SAFETY: as above, byte by byte.
                *byte = unsafe { from.wrapping_add(place).read_volatile() };
            }
        }
        Ok(())
    }

    /// Copies bytes in.
    pub(super) fn write(&self, at: usize, from: &[u8]) -> io::Result<()> {
        let to = self.place(at, from.len())?;
        let (before, rest) = from.split_at(to.align_offset(WORD).min(from.len()));
        let words = to.wrapping_add(before.len());
        let (whole, after) = rest.split_at(rest.len() - rest.len() % WORD);
        let behind = words.wrapping_add(whole.len());
        for (place, word) in (0..).zip(whole.chunks_exact(WORD)) {
            let mut bytes = [0; WORD];
            bytes.copy_from_slice(word);
            // SAFETY: `place` found room for all of `from` within the mapping, and these are whole words of it from an aligned
            // one on. Nobody in this process has a reference to them.
            unsafe { words.cast::<u64>().wrapping_add(place).write_volatile(u64::from_ne_bytes(bytes)) };
        }
        for (to, bytes) in [(to, before), (behind, after)] {
            for (place, byte) in (0..).zip(bytes) {
                // SAFETY: as above, byte by byte.
                unsafe { to.wrapping_add(place).write_volatile(*byte) };
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_copied_whatever_their_place_and_length() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(4096).unwrap();
        let memory = Memory::map(&file, 4096).unwrap();
        let bytes: Vec<u8> = (1..=40).collect();
        for at in (0..16).chain(4090..4096) {
            for length in 0..bytes.len().min(4096 - at) {
                memory.write(0, &[0; 4096]).unwrap();
                memory.write(at, &bytes[..length]).unwrap();
                let mut all = [0; 4096];
                memory.read(0, &mut all).unwrap();
                let mut read = vec![0; length];
                memory.read(at, &mut read).unwrap();
                assert_eq!(read, bytes[..length]);
                assert_eq!(&all[at..at + length], &bytes[..length]);
                assert_eq!(all.iter().filter(|byte| **byte != 0).count(), length);
            }
        }
    }

    #[test]
    fn nothing_is_beyond_its_end() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(4096).unwrap();
        let memory = Memory::map(&file, 4096).unwrap();
        for at in [4089, 4096, usize::MAX] {
            assert!(memory.load(at).is_err());
            assert!(memory.read(at, &mut [0; 8]).is_err());
            assert!(memory.write(at, &[0; 8]).is_err());
        }
        assert!(memory.load(4).is_err());
        assert!(memory.load(4088).is_ok());
    }
}
