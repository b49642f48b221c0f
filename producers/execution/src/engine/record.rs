//! The published record of one execution.

use std::collections::VecDeque;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::FutureExt;
use glasshouse_schema::ids::{ExecutionId, NodeId};
use glasshouse_schema::lifecycle::{LifecycleEvent, Phase, PhaseName};
use glasshouse_schema::version;

use super::UnixClock;
use crate::enforcement::Enforcement;
use crate::sink::{EventSink, SinkError};

/// Publishes the phases of one execution, in order, and keeps what the sink could not take.
///
/// Nothing is published before [`Record::claimed`]: without the claim the execution is somebody else's, whose record
/// would be taken for ended. What is told until then waits, and what is never claimed is never published.
pub(super) struct Record {
    pub(super) execution: ExecutionId,
    pub(super) node: NodeId,
    pub(super) sink: Arc<dyn EventSink>,
    pub(super) enforcement: Arc<dyn Enforcement>,
    pub(super) unix_ns: UnixClock,
    pub(super) told: Mutex<Told>,
}

/// What was said so far.
#[derive(Default)]
pub(super) struct Told {
    pub(super) phases: Vec<Phase>,
    /// Not handed on yet.
    waiting: VecDeque<LifecycleEvent>,
    is_claimed: bool,
    pub(super) sink_errors: Vec<SinkError>,
}

impl Record {
    /// Publishes a phase, once the claim is held. A sink or an enforcement that fails or panics never stops the
    /// execution.
    pub(super) async fn publish(&self, phase: Phase) {
        let event = LifecycleEvent {
            schema_version: version::LIFECYCLE,
            execution_id: self.execution,
            node: Some(self.node.clone()),
            unix_ns: (self.unix_ns)(),
            phase: phase.clone(),
        };
        {
            let mut told = self.told();
            told.phases.push(phase);
            told.waiting.push_back(event);
            if !told.is_claimed {
                return;
            }
        }
        // One is taken off the list once it was handed on: a run that is dropped in between hands it on again.
        loop {
            let next = self.told().waiting.front().cloned();
            let Some(event) = next else { return };
            self.hand_on(&event).await;
            self.told().waiting.pop_front();
        }
    }

    /// The claim is held: this record is ours to write. What waited goes out with the next phase.
    pub(super) fn claimed(&self) {
        self.told().is_claimed = true;
    }

    async fn hand_on(&self, event: &LifecycleEvent) {
        let name = event.phase.name();
        match caught(self.sink.lifecycle(event)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => self.note(error),
            Err(panic) => {
                self.note(SinkError { what: format!("the event `{}`", name.as_str()), reason: panic })
            }
        }
        if let Err(panic) = caught(self.enforcement.observe(event)).await {
            tracing::error!(enforcement = self.enforcement.name(), phase = name.as_str(), error = %panic, "enforcement panicked");
        }
    }

    /// Returns when everything published is stored.
    pub(super) async fn flush(&self) {
        match caught(self.sink.flush()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => self.note(error),
            Err(panic) => self.note(SinkError { what: "the end of the record".into(), reason: panic }),
        }
    }

    pub(super) fn has(&self, phase: PhaseName) -> bool {
        self.told().phases.iter().any(|told| told.name() == phase)
    }

    pub(super) fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, error: SinkError) {
        tracing::info!(execution_id = %self.execution, error = %error, "an event could not be stored");
        self.told().sink_errors.push(error);
    }
}

/// Runs a future of somebody else's code; a panic in it becomes an error with its message.
pub(super) async fn caught<T>(future: impl Future<Output = T>) -> Result<T, String> {
    AssertUnwindSafe(future).catch_unwind().await.map_err(|panic| {
        let message = panic
            .downcast_ref::<&str>()
            .map(|message| (*message).to_owned())
            .or_else(|| panic.downcast_ref::<String>().cloned());
        format!("it panicked: {}", message.as_deref().unwrap_or("no message"))
    })
}
