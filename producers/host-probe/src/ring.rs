//! Reader of one BPF ring buffer (kernel/bpf/ringbuf.c), with its producer position.
//!
//! A seal has to know where the producer stood when it was called, so that draining up to there is bounded however busy
//! other executions keep the ring; aya's reader does not tell. The layout is user ABI: one page with the consumer's
//! position (writable), one with the producer's, then the data, mapped twice so that no record is split.

#![allow(
    unsafe_code,
    reason = "shared memory with the kernel: one mapping, two positions, records in between"
)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

const BUSY: u32 = 1 << 31;
const DISCARDED: u32 = 1 << 30;
const HEADER_BYTES: u64 = 8;
/// The consumer's position is published after this much, so that the kernel's producers see it move without sharing
/// a cache line per record.
const PUBLISH_BYTES: u64 = 32 * 1024;

/// One mapping of a file descriptor, unmapped when dropped.
struct Mapping {
    start: NonNull<u8>,
    bytes: usize,
}

impl Mapping {
    fn new(fd: BorrowedFd<'_>, bytes: usize, writable: bool, offset: usize) -> io::Result<Self> {
        let protection = if writable { libc::PROT_READ | libc::PROT_WRITE } else { libc::PROT_READ };
        let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
        // SAFETY: a new shared mapping at an address of the kernel's choice touches no memory of ours; the descriptor
        // is borrowed, hence open.
        let start = unsafe {
            libc::mmap(std::ptr::null_mut(), bytes, protection, libc::MAP_SHARED, fd.as_raw_fd(), offset)
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // A fork would copy the entry of every page, twice over for the data, and an exec take them down again: that is most of
        // what starting a command costs. No child has any use for it. A kernel that does not know it only takes longer.
        // SAFETY: the range that mmap has just given.
        unsafe { libc::madvise(start, bytes, libc::MADV_DONTFORK) };
        let start = NonNull::new(start.cast()).ok_or_else(|| io::Error::other("mapped at address zero"))?;
        Ok(Self { start, bytes })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: exactly the range that mmap gave, and nothing borrows from it any more: every borrow goes through
        // the owner of this mapping.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}

/// The reading end. There must be only one per ring.
pub(crate) struct Ring {
    consumer: Mapping,
    producer: Mapping,
    page: usize,
    mask: u64,
    at: u64,
    published: u64,
}

// SAFETY: the mappings are owned and hold no thread-local state; the positions are accessed atomically.
unsafe impl Send for Ring {}

impl Ring {
    /// Maps the ring buffer map behind `fd`, which has room for `bytes`.
    pub(crate) fn new(fd: BorrowedFd<'_>, bytes: u32) -> io::Result<Self> {
        let page = usize::try_from(nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)?.unwrap_or(4096))
            .map_err(io::Error::other)?;
        let bytes = bytes as usize;
        if !bytes.is_power_of_two() || bytes < page {
            return Err(io::Error::other("the size of a ring must be a power of two of at least a page"));
        }
        let consumer = Mapping::new(fd, page, true, 0)?;
        let producer = Mapping::new(fd, page + 2 * bytes, false, page)?;
        let mut ring = Self { consumer, producer, page, mask: bytes as u64 - 1, at: 0, published: 0 };
        ring.at = ring.consumer_position().load(Ordering::Acquire);
        ring.published = ring.at;
        Ok(ring)
    }

    fn consumer_position(&self) -> &AtomicU64 {
        // SAFETY: the first eight bytes of the consumer page, page-aligned and mapped writable while self lives; kernel
        // and user space both access them atomically.
        unsafe { AtomicU64::from_ptr(self.consumer.start.as_ptr().cast()) }
    }

    /// How far the kernel has reserved. Everything reserved before this call stands before it.
    pub(crate) fn producer_position(&self) -> u64 {
        // SAFETY: the first eight bytes of the producer page, page-aligned and mapped while self lives. The page is
        // read-only, and only loads are made of it.
        unsafe { AtomicU64::from_ptr(self.producer.start.as_ptr().cast()) }.load(Ordering::Acquire)
    }

    /// Bytes that wait to be read.
    pub(crate) fn waiting(&self) -> u64 {
        self.producer_position().saturating_sub(self.at)
    }

    /// How many bytes there is room for.
    pub(crate) fn bytes(&self) -> u64 {
        self.mask + 1
    }

    /// How far this reader is.
    pub(crate) fn position(&self) -> u64 {
        self.at
    }

    /// Hands every finished record before `until` to `take`. Stops early at a record that is still being written.
    pub(crate) fn drain(&mut self, until: u64, mut take: impl FnMut(&[u8])) {
        while self.at < until {
            let offset = self.page + usize::try_from(self.at & self.mask).unwrap_or(0);
            // SAFETY: at & mask is below the ring's size, so the header lies within the mapping; positions are
            // multiples of eight, so it is aligned. The kernel stores the length with release order.
            let word = unsafe { AtomicU32::from_ptr(self.producer.start.as_ptr().add(offset).cast()) }
                .load(Ordering::Acquire);
            if word & BUSY != 0 {
                break;
            }
            let bytes = u64::from(word & !DISCARDED);
            if bytes > self.mask {
                // No record is longer than the ring: this is no ring buffer any more. Nothing can be read from it.
                self.at = until;
                break;
            }
            if word & DISCARDED == 0 {
                let data = offset + HEADER_BYTES as usize;
                // SAFETY: the record begins inside the first copy of the data and is shorter than the ring, so it
                // ends inside the second. It is committed, and the kernel overwrites it only after the consumer's
                // position, published below, has passed it; the slice does not outlive this call.
                let record = unsafe {
                    std::slice::from_raw_parts(self.producer.start.as_ptr().add(data), bytes as usize)
                };
                take(record);
            }
            self.at += (bytes + HEADER_BYTES).next_multiple_of(8);
            if self.at - self.published >= PUBLISH_BYTES {
                self.publish();
            }
        }
        self.publish();
    }

    fn publish(&mut self) {
        if self.published != self.at {
            self.consumer_position().store(self.at, Ordering::Release);
            self.published = self.at;
        }
    }
}
