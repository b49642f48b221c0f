//! Writes the seeds: `cargo run --example seeds`, in this folder, after a change of the messages.

use std::path::Path;

use glasshouse_guest_link::codec::{HEADER_BYTES, LinkError, encode};
use glasshouse_guest_link::message::{Message, *};
use glasshouse_schema::ids::{Digest, ExecutionId, NodeId, Vantage};
use glasshouse_schema::lifecycle::{Attached, RedactionRules};
use glasshouse_schema::limits::{Limit, Limits};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds/guest_link");
    std::fs::create_dir_all(&folder)?;
    for (name, bytes) in seeds()? {
        std::fs::write(folder.join(name), bytes)?;
    }
    Ok(())
}

/// Messages of one direction as the target puts them into packets.
fn parts<M: Message>(direction: u8, messages: &[M]) -> Result<Vec<u8>, LinkError> {
    let mut input = vec![direction | 2, 6];
    for message in messages {
        let mut packet = Vec::new();
        encode(message, &mut packet)?;
        let body = &packet[HEADER_BYTES..];
        input.push(packet[3]);
        input.extend((body.len() as u16).to_le_bytes());
        input.extend(body);
    }
    Ok(input)
}

fn seeds() -> Result<Vec<(&'static str, Vec<u8>)>, Box<dyn std::error::Error>> {
    let bytes = |text: &str| Bytes(text.as_bytes().to_vec());
    let spec = Spec {
        execution: ExecutionId::from_parts(1, [7; 10]),
        argv: vec![bytes("true"), bytes("-x")],
        env: vec![(bytes("PATH"), bytes("/bin"))],
        workdir: bytes("/"),
        watch: true,
        limits: Limits { pids: Some(5), ..Limits::default() },
        redaction: RedactionRules { path_prefixes: vec!["/a".into()], tokens: true },
        redaction_key: Bytes(vec![1; 32]),
        unix_ns: 7,
    };
    let begin = [
        ToGuest::Spec(Box::new(spec)),
        ToGuest::Attach(Attach { node: NodeId::new("n")?, epoch: 1, lossless: false }),
        ToGuest::Release,
    ];
    let rest = [
        ToGuest::Stdin(bytes("in")),
        ToGuest::StdinEnd,
        ToGuest::Credit((Stream::Stdout, 9)),
        ToGuest::Signal(15),
        ToGuest::Kill,
        ToGuest::Drain(true),
        ToGuest::Seal,
        ToGuest::Shutdown,
    ];
    let hello = Hello {
        probe: "0".into(),
        kernel: "6.1".into(),
        arch: "x86_64".into(),
        btf: true,
        is_init: true,
        problems: vec!["none".into()],
    };
    let attached = Attached {
        vantage: Vantage::Guest,
        controller: "ebpf".into(),
        hooks: vec!["a".into()],
        blind_spots: Vec::new(),
    };
    let host = [
        ToHost::Hello(hello),
        ToHost::Held,
        ToHost::Attached(Ok(attached)),
        ToHost::Attached(Err("no".into())),
        ToHost::Running,
        ToHost::Failed(Failure::NotFound { program: "x".into() }),
    ];
    let end = [
        ToHost::Stdout(bytes("out")),
        ToHost::Stderr(bytes("err")),
        ToHost::Frame(bytes("frame")),
        ToHost::Credit(3),
        ToHost::Exceeded(Limit::Memory),
        ToHost::Exit(Exit { status: Status::Signal(9), rusage: None }),
        ToHost::Drained(Drained { ran_into: Some(Limit::Pids), error: Some("x".into()) }),
        ToHost::Sealed(Ok(Sealed { frames: 1, head: Digest::ZERO })),
        ToHost::Heartbeat(Clock { boot_ns: 1, unix_ns: 2 }),
    ];
    let mut raw = vec![0, 3];
    encode(&ToHost::Held, &mut raw)?;
    let mut huge = vec![0, 200];
    huge.extend(b"GL\x01\x42\xff\xff\xff\xff\0\0\0\0");
    let mut garbage = vec![1, 0];
    garbage.extend(b"GET / HTTP/1.1\r\n\r\n");
    Ok(vec![
        ("to-guest-begin", parts(1, &begin)?),
        ("to-guest", parts(1, &rest)?),
        ("to-host-begin", parts(0, &host)?),
        ("to-host", parts(0, &end)?),
        ("raw", raw),
        ("huge", huge),
        ("garbage", garbage),
    ])
}
