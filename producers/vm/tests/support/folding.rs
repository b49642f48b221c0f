//! A sink that folds what an execution says to its receipt, and takes a refusal of the fold as a failure of the test.

use std::sync::Mutex;

use async_trait::async_trait;
use glasshouse_execution::sink::{EventSink, SinkError};
use glasshouse_fold::ExecutionFold;
use glasshouse_schema::ids::ExecutionId;
use glasshouse_schema::lifecycle::{Closed, LifecycleEvent, Phase};
use glasshouse_schema::{EncodedFrame, Receipt};

pub(crate) struct Folding {
    fold: Mutex<ExecutionFold>,
    frames: Mutex<u64>,
}

impl Folding {
    pub(crate) fn new(execution: ExecutionId) -> Self {
        Self { fold: Mutex::new(ExecutionFold::new(execution)), frames: Mutex::new(0) }
    }

    /// The receipt of an execution that is over, and how many frames came.
    pub(crate) fn receipt(&self, execution_id: ExecutionId) -> (Receipt, u64) {
        let mut fold = self.fold.lock().unwrap().clone();
        let reason = fold.closing().expect("the execution is over");
        fold.lifecycle(&LifecycleEvent {
            schema_version: glasshouse_schema::version::LIFECYCLE,
            execution_id,
            node: None,
            unix_ns: 0,
            phase: Phase::Closed(Closed { reason }),
        })
        .unwrap();
        (fold.receipt().expect("it was profiled"), *self.frames.lock().unwrap())
    }
}

#[async_trait]
impl EventSink for Folding {
    async fn lifecycle(&self, event: &LifecycleEvent) -> Result<(), SinkError> {
        self.fold.lock().unwrap().lifecycle(event).unwrap();
        Ok(())
    }

    fn frame(&self, frame: EncodedFrame) {
        *self.frames.lock().unwrap() += 1;
        self.fold.lock().unwrap().frame(&frame.bytes, Some((&frame.node, frame.vantage))).unwrap();
    }

    async fn flush(&self) -> Result<(), SinkError> {
        Ok(())
    }
}
