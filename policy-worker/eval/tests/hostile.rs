//! Policies and receipts that mean harm: refused or bounded, never a crash, never a long wait.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use common::{judge, policy, receipt};
use glasshouse_eval::{MAX_POLICY_BYTES, MAX_RULES, Policy};
use glasshouse_schema::verdict::{MAX_VERDICT_BYTES, RuleResult};
use proptest::prelude::*;

fn with_expression(expression: &str) -> Result<Policy, String> {
    let expression = serde_json::to_string(expression).unwrap();
    let yaml = format!("version: v1\nname: p\nrules:\n  - {{id: r, message: m, expression: {expression}}}\n");
    Policy::parse(&yaml, "p.yaml").map_err(|error| error.to_string())
}

#[test]
fn what_nests_too_deeply_is_refused_before_it_is_parsed() {
    let deep =
        |open: &str, close: &str, times: usize| format!("{}true{}", open.repeat(times), close.repeat(times));
    for expression in [
        deep("(", ")", 5000),
        deep("[", "]", 5000),
        deep("!(", ")", 1000),
        deep("size([", "])", 1000),
        "(".repeat(8000),
        format!("1{} == 1", "+1".repeat(5000)),
        format!("receipt{}", ".a".repeat(5000)),
        format!("receipt{}", "[0]".repeat(4000)),
        format!("receipt{}", ".size()".repeat(2000)),
        format!("{}true", "true ? true : ".repeat(1000)),
        format!("{}true", "!".repeat(5000)),
        format!("{}1 == 1", "-".repeat(5000)),
        "[0].all(a, [0].all(b, [0].all(c, true)))".to_owned(),
    ] {
        let error = with_expression(&expression).unwrap_err();
        assert!(error.contains("more than"), "{error}");
    }
}

#[test]
fn what_is_as_deep_as_allowed_works() {
    let deep = format!("{}true{}", "(".repeat(23), ")".repeat(23));
    assert_eq!(judge(&with_expression(&deep).unwrap(), &receipt()).rules[0].result, RuleResult::Passed);
    let long = format!("1{} == 99", "+1".repeat(98));
    assert_eq!(judge(&with_expression(&long).unwrap(), &receipt()).rules[0].result, RuleResult::Passed);
    let both = format!("{}1{} == 2", "(".repeat(20), ")".repeat(20) + &"+1".repeat(60));
    assert_eq!(judge(&with_expression(&both).unwrap(), &receipt()).rules[0].result, RuleResult::Violated);
    let wide = format!("{}true", "receipt.exit_code == 1 || ".repeat(400));
    assert_eq!(judge(&with_expression(&wide).unwrap(), &receipt()).rules[0].result, RuleResult::Passed);
}

#[test]
fn what_is_too_large_is_refused() {
    let error = Policy::parse(&"#".repeat(MAX_POLICY_BYTES + 1), "p").unwrap_err().to_string();
    assert!(error.contains("more than 262144"), "{error}");
    assert!(
        with_expression(&format!("true //{}", "x".repeat(17_000))).unwrap_err().contains("more than 16384")
    );
    let rules = "  - {id: r, message: m, expression: 'true'}\n".repeat(MAX_RULES + 1);
    let error =
        Policy::parse(&format!("version: v1\nname: p\nrules:\n{rules}"), "p").unwrap_err().to_string();
    assert!(error.contains("1001 rules"), "{error}");
    let items = "1,".repeat(5000);
    assert!(with_expression(&format!("1 in [{items}1]")).unwrap_err().contains("more than 4096 nodes"));
    let flow = format!("version: {}{}", "[".repeat(100_000), "]".repeat(100_000));
    assert!(Policy::parse(&flow, "p").is_err());
    let block: String = (0..400).map(|depth| format!("{}a:\n", " ".repeat(depth))).collect();
    assert!(Policy::parse(&block, "p").is_err());
}

#[test]
fn aliases_cannot_blow_a_document_up() {
    let mut yaml = String::from("version: v1\nname: p\nrules:\n  - &a0 [x, x]\n");
    for depth in 1..30 {
        yaml.push_str(&format!("  - &a{depth} [*a{0}, *a{0}]\n", depth - 1));
    }
    assert!(Policy::parse(&yaml, "p").unwrap_err().to_string().contains("aliases"));
}

#[test]
fn the_largest_verdict_can_still_be_read() {
    let policy = |rules: usize, message: usize| {
        let message = "m".repeat(message);
        let rules: String = (0..rules)
            .map(|index| format!("  - {{id: r{index}, message: {message}, expression: 1==1}}\n"))
            .collect();
        Policy::parse(&format!("version: v1\nname: p\nrules:\n{rules}"), "p")
            .map_err(|error| error.to_string())
    };
    // JSON may escape each character of a message.
    assert!(policy(700, 320).unwrap_err().contains("split the policy"));
    for largest in [policy(MAX_RULES, 100), policy(600, 320)] {
        let execution = common::EXECUTION.parse().unwrap();
        let verdict = largest.unwrap().without_receipt(execution, &"€\"".repeat(1000));
        assert!(verdict.encode().unwrap().len() <= MAX_VERDICT_BYTES);
    }
}

/// Rules that would take for ever over a large receipt.
#[test]
fn a_costly_rule_is_unknown_and_the_next_is_not() {
    let mut receipt = receipt();
    let file = receipt.files[0].clone();
    receipt.files = (0..20_000)
        .map(|index| {
            let mut file = file.clone();
            file.path = format!("/data/{index}/{}", "x".repeat(100));
            file
        })
        .collect();
    let yaml = "version: v1\nname: p\nrules:
  - {id: product, message: m, expression: 'receipt.files.all(a, receipt.files.all(b, a.path != b.path || a.path == b.path))'}
  - {id: lists, message: m, expression: 'receipt.files.map(a, receipt.files.map(b, b.path)).size() == 0'}
  - {id: strings, message: m, expression: 'receipt.files.map(a, receipt.files.map(b, a.path + b.path + a.path + b.path)).size() == 0'}
  - {id: copies, message: m, expression: 'receipt.files.all(a, (receipt.files + receipt.files).size() > 0)'}
  - {id: compares, message: m, expression: 'receipt.files.all(a, receipt.files == receipt.files)'}
  - {id: searches, message: m, expression: 'receipt.files.all(a, !(\"/x\" in receipt.files.map(b, b.path)))'}
  - {id: cheap, message: m, expression: 'receipt.files.all(a, under(a.path, \"/data\"))'}
";
    let verdict = judge(&Policy::parse(yaml, "p").unwrap(), &receipt);
    let (cheap, costly) = verdict.rules.split_last().unwrap();
    for rule in costly.iter().take(4) {
        assert_eq!(rule.result, RuleResult::Unknown, "{rule:?}");
        assert!(rule.reason.contains("more steps"), "{rule:?}");
    }
    // All rules share a budget too: what comes after five that spend theirs is not evaluated. That is deterministic.
    assert_eq!(cheap.result, RuleResult::Unknown);
    let again = judge(&Policy::parse(yaml, "p").unwrap(), &receipt);
    assert_eq!(verdict.encode().unwrap(), again.encode().unwrap());
    assert_eq!(
        judge(&policy("receipt.files.all(a, under(a.path, '/data'))"), &receipt).rules[0].result,
        RuleResult::Passed
    );
}

#[test]
fn a_decisive_side_does_not_hide_that_the_steps_are_spent() {
    let mut receipt = receipt();
    receipt.files = vec![receipt.files[0].clone(); 20_000];
    let rule = "receipt.files.all(a, receipt.files.all(b, a.path == b.path)) || true";
    assert_eq!(judge(&policy(rule), &receipt).rules[0].result, RuleResult::Unknown);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn any_text_is_a_policy_or_an_error(text in "\\PC{0,200}") {
        let _ = Policy::parse(&text, "p").map_err(|error| error.to_string());
    }

    #[test]
    fn any_expression_compiles_or_is_an_error(
        tokens in prop::collection::vec(prop::sample::select(vec![
            "receipt", ".files", ".all(f,", ")", "(", "[", "]", "f.path", "==", "&&", "||", "!", "-", "'x'", "0", "1u",
            "?", ":", ",", ".exists(x,", "has(", "{", "}", "in", "//", "\n", "é", "\"", "'", ".size()", "true", "@",
        ]), 0..40),
        separator in prop::sample::select(vec![" ", ""]),
    ) {
        let _ = with_expression(&tokens.join(separator));
    }
}
