//! The enforcement hook: what a node does about a policy's answer while an execution runs. The default does nothing.

use async_trait::async_trait;
use glasshouse_schema::lifecycle::LifecycleEvent;

use crate::spec::ExecutionSpec;

/// Acts on executions of its node. Every method has a default that lets everything pass.
#[async_trait]
pub trait Enforcement: Send + Sync {
    /// Its name in logs.
    fn name(&self) -> &'static str;

    /// Asked at the `admit` step. `Err` refuses the execution with the reason.
    async fn admit(&self, _spec: &ExecutionSpec) -> Result<(), String> {
        Ok(())
    }

    /// Told of every lifecycle event after it was handed to the sink.
    async fn observe(&self, _event: &LifecycleEvent) {}
}

/// The default: no enforcement.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoEnforcement;

#[async_trait]
impl Enforcement for NoEnforcement {
    fn name(&self) -> &'static str {
        "none"
    }
}
