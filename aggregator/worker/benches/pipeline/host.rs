//! What a bench runs on: a server of its own, workers as processes, and what the kernel says of them.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use glasshouse_nats::{Bus, ConnectOptions, NatsServer, ServerOptions, StreamStart, Tail, Topology};

/// How long anything may take.
const DEADLINE: Duration = Duration::from_secs(150);

/// A server on an empty store.
pub(crate) struct Broker {
    pub(crate) bus: Bus,
    pub(crate) server: NatsServer,
    _dir: tempfile::TempDir,
}

impl Broker {
    pub(crate) async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let server = NatsServer::start(ServerOptions::new(dir.path())).await.unwrap();
        let bus = connect(server.url()).await;
        Topology::embedded(1).unwrap().apply(&bus).await.unwrap();
        Self { bus, server, _dir: dir }
    }

    /// Another connection.
    pub(crate) async fn connect(&self) -> Bus {
        connect(self.server.url()).await
    }

    /// Waits until workers share all ranges evenly.
    pub(crate) async fn shared_by(&self, workers: usize) {
        until("the ranges are shared", async || {
            let mut held = std::collections::BTreeMap::<String, usize>::new();
            let stream = self.bus.jetstream().get_stream("KV_GH_LEASES").await.unwrap();
            for range in 0..RANGES {
                let key = format!("$KV.GH_LEASES.ranges.{range}");
                if let Ok(lease) = stream.get_last_raw_message_by_subject(&key).await {
                    *held.entry(String::from_utf8_lossy(&lease.payload).into_owned()).or_default() += 1;
                }
            }
            held.remove("");
            held.len() == workers && held.values().all(|count| *count == RANGES / workers)
        })
        .await;
    }

    /// Counts receipts as they come, from the first on: `seen` hears of each by its subject.
    pub(crate) async fn receipts(&self, count: usize, seen: impl FnMut(&str)) {
        let bus = self.connect().await;
        receipts(&mut bus.tail_receipts(StreamStart::Oldest).await.unwrap(), count, seen).await;
    }
}

/// Counts receipts as they come: `seen` hears of each by its subject.
pub(crate) async fn receipts(tail: &mut Tail, count: usize, mut seen: impl FnMut(&str)) {
    let all = async {
        for _ in 0..count {
            seen(&tail.next().await.unwrap().message.subject);
        }
    };
    tokio::time::timeout(DEADLINE, all).await.expect("every receipt comes");
}

impl Drop for Broker {
    fn drop(&mut self) {
        // Its store goes with it: nothing has to be written out first.
        let _ = kill(Pid::from_raw(self.server.pid().cast_signed()), Signal::SIGKILL);
    }
}

/// How many ranges there are to share.
const RANGES: usize = 32;

async fn connect(url: &str) -> Bus {
    glasshouse_nats::connect(ConnectOptions::new(url, "bench")).await.unwrap()
}

pub(crate) async fn until(what: &str, condition: impl AsyncFn() -> bool) {
    let wait = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(DEADLINE, wait).await.unwrap_or_else(|_| panic!("{what}"));
}

/// An aggregator, as a process of its own. Killed when dropped.
pub(crate) struct Worker(Child);

impl Worker {
    pub(crate) fn start(broker: &Broker, name: &str) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_glasshouse-aggregator"));
        command.args(["--nats", broker.server.url(), "--name", name]);
        command.env("RUST_LOG", std::env::var("RUST_LOG").unwrap_or_else(|_| "error".into()));
        Self(command.stdin(Stdio::null()).spawn().unwrap())
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    pub(crate) fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    /// CPU time that it has taken.
    pub(crate) fn cpu(&self) -> Duration {
        cpu(self.pid())
    }

    /// A line of its status file, in MiB.
    pub(crate) fn status_mib(&self, line: &str) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let found = status.lines().find_map(|text| text.strip_prefix(line)?.strip_prefix(':'));
        found.unwrap().trim().trim_end_matches(" kB").trim().parse::<f64>().unwrap() / 1024.0
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// CPU time of a process, from fields 14 and 15 of its stat file (proc_pid_stat(5)).
pub(crate) fn cpu(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, fields) = stat.rsplit_once(')').unwrap();
    let ticks: u64 =
        fields.split_whitespace().skip(11).take(2).map(|field| field.parse::<u64>().unwrap()).sum();
    // USER_HZ is 100 on every architecture that Linux runs on here.
    Duration::from_millis(ticks * 10)
}

/// A cgroup that gives its processes a share of one CPU. Removed when dropped, with who is in it gone.
pub(crate) struct Capped(PathBuf);

impl Capped {
    /// `name` tells it from others; `percent` is of one CPU.
    pub(crate) fn new(name: &str, percent: u64) -> Self {
        let name = format!("glasshouse-bench-{}-{name}", std::process::id());
        let (period, quota) = (100_000, percent * 1_000);
        let (v1, v2) = (Path::new("/sys/fs/cgroup/cpu"), Path::new("/sys/fs/cgroup"));
        if v1.join("cpu.cfs_quota_us").exists() {
            let dir = v1.join(name);
            std::fs::create_dir(&dir).expect("a cgroup needs root");
            std::fs::write(dir.join("cpu.cfs_period_us"), period.to_string()).unwrap();
            std::fs::write(dir.join("cpu.cfs_quota_us"), quota.to_string()).unwrap();
            return Self(dir);
        }
        let dir = v2.join(name);
        std::fs::create_dir(&dir).expect("a cgroup needs root");
        std::fs::write(dir.join("cpu.max"), format!("{quota} {period}"))
            .expect("the cpu controller is enabled in cgroup.subtree_control");
        Self(dir)
    }

    pub(crate) fn add(&self, worker: &Worker) {
        std::fs::write(self.0.join("cgroup.procs"), worker.pid().to_string()).unwrap();
    }
}

impl Drop for Capped {
    fn drop(&mut self) {
        let begun = Instant::now();
        // A process that was waited for leaves its cgroup a moment later.
        while std::fs::remove_dir(&self.0).is_err() && begun.elapsed() < Duration::from_secs(2) {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
