//! The message around a piece of the link, and the account of what was sent, came and was handed on.
//!
//! ```text
//! "GN" | version | kind | number, u64 little endian | taken, u64 little endian | a piece of the link, or the reason of an end
//! ```
//!
//! `number` is how many pieces were sent before this message, whatever its kind: so a missing piece shows at the next message of any
//! kind. `taken` is how many of the other end's pieces were handed on. The packets inside have a checksum of their own.

use glasshouse_guest_link::MAX_CHUNK_BYTES;

const MAGIC: [u8; 2] = *b"GN";
const VERSION: u8 = 1;
/// Bytes before the piece.
pub const HEADER_BYTES: usize = 20;
/// Most bytes of a piece: a whole packet of output.
pub const MAX_PIECE_BYTES: usize = MAX_CHUNK_BYTES + glasshouse_guest_link::codec::HEADER_BYTES;
/// Most bytes of a message.
pub const MAX_MESSAGE_BYTES: usize = HEADER_BYTES + MAX_PIECE_BYTES;
/// Most of the reason of an end that is sent, and read.
pub(crate) const MAX_REASON_BYTES: usize = 512;
/// Most pieces of a direction that are sent and not yet handed on: 2 MiB.
pub const WINDOW: u64 = 32;
/// The other end is told of what was handed on once it is so many pieces.
const TELL_AFTER: u64 = WINDOW / 4;

/// What a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It has a piece of the link.
    Piece,
    /// It only tells what was taken.
    Taken,
    /// The link ends; with a reason, if not in order.
    End,
}

/// What stands before the bytes of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What the message is.
    pub kind: Kind,
    /// Pieces that were sent before it.
    pub number: u64,
    /// Pieces of the other end that were handed on.
    pub taken: u64,
}

/// Why a link over NATS is over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// The bytes are no such message.
    #[error("what came over NATS is no message of the link")]
    NoMessage,
    /// The other end was built from another tree.
    #[error(
        "the other end speaks version {0} over NATS, this end {VERSION}: use the guest probe of this build"
    )]
    OtherVersion(u8),
    /// It has no piece, or more than one may have.
    #[error("a message over NATS has a piece of {0} bytes, and 1 to {MAX_PIECE_BYTES} are allowed")]
    PieceSize(usize),
    /// A message was lost, doubled or exchanged with another.
    #[error(
        "messages were lost or doubled on their way over NATS: piece {found} came, and {expected} was to come"
    )]
    OffSequence {
        /// Pieces that had come.
        expected: u64,
        /// Pieces that had been sent, as the message says.
        found: u64,
    },
    /// The other end sends though it was not told that there is room.
    #[error("more than {WINDOW} pieces were sent over NATS before they were taken")]
    Overrun,
    /// The other end takes what was not sent, or less than before.
    #[error(
        "the other end says that it took {said} pieces, of {sent} that were sent and {before} that it took before"
    )]
    FalselyTaken {
        /// As it says.
        said: u64,
        /// What it had said before.
        before: u64,
        /// What was sent.
        sent: u64,
    },
    /// A message that says nothing new.
    #[error("a message over NATS says nothing")]
    Idle,
    /// The other end gave up.
    #[error("the other end of the link gave up: {0}")]
    GivenUp(String),
    /// The connection to the server, or what the server said.
    #[error("the connection to the NATS server broke: {0}")]
    Connection(String),
}

impl Header {
    /// Its bytes.
    pub fn write(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..2].copy_from_slice(&MAGIC);
        bytes[2] = VERSION;
        bytes[3] = match self.kind {
            Kind::Piece => 1,
            Kind::Taken => 2,
            Kind::End => 3,
        };
        bytes[4..12].copy_from_slice(&self.number.to_le_bytes());
        bytes[12..].copy_from_slice(&self.taken.to_le_bytes());
        bytes
    }

    /// Reads it from the front of a message whose rest is as long as its kind may have.
    pub fn read(message: &[u8]) -> Result<Self, Broken> {
        let (header, rest) = message.split_first_chunk::<HEADER_BYTES>().ok_or(Broken::NoMessage)?;
        let [m, n, version, kind, a, b, c, d, e, f, g, h, i, j, k, l, o, p, q, r] = *header;
        if [m, n] != MAGIC {
            return Err(Broken::NoMessage);
        }
        if version != VERSION {
            return Err(Broken::OtherVersion(version));
        }
        let kind = match kind {
            1 => Kind::Piece,
            2 => Kind::Taken,
            3 => Kind::End,
            _ => return Err(Broken::NoMessage),
        };
        let least = usize::from(kind == Kind::Piece);
        let most = if kind == Kind::Taken { 0 } else { MAX_PIECE_BYTES };
        if !(least..=most).contains(&rest.len()) {
            return Err(Broken::PieceSize(rest.len()));
        }
        let number = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
        Ok(Self { kind, number, taken: u64::from_le_bytes([i, j, k, l, o, p, q, r]) })
    }
}

/// What one end knows of both directions, in pieces.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ledger {
    sent: u64,
    /// Of those sent, how many the other end has handed on.
    acknowledged: u64,
    received: u64,
    /// Of those received, how many were handed on.
    taken: u64,
    /// Of those handed on, how many the other end was told of.
    told: u64,
}

impl Ledger {
    /// Whether another piece may be sent.
    pub fn has_room(&self) -> bool {
        self.sent - self.acknowledged < WINDOW
    }

    /// The header of a message that is sent now.
    pub fn send(&mut self, kind: Kind) -> Header {
        let header = Header { kind, number: self.sent, taken: self.taken };
        self.sent += u64::from(kind == Kind::Piece);
        self.told = self.taken;
        header
    }

    /// Judges a message that came, and says what it is. The piece of one that has a piece is what stands behind the header.
    ///
    /// # Errors
    /// What ends the link; of an end, [`Broken::GivenUp`] if it has a reason.
    pub fn hear(&mut self, message: &[u8]) -> Result<Kind, Broken> {
        let header = Header::read(message)?;
        self.receive(header)?;
        match message.get(HEADER_BYTES..).unwrap_or_default() {
            reason if header.kind == Kind::End && !reason.is_empty() => {
                Err(Broken::GivenUp(readable(reason)))
            }
            _ => Ok(header.kind),
        }
    }

    /// Judges the header of a message that came.
    pub fn receive(&mut self, header: Header) -> Result<(), Broken> {
        if header.number != self.received {
            return Err(Broken::OffSequence { expected: self.received, found: header.number });
        }
        if header.taken < self.acknowledged || header.taken > self.sent {
            let (before, sent) = (self.acknowledged, self.sent);
            return Err(Broken::FalselyTaken { said: header.taken, before, sent });
        }
        match header.kind {
            Kind::Piece if self.received - self.taken >= WINDOW => return Err(Broken::Overrun),
            Kind::Piece => self.received += 1,
            // Else whoever sends nothing else would cost time without end.
            Kind::Taken if header.taken == self.acknowledged => return Err(Broken::Idle),
            Kind::Taken | Kind::End => {}
        }
        self.acknowledged = header.taken;
        Ok(())
    }

    /// A piece that came was handed on; whether the other end has to be told now.
    pub fn take(&mut self) -> bool {
        self.taken = self.received.min(self.taken + 1);
        self.taken - self.told >= TELL_AFTER
    }
}

/// What the other end says, as it may be shown.
fn readable(reason: &[u8]) -> String {
    let reason = String::from_utf8_lossy(&reason[..reason.len().min(MAX_REASON_BYTES)]);
    reason.chars().filter(|letter| !letter.is_control()).collect()
}
