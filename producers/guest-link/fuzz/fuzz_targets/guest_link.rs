//! Whatever comes over the link: no panic, nothing is allocated that a packet only promises, it means the same in whatever
//! pieces it comes, and a message that is read is one that can be sent.
#![no_main]

use std::fmt::Debug;

use glasshouse_guest_link::codec::{Decoder, LinkError, encode};
use glasshouse_guest_link::message::{Message, ToGuest, ToHost};
use glasshouse_guest_link_fuzz::input;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some(input) = input(bytes) else { return };
    match input.to_guest {
        true => check::<ToGuest>(&input.bytes, input.piece),
        false => check::<ToHost>(&input.bytes, input.piece),
    }
});

fn check<M: Message + PartialEq + Debug>(bytes: &[u8], piece: usize) {
    let (whole, whole_end) = read::<M>(bytes, bytes.len().max(1));
    let (pieces, pieces_end) = read::<M>(bytes, piece);
    assert_eq!(whole, pieces);
    assert_eq!(whole_end, pieces_end);
    for message in whole {
        let mut packet = Vec::new();
        encode(&message, &mut packet).expect("what was read can be sent");
        let (again, end) = read::<M>(&packet, packet.len());
        assert_eq!((again, end), (vec![message], None));
    }
}

/// The messages, and what ended them.
fn read<M: Message>(bytes: &[u8], piece: usize) -> (Vec<M>, Option<String>) {
    let mut decoder = Decoder::<M>::default();
    let mut messages = Vec::new();
    for mut piece in bytes.chunks(piece) {
        while !piece.is_empty() {
            match decoder.take(&mut piece) {
                Ok(message) => messages.extend(message),
                Err(error) => return (messages, Some(error.to_string())),
            }
        }
    }
    let end = (!decoder.is_at_boundary()).then(|| LinkError::Cut.to_string());
    (messages, end)
}
