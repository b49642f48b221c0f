//! Any arguments (parted by NUL) are masked, each into one, and nothing that the rules mask is left in them.

#![no_main]

use glasshouse_schema::ExecutionId;
use glasshouse_schema::redact::Redactor;
use glasshouse_schema_fuzz::{check_argument, check_path, rules};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let argv: Vec<&[u8]> = bytes.split(|byte| *byte == 0).collect();
    let mut redactor = Redactor::new([7; 32], ExecutionId::from_parts(1, [1; 10]), rules());
    let masked = redactor.argv(&argv);
    assert_eq!(masked.len(), argv.len());
    masked.iter().for_each(|argument| check_argument(argument));
    argv.iter().for_each(|path| check_path(&redactor.path(path)));
});
