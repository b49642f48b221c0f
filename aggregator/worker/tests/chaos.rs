//! Workers and the server are killed, stopped and started at random while executions are published. After that there is one
//! receipt per execution, with the bytes that an undisturbed fold of the stored events gives, and no dead letter.
//!
//! A failure comes again with its seed: `GLASSHOUSE_CHAOS_SEED=N cargo nextest run -p glasshouse-aggregator --test chaos`.
//! `GLASSHOUSE_CHAOS_ROUNDS=200` goes on with the seeds after it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use common::{Broker, begun, broker, broker_at, count, execution, node, until};
use futures::FutureExt;
use glasshouse_fold::ExecutionFold;
use glasshouse_nats::{DEAD, EVENTS, Publisher, RECEIPTS, StreamStart};
use glasshouse_schema::frame::{FrameWriterConfig, Seal, SealTotals};
use glasshouse_schema::lifecycle::{Cleaned, Exited, Outcome, Phase, PhaseName, Sealed, SealedVantage};
use glasshouse_schema::receipt::Completeness;
use glasshouse_schema::subject::{EventSubject, EventSubjectKind};
use glasshouse_schema::{
    EncodedFrame, Event, ExecFlags, ExecutionId, Fact, FrameWriter, LifecycleEvent, PathRef, ProcessKey,
    Receipt, Usage, Vantage, version,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const EXECUTIONS: u16 = 96;
const PRODUCERS: u16 = 6;
const WORKERS: usize = 3;
const FILES: u64 = 20;
/// Of the workers here; some are stopped for longer.
const FAILOVER_MS: u64 = 1_000;

/// A worker, as a process of its own. Killed when dropped.
struct WorkerProcess(Child);

impl WorkerProcess {
    /// What it logs stands in `dir`, for whoever looks into a failure.
    fn start(url: &str, name: &str, dir: &Path) -> Self {
        let log =
            std::fs::File::options().create(true).append(true).open(dir.join(format!("{name}.log"))).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_glasshouse-aggregator"));
        command.args(["--nats", url, "--name", name, "--failover", &format!("{FAILOVER_MS}ms")]);
        command.env("RUST_LOG", "info,glasshouse_aggregator=debug");
        Self(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap())
    }

    fn signal(&self, signal: Signal) {
        let _ = kill(Pid::from_raw(i32::try_from(self.0.id()).unwrap()), signal);
    }

    /// Its exit code, once it has ended; 101 is a panic, which nothing that happens here may cause.
    fn ended(&mut self) -> bool {
        let status = self.0.try_wait().unwrap();
        assert_ne!(status.and_then(|status| status.code()), Some(101), "a worker panicked");
        status.is_some()
    }
}

impl Drop for WorkerProcess {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn at(number: u64, fact: Fact<'_>) -> Event<'_> {
    let process = ProcessKey { tgid: 1, start_boot_ns: 1_000 };
    Event { boot_ns: 2_000 + number, process, fact }
}

/// The frames of a command that opens files, in one chain.
fn frames(id: ExecutionId, epoch: u64) -> Vec<EncodedFrame> {
    let config = FrameWriterConfig::new(id, node(), Vantage::Host, epoch, 1_700_000_000_000_000_000);
    let mut writer = FrameWriter::new(config);
    let exec = Fact::Exec {
        ppid: 0,
        exe: PathRef::resolved(b"/usr/bin/true"),
        cwd: PathRef::resolved(b"/"),
        argv: &[b"true"],
        argv_truncated: false,
        uid: 0,
        gid: 0,
        env: &[],
        env_truncated: false,
        flags: ExecFlags::default(),
    };
    let mut frames: Vec<EncodedFrame> = writer.push(&at(0, exec)).into_iter().collect();
    for file in 1..=FILES {
        let path = format!("/srv/{id}/{file}");
        let fact =
            Fact::Open { path: PathRef::resolved(path.as_bytes()), flags: 0, result: 3, created: false };
        frames.extend(writer.push(&at(file, fact)));
        if file % 5 == 0 {
            frames.extend(writer.flush());
        }
    }
    let exit = Fact::Exit { code: 0, signal: 0, core_dumped: false, usage: Usage::default() };
    frames.extend(writer.push(&at(FILES + 1, exit)));
    frames.extend(writer.seal(SealTotals::default(), Seal::default()));
    frames
}

/// Publishes executions, with pauses between their events.
async fn produce(broker: Arc<tokio::sync::Mutex<Broker>>, numbers: Vec<u16>, seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    // The connection outlives the server that it was made to.
    let bus = broker.lock().await.bus.clone();
    let publisher = common::publisher(&bus);
    let pause = |random: &mut fastrand::Rng| tokio::time::sleep(Duration::from_millis(random.u64(0..80)));
    for number in numbers {
        let id = execution(number);
        let phases = begun(&bus, id).await;
        let epoch = phases.iter().find_map(|phase| match phase {
            Phase::Claimed(claimed) => Some(claimed.epoch),
            _ => None,
        });
        for phase in phases {
            lifecycle(&publisher, id, phase).await;
            pause(&mut random).await;
        }
        let frames = frames(id, epoch.unwrap());
        let (count, head) = (frames.len() as u64, frames.last().unwrap().digest);
        for frame in frames {
            let EncodedFrame { execution, node, vantage, bytes, digest, .. } = frame;
            publisher.publish_frame(&node, execution, vantage, bytes, digest, None).await.unwrap();
            pause(&mut random).await;
        }
        lifecycle(
            &publisher,
            id,
            Phase::Exited(Exited {
                outcome: Outcome { exit_code: 0, signal: None, error: None },
                start_unix_ns: 1_700_000_000_000_000_000,
                end_unix_ns: 1_700_000_001_000_000_000,
                rusage: None,
                stdout_hash: None,
                stderr_hash: None,
            }),
        )
        .await;
        let sealed = SealedVantage { vantage: Vantage::Host, frames: count, head };
        lifecycle(&publisher, id, Phase::Sealed(Sealed { vantages: vec![sealed], missing: Vec::new() }))
            .await;
        lifecycle(&publisher, id, Phase::Cleaned(Cleaned::default())).await;
    }
    publisher.flush().await.unwrap();
}

async fn lifecycle(publisher: &Publisher, execution_id: ExecutionId, phase: Phase) {
    let event = LifecycleEvent {
        schema_version: version::LIFECYCLE,
        execution_id,
        node: Some(node()),
        unix_ns: 1_700_000_000_000_000_000,
        phase,
    };
    publisher.publish_lifecycle(&event, None).await.unwrap();
}

/// What an undisturbed fold of the stored events gives.
async fn folded(broker: &Broker) -> BTreeMap<ExecutionId, Vec<u8>> {
    let last = broker.bus.position(EVENTS).await.unwrap().last_seq;
    let mut reader = broker.bus.events(StreamStart::Oldest, Vec::new()).await.unwrap();
    let mut folds = BTreeMap::<ExecutionId, (ExecutionFold, bool)>::new();
    while reader.next_seq() <= last {
        let message = reader.next().await.unwrap();
        let subject = EventSubject::parse(&message.subject).unwrap();
        let id = subject.execution;
        let (fold, is_closed) = folds.entry(id).or_insert_with(|| (ExecutionFold::new(id), false));
        if *is_closed {
            continue;
        }
        match subject.kind {
            EventSubjectKind::Frame(vantage) => {
                fold.frame(&message.payload, Some((&subject.node.unwrap(), vantage))).unwrap();
            }
            EventSubjectKind::Lifecycle(phase) => {
                fold.lifecycle(&LifecycleEvent::decode(&message.payload).unwrap()).unwrap();
                *is_closed = phase == PhaseName::Closed;
            }
        }
    }
    folds.into_iter().map(|(id, (fold, _))| (id, fold.receipt().unwrap().encode().unwrap())).collect()
}

/// The executions without a receipt, each with the number of its range.
async fn missing(broker: &Broker) -> Vec<(ExecutionId, u16)> {
    let mut missing = Vec::new();
    for id in (0..EXECUTIONS).map(execution) {
        if broker.bus.get_receipt(id).await.unwrap().is_none() {
            missing.push((id, glasshouse_nats::partition_of(id) / (256 / common::RANGES)));
            let filters = glasshouse_schema::subject::stored_events_of(id).to_vec();
            let mut reader = broker.bus.events(StreamStart::Oldest, filters).await.unwrap();
            while reader.pending() != Some(0) {
                let event = reader.next().await.unwrap();
                println!("{} {}", event.stream_seq, event.subject);
            }
        }
    }
    println!("ranges by holder: {:?}", common::holders(&broker.bus).await);
    missing
}

/// A copy of what the workers logged, which stays.
fn kept(dir: &Path) -> String {
    let kept = tempfile::tempdir().unwrap().keep();
    for worker in 0..WORKERS {
        let name = format!("worker-{worker}.log");
        let _ = std::fs::copy(dir.join(&name), kept.join(&name));
    }
    kept.display().to_string()
}

async fn round(seed: u64, dir: &Path) {
    let mut random = fastrand::Rng::with_seed(seed);
    let broker = Arc::new(tokio::sync::Mutex::new(broker(dir).await));
    let url = broker.lock().await.server.url().to_owned();
    let port: u16 = url.rsplit(':').next().unwrap().parse().unwrap();
    let mut workers: Vec<WorkerProcess> =
        (0..WORKERS).map(|n| WorkerProcess::start(&url, &format!("worker-{n}"), dir)).collect();
    let producers: Vec<_> = (0..PRODUCERS)
        .map(|n| {
            let numbers = (0..EXECUTIONS).filter(|number| number % PRODUCERS == n).collect();
            tokio::spawn(produce(broker.clone(), numbers, seed ^ u64::from(n) << 32))
        })
        .collect();
    let mut done = Vec::new();
    while !producers.iter().all(tokio::task::JoinHandle::is_finished) {
        tokio::time::sleep(Duration::from_millis(random.u64(100..700))).await;
        let index = random.usize(..workers.len());
        let what = random.u32(0..10);
        match what {
            0..=3 => workers[index] = WorkerProcess::start(&url, &format!("worker-{index}"), dir),
            4 | 5 => {
                workers[index].signal(Signal::SIGSTOP);
                let paused = random.u64(FAILOVER_MS / 2..FAILOVER_MS * 5 / 2);
                tokio::time::sleep(Duration::from_millis(paused)).await;
                workers[index].signal(Signal::SIGCONT);
            }
            6 | 7 => workers[index].signal(Signal::SIGTERM),
            8 => {
                // Killed with its store kept; nobody hears of it but by the connection.
                let mut broker = broker.lock().await;
                let pid = Pid::from_raw(i32::try_from(broker.server.pid()).unwrap());
                kill(pid, Signal::SIGKILL).unwrap();
                broker.server.exited().await;
                let restarted = broker_at(dir, port).await;
                *broker = restarted;
            }
            _ => workers[index].signal(Signal::SIGKILL),
        }
        done.push(what);
        for (n, worker) in workers.iter_mut().enumerate() {
            if worker.ended() {
                *worker = WorkerProcess::start(&url, &format!("worker-{n}"), dir);
            }
        }
    }
    for producer in producers {
        producer.await.unwrap();
    }
    let broker = broker.lock().await;
    let wanted = u64::from(EXECUTIONS);
    let complete =
        until("every execution has its receipt", async || count(&broker.bus, RECEIPTS).await == wanted);
    let complete = std::panic::AssertUnwindSafe(complete).catch_unwind();
    if complete.await.is_err() {
        let missing = missing(&broker).await;
        panic!("seed {seed}: no receipts of {missing:?} after {done:?}; the logs are in {}", kept(dir));
    }
    assert_eq!(count(&broker.bus, DEAD).await, 0, "seed {seed}: dead letters");
    let folded = folded(&broker).await;
    assert_eq!(folded.len() as u64, wanted, "seed {seed}");
    for (id, bytes) in folded {
        let published = broker.bus.get_receipt(id).await.unwrap().expect("a receipt").body;
        assert!(published == bytes, "seed {seed}: the receipt of {id} is not that of an undisturbed fold");
        let receipt = Receipt::decode(&published).unwrap();
        assert_eq!(
            receipt.completeness,
            Completeness::Closed,
            "seed {seed}: {:?}",
            receipt.coverage.incomplete
        );
        assert_eq!(receipt.files.len() as u64, FILES, "seed {seed}");
    }
    println!(
        "seed {seed}: {wanted} receipts as an undisturbed fold gives them, after {} attacks",
        done.len()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chaos_kills_and_pauses_cost_no_receipt_and_change_none() {
    let number = |name: &str, usual: u64| match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name} is a number, not {text:?}")),
        Err(_) => usual,
    };
    let (first, rounds) = (number("GLASSHOUSE_CHAOS_SEED", 1), number("GLASSHOUSE_CHAOS_ROUNDS", 2));
    for seed in first..first + rounds {
        let dir = tempfile::tempdir().unwrap();
        round(seed, dir.path()).await;
    }
}
