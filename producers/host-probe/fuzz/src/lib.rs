//! Inputs of the target `kernel_record`: `([length u16 LE] [record])*`, where bit 15 of the length says that the record
//! is taken as it stands. Any other is fitted: see [`Fitter::fit`].

use glasshouse_bpf::abi::{self, Abi};

/// In a length: do not fit the record.
pub const AS_IT_STANDS: u16 = 1 << 15;

/// The kind with the highest number.
const LAST_KIND: u16 = abi::KIND_OPERATION;
/// Tasks whose tables fitted records fill, from number 0: few, so that tallies find them.
const TASKS: u32 = 4;
/// One more than an entry's index can be. Beyond the table lies a case too.
const INDEXES: u32 = abi::SEEN as u32 + 2;
/// Families of addresses that are told, and one that is not.
const FAMILIES: [u16; 4] = [1, 2, 10, 16];

/// The fields of a kind's body.
fn fields(kind: u16) -> &'static [abi::Field] {
    match kind {
        abi::KIND_EXEC => abi::Exec::FIELDS,
        abi::KIND_OPEN => abi::Open::FIELDS,
        abi::KIND_DELETE => abi::Delete::FIELDS,
        abi::KIND_RENAME => abi::Rename::FIELDS,
        abi::KIND_CHANGE => abi::Change::FIELDS,
        abi::KIND_FILE => abi::File::FIELDS,
        abi::KIND_SOCKET => abi::Socket::FIELDS,
        abi::KIND_TRAFFIC => abi::Traffic::FIELDS,
        abi::KIND_DNS => abi::Dns::FIELDS,
        abi::KIND_OPERATION => abi::Operation::FIELDS,
        _ => &[],
    }
}

/// The records of an input, fitted where they ask for it.
pub fn records(mut input: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    let mut fitter = Fitter::default();
    std::iter::from_fn(move || {
        let (length, rest) = input.split_first_chunk::<2>()?;
        let length = u16::from_le_bytes(*length);
        let (record, rest) = rest.split_at(usize::from(length & !AS_IT_STANDS).min(rest.len()));
        input = rest;
        Some(if length & AS_IT_STANDS == 0 { fitter.fit(record) } else { record.to_vec() })
    })
}

/// Makes records that pass the first checks.
#[derive(Debug, Default)]
pub struct Fitter {
    /// What the records so far told of, so that tallies are about it.
    filled: Vec<abi::Entry>,
}

impl Fitter {
    /// Makes a record one that passes the first checks, so that what lies behind them is reached: its size and version
    /// are right, its kind and what else has a number is known or the one after the last, the lengths in it lie within
    /// its payload, and tallies are about what was told of before. What is right already stays.
    pub fn fit(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut record = bytes.to_vec();
        record.resize(bytes.len().clamp(abi::PAYLOAD_OFFSET, abi::MAX_RECORD_BYTES), 0);
        let mut header = abi::Header::read(&record).expect("a record holds a header");
        header.record_bytes = record.len() as u32;
        header.version = abi::ABI_VERSION as u16;
        if !(abi::KIND_FORK..=LAST_KIND + 1).contains(&header.kind) {
            header.kind = abi::KIND_FORK + header.kind % (LAST_KIND + 1);
        }
        record[..size_of::<abi::Header>()].copy_from_slice(header.as_bytes());

        let (fixed, payload) = record.split_at_mut(abi::PAYLOAD_OFFSET);
        let body = &mut fixed[size_of::<abi::Header>()..];
        if header.kind == abi::KIND_TALLIES {
            self.fit_tallies(body, payload);
        }
        let mut room = payload.len();
        for field in fields(header.kind) {
            let bytes = &mut body[field.offset..field.offset + field.size];
            match field.name {
                "exe" | "cwd" | "path" | "from" | "to" | "other" => {
                    fit_length(&mut bytes[..2], &mut room);
                    fit_length(&mut bytes[2..4], &mut room);
                }
                "argv_bytes" | "env_bytes" | "message_bytes" => fit_length(bytes, &mut room),
                "entry" => self.fit_entry(bytes),
                "address" | "server" => fit_family(bytes),
                "change" => fit_number(bytes, abi::CHANGE_MAP_EXECUTABLE + 2),
                "operation" if header.kind == abi::KIND_SOCKET => fit_number(bytes, abi::SOCKET_SEND + 2),
                "operation" => fit_number(bytes, abi::OPERATION_OPEN_BY_HANDLE + 2),
                _ => {}
            }
        }
        record
    }

    fn fit_entry(&mut self, bytes: &mut [u8]) {
        let (task, index) = bytes.split_at_mut(4);
        fit_number(task, TASKS);
        fit_number(index, INDEXES);
        let entry = abi::Entry::read(bytes).expect("an entry has its size");
        if (1..=abi::SEEN as u32).contains(&entry.index) {
            self.filled.push(entry);
        }
    }

    /// The number of tallies is that in the payload; a task or index that is none becomes one that is filled.
    fn fit_tallies(&self, body: &mut [u8], payload: &mut [u8]) {
        let mut of = abi::Tallies::read(body).expect("a body holds every struct");
        let pick =
            |among: &[abi::Entry], number: u32| among.get(number as usize % among.len().max(1)).copied();
        if of.task >= TASKS {
            of.task = pick(&self.filled, of.task).map_or(0, |entry| entry.task);
        }
        let filled: Vec<abi::Entry> =
            self.filled.iter().filter(|entry| entry.task == of.task).copied().collect();
        let (tallies, _) = payload.as_chunks_mut::<{ size_of::<abi::Tally>() }>();
        of.tallies = tallies.len().min(abi::SEEN) as u32;
        for bytes in tallies {
            let mut tally = abi::Tally::read(bytes).expect("a tally has its size");
            if tally.index >= INDEXES {
                tally.index = pick(&filled, tally.index).map_or(1, |entry| entry.index);
            }
            bytes.copy_from_slice(tally.as_bytes());
        }
        body[..size_of::<abi::Tallies>()].copy_from_slice(of.as_bytes());
    }
}

/// Brings a little-endian length into `room`, and takes it from there.
fn fit_length(length: &mut [u8], room: &mut usize) {
    let mut whole = [0; 8];
    whole[..length.len()].copy_from_slice(length);
    let fitted = u64::from_le_bytes(whole) % (*room as u64 + 1);
    length.copy_from_slice(&fitted.to_le_bytes()[..length.len()]);
    *room -= fitted as usize;
}

/// Brings a little-endian number below `end`.
fn fit_number(bytes: &mut [u8], end: u32) {
    let number = u32::from_le_bytes(bytes.try_into().expect("four bytes"));
    bytes.copy_from_slice(&(number % end).to_le_bytes());
}

fn fit_family(address: &mut [u8]) {
    let family = u16::from_le_bytes([address[0], address[1]]);
    if !FAMILIES.contains(&family) {
        let fitted = FAMILIES[usize::from(family) % FAMILIES.len()];
        address[..2].copy_from_slice(&fitted.to_le_bytes());
    }
}
