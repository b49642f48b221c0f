//! What a hostile frame can make a reader allocate, measured. A binary of one test, because it counts what the whole
//! process allocates.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use glasshouse_schema::Frame;
use glasshouse_schema::frame::MAX_FRAME_BYTES;

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

/// The lists of a body.
const LISTS: usize = 15;
/// Where they begin: an array with the base time before them.
const BODY: [u8; 4] = [0xdc, 0x00, 0x10, 0x00];
/// A seal's cost with every number 0.
const COST: [u8; 5] = [0x94, 0, 0, 0, 0];

/// The header of a real frame with its prelude: all that stands before the body.
fn beginning() -> Vec<u8> {
    let empty = common::writer().seal(Default::default(), Default::default()).remove(0);
    let frame = Frame::decode(&empty.bytes).unwrap();
    let body = [&BODY[..], &[0x90; LISTS]].concat();
    let at = empty.bytes.windows(body.len()).position(|window| window == body).unwrap();
    assert_eq!(frame.body.events(), 0);
    empty.bytes[..at].to_vec()
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
}
