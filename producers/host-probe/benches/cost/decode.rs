//! What user space alone can take: records as the kernel writes them, decoded, framed and hashed.

use std::error::Error;
use std::time::Instant;

use glasshouse_bpf::abi::{self, Abi};
use glasshouse_host_probe::decode::{Decoder, Record};
use glasshouse_schema::frame::FrameWriterConfig;
use glasshouse_schema::lifecycle::RedactionRules;
use glasshouse_schema::redact::Redactor;
use glasshouse_schema::{ExecutionId, FrameWriter, NodeId, Vantage};

/// An open of a file of its own, its path as the kernel walks it: the last name first.
fn record(file: u64) -> Vec<u8> {
    let payload = format!("file{file:07}\0d{:03}\0tree\0glasshouse-cost\0shm\0dev\0", file / 1000);
    let path = abi::Path { walked_bytes: payload.len() as u16, user_bytes: 0, flags: 0, reserved: 0 };
    let open = abi::Open {
        result: 3,
        open_flags: 0,
        path,
        entry: abi::Entry { task: 1, index: 1 },
        flags: 0,
        syscall: 257,
    };
    let header = abi::Header {
        record_bytes: (abi::PAYLOAD_OFFSET + payload.len()) as u32,
        kind: abi::KIND_OPEN,
        version: abi::ABI_VERSION as u16,
        slot: 0,
        generation: 1,
        boot_ns: 1_000_000 + file * 500,
        start_boot_ns: 1,
        tgid: 2,
        tid: 2,
    };
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend_from_slice(open.as_bytes());
    bytes.resize(abi::PAYLOAD_OFFSET, 0);
    bytes.extend_from_slice(payload.as_bytes());
    bytes
}

/// Events per second through decoder, redactor and frame writer, SHA-256 included, all paths different.
pub(super) fn rate(events: u64) -> Result<f64, Box<dyn Error>> {
    let records: Vec<Vec<u8>> = (0..events).map(record).collect();
    let id = ExecutionId::from_parts(1, [0; 10]);
    let config = FrameWriterConfig::new(id, NodeId::new("bench")?, Vantage::Host, 1, 0);
    let mut writer = FrameWriter::new(config);
    let rules = RedactionRules { path_prefixes: Vec::new(), tokens: true };
    let mut redactor = Redactor::new([0; 32], id, rules);
    let mut decoder = Decoder::default();
    let began = Instant::now();
    for bytes in &records {
        let record = Record::parse(bytes).ok_or("a record is refused")?;
        let untold = decoder.decode(&record, &mut redactor, |event, count| {
            std::hint::black_box(writer.push_counted(event, count));
        });
        std::hint::black_box(untold);
    }
    std::hint::black_box(writer.flush());
    let took = began.elapsed();
    let delivered = writer.counters().class(glasshouse_schema::Class::File).delivered;
    if delivered != events {
        return Err(format!("{delivered} of {events} events delivered").into());
    }
    Ok(events as f64 / took.as_secs_f64())
}
