//! How long loading and attaching takes, and watching one more execution. Needs root.
//!
//! `cargo bench -p glasshouse-host-probe --bench load`

#![allow(clippy::unwrap_used, reason = "a bench fails by panicking")]
#![allow(missing_docs, reason = "criterion's macros make undocumented functions")]

#[cfg(target_os = "linux")]
fn load(criterion: &mut criterion::Criterion) {
    use glasshouse_host_probe::{HostProbe, LoadOptions, WatchRequest, cgroup};
    use glasshouse_schema::frame::{FrameWriter, FrameWriterConfig};
    use glasshouse_schema::lifecycle::RedactionRules;
    use glasshouse_schema::redact::Redactor;
    use glasshouse_schema::{EncodedFrame, ExecutionId, NodeId, Vantage};

    let probe = match HostProbe::load(&LoadOptions::default()) {
        Ok(probe) => probe,
        Err(error) => {
            eprintln!("skipped: {error}");
            return;
        }
    };
    let mut group = criterion.benchmark_group("probe");
    group.sample_size(21);
    group.bench_function("load_attach_drop", |bencher| {
        bencher.iter(|| HostProbe::load(&LoadOptions::default()).unwrap());
    });
    let directory = cgroup::mount_point().unwrap().join(format!("glasshouse-bench-{}", std::process::id()));
    std::fs::create_dir(&directory).unwrap();
    let cgroup_id = cgroup::id(&directory).unwrap();
    let id = ExecutionId::from_parts(1, [0; 10]);
    group.bench_function("watch_seal", |bencher| {
        bencher.iter(|| {
            let config = FrameWriterConfig::new(id, NodeId::new("bench").unwrap(), Vantage::Host, 1, 0);
            let request = WatchRequest {
                cgroup_id,
                root_tgid: 1,
                writer: FrameWriter::new(config),
                redactor: Redactor::new(
                    [0; 32],
                    id,
                    RedactionRules { path_prefixes: Vec::new(), tokens: true },
                ),
                sink: Box::new(|_: EncodedFrame| {}),
                lossless: false,
            };
            probe.watch(request).unwrap().seal().unwrap()
        });
    });
    std::fs::remove_dir(&directory).unwrap();
}

#[cfg(target_os = "linux")]
criterion::criterion_group!(benches, load);
#[cfg(target_os = "linux")]
criterion::criterion_main!(benches);

#[cfg(not(target_os = "linux"))]
fn main() {
    eprintln!("skipped: the host probe needs Linux");
}
