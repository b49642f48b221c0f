//! A producer is dead when its heartbeat is gone, and not when it has nothing to say or nobody could hear it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::time::Duration;

use common::{
    Broker, begun, broker, broker_at, checkpointed, count, dead_letter, ended, execution, node, publish,
    publisher, receipt, soon, start_with,
};
use glasshouse_aggregator::Config;
use glasshouse_nats::{ClaimOutcome, Claims, DEAD, Heartbeat, RECEIPTS};
use glasshouse_schema::Receipt;

/// Opens an execution whose claim names this heartbeat's process.
async fn open(broker: &Broker, number: u16, heartbeat: &Heartbeat) {
    let taken = Claims::new(&broker.bus).take_for(execution(number), heartbeat).await.unwrap();
    assert!(matches!(taken, ClaimOutcome::Taken { .. }), "{taken:?}");
    let phases = begun(&broker.bus, execution(number)).await;
    publish(&publisher(&broker.bus), execution(number), phases).await;
}

/// Opens one without a heartbeat and waits until its silence closes it: every other was silent for longer by then.
async fn outlasted_by_silence(broker: &Broker, number: u16) {
    let phases = begun(&broker.bus, execution(number)).await;
    publish(&publisher(&broker.bus), execution(number), phases).await;
    assert!(is_producer_dead(&receipt(&broker.bus, execution(number)).await));
}

fn is_producer_dead(receipt: &Receipt) -> bool {
    receipt.coverage.incomplete.iter().any(|why| why.reason == "producer_dead")
}

fn config(broker: &Broker, grace: Duration) -> Config {
    let mut config = Config::new(broker.server.url(), "one");
    (config.producer_grace, config.heartbeat_grace) = (grace, grace);
    config
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_a_heartbeat_may_be_silent_and_who_has_none_any_more_is_dead() {
    let dir = tempfile::tempdir().unwrap();
    let broker = broker(dir.path()).await;
    let worker = start_with(config(&broker, Duration::from_secs(2)));
    let lives = Heartbeat::start(&broker.bus, &node()).await.unwrap();
    let ends = Heartbeat::start(&broker.bus, &node()).await.unwrap();
    let dies = Heartbeat::start(&broker.bus, &node()).await.unwrap();
    open(&broker, 1, &lives).await;
    open(&broker, 2, &ends).await;
    open(&broker, 3, &dies).await;
    outlasted_by_silence(&broker, 4).await;
    outlasted_by_silence(&broker, 5).await;
    assert_eq!(count(&broker.bus, RECEIPTS).await, 2, "none of the three is closed");

    // One says goodbye without the end of its execution, and one is not heard any more.
    ends.end().await;
    assert!(is_producer_dead(&receipt(&broker.bus, execution(2)).await));
    drop(dies);
    assert!(is_producer_dead(&receipt(&broker.bus, execution(3)).await));

    // What comes then is too late, and the one that lives ends as it would.
    publish(&publisher(&broker.bus), execution(3), vec![ended().remove(0)]).await;
    let letter = soon(dead_letter(&broker.bus)).await;
    assert!(letter.reason.contains("closed"), "{letter:?}");
    publish(&publisher(&broker.bus), execution(1), ended()).await;
    assert!(!is_producer_dead(&receipt(&broker.bus, execution(1)).await));
    checkpointed(&broker.bus).await;
    worker.stop().await;
    assert_eq!((count(&broker.bus, RECEIPTS).await, count(&broker.bus, DEAD).await), (5, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bus_that_was_away_makes_nobody_dead() {
    let dir = tempfile::tempdir().unwrap();
    let first = broker(dir.path()).await;
    let port = first.server.url().rsplit(':').next().unwrap().parse().unwrap();
    // Longer than a client takes to come back.
    let grace = Duration::from_secs(8);
    let worker = start_with(config(&first, grace));
    let heartbeat = Heartbeat::start(&first.bus, &node()).await.unwrap();
    open(&first, 1, &heartbeat).await;
    // One that nobody will hear of again, whenever that was.
    let gone = Heartbeat::start(&first.bus, &node()).await.unwrap();
    open(&first, 2, &gone).await;
    drop(gone);
    // As it is after an hour without a server: no heartbeat is left.
    first.bus.jetstream().get_stream("KV_GH_NODES").await.unwrap().purge().await.unwrap();
    first.server.kill().await;

    let second = broker_at(dir.path(), port).await;
    assert!(is_producer_dead(&receipt(&second.bus, execution(2)).await));
    assert!(second.bus.get_receipt(execution(1)).await.unwrap().is_none(), "it came back");
    publish(&publisher(&second.bus), execution(1), ended()).await;
    assert!(!is_producer_dead(&receipt(&second.bus, execution(1)).await));
    worker.stop().await;
}
