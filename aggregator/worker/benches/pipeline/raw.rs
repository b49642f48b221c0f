//! What JetStream itself moves: the same payloads, published and read in order, with nothing of ours in between.

use std::collections::VecDeque;
use std::future::IntoFuture;
use std::time::{Duration, Instant};

use async_nats::jetstream::consumer::DeliverPolicy;
use async_nats::jetstream::consumer::pull::{Ordered, OrderedConfig};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::stream::{Config, StorageType};
use bytes::Bytes;
use futures::StreamExt;
use glasshouse_nats::Bus;

use crate::host::Broker;

/// Acknowledgements that a producer waits for at a time, as [`glasshouse_nats::PublisherOptions`] has it.
const IN_FLIGHT: usize = 256;

/// A stream of its own, and who reads it in order.
pub(crate) async fn stream(broker: &Broker) -> Ordered {
    let bus = broker.connect().await;
    let config = Config {
        name: "RAW".into(),
        subjects: vec!["raw.>".into()],
        storage: StorageType::File,
        ..Config::default()
    };
    let stream = bus.jetstream().create_stream(config).await.unwrap();
    let config = OrderedConfig { deliver_policy: DeliverPolicy::All, ..OrderedConfig::default() };
    stream.create_consumer(config).await.unwrap().messages().await.unwrap()
}

/// How long it takes until everything that the producers publish at once was read in order.
pub(crate) async fn throughput(
    broker: &Broker,
    messages: &mut Ordered,
    producers: Vec<Vec<Bytes>>,
) -> Duration {
    let count: usize = producers.iter().map(Vec::len).sum();
    let mut buses = Vec::new();
    for _ in &producers {
        buses.push(broker.connect().await);
    }
    let begun = Instant::now();
    let publish = producers.into_iter().zip(buses).zip(0..).map(|((payloads, bus), number)| {
        tokio::spawn(async move {
            let mut acks = VecDeque::new();
            for payload in payloads {
                let message = PublishMessage::build().payload(payload);
                let ack = bus.jetstream().send_publish(format!("raw.{number}"), message).await.unwrap();
                acks.push_back(ack.into_future());
                if acks.len() == IN_FLIGHT {
                    acks.pop_front().unwrap().await.unwrap();
                }
            }
            for ack in acks {
                ack.await.unwrap();
            }
        })
    });
    let publish: Vec<_> = publish.collect();
    for _ in 0..count {
        messages.next().await.unwrap().unwrap();
    }
    let taken = begun.elapsed();
    for producer in publish {
        producer.await.unwrap();
    }
    taken
}

/// How long a message takes from its publisher to an ordered reader, one after the other.
pub(crate) async fn latency(broker: &Broker, count: usize, every: Duration) -> Vec<Duration> {
    let mut messages = stream(broker).await;
    let bus: Bus = broker.connect().await;
    let mut tick = tokio::time::interval(every);
    let mut taken = Vec::new();
    for _ in 0..count {
        tick.tick().await;
        let begun = Instant::now();
        let message = PublishMessage::build().payload(Bytes::from_static(&[b'x'; 512]));
        let ack = bus.jetstream().send_publish("raw.latency", message).await.unwrap();
        messages.next().await.unwrap().unwrap();
        taken.push(begun.elapsed());
        ack.await.unwrap();
    }
    taken
}
