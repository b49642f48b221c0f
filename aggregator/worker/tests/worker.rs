//! Workers on a real server.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeMap;
use std::time::Duration;

use common::{
    begun, broker, broker_at, checkpointed, copy_events, count, dead_letter, ended, execution, handled_seq,
    publish, publisher, receipt, soon, start, start_with, until, whole,
};
use glasshouse_aggregator::Config;
use glasshouse_nats::{Checkpoints, DEAD, EVENTS, RECEIPTS};
use glasshouse_schema::lifecycle::Phase;
use glasshouse_schema::receipt::Completeness;
use glasshouse_schema::{Digest, Vantage};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_goes_on_at_its_checkpoint_with_what_was_open() {
    let dir = tempfile::tempdir().unwrap();
    let broker = broker(dir.path()).await;
    let publisher = publisher(&broker.bus);
    let worker = start(&broker, "one");
    whole(&broker.bus, &publisher, execution(1)).await;
    let phases = begun(&broker.bus, execution(2)).await;
    publish(&publisher, execution(2), phases).await;
    receipt(&broker.bus, execution(1)).await;
    checkpointed(&broker.bus).await;
    worker.stop().await;

    let worker = start(&broker, "two");
    publish(&publisher, execution(2), ended()).await;
    let found = receipt(&broker.bus, execution(2)).await;
    assert_eq!(found.completeness, Completeness::Partial);
    assert_eq!(found.exit_code, 0, "{found:?}");
    checkpointed(&broker.bus).await;
    worker.stop().await;
    assert_eq!((count(&broker.bus, RECEIPTS).await, count(&broker.bus, DEAD).await), (2, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_restored_from_an_older_copy_loses_no_execution_though_it_grew_past_the_checkpoint() {
    let (dir, backup) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let first = broker(dir.path()).await;
    let worker = start(&first, "one");
    whole(&first.bus, &publisher(&first.bus), execution(1)).await;
    checkpointed(&first.bus).await;
    worker.stop().await;
    first.server.stop().await;
    copy_events(dir.path(), backup.path());

    let second = broker(dir.path()).await;
    let worker = start(&second, "two");
    whole(&second.bus, &publisher(&second.bus), execution(2)).await;
    checkpointed(&second.bus).await;
    let handled = handled_seq(&second.bus).await;
    worker.stop().await;
    second.server.stop().await;

    // The events of execution 2 are gone, and those of 3 and 4 come under their sequences and beyond.
    copy_events(backup.path(), dir.path());
    let third = broker(dir.path()).await;
    for n in [3, 4] {
        whole(&third.bus, &publisher(&third.bus), execution(n)).await;
    }
    assert!(third.bus.position(EVENTS).await.unwrap().last_seq > handled);
    let worker = start(&third, "three");
    for n in [3, 4] {
        receipt(&third.bus, execution(n)).await;
    }
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_lives_through_a_restore_begins_anew() {
    let (dir, backup) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let first = broker(dir.path()).await;
    let port = first.server.url().rsplit(':').next().unwrap().parse().unwrap();
    let worker = start(&first, "one");
    whole(&first.bus, &publisher(&first.bus), execution(1)).await;
    checkpointed(&first.bus).await;
    first.server.stop().await;
    copy_events(dir.path(), backup.path());

    let second = broker_at(dir.path(), port).await;
    whole(&second.bus, &publisher(&second.bus), execution(2)).await;
    receipt(&second.bus, execution(2)).await;
    checkpointed(&second.bus).await;
    second.server.stop().await;
    copy_events(backup.path(), dir.path());

    // Where the worker does not see it, the stream grows past what it has read.
    let third = broker(dir.path()).await;
    for n in [3, 4] {
        whole(&third.bus, &publisher(&third.bus), execution(n)).await;
    }
    third.server.stop().await;
    let fourth = broker_at(dir.path(), port).await;
    for n in [3, 4] {
        receipt(&fourth.bus, execution(n)).await;
    }
    checkpointed(&fourth.bus).await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_made_anew_under_a_worker_is_read_from_its_beginning() {
    let dir = tempfile::tempdir().unwrap();
    let broker = broker(dir.path()).await;
    let worker = start(&broker, "one");
    whole(&broker.bus, &publisher(&broker.bus), execution(1)).await;
    checkpointed(&broker.bus).await;
    let mut info = broker.bus.jetstream().get_stream(EVENTS).await.unwrap();
    let config = info.info().await.unwrap().config.clone();
    broker.bus.jetstream().delete_stream(EVENTS).await.unwrap();
    broker.bus.jetstream().create_stream(config).await.unwrap();
    whole(&broker.bus, &publisher(&broker.bus), execution(2)).await;
    receipt(&broker.bus, execution(2)).await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_execution_whose_producer_is_silent_is_closed_and_what_comes_late_is_a_dead_letter() {
    let dir = tempfile::tempdir().unwrap();
    let broker = broker(dir.path()).await;
    let publisher = publisher(&broker.bus);
    let mut config = Config::new(broker.server.url(), "one");
    config.producer_grace = Duration::from_secs(2);
    let worker = start_with(config);
    let phases = begun(&broker.bus, execution(1)).await;
    publish(&publisher, execution(1), phases).await;
    let found = receipt(&broker.bus, execution(1)).await;
    assert_eq!(found.completeness, Completeness::Partial);
    let reasons: Vec<&str> = found.coverage.incomplete.iter().map(|why| why.reason.as_str()).collect();
    assert!(reasons.iter().any(|reason| reason.contains("producer_dead")), "{reasons:?}");

    publish(&publisher, execution(1), vec![ended().remove(0)]).await;
    let letter = soon(dead_letter(&broker.bus)).await;
    assert!(letter.reason.contains("closed"), "{letter:?}");
    checkpointed(&broker.bus).await;
    worker.stop().await;
    assert_eq!((count(&broker.bus, RECEIPTS).await, count(&broker.bus, DEAD).await), (1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_stops_while_the_bus_is_away() {
    let dir = tempfile::tempdir().unwrap();
    let broker = broker(dir.path()).await;
    let worker = start(&broker, "one");
    let publisher = publisher(&broker.bus);
    whole(&broker.bus, &publisher, execution(1)).await;
    checkpointed(&broker.bus).await;
    // It has a dead letter and a checkpoint to write, and nobody takes them.
    let garbage = glasshouse_schema::subject::frames(&common::node(), execution(2), Vantage::Host);
    broker.bus.client().publish(garbage, "no frame".into()).await.unwrap();
    broker.bus.client().flush().await.unwrap();
    broker.server.kill().await;
    let began = std::time::Instant::now();
    worker.stop().await;
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_has_no_room_to_close_an_execution_goes_on_and_makes_some() {
    let dir = tempfile::tempdir().unwrap();
    let broker = broker(dir.path()).await;
    let publisher = publisher(&broker.bus);
    let worker = start(&broker, "one");
    whole(&broker.bus, &publisher, execution(1)).await;
    receipt(&broker.bus, execution(1)).await;
    checkpointed(&broker.bus).await;
    worker.stop().await;

    whole(&broker.bus, &publisher, execution(2)).await;
    let mut events = broker.bus.jetstream().get_stream(EVENTS).await.unwrap();
    let mut full = events.info().await.unwrap().config.clone();
    full.max_bytes = i64::try_from(events.info().await.unwrap().state.bytes).unwrap();
    broker.bus.jetstream().update_stream(full).await.unwrap();
    let worker =
        start_with(Config { replay_window: Duration::ZERO, ..Config::new(broker.server.url(), "two") });
    receipt(&broker.bus, execution(2)).await;
    worker.stop().await;
}

/// What was asked about a late event when its worker died is asked again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_event_that_waited_at_the_checkpoint_opens_nothing() {
    #[derive(serde::Serialize)]
    struct Stored {
        version: u32,
        writer: &'static str,
        stream_created_unix_ns: String,
        handled_seq: u64,
        handled_fingerprint: Digest,
        restart_seq: u64,
        open: BTreeMap<serde_bytes::ByteArray<16>, u64>,
    }
    let dir = tempfile::tempdir().unwrap();
    let broker = broker(dir.path()).await;
    let worker = start(&broker, "one");
    let publisher = publisher(&broker.bus);
    whole(&broker.bus, &publisher, execution(1)).await;
    receipt(&broker.bus, execution(1)).await;
    checkpointed(&broker.bus).await;
    worker.stop().await;

    publish(&publisher, execution(1), vec![common::unprofiled()]).await;
    let stream = broker.bus.position(EVENTS).await.unwrap();
    let late = broker.bus.message(EVENTS, stream.last_seq).await.unwrap().unwrap();
    let waiting = Stored {
        version: 4,
        writer: "one",
        stream_created_unix_ns: stream.created_unix_ns.to_string(),
        handled_seq: late.stream_seq,
        handled_fingerprint: late.fingerprint(),
        restart_seq: late.stream_seq,
        open: BTreeMap::from([(serde_bytes::ByteArray::new(*execution(1).as_bytes()), 0)]),
    };
    let (checkpoints, waiting) = (Checkpoints::new(&broker.bus), rmp_serde::to_vec_named(&waiting).unwrap());
    for range in 0..common::RANGES {
        let key = format!("aggregator.{range}");
        let stored = checkpoints.get(&key).await.unwrap();
        checkpoints.put(&key, &waiting, &stored).await.unwrap();
    }
    let worker = start(&broker, "two");
    let letter = soon(dead_letter(&broker.bus)).await;
    assert_eq!(letter.stream_seq, late.stream_seq);
    whole(&broker.bus, &publisher, execution(2)).await;
    receipt(&broker.bus, execution(2)).await;
    worker.stop().await;
    assert_eq!((count(&broker.bus, RECEIPTS).await, count(&broker.bus, DEAD).await), (2, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_is_full_of_open_executions_is_lent_room_for_their_ends() {
    let dir = tempfile::tempdir().unwrap();
    let broker = broker(dir.path()).await;
    let publisher = publisher(&broker.bus);
    // All that they need is stored but for what the worker says, and nothing is over that could be removed.
    for number in 1..=3 {
        whole(&broker.bus, &publisher, execution(number)).await;
    }
    let full = broker.bus.position(EVENTS).await.unwrap();
    let mut config = broker.bus.jetstream().get_stream(EVENTS).await.unwrap().cached_info().config.clone();
    config.max_bytes = i64::try_from(full.bytes).unwrap();
    broker.bus.jetstream().update_stream(&config).await.unwrap();
    let worker =
        start_with(Config { replay_window: Duration::ZERO, ..Config::new(broker.server.url(), "one") });
    for number in 1..=3 {
        receipt(&broker.bus, execution(number)).await;
    }
    // What was removed then makes it superfluous.
    until("the stream has its own limit again", async || {
        let position = broker.bus.position(EVENTS).await.unwrap();
        position.bytes < full.bytes && position.limit_now == Some(full.bytes)
    })
    .await;
    let after = broker.bus.jetstream().get_stream(EVENTS).await.unwrap().cached_info().config.clone();
    assert_eq!((after.max_bytes, after.metadata), (config.max_bytes, config.metadata));
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_that_is_garbage_costs_one_event_and_not_the_worker() {
    let dir = tempfile::tempdir().unwrap();
    let broker = broker(dir.path()).await;
    let worker = start(&broker, "one");
    let publisher = publisher(&broker.bus);
    let phases = begun(&broker.bus, execution(1)).await;
    let bucket = broker.bus.jetstream().get_key_value("GH_CLAIMS").await.unwrap();
    bucket.put(execution(1).to_string(), "{".into()).await.unwrap();
    let claimed = phases.into_iter().filter(|phase| matches!(phase, Phase::Claimed(_))).collect();
    publish(&publisher, execution(1), claimed).await;
    let letter = soon(dead_letter(&broker.bus)).await;
    assert!(letter.reason.contains("claim"), "{letter:?}");
    whole(&broker.bus, &publisher, execution(2)).await;
    receipt(&broker.bus, execution(2)).await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkpoint_whose_body_is_missing_means_to_begin_anew() {
    let dir = tempfile::tempdir().unwrap();
    let broker = broker(dir.path()).await;
    let checkpoints = Checkpoints::new(&broker.bus);
    for range in 0..common::RANGES {
        let key = format!("aggregator.{range}");
        let none = checkpoints.get(&key).await.unwrap();
        checkpoints.put(&key, &vec![b' '; 700_000], &none).await.unwrap();
    }
    broker.bus.jetstream().get_stream("OBJ_GH_BODIES").await.unwrap().purge().await.unwrap();
    let worker = start(&broker, "one");
    whole(&broker.bus, &publisher(&broker.bus), execution(1)).await;
    receipt(&broker.bus, execution(1)).await;
    until("the checkpoint is written again", async || handled_seq(&broker.bus).await > 0).await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_letters_that_nobody_takes_are_published_again_and_the_worker_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let broker = broker(dir.path()).await;
    let config = broker.bus.jetstream().get_stream(DEAD).await.unwrap().cached_info().config.clone();
    broker.bus.jetstream().delete_stream(DEAD).await.unwrap();
    let worker = start(&broker, "one");
    let garbage = glasshouse_schema::subject::frames(&common::node(), execution(2), Vantage::Host);
    for body in ["no frame", "none either"] {
        broker.bus.jetstream().publish(garbage.clone(), body.into()).await.unwrap().await.unwrap();
    }
    // Longer than one publisher tries.
    tokio::time::sleep(Duration::from_secs(7)).await;
    assert!(!worker.task.is_finished());
    broker.bus.jetstream().create_stream(config).await.unwrap();
    whole(&broker.bus, &publisher(&broker.bus), execution(1)).await;
    receipt(&broker.bus, execution(1)).await;
    until("both letters are stored", async || count(&broker.bus, DEAD).await == 2).await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receipt_that_nobody_takes_holds_up_no_checkpoint_and_the_next_worker_publishes_it() {
    let dir = tempfile::tempdir().unwrap();
    let broker = broker(dir.path()).await;
    let config = broker.bus.jetstream().get_stream(RECEIPTS).await.unwrap().cached_info().config.clone();
    broker.bus.jetstream().delete_stream(RECEIPTS).await.unwrap();
    let worker = start(&broker, "one");
    whole(&broker.bus, &publisher(&broker.bus), execution(1)).await;
    until("the execution is closed", async || broker.bus.closed_at(execution(1)).await.unwrap().is_some())
        .await;
    checkpointed(&broker.bus).await;
    // It dies with the receipt in hand, behind a checkpoint that says that its events were handled.
    worker.task.abort();
    broker.bus.jetstream().create_stream(config).await.unwrap();
    let worker = start(&broker, "two");
    receipt(&broker.bus, execution(1)).await;
    worker.stop().await;
    assert_eq!((count(&broker.bus, RECEIPTS).await, count(&broker.bus, DEAD).await), (1, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_opens_slowly_opens() {
    let dir = tempfile::tempdir().unwrap();
    let first = broker(dir.path()).await;
    let port = first.server.url().rsplit(':').next().unwrap().parse().unwrap();
    // Longer than a tick for the calls that opening takes.
    let slow = common::slow(first.server.url(), Duration::from_millis(40)).await;
    let worker = start_with(Config::new(slow, "one"));
    whole(&first.bus, &publisher(&first.bus), execution(1)).await;
    receipt(&first.bus, execution(1)).await;
    checkpointed(&first.bus).await;
    first.server.stop().await;

    let second = broker_at(dir.path(), port).await;
    whole(&second.bus, &publisher(&second.bus), execution(2)).await;
    receipt(&second.bus, execution(2)).await;
    worker.stop().await;
}
