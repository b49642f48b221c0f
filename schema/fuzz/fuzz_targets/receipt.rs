//! Any bytes are a receipt of a known grammar or an error, and one that reads can be exported.

#![no_main]

use glasshouse_schema::receipt::ReceiptV03;
use glasshouse_schema::{Receipt, canonical};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(receipt) = Receipt::decode(bytes) {
        receipt.encode().expect("a receipt writes");
        canonical::to_vec(&ReceiptV03::from(&receipt)).expect("a receipt exports");
    }
});
