//! The receipt's grammar: every field of v0.3.0 keeps its name and type, and no number passes 2^53.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use glasshouse_schema::receipt::ReceiptError;
use glasshouse_schema::{Receipt, canonical};
use proptest::prelude::*;
use serde_json::Value;

/// The table of the established grammar: the path of each field, its type, and whether it may be absent when empty.
const V0_3: &[(&str, &str)] = &[
    ("version", "string"),
    ("execution_id", "string"),
    ("provenance", "string"),
    ("timestamp", "string"),
    ("start_time", "string"),
    ("end_time", "string"),
    ("observation_mode", "string"),
    ("completeness", "string"),
    ("outcome", "object"),
    ("outcome.exit_code", "int"),
    ("outcome.signal", "string or null"),
    ("outcome.error", "string or null"),
    ("timing", "object"),
    ("timing.duration_ms", "int"),
    ("timing.cpu_time_ms", "int"),
    ("process_tree", "array"),
    ("process_tree[].pid", "int"),
    ("process_tree[].ppid", "int"),
    ("process_tree[].exe", "string"),
    ("process_tree[].argv", "array"),
    ("process_tree[].argv[]", "string"),
    ("process_tree[].working_dir", "string"),
    ("processes", "array"),
    ("processes[].pid", "int"),
    ("processes[].ppid", "int"),
    ("processes[].cmd", "string"),
    ("filesystem", "object"),
    ("filesystem.reads", "array"),
    ("filesystem.reads[]", "string"),
    ("filesystem.writes", "array"),
    ("filesystem.writes[]", "string"),
    ("filesystem.deletes", "array"),
    ("filesystem.deletes[]", "string"),
    ("filesystem.policy_violations", "array"),
    ("filesystem.policy_violations[]", "string"),
    ("network", "object"),
    ("network.connections", "array"),
    ("network.connections[].dst", "string"),
    ("network.connections[].protocol", "string"),
    ("network.connections[].attempted", "bool"),
    ("network.attempts", "array"),
    ("network.attempts[].dst", "string"),
    ("network.attempts[].protocol", "string"),
    ("network.attempts[].result", "string"),
    ("network.attempts[].policy", "string"),
    ("network.bytes_sent", "int"),
    ("network.bytes_received", "int"),
    ("syscalls", "object"),
    ("syscalls.counts", "object"),
    ("syscalls.counts.read", "int"),
    ("syscalls.denied", "array"),
    ("syscalls.denied[]", "string"),
    ("environment", "object"),
    ("environment.runtime", "string"),
    ("environment.os", "string"),
    ("environment.arch", "string"),
    ("environment.sandbox", "object"),
    ("environment.sandbox.network", "string"),
    ("execution", "object"),
    ("execution.backend", "string"),
    ("execution.isolation", "string"),
    ("artifacts", "object"),
    ("artifacts.stdout_hash", "string"),
    ("artifacts.stderr_hash", "string"),
    ("exit_code", "int"),
    ("duration_ms", "int"),
    ("resources", "object"),
    ("resources.cpu_time_ms", "int"),
    ("resources.max_rss_kb", "int"),
    ("redactions", "array"),
    ("policy", "object"),
    ("policy.violations", "array"),
    ("policy.violations[].phase", "string"),
    ("policy.violations[].rule", "string"),
    ("policy.violations[].action", "string"),
    ("policy.violations[].message", "string"),
    ("policy.enforcements", "array"),
    ("policy.enforcements[].action", "string"),
    ("policy.enforcements[].target", "string"),
    ("policy.enforcements[].rule", "string"),
    ("policy.enforcements[].message", "string"),
    ("policy.trusted", "bool"),
    ("policy.failed", "bool"),
];

fn golden(name: &str) -> Vec<u8> {
    std::fs::read(common::path(&format!("tests/golden/{name}"))).unwrap()
}

fn at<'v>(document: &'v Value, path: &str) -> Option<&'v Value> {
    path.split('.').try_fold(document, |value, field| {
        let name = field.trim_end_matches("[]");
        let value = value.get(name)?;
        if field.ends_with("[]") { value.get(0) } else { Some(value) }
    })
}

fn is(value: &Value, what: &str) -> bool {
    match what {
        "string" => value.is_string(),
        "int" => value.is_i64() || value.is_u64(),
        "bool" => value.is_boolean(),
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string or null" => value.is_string() || value.is_null(),
        other => panic!("{other}"),
    }
}

#[test]
fn every_established_field_keeps_its_name_and_type() {
    for name in ["receipt-v0.4.json", "receipt-v0.3-exported.json"] {
        let document: Value = serde_json::from_slice(&golden(name)).unwrap();
        for (path, what) in V0_3 {
            let value = at(&document, path).unwrap_or_else(|| panic!("{name} has no {path}"));
            assert!(is(value, what), "{name}: {path} is {value}, not {what}");
        }
    }
}

/// The export is v0.3.0 and nothing more: every field in it is one of the table.
#[test]
fn the_export_adds_nothing() {
    fn paths(value: &Value, at: &str, into: &mut Vec<String>) {
        match value {
            Value::Object(fields) => fields.iter().for_each(|(name, value)| {
                let path = if at.is_empty() { name.clone() } else { format!("{at}.{name}") };
                into.push(path.clone());
                paths(value, &path, into);
            }),
            Value::Array(items) => items.iter().for_each(|item| paths(item, &format!("{at}[]"), into)),
            _ => {}
        }
    }
    let document: Value = serde_json::from_slice(&golden("receipt-v0.3-exported.json")).unwrap();
    assert_eq!(document["version"], "v0.3.0");
    let mut found = Vec::new();
    paths(&document, "", &mut found);
    // What was masked has no shape in the table.
    for path in found.iter().filter(|path| !path.starts_with("redactions[]")) {
        assert!(V0_3.iter().any(|(known, _)| known == path), "{path} is not in the grammar");
    }
}

fn numbers(value: &Value, then: &mut impl FnMut(&serde_json::Number)) {
    match value {
        Value::Number(number) => then(number),
        Value::Array(items) => items.iter().for_each(|item| numbers(item, then)),
        Value::Object(fields) => fields.values().for_each(|value| numbers(value, then)),
        _ => {}
    }
}

/// The golden receipt has u64::MAX in every field that may hold it, and 2^53 - 1 in a count.
#[test]
fn no_number_passes_two_to_the_53() {
    let bytes = golden("receipt-v0.4.json");
    let document: Value = serde_json::from_slice(&bytes).unwrap();
    let mut largest = 0;
    numbers(&document, &mut |number| largest = largest.max(number.as_u64().unwrap()));
    assert_eq!(largest, canonical::MAX_INTEGER);
    // Every double that is a whole number up to there is itself: nothing was rounded.
    assert!(String::from_utf8(bytes).unwrap().contains("9007199254740991"));
}

/// By the schema: a 64-bit integer that is a JSON number is one that the fold clamps or that cannot get there.
#[test]
fn wide_numbers_are_those_that_are_clamped() {
    fn wide(value: &Value, name: &str, into: &mut std::collections::BTreeSet<String>) {
        let Some(fields) = value.as_object() else {
            return value.as_array().into_iter().flatten().for_each(|value| wide(value, name, into));
        };
        if fields.get("format").is_some_and(|format| format == "uint64" || format == "int64") {
            into.insert(name.to_owned());
        }
        for (field, value) in fields {
            match (field.as_str(), value.as_object()) {
                ("properties", Some(properties)) => {
                    properties.iter().for_each(|(name, value)| wide(value, name, into));
                }
                ("$defs", Some(definitions)) => definitions.values().for_each(|value| wide(value, "", into)),
                _ => wide(value, name, into),
            }
        }
    }
    let schema =
        serde_json::from_slice(&std::fs::read(common::path("json/receipt.schema.json")).unwrap()).unwrap();
    let mut found = std::collections::BTreeSet::new();
    wide(&schema, "", &mut found);
    let known = [
        "bytes",
        "bytes_read",
        "bytes_received",
        "bytes_sent",
        "bytes_written",
        "changes",
        "count",
        "counts",
        "cpu_ms",
        "cpu_time_ms",
        "created",
        "creates",
        "deletes",
        "denied_counts",
        "disk_bytes",
        "duration_ms",
        "errors",
        "escaped_tasks",
        "exchanges",
        "frame_bytes",
        "kernel_cpu_us",
        "kernel_samples",
        "limit",
        "major_faults",
        "max_rss_kb",
        "memory_bytes",
        "minor_faults",
        "more_skipped",
        "open_files",
        "output_bytes",
        "path_only",
        "pids",
        "read_calls",
        "reads",
        "receives",
        "renames",
        "results",
        "sends",
        "system_us",
        "truncated_paths",
        "user_cpu_us",
        "user_us",
        "wall_ms",
        "write_calls",
        "writes",
    ];
    assert_eq!(found.iter().map(String::as_str).collect::<Vec<_>>(), known);
}

#[test]
fn canonical_json_is_sorted_and_dense() {
    fn check(value: &Value) {
        match value {
            Value::Object(fields) => {
                // RFC 8785 sorts by UTF-16 code units.
                let units: Vec<Vec<u16>> = fields.keys().map(|key| key.encode_utf16().collect()).collect();
                assert!(units.is_sorted());
                fields.values().for_each(check);
            }
            Value::Array(items) => items.iter().for_each(check),
            _ => {}
        }
    }
    let bytes = golden("receipt-v0.4.json");
    check(&serde_json::from_slice(&bytes).unwrap());
    let text = String::from_utf8(bytes.clone()).unwrap();
    assert!(!text.contains('\n') && !text.contains("\": "));
    // It is a fixed point, through our types and through plain JSON.
    assert_eq!(Receipt::decode(&bytes).unwrap().encode().unwrap(), bytes);
    assert_eq!(canonical::to_vec(&serde_json::from_slice::<Value>(&bytes).unwrap()).unwrap(), bytes);
}

#[test]
fn receipts_of_unknown_grammars_are_refused() {
    let refused = |text: &str| Receipt::decode(text.as_bytes()).unwrap_err();
    assert!(matches!(refused(r#"{"version":"v0.5.0"}"#), ReceiptError::UnknownVersion(_)));
    assert!(matches!(refused(r#"{"version":"v1.0.0"}"#), ReceiptError::UnknownVersion(_)));
    assert!(matches!(refused(r#"{"version":"v0.30.0"}"#), ReceiptError::UnknownVersion(_)));
    assert!(matches!(refused("{}"), ReceiptError::NoVersion));
    assert!(matches!(refused(r#"{"version":"v0.4.0"}"#), ReceiptError::Malformed(_)));
    assert!(matches!(refused(""), ReceiptError::Malformed(_)));
    let nested = format!(r#"{{"version":"v0.3.0","execution_id":"x","redactions":{}"#, "[".repeat(1 << 20));
    assert!(matches!(refused(&nested), ReceiptError::Malformed(_)));
}

proptest! {
    #![proptest_config(common::proptest_config())]

    #[test]
    fn cut_and_changed_receipts_are_an_answer(
        which in 0usize..3,
        end in any::<prop::sample::Index>(),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
    ) {
        let name = ["receipt-v0.4.json", "receipt-v0.3-input.json", "receipt-v0.2-input.json"][which];
        let mut bytes = golden(name);
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        // What reads can be written and exported, whatever it says.
        if let Ok(receipt) = Receipt::decode(&bytes) {
            receipt.encode().unwrap();
            let exported = glasshouse_schema::receipt::ReceiptV03::from(&receipt);
            prop_assert!(Receipt::decode(&canonical::to_vec(&exported).unwrap()).is_ok());
        }
        let _ = Receipt::decode(&bytes[..end.index(bytes.len())]);
    }

    #[test]
    fn decimals_hold_any_integer(value in any::<u64>(), signed in any::<i64>()) {
        #[derive(serde::Serialize, serde::Deserialize, PartialEq, Debug)]
        struct Numbers {
            #[serde(with = "canonical::decimal")]
            value: u64,
            #[serde(with = "canonical::decimal")]
            signed: i64,
        }
        let numbers = Numbers { value, signed };
        let bytes = canonical::to_vec(&numbers).unwrap();
        prop_assert_eq!(serde_json::from_slice::<Numbers>(&bytes).unwrap(), numbers);
    }
}
