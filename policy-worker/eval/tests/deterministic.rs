//! The same policy and receipt give the same bytes, and our evaluator agrees with the CEL crate's where both answer.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::sync::LazyLock;

use common::{judge, receipt};
use glasshouse_eval::Policy;
use glasshouse_schema::verdict::RuleResult;
use glasshouse_schema::{Digest, Receipt};
use proptest::prelude::*;

static BASELINE: LazyLock<Policy> = LazyLock::new(|| {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/policies/baseline.yaml");
    Policy::parse(&std::fs::read_to_string(path).unwrap(), "baseline.yaml").unwrap()
});

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn the_same_receipt_gives_the_same_bytes(
        paths in prop::collection::vec("/(etc|tmp|usr|home)/[a-z.]{1,8}", 0..20),
        names in prop::collection::btree_map("[a-z_0-9]{1,12}", 0_u64..100, 0..20),
        lost in 0_u64..2,
    ) {
        let mut receipt = receipt();
        receipt.filesystem.writes = paths;
        receipt.syscalls.counts = names;
        common::lose(&mut receipt, "file", lost);
        let first = judge(&BASELINE, &receipt).encode().unwrap();
        // Through the wire, with a policy parsed anew, on another thread.
        let bytes = receipt.encode().unwrap();
        let other = std::thread::spawn(move || {
            let receipt: Receipt = serde_json::from_slice(&bytes).unwrap();
            let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/policies/baseline.yaml");
            let policy = Policy::parse(&std::fs::read_to_string(path).unwrap(), "other name").unwrap();
            policy.evaluate_post(&receipt, Digest::of(&bytes)).unwrap().encode().unwrap()
        });
        prop_assert_eq!(first, other.join().unwrap());
    }
}

/// Expressions over what both evaluators type alike (the CEL crate makes unsigned numbers of counts).
fn expression() -> impl Strategy<Value = String> {
    let string = prop::sample::select(vec![
        "receipt.version",
        "receipt.execution.backend",
        "receipt.labels.team",
        "receipt.labels.missing",
        "receipt.labels['team']",
        "receipt.process_tree[1].exe",
        "receipt.process_tree[9].exe",
        "'process'",
        "'é'",
        "''",
    ]);
    let number = prop::sample::select(vec![
        "receipt.exit_code",
        "receipt.outcome.exit_code",
        "0",
        "1",
        "-3",
        "9223372036854775807",
        "1.5",
        "size(receipt.process_tree)",
        "receipt.labels.size()",
        "size('é')",
    ]);
    let list = prop::sample::select(vec![
        "receipt.filesystem.reads",
        "receipt.filesystem.writes",
        "receipt.filesystem.policy_violations",
        "['a', 'b']",
        "receipt.filesystem.reads + ['x']",
        "receipt.process_tree.map(p, p.exe)",
        "receipt.filesystem.reads.filter(p, p.startsWith('/tmp'))",
        "receipt.labels.map(k, k)",
    ]);
    let test = prop::sample::select(vec!["==", "!=", "<", "<=", ">", ">="]);
    let calculation = prop::sample::select(vec!["+", "-", "*", "/", "%"]);
    let leaf = prop_oneof![
        Just("true".to_owned()),
        Just("false".to_owned()),
        Just("has(receipt.labels.team)".to_owned()),
        Just("has(receipt.labels.missing)".to_owned()),
        Just("receipt.outcome.signal == null".to_owned()),
        (string.clone(), test.clone(), string.clone()).prop_map(|(a, op, b)| format!("{a} {op} {b}")),
        (number.clone(), calculation, number.clone(), test, number.clone())
            .prop_map(|(a, op, b, test, c)| format!("{a} {op} {b} {test} {c}")),
        (string.clone(), list.clone()).prop_map(|(a, b)| format!("{a} in {b}")),
        (list.clone(), list.clone()).prop_map(|(a, b)| format!("{a} == {b}")),
        (string.clone(), prop::sample::select(vec!["contains", "startsWith", "endsWith"]), string.clone())
            .prop_map(|(a, function, b)| format!("{a}.{function}({b})")),
        (list, prop::sample::select(vec!["all", "exists", "exists_one"]), string)
            .prop_map(|(list, fold, s)| format!("({list}).{fold}(x, x == {s} || x.startsWith('/tmp'))")),
    ];
    leaf.prop_recursive(3, 16, 3, |inner| {
        prop_oneof![
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a}) && ({b})")),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a}) || ({b})")),
            inner.clone().prop_map(|a| format!("!({a})")),
            (inner.clone(), inner.clone(), inner).prop_map(|(a, b, c)| format!("({a}) ? ({b}) : ({c})")),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn our_evaluator_agrees_with_the_cel_crate(expression in expression()) {
        let quoted = serde_json::to_string(&expression).unwrap();
        let yaml = format!("version: v1\nname: p\nrules:\n  - {{id: r, message: m, expression: {quoted}}}\n");
        // What our checks refuse (0.5 % 1 and the like), CEL refuses when it comes to it.
        let Ok(policy) = Policy::parse(&yaml, "p") else { return Ok(()) };
        let receipt = receipt();
        let ours = judge(&policy, &receipt).rules[0].clone();
        let mut context = cel::Context::default();
        context.add_variable_from_value("receipt", cel::to_value(&receipt).unwrap());
        let theirs = cel::Program::compile(&expression).unwrap().execute(&context);
        let expected = match theirs {
            Ok(cel::Value::Bool(true)) => RuleResult::Passed,
            Ok(cel::Value::Bool(false)) => RuleResult::Violated,
            _ => RuleResult::Unknown,
        };
        prop_assert_eq!(ours.result, expected, "{}: {}, {:?}", expression, ours.reason, theirs);
    }
}
