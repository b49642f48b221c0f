//! A great many executions at a time, and a worker that dies with them.

use std::time::{Duration, Instant};

use futures::{StreamExt, stream};
use glasshouse_nats::{EVENTS, partition_of};

use crate::host::{Broker, Worker, cpu};
use crate::load::{Script, Shape, execution, node, scripts};
use crate::publisher;

const NODES: usize = 1_000;
const OPEN_PER_NODE: usize = 100;
/// How many nodes make their events at the same moment; all of them are connected.
const AT_ONCE: usize = 16;

pub(crate) async fn scale() {
    let open = NODES * OPEN_PER_NODE;
    println!("scale: {open} open executions of {NODES} nodes, each with a connection of its own");
    let broker = Broker::start().await;
    let mut worker = Worker::start(&broker, "one");
    broker.shared_by(1).await;
    let idle = worker.status_mib("VmRSS");

    let begun = Instant::now();
    let shape = Shape::Opens(20);
    let mut buses = Vec::new();
    for _ in 0..NODES {
        buses.push(broker.connect().await);
    }
    let connected = begun.elapsed();
    let scripts: Vec<Vec<Script>> = stream::iter(buses.iter().zip(0..).map(|(bus, number)| async move {
        let numbers = (0..OPEN_PER_NODE).map(|n| (number * OPEN_PER_NODE + n) as u32);
        let scripts = scripts(bus, &node(number), numbers, shape).await;
        let publisher = publisher(bus);
        for script in &scripts {
            script.begin(&publisher, 1).await;
        }
        publisher.flush().await.unwrap();
        scripts
    }))
    .buffered(AT_ONCE)
    .collect()
    .await;
    let published = begun.elapsed();
    println!(
        "connected in {:.1} s, published in {:.1} s",
        connected.as_secs_f64(),
        (published - connected).as_secs_f64()
    );
    let mut probes = Probes { next: open as u32 };
    probes.pass(&broker).await;
    let events = broker.bus.position(EVENTS).await.unwrap();
    println!(
        "{} events folded {:.1} s after the last was published",
        events.last_seq,
        (begun.elapsed() - published).as_secs_f64()
    );
    let (rss, peak) = (worker.status_mib("VmRSS"), worker.status_mib("VmHWM"));
    println!(
        "worker: {rss:.0} MiB resident (idle {idle:.0}, peak {peak:.0}), {:.1} s of CPU; server: {:.1} s of CPU",
        worker.cpu().as_secs_f64(),
        cpu(broker.server.pid()).as_secs_f64()
    );
    // Until the state is checkpointed, as it is every second.
    tokio::time::sleep(Duration::from_secs(2)).await;

    worker.kill();
    let died = Instant::now();
    let next = Worker::start(&broker, "two");
    probes.pass(&broker).await;
    println!(
        "after kill -9: everything of before folded by the next worker after {:.1} s ({:.1} s of CPU, peak {:.0} MiB)",
        died.elapsed().as_secs_f64(),
        next.cpu().as_secs_f64(),
        next.status_mib("VmHWM"),
    );

    let begun = Instant::now();
    let receipts = usize::try_from(events_of(&broker).await).unwrap() + open;
    let end = stream::iter(buses.iter().zip(&scripts).map(|(bus, scripts)| async move {
        let publisher = publisher(bus);
        for script in scripts {
            script.go_on(&publisher, 1).await;
            script.seal(&publisher).await;
            script.clean(&publisher).await;
        }
        publisher.flush().await.unwrap();
    }))
    .buffered(AT_ONCE)
    .collect::<Vec<()>>();
    tokio::join!(end, broker.receipts(receipts, |_| ()));
    let rate = open as f64 / begun.elapsed().as_secs_f64();
    println!("all ended, with a receipt each, at {rate:.0} executions/s");
    assert_eq!(broker.bus.position(glasshouse_nats::DEAD).await.unwrap().messages, 0, "dead letters");
}

async fn events_of(broker: &Broker) -> u64 {
    broker.bus.position(glasshouse_nats::RECEIPTS).await.unwrap().messages
}

/// Executions that tell how far the worker is: one whole one per partition.
struct Probes {
    next: u32,
}

impl Probes {
    /// Returns once everything that was stored before is folded.
    async fn pass(&mut self, broker: &Broker) {
        let mut missing: std::collections::BTreeSet<u16> = (0..256).collect();
        let first = self.next;
        let mut numbers = Vec::new();
        while !missing.is_empty() {
            if missing.remove(&partition_of(execution(self.next))) {
                numbers.push(self.next);
            }
            self.next += 1;
        }
        let shape = Shape::Opens(1);
        let bus = broker.connect().await;
        let publisher = publisher(&bus);
        let before = events_of(broker).await;
        let scripts = scripts(&bus, &node(0), numbers.into_iter(), shape).await;
        for script in &scripts {
            script.publish(&publisher).await;
        }
        publisher.flush().await.unwrap();
        let wanted = before + scripts.len() as u64;
        crate::host::until(&format!("receipts of the probes from {first} on"), async || {
            events_of(broker).await >= wanted
        })
        .await;
    }
}
