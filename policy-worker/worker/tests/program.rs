//! The program itself: its span, its end, its errors.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::process::{Child, Command, Output, Stdio};

use common::{broker, execution, publish, wait_for};
use glasshouse_nats::VERDICTS;
use glasshouse_schema::headers;
use glasshouse_telemetry::receiver::Receiver;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const BASELINE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/policies");

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_glasshouse-policy-worker"));
    for (name, _) in
        std::env::vars().filter(|(name, _)| name.starts_with("OTEL_") || name.starts_with("GLASSHOUSE_"))
    {
        command.env_remove(name);
    }
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

async fn stop(child: Child, signal: Signal) -> Output {
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
    tokio::task::spawn_blocking(move || child.wait_with_output().unwrap()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_verdict_is_a_span_in_the_trace_of_its_receipt() {
    let broker = broker().await;
    let receiver = Receiver::start().await.unwrap();
    let child = program()
        .args(["--nats", broker.server.url(), "--policy", BASELINE, "--name", "traced", "--json-logs"])
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint())
        .spawn()
        .unwrap();
    publish(&broker.bus, execution(1)).await;
    let verdict = wait_for(&broker.bus, VERDICTS, 1).await.remove(0);
    let output = stop(child, Signal::SIGTERM).await;
    assert!(output.status.success(), "{output:?}");
    let spans = receiver
        .wait_for(common::DEADLINE, |spans| spans.iter().any(|span| span.name == "verdict"))
        .await
        .unwrap();
    let span = spans.iter().find(|span| span.name == "verdict").unwrap();
    assert_eq!(span.service, "glasshouse-policy-worker");
    assert_eq!(span.trace_id, "0af7651916cd43dd8448eb211c80319c");
    assert_eq!(span.parent_span_id, "b7ad6b7169203331");
    assert_eq!(span.attributes["execution_id"], execution(1).to_string());
    assert_eq!(
        (span.attributes["policy"].as_str(), span.attributes["decision"].as_str()),
        ("baseline", "allowed")
    );
    let onward = verdict.2.get(headers::TRACEPARENT).unwrap().to_string();
    assert_eq!(onward, format!("00-{}-{}-01", span.trace_id, span.span_id));
    let log = String::from_utf8(output.stderr).unwrap();
    for line in log.lines() {
        serde_json::from_str::<serde_json::Value>(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    }
    assert!(log.contains("verdict published"), "{log}");
}

#[tokio::test]
async fn what_is_wrong_is_said_and_the_exit_code_says_so_too() {
    let dir = tempfile::tempdir().unwrap();
    let wrong = dir.path().join("wrong.yaml");
    std::fs::write(&wrong, "version: v1\nname: w\nrules:\n  - {id: r, message: m, expression: receipt.x}\n")
        .unwrap();
    let wrong = wrong.to_str().unwrap();
    for (args, says) in [
        (vec!["--policy", wrong], "wrong.yaml:4:45: error: there is no field `x` here"),
        (vec!["--policy", "/nonexistent.yaml"], "cannot read /nonexistent.yaml"),
        (vec!["--policy", BASELINE, "--nats", "nats://127.0.0.1:1"], "127.0.0.1:1"),
        (vec![], "--policy"),
    ] {
        let output = program().args(&args).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(says), "{args:?}: {said}");
    }
    let help = program().arg("--help").output().unwrap();
    assert!(String::from_utf8_lossy(&help.stdout).contains("Examples:"));
}
