//! What it costs to keep what was acknowledged: three copies against one, and how often it is forced to the disk.
//!
//! ```text
//! cargo bench -p glasshouse-nats --bench durability
//! ```
//! All servers run from the beginning to the end, and take turns: in each round each takes frames of each size for a moment, with as
//! many unacknowledged as our publishers have. Printed is the median over the rounds, and its ratio to one server that syncs when
//! it likes. What the disk takes for one sync stands above the table, because the price hangs on it.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a benchmark fails by panicking")]

use std::collections::VecDeque;
use std::fs::File;
use std::future::IntoFuture;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::stream::{Config, StorageType};
use glasshouse_nats::{Bus, ConnectOptions, NatsServer, ServerOptions, SyncInterval, connect};

const ROUNDS: usize = 5;
const SLICE: Duration = Duration::from_millis(400);
/// As [`glasshouse_nats::PublisherOptions`] has it.
const IN_FLIGHT: usize = 256;
const SIZES: [usize; 2] = [1 << 10, 16 << 10];
const SYNCS: [(&str, SyncInterval); 4] = [
    ("2m (usual)", SyncInterval::Usual),
    ("10s", SyncInterval::Every(Duration::from_secs(10))),
    ("1s", SyncInterval::Every(Duration::from_secs(1))),
    ("always", SyncInterval::Always),
];

/// One server, or three.
struct Contestant {
    name: String,
    bus: Bus,
    /// Messages a second, per size.
    rates: [Vec<f64>; SIZES.len()],
    _servers: Vec<NatsServer>,
}

impl Contestant {
    async fn start(dir: &Path, replicas: usize, (name, sync): (&str, SyncInterval)) -> Self {
        let members = match replicas {
            1 => vec![ServerOptions::new(dir)],
            _ => ServerOptions::local_cluster(dir, replicas).unwrap(),
        };
        let started = members.into_iter().map(|member| NatsServer::start(ServerOptions { sync, ..member }));
        let servers: Vec<NatsServer> =
            futures::future::join_all(started).await.into_iter().map(Result::unwrap).collect();
        let urls: Vec<&str> = servers.iter().map(NatsServer::url).collect();
        let config = Config {
            name: "BENCH".into(),
            subjects: vec!["bench".into()],
            storage: StorageType::File,
            num_replicas: replicas,
            max_bytes: 256 << 20,
            ..Config::default()
        };
        let give_up = Instant::now() + Duration::from_secs(60);
        // Until there is a leader nothing succeeds.
        let bus = loop {
            let made = async {
                let bus = connect(ConnectOptions::new(urls.join(","), "bench")).await.ok()?;
                bus.jetstream().create_stream(config.clone()).await.ok()?;
                Some(bus)
            };
            match made.await {
                Some(bus) => break bus,
                None => assert!(Instant::now() < give_up, "R{replicas} {name} has no leader"),
            }
        };
        Self { name: format!("R{replicas}, {name}"), bus, rates: Default::default(), _servers: servers }
    }

    /// Publishes for a slice and counts what was acknowledged.
    async fn run(&mut self, size: usize) {
        let payload = bytes::Bytes::from(vec![7; SIZES[size]]);
        let mut window = VecDeque::new();
        let (began, mut stored) = (Instant::now(), 0_u64);
        while began.elapsed() < SLICE || !window.is_empty() {
            if began.elapsed() < SLICE && window.len() < IN_FLIGHT {
                let message = PublishMessage::build().payload(payload.clone());
                let ack = self.bus.jetstream().send_publish("bench", message).await.unwrap();
                window.push_back(ack.into_future());
            } else if let Some(ack) = window.pop_front() {
                ack.await.unwrap();
                stored += 1;
            }
        }
        self.rates[size].push(stored as f64 / began.elapsed().as_secs_f64());
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// What the disk takes to keep 4 KiB.
fn sync_ms(dir: &Path) -> f64 {
    let mut file = File::create(dir.join("sync")).unwrap();
    let times = (0..50).map(|_| {
        let began = Instant::now();
        file.write_all(&[7; 4096]).unwrap();
        file.sync_data().unwrap();
        began.elapsed().as_secs_f64() * 1e3
    });
    median(&times.collect::<Vec<_>>())
}

#[tokio::main]
async fn main() {
    let dir = tempfile::tempdir().unwrap();
    let mut contestants = Vec::new();
    for replicas in [1, 3] {
        for (number, sync) in SYNCS.into_iter().enumerate() {
            let dir = dir.path().join(format!("r{replicas}-{number}"));
            contestants.push(Contestant::start(&dir, replicas, sync).await);
        }
    }
    println!("one sync of the disk: {:.2} ms", sync_ms(dir.path()));
    for _ in 0..ROUNDS {
        for size in 0..SIZES.len() {
            for contestant in &mut contestants {
                contestant.run(size).await;
            }
        }
    }
    println!("| copies, sync_interval | 1 KiB/s | ratio | 16 KiB/s | ratio |\n|---|---|---|---|---|");
    let base: Vec<f64> = contestants[0].rates.iter().map(|rates| median(rates)).collect();
    for Contestant { name, rates, .. } in &contestants {
        let columns = rates.iter().zip(&base).map(|(rates, base)| {
            let rate = median(rates);
            format!(" {rate:.0} | {:.2} |", rate / base)
        });
        println!("| {name} |{}", columns.collect::<String>());
    }
}
