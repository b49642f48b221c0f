//! Where an execution's events go: the in-process fold, the bus, or both.

use async_trait::async_trait;
use glasshouse_schema::{EncodedFrame, LifecycleEvent};

/// An event that could not be handed on.
#[derive(Debug, thiserror::Error)]
#[error("{what} could not be stored: {reason}")]
pub struct SinkError {
    /// Which event.
    pub what: String,
    /// Why.
    pub reason: String,
}

/// Takes the events of executions. Shared by the engine (lifecycle) and the probes' drain threads (frames).
///
/// A sink that fails never stops an execution: the engine notes the error in its report and goes on.
#[async_trait]
pub trait EventSink: Send + Sync {
    /// Takes a lifecycle event. Returns when it is on its way in order; [`EventSink::flush`] says it arrived.
    async fn lifecycle(&self, event: &LifecycleEvent) -> Result<(), SinkError>;

    /// Takes a frame, from a plain thread. May block while the sink is full: the kernel's ring buffers then fill and
    /// the probe counts what they lose, so nothing is lost without a count.
    fn frame(&self, frame: EncodedFrame);

    /// Returns when everything taken so far is stored, or says what is not.
    async fn flush(&self) -> Result<(), SinkError>;

    /// Takes the claim on the execution before anything is started and gives its epoch. Before it is held, and after it was
    /// refused, the engine hands no event of the execution to the sink. The default is for sinks
    /// with nobody to compete with.
    async fn claim(
        &self,
        _execution: glasshouse_schema::ExecutionId,
        _node: &glasshouse_schema::NodeId,
    ) -> Result<u64, SinkError> {
        Ok(1)
    }
}
