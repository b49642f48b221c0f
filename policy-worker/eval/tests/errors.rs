//! What an author sees when a policy is wrong: every problem, at its line and column.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use glasshouse_eval::Policy;

fn problems(yaml: &str) -> String {
    Policy::parse(yaml, "policy.yaml").expect_err("the policy is wrong").to_string()
}

#[test]
fn every_problem_of_a_document_is_reported_at_its_place() {
    insta::assert_snapshot!(problems(
        "\
version: v2
name: ''
descripton: a typo
rules:
  - id: Upper Case
    expression: receipt.netwrok.attempts.all(a, true)
    message: m
  - id: twice
    phase: after
    severity: fatal
    action: explode
    expression: 'true'
    message: m
  - id: twice
    expression: receipt.exit_code
    message: |
      two
      lines
  - just a text
  - id: nothing-else
  - id: wrong-kinds
    expression: [a]
    message: {a: b}
"
    ));
}

#[test]
fn problems_of_expressions_are_traced_into_every_style_of_yaml() {
    insta::assert_snapshot!(problems(
        r#"version: v1
name: styles
rules:
  - {id: flow, message: m, expression: "receipt.a"}
  - id: plain
    message: m
    expression: receipt.exit_code == 0 && receipt.b
  - id: plain-folded
    message: m
    expression: receipt.exit_code == 0 &&
      receipt.c == 1
  - id: double-quoted
    message: m
    expression: "receipt.execution_id == \"\u00e9\" \
      && receipt.d"
  - id: single-quoted
    message: m
    expression: 'receipt.execution_id == ''é'' && receipt.e'
  - id: literal
    message: m
    expression: |
      receipt.exit_code == 0
        // é, a comment
        && receipt.f
  - id: folded
    message: m
    expression: >-  # a comment
      receipt.exit_code == 0
      && (
        receipt.g
      )
"#
    ));
}

#[test]
fn problems_of_cel_are_explained() {
    let expressions = [
        "receipt.exit_code = 0",
        "receipt.exit_code == 0 &&",
        "(receipt.exit_code == 0",
        "'unterminated",
        "",
        "recipt.exit_code == 0",
        "request.argv == []",
        "receipt.files.all(f, f.pth == '')",
        "receipt.files.all(f, g.path == '')",
        "receipt.files.path == ''",
        "receipt.exit_code.x == 0",
        "receipt['exit_cod'] == 0",
        "receipt[receipt.version] == 0",
        "has(receipt.labls)",
        "has(receipt)",
        "receipt.files.any(f, true)",
        "receipt.files.all(f)",
        "receipt.files.all(f.path, true)",
        "receipt.network.all(k, true)",
        "receipt.exit_code.all(k, true)",
        "undr('/etc', '/etc')",
        "under(receipt.version)",
        "under(receipt.exit_code, '/etc')",
        "matches(receipt.version, '(')",
        "matches(receipt.version, receipt.version)",
        "matches(receipt.version, '(?:(?:a{99}){99}){99}')",
        "cidr_contains('10.0.0.0/99', receipt.version)",
        "receipt.exit_code == '0'",
        "receipt.coverage.vantages.all(v, v.classes['file'].lost > 0)",
        "receipt.exit_code && true",
        "!receipt.version",
        "1 in receipt.filesystem.reads",
        "'a' in receipt.version",
        "receipt.version + 1 == ''",
        "{'a': 1} == {'a': 1}",
        "b'bytes' == b'bytes'",
        "Message{a: 1}",
        "receipt.?version == ''",
        "receipt.files",
    ];
    let mut yaml = String::from("version: v1\nname: cel\nrules:\n");
    for (index, expression) in expressions.iter().enumerate() {
        let expression = expression.replace('\'', "''");
        yaml.push_str(&format!("  - id: r{index}\n    message: m\n    expression: '{expression}'\n"));
    }
    insta::assert_snapshot!(problems(&yaml));
}

#[test]
fn problems_of_yaml_are_placed() {
    let cases = [
        "",
        "rules: [",
        "version: v1\nname: a\n\trules: x\n",
        "- a\n- b\n",
        "version: v1\nname: &a x\nrules:\n  - *a\n",
        "version: !!str v1\nname: x\nrules: []\n",
        "version: v1\n---\nversion: v1\n",
        "version: v1\nversion: v1\nname: x\nrules: x\n",
    ];
    let all: Vec<String> = cases.iter().map(|yaml| format!("{yaml:?}\n{}", problems(yaml))).collect();
    insta::assert_snapshot!(all.join("\n\n"));
}

#[test]
fn a_phase_sees_its_own_variables() {
    let rule = |phase: &str, expression: &str| {
        format!(
            "version: v1\nname: p\nrules:\n  - {{id: r, message: m, phase: {phase}, expression: \"{expression}\"}}\n"
        )
    };
    for (phase, expression) in [
        ("pre", "request.argv[0] != 'rm' && request.profile == 'host'"),
        ("runtime", "event.kind != 'connect' || execution.backend == 'qemu'"),
        ("post", "receipt.exit_code == 0"),
    ] {
        Policy::parse(&rule(phase, expression), "p").unwrap();
        for other in ["pre", "runtime", "post"].into_iter().filter(|other| *other != phase) {
            let error = Policy::parse(&rule(other, expression), "p").unwrap_err().to_string();
            assert!(error.contains("unknown variable") && error.contains(other), "{error}");
        }
    }
}

#[test]
fn the_digest_covers_meaning_and_not_formatting() {
    let digest = |yaml: &str| Policy::parse(yaml, "p").unwrap().reference().digest;
    let plain = "version: v1\nname: p\nrules:\n  - id: r\n    expression: receipt.exit_code == 0 && 'a b' in receipt.filesystem.reads\n    message: m\n";
    let same = [
        "{name: p, rules: [{message: m, id: r, expression: \"receipt.exit_code==0&&'a b' in receipt.filesystem.reads\"}], version: v1}",
        "# why\nname: p\nversion: v1\nrules:\n- id: r\n  severity: medium\n  action: deny\n  phase: post\n  message: m\n  expression: |\n    receipt.exit_code == 0\n      // first\n      && 'a b' in receipt.filesystem.reads\n",
    ];
    for yaml in same {
        assert_eq!(digest(yaml), digest(plain), "{yaml}");
    }
    for (from, to) in
        [("== 0", "== 1"), ("'a b'", "'a  b'"), ("message: m", "message: n"), ("id: r", "id: s")]
    {
        assert_ne!(digest(&plain.replace(from, to)), digest(plain), "{from} -> {to}");
    }
}
