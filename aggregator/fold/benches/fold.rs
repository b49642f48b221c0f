//! Events per second of the fold, from encoded frames: `cargo bench -p glasshouse-fold --bench fold`.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, reason = "a bench fails by panicking")]

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use glasshouse_fold::ExecutionFold;
use glasshouse_schema::frame::FrameWriterConfig;
use glasshouse_schema::{
    EncodedFrame, Event, ExecutionId, Fact, FrameWriter, NodeId, PathRef, ProcessKey, Vantage,
};

const FRAMES: usize = 64;
const PER_FRAME: usize = 256;

fn execution() -> ExecutionId {
    ExecutionId::from_parts(1, [1; 10])
}

/// Frames of 256 opens each, over so many distinct files in all.
fn frames(files: usize) -> Vec<EncodedFrame> {
    let config = FrameWriterConfig::new(execution(), NodeId::new("node").unwrap(), Vantage::Host, 1, 0);
    let mut writer = FrameWriter::new(config);
    let paths: Vec<String> = (0..files)
        .map(|n| format!("/usr/lib/python3.12/site-packages/package_{}/module_{n}.py", n / 16))
        .collect();
    let mut frames = Vec::new();
    for n in 0..FRAMES * PER_FRAME {
        // A step that meets every file before it meets one again, in no sorted order.
        let path = &paths[n * 7919 % files];
        let event = Event {
            boot_ns: 5_000_000_000 + n as u64 * 10_000,
            process: ProcessKey { tgid: 100 + n as u32 % 8, start_boot_ns: 1_000_000_000 },
            fact: Fact::Open {
                path: PathRef::resolved(path.as_bytes()),
                flags: 0o2_000_000,
                result: 0,
                created: false,
            },
        };
        assert!(writer.push(&event).is_none());
        if n % PER_FRAME == PER_FRAME - 1 {
            frames.extend(writer.flush());
        }
    }
    frames
}

fn fold(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("fold");
    group.throughput(Throughput::Elements((FRAMES * PER_FRAME) as u64));
    // A build opens the same headers again and again; a search opens every file once.
    for files in [512, 4_096, FRAMES * PER_FRAME] {
        let frames = frames(files);
        group.bench_function(format!("opens of {files} files"), |bencher| {
            bencher.iter_batched(
                || ExecutionFold::new(execution()),
                |mut fold| {
                    frames.iter().for_each(|frame| fold.frame(black_box(&frame.bytes), None).unwrap());
                    fold
                },
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, fold);
criterion_main!(benches);
