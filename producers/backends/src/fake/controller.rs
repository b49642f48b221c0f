//! A profiling controller that reports scripted events in real frames.

use std::sync::Arc;

use async_trait::async_trait;
use glasshouse_execution::profiling::{
    Attachment, Capabilities, ProfilingController, ProfilingError, ProfilingSession, ProfilingTarget,
    SealedChain,
};
use glasshouse_execution::sink::EventSink;
use glasshouse_schema::event::{Class, Event};
use glasshouse_schema::frame::{FrameWriter, FrameWriterConfig, Seal, SealTotals};
use glasshouse_schema::ids::Vantage;
use glasshouse_schema::lifecycle::Attached;

/// Attaches to anything and, at the seal, sends the frames of its script. Every event is handed to the writer as it
/// stands (nothing is masked).
#[derive(Debug, Clone)]
pub struct FakeController {
    /// The vantage point it serves.
    pub vantage: Vantage,
    /// What it reports.
    pub events: Vec<Event<'static>>,
    /// Facts that the kernel is said to have counted and lost, per class.
    pub lost: [u64; 5],
    /// The seal's own contents.
    pub seal: Seal,
    /// A frame is flushed after about this many bytes of events; small values make many frames.
    pub flush_bytes: usize,
    /// Unix time minus CLOCK_BOOTTIME in nanoseconds.
    pub unix_minus_boot_ns: i64,
    /// `ready` fails with this.
    pub not_ready: Option<String>,
    /// `attach` fails with this.
    pub not_attachable: Option<String>,
    /// The session's `seal` fails with this; its frames were sent, without a seal.
    pub not_sealable: Option<String>,
    /// `attach` panics.
    pub panics: bool,
}

impl FakeController {
    /// A controller that serves `vantage` and reports nothing.
    pub fn new(vantage: Vantage) -> Self {
        Self {
            vantage,
            events: Vec::new(),
            lost: [0; 5],
            seal: Seal::default(),
            flush_bytes: 64 * 1024,
            unix_minus_boot_ns: 0,
            not_ready: None,
            not_attachable: None,
            not_sealable: None,
            panics: false,
        }
    }

    /// A controller that reports these.
    #[must_use]
    pub fn reporting(mut self, events: impl IntoIterator<Item = Event<'static>>) -> Self {
        self.events.extend(events);
        self
    }
}

fn unless(reason: &Option<String>) -> Result<(), ProfilingError> {
    reason.clone().map_or(Ok(()), |reason| Err(ProfilingError::new(reason)))
}

#[async_trait]
impl ProfilingController for FakeController {
    fn name(&self) -> &'static str {
        "fake"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { vantage: Some(self.vantage), concurrent: true }
    }

    async fn ready(&self) -> Result<(), ProfilingError> {
        unless(&self.not_ready)
    }

    async fn attach(
        &self,
        target: ProfilingTarget,
        sink: Arc<dyn EventSink>,
    ) -> Result<Attachment, ProfilingError> {
        #[allow(clippy::panic, reason = "the script asks for it")]
        if self.panics {
            panic!("scripted panic at attach");
        }
        unless(&self.not_attachable)?;
        let mut config = FrameWriterConfig::new(
            target.execution,
            target.node,
            self.vantage,
            target.epoch,
            self.unix_minus_boot_ns,
        );
        config.flush_bytes = self.flush_bytes;
        let attached = Attached {
            vantage: self.vantage,
            controller: self.name().to_owned(),
            hooks: vec!["script".to_owned()],
            blind_spots: Vec::new(),
        };
        let session = Box::new(Session { script: self.clone(), writer: FrameWriter::new(config), sink });
        Ok(Attachment { attached, session })
    }
}

struct Session {
    script: FakeController,
    writer: FrameWriter,
    sink: Arc<dyn EventSink>,
}

#[async_trait]
impl ProfilingSession for Session {
    async fn seal(self: Box<Self>) -> Result<SealedChain, ProfilingError> {
        let Self { script, mut writer, sink } = *self;
        let mut observed = script.lost;
        for event in &script.events {
            observed[event.fact.class() as usize] += 1;
            if let Some(frame) = writer.push(event) {
                sink.frame(frame);
            }
        }
        if let Some(reason) = script.not_sealable {
            writer.flush().into_iter().for_each(|frame| sink.frame(frame));
            return Err(ProfilingError::new(reason));
        }
        debug_assert_eq!(observed.len(), Class::ALL.len());
        let mut sealed = Err(ProfilingError::new("the seal could not be written"));
        for frame in writer.seal(SealTotals { observed, lost: script.lost }, script.seal) {
            if frame.is_seal {
                sealed = Ok(SealedChain { frames: frame.seq + 1, head: frame.digest });
            }
            sink.frame(frame);
        }
        sealed
    }
}
