//! Publishing: created once, deduplicated, in order, and nothing lost without a word.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(missing_docs, dead_code, unreachable_pub, reason = "tests")]

mod common;

use std::time::Duration;

use async_nats::jetstream::stream::Config;
use common::{bare, broker, cleaned, closed, execution, node};
use glasshouse_nats::{
    ClosedOutcome, Error, ErrorKind, MANIFEST_TYPE, NatsServer, Outcome, Publisher, PublisherOptions,
    ServerOptions, StreamStart,
};
use glasshouse_schema::dead::{DeadKind, DeadLetter};
use glasshouse_schema::{Digest, NodeId, PolicyName, Vantage, headers, subject};

const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

fn publisher(broker: &common::Broker) -> Publisher {
    Publisher::new(&broker.bus, PublisherOptions::default())
}

fn impatient() -> PublisherOptions {
    PublisherOptions { deadline: Duration::from_millis(500), ..PublisherOptions::default() }
}

#[tokio::test]
async fn closed_is_created_once() {
    let broker = broker().await;
    let publisher = publisher(&broker);
    let first = closed(execution(1), 10);
    assert_eq!(publisher.publish_closed(&first, None).await.unwrap(), ClosedOutcome::Stored);
    let second = publisher.publish_closed(&closed(execution(1), 20), None).await.unwrap();
    assert_eq!(second, ClosedOutcome::AlreadyClosed(Box::new(first)));
    let other = publisher.publish_closed(&closed(execution(2), 20), None).await.unwrap();
    assert_eq!(other, ClosedOutcome::Stored);
    assert_eq!(broker.bus.position("GH_EVENTS").await.unwrap().messages, 2);
}

#[tokio::test]
async fn ten_workers_close_one_record_once() {
    let broker = broker().await;
    let publisher = publisher(&broker);
    let attempts = (0..10).map(|n| {
        let publisher = publisher.clone();
        tokio::spawn(async move { publisher.publish_closed(&closed(execution(1), n), None).await.unwrap() })
    });
    let outcomes: Vec<_> = futures::future::join_all(attempts).await;
    let stored = outcomes.iter().filter(|outcome| *outcome.as_ref().unwrap() == ClosedOutcome::Stored);
    assert_eq!(stored.count(), 1);
}

#[tokio::test]
async fn a_second_receipt_is_compared_and_never_stored() {
    let broker = broker().await;
    let publisher = publisher(&broker);
    let body = br#"{"a":1}"#;
    let receipt =
        |body: &'static [u8]| publisher.publish_receipt(execution(1), body, "worker-1", Some(PARENT));
    assert_eq!(receipt(body).await.unwrap(), Outcome::Stored);
    let stored_digest = Digest::of(body);
    assert_eq!(receipt(body).await.unwrap(), Outcome::AlreadyThere { same: true, stored_digest });
    assert_eq!(receipt(b"{}").await.unwrap(), Outcome::AlreadyThere { same: false, stored_digest });

    let document = broker.bus.get_receipt(execution(1)).await.unwrap().unwrap();
    assert_eq!((&document.body[..], document.digest), (&body[..], stored_digest));
    assert_eq!(document.message.header(headers::DIGEST), Some(stored_digest.to_string().as_str()));
    assert_eq!(document.message.header(headers::WORKER), Some("worker-1"));
    assert_eq!(document.message.header(headers::TRACEPARENT), Some(PARENT));
    assert_eq!(document.message.header(headers::CONTENT_TYPE), Some(headers::JSON_TYPE));
    assert!(document.message.header(headers::SCHEMA_VERSION).is_some());
    assert!(broker.bus.get_receipt(execution(2)).await.unwrap().is_none());

    // And the stream refuses a publisher that forgets to expect an empty subject.
    let forgetful =
        broker.bus.jetstream().publish(subject::receipt(execution(1)), "{}".into()).await.unwrap();
    assert!(forgetful.await.is_err());
}

#[tokio::test]
async fn one_verdict_per_policy_digest() {
    let broker = broker().await;
    let publisher = publisher(&broker);
    let policy = PolicyName::new("no network.v2").unwrap();
    let (old, new) = (Digest::of(b"old"), Digest::of(b"new"));
    for (digest, body) in [(old, b"1"), (new, b"2")] {
        let outcome = publisher.publish_verdict(execution(1), (&policy, digest), body, "w", None).await;
        assert_eq!(outcome.unwrap(), Outcome::Stored);
    }
    let again = publisher.publish_verdict(execution(1), (&policy, old), b"1", "w", None).await.unwrap();
    assert_eq!(again, Outcome::AlreadyThere { same: true, stored_digest: Digest::of(b"1") });
    let other = publisher.publish_verdict(execution(2), (&policy, old), b"3", "w", None).await.unwrap();
    assert_eq!(other, Outcome::Stored);
    let verdicts = broker.bus.get_verdicts(execution(1)).await.unwrap();
    let bodies: Vec<&[u8]> = verdicts.iter().map(|verdict| &verdict.body[..]).collect();
    assert_eq!(bodies, [b"1", b"2"]);
    assert!(broker.bus.get_verdicts(execution(3)).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_large_receipt_lies_in_the_object_store_and_is_verified() {
    let broker = broker().await;
    let publisher = publisher(&broker);
    let body: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
    let outcome = publisher.publish_receipt(execution(1), &body, "w", None).await.unwrap();
    assert_eq!(outcome, Outcome::Stored);
    let document = broker.bus.get_receipt(execution(1)).await.unwrap().unwrap();
    assert_eq!(document.message.header(headers::CONTENT_TYPE), Some(MANIFEST_TYPE));
    assert!(document.message.payload.len() < 512);
    assert!(document.body[..] == body[..]);
    let same = publisher.publish_receipt(execution(1), &body, "w", None).await.unwrap();
    assert_eq!(same, Outcome::AlreadyThere { same: true, stored_digest: Digest::of(&body) });

    // Somebody swaps the object: the reader says so, and says it is no use trying again.
    let store = broker.bus.jetstream().get_object_store("GH_BODIES").await.unwrap();
    store.put(Digest::of(&body).to_string().as_str(), &mut &b"something else"[..]).await.unwrap();
    let error = broker.bus.get_receipt(execution(1)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Poison, "{error}");
    store.delete(Digest::of(&body).to_string()).await.unwrap();
    let error = broker.bus.get_receipt(execution(1)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Poison, "{error}");
}

#[tokio::test]
async fn a_body_that_is_not_what_its_header_says_is_poison() {
    let broker = broker().await;
    let mut altered = async_nats::HeaderMap::new();
    altered.insert(headers::DIGEST, Digest::of(b"the original").to_string());
    let subject = subject::receipt(execution(1));
    let publish = broker.bus.jetstream().publish_with_headers(subject, altered, "altered".into());
    publish.await.unwrap().await.unwrap();
    let mut tail = broker.bus.tail_receipts(StreamStart::Oldest).await.unwrap();
    let error = tail.next().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Poison, "{error}");
    publisher(&broker).publish_receipt(execution(2), b"{}", "w", None).await.unwrap();
    assert_eq!(&tail.next().await.unwrap().body[..], b"{}", "the tail goes on");
}

#[tokio::test]
async fn what_is_published_twice_is_stored_once() {
    let broker = broker().await;
    let publisher = publisher(&broker);
    let letter = DeadLetter::new(DeadKind::Frame, "too short", "s", ("GH_EVENTS", 7), b"x", "w");
    for _ in 0..3 {
        let (body, digest) = (&b"frame"[..], Digest::of(b"frame"));
        let trace = Some(PARENT);
        publisher.publish_frame(&node(), execution(1), Vantage::Host, body, digest, trace).await.unwrap();
        publisher.publish_lifecycle(&cleaned(execution(1), 1), None).await.unwrap();
        publisher.publish_dead(&letter, None).await.unwrap();
    }
    publisher.flush().await.unwrap();
    assert_eq!(broker.bus.position("GH_EVENTS").await.unwrap().messages, 2);
    assert_eq!(broker.bus.position("GH_DEAD").await.unwrap().messages, 1);
    let mut reader = broker.bus.events(StreamStart::Oldest, vec![]).await.unwrap();
    let frame = reader.next().await.unwrap();
    assert_eq!(frame.header(headers::CONTENT_TYPE), Some(headers::FRAME_TYPE));
    assert_eq!(frame.header(headers::TRACEPARENT), Some(PARENT));
    assert_eq!(frame.header(headers::MSG_ID).unwrap(), headers::frame_msg_id(&node(), Digest::of(b"frame")));
}

#[tokio::test]
async fn no_node_can_shadow_a_frame_of_another() {
    let broker = broker().await;
    let publisher = publisher(&broker);
    let (hostile, honest) = (NodeId::new("node-1").unwrap(), node());
    let (body, digest) = (&b"the same bytes"[..], Digest::of(b"the same bytes"));
    // The hostile one knows what the other will say, and says it first.
    for node in [&hostile, &honest, &honest] {
        publisher.publish_frame(node, execution(1), Vantage::Host, body, digest, None).await.unwrap();
    }
    publisher.flush().await.unwrap();
    let mut reader = broker.bus.events(StreamStart::Oldest, vec![]).await.unwrap();
    for node in [&hostile, &honest] {
        let message = reader.next().await.unwrap();
        let frames = subject::frames(node, execution(1), Vantage::Host);
        assert_eq!(subject::published(&message.subject), Some(frames));
        assert_eq!(&message.payload[..], body);
    }
    assert_eq!(broker.bus.position("GH_EVENTS").await.unwrap().messages, 2, "and its own only once");
}

#[tokio::test]
async fn a_refused_publish_is_sent_again_until_the_stream_takes_it_in_order() {
    // The streams appear only after the messages are on their way: every publish is refused at first.
    let broker = bare().await;
    let publisher = publisher(&broker);
    for n in 0..20 {
        publisher.publish_lifecycle(&cleaned(execution(1), n), None).await.unwrap();
    }
    glasshouse_nats::Topology::embedded(1).unwrap().apply(&broker.bus).await.unwrap();
    publisher.flush().await.unwrap();
    let mut reader = broker.bus.events(StreamStart::Oldest, vec![]).await.unwrap();
    for n in 0..20 {
        let message = reader.next().await.unwrap();
        let event = glasshouse_schema::LifecycleEvent::decode(&message.payload).unwrap();
        assert_eq!(event.unix_ns, n);
    }
    assert_eq!(broker.bus.position("GH_EVENTS").await.unwrap().messages, 20);
}

#[tokio::test]
async fn what_a_full_stream_did_not_take_is_counted() {
    let broker = broker().await;
    let stream = broker.bus.jetstream().get_stream("GH_EVENTS").await.unwrap();
    let full = Config { max_messages: 3, ..stream.cached_info().config.clone() };
    broker.bus.jetstream().update_stream(full).await.unwrap();

    let publisher = Publisher::new(&broker.bus, impatient());
    let mut taken = 0;
    for n in 0..10 {
        taken += u64::from(publisher.publish_lifecycle(&cleaned(execution(1), n), None).await.is_ok());
    }
    let error = publisher.flush().await.unwrap_err();
    let Error::NotStored { messages, ref reason, kind, .. } = error else { panic!("{error}") };
    assert_eq!((messages, kind), (7, ErrorKind::Retryable), "{taken} taken: {reason}");
    assert!(reason.contains("maximum messages"), "{reason}");
    let later = publisher.publish_lifecycle(&cleaned(execution(1), 11), None).await.unwrap_err();
    assert!(matches!(later, Error::NotStored { messages: 8, .. }), "{later}");
}

#[tokio::test]
async fn a_message_larger_than_the_server_takes_is_poison_and_stops_nothing() {
    let broker = broker().await;
    let publisher = publisher(&broker);
    let huge = vec![0; 2 << 20];
    let digest = Digest::of(&huge);
    let error =
        publisher.publish_frame(&node(), execution(1), Vantage::Host, huge, digest, None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Poison, "{error}");
    publisher.publish_lifecycle(&cleaned(execution(1), 1), None).await.unwrap();
    publisher.flush().await.unwrap();
}

#[tokio::test]
async fn a_server_restart_in_the_middle_loses_and_doubles_nothing() {
    let broker = broker().await;
    let port = broker.server.url().rsplit(':').next().unwrap().parse().unwrap();
    let publisher = publisher(&broker);
    let mut reader = broker.bus.events(StreamStart::Oldest, vec![]).await.unwrap();
    let sending = tokio::spawn(async move {
        for n in 0..2000 {
            publisher.publish_lifecycle(&cleaned(execution(1), n), None).await.unwrap();
            tokio::task::yield_now().await;
        }
        publisher.flush().await.unwrap();
    });
    let mut seen = std::collections::BTreeSet::new();
    let mut take = async |count: usize| {
        for _ in 0..count {
            let next = tokio::time::timeout(Duration::from_secs(60), reader.next()).await;
            let payload = next.expect("the reader is stuck").unwrap().payload;
            let event = glasshouse_schema::LifecycleEvent::decode(&payload).unwrap();
            assert!(seen.insert(event.unix_ns), "{} came twice", event.unix_ns);
        }
    };
    take(100).await;
    broker.server.kill().await.unwrap();
    let mut options = ServerOptions::private(broker.dir.path());
    options.port = port;
    let _again = NatsServer::start(options).await.unwrap();
    // The order may be disturbed where the connection broke; what was on its way then is sent again.
    take(1900).await;
    sending.await.unwrap();
    assert_eq!(broker.bus.position("GH_EVENTS").await.unwrap().messages, 2000);
}
