//! Who asks: a request's id, its trace, and what is logged of a request that failed.

use std::fmt;
use std::time::Instant;

use axum::response::Response;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method};

use super::predict::MODEL_VERSION;
use crate::id::{ModelName, Rank, Slot};
use crate::telemetry::{self, Answered, Seldom, TraceContext};

pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const TRACEPARENT: HeaderName = HeaderName::from_static(TraceContext::NAME);

/// A model that fails for each request must not fill the disk with lines.
static FAILED: Seldom = Seldom::new(10);

/// Whose request it is. Nothing of it is allocated but a new id.
#[derive(Debug)]
pub(super) struct Caller {
    pub(super) begun: Instant,
    pub(super) id: HeaderValue,
    method: Method,
    trace: Option<TraceContext>,
}

impl Caller {
    /// Of a request that came now.
    pub(super) fn of(method: &Method, headers: &HeaderMap) -> Self {
        let trace = headers.get(TRACEPARENT).and_then(|value| TraceContext::parse(value.as_bytes()));
        Self { begun: Instant::now(), id: request_id(headers), method: method.clone(), trace }
    }

    /// The same of a request that is taken apart already.
    pub(super) fn of_head(head: &Parts) -> Self {
        Self::of(&head.method, &head.headers)
    }

    pub(super) fn id(&self) -> &str {
        self.id.to_str().unwrap_or_default()
    }

    /// The request was answered: exported, and a line of the log where somebody wants one of each. Answers to which
    /// trace it belongs, if to one.
    pub(super) fn answered(&self, route: &str, response: &Response, grpc: Option<i32>) -> Option<TraceContext> {
        let status = response.status().as_u16();
        let version = || response.headers().get(MODEL_VERSION).map(HeaderValue::as_bytes);
        let (method, request_id) = (self.method.as_str(), self.id());
        let (parent, begun) = (self.trace, self.begun);
        let trace = telemetry::answered(&Answered { parent, begun, method, route, status, grpc, request_id }, version);
        tracing::debug!(
            target: "hotserve::access",
            method,
            route,
            status,
            grpc_status = grpc,
            version = version().and_then(|version| std::str::from_utf8(version).ok()),
            duration_ms = self.begun.elapsed().as_secs_f64() * 1e3,
            request_id,
            trace_id = telemetry::shown(trace.map(TraceContext::trace_id)),
            "answered"
        );
        trace
    }

    /// Says why the server could not answer.
    pub(super) fn failed(&self, route: &str, trace: Option<TraceContext>, fault: &Fault) {
        let Some(unsaid) = FAILED.may_say() else { return };
        let trace_id = telemetry::shown(trace.or(self.trace).map(TraceContext::trace_id));
        let unsaid = (unsaid > 0).then_some(unsaid);
        let Fault { model, error } = fault;
        tracing::error!(
            slot = telemetry::shown(model.as_ref().map(|(name, _)| Slot::Model(name.clone()))),
            version = telemetry::shown(model.as_ref().map(|(_, version)| version)),
            error,
            %route,
            request_id = %self.id(),
            trace_id,
            unsaid,
            "a request failed"
        );
    }
}

/// Why a request could not be answered, for the log.
#[derive(Debug, Clone, thiserror::Error)]
pub(super) struct Fault {
    model: Option<(ModelName, Rank)>,
    error: String,
}

impl Fault {
    /// A model that does not answer as it should.
    pub(super) fn of_model(name: ModelName, version: Rank, error: &str) -> Self {
        Self { model: Some((name, version)), error: error.to_owned() }
    }

    /// The panic hook has told where; a request costs itself, and nothing else.
    pub(super) fn panicked() -> Self {
        Self { model: None, error: "its handler panicked".to_owned() }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.error)
    }
}

/// The client's id where it is fit for headers and logs, else a new one.
pub(super) fn request_id(headers: &HeaderMap) -> HeaderValue {
    let given = headers.get(REQUEST_ID);
    let fit = |id: &&HeaderValue| (1..=128).contains(&id.len()) && id.as_bytes().iter().all(u8::is_ascii_graphic);
    given.filter(fit).cloned().unwrap_or_else(|| {
        let mut id = [0; 16];
        let mut bits = fastrand::u64(..);
        for digit in &mut id {
            *digit = b"0123456789abcdef"[(bits & 0xf) as usize];
            bits >>= 4;
        }
        HeaderValue::from_bytes(&id).expect("hex digits are visible ASCII")
    })
}
