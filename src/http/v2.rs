//! The Open Inference Protocol, version 2, over REST, as Triton, KServe and their clients speak it.
//!
//! Every failure below `/v2` is `{"error": "…"}`, whatever its status: there are clients that look no further. No
//! content type is asked for: there are clients that send none.

mod data;
mod encoding;
pub(super) mod grpc;
mod infer;
pub(super) mod models;
pub(super) mod repository;
pub mod request;
mod response;
pub mod wire;

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::response::Response;
use axum::routing::{MethodRouter, any, get, post};
use http::StatusCode;
use serde::Serialize;

use self::models::answer;
use super::observe::Observe;
use super::problem::Problem;
use super::{Http, method_not_allowed};
use crate::metrics::Metrics;
use crate::status::Readiness;

/// What of the protocol's extensions is here.
pub const EXTENSIONS: [&str; 3] = ["binary_tensor_data", "model_repository", "statistics"];

/// Every route of the protocol, with commands or with the word that they are taken elsewhere.
pub(super) fn router(http: &Http, takes_commands: bool) -> Router<Arc<Http>> {
    let on = |path, name, methods| route(path, name, methods, &http.metrics);
    let (reads, infers) = ("/v2/models", "/v2/models/{model}/infer");
    let commands = match takes_commands {
        true => commands(http),
        false => on(LOAD, LOAD, post(repository::elsewhere)).merge(on(UNLOAD, UNLOAD, post(repository::elsewhere))),
    };
    Router::new()
        .merge(on("/v2", "/v2", get(server)))
        .merge(on("/v2/", "/v2", get(server)))
        .merge(on("/v2/health/live", "/v2", get(live)))
        .merge(on("/v2/health/ready", "/v2", get(ready)))
        .merge(on("/v2/models", reads, get(models::names)))
        .merge(on("/v2/models/stats", reads, get(models::all_statistics)))
        .merge(on("/v2/models/{model}", reads, get(models::metadata)))
        .merge(on("/v2/models/{model}/ready", reads, get(models::ready)))
        .merge(on("/v2/models/{model}/stats", reads, get(models::statistics)))
        .merge(on("/v2/models/{model}/infer", infers, post(infer::infer)))
        .merge(on("/v2/models/{model}/versions/{version}", reads, get(models::metadata)))
        .merge(on("/v2/models/{model}/versions/{version}/ready", reads, get(models::ready)))
        .merge(on("/v2/models/{model}/versions/{version}/stats", reads, get(models::statistics)))
        .merge(on("/v2/models/{model}/versions/{version}/infer", infers, post(infer::infer)))
        .merge(on("/v2/repository/index", "/v2/repository/index", post(repository::index)))
        .merge(commands)
        .route("/v2/{*rest}", any(not_found).layer(Observe::route("/v2", &http.metrics)))
}

const LOAD: &str = "/v2/repository/models/{model}/load";
const UNLOAD: &str = "/v2/repository/models/{model}/unload";

/// The routes by which a model is told to be served or not.
pub(super) fn commands(http: &Http) -> Router<Arc<Http>> {
    let on = |path, methods| route(path, path, methods, &http.metrics);
    on(LOAD, post(repository::load)).merge(on(UNLOAD, post(repository::unload)))
}

fn route(
    path: &'static str,
    name: &'static str,
    methods: MethodRouter<Arc<Http>>,
    metrics: &Arc<Metrics>,
) -> Router<Arc<Http>> {
    Router::new().route(path, methods.fallback(method_not_allowed).layer(Observe::route(name, metrics)))
}

#[derive(Serialize)]
struct Server {
    name: &'static str,
    version: &'static str,
    extensions: [&'static str; 3],
}

/// What this is.
async fn server() -> Response {
    answer(Server { name: "hotserve", version: env!("CARGO_PKG_VERSION"), extensions: EXTENSIONS })
}

#[derive(Serialize)]
struct Live {
    live: bool,
}

/// The process answers; that is all it depends on.
async fn live() -> Response {
    answer(Live { live: true })
}

#[derive(Serialize)]
struct Ready {
    ready: bool,
}

/// Whether requests should be sent here.
async fn ready(State(http): State<Arc<Http>>) -> Result<Response, Problem> {
    let not = |reason: String| Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "not_ready", reason));
    match http.status.readiness() {
        Readiness::Ready => Ok(answer(Ready { ready: true })),
        Readiness::Starting(reason) => not(reason),
        Readiness::Draining => not("shutting down".to_owned()),
    }
}

async fn not_found() -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "not_found", "there is nothing at this path of the Open Inference Protocol")
}
