//! Commands in containers that are watched from inside, by the guest probe as the container's process. Made by the runc shim, where the
//! kernel inside is the node's own; Kata's own shim was tried by hand (docs/kata.md).

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[allow(dead_code, reason = "each test takes what it needs")]
mod support;
// What two receipts must agree about is said once.
#[path = "../../../deploy/kernels/src/facts.rs"]
#[allow(dead_code, reason = "the runner of kernels uses the rest of it")]
mod facts;

use std::path::PathBuf;
use std::sync::Arc;

use glasshouse_backends::conformance::{report_skipped, spec};
use glasshouse_backends::fake::RecordingSink;
use glasshouse_execution::backend::ExecutionBackend;
use glasshouse_execution::{Engine, EngineReport, ProfilingController};
use glasshouse_host_probe::{EbpfController, LoadOptions};
use glasshouse_kata::KataBackend;
use glasshouse_schema::ids::Vantage;
use glasshouse_schema::lifecycle::ProfilingMode;
use glasshouse_schema::limits::Limit;
use glasshouse_schema::receipt::{Completeness, Receipt};
use support::Containerd;

/// A containerd and the probe, or nothing where this host lacks something.
fn parts(test: &str) -> Option<(Arc<Containerd>, PathBuf)> {
    let found = Containerd::shared().and_then(|containerd| Ok((containerd, support::probe()?)));
    found.map_err(|reason| report_skipped(test, &reason)).ok()
}

struct Ran {
    report: EngineReport,
    stdout: String,
    stderr: String,
    receipt: Option<Receipt>,
}

/// Runs a script so that it is watched from there; `None` for the mode runs it without a probe.
async fn run(containerd: &Containerd, probe: Option<&PathBuf>, profile: ProfilingMode, script: &str) -> Ran {
    let config = support::config(containerd, Vec::new());
    let mut spec = spec(["sh", "-c", script]);
    spec.profile = profile;
    let (id, sink) = (spec.id, Arc::new(RecordingSink::new()));
    let mut controllers: Vec<Arc<dyn ProfilingController>> = Vec::new();
    if profile.vantages().contains(&Vantage::Host) {
        controllers.push(Arc::new(EbpfController::new(LoadOptions::default())));
    }
    let backend: Arc<dyn ExecutionBackend> = match probe {
        Some(probe) => {
            let backend = KataBackend::with_probe(config, probe.clone());
            if profile.vantages().contains(&Vantage::Guest) {
                controllers.push(Arc::new(backend.controller()));
            }
            Arc::new(backend)
        }
        None => Arc::new(KataBackend::new(config)),
    };
    let engine = Engine { controllers, ..Engine::new(backend, sink.clone()) };
    let report = engine.run(spec, None).await;
    assert_eq!(report.cleanup_errors, Vec::<String>::new());
    assert_eq!(containerd.left(&id.to_string()), Vec::<String>::new());
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (stdout, stderr) = (text(&report.output.stdout), text(&report.output.stderr));
    let receipt = glasshouse_fold::receipt_of(id, &sink.events(), &sink.frames()).unwrap();
    Ran { report, stdout, stderr, receipt }
}

/// The facts of one vantage point: programs, and what was read, written and connected to.
fn programs(receipt: &Receipt, vantage: Vantage) -> Vec<(&str, &str)> {
    let of = receipt.process_tree.iter().filter(|process| process.vantage == vantage);
    of.map(|process| (process.exe.as_str(), process.argv.first().map_or("", String::as_str))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_is_watched_from_inside_its_container() {
    const NAME: &str = "a_command_is_watched_from_inside_its_container";
    let Some((containerd, probe)) = parts(NAME) else { return };
    let controller = EbpfController::new(LoadOptions::default());
    if let Err(error) = controller.ready().await {
        return report_skipped(NAME, &error.reason);
    }
    drop(controller);
    let script = "echo x > /tmp/made; cat /tmp/made; (cat /nothing) 2> /tmp/errors; exit 4";
    for profile in [ProfilingMode::Guest, ProfilingMode::Combined] {
        let ran = run(&containerd, Some(&probe), profile, script).await;
        assert_eq!((ran.report.outcome.exit_code, ran.report.outcome.error), (4, None), "{profile:?}");
        assert_eq!((ran.stdout.as_str(), ran.stderr.as_str()), ("x\n", ""));
        let receipt = ran.receipt.expect("it was profiled");
        assert_eq!(receipt.completeness, Completeness::Closed, "{:?}", receipt.coverage.incomplete);
        assert_eq!(receipt.environment.runtime, support::RUNTIME);
        assert_eq!(receipt.environment.image, Some(containerd.image()));
        // It is no virtual machine, and nobody says so.
        assert_eq!(receipt.execution.isolation, "container");
        let inside = programs(&receipt, Vantage::Guest);
        assert_eq!(inside, [("/bin/busybox", "sh"), ("/bin/busybox", "cat"), ("/bin/busybox", "cat")]);
        let outside = programs(&receipt, Vantage::Host);
        match profile {
            ProfilingMode::Combined => {
                for program in &inside {
                    assert!(outside.contains(program), "{program:?} is not in {outside:?}");
                }
                assert!(
                    outside.iter().any(|(exe, _)| exe.ends_with("glasshouse-guest-probe")),
                    "{outside:?}"
                );
            }
            _ => assert!(outside.is_empty(), "{outside:?}"),
        }
        assert!(
            receipt.filesystem.writes.iter().any(|path| path == "/tmp/made"),
            "{:?}",
            receipt.filesystem.writes
        );
    }
}

/// Writes, appends, pipes, fails, forks, executes, and is told apart by its exit code.
const WORKLOAD: &str = "echo one > a; cat a >> b; cat < b; (cat nothing) 2> errors; (exec cat a > h); (sleep 0; exit 3); \
                        sh -c 'kill -9 $$'; cat b | tr o 0 > i; ls /bin > /dev/null; exit 7";

/// What is told from inside is what the node's kernel tells of the same command in a container without a probe.
#[tokio::test(flavor = "multi_thread")]
async fn the_same_facts_are_told_from_inside_as_from_outside() {
    const NAME: &str = "the_same_facts_are_told_from_inside_as_from_outside";
    let Some((containerd, probe)) = parts(NAME) else { return };
    let controller = EbpfController::new(LoadOptions::default());
    if let Err(error) = controller.ready().await {
        return report_skipped(NAME, &error.reason);
    }
    drop(controller);
    let told = async |probe: Option<&PathBuf>, profile: ProfilingMode, vantage: &str| {
        let ran = run(&containerd, probe, profile, WORKLOAD).await;
        assert_eq!((ran.report.outcome.exit_code, ran.stdout.as_str()), (7, "one\n"), "{}", ran.stderr);
        let receipt = serde_json::to_value(ran.receipt.expect("it was profiled")).unwrap();
        assert_eq!(receipt["completeness"], "closed", "{:#}", receipt["coverage"]["incomplete"]);
        facts::facts(&facts::seen_from(vantage, &receipt), &[])
    };
    let outside = told(None, ProfilingMode::Host, "host").await;
    assert!(outside.len() > 30, "only {} facts were compared", outside.len());
    for profile in [ProfilingMode::Guest, ProfilingMode::Combined] {
        let inside = told(Some(&probe), profile, "guest").await;
        assert_eq!(facts::differences(&outside, &inside), Vec::<String>::new(), "{profile:?}");
    }
}

/// What a command sees of itself and may do is what it would be without a probe beside it.
#[tokio::test(flavor = "multi_thread")]
async fn a_command_has_no_more_rights_than_without_the_probe() {
    const NAME: &str = "a_command_has_no_more_rights_than_without_the_probe";
    let Some((containerd, probe)) = parts(NAME) else { return };
    let script = "while read -r line; do case $line in Cap*|NoNewPrivs*|Seccomp:*|Uid*|Gid*|Groups*) echo $line;; esac; done \
                  < /proc/self/status; cat /proc/self/mounts; ls /dev /sys/fs/cgroup /; ls /proc/self/fd; pwd; echo $PATH $FROM_IMAGE";
    let of =
        async |probe: Option<&PathBuf>| run(&containerd, probe, ProfilingMode::Disabled, script).await.stdout;
    let (without, with) = (of(None).await, of(Some(&probe)).await);
    assert!(without.contains("CapEff") && without.contains("NoNewPrivs: 1"), "{without}");
    let (covered, lines): (Vec<_>, Vec<_>) =
        with.lines().map(own_names_left_out).partition(|line| line.contains(" /sys/fs/cgroup "));
    assert_eq!(lines, without.lines().map(own_names_left_out).collect::<Vec<_>>());
    // The probe's cgroups are below what was there before, in which there is nothing.
    let kinds = covered.iter().map(|line| line.split(' ').nth(2).unwrap()).collect::<Vec<_>>();
    assert_eq!(kinds, ["cgroup2", "sysfs"]);
}

/// Snapshots have numbers of their own.
fn own_names_left_out(line: &str) -> String {
    match line.strip_prefix("overlay / ") {
        Some(_) => "overlay /".to_owned(),
        None => line.to_owned(),
    }
}

/// Root in there cannot look into the probe, nor mount what would let it out of its cgroup; it can end it, and that is told.
#[tokio::test(flavor = "multi_thread")]
async fn a_command_cannot_take_over_its_probe() {
    const NAME: &str = "a_command_cannot_take_over_its_probe";
    let Some((containerd, probe)) = parts(NAME) else { return };
    // Redirections that fail would end the shell, but for those of a subshell.
    let script = "for dir in /proc/[0-9]*; do read -r name < $dir/comm; case $name in glasshouse*) \
                  for fd in $dir/fd/*; do [ -e $fd ] && echo reached $fd; done; \
                  [ -e $dir/root/bin ] && echo reached its root; \
                  (: > $dir/mem) && echo reached its memory; kill -9 ${dir#/proc/};; esac; done; sleep 100";
    let ran = run(&containerd, Some(&probe), ProfilingMode::Guest, script).await;
    assert_eq!(ran.stdout, "");
    let error = ran.report.outcome.error.expect("the probe was ended");
    assert!(error.contains("SIGKILL"), "{error}");
    if let Some(receipt) = ran.receipt {
        assert_eq!(receipt.completeness, Completeness::Partial);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_run_has_a_whole_receipt() {
    const NAME: &str = "what_cannot_be_run_has_a_whole_receipt";
    let Some((containerd, probe)) = parts(NAME) else { return };
    for (program, code) in [("/bin", 126), ("/nonexistent", 127)] {
        let backend = KataBackend::with_probe(support::config(&containerd, Vec::new()), probe.clone());
        let mut spec = spec([program]);
        spec.profile = ProfilingMode::Guest;
        let (id, sink) = (spec.id, Arc::new(RecordingSink::new()));
        let controllers: Vec<Arc<dyn ProfilingController>> = vec![Arc::new(backend.controller())];
        let engine = Engine { controllers, ..Engine::new(Arc::new(backend), sink.clone()) };
        let report = engine.run(spec, None).await;
        assert_eq!(report.outcome.exit_code, code, "{:?}", report.outcome);
        let receipt = glasshouse_fold::receipt_of(id, &sink.events(), &sink.frames()).unwrap();
        // Without rights to watch there is none.
        if let Some(receipt) = receipt {
            assert_eq!(receipt.completeness, Completeness::Closed, "{:?}", receipt.coverage.incomplete);
        }
        assert_eq!(containerd.left(&id.to_string()), Vec::<String>::new());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_hold_with_a_probe_too() {
    const NAME: &str = "limits_hold_with_a_probe_too";
    let Some((containerd, probe)) = parts(NAME) else { return };
    for (limit, script) in [
        (Limit::Memory, "x=$(cat /dev/zero | tr '\\000' x); exit 0"),
        (Limit::Cpu, "while :; do :; done"),
        (Limit::Output, "while :; do echo yes; done"),
    ] {
        let backend = KataBackend::with_probe(support::config(&containerd, Vec::new()), probe.clone());
        let mut spec = spec(["sh", "-c", script]);
        match limit {
            Limit::Memory => spec.limits.memory_bytes = Some(16 << 20),
            Limit::Cpu => spec.limits.cpu_ms = Some(200),
            _ => spec.limits.output_bytes = Some(10_000),
        }
        let id = spec.id;
        let report = Engine::new(Arc::new(backend), Arc::new(RecordingSink::new())).run(spec, None).await;
        assert_eq!(report.outcome.limit_exceeded, Some(limit), "{:?}", report.outcome);
        assert_eq!(containerd.left(&id.to_string()), Vec::<String>::new());
    }
}
