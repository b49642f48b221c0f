//! The streams: created when missing, never overwritten.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(missing_docs, dead_code, unreachable_pub, reason = "tests")]

mod common;

use std::time::Duration;

use common::{bare, broker, cleaned, execution, node};
use glasshouse_nats::{EVENTS, ErrorKind, Publisher, PublisherOptions, StreamStart, Topology, partition_of};
use glasshouse_schema::subject::{EventSubject, EventSubjectKind};
use glasshouse_schema::{Digest, Vantage};

#[tokio::test]
async fn apply_creates_what_is_missing_and_then_nothing() {
    let broker = bare().await;
    let topology = Topology::embedded(1).unwrap();
    let missing = topology.check(&broker.bus).await.unwrap();
    assert_eq!(missing.len(), 13);
    assert!(missing.iter().all(|difference| difference.is_missing()));
    assert_eq!(missing[0].to_string(), "GH_EVENTS: missing");

    let applied = topology.apply(&broker.bus).await.unwrap();
    assert_eq!((applied.created.len(), applied.differences), (13, vec![]));
    assert_eq!(topology.check(&broker.bus).await.unwrap(), []);
    let again = topology.apply(&broker.bus).await.unwrap();
    assert_eq!((again.created, again.differences), (vec![], vec![]));
}

#[tokio::test]
async fn a_mismatch_is_printed_and_left_alone() {
    let broker = broker().await;
    let stream = broker.bus.jetstream().get_stream("GH_DEAD").await.unwrap();
    let mut changed = stream.cached_info().config.clone();
    changed.max_age = Duration::from_secs(600);
    broker.bus.jetstream().update_stream(changed).await.unwrap();

    let topology = Topology::embedded(1).unwrap();
    let applied = topology.apply(&broker.bus).await.unwrap();
    assert_eq!(applied.created, Vec::<String>::new());
    let texts: Vec<String> = applied.differences.iter().map(ToString::to_string).collect();
    assert_eq!(texts, ["GH_DEAD: max_age: wanted 2592000s, found 600s"]);
    let json = serde_json::to_value(&applied.differences).unwrap();
    assert_eq!(json[0]["stream"], "GH_DEAD");
    let stream = broker.bus.jetstream().get_stream("GH_DEAD").await.unwrap();
    assert_eq!(stream.cached_info().config.max_age, Duration::from_secs(600));
}

#[tokio::test]
async fn room_is_lent_once_is_no_difference_and_is_taken_back() {
    const OWN: u64 = 4 << 30;
    let broker = broker().await;
    let topology = Topology::embedded(1).unwrap();
    let limits = async || {
        let position = broker.bus.position(EVENTS).await.unwrap();
        (position.max_bytes, position.limit_now)
    };
    assert_eq!(limits().await, (Some(OWN), Some(OWN)));
    assert_eq!(broker.bus.lend_room(EVENTS).await.unwrap(), Some(OWN + OWN / 16));
    assert_eq!(broker.bus.lend_room(EVENTS).await.unwrap(), None);
    assert_eq!(limits().await, (Some(OWN), Some(OWN + OWN / 16)));
    assert_eq!(topology.check(&broker.bus).await.unwrap(), []);
    assert!(broker.bus.take_room_back(EVENTS).await.unwrap());
    assert!(!broker.bus.take_room_back(EVENTS).await.unwrap());
    assert_eq!(limits().await, (Some(OWN), Some(OWN)));
    assert_eq!(topology.check(&broker.bus).await.unwrap(), []);
}

#[tokio::test]
async fn an_execution_has_one_partition_and_it_is_the_one_we_compute() {
    let broker = broker().await;
    let publisher = Publisher::new(&broker.bus, PublisherOptions::default());
    for n in 0..40 {
        let body = vec![n];
        let digest = Digest::of(&body);
        publisher.publish_frame(&node(), execution(n), Vantage::Host, body, digest, None).await.unwrap();
        publisher.publish_lifecycle(&cleaned(execution(n), 1), None).await.unwrap();
    }
    publisher.flush().await.unwrap();
    let mut reader = broker.bus.events(StreamStart::Oldest, vec![]).await.unwrap();
    let mut partitions = std::collections::BTreeSet::new();
    for n in 0..40 {
        for frame in [true, false] {
            let message = reader.next().await.unwrap();
            let subject = EventSubject::parse(&message.subject).unwrap();
            assert_eq!(subject.execution, execution(n));
            assert_eq!(subject.node, Some(node()));
            assert_eq!(matches!(subject.kind, EventSubjectKind::Frame(_)), frame, "order is kept");
            assert_eq!(subject.partition, Some(partition_of(execution(n))));
            partitions.insert(subject.partition);
        }
    }
    assert!(partitions.len() > 20, "40 executions spread over 256 partitions: {partitions:?}");
}

#[tokio::test]
async fn a_missing_stream_says_what_to_do() {
    let broker = bare().await;
    let error = broker.bus.events(StreamStart::Oldest, vec![]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Fatal);
    assert!(error.to_string().contains("glasshouse nats apply"), "{error}");
    let options = PublisherOptions { deadline: Duration::from_millis(300), ..PublisherOptions::default() };
    let publisher = Publisher::new(&broker.bus, options);
    let error = publisher.publish_receipt(execution(1), b"{}", "w", None).await.unwrap_err();
    assert!(error.to_string().contains("glasshouse nats apply"), "{error}");
}

#[test]
fn the_operators_example_configuration_is_valid() {
    let binary = glasshouse_nats::server::find_binary(None).unwrap();
    let config = concat!(env!("CARGO_MANIFEST_DIR"), "/conf/nats-server.conf");
    let checked = std::process::Command::new(binary).args(["-t", "-c", config]).output().unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
}
