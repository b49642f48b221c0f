//! What an input of the fuzz target `guest_link` is: how it is cut, and bytes of a link, or messages that are put into packets.
//!
//! ```text
//!   mode: bit 0 to the guest, bit 1 packets | length of a piece | bytes
//!   packets: kind | length, u16 little endian | bytes, again and again
//! ```
//! A checksum that fits is nothing that a fuzzer finds.

use glasshouse_guest_link::VERSION;

/// One input, taken apart.
#[derive(Debug)]
pub struct Input {
    /// What is said to the guest, not to the host.
    pub to_guest: bool,
    /// In pieces of so many bytes.
    pub piece: usize,
    /// What comes over the link.
    pub bytes: Vec<u8>,
}

/// Takes an input apart; `None` of one that is too short.
pub fn input(bytes: &[u8]) -> Option<Input> {
    let [mode, piece, rest @ ..] = bytes else { return None };
    let bytes = if mode & 2 == 0 { rest.to_vec() } else { packets(rest) };
    Some(Input { to_guest: mode & 1 != 0, piece: usize::from(*piece) + 1, bytes })
}

fn packets(mut rest: &[u8]) -> Vec<u8> {
    let mut packets = Vec::new();
    while let [kind, low, high, after @ ..] = rest {
        let (body, behind) = after.split_at(after.len().min(usize::from(u16::from_le_bytes([*low, *high]))));
        packets.extend(packet(*kind, body));
        rest = behind;
    }
    packets
}

/// A packet of these bytes, as the codec of the link describes it.
fn packet(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = (body.len() as u32).to_le_bytes();
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&[VERSION, kind]);
    hasher.update(&length);
    hasher.update(body);
    let mut packet = vec![b'G', b'L', VERSION, kind];
    packet.extend(length);
    packet.extend(hasher.finalize().to_le_bytes());
    packet.extend(body);
    packet
}
