//! Inputs of the target `spool`: `[cursor u8] ([flags u8] [length u16 LE] [bytes])*`, each part a record or a piece of one.
//!
//! The cursor is that number, or damaged for 255. Of the flags, [`NEW_SEGMENT`] begins a segment whose name says how many
//! records came before (and with [`GAP`] one more), and [`FITTED`] gives the part the length and the checksum of its body, so
//! that what lies behind these checks is reached.

use glasshouse_nats::spool_fuzz as spool;

/// The part begins a new segment.
pub const NEW_SEGMENT: u8 = 1;
/// Its name leaves one record out.
pub const GAP: u8 = 2;
/// The head of the record is made to fit its body.
pub const FITTED: u8 = 4;
/// A cursor that is damaged.
pub const DAMAGED_CURSOR: u8 = 255;

/// What an input says lies in a directory.
#[derive(Debug, Default)]
pub struct Files {
    /// The bytes of the cursor, if there is one.
    pub cursor: Option<Vec<u8>>,
    /// Segments by their first record.
    pub segments: Vec<(u64, Vec<u8>)>,
}

/// Reads an input.
pub fn files(input: &[u8]) -> Files {
    let Some((cursor, mut rest)) = input.split_first() else { return Files::default() };
    let cursor = match *cursor {
        0 => None,
        DAMAGED_CURSOR => Some(vec![0xff; 16]),
        seq => Some(spool::cursor(seq.into())),
    };
    let mut segments: Vec<(u64, Vec<u8>)> = Vec::new();
    let mut records = 0;
    while let Some(([flags, low, high], bytes)) = rest.split_first_chunk::<3>() {
        let length = usize::from(u16::from_le_bytes([*low, *high])).min(bytes.len());
        let (part, next) = bytes.split_at(length);
        rest = next;
        let mut part = part.to_vec();
        if flags & FITTED != 0 {
            spool::fit(&mut part);
        }
        if flags & NEW_SEGMENT != 0 || segments.is_empty() {
            records += u64::from(flags & GAP != 0);
            // A file has one name: a segment without a record in front of it is written over.
            segments.retain(|(first, _)| *first != records);
            segments.push((records, Vec::new()));
        }
        if let Some((_, bytes)) = segments.last_mut() {
            bytes.extend(part);
        }
        records += 1;
    }
    Files { cursor, segments }
}
