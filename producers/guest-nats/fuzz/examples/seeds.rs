//! Writes the seeds: `cargo run --example seeds`, in this folder, after a change of the messages.

use std::path::Path;

use glasshouse_guest_nats::{Header, Kind, MAX_PIECE_BYTES, WINDOW};

/// The bytes of the kinds.
const PIECE: u8 = 1;
const TAKEN: u8 = 2;
const END: u8 = 3;
const SEND: [u8; 1] = [2];
const TAKE: [u8; 1] = [3];

fn main() -> std::io::Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds/guest_nats");
    std::fs::create_dir_all(&folder)?;
    for (name, bytes) in seeds() {
        std::fs::write(folder.join(name), bytes)?;
    }
    Ok(())
}

fn message(kind: u8, number: i8, taken: i8, half: u16) -> Vec<u8> {
    let [low, high] = half.to_le_bytes();
    vec![1, kind, number.cast_unsigned(), taken.cast_unsigned(), low, high]
}

fn raw(message: &[u8]) -> Vec<u8> {
    let [low, high] = (message.len() as u16).to_le_bytes();
    [&[0, low, high], message].concat()
}

fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let window = WINDOW as usize;
    let piece = || message(PIECE, 0, 0, 8);
    let (sends, pieces, takes) = (SEND.repeat(window + 1), piece().repeat(window), TAKE.repeat(window));
    let header = Header { kind: Kind::Piece, number: 0, taken: 0 }.write();
    vec![
        (
            "talk",
            [sends.clone(), pieces.clone(), takes, message(TAKEN, 0, 32, 0), piece(), message(END, 0, 0, 0)]
                .concat(),
        ),
        ("overrun", [pieces, piece()].concat()),
        (
            "largest",
            [message(PIECE, 0, 0, (MAX_PIECE_BYTES / 2) as u16), message(PIECE, 0, 0, u16::MAX)].concat(),
        ),
        ("lost", [piece(), message(PIECE, 1, 0, 8)].concat()),
        ("doubled", [piece(), message(PIECE, -1, 0, 8)].concat()),
        ("falsely-taken", [sends.clone(), message(TAKEN, 0, 33, 0)].concat()),
        ("taken-back", [sends, message(TAKEN, 0, 5, 0), message(TAKEN, 0, -1, 0)].concat()),
        ("idle", message(TAKEN, 0, 0, 0)),
        ("given-up", message(END, 0, 0, 300)),
        ("raw", raw(&[&header[..], b"piece"].concat())),
        ("garbage", raw(b"GET / HTTP/1.1\r\n\r\n")),
    ]
}
