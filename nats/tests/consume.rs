//! Consuming: deliveries that must be acknowledged, tails, claims and checkpoints.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(missing_docs, dead_code, unreachable_pub, reason = "tests")]

mod common;

use std::time::Duration;

use common::{broker, cleaned, execution, node};
use glasshouse_nats::{
    CheckpointPut, Checkpoints, ClaimOutcome, Claims, POLICY_WORKERS, Publisher, PublisherOptions,
    ReceiptConsumer, StreamStart,
};
use glasshouse_schema::{NodeId, subject};

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(10), future).await.expect("nothing came within ten seconds")
}

async fn nothing<T>(future: impl Future<Output = T>) {
    assert!(tokio::time::timeout(Duration::from_millis(1500), future).await.is_err(), "something came");
}

#[tokio::test]
async fn a_dropped_delivery_comes_again_and_an_acknowledged_one_does_not() {
    let broker = broker().await;
    let publisher = Publisher::new(&broker.bus, PublisherOptions::default());
    let mut worker = ReceiptConsumer::join(&broker.bus, POLICY_WORKERS).await.unwrap();
    publisher.publish_receipt(execution(1), b"{}", "w", None).await.unwrap();

    let first = soon(worker.next()).await.unwrap();
    assert_eq!((first.delivered(), first.message().stream_seq), (1, 1));
    drop(first);
    let second = soon(worker.next()).await.unwrap();
    assert_eq!((second.delivered(), second.message().stream_seq), (2, 1));
    second.progress().await.unwrap();
    assert_eq!(&second.document().await.unwrap().body[..], b"{}");
    second.nak(Duration::from_millis(10)).await.unwrap();
    let third = soon(worker.next()).await.unwrap();
    assert_eq!(third.delivered(), 3);
    third.ack().await.unwrap();
    nothing(worker.next()).await;
}

#[tokio::test]
async fn a_terminated_delivery_never_comes_again_and_the_reason_is_told() {
    use futures::StreamExt;
    let broker = broker().await;
    let mut advisories =
        broker.bus.client().subscribe("$JS.EVENT.ADVISORY.CONSUMER.MSG_TERMINATED.>").await.unwrap();
    let publisher = Publisher::new(&broker.bus, PublisherOptions::default());
    let mut worker = ReceiptConsumer::join(&broker.bus, POLICY_WORKERS).await.unwrap();
    publisher.publish_receipt(execution(1), b"?", "w", None).await.unwrap();
    soon(worker.next()).await.unwrap().term("not a\nreceipt").await.unwrap();
    let advisory = soon(advisories.next()).await.unwrap();
    assert!(String::from_utf8_lossy(&advisory.payload).contains("not a receipt"), "{advisory:?}");
    nothing(worker.next()).await;
}

#[tokio::test]
async fn workers_of_one_durable_share_the_receipts() {
    let broker = broker().await;
    let publisher = Publisher::new(&broker.bus, PublisherOptions::default());
    let mut one = ReceiptConsumer::join(&broker.bus, POLICY_WORKERS).await.unwrap();
    let mut two = ReceiptConsumer::join(&broker.bus, POLICY_WORKERS).await.unwrap();
    for n in 0..40 {
        publisher.publish_receipt(execution(n), b"{}", "w", None).await.unwrap();
    }
    let mut seen = Vec::new();
    while seen.len() < 40 {
        let delivery = soon(async {
            tokio::select! { delivery = one.next() => delivery, delivery = two.next() => delivery }
        });
        let delivery = delivery.await.unwrap();
        seen.push(delivery.message().stream_seq);
        delivery.ack().await.unwrap();
    }
    seen.sort_unstable();
    assert_eq!(seen, (1..=40).collect::<Vec<_>>(), "each once");
}

#[tokio::test]
async fn a_receipt_can_be_waited_for() {
    let broker = broker().await;
    assert!(broker.bus.wait_receipt(execution(1), Duration::from_millis(200)).await.unwrap().is_none());
    let bus = broker.bus.clone();
    let waiting =
        tokio::spawn(async move { bus.wait_receipt(execution(1), Duration::from_secs(10)).await.unwrap() });
    let publisher = Publisher::new(&broker.bus, PublisherOptions::default());
    publisher.publish_receipt(execution(2), b"other", "w", None).await.unwrap();
    publisher.publish_receipt(execution(1), b"mine", "w", None).await.unwrap();
    assert_eq!(&waiting.await.unwrap().unwrap().body[..], b"mine");
}

#[tokio::test]
async fn a_reader_starts_where_it_is_told_and_filters() {
    let broker = broker().await;
    let publisher = Publisher::new(&broker.bus, PublisherOptions::default());
    for n in 0..10 {
        publisher.publish_lifecycle(&cleaned(execution(n % 2), n.into()), None).await.unwrap();
    }
    publisher.flush().await.unwrap();
    let mut from = broker.bus.events(StreamStart::Sequence(4), vec![]).await.unwrap();
    assert_eq!(from.pending(), Some(7));
    assert_eq!(soon(from.next()).await.unwrap().stream_seq, 4);
    assert_eq!((from.next_seq(), from.pending()), (5, Some(6)));

    let filters = subject::stored_events_of(execution(1)).to_vec();
    let mut filtered = broker.bus.events(StreamStart::Oldest, filters).await.unwrap();
    let mut seqs = Vec::new();
    while filtered.pending() != Some(0) {
        seqs.push(soon(filtered.next()).await.unwrap().stream_seq);
    }
    assert_eq!(seqs, [2, 4, 6, 8, 10]);

    let mut new = broker.bus.tail_receipts(StreamStart::New).await.unwrap();
    nothing(new.next()).await;
    publisher.publish_receipt(execution(9), b"{}", "w", None).await.unwrap();
    soon(new.next()).await.unwrap();
    let position = broker.bus.position("GH_EVENTS").await.unwrap();
    assert_eq!((position.first_seq, position.last_seq, position.messages), (1, 10, 10));
    assert!(position.created_unix_ns > 0);
}

#[tokio::test]
async fn an_execution_is_claimed_once_and_a_deleted_claim_does_not_free_it() {
    let broker = broker().await;
    let claims = Claims::new(&broker.bus);
    assert_eq!(claims.get(execution(1)).await.unwrap(), None);
    let ClaimOutcome::Taken { epoch } = claims.take(execution(1), &node()).await.unwrap() else {
        panic!("a free execution")
    };
    for other in [node(), NodeId::new("node-2").unwrap()] {
        match claims.take(execution(1), &other).await.unwrap() {
            ClaimOutcome::Held { claim: Some(claim), epoch: held } => {
                assert_eq!((claim.node, held), (node(), epoch));
            }
            outcome => panic!("{outcome:?}"),
        }
    }
    let bucket = broker.bus.jetstream().get_key_value("GH_CLAIMS").await.unwrap();
    bucket.purge(execution(1).to_string()).await.unwrap();
    let outcome = claims.take(execution(1), &node()).await.unwrap();
    assert!(matches!(outcome, ClaimOutcome::Held { claim: None, .. }), "{outcome:?}");

    let races = (0..8).map(|n| {
        let claims = claims.clone();
        tokio::spawn(async move {
            claims.take(execution(2), &NodeId::new(format!("n{n}")).unwrap()).await.unwrap()
        })
    });
    let outcomes = futures::future::join_all(races).await;
    let taken = outcomes.iter().filter(|o| matches!(o.as_ref().unwrap(), ClaimOutcome::Taken { .. }));
    assert_eq!(taken.count(), 1);
}

#[tokio::test]
async fn a_checkpoint_is_replaced_only_by_who_read_it() {
    let broker = broker().await;
    let checkpoints = Checkpoints::new(&broker.bus);
    let none = checkpoints.get("partition.7").await.unwrap();
    assert_eq!((none.revision, none.bytes.clone()), (0, None));
    let CheckpointPut::Stored(first) = checkpoints.put("partition.7", b"one", &none).await.unwrap() else {
        panic!("nothing was there")
    };
    match checkpoints.put("partition.7", b"two", &none).await.unwrap() {
        CheckpointPut::Conflict(found) => assert_eq!(found, first),
        CheckpointPut::Stored(_) => panic!("a stale writer"),
    }
    let CheckpointPut::Stored(second) = checkpoints.put("partition.7", b"two", &first).await.unwrap() else {
        panic!("the one who read it")
    };
    assert_eq!(checkpoints.get("partition.7").await.unwrap(), second);
    assert!(checkpoints.get("a b").await.is_err());
    assert!(checkpoints.get(">").await.is_err());
}

#[tokio::test]
async fn a_large_checkpoint_leaves_nothing_behind_when_it_is_replaced() {
    let broker = broker().await;
    let checkpoints = Checkpoints::new(&broker.bus);
    let store = broker.bus.jetstream().get_object_store("GH_BODIES").await.unwrap();
    let mut last = checkpoints.get("p").await.unwrap();
    for n in 0..3 {
        let body = vec![n; 700_000];
        match checkpoints.put("p", &body, &last).await.unwrap() {
            CheckpointPut::Stored(stored) => last = stored,
            CheckpointPut::Conflict(found) => panic!("{found:?}"),
        }
        let read = checkpoints.get("p").await.unwrap();
        assert!(read == last && read.bytes.unwrap()[..] == body[..]);
    }
    use futures::StreamExt;
    assert_eq!(store.list().await.unwrap().count().await, 1);
}

#[tokio::test]
async fn verdicts_are_waited_for_and_reading_them_leaves_no_consumers() {
    let broker = broker().await;
    let policy = glasshouse_schema::PolicyName::new("p").unwrap();
    let digest = glasshouse_schema::Digest::of(b"p");
    assert!(broker.bus.wait_verdicts(execution(1), Duration::from_millis(200)).await.unwrap().is_empty());
    let bus = broker.bus.clone();
    let waiting =
        tokio::spawn(async move { bus.wait_verdicts(execution(1), Duration::from_secs(10)).await.unwrap() });
    let publisher = Publisher::new(&broker.bus, PublisherOptions::default());
    for n in [2, 1] {
        publisher.publish_verdict(execution(n), (&policy, digest), &[n], "w", None).await.unwrap();
    }
    let found = waiting.await.unwrap();
    assert_eq!(found.iter().map(|found| found.body[0]).collect::<Vec<_>>(), [1]);

    let mut stream = broker.bus.jetstream().get_stream("GH_VERDICTS").await.unwrap();
    let before = stream.info().await.unwrap().state.consumer_count;
    assert_eq!(broker.bus.get_verdicts(execution(2)).await.unwrap().len(), 1);
    assert_eq!(stream.info().await.unwrap().state.consumer_count, before);
}

#[tokio::test]
async fn a_stream_made_anew_under_a_reader_is_said() {
    let broker = broker().await;
    let publisher = Publisher::new(&broker.bus, PublisherOptions::default());
    publisher.publish_lifecycle(&cleaned(execution(1), 1), None).await.unwrap();
    publisher.flush().await.unwrap();
    let mut reader = broker.bus.events(StreamStart::Oldest, vec![]).await.unwrap();
    soon(reader.next()).await.unwrap();
    let mut stream = broker.bus.jetstream().get_stream("GH_EVENTS").await.unwrap();
    let config = stream.info().await.unwrap().config.clone();
    broker.bus.jetstream().delete_stream("GH_EVENTS").await.unwrap();
    broker.bus.jetstream().create_stream(config).await.unwrap();
    let error = soon(reader.next()).await.unwrap_err();
    assert!(matches!(error, glasshouse_nats::Error::Rewound { .. }), "{error}");
    assert!(error.to_string().contains("GH_EVENTS"), "{error}");
}

#[tokio::test]
async fn a_large_checkpoint_whose_object_is_gone_counts_as_empty_and_can_be_replaced() {
    let broker = broker().await;
    let checkpoints = Checkpoints::new(&broker.bus);
    let none = checkpoints.get("p").await.unwrap();
    checkpoints.put("p", &vec![1; 700_000], &none).await.unwrap();
    broker.bus.jetstream().get_stream("OBJ_GH_BODIES").await.unwrap().purge().await.unwrap();
    let damaged = checkpoints.get("p").await.unwrap();
    assert_eq!((damaged.revision > 0, &damaged.bytes), (true, &None));
    let put = checkpoints.put("p", b"two", &damaged).await.unwrap();
    assert!(matches!(put, CheckpointPut::Stored(_)), "{put:?}");
}
