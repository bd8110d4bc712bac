//! What orchestrators and Prometheus ask.

use std::sync::Arc;

use axum::Json;
use axum::extract::{RawQuery, State};
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;

use super::Http;
use super::problem::Problem;
use crate::id::{Rank, Version};
use crate::metrics::{Scraped, unix_seconds};
use crate::status::{Bootstrapped, Manifest, Readiness, Stream};

#[derive(Serialize, JsonSchema)]
pub(super) struct Live {
    live: bool,
}

/// Whether requests should be sent here; with `?verbose` also how the stream and the manifest are.
#[derive(Serialize, JsonSchema)]
pub(super) struct Ready {
    ready: bool,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stream: Option<Stream>,
    #[serde(skip_serializing_if = "Option::is_none")]
    manifest: Option<Manifest>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bootstrapped: Option<Bootstrapped>,
}

/// The process answers; that is all it depends on.
pub(super) async fn live() -> Response {
    ([(header::CACHE_CONTROL, "no-store")], Json(Live { live: true })).into_response()
}

/// Whether requests should be sent here, and why not.
pub(super) async fn ready(State(http): State<Arc<Http>>, RawQuery(query): RawQuery) -> Response {
    let (status, reason) = match http.status.readiness() {
        Readiness::Ready => (StatusCode::OK, None),
        Readiness::Starting(reason) => (StatusCode::SERVICE_UNAVAILABLE, Some(reason)),
        Readiness::Draining => (StatusCode::SERVICE_UNAVAILABLE, Some("shutting down".to_owned())),
    };
    let verbose = query.is_some_and(|query| query.split('&').any(|field| field.split('=').next() == Some("verbose")));
    let stream = verbose.then(|| http.status.stream());
    let (manifest, bootstrapped) = match verbose {
        true => (http.status.manifest(), http.status.bootstrapped()),
        false => (None, None),
    };
    let body = Json(Ready { ready: reason.is_none(), reason, stream, manifest, bootstrapped });
    (status, [(header::CACHE_CONTROL, "no-store")], body).into_response()
}

/// Everything for Prometheus. What comes and goes is written from what is served now.
pub(super) async fn metrics(State(http): State<Arc<Http>>) -> Response {
    let snapshot = http.serving.snapshot();
    let ready = http.status.readiness() == Readiness::Ready;
    http.metrics.ready.set(if ready { 1.0 } else { 0.0 });

    let mut models: Vec<_> = snapshot.models.values().collect();
    models.sort_unstable_by(|a, b| a.facts.name.cmp(&b.facts.name));
    let mut states: Vec<_> = snapshot.states.values().collect();
    states.sort_unstable_by(|a, b| a.key.cmp(&b.key));
    let stream = http.status.stream();

    let mut scraped = Scraped::default();
    let now = Timestamp::now();
    let shards = || stream.shards.iter().map(|(id, shard)| ([id.as_str()], shard));
    scraped.write("hotserve_stream_lag_seconds", shards().map(|(id, shard)| (id, shard.lag(now))));
    scraped.write(
        "hotserve_stream_last_contact_timestamp_seconds",
        shards().map(|(id, shard)| (id, shard.last_contact.as_millisecond() as f64 / 1e3)),
    );
    let bootstrapped = http.status.bootstrapped();
    scraped.write("hotserve_bootstrap_info", bootstrapped.iter().map(|kind| ([kind.code()], 1.0)));
    let held = http.status.held();
    let held: Vec<_> = held.iter().map(|(slot, held)| (slot.to_string(), held.by.code())).collect();
    scraped.write("hotserve_held", held.iter().map(|(slot, by)| ([slot.as_str(), *by], 1.0)));
    scraped.write("hotserve_isolation_info", http.status.isolation().iter().map(|mode| ([*mode], 1.0)));
    let facts: Vec<_> =
        models.iter().map(|model| (model.facts.rank.to_string(), model.facts.digest.to_string())).collect();
    let info = models.iter().zip(&facts).map(|(model, (version, digest))| {
        ([model.facts.name.as_str(), version.as_str(), digest.as_str(), model.facts.format.as_str()], 1.0)
    });
    scraped.write("hotserve_model_info", info);
    let named = || models.iter().map(|model| (model, [model.facts.name.as_str()]));
    scraped.write("hotserve_model_version", named().map(|(model, name)| (name, number(&model.facts.rank))));
    scraped
        .write("hotserve_model_memory_bytes", named().map(|(model, name)| (name, model.model.memory_bytes() as f64)));
    scraped.write(
        "hotserve_model_loaded_timestamp_seconds",
        named().map(|(model, name)| (name, unix_seconds(model.applied_at))),
    );
    scraped.write("hotserve_state_version", states.iter().map(|state| ([state.key.as_str()], number(&state.rank))));
    scraped.write("hotserve_build_info", [([env!("CARGO_PKG_VERSION"), env!("HOTSERVE_BUILT_FROM")], 1.0)]);

    // Some milliseconds, in which no request is to wait.
    let rendered = tokio::task::spawn_blocking(move || http.metrics.render(&scraped)).await;
    let Ok(text) = rendered else { return Problem::internal().into_response() };
    let mut response = Response::new(text.into());
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; version=0.0.4"));
    response
}

/// A version as a gauge: exact, for it is below 2^53; 0 where there is none.
fn number(rank: &Rank) -> f64 {
    rank.version().map_or(0.0, |version: Version| version.get() as f64)
}
