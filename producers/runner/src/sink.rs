//! Where `run` sends events: the fold in this process always, and the bus when there is one.

use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use glasshouse_execution::{EventSink, SinkError};
use glasshouse_fold::{ExecutionFold, Rejected};
use glasshouse_schema::ids::{Digest, ExecutionId, NodeId};
use glasshouse_schema::lifecycle::{Closed, LifecycleEvent, Phase};
use glasshouse_schema::{EncodedFrame, Receipt, version};

use crate::bus::BusSink;

/// The same fold that an aggregator runs, in this process.
pub struct LocalFold {
    fold: Mutex<ExecutionFold>,
}

/// Why a receipt cannot be made here.
#[derive(Debug, thiserror::Error)]
pub enum CloseError {
    /// The end of the record was refused.
    #[error(transparent)]
    Refused(#[from] Rejected),
    /// The receipt has no canonical form.
    #[error(transparent)]
    NotCanonical(#[from] glasshouse_schema::canonical::CanonicalError),
}

/// A receipt with its canonical bytes.
pub struct LocalReceipt {
    /// The receipt.
    pub receipt: Receipt,
    /// Its canonical JSON.
    pub bytes: Vec<u8>,
    /// SHA-256 of the bytes.
    pub digest: Digest,
}

impl LocalFold {
    /// The fold of one execution.
    pub fn new(execution: ExecutionId) -> Self {
        Self { fold: Mutex::new(ExecutionFold::new(execution)) }
    }

    fn with<T>(&self, act: impl FnOnce(&mut ExecutionFold) -> T) -> T {
        act(&mut self.fold.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn lifecycle(&self, event: &LifecycleEvent) -> Result<(), SinkError> {
        self.with(|fold| fold.lifecycle(event)).map_err(|error| SinkError {
            what: format!("the `{}` event", event.phase.name().as_str()),
            reason: error.to_string(),
        })
    }

    fn frame(&self, frame: &EncodedFrame) {
        if let Err(error) = self.with(|fold| fold.frame(&frame.bytes, Some((&frame.node, frame.vantage)))) {
            tracing::error!(%error, seq = frame.seq, "a frame was refused by the fold");
        }
    }

    /// Closes the execution as an aggregator would, and gives its receipt; `None` when nothing was profiled.
    pub fn close(&self) -> Result<Option<LocalReceipt>, CloseError> {
        let receipt = self.with(|fold| {
            if let Some(reason) = fold.closing() {
                fold.lifecycle(&LifecycleEvent {
                    schema_version: version::LIFECYCLE,
                    execution_id: fold.execution(),
                    node: None,
                    unix_ns: 0,
                    phase: Phase::Closed(Closed { reason }),
                })?;
            }
            Ok::<_, CloseError>(fold.receipt())
        })?;
        let Some(receipt) = receipt else { return Ok(None) };
        let bytes = receipt.encode()?;
        let digest = Digest::of(&bytes);
        Ok(Some(LocalReceipt { receipt, bytes, digest }))
    }
}

/// The fold in this process when there will be a receipt, and the bus when there is one.
pub struct RunSink {
    /// The fold, when there will be a receipt.
    pub local: Option<LocalFold>,
    /// The bus, when there is one.
    pub bus: Option<BusSink>,
}

#[async_trait]
impl EventSink for RunSink {
    async fn lifecycle(&self, event: &LifecycleEvent) -> Result<(), SinkError> {
        let local = self.local.as_ref().map_or(Ok(()), |local| local.lifecycle(event));
        if let Some(bus) = &self.bus {
            bus.lifecycle(event).await;
        }
        local
    }

    fn frame(&self, frame: EncodedFrame) {
        if let Some(local) = &self.local {
            local.frame(&frame);
        }
        if let Some(bus) = &self.bus {
            bus.frame(frame);
        }
    }

    /// The receipt does not wait for the bus: `run` writes it first and flushes [`RunSink::bus`] then.
    async fn flush(&self) -> Result<(), SinkError> {
        Ok(())
    }

    async fn claim(&self, execution: ExecutionId, node: &NodeId) -> Result<u64, SinkError> {
        match &self.bus {
            Some(bus) => bus.claim(execution, node).await,
            None => Ok(1),
        }
    }
}
