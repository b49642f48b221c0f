//! Several workers on one real server: they share the ranges, and what one leaves the others take.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::time::{Duration, Instant};

use common::{
    Broker, RANGES, Running, begun, broker, count, ended, execution, holders, publish, publisher, receipt,
    start_with, until, whole,
};
use glasshouse_aggregator::Config;
use glasshouse_nats::{DEAD, EVENTS, Leases, RECEIPTS, StreamStart};

const FAILOVER: Duration = Duration::from_secs(2);
const ALL: usize = RANGES as usize;

fn join(broker: &Broker, name: &str) -> Running {
    start_with(Config { failover: FAILOVER, ..Config::new(broker.server.url(), name) })
}

async fn shares(broker: &Broker, wanted: &[usize]) {
    until(&format!("the ranges are shared {wanted:?}"), async || {
        let mut found: Vec<usize> = holders(&broker.bus).await.into_values().collect();
        found.sort_unstable();
        found == wanted
    })
    .await;
}

async fn all_have_receipts(broker: &Broker, executions: std::ops::Range<u16>) {
    for n in executions {
        receipt(&broker.bus, execution(n)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_that_join_and_leave_share_evenly_and_no_execution_notices() {
    let dir = tempfile::tempdir().unwrap();
    let broker = broker(dir.path()).await;
    let publisher = publisher(&broker.bus);
    let one = join(&broker, "one");
    shares(&broker, &[ALL]).await;
    // Executions that begin under one worker and end under another.
    for n in 0..60 {
        let phases = begun(&broker.bus, execution(n)).await;
        publish(&publisher, execution(n), phases).await;
    }
    let two = join(&broker, "two");
    shares(&broker, &[ALL / 2, ALL / 2]).await;
    for n in 0..20 {
        publish(&publisher, execution(n), ended()).await;
    }
    all_have_receipts(&broker, 0..20).await;
    let three = join(&broker, "three");
    shares(&broker, &[10, 11, 11]).await;
    for n in 20..40 {
        publish(&publisher, execution(n), ended()).await;
    }
    all_have_receipts(&broker, 20..40).await;
    one.stop().await;
    shares(&broker, &[ALL / 2, ALL / 2]).await;
    two.stop().await;
    shares(&broker, &[ALL]).await;
    for n in 40..60 {
        publish(&publisher, execution(n), ended()).await;
    }
    all_have_receipts(&broker, 40..60).await;
    three.stop().await;
    assert_eq!((count(&broker.bus, RECEIPTS).await, count(&broker.bus, DEAD).await), (60, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_ranges_of_a_worker_that_dies_are_taken_within_the_failover_time() {
    let dir = tempfile::tempdir().unwrap();
    let broker = broker(dir.path()).await;
    let publisher = publisher(&broker.bus);
    let (one, two) = (join(&broker, "one"), join(&broker, "two"));
    shares(&broker, &[ALL / 2, ALL / 2]).await;
    for n in 0..40 {
        let phases = begun(&broker.bus, execution(n)).await;
        publish(&publisher, execution(n), phases).await;
    }
    // It says no goodbye.
    one.task.abort();
    let died = Instant::now();
    shares(&broker, &[ALL]).await;
    // A heartbeat may have been stored just before, and the one that shows its age comes a quarter later.
    let taken = died.elapsed();
    assert!(taken < 2 * FAILOVER, "{taken:?}");
    for n in 0..40 {
        publish(&publisher, execution(n), ended()).await;
    }
    all_have_receipts(&broker, 0..40).await;
    two.stop().await;
    assert_eq!((count(&broker.bus, RECEIPTS).await, count(&broker.bus, DEAD).await), (40, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_range_that_somebody_else_took_is_left_alone_and_taken_back_when_he_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let broker = broker(dir.path()).await;
    let publisher = publisher(&broker.bus);
    let worker = join(&broker, "one");
    shares(&broker, &[ALL]).await;
    // Whoever this is, he is not alive: the worker takes the range back.
    let stranger = bytes::Bytes::from_static(b"{\"worker\":\"stranger\"}");
    let leases = Leases::new(&broker.bus);
    let subject = "$KV.GH_LEASES.ranges.7";
    let stream = broker.bus.jetstream().get_stream("KV_GH_LEASES").await.unwrap();
    let revision = stream.get_last_raw_message_by_subject(subject).await.unwrap().sequence;
    leases.put("ranges.7", stranger, revision).await.unwrap().expect("it is still there");
    for n in 0..64 {
        whole(&broker.bus, &publisher, execution(n)).await;
    }
    all_have_receipts(&broker, 0..64).await;
    shares(&broker, &[ALL]).await;
    worker.stop().await;
    assert_eq!((count(&broker.bus, RECEIPTS).await, count(&broker.bus, DEAD).await), (64, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn receipts_are_the_same_bytes_however_many_workers_fold() {
    let mut bodies = Vec::new();
    for workers in [1, 3] {
        let dir = tempfile::tempdir().unwrap();
        let broker = broker(dir.path()).await;
        let publisher = publisher(&broker.bus);
        let running: Vec<Running> = (0..workers).map(|n| join(&broker, &format!("worker-{n}"))).collect();
        until("all have joined", async || holders(&broker.bus).await.len() == workers).await;
        for n in 0..30 {
            whole(&broker.bus, &publisher, execution(n)).await;
        }
        let mut found = Vec::new();
        for n in 0..30 {
            let document = broker.bus.wait_receipt(execution(n), common::DEADLINE).await.unwrap().unwrap();
            found.push(document.body);
        }
        bodies.push(found);
        for worker in running {
            worker.stop().await;
        }
    }
    assert!(bodies[0] == bodies[1]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_that_nobody_needs_are_removed_after_the_window_and_those_of_an_open_execution_stay() {
    let dir = tempfile::tempdir().unwrap();
    let broker = broker(dir.path()).await;
    let publisher = publisher(&broker.bus);
    let window = Duration::from_secs(1);
    let worker = start_with(Config { replay_window: window, ..Config::new(broker.server.url(), "one") });
    for n in 0..10 {
        whole(&broker.bus, &publisher, execution(n)).await;
    }
    let needed = broker.bus.position(EVENTS).await.unwrap().last_seq;
    all_have_receipts(&broker, 0..10).await;
    let phases = begun(&broker.bus, execution(100)).await;
    publish(&publisher, execution(100), phases).await;
    for n in 10..20 {
        whole(&broker.bus, &publisher, execution(n)).await;
    }
    all_have_receipts(&broker, 10..20).await;
    let filters = glasshouse_schema::subject::stored_events_of(execution(100)).to_vec();
    let first =
        broker.bus.events(StreamStart::Oldest, filters).await.unwrap().next().await.unwrap().stream_seq;
    until("what lies before the open execution is removed", async || {
        broker.bus.position(EVENTS).await.unwrap().first_seq == first
    })
    .await;
    assert!(first > needed, "{first}");
    // A late event of an execution whose end was removed is a dead letter, and opens nothing.
    publish(&publisher, execution(1), vec![common::unprofiled()]).await;
    until("the late event is set aside", async || count(&broker.bus, DEAD).await == 1).await;

    publish(&publisher, execution(100), ended()).await;
    receipt(&broker.bus, execution(100)).await;
    until("everything is removed", async || count(&broker.bus, EVENTS).await == 0).await;
    worker.stop().await;
    assert_eq!((count(&broker.bus, RECEIPTS).await, count(&broker.bus, DEAD).await), (21, 1));
}
