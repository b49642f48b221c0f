//! Any bytes are a frame or an error, and a frame that reads is one that writes, always in the same bytes.

#![no_main]

use glasshouse_schema::Frame;
use glasshouse_schema::frame::{DecodeError, EncodeError, MAX_FRAME_BYTES};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(frame) = Frame::decode(bytes) else { return };
    let (events, facts) = (frame.body.events() as u64, frame.body.facts());
    assert_eq!(facts.iter().map(|(_, delivered, _)| delivered).sum::<u64>(), events, "an event of no class");
    let written = match frame.encode() {
        Ok(written) => written,
        // Frames of older versions hold more events than are written now.
        Err(EncodeError::Body(_)) if events > 1 << 15 => return,
        Err(error) => panic!("what reads does not write: {error}"),
    };
    match Frame::decode(&written) {
        Ok(again) => {
            assert_eq!(again, frame);
            assert_eq!(again.encode().expect("a frame writes"), written);
        }
        // Written anew it may be longer than a frame may be: fields may be left out of what is read.
        Err(DecodeError::TooLarge(_)) => assert!(written.len() > MAX_FRAME_BYTES),
        Err(error) => panic!("what was written does not read: {error}"),
    }
});
