//! Events per second of the codec: `cargo bench -p glasshouse-schema --bench codec`.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, reason = "a bench fails by panicking")]

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use glasshouse_schema::frame::FrameWriterConfig;
use glasshouse_schema::{Event, ExecutionId, Fact, Frame, FrameWriter, NodeId, PathRef, ProcessKey, Vantage};

const EVENTS: u64 = 256;

fn writer() -> FrameWriter {
    let execution = ExecutionId::from_parts(1, [1; 10]);
    FrameWriter::new(FrameWriterConfig::new(execution, NodeId::new("node").unwrap(), Vantage::Host, 1, 0))
}

fn paths() -> Vec<String> {
    (0..EVENTS)
        .map(|n| format!("/usr/lib/python3.12/site-packages/package_{}/module_{n}.py", n / 16))
        .collect()
}

fn fill(writer: &mut FrameWriter, paths: &[String]) -> Vec<u8> {
    for (path, n) in paths.iter().zip(0u32..) {
        let event = Event {
            boot_ns: 5_000_000_000 + u64::from(n) * 10_000,
            process: ProcessKey { tgid: 100 + n % 4, start_boot_ns: 1_000_000_000 },
            fact: Fact::Open {
                path: PathRef::resolved(path.as_bytes()),
                flags: 0o2_000_000,
                result: 0,
                created: false,
            },
        };
        assert!(writer.push(black_box(&event)).is_none());
    }
    writer.flush().unwrap().bytes
}

fn codec(criterion: &mut Criterion) {
    let paths = paths();
    let bytes = fill(&mut writer(), &paths);
    let mut group = criterion.benchmark_group("codec");
    group.throughput(Throughput::Elements(EVENTS));
    let mut reused = writer();
    group.bench_function("encode 256 opens", |bencher| {
        bencher.iter_batched(|| (), |()| fill(&mut reused, &paths), BatchSize::SmallInput);
    });
    group.bench_function("decode 256 opens", |bencher| {
        bencher.iter(|| Frame::decode(black_box(&bytes)).unwrap().body.events());
    });
    group.finish();
}

criterion_group!(benches, codec);
criterion_main!(benches);
