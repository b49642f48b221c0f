//! Any bytes are a lifecycle event or an error, and one that reads has one canonical form.

#![no_main]

use glasshouse_schema::LifecycleEvent;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(event) = LifecycleEvent::decode(bytes) {
        let written = event.encode().expect("an event writes");
        if let Ok(again) = LifecycleEvent::decode(&written) {
            assert_eq!(again.encode().expect("an event writes"), written);
        }
    }
});
