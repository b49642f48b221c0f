//! Publishing with a disk behind: a bus that is away, slow or full costs nothing that fits the disk.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(missing_docs, dead_code, unreachable_pub, reason = "tests")]

mod common;

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use async_nats::jetstream::stream::Config;
use common::{broker, cleaned, execution, node};
use glasshouse_nats::{
    Bus, Error, ErrorKind, EventReader, NatsServer, ServerOptions, Spool, SpoolError, SpoolOptions,
    SpoolState, SpooledOptions, SpooledPublisher, StreamStart,
};
use glasshouse_schema::{Digest, Vantage, headers};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const LONG: Duration = Duration::from_secs(60);

fn publisher(bus: &Bus, dir: &Path, max_bytes: u64) -> SpooledPublisher {
    let spool = Spool::open(dir, SpoolOptions { max_bytes, ..SpoolOptions::default() }).unwrap();
    let full_patience = Duration::from_millis(100);
    SpooledPublisher::new(bus, spool, SpooledOptions { full_patience, ..SpooledOptions::default() })
}

/// A frame that says its number, and how large it is.
fn body(n: u32, bytes: usize) -> Vec<u8> {
    let mut body = n.to_le_bytes().to_vec();
    body.resize(bytes.max(4), 7);
    body
}

async fn publish(publisher: &SpooledPublisher, n: u32, bytes: usize) -> Result<(), Error> {
    let body = body(n, bytes);
    let digest = Digest::of(&body);
    publisher.publish_frame((&node(), execution(1), Vantage::Host), body, digest, false, None).await
}

async fn until(publisher: &SpooledPublisher, what: &str, holds: impl Fn(&SpoolState) -> bool) {
    let wait = async {
        while !holds(&publisher.state()) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let waited = tokio::time::timeout(LONG, wait).await;
    assert!(waited.is_ok(), "{what}: {:?}", publisher.state());
}

/// The next `count` frames of the stream, each once, by number and in the order of the stream.
async fn numbers(reader: &mut EventReader, count: usize) -> Vec<u32> {
    let mut ids = BTreeSet::new();
    let mut numbers = Vec::new();
    while numbers.len() < count {
        let next = tokio::time::timeout(LONG, reader.next()).await;
        let message = next.unwrap_or_else(|_| panic!("only {} came", numbers.len())).unwrap();
        assert!(ids.insert(message.header(headers::MSG_ID).unwrap().to_owned()), "came twice");
        numbers.push(u32::from_le_bytes(message.payload[..4].try_into().unwrap()));
    }
    numbers
}

async fn limit(bus: &Bus, change: impl FnOnce(Config) -> Config) {
    let stream = bus.jetstream().get_stream("GH_EVENTS").await.unwrap();
    bus.jetstream().update_stream(change(stream.cached_info().config.clone())).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_written_while_the_bus_takes_everything() {
    let broker = broker().await;
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("spool");
    // However slow this machine is.
    let options = SpooledOptions { slow_after: LONG, ..SpooledOptions::default() };
    let spool = Spool::open(&dir, SpoolOptions::default()).unwrap();
    let publisher = SpooledPublisher::new(&broker.bus, spool, options);
    for n in 0..1_000 {
        publish(&publisher, n, 100).await.unwrap();
    }
    publisher.publish_lifecycle(&cleaned(execution(1), 1), None).await.unwrap();
    assert_eq!(publisher.flush(LONG).await.unwrap().messages, 0);
    assert_eq!(publisher.state(), SpoolState::default());
    assert_eq!(publisher.leftover(), None);
    let files = std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(files.collect::<Vec<_>>(), ["lock"]);
    publisher.close().await.unwrap();
    assert!(!dir.exists(), "what is empty is removed");
    assert_eq!(broker.bus.position("GH_EVENTS").await.unwrap().messages, 1_001);
    assert!(publish(&publisher, 0, 1).await.is_err(), "closed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_killed_gets_everything_once_and_in_order_when_it_is_back() {
    let broker = broker().await;
    let spool_dir = tempfile::tempdir().unwrap();
    let bus = broker.bus.clone();
    let publisher = publisher(&bus, spool_dir.path(), 64 << 20);
    for n in 0..100 {
        publish(&publisher, n, 1_000).await.unwrap();
    }
    let port = broker.server.url().rsplit(':').next().unwrap().parse().unwrap();
    // Some of the first hundred are under way; five hundred more come while nobody is there.
    broker.server.kill().await.unwrap();
    for n in 100..600 {
        publish(&publisher, n, 1_000).await.unwrap();
    }
    until(&publisher, "the last ones are on disk", |state| state.spooling && state.messages > 0).await;
    let mut options = ServerOptions::private(broker.dir.path());
    options.port = port;
    let _server = NatsServer::start(options).await.unwrap();
    assert_eq!(publisher.flush(LONG).await.unwrap().messages, 0, "{:?}", publisher.state());
    until(&publisher, "direct again", |state| !state.spooling).await;
    assert_eq!(publisher.state().refused, 0, "{:?}", publisher.state());

    let mut reader = bus.events(StreamStart::Oldest, vec![]).await.unwrap();
    let mut found = numbers(&mut reader, 600).await;
    assert_eq!(bus.position("GH_EVENTS").await.unwrap().messages, 600, "each once");
    // What was under way when the connection broke may come in another order: the client sends what it had queued before
    // we send again what was lost. What went by way of the disk comes in order.
    let by_disk: Vec<_> = found.iter().filter(|n| **n >= 400).collect();
    assert!(by_disk.is_sorted(), "{by_disk:?}");
    found.sort_unstable();
    assert_eq!(found, (0..600).collect::<Vec<_>>());
    // And on.
    publish(&publisher, 600, 1).await.unwrap();
    publisher.flush(LONG).await.unwrap();
    assert_eq!(publisher.close().await.unwrap().messages, 0);
    assert_eq!(numbers(&mut reader, 1).await, [600]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stops_answering_delays_nobody() {
    let broker = broker().await;
    let spool_dir = tempfile::tempdir().unwrap();
    let publisher = publisher(&broker.bus, spool_dir.path(), 64 << 20);
    let server = Pid::from_raw(broker.server.pid().try_into().unwrap());
    kill(server, Signal::SIGSTOP).unwrap();
    let begin = std::time::Instant::now();
    for n in 0..2_000 {
        publish(&publisher, n, 1_000).await.unwrap();
    }
    let took = begin.elapsed();
    let left = publisher.flush(Duration::from_millis(100)).await.unwrap();
    kill(server, Signal::SIGCONT).unwrap();
    // The server may have answered a few before the signal reached it.
    assert!((1_900..=2_000).contains(&left.messages), "{left:?}");
    assert!(left.bytes > 1_900_000);
    assert!(took < Duration::from_secs(10), "{took:?}");
    assert!(publisher.state().reason.is_some());
    assert_eq!(publisher.flush(LONG).await.unwrap().messages, 0);
    let mut reader = broker.bus.events(StreamStart::Oldest, vec![]).await.unwrap();
    assert_eq!(numbers(&mut reader, 2_000).await, (0..2_000).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_process_leaves_another_sends() {
    let broker = broker().await;
    let bus = broker.bus.clone();
    let spool_dir = tempfile::tempdir().unwrap();
    let dir = spool_dir.path().join("run");
    let first = publisher(&bus, &dir, 64 << 20);
    limit(&bus, |config| Config { max_messages: 10, ..config }).await;
    for n in 0..100 {
        publish(&first, n, 1_000).await.unwrap();
    }
    // No flush: the process is as good as dead. The runtime lives on, so the end can be waited for.
    drop(first);
    let mut spool = Err(SpoolError::InUse { dir: dir.clone() });
    while matches!(spool, Err(SpoolError::InUse { .. })) {
        tokio::time::sleep(Duration::from_millis(5)).await;
        spool = Spool::open(&dir, SpoolOptions::default());
    }
    let spool = spool.unwrap();
    let left = spool.leftover().messages;
    assert!((90..=100).contains(&left), "{left}");
    let second = SpooledPublisher::new(&bus, spool, SpooledOptions::default());
    assert!(second.state().spooling);
    limit(&bus, |config| Config { max_messages: -1, ..config }).await;
    assert_eq!(second.flush(LONG).await.unwrap().messages, 0);
    second.close().await.unwrap();
    assert!(!dir.exists());
    let mut reader = bus.events(StreamStart::Oldest, vec![]).await.unwrap();
    assert_eq!(numbers(&mut reader, 100).await, (0..100).collect::<Vec<_>>());
    assert_eq!(bus.position("GH_EVENTS").await.unwrap().messages, 100);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_stream_gets_the_rest_after_a_purge() {
    let broker = broker().await;
    limit(&broker.bus, |config| Config { max_bytes: 40_000, ..config }).await;
    let spool_dir = tempfile::tempdir().unwrap();
    let publisher = publisher(&broker.bus, spool_dir.path(), 64 << 20);
    for n in 0..100 {
        publish(&publisher, n, 1_000).await.unwrap();
    }
    let left = publisher.flush(Duration::from_millis(500)).await.unwrap();
    let stored = broker.bus.position("GH_EVENTS").await.unwrap().messages;
    assert!(left.messages >= 100 - stored && left.messages > 60, "{left:?}, {stored} stored");
    let reason = publisher.state().reason.unwrap();
    assert!(reason.contains("maximum bytes"), "{reason}");

    // Somebody reads, and purges what was read: the rest comes as there is room.
    let stream = broker.bus.jetstream().get_stream("GH_EVENTS").await.unwrap();
    let mut reader = broker.bus.events(StreamStart::Oldest, vec![]).await.unwrap();
    let mut found = Vec::new();
    while found.len() < 100 {
        found.extend(numbers(&mut reader, 10).await);
        stream.purge().sequence(found.len() as u64 + 1).await.unwrap();
    }
    assert_eq!(publisher.flush(LONG).await.unwrap().messages, 0);
    // Room that comes back in the middle of a window is taken by what is sent next: frames have their numbers for that.
    found.sort_unstable();
    assert_eq!(found, (0..100).collect::<Vec<_>>());
}

/// Published alternately: what a message says of its place among all.
async fn publish_mixed(publisher: &SpooledPublisher, n: u32) {
    match n % 4 {
        3 => publisher.publish_lifecycle(&cleaned(execution(1), n.into()), None).await.unwrap(),
        _ => publish(publisher, n, 1_000).await.unwrap(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_lifecycle_event_is_stored_before_what_was_published_before_it() {
    let broker = broker().await;
    limit(&broker.bus, |config| Config { max_messages: 7, ..config }).await;
    let spool_dir = tempfile::tempdir().unwrap();
    let publisher = publisher(&broker.bus, spool_dir.path(), 64 << 20);
    let count = 400;
    let sending = publisher.clone();
    let sending = tokio::spawn(async move {
        for n in 0..count {
            publish_mixed(&sending, n).await;
        }
    });
    // Room for a few comes and goes, in the middle of whatever is on its way.
    let stream = broker.bus.jetstream().get_stream("GH_EVENTS").await.unwrap();
    let mut reader = broker.bus.events(StreamStart::Oldest, vec![]).await.unwrap();
    let mut stored = Vec::new();
    while stored.len() < count as usize {
        let next = tokio::time::timeout(LONG, reader.next()).await;
        let message = next.unwrap_or_else(|_| panic!("only {} came", stored.len())).unwrap();
        let lifecycle = glasshouse_schema::LifecycleEvent::decode(&message.payload).ok();
        let number = lifecycle.as_ref().map_or_else(
            || u32::from_le_bytes(message.payload[..4].try_into().unwrap()),
            |event| event.unix_ns.try_into().unwrap(),
        );
        if lifecycle.is_some() {
            let before: BTreeSet<u32> = stored.iter().copied().collect();
            let missing: Vec<u32> = (0..number).filter(|n| !before.contains(n)).collect();
            assert!(missing.is_empty(), "{number} is stored before {missing:?}");
        }
        stored.push(number);
        stream.purge().sequence(message.stream_seq + 1).await.unwrap();
    }
    sending.await.unwrap();
    assert_eq!(publisher.flush(LONG).await.unwrap().messages, 0);
    stored.sort_unstable();
    assert_eq!(stored, (0..count).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_spool_refuses_with_a_count_keeps_room_for_the_end_and_takes_more_once_drained() {
    let broker = broker().await;
    limit(&broker.bus, |config| Config { max_messages: 1, ..config }).await;
    let spool_dir = tempfile::tempdir().unwrap();
    let publisher = publisher(&broker.bus, spool_dir.path(), SpoolOptions::MIN_BYTES);
    let mut taken = Vec::new();
    let mut refused = 0;
    for n in 0..100 {
        match publish(&publisher, n, 100_000).await {
            Ok(()) => taken.push(n),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Retryable);
                let Error::Spool(SpoolError::Full { messages, max_bytes, .. }) = error else {
                    panic!("{error}")
                };
                assert!(messages > 0 && max_bytes == SpoolOptions::MIN_BYTES);
                refused += 1;
            }
        }
    }
    assert!(refused > 50 && taken.len() > 20, "{refused} refused");
    assert_eq!(publisher.state().refused, refused);
    assert!(publisher.state().bytes <= SpoolOptions::MIN_BYTES);
    // The end of the execution is still taken.
    publisher.publish_lifecycle(&cleaned(execution(1), 1), None).await.unwrap();
    let seal = body(1_000, 500_000);
    let of = (&node(), execution(1), Vantage::Host);
    let digest = Digest::of(&seal);
    publisher.publish_frame(of, seal, digest, true, None).await.unwrap();

    limit(&broker.bus, |config| Config { max_messages: -1, ..config }).await;
    assert_eq!(publisher.flush(LONG).await.unwrap().messages, 0);
    publish(&publisher, 2_000, 100_000).await.unwrap();
    assert_eq!(publisher.flush(LONG).await.unwrap().messages, 0);
    assert_eq!(publisher.state().refused, refused, "what was refused stays counted");
    let stored = broker.bus.position("GH_EVENTS").await.unwrap().messages;
    assert_eq!(stored, taken.len() as u64 + 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frame_that_the_stream_can_never_take_is_set_aside_and_stops_nothing() {
    let broker = broker().await;
    limit(&broker.bus, |config| Config { max_message_size: 10_000, ..config }).await;
    let spool_dir = tempfile::tempdir().unwrap();
    let publisher = publisher(&broker.bus, spool_dir.path(), 64 << 20);
    publish(&publisher, 0, 100).await.unwrap();
    publish(&publisher, 1, 20_000).await.unwrap();
    publish(&publisher, 2, 100).await.unwrap();
    let left = publisher.flush(LONG).await.unwrap();
    assert_eq!((left.messages, left.rejected), (0, 1), "{:?}", publisher.state());
    let closed = publisher.close().await.unwrap();
    assert_eq!(closed.rejected, 1);
    assert!(spool_dir.path().exists(), "it is not lost");
    let mut reader = broker.bus.events(StreamStart::Oldest, vec![]).await.unwrap();
    assert_eq!(numbers(&mut reader, 2).await, [0, 2]);
}
