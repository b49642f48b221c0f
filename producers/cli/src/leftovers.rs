//! What earlier runs left in the spool is sent by later ones, beside what they do themselves.
//!
//! Bounded by the life of the run and a few messages on their way; nobody waits for it. Each directory has one process at a time,
//! by its lock, and what was not sent, or not noted as sent, the next run sends.

use std::path::{Path, PathBuf};

use glasshouse_nats::{
    Bus, Spool, SpoolError, SpoolOptions, SpooledOptions, SpooledPublisher, StreamPosition,
};
use glasshouse_runner::spool::{drain, executions};
use tokio::sync::watch;

/// How many messages may be on their way: the run's own come first.
const IN_FLIGHT: usize = 8;

/// Sends as long as it is there.
pub(crate) struct Leftovers {
    stop: watch::Sender<bool>,
}

impl Leftovers {
    /// Sends what lies in the spool `dir` for the stream `events` of this bus, the oldest execution first.
    pub(crate) fn send(bus: &Bus, events: &StreamPosition, dir: PathBuf) -> Self {
        let (stop, stopping) = watch::channel(false);
        tokio::spawn(send_all(bus.clone(), events.created_unix_ns, dir, stopping));
        Self { stop }
    }

    /// Sends nothing more, and notes what was sent. Does not wait for that.
    pub(crate) fn stop(self) {
        self.stop.send_replace(true);
    }
}

async fn send_all(bus: Bus, events: i128, dir: PathBuf, mut stopping: watch::Receiver<bool>) {
    let found = match executions(&dir) {
        Ok(found) => found,
        Err(error) => return tracing::warn!(%error, "the spool is not looked through"),
    };
    for (execution, dir) in found {
        if *stopping.borrow() {
            return;
        }
        // Opening may wait for who just looks at it, and reads.
        let opened = tokio::task::spawn_blocking(move || open(&dir, events)).await;
        let spool = match opened {
            Ok(Ok(Some(spool))) => spool,
            Ok(Ok(None) | Err(SpoolError::InUse { .. })) => continue,
            Ok(Err(error)) => {
                tracing::warn!(execution_id = %execution, %error, "what an earlier run left is not sent");
                continue;
            }
            // The runtime is shutting down.
            Err(_) => return,
        };
        let all = spool.leftover().messages;
        let options = SpooledOptions { max_in_flight: IN_FLIGHT, ..SpooledOptions::default() };
        let publisher = SpooledPublisher::new(&bus, spool, options);
        tokio::select! {
            biased;
            // An error means that `Leftovers` is gone.
            _ = stopping.wait_for(|stop| *stop) => {}
            // What went wrong is said by `close`, too.
            _ = drain(&publisher, all) => {}
        }
        match publisher.close().await {
            Ok(left) if left.messages == 0 => {
                tracing::info!(execution_id = %execution, sent = all, "sent what an earlier run left");
            }
            // What the server does not take of one it does not take of the next.
            Ok(_) => return,
            Err(error) => {
                return tracing::warn!(execution_id = %execution, %error, "what an earlier run left is not sent");
            }
        }
    }
}

/// The spool in a directory, if it is for this stream and nobody has it. One of another version of this program, which notes no
/// stream, is left to `glasshouse spool send`, which is told where to.
fn open(dir: &Path, events: i128) -> Result<Option<Spool>, SpoolError> {
    let (_, in_use) = Spool::peek(dir)?;
    if in_use || Spool::destination(dir) != Some(events) {
        return Ok(None);
    }
    Spool::open(dir, SpoolOptions::default()).map(Some)
}
