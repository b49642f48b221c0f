//! Writes the seeds: `cargo run --example seeds`, in this folder, after a change of the format.

use std::path::Path;

use glasshouse_nats::spool_fuzz::{self as spool, Plain};
use glasshouse_nats_fuzz::{DAMAGED_CURSOR, FITTED, GAP, NEW_SEGMENT};

fn main() -> std::io::Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds/spool");
    std::fs::create_dir_all(&folder)?;
    seeds().iter().try_for_each(|(name, bytes)| std::fs::write(folder.join(name), bytes))
}

fn message(n: u64) -> Plain {
    let headers = [("Nats-Msg-Id", format!("f:node:{n}")), ("traceparent", "00-1-2-03".to_owned())];
    let subject = match n % 2 {
        0 => "glasshouse.v1.frames.node.execution.host",
        _ => "glasshouse.v1.lifecycle.node.execution.started",
    };
    let headers = headers.map(|(name, value)| (name.to_owned(), value));
    (subject.to_owned(), headers.to_vec(), vec![n as u8; 40])
}

fn record(seq: u64) -> Vec<u8> {
    spool::record(seq, &message(seq)).expect("a small message is a record")
}

fn input(cursor: u8, parts: &[(u8, Vec<u8>)]) -> Vec<u8> {
    let mut input = vec![cursor];
    for (flags, bytes) in parts {
        input.push(*flags);
        input.extend((bytes.len() as u16).to_le_bytes());
        input.extend(bytes);
    }
    input
}

fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let whole = |flags: &[u8]| -> Vec<(u8, Vec<u8>)> {
        flags.iter().enumerate().map(|(seq, flags)| (*flags, record(seq as u64))).collect()
    };
    let torn = |end: Vec<u8>| [whole(&[0, 0]), vec![(0, end)]].concat();
    let mut altered = whole(&[0, 0, 0]);
    altered[1].1[30] ^= 1;
    let mut foreign = record(0);
    let at = foreign.windows(10).position(|bytes| bytes == b"glasshouse").expect("the subject is in it");
    foreign[at..at + 10].copy_from_slice(b"$JS.API.ST");
    let half = record(2)[..40].to_vec();
    vec![
        ("nothing", input(0, &[])),
        ("one-segment", input(0, &whole(&[0, 0, 0]))),
        ("three-segments", input(0, &whole(&[0, 0, NEW_SEGMENT, 0, NEW_SEGMENT]))),
        ("cursor", input(2, &whole(&[0, 0, 0, NEW_SEGMENT]))),
        ("cursor-ahead", input(9, &whole(&[0, 0]))),
        ("cursor-damaged", input(DAMAGED_CURSOR, &whole(&[0, 0]))),
        ("segment-missing", input(0, &[whole(&[0, 0]), vec![(NEW_SEGMENT | GAP, record(3))]].concat())),
        ("torn", input(0, &torn(half))),
        ("torn-zeros", input(0, &torn(vec![0; 100]))),
        ("torn-promise", input(0, &torn([&[0xff, 0xff, 0x10, 0][..], &[1; 20]].concat()))),
        ("altered", input(0, &altered)),
        ("wrong-number", input(0, &[(0, record(0)), (0, record(5)), (0, record(2))])),
        ("foreign-subject", input(0, &[(FITTED, foreign)])),
        ("fitted", input(0, &whole(&[FITTED, FITTED]))),
    ]
}
