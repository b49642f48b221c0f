//! What to do with a request whose execution is claimed already.
//!
//! | the record | whoever holds the claim | the request |
//! |---|---|---|
//! | has its end | | is acknowledged |
//! | goes on | this agent, and it runs | is left: the one in hand is acknowledged in the end |
//! | goes on | lives | comes again later |
//! | goes on | is dead | is ended as of unknown outcome, and acknowledged |
//!
//! Dead is: a life of this agent's own state directory before this one; a process whose heartbeat is gone for `lost-after`, as
//! far as this agent has seen; one that has no heartbeat is never known to be dead here, the aggregators close it.

use std::collections::HashMap;
use std::time::Duration;

use glasshouse_execution::engine::system_unix_ns;
use glasshouse_nats::{Claim, Delivery, Error, Publisher, PublisherOptions};
use glasshouse_schema::ids::ExecutionId;
use glasshouse_schema::lifecycle::{Cleaned, Failed, Outcome, Phase, PhaseName, Step};
use glasshouse_schema::{LifecycleEvent, Request, version};
use tokio::time::Instant;

use crate::agent::Shared;

/// When a request is looked at again whose runner lives.
const AGAIN_AFTER: Duration = Duration::from_secs(5);
/// Runners that are watched for being gone, at most; more are looked at when these are settled.
const MAX_WATCHED: usize = 65_536;

/// Since when the runner of an execution is gone.
pub(crate) type Gone = HashMap<ExecutionId, Instant>;

enum Runner {
    /// This agent: nothing is to be done.
    Here,
    Lives,
    Dead(String),
}

impl Shared {
    /// Settles a request whose execution is claimed by `claim`; `None` if nobody can read by whom.
    pub(crate) async fn settle(
        &self,
        delivery: Delivery,
        request: &Request,
        claim: Option<Claim>,
    ) -> Result<(), Error> {
        let execution = request.execution_id;
        let record = self.bus.lifecycle_of(execution).await?;
        let has = |name| record.iter().any(|event| event.phase.name() == name);
        if has(PhaseName::Cleaned) || has(PhaseName::Closed) {
            tracing::info!(execution_id = %execution, "request of an execution that is over");
            return delivery.ack().await;
        }
        let reason = match self.runner(execution, claim).await? {
            Runner::Here => {
                delivery.leave();
                return Ok(());
            }
            Runner::Lives => return delivery.nak(AGAIN_AFTER.min(self.settings().lost_after / 2)).await,
            Runner::Dead(reason) => reason,
        };
        let retry = request.retry();
        if let Some(retry) = &retry {
            let traceparent = glasshouse_nats::trace::traceparent(delivery.headers());
            self.bus.submit(&self.settings().pool, retry, traceparent).await?;
        }
        let again = retry.map(|retry| format!("; it is run again as {}", retry.execution_id));
        let reason = format!("outcome unknown: {reason}{}", again.unwrap_or_default());
        tracing::warn!(execution_id = %execution, reason, "an execution has lost its runner");
        let step = step_after(&record);
        self.end_record(execution, step, &reason, has(PhaseName::Exited)).await?;
        self.gone().remove(&execution);
        delivery.ack().await
    }

    async fn runner(&self, execution: ExecutionId, claim: Option<Claim>) -> Result<Runner, Error> {
        // The admin role deleted it: whoever ran it is not known.
        let Some(claim) = claim else { return Ok(Runner::Dead("its claim was deleted".into())) };
        let node = &claim.node;
        if claim.instance.as_deref() == Some(self.heartbeat.instance()) {
            return Ok(match self.is_running(execution) {
                true => Runner::Here,
                false => Runner::Dead(format!("node {node} could not store its end")),
            });
        }
        if claim.instance.as_deref().is_some_and(|instance| self.state.is_dead(instance)) {
            return Ok(Runner::Dead(format!("the agent of node {node} ended while it ran")));
        }
        let Some(producer) = claim.producer() else { return Ok(Runner::Lives) };
        if self.bus.has_heartbeat(&producer).await? {
            self.gone().remove(&execution);
            return Ok(Runner::Lives);
        }
        let lost_after = self.settings().lost_after;
        let mut gone = self.gone();
        if gone.len() >= MAX_WATCHED && !gone.contains_key(&execution) {
            return Ok(Runner::Lives);
        }
        let since = gone.entry(execution).or_insert_with(Instant::now);
        Ok(match since.elapsed() >= lost_after {
            true => Runner::Dead(format!("nothing is heard of node {node}, which ran it")),
            false => Runner::Lives,
        })
    }

    /// Claims an execution that cannot be run, and ends its record with the reason. Somebody else's is left alone.
    pub(crate) async fn refuse(&self, execution: ExecutionId, step: Step, reason: &str) -> Result<(), Error> {
        tracing::warn!(execution_id = %execution, reason, "request refused");
        self.end_record(execution, step, reason, false).await
    }

    /// Publishes the end of a record that nobody else will end; returns once it is stored.
    async fn end_record(
        &self,
        execution: ExecutionId,
        step: Step,
        reason: &str,
        has_exited: bool,
    ) -> Result<(), Error> {
        let publisher = Publisher::new(&self.bus, PublisherOptions::default());
        let event = |phase| LifecycleEvent {
            schema_version: version::LIFECYCLE,
            execution_id: execution,
            node: Some(self.node.clone()),
            unix_ns: system_unix_ns(),
            phase,
        };
        // How it ended is known then, and only what came after is not.
        if !has_exited {
            let outcome = Outcome { exit_code: 125, error: Some(reason.to_owned()), ..Outcome::default() };
            let failed = Failed { step, error: reason.to_owned(), outcome };
            publisher.publish_lifecycle(&event(Phase::Failed(failed)), None).await?;
        }
        let cleaned = Cleaned { errors: Vec::new() };
        publisher.publish_lifecycle(&event(Phase::Cleaned(cleaned)), None).await?;
        publisher.flush().await
    }
}

/// The step at which a record broke off.
fn step_after(record: &[LifecycleEvent]) -> Step {
    let last = record.iter().map(|event| event.phase.name()).max();
    match last {
        None | Some(PhaseName::Requested | PhaseName::Admitted) => Step::Claim,
        Some(PhaseName::Claimed) => Step::Prepare,
        Some(PhaseName::Prepared) => Step::Start,
        Some(PhaseName::Started) => Step::Attach,
        Some(PhaseName::Profiled | PhaseName::Unprofiled) => Step::Wait,
        Some(_) => Step::Seal,
    }
}
