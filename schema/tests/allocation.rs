//! What a hostile frame can make a reader allocate, measured. A binary of one test, because it counts what the whole
//! process allocates.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use glasshouse_schema::Frame;
use glasshouse_schema::frame::{Body, MAX_FRAME_BYTES};

struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is handed on to the system's allocator unchanged; counting touches no memory of it.
#[allow(unsafe_code, reason = "an allocator is an unsafe trait")]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(now, Ordering::Relaxed);
        // SAFETY: the caller's promises about `layout` are the system allocator's demands.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: `pointer` came from `alloc` above, which gave the system allocator's.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The lists of a body up to version 2.
const LISTS: usize = 15;
/// Where they begin: an array with the base time before them.
const BODY: [u8; 4] = [0xdc, 0x00, 0x10, 0x00];
/// A seal's cost with every number 0.
const COST: [u8; 5] = [0x94, 0, 0, 0, 0];

/// The header of a frame of version 2 with its prelude: all that stands before the body.
fn beginning() -> Vec<u8> {
    let seal = std::fs::read(common::path("tests/golden/frame-v2-seal.bin")).unwrap();
    let body = [&BODY[..], &[0x90; LISTS]].concat();
    let at = seal.windows(body.len()).position(|window| window == body).unwrap();
    assert_eq!(Frame::decode(&seal).unwrap().body.events(), 0);
    seal[..at].to_vec()
}

/// A frame of version 3 with this body.
fn packed(body: &[u8]) -> Vec<u8> {
    let empty = common::writer().seal(Default::default(), Default::default()).remove(0).bytes;
    // Base time, processes, paths and 13 lists, all 0.
    let none = [&[0xc4, 16][..], &[0; 16]].concat();
    let at = empty.windows(none.len()).position(|window| window == none).unwrap();
    let length = u32::try_from(body.len()).unwrap().to_be_bytes();
    [&empty[..at], &[0xc6], &length, body, &[0xc0]].concat()
}

/// LEB128.
fn number(mut number: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
    bytes
}

fn measure(name: &str, bytes: &[u8]) {
    assert!(bytes.len() <= MAX_FRAME_BYTES);
    let before = NOW.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    let begun = Instant::now();
    let refused = Frame::decode(bytes).is_err();
    let (took, peak) = (begun.elapsed(), PEAK.load(Ordering::Relaxed) - before);
    println!("{name}: {} bytes, peak {peak} bytes, {took:?}, refused: {refused}", bytes.len());
    let limit = (16 << 20) + 64 * bytes.len();
    assert!(peak < limit, "{name}: {} bytes made the reader allocate {peak}", bytes.len());
    assert!(took < Duration::from_secs(2), "{name}: took {took:?}");
}

#[test]
fn hostile_frames_are_cheap() {
    let huge = [0xdd, 0xff, 0xff, 0xff, 0xff];
    measure("a list of 4 billion where the header is due", &[b"\x95\xa3ghf\x01", &huge[..]].concat());
    for kind in [0xdb, 0xc6, 0xc9, 0xdf] {
        // A text, bytes, an extension and a map of 4 GiB.
        let huge = [kind, 0xff, 0xff, 0xff, 0xff, 0x01];
        measure("4 GiB of something", &[b"\x95\xa3ghf\x01", &huge[..]].concat());
        measure("4 GiB of something in a header", &[b"\x95\xa3ghf\x01\x98", &huge[..]].concat());
    }

    let beginning = beginning();
    // Each list of the body in turn claims 4 billion entries, those before it are empty.
    for list in 0..LISTS {
        let body = [&BODY[..], &vec![0x90; list], &huge].concat();
        measure("a list of 4 billion in the body", &[&*beginning, &body].concat());
    }

    // As many of the smallest entries as a frame can hold.
    let entries: [(usize, &[u8]); LISTS] = [
        (0, &[0x92, 0, 0]),                                            // processes
        (1, &[0x92, 0xa0, 0]),                                         // paths
        (2, &[0x93, 0, 0, 0]),                                         // forks
        (3, &[0x99, 0, 0, 0, 0, 0, 0x90, 0xc2, 0, 0]),                 // execs
        (4, &[0x95, 0, 0, 0, 0, 0xc2]),                                // exits
        (5, &[0x96, 0, 0, 0, 0, 0, 1]),                                // opens
        (6, &[0x95, 0, 0, 0, 0xc2, 0]),                                // deletes
        (7, &[0x95, 0, 0, 0, 0, 0]),                                   // renames
        (8, &[0x96, 0, 0, 0xa0, 0xc0, 0, 0]),                          // sockets
        (9, &[0x98, 0, 0, 0, 0, 0, 0, 0, 0xc2]),                       // credentials
        (10, &[0x98, 0, 0, 0, 0, 0xc0, 0, 0, 1]),                      // changes
        (11, &[0x97, 0, 0, 0, 0, 0, 0, 0]),                            // ios
        (12, &[0x99, 0, 0, 0xa0, 0xc0, 0, 0, 0, 0, 0]),                // traffic
        (13, &[0x9a, 0, 0, 0xa0, 0xc0, 0xa0, 0, 0x90, 0xc0, 0xc2, 1]), // dns
        (14, &[0x97, 0, 0, 0, 0, 0, 0, 1]),                            // operations
    ];
    let room = MAX_FRAME_BYTES - beginning.len() - 64;
    let list = |room: usize, entry: &[u8]| {
        let count = u32::try_from(room / entry.len()).unwrap();
        [&[0xdd][..], &count.to_be_bytes(), &entry.repeat(count as usize)].concat()
    };
    for (at, entry) in entries {
        let body =
            [&BODY[..], &vec![0x90; at], &list(room, entry), &vec![0x90; LISTS - 1 - at], &[0xc0]].concat();
        measure("as many of the smallest entries as fit", &[&*beginning, &body].concat());
    }

    // One exec with as many empty arguments as fit.
    let exec = [&[0x91, 0x99, 0, 0, 0, 0, 0][..], &list(room, &[0xa0]), &[0xc2, 0, 0]].concat();
    let body =
        [&BODY[..], &[0x91, 0x92, 0, 0, 0x91, 0x92, 0xa0, 0, 0x90], &exec, &[0x90; LISTS - 4], &[0xc0]]
            .concat();
    measure("as many empty arguments as fit", &[&*beginning, &body].concat());

    // One answer to a DNS question with as many empty addresses as fit.
    let dns = [&[0x91, 0x9a, 0, 0, 0xa0, 0xc0, 0xa0, 0][..], &list(room, &[0xa0]), &[0xc0, 0xc2, 1]].concat();
    let body = [&BODY[..], &[0x91, 0x92, 0, 0], &[0x90; 12], &dns, &[0x90, 0xc0]].concat();
    let bytes = [&*beginning, &body].concat();
    assert!(Frame::decode(&bytes).is_err());
    measure("as many empty addresses as fit", &bytes);

    // A seal with as many empty names as fit.
    for (before, entry) in [(0, &[0x92, 0xa0, 0][..]), (3, &[0xa0])] {
        let seal = match before {
            0 => [&[0x96][..], &list(room, entry), &[0x90, 0, 0x90, 0x90], &COST].concat(),
            _ => [&[0x96, 0x90, 0x90, 0][..], &list(room, entry), &[0x90], &COST].concat(),
        };
        let bytes = [&*beginning, &BODY, &[0x90; LISTS], &seal].concat();
        assert!(Frame::decode(&bytes).is_ok());
        measure("as many empty names in the seal as fit", &bytes);
    }

    let refused = |name: &str, body: &[u8]| {
        let bytes = packed(body);
        assert!(Frame::decode(&bytes).is_err(), "{name}");
        measure(name, &bytes);
    };
    assert!(Frame::decode(&packed(&[0; 16])).is_ok());
    // Each list in turn, paths included, claims more than there is, those before it are empty.
    for list in 1..16 {
        for claimed in [1 << 16, 1 << 32, u64::MAX] {
            refused(
                "a packed list that is not there",
                &[&vec![0; list], &*number(claimed), &[0; 9]].concat(),
            );
        }
    }
    // Paths that share a long beginning each: 3 bytes that stand for 4 KiB.
    let paths = 200_000;
    let lengths = [number(4096), vec![0; paths - 1]].concat();
    let shared = [&[2, 0, 1][..], &number(4096), &number(paths as u64 - 1)].concat();
    let body =
        [&[0, 0][..], &number(paths as u64), &[2, 0, 1, 1], &number(paths as u64 - 1), &shared, &[0, 0]];
    refused("paths that share", &[&body.concat()[..], &lengths, &[b'x'; 4096], &[0; 13]].concat());

    // As many of the smallest entries as are let through, of each kind; one more is not even written.
    let golden = std::fs::read(common::path("tests/golden/frame-v3-events.bin")).unwrap();
    let mut golden = Frame::decode(&golden).unwrap();
    golden.body.dns.iter_mut().for_each(|dns| (dns.name, dns.answers) = (b"", Vec::new()));
    macro_rules! many {
        ($($list:ident)+) => {$(
            for events in [(1 << 16) - 2, (1 << 16) - 1] {
                let mut frame = golden.clone();
                let entry = frame.body.$list.pop().unwrap();
                let (processes, paths) = (frame.body.processes.clone(), frame.body.paths.clone());
                frame.body = Body { processes, paths, $list: vec![entry; events], ..Body::default() };
                match frame.encode() {
                    Ok(bytes) => {
                        assert!(Frame::decode(&bytes).is_ok());
                        measure(concat!("as many packed ", stringify!($list), " as fit"), &bytes);
                    }
                    Err(error) => assert!(events == (1 << 16) - 1, "{error}"),
                }
            }
        )+};
    }
    many! { forks execs exits credentials opens deletes renames changes ios sockets traffic dns operations }

    // One exec with as many empty arguments as fit.
    let arguments = MAX_FRAME_BYTES - 1024;
    // One process and one path, no fork, then the exec; the count of its arguments is the one number of a column.
    let mut body = [&[0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, b'/', 0, 1, 0][..], &[0; 9]].concat();
    body.extend(number(arguments as u64));
    body.extend(vec![0; arguments]);
    body.extend([0; 12 + 11]);
    let bytes = packed(&body);
    assert_eq!(Frame::decode(&bytes).unwrap().body.execs[0].argv.len(), arguments);
    measure("as many empty packed arguments as fit", &bytes);
}
