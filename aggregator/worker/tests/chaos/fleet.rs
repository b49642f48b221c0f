//! The workers of a round, and what is done to them.

use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::Duration;

use fastrand::Rng;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common;
use crate::role::{Namespace, Role, command, spawn};

const AGGREGATORS: usize = 3;
/// Of the workers here; some are stopped for longer.
const FAILOVER_MS: u64 = 1_000;

/// Three aggregators and a policy worker, each a process. Killed when dropped.
pub(crate) struct Fleet {
    url: String,
    dir: PathBuf,
    arguments: Vec<String>,
    namespace: Option<Namespace>,
    /// The last one is the policy worker.
    workers: Vec<Child>,
}

impl Fleet {
    pub(crate) fn start(url: &str, dir: &Path, arguments: &[&str], namespace: Option<&Namespace>) -> Self {
        let mut fleet = Self {
            url: url.to_owned(),
            dir: dir.to_owned(),
            arguments: arguments.iter().map(ToString::to_string).collect(),
            namespace: namespace.cloned(),
            workers: Vec::new(),
        };
        fleet.workers = (0..=AGGREGATORS).map(|number| fleet.worker(number)).collect();
        fleet
    }

    fn worker(&self, number: usize) -> Child {
        let log = self.dir.join(format!("worker-{number}.log"));
        if number == AGGREGATORS {
            return Role::PolicyWorker { url: self.url.clone() }.start(&log, self.namespace.as_ref());
        }
        let mut command = command(env!("CARGO_BIN_EXE_glasshouse-aggregator"), self.namespace.as_ref());
        command.args(["--nats", &self.url, "--name", &format!("worker-{number}")]);
        command.args(["--failover", &format!("{FAILOVER_MS}ms")]).args(&self.arguments);
        command.env("RUST_LOG", "info,glasshouse_aggregator=debug");
        spawn(command, &log)
    }

    /// Kills, stops or pauses one of them, and starts those that ended.
    pub(crate) async fn attack(&mut self, random: &mut Rng) {
        let number = random.usize(..self.workers.len());
        let pid = Pid::from_raw(i32::try_from(self.workers[number].id()).unwrap());
        match random.u32(0..10) {
            0..=5 => self.kill(number),
            6 | 7 => drop(kill(pid, Signal::SIGTERM)),
            _ => {
                let _ = kill(pid, Signal::SIGSTOP);
                common::pause(random.u64(FAILOVER_MS / 2..FAILOVER_MS * 5 / 2)).await;
                let _ = kill(pid, Signal::SIGCONT);
            }
        }
        self.mend();
    }

    fn kill(&mut self, number: usize) {
        self.workers[number].kill().unwrap();
        self.workers[number].wait().unwrap();
    }

    pub(crate) fn kill_all(&mut self) {
        (0..self.workers.len()).for_each(|number| self.kill(number));
    }

    /// Starts those that ended, as a supervisor does.
    pub(crate) fn mend(&mut self) {
        for number in 0..self.workers.len() {
            let Some(status) = self.workers[number].try_wait().unwrap() else { continue };
            // 101 is a panic, which nothing that happens here may cause.
            assert_ne!(status.code(), Some(101), "worker {number} panicked");
            self.workers[number] = self.worker(number);
        }
    }

    /// Goes on to start those that end until `done` resolves.
    pub(crate) async fn tend<T>(&mut self, done: impl Future<Output = T>) -> T {
        let mut done = std::pin::pin!(done);
        loop {
            match tokio::time::timeout(Duration::from_millis(200), &mut done).await {
                Ok(value) => return value,
                Err(_) => self.mend(),
            }
        }
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        for worker in &mut self.workers {
            let _ = worker.kill();
            let _ = worker.wait();
        }
    }
}
