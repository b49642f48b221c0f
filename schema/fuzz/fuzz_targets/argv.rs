//! Any arguments are masked, each into one.

#![no_main]

use glasshouse_schema::ExecutionId;
use glasshouse_schema::lifecycle::RedactionRules;
use glasshouse_schema::redact::Redactor;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let argv: Vec<&[u8]> = bytes.split(|byte| *byte == 0).collect();
    let rules = RedactionRules { path_prefixes: vec!["/home/ana/".into(), "/".into()], tokens: true };
    let mut redactor = Redactor::new([7; 32], ExecutionId::from_parts(1, [1; 10]), rules);
    assert_eq!(redactor.argv(&argv).len(), argv.len());
});
