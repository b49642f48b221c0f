//! Bytes and CPU time per event of codec, compression and fold, over the committed recordings of real workloads
//! (`schema/recordings`, made by `scripts/record.sh`): `cargo bench -p glasshouse-fold --bench recordings`.
//!
//! An event is an entry of a frame. Beside ours stands what an array of MessagePack per event would take, its path in full,
//! for the opens and the bytes read and written of the same recordings. Times are CPU times of the one thread: the median of
//! rounds of at least 50 ms.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, reason = "a bench fails by panicking")]

use std::hint::black_box;
use std::time::Duration;

use glasshouse_fold::ExecutionFold;
use glasshouse_schema::frame::Header;
use glasshouse_schema::lifecycle::{Attached, Claimed, Profiled};
use glasshouse_schema::{Digest, Frame, LifecycleEvent, Phase, version};
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// The aggregator's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const RECORDINGS: [&str; 4] = ["compile", "git", "tar", "tests"];
const ROUNDS: usize = 7;
const ROUND: Duration = Duration::from_millis(50);

fn recording(name: &str) -> Vec<Vec<u8>> {
    let path = format!("{}/../../schema/recordings/{name}.frames", env!("CARGO_MANIFEST_DIR"));
    let bytes = std::fs::read(path).unwrap();
    let (mut frames, mut rest) = (Vec::new(), &bytes[..]);
    while let Some((length, after)) = rest.split_first_chunk() {
        let (frame, after) = after.split_at(u32::from_le_bytes(*length) as usize);
        frames.push(frame.to_vec());
        rest = after;
    }
    frames
}

fn cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap().into()
}

/// Nanoseconds of CPU time that `work` takes per event.
fn cost<T>(events: usize, mut work: impl FnMut() -> T) -> f64 {
    black_box(work());
    let mut rounds: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let (began, mut times) = (cpu_time(), 0u32);
            loop {
                black_box(work());
                times += 1;
                let took = cpu_time() - began;
                if took >= ROUND {
                    return took.as_nanos() as f64 / f64::from(times) / events as f64;
                }
            }
        })
        .collect();
    rounds.sort_by(f64::total_cmp);
    rounds[ROUNDS / 2]
}

/// An open, or what was read and written, as the array that one would send without a thought: `flags, result, count,
/// created` or `reads, writes, read_bytes, written_bytes`.
#[derive(Serialize, Deserialize)]
struct Plain<'a>(u8, u64, u32, u64, #[serde(borrow)] &'a serde_bytes::Bytes, u8, [u64; 4]);

fn plain<'f>(frame: &'f Frame<'_>) -> Vec<Plain<'f>> {
    let body = &frame.body;
    let row = |kind, after_ns: u64, process: u32, path, numbers| {
        let (process, path) = (body.processes[process as usize], body.paths.at(path));
        let bytes = serde_bytes::Bytes::new(path.bytes);
        let boot_ns = body.base_boot_ns + after_ns;
        Plain(kind, boot_ns, process.tgid, process.start_boot_ns, bytes, path.flags.0, numbers)
    };
    let opens = body.opens.iter().map(|open| {
        let result = open.result.unsigned_abs().into();
        row(
            0,
            open.after_ns,
            open.process,
            open.path,
            [open.flags.into(), result, open.count, open.created.into()],
        )
    });
    let ios = body.ios.iter().map(|io| {
        row(1, io.after_ns, io.process, io.path, [io.reads, io.writes, io.read_bytes, io.written_bytes])
    });
    opens.chain(ios).collect()
}

fn total(parts: &[Vec<u8>]) -> f64 {
    parts.iter().map(Vec::len).sum::<usize>() as f64
}

type Pack = Box<dyn Fn(&[u8]) -> Vec<u8>>;
type Unpack = Box<dyn Fn(&[u8], usize) -> Vec<u8>>;

fn compressions(dictionary: &[u8]) -> Vec<(&'static str, Pack, Unpack)> {
    let zstd = |level| -> Pack { Box::new(move |frame| zstd::bulk::compress(frame, level).unwrap()) };
    let unzstd = || -> Unpack { Box::new(|bytes, length| zstd::bulk::decompress(bytes, length).unwrap()) };
    let with = |level| -> Pack {
        let compressor = zstd::bulk::Compressor::with_dictionary(level, dictionary).unwrap();
        let compressor = std::cell::RefCell::new(compressor);
        Box::new(move |frame| compressor.borrow_mut().compress(frame).unwrap())
    };
    let without = || -> Unpack {
        let decompressor = zstd::bulk::Decompressor::with_dictionary(dictionary).unwrap();
        let decompressor = std::cell::RefCell::new(decompressor);
        Box::new(move |bytes, length| decompressor.borrow_mut().decompress(bytes, length).unwrap())
    };
    vec![
        (
            "lz4",
            Box::new(lz4_flex::block::compress),
            Box::new(|bytes, length| lz4_flex::block::decompress(bytes, length).unwrap()),
        ),
        ("zstd 1", zstd(1), unzstd()),
        ("zstd 3", zstd(3), unzstd()),
        ("zstd 1, dictionary", with(1), without()),
        ("zstd 3, dictionary", with(3), without()),
    ]
}

/// Tells the fold that there is somebody whose frames make a receipt.
fn watched(fold: &mut ExecutionFold, header: &Header) {
    let claimed = Claimed { node: header.node.clone(), epoch: header.epoch };
    let attached = Attached {
        vantage: header.vantage,
        controller: "ebpf".into(),
        hooks: Vec::new(),
        blind_spots: Vec::new(),
    };
    let profiled = Profiled { attached: vec![attached], unavailable: Vec::new() };
    for phase in [Phase::Claimed(claimed), Phase::Profiled(profiled)] {
        let event = LifecycleEvent {
            schema_version: version::LIFECYCLE,
            execution_id: header.execution,
            node: Some(header.node.clone()),
            unix_ns: 0,
            phase,
        };
        fold.lifecycle(&event).unwrap();
    }
}

fn main() {
    // A dictionary of what the other workloads say: of itself it would know too much.
    for name in RECORDINGS {
        let others: Vec<Vec<u8>> =
            RECORDINGS.iter().filter(|other| **other != name).flat_map(|other| recording(other)).collect();
        let dictionary = zstd::dict::from_samples(&others, 32 * 1024).unwrap();
        let frames: Vec<Vec<u8>> =
            recording(name).iter().map(|frame| Frame::decode(frame).unwrap().encode().unwrap()).collect();
        let decoded: Vec<Frame<'_>> = frames.iter().map(|frame| Frame::decode(frame).unwrap()).collect();
        let events: usize = decoded.iter().map(|frame| frame.body.events()).sum();
        let per_event = |bytes: f64| bytes / events as f64;
        println!("\n{name}: {events} events in {} frames", frames.len());

        let rows: Vec<Vec<Plain<'_>>> = decoded.iter().map(plain).collect();
        let row_count = rows.iter().map(Vec::len).sum::<usize>();
        let arrays: Vec<Vec<u8>> = rows.iter().map(|rows| rmp_serde::to_vec(rows).unwrap()).collect();
        let array_bytes = total(&arrays) / row_count as f64;
        let array_encode = cost(row_count, || {
            rows.iter().for_each(|rows| drop(black_box(rmp_serde::to_vec(rows).unwrap())))
        });
        let array_decode = cost(row_count, || {
            arrays.iter().for_each(|bytes| {
                black_box(rmp_serde::from_slice::<Vec<Plain<'_>>>(bytes).unwrap());
            });
        });

        let bytes = per_event(total(&frames));
        let encode =
            cost(events, || decoded.iter().for_each(|frame| drop(black_box(frame.encode().unwrap()))));
        let decode = cost(events, || {
            frames.iter().for_each(|frame| {
                black_box(Frame::decode(frame).unwrap());
            });
        });
        let digest = cost(events, || frames.iter().map(|frame| Digest::of(frame)).max());
        let execution = decoded[0].header.execution;
        let fold = cost(events, || {
            let mut fold = ExecutionFold::new(execution);
            frames.iter().for_each(|frame| fold.frame(frame, None).unwrap());
            fold
        });

        let mut folded = ExecutionFold::new(execution);
        frames.iter().for_each(|frame| folded.frame(frame, None).unwrap());
        watched(&mut folded, &decoded[0].header);
        let receipt = folded.receipt().unwrap();
        let receipt_bytes = per_event(receipt.encode().unwrap().len() as f64);
        let build = cost(events, || folded.receipt().unwrap());
        let write = cost(events, || receipt.encode().unwrap());

        let rate = |ns: f64| 1e3 / ns;
        println!("  {:<28} {:>8} {:>22} {:>22}", "", "B/event", "M events/s per core", "plain arrays take");
        let line = |what: &str, bytes: Option<f64>, ns: Option<f64>, times: Option<f64>| {
            let bytes = bytes.map(|bytes| format!("{bytes:.1}")).unwrap_or_default();
            let rate = ns.map(|ns| format!("{:.1} ({ns:.1} ns)", rate(ns))).unwrap_or_default();
            let times = times.map(|times| format!("{times:.2} times")).unwrap_or_default();
            println!("  {what:<28} {bytes:>8} {rate:>22} {times:>22}");
        };
        line("plain arrays, encode", Some(array_bytes), Some(array_encode), None);
        line("plain arrays, decode", None, Some(array_decode), None);
        line("frames", Some(bytes), None, Some(array_bytes / bytes));
        line("frames, encode", None, Some(encode), Some(array_encode / encode));
        line("frames, decode", None, Some(decode), Some(array_decode / decode));
        line("frames, SHA-256", None, Some(digest), None);
        line("fold from encoded frames", None, Some(fold), Some(array_decode / fold));
        line("receipt, built", None, Some(build), None);
        line("receipt, written", Some(receipt_bytes), Some(write), None);
        println!(
            "  CPU seconds per million events: {:.3} to encode and hash, {:.3} to fold",
            (encode + digest) / 1e3,
            fold / 1e3
        );
        for (what, pack, unpack) in compressions(&dictionary) {
            let packed: Vec<Vec<u8>> = frames.iter().map(|frame| pack(frame)).collect();
            assert!(packed.iter().zip(&frames).all(|(packed, frame)| unpack(packed, frame.len()) == *frame));
            let there = cost(events, || frames.iter().for_each(|frame| drop(black_box(pack(frame)))));
            let back = cost(events, || {
                let both = packed.iter().zip(&frames);
                both.for_each(|(packed, frame)| drop(black_box(unpack(packed, frame.len()))));
            });
            let bytes = per_event(total(&packed));
            println!("  {what:<28} {bytes:>8.1} {there:>10.1} ns to pack {back:>8.1} ns to unpack");
        }
    }
}
