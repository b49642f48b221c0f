//! What is stored can be held against what was made of it, and what was set aside can be published again: `verify` and `dead`
//! over a real nats-server, with an aggregator in this process and an execution that follows a script.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "../../../aggregator/worker/tests/common/script.rs"]
mod script;

use std::path::Path;
use std::process::Output;
use std::time::{Duration, Instant};

use glasshouse_aggregator::Config;
use glasshouse_e2e::{DEADLINE, command, output, stderr};
use glasshouse_nats::{
    Bus, ConnectOptions, DEAD, EVENTS, NatsServer, Publisher, PublisherOptions, RECEIPTS, ServerOptions,
    Topology,
};
use glasshouse_schema::dead::{DeadKind, DeadLetter};
use glasshouse_schema::frame::{FrameWriterConfig, Seal, SealTotals};
use glasshouse_schema::lifecycle::{Cleaned, Sealed, SealedVantage};
use glasshouse_schema::receipt::Completeness;
use glasshouse_schema::{
    Digest, EncodedFrame, Event, ExecutionId, Fact, FrameWriter, PathRef, Phase, ProcessKey, Receipt, Usage,
    Vantage, headers, subject, version,
};
use script::{exec, node};
use serde_json::Value;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// A server with the streams, an aggregator on it, and one execution that is over and has its receipt.
struct Scene {
    server: NatsServer,
    bus: Bus,
    id: ExecutionId,
    frames: Vec<EncodedFrame>,
    receipt: Vec<u8>,
    stop: oneshot::Sender<()>,
    aggregator: JoinHandle<Result<(), glasshouse_aggregator::Error>>,
}

impl Scene {
    async fn start(dir: &Path) -> Self {
        let server = NatsServer::start(ServerOptions::private(dir.join("nats"))).await.unwrap();
        let bus = glasshouse_nats::connect(ConnectOptions::new(server.url(), "test")).await.unwrap();
        Topology::embedded(1).unwrap().apply(&bus).await.unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let aggregator = tokio::spawn(glasshouse_aggregator::run(Config::new(server.url(), "test"), async {
            let _ = stopped.await;
        }));
        let id = ExecutionId::from_parts(1_700_000_000_000, [7; 10]);
        let frames = perform(&bus, id).await;
        let receipt = bus.wait_receipt(id, DEADLINE).await.unwrap().expect("a receipt").body.to_vec();
        assert_eq!(Receipt::decode(&receipt).unwrap().completeness, Completeness::Closed);
        Self { server, bus, id, frames, receipt, stop, aggregator }
    }

    async fn end(self) {
        self.stop.send(()).unwrap();
        self.aggregator.await.unwrap().unwrap();
        self.server.stop().await;
    }

    fn glasshouse(&self, args: &[&str]) -> Output {
        let mut glasshouse = command("glasshouse");
        glasshouse.args(args).args(["--nats", self.server.url()]);
        output(glasshouse)
    }

    /// The exit code and the JSON document of `verify --replay`.
    fn verify(&self, what: &str) -> (Option<i32>, Value) {
        let done = self.glasshouse(&["verify", "--replay", what, "--json"]);
        let document =
            serde_json::from_slice(&done.stdout).unwrap_or_else(|error| panic!("{error}: {}", stderr(&done)));
        (done.status.code(), document)
    }

    /// The sequence in GH_EVENTS of the frame that has this digest.
    async fn stored_at(&self, digest: Digest) -> u64 {
        let [frames, _] = subject::stored_events_of(self.id);
        let mut events = self.bus.snapshot(EVENTS, vec![frames]).await.unwrap();
        while let Some(message) = events.next().await.unwrap() {
            if Digest::of(&message.payload) == digest {
                return message.stream_seq;
            }
        }
        panic!("no such frame is stored");
    }

    async fn letters(&self) -> u64 {
        self.bus.position(DEAD).await.unwrap().messages
    }
}

fn at(ms: u64, fact: Fact<'_>) -> Event<'_> {
    let process = ProcessKey { tgid: 1, start_boot_ns: 40_000_000_000 };
    Event { boot_ns: 45_000_000_000 + ms * 1_000_000, process, fact }
}

fn open(path: &[u8]) -> Fact<'_> {
    Fact::Open { path: PathRef::resolved(path), flags: 0, result: 0, created: false }
}

fn writer(id: ExecutionId, epoch: u64) -> FrameWriter {
    FrameWriter::new(FrameWriterConfig::new(id, node(), Vantage::Host, epoch, 1_700_000_000_000_000_000))
}

async fn publish(publisher: &Publisher, frames: &[EncodedFrame]) {
    for EncodedFrame { node, execution, vantage, bytes, digest, .. } in frames {
        publisher.publish_frame(node, *execution, *vantage, bytes.clone(), *digest, None).await.unwrap();
    }
    publisher.flush().await.unwrap();
}

/// Publishes a whole execution with five frames, and gives these.
async fn perform(bus: &Bus, id: ExecutionId) -> Vec<EncodedFrame> {
    let begun = script::begun(bus, id).await;
    let claimed = begun.iter().find_map(|phase| match phase {
        Phase::Claimed(claimed) => Some(claimed.epoch),
        _ => None,
    });
    let mut writer = writer(id, claimed.unwrap());
    let exec = exec("/usr/bin/cat", &[b"cat", b"one", b"two"]);
    let exit = Fact::Exit { code: 0, signal: 0, core_dumped: false, usage: Usage::default() };
    let mut frames = Vec::new();
    for event in [at(0, exec), at(1, open(b"/one")), at(2, open(b"/two")), at(3, exit)] {
        writer.push(&event);
        frames.extend(writer.flush());
    }
    frames.extend(writer.seal(SealTotals::default(), Seal::default()));
    let head = frames.last().unwrap();
    let sealed = SealedVantage { vantage: Vantage::Host, frames: head.seq + 1, head: head.digest };
    let sealed = Phase::Sealed(Sealed { vantages: vec![sealed], missing: Vec::new() });

    let publisher = Publisher::new(bus, PublisherOptions::default());
    script::publish(&publisher, id, begun).await;
    publish(&publisher, &frames).await;
    script::publish(&publisher, id, vec![script::exited(), sealed, Phase::Cleaned(Cleaned::default())]).await;
    frames
}

async fn wait_until(what: &str, condition: impl AsyncFn() -> bool) {
    let begin = Instant::now();
    while !condition().await {
        assert!(begin.elapsed() < DEADLINE, "{what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_receipt_is_held_against_its_evidence() {
    let dir = tempfile::tempdir().unwrap();
    let scene = Scene::start(dir.path()).await;
    let id = scene.id.to_string();

    // Same: by execution, by file, for a person and for a program.
    let same = scene.glasshouse(&["verify", "--replay", &id]);
    assert_eq!(same.status.code(), Some(0), "{}{}", stdout(&same), stderr(&same));
    assert!(
        stdout(&same).starts_with("same: ") && stdout(&same).contains("5 frames, whole"),
        "{}",
        stdout(&same)
    );
    let file = dir.path().join("receipt.json");
    std::fs::write(&file, &scene.receipt).unwrap();
    let (code, report) = scene.verify(file.to_str().unwrap());
    assert_eq!((code, &report["result"]), (Some(0), &Value::from("same")));
    assert_eq!(report["replayed_digest"], Digest::of(&scene.receipt).to_string());
    assert_eq!((&report["chains"][0]["faults"], &report["set_aside"]), (&Value::from(0), &Value::from(0)));

    // A receipt that was changed, and one that was only written anew.
    let mut forged = Receipt::decode(&scene.receipt).unwrap();
    forged.exit_code = 7;
    let altered = dir.path().join("altered.json");
    std::fs::write(&altered, forged.encode().unwrap()).unwrap();
    let (code, report) = scene.verify(altered.to_str().unwrap());
    assert_eq!((code, &report["result"]), (Some(1), &Value::from("different")));
    assert_eq!(
        report["fields"],
        serde_json::json!([{"pointer": "/exit_code", "receipt": "7", "evidence": "0"}])
    );
    let pretty: Value = serde_json::from_slice(&scene.receipt).unwrap();
    std::fs::write(&altered, serde_json::to_vec_pretty(&pretty).unwrap()).unwrap();
    let (code, report) = scene.verify(altered.to_str().unwrap());
    assert_eq!((code, &report["fields"]), (Some(1), &serde_json::json!([])));
    assert!(report["reasons"][0].as_str().unwrap().contains("not canonical"), "{report}");

    // What comes after the end changes nothing.
    let late = writer(scene.id, 99).seal(SealTotals::default(), Seal::default());
    publish(&Publisher::new(&scene.bus, PublisherOptions::default()), &late).await;
    assert_eq!(scene.verify(&id).0, Some(0));

    // A frame is gone.
    let gone = &scene.frames[2];
    let seq = scene.stored_at(gone.digest).await;
    let events = scene.bus.jetstream().get_stream(EVENTS).await.unwrap();
    events.delete_message(seq).await.unwrap();
    let different = scene.glasshouse(&["verify", "--replay", &id]);
    assert_eq!(different.status.code(), Some(1), "{}", stderr(&different));
    let line = format!("is missing: expected digest {}, found none", gone.digest);
    let said = stdout(&different);
    assert!(
        said.starts_with("different: ") && said.contains("frame 2 of host, epoch") && said.contains(&line),
        "{said}"
    );
    let (code, report) = scene.verify(file.to_str().unwrap());
    let fault = &report["chains"][0]["first_fault"];
    assert_eq!((code, &fault["seq"], &fault["problem"]), (Some(1), &Value::from(2), &Value::from("missing")));

    // Another frame stands in its place.
    let mut other = writer(scene.id, report["chains"][0]["epoch"].as_u64().unwrap());
    let mut forged = Vec::new();
    for event in [at(0, open(b"/x")), at(1, open(b"/y")), at(2, open(b"/z"))] {
        other.push(&event);
        forged.extend(other.flush());
    }
    assert_eq!(forged[2].seq, 2);
    // Events after `closed` are not read: the end is deleted too, as somebody would who replaces what came before it.
    let closed = scene.bus.closed_at(scene.id).await.unwrap().unwrap();
    events.delete_message(closed).await.unwrap();
    publish(&Publisher::new(&scene.bus, PublisherOptions::default()), &forged[2..3]).await;
    let (code, report) = scene.verify(&id);
    let fault = &report["chains"][0]["first_fault"];
    assert_eq!((code, &fault["seq"], &fault["problem"]), (Some(1), &Value::from(2), &Value::from("altered")));
    assert_eq!(
        (&fault["expected"], &fault["found"]),
        (&Value::from(gone.digest.to_string()), &Value::from(forged[2].digest.to_string()))
    );

    // The oldest events were removed, and then all.
    events.purge().sequence(4).await.unwrap();
    let (code, report) = scene.verify(&id);
    assert_eq!((code, &report["result"]), (Some(3), &Value::from("expired")));
    events.purge().await.unwrap();
    let expired = scene.glasshouse(&["verify", "--replay", &id]);
    assert_eq!(expired.status.code(), Some(3), "{}", stderr(&expired));
    assert!(stdout(&expired).starts_with("evidence expired: "), "{}", stdout(&expired));

    let unknown = ExecutionId::from_parts(1, [9; 10]).to_string();
    let unknown = scene.glasshouse(&["verify", "--replay", &unknown]);
    assert_eq!(unknown.status.code(), Some(125));
    assert!(stderr(&unknown).contains("there is no receipt of"), "{}", stderr(&unknown));
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_was_set_aside_is_listed_shown_and_published_again() {
    let dir = tempfile::tempdir().unwrap();
    let scene = Scene::start(dir.path()).await;
    let id = scene.id.to_string();
    let empty = scene.glasshouse(&["dead", "list"]);
    assert!(empty.status.success() && stdout(&empty).is_empty(), "{}", stdout(&empty));

    // One that a letter quotes whole, and one that it does not.
    let small = writer(scene.id, 99).seal(SealTotals::default(), Seal::default());
    let mut large = writer(scene.id, 98);
    for number in 0..1000 {
        large.push(&at(number, open(format!("/a/path/that/takes/some/room/{number}").as_bytes())));
    }
    let large = large.flush().unwrap();
    assert!(large.bytes.len() > DeadLetter::EXCERPT_BYTES);
    let publisher = Publisher::new(&scene.bus, PublisherOptions::default());
    publish(&publisher, &small).await;
    publish(&publisher, std::slice::from_ref(&large)).await;
    wait_until("two letters", async || scene.letters().await == 2).await;

    let list = scene.glasshouse(&["dead", "list"]);
    let said = stdout(&list);
    assert!(
        said.lines().count() == 3 && said.contains(&id) && said.contains("the execution is closed"),
        "{said}"
    );
    let list = scene.glasshouse(&["dead", "list", "--kind", "frame", "--limit", "1", "--json"]);
    let listed: Value = serde_json::from_slice(&list.stdout).unwrap();
    assert_eq!((&listed["seq"], &listed["execution"]), (&Value::from(2), &Value::from(id.as_str())));
    assert_eq!(listed["subject"], subject::frames(&node(), scene.id, Vantage::Host));
    assert_eq!(listed["body_digest"], large.digest.to_string());
    assert!(scene.glasshouse(&["dead", "list", "--kind", "verdict", "--json"]).stdout.is_empty());
    assert_eq!(scene.glasshouse(&["dead", "list", "--kind", "love"]).status.code(), Some(2));

    let shown = scene.glasshouse(&["dead", "show", "2", "--json"]);
    let shown: Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert_eq!(shown["payload"]["frame"]["events"], serde_json::json!({"opens": 1000}));
    assert_eq!(shown["payload"]["frame"]["header"]["epoch"], 98);
    let shown = stdout(&scene.glasshouse(&["dead", "show", "1"]));
    assert!(
        shown.contains("the execution is closed") && shown.contains(&small[0].digest.to_string()),
        "{shown}"
    );
    assert_eq!(scene.glasshouse(&["dead", "show", "2", "--payload", "-"]).stdout, large.bytes);
    let file = dir.path().join("frame.bin");
    assert!(scene.glasshouse(&["dead", "show", "1", "--payload", file.to_str().unwrap()]).status.success());
    assert_eq!(std::fs::read(&file).unwrap(), small[0].bytes);
    let missing = scene.glasshouse(&["dead", "show", "77"]);
    assert_eq!(missing.status.code(), Some(125));
    assert!(stderr(&missing).contains("there is no dead letter 77"), "{}", stderr(&missing));

    // The execution is closed, so nothing is published unless somebody insists.
    let events_before = scene.bus.position(EVENTS).await.unwrap().last_seq;
    for options in [&["--all"][..], &["1", "2"], &["1", "--dry-run"]] {
        let refused = scene.glasshouse(&[&["dead", "replay"][..], options].concat());
        assert_eq!(refused.status.code(), Some(1), "{}", stderr(&refused));
        assert!(stdout(&refused).contains("is closed by message"), "{}", stdout(&refused));
    }
    let dry =
        scene.glasshouse(&["dead", "replay", "--all", "--kind", "frame", "--dry-run", "--even-if-closed"]);
    assert_eq!(dry.status.code(), Some(0), "{}", stderr(&dry));
    assert_eq!(stdout(&dry).matches("would be published to").count(), 2, "{}", stdout(&dry));
    assert_eq!(scene.bus.position(EVENTS).await.unwrap().last_seq, events_before);

    let done = scene.glasshouse(&["dead", "replay", "2", "--even-if-closed", "--json"]);
    assert_eq!(done.status.code(), Some(0), "{}", stderr(&done));
    let replayed: Value = serde_json::from_slice(&done.stdout).unwrap();
    let published =
        scene.bus.message(EVENTS, replayed["stream_seq"].as_u64().unwrap()).await.unwrap().unwrap();
    assert_eq!(published.payload, large.bytes);
    assert_eq!(subject::published(&published.subject).unwrap(), replayed["subject"]);
    let expected = [
        (headers::CONTENT_TYPE, headers::FRAME_TYPE.to_owned()),
        (headers::SCHEMA_VERSION, version::FRAME.to_string()),
        (headers::DIGEST, large.digest.to_string()),
        (headers::MSG_ID, headers::replay_msg_id(2, large.digest)),
    ];
    for (name, value) in expected {
        assert_eq!(published.header(name), Some(value.as_str()));
    }
    // The aggregator sets it aside again, and the letters stay.
    wait_until("a third letter", async || scene.letters().await == 3).await;
    let twice = scene.glasshouse(&["dead", "replay", "2", "--even-if-closed"]);
    assert!(stdout(&twice).contains("is stored once"), "{}", stdout(&twice));
    assert_eq!(scene.bus.position(EVENTS).await.unwrap().last_seq, published.stream_seq);

    // What cannot be published again says why, and the others are not held up by it.
    let events = scene.bus.jetstream().get_stream(EVENTS).await.unwrap();
    events.delete_message(scene.stored_at(large.digest).await).await.unwrap();
    let receipt = subject::receipt(scene.id);
    let letter = DeadLetter::new(DeadKind::Receipt, "two differ", &receipt, (RECEIPTS, 1), b"{}", "test");
    publisher.publish_dead(&letter, None).await.unwrap();
    publisher.flush().await.unwrap();
    let mixed = scene.glasshouse(&["dead", "replay", "4", "2", "77", "1", "--even-if-closed"]);
    assert_eq!(mixed.status.code(), Some(1));
    let said = stdout(&mixed);
    let lines: Vec<&str> = said.lines().collect();
    assert!(lines[0].contains("a receipt is stored once"), "{said}");
    assert!(lines[1].contains("quotes only a part of its"), "{said}");
    assert!(lines[2].contains("there is no such dead letter"), "{said}");
    assert!(lines[3].contains("published again to glasshouse.v1.frames."), "{said}");
    scene.end().await;
}
