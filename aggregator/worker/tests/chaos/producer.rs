//! Producers: they claim executions and publish what these say by way of a spool, as `glasshouse run` does.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::Mutex;
use std::time::Duration;

use glasshouse_nats::{
    Bus, ConnectOptions, Error, ErrorKind, Spool, SpoolOptions, SpoolState, SpooledOptions, SpooledPublisher,
};
use glasshouse_schema::{ExecutionId, Vantage};
use serde::{Deserialize, Serialize};

use crate::common::{self, execution, node};
use crate::role::{Namespace, Role};
use crate::script::{Ledger, Report, Said, Shape, script};

/// What one producer does.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Job {
    pub(crate) url: String,
    pub(crate) spool: PathBuf,
    pub(crate) executions: Vec<u16>,
    pub(crate) shape: Shape,
    pub(crate) seed: u64,
    /// The longest rest between two messages.
    pub(crate) pause_ms: u64,
}

/// Where a producer reports to.
pub(crate) enum Book {
    Ledger(Ledger),
    /// A file that outlives the producer.
    Journal(Mutex<std::fs::File>),
}

impl Book {
    fn note(&self, report: Report) {
        match self {
            Self::Ledger(ledger) => ledger.note(report),
            Self::Journal(file) => {
                let mut line = serde_json::to_vec(&report).unwrap();
                line.push(b'\n');
                file.lock().unwrap().write_all(&line).unwrap();
            }
        }
    }
}

pub(crate) async fn connect(url: &str) -> Bus {
    loop {
        match glasshouse_nats::connect(ConnectOptions::new(url, "producer")).await {
            Ok(bus) => return bus,
            Err(error) if error.kind() == ErrorKind::Retryable => common::pause(50).await,
            Err(error) => panic!("{error}"),
        }
    }
}

async fn publish(publisher: &SpooledPublisher, id: ExecutionId, said: &Said) -> Result<(), Error> {
    match said {
        Said::Event(event) => publisher.publish_lifecycle(event, None).await,
        Said::Frame { bytes, is_seal } => {
            let of = (&node(), id, Vantage::Host);
            publisher.publish_frame(of, bytes.clone(), said.digest(), *is_seal, None).await
        }
    }
}

/// Does the job, and returns once the bus has everything that was accepted.
pub(crate) async fn produce(job: Job, book: Book) -> SpoolState {
    let mut random = fastrand::Rng::with_seed(job.seed);
    let bus = connect(&job.url).await;
    let spool = Spool::open(&job.spool, SpoolOptions::default()).unwrap();
    let publisher = SpooledPublisher::new(&bus, spool, SpooledOptions::default());
    for id in job.executions.iter().copied().map(execution) {
        let epoch = common::claim(&bus, id).await;
        book.note(Report::Claimed(id, epoch));
        for said in script(id, epoch, job.shape) {
            match publish(&publisher, id, &said).await {
                Ok(()) => book.note(Report::Accepted(id, said)),
                Err(Error::Spool(_)) => book.note(Report::Refused(id)),
                Err(error) => panic!("{error}"),
            }
            common::pause(random.u64(0..=job.pause_ms)).await;
        }
    }
    drain(publisher).await
}

async fn drain(publisher: SpooledPublisher) -> SpoolState {
    let drained = common::within(Duration::from_secs(120), async {
        while publisher.flush(Duration::from_secs(5)).await.unwrap().messages > 0 {}
    });
    assert!(drained.await.is_some(), "the bus does not take the rest: {:?}", publisher.state());
    let state = publisher.state();
    assert_eq!((state.rejected, state.damaged), (0, 0), "{state:?}");
    publisher.close().await.unwrap();
    state
}

/// Sends what a producer left when it died, as `glasshouse spool send` does.
pub(crate) async fn send_spool(bus: &Bus, dir: &Path) -> u64 {
    if !dir.exists() {
        return 0;
    }
    let spool = Spool::open(dir, SpoolOptions::default()).unwrap();
    let left = spool.leftover().messages;
    drain(SpooledPublisher::new(bus, spool, SpooledOptions::default())).await;
    left
}

/// A producer that is a process of its own.
pub(crate) struct ProducerProcess {
    child: Child,
    pub(crate) spool: PathBuf,
    journal: PathBuf,
}

impl ProducerProcess {
    pub(crate) fn start(job: Job, dir: &Path, namespace: Option<&Namespace>) -> Self {
        let name = job.spool.file_name().unwrap().to_string_lossy().into_owned();
        let journal = dir.join(format!("{name}.journal"));
        let spool = job.spool.clone();
        let role = Role::Producer { job, journal: journal.clone() };
        let child = role.start(&dir.join(format!("{name}.log")), namespace);
        Self { child, spool, journal }
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Whether it did its job; fails if it ended otherwise, but for a kill.
    pub(crate) fn is_done(&mut self) -> bool {
        match self.child.try_wait().unwrap() {
            Some(status) => {
                assert!(status.success(), "a producer ended by itself: {status}");
                true
            }
            None => false,
        }
    }

    /// What it reported. The last line may be torn.
    pub(crate) fn report(&self, ledger: &Ledger) {
        let text = std::fs::read_to_string(&self.journal).unwrap_or_default();
        for line in text.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
            ledger.note(serde_json::from_str(line).unwrap());
        }
    }
}

impl Drop for ProducerProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
