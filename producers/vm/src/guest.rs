//! The controller of the vantage point inside a machine: boots it, attaches its probe, and seals its chain.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use glasshouse_execution::profiling::{
    Attachment, Capabilities, ProfilingController, ProfilingError, ProfilingSession, ProfilingTarget,
    SealedChain,
};
use glasshouse_execution::sink::EventSink;
use glasshouse_guest_link::{Attach, ToGuest};
use glasshouse_schema::ids::{Digest, Vantage};
use glasshouse_schema::lifecycle::Attached;

use crate::backend::Machine;
use crate::bridge::{Bridge, FRAME_BYTES_PER_SECOND, Pace};
use crate::session::Session;

/// How long a guest may take to load its programs, or to read its counters. An emulated one on a busy host takes seconds.
const ANSWERS_WITHIN: Duration = Duration::from_secs(60);

/// Watches from inside the machine of one [`crate::VmBackend`].
pub struct GuestController(pub(crate) Arc<Machine>);

async fn in_time<T>(
    what: &str,
    answer: impl Future<Output = Result<T, String>>,
) -> Result<T, ProfilingError> {
    match tokio::time::timeout(ANSWERS_WITHIN, answer).await {
        Ok(answer) => answer.map_err(ProfilingError::new),
        Err(_) => Err(ProfilingError::new(format!("the guest did not {what} within {ANSWERS_WITHIN:?}"))),
    }
}

#[async_trait]
impl ProfilingController for GuestController {
    fn name(&self) -> &'static str {
        "guest"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { vantage: Some(Vantage::Guest), concurrent: false }
    }

    /// Whether a guest can be watched only its own kernel tells, once it runs.
    async fn ready(&self) -> Result<(), ProfilingError> {
        Ok(())
    }

    async fn attach(
        &self,
        target: ProfilingTarget,
        sink: Arc<dyn EventSink>,
    ) -> Result<Attachment, ProfilingError> {
        let session = self.0.boot().await.map_err(|error| ProfilingError::new(error.to_string()))?;
        let bridge = Bridge {
            execution: target.execution,
            node: target.node.clone(),
            epoch: target.epoch,
            sink,
            next: 0,
            head: Digest::ZERO,
            is_sealed: false,
            pace: Pace::new(FRAME_BYTES_PER_SECOND),
        };
        let attach = Attach { node: target.node, epoch: target.epoch, lossless: target.lossless };
        session.attach(attach, bridge);
        let attached = in_time("attach its probe", session.until(|state| state.attached.clone())).await?;
        let attached = attached.map_err(|reason| {
            ProfilingError::new(format!("the guest's kernel cannot be watched: {reason}"))
        })?;
        // Which vantage point it is, is not the guest's to say.
        let attached = Attached { vantage: Vantage::Guest, ..attached };
        Ok(Attachment { attached, session: Box::new(Watched { machine: Arc::clone(&self.0), session }) })
    }
}

struct Watched {
    machine: Arc<Machine>,
    session: Session,
}

#[async_trait]
impl ProfilingSession for Watched {
    /// Ends the machine too, whatever came of the seal: whoever watches it from outside seals after us.
    async fn seal(self: Box<Self>) -> Result<SealedChain, ProfilingError> {
        self.session.ask(ToGuest::Seal);
        let sealed = in_time("seal its chain", self.session.until(|state| state.sealed.clone())).await;
        let off = self.machine.power_off().await;
        let sealed = sealed?
            .map_err(|reason| ProfilingError::new(format!("the guest could not seal its chain: {reason}")))?;
        off.map_err(|error| ProfilingError::new(error.to_string()))?;
        Ok(SealedChain { frames: sealed.frames, head: sealed.head })
    }
}
