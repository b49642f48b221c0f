//! A bounded queue of messages on disk, for what the bus does not take.
//!
//! ```text
//! DIR/lock                             held by the one process that uses the directory; says for which stream it is
//! DIR/00000000000000000000.ghs1        segments: records in order; the name is the number of the first
//! DIR/00000000000000000131.ghs1
//! DIR/cursor                           the number of the first record that is not acknowledged
//! DIR/1f3c....rejected                 one record each, that the bus can never take
//!
//!      acked          read            next_seq
//!        v              v                 v
//!   -----+--- sent -----+---- waits ------+   append
//!        +--------------- rewind: all of it is sent again
//! ```
//!
//! Invariants:
//! - a record is given out whole or not at all: its checksum and its number must fit. What does not is passed by and
//!   counted; a torn end, as a crash leaves it, is cut off when the directory is opened;
//! - records are given out in the order in which they were appended;
//! - everything is replayed at least once: the cursor is written after the fact, and what is replayed although it was
//!   stored is known by its message id;
//! - what a file says is bounded before it is allocated, and nothing here panics on it.
//!
//! What survives: a process that dies loses nothing that was appended, because the kernel has it. A machine that dies
//! loses at most what is younger than the last [`Unsynced::run`], which [`crate::SpooledPublisher`] does every second while
//! there is anything to write, and at every flush.

#[doc(hidden)]
pub mod fuzz;
mod record;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::pipeline::Outgoing;
use record::{HEAD_BYTES, MAX_BODY_BYTES, MAX_RECORD_BYTES};

/// The ending of a segment names the format: another version of it gets another name, and is left alone.
const SEGMENT: &str = "ghs1";
const REJECTED: &str = "rejected";
const LOCK: &str = "lock";
/// More than the note in the lock has.
const MAX_NOTE_BYTES: u64 = 64;

/// How large a [`Spool`] may grow.
#[derive(Debug, Clone)]
pub struct SpoolOptions {
    /// All segments together; at least [`SpoolOptions::MIN_BYTES`].
    pub max_bytes: u64,
    /// One segment. Disk space comes back a segment at a time.
    pub segment_bytes: u64,
}

impl SpoolOptions {
    /// The least that works: two of the largest messages, and room to give back.
    pub const MIN_BYTES: u64 = 4 << 20;
}

impl Default for SpoolOptions {
    fn default() -> Self {
        Self { max_bytes: 256 << 20, segment_bytes: 8 << 20 }
    }
}

/// What a spool cannot do.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// Another process has the directory.
    #[error("the spool {} is in use by another process", dir.display())]
    InUse {
        /// The directory.
        dir: PathBuf,
    },
    /// There is no room for one more message.
    #[error(
        "the spool {} is full: {messages} message(s) in {bytes} of {max_bytes} bytes wait for the bus",
        dir.display()
    )]
    Full {
        /// The directory.
        dir: PathBuf,
        /// How many messages wait.
        messages: u64,
        /// How many bytes the segments have.
        bytes: u64,
        /// How many they may have.
        max_bytes: u64,
    },
    /// A message is larger than any may be.
    #[error("the message for {subject} has {bytes} bytes, and a spool takes {MAX_BODY_BYTES}")]
    TooLarge {
        /// Its subject.
        subject: String,
        /// Its size.
        bytes: usize,
    },
    /// A message cannot be written as a record.
    #[error("the message for {subject} cannot be written to a spool: {source}")]
    Encode {
        /// Its subject.
        subject: String,
        /// Why not.
        source: rmp_serde::encode::Error,
    },
    /// The disk said no.
    #[error("cannot {operation} {}: {source}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

impl SpoolError {
    /// Whether room can come back: the bound of the spool, the disk, or a quota.
    pub fn is_full(&self) -> bool {
        match self {
            Self::Full { .. } => true,
            Self::Io { source, .. } => {
                matches!(source.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
            }
            _ => false,
        }
    }
}

/// What lies in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leftover {
    /// The directory.
    pub dir: PathBuf,
    /// Messages that are not acknowledged.
    pub messages: u64,
    /// What they take on disk.
    pub bytes: u64,
    /// Messages that the bus can never take, set aside.
    pub rejected: u64,
}

/// A place between two records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Position {
    /// The number of the record behind it.
    seq: u64,
    /// The segment, by its first record, and how far into it.
    segment: u64,
    offset: u64,
}

impl Position {
    fn start_of(segment: u64) -> Self {
        Self { seq: segment, segment, offset: 0 }
    }
}

#[derive(Debug)]
struct Segment {
    first: u64,
    bytes: u64,
}

/// Messages on disk, in order. See the module.
#[derive(Debug)]
pub struct Spool {
    dir: PathBuf,
    options: SpoolOptions,
    segments: VecDeque<Segment>,
    bytes: u64,
    next_seq: u64,
    acked: Position,
    read: Position,
    /// The last segment, once it was appended to.
    writer: Option<Arc<File>>,
    reader: Option<(u64, File)>,
    unsynced: Vec<Arc<File>>,
    cursor: u64,
    rejected: u64,
    damaged: u64,
    /// Up to where damage is counted: what is read again is not counted again.
    inspected: u64,
    // Last: the directory is ours until everything else is closed.
    lock: File,
}

impl Spool {
    /// Opens a directory, and makes it if it is missing; only its owner may look into it. A torn end is cut off.
    pub fn open(dir: impl Into<PathBuf>, options: SpoolOptions) -> Result<Self, SpoolError> {
        let dir = dir.into();
        let options = SpoolOptions {
            max_bytes: options.max_bytes.max(SpoolOptions::MIN_BYTES),
            segment_bytes: options.segment_bytes,
        };
        let lock = lock(&dir)?.ok_or_else(|| SpoolError::InUse { dir: dir.clone() })?;
        let Contents { mut segments, torn_bytes, end, cursor, rejected } = Contents::of(&dir)?;
        if torn_bytes > 0 {
            tracing::warn!(dir = %dir.display(), torn_bytes, "the spool's torn end was cut off");
        }
        if let Some(last) = segments.back().filter(|_| torn_bytes > 0) {
            let path = segment_path(&dir, last.first);
            let cut = OpenOptions::new().write(true).open(&path).and_then(|file| {
                file.set_len(last.bytes)?;
                file.sync_data()
            });
            cut.map_err(failed("cut the torn end of", &path))?;
        }
        if let Some(empty) = segments.pop_back_if(|last| last.bytes == 0) {
            remove(&segment_path(&dir, empty.first))?;
        }
        // The cursor can be ahead of what survived a power failure.
        let next_seq = end.max(cursor);
        let start = Position::start_of(segments.front().map_or(next_seq, |first| first.first));
        let mut spool = Self {
            bytes: segments.iter().map(|segment| segment.bytes).sum(),
            dir,
            options,
            segments,
            next_seq,
            acked: start,
            read: start,
            writer: None,
            reader: None,
            unsynced: Vec::new(),
            cursor,
            rejected,
            damaged: 0,
            // What is damaged before the cursor was stored all the same.
            inspected: cursor,
            lock,
        };
        // Only the segment in which the cursor lies has to be read to find it.
        if let Some(skipped) = spool.segments.iter().rev().find(|segment| segment.first <= cursor) {
            spool.read = Position::start_of(skipped.first);
        }
        while spool.read.seq < cursor && spool.read()?.is_some() {}
        spool.ack(spool.read)?;
        Ok(spool)
    }

    /// Where it lies.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Whether everything in it is acknowledged.
    pub fn is_empty(&self) -> bool {
        self.acked.seq == self.next_seq
    }

    /// Records that were passed by because they could not be read.
    pub fn damaged(&self) -> u64 {
        self.damaged
    }

    /// What is not acknowledged yet.
    pub fn leftover(&self) -> Leftover {
        Leftover {
            dir: self.dir.clone(),
            messages: self.next_seq - self.acked.seq,
            bytes: self.bytes.saturating_sub(self.acked.offset),
            rejected: self.rejected,
        }
    }

    /// What lies in a directory, without a change to it, and whether a process has it.
    pub fn peek(dir: &Path) -> Result<(Leftover, bool), SpoolError> {
        let in_use = match File::open(dir.join(LOCK)) {
            Ok(file) => matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)),
            Err(_) => false,
        };
        let contents = Contents::of(dir)?;
        let bytes = contents.segments.iter().map(|segment| segment.bytes).sum();
        let begin = contents.segments.front().map_or(contents.end, |first| first.first).max(contents.cursor);
        let messages = contents.end.saturating_sub(begin);
        Ok((Leftover { dir: dir.to_owned(), messages, bytes, rejected: contents.rejected }, in_use))
    }

    /// Notes for which stream its messages are, by when that was created ([`crate::StreamPosition`]), so that nobody sends them
    /// to another unasked.
    pub fn set_destination(&self, created_unix_ns: i128) -> Result<(), SpoolError> {
        let text = format!("{created_unix_ns}\n");
        let written = self.lock.set_len(0).and_then(|()| self.lock.write_all_at(text.as_bytes(), 0));
        written.map_err(failed("write", &self.dir.join(LOCK)))
    }

    /// The stream that was noted in a directory; `None` if none was, or it was not written whole.
    pub fn destination(dir: &Path) -> Option<i128> {
        let mut text = String::new();
        File::open(dir.join(LOCK)).ok()?.take(MAX_NOTE_BYTES).read_to_string(&mut text).ok()?;
        text.strip_suffix('\n')?.parse().ok()
    }

    /// How much it takes.
    pub(crate) fn max_bytes(&self) -> u64 {
        self.options.max_bytes
    }

    /// Appends a message and gives the place behind it. The room of one large message is kept for what is `last`: lifecycle
    /// events, and the seal, whose totals say how much the frames that were refused would have told.
    pub(crate) fn append(&mut self, message: &Outgoing, last: bool) -> Result<Position, SpoolError> {
        let record = record::encode(self.next_seq, message)?;
        let bytes = record.len() as u64;
        let kept = if last { 0 } else { MAX_RECORD_BYTES };
        if self.bytes + bytes + kept > self.options.max_bytes {
            let Leftover { dir, messages, .. } = self.leftover();
            let max_bytes = self.options.max_bytes;
            return Err(SpoolError::Full { dir, messages, bytes: self.bytes, max_bytes });
        }
        let (file, segment) = self.writer(bytes)?;
        // A write that failed in its middle is written over by the next one, or is a torn end.
        let (at, first) = (segment.bytes, segment.first);
        if let Err(source) = file.write_all_at(&record, at) {
            return Err(failed("write to", &segment_path(&self.dir, first))(source));
        }
        segment.bytes += bytes;
        if !self.unsynced.iter().any(|other| Arc::ptr_eq(other, &file)) {
            self.unsynced.push(file);
        }
        self.bytes += bytes;
        self.next_seq += 1;
        Ok(Position { seq: self.next_seq, segment: first, offset: at + bytes })
    }

    /// The segment that takes `bytes` more. One that was there when the directory was opened is never written to again.
    fn writer(&mut self, bytes: u64) -> Result<(Arc<File>, &mut Segment), SpoolError> {
        let limit = self.options.segment_bytes.min(self.options.max_bytes / 4);
        let full = self.segments.back().is_none_or(|last| last.bytes > 0 && last.bytes + bytes > limit);
        if full {
            self.writer = None;
        }
        let file = match &self.writer {
            Some(file) => file.clone(),
            None => {
                let path = segment_path(&self.dir, self.next_seq);
                let mut options = OpenOptions::new();
                // It cannot hold anything: a segment with this name would have told of later records.
                options.write(true).create(true).truncate(true).mode(0o600);
                let file = Arc::new(options.open(&path).map_err(failed("create", &path))?);
                self.segments.push_back(Segment { first: self.next_seq, bytes: 0 });
                self.writer.insert(file).clone()
            }
        };
        let last = self.segments.len() - 1;
        Ok((file, &mut self.segments[last]))
    }

    /// The next record and the place behind it; `None` at the end. What cannot be read is passed by and counted.
    pub(crate) fn read(&mut self) -> Result<Option<(Position, Outgoing)>, SpoolError> {
        while let Some(index) = self.segments.iter().position(|segment| segment.first >= self.read.segment) {
            let Segment { first, bytes } = self.segments[index];
            let end = self.segments.get(index + 1).map_or(self.next_seq, |next| next.first);
            if first > self.read.segment {
                // A segment is missing.
                self.skip_to(Position::start_of(first));
                continue;
            }
            if self.read.seq >= end || self.read.offset >= bytes {
                // The name of the next segment says how many records were to be here.
                let is_last = index + 1 == self.segments.len();
                self.skip_to(match is_last {
                    true => Position { seq: end, segment: first, offset: bytes },
                    false => Position::start_of(end),
                });
                if is_last {
                    return Ok(None);
                }
                continue;
            }
            let (seq, offset) = (self.read.seq, self.read.offset);
            let found = read_record(self.reader(first)?, seq, offset, bytes)
                .map_err(failed("read", &segment_path(&self.dir, first)))?;
            match found {
                Found::Record(message, offset) => {
                    self.read = Position { seq: seq + 1, offset, ..self.read };
                    return Ok(Some((self.read, message)));
                }
                Found::Damaged(offset) => self.skip_to(Position { seq: seq + 1, offset, ..self.read }),
                // Where the next record begins is not known: the rest of the segment is lost.
                Found::Nothing => self.read.offset = bytes,
            }
        }
        self.skip_to(Position::start_of(self.next_seq));
        Ok(None)
    }

    fn skip_to(&mut self, position: Position) {
        let from = self.read.seq.max(self.inspected);
        if position.seq > from {
            self.damaged += position.seq - from;
            self.inspected = position.seq;
            let messages = position.seq - from;
            tracing::warn!(dir = %self.dir.display(), messages, "records of the spool are damaged and were passed by");
        }
        self.read = position;
    }

    fn reader(&mut self, first: u64) -> Result<&File, SpoolError> {
        let reader = match self.reader.take() {
            Some((of, file)) if of == first => (of, file),
            _ => {
                let path = segment_path(&self.dir, first);
                (first, File::open(&path).map_err(failed("open", &path))?)
            }
        };
        Ok(&self.reader.insert(reader).1)
    }

    /// Everything not acknowledged is read again.
    pub(crate) fn rewind(&mut self) {
        self.read = self.acked;
    }

    /// Where reading stands.
    pub(crate) fn position(&self) -> Position {
        self.read
    }

    /// What was appended last will not be read, because the caller has it.
    pub(crate) fn read_up_to(&mut self, position: Position) {
        self.read = position;
    }

    /// Everything before `position` is stored by the bus: its segments go. Whether one went.
    pub(crate) fn ack(&mut self, position: Position) -> Result<bool, SpoolError> {
        self.acked = position;
        let mut freed = false;
        while let Some(Segment { first, bytes }) = self.segments.front() {
            let (first, bytes) = (*first, *bytes);
            let end = self.segments.get(1).map_or(self.next_seq, |next| next.first);
            if position.seq < end {
                break;
            }
            remove(&segment_path(&self.dir, first))?;
            self.segments.pop_front();
            self.bytes -= bytes;
            freed = true;
        }
        if self.segments.is_empty() {
            self.writer = None;
            self.reader = None;
            self.unsynced.clear();
            self.acked = Position::start_of(self.next_seq);
            self.read = self.acked;
        } else if position.segment < self.segments[0].first {
            self.acked = Position::start_of(self.segments[0].first);
        }
        Ok(freed)
    }

    /// Sets a message aside that the bus can never take, in a file of its own, so that it stops nothing and is not lost.
    pub(crate) fn set_aside(&mut self, message: &Outgoing) -> Result<(), SpoolError> {
        let record = record::encode(0, message)?;
        let name: String = record::checksum(&record).iter().map(|byte| format!("{byte:02x}")).collect();
        let path = self.dir.join(format!("{name}.{REJECTED}"));
        let is_new = !path.exists();
        write_whole(&path, &record).map_err(failed("write", &path))?;
        self.rejected += u64::from(is_new);
        Ok(())
    }

    /// What has to be written for a machine to be allowed to die; `None` if nothing has.
    pub(crate) fn unsynced(&mut self) -> Option<Unsynced> {
        let cursor = (self.cursor != self.acked.seq).then_some(self.acked.seq);
        if self.unsynced.is_empty() && cursor.is_none() {
            return None;
        }
        self.cursor = self.acked.seq;
        Some(Unsynced { dir: self.dir.clone(), files: std::mem::take(&mut self.unsynced), cursor })
    }

    /// Writes what has to be, and removes the directory if nothing is left in it.
    pub(crate) fn finish(mut self) -> Result<Leftover, SpoolError> {
        let leftover = self.leftover();
        if leftover.messages > 0 || leftover.rejected > 0 {
            self.unsynced().map_or(Ok(()), Unsynced::run)?;
            return Ok(leftover);
        }
        for name in ["cursor", LOCK] {
            remove(&self.dir.join(name))?;
        }
        match std::fs::remove_dir(&self.dir) {
            // Somebody else's file, or somebody who just opens it, or has done with it already.
            Err(error) if matches!(error.kind(), ErrorKind::DirectoryNotEmpty | ErrorKind::NotFound) => {}
            removed => removed.map_err(failed("remove", &self.dir))?,
        }
        Ok(leftover)
    }
}

/// What makes a spool outlive the machine: may be done by a thread that can wait.
#[derive(Debug)]
pub(crate) struct Unsynced {
    dir: PathBuf,
    files: Vec<Arc<File>>,
    cursor: Option<u64>,
}

impl Unsynced {
    pub(crate) fn run(self) -> Result<(), SpoolError> {
        for file in &self.files {
            file.sync_data().map_err(failed("sync a segment in", &self.dir))?;
        }
        if let Some(seq) = self.cursor {
            let mut bytes = seq.to_le_bytes().to_vec();
            bytes.extend_from_slice(&record::checksum(&seq.to_le_bytes()));
            let path = self.dir.join("cursor");
            write_whole(&path, &bytes).map_err(failed("write", &path))?;
        }
        // New and renamed files are there once their directory is.
        File::open(&self.dir).and_then(|dir| dir.sync_all()).map_err(failed("sync", &self.dir))
    }
}

/// What the files of a directory say.
struct Contents {
    /// The last one without its torn end.
    segments: VecDeque<Segment>,
    torn_bytes: u64,
    /// The number of the next record.
    end: u64,
    cursor: u64,
    rejected: u64,
}

impl Contents {
    fn of(dir: &Path) -> Result<Self, SpoolError> {
        let mut found = Vec::new();
        let mut rejected = 0;
        for entry in std::fs::read_dir(dir).map_err(failed("list", dir))? {
            let entry = entry.map_err(failed("list", dir))?;
            let path = entry.path();
            let ending = path.extension().and_then(|ending| ending.to_str());
            rejected += u64::from(ending == Some(REJECTED));
            let first = path.file_stem().and_then(|name| name.to_str()?.parse::<u64>().ok());
            let Some(first) = first.filter(|first| ending == Some(SEGMENT) && *first < u64::MAX / 2) else {
                continue;
            };
            let bytes = match entry.metadata() {
                Ok(metadata) if metadata.is_file() => metadata.len(),
                Ok(_) => continue,
                // Acknowledged meanwhile, under the eyes of who only looks.
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => return Err(failed("look at", &path)(error)),
            };
            if path == segment_path(dir, first) {
                found.push(Segment { first, bytes });
            }
        }
        found.sort_by_key(|segment| segment.first);
        let mut segments = VecDeque::from(found);
        let (mut end, mut torn_bytes) = (0, 0);
        if let Some(last) = segments.back_mut() {
            let whole = whole_records(&segment_path(dir, last.first), last)?;
            torn_bytes = last.bytes.saturating_sub(whole.offset);
            (last.bytes, end) = (whole.offset, whole.seq);
        }
        Ok(Self { segments, torn_bytes, end, cursor: read_cursor(dir)?, rejected })
    }
}

/// The place behind the last record that is whole.
fn whole_records(path: &Path, segment: &Segment) -> Result<Position, SpoolError> {
    let mut whole = Position::start_of(segment.first);
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(whole),
        Err(error) => return Err(failed("open", path)(error)),
    };
    let mut at = whole;
    loop {
        match read_record(&file, at.seq, at.offset, segment.bytes).map_err(failed("read", path))? {
            Found::Record(_, offset) => {
                at = Position { seq: at.seq + 1, offset, ..at };
                whole = at;
            }
            Found::Damaged(offset) => at = Position { seq: at.seq + 1, offset, ..at },
            Found::Nothing => return Ok(whole),
        }
    }
}

enum Found {
    /// A record, and where it ends.
    Record(Outgoing, u64),
    /// Not the record, though it can be said where it ends.
    Damaged(u64),
    /// No record begins here.
    Nothing,
}

/// Reads record `seq` at `offset` of a segment that ends at `end`.
fn read_record(file: &File, seq: u64, offset: u64, end: u64) -> io::Result<Found> {
    let mut head = [0; HEAD_BYTES];
    let body_at = offset.saturating_add(HEAD_BYTES as u64);
    if body_at > end || !read_exact(file, &mut head, offset)? {
        return Ok(Found::Nothing);
    }
    let Some(length) = record::body_bytes(&head).filter(|length| body_at + *length as u64 <= end) else {
        return Ok(Found::Nothing);
    };
    let mut body = vec![0; length];
    if !read_exact(file, &mut body, body_at)? {
        return Ok(Found::Nothing);
    }
    let next = body_at + length as u64;
    Ok(record::decode(seq, &head, &body).map_or(Found::Damaged(next), |message| Found::Record(message, next)))
}

/// Whether the file was long enough.
fn read_exact(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<bool> {
    match file.read_exact_at(bytes, offset) {
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(false),
        result => result.map(|()| true),
    }
}

/// The lock of a directory, which is made if it is missing; `None` while another has it.
fn lock(dir: &Path) -> Result<Option<File>, SpoolError> {
    let path = dir.join(LOCK);
    // Who looks ([`Spool::peek`]) has it for a moment.
    for _ in 0..10 {
        match DirBuilder::new().recursive(true).mode(0o700).create(dir) {
            Ok(()) => {}
            // It was there when it was to be made, and removed when it was looked at.
            Err(error) if error.kind() == ErrorKind::AlreadyExists && !is_file(dir) => continue,
            Err(error) => return Err(failed("create", dir)(error)),
        }
        let mut options = OpenOptions::new();
        let opened = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        let file = match opened {
            Ok(file) => file,
            // Who had the directory has just removed it.
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => return Err(failed("open", &path)(error)),
        };
        match file.try_lock() {
            Ok(()) if is_at(&file, &path).map_err(failed("look at", &path))? => return Ok(Some(file)),
            // It was removed with the directory before it was ours, and locks nothing.
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(10)),
            Err(TryLockError::Error(error)) => return Err(failed("lock", &path)(error)),
        }
    }
    Ok(None)
}

/// Whether something lies there that is no directory.
fn is_file(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|there| !there.is_dir())
}

/// Whether it is this file that lies there.
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let ours = file.metadata()?;
    match std::fs::metadata(path) {
        Ok(there) => Ok((ours.dev(), ours.ino()) == (there.dev(), there.ino())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// A cursor that is missing or damaged says nothing: everything that is there is sent again.
fn read_cursor(dir: &Path) -> Result<u64, SpoolError> {
    let path = dir.join("cursor");
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(failed("open", &path)(error)),
    };
    let (mut seq, mut sum) = ([0; 8], [0; 8]);
    let whole = read_exact(&file, &mut seq, 0).and_then(|first| Ok(first && read_exact(&file, &mut sum, 8)?));
    match whole.map_err(failed("read", &path))? && record::checksum(&seq) == sum {
        true => Ok(u64::from_le_bytes(seq)),
        false => Ok(0),
    }
}

/// Writes a file so that there is the old one or the new one, and nothing between.
fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let unfinished = path.with_extension("new");
    let mut options = OpenOptions::new();
    let file = options.write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?;
    file.write_all_at(bytes, 0)?;
    file.sync_all()?;
    std::fs::rename(&unfinished, path)
}

fn remove(path: &Path) -> Result<(), SpoolError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        removed => removed.map_err(failed("remove", path)),
    }
}

fn segment_path(dir: &Path, first: u64) -> PathBuf {
    dir.join(format!("{first:020}.{SEGMENT}"))
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SpoolError {
    let path = path.to_owned();
    move |source| SpoolError::Io { operation, path, source }
}
