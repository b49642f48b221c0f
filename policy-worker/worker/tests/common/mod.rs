//! What the tests share: a real server per test, receipts to judge, and what became of them.
#![allow(dead_code, reason = "each test file uses a part")]

use std::time::Duration;

use async_nats::jetstream::consumer::{DeliverPolicy, pull};
use futures::StreamExt;
use glasshouse_eval::Policy;
use glasshouse_nats::{
    Bus, ConnectOptions, NatsServer, Publisher, PublisherOptions, ServerOptions, Topology,
};
use glasshouse_schema::dead::DeadLetter;
use glasshouse_schema::{ExecutionId, Verdict};
use serde_json::json;

pub(crate) const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

pub(crate) struct Broker {
    pub(crate) bus: Bus,
    pub(crate) server: NatsServer,
    // Dropped last, after the server that writes there.
    pub(crate) dir: tempfile::TempDir,
}

/// A server with every stream. Fails, and never skips, where there is no server binary: run scripts/setup.sh.
pub(crate) async fn broker() -> Broker {
    let dir = tempfile::tempdir().unwrap();
    let server = NatsServer::start(ServerOptions::private(dir.path())).await.unwrap();
    let bus = glasshouse_nats::connect(ConnectOptions::new(server.url(), "test")).await.unwrap();
    Topology::embedded(1).unwrap().apply(&bus).await.unwrap();
    Broker { bus, server, dir }
}

pub(crate) fn execution(n: u16) -> ExecutionId {
    let [high, low] = n.to_be_bytes();
    ExecutionId::from_parts(1_700_000_000_000, [high, low, 0, 0, 0, 0, 0, 0, 0, 0])
}

pub(crate) fn receipt(execution: ExecutionId) -> Vec<u8> {
    let counters = json!({"observed": "1", "delivered": "1", "collapsed": "0", "lost": "0"});
    let receipt: glasshouse_schema::Receipt = serde_json::from_value(json!({
        "version": "v0.4.0", "execution_id": execution.to_string(), "provenance": "host",
        "timestamp": "2026-01-01T00:00:00Z", "start_time": "2026-01-01T00:00:00Z", "end_time": "2026-01-01T00:00:01Z",
        "observation_mode": "host", "completeness": "closed",
        "outcome": {"exit_code": 0, "signal": null, "error": null},
        "timing": {"duration_ms": 1, "cpu_time_ms": 1}, "process_tree": [], "processes": [],
        "filesystem": {"reads": [], "writes": [], "deletes": [], "policy_violations": []},
        "network": {"connections": [], "attempts": []}, "syscalls": {"counts": {}, "denied": []},
        "environment": {"runtime": "process", "os": "linux", "arch": "x86_64", "sandbox": {"network": "host"}},
        "execution": {"backend": "process", "isolation": "process"}, "artifacts": {},
        "exit_code": 0, "duration_ms": 1, "chain": [],
        "coverage": {"incomplete": [], "vantages": [{
            "vantage": "host", "controller": "ebpf", "hooks": [], "sealed": true,
            "classes": {"process": counters, "file": counters, "network": counters, "syscall": counters},
        }]},
    }))
    .unwrap();
    receipt.encode().unwrap()
}

pub(crate) async fn publish(bus: &Bus, execution: ExecutionId) {
    Publisher::new(bus, PublisherOptions::default())
        .publish_receipt(execution, &receipt(execution), "aggregator", Some(PARENT))
        .await
        .unwrap();
}

pub(crate) fn policy(name: &str, expression: &str) -> Policy {
    let yaml = format!(
        "version: v1\nname: {name}\nrules:\n  - {{id: r, message: denied by test, expression: \"{expression}\"}}\n"
    );
    Policy::parse(&yaml, "test.yaml").unwrap()
}

/// Waits for `count` messages of a stream and returns their bodies, subjects and the worker that wrote them.
pub(crate) async fn wait_for(
    bus: &Bus,
    stream: &str,
    count: usize,
) -> Vec<(String, Vec<u8>, async_nats::HeaderMap)> {
    let consumer = bus
        .jetstream()
        .get_stream(stream)
        .await
        .unwrap()
        .create_consumer(pull::OrderedConfig { deliver_policy: DeliverPolicy::All, ..Default::default() })
        .await
        .unwrap();
    let messages = consumer.messages().await.unwrap().take(count).map(|message| {
        let message = message.unwrap();
        (message.subject.to_string(), message.payload.to_vec(), message.headers.clone().unwrap_or_default())
    });
    tokio::time::timeout(DEADLINE, messages.collect()).await.expect("the messages come in time")
}

pub(crate) async fn verdicts(bus: &Bus, count: usize) -> Vec<Verdict> {
    let messages = wait_for(bus, glasshouse_nats::VERDICTS, count).await;
    messages.iter().map(|(_, body, _)| Verdict::decode(body).unwrap()).collect()
}

pub(crate) async fn dead_letters(bus: &Bus, count: usize) -> Vec<DeadLetter> {
    let messages = wait_for(bus, glasshouse_nats::DEAD, count).await;
    messages.iter().map(|(_, body, _)| serde_json::from_slice(body).unwrap()).collect()
}

pub(crate) async fn count(bus: &Bus, stream: &str) -> u64 {
    bus.jetstream().get_stream(stream).await.unwrap().get_info().await.unwrap().state.messages
}

/// Waits until the workers' queue is empty: nothing pending, nothing unacknowledged.
pub(crate) async fn wait_until_drained(bus: &Bus) {
    let stream = bus.jetstream().get_stream(glasshouse_nats::RECEIPTS).await.unwrap();
    let mut tick = tokio::time::interval(Duration::from_millis(20));
    let drained = async {
        loop {
            tick.tick().await;
            let info = stream.consumer_info(glasshouse_nats::POLICY_WORKERS).await.unwrap();
            if info.num_pending == 0 && info.num_ack_pending == 0 {
                return;
            }
        }
    };
    tokio::time::timeout(DEADLINE, drained).await.expect("the queue is drained in time");
}
