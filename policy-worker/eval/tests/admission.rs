//! Rules before an execution, and the example that is shipped.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeMap;

use glasshouse_eval::Policy;
use glasshouse_schema::admission::{Admission, AdmissionUser};
use glasshouse_schema::lifecycle::ProfilingMode;
use glasshouse_schema::verdict::{Decision, RuleResult};
use glasshouse_schema::{ExecutionId, Limits, NetworkAccess, NodeId, SandboxLevel, SandboxRequest};

fn good() -> Admission {
    let mut limits = Limits::default();
    ["wall=10m", "memory=1GiB", "pids=100"].iter().for_each(|text| limits.set_text(text).unwrap());
    Admission {
        execution_id: ExecutionId::from_parts(1, [1; 10]),
        node: NodeId::new("node-1").unwrap(),
        argv: vec!["make".into(), "test".into()],
        env: Some(vec!["HOME".into(), "PATH".into()]),
        workdir: "/srv/job".into(),
        user: AdmissionUser { uid: 0, gid: 0 },
        backend: "process".into(),
        profile: ProfilingMode::Host,
        profile_required: false,
        labels: BTreeMap::new(),
        sandbox: SandboxRequest::of(SandboxLevel::Standard),
        network: NetworkAccess::Host,
        limits,
        files: Vec::new(),
        artifacts: Vec::new(),
    }
}

fn judge(policy: &Policy, request: &Admission) -> (Decision, Vec<(String, RuleResult)>) {
    let verdict = policy.evaluate_pre(request).unwrap();
    let failed = verdict.rules.into_iter().filter(|rule| rule.result != RuleResult::Passed);
    (verdict.decision, failed.map(|rule| (rule.rule, rule.result)).collect())
}

#[test]
fn each_rule_of_the_example_refuses_what_it_is_for() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/policies/admission.yaml");
    let policy =
        Policy::parse(&std::fs::read_to_string(path).unwrap(), path).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!((policy.pre_rules(), policy.post_rules()), (5, 0));
    assert_eq!(judge(&policy, &good()), (Decision::Allowed, vec![]));
    type Change = fn(&mut Admission);
    let cases: [(&str, Decision, Change); 7] = [
        ("in-a-sandbox", Decision::Denied, |request| request.sandbox.level = SandboxLevel::None),
        ("no-system-writes", Decision::Denied, |request| request.sandbox.write.push("/etc/cron.d".into())),
        ("bounded", Decision::Denied, |request| request.limits.wall_ms = None),
        ("bounded", Decision::Denied, |request| request.limits.memory_bytes = Some(1 << 40)),
        ("bounded", Decision::Denied, |request| request.limits = Limits::default()),
        ("no-preloading", Decision::Denied, |request| {
            request.env.as_mut().unwrap().push("LD_PRELOAD".into())
        }),
        ("watched", Decision::Allowed, |request| request.profile = ProfilingMode::Disabled),
    ];
    for (rule, decision, change) in cases {
        let mut request = good();
        change(&mut request);
        assert_eq!(judge(&policy, &request), (decision, vec![(rule.into(), RuleResult::Violated)]), "{rule}");
    }
}

#[test]
fn what_cannot_be_evaluated_is_unknown_and_other_phases_are_left_alone() {
    let policy = "version: v1\nname: p\nrules:\n\
        - {id: cheap, phase: pre, expression: request.limits.cpu_ms < 1000, message: m}\n\
        - {id: user, phase: pre, expression: request.user.uid == 0 && request.network == 'host', message: m}\n\
        - {id: after, expression: receipt.exit_code == 0, message: m}\n";
    let policy = Policy::parse(policy, "p").unwrap_or_else(|e| panic!("{e}"));
    let unknown = (Decision::Unknown, vec![("cheap".to_owned(), RuleResult::Unknown)]);
    assert_eq!(judge(&policy, &good()), unknown, "there is no such limit");
    let mut limited = good();
    limited.limits.cpu_ms = Some(10);
    assert_eq!(judge(&policy, &limited), (Decision::Allowed, vec![]));
    let wrong = "version: v1\nname: p\nrules:\n- {id: a, phase: pre, expression: request.sandbx.level == 'none', message: m}\n";
    assert!(Policy::parse(wrong, "p").unwrap_err().to_string().contains("did you mean `sandbox`"));
}
