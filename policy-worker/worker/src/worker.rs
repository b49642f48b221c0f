//! The worker's loop. Every receipt ends in exactly one of: acknowledged (all verdicts stored), terminated (a dead letter
//! is stored), or given back (the bus has a passing problem).

use std::collections::BTreeSet;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use glasshouse_eval::Policy;
use glasshouse_nats::{
    Bus, Delivery, Document, ErrorKind, Outcome, POLICY_WORKERS, Publisher, PublisherOptions, ReceiptConsumer,
};
use glasshouse_schema::dead::{DeadKind, DeadLetter};
use glasshouse_schema::{Digest, ExecutionId, Receipt, Verdict, headers, subject};
use tracing::Instrument;

use crate::Error;

/// How long a receipt rests that a passing problem of the bus gave back.
const REST: Duration = Duration::from_secs(2);

/// How long the receipt in hand may take once the worker is to stop; after that it goes back to the queue.
const STOP_WITHIN: Duration = Duration::from_secs(5);

/// A policy worker on a bus.
pub struct Worker {
    bus: Bus,
    name: String,
    policies: Vec<Arc<Policy>>,
    receipts: ReceiptConsumer,
    publisher: Publisher,
}

impl std::fmt::Debug for Worker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Worker").field("name", &self.name).field("policies", &self.policies.len()).finish()
    }
}

/// What is in the way of a receipt.
enum Problem {
    /// It can never be judged.
    Poison(String),
    /// The bus: passing, or for good.
    Bus(glasshouse_nats::Error),
    /// The worker itself.
    Own(Error),
}

impl From<glasshouse_nats::Error> for Problem {
    fn from(error: glasshouse_nats::Error) -> Self {
        match error.kind() {
            ErrorKind::Poison => Self::Poison(error.to_string()),
            ErrorKind::Retryable | ErrorKind::Fatal => Self::Bus(error),
        }
    }
}

impl Worker {
    /// Joins the workers that share the queue of receipts.
    pub async fn start(bus: &Bus, name: String, policies: Vec<Policy>) -> Result<Self, Error> {
        check(&policies)?;
        for policy in &policies {
            let reference = policy.reference();
            tracing::info!(policy = %reference.name, digest = %reference.digest, rules = policy.post_rules(), "policy loaded");
        }
        Ok(Self {
            bus: bus.clone(),
            name,
            policies: policies.into_iter().map(Arc::new).collect(),
            receipts: ReceiptConsumer::join(bus, POLICY_WORKERS).await?,
            publisher: Publisher::new(bus, PublisherOptions::default()),
        })
    }

    /// Judges until `shutdown` resolves; the receipt in hand is finished first, unless the bus does not take its verdicts
    /// within five seconds: then it goes back to the queue.
    pub async fn run(mut self, shutdown: impl Future<Output = ()>) -> Result<(), Error> {
        let mut shutdown = pin!(shutdown);
        loop {
            let delivery = tokio::select! {
                biased;
                () = &mut shutdown => return Ok(()),
                delivery = self.receipts.next() => delivery?,
            };
            let mut handling = pin!(self.handle(delivery));
            tokio::select! {
                biased;
                result = &mut handling => {
                    result?;
                    continue;
                }
                () = &mut shutdown => {}
            }
            return match tokio::time::timeout(STOP_WITHIN, handling).await {
                Ok(result) => result,
                Err(_) => {
                    tracing::warn!(
                        worker = self.name,
                        "policy worker stopped with a receipt in hand, which comes again"
                    );
                    Ok(())
                }
            };
        }
    }

    /// Brings one receipt to its end; an error ends the worker and gives the receipt back.
    async fn handle(&self, delivery: Delivery) -> Result<(), Error> {
        let (subject, stream_seq) = (delivery.message().subject.clone(), delivery.message().stream_seq);
        let ended = match self.judge(&delivery).await {
            Ok(()) => delivery.ack().await,
            Err(Problem::Poison(reason)) => match self.set_aside(&delivery, DeadKind::Receipt, &reason).await
            {
                Ok(()) => {
                    tracing::warn!(subject, stream_seq, reason, "receipt set aside as a dead letter");
                    delivery.term(&reason).await
                }
                Err(error) => self.give_back(delivery, error).await?,
            },
            Err(Problem::Bus(error)) => self.give_back(delivery, error).await?,
            Err(Problem::Own(error)) => return Err(error),
        };
        if let Err(error) = ended {
            // It comes again, and everything done for it is there already.
            tracing::warn!(subject, stream_seq, %error, "receipt not acknowledged, it will come again");
        }
        Ok(())
    }

    /// Gives a receipt back for a problem that passes; one that does not ends the worker.
    async fn give_back(
        &self,
        delivery: Delivery,
        error: glasshouse_nats::Error,
    ) -> Result<Result<(), glasshouse_nats::Error>, Error> {
        match error.kind() {
            ErrorKind::Fatal => Err(error.into()),
            ErrorKind::Retryable | ErrorKind::Poison => {
                tracing::warn!(subject = delivery.message().subject, %error, "receipt given back");
                Ok(delivery.nak(REST).await)
            }
        }
    }

    async fn judge(&self, delivery: &Delivery) -> Result<(), Problem> {
        let document = delivery.document().await?;
        let (receipt, execution) = read(&document).map_err(Problem::Poison)?;
        let receipt = Arc::new(receipt);
        for (index, policy) in self.policies.iter().enumerate() {
            if index > 0 {
                delivery.progress().await?;
            }
            let parent = glasshouse_nats::trace::traceparent(delivery.headers());
            let span = tracing::info_span!(
                "verdict",
                execution_id = %execution,
                policy = %policy.reference().name,
                decision = tracing::field::Empty,
                worker = self.name,
                stream_seq = document.message.stream_seq,
            );
            if let Some(parent) = parent {
                glasshouse_telemetry::set_parent(&span, parent);
            }
            self.judge_by(policy, &receipt, execution, delivery, &document).instrument(span).await?;
        }
        Ok(())
    }

    async fn judge_by(
        &self,
        policy: &Arc<Policy>,
        receipt: &Arc<Receipt>,
        execution: ExecutionId,
        delivery: &Delivery,
        document: &Document,
    ) -> Result<(), Problem> {
        let verdict = evaluate(policy.clone(), receipt.clone(), document.digest).await?;
        let decision = verdict.decision.as_str();
        tracing::Span::current().record("decision", decision);
        let bytes = verdict.encode().map_err(|error| Problem::Own(error.into()))?;
        let policy = &verdict.policy;
        let traceparent = self.traceparent(delivery);
        let outcome = self
            .publisher
            .publish_verdict(
                execution,
                (&policy.name, policy.digest),
                &bytes,
                &self.name,
                traceparent.as_deref(),
            )
            .await?;
        match outcome {
            Outcome::Stored => {
                tracing::info!(execution_id = %execution, policy = %policy.name, decision, "verdict published");
            }
            Outcome::AlreadyThere { same: true, .. } => {
                tracing::debug!(execution_id = %execution, policy = %policy.name, "verdict was there already");
            }
            Outcome::AlreadyThere { same: false, stored_digest } => {
                let reason = format!(
                    "two verdicts of policy `{}` over execution {execution} differ: {stored_digest} is stored, {} came now",
                    policy.name,
                    Digest::of(&bytes)
                );
                tracing::error!(
                    execution_id = %execution,
                    policy = %policy.name,
                    stored = %stored_digest,
                    "two verdicts over one receipt differ; the stored one stands"
                );
                self.set_aside_body(delivery, DeadKind::Verdict, &reason, &bytes).await?;
            }
        }
        Ok(())
    }

    /// The current span, or the trace that the receipt came with where this process exports none.
    fn traceparent(&self, delivery: &Delivery) -> Option<String> {
        glasshouse_telemetry::current_traceparent()
            .or_else(|| glasshouse_nats::trace::traceparent(delivery.headers()).map(str::to_owned))
    }

    async fn set_aside(
        &self,
        delivery: &Delivery,
        kind: DeadKind,
        reason: &str,
    ) -> Result<(), glasshouse_nats::Error> {
        self.set_aside_body(delivery, kind, reason, &delivery.message().payload).await
    }

    async fn set_aside_body(
        &self,
        delivery: &Delivery,
        kind: DeadKind,
        reason: &str,
        body: &[u8],
    ) -> Result<(), glasshouse_nats::Error> {
        let message = delivery.message();
        let at = (message.stream.as_str(), message.stream_seq);
        let letter = DeadLetter::new(kind, reason, &message.subject, at, body, &self.name);
        // A publisher of its own: one that once gave up takes nothing more.
        let publisher = Publisher::new(&self.bus, PublisherOptions::default());
        publisher.publish_dead(&letter, self.traceparent(delivery).as_deref()).await?;
        publisher.flush().await
    }
}

/// Whether each policy has its own place for verdicts.
pub(crate) fn check(policies: &[Policy]) -> Result<(), Error> {
    let mut seen = BTreeSet::new();
    for policy in policies {
        let reference = policy.reference();
        if !seen.insert((reference.name.clone(), reference.digest)) {
            return Err(Error::PolicyTwice(reference.name));
        }
    }
    Ok(())
}

/// Evaluation may take a second over a large receipt: it is kept off the threads that talk to the bus.
async fn evaluate(policy: Arc<Policy>, receipt: Arc<Receipt>, digest: Digest) -> Result<Verdict, Problem> {
    match tokio::task::spawn_blocking(move || policy.evaluate_post(&receipt, digest)).await {
        Ok(Ok(verdict)) => Ok(verdict),
        Ok(Err(error)) => Err(Problem::Poison(error.to_string())),
        Err(error) => Err(Problem::Poison(format!("the evaluation failed: {error}"))),
    }
}

/// The receipt in a document whose digest is verified.
fn read(document: &Document) -> Result<(Receipt, ExecutionId), String> {
    if document.message.header(headers::DIGEST).is_none() {
        return Err(format!("the message has no {} header", headers::DIGEST));
    }
    let receipt = Receipt::decode(&document.body).map_err(|error| error.to_string())?;
    let execution: ExecutionId =
        receipt.execution_id.parse().map_err(|error| format!("its execution id cannot be used: {error}"))?;
    let expected = subject::receipt(execution);
    match document.message.subject == expected {
        true => Ok((receipt, execution)),
        false => Err(format!("it is about execution {execution}, which belongs under {expected}")),
    }
}
