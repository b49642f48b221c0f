//! What the tests share: a real server, real agents, real commands.

#![allow(dead_code, reason = "each test file uses what it needs")]

use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use glasshouse_nats::{Bus, ConnectOptions, NatsServer, ServerOptions, StreamStart, Topology, connect};
use glasshouse_schema::lifecycle::{Outcome, Phase, PhaseName};
use glasshouse_schema::{ExecutionId, LifecycleEvent, PoolName, Request, subject};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How long any one thing may take before its test fails.
pub const DEADLINE: Duration = Duration::from_secs(60);

pub struct Broker {
    pub bus: Bus,
    pub server: NatsServer,
    // Dropped last, after the server that writes there.
    pub dir: tempfile::TempDir,
}

/// A server with every stream.
pub async fn broker() -> Broker {
    let dir = tempfile::tempdir().unwrap();
    let server = NatsServer::start(ServerOptions::private(dir.path().join("nats"))).await.unwrap();
    let bus = connect(ConnectOptions::new(server.url(), "test")).await.unwrap();
    let applied = Topology::embedded(1).unwrap().apply(&bus).await.unwrap();
    assert_eq!(applied.differences, [], "{applied}");
    Broker { bus, server, dir }
}

/// Waits for a condition.
pub async fn until(what: &str, condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(tokio::time::timeout(DEADLINE, wait).await.is_ok(), "{what}");
}

impl Broker {
    pub fn agent(&self, name: &str, options: &[&str]) -> Agent {
        Agent::start(self.server.url(), &self.dir.path().join(name), name, options)
    }

    /// A directory for the commands' traces.
    pub fn work(&self) -> PathBuf {
        let dir = self.dir.path().join("work");
        std::fs::create_dir_all(&dir).unwrap();
        dir
    }

    /// How an execution ended, once its record has its end.
    pub async fn outcome(&self, execution: ExecutionId) -> Outcome {
        let record = self.record(execution).await;
        let outcome = record.iter().rev().find_map(|event| match &event.phase {
            Phase::Exited(exited) => Some(exited.outcome.clone()),
            Phase::Failed(failed) => Some(failed.outcome.clone()),
            _ => None,
        });
        outcome.unwrap_or_else(|| panic!("{execution} ended without an outcome: {record:?}"))
    }

    /// The record of an execution, once it has its end.
    pub async fn record(&self, execution: ExecutionId) -> Vec<LifecycleEvent> {
        self.wait_phase(execution, PhaseName::Cleaned).await;
        self.bus.lifecycle_of(execution).await.unwrap()
    }

    /// Waits for a phase of an execution.
    pub async fn wait_phase(&self, execution: ExecutionId, phase: PhaseName) {
        let partition = glasshouse_nats::partition_of(execution);
        let filter = vec![subject::stored_lifecycle_of(partition, execution)];
        let waited = async {
            let mut events = self.bus.events(StreamStart::Oldest, filter).await.unwrap();
            loop {
                let message = events.next().await.unwrap();
                if LifecycleEvent::decode(&message.payload).unwrap().phase.name() == phase {
                    return;
                }
            }
        };
        let waited = tokio::time::timeout(DEADLINE, waited).await;
        waited.unwrap_or_else(|_| panic!("{execution} is not {}", phase.as_str()));
    }

    pub async fn submit(&self, request: &Request) {
        self.bus.submit(&pool(), request, None).await.unwrap();
    }

    /// Returns once no request is left in the queue.
    pub async fn queue_is_empty(&self) {
        let emptied = async {
            while self.bus.position(glasshouse_nats::REQUESTS).await.unwrap().messages > 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(DEADLINE, emptied).await.expect("requests are left in the queue");
    }
}

pub fn pool() -> PoolName {
    PoolName::new("default").unwrap()
}

pub fn request(script: &str) -> Request {
    Request::new(glasshouse_runner::new_execution_id().unwrap(), ["sh", "-c", script])
}

/// An agent that does not outlive its test.
pub struct Agent {
    pub child: Child,
    url: String,
    state: PathBuf,
    name: String,
    options: Vec<String>,
    environment: Vec<(String, OsString)>,
}

impl Agent {
    pub fn start(url: &str, state: &Path, name: &str, options: &[&str]) -> Self {
        Self::start_in(url, state, name, options, Vec::new())
    }

    /// With these variables.
    pub fn start_in(
        url: &str,
        state: &Path,
        name: &str,
        options: &[&str],
        environment: Vec<(String, OsString)>,
    ) -> Self {
        let options: Vec<String> = options.iter().map(|&option| option.to_owned()).collect();
        let child = spawn(url, state, name, &options, &environment);
        Self { child, url: url.into(), state: state.into(), name: name.into(), options, environment }
    }

    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).unwrap();
        kill(Pid::from_raw(pid), signal).unwrap();
        // It takes a moment until every thread has stopped, in which one could still take a request.
        while signal == Signal::SIGSTOP && !self.is_stopped() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn is_stopped(&self) -> bool {
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        threads.flatten().all(|thread| {
            let stat = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
            stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T'))
        })
    }

    /// Ends it as a crash would.
    pub fn crash(&mut self) {
        self.signal(Signal::SIGKILL);
        self.child.wait().unwrap();
    }

    /// Starts the next life.
    pub fn restart(&mut self) {
        self.child = spawn(&self.url, &self.state, &self.name, &self.options, &self.environment);
    }

    /// Ends it in order.
    pub fn stop(&mut self) -> Option<i32> {
        self.signal(Signal::SIGTERM);
        self.child.wait().unwrap().code()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Returns once the agent takes requests.
fn spawn(
    url: &str,
    state: &Path,
    name: &str,
    options: &[String],
    environment: &[(String, OsString)],
) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_glasshouse-node-agent"));
    for (key, _) in std::env::vars_os() {
        let text = key.to_string_lossy().into_owned();
        if text.starts_with("OTEL_") || text.starts_with("GLASSHOUSE_") {
            command.env_remove(&key);
        }
    }
    command.args(["--nats", url, "--node", name, "--socket", "none", "--state"]).arg(state).args(options);
    command.envs(environment.iter().map(|(name, value)| (name, value)));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let log = child.stderr.take().unwrap();
    let (ready, is_ready) = std::sync::mpsc::channel();
    let name = name.to_owned();
    std::thread::spawn(move || {
        for line in BufReader::new(log).lines().map_while(Result::ok) {
            eprintln!("{name}: {line}");
            if line.contains("taking requests") {
                let _ = ready.send(());
            }
        }
    });
    is_ready.recv_timeout(DEADLINE).expect("the agent takes requests");
    child
}

/// Living processes whose command line holds `mark`, this one excepted.
pub fn processes(mark: &str) -> Vec<i32> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let own = i32::try_from(std::process::id()).unwrap();
    pids.filter(|pid| *pid != own)
        .filter(|pid| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.windows(mark.len()).any(|part| part == mark.as_bytes())
        })
        .collect()
}

/// Cgroups of executions that are there, wherever they are.
pub fn cgroups_of(executions: &[ExecutionId]) -> Vec<PathBuf> {
    let mut left = Vec::new();
    let mut folders = vec![PathBuf::from("/sys/fs/cgroup")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            let id = entry.file_name().to_str().and_then(|name| name.parse::<ExecutionId>().ok());
            if id.is_some_and(|id| executions.contains(&id)) {
                left.push(entry.path());
            }
            folders.push(entry.path());
        }
    }
    left
}
