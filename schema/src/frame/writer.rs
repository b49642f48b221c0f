//! Builds the frames of one chain while a probe decodes its records.

use std::collections::HashMap;
use std::time::Duration;

use super::{Body, Connect, Delete, Exec, Exit, Fork, Header, MAX_FRAME_BYTES, Open, Rename, Seal, codec};
use crate::event::{Address, Class, Counters, Event, Fact, PathFlags, PathRef};
use crate::ids::{Digest, ExecutionId, NodeId, ProcessKey, Vantage};

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

/// Most that [`FrameWriterConfig::flush_bytes`] can be: the estimate is at worst a third of what the events take, and one
/// more event still has to fit below [`MAX_FRAME_BYTES`].
pub const MAX_FLUSH_BYTES: usize = MAX_FRAME_BYTES / 4;

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
    /// A frame is flushed once its events take about this many bytes. No more than [`MAX_FLUSH_BYTES`] is used.
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

/// About how many bytes an event takes, its paths, arguments and process set aside.
const EVENT_BYTES: usize = 16;

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
}

/// The events of the frame being built, `after_ns` holding their whole time; buffers are kept from frame to frame.
#[derive(Debug, Default)]
struct Batch {
    /// Time of the event that came first.
    first_boot_ns: u64,
    /// About how many bytes the events take.
    bytes: usize,
    processes: Vec<ProcessKey>,
    process_index: HashMap<ProcessKey, u32>,
    paths: Vec<(Box<[u8]>, PathFlags)>,
    /// By the path's bytes and a last byte of its flags.
    path_index: HashMap<Box<[u8]>, u32>,
    /// Where such a key is put together, so that looking up a known path allocates nothing.
    path_key: Vec<u8>,
    open_index: HashMap<(u32, u32, u32, i32), usize>,
    forks: Vec<Fork>,
    execs: Vec<OwnedExec>,
    exits: Vec<Exit>,
    opens: Vec<Open>,
    deletes: Vec<Delete>,
    renames: Vec<Rename>,
    connects: Vec<OwnedConnect>,
}

#[derive(Debug)]
struct OwnedExec {
    exec: Exec<'static>,
    argv: Vec<Box<[u8]>>,
}

#[derive(Debug)]
struct OwnedConnect {
    connect: Connect<'static>,
    address: Box<[u8]>,
}

impl OwnedExec {
    fn borrowed(&self) -> Exec<'_> {
        let argv = self.argv.iter().map(|argument| serde_bytes::Bytes::new(argument)).collect();
        Exec { argv, ..self.exec.clone() }
    }
}

impl OwnedConnect {
    fn borrowed(&self) -> Connect<'_> {
        Connect { address: &self.address, ..self.connect.clone() }
    }
}

impl FrameWriter {
    /// A writer at the beginning of its chain.
    pub fn new(mut config: FrameWriterConfig) -> Self {
        config.flush_bytes = config.flush_bytes.min(MAX_FLUSH_BYTES);
        Self {
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
        let collapsed = self.batch.push(event);
        let counters = self.counters.class_mut(event.fact.class());
        counters.observed += 1;
        match collapsed {
            true => counters.collapsed += 1,
            false => counters.delivered += 1,
        }
        (self.batch.bytes >= self.config.flush_bytes).then(|| self.finish(None)).flatten()
    }

    /// Counts facts that were lost on their way to the writer, such as a record that could not be decoded.
    pub fn count_lost(&mut self, class: Class, lost: u64) {
        let counters = self.counters.class_mut(class);
        counters.observed = counters.observed.saturating_add(lost);
        counters.lost = counters.lost.saturating_add(lost);
    }

    /// Gives the frame of what was pushed, if its first event is older than the flush age at `boot_ns`.
    pub fn flush_if_older(&mut self, boot_ns: u64) -> Option<EncodedFrame> {
        let age = boot_ns.saturating_sub(self.batch.first_boot_ns);
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
        let bytes = codec::encode(&header, &self.batch.body(), &seal);
        let events = self.batch.events();
        self.batch.clear();
        // A Vec never refuses a write, and flushing well below the limit keeps a frame readable; should either ever
        // fail, the events count as lost.
        let Some(bytes) = bytes.ok().filter(|bytes| bytes.len() <= MAX_FRAME_BYTES) else {
            for (class, delivered, collapsed) in events {
                let counters = self.counters.class_mut(class);
                counters.delivered = counters.delivered.saturating_sub(delivered);
                counters.collapsed = counters.collapsed.saturating_sub(collapsed);
                counters.lost = counters.lost.saturating_add(delivered + collapsed);
            }
            return None;
        };
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

impl Batch {
    /// Adds an event; says whether it was collapsed into an equal one.
    fn push(&mut self, event: &Event<'_>) -> bool {
        if self.is_empty() {
            self.first_boot_ns = event.boot_ns;
        }
        let after_ns = event.boot_ns;
        let process = self.process(event.process);
        self.bytes += EVENT_BYTES;
        match event.fact {
            Fact::Fork { child } => {
                let child = self.process(child);
                self.forks.push(Fork { after_ns, process, child });
            }
            Fact::Exec { ppid, exe, cwd, argv, argv_truncated, uid, gid } => {
                let (exe, cwd) = (self.path(exe), self.path(cwd));
                self.bytes += argv.iter().map(|argument| argument.len() + 5).sum::<usize>();
                let argv = argv.iter().map(|argument| Box::from(*argument)).collect();
                let exec =
                    Exec { after_ns, process, ppid, exe, cwd, argv: Vec::new(), argv_truncated, uid, gid };
                self.execs.push(OwnedExec { exec, argv });
            }
            Fact::Exit { code, signal, core_dumped } => {
                self.exits.push(Exit { after_ns, process, code, signal, core_dumped });
            }
            Fact::Open { path, flags, result } => {
                let path = self.path(path);
                let next = self.opens.len();
                let index = *self.open_index.entry((process, path, flags, result)).or_insert(next);
                if let Some(open) = self.opens.get_mut(index) {
                    // It takes no more room than it did.
                    self.bytes -= EVENT_BYTES;
                    open.count += 1;
                    if open.count == u32::MAX {
                        // The next one needs an event of its own.
                        self.open_index.remove(&(process, path, flags, result));
                    }
                    return true;
                }
                self.opens.push(Open { after_ns, process, path, flags, result, count: 1 });
            }
            Fact::Delete { path, directory, result } => {
                let path = self.path(path);
                self.deletes.push(Delete { after_ns, process, path, directory, result });
            }
            Fact::Rename { from, to, result } => {
                let (from, to) = (self.path(from), self.path(to));
                self.renames.push(Rename { after_ns, process, from, to, result });
            }
            Fact::Connect { address, protocol, result } => {
                let (address, port): (Box<[u8]>, _) = match address {
                    Address::V4(address, port) => (Box::from(address), Some(port)),
                    Address::V6(address, port) => (Box::from(address), Some(port)),
                    Address::Unix(path) => (Box::from(path), None),
                };
                self.bytes += address.len();
                let connect = Connect { after_ns, process, address: &[], port, protocol, result };
                self.connects.push(OwnedConnect { connect, address });
            }
        }
        false
    }

    fn process(&mut self, key: ProcessKey) -> u32 {
        let next = self.processes.len() as u32;
        let index = *self.process_index.entry(key).or_insert(next);
        if index == next {
            self.bytes += 16;
            self.processes.push(key);
        }
        index
    }

    fn path(&mut self, path: PathRef<'_>) -> u32 {
        self.path_key.clear();
        self.path_key.extend_from_slice(path.bytes);
        self.path_key.push(path.flags.0);
        if let Some(index) = self.path_index.get(&*self.path_key) {
            return *index;
        }
        let index = self.paths.len() as u32;
        self.bytes += path.bytes.len() + 6;
        self.paths.push((Box::from(path.bytes), path.flags));
        self.path_index.insert(Box::from(&*self.path_key), index);
        index
    }

    fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Delivered and collapsed events by class.
    fn events(&self) -> [(Class, u64, u64); 3] {
        let process = self.forks.len() + self.execs.len() + self.exits.len();
        let file = self.opens.len() + self.deletes.len() + self.renames.len();
        let collapsed = self.opens.iter().map(|open| u64::from(open.count - 1)).sum();
        [
            (Class::Process, process as u64, 0),
            (Class::File, file as u64, collapsed),
            (Class::Network, self.connects.len() as u64, 0),
        ]
    }

    fn body(&self) -> Body<'_> {
        let mut body = Body {
            base_boot_ns: 0,
            processes: self.processes.clone(),
            paths: self.paths.iter().map(|(bytes, flags)| PathRef { bytes, flags: *flags }).collect(),
            forks: self.forks.clone(),
            execs: self.execs.iter().map(OwnedExec::borrowed).collect(),
            exits: self.exits.clone(),
            opens: self.opens.clone(),
            deletes: self.deletes.clone(),
            renames: self.renames.clone(),
            connects: self.connects.iter().map(OwnedConnect::borrowed).collect(),
        };
        // Records of two rings (and of two CPUs) come slightly out of order: the earliest of a frame is not always
        // its first.
        let base_boot_ns = body.times().map(|time| *time).min().unwrap_or(0);
        body.times().for_each(|time| *time -= base_boot_ns);
        Body { base_boot_ns, ..body }
    }

    fn clear(&mut self) {
        self.bytes = 0;
        self.processes.clear();
        self.process_index.clear();
        self.paths.clear();
        self.path_index.clear();
        self.open_index.clear();
        self.forks.clear();
        self.execs.clear();
        self.exits.clear();
        self.opens.clear();
        self.deletes.clear();
        self.renames.clear();
        self.connects.clear();
    }
}
