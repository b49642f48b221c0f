//! Logs and traces of every Glasshouse process.
//!
//! Logs go to stderr. Spans go to an OTLP endpoint only when the standard OpenTelemetry variables ask for it:
//!
//! | variable | meaning |
//! |---|---|
//! | `GLASSHOUSE_LOG`, `RUST_LOG` | log filter (`tracing_subscriber::EnvFilter`); the first that is set counts |
//! | `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`, `OTEL_EXPORTER_OTLP_ENDPOINT` | where spans go, over gRPC; unset: nowhere |
//! | `OTEL_SDK_DISABLED=true`, `OTEL_TRACES_EXPORTER=none` | no spans |
//! | `OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES`, `OTEL_TRACES_SAMPLER`, `OTEL_BSP_*`, … | as the SDK defines them |
//!
//! Invariants:
//! - without an endpoint nothing of OpenTelemetry is started: no thread, no runtime, no cost on a command's path;
//! - with one, the exporter has a runtime of its own, so it neither needs the caller's nor is held up by it, and the end
//!   of a process waits for it no longer than [`FLUSH_WITHIN`];
//! - a setting of the collector's that cannot be used is a warning, never a reason not to run the command.

#![cfg_attr(
    test,
    allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")
)]

#[cfg(feature = "test-receiver")]
pub mod receiver;

use std::collections::HashMap;
use std::io::IsTerminal;
use std::time::Duration;

use opentelemetry::Context;
use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::{SpanContext, TraceContextExt, TracerProvider};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing::Span;
use tracing::level_filters::LevelFilter;
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::{EnvFilter, Layer, Registry};

/// How long the end of a process waits for its last spans.
pub const FLUSH_WITHIN: Duration = Duration::from_secs(3);

/// The variables that hold a log filter, the first that is set counts.
const LOG_VARIABLES: [&str; 2] = ["GLASSHOUSE_LOG", "RUST_LOG"];
const TRACES_ENDPOINT: &str = opentelemetry_otlp::OTEL_EXPORTER_OTLP_TRACES_ENDPOINT;
const ENDPOINT: &str = opentelemetry_otlp::OTEL_EXPORTER_OTLP_ENDPOINT;
const PROTOCOLS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"];

/// Why logs and traces could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter in the environment is not one.
    #[error(
        "{variable}=`{filter}` is not a log filter: {source}; try `info` or `glasshouse_nats=debug,warn`"
    )]
    Filter {
        /// The variable.
        variable: &'static str,
        /// Its value.
        filter: String,
        /// What is wrong with it.
        source: tracing_subscriber::filter::ParseError,
    },
    /// The level that the program passed is not one.
    #[error("`{0}` is not a log level: expected off, error, warn, info, debug or trace")]
    Level(String),
    /// Something in this process has set up logs already.
    #[error("logs are set up already")]
    AlreadySet(#[from] tracing::subscriber::SetGlobalDefaultError),
}

/// Keeps the exporter running. Dropping it flushes, as [`Guard::shutdown`] does.
#[derive(Debug)]
#[must_use = "spans are exported while this lives"]
pub struct Guard {
    exporter: Option<Exporter>,
}

#[derive(Debug)]
struct Exporter {
    provider: SdkTracerProvider,
    runtime: tokio::runtime::Runtime,
}

impl Guard {
    /// Exports what is left, waiting no longer than [`FLUSH_WITHIN`]. May be called in or outside of a runtime.
    pub fn shutdown(mut self) {
        self.flush();
    }

    fn flush(&mut self) {
        let Some(Exporter { provider, runtime }) = self.exporter.take() else { return };
        if let Err(error) = provider.shutdown_with_timeout(FLUSH_WITHIN) {
            tracing::warn!(%error, "the last spans were not exported");
        }
        // Never waits, and so may be called from a task of another runtime.
        runtime.shutdown_background();
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.flush();
    }
}

/// Sets up logs and, where the environment asks for them, traces.
///
/// `service` is the `service.name` unless the environment gives one. `level` is that of our own log lines; those of
/// libraries are shown from `warn` on. A filter in the environment replaces both.
pub fn init(service: &'static str, level: &str, json: bool) -> Result<Guard, TelemetryError> {
    let level: LevelFilter = level.parse().map_err(|_| TelemetryError::Level(level.to_owned()))?;
    let logs = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    let logs: Box<dyn Layer<Registry> + Send + Sync> = match (log_filter()?, json) {
        (Some(filter), true) => logs.json().with_filter(filter).boxed(),
        (Some(filter), false) => logs.with_target(false).with_filter(filter).boxed(),
        (None, true) => logs.json().with_filter(ours(level)).boxed(),
        (None, false) => logs.with_target(false).with_filter(ours(level)).boxed(),
    };
    opentelemetry::global::set_text_map_propagator(TraceContextPropagator::new());
    let registry = tracing_subscriber::registry().with(logs);
    let (exporter, problem) = match is_enabled().then(|| exporter(service)) {
        None => (None, None),
        Some(Ok(exporter)) => (Some(exporter), None),
        Some(Err(problem)) => (None, Some(problem)),
    };
    match &exporter {
        // What is exported does not depend on what is logged.
        Some(Exporter { provider, .. }) => {
            let spans = tracing_opentelemetry::layer()
                .with_tracer(provider.tracer("glasshouse"))
                .with_filter(Targets::new().with_target("glasshouse", LevelFilter::INFO));
            tracing::subscriber::set_global_default(registry.with(spans))?;
        }
        None => tracing::subscriber::set_global_default(registry)?,
    }
    if let Some(problem) = problem {
        tracing::warn!(problem, "traces are off");
    }
    Ok(Guard { exporter })
}

/// Whether the environment asks for traces.
pub fn is_enabled() -> bool {
    let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let is = |name, value: &str| {
        std::env::var(name).is_ok_and(|found: String| found.trim().eq_ignore_ascii_case(value))
    };
    (set(TRACES_ENDPOINT) || set(ENDPOINT))
        && !is("OTEL_SDK_DISABLED", "true")
        && !is("OTEL_TRACES_EXPORTER", "none")
}

fn log_filter() -> Result<Option<EnvFilter>, TelemetryError> {
    for variable in LOG_VARIABLES {
        let filter = std::env::var(variable).unwrap_or_default();
        if !filter.trim().is_empty() {
            return EnvFilter::try_new(&filter).map(Some).map_err(|source| TelemetryError::Filter {
                variable,
                filter,
                source,
            });
        }
    }
    Ok(None)
}

/// Our own lines from `level` on, those of libraries from `warn` on.
fn ours(level: LevelFilter) -> Targets {
    // `glasshouse` is a prefix of every crate of ours.
    Targets::new().with_default(level.min(LevelFilter::WARN)).with_target("glasshouse", level)
}

fn exporter(service: &'static str) -> Result<Exporter, String> {
    if let Ok(kind) = std::env::var("OTEL_TRACES_EXPORTER")
        && !kind.split(',').any(|kind| matches!(kind.trim(), "otlp" | ""))
    {
        return Err(format!("OTEL_TRACES_EXPORTER is `{kind}`, and only otlp and none are supported"));
    }
    let protocol =
        PROTOCOLS.iter().find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()));
    if let Some(protocol) = protocol.filter(|protocol| protocol != "grpc") {
        return Err(format!(
            "the OTLP protocol is `{protocol}`, and only grpc (usually port 4317) is supported"
        ));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("otlp")
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start the exporter's thread: {error}"))?;
    let entered = runtime.enter();
    let exporter = opentelemetry_otlp::SpanExporter::builder().with_tonic().build();
    drop(entered);
    let exporter = match exporter {
        Ok(exporter) => exporter,
        Err(error) => {
            runtime.shutdown_background();
            return Err(format!("the OTLP exporter cannot be set up: {error}"));
        }
    };
    let mut resource = Resource::builder();
    let named = std::env::var("OTEL_SERVICE_NAME").is_ok_and(|name| !name.is_empty())
        || std::env::var("OTEL_RESOURCE_ATTRIBUTES").is_ok_and(|text| text.contains("service.name="));
    if !named {
        resource = resource.with_service_name(service);
    }
    let provider =
        SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource.build()).build();
    Ok(Exporter { provider, runtime })
}

fn current_span_context() -> Option<SpanContext> {
    let context = Span::current().context();
    let span = context.span().span_context().clone();
    span.is_valid().then_some(span)
}

/// The current span as a W3C `traceparent`; `None` where traces are off.
pub fn current_traceparent() -> Option<String> {
    let span = current_span_context()?;
    Some(format!("00-{}-{}-{:02x}", span.trace_id(), span.span_id(), span.trace_flags()))
}

/// The current trace, 32 hexadecimal digits; `None` where traces are off.
pub fn trace_id() -> Option<String> {
    current_span_context().map(|span| span.trace_id().to_string())
}

/// The context that a W3C `traceparent` names; `None` for anything else.
pub fn context_from_traceparent(traceparent: &str) -> Option<Context> {
    let carrier = HashMap::from([("traceparent".to_owned(), traceparent.to_owned())]);
    let context = TraceContextPropagator::new().extract_with_context(&Context::new(), &carrier);
    let valid = context.span().span_context().is_valid();
    valid.then_some(context)
}

/// Makes `span` a child of the span that a W3C `traceparent` names. Nothing happens where traces are off, where the
/// text is not one, or where the span has begun to be recorded already.
pub fn set_parent(span: &Span, traceparent: &str) {
    if let Some(context) = context_from_traceparent(traceparent)
        && let Err(error) = span.set_parent(context)
    {
        tracing::trace!(%error, "no parent set");
    }
}

/// Resolves when the process is asked to stop: SIGTERM, or SIGINT (Ctrl-C).
pub async fn stop_signal() {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
            (Ok(mut terminate), Ok(mut interrupt)) => {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
                return;
            }
            (Err(error), _) | (_, Err(error)) => {
                tracing::warn!(%error, "cannot listen for SIGTERM and SIGINT: they end the process at once");
            }
        }
    }
    #[cfg(not(unix))]
    if tokio::signal::ctrl_c().await.is_ok() {
        return;
    }
    std::future::pending().await
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_traceparent_is_read_or_refused() {
        let context = context_from_traceparent(PARENT).unwrap();
        assert_eq!(context.span().span_context().trace_id().to_string(), "0af7651916cd43dd8448eb211c80319c");
        for bad in ["", "00-0-0-01", "00-00000000000000000000000000000000-b7ad6b7169203331-01"] {
            assert!(context_from_traceparent(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn without_a_subscriber_nothing_has_a_trace() {
        let span = tracing::info_span!("nobody listens");
        set_parent(&span, PARENT);
        assert_eq!(span.in_scope(current_traceparent), None);
        assert_eq!(trace_id(), None);
    }
}
