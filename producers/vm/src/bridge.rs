//! What a guest says it saw, on its way to everybody else.
//!
//! A guest is hostile: what is in its frames is its word, and stays marked as such by their vantage point. What is held here
//! is that they are frames, of the one execution that the guest was started for, from the vantage point `guest`, in one
//! chain without a gap, and sealed once, when the host asked. The first frame that is not ends all belief: nothing after it
//! is handed on, and the receipt has no seal of the guest.

use std::sync::Arc;
use std::time::{Duration, Instant};

use glasshouse_execution::sink::EventSink;
use glasshouse_guest_link::Sealed;
use glasshouse_schema::frame::DecodeError;
use glasshouse_schema::ids::{Digest, ExecutionId, NodeId, Vantage};
use glasshouse_schema::{EncodedFrame, Frame};

/// Bytes of frames that a guest may hand over in a second before it is held up: its own kernel then counts what it loses.
pub const FRAME_BYTES_PER_SECOND: u64 = 64 * 1024 * 1024;

/// What a guest may not say.
#[derive(Debug, thiserror::Error)]
pub enum Lie {
    /// The bytes are no frame.
    #[error("what it sent as a frame is none: {0}")]
    NoFrame(#[from] DecodeError),
    /// It speaks for somebody else.
    #[error("it sent a frame of {0}, which is not its own")]
    Stranger(String),
    /// A frame is missing, doubled or altered.
    #[error("its frame {found} does not follow its frame {expected} before")]
    OffChain {
        /// The frame that was to come, by number.
        expected: u64,
        /// The one that came.
        found: u64,
    },
    /// A seal that nobody asked for, or something behind the seal.
    #[error("it sealed its frames before the host asked for that, or went on behind its seal")]
    ForgedSeal,
    /// What it says of its chain is not what came.
    #[error("it says that its chain has {said} frames up to {head}, and that is not what came")]
    OtherHead {
        /// Frames, as it says.
        said: u64,
        /// The last, as it says.
        head: Digest,
    },
}

/// The way of one guest's frames.
pub(crate) struct Bridge {
    pub(crate) execution: ExecutionId,
    pub(crate) node: NodeId,
    pub(crate) epoch: u64,
    pub(crate) sink: Arc<dyn EventSink>,
    /// The chain so far.
    pub(crate) next: u64,
    pub(crate) head: Digest,
    pub(crate) is_sealed: bool,
    pub(crate) pace: Pace,
}

impl Bridge {
    /// Hands a frame on, or says why not. Blocks while the sink is full or the guest too fast.
    pub(crate) fn take(&mut self, bytes: Vec<u8>, may_seal: bool) -> Result<(), Lie> {
        let frame = Frame::decode(&bytes)?;
        let header = &frame.header;
        if (header.execution, &header.node, header.vantage, header.epoch)
            != (self.execution, &self.node, Vantage::Guest, self.epoch)
        {
            let of = format!(
                "execution {}, node {}, vantage point {}, epoch {}",
                header.execution, header.node, header.vantage, header.epoch
            );
            return Err(Lie::Stranger(of));
        }
        let is_seal = frame.seal.is_some();
        if self.is_sealed || (is_seal && !may_seal) {
            return Err(Lie::ForgedSeal);
        }
        if (header.seq, header.prev) != (self.next, self.head) {
            return Err(Lie::OffChain { expected: self.next, found: header.seq });
        }
        let digest = Digest::of(&bytes);
        let frame = EncodedFrame {
            execution: self.execution,
            node: self.node.clone(),
            vantage: Vantage::Guest,
            seq: self.next,
            digest,
            is_seal,
            bytes,
        };
        self.pace.wait(frame.bytes.len());
        (self.next, self.head, self.is_sealed) = (self.next + 1, digest, is_seal);
        self.sink.frame(frame);
        Ok(())
    }

    /// Holds what the guest says of its chain against what came.
    pub(crate) fn check(&self, sealed: &Sealed) -> Result<(), Lie> {
        match self.is_sealed && (sealed.frames, sealed.head) == (self.next, self.head) {
            true => Ok(()),
            false => Err(Lie::OtherHead { said: sealed.frames, head: sealed.head }),
        }
    }
}

/// Lets so many bytes through in a second, and a second's worth at once.
#[derive(Debug)]
pub(crate) struct Pace {
    per_second: u64,
    free_at: Instant,
}

impl Pace {
    pub(crate) fn new(per_second: u64) -> Self {
        Self { per_second, free_at: Instant::now() }
    }

    fn wait(&mut self, bytes: usize) {
        let takes = Duration::from_secs_f64(bytes as f64 / self.per_second as f64);
        let now = Instant::now();
        self.free_at = self.free_at.max(now) + takes;
        if let Some(ahead) = self.free_at.checked_duration_since(now + Duration::from_secs(1)) {
            std::thread::sleep(ahead);
        }
    }
}
