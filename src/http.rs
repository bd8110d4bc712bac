//! The HTTP interface.
//!
//! It reads what is served and how the server does, and knows nothing of where that comes from. A request takes one
//! [`Snapshot`](crate::serving::Snapshot) and answers everything from it.

mod answer;
mod body;
mod catalog;
mod health;
pub mod listener;
mod observe;
mod predict;
mod problem;
mod state;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use axum::Router;
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{MethodRouter, any, get, post};
use http::{HeaderValue, StatusCode, header};

use crate::config::HttpConfig;
use crate::metrics::Metrics;
use crate::serving::Serving;
use crate::serving::compute::ComputePool;
use crate::status::Status;
use observe::Observe;
use problem::Problem;

/// What the interface shows and uses.
pub struct Http {
    /// What is served.
    pub serving: Arc<Serving>,
    /// How the server is doing.
    pub status: Arc<Status>,
    /// Where requests are counted.
    pub metrics: Arc<Metrics>,
    /// Where dear predictions are computed.
    pub compute: ComputePool,
    /// The limits.
    pub config: HttpConfig,
}

/// Every route. HEAD works where GET does.
pub fn router(http: Arc<Http>) -> Router {
    let metrics = Arc::clone(&http.metrics);
    let on = |path: &'static str, methods: MethodRouter<Arc<Http>>| {
        let observed = methods.fallback(method_not_allowed).layer(Observe::route(path, &metrics));
        Router::new().route(path, observed)
    };
    Router::new()
        .merge(on("/", get(page)))
        .merge(on("/state", get(state::get_default)))
        .merge(on("/state/{key}", get(state::get_by_key)))
        .merge(on("/predict", post(predict::by_default)))
        .merge(on("/predict/{model}", post(predict::by_name)))
        .merge(on("/models", get(catalog::models)))
        .merge(on("/history", get(catalog::history)))
        .merge(on("/livez", get(health::live)))
        .merge(on("/healthz", get(health::live)))
        .merge(on("/readyz", get(health::ready)))
        .merge(on("/metrics", get(health::metrics)))
        .fallback_service(any(not_found).layer(Observe::route("unmatched", &metrics)))
        .with_state(http)
}

/// The status page: one file, and nothing from outside.
async fn page() -> Response {
    const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; \
                          connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
    let mut response = Html(include_str!("http/page.html")).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

async fn not_found() -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "not_found", "there is nothing at this path; / shows what there is")
}

/// The router adds which methods are, in `allow`.
async fn method_not_allowed() -> Problem {
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "the path does not take this method")
}
