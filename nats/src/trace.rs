//! W3C Trace Context in message headers, so that one trace spans submitter, engine, aggregator and policy worker.
//!
//! Injecting and extracting go through OpenTelemetry's global propagator: with none installed, nothing is injected.

use async_nats::{HeaderMap, HeaderValue};
use glasshouse_schema::headers::TRACEPARENT;
use opentelemetry::Context;
use opentelemetry::propagation::{Extractor, Injector};

struct Inject<'a>(&'a mut HeaderMap);

impl Injector for Inject<'_> {
    fn set(&mut self, key: &str, value: String) {
        if let Ok(value) = value.parse::<HeaderValue>() {
            self.0.insert(key, value);
        }
    }
}

struct Extract<'a>(&'a HeaderMap);

impl Extractor for Extract<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(HeaderValue::as_str)
    }

    fn keys(&self) -> Vec<&str> {
        self.0.iter().map(|(name, _)| name.as_ref()).collect()
    }
}

/// Writes the current OpenTelemetry context into `headers`.
pub fn inject_current(headers: &mut HeaderMap) {
    inject(&Context::current(), headers);
}

/// Writes `context` into `headers`.
pub fn inject(context: &Context, headers: &mut HeaderMap) {
    opentelemetry::global::get_text_map_propagator(|propagator| {
        propagator.inject_context(context, &mut Inject(headers));
    });
}

/// The context that `headers` carry; the current one where they carry none.
pub fn extract(headers: &HeaderMap) -> Context {
    opentelemetry::global::get_text_map_propagator(|propagator| propagator.extract(&Extract(headers)))
}

/// The current context as the text of a `traceparent` header.
pub fn current_traceparent() -> Option<String> {
    let mut headers = HeaderMap::new();
    inject_current(&mut headers);
    traceparent(&headers).map(str::to_owned)
}

/// The `traceparent` that `headers` carry, if it is one.
pub fn traceparent(headers: &HeaderMap) -> Option<&str> {
    headers.get(TRACEPARENT).map(HeaderValue::as_str).filter(|text| is_traceparent(text))
}

/// Whether `text` has the form of a `traceparent` (W3C Trace Context §3.2: version, trace id, parent id, flags).
pub fn is_traceparent(text: &str) -> bool {
    let fields: Vec<&str> = text.split('-').collect();
    fields.len() == 4
        && fields.iter().zip([2, 32, 16, 2]).all(|(field, length)| {
            field.len() == length && field.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        })
}

/// Stamps `headers` with the given trace, or with the current context where none is given.
pub(crate) fn stamp(headers: &mut HeaderMap, trace: Option<&str>) {
    match trace.filter(|text| is_traceparent(text)) {
        Some(text) => headers.insert(TRACEPARENT, text),
        None => inject_current(headers),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState};

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn only_well_formed_traceparents_pass() {
        assert!(is_traceparent(PARENT));
        for bad in ["", "00-x-y-01", "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01", "a\r\nb: c"] {
            assert!(!is_traceparent(bad), "{bad}");
        }
    }

    #[test]
    fn a_context_travels_through_headers() {
        opentelemetry::global::set_text_map_propagator(
            opentelemetry_sdk::propagation::TraceContextPropagator::new(),
        );
        let span = SpanContext::new(
            TraceId::from_hex("0af7651916cd43dd8448eb211c80319c").unwrap(),
            SpanId::from_hex("b7ad6b7169203331").unwrap(),
            TraceFlags::SAMPLED,
            true,
            TraceState::default(),
        );
        let mut headers = HeaderMap::new();
        inject(&Context::new().with_remote_span_context(span.clone()), &mut headers);
        assert_eq!(traceparent(&headers), Some(PARENT));
        assert_eq!(extract(&headers).span().span_context().trace_id(), span.trace_id());

        let mut given = HeaderMap::new();
        stamp(&mut given, Some(PARENT));
        assert_eq!(traceparent(&given), Some(PARENT));
    }
}
