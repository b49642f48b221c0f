//! Readers on tasks of their own: opening one may take longer than the worker has between two of its other duties, and a
//! reader that is cancelled while it opens begins again. All of them end in one queue.

use std::collections::{BTreeSet, VecDeque};

use glasshouse_nats::{EventReader, StoredMessage};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// How many messages are read ahead, by all readers together.
const AHEAD: usize = 64;

/// A message of a reader, and how many more it has.
pub(crate) struct Arrival {
    pub(crate) message: StoredMessage,
    pub(crate) pending: Option<u64>,
}

type Incoming = (u64, Result<Arrival, glasshouse_nats::Error>);

/// Where all readers end.
pub(crate) struct Inbox {
    sender: mpsc::Sender<Incoming>,
    receiver: mpsc::Receiver<Incoming>,
    /// What has arrived and was not taken.
    arrived: VecDeque<Incoming>,
    /// Kept for its allocation.
    batch: Vec<Incoming>,
    last_id: u64,
}

impl Inbox {
    pub(crate) fn new() -> Self {
        let (sender, receiver) = mpsc::channel(AHEAD);
        Self { sender, receiver, arrived: VecDeque::new(), batch: Vec::new(), last_id: 0 }
    }

    /// Starts a reader and gives the number under which its messages come.
    pub(crate) fn read(&mut self, mut reader: EventReader) -> Reader {
        self.last_id += 1;
        let (id, sender) = (self.last_id, self.sender.clone());
        let task = tokio::spawn(async move {
            loop {
                let next = reader.next().await;
                let is_over = next.is_err();
                let arrival = next.map(|message| Arrival { message, pending: reader.pending() });
                if sender.send((id, arrival)).await.is_err() || is_over {
                    return;
                }
            }
        });
        Reader { id, task }
    }

    /// Waits until something has arrived. Safe to cancel.
    pub(crate) async fn arrives(&mut self) {
        if self.arrived.is_empty() {
            // The queue has a sender of its own, so it never ends.
            self.receiver.recv_many(&mut self.batch, AHEAD).await;
            self.arrived.extend(self.batch.drain(..));
        }
    }

    /// What arrived first, and of which reader; of one that was dropped something may still come.
    pub(crate) fn pop(&mut self) -> Option<Incoming> {
        self.arrived.pop_front()
    }
}

/// A reader on its task. Dropping it ends it.
pub(crate) struct Reader {
    pub(crate) id: u64,
    task: JoinHandle<()>,
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A reader of GH_EVENTS for some ranges.
pub(crate) struct Feed {
    pub(crate) reader: Reader,
    pub(crate) ranges: BTreeSet<u16>,
    /// It still asks for ranges that are no longer worked on.
    pub(crate) is_wide: bool,
    /// Of its ranges everything before this sequence was handled.
    pub(crate) position: u64,
    /// The message before that, of whatever range.
    pub(crate) last: Option<StoredMessage>,
    /// Nothing more was waiting when it was asked last.
    pub(crate) is_caught_up: bool,
    /// When something came last.
    pub(crate) heard: Instant,
}
