//! Heartbeats: there as long as the process is, and gone by the server's own clock.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(missing_docs, dead_code, unreachable_pub, reason = "tests")]

mod common;

use std::time::{Duration, Instant};

use common::{bare, broker, execution, node};
use glasshouse_nats::{
    Bus, ClaimOutcome, Claims, ErrorKind, Heartbeat, NatsServer, Producer, ServerOptions, Topology,
};

const LONG: Duration = Duration::from_secs(60);

async fn claimed(bus: &Bus, n: u8, heartbeat: &Heartbeat) -> Producer {
    let claims = Claims::new(bus);
    let taken = claims.take_for(execution(n), heartbeat).await.unwrap();
    assert!(matches!(taken, ClaimOutcome::Taken { .. }), "{taken:?}");
    let (claim, _) = claims.get(execution(n)).await.unwrap().unwrap();
    claim.unwrap().producer().expect("the claim names the process")
}

async fn until(bus: &Bus, producer: &Producer, is_there: bool) {
    let begin = Instant::now();
    while bus.has_heartbeat(producer).await.ok() != Some(is_there) {
        assert!(begin.elapsed() < LONG, "the heartbeat does not become {is_there}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_heartbeat_is_there_until_its_process_says_goodbye_or_is_not_heard_any_more() {
    let broker = broker().await;
    let bus = &broker.bus;
    let (ends, dies) = (Heartbeat::start(bus, &node()).await.unwrap(), Heartbeat::start(bus, &node()).await);
    let dies = dies.unwrap();
    let (ended, died) = (claimed(bus, 1, &ends).await, claimed(bus, 2, &dies).await);
    assert_ne!(ended, died, "two processes of one node");
    assert!(bus.has_heartbeat(&ended).await.unwrap() && bus.has_heartbeat(&died).await.unwrap());
    ends.end().await;
    until(bus, &ended, false).await;

    // Dropped it is as if the process was killed: nobody says anything, and the server's clock decides.
    drop(dies);
    let begin = Instant::now();
    assert!(bus.has_heartbeat(&died).await.unwrap(), "nobody has noticed yet");
    until(bus, &died, false).await;
    assert!(begin.elapsed() > Duration::from_secs(10), "{:?}", begin.elapsed());

    // A claim of a producer without one names no process.
    let claims = Claims::new(bus);
    claims.take(execution(3), &node()).await.unwrap();
    let (claim, _) = claims.get(execution(3)).await.unwrap().unwrap();
    assert_eq!(claim.unwrap().producer(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_heartbeat_outlives_its_age_and_comes_back_with_the_server() {
    let broker = broker().await;
    let bus = broker.bus.clone();
    let heartbeat = Heartbeat::start(&bus, &node()).await.unwrap();
    let producer = claimed(&bus, 1, &heartbeat).await;
    // Written again before it is too old: the server has more than one message of it.
    let begin = Instant::now();
    while bus.position("KV_GH_NODES").await.unwrap().last_seq < 4 {
        assert!(bus.has_heartbeat(&producer).await.unwrap());
        assert!(begin.elapsed() < LONG);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(bus.has_heartbeat(&producer).await.unwrap());

    // As a server that was away for longer than that finds it: removed.
    let port = broker.server.url().rsplit(':').next().unwrap().parse().unwrap();
    bus.jetstream().get_stream("KV_GH_NODES").await.unwrap().purge().await.unwrap();
    assert!(!bus.has_heartbeat(&producer).await.unwrap());
    broker.server.kill().await.unwrap();
    let error = bus.has_heartbeat(&producer).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Retryable, "that nobody answers says nothing about it: {error}");
    let mut options = ServerOptions::private(broker.dir.path());
    options.port = port;
    let _again = NatsServer::start(options).await.unwrap();
    until(&bus, &producer, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_the_bucket_is_an_error_and_not_a_dead_producer() {
    let broker = bare().await;
    assert!(Heartbeat::start(&broker.bus, &node()).await.is_err());
    Topology::embedded(1).unwrap().apply(&broker.bus).await.unwrap();
    let heartbeat = Heartbeat::start(&broker.bus, &node()).await.unwrap();
    let producer = claimed(&broker.bus, 1, &heartbeat).await;
    broker.bus.jetstream().delete_stream("KV_GH_NODES").await.unwrap();
    broker.bus.has_heartbeat(&producer).await.unwrap_err();
}
