//! Frame bytes to [`Frame`] and back.

use serde::{Deserialize, Serialize};
use serde_bytes::Bytes;

pub(super) use super::packed::pack;
use super::{Body, Entry, Frame, Header, Seal, each_list, packed};
use crate::version;

/// Largest frame that is written or read: with room for headers below a NATS server's default `max_payload`, 1 MiB.
pub const MAX_FRAME_BYTES: usize = 1024 * 1024 - 16 * 1024;

/// Most addresses of one DNS answer that a frame has: the writer keeps the first, a reader takes no more.
pub const MAX_DNS_ANSWERS: usize = 64;
/// Longest DNS name in a frame: what a name has on the wire (RFC 1035, section 2.3.4).
pub const MAX_DNS_NAME_BYTES: usize = 255;

/// MessagePack of a 5-element array whose first element is the 3-character string `ghf`.
const MAGIC: [u8; 5] = [0x95, 0xa3, b'g', b'h', b'f'];
/// Magic and the version (a positive fixint).
const PRELUDE_BYTES: usize = MAGIC.len() + 1;

/// How deep lists may lie in each other: a frame's argument lies five deep. Every level takes stack, and the
/// deserializer's own limit of 1024 is more than a thread's stack holds.
const MAX_DEPTH: usize = 16;

/// Why bytes are not a frame.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// More bytes than a frame can have.
    #[error("the frame has {0} bytes, more than the {MAX_FRAME_BYTES} that are read")]
    TooLarge(usize),
    /// The bytes end inside the fixed beginning.
    #[error("the frame ends after {0} bytes, before its version")]
    TooShort(usize),
    /// The bytes are something else.
    #[error("not a frame: it does not begin with the magic `ghf`")]
    NotAFrame,
    /// Written by something newer (or not a version at all).
    #[error("the frame has version {0}; this reader knows 1 to {newest}", newest = version::FRAME)]
    UnknownVersion(u8),
    /// MessagePack of another shape, or cut.
    #[error("the frame is malformed: {0}")]
    Malformed(#[from] rmp_serde::decode::Error),
    /// The columns of the body are not what they should be.
    #[error("the body of the frame is malformed: {0}")]
    MalformedBody(&'static str),
    /// An index points outside of its table.
    #[error("the frame is inconsistent: {what} {index} of a table of {len}")]
    IndexOutOfRange {
        /// Which table.
        what: &'static str,
        /// The index.
        index: u32,
        /// The table's length.
        len: usize,
    },
    /// A field holds what no probe writes.
    #[error("the frame is inconsistent: {0}")]
    Inconsistent(&'static str),
    /// Bytes follow the frame.
    #[error("more bytes follow the frame")]
    TrailingBytes,
}

/// Why a frame cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// Header or seal.
    #[error(transparent)]
    MessagePack(#[from] rmp_serde::encode::Error),
    /// The body, which no reader would take.
    #[error("the body of the frame cannot be written: {0}")]
    Body(&'static str),
}

#[derive(Serialize)]
struct Wire<'w>(&'static str, u8, &'w Header, &'w Bytes, &'w Option<Seal>);

#[derive(Deserialize)]
struct WireOwned<'a, B>(
    #[allow(dead_code, reason = "read as the magic before serde sees it")] &'a str,
    #[allow(dead_code, reason = "read as the version before serde sees it")] u8,
    Header,
    B,
    Option<Seal>,
);

/// Writes a frame's parts as bytes; the body is packed.
pub(super) fn encode(header: &Header, body: &[u8], seal: &Option<Seal>) -> Result<Vec<u8>, EncodeError> {
    // Room for all of it: a frame is written once and kept.
    let mut bytes = Vec::with_capacity(body.len() + 512);
    Wire("ghf", version::FRAME, header, Bytes::new(body), seal)
        .serialize(&mut rmp_serde::Serializer::new(&mut bytes))?;
    Ok(bytes)
}

fn read<'a, B: Deserialize<'a>>(bytes: &'a [u8]) -> Result<WireOwned<'a, B>, DecodeError> {
    let mut deserializer = rmp_serde::Deserializer::from_read_ref(bytes);
    deserializer.set_max_depth(MAX_DEPTH);
    let wire = WireOwned::deserialize(&mut deserializer)?;
    // The deserializer hides how far it read; that not one marker more can be read says the same. A type without
    // parts is asked for: inside of a cut list the end would look like the frame's.
    match bool::deserialize(&mut deserializer) {
        Err(rmp_serde::decode::Error::InvalidMarkerRead(_)) => Ok(wire),
        _ => Err(DecodeError::TrailingBytes),
    }
}

/// The wire version that bytes with a frame's magic say they have, whether this reader knows it or not.
pub fn version_of(bytes: &[u8]) -> Option<u8> {
    bytes.strip_prefix(&MAGIC)?.first().copied()
}

impl<'a> Frame<'a> {
    /// Reads a frame: size, magic and version first, then the structure, then every index in it.
    ///
    /// What a hostile frame makes this allocate stays below 64 bytes for each of its own and 16 MiB more
    /// (`tests/allocation.rs` measures it).
    pub fn decode(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        if bytes.len() > MAX_FRAME_BYTES {
            return Err(DecodeError::TooLarge(bytes.len()));
        }
        if bytes.len() < PRELUDE_BYTES {
            return Err(DecodeError::TooShort(bytes.len()));
        }
        if bytes[..MAGIC.len()] != MAGIC {
            return Err(DecodeError::NotAFrame);
        }
        let (header, body, seal) = match bytes[MAGIC.len()] {
            1 | 2 => {
                let WireOwned(_, _, header, body, seal) = read::<Body<'a>>(bytes)?;
                (header, body, seal)
            }
            version::FRAME => {
                let WireOwned(_, _, header, body, seal) = read::<&'a Bytes>(bytes)?;
                (header, packed::unpack(body)?, seal)
            }
            other => return Err(DecodeError::UnknownVersion(other)),
        };
        body.check()?;
        Ok(Self { header, body, seal })
    }

    /// Writes the frame as bytes.
    pub fn encode(&self) -> Result<Vec<u8>, EncodeError> {
        encode(&self.header, &pack(&self.body)?, &self.seal)
    }
}

impl Body<'_> {
    /// Whether every index is inside of its table, so that readers may index without a check of their own.
    fn check(&self) -> Result<(), DecodeError> {
        let within = |what, index: u32, len: usize| match (index as usize) < len {
            true => Ok(()),
            false => Err(DecodeError::IndexOutOfRange { what, index, len }),
        };
        let process = |index| within("process", index, self.processes.len());
        let path = |index| within("path", index, self.paths.len());
        let of_address =
            |address: &[u8], port: Option<u16>| match port.is_none() || matches!(address.len(), 4 | 16) {
                true => Ok(()),
                false => Err(DecodeError::Inconsistent("an IP address of neither 4 nor 16 bytes")),
            };
        for fork in &self.forks {
            process(fork.process)?;
            process(fork.child)?;
        }
        for exec in &self.execs {
            process(exec.process)?;
            path(exec.exe)?;
            path(exec.cwd)?;
        }
        for exit in &self.exits {
            process(exit.process)?;
        }
        for open in &self.opens {
            process(open.process)?;
            path(open.path)?;
        }
        for delete in &self.deletes {
            process(delete.process)?;
            path(delete.path)?;
        }
        for rename in &self.renames {
            process(rename.process)?;
            path(rename.from)?;
            path(rename.to)?;
        }
        for change in &self.changes {
            process(change.process)?;
            path(change.path)?;
            change.other.map_or(Ok(()), path)?;
        }
        for io in &self.ios {
            process(io.process)?;
            path(io.path)?;
        }
        for socket in &self.sockets {
            process(socket.process)?;
            of_address(socket.address, socket.port)?;
        }
        for traffic in &self.traffic {
            process(traffic.process)?;
            of_address(traffic.address, traffic.port)?;
        }
        for dns in &self.dns {
            process(dns.process)?;
            of_address(dns.server, dns.port)?;
            if dns.name.len() > MAX_DNS_NAME_BYTES || dns.answers.len() > MAX_DNS_ANSWERS {
                return Err(DecodeError::Inconsistent("a DNS name or list of answers that is too long"));
            }
            if dns.answers.iter().any(|answer| !matches!(answer.len(), 4 | 16)) {
                return Err(DecodeError::Inconsistent("an IP address of neither 4 nor 16 bytes"));
            }
        }
        for credentials in &self.credentials {
            process(credentials.process)?;
        }
        for operation in &self.operations {
            process(operation.process)?;
        }
        let mut stands_for_none = false;
        each_list!([&] self, |_class, list| stands_for_none |= list.iter().any(|entry| entry.facts() == 0));
        match stands_for_none {
            true => Err(DecodeError::Inconsistent("an event that stands for none")),
            false => Ok(()),
        }
    }
}
