//! What the fuzz target of segments needs of the inside: `nats/fuzz`.

use std::path::{Path, PathBuf};

use async_nats::HeaderMap;
use bytes::Bytes;

use super::{Spool, SpoolError, SpoolOptions, record, segment_path};
use crate::pipeline::Outgoing;

/// Most that one segment takes here: several files of one input stay small.
const OPTIONS: SpoolOptions = SpoolOptions { max_bytes: SpoolOptions::MIN_BYTES, segment_bytes: 1 << 16 };

/// A message as a spool holds it: subject, headers, payload.
pub type Plain = (String, Vec<(String, String)>, Vec<u8>);

/// Opens a directory with small limits.
pub fn open(dir: &Path) -> Result<Spool, SpoolError> {
    Spool::open(dir, OPTIONS)
}

/// The file of the segment that begins with a record's number.
pub fn path(dir: &Path, first: u64) -> PathBuf {
    segment_path(dir, first)
}

/// Record `seq` of this message.
pub fn record(seq: u64, message: &Plain) -> Result<Vec<u8>, SpoolError> {
    record::encode(seq, &outgoing(message))
}

/// Gives a record the length and the checksum that its body has; what is shorter than a head stays.
pub fn fit(record: &mut [u8]) {
    if let Some((head, body)) = record.split_first_chunk_mut::<{ record::HEAD_BYTES }>() {
        let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
        head[..4].copy_from_slice(&length.to_le_bytes());
        head[4..].copy_from_slice(&record::checksum(body));
    }
}

/// The file that says which record is the first that is not acknowledged.
pub fn cursor(seq: u64) -> Vec<u8> {
    let mut bytes = seq.to_le_bytes().to_vec();
    bytes.extend_from_slice(&record::checksum(&seq.to_le_bytes()));
    bytes
}

impl Spool {
    /// Every message that is not read yet.
    pub fn fuzz_rest(&mut self) -> Result<Vec<Plain>, SpoolError> {
        let mut found = Vec::new();
        while let Some((_, message)) = self.read()? {
            found.push(plain(&message));
        }
        Ok(found)
    }

    /// Reads from the first that is not acknowledged on.
    pub fn fuzz_rewind(&mut self) {
        self.rewind();
    }

    /// Appends a message.
    pub fn fuzz_append(&mut self, message: &Plain) -> Result<(), SpoolError> {
        self.append(&outgoing(message), true).map(drop)
    }

    /// Acknowledges what was read, and makes it outlive the machine.
    pub fn fuzz_ack(&mut self) -> Result<(), SpoolError> {
        self.ack(self.position())?;
        self.unsynced().map_or(Ok(()), super::Unsynced::run)
    }
}

fn plain(message: &Outgoing) -> Plain {
    let headers = message.headers.iter();
    let mut headers: Vec<_> = headers
        .flat_map(|(name, values)| {
            values.iter().map(move |value| (AsRef::<str>::as_ref(name).to_owned(), value.as_str().to_owned()))
        })
        .collect();
    headers.sort_by(|(a, _), (b, _)| a.cmp(b));
    (message.subject.clone(), headers, message.payload.to_vec())
}

fn outgoing((subject, headers, payload): &Plain) -> Outgoing {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.append(name.as_str(), value.as_str());
    }
    Outgoing { subject: subject.clone(), headers: map, payload: Bytes::copy_from_slice(payload) }
}
