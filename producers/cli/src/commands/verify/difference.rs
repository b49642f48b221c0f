//! Where two receipts differ: JSON pointers (RFC 6901) with what stands there in each.

use std::collections::BTreeSet;

use serde::Serialize;
use serde_json::Value;

/// How many differences are named.
const AT_MOST: usize = 8;
/// How many characters of a value are quoted.
const QUOTED: usize = 80;

/// One field that differs.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Difference {
    pub(super) pointer: String,
    /// What the receipt says; `None` where it says nothing.
    pub(super) receipt: Option<String>,
    /// What its evidence says, likewise.
    pub(super) evidence: Option<String>,
}

/// The first fields that differ, and whether there are more.
pub(super) fn differences(receipt: &Value, evidence: &Value) -> (Vec<Difference>, bool) {
    let mut found = Vec::new();
    compare(String::new(), Some(receipt), Some(evidence), &mut found);
    let is_cut = found.len() > AT_MOST;
    found.truncate(AT_MOST);
    (found, is_cut)
}

/// Goes as deep as the receipts, whose depth the JSON reader has limited.
fn compare(pointer: String, receipt: Option<&Value>, evidence: Option<&Value>, found: &mut Vec<Difference>) {
    if receipt == evidence || found.len() > AT_MOST {
        return;
    }
    match (receipt, evidence) {
        (Some(Value::Object(receipt)), Some(Value::Object(evidence))) => {
            let keys: BTreeSet<&String> = receipt.keys().chain(evidence.keys()).collect();
            for key in keys {
                let escaped = key.replace('~', "~0").replace('/', "~1");
                compare(format!("{pointer}/{escaped}"), receipt.get(key), evidence.get(key), found);
            }
        }
        (Some(Value::Array(receipt)), Some(Value::Array(evidence))) => {
            for index in 0..receipt.len().max(evidence.len()) {
                compare(format!("{pointer}/{index}"), receipt.get(index), evidence.get(index), found);
                if found.len() > AT_MOST {
                    return;
                }
            }
        }
        _ => found.push(Difference { pointer, receipt: receipt.map(quoted), evidence: evidence.map(quoted) }),
    }
}

fn quoted(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(QUOTED) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn fields_are_named_by_pointer() {
        let receipt = json!({"a/b": {"~": 1}, "list": [1, 2], "same": [], "gone": null});
        let evidence = json!({"a/b": {"~": 2}, "list": [1, 3, {"x": 4}], "same": []});
        let (found, is_cut) = differences(&receipt, &evidence);
        let found: Vec<_> =
            found.iter().map(|d| (d.pointer.as_str(), d.receipt.as_deref(), d.evidence.as_deref())).collect();
        assert_eq!(
            found,
            [
                ("/a~1b/~0", Some("1"), Some("2")),
                ("/gone", Some("null"), None),
                ("/list/1", Some("2"), Some("3")),
                ("/list/2", None, Some("{\"x\":4}")),
            ]
        );
        assert!(!is_cut);
        assert_eq!(differences(&receipt, &receipt), (Vec::new(), false));
    }

    #[test]
    fn only_the_first_are_named() {
        let long = |of: u64| json!((0..1000).map(|n| n + of).collect::<Vec<u64>>());
        let (found, is_cut) = differences(&long(0), &long(1));
        assert_eq!((found.len(), is_cut), (AT_MOST, true));
        assert!(quoted(&json!("ä".repeat(500))).chars().count() == QUOTED + 1);
    }
}
