//! The policy workers' queue: one durable consumer of GH_RECEIPTS that any number of workers share.

use std::time::Duration;

use async_nats::jetstream::consumer::pull::{Config, Stream};
use async_nats::jetstream::consumer::{AckPolicy, Consumer};
use futures::StreamExt;

use crate::connect::Bus;
use crate::delivery::Delivery;
use crate::error::{Error, ErrorKind};
use crate::retry::Backoff;

/// The durable consumer that policy workers share.
pub const POLICY_WORKERS: &str = "policy-workers";

/// How long a worker may keep a receipt without a word; [`Delivery::progress`] starts it anew.
const ACK_WAIT: Duration = Duration::from_secs(30);
/// Small, so that one worker does not hoard what others could do.
const BATCH: usize = 16;

/// Receipts for this worker.
pub struct ReceiptConsumer {
    bus: Bus,
    durable: String,
    messages: Option<Stream>,
    backoff: Backoff,
}

impl std::fmt::Debug for ReceiptConsumer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReceiptConsumer").field("durable", &self.durable).finish()
    }
}

impl ReceiptConsumer {
    /// Joins the workers of a durable consumer ([`POLICY_WORKERS`], or a subscriber's own name), which is created if it is
    /// missing and used as it is if it is there.
    pub async fn join(bus: &Bus, durable: &str) -> Result<Self, Error> {
        let mut consumer = Self {
            bus: bus.clone(),
            durable: durable.to_owned(),
            messages: None,
            backoff: Backoff::forever(),
        };
        // Opened here, so that what is wrong now is said now.
        consumer.open().await?;
        Ok(consumer)
    }

    /// The next receipt. Waits for ever if none comes, also while the server is away. Safe to cancel.
    pub async fn next(&mut self) -> Result<Delivery, Error> {
        loop {
            let Some(messages) = self.messages.as_mut() else {
                match self.open().await {
                    Ok(()) => {}
                    Err(error) if error.kind() == ErrorKind::Retryable => self.pause(&error).await,
                    Err(error) => return Err(error),
                }
                continue;
            };
            match messages.next().await {
                Some(Ok(message)) => {
                    self.backoff.reset();
                    return Delivery::new(&self.bus, message);
                }
                Some(Err(error)) => {
                    self.messages = None;
                    let error = Error::broker("receive from", &self.durable, error);
                    self.pause(&error).await;
                }
                None => self.messages = None,
            }
        }
    }

    async fn pause(&mut self, error: &Error) {
        tracing::warn!(consumer = self.durable, %error, "receiving interrupted, trying again");
        self.backoff.wait().await;
    }

    async fn open(&mut self) -> Result<(), Error> {
        let config = Config {
            durable_name: Some(self.durable.clone()),
            ack_policy: AckPolicy::Explicit,
            ack_wait: ACK_WAIT,
            // No limit: a receipt that cannot be handled is set aside by the worker, with a reason, not dropped in silence here.
            max_deliver: -1,
            max_ack_pending: 1024,
            ..Config::default()
        };
        let stream = self.bus.stream(crate::RECEIPTS).await?;
        let failed = |error: async_nats::Error| Error::broker("open consumer", &self.durable, error);
        let consumer: Consumer<Config> = stream
            .get_or_create_consumer(&self.durable, config)
            .await
            .map_err(|error| failed(error.into()))?;
        let messages = consumer
            .stream()
            .max_messages_per_batch(BATCH)
            .expires(Duration::from_secs(20))
            .heartbeat(Duration::from_secs(5))
            .messages()
            .await
            .map_err(|error| failed(error.into()))?;
        self.messages = Some(messages);
        Ok(())
    }
}
