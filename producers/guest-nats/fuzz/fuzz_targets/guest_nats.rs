//! Whatever comes over the server: no panic, pieces are taken in their order and each once, the host holds no more than a window of
//! them, sends no more than the guest took and a window, and a message is judged as plain counting judges it.
#![no_main]

use glasshouse_guest_nats::{Broken, HEADER_BYTES, Header, Kind, Ledger, MAX_PIECE_BYTES, WINDOW};
use glasshouse_guest_nats_fuzz::{Step, steps};
use libfuzzer_sys::fuzz_target;

/// What the host counts, said once more and plainly.
#[derive(Default)]
struct Counted {
    sent: u64,
    acknowledged: u64,
    received: u64,
    taken: u64,
}

fuzz_target!(|bytes: &[u8]| {
    let (mut ledger, mut counted) = (Ledger::default(), Counted::default());
    let mut message = vec![b'x'; HEADER_BYTES + 2 * usize::from(u16::MAX)];
    for step in steps(bytes) {
        let goes_on = match step {
            Step::Raw(bytes) => comes(&mut ledger, &mut counted, bytes),
            Step::Message { kind, number, taken, bytes } => {
                let header = Header {
                    kind: Kind::Piece,
                    number: counted.received.wrapping_add_signed(number.into()),
                    taken: counted.acknowledged.wrapping_add_signed(taken.into()),
                };
                message[..HEADER_BYTES].copy_from_slice(&header.write());
                message[3] = kind;
                comes(&mut ledger, &mut counted, &message[..HEADER_BYTES + bytes])
            }
            Step::Send => {
                assert_eq!(ledger.has_room(), counted.sent - counted.acknowledged < WINDOW);
                if ledger.has_room() {
                    says(&mut ledger, &mut counted, Kind::Piece);
                }
                true
            }
            Step::Take => {
                if counted.taken < counted.received {
                    counted.taken += 1;
                    if ledger.take() {
                        says(&mut ledger, &mut counted, Kind::Taken);
                    }
                }
                true
            }
        };
        // The first thing that is wrong ends a link.
        if !goes_on {
            return;
        }
    }
});

/// The host sends a message, which an honest other end reads.
fn says(ledger: &mut Ledger, counted: &mut Counted, kind: Kind) {
    let header = ledger.send(kind);
    assert_eq!(header, Header { kind, number: counted.sent, taken: counted.taken });
    counted.sent += u64::from(kind == Kind::Piece);
    let bytes = [&header.write()[..], if kind == Kind::Piece { b"x" } else { b"" }].concat();
    assert_eq!(Header::read(&bytes), Ok(header));
}

/// A message comes; `false` if the link is over.
fn comes(ledger: &mut Ledger, counted: &mut Counted, message: &[u8]) -> bool {
    let before = ledger.clone();
    let heard = ledger.hear(message);
    let header = match Header::read(message) {
        Ok(header) => header,
        Err(broken) => {
            assert_eq!((heard, ledger as &Ledger), (Err(broken), &before));
            return false;
        }
    };
    assert_eq!(header.write(), message[..HEADER_BYTES]);
    let rest = &message[HEADER_BYTES..];
    assert!(rest.len() <= MAX_PIECE_BYTES);
    let fits = header.number == counted.received
        && (counted.acknowledged..=counted.sent).contains(&header.taken)
        && match header.kind {
            Kind::Piece => counted.received - counted.taken < WINDOW,
            Kind::Taken => header.taken > counted.acknowledged,
            Kind::End => true,
        };
    if !fits {
        assert!(heard.is_err() && *ledger == before);
        return false;
    }
    counted.acknowledged = header.taken;
    counted.received += u64::from(header.kind == Kind::Piece);
    assert!(counted.received - counted.taken <= WINDOW);
    match (header.kind, heard) {
        (Kind::End, Err(Broken::GivenUp(reason))) => {
            assert!(!rest.is_empty() && reason.len() <= 3 * rest.len().min(512));
            assert!(!reason.contains(char::is_control));
            return false;
        }
        (kind, heard) => assert_eq!(heard, Ok(kind)),
    }
    assert!(header.kind != Kind::End || rest.is_empty());
    // The same once more is a piece too many, or says nothing.
    if header.kind != Kind::End {
        assert!(ledger.clone().hear(message).is_err());
    }
    header.kind != Kind::End
}
