//! Which producers are dead.
//!
//! A claim that names a process speaks of one with a heartbeat: it is dead once that is gone for the grace. Whether it is there
//! the server says, by its own clock; how long it is gone this worker counts, and only while it hears the server without a
//! break, because no producer can be heard while the bus is away. A claim that names none is of a producer without a
//! heartbeat, of which only silence can tell.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use futures::future::join_all;
use glasshouse_nats::{Bus, Claims, ErrorKind, Producer};
use glasshouse_schema::ids::ExecutionId;
use tokio::time::Instant;

/// How often it is looked after who is quiet, unless a grace is short.
const EVERY: Duration = Duration::from_secs(5);
/// How many the bus is asked about at a time.
const AT_ONCE: usize = 1_024;
/// How long all of them may take. What is not answered then is not known.
const WITHIN: Duration = Duration::from_secs(2);

/// The graces, and what was seen so far.
pub(crate) struct Producers {
    bus: Bus,
    claims: Claims,
    /// How long one without a heartbeat may be silent.
    silence: Duration,
    /// How long a heartbeat may be gone.
    grace: Duration,
    looked: Instant,
    /// Whose the quiet executions are; `None` for one without a heartbeat.
    of: HashMap<ExecutionId, Option<Producer>>,
    seen: HashMap<Producer, Seen>,
}

struct Seen {
    at: Instant,
    gone_since: Option<Instant>,
}

impl Producers {
    pub(crate) fn new(bus: &Bus, silence: Duration, grace: Duration) -> Self {
        Self {
            bus: bus.clone(),
            claims: Claims::new(bus),
            silence,
            grace,
            looked: Instant::now(),
            of: HashMap::new(),
            seen: HashMap::new(),
        }
    }

    /// The bus was away: who was missing then may only not have been heard.
    pub(crate) fn forget(&mut self) {
        self.seen.clear();
    }

    /// How often it is to be looked after who is quiet, and after what time one is.
    pub(crate) fn every(&self) -> Duration {
        EVERY.min(self.silence / 2).min(self.grace / 2)
    }

    /// Whether it is time.
    pub(crate) fn is_due(&self) -> bool {
        self.looked.elapsed() >= self.every()
    }

    /// Which of the executions have a dead producer. `quiet` are all of which nothing has come for [`Self::every`], with the
    /// time since something did. An execution of which something comes is nobody's who is dead, whoever sends it.
    pub(crate) async fn dead(&mut self, quiet: &[(ExecutionId, Duration)]) -> Vec<ExecutionId> {
        self.looked = Instant::now();
        let mut known = std::mem::take(&mut self.of);
        self.of = quiet.iter().filter_map(|(execution, _)| known.remove_entry(execution)).collect();
        self.learn(quiet).await;
        self.look().await;
        let is_dead = |(execution, silent): &&(ExecutionId, Duration)| match self.of.get(execution) {
            None => false,
            Some(None) => *silent >= self.silence,
            Some(Some(producer)) => *silent >= self.grace && self.gone_for(producer) >= Some(self.grace),
        };
        quiet.iter().filter(is_dead).map(|(execution, _)| *execution).collect()
    }

    fn gone_for(&self, producer: &Producer) -> Option<Duration> {
        Some(self.seen.get(producer)?.gone_since?.elapsed())
    }

    /// Finds out whose the quiet executions are.
    async fn learn(&mut self, quiet: &[(ExecutionId, Duration)]) {
        let unknown = quiet.iter().map(|(execution, _)| *execution);
        let unknown = unknown.filter(|execution| !self.of.contains_key(execution)).take(AT_ONCE);
        let claims = &self.claims;
        let asked = join_all(unknown.map(async |execution| (execution, claims.get(execution).await)));
        let Ok(answers) = tokio::time::timeout(WITHIN, asked).await else { return };
        for (execution, answer) in answers {
            match answer {
                Ok(found) => {
                    let producer = found.and_then(|(claim, _)| claim?.producer());
                    self.of.insert(execution, producer);
                }
                // What nobody can read names nobody.
                Err(error) if error.kind() == ErrorKind::Poison => drop(self.of.insert(execution, None)),
                Err(error) => tracing::debug!(execution_id = %execution, %error, "claim not read now"),
            }
        }
    }

    /// Looks which of their heartbeats are there.
    async fn look(&mut self) {
        let wanted: HashSet<&Producer> = self.of.values().flatten().collect();
        self.seen.retain(|producer, _| wanted.contains(producer));
        let every = self.every();
        let is_due =
            |producer: &&Producer| self.seen.get(producer).is_none_or(|seen| seen.at.elapsed() >= every);
        let due: Vec<Producer> = wanted.into_iter().filter(is_due).take(AT_ONCE).cloned().collect();
        let asked = join_all(due.iter().map(|producer| self.bus.has_heartbeat(producer)));
        let answers = tokio::time::timeout(WITHIN, asked).await.unwrap_or_default();
        let at = Instant::now();
        let mut answers = answers.into_iter();
        for producer in due {
            match answers.next() {
                Some(Ok(true)) => drop(self.seen.insert(producer, Seen { at, gone_since: None })),
                Some(Ok(false)) => {
                    let seen = self.seen.entry(producer).or_insert(Seen { at, gone_since: None });
                    seen.at = at;
                    seen.gone_since.get_or_insert(at);
                }
                // A server that does not say it may not hear the producer either.
                Some(Err(_)) | None => drop(self.seen.remove(&producer)),
            }
        }
    }
}
