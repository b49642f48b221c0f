//! The frame codec against everything that a network, a guest or a disk may hand it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeMap;
use std::net::IpAddr;

use common::{chain, config, every_event, process, writer};
use glasshouse_schema::frame::{
    self, Change, Credentials, Delete, Exit, Io, MAX_FRAME_BYTES, Open, Rename, SealTotals, Socket, Traffic,
};
use glasshouse_schema::{
    Address, Class, DecodeError, Digest, Event, ExecFlags, Fact, FileChange, Frame, FrameWriter, Operation,
    PathFlags, PathRef, ProcessKey, SocketOperation, Usage, version,
};
use proptest::collection::vec;
use proptest::prelude::*;

/// A fact that owns what it names.
#[derive(Debug, Clone)]
enum Owned {
    Fork(u32),
    Exec { paths: [(Vec<u8>, u8); 2], argv: Vec<Vec<u8>>, numbers: [u32; 3], argv_truncated: bool },
    Exit(u8, u8, bool, [u64; 5]),
    Open((Vec<u8>, u8), u32, i32, bool),
    Delete((Vec<u8>, u8), bool, i32),
    Rename([(Vec<u8>, u8); 2], bool, i32),
    Credentials([u32; 4], u64, bool),
    Change(u8, [(Vec<u8>, u8); 2], bool, u64, i32),
    Io((Vec<u8>, u8), [u32; 4]),
    Socket(u8, OwnedAddress, u8, i32),
    Traffic(OwnedAddress, u8, [u32; 4]),
    Dns(OwnedAddress, Vec<u8>, u16, Vec<IpAddr>, Option<u8>),
    Operation(u8, u64, u32, i32),
}

#[derive(Debug, Clone)]
enum OwnedAddress {
    V4([u8; 4], u16),
    V6([u8; 16], u16),
    Unix(Vec<u8>),
}

impl OwnedAddress {
    fn borrowed(&self) -> Address<'_> {
        match self {
            Self::V4(address, port) => Address::V4(*address, *port),
            Self::V6(address, port) => Address::V6(*address, *port),
            Self::Unix(path) => Address::Unix(path),
        }
    }
}

fn usage_of([user_ns, system_ns, max_rss_kib, minor_faults, major_faults]: [u64; 5]) -> Usage {
    Usage { user_ns, system_ns, max_rss_kib, minor_faults, major_faults }
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
            env: &arguments[..arguments.len() / 2],
            env_truncated: *argv_truncated,
            flags: ExecFlags(*uid as u16),
        },
        Owned::Exit(code, signal, core_dumped, usage) => {
            Fact::Exit { code: *code, signal: *signal, core_dumped: *core_dumped, usage: usage_of(*usage) }
        }
        Owned::Credentials([uid, euid, gid, egid], capabilities, gained) => Fact::Credentials {
            uid: *uid,
            euid: *euid,
            gid: *gid,
            egid: *egid,
            capabilities: *capabilities,
            gained: *gained,
        },
        Owned::Open(path, flags, result, created) => {
            Fact::Open { path: path_ref(path), flags: *flags, result: *result, created: *created }
        }
        Owned::Delete(path, directory, result) => {
            Fact::Delete { path: path_ref(path), directory: *directory, result: *result }
        }
        Owned::Rename([from, to], exchange, result) => {
            Fact::Rename { from: path_ref(from), to: path_ref(to), exchange: *exchange, result: *result }
        }
        Owned::Change(change, [path, other], has_other, value, result) => Fact::Change {
            change: FileChange::try_from(*change).unwrap(),
            path: path_ref(path),
            other: has_other.then(|| path_ref(other)),
            value: *value,
            result: *result,
        },
        Owned::Io(path, numbers) => {
            let [reads, writes, read_bytes, written_bytes] = numbers.map(u64::from);
            Fact::Io { path: path_ref(path), reads, writes, read_bytes, written_bytes }
        }
        Owned::Socket(operation, address, protocol, result) => Fact::Socket {
            operation: SocketOperation::try_from(*operation).unwrap(),
            address: address.borrowed(),
            protocol: *protocol,
            result: *result,
        },
        Owned::Traffic(address, protocol, numbers) => {
            let [sends, receives, sent_bytes, received_bytes] = numbers.map(u64::from);
            let address = address.borrowed();
            Fact::Traffic { address, protocol: *protocol, sends, receives, sent_bytes, received_bytes }
        }
        Owned::Dns(server, name, query_type, answers, response_code) => Fact::Dns {
            server: server.borrowed(),
            name,
            query_type: *query_type,
            answers,
            response_code: *response_code,
        },
        Owned::Operation(operation, value, target_tgid, result) => Fact::Operation {
            operation: Operation::try_from(*operation).unwrap(),
            value: *value,
            target_tgid: *target_tgid,
            result: *result,
        },
    };
    then(&Event { boot_ns: *boot_ns, process: process(*tgid), fact })
}

fn event() -> impl Strategy<Value = (u64, u32, Owned)> {
    // Few paths, so that some repeat; any bytes, because Linux paths are any bytes.
    let path = || (prop_oneof![Just(b"/a".to_vec()), vec(any::<u8>(), 0..40)], 0u8..16);
    let paths = move || (path(), path()).prop_map(|(one, other)| [one, other]);
    let result = || prop_oneof![Just(0), -4095..=0i32, any::<i32>()];
    let numbers = || prop_oneof![Just([0; 4]), Just([1, 0, 5, 0]), any::<[u32; 4]>()];
    let address = || {
        prop_oneof![
            (any::<[u8; 4]>(), any::<u16>()).prop_map(|(a, p)| OwnedAddress::V4(a, p)),
            Just(OwnedAddress::V4([127, 0, 0, 1], 53)),
            (any::<[u8; 16]>(), any::<u16>()).prop_map(|(a, p)| OwnedAddress::V6(a, p)),
            vec(any::<u8>(), 0..40).prop_map(OwnedAddress::Unix),
        ]
    };
    let argv = vec(vec(any::<u8>(), 0..20), 0..5);
    let owned = prop_oneof![
        (0..9u32).prop_map(Owned::Fork),
        (paths(), argv, any::<[u32; 3]>(), any::<bool>()).prop_map(
            |(paths, argv, numbers, argv_truncated)| { Owned::Exec { paths, argv, numbers, argv_truncated } }
        ),
        any::<(u8, u8, bool, [u64; 5])>().prop_map(|(c, s, core, usage)| Owned::Exit(c, s, core, usage)),
        any::<([u32; 4], u64, bool)>().prop_map(|(ids, c, gained)| Owned::Credentials(ids, c, gained)),
        (path(), prop_oneof![Just(0), any::<u32>()], result(), any::<bool>())
            .prop_map(|(p, f, r, c)| Owned::Open(p, f, r, c)),
        (path(), any::<bool>(), result()).prop_map(|(p, d, r)| Owned::Delete(p, d, r)),
        (paths(), any::<bool>(), result()).prop_map(|(p, e, r)| Owned::Rename(p, e, r)),
        (0..12u8, paths(), any::<bool>(), any::<u64>(), result())
            .prop_map(|(c, p, o, v, r)| Owned::Change(c, p, o, v, r)),
        (path(), numbers()).prop_map(|(p, n)| Owned::Io(p, n)),
        (0..5u8, address(), any::<u8>(), result()).prop_map(|(o, a, p, r)| Owned::Socket(o, a, p, r)),
        (address(), any::<u8>(), numbers()).prop_map(|(a, p, n)| Owned::Traffic(a, p, n)),
        (address(), vec(any::<u8>(), 0..20), any::<u16>(), vec(any::<IpAddr>(), 0..4), any::<Option<u8>>())
            .prop_map(|(s, n, q, a, r)| Owned::Dns(s, n, q, a, r)),
        (0..18u8, 0..3u64, 0..3u32, result()).prop_map(|(o, v, t, r)| Owned::Operation(o, v, t, r)),
    ];
    (any::<u64>(), 0..9u32, owned)
}

/// Everything that frames say: of what is told one by one a line, of what may collapse or add up a sum per line.
#[derive(Debug, Default, PartialEq)]
struct Said(BTreeMap<String, Vec<u128>>);

impl Said {
    fn add(&mut self, line: String, numbers: &[u64]) {
        let sums = self.0.entry(line).or_insert_with(|| vec![0; numbers.len()]);
        sums.iter_mut().zip(numbers).for_each(|(sum, number)| *sum += u128::from(*number));
    }

    fn event(&mut self, &Event { boot_ns, process, fact }: &Event<'_>) {
        match fact {
            // Each its own, with its time.
            Fact::Fork { .. } | Fact::Exec { .. } | Fact::Exit { .. } | Fact::Credentials { .. } => {
                self.add(format!("{boot_ns} {process:?} {fact:?}"), &[1]);
            }
            Fact::Io { path, reads, writes, read_bytes, written_bytes } => {
                self.add(format!("io {process:?} {path:?}"), &[reads, writes, read_bytes, written_bytes]);
            }
            Fact::Traffic { address, protocol, sends, receives, sent_bytes, received_bytes } => {
                let numbers = [sends, receives, sent_bytes, received_bytes];
                self.add(format!("traffic {process:?} {address:?} {protocol}"), &numbers);
            }
            _ => self.add(format!("{process:?} {fact:?}"), &[1]),
        }
    }

    fn frame(&mut self, Frame { body, .. }: &Frame<'_>) {
        let path = |index: u32| body.paths.at(index);
        let mut say = |after_ns: u64, process: u32, fact: Fact<'_>, count: u64| {
            let process = body.processes[process as usize];
            let event = Event { boot_ns: body.base_boot_ns + after_ns, process, fact };
            (0..count).for_each(|_| self.event(&event));
        };
        for e in &body.forks {
            say(e.after_ns, e.process, Fact::Fork { child: body.processes[e.child as usize] }, 1);
        }
        for e in &body.execs {
            let argv: Vec<&[u8]> = e.argv.iter().map(|argument| argument.as_ref()).collect();
            let env: Vec<&[u8]> = e.env.iter().map(|name| name.as_ref()).collect();
            let fact = Fact::Exec {
                ppid: e.ppid,
                exe: path(e.exe),
                cwd: path(e.cwd),
                argv: &argv,
                argv_truncated: e.argv_truncated,
                uid: e.uid,
                gid: e.gid,
                env: &env,
                env_truncated: e.env_truncated,
                flags: e.flags,
            };
            say(e.after_ns, e.process, fact, 1);
        }
        for e in &body.exits {
            let Exit { code, signal, core_dumped, usage, .. } = *e;
            say(e.after_ns, e.process, Fact::Exit { code, signal, core_dumped, usage }, 1);
        }
        for e in &body.credentials {
            let Credentials { uid, euid, gid, egid, capabilities, gained, .. } = *e;
            let fact = Fact::Credentials { uid, euid, gid, egid, capabilities, gained };
            say(e.after_ns, e.process, fact, 1);
        }
        for e in &body.opens {
            let Open { flags, result, created, count, .. } = *e;
            say(e.after_ns, e.process, Fact::Open { path: path(e.path), flags, result, created }, count);
        }
        for e in &body.deletes {
            let Delete { directory, result, count, .. } = *e;
            say(e.after_ns, e.process, Fact::Delete { path: path(e.path), directory, result }, count);
        }
        for e in &body.renames {
            let Rename { exchange, result, count, .. } = *e;
            let fact = Fact::Rename { from: path(e.from), to: path(e.to), exchange, result };
            say(e.after_ns, e.process, fact, count);
        }
        for e in &body.changes {
            let Change { change, value, result, count, .. } = *e;
            let fact = Fact::Change { change, path: path(e.path), other: e.other.map(path), value, result };
            say(e.after_ns, e.process, fact, count);
        }
        for e in &body.ios {
            let Io { reads, writes, read_bytes, written_bytes, .. } = *e;
            say(
                e.after_ns,
                e.process,
                Fact::Io { path: path(e.path), reads, writes, read_bytes, written_bytes },
                1,
            );
        }
        for e in &body.sockets {
            let Socket { operation, protocol, result, count, .. } = *e;
            let address = address_of(e.address, e.port);
            say(e.after_ns, e.process, Fact::Socket { operation, address, protocol, result }, count);
        }
        for e in &body.traffic {
            let Traffic { protocol, sends, receives, sent_bytes, received_bytes, .. } = *e;
            let address = address_of(e.address, e.port);
            let fact = Fact::Traffic { address, protocol, sends, receives, sent_bytes, received_bytes };
            say(e.after_ns, e.process, fact, 1);
        }
        for e in &body.dns {
            assert!(!e.truncated);
            let answers: Vec<IpAddr> = e.answers.iter().map(|answer| ip_of(answer)).collect();
            let fact = Fact::Dns {
                server: address_of(e.server, e.port),
                name: e.name,
                query_type: e.query_type,
                answers: &answers,
                response_code: e.response_code,
            };
            say(e.after_ns, e.process, fact, e.count);
        }
        for e in &body.operations {
            let frame::Operation { operation, value, target_tgid, result, count, .. } = *e;
            say(e.after_ns, e.process, Fact::Operation { operation, value, target_tgid, result }, count);
        }
    }
}

fn ip_of(bytes: &[u8]) -> IpAddr {
    match *bytes {
        [a, b, c, d] => IpAddr::from([a, b, c, d]),
        _ => IpAddr::from(<[u8; 16]>::try_from(bytes).unwrap()),
    }
}

fn address_of(bytes: &[u8], port: Option<u16>) -> Address<'_> {
    match (port, port.map(|_| ip_of(bytes))) {
        (Some(port), Some(IpAddr::V4(address))) => Address::V4(address.octets(), port),
        (Some(port), Some(IpAddr::V6(address))) => Address::V6(address.octets(), port),
        _ => Address::Unix(bytes),
    }
}

/// How many facts an event stands for.
fn facts_of((_, _, owned): &(u64, u32, Owned)) -> u64 {
    match owned {
        Owned::Io(_, [calls, more, ..]) | Owned::Traffic(_, _, [calls, more, ..]) => {
            (u64::from(*calls) + u64::from(*more)).max(1)
        }
        _ => 1,
    }
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
        let (mut said, mut pushed) = (Said::default(), Said::default());
        decoded.iter().for_each(|frame| said.frame(frame));
        events.iter().for_each(|event| with_event(event, |event| pushed.event(event)));
        prop_assert_eq!(said, pushed);
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
        prop_assert_eq!(observed, events.iter().map(facts_of).sum::<u64>());
        // What the frames hold is what the counters say.
        let mut held = [(0, 0); 5];
        for (class, delivered, collapsed) in decoded.iter().flat_map(|frame| frame.body.facts()) {
            held[class as usize].0 += delivered;
            held[class as usize].1 += collapsed;
        }
        for class in Class::ALL {
            let counters = last.class(class);
            prop_assert_eq!(held[class as usize], (counters.delivered, counters.collapsed));
        }
    }

    #[test]
    fn any_bytes_are_an_answer(tail in vec(any::<u8>(), 0..400)) {
        let _ = Frame::decode(&tail);
        for version in 1..=version::FRAME {
            let _ = Frame::decode(&[b"\x95\xa3ghf", &[version][..], &*tail].concat());
        }
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
    let of_table: [&dyn Fn(&mut Frame<'_>); 25] = [
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
        &|frame| frame.body.sockets[0].process = 9,
        &|frame| frame.body.credentials[0].process = 9,
        &|frame| frame.body.changes[0].process = 9,
        &|frame| frame.body.changes[0].path = 99,
        &|frame| frame.body.changes[0].other = Some(99),
        &|frame| frame.body.ios[0].process = 9,
        &|frame| frame.body.ios[0].path = 99,
        &|frame| frame.body.traffic[0].process = 9,
        &|frame| frame.body.dns[0].process = 9,
        &|frame| frame.body.operations[0].process = 9,
        &|frame| frame.body.processes.clear(),
        &|frame| frame.body.paths.clear(),
    ];
    for change in of_table {
        assert!(refused(change).contains("of a table of"));
    }
    let of_nothing: [&dyn Fn(&mut Frame<'_>); 7] = [
        &|frame| frame.body.opens[0].count = 0,
        &|frame| frame.body.deletes[0].count = 0,
        &|frame| frame.body.renames[0].count = 0,
        &|frame| frame.body.changes[0].count = 0,
        &|frame| frame.body.sockets[0].count = 0,
        &|frame| frame.body.dns[0].count = 0,
        &|frame| frame.body.operations[0].count = 0,
    ];
    for change in of_nothing {
        assert!(refused(change).contains("stands for none"));
    }
    let of_address: [&dyn Fn(&mut Frame<'_>); 4] = [
        &|frame| frame.body.sockets[0].address = b"123",
        &|frame| frame.body.traffic[0].address = b"123",
        &|frame| frame.body.dns[0].server = b"123",
        &|frame| frame.body.dns[1].answers[0] = serde_bytes::Bytes::new(b"123"),
    ];
    for change in of_address {
        assert!(refused(change).contains("neither 4 nor 16"));
    }
    let address = serde_bytes::Bytes::new(b"1234");
    assert!(refused(&|frame| frame.body.dns[0].answers = vec![address; 65]).contains("too long"));
    assert!(refused(&|frame| frame.body.dns[0].name = &[b'x'; 256]).contains("too long"));
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
