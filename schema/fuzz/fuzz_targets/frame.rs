//! Any bytes are a frame or an error, and a frame that reads is one that writes.

#![no_main]

use glasshouse_schema::Frame;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(frame) = Frame::decode(bytes) {
        let written = frame.encode().expect("a frame writes");
        // Written anew it may be longer than a frame may be: its numbers came in shorter forms.
        if let Ok(again) = Frame::decode(&written) {
            assert_eq!(again, frame);
        }
    }
});
