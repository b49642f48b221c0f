//! What the tests share: a real server per test, with its own store and port.

use glasshouse_nats::{Bus, ConnectOptions, NatsServer, ServerOptions, Topology, connect};
use glasshouse_schema::{ExecutionId, LifecycleEvent, NodeId, Phase, lifecycle, version};

pub struct Broker {
    pub bus: Bus,
    pub server: NatsServer,
    // Dropped last, after the server that writes there.
    pub dir: tempfile::TempDir,
}

/// A server without streams. Fails, and never skips, where there is no server binary: run scripts/setup.sh.
pub async fn bare() -> Broker {
    let dir = tempfile::tempdir().unwrap();
    let server = NatsServer::start(ServerOptions::private(dir.path())).await.unwrap();
    let bus = connect(ConnectOptions::new(server.url(), "test")).await.unwrap();
    Broker { bus, server, dir }
}

/// A server with every stream.
pub async fn broker() -> Broker {
    let broker = bare().await;
    let applied = Topology::embedded(1).unwrap().apply(&broker.bus).await.unwrap();
    assert_eq!(applied.differences, [], "{applied}");
    broker
}

pub fn execution(n: u8) -> ExecutionId {
    ExecutionId::from_parts(1_700_000_000_000, [n; 10])
}

pub fn node() -> NodeId {
    NodeId::new("node-1.example").unwrap()
}

pub fn event(execution: ExecutionId, node: Option<NodeId>, unix_ns: i64, phase: Phase) -> LifecycleEvent {
    LifecycleEvent { schema_version: version::LIFECYCLE, execution_id: execution, node, unix_ns, phase }
}

pub fn cleaned(execution: ExecutionId, unix_ns: i64) -> LifecycleEvent {
    event(execution, Some(node()), unix_ns, Phase::Cleaned(lifecycle::Cleaned::default()))
}

pub fn closed(execution: ExecutionId, unix_ns: i64) -> LifecycleEvent {
    let reason = lifecycle::ClosedReason::Sealed;
    event(execution, None, unix_ns, Phase::Closed(lifecycle::Closed { reason }))
}
