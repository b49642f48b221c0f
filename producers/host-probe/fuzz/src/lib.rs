//! Inputs of the target `kernel_record`: `([length u16 LE] [record])*`, where bit 15 of the length says that the record
//! is taken as it stands. Any other is fitted: see [`fit`].

use glasshouse_bpf::abi::{self, Abi};

/// In a length: do not fit the record.
pub const AS_IT_STANDS: u16 = 1 << 15;

/// The kind with the highest number.
const LAST_KIND: u16 = abi::KIND_CONNECT;

/// The fields of a kind's body that say how much of the payload is whose.
fn fields(kind: u16) -> &'static [abi::Field] {
    match kind {
        abi::KIND_EXEC => abi::Exec::FIELDS,
        abi::KIND_OPEN => abi::Open::FIELDS,
        abi::KIND_DELETE => abi::Delete::FIELDS,
        abi::KIND_RENAME => abi::Rename::FIELDS,
        abi::KIND_CONNECT => abi::Connect::FIELDS,
        _ => &[],
    }
}

/// The records of an input, fitted where they ask for it.
pub fn records(mut input: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    std::iter::from_fn(move || {
        let (length, rest) = input.split_first_chunk::<2>()?;
        let length = u16::from_le_bytes(*length);
        let (record, rest) = rest.split_at(usize::from(length & !AS_IT_STANDS).min(rest.len()));
        input = rest;
        Some(if length & AS_IT_STANDS == 0 { fit(record) } else { record.to_vec() })
    })
}

/// Makes a record one that passes the first checks, so that what lies behind them is reached: its size and version are
/// right, its kind is known or the one after the last, and the lengths in it lie within its payload. What is right
/// already stays.
pub fn fit(bytes: &[u8]) -> Vec<u8> {
    let mut record = bytes.to_vec();
    record.resize(bytes.len().clamp(abi::PAYLOAD_OFFSET, abi::MAX_RECORD_BYTES), 0);
    let mut header = abi::Header::read(&record).expect("a record holds a header");
    header.record_bytes = record.len() as u32;
    header.version = abi::ABI_VERSION as u16;
    if !(abi::KIND_FORK..=LAST_KIND + 1).contains(&header.kind) {
        header.kind = abi::KIND_FORK + header.kind % (LAST_KIND + 1);
    }
    record[..size_of::<abi::Header>()].copy_from_slice(header.as_bytes());

    let mut room = record.len() - abi::PAYLOAD_OFFSET;
    for field in fields(header.kind) {
        let at = size_of::<abi::Header>() + field.offset;
        match field.name {
            "exe" | "cwd" | "path" | "from" | "to" | "other" => {
                fit_length(&mut record[at..at + 2], &mut room);
                fit_length(&mut record[at + 2..at + 4], &mut room);
            }
            name if name.ends_with("_bytes") && !name.contains("total") => {
                fit_length(&mut record[at..at + field.size], &mut room);
            }
            _ => {}
        }
    }
    record
}

/// Brings a little-endian length into `room`, and takes it from there.
fn fit_length(length: &mut [u8], room: &mut usize) {
    let mut whole = [0; 8];
    whole[..length.len()].copy_from_slice(length);
    let fitted = u64::from_le_bytes(whole) % (*room as u64 + 1);
    length.copy_from_slice(&fitted.to_le_bytes()[..length.len()]);
    *room -= fitted as usize;
}
