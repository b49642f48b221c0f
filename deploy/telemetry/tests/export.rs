//! What a process exports, seen by a receiver. Set-up is once per process and reads the environment, so each case runs
//! this test binary again as a child.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::process::{Command, Output};
use std::time::Duration;

use glasshouse_telemetry::receiver::Receiver;

const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// The child: one span under a given parent, one log line.
#[test]
#[ignore = "run as a child by the other tests"]
fn child() {
    let guard = glasshouse_telemetry::init("child-service", "info", false).expect("telemetry starts");
    let span = tracing::info_span!(target: "glasshouse_test", "work", answer = 42);
    glasshouse_telemetry::set_parent(&span, PARENT);
    span.in_scope(|| {
        tracing::info!(target: "glasshouse_test", "at work");
        println!("traceparent {:?}", glasshouse_telemetry::current_traceparent());
    });
    drop(span);
    guard.shutdown();
}

async fn run_child(environment: Vec<(&'static str, String)>) -> Output {
    tokio::task::spawn_blocking(move || {
        let program = std::env::current_exe().expect("a test knows its binary");
        let mut command = Command::new(program);
        command.args(["--exact", "child", "--ignored", "--nocapture"]);
        for (name, _) in
            std::env::vars().filter(|(name, _)| name.starts_with("OTEL_") || name.ends_with("_LOG"))
        {
            command.env_remove(name);
        }
        command.envs(environment).output().expect("the child runs")
    })
    .await
    .expect("the child was waited for")
}

#[tokio::test]
async fn spans_reach_the_endpoint_with_their_parent_and_service() {
    let receiver = Receiver::start().await.unwrap();
    let output = run_child(vec![
        ("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint()),
        ("OTEL_RESOURCE_ATTRIBUTES", "deployment=test".into()),
        // What is logged does not decide what is exported.
        ("GLASSHOUSE_LOG", "off".into()),
    ])
    .await;
    assert!(output.status.success(), "{output:?}");
    let spans = receiver.wait_for(Duration::from_secs(10), |spans| !spans.is_empty()).await.unwrap();
    let [span] = spans.as_slice() else { panic!("{spans:?}") };
    assert_eq!((span.service.as_str(), span.name.as_str()), ("child-service", "work"));
    assert_eq!(span.trace_id, "0af7651916cd43dd8448eb211c80319c");
    assert_eq!(span.parent_span_id, "b7ad6b7169203331");
    assert_eq!(span.attributes["answer"], "42");
    assert_eq!(span.resource["deployment"], "test");
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert!(stdout.contains(&format!("00-{}-{}-01", span.trace_id, span.span_id)), "{stdout}");
    assert!(!String::from_utf8_lossy(&output.stderr).contains("at work"));
}

#[tokio::test]
async fn the_environment_names_the_service() {
    let receiver = Receiver::start().await.unwrap();
    let output = run_child(vec![
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", receiver.endpoint()),
        ("OTEL_SERVICE_NAME", "renamed".into()),
    ])
    .await;
    assert!(output.status.success(), "{output:?}");
    let spans = receiver.wait_for(Duration::from_secs(10), |spans| !spans.is_empty()).await.unwrap();
    assert_eq!(spans[0].service, "renamed");
}

#[tokio::test]
async fn traces_are_off_unless_asked_for() {
    let receiver = Receiver::start().await.unwrap();
    let endpoint = || ("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint());
    for (environment, says) in [
        (vec![], "at work"),
        (vec![endpoint(), ("OTEL_SDK_DISABLED", "true".into())], "at work"),
        (vec![endpoint(), ("OTEL_TRACES_EXPORTER", "none".into())], "at work"),
        (vec![endpoint(), ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf".into())], "only grpc"),
        (vec![endpoint(), ("OTEL_TRACES_EXPORTER", "zipkin".into())], "only otlp and none"),
    ] {
        let output = run_child(environment.clone()).await;
        assert!(output.status.success(), "{output:?}");
        let (stdout, stderr) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(stdout.contains("traceparent None"), "{environment:?}: {stdout}");
        assert!(stderr.contains(says), "{environment:?}: {stderr}");
    }
    assert!(receiver.spans().is_empty());
}

#[tokio::test]
async fn a_dead_endpoint_holds_nobody_up() {
    // A port that was free a moment ago.
    let endpoint = Receiver::start().await.unwrap().endpoint();
    let begun = std::time::Instant::now();
    let output = run_child(vec![("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)]).await;
    assert!(output.status.success(), "{output:?}");
    assert!(begun.elapsed() < glasshouse_telemetry::FLUSH_WITHIN + Duration::from_secs(7));
}

#[tokio::test]
async fn a_bad_filter_is_an_error_that_names_the_variable() {
    let output = run_child(vec![("GLASSHOUSE_LOG", "glasshouse=verbose=x".into())]).await;
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("Filter") && said.contains("GLASSHOUSE_LOG"), "{said}");
}
