//! A sink that remembers.

use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use glasshouse_execution::sink::{EventSink, SinkError};
use glasshouse_schema::EncodedFrame;
use glasshouse_schema::lifecycle::{LifecycleEvent, Phase, PhaseName};
use tokio::sync::watch;

/// Keeps every event, optionally failing.
#[derive(Default)]
pub struct RecordingSink {
    refuses: bool,
    claimed_by_another: Option<String>,
    events: Mutex<Vec<LifecycleEvent>>,
    frames: Mutex<Vec<EncodedFrame>>,
    flushes: watch::Sender<usize>,
}

impl RecordingSink {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// One that refuses every event and every flush.
    pub fn refusing() -> Self {
        Self { refuses: true, ..Self::default() }
    }

    /// One whose claim somebody else has, with the reason.
    pub fn claimed_by_another(reason: &str) -> Self {
        Self { claimed_by_another: Some(reason.to_owned()), ..Self::default() }
    }

    /// The events so far.
    pub fn events(&self) -> Vec<LifecycleEvent> {
        locked(&self.events).clone()
    }

    /// Their phases.
    pub fn phases(&self) -> Vec<PhaseName> {
        locked(&self.events).iter().map(|event| event.phase.name()).collect()
    }

    /// The phase of that name, if it was published.
    pub fn phase(&self, name: PhaseName) -> Option<Phase> {
        locked(&self.events).iter().map(|event| event.phase.clone()).find(|phase| phase.name() == name)
    }

    /// The frames so far.
    pub fn frames(&self) -> Vec<EncodedFrame> {
        locked(&self.frames).clone()
    }

    /// Returns once the record was flushed, which is the last that an engine does.
    pub async fn flushed(&self) {
        // The sender lives in self, so this cannot fail before it is true.
        let _ = self.flushes.subscribe().wait_for(|flushes| *flushes > 0).await;
    }
}

fn locked<T>(list: &Mutex<Vec<T>>) -> MutexGuard<'_, Vec<T>> {
    list.lock().unwrap_or_else(PoisonError::into_inner)
}

#[async_trait]
impl EventSink for RecordingSink {
    async fn lifecycle(&self, event: &LifecycleEvent) -> Result<(), SinkError> {
        locked(&self.events).push(event.clone());
        match self.refuses {
            true => Err(SinkError {
                what: event.phase.name().as_str().to_owned(),
                reason: "the sink refuses".into(),
            }),
            false => Ok(()),
        }
    }

    fn frame(&self, frame: EncodedFrame) {
        locked(&self.frames).push(frame);
    }

    async fn flush(&self) -> Result<(), SinkError> {
        self.flushes.send_modify(|flushes| *flushes += 1);
        match self.refuses {
            true => Err(SinkError { what: "flush".into(), reason: "the sink refuses".into() }),
            false => Ok(()),
        }
    }

    async fn claim(
        &self,
        _: glasshouse_schema::ExecutionId,
        _: &glasshouse_schema::NodeId,
    ) -> Result<u64, SinkError> {
        match &self.claimed_by_another {
            Some(reason) => Err(SinkError { what: "the claim".into(), reason: reason.clone() }),
            None => Ok(1),
        }
    }
}
