//! A command becomes a receipt and a verdict over a real nats-server, whatever is killed meanwhile.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use glasshouse_e2e::{
    Pipeline, Process, command, output, root, skip_unless_watching_works, stderr, wait_for,
};
use glasshouse_nats::{Bus, ConnectOptions, NatsServer, ServerOptions, StreamStart, Topology};
use glasshouse_schema::dead::DeadLetter;
use glasshouse_schema::ids::{Digest, ExecutionId, NodeId, Vantage};
use glasshouse_schema::{Receipt, subject};
use glasshouse_telemetry::receiver::Receiver;

fn execution(number: u8) -> ExecutionId {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let mut random = [number; 10];
    random[..8].copy_from_slice(&(now.as_nanos() as u64).to_le_bytes());
    ExecutionId::from_parts(now.as_millis() as u64, random)
}

fn run(url: &str, id: ExecutionId, receipt: &Path, argv: &[&str]) -> Command {
    let mut run = command("glasshouse");
    run.args(["run", "--profile", "host", "--nats", url, "--id", &id.to_string(), "--receipt"]).arg(receipt);
    run.arg("--").args(argv).stdout(Stdio::null());
    run
}

fn aggregator(url: &str) -> Process {
    let mut aggregator = command("glasshouse-aggregator");
    aggregator.args(["--nats", url]).stdout(Stdio::null()).stderr(Stdio::inherit());
    Process::spawn(aggregator)
}

async fn connect(url: &str) -> Bus {
    glasshouse_nats::connect(ConnectOptions::new(url, "test")).await.unwrap()
}

/// A server of its own with the streams, and nothing else.
async fn server(dir: &Path) -> (NatsServer, Bus) {
    let server = NatsServer::start(ServerOptions::private(dir)).await.unwrap();
    let bus = connect(server.url()).await;
    Topology::embedded(1).unwrap().apply(&bus).await.unwrap();
    (server, bus)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_published_receipt_has_the_bytes_of_the_local_one_and_a_verdict() {
    skip_unless_watching_works!();
    let policy = root().join("deploy/policies/baseline.yaml");
    let mut pipeline = Pipeline::start(&["--policy", policy.to_str().unwrap()], &[]);
    let dir = tempfile::tempdir().unwrap();
    let (id, local) = (execution(1), dir.path().join("receipt.json"));
    let done =
        output(run(&pipeline.url, id, &local, &["sh", "-c", "echo x > /tmp/gh-e2e-$$; rm /tmp/gh-e2e-$$"]));
    assert_eq!(done.status.code(), Some(0), "{}", stderr(&done));

    let bus = connect(&pipeline.url).await;
    let published = bus.wait_receipt(id, Duration::from_secs(30)).await.unwrap().expect("a receipt");
    assert_eq!(
        published.body,
        std::fs::read(&local).unwrap(),
        "in-process and on the bus give the same bytes"
    );
    let receipt = Receipt::decode(&published.body).unwrap();
    assert_eq!(receipt.encode().unwrap(), published.body, "a receipt is canonical");

    let mut verdict = command("glasshouse");
    verdict.args(["verdict", "get", &id.to_string(), "--nats", &pipeline.url, "--wait", "--json"]);
    let verdict = output(verdict);
    let verdict: serde_json::Value = serde_json::from_slice(&verdict.stdout).unwrap();
    assert_eq!(verdict["receipt_digest"], Digest::of(&published.body).to_string());
    assert_eq!(verdict["policy"]["name"], "baseline");

    let mut again = command("glasshouse");
    again.args(["run", "--nats", &pipeline.url, "--id", &id.to_string(), "--", "true"]);
    let again = output(again);
    assert_eq!(again.status.code(), Some(125), "an execution never runs twice");
    assert!(stderr(&again).contains("claimed it before"), "{}", stderr(&again));
    assert_eq!(pipeline.stop(), Some(0));
}

/// A watched command that waits for somebody to open the fifo.
struct Held {
    fifo: PathBuf,
    run: Process,
}

impl Held {
    fn start(url: &str, id: ExecutionId, dir: &Path, receipt: &Path) -> Self {
        let fifo = dir.join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
        let script = format!("echo x > {0}/first; read line < {0}/fifo; echo x > {0}/second", dir.display());
        let run = Process::spawn(run(url, id, receipt, &["sh", "-c", &script]));
        Self { fifo, run }
    }

    fn let_go(mut self) {
        std::fs::write(&self.fifo, "go\n").unwrap();
        let status = wait_for("the command ends", || self.run.0.try_wait().unwrap());
        assert!(status.success());
    }
}

async fn frames_of(bus: &Bus, id: ExecutionId) -> u64 {
    let [frames, _] = subject::stored_events_of(id);
    bus.events(StreamStart::Oldest, vec![frames]).await.unwrap().pending().unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_aggregator_killed_between_frames_and_seal_gives_one_receipt_with_the_same_bytes() {
    skip_unless_watching_works!();
    let dir = tempfile::tempdir().unwrap();
    let (server, bus) = server(&dir.path().join("nats")).await;
    for (number, seal_comes_while_it_is_dead) in [(1, false), (2, true)] {
        let work = dir.path().join(number.to_string());
        std::fs::create_dir(&work).unwrap();
        let (id, local) = (execution(number), work.join("receipt.json"));
        let mut killed = aggregator(server.url());
        let held = Held::start(server.url(), id, &work, &local);
        wait_until("a frame is stored", async || frames_of(&bus, id).await > 0).await;
        killed.crash();

        let restarted = if seal_comes_while_it_is_dead {
            held.let_go();
            aggregator(server.url())
        } else {
            let restarted = aggregator(server.url());
            held.let_go();
            restarted
        };
        let published = bus.wait_receipt(id, Duration::from_secs(30)).await.unwrap().expect("a receipt");
        assert_eq!(published.body, std::fs::read(&local).unwrap(), "the bytes of an undisturbed fold");
        drop(restarted);
        // And a third life changes nothing.
        let mut third = aggregator(server.url());
        let mark = execution(number + 100);
        let marked = output(run(server.url(), mark, &work.join("mark.json"), &["true"]));
        assert!(marked.status.success());
        bus.wait_receipt(mark, Duration::from_secs(30))
            .await
            .unwrap()
            .expect("the third aggregator is past it");
        third.crash();
        let again = bus.get_receipt(id).await.unwrap().unwrap();
        assert_eq!((again.message.stream_seq, &again.body), (published.message.stream_seq, &published.body));
    }
    let receipts = bus.position(glasshouse_nats::RECEIPTS).await.unwrap();
    assert_eq!(receipts.messages, 4, "one receipt per execution");
    assert_eq!(bus.position(glasshouse_nats::DEAD).await.unwrap().messages, 0);
    server.stop().await;
}

async fn wait_until(what: &str, condition: impl AsyncFn() -> bool) {
    let begin = std::time::Instant::now();
    while !condition().await {
        assert!(begin.elapsed() < glasshouse_e2e::DEADLINE, "{what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_and_truncated_frames_go_to_the_dead_letters_and_the_worker_goes_on() {
    skip_unless_watching_works!();
    let dir = tempfile::tempdir().unwrap();
    let (server, bus) = server(&dir.path().join("nats")).await;
    let _worker = aggregator(server.url());
    let node = NodeId::new("hostile").unwrap();
    let victim = execution(1);
    let honest = std::fs::read(root().join("schema/tests/golden/frame-v1-events.bin")).unwrap();
    let hostile: Vec<Vec<u8>> = vec![
        Vec::new(),
        b"not a frame".to_vec(),
        honest[..honest.len() / 2].to_vec(),
        // An array that promises four billion entries.
        [&honest[..6], &[0xdd, 0xff, 0xff, 0xff, 0xff]].concat(),
        // Whole, and about another execution than its subject.
        honest.clone(),
    ];
    for bytes in &hostile {
        let frames = subject::frames(&node, victim, Vantage::Host);
        bus.jetstream().publish(frames, bytes.clone().into()).await.unwrap().await.unwrap();
    }
    let lifecycle = subject::lifecycle(Some(&node), victim, glasshouse_schema::lifecycle::PhaseName::Exited);
    bus.jetstream().publish(lifecycle, "{".into()).await.unwrap().await.unwrap();

    let (id, local) = (execution(2), dir.path().join("receipt.json"));
    let done = output(run(server.url(), id, &local, &["true"]));
    assert!(done.status.success(), "{}", stderr(&done));
    bus.wait_receipt(id, Duration::from_secs(30)).await.unwrap().expect("the worker goes on");

    let expected = hostile.len() as u64 + 1;
    wait_until("every hostile message is a dead letter", async || {
        bus.position(glasshouse_nats::DEAD).await.unwrap().messages >= expected
    })
    .await;
    let mut dead = bus.read(glasshouse_nats::DEAD, StreamStart::Oldest, Vec::new()).await.unwrap();
    for bytes in &hostile {
        let letter: DeadLetter = serde_json::from_slice(&dead.next().await.unwrap().payload).unwrap();
        assert_eq!(letter.body_digest, Digest::of(bytes));
        assert!(!letter.reason.is_empty());
    }
    assert!(bus.get_receipt(victim).await.unwrap().is_none());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_trace_covers_engine_aggregator_and_policy_worker() {
    skip_unless_watching_works!();
    let receiver = Receiver::start().await.unwrap();
    let endpoint = receiver.endpoint();
    let traces = [("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()), ("OTEL_BSP_SCHEDULE_DELAY", "100")];
    let policy = root().join("deploy/policies/baseline.yaml");
    let mut pipeline = Pipeline::start(&["--policy", policy.to_str().unwrap()], &traces);
    let dir = tempfile::tempdir().unwrap();
    let (id, local) = (execution(1), dir.path().join("receipt.json"));
    let trace_id = "0af7651916cd43dd8448eb211c80319c";
    let mut run = run(&pipeline.url, id, &local, &["true"]);
    run.envs(traces).env("TRACEPARENT", format!("00-{trace_id}-b7ad6b7169203331-01"));
    let done = output(run);
    assert!(done.status.success(), "{}", stderr(&done));
    let bus = connect(&pipeline.url).await;
    let published = bus.wait_receipt(id, Duration::from_secs(30)).await.unwrap().expect("a receipt");
    assert_eq!(Receipt::decode(&published.body).unwrap().trace_id.as_deref(), Some(trace_id));
    wait_until("a verdict is stored", async || !bus.get_verdicts(id).await.unwrap().is_empty()).await;
    assert_eq!(pipeline.stop(), Some(0));

    let spans = receiver.spans();
    let names: Vec<&str> =
        spans.iter().filter(|span| span.trace_id == trace_id).map(|span| span.name.as_str()).collect();
    let steps =
        ["validate", "admit", "claim", "prepare", "start", "attach", "release", "wait", "seal", "cleanup"];
    let steps = steps.map(|step| format!("engine.{step}"));
    for name in steps.iter().map(String::as_str).chain(["execution", "aggregate", "fold", "verdict"]) {
        assert!(names.contains(&name), "no span `{name}` in {names:?}");
    }
    let by_name =
        |name: &str| spans.iter().find(|span| span.trace_id == trace_id && span.name == name).unwrap();
    assert_eq!(by_name("fold").parent_span_id, by_name("aggregate").span_id);
    assert_eq!(by_name("verdict").parent_span_id, by_name("aggregate").span_id);
}

#[tokio::test(flavor = "multi_thread")]
async fn apply_creates_what_is_missing_and_check_prints_what_differs() {
    let dir = tempfile::tempdir().unwrap();
    let server = NatsServer::start(ServerOptions::private(dir.path())).await.unwrap();
    let nats = |action: &str| {
        let mut nats = command("glasshouse");
        nats.args(["nats", action, "--nats", server.url()]);
        output(nats)
    };
    assert_eq!(nats("check").status.code(), Some(1), "nothing is there yet");
    let applied = nats("apply");
    assert_eq!(applied.status.code(), Some(0), "{}", stderr(&applied));
    assert_eq!(nats("check").status.code(), Some(0));
    let bus = connect(server.url()).await;
    let mut config =
        bus.jetstream().get_stream(glasshouse_nats::DEAD).await.unwrap().cached_info().config.clone();
    config.max_bytes = 1_048_576;
    bus.jetstream().update_stream(config).await.unwrap();
    let differs = nats("apply");
    assert_eq!(differs.status.code(), Some(1));
    let said = String::from_utf8_lossy(&differs.stdout).into_owned();
    assert!(said.contains("GH_DEAD") && said.contains("max_bytes") && said.contains("1048576"), "{said}");
    let kept =
        bus.jetstream().get_stream(glasshouse_nats::DEAD).await.unwrap().cached_info().config.max_bytes;
    assert_eq!(kept, 1_048_576, "a difference is printed, never overwritten");
    server.stop().await;
}
