//! The frame codec against everything that a network, a guest or a disk may hand it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use common::{chain, config, every_event, process, writer};
use glasshouse_schema::frame::{MAX_FRAME_BYTES, SealTotals};
use glasshouse_schema::{
    Address, Class, DecodeError, Digest, Event, Fact, Frame, FrameWriter, PathFlags, PathRef, ProcessKey,
    version,
};
use proptest::collection::vec;
use proptest::prelude::*;

/// A fact that owns what it names.
#[derive(Debug, Clone)]
enum Owned {
    Fork(u32),
    Exec { paths: [(Vec<u8>, u8); 2], argv: Vec<Vec<u8>>, numbers: [u32; 3], argv_truncated: bool },
    Exit(u8, u8, bool),
    Open((Vec<u8>, u8), u32, i32),
    Delete((Vec<u8>, u8), bool, i32),
    Rename([(Vec<u8>, u8); 2], i32),
    V4([u8; 4], u16, u8, i32),
    V6([u8; 16], u16, u8, i32),
    Unix(Vec<u8>, i32),
}

fn path_ref((bytes, flags): &(Vec<u8>, u8)) -> PathRef<'_> {
    PathRef { bytes, flags: PathFlags(*flags) }
}

fn with_event<T>((boot_ns, tgid, owned): &(u64, u32, Owned), then: impl FnOnce(&Event<'_>) -> T) -> T {
    let arguments: Vec<&[u8]> = match owned {
        Owned::Exec { argv, .. } => argv.iter().map(Vec::as_slice).collect(),
        _ => Vec::new(),
    };
    let fact = match owned {
        Owned::Fork(child) => Fact::Fork { child: process(*child) },
        Owned::Exec { paths: [exe, cwd], numbers: [ppid, uid, gid], argv_truncated, .. } => Fact::Exec {
            ppid: *ppid,
            exe: path_ref(exe),
            cwd: path_ref(cwd),
            argv: &arguments,
            argv_truncated: *argv_truncated,
            uid: *uid,
            gid: *gid,
        },
        Owned::Exit(code, signal, core_dumped) => {
            Fact::Exit { code: *code, signal: *signal, core_dumped: *core_dumped }
        }
        Owned::Open(path, flags, result) => {
            Fact::Open { path: path_ref(path), flags: *flags, result: *result }
        }
        Owned::Delete(path, directory, result) => {
            Fact::Delete { path: path_ref(path), directory: *directory, result: *result }
        }
        Owned::Rename([from, to], result) => {
            Fact::Rename { from: path_ref(from), to: path_ref(to), result: *result }
        }
        Owned::V4(address, port, protocol, result) => {
            Fact::Connect { address: Address::V4(*address, *port), protocol: *protocol, result: *result }
        }
        Owned::V6(address, port, protocol, result) => {
            Fact::Connect { address: Address::V6(*address, *port), protocol: *protocol, result: *result }
        }
        Owned::Unix(path, result) => {
            Fact::Connect { address: Address::Unix(path), protocol: 0, result: *result }
        }
    };
    then(&Event { boot_ns: *boot_ns, process: process(*tgid), fact })
}

fn event() -> impl Strategy<Value = (u64, u32, Owned)> {
    // Few paths, so that some repeat; any bytes, because Linux paths are any bytes.
    let path = || (prop_oneof![Just(b"/a".to_vec()), vec(any::<u8>(), 0..40)], 0u8..16);
    let paths = move || (path(), path()).prop_map(|(one, other)| [one, other]);
    let result = || prop_oneof![Just(0), -4095..=0i32, any::<i32>()];
    let argv = vec(vec(any::<u8>(), 0..20), 0..5);
    let owned = prop_oneof![
        (0..9u32).prop_map(Owned::Fork),
        (paths(), argv, any::<[u32; 3]>(), any::<bool>()).prop_map(
            |(paths, argv, numbers, argv_truncated)| { Owned::Exec { paths, argv, numbers, argv_truncated } }
        ),
        any::<(u8, u8, bool)>().prop_map(|(code, signal, core)| Owned::Exit(code, signal, core)),
        (path(), prop_oneof![Just(0), any::<u32>()], result()).prop_map(|(p, f, r)| Owned::Open(p, f, r)),
        (path(), any::<bool>(), result()).prop_map(|(p, d, r)| Owned::Delete(p, d, r)),
        (paths(), result()).prop_map(|(p, r)| Owned::Rename(p, r)),
        (any::<([u8; 4], u16, u8)>(), result()).prop_map(|((a, p, l), r)| Owned::V4(a, p, l, r)),
        (any::<([u8; 16], u16, u8)>(), result()).prop_map(|((a, p, l), r)| Owned::V6(a, p, l, r)),
        (vec(any::<u8>(), 0..40), result()).prop_map(|(p, r)| Owned::Unix(p, r)),
    ];
    (any::<u64>(), 0..9u32, owned)
}

/// What a frame says, every event with its whole time and names, sorted; collapsed opens counted.
fn said(frames: &[Frame<'_>]) -> Vec<String> {
    let mut said = Vec::new();
    for Frame { body, .. } in frames {
        let process = |index: u32| body.processes[index as usize];
        let path = |index: u32| body.paths[index as usize];
        let base = body.base_boot_ns;
        said.extend(
            body.forks.iter().map(|e| {
                format!("fork {} {:?} {:?}", base + e.after_ns, process(e.process), process(e.child))
            }),
        );
        said.extend(body.execs.iter().map(|e| {
            let argv: Vec<&[u8]> = e.argv.iter().map(|argument| argument.as_ref()).collect();
            let numbers = (e.ppid, e.uid, e.gid, e.argv_truncated);
            let time = base + e.after_ns;
            format!(
                "exec {time} {:?} {:?} {:?} {argv:?} {numbers:?}",
                process(e.process),
                path(e.exe),
                path(e.cwd)
            )
        }));
        said.extend(body.exits.iter().map(|e| {
            let how = (e.code, e.signal, e.core_dumped);
            format!("exit {} {:?} {how:?}", base + e.after_ns, process(e.process))
        }));
        // Of collapsed opens only the first has its time.
        said.extend(body.opens.iter().flat_map(|e| {
            let open = format!("open {:?} {:?} {} {}", process(e.process), path(e.path), e.flags, e.result);
            std::iter::repeat_n(open, e.count as usize)
        }));
        said.extend(body.deletes.iter().map(|e| {
            let time = base + e.after_ns;
            format!("delete {time} {:?} {:?} {} {}", process(e.process), path(e.path), e.directory, e.result)
        }));
        said.extend(body.renames.iter().map(|e| {
            let time = base + e.after_ns;
            format!("rename {time} {:?} {:?} {:?} {}", process(e.process), path(e.from), path(e.to), e.result)
        }));
        said.extend(body.connects.iter().map(|e| {
            let time = base + e.after_ns;
            format!(
                "connect {time} {:?} {:?} {:?} {} {}",
                process(e.process),
                e.address,
                e.port,
                e.protocol,
                e.result
            )
        }));
    }
    said.sort();
    said
}

fn said_by(events: &[(u64, u32, Owned)]) -> Vec<String> {
    let mut said: Vec<String> = events
        .iter()
        .map(|event| {
            with_event(event, |&Event { boot_ns, process, fact }| match fact {
                Fact::Fork { child } => format!("fork {boot_ns} {process:?} {child:?}"),
                Fact::Exec { ppid, exe, cwd, argv, argv_truncated, uid, gid } => {
                    let numbers = (ppid, uid, gid, argv_truncated);
                    format!("exec {boot_ns} {process:?} {exe:?} {cwd:?} {argv:?} {numbers:?}")
                }
                Fact::Exit { code, signal, core_dumped } => {
                    format!("exit {boot_ns} {process:?} {:?}", (code, signal, core_dumped))
                }
                Fact::Open { path, flags, result } => format!("open {process:?} {path:?} {flags} {result}"),
                Fact::Delete { path, directory, result } => {
                    format!("delete {boot_ns} {process:?} {path:?} {directory} {result}")
                }
                Fact::Rename { from, to, result } => {
                    format!("rename {boot_ns} {process:?} {from:?} {to:?} {result}")
                }
                Fact::Connect { address, protocol, result } => {
                    let (address, port): (&[u8], _) = match &address {
                        Address::V4(address, port) => (address, Some(*port)),
                        Address::V6(address, port) => (address, Some(*port)),
                        Address::Unix(path) => (path, None),
                    };
                    format!("connect {boot_ns} {process:?} {address:?} {port:?} {protocol} {result}")
                }
            })
        })
        .collect();
    said.sort();
    said
}

proptest! {
    #![proptest_config(common::proptest_config())]

    #[test]
    fn what_is_pushed_is_what_is_read(events in vec(event(), 0..60), flush_bytes in 1usize..2000) {
        let mut writer = FrameWriter::new(glasshouse_schema::frame::FrameWriterConfig { flush_bytes, ..config() });
        let mut frames: Vec<_> = events.iter().filter_map(|event| with_event(event, |event| writer.push(event))).collect();
        let counters = *writer.counters();
        frames.extend(writer.seal(SealTotals::default(), Default::default()));

        let decoded: Vec<Frame<'_>> = frames.iter().map(|frame| Frame::decode(&frame.bytes).unwrap()).collect();
        prop_assert_eq!(said(&decoded), said_by(&events));
        let mut before = Digest::ZERO;
        for (seq, (frame, decoded)) in frames.iter().zip(&decoded).enumerate() {
            prop_assert_eq!((frame.seq, decoded.header.seq), (seq as u64, seq as u64));
            prop_assert_eq!(decoded.header.prev, before);
            prop_assert_eq!(frame.digest, Digest::of(&frame.bytes));
            prop_assert_eq!(decoded.seal.is_some(), seq + 1 == frames.len());
            prop_assert_eq!(decoded.encode().unwrap(), &*frame.bytes);
            before = frame.digest;
        }
        let last = decoded.last().unwrap().header.counters;
        prop_assert_eq!(last, counters);
        let observed: u64 = Class::ALL.iter().map(|class| last.class(*class).observed).sum();
        prop_assert_eq!(observed, events.len() as u64);
    }

    #[test]
    fn any_bytes_are_an_answer(tail in vec(any::<u8>(), 0..400)) {
        let _ = Frame::decode(&tail);
        let _ = Frame::decode(&[b"\x95\xa3ghf\x01", &*tail].concat());
    }

    #[test]
    fn flipped_bits_are_an_answer(flips in vec((any::<prop::sample::Index>(), 0u8..8), 1..6), which in 0usize..2) {
        let mut bytes = chain().swap_remove(which).bytes;
        for (at, bit) in flips {
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
        }
        // What still reads can be written and read again.
        if let Ok(frame) = Frame::decode(&bytes) {
            let again = frame.encode().unwrap();
            prop_assert_eq!(Frame::decode(&again).unwrap(), frame);
        }
    }

    #[test]
    fn spliced_frames_are_an_answer(from in any::<prop::sample::Index>(), to in any::<prop::sample::Index>()) {
        let [events, seal] = &chain()[..] else { unreachable!() };
        let bytes = [&events.bytes[..from.index(events.bytes.len())], &seal.bytes[to.index(seal.bytes.len())..]].concat();
        let _ = Frame::decode(&bytes);
    }
}

#[test]
fn every_cut_is_refused() {
    for frame in chain() {
        for end in 0..frame.bytes.len() {
            assert!(Frame::decode(&frame.bytes[..end]).is_err(), "cut at {end} of {}", frame.bytes.len());
        }
    }
}

#[test]
fn anything_after_the_frame_is_refused() {
    for frame in chain() {
        // Every first byte, alone: some begin a list or a text whose rest is missing, which is not an end.
        for byte in 0..=u8::MAX {
            for tail in [vec![byte], vec![byte, byte], vec![byte; 2000]] {
                let bytes = [&*frame.bytes, &tail].concat();
                let result = Frame::decode(&bytes);
                assert!(
                    matches!(result, Err(DecodeError::TrailingBytes)),
                    "{byte:#x} x {}: {result:?}",
                    tail.len()
                );
            }
        }
    }
}

#[test]
fn versions_are_checked_before_anything_is_parsed() {
    let bytes = chain().remove(0).bytes;
    for newer in (0..=u8::MAX).filter(|number| !(1..=version::FRAME).contains(number)) {
        let mut bytes = bytes[..6].to_vec();
        bytes[5] = newer;
        // Nothing but magic and version is there, and it is the version that is complained of.
        assert!(matches!(Frame::decode(&bytes), Err(DecodeError::UnknownVersion(number)) if number == newer));
    }
    // Every version up to the newest is read by the files of tests/golden/, which stay when a version is added.
    for older in 1..=version::FRAME {
        let name = format!("tests/golden/frame-v{older}-events.bin");
        let bytes = std::fs::read(common::path(&name)).unwrap();
        assert_eq!(bytes[5], older);
        Frame::decode(&bytes).unwrap();
    }
}

#[test]
fn what_is_no_frame_says_so() {
    assert!(matches!(Frame::decode(b""), Err(DecodeError::TooShort(0))));
    assert!(matches!(Frame::decode(b"{\"a\":1}"), Err(DecodeError::NotAFrame)));
    let large = vec![0; MAX_FRAME_BYTES + 1];
    assert!(matches!(Frame::decode(&large), Err(DecodeError::TooLarge(_))));
}

/// Indexes and addresses that point nowhere, which MessagePack alone would let through.
#[test]
fn inconsistent_frames_are_refused() {
    let frame = chain().remove(0);
    let decoded = Frame::decode(&frame.bytes).unwrap();
    let refused = |change: &dyn Fn(&mut Frame<'_>)| {
        let mut changed = decoded.clone();
        change(&mut changed);
        Frame::decode(&changed.encode().unwrap()).unwrap_err().to_string()
    };
    let of_table: [&dyn Fn(&mut Frame<'_>); 16] = [
        &|frame| frame.body.forks[0].process = 9,
        &|frame| frame.body.forks[0].child = u32::MAX,
        &|frame| frame.body.execs[0].process = 9,
        &|frame| frame.body.execs[0].exe = 99,
        &|frame| frame.body.execs[1].cwd = 99,
        &|frame| frame.body.exits[0].process = 9,
        &|frame| frame.body.opens[0].process = 9,
        &|frame| frame.body.opens[2].path = 99,
        &|frame| frame.body.deletes[0].process = 9,
        &|frame| frame.body.deletes[1].path = 99,
        &|frame| frame.body.renames[0].process = 9,
        &|frame| frame.body.renames[0].from = 99,
        &|frame| frame.body.renames[0].to = 99,
        &|frame| frame.body.connects[0].process = 9,
        &|frame| frame.body.processes.clear(),
        &|frame| frame.body.paths.clear(),
    ];
    for change in of_table {
        assert!(refused(change).contains("of a table of"));
    }
    assert!(refused(&|frame| frame.body.opens[0].count = 0).contains("stands for none"));
    assert!(refused(&|frame| frame.body.connects[0].address = b"123").contains("neither 4 nor 16"));
}

#[test]
fn deep_nesting_is_refused() {
    let prelude = b"\x95\xa3ghf\x01";
    // Lists in lists where the header is due, and after a whole frame.
    let nested = vec![0x91; MAX_FRAME_BYTES - 10_000];
    assert!(Frame::decode(&[&prelude[..], &nested].concat()).is_err());
    assert!(Frame::decode(&[&*chain()[0].bytes, &nested].concat()).is_err());
    let maps: Vec<u8> = [0x81, 0xa0].repeat(100_000);
    assert!(Frame::decode(&[&prelude[..], &maps].concat()).is_err());
}

/// A time before the first event's is kept: the kernel's buffers give records slightly out of order.
#[test]
fn events_out_of_order_keep_their_times() {
    let mut writer = writer();
    for boot_ns in [50, 40, 60] {
        writer.push(&Event { boot_ns, process: process(1), fact: Fact::Fork { child: process(2) } });
    }
    let frame = writer.flush().unwrap();
    let body = Frame::decode(&frame.bytes).unwrap().body;
    assert_eq!(body.base_boot_ns, 40);
    assert_eq!(body.forks.iter().map(|fork| fork.after_ns).collect::<Vec<_>>(), [10, 0, 20]);
}

#[test]
fn names_are_interned_per_frame() {
    let mut writer = writer();
    every_event().iter().for_each(|event| assert!(writer.push(event).is_none()));
    let first = writer.flush().unwrap();
    every_event().iter().for_each(|event| assert!(writer.push(event).is_none()));
    let second = writer.flush().unwrap();
    let (first, second) = (Frame::decode(&first.bytes).unwrap(), Frame::decode(&second.bytes).unwrap());
    assert_eq!(first.body, second.body);
    let unique: std::collections::BTreeSet<(&[u8], u8)> =
        first.body.paths.iter().map(|path| (path.bytes, path.flags.0)).collect();
    assert_eq!(unique.len(), first.body.paths.len());
    assert_eq!(first.body.processes, [process(10), process(11)]);
    assert!(first.body.processes.iter().all(|key: &ProcessKey| key.start_boot_ns > 0));
}
