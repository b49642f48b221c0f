//! Two workers that race to close an execution agree, and receipts and checkpoints may be large.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::time::Duration;

use common::{
    DEADLINE, begun, broker, checkpointed, count, ended, exec, execution, node, publish, publisher, receipt,
    start, start_with, until,
};
use glasshouse_aggregator::Config;
use glasshouse_nats::{Checkpoints, DEAD, MANIFEST_TYPE, RECEIPTS, StreamStart, partition_of};
use glasshouse_schema::frame::FrameWriterConfig;
use glasshouse_schema::lifecycle::{ClosedReason, PhaseName};
use glasshouse_schema::{
    Event, ExecutionId, Fact, FrameWriter, LifecycleEvent, PathRef, Phase, ProcessKey, Receipt, Vantage,
    headers, subject,
};

/// A `closed` event as a worker publishes it, once it finds the producer dead.
async fn close_as_another_worker_would(bus: &glasshouse_nats::Bus, id: ExecutionId) {
    let event = LifecycleEvent {
        schema_version: glasshouse_schema::version::LIFECYCLE,
        execution_id: id,
        node: None,
        unix_ns: 1,
        phase: Phase::Closed(glasshouse_schema::lifecycle::Closed { reason: ClosedReason::ProducerDead }),
    };
    publisher(bus).publish_closed(&event, None).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_takes_the_end_that_another_was_faster_to_tell() {
    let dir = tempfile::tempdir().unwrap();
    let broker = broker(dir.path()).await;
    let mut config = Config::new(broker.server.url(), "one");
    config.producer_grace = Duration::from_secs(2);
    // Everything that the execution needs for a complete end, behind an end that says that its producer is dead. What a worker
    // that folds it all would have said comes second, and so it is not what ends it.
    for (number, comes_before) in [(1, true), (2, false)] {
        let id = execution(number);
        let phases = begun(&broker.bus, id).await;
        publish(&publisher(&broker.bus), id, phases).await;
        if comes_before {
            publish(&publisher(&broker.bus), id, ended()).await;
        }
        close_as_another_worker_would(&broker.bus, id).await;
    }
    let one = start_with(config.clone());
    let two = start_with(Config { name: "two".into(), ..config });
    for number in [1, 2] {
        let found = receipt(&broker.bus, execution(number)).await;
        let reasons: Vec<&str> = found.coverage.incomplete.iter().map(|why| why.reason.as_str()).collect();
        assert!(reasons.contains(&"producer_dead"), "{number}: {reasons:?}");
    }
    for number in [1, 2] {
        let closed = subject::lifecycle(None, execution(number), PhaseName::Closed);
        let stored = subject::stored(partition_of(execution(number)), &closed).unwrap();
        let events = broker.bus.events(StreamStart::Oldest, vec![stored]).await.unwrap();
        assert_eq!(events.pending(), Some(1), "one end");
    }
    checkpointed(&broker.bus).await;
    one.stop().await;
    two.stop().await;
    assert_eq!((count(&broker.bus, RECEIPTS).await, count(&broker.bus, DEAD).await), (2, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_receipt_is_a_manifest_and_reads_as_any_other() {
    let dir = tempfile::tempdir().unwrap();
    let broker = broker(dir.path()).await;
    let worker = start(&broker, "one");
    let (id, publisher) = (execution(1), publisher(&broker.bus));
    let phases = begun(&broker.bus, id).await;
    let epoch = phases.iter().find_map(|phase| match phase {
        Phase::Claimed(claimed) => Some(claimed.epoch),
        _ => None,
    });
    publish(&publisher, id, phases).await;
    let config = FrameWriterConfig::new(id, node(), Vantage::Host, epoch.unwrap(), 1_700_000_000_000_000_000);
    let mut writer = FrameWriter::new(config);
    let process = ProcessKey { tgid: 1, start_boot_ns: 1_000 };
    let exec = exec("/usr/bin/find", &[b"find"]);
    let mut frames: Vec<_> =
        writer.push(&Event { boot_ns: 2_000, process, fact: exec }).into_iter().collect();
    for file in 0..4_000 {
        let path = format!("/srv/a/path/of/some/length/so/that/the/receipt/gets/large/{file}");
        let path = PathRef::resolved(path.as_bytes());
        let fact = Fact::Open { path, flags: 0, result: 3, created: false };
        frames.extend(writer.push(&Event { boot_ns: 3_000 + file, process, fact }));
    }
    frames.extend(writer.flush());
    for frame in frames {
        let sent = publisher.publish_frame(&node(), id, Vantage::Host, frame.bytes, frame.digest, None).await;
        sent.unwrap();
    }
    publish(&publisher, id, ended()).await;

    let found = broker.bus.wait_receipt(id, DEADLINE).await.unwrap().expect("a receipt comes in time");
    assert!(found.body.len() > glasshouse_nats::MAX_INLINE_BYTES, "{}", found.body.len());
    assert_eq!(found.message.header(headers::CONTENT_TYPE), Some(MANIFEST_TYPE));
    assert!(found.message.payload.len() < 1_000);
    let decoded = Receipt::decode(&found.body).unwrap();
    assert_eq!(decoded.filesystem.reads.len(), 4_000);
    assert_eq!(decoded.encode().unwrap(), found.body);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkpoint_with_many_open_executions_is_read_by_the_next_worker() {
    let dir = tempfile::tempdir().unwrap();
    let broker = broker(dir.path()).await;
    let publisher = publisher(&broker.bus);
    // All in one range, so that its checkpoint gets large.
    let ids = (0_u32..).map(|n| {
        let mut random = [0; 10];
        // Behind the bits that say what kind of id it is.
        random[6..].copy_from_slice(&n.to_be_bytes());
        ExecutionId::from_parts(1_700_000_000_000, random)
    });
    let ids: Vec<ExecutionId> = ids.filter(|id| partition_of(*id) < 8).take(30_000).collect();
    let requested = begun(&broker.bus, execution(1)).await.remove(0);
    for id in &ids {
        let event = LifecycleEvent {
            schema_version: glasshouse_schema::version::LIFECYCLE,
            execution_id: *id,
            node: Some(node()),
            unix_ns: 1_700_000_000_000_000_000,
            phase: requested.clone(),
        };
        publisher.publish_lifecycle(&event, None).await.unwrap();
    }
    publisher.flush().await.unwrap();
    let worker = start(&broker, "one");
    let size = async || {
        let stored = Checkpoints::new(&broker.bus).get("aggregator.0").await.unwrap();
        stored.bytes.map_or(0, |bytes| bytes.len())
    };
    until("the checkpoint is large", async || size().await > glasshouse_nats::MAX_INLINE_BYTES).await;
    worker.stop().await;
    assert!(size().await > glasshouse_nats::MAX_INLINE_BYTES);

    // The next one knows of all of them, and the first to end has what came before.
    let worker = start(&broker, "two");
    let last = *ids.last().unwrap();
    let phases = begun(&broker.bus, last).await.split_off(1);
    publish(&publisher, last, phases).await;
    publish(&publisher, last, ended()).await;
    let found = receipt(&broker.bus, last).await;
    let details: Vec<&str> = found.coverage.incomplete.iter().map(|why| why.detail.as_str()).collect();
    assert!(!details.iter().any(|detail| detail.contains("`requested`")), "it came before: {details:?}");
    worker.stop().await;
}
