//! The pipeline beside what JetStream itself does with the same payloads in the same run:
//! `cargo bench -p glasshouse-aggregator --bench pipeline`, or with the names of some parts behind `--`:
//!
//! - `throughput`: producers -> GH_EVENTS -> aggregator -> receipts, over publish -> stream -> ordered read;
//! - `latency`: from the publish of an execution's last event to its receipt at a subscriber, 100 executions a second;
//! - `capped`: two aggregators, each with 25 % of a CPU, over one with as much (needs root for the cgroup);
//! - `scale`: 100,000 open executions of 1,000 nodes in one aggregator, and in the one that follows after a kill.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a bench fails by panicking"
)]

mod host;
mod load;
mod raw;
mod scale;
#[path = "../../tests/common/script.rs"]
mod script;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use glasshouse_nats::{Bus, Publisher, PublisherOptions, StreamStart};

use host::{Broker, Capped, Worker, cpu};
use load::{Script, Shape, node, scripts};

/// The aggregator's, which is what the fold is measured with.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const PRODUCERS: usize = 4;
const ROUNDS: usize = 3;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let is_wanted = |name: &str| wanted.is_empty() || wanted.iter().any(|arg| arg == name);
    if is_wanted("throughput") {
        throughput().await;
    }
    if is_wanted("latency") {
        latency().await;
    }
    if is_wanted("capped") {
        capped().await;
    }
    if is_wanted("scale") {
        scale::scale().await;
    }
}

fn publisher(bus: &Bus) -> Publisher {
    Publisher::new(bus, PublisherOptions::default())
}

/// The executions of every producer.
async fn load(broker: &Broker, executions: usize, shape: Shape) -> Vec<Vec<Script>> {
    let mut producers = Vec::new();
    for producer in 0..PRODUCERS {
        let numbers = (0..executions).filter(|number| number % PRODUCERS == producer);
        producers.push(scripts(&broker.bus, &node(producer), numbers.map(|n| n as u32), shape).await);
    }
    producers
}

/// Publishes everything at once and gives how long it took until this share of the receipts is there.
async fn published_to_receipts(broker: &Broker, producers: Vec<Vec<Script>>, share: f64) -> Duration {
    let count = producers.iter().map(Vec::len).sum::<usize>() as f64 * share;
    let mut receipts = broker.bus.tail_receipts(StreamStart::New).await.unwrap();
    let mut buses = Vec::new();
    for _ in &producers {
        buses.push(broker.connect().await);
    }
    let begun = Instant::now();
    let publish = producers.into_iter().zip(buses).map(|(scripts, bus)| {
        tokio::spawn(async move {
            let publisher = publisher(&bus);
            for script in scripts {
                script.publish(&publisher).await;
            }
            publisher.flush().await.unwrap();
        })
    });
    let publish: Vec<_> = publish.collect();
    host::receipts(&mut receipts, count as usize, |_| ()).await;
    let taken = begun.elapsed();
    for producer in publish {
        producer.await.unwrap();
    }
    taken
}

async fn throughput() {
    let plain = load::plain_bytes_per_event();
    let cores = std::thread::available_parallelism().unwrap().get() as f64;
    println!(
        "throughput: MB/s of frames, medians of {ROUNDS} rounds in which all take turns, M events/s, and CPU seconds per GB. \
         As MessagePack arrays an event takes {plain:.1} bytes: `plain` is how many of these the raw MB/s would be. `fold` is what \
         making the receipts costs with no bus around it; `limit` the MB/s at which {cores} processors are busy with that and \
         with what raw takes."
    );
    println!(
        "{:>9} {:>7} {:>7} | {:>6} {:>6} {:>6} {:>7} {:>8} | {:>6} {:>6} | {:>8} {:>6} {:>7} {:>9} {:>7} | {:>6} {:>8}",
        "frame",
        "frames",
        "B/event",
        "raw",
        "M ev/s",
        "plain",
        "server",
        "clients",
        "fold",
        "limit",
        "pipeline",
        "M ev/s",
        "server",
        "producers",
        "worker",
        "of raw",
        "of limit"
    );
    let loads = [
        (Shape::Recorded, 640),
        (Shape::Compile { frames: 120, frame_bytes: 16 << 10 }, 64),
        (Shape::Compile { frames: 30, frame_bytes: 128 << 10 }, 32),
    ];
    for (shape, executions) in loads {
        let mut columns: [Vec<f64>; 8] = Default::default();
        let (mut count, mut mean, mut event) = (0, 0.0, 0.0);
        for _ in 0..ROUNDS {
            let broker = Broker::start().await;
            // The first third is not counted: server and worker live long, and what they take at first is taken once.
            let mut early = load(&broker, executions + executions / 2, shape).await;
            let producers: Vec<Vec<Script>> =
                early.iter_mut().map(|scripts| scripts.split_off(executions / 2 / PRODUCERS)).collect();
            let bytes: usize = producers.iter().flatten().map(Script::frame_bytes).sum();
            let events: usize = producers.iter().flatten().map(Script::events).sum();
            count = producers.iter().flatten().map(|script| script.frames.len()).sum();
            (mean, event) = (bytes as f64 / count as f64, bytes as f64 / events as f64);
            let gigabytes = bytes as f64 / 1e9;

            let raw_broker = Broker::start().await;
            let mut raw_reader = raw::stream(&raw_broker).await;
            raw::throughput(&raw_broker, &mut raw_reader, payloads(&early)).await;
            let counted = payloads(&producers);
            let cpus = Cpus::now([raw_broker.server.pid(), std::process::id()]);
            let taken = raw::throughput(&raw_broker, &mut raw_reader, counted).await;
            let raw: Vec<f64> = std::iter::once(taken.as_secs_f64()).chain(cpus.since()).collect();
            drop(raw_broker);

            let cpus = Cpus::now([std::process::id()]);
            for script in producers.iter().flatten() {
                std::hint::black_box(script.receipt());
            }
            let fold: Vec<f64> = cpus.since().collect();

            let worker = Worker::start(&broker, "one");
            broker.shared_by(1).await;
            published_to_receipts(&broker, early, 1.0).await;
            let cpus = Cpus::now([broker.server.pid(), std::process::id(), worker.pid()]);
            let taken = published_to_receipts(&broker, producers, 1.0).await;
            let ours = std::iter::once(taken.as_secs_f64()).chain(cpus.since());
            for (column, seconds) in columns.iter_mut().zip(raw.into_iter().chain(fold).chain(ours)) {
                column.push(seconds / gigabytes);
            }
        }
        let [raw, server, clients, fold, pipeline, server_too, producers, worker] =
            columns.map(|mut column| median(&mut column));
        let (raw, pipeline) = (1e3 / raw, 1e3 / pipeline);
        let limit = 1e3 * cores / (server + clients + fold);
        println!(
            "{:>7.1}Ki {count:>7} {event:>7.1} | {raw:>6.0} {:>6.1} {:>6.1} {server:>7.2} {clients:>8.2} | {fold:>6.2} {limit:>6.0} | {pipeline:>8.0} {:>6.1} {server_too:>7.2} {producers:>9.2} {worker:>7.2} | {:>6.2} {:>8.2}",
            mean / 1024.0,
            raw / event,
            raw / plain,
            pipeline / event,
            pipeline / raw,
            pipeline / limit,
        );
    }
}

/// The frames of every producer.
fn payloads(producers: &[Vec<Script>]) -> Vec<Vec<Bytes>> {
    let frames = |scripts: &Vec<Script>| {
        let frames = scripts.iter().flat_map(|script| &script.frames);
        frames.map(|frame| Bytes::from(frame.bytes.clone())).collect()
    };
    producers.iter().map(frames).collect()
}

/// CPU times of processes, from a moment on.
struct Cpus<const N: usize>([(u32, Duration); N]);

impl<const N: usize> Cpus<N> {
    fn now(pids: [u32; N]) -> Self {
        Self(pids.map(|pid| (pid, cpu(pid))))
    }

    /// Seconds since then.
    fn since(&self) -> impl Iterator<Item = f64> {
        self.0.iter().map(|(pid, then)| cpu(*pid).saturating_sub(*then).as_secs_f64())
    }
}

async fn latency() {
    const EXECUTIONS: usize = 2_000;
    const EVERY: Duration = Duration::from_millis(10);
    println!("latency: ms, {EXECUTIONS} executions, one every {EVERY:?}");
    println!("{:>34} {:>7} {:>7} {:>7} {:>7}", "", "p50", "p90", "p99", "max");
    let broker = Broker::start().await;
    percentiles("raw: publish to ordered reader", raw::latency(&broker, EXECUTIONS / 4, EVERY).await);
    drop(broker);

    let broker = Broker::start().await;
    let _worker = Worker::start(&broker, "one");
    broker.shared_by(1).await;
    let sealed = Arc::new(Mutex::new(HashMap::new()));
    let bus = broker.connect().await;
    let produce = tokio::spawn({
        let sealed = sealed.clone();
        async move {
            let publisher = publisher(&bus);
            let mut tick = tokio::time::interval(EVERY);
            let mut running = tokio::task::JoinSet::new();
            for number in 0..EXECUTIONS {
                tick.tick().await;
                let (bus, publisher, sealed) = (bus.clone(), publisher.clone(), sealed.clone());
                running.spawn(async move {
                    let shape = Shape::Compile { frames: 2, frame_bytes: 4 << 10 };
                    for script in scripts(&bus, &node(0), std::iter::once(number as u32), shape).await {
                        script.begin(&publisher, 0).await;
                        script.go_on(&publisher, 0).await;
                        sealed.lock().unwrap().insert(script.id, Instant::now());
                        script.seal(&publisher).await;
                        script.clean(&publisher).await;
                    }
                });
            }
            running.join_all().await;
        }
    });
    let mut taken = Vec::new();
    broker
        .receipts(EXECUTIONS, |subject| {
            let id = subject.rsplit('.').next().unwrap().parse().unwrap();
            taken.push(sealed.lock().unwrap()[&id].elapsed());
        })
        .await;
    produce.await.unwrap();
    percentiles("last event to receipt", taken);
}

async fn capped() {
    const PERCENT: u64 = 25;
    // While both are busy: a few hundred ids fall unevenly on two workers, and one is done before the other.
    const SHARE: f64 = 0.8;
    let shape = Shape::Compile { frames: 60, frame_bytes: 16 << 10 };
    println!("capped: MB/s of frames, each worker with {PERCENT} % of a CPU");
    let mut rates = Vec::new();
    for workers in [1, 2] {
        let broker = Broker::start().await;
        let producers = load(&broker, 320 * workers, shape).await;
        let bytes: usize = producers.iter().flatten().map(Script::frame_bytes).sum();
        let running: Vec<Worker> =
            (0..workers).map(|n| Worker::start(&broker, &format!("worker-{n}"))).collect();
        broker.shared_by(workers).await;
        let caps: Vec<Capped> = running
            .iter()
            .zip(0..)
            .map(|(worker, n)| {
                let capped = Capped::new(&format!("{workers}-{n}"), PERCENT);
                capped.add(worker);
                capped
            })
            .collect();
        let taken = published_to_receipts(&broker, producers, SHARE).await;
        rates.push(bytes as f64 * SHARE / 1e6 / taken.as_secs_f64());
        drop(running);
        drop(caps);
        println!("{workers} workers: {:.1} MB/s, {:.1} s", rates[rates.len() - 1], taken.as_secs_f64());
    }
    println!("ratio {:.2}", rates[1] / rates[0]);
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn percentiles(what: &str, mut taken: Vec<Duration>) {
    taken.sort();
    let at = |share: f64| taken[((taken.len() - 1) as f64 * share).round() as usize].as_secs_f64() * 1e3;
    println!("{what:>34} {:>7.2} {:>7.2} {:>7.2} {:>7.2}", at(0.5), at(0.9), at(0.99), at(1.0));
}
