//! What an input of the fuzz target `guest_nats` is: what happens at the host's end of a link, one thing after the other.
//!
//! ```text
//!   0 | length, u16 little endian | a message as it comes
//!   1 | kind | number, i8 beside what is right | taken, i8 beside what was said | half of the length behind the header, u16 little endian
//!   2   the host sends a piece, if it may
//!   3   the host hands a piece on, if it has one
//! ```
//! The numbers of a message that fits are nothing that a fuzzer finds.

/// One thing that happens.
#[derive(Debug)]
pub enum Step<'a> {
    /// Bytes come over the server.
    Raw(&'a [u8]),
    /// A message comes that has the form of one.
    Message {
        /// Its byte for the kind.
        kind: u8,
        /// Beside the number that is right.
        number: i8,
        /// Beside the count that was last said.
        taken: i8,
        /// Of what stands behind its header, up to twice what a piece may have.
        bytes: usize,
    },
    /// The host sends a piece.
    Send,
    /// The host hands on a piece.
    Take,
}

/// Takes an input apart.
pub fn steps(mut rest: &[u8]) -> impl Iterator<Item = Step<'_>> {
    std::iter::from_fn(move || {
        let (step, behind) = match rest {
            [op, low, high, after @ ..] if op % 4 == 0 => {
                let length = usize::from(u16::from_le_bytes([*low, *high]));
                let (message, behind) = after.split_at(after.len().min(length));
                (Step::Raw(message), behind)
            }
            [op, kind, number, taken, low, high, behind @ ..] if op % 4 == 1 => {
                let (number, taken) = (number.cast_signed(), taken.cast_signed());
                let bytes = 2 * usize::from(u16::from_le_bytes([*low, *high]));
                (Step::Message { kind: *kind, number, taken, bytes }, behind)
            }
            [op, behind @ ..] if op % 4 == 2 => (Step::Send, behind),
            [op, behind @ ..] if op % 4 == 3 => (Step::Take, behind),
            _ => return None,
        };
        rest = behind;
        Some(step)
    })
}
