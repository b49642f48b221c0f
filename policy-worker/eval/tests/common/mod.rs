//! Receipts to judge.
#![allow(dead_code, reason = "each test file uses a part")]

use glasshouse_eval::Policy;
use glasshouse_schema::{Digest, Receipt, Verdict};
use serde_json::json;

pub(crate) const EXECUTION: &str = "0198c0de-0000-7000-8000-000000000000";

/// A closed receipt of a host execution that compiled something in /tmp and tried the network.
pub(crate) fn receipt() -> Receipt {
    let counters = json!({"observed": "9", "delivered": "9", "collapsed": "0", "lost": "0"});
    serde_json::from_value(json!({
        "version": "v0.4.0",
        "execution_id": EXECUTION,
        "provenance": "host",
        "timestamp": "2026-01-01T00:00:00.000000000Z",
        "start_time": "2026-01-01T00:00:00.000000000Z",
        "end_time": "2026-01-01T00:00:01.000000000Z",
        "observation_mode": "host",
        "completeness": "closed",
        "outcome": {"exit_code": 0, "signal": null, "error": null},
        "timing": {"duration_ms": 1000, "cpu_time_ms": 10},
        "process_tree": [
            process(10, 1, "/bin/sh", "/tmp/work"),
            process(11, 10, "/usr/bin/cc", "/tmp/work"),
            process(12, 10, "/usr/bin/python3", "/tmp/work"),
        ],
        "processes": [],
        "filesystem": {
            "reads": ["/etc/hostname", "/tmp/work/hello.c"],
            "writes": ["/dev/null", "/tmp/work/hello"],
            "deletes": ["/tmp/work/draft.txt"],
            "policy_violations": [],
        },
        "network": {
            "connections": [{"dst": "127.0.0.1:9", "protocol": "tcp", "attempted": true}],
            "attempts": [{"dst": "127.0.0.1:9", "protocol": "tcp", "result": "ECONNREFUSED", "policy": ""}],
        },
        "syscalls": {"counts": {"connect": 1, "openat": 12, "write": 3}, "denied": []},
        "environment": {"runtime": "process", "os": "linux", "arch": "x86_64", "sandbox": {"network": "host"}},
        "execution": {"backend": "process", "isolation": "process"},
        "artifacts": {},
        "exit_code": 0,
        "duration_ms": 1000,
        "coverage": {
            "vantages": [{
                "vantage": "host", "controller": "ebpf", "hooks": ["sys_exit"], "sealed": true,
                "classes": {
                    "process": counters, "file": counters, "network": counters, "syscall": counters, "other": counters,
                },
            }],
            "incomplete": [],
        },
        "files": [
            {"path": "/etc/hostname", "reads": 1, "by": {"read": [10]}, "vantage": "host"},
            {"path": "/tmp/work/draft.txt", "writes": 1, "creates": 1, "deletes": 1, "by": {"write": [10], "delete": [12]}, "vantage": "host"},
            {"path": "/tmp/work/hello", "writes": 2, "by": {"write": [11]}, "vantage": "host"},
            {"path": "/tmp/work/hello.c", "reads": 1, "writes": 1, "by": {"read": [11], "write": [10]}, "vantage": "host"},
        ],
        "sockets": [
            {"dst": "127.0.0.1:9", "protocol": "tcp", "results": {"ECONNREFUSED": 1}, "pids": [12], "vantage": "host"},
        ],
        "chain": [],
        "labels": {"team": "compilers"},
    }))
    .expect("the fixture is a receipt")
}

fn process(pid: u32, ppid: u32, exe: &str, cwd: &str) -> serde_json::Value {
    json!({
        "pid": pid, "ppid": ppid, "exe": exe, "argv": [exe], "working_dir": cwd, "uid": 0, "gid": 0,
        "start_time": "2026-01-01T00:00:00.000000000Z", "exit_code": 0, "vantage": "host",
    })
}

/// A policy of one rule.
pub(crate) fn policy(expression: &str) -> Policy {
    let expression = serde_json::to_string(expression).unwrap();
    let yaml = format!(
        "version: v1\nname: test\nrules:\n  - id: rule\n    expression: {expression}\n    message: violated\n"
    );
    match Policy::parse(&yaml, "test.yaml") {
        Ok(policy) => policy,
        Err(error) => panic!("{error}"),
    }
}

pub(crate) fn judge(policy: &Policy, receipt: &Receipt) -> Verdict {
    let digest = Digest::of(&receipt.encode().unwrap());
    policy.evaluate_post(receipt, digest).unwrap()
}

/// Loses `count` events of a class.
pub(crate) fn lose(receipt: &mut Receipt, class: &str, count: u64) {
    let counters = receipt.coverage.vantages[0].classes.get_mut(class).unwrap();
    counters.lost = count;
    counters.observed += count;
}
