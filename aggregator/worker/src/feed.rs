//! The reader on a task of its own: opening it may take longer than the worker has between two of its other duties, and a
//! reader that is cancelled while it opens begins again.

use glasshouse_nats::{EventReader, StoredMessage};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::Error;

/// How many events are read ahead.
const AHEAD: usize = 64;

/// Events in the stream's order. Dropping it ends the reader.
pub(crate) struct Feed {
    events: mpsc::Receiver<Result<StoredMessage, glasshouse_nats::Error>>,
    task: JoinHandle<()>,
}

impl Feed {
    pub(crate) fn new(mut reader: EventReader) -> Self {
        let (sender, events) = mpsc::channel(AHEAD);
        let task = tokio::spawn(async move {
            loop {
                let next = reader.next().await;
                let is_over = next.is_err();
                if sender.send(next).await.is_err() || is_over {
                    return;
                }
            }
        });
        Self { events, task }
    }

    /// The next event. Safe to cancel.
    pub(crate) async fn next(&mut self) -> Result<StoredMessage, Error> {
        match self.events.recv().await {
            Some(next) => Ok(next?),
            None => Err(Error::ReaderGone),
        }
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.task.abort();
    }
}
