//! Memory that host and guest share, as a link: a ring of bytes in either direction, and a stream beside them as the bell.
//!
//! ```text
//!   one page     what it is | head, tail and sleep of the ring to the guest | of the ring to the host
//!   RING_BYTES   bytes to the guest
//!   RING_BYTES   bytes to the host
//! ```
//! The packets are those of every other link, one behind the other; a ring knows nothing of them.
//!
//! - A head counts the bytes that were ever written to a ring, a tail those that were taken. Each is written by one end only, which
//!   keeps its own in private: what it reads there is the other's.
//! - **The other end is hostile**, and may write anywhere at any moment. A counter is read once, and is then held against what it may
//!   be: not behind what it was, no further than the ring is long. Bytes are copied out before anybody looks at them. Sizes are
//!   constants of the build; what the first words say is for the guest alone, which asks no more than whether it is of this build.
//! - Whoever finds nothing to read says that it sleeps, looks once more, and waits for the bell. It does not look for a while before
//!   that: an emulated machine has use for the processor, and was no faster for it. Whoever has written looks
//!   whether the other sleeps, and rings. Between the two steps both have a fence, so that one of them sees the other.
//! - Who finds no room looks again after a pause that grows. It is the exception: the credit of the standard streams is less
//!   than a ring has room for.
//! - The end of the bell's stream is the end of the link, once what is in the ring was read.

mod bell;
mod memory;
mod ring;

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

pub use self::bell::Bell;
use self::memory::Memory;
use self::ring::Place;
pub use self::ring::{Reader, Writer};
use crate::VERSION;

/// What a ring has room for. More than the credit of both standard streams, so that frames find room beside them.
pub const RING_BYTES: usize = 4 << 20;
/// Bytes of the whole. A machine has memory of a device in powers of two only; what is behind the rings is never touched.
pub const SHARED_BYTES: usize = 4 * RING_BYTES;

/// What the first page begins with.
const MAGIC: u64 = u64::from_le_bytes(*b"GLASSHSE");
/// Where that is, and behind it the version and [`RING_BYTES`].
const WHAT_IT_IS: [usize; 3] = [0, 8, 16];
/// Counters are on cache lines of their own, with the one that a processor fetches along with each.
const TO_GUEST: Place = Place { head: 128, tail: 256, sleep: 384, bytes: PAGE };
const TO_HOST: Place = Place { head: 512, tail: 640, sleep: 768, bytes: PAGE + RING_BYTES };
const PAGE: usize = 4096;

/// Where a guest finds its machine's devices.
const DEVICES: &str = "/sys/bus/pci/devices";
/// Vendor and device of an ivshmem, as sysfs writes them (docs/specs/ivshmem-spec.rst of QEMU).
const IVSHMEM: [(&str, &str); 2] = [("vendor", "0x1af4"), ("device", "0x1110")];
/// Its third region is the memory. Not the write-combined file of it: stores there come in any order.
const MEMORY: &str = "resource2";

/// The memory of one link, mapped.
#[derive(Debug, Clone)]
pub struct SharedMemory {
    memory: Arc<Memory>,
    file: Arc<OwnedFd>,
}

impl SharedMemory {
    /// Makes memory for a guest to share. It is a file without a name, which nobody who has it can make shorter: that would end
    /// whoever reads beyond.
    pub fn make() -> io::Result<Self> {
        let file = memfd_create(c"glasshouse-link", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
        let file = File::from(file);
        file.set_len(SHARED_BYTES as u64)?;
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
        let memory = Memory::map(&file, SHARED_BYTES)?;
        for (at, value) in WHAT_IT_IS.into_iter().zip(what_it_is()) {
            memory.store(at, value)?;
        }
        Ok(Self { memory: Arc::new(memory), file: Arc::new(file.into()) })
    }

    /// Maps what somebody made, or what a machine shows of it.
    pub fn map(file: OwnedFd) -> io::Result<Self> {
        let memory = Memory::map(&file, SHARED_BYTES)?;
        for (at, expected) in WHAT_IT_IS.into_iter().zip(what_it_is()) {
            if memory.load(at)? != expected {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "the shared memory is not a link of this build: use the guest probe of this build",
                ));
            }
        }
        Ok(Self { memory: Arc::new(memory), file: Arc::new(file) })
    }

    /// The memory that this machine shares with its host: that of its ivshmem device.
    pub fn of_this_machine() -> io::Result<Self> {
        for entry in std::fs::read_dir(DEVICES)? {
            let device = entry?.path();
            if is_ivshmem(&device) {
                // Without a driver nobody else has told it to answer.
                std::fs::write(device.join("enable"), "1")?;
                return Self::map(File::options().read(true).write(true).open(device.join(MEMORY))?.into());
            }
        }
        Err(io::Error::new(io::ErrorKind::NotFound, format!("no device in {DEVICES} is an ivshmem")))
    }

    /// What it is, for whoever shares it.
    pub fn file(&self) -> &Arc<OwnedFd> {
        &self.file
    }

    /// The host's end.
    pub fn host<B: Bell>(self, hears: B, rings: B) -> (Reader<B>, Writer<B>) {
        self.end(TO_HOST, TO_GUEST, hears, rings)
    }

    /// The guest's end.
    pub fn guest<B: Bell>(self, hears: B, rings: B) -> (Reader<B>, Writer<B>) {
        self.end(TO_GUEST, TO_HOST, hears, rings)
    }

    fn end<B: Bell>(self, reads: Place, writes: Place, hears: B, rings: B) -> (Reader<B>, Writer<B>) {
        (Reader::new(Arc::clone(&self.memory), reads, hears), Writer::new(self.memory, writes, rings))
    }
}

fn what_it_is() -> [u64; 3] {
    [MAGIC, u64::from(VERSION), RING_BYTES as u64]
}

fn is_ivshmem(device: &Path) -> bool {
    IVSHMEM.iter().all(|(file, expected)| {
        std::fs::read_to_string(device.join(file)).is_ok_and(|found| found.trim_end() == *expected)
    })
}
