//! Real runs that die, fall silent, or leave something behind, over a real nats-server.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use glasshouse_aggregator::{Config, HEARTBEAT_GRACE};
use glasshouse_e2e::{
    DEADLINE, Process, command, output, skip_unless_watching_works, stderr, wait_for, wait_within,
};
use glasshouse_nats::{
    Bus, ConnectOptions, DEAD, EVENTS, NatsServer, RECEIPTS, ServerOptions, Spool, Topology,
};
use glasshouse_schema::receipt::Completeness;
use glasshouse_schema::{ExecutionId, Receipt};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// A server with the streams and an aggregator on it.
struct Scene {
    server: NatsServer,
    bus: Bus,
    stop: oneshot::Sender<()>,
    aggregator: JoinHandle<Result<(), glasshouse_aggregator::Error>>,
}

impl Scene {
    async fn start(dir: &Path, grace: Duration) -> Self {
        let server = NatsServer::start(ServerOptions::private(dir.join("nats"))).await.unwrap();
        let bus = glasshouse_nats::connect(ConnectOptions::new(server.url(), "test")).await.unwrap();
        Topology::embedded(1).unwrap().apply(&bus).await.unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let mut config = Config::new(server.url(), "test");
        (config.producer_grace, config.heartbeat_grace) = (grace, grace);
        let aggregator = tokio::spawn(glasshouse_aggregator::run(config, async {
            let _ = stopped.await;
        }));
        Self { server, bus, stop, aggregator }
    }

    async fn end(self) {
        self.stop.send(()).unwrap();
        self.aggregator.await.unwrap().unwrap();
        self.server.stop().await;
    }

    /// A watched run in `dir`, with a spool of the test's own.
    fn run(&self, dir: &Path, id: ExecutionId, script: &str) -> Command {
        std::fs::create_dir_all(dir).unwrap();
        let mut run = command("glasshouse");
        run.args(["run", "--profile", "host", "--nats", self.server.url(), "--id", &id.to_string()]);
        run.arg("--receipt").arg(dir.join("receipt.json")).args(["--", "sh", "-c", script]);
        run.current_dir(dir).env("GLASSHOUSE_SPOOL", dir.parent().unwrap().join("spool"));
        run
    }

    async fn receipt(&self, id: ExecutionId) -> Receipt {
        let found = self.bus.wait_receipt(id, DEADLINE).await.unwrap();
        Receipt::decode(&found.expect("a receipt comes in time").body).unwrap()
    }
}

/// An execution of this process and test: its cgroup has its name.
fn execution(test: u8, n: u8) -> ExecutionId {
    let mut random = [n; 10];
    random[..4].copy_from_slice(&std::process::id().to_le_bytes());
    random[4] = test;
    ExecutionId::from_parts(1_700_000_000_000, random)
}

/// Says that it runs, and waits for a line.
const HELD: &str = "mkfifo go; : > started; read line < go; exit 9";

fn let_go(dir: &Path) {
    // Both ends, so that it opens though nobody reads any more.
    let mut go = std::fs::File::options().read(true).write(true).open(dir.join("go")).unwrap();
    go.write_all(b"go\n").unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_killed_run_is_dead_within_the_grace_and_a_silent_one_is_not() {
    skip_unless_watching_works!();
    let dir = tempfile::tempdir().unwrap();
    let scene = Scene::start(dir.path(), Duration::from_secs(2)).await;
    let [silent, killed] = ["silent", "killed"].map(|name| dir.path().join(name));
    let mut lives = Process::spawn(scene.run(&silent, execution(1, 1), HELD));
    wait_for("the silent command runs", || silent.join("started").exists().then_some(()));
    let mut dies = Process::spawn(scene.run(&killed, execution(1, 2), HELD));
    wait_for("the other runs", || killed.join("started").exists().then_some(()));

    dies.crash();
    let receipt = scene.receipt(execution(1, 2)).await;
    let_go(&killed);
    assert_eq!(receipt.completeness, Completeness::Partial);
    let reasons: Vec<&str> = receipt.coverage.incomplete.iter().map(|why| why.reason.as_str()).collect();
    assert!(reasons.contains(&"producer_dead"), "{reasons:?}");

    // The other has said nothing for longer than either grace, and is not closed.
    assert!(scene.bus.get_receipt(execution(1, 1)).await.unwrap().is_none());
    let_go(&silent);
    let status = wait_for("the silent run ends", || lives.0.try_wait().unwrap());
    assert_eq!(status.code(), Some(9));
    let receipt = scene.receipt(execution(1, 1)).await;
    assert_eq!(receipt.completeness, Completeness::Closed, "{:?}", receipt.coverage.incomplete);
    assert_eq!(receipt.encode().unwrap(), std::fs::read(silent.join("receipt.json")).unwrap());
    assert_eq!(scene.bus.position(DEAD).await.unwrap().messages, 0);
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_a_run_left_the_next_one_sends_to_the_bus_it_was_for_and_to_no_other() {
    skip_unless_watching_works!();
    let dir = tempfile::tempdir().unwrap();
    let scene = Scene::start(dir.path(), HEARTBEAT_GRACE).await;
    let spool = dir.path().join("spool");
    // The stream is full from the middle of the run on.
    let events = scene.bus.jetstream().get_stream(EVENTS).await.unwrap().cached_info().config.clone();
    let work = dir.path().join("left");
    let mut left = scene.run(&work, execution(2, 1), HELD);
    let mut left = Process::spawn({
        left.stderr(Stdio::piped());
        left
    });
    wait_for("the command runs", || work.join("started").exists().then_some(()));
    // Not below what is there, which the server would remove.
    let mut full = events.clone();
    full.max_messages = scene.bus.position(EVENTS).await.unwrap().messages as i64 + 2;
    scene.bus.jetstream().update_stream(full).await.unwrap();
    let_go(&work);
    assert_eq!(left.0.wait().unwrap().code(), Some(9));
    let said = std::io::read_to_string(left.0.stderr.take().unwrap()).unwrap();
    assert!(said.contains("are not published yet"), "{said}");
    let (waits, in_use) = Spool::peek(&spool.join(execution(2, 1).to_string())).unwrap();
    assert!(waits.messages > 0 && !in_use, "{waits:?}");
    scene.bus.jetstream().update_stream(events).await.unwrap();

    // A run on another bus leaves it alone.
    let elsewhere = tempfile::tempdir().unwrap();
    let other = Scene::start(elsewhere.path(), HEARTBEAT_GRACE).await;
    let done = output(other.run(&dir.path().join("elsewhere"), execution(2, 2), "true"));
    assert!(done.status.success(), "{}", stderr(&done));
    other.receipt(execution(2, 2)).await;
    assert_eq!(Spool::peek(&waits.dir).unwrap().0, waits);
    assert!(other.bus.get_receipt(execution(2, 1)).await.unwrap().is_none());
    other.end().await;

    // The next one on its own bus sends it, while its own command runs.
    let next = dir.path().join("next");
    let mut runs = Process::spawn(scene.run(&next, execution(2, 3), HELD));
    wait_within(DEADLINE, "what was left is sent and removed", || (!waits.dir.exists()).then_some(()));
    let receipt = scene.receipt(execution(2, 1)).await;
    assert_eq!(receipt.completeness, Completeness::Closed, "{:?}", receipt.coverage.incomplete);
    assert_eq!(receipt.encode().unwrap(), std::fs::read(work.join("receipt.json")).unwrap());
    wait_for("the command runs", || next.join("started").exists().then_some(()));
    let_go(&next);
    assert_eq!(runs.0.wait().unwrap().code(), Some(9));
    scene.receipt(execution(2, 3)).await;
    assert_eq!(std::fs::read_dir(&spool).unwrap().count(), 0);
    assert_eq!(scene.bus.position(RECEIPTS).await.unwrap().messages, 2);
    assert_eq!(scene.bus.position(DEAD).await.unwrap().messages, 0);
    scene.end().await;
}
