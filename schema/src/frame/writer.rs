//! Builds the frames of one chain while a probe decodes its records.

use std::time::Duration;

use super::batch::Batch;
use super::{EncodeError, Header, MAX_FRAME_BYTES, Seal, codec};
use crate::event::{Class, Counters, Event};
use crate::ids::{Digest, ExecutionId, NodeId, Vantage};

/// A frame as it is published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedFrame {
    /// The execution it belongs to.
    pub execution: ExecutionId,
    /// The node it comes from.
    pub node: NodeId,
    /// The vantage point it speaks for.
    pub vantage: Vantage,
    /// Its number in the chain.
    pub seq: u64,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// SHA-256 of its bytes.
    pub digest: Digest,
    /// Whether it is the last of its chain.
    pub is_seal: bool,
}

/// Most that [`FrameWriterConfig::flush_bytes`] can be.
///
/// What events take before they are packed is estimated, at worst at a third of what they take packed. So this much more of it can
/// be taken before the frame is packed, and one more event still fits below [`MAX_FRAME_BYTES`].
pub const MAX_FLUSH_BYTES: usize = MAX_FRAME_BYTES / 4;

/// Most that the events of a frame take before they are packed: of no event there is so little that they would be too many.
const MAX_UNPACKED_BYTES: usize = 3 * MAX_FLUSH_BYTES;

/// Which chain a writer writes, and when it flushes.
#[derive(Debug, Clone)]
pub struct FrameWriterConfig {
    /// The execution.
    pub execution: ExecutionId,
    /// The node.
    pub node: NodeId,
    /// The vantage point.
    pub vantage: Vantage,
    /// The epoch of the node's claim.
    pub epoch: u64,
    /// Unix time minus CLOCK_BOOTTIME in nanoseconds.
    pub unix_minus_boot_ns: i64,
    /// A frame is flushed once it has about this many bytes, no fewer than three quarters of them. No more than
    /// [`MAX_FLUSH_BYTES`] is used.
    pub flush_bytes: usize,
    /// A frame is flushed once its first event is this old.
    pub flush_age: Duration,
}

impl FrameWriterConfig {
    /// 64 KiB or 20 ms, whichever comes first.
    pub fn new(
        execution: ExecutionId,
        node: NodeId,
        vantage: Vantage,
        epoch: u64,
        unix_minus_boot_ns: i64,
    ) -> Self {
        Self {
            execution,
            node,
            vantage,
            epoch,
            unix_minus_boot_ns,
            flush_bytes: 64 * 1024,
            flush_age: Duration::from_millis(20),
        }
    }
}

/// What the kernel counted by the end, for the seal.
#[derive(Debug, Clone, Copy, Default)]
pub struct SealTotals {
    /// Facts that happened, per class, counted before anything could fail.
    pub observed: [u64; 5],
    /// Facts that the kernel side lost, per class.
    pub lost: [u64; 5],
}

/// The writer of one chain. Push events, send out each frame it returns, and seal it at the end.
///
/// Equal events of a frame are collapsed into one with a count; `delivered` and `collapsed` are counted here.
#[derive(Debug)]
pub struct FrameWriter {
    config: FrameWriterConfig,
    seq: u64,
    prev: Digest,
    counters: Counters,
    frame_bytes: u64,
    batch: Batch,
    /// What the events take before they are packed when it is next looked what they take then.
    pack_at: usize,
}

impl FrameWriter {
    /// A writer at the beginning of its chain.
    pub fn new(mut config: FrameWriterConfig) -> Self {
        config.flush_bytes = config.flush_bytes.min(MAX_FLUSH_BYTES);
        Self {
            pack_at: config.flush_bytes,
            config,
            seq: 0,
            prev: Digest::ZERO,
            counters: Counters::default(),
            frame_bytes: 0,
            batch: Batch::default(),
        }
    }

    /// Counters so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Digest of the last frame and the number of frames.
    pub fn head(&self) -> (Digest, u64) {
        (self.prev, self.seq)
    }

    /// Bytes of all frames so far.
    pub fn frame_bytes(&self) -> u64 {
        self.frame_bytes
    }

    /// Adds an event; gives the frame that it filled up.
    pub fn push(&mut self, event: &Event<'_>) -> Option<EncodedFrame> {
        self.push_counted(event, 1)
    }

    /// Adds an event that stands for `count` identical facts, the first of which has its time; gives the frame that it
    /// filled up.
    ///
    /// Facts of which each is its own (fork, exec, exit, credentials) and those that bring sums of their own count as
    /// [`Self::push`] counts them.
    pub fn push_counted(&mut self, event: &Event<'_>, count: u64) -> Option<EncodedFrame> {
        let added = self.batch.push(event, count.max(1));
        let counters = self.counters.class_mut(event.fact.class());
        counters.delivered = counters.delivered.saturating_add(added.delivered);
        counters.collapsed = counters.collapsed.saturating_add(added.collapsed);
        counters.observed = counters.observed.saturating_add(added.delivered).saturating_add(added.collapsed);
        (self.batch.bytes() >= self.pack_at).then(|| self.pack()).flatten()
    }

    /// Packs the events and gives the frame if they fill it. How much they shrank says when they, or the next ones, will.
    fn pack(&mut self) -> Option<EncodedFrame> {
        let unpacked = self.batch.bytes();
        let Ok(packed) = codec::pack(&self.batch.body()) else { return self.finish(None) };
        let (wanted, taken) = (self.config.flush_bytes, packed.len().max(1));
        let filled_at = wanted.saturating_mul(unpacked) / taken;
        if taken < wanted / 4 * 3 && unpacked < MAX_UNPACKED_BYTES {
            self.pack_at = filled_at.min(unpacked + MAX_FLUSH_BYTES - taken / 3).min(MAX_UNPACKED_BYTES);
            return None;
        }
        self.pack_at = filled_at.min(MAX_FLUSH_BYTES);
        self.finish_packed(Ok(packed), None)
    }

    /// Counts facts that were lost on their way to the writer, such as a record that could not be decoded.
    pub fn count_lost(&mut self, class: Class, lost: u64) {
        let counters = self.counters.class_mut(class);
        counters.observed = counters.observed.saturating_add(lost);
        counters.lost = counters.lost.saturating_add(lost);
    }

    /// Gives the frame of what was pushed, if its first event is older than the flush age at `boot_ns`.
    pub fn flush_if_older(&mut self, boot_ns: u64) -> Option<EncodedFrame> {
        let age = boot_ns.saturating_sub(self.batch.first_boot_ns());
        (u128::from(age) >= self.config.flush_age.as_nanos()).then(|| self.flush()).flatten()
    }

    /// Gives the frame of what was pushed, if anything was.
    pub fn flush(&mut self) -> Option<EncodedFrame> {
        (!self.batch.is_empty()).then(|| self.finish(None)).flatten()
    }

    /// Ends the chain with the totals. A fact that the kernel counted and that is neither delivered, collapsed nor
    /// known to be lost is counted as lost: a difference is never assumed away.
    ///
    /// What the seal itself holds is accounted for too: its syscall counts are the collapsed facts of class `syscall`,
    /// its escaped tasks those of class `other`.
    ///
    /// More than one frame comes back when events were still waiting.
    pub fn seal(mut self, totals: SealTotals, mut seal: Seal) -> Vec<EncodedFrame> {
        let mut frames: Vec<EncodedFrame> = self.flush().into_iter().collect();
        for (class, folded) in seal.folded() {
            let counters = self.counters.class_mut(class);
            counters.collapsed = counters.collapsed.saturating_add(folded);
        }
        for class in Class::ALL {
            let counters = self.counters.class_mut(class);
            let known = counters.delivered.saturating_add(counters.collapsed);
            let user_lost = counters.lost;
            let lost = totals.lost[class as usize].saturating_add(user_lost);
            counters.observed = totals.observed[class as usize].max(known.saturating_add(lost));
            counters.lost = counters.observed.saturating_sub(known);
        }
        seal.cost.frame_bytes = self.frame_bytes;
        frames.extend(self.finish(Some(seal)));
        frames
    }

    fn finish(&mut self, seal: Option<Seal>) -> Option<EncodedFrame> {
        let packed = codec::pack(&self.batch.body());
        self.finish_packed(packed, seal)
    }

    fn finish_packed(
        &mut self,
        packed: Result<Vec<u8>, EncodeError>,
        seal: Option<Seal>,
    ) -> Option<EncodedFrame> {
        let is_seal = seal.is_some();
        let header = Header {
            execution: self.config.execution,
            node: self.config.node.clone(),
            vantage: self.config.vantage,
            epoch: self.config.epoch,
            seq: self.seq,
            prev: self.prev,
            counters: self.counters,
            unix_minus_boot_ns: self.config.unix_minus_boot_ns,
        };
        let bytes = packed.and_then(|body| codec::encode(&header, &body, &seal));
        // A Vec never refuses a write, and flushing well below the limit keeps a frame readable; should either ever
        // fail, the events count as lost.
        let Some(bytes) = bytes.ok().filter(|bytes| bytes.len() <= MAX_FRAME_BYTES) else {
            for (class, delivered, collapsed) in self.batch.body().facts() {
                let counters = self.counters.class_mut(class);
                counters.delivered = counters.delivered.saturating_sub(delivered);
                counters.collapsed = counters.collapsed.saturating_sub(collapsed);
                counters.lost = counters.lost.saturating_add(delivered).saturating_add(collapsed);
            }
            self.batch.clear();
            return None;
        };
        self.batch.clear();
        let digest = Digest::of(&bytes);
        let frame = EncodedFrame {
            execution: self.config.execution,
            node: self.config.node.clone(),
            vantage: self.config.vantage,
            seq: self.seq,
            digest,
            is_seal,
            bytes,
        };
        self.seq += 1;
        self.prev = digest;
        self.frame_bytes += frame.bytes.len() as u64;
        Some(frame)
    }
}
