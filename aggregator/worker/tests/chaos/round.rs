//! A round: one seed, one scenario, a directory of its own.

use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::Instant;

use fastrand::Rng;
use futures::FutureExt;
use glasshouse_nats::{ServerOptions, SpoolState};
use tokio::task::JoinSet;

use crate::common;
use crate::oracle::Tally;
use crate::producer::{Book, Job, produce};
use crate::script::{Ledger, Shape};

pub(crate) struct Round {
    pub(crate) dir: PathBuf,
    pub(crate) random: Rng,
    pub(crate) ledger: Ledger,
    seed: u64,
}

type Outcome = Pin<Box<dyn Future<Output = Tally>>>;

/// One way to break things.
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    round: fn(Round) -> Outcome,
    lacks: fn() -> Option<String>,
}

impl Scenario {
    pub(crate) const fn new(name: &'static str, round: fn(Round) -> Outcome) -> Self {
        Self { name, round, lacks: || None }
    }

    /// One that this machine may not be able to run; `lacks` says why.
    pub(crate) const fn lacking(mut self, lacks: fn() -> Option<String>) -> Self {
        self.lacks = lacks;
        self
    }

    /// As many rounds as are wanted. The error is what failed, and how it comes again.
    pub(crate) fn run(&self) -> Result<(), String> {
        if let Some(reason) = (self.lacks)() {
            println!("{}: skipped: {reason}", self.name);
            return Ok(());
        }
        let (first, rounds) = (number("GLASSHOUSE_CHAOS_SEED"), number("GLASSHOUSE_CHAOS_ROUNDS"));
        for seed in first..first + rounds {
            self.round(seed)?;
        }
        Ok(())
    }

    fn round(&self, seed: u64) -> Result<(), String> {
        let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
        let began = Instant::now();
        let random = Rng::with_seed(seed);
        let round = Round { dir: dir.path().to_owned(), random, ledger: Ledger::default(), seed };
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.map_err(|error| error.to_string())?;
        let outcome = runtime.block_on(AssertUnwindSafe((self.round)(round)).catch_unwind());
        match outcome {
            Ok(tally) => {
                println!("{} seed {seed}: {tally} ({:.1} s)", self.name, began.elapsed().as_secs_f64());
                Ok(())
            }
            Err(panic) => {
                let text = panic.downcast_ref::<String>().cloned();
                let text = text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
                Err(format!(
                    "{}\nwhat was logged and stored is in {}\nagain: GLASSHOUSE_CHAOS_SEED={seed} cargo test -p \
                     glasshouse-aggregator --test chaos -- --exact {}",
                    text.unwrap_or_default(),
                    dir.keep().display(),
                    self.name,
                ))
            }
        }
    }
}

fn number(name: &str) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name} is a number, not {text:?}")),
        Err(_) => 1,
    }
}

/// Producers that run in this process.
pub(crate) struct Producers(JoinSet<SpoolState>);

impl Producers {
    pub(crate) fn are_done(&self) -> bool {
        self.0.is_empty()
    }

    /// Lets them go on for so long, unless all end before. Gives how many messages were refused by those that ended.
    pub(crate) async fn run_for(&mut self, milliseconds: u64) -> u64 {
        let end = tokio::time::Instant::now() + std::time::Duration::from_millis(milliseconds);
        let mut refused = 0;
        while let Ok(Some(ended)) = tokio::time::timeout_at(end, self.0.join_next()).await {
            refused += ended.unwrap().refused;
        }
        refused
    }
}

impl Round {
    /// The jobs of `producers` that share `executions`.
    pub(crate) fn jobs(
        &self,
        url: &str,
        producers: u16,
        executions: u16,
        shape: Shape,
        pause_ms: u64,
    ) -> Vec<Job> {
        let job = |number: u16| Job {
            url: url.to_owned(),
            spool: self.dir.join(format!("producer-{number}")),
            executions: (0..executions).filter(|execution| execution % producers == number).collect(),
            shape,
            seed: self.seed ^ u64::from(number + 1) << 32,
            pause_ms,
        };
        (0..producers).map(job).collect()
    }

    pub(crate) fn produce(&self, jobs: Vec<Job>) -> Producers {
        let produce = |job| produce(job, Book::Ledger(self.ledger.clone()));
        Producers(jobs.into_iter().map(produce).collect())
    }

    /// A directory of the round.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}

/// A server that is killed and comes back at the same address.
pub(crate) struct Server {
    broker: common::Broker,
    options: ServerOptions,
}

impl Server {
    pub(crate) async fn start(dir: &Path) -> Self {
        Self::start_with(ServerOptions::private(dir)).await
    }

    pub(crate) async fn start_with(mut options: ServerOptions) -> Self {
        let broker = common::broker_with(options.clone()).await;
        options.port = broker.server.url().rsplit(':').next().unwrap().parse().unwrap();
        Self { broker, options }
    }

    pub(crate) fn port(&self) -> u16 {
        self.options.port
    }

    pub(crate) fn url(&self) -> &str {
        self.broker.server.url()
    }

    pub(crate) fn bus(&self) -> &glasshouse_nats::Bus {
        &self.broker.bus
    }

    /// Kills it, does something while it is gone, and starts it again. Nobody hears of it but by the connection.
    pub(crate) async fn kill_and(self, meanwhile: impl AsyncFnOnce()) -> Self {
        let Self { broker, options } = self;
        broker.server.kill().await;
        meanwhile().await;
        Self { broker: common::broker_with(options.clone()).await, options }
    }
}
