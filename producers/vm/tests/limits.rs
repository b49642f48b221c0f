//! Limits that cgroup v2 holds, where it holds them: in a guest, whose kernel has all controllers in one hierarchy and none of
//! v1. Skipped, with the reason, where no machine can be made.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use std::sync::Arc;

use glasshouse_backends::conformance::{report_skipped, spec};
use glasshouse_backends::fake::RecordingSink;
use glasshouse_execution::{Engine, EngineReport};
use glasshouse_schema::Limit;
use glasshouse_schema::lifecycle::{Phase, PhaseName};

/// Prints what the command is held to, and by whom.
const HOLDERS: &str = r#"
read own < /proc/self/cgroup
own=/sys/fs/cgroup${own#0::}
while read -r _ _ kind _; do case $kind in cgroup*) echo "mounted $kind" ;; esac; done < /proc/mounts
echo "memory $(cat $own/memory.max) swap $(cat $own/memory.swap.max 2>/dev/null || echo none) pids $(cat $own/pids.max)"
"#;

async fn run(limits: &[&str], script: &str) -> Result<(EngineReport, Arc<RecordingSink>), String> {
    let backend = support::backend()?;
    let mut spec = spec(["/bin/sh", "-c", script]);
    for limit in limits {
        spec.limits.set_text(limit).unwrap();
    }
    // A limit that does not hold fails the test and not the machine.
    spec.limits.set_text("wall=120s").unwrap();
    let id = spec.id.to_string();
    let sink = Arc::new(RecordingSink::new());
    let report = Engine::new(Arc::new(backend), Arc::clone(&sink) as _).run(spec, None).await;
    assert_eq!(report.cleanup_errors, Vec::<String>::new());
    assert_eq!(support::left_of(&id), Vec::<String>::new());
    Ok((report, sink))
}

fn printed(report: &EngineReport) -> String {
    format!(
        "{:?}\n{}{}",
        report.outcome,
        String::from_utf8_lossy(&report.output.stdout),
        String::from_utf8_lossy(&report.output.stderr)
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_but_cgroup_v2_holds_them() {
    match run(&["memory=64MiB", "pids=16"], HOLDERS).await {
        Err(reason) => report_skipped("nothing_but_cgroup_v2_holds_them", &reason),
        Ok((report, sink)) => {
            let said = printed(&report);
            assert_eq!(report.outcome.exit_code, 0, "{said}");
            assert_eq!(report.outcome.limit_exceeded, None, "{said}");
            let stdout = String::from_utf8_lossy(&report.output.stdout).into_owned();
            let mounted: Vec<&str> = stdout.lines().filter(|line| line.starts_with("mounted")).collect();
            assert_eq!(mounted, ["mounted cgroup2"], "{said}");
            assert!(stdout.contains("memory 67108864 "), "{said}");
            assert!(stdout.contains(" pids 16\n"), "{said}");
            let Some(Phase::Prepared(prepared)) = sink.phase(PhaseName::Prepared) else { panic!("{said}") };
            assert_eq!(prepared.environment.sandbox.not_applied, Vec::<String>::new());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_memory_bomb_is_ended_and_named() {
    // Four times what is allowed, of which every page is written.
    let bomb = "dd if=/dev/zero of=/dev/null bs=256M count=1; echo survived";
    match run(&["memory=64MiB"], bomb).await {
        Err(reason) => report_skipped("a_memory_bomb_is_ended_and_named", &reason),
        Ok((report, sink)) => {
            let said = printed(&report);
            assert_eq!(report.outcome.limit_exceeded, Some(Limit::Memory), "{said}");
            assert_eq!(report.outcome.exit_code, 137, "{said}");
            // memory.oom.group: all of it, and not the one that asked for too much.
            assert!(!said.contains("survived"), "{said}");
            let Some(Phase::Exited(exited)) = sink.phase(PhaseName::Exited) else { panic!("{said}") };
            assert_eq!(exited.outcome, report.outcome, "the record says the same");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fork_bomb_is_held_and_named() {
    // A shell that cannot fork ends: the one around it says so, and goes on.
    let bomb = "(i=0; while [ $i -lt 64 ]; do sleep 1000 & i=$((i+1)); done); echo \"ended with $?\"";
    match run(&["pids=16"], bomb).await {
        Err(reason) => report_skipped("a_fork_bomb_is_held_and_named", &reason),
        Ok((report, sink)) => {
            let said = printed(&report);
            assert_eq!(report.outcome.limit_exceeded, Some(Limit::Pids), "{said}");
            // Refused forks do not end the command: its exit code is its own.
            assert_eq!((report.outcome.exit_code, &report.outcome.error), (0, &None), "{said}");
            assert!(said.contains("ended with 2"), "{said}");
            let Some(Phase::Exited(exited)) = sink.phase(PhaseName::Exited) else { panic!("{said}") };
            assert_eq!(exited.outcome, report.outcome, "the record says the same");
        }
    }
}
