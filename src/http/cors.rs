//! Pages of other origins: which of them may ask, and read what is answered. Off unless a setting names them.
//!
//! Commands are for no page, whatever its origin.

use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header};

use axum::response::{IntoResponse as _, Response};

use crate::config::Origins;

/// What a page may read beside what every page may.
const EXPOSED: HeaderValue = HeaderValue::from_static(
    "etag, retry-after, x-request-id, x-state-version, x-model-name, x-model-version, x-model-digest, \
     inference-header-content-length",
);
const METHODS: HeaderValue = HeaderValue::from_static("GET, HEAD, POST");
/// For how long, in seconds, a browser need not ask again. None keeps it for longer than two hours.
const MAX_AGE: HeaderValue = HeaderValue::from_static("7200");

/// What a request of a page gets beside its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Granted(HeaderValue);

/// Whether this is a request of a page that may ask.
pub(super) fn granted<B>(origins: &Origins, request: &Request<B>) -> Option<Granted> {
    let origin = request.headers().get(header::ORIGIN)?;
    let path = request.uri().path();
    // Of gRPC no page has any use: browsers cannot speak it.
    let command = ["/admin", "/v2/repository/models/", "/inference.", "/grpc."];
    let command = command.iter().any(|command| path.starts_with(command));
    if command || !origins.allow(origin) {
        return None;
    }
    Some(Granted(match origins {
        Origins::Any => HeaderValue::from_static("*"),
        Origins::Only(_) => origin.clone(),
    }))
}

/// The answer to a browser that asks what it may send.
pub(super) fn preflight<B>(granted: &Granted, request: &Request<B>) -> Option<Response> {
    let headers = request.headers();
    if *request.method() != Method::OPTIONS || !headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD) {
        return None;
    }
    let mut response = StatusCode::NO_CONTENT.into_response();
    let answer = response.headers_mut();
    answer.insert(header::ACCESS_CONTROL_ALLOW_METHODS, METHODS);
    // Whatever it wants to send: nothing here trusts a header because a browser could not set it.
    if let Some(wanted) = headers.get(header::ACCESS_CONTROL_REQUEST_HEADERS) {
        answer.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, wanted.clone());
    }
    answer.insert(header::ACCESS_CONTROL_MAX_AGE, MAX_AGE);
    granted.write(answer);
    Some(response)
}

impl Granted {
    /// Lets the page read an answer.
    pub(super) fn write(&self, headers: &mut HeaderMap) {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, self.0.clone());
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
        vary(headers);
    }
}

/// Who keeps an answer for later keeps it for pages of the same origin.
pub(super) fn vary(headers: &mut HeaderMap) {
    headers.append(header::VARY, HeaderValue::from_static("origin"));
}
