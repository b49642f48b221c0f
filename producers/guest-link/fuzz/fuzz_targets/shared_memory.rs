//! Both ends of a link in shared memory, and somebody who writes into it what he likes: no panic, nothing beyond the memory, and as long
//! as nobody has written, the bytes that come are those that went.
//!
//! ```text
//!   step | place, u16 little endian | number, u32 little endian, and its sign | again and again
//! ```
#![no_main]

use std::cell::RefCell;
use std::fs::File;
use std::io::{ErrorKind, Read, Result, Write};
use std::os::unix::fs::FileExt as _;
use std::time::Duration;

use glasshouse_guest_link::shared::{Bell, RING_BYTES, Reader, SharedMemory, Writer};
use libfuzzer_sys::fuzz_target;

/// Where the counters begin and end, which is where it is worth to write.
const COUNTERS: std::ops::Range<u64> = 128..776;

/// Waits for nothing.
struct Still;

impl Bell for Still {
    fn ring(&self) -> Result<()> {
        Ok(())
    }

    fn hear(&self) -> Result<bool> {
        Err(ErrorKind::WouldBlock.into())
    }

    fn is_gone_within(&self, pause: Duration) -> Result<bool> {
        if pause.is_zero() { Ok(false) } else { Err(ErrorKind::WouldBlock.into()) }
    }

    fn patience(&self) -> Result<[Option<Duration>; 2]> {
        Ok([None, None])
    }
}

/// One direction, and how far it has come.
struct Direction {
    writer: Writer<Still>,
    reader: Reader<Still>,
    written: u64,
    read: u64,
}

fuzz_target!(|bytes: &[u8]| {
    thread_local! {
        /// To map memory anew takes longer than all the rest.
        static MEMORY: RefCell<Option<(SharedMemory, File)>> = const { RefCell::new(None) };
    }
    MEMORY.with_borrow_mut(|memory| {
        let (shared, file) = memory.get_or_insert_with(|| {
            let shared = SharedMemory::make().expect("memory can be made");
            let file = File::from(shared.file().try_clone().expect("there are descriptors"));
            (shared, file)
        });
        set(file, COUNTERS.start, &[0; (COUNTERS.end - COUNTERS.start) as usize]);
        play(bytes, shared, file);
    });
});

fn play(bytes: &[u8], shared: &SharedMemory, file: &File) {
    let (host_reader, host_writer) = shared.clone().host(Still, Still);
    let (guest_reader, guest_writer) = shared.clone().guest(Still, Still);
    let mut directions = [(host_writer, guest_reader), (guest_writer, host_reader)]
        .map(|(writer, reader)| Direction { writer, reader, written: 0, read: 0 });
    let mut is_honest = true;
    for step in bytes.chunks_exact(8) {
        let [step, p, q, a, b, c, d, sign] = *step else { return };
        let number = u32::from_le_bytes([a, b, c, d]);
        let length = number as usize % (RING_BYTES + 3);
        let direction = &mut directions[usize::from(step & 1)];
        match step >> 1 & 3 {
            0 => direction.write(length, is_honest),
            1 => direction.read(length, is_honest),
            _ => {
                is_honest = false;
                let at = COUNTERS.start + u64::from(u16::from_le_bytes([p, q])) % (COUNTERS.end - COUNTERS.start - 8);
                let number = i64::from(number) * if sign & 1 == 0 { 1 } else { -1 };
                set(file, at, &number.to_le_bytes());
            }
        }
    }
}

fn set(file: &File, at: u64, bytes: &[u8]) {
    file.write_all_at(bytes, at).expect("it is within");
}

fn byte(at: u64) -> u8 {
    (at ^ (at >> 8) ^ (at >> 16)) as u8
}

impl Direction {
    fn write(&mut self, length: usize, is_honest: bool) {
        // What fills much of a ring takes long to make.
        let bytes: Vec<u8> = (self.written..).take(length.min(5000)).map(byte).collect();
        let room = RING_BYTES as u64 - (self.written - self.read);
        match self.writer.write(&bytes) {
            Ok(written) if is_honest => {
                assert_eq!(written as u64, room.min(bytes.len() as u64));
                self.written += written as u64;
            }
            Err(error) if is_honest => assert_eq!((error.kind(), room), (ErrorKind::WouldBlock, 0)),
            Ok(written) => assert!(written <= bytes.len()),
            Err(error) => refused(&error),
        }
    }

    fn read(&mut self, length: usize, is_honest: bool) {
        let mut into = vec![0; length];
        let there = self.written - self.read;
        match self.reader.read(&mut into) {
            Ok(read) if is_honest => {
                assert_eq!(read as u64, there.min(length as u64));
                assert!(into[..read].iter().eq((self.read..).take(read).map(byte).collect::<Vec<u8>>().iter()));
                self.read += read as u64;
            }
            Err(error) if is_honest => assert_eq!((error.kind(), there), (ErrorKind::WouldBlock, 0)),
            Ok(read) => assert!(read <= length),
            Err(error) => refused(&error),
        }
    }
}

fn refused(error: &std::io::Error) {
    assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::InvalidData), "{error}");
}
