//! Rings in shared memory: what is written comes out as it was, in whatever pieces; and whatever somebody else writes into the
//! memory, each end gets bytes or an error.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::cell::Cell;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::LazyLock;
use std::thread;
use std::time::Duration;

use glasshouse_guest_link::message::Bytes;
use glasshouse_guest_link::shared::{Bell, RING_BYTES, Reader, SHARED_BYTES, SharedMemory, Writer};
use glasshouse_guest_link::{LinkError, Receiver as _, Sender as _, StreamReceiver, StreamSender, ToHost};
use proptest::prelude::*;

/// Where the counters are: heads, tails and sleeps of both rings.
const COUNTERS: [u64; 6] = [128, 256, 384, 512, 640, 768];
const HEAD_TO_HOST: u64 = 512;
const TAIL_TO_GUEST: u64 = 256;

/// Waits for nothing, and counts how often it was rung.
#[derive(Clone, Default)]
struct Still(Rc<Cell<usize>>);

impl Bell for Still {
    fn ring(&self) -> io::Result<()> {
        self.0.set(self.0.get() + 1);
        Ok(())
    }

    fn hear(&self) -> io::Result<bool> {
        Err(ErrorKind::WouldBlock.into())
    }

    fn is_gone_within(&self, pause: Duration) -> io::Result<bool> {
        if pause.is_zero() { Ok(false) } else { Err(ErrorKind::WouldBlock.into()) }
    }

    fn patience(&self) -> io::Result<[Option<Duration>; 2]> {
        Ok([None, None])
    }
}

type End<B> = (Reader<B>, Writer<B>);

/// Both ends of a link, and the file between them.
fn link<B: Bell>(host: [B; 2], guest: [B; 2]) -> (End<B>, End<B>, File) {
    let shared = SharedMemory::make().unwrap();
    let file = shared.file().try_clone().unwrap();
    let seen_by_guest = SharedMemory::map(file.try_clone().unwrap()).unwrap();
    let ([hears, rings], [guest_hears, guest_rings]) = (host, guest);
    (shared.host(hears, rings), seen_by_guest.guest(guest_hears, guest_rings), file.into())
}

fn still() -> (End<Still>, End<Still>, File) {
    link([Still::default(), Still::default()], [Still::default(), Still::default()])
}

fn rung() -> (End<UnixStream>, End<UnixStream>, File) {
    let (host, guest) = UnixStream::pair().unwrap();
    link([host.try_clone().unwrap(), host], [guest.try_clone().unwrap(), guest])
}

fn word(file: &File, at: u64) -> u64 {
    let mut word = [0; 8];
    file.read_exact_at(&mut word, at).unwrap();
    u64::from_le_bytes(word)
}

fn set(file: &File, at: u64, word: u64) {
    file.write_all_at(&word.to_le_bytes(), at).unwrap();
}

/// Bytes that tell where they are, but for whole periods of a length that fits into nothing else here.
fn bytes(from: u64, length: usize) -> Vec<u8> {
    const PERIOD: usize = 65_521;
    static ONE: LazyLock<Vec<u8>> =
        LazyLock::new(|| (0..PERIOD).map(|at| (at ^ (at >> 5) ^ (at >> 8)) as u8).collect());
    let mut bytes = Vec::with_capacity(length);
    let mut at = (from % PERIOD as u64) as usize;
    while bytes.len() < length {
        let piece = &ONE[at..PERIOD.min(at + length - bytes.len())];
        bytes.extend_from_slice(piece);
        at = 0;
    }
    bytes
}

/// Steps of one direction: what is written, else what is read.
fn steps() -> impl Strategy<Value = Vec<(bool, usize)>> {
    let length = prop_oneof![
        6 => 0usize..300,
        2 => 0usize..70_000,
        1 => RING_BYTES - 40..RING_BYTES + 40,
        1 => RING_BYTES / 2 - 40..RING_BYTES / 2 + 40,
    ];
    prop::collection::vec((any::<bool>(), length), 1..40)
}

/// Goes through them; gives how much came.
fn play(writer: &mut Writer<Still>, reader: &mut Reader<Still>, steps: &[(bool, usize)]) -> u64 {
    let (mut written, mut read) = (0_u64, 0_u64);
    for (is_write, length) in steps {
        let there = (written - read) as usize;
        if *is_write {
            let room = RING_BYTES - there;
            match writer.write(&bytes(written, *length)) {
                Ok(took) => {
                    assert_eq!(took, (*length).min(room));
                    written += took as u64;
                }
                Err(error) => assert_eq!((error.kind(), room), (ErrorKind::WouldBlock, 0)),
            }
        } else {
            let mut into = vec![0; *length];
            match reader.read(&mut into) {
                Ok(took) => {
                    assert_eq!(took, (*length).min(there));
                    assert!(into[..took] == bytes(read, took), "other bytes from {read} on");
                    read += took as u64;
                }
                Err(error) => assert_eq!((error.kind(), there), (ErrorKind::WouldBlock, 0)),
            }
        }
    }
    read
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn the_same_bytes_come_in_whatever_pieces(to_guest in steps(), to_host in steps()) {
        let (mut host, mut guest, file) = still();
        let read = play(&mut host.1, &mut guest.0, &to_guest);
        prop_assert_eq!(word(&file, TAIL_TO_GUEST), read);
        play(&mut guest.1, &mut host.0, &to_host);
    }

    /// Each end goes on with bytes, waits, or says what is wrong.
    #[test]
    fn whatever_is_in_the_memory_is_read_or_refused(
        steps in prop::collection::vec((0..6_u8, 0..COUNTERS.len(), prop_oneof![
            any::<u64>(), 0..3_u64, RING_BYTES as u64 - 2..RING_BYTES as u64 + 3, u64::MAX - 2..
        ], 0usize..5000), 1..60)
    ) {
        let (mut host, mut guest, file) = still();
        for (step, counter, value, length) in steps {
            let done = match step {
                0 => host.1.write(&bytes(0, length)),
                1 => guest.0.read(&mut vec![0; length]),
                2 => guest.1.write(&bytes(0, length)),
                3 => host.0.read(&mut vec![0; length]),
                _ => {
                    set(&file, COUNTERS[counter], value);
                    Ok(0)
                }
            };
            match done {
                Ok(done) => prop_assert!(done <= length),
                Err(error) => prop_assert!(
                    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::InvalidData), "{}", error
                ),
            }
        }
    }
}

#[test]
fn a_counter_that_cannot_be_is_told() {
    let head = |written: u64, forged: u64| {
        let (mut host, mut guest, file) = still();
        guest.1.write_all(&bytes(0, written as usize)).unwrap();
        host.0.read_exact(&mut vec![0; written as usize]).unwrap();
        set(&file, HEAD_TO_HOST, forged);
        host.0.read(&mut [0; 9])
    };
    for (written, forged) in
        [(0, RING_BYTES as u64 + 1), (0, u64::MAX), (9, 8), (9, 0), (9, RING_BYTES as u64 + 10)]
    {
        let error = head(written, forged).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidData, "{written}, {forged}: {error}");
    }
    // Within the ring: bytes that nobody wrote, which are the packets' business.
    assert_eq!(head(9, 9 + RING_BYTES as u64).unwrap(), 9);

    let tail = |forged: u64| {
        let (mut host, mut guest, file) = still();
        host.1.write_all(&bytes(0, 9)).unwrap();
        guest.0.read_exact(&mut [0; 5]).unwrap();
        host.1.write_all(&[0]).unwrap();
        set(&file, TAIL_TO_GUEST, forged);
        host.1.write(&[0])
    };
    for forged in [11, u64::MAX, 4, 0] {
        assert_eq!(tail(forged).unwrap_err().kind(), ErrorKind::InvalidData, "{forged}");
    }
    assert_eq!(tail(10).unwrap(), 1);
}

#[test]
fn it_is_rung_for_whoever_sleeps_and_for_nobody_else() {
    let bells: [Still; 4] = Default::default();
    let [hears, rings, guest_hears, guest_rings] = bells.clone();
    let (mut host, mut guest, _) = link([hears, rings], [guest_hears, guest_rings]);
    let rung = || bells.each_ref().map(|bell| bell.0.get());
    guest.1.write_all(&[1, 2]).unwrap();
    assert_eq!(rung(), [0; 4], "the host is not asleep");
    host.0.read_exact(&mut [0; 2]).unwrap();
    // It finds nothing, and would sleep.
    assert_eq!(host.0.read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
    for _ in 0..3 {
        guest.1.write_all(&[3]).unwrap();
    }
    assert_eq!(rung(), [0, 0, 0, 1], "once is enough");
    host.1.write_all(&[4]).unwrap();
    assert_eq!(rung(), [0, 0, 0, 1]);
}

/// Sends so many bytes in pieces of odd lengths, and takes as many.
fn talk((mut reader, mut writer): End<UnixStream>, total: u64) -> End<UnixStream> {
    let writes = thread::spawn(move || {
        let mut sent = 0;
        for length in [1, 12, 4097, 65_548, 3, 300_000].into_iter().cycle() {
            let length = length.min((total - sent) as usize);
            if length == 0 {
                return writer;
            }
            writer.write_all(&bytes(sent, length)).unwrap();
            sent += length as u64;
        }
        unreachable!("a cycle has no end")
    });
    let (mut read, mut buffer) = (0, vec![0; 50_000]);
    while read < total {
        let length = reader.read(&mut buffer).unwrap();
        assert!(length > 0, "it ended after {read}");
        assert!(buffer[..length] == bytes(read, length), "other bytes from {read} on");
        read += length as u64;
    }
    (reader, writes.join().unwrap())
}

#[test]
fn both_ends_talk_at_once_and_each_hears_of_the_end() {
    const TOTAL: u64 = 5 * RING_BYTES as u64 + 77;
    let (host, guest, _) = rung();
    let guest = thread::spawn(move || talk(guest, TOTAL));
    let (mut reader, writer) = talk(host, TOTAL);
    let (guest_reader, mut guest_writer) = guest.join().unwrap();
    guest_writer.write_all(b"last").unwrap();
    drop((guest_writer, guest_reader));
    let mut last = Vec::new();
    reader.read_to_end(&mut last).unwrap();
    assert_eq!(last, b"last", "what was written before the end is read");
    drop(writer);
}

#[test]
fn who_waits_for_room_hears_of_the_end() {
    let (host, (guest_reader, mut guest_writer), _) = rung();
    guest_writer.write_all(&vec![0; RING_BYTES]).unwrap();
    let waits = thread::spawn(move || guest_writer.write(&[0]).unwrap_err().kind());
    drop(host);
    assert_eq!(waits.join().unwrap(), ErrorKind::BrokenPipe);
    drop(guest_reader);
}

#[test]
fn one_that_only_rings_is_silent() {
    let (host, guest) = UnixStream::pair().unwrap();
    host.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let ((mut reader, writer), end, _) =
        link([host.try_clone().unwrap(), host], [guest.try_clone().unwrap(), guest.try_clone().unwrap()]);
    let rings = thread::spawn(move || while Bell::ring(&guest).is_ok() {});
    assert_eq!(reader.read(&mut [0]).unwrap_err().kind(), ErrorKind::TimedOut);
    drop((reader, writer));
    rings.join().unwrap();
    drop(end);
}

#[test]
fn one_that_goes_on_after_the_end_is_not_heard() {
    let (host, guest) = UnixStream::pair().unwrap();
    let ((mut reader, writer), (guest_reader, mut guest_writer), file) =
        link([host.try_clone().unwrap(), host.try_clone().unwrap()], [guest.try_clone().unwrap(), guest]);
    guest_writer.write_all(&[1; 100]).unwrap();
    host.shutdown(Shutdown::Both).unwrap();
    let mut read = 0;
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let length = reader.read(&mut buffer).unwrap();
        if length == 0 {
            break;
        }
        read += length;
        assert!(read <= 3 * RING_BYTES, "it is heard for ever");
        // As its machine, which does not need the socket, could.
        set(&file, HEAD_TO_HOST, word(&file, HEAD_TO_HOST) + length as u64);
    }
    drop((writer, guest_reader));
}

/// Somebody writes anything anywhere, while both ends carry packets.
#[test]
fn a_memory_that_is_scribbled_in_harms_nobody() {
    for seed in 0..4 {
        let (host, guest) = UnixStream::pair().unwrap();
        let bells = [&host, &host, &guest, &guest].map(|bell| bell.try_clone().unwrap());
        let [hears, rings, guest_hears, guest_rings] = bells;
        let (host_end, guest_end, file) = link([hears, rings], [guest_hears, guest_rings]);
        let ends = [host_end, guest_end].map(|(reader, writer)| {
            let mut sender = StreamSender::new(writer);
            let mut receiver = StreamReceiver::<_, ToHost>::new(reader);
            [
                thread::spawn(move || {
                    let message = ToHost::Stdout(Bytes(bytes(0, 40_000)));
                    while let Ok(()) = sender.send(&message) {}
                }),
                thread::spawn(move || {
                    while let Ok(Some(message)) = receiver.receive() {
                        // The memory is its writer's in full: bytes with the right checksum are as sent.
                        assert!(matches!(message, ToHost::Stdout(_)));
                    }
                }),
            ]
        });
        let mut random = numbers(seed);
        for _ in 0..2000 {
            // Half of it where the counters are.
            let at = if random().is_multiple_of(2) {
                random() % 1024
            } else {
                random() % (SHARED_BYTES as u64 - 64)
            };
            let length = (random() % 64 + 1) as usize;
            let what: Vec<u8> = (0..length).map(|_| random() as u8).collect();
            file.write_all_at(&what, at).unwrap();
        }
        // Who waits for a bell that nobody rings any more.
        host.shutdown(Shutdown::Both).unwrap();
        ends.into_iter().flatten().for_each(|end| end.join().unwrap());
    }
}

/// Numbers as any (xorshift64*).
fn numbers(seed: u64) -> impl FnMut() -> u64 {
    let mut state = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    move || {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }
}

#[test]
fn packets_go_through_and_other_bytes_are_none() {
    let (host, guest, file) = rung();
    let mut sender = StreamSender::new(guest.1);
    let mut receiver = StreamReceiver::<_, ToHost>::new(host.0);
    let message = ToHost::Frame(Bytes(bytes(7, 100_000)));
    for _ in 0..3 {
        sender.send(&message).unwrap();
        assert_eq!(receiver.receive().unwrap().as_ref(), Some(&message));
    }
    set(&file, HEAD_TO_HOST, word(&file, HEAD_TO_HOST) + 100);
    assert!(matches!(receiver.receive(), Err(LinkError::NoPacket(_))));
    drop((guest.0, host.1));
}

#[test]
fn memory_that_is_no_link_is_refused() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(SHARED_BYTES as u64).unwrap();
    let error = SharedMemory::map(file.try_clone().unwrap().into()).unwrap_err();
    assert!(error.to_string().contains("not a link of this build"), "{error}");
    // Nor can what is one be made shorter.
    let shared = SharedMemory::make().unwrap();
    let file = File::from(shared.file().try_clone().unwrap());
    assert_eq!(file.set_len(4096).unwrap_err().kind(), ErrorKind::PermissionDenied);
}
