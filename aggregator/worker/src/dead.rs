//! Dead letters on their way: kept until they are stored, so that a publisher that gave up costs none.

use std::collections::VecDeque;
use std::time::Duration;

use glasshouse_nats::{Bus, ErrorKind, Publisher, PublisherOptions};
use glasshouse_schema::dead::DeadLetter;

use crate::Error;

/// How many letters may be unstored before the worker waits for them.
const MAX_WAITING: usize = 256;
/// How long the bus rests after it took none for a publisher's whole deadline.
const REST: Duration = Duration::from_millis(500);

/// How long one publisher tries; the next one takes over.
const DEADLINE: Duration = Duration::from_secs(5);

pub(crate) struct DeadLetters {
    bus: Bus,
    publisher: Publisher,
    /// Letters, each with its trace, that are not known to be stored.
    waiting: VecDeque<(DeadLetter, Option<String>)>,
}

impl DeadLetters {
    pub(crate) fn new(bus: &Bus) -> Self {
        let publisher = publisher(bus);
        Self { bus: bus.clone(), publisher, waiting: VecDeque::new() }
    }

    /// Takes a letter. Fails only if no letter can be stored without somebody's help.
    pub(crate) async fn push(&mut self, letter: DeadLetter, trace: Option<String>) -> Result<(), Error> {
        if self.waiting.len() >= MAX_WAITING {
            self.flush().await?;
        }
        let taken = self.publisher.publish_dead(&letter, trace.as_deref()).await;
        self.waiting.push_back((letter, trace));
        match taken {
            Ok(()) => Ok(()),
            Err(error) => self.recover(error).await,
        }
    }

    /// Waits until every letter is stored.
    pub(crate) async fn flush(&mut self) -> Result<(), Error> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        match self.publisher.flush().await {
            Ok(()) => {
                self.waiting.clear();
                Ok(())
            }
            Err(error) => self.recover(error).await,
        }
    }

    /// A publisher that gave up takes nothing more: a fresh one publishes every waiting letter again. What was stored
    /// already is there once, by its message id.
    async fn recover(&mut self, mut error: glasshouse_nats::Error) -> Result<(), Error> {
        loop {
            if error.kind() == ErrorKind::Fatal {
                return Err(error.into());
            }
            tracing::warn!(letters = self.waiting.len(), %error, "dead letters not stored, trying again");
            tokio::time::sleep(REST).await;
            match self.again().await {
                Ok(()) => return Ok(()),
                Err(next) => error = next,
            }
        }
    }

    async fn again(&mut self) -> Result<(), glasshouse_nats::Error> {
        self.publisher = publisher(&self.bus);
        while let Some((letter, trace)) = self.waiting.front() {
            let stored = match self.publisher.publish_dead(letter, trace.as_deref()).await {
                Ok(()) => self.publisher.flush().await,
                Err(error) => Err(error),
            };
            match stored {
                Ok(()) => {}
                // One at a time, so that this letter and no other is the one that is never taken.
                Err(error) if error.kind() == ErrorKind::Poison => {
                    tracing::error!(subject = letter.subject, stream_seq = letter.stream_seq, reason = letter.reason, %error, "dead letter can never be stored");
                    self.publisher = publisher(&self.bus);
                }
                Err(error) => return Err(error),
            }
            self.waiting.pop_front();
        }
        Ok(())
    }
}

fn publisher(bus: &Bus) -> Publisher {
    Publisher::new(bus, PublisherOptions { deadline: DEADLINE, ..PublisherOptions::default() })
}
