//! The policy that is shipped gives a clear answer over an ordinary workload.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use common::{judge, receipt};
use glasshouse_eval::Policy;
use glasshouse_schema::Receipt;
use glasshouse_schema::verdict::{Decision, RuleResult, Verdict};

fn verdict(receipt: &Receipt) -> Verdict {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/policies/baseline.yaml");
    let policy =
        Policy::parse(&std::fs::read_to_string(path).unwrap(), path).unwrap_or_else(|e| panic!("{e}"));
    judge(&policy, receipt)
}

fn violated(receipt: &Receipt) -> Vec<String> {
    let verdict = verdict(receipt);
    assert!(verdict.rules.iter().all(|rule| rule.result != RuleResult::Unknown), "{verdict:#?}");
    let rules = verdict.rules.into_iter().filter(|rule| rule.result == RuleResult::Violated);
    rules.map(|rule| rule.rule).collect()
}

fn quiet() -> Receipt {
    let mut receipt = receipt();
    receipt.network.attempts.clear();
    receipt.sockets.clear();
    receipt
}

#[test]
fn the_demo_is_denied_for_its_network_attempt_alone() {
    assert_eq!(violated(&receipt()), ["no-network"]);
    assert_eq!(verdict(&receipt()).decision, Decision::Denied);
    insta::assert_json_snapshot!(verdict(&receipt()).rules);
}

#[test]
fn a_compile_in_tmp_is_allowed() {
    assert_eq!(violated(&quiet()), [""; 0]);
    assert_eq!(verdict(&quiet()).decision, Decision::Allowed);
}

#[test]
fn each_rule_catches_what_it_is_for() {
    type Deed = fn(&mut Receipt);
    let attempt = |receipt: &mut Receipt, protocol: &str, dst: &str| {
        let mut attempt = common::receipt().network.attempts.remove(0);
        (attempt.protocol, attempt.dst) = (protocol.into(), dst.into());
        receipt.network.attempts.push(attempt);
    };
    let cases: [(&str, Deed); 8] = [
        ("no-credentials", |receipt| receipt.files[0].path = "/root/.ssh/id_ed25519".into()),
        ("no-credentials", |receipt| receipt.files[0].path = "/etc/shadow".into()),
        ("no-system-writes", |receipt| receipt.filesystem.deletes.push("/etc/passwd".into())),
        ("no-other-user", |receipt| receipt.process_tree[2].uid = Some(1000)),
        ("no-hidden-programs", |receipt| receipt.process_tree[1].exe_flags = vec!["unlinked".into()]),
        ("no-kernel-interfaces", |receipt| {
            receipt.syscalls.counts.insert("ptrace".into(), 1);
        }),
        ("stays-at-home", |receipt| receipt.filesystem.writes.push("/home/a/x".into())),
        ("no-system-writes", |receipt| {
            receipt.filesystem.writes = vec!["/tmp/x".into(), "/usr/bin/ls".into()]
        }),
    ];
    for (rule, deed) in cases {
        let mut receipt = quiet();
        deed(&mut receipt);
        assert!(violated(&receipt).contains(&rule.to_owned()), "{rule}: {:?}", violated(&receipt));
    }
    let mut receipt = quiet();
    attempt(&mut receipt, "unix", "/run/docker.sock");
    assert_eq!(violated(&receipt), ["no-container-runtime"]);
    let mut receipt = quiet();
    attempt(&mut receipt, "tcp", "169.254.169.254:80");
    assert_eq!(violated(&receipt), ["no-network", "no-cloud-metadata"]);
    for path in ["/root/.ssh/known_hosts", "/root/.ssh/id_rsa.pub", "/etc/ssh/ssh_config"] {
        let mut receipt = quiet();
        receipt.files[0].path = path.into();
        assert_eq!(violated(&receipt), [""; 0], "{path}");
    }
}
