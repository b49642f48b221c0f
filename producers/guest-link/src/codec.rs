//! The packet around a message.
//!
//! ```text
//! "GL" | version | kind | length, u32 little endian | CRC-32 of version, kind, length and bytes | bytes
//! ```

use crate::VERSION;
use crate::message::Message;

const MAGIC: [u8; 2] = *b"GL";
/// Bytes before those of the message.
pub const HEADER_BYTES: usize = 12;
/// Most bytes of a standard stream in one message.
pub const MAX_CHUNK_BYTES: usize = 64 * 1024;
/// Most bytes of a [`crate::Spec`]: what Linux takes as arguments and environment (MAX_ARG_STRINGS, a quarter of the
/// stack's limit) is 2 MiB by default.
pub const MAX_SPEC_BYTES: usize = 4 * 1024 * 1024;
/// Most bytes of any other message that is not raw.
pub const MAX_CONTROL_BYTES: usize = 64 * 1024;

/// What is wrong with a link or with what came over it.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The bytes are not a packet.
    #[error("what came over the link is not a packet: it begins with {0:02x?}")]
    NoPacket([u8; 2]),
    /// The other end was built from another tree.
    #[error(
        "the other end of the link speaks version {0}, this end {VERSION}: use the guest probe of this build"
    )]
    OtherVersion(u8),
    /// There is no such message in this direction.
    #[error("there is no message of kind {0:#04x}")]
    UnknownKind(u8),
    /// More than a message of its kind may have. Nothing of it was read.
    #[error("a message of kind {kind:#04x} has {length} bytes, more than the {max} that are read")]
    TooLarge {
        /// The message's kind.
        kind: u8,
        /// What its packet says.
        length: usize,
        /// What is allowed.
        max: usize,
    },
    /// The bytes are not those that were sent.
    #[error("a message of kind {0:#04x} has another checksum than its packet says")]
    Altered(u8),
    /// The bytes are not such a message.
    #[error("the message cannot be read: {0}")]
    Malformed(String),
    /// A message that cannot be put into a packet.
    #[error("the message cannot be written: {0}")]
    Unwritable(String),
    /// The link ended within a packet.
    #[error("the link ended within a packet")]
    Cut,
    /// The system's word.
    #[error("the link failed: {0}")]
    Io(#[from] std::io::Error),
}

/// Appends the packet of a message.
pub fn encode<M: Message>(message: &M, out: &mut Vec<u8>) -> Result<(), LinkError> {
    let start = out.len();
    out.extend_from_slice(&[0; HEADER_BYTES]);
    let packet = message.write(out).and_then(|kind| {
        let length = out.len() - start - HEADER_BYTES;
        let max = M::max_bytes(kind).ok_or(LinkError::UnknownKind(kind))?;
        match u32::try_from(length) {
            Ok(fits) if length <= max => Ok(header(kind, fits, &out[start + HEADER_BYTES..])),
            _ => Err(LinkError::TooLarge { kind, length, max }),
        }
    });
    match packet {
        Ok(header) => {
            out[start..start + HEADER_BYTES].copy_from_slice(&header);
            Ok(())
        }
        Err(error) => {
            out.truncate(start);
            Err(error)
        }
    }
}

fn header(kind: u8, length: u32, bytes: &[u8]) -> [u8; HEADER_BYTES] {
    let [a, b, c, d] = length.to_le_bytes();
    let [e, f, g, h] = checksum(kind, length, bytes).to_le_bytes();
    [MAGIC[0], MAGIC[1], VERSION, kind, a, b, c, d, e, f, g, h]
}

fn checksum(kind: u8, length: u32, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&[VERSION, kind]);
    hasher.update(&length.to_le_bytes());
    hasher.update(bytes);
    hasher.finalize()
}

/// What a packet's header says.
#[derive(Debug, Clone, Copy)]
struct Header {
    kind: u8,
    length: u32,
    checksum: u32,
}

impl Header {
    fn read<M: Message>(bytes: &[u8; HEADER_BYTES]) -> Result<Self, LinkError> {
        let [m, n, version, kind, a, b, c, d, e, f, g, h] = *bytes;
        if [m, n] != MAGIC {
            return Err(LinkError::NoPacket([m, n]));
        }
        if version != VERSION {
            return Err(LinkError::OtherVersion(version));
        }
        let max = M::max_bytes(kind).ok_or(LinkError::UnknownKind(kind))?;
        let length = u32::from_le_bytes([a, b, c, d]);
        match usize::try_from(length) {
            Ok(fits) if fits <= max => Ok(Self { kind, length, checksum: u32::from_le_bytes([e, f, g, h]) }),
            _ => Err(LinkError::TooLarge { kind, length: length as usize, max }),
        }
    }
}

/// Reads messages out of bytes that come in any pieces.
///
/// After an error nothing more can be read: where the next packet begins is not known.
#[derive(Debug)]
pub struct Decoder<M> {
    header: [u8; HEADER_BYTES],
    filled: usize,
    body: Option<(Header, Vec<u8>)>,
    message: std::marker::PhantomData<fn() -> M>,
}

impl<M> Default for Decoder<M> {
    fn default() -> Self {
        Self { header: [0; HEADER_BYTES], filled: 0, body: None, message: std::marker::PhantomData }
    }
}

impl<M: Message> Decoder<M> {
    /// Takes bytes from the front of `input` up to the end of a message, and gives that message; `None` when all bytes
    /// were taken before.
    pub fn take(&mut self, input: &mut &[u8]) -> Result<Option<M>, LinkError> {
        if self.body.is_none() {
            let taken = input.len().min(HEADER_BYTES - self.filled);
            self.header[self.filled..self.filled + taken].copy_from_slice(&input[..taken]);
            *input = &input[taken..];
            self.filled += taken;
            if self.filled < HEADER_BYTES {
                return Ok(None);
            }
            let header = Header::read::<M>(&self.header)?;
            self.body = Some((header, Vec::with_capacity(header.length as usize)));
        }
        let Some((header, bytes)) = &mut self.body else { return Ok(None) };
        let taken = input.len().min(header.length as usize - bytes.len());
        bytes.extend_from_slice(&input[..taken]);
        *input = &input[taken..];
        if bytes.len() < header.length as usize {
            return Ok(None);
        }
        let (header, bytes) = (*header, std::mem::take(bytes));
        self.body = None;
        self.filled = 0;
        if checksum(header.kind, header.length, &bytes) != header.checksum {
            return Err(LinkError::Altered(header.kind));
        }
        M::read(header.kind, bytes).map(Some)
    }

    /// Whether the bytes so far end with a whole message.
    pub fn is_at_boundary(&self) -> bool {
        self.filled == 0 && self.body.is_none()
    }
}
