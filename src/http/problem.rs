//! Failures: RFC 9457 problem details, one shape for every one of them.

use std::borrow::Cow;
use std::sync::Arc;

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use schemars::JsonSchema;
use serde::Serialize;

use super::catalog::Number;
use super::trace::Fault;
use crate::telemetry::TraceContext;

/// Why a request was not answered. It travels in the response's extensions, without a body, to
/// [`observe`](super::observe), which knows the request's id and writes it out.
#[derive(Debug, Clone)]
pub(super) struct Problem {
    pub(super) status: StatusCode,
    /// What programs tell failures apart by; stable.
    pub(super) code: &'static str,
    /// What went wrong with this request, and what to do, for a person.
    pub(super) detail: Cow<'static, str>,
    /// The request may be sent again after a second.
    pub(super) retry: bool,
    /// The version that is served, where that is what is wrong.
    pub(super) served: Option<Number>,
    /// What the log tells of it, where it is a fault of the server's: the client learns that there was one.
    pub(super) fault: Option<Arc<Fault>>,
}

/// A failure, as RFC 9457 has it.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Problem")]
pub(super) struct Body<'a> {
    r#type: &'static str,
    title: &'static str,
    status: u16,
    /// What went wrong with this request, and what to do, for a person.
    detail: &'a str,
    /// What programs tell failures apart by; stable.
    code: &'static str,
    /// The version that is served, where that is what is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    served: Option<&'a Number>,
    /// The `x-request-id` of the answer.
    request_id: &'a str,
    /// The trace that the request belongs to, where its `traceparent` names one.
    #[serde(skip_serializing_if = "Option::is_none")]
    trace_id: Option<String>,
}

impl Problem {
    /// A failure that sending the request again will not mend.
    pub(super) fn new(status: StatusCode, code: &'static str, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { status, code, detail: detail.into(), retry: false, served: None, fault: None }
    }

    /// The server cannot answer now, and will soon.
    pub(super) fn unavailable(code: &'static str, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { retry: true, ..Self::new(StatusCode::SERVICE_UNAVAILABLE, code, detail) }
    }

    /// A fault of the server itself.
    pub(super) fn internal() -> Self {
        let detail = "the server met a fault of its own, which its log tells under the request id";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", detail)
    }

    /// Writes it out as the body and headers of its response.
    pub(super) fn render(
        &self,
        dialect: Dialect,
        request_id: &str,
        trace: Option<TraceContext>,
        response: &mut Response,
    ) {
        let (bytes, content_type) = match dialect {
            Dialect::Problem => (self.details(request_id, trace), "application/problem+json"),
            Dialect::Protocol => {
                // The protocol knows one status for every mistake in a request.
                if self.status == StatusCode::UNPROCESSABLE_ENTITY {
                    *response.status_mut() = StatusCode::BAD_REQUEST;
                }
                (serde_json::to_vec(&ProtocolBody { error: &self.detail }), "application/json")
            }
        };
        *response.body_mut() = bytes.expect("text and numbers are JSON").into();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if self.retry {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
    }

    fn details(&self, request_id: &str, trace: Option<TraceContext>) -> serde_json::Result<Vec<u8>> {
        serde_json::to_vec(&Body {
            r#type: "about:blank",
            title: self.status.canonical_reason().unwrap_or("Error"),
            status: self.status.as_u16(),
            detail: &self.detail,
            code: self.code,
            served: self.served.as_ref(),
            request_id,
            trace_id: trace.map(|trace| trace.trace_id().to_string()),
        })
    }
}

/// How failures are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    /// As problem details.
    Problem,
    /// As the Open Inference Protocol has it: `{"error": "…"}`, whatever it is.
    Protocol,
}

#[derive(Serialize)]
struct ProtocolBody<'a> {
    error: &'a str,
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}
