//! The truth table: what the evidence can and cannot say.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use common::{judge, lose, policy, receipt};
use glasshouse_eval::Policy;
use glasshouse_schema::Receipt;
use glasshouse_schema::lifecycle::Unavailable;
use glasshouse_schema::receipt::{Cap, Completeness, Incomplete, Provenance};
use glasshouse_schema::verdict::{Decision, RuleResult};
use glasshouse_schema::{Class, Vantage};

const PASSED: RuleResult = RuleResult::Passed;
const VIOLATED: RuleResult = RuleResult::Violated;
const UNKNOWN: RuleResult = RuleResult::Unknown;

fn result(expression: &str, receipt: &Receipt) -> (RuleResult, String) {
    let verdict = judge(&policy(expression), receipt);
    let rule = &verdict.rules[0];
    (rule.result, rule.reason.clone())
}

/// A way to make file evidence incomplete, and the word that its reason must hold.
type Gap = (&'static str, fn(&mut Receipt));

const GAPS: &[Gap] = &[
    ("3 file events were lost (host)", |receipt| lose(receipt, "file", 3)),
    ("gave no seal", |receipt| receipt.coverage.vantages[0].sealed = false),
    ("guest vantage point was not available: no vsock", |receipt| {
        receipt.coverage.unavailable.push(Unavailable { vantage: Vantage::Guest, reason: "no vsock".into() });
    }),
    ("only the guest vouches", |receipt| {
        receipt.provenance = Provenance::Guest;
        receipt.coverage.vantages[0].attached.vantage = Vantage::Guest;
    }),
    ("the cap of 4 on files left out", |receipt| {
        receipt.coverage.caps.push(Cap { list: "files".into(), limit: 4, events_left_out: 7 });
    }),
    ("2 paths were cut short", |receipt| receipt.coverage.vantages[0].truncated_paths = 2),
    ("1 tasks left", |receipt| receipt.coverage.vantages[0].escaped_tasks = 1),
    ("io_uring passed beside", |receipt| receipt.coverage.vantages[0].bypassed = vec!["io_uring".into()]),
    ("file events were not watched", |receipt| {
        receipt.coverage.vantages[0].classes.remove("file");
    }),
    ("frames_missing: frame 3", |receipt| {
        receipt.coverage.incomplete.push(Incomplete {
            vantage: Some(Vantage::Host),
            reason: "frames_missing".into(),
            class: None,
            detail: "frame 3".into(),
        });
    }),
    ("does not say why", |receipt| receipt.completeness = Completeness::Partial),
    ("do not add up", |receipt| {
        receipt.coverage.vantages[0].classes.get_mut("file").unwrap().observed += 1;
    }),
    ("1 other events were lost", |receipt| lose(receipt, "other", 1)),
];

#[test]
fn presence_is_proven_and_absence_is_not() {
    // expression, on complete evidence, on incomplete evidence
    let table = [
        // for all: a counterexample is one whatever else happened
        ("receipt.files.all(f, !under(f.path, '/root'))", PASSED, UNKNOWN),
        ("receipt.files.all(f, !under(f.path, '/etc'))", VIOLATED, VIOLATED),
        // there is: an example is one whatever else happened
        ("receipt.files.exists(f, f.path == '/tmp/work/hello')", PASSED, PASSED),
        ("receipt.files.exists(f, f.path == '/tmp/nothing')", VIOLATED, UNKNOWN),
        ("!receipt.files.exists(f, f.path == '/tmp/work/hello')", VIOLATED, VIOLATED),
        ("!receipt.files.exists(f, f.path == '/tmp/nothing')", PASSED, UNKNOWN),
        ("receipt.files.exists_one(f, f.path.endsWith('.c'))", PASSED, UNKNOWN),
        ("receipt.files.exists_one(f, f.path.startsWith('/tmp'))", VIOLATED, VIOLATED),
        // membership
        ("'/etc/hostname' in receipt.filesystem.reads", PASSED, PASSED),
        ("'/etc/shadow' in receipt.filesystem.reads", VIOLATED, UNKNOWN),
        ("!('/etc/shadow' in receipt.filesystem.reads)", PASSED, UNKNOWN),
        // counts can only be larger
        ("size(receipt.files) > 3", PASSED, PASSED),
        ("size(receipt.files) >= 5", VIOLATED, UNKNOWN),
        ("size(receipt.files) < 4", VIOLATED, VIOLATED),
        ("4 >= size(receipt.files)", PASSED, UNKNOWN),
        ("size(receipt.files) == 4", PASSED, UNKNOWN),
        ("size(receipt.files) == 3", VIOLATED, VIOLATED),
        ("size(receipt.files) != 3", PASSED, PASSED),
        ("size(receipt.files) + 1 > 4", PASSED, PASSED),
        ("size(receipt.files) * 2 == 8", PASSED, UNKNOWN),
        ("receipt.files.exists(f, f.path == '/tmp/work/hello' && f.writes >= 2)", PASSED, PASSED),
        ("receipt.files.exists(f, f.path == '/tmp/work/hello' && f.writes == 2)", PASSED, UNKNOWN),
        ("receipt.files.exists(f, f.path == '/etc/hostname' && f.writes == 0)", PASSED, UNKNOWN),
        // derived lists are as open as what they came from
        ("receipt.files.filter(f, f.writes > 0).size() <= 3", PASSED, UNKNOWN),
        ("receipt.files.map(f, f.path).all(p, p != '/root/x')", PASSED, UNKNOWN),
        ("(receipt.filesystem.reads + receipt.filesystem.writes).all(p, p != '/x')", PASSED, UNKNOWN),
        ("receipt.filesystem.reads[0] == '/etc/hostname'", PASSED, UNKNOWN),
        ("receipt.filesystem.deletes == ['/tmp/work/draft.txt']", PASSED, UNKNOWN),
        ("has(receipt.labels.team) ? receipt.files.all(f, f.path != '') : true", PASSED, UNKNOWN),
        ("size(receipt.files) == 4 ? true : true", PASSED, PASSED),
        // a decisive other side decides
        ("receipt.files.all(f, f.path != '/x') || receipt.exit_code == 0", PASSED, PASSED),
        ("receipt.exit_code == 1 && receipt.files.all(f, f.path != '/x')", VIOLATED, VIOLATED),
        // what lifecycle decides is always known
        ("receipt.exit_code == 0 && receipt.labels.team == 'compilers'", PASSED, PASSED),
        ("receipt.outcome.signal == null && receipt.timing.duration_ms <= 1000", PASSED, PASSED),
    ];
    for (expression, complete, incomplete) in table {
        assert_eq!(result(expression, &receipt()).0, complete, "{expression}, complete");
        for (why, open) in GAPS {
            let mut receipt = receipt();
            open(&mut receipt);
            let (result, reason) = result(expression, &receipt);
            assert_eq!(result, incomplete, "{expression}, where {why}: {reason}");
            if result == UNKNOWN {
                assert!(reason.contains(why), "{expression}: {why:?} is missing in {reason:?}");
            }
        }
    }
}

/// Rules over what newer probes see, each by its class.
const NEWER_RULES: &[(&str, &str)] = &[
    ("process", "receipt.process_tree.all(p, size(p.exec_flags) == 0 && size(p.environment) == 0)"),
    ("process", "receipt.process_tree.all(p, p.credentials.all(c, !c.gained))"),
    ("file", "receipt.files.all(f, f.bytes_written < 1000 && !('mount' in f.changes))"),
    ("file", "receipt.files.all(f, size(f.modes) == 0 && f.created == 0 && size(f.symlink_targets) == 0)"),
    ("network", "receipt.sockets.all(s, s.operation == 'connect')"),
    ("network", "receipt.dns.all(d, d.name != 'example.org' && d.type != 'TXT' && size(d.answers) == 0)"),
];

/// What is lost from `other` may be a task that escaped, so it opens every class; `operations` are of it.
#[test]
fn operations_are_of_the_class_other() {
    let rule = "receipt.operations.all(o, o.operation != 'ptrace' && o.detail != 'SIGKILL' && o.count < 9)";
    for class in ["process", "file", "network", "syscall", "other"] {
        let mut receipt = receipt();
        lose(&mut receipt, class, 1);
        let expected = if class == "other" { UNKNOWN } else { PASSED };
        assert_eq!(result(rule, &receipt).0, expected, "{class} events lost");
    }
    let mut unwatched = receipt();
    unwatched.coverage.vantages[0].classes.remove("other");
    assert_eq!(result(rule, &unwatched).0, UNKNOWN);
    assert_eq!(result("receipt.files.all(f, f.path != '/x')", &unwatched).0, PASSED);
    for list in ["operations", "operations (bytes)", "operations[].pids"] {
        let mut receipt = receipt();
        receipt.coverage.caps.push(Cap { list: list.into(), limit: 1, events_left_out: 1 });
        assert_eq!(result(rule, &receipt).0, UNKNOWN, "{list} capped");
    }
    let mut seen = receipt();
    seen.operations.push(glasshouse_schema::receipt::Operation {
        operation: "ptrace".into(),
        detail: "16".into(),
        target: Some(1),
        count: 1,
        results: [("ok".into(), 1)].into(),
        pids: vec![10],
        vantage: Vantage::Host,
    });
    lose(&mut seen, "other", 1);
    assert_eq!(result(rule, &seen).0, VIOLATED);
    // How much was sent is not known where no hook counts it.
    assert_eq!(result("receipt.sockets.all(s, s.bytes_sent < 10)", &receipt()).0, UNKNOWN);
}

#[test]
fn loss_of_one_class_leaves_the_others_known() {
    let rules = [
        ("process", "receipt.process_tree.all(p, p.exe != '/usr/bin/curl')"),
        ("file", "receipt.files.all(f, f.path != '/x')"),
        (
            "network",
            "receipt.sockets.all(s, s.dst != '/x') && receipt.network.attempts.all(a, a.dst != '/x')",
        ),
        ("syscall", "!('ptrace' in receipt.syscalls.counts) && !has(receipt.syscalls.counts.ptrace)"),
    ];
    for (lost, _) in rules {
        for (class, rule) in rules.iter().chain(NEWER_RULES).copied() {
            let mut receipt = receipt();
            lose(&mut receipt, lost, 1);
            let expected = if class == lost { UNKNOWN } else { PASSED };
            assert_eq!(result(rule, &receipt).0, expected, "{rule}, {lost} events lost");
        }
    }
    for (list, open) in [("files (bytes)", "file"), ("process_tree.execs", "process"), ("sockets", "network")]
    {
        for (class, rule) in rules {
            let mut receipt = receipt();
            receipt.coverage.caps.push(Cap { list: list.into(), limit: 4, events_left_out: 7 });
            let expected = if class == open { UNKNOWN } else { PASSED };
            assert_eq!(result(rule, &receipt).0, expected, "{rule}, {list} capped");
        }
    }
    let mut receipt = receipt();
    lose(&mut receipt, "process", 1);
    // Numbers of processes are identities, not counts.
    assert_eq!(result("receipt.process_tree.exists(p, p.pid == 12 && p.uid == 0)", &receipt).0, PASSED);
}

#[test]
fn a_count_of_another_class_stays_exact() {
    let mut receipt = receipt();
    lose(&mut receipt, "file", 1);
    assert_eq!(result("receipt.syscalls.counts['openat'] == 12", &receipt).0, PASSED);
    lose(&mut receipt, "syscall", 1);
    assert_eq!(result("receipt.syscalls.counts['openat'] == 12", &receipt).0, UNKNOWN);
    assert_eq!(result("receipt.syscalls.counts['openat'] > 11", &receipt).0, PASSED);
}

#[test]
fn what_cannot_be_evaluated_is_unknown_with_the_reason() {
    let receipt = receipt();
    for (expression, why) in [
        ("receipt.resources.max_rss_kb > 0", "there is no `resources`"),
        ("receipt.labels.owner == 'me'", "there is no `owner`"),
        ("receipt.exit_code / receipt.exit_code == 1", "division by zero"),
        ("port(receipt.execution.backend) == 1", "`process` has no port"),
        ("receipt.process_tree[7].pid == 1", "there is no element 7"),
        ("int(receipt.version) == 4", "not a whole number"),
    ] {
        let (result, reason) = result(expression, &receipt);
        assert_eq!(result, UNKNOWN, "{expression}");
        assert!(reason.contains(why), "{expression}: {reason}");
    }
    // An error is absorbed where it does not matter.
    assert_eq!(result("receipt.labels.owner == 'me' || receipt.exit_code == 0", &receipt).0, PASSED);
    assert_eq!(result("receipt.exit_code == 1 && receipt.labels.owner == 'me'", &receipt).0, VIOLATED);
    assert_eq!(result("has(receipt.resources) && receipt.resources.max_rss_kb > 0", &receipt).0, VIOLATED);
}

#[test]
fn lists_that_are_left_out_are_empty() {
    let mut receipt = receipt();
    receipt.files.clear();
    receipt.labels.clear();
    assert_eq!(result("receipt.files.all(f, f.path == '')", &receipt).0, PASSED);
    assert_eq!(result("size(receipt.labels) == 0 && !has(receipt.labels.team)", &receipt).0, PASSED);
    assert_eq!(result("receipt.coverage.vantages.all(v, v.escaped_tasks == 0)", &receipt).0, PASSED);
}

#[test]
fn decisions_follow_the_rules_that_can_deny() {
    let rule = |id: &str, expression: &str, action: &str| {
        format!("  - {{id: {id}, expression: \"{expression}\", message: m, action: {action}}}\n")
    };
    let (passes, fails, unknown) = ("1 == 1", "1 == 2", "receipt.labels.x == ''");
    for (rules, decision) in [
        (vec![(passes, "deny")], Decision::Allowed),
        (vec![(passes, "deny"), (fails, "warn")], Decision::Allowed),
        (vec![(passes, "deny"), (unknown, "warn")], Decision::Allowed),
        (vec![(unknown, "deny"), (passes, "deny")], Decision::Unknown),
        (vec![(unknown, "deny"), (fails, "deny")], Decision::Denied),
        (vec![(unknown, "deny"), (fails, "warn")], Decision::Unknown),
    ] {
        let text: String = rules
            .iter()
            .enumerate()
            .map(|(index, (expression, action))| rule(&format!("r{index}"), expression, action))
            .collect();
        let policy = Policy::parse(&format!("version: v1\nname: p\nrules:\n{text}"), "p.yaml").unwrap();
        assert_eq!(judge(&policy, &receipt()).decision, decision, "{rules:?}");
    }
}

#[test]
fn without_a_receipt_every_rule_is_unknown() {
    let policy = policy("true");
    let verdict = policy.without_receipt(common::EXECUTION.parse().unwrap(), "profiling is disabled");
    assert_eq!((verdict.decision, verdict.receipt_digest), (Decision::Unknown, None));
    assert_eq!(verdict.rules[0].result, UNKNOWN);
    assert_eq!(verdict.rules[0].reason, "profiling is disabled");
}

#[test]
fn every_class_has_its_own_bit() {
    // `Evidence::ALL` is written out; a sixth class must not be forgotten there.
    assert_eq!(Class::ALL.len(), 5);
}

#[test]
fn reasons_are_bounded_and_plain() {
    let mut receipt = receipt();
    let hostile = "\"\\\n\u{1b}[2J".repeat(1000);
    receipt.coverage.unavailable.push(Unavailable { vantage: Vantage::Guest, reason: hostile });
    let (_, reason) = result("receipt.files.all(f, true)", &receipt);
    assert!(reason.len() <= 320 && !reason.contains(['"', '\\', '\n', '\u{1b}']), "{reason}");
}
