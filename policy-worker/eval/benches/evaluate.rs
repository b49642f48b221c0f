//! Twenty rules over a receipt with 1,000 files: `cargo bench -p glasshouse-eval`.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a bench fails by panicking, and criterion's macros document nothing"
)]

#[path = "../tests/common/mod.rs"]
mod common;

use criterion::{Criterion, criterion_group, criterion_main};
use glasshouse_eval::Policy;
use glasshouse_schema::Digest;

fn evaluate(c: &mut Criterion) {
    let rules: String = (0..20)
        .map(|index| {
            let test = match index % 4 {
                0 => format!("receipt.files.all(f, !under(f.path, '/secret{index}'))"),
                1 => format!("receipt.files.all(f, !(glob(f.path, '/x{index}/**/*.key') && f.reads > 0))"),
                2 => format!("!receipt.files.exists(f, f.path.matches('^/x{index}/[a-z]+[0-9]*$'))"),
                _ => "receipt.filesystem.reads.all(p, p != '/etc/shadow')".to_owned(),
            };
            format!("  - {{id: r{index}, message: m, expression: \"{test}\"}}\n")
        })
        .collect();
    let yaml = format!("version: v1\nname: bench\nrules:\n{rules}");
    let policy = Policy::parse(&yaml, "bench.yaml").unwrap();
    let mut receipt = common::receipt();
    let file = receipt.files[0].clone();
    receipt.files = (0..1000)
        .map(|index| {
            let mut file = file.clone();
            file.path = format!("/usr/lib/x86_64-linux-gnu/package{index}/file.so");
            file
        })
        .collect();
    receipt.filesystem.reads = receipt.files.iter().map(|file| file.path.clone()).collect();
    let digest = Digest::of(&receipt.encode().unwrap());

    c.bench_function("parse 20 rules", |b| b.iter(|| Policy::parse(&yaml, "bench.yaml").unwrap()));
    c.bench_function("evaluate 20 rules over 1000 files", |b| {
        b.iter(|| policy.evaluate_post(&receipt, digest).unwrap());
    });
}

criterion_group!(benches, evaluate);
criterion_main!(benches);
