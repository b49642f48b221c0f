//! What the tests share: a real server per test, workers on it, and executions of which they hear.
#![allow(dead_code, reason = "each test file uses a part")]

mod script;

use std::path::Path;
use std::time::Duration;

use glasshouse_aggregator::{Config, Error, run};
use glasshouse_nats::{
    Bus, Checkpoints, ConnectOptions, NatsServer, Publisher, PublisherOptions, ServerOptions, StreamStart,
    Topology,
};
use glasshouse_schema::dead::DeadLetter;
use glasshouse_schema::lifecycle::Unprofiled;
use glasshouse_schema::{ExecutionId, Phase, Receipt};
#[allow(unused_imports, reason = "each test file uses a part")]
pub(crate) use script::{beginning, begun, claim, ended, exec, exited, node, publish};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

pub(crate) struct Broker {
    pub(crate) bus: Bus,
    pub(crate) server: NatsServer,
}

/// A server with every stream. Fails, and never skips, where there is no server binary: run scripts/setup.sh.
pub(crate) async fn broker(dir: &Path) -> Broker {
    broker_at(dir, 0).await
}

pub(crate) async fn broker_at(dir: &Path, port: u16) -> Broker {
    let mut options = ServerOptions::private(dir);
    options.port = port;
    broker_with(options).await
}

pub(crate) async fn broker_with(options: ServerOptions) -> Broker {
    let server = NatsServer::start(options).await.unwrap();
    let bus = glasshouse_nats::connect(ConnectOptions::new(server.url(), "test")).await.unwrap();
    Topology::embedded(1).unwrap().apply(&bus).await.unwrap();
    Broker { bus, server }
}

pub(crate) struct Running {
    stop: oneshot::Sender<()>,
    pub(crate) task: JoinHandle<Result<(), Error>>,
}

impl Running {
    pub(crate) async fn stop(self) {
        self.stop.send(()).unwrap();
        soon(self.task).await.unwrap().unwrap();
    }
}

pub(crate) fn start(broker: &Broker, name: &str) -> Running {
    start_with(Config::new(broker.server.url(), name))
}

pub(crate) fn start_with(config: Config) -> Running {
    let (stop, stopped) = oneshot::channel::<()>();
    let task = tokio::spawn(run(config, async {
        let _ = stopped.await;
    }));
    Running { stop, task }
}

pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.expect("it comes in time")
}

pub(crate) async fn pause(milliseconds: u64) {
    tokio::time::sleep(Duration::from_millis(milliseconds)).await;
}

/// What comes of it in this time.
pub(crate) async fn within<T>(time: Duration, future: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(time, future).await.ok()
}

pub(crate) async fn until(what: &str, condition: impl AsyncFn() -> bool) {
    let wait = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
    };
    assert!(tokio::time::timeout(DEADLINE, wait).await.is_ok(), "{what}");
}

pub(crate) fn execution(n: u16) -> ExecutionId {
    let [high, low] = n.to_be_bytes();
    ExecutionId::from_parts(1_700_000_000_000, [high, low, 0, 0, 0, 0, 0, 0, 0, 0])
}

pub(crate) fn publisher(bus: &Bus) -> Publisher {
    Publisher::new(bus, PublisherOptions::default())
}

pub(crate) fn unprofiled() -> Phase {
    Phase::Unprofiled(Unprofiled { reason: "profiling is disabled".into(), unavailable: Vec::new() })
}

/// A whole execution, which gets a receipt.
pub(crate) async fn whole(bus: &Bus, publisher: &Publisher, execution: ExecutionId) {
    let mut phases = begun(bus, execution).await;
    phases.extend(ended());
    publish(publisher, execution, phases).await;
}

pub(crate) async fn receipt(bus: &Bus, execution: ExecutionId) -> Receipt {
    let found = bus.wait_receipt(execution, DEADLINE).await.unwrap();
    Receipt::decode(&found.expect("a receipt comes in time").body).unwrap()
}

pub(crate) async fn dead_letter(bus: &Bus) -> DeadLetter {
    let mut reader = bus.read(glasshouse_nats::DEAD, StreamStart::Oldest, Vec::new()).await.unwrap();
    serde_json::from_slice(&soon(reader.next()).await.unwrap().payload).unwrap()
}

pub(crate) async fn count(bus: &Bus, stream: &str) -> u64 {
    bus.position(stream).await.unwrap().messages
}

/// How many ranges of partitions there are, each with a checkpoint and a lease.
pub(crate) const RANGES: u16 = 32;

#[derive(serde::Deserialize)]
struct Checkpoint {
    handled_seq: u64,
}

/// The sequence up to which a range's checkpoint says that everything is handled.
async fn handled_in(bus: &Bus, range: u16) -> u64 {
    let key = format!("aggregator.{range}");
    let Some(bytes) = Checkpoints::new(bus).get(&key).await.unwrap().bytes else { return 0 };
    rmp_serde::from_slice::<Checkpoint>(&bytes).unwrap().handled_seq
}

/// The furthest of them.
pub(crate) async fn handled_seq(bus: &Bus) -> u64 {
    let mut furthest = 0;
    for range in 0..RANGES {
        furthest = furthest.max(handled_in(bus, range).await);
    }
    furthest
}

/// How many ranges each worker holds, by the worker's number of this run.
pub(crate) async fn holders(bus: &Bus) -> std::collections::BTreeMap<String, usize> {
    let mut holders = std::collections::BTreeMap::new();
    for range in 0..RANGES {
        let subject = format!("$KV.GH_LEASES.ranges.{range}");
        let stream = bus.jetstream().get_stream("KV_GH_LEASES").await.unwrap();
        let Ok(found) = stream.get_last_raw_message_by_subject(&subject).await else { continue };
        let Ok(lease) = serde_json::from_slice::<serde_json::Value>(&found.payload) else { continue };
        *holders.entry(lease["worker"].as_str().unwrap().to_owned()).or_default() += 1;
    }
    holders
}

pub(crate) async fn checkpointed(bus: &Bus) {
    until("everything is checkpointed", async || {
        handled_seq(bus).await == bus.position(glasshouse_nats::EVENTS).await.unwrap().last_seq
    })
    .await;
}

/// Puts a copy of GH_EVENTS in the place of `to`, as somebody does who restores a backup.
pub(crate) fn copy_events(from: &Path, to: &Path) {
    let [from, to] = [from, to].map(|dir| dir.join("store/jetstream/$G/streams/GH_EVENTS"));
    replace(&from, &to);
}

/// Puts a copy of a directory in the place of another, if there is one.
pub(crate) fn replace(from: &Path, to: &Path) {
    if to.exists() {
        std::fs::remove_dir_all(to).unwrap();
    }
    copy(from, to);
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &to),
            false => drop(std::fs::copy(entry.path(), to).unwrap()),
        }
    }
}

/// A way to a server on which every answer takes `delay` more, and every question too.
pub(crate) async fn slow(server: &str, delay: Duration) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (token, port) = server.rsplit_once("@127.0.0.1:").unwrap();
    let (url, port) = (format!("{token}@{}", listener.local_addr().unwrap()), port.parse::<u16>().unwrap());
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            tokio::spawn(async move {
                let Ok(server) = tokio::net::TcpStream::connect(("127.0.0.1", port)).await else { return };
                let ((from_client, to_client), (from_server, to_server)) =
                    (client.into_split(), server.into_split());
                tokio::select! {
                    () = delayed(from_client, to_server, delay) => {}
                    () = delayed(from_server, to_client, delay) => {}
                }
            });
        }
    });
    url
}

async fn delayed(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    delay: Duration,
) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        tokio::time::sleep(delay).await;
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}
